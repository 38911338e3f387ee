from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import coloured_squares as squares
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter
from acclimate.export.onnx import Onnx, _nodes
from acclimate.export.quantise import Node, blocks, kept_in_float, owners
from acclimate.models.predict import network
from acclimate.run import file_digest


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory):
    return squares.write_scenes(tmp_path_factory.mktemp("scenes"), 12)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, scenes) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    onnx_exporter = exporter("onnx")
    detector = squares.SquareDetector().train()
    made = {p: onnx_exporter.export(detector, folder / f"onnx-{p}", p, scenes.paths) for p in ("fp32", "int8")}
    assert detector.training, "the detector is left in its mode"
    return made


def inputs(scenes) -> list[np.ndarray]:
    return [to_input(letterbox(read_image(path), squares.CANVAS)[0]) for path in scenes.paths]


def outputs(artifact: Artifact, images: list[np.ndarray]) -> list[list[np.ndarray]]:
    run = engines.engine(artifact.manifest.runtime).load(artifact, 1)
    return [run(image) for image in images]


def test_fp32_equals_the_detector(artifacts: dict[str, Artifact], scenes) -> None:
    images = [*inputs(scenes), np.random.default_rng(0).uniform(0, 255, (1, 3, *squares.CANVAS)).astype(np.float32)]
    reference = network(squares.SquareDetector().eval())
    for image, ours in zip(images, outputs(artifacts["fp32"], images), strict=True):
        for a, b in zip(ours, reference(image), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_graph_is_static_and_named(artifacts: dict[str, Artifact]) -> None:
    graph = onnx.load(artifacts["fp32"].file(".onnx")).graph

    def shape(value: onnx.ValueInfoProto) -> list[int]:
        return [d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: shape(v) for v in graph.input} == {"images": [1, 3, 96, 128]}
    assert {v.name: shape(v) for v in graph.output} == {"logits": [1, 240, 2], "distances": [1, 240, 4]}
    assert not {"NonMaxSuppression", "Loop", "If"} & {node.op_type for node in graph.node}


def test_int8_is_quantised_and_close(artifacts: dict[str, Artifact], scenes) -> None:
    graph = onnx.load(artifacts["int8"].file(".onnx")).graph
    kinds = [node.op_type for node in graph.node]
    assert "QuantizeLinear" in kinds
    assert "BatchNormalization" not in kinds
    weights = [init for init in graph.initializer if init.data_type == onnx.TensorProto.INT8 and len(init.dims) == 4]
    assert len(weights) == 2, "the two middle convolutions; the first and the last stay in fp32"
    images = inputs(scenes)
    for ours, theirs in zip(outputs(artifacts["int8"], images), outputs(artifacts["fp32"], images), strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], atol=0.3)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_sums_fit_into_16_bits_where_the_processor_has_no_more(artifacts: dict[str, Artifact]) -> None:
    """Without VNNI two products of U8 and S8 are summed in 16 bits, whichever processor the file was made on."""
    graph = onnx.load(artifacts["int8"].file(".onnx")).graph
    weights = [
        onnx.numpy_helper.to_array(value).astype(int)
        for value in graph.initializer
        if value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 4
    ]
    assert len(weights) == 2
    assert all(255 * 2 * np.abs(one).max() < 2**15 for one in weights)
    assert max(np.abs(one).max() for one in weights) > 32, "seven bits are used"


def test_the_manifest_says_all(artifacts: dict[str, Artifact], scenes) -> None:
    manifest = artifacts["int8"].manifest
    assert json.loads((artifacts["int8"].folder / "artifact.json").read_text()) == manifest.model_dump(mode="json")
    assert manifest.name == "onnx-int8"
    assert manifest.classes == squares.CLASSES
    assert manifest.image_size == squares.CANVAS
    assert manifest.calibration is not None
    assert manifest.calibration.images == len(scenes.paths)
    assert manifest.files == {"model.onnx": file_digest(artifacts["int8"].file(".onnx"))}
    # Multiply-accumulates by hand: output cells x inputs x outputs x kernel.
    fine, coarse = 12 * 16, 6 * 8
    macs = fine * 3 * 8 * 64 + fine * 8 * 8 + coarse * 8 * 4 + (fine + coarse) * 8 * (2 + 4)
    assert manifest.notes.macs_m == pytest.approx(macs / 1e6, abs=1e-3)
    assert manifest.notes.parameters == sum(p.numel() for p in squares.SquareDetector().parameters())
    assert artifacts["int8"].size_mb == pytest.approx(artifacts["int8"].file(".onnx").stat().st_size / 1e6)


def test_nothing_but_the_artifact_is_left(artifacts: dict[str, Artifact]) -> None:
    for artifact in artifacts.values():
        assert sorted(p.name for p in artifact.folder.iterdir()) == ["artifact.json", "model.onnx"]
    assert {p.name for p in artifacts["fp32"].folder.parent.iterdir()} == {"onnx-fp32", "onnx-int8"}


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], scenes) -> None:
    exporter("onnx").export(squares.SquareDetector(), tmp_path / "a", "int8", scenes.paths[:2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_other_precisions_are_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(AcclimateError, match=f"onnx does not export {precision}: .*; use fp32 or int8"):
        exporter("onnx").export(squares.SquareDetector(), tmp_path / "a", precision, [])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_int8_without_usable_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for paths in ([], [tmp_path / "broken.jpg"]):
        with pytest.raises(AcclimateError, match=f"none of {len(paths)} could be read"):
            exporter("onnx").export(squares.SquareDetector(), tmp_path / "a", "int8", paths)
    assert not (tmp_path / "a").exists()


def test_an_unreadable_calibration_image_is_left_out(tmp_path: Path, scenes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    paths = [tmp_path / "broken.jpg", *scenes.paths[:2]]
    artifact = exporter("onnx").export(squares.SquareDetector(), tmp_path / "a", "int8", paths)
    assert artifact.manifest.calibration is not None
    assert artifact.manifest.calibration.images == 2
    assert "broken.jpg" in caplog.text


def test_a_diverged_detector_is_refused(tmp_path: Path) -> None:
    detector = squares.SquareDetector()
    with torch.no_grad():
        detector.colour.weight[0, 0] = float("nan")
    with pytest.raises(AcclimateError, match="not finite"):
        exporter("onnx").export(detector, tmp_path / "a", "fp32", [])


def test_int8_that_is_not_finite_is_refused(tmp_path: Path, scenes) -> None:
    detector = squares.SquareDetector()
    with torch.no_grad():
        detector.colour.bias.fill_(10.0)
        detector.classify[0].weight.fill_(3e38)
    with pytest.raises(AcclimateError, match="output is not finite"):
        exporter("onnx").export(detector, tmp_path / "a", "int8", scenes.paths[:2])
    assert not list(tmp_path.iterdir())


def test_a_failed_export_keeps_the_old_artifact(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    runtime, folder = exporter("onnx"), tmp_path / "a"
    runtime.export(squares.SquareDetector(), folder, "fp32", [])
    before = Artifact.open(folder)
    detector = squares.SquareDetector()
    detector.head = lambda features: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(Exception, match="zero"):
        runtime.export(detector, folder, "fp32", [])
    assert Artifact.open(folder) == before
    again = runtime.export(squares.SquareDetector(), folder, "fp32", [])
    assert again.manifest == before.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_no_artifact_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AcclimateError, match="exists and is not an artifact"):
        exporter("onnx").export(squares.SquareDetector(), tmp_path, "fp32", [])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_chosen_layers_stay_in_float(tmp_path: Path, artifacts: dict[str, Artifact], scenes) -> None:
    """`colour` and `pool` may be quantised: without one the other is, without both the graph is the fp32 one."""
    seen = {}
    canvases = [letterbox(read_image(path), squares.CANVAS)[0] for path in scenes.paths]
    graph = Onnx().quantise(squares.SquareDetector().eval(), canvases, tmp_path)
    assert graph.layers == ("colour", "pool")
    written = tmp_path / "model.onnx"
    for in_float in [("colour", "pool"), ("colour",), ("pool",), ()]:
        graph.write(tmp_path, in_float)
        weights = [init for init in onnx.load(written).graph.initializer if init.data_type == onnx.TensorProto.INT8]
        seen[in_float] = sum(len(weight.dims) == 4 for weight in weights)
    assert seen == {(): 2, ("colour",): 1, ("pool",): 1, ("colour", "pool"): 0}
    assert onnx.load(written).graph == onnx.load(artifacts["int8"].file(".onnx")).graph


def test_a_mixed_export_asks_once_and_carries_the_answer(
    tmp_path: Path, artifacts: dict[str, Artifact], scenes
) -> None:
    asked, image = [], inputs(scenes)[0]
    fp32 = outputs(artifacts["fp32"], [image])[0]

    def choose(graph: base.Quantiser) -> list[str]:
        asked.append(graph.layers)
        np.testing.assert_allclose(graph.network(graph.layers)(image)[0], fp32[0])
        return ["colour"]

    artifact = exporter("onnx").export(squares.SquareDetector(), tmp_path / "a", "int8", scenes.paths[:2], choose)
    weights = [i for i in onnx.load(artifact.file(".onnx")).graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert [list(weight.dims) for weight in weights if len(weight.dims) == 4] == [[8, 1, 2, 2]], "pool alone"
    assert asked == [("colour", "pool")]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
@pytest.mark.data
def test_a_real_detector_on_real_images(tmp_path: Path, shared_data: Path) -> None:
    from acclimate.config import ModelConfig
    from acclimate.models.detector import build, specify

    torch.manual_seed(0)
    detector = build(
        specify(ModelConfig(size="nano", backbone="mobilenetv4_conv_small_050", image_size=(160, 160)), ("a", "b"))
    )
    paths = sorted((shared_data / "blood-cells" / "bccd" / "images" / "test").iterdir())[:8]
    images = [to_input(letterbox(read_image(path), (160, 160))[0]) for path in paths]
    with torch.no_grad():
        detector.train()(torch.from_numpy(np.concatenate(images)))
    fp32 = exporter("onnx").export(detector, tmp_path / "fp32", "fp32", [])
    int8 = exporter("onnx").export(detector, tmp_path / "int8", "int8", paths)
    reference = network(detector.eval())
    for image, single, quantised in zip(images, outputs(fp32, images), outputs(int8, images), strict=True):
        for a, b, c in zip(reference(image), single, quantised, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-4)
            assert np.corrcoef(a.ravel(), c.ravel())[0, 1] > 0.95
    assert int8.size_mb < 0.45 * fp32.size_mb


def test_int8_leaves_coordinates_alone() -> None:
    """From the choice of boxes to the layers of the second stage, products with pooling weights included."""
    float_type, helper = onnx.TensorProto.FLOAT, onnx.helper
    values: list[tuple[str, tuple[int, ...]]] = [("filter", (4, 3, 1, 1)), ("a", (4, 4)), ("b", (4, 2))]
    values += [(name, (1,)) for name in ("shape", "count", "stride")]
    steps = [
        ("Conv", "first", ["images", "filter"], ["stem"]),
        ("Conv", "second", ["stem", "filter"], ["map"]),
        ("Reshape", "listed", ["map", "shape"], ["flat"]),
        ("TopK", "choice", ["flat", "count"], ["score", "place"]),
        ("Mul", "pixels", ["place", "stride"], ["boxes"]),
        ("MatMul", "pooling", ["boxes", "flat"], ["pooled"]),
        ("Gemm", "hidden", ["pooled", "a"], ["features"]),
        ("Relu", "relu", ["features"], ["positive"]),
        ("Gemm", "last", ["positive", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, name=name) for kind, name, inputs, outputs in steps],
        "two stages",
        [helper.make_tensor_value_info("images", float_type, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", float_type, [1, 2])],
        [helper.make_tensor(name, float_type, dims, np.zeros(dims).flatten()) for name, dims in values],
    )
    kept = {"choice", "pixels", "pooling", "last"}
    assert set(kept_in_float(*_nodes(graph))) == {"first", *kept}
    assert set(kept_in_float(*_nodes(graph), first=False)) == kept


def test_int8_leaves_the_places_of_samples_alone() -> None:
    """From the layers that they come from; what looks at the sampled picture is quantised."""
    float_type, helper = onnx.TensorProto.FLOAT, onnx.helper
    filters = [("a", (4, 3, 1, 1)), ("b", (4, 4, 1, 1)), ("two", (2, 4, 1, 1)), ("scale", (1,))]
    steps = [
        ("Conv", "first", ["images", "a"], ["stem"]),
        ("Conv", "second", ["stem", "b"], ["map"]),
        ("Conv", "where", ["map", "two"], ["offsets"]),
        ("Mul", "grid", ["offsets", "scale"], ["channels_first"]),
        ("Transpose", "turned", ["channels_first"], ["places"]),
        ("GridSample", "sampler", ["map", "places"], ["sampled"]),
        ("Relu", "relu", ["sampled"], ["positive"]),
        ("Conv", "third", ["positive", "b"], ["deep"]),
        ("Conv", "last", ["deep", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, name=name) for kind, name, inputs, outputs in steps],
        "sampled",
        [helper.make_tensor_value_info("images", float_type, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", float_type, [1, 4, 8, 8])],
        [helper.make_tensor(name, float_type, dims, np.zeros(dims).flatten()) for name, dims in filters],
    )
    assert set(kept_in_float(*_nodes(graph))) == {"first", "where", "grid", "turned", "last"}


def test_blocks_take_everything_that_is_not_kept() -> None:
    """A stem that is kept, two layers of one module whose results are joined, and an end that is kept."""
    order = [("stem", []), ("relu", ["stem"]), ("one", ["relu"]), ("two", ["relu"]), ("join", ["one", "two"]),
             ("shape", []), ("last", ["join"])]  # fmt: skip
    layers = {"stem", "one", "two", "last"}
    module = {"one": "tower", "two": "tower"}
    nodes = {name: Node(layer=name in layers, module=module.get(name, ""), before=before) for name, before in order}
    assert owners(nodes) == {
        "stem": "stem", "relu": "stem", "one": "one", "two": "two", "join": "two", "last": "last"
    }  # fmt: skip
    assert blocks(nodes, ["stem", "last"]) == {"tower": ["relu", "one"], "tower (2)": ["two", "join"]}
    assert blocks(nodes, list(nodes)) == {}
