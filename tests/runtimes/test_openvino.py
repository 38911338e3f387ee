"""OpenVINO: parity with the detector, what stays in float, threads, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import coloured_squares as squares
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.run import file_digest
from acclimate.runtimes import base
from acclimate.runtimes import openvino as openvino_runtime
from acclimate.runtimes.eager import network

if missing := base.why_not("openvino", "export"):
    pytest.skip(missing, allow_module_level=True)
openvino = openvino_runtime.engine()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory):
    return squares.write_scenes(tmp_path_factory.mktemp("scenes"), 8)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, scenes) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    detector = squares.SquareDetector().train()
    runtime = base.runtime("openvino")
    made = {p: runtime.export(detector, folder / f"openvino-{p}", p, scenes.paths) for p in runtime.precisions}
    assert detector.training, "the detector is left in its mode"
    return made


@pytest.mark.parametrize(
    ("precision", "logit", "distance"), [("fp32", 1e-4, 1e-5), ("fp16", 0.05, 1e-3), ("int8", 0.4, 1e-5)]
)
def test_it_is_the_detector(
    artifacts: dict[str, Artifact], scenes, precision: str, logit: float, distance: float
) -> None:
    reference = network(squares.SquareDetector().eval())
    run = base.runtime("openvino").load(artifacts[precision], 1)
    for path in scenes.paths:
        image = to_input(letterbox(read_image(path), squares.CANVAS)[0])
        for ours, theirs, tolerance in zip(run(image), reference(image), (logit, distance), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_finds_the_squares(artifacts: dict[str, Artifact], scenes, precision: str) -> None:
    predictor = Predictor(artifacts[precision])
    for labelled in scenes.images:
        found = predictor(read_image(labelled.path)).above(0.5)
        order, expected = (np.lexsort(boxes.T) for boxes in (found.boxes, labelled.annotations.boxes))
        np.testing.assert_allclose(found.boxes[order], labelled.annotations.boxes[expected], atol=0.1)
        np.testing.assert_array_equal(found.labels[order], labelled.annotations.labels[expected])


def test_what_is_read_next_leaves_what_was_read_before(artifacts: dict[str, Artifact]) -> None:
    run = base.runtime("openvino").load(artifacts["fp32"], 1)
    first = run(np.zeros((1, 3, *squares.CANVAS), np.float32))
    before = [output.copy() for output in first]
    run(np.full((1, 3, *squares.CANVAS), 255, np.float32))
    for a, b in zip(first, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_fp16_halves_the_weights_and_int8_quarters_them(artifacts: dict[str, Artifact]) -> None:
    types = {
        precision: {
            operation.get_element_type().get_type_name()
            for operation in openvino.Core().read_model(artifact.file(".xml")).get_ops()
            if operation.get_type_name() == "Constant" and len(operation.shape) == 4
        }
        for precision, artifact in artifacts.items()
    }
    assert "f32" in types["fp32"]
    assert "f16" in types["fp16"]
    assert "i8" in types["int8"]


def test_the_ends_stay_in_float(artifacts: dict[str, Artifact]) -> None:
    """The two middle convolutions are quantised; the first and the four last are not."""
    model = openvino.Core().read_model(artifacts["int8"].file(".xml"))
    layers = [op for op in model.get_ops() if op.get_type_name() in {"Convolution", "GroupConvolution"}]
    quantised = [op for op in layers if op.input(0).get_source_output().get_node().get_type_name() == "FakeQuantize"]
    assert len(layers) == 7
    assert len(quantised) == 2


def test_named_layers_stay_in_float(artifacts: dict[str, Artifact], scenes) -> None:
    model = openvino.Core().read_model(artifacts["fp32"].file(".xml"))
    canvases = [letterbox(read_image(path), squares.CANVAS)[0] for path in scenes.paths[:2]]
    graph = openvino_runtime.OpenVinoQuantiser(model, {}, canvases, squares.SquareDetector().output_names)
    assert len(graph.layers) == 2

    def count(in_float: Sequence[str]) -> int:
        return sum(op.get_type_name() == "FakeQuantize" for op in graph.quantised(in_float).get_ops())

    assert 0 == count(graph.layers) < count(graph.layers[:1]) < count(())


def test_layers_are_called_after_their_modules(scenes) -> None:
    """Whatever conversion folds into them."""
    canvases = [letterbox(read_image(path), squares.CANVAS)[0] for path in scenes.paths[:2]]
    detector = squares.SquareDetector().eval()
    graph = openvino_runtime.OpenVinoQuantiser(*openvino_runtime.convert(detector), canvases, detector.output_names)
    assert graph.layers == ("colour", "pool")


def test_it_computes_in_fp32_on_the_threads_that_are_asked_for(artifacts: dict[str, Artifact], monkeypatch) -> None:
    """Left to itself it takes bfloat16 where the processor has it."""
    asked = {}
    real = openvino.Core.compile_model

    def spy(self, *arguments, **options):
        compiled = real(self, *arguments, **options)
        asked.update({key: compiled.get_property(key) for key in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS")})
        return compiled

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    for threads in (1, 2):
        base.runtime("openvino").load(artifacts["fp32"], threads)
        assert asked["INFERENCE_NUM_THREADS"] == threads
        assert asked["INFERENCE_PRECISION_HINT"].get_type_name() == "f32"


def test_loading_needs_openvino_alone(artifacts: dict[str, Artifact]) -> None:
    """And nobody is told of it: OpenVINO reports its use unless the package for that is absent."""
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'nncf', 'timm'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from acclimate.edge.predict import Predictor\n"
        f"found = Predictor.load(Path({str(artifacts['int8'].folder)!r}))(np.zeros((50, 60, 3), np.uint8))\n"
        "print(len(found), 'openvino_telemetry' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 False\n", "")


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], scenes) -> None:
    base.runtime("openvino").export(squares.SquareDetector(), tmp_path / "a", "int8", scenes.paths[:2])
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["artifact.json", "model.bin", "model.xml"]


def test_int8_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="none of 0 could be read"):
        base.runtime("openvino").export(squares.SquareDetector(), tmp_path / "a", "int8", [])
    assert not (tmp_path / "a").exists()


def test_a_damaged_file_is_one_line(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(b"nothing")
    manifest = artifacts["fp32"].manifest.model_copy(
        update={"files": {name: file_digest(tmp_path / name) for name in ("model.xml", "model.bin")}}
    )
    with pytest.raises(AcclimateError, match=r"model\.xml: OpenVINO does not accept it") as caught:
        base.runtime("openvino").load(Artifact(tmp_path, manifest), 1)
    assert "\n" not in str(caught.value)


def test_an_output_of_another_name_is_told(artifacts: dict[str, Artifact]) -> None:
    manifest = artifacts["fp32"].manifest.model_copy(update={"output_names": ("logits", "sides")})
    with pytest.raises(AcclimateError, match="has no output sides"):
        base.runtime("openvino").load(Artifact(artifacts["fp32"].folder, manifest), 1)
