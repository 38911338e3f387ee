"""ncnn: parity with the detector, names, threads, and what it refuses."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

import coloured_squares as squares
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter, ncnn_weights
from acclimate.export import ncnn as ncnn_runtime
from acclimate.models.predict import network

if missing := exporter("ncnn").missing():
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
    runtime = exporter("ncnn")
    return {p: runtime.export(squares.SquareDetector(), folder / f"ncnn-{p}", p, []) for p in runtime.precisions}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.05)])
def test_it_is_the_detector(artifacts: dict[str, Artifact], scenes, precision: str, tolerance: float) -> None:
    reference = network(squares.SquareDetector().eval())
    run = engines.engine("ncnn").load(artifacts[precision], 1)
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
        exporter("ncnn").export(Choosing(), tmp_path / "a", "fp32", [])
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

    def fails(images: object) -> NoReturn:
        raise AcclimateError("its memory may have run out")

    with pytest.raises(AcclimateError, match="engine does not run what is converted of this detector; use another"):
        base.check_same("engine", fails, frozen)


def test_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"ncnn does not export int8: .*; use fp32 or fp16"):
        exporter("ncnn").export(squares.SquareDetector(), tmp_path / "a", "int8", [])
    assert not list(tmp_path.iterdir())


def test_a_layer_whose_weights_fp16_loses_stays_in_fp32(tmp_path: Path, scenes) -> None:
    """All its weights are below 6.1e-5, which ncnn writes as zero; what follows makes up for it."""
    detector = squares.SquareDetector().eval()
    with torch.no_grad():
        detector.colour.weight.mul_(1e-5)
        detector.colour.bias.mul_(1e-5)
        detector.pool.weight.mul_(1e5)
    artifact = exporter("ncnn").export(detector, tmp_path / "a", "fp16")
    half = artifact.manifest.half
    assert half is not None
    assert half.layers == 7
    assert len(half.in_fp32) == 1
    assert Artifact.open(tmp_path / "a").manifest.half == half
    run, reference = engines.engine("ncnn").load(artifact, 1), network(detector)
    for path in scenes.paths:
        image = to_input(letterbox(read_image(path), squares.CANVAS)[0])
        for ours, theirs in zip(run(image), reference(image), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=0.05)
    # The device is told too: where it computes in fp16, not there.
    told = [line.split()[1] for line in artifact.file(".param").read_text().splitlines() if " 31=3" in line]
    assert tuple(told) == half.in_fp32


def test_other_fp16_artifacts_are_fp16_throughout(artifacts: dict[str, Artifact]) -> None:
    assert artifacts["fp16"].manifest.half is None
    assert " 31=" not in artifacts["fp16"].file(".param").read_text()


@pytest.mark.data
def test_a_real_detector_with_small_weights(tmp_path: Path, repository: Path) -> None:
    """Trained: the lateral convolution of its deepest level has weights of at most 4.1e-4."""
    from acclimate.models import detector as models

    case = repository / "../shared/cases/edge/ncnn-fp16-small-weights/run.tgz"
    if not case.is_file():
        pytest.skip(f"{case.name} is not here")
    with tarfile.open(case) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    detector = models.load(tmp_path / "run")
    artifact = exporter("ncnn").export(detector, tmp_path / "a", "fp16")
    assert artifact.manifest.half is not None
    assert len(artifact.manifest.half.in_fp32) == 1
    run, reference = engines.engine("ncnn").load(artifact, 1), network(detector.eval())
    image = np.random.default_rng(1).uniform(0, 255, (1, 3, *detector.spec.image_size)).astype(np.float32)
    for ours, theirs in zip(run(image), reference(image), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_what_is_lost_is_held_against_what_matters() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, 40).astype(np.float32)

    def half(values: np.ndarray) -> np.ndarray:
        rounded = values.astype(np.float16).astype(np.float32)
        return np.where(np.abs(values) < 2**-14, 0, rounded).astype(np.float32)

    assert ncnn_weights.lost(weights, half(weights), 4) < 5e-4
    small = weights * np.float32(1e-5)
    assert ncnn_weights.lost(small, half(small), 4) == pytest.approx(1)
    # One output of four that is dead does not matter beside the others; one that lost half of itself does.
    dead = weights.copy()
    dead[:10] *= 1e-9
    assert ncnn_weights.lost(dead, half(dead), 4) < 5e-4
    torn = weights.copy()
    torn[:5] = 0
    assert ncnn_weights.lost(weights, torn, 4) > 0.1
    assert ncnn_weights.lost(weights * np.float32(1e6), np.full(40, np.inf, np.float32), 4) > 0.1
