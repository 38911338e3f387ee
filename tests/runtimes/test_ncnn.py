"""ncnn: parity with the detector, names, threads, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import coloured_squares as squares
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.run import file_digest
from acclimate.runtimes import base
from acclimate.runtimes import ncnn as ncnn_runtime
from acclimate.runtimes.eager import network

if missing := base.why_not("ncnn", "export"):
    pytest.skip(missing, allow_module_level=True)
PARAM = """\
7767517
3 3
Input in0 0 1 in0
Convolution out0 1 1 in0 out1 0=8 1=in0
Exp exp 1 1 out1 out0
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory):
    return squares.write_scenes(tmp_path_factory.mktemp("scenes"), 6)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    runtime = base.runtime("ncnn")
    return {p: runtime.export(squares.SquareDetector(), folder / f"ncnn-{p}", p, []) for p in runtime.precisions}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.05)])
def test_it_is_the_detector(artifacts: dict[str, Artifact], scenes, precision: str, tolerance: float) -> None:
    reference = network(squares.SquareDetector().eval())
    run = base.runtime("ncnn").load(artifacts[precision], 1)
    for path in scenes.paths:
        image = to_input(letterbox(read_image(path), squares.CANVAS)[0])
        for ours, theirs in zip(run(image), reference(image), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_finds_the_squares(artifacts: dict[str, Artifact], scenes, precision: str) -> None:
    predictor = Predictor(artifacts[precision])
    for labelled in scenes.images:
        found = predictor(read_image(labelled.path)).above(0.5)
        order, expected = (np.lexsort(boxes.T) for boxes in (found.boxes, labelled.annotations.boxes))
        np.testing.assert_allclose(found.boxes[order], labelled.annotations.boxes[expected], atol=0.1)
        np.testing.assert_array_equal(found.labels[order], labelled.annotations.labels[expected])


def test_fp16_halves_the_file(artifacts: dict[str, Artifact]) -> None:
    sizes = {precision: artifact.file(".bin").stat().st_size for precision, artifact in artifacts.items()}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_what_was_computed_stays(artifacts: dict[str, Artifact]) -> None:
    run = base.runtime("ncnn").load(artifacts["fp32"], 1)
    first = run(np.zeros((1, 3, *squares.CANVAS), np.float32))
    before = [output.copy() for output in first]
    run(np.full((1, 3, *squares.CANVAS), 255, np.float32))
    for a, b in zip(first, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_image_is_left_as_it_was(artifacts: dict[str, Artifact]) -> None:
    """ncnn's first layer, a division here, computes in place where it may."""
    image = np.full((1, 3, *squares.CANVAS), 200, np.float32)
    base.runtime("ncnn").load(artifacts["fp32"], 1)(image)
    assert (image == 200).all()


def test_threads_are_those_that_are_asked_for(artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    import ncnn

    made = []
    monkeypatch.setattr(ncnn, "Net", lambda real=ncnn.Net: made.append(real()) or made[-1])
    for threads in (1, 2):
        base.runtime("ncnn").load(artifacts["fp32"], threads)
        assert made[-1].opt.num_threads == threads


def test_blobs_are_renamed_and_nothing_else() -> None:
    names = {"in0": "images", "out0": "logits", "out1": "distances"}
    assert (
        ncnn_runtime._renamed(PARAM, names)
        == """\
7767517
3 3
Input in0 0 1 images
Convolution out0 1 1 images distances 0=8 1=in0
Exp exp 1 1 distances logits
"""
    )
    assert ncnn_runtime._lacking(PARAM) == []
    assert ncnn_runtime._lacking(PARAM.replace("Exp exp", "torch.where exp")) == ["torch.where"]


def test_an_operation_that_it_lacks_is_named(tmp_path: Path) -> None:
    class Choosing(squares.SquareDetector):
        def features(self, images: Tensor) -> list[Tensor]:
            fine, coarse = super().features(images)
            return [torch.where(fine == fine.amax(1, keepdim=True), fine, 0.0), coarse]

    with pytest.raises(AcclimateError, match=r"ncnn has no layer for .*, which this detector needs") as caught:
        base.runtime("ncnn").export(Choosing(), tmp_path / "a", "fp32", [])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_computes_something_else_is_refused() -> None:
    frozen = base.frozen_copy(squares.SquareDetector())
    right = network(frozen)
    base.check_same("engine", right, frozen)
    with pytest.raises(AcclimateError, match="engine computes logits of this detector wrongly"):
        base.check_same("engine", lambda images: [right(images)[0] * 1.2, right(images)[1]], frozen)
    with pytest.raises(AcclimateError, match="engine computes distances of this detector wrongly"):
        base.check_same("engine", lambda images: [right(images)[0], right(images)[1] * np.nan], frozen)


def test_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"ncnn does not export int8: .*; use fp32 or fp16"):
        base.runtime("ncnn").export(squares.SquareDetector(), tmp_path / "a", "int8", [])
    assert not list(tmp_path.iterdir())


def test_loading_needs_ncnn_alone(artifacts: dict[str, Artifact]) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'pnnx', 'timm'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from acclimate.edge.predict import Predictor\n"
        f"found = Predictor.load(Path({str(artifacts['fp16'].folder)!r}))(np.zeros((50, 60, 3), np.uint8))\n"
        "print(len(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_damaged_file_is_one_line(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("model.param", "model.bin"):
        (tmp_path / name).write_bytes(b"nothing")
    files = {name: file_digest(tmp_path / name) for name in ("model.param", "model.bin")}
    manifest = artifacts["fp32"].manifest.model_copy(update={"files": files})
    with pytest.raises(AcclimateError, match=r"model\.param: ncnn does not accept it") as caught:
        base.runtime("ncnn").load(Artifact(tmp_path, manifest), 1)
    assert "\n" not in str(caught.value)


def test_an_output_of_another_name_is_told(artifacts: dict[str, Artifact]) -> None:
    manifest = artifacts["fp32"].manifest.model_copy(update={"output_names": ("logits", "sides")})
    with pytest.raises(AcclimateError, match="has no input or output sides"):
        base.runtime("ncnn").load(Artifact(artifacts["fp32"].folder, manifest), 1)
