"""OpenVINO: parity with the detector, what stays in float, threads, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import coloured_squares as squares
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact
from acclimate.edge.engines.openvino import package
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.export import openvino as openvino_runtime
from acclimate.models.predict import network

if missing := exporter("openvino").missing():
    pytest.skip(missing, allow_module_level=True)
openvino = package()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory):
    return squares.write_scenes(tmp_path_factory.mktemp("scenes"), 8)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, scenes) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    detector = squares.SquareDetector().train()
    runtime = exporter("openvino")
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
    run = engines.engine("openvino").load(artifacts[precision], 1)
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


def test_sums_fit_into_16_bits_where_the_processor_has_no_more(artifacts: dict[str, Artifact]) -> None:
    """Without VNNI two products of U8 and S8 are summed in 16 bits, whichever processor the file was made on.

    A depthwise layer sums one product at a time; its weights have a dimension more.
    """
    weights = [
        operation.data.astype(int)
        for operation in openvino.Core().read_model(artifacts["int8"].file(".xml")).get_ops()
        if operation.get_type_name() == "Constant"
        and operation.get_element_type().get_type_name() == "i8"
        and len(operation.shape) == 4
    ]
    assert len(weights) == 2
    assert all(255 * 2 * np.abs(one).max() < 2**15 for one in weights)
    assert max(np.abs(one).max() for one in weights) > 32, "seven bits are used"


def test_the_last_layers_stay_in_float(artifacts: dict[str, Artifact]) -> None:
    """The first convolution and the two middle ones are quantised; the four last are not."""
    model = openvino.Core().read_model(artifacts["int8"].file(".xml"))
    layers = [op for op in model.get_ops() if op.get_type_name() in {"Convolution", "GroupConvolution"}]
    quantised = [op for op in layers if op.input(0).get_source_output().get_node().get_type_name() == "FakeQuantize"]
    assert len(layers) == 7
    assert len(quantised) == 3


def test_named_layers_stay_in_float(artifacts: dict[str, Artifact], scenes) -> None:
    model = openvino.Core().read_model(artifacts["fp32"].file(".xml"))
    canvases = [letterbox(read_image(path), squares.CANVAS)[0] for path in scenes.paths[:2]]
    graph = openvino_runtime.OpenVinoGraph(model, {}, canvases)
    assert len(graph.layers) == 3

    def count(in_float: Sequence[str]) -> int:
        return sum(op.get_type_name() == "FakeQuantize" for op in graph.quantised(in_float).get_ops())

    assert 0 == count(graph.layers) < count(graph.layers[:1]) < count(())


def test_layers_are_called_after_their_modules(scenes) -> None:
    """Whatever conversion folds into them."""
    canvases = [letterbox(read_image(path), squares.CANVAS)[0] for path in scenes.paths[:2]]
    detector = squares.SquareDetector().eval()
    graph = openvino_runtime.OpenVinoGraph(*openvino_runtime.model_of(detector), canvases)
    assert graph.layers == ("stem", "colour", "pool")


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], scenes) -> None:
    exporter("openvino").export(squares.SquareDetector(), tmp_path / "a", "int8", scenes.paths[:2])
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["artifact.json", "model.bin", "model.xml"]


def test_int8_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="none of 0 could be read"):
        exporter("openvino").export(squares.SquareDetector(), tmp_path / "a", "int8", [])
    assert not (tmp_path / "a").exists()
