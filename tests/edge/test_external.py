"""ONNX files that read other files are refused before ONNX Runtime sees them, whatever its version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acclimate.edge.artifact import Artifact, ArtifactManifest, Decode
from acclimate.edge.engines import engine
from acclimate.edge.external import check_self_contained
from acclimate.errors import AcclimateError


def outside(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(name: str = "g") -> onnx.GraphProto:
    kept = numpy_helper.from_array(np.arange(4, dtype=np.float32), "kept")
    node = helper.make_node("Add", ["images", "kept"], ["sum"])
    ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, [4]) for port in ("images", "sum")]
    return helper.make_graph([node], name, ports[:1], ports[1:], [kept])


def initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(outside("w"))


def constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside("c")))


def branch(model: onnx.ModelProto) -> None:
    inner = graph("inner")
    inner.initializer.append(outside("w"))
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph("other")))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(outside("w"))


def function(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], value=outside("c"))]
    model.functions.append(helper.make_function("d", "F", [], ["c"], nodes, model.opset_import))


def tensors(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Odd")
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(outside("c"))


def location_alone(model: onnx.ModelProto) -> None:
    tensor = outside("w")
    tensor.ClearField("external_data")
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize("hide", [initializer, constant, branch, sparse, function, tensors, location_alone])
def test_wherever_the_tensor_is(hide: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = helper.make_model(graph())
    onnx.save(model, file)
    check_self_contained(file)
    hide(model)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(AcclimateError, match=r"model\.onnx: keeps weights in other files") as caught:
        check_self_contained(file)
    assert "\n" not in str(caught.value)
    manifest = ArtifactManifest(
        name="a", runtime="onnx", precision="fp32", classes=("a",), image_size=(32, 32), decode=Decode(strides=(8,)),
        files={"model.onnx": "0" * 64},
    )  # fmt: skip
    with pytest.raises(AcclimateError, match="keeps weights in other files"):
        engine("onnx").load(Artifact(tmp_path, manifest), 1)


def test_what_is_no_onnx_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    whole = helper.make_model(graph()).SerializeToString()
    for data in (b"", b"\xff" * 50, b"\x3a\xff\xff\xff\x7f", whole[:-3], b"\x3b", b"\x3a\x80"):
        file.write_bytes(data)
        with pytest.raises(AcclimateError, match=r"model\.onnx: ") as caught:
            check_self_contained(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(AcclimateError, match=r"cannot be read"):
        check_self_contained(tmp_path / "absent.onnx")
