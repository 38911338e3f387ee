"""OpenVINO from the ONNX graph of `torch.export`: fp32, fp16 weights, and INT8 by NNCF."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from acclimate.edge.engines.openvino import package, unreported
from acclimate.edge.images import to_input
from acclimate.export.base import Exporter, Precision, quiet
from acclimate.export.onnx import SAMPLERS, modules, write_graph
from acclimate.export.quantise import Layers, Node
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

LAYERS = frozenset({"Convolution", "GroupConvolution", "MatMul"})


class OpenVino(Exporter):
    """`model.xml` and `model.bin`, batch 1, static shapes.

    fp16 halves the file: weights are stored in 16 bits and computed with in fp32, as processors without fp16
    arithmetic do anyway.
    """

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
    why_no_other: ClassVar[str] = "it is not one of its precisions"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "nncf")

    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> None:
        """See `Exporter.convert`."""
        package().save_model(model_of(frozen)[0], folder / "model.xml", compress_to_fp16=precision == "fp16")

    def quantise(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> OpenVinoGraph:
        """See `Exporter.quantise`."""
        return OpenVinoGraph(*model_of(frozen), canvases)


def model_of(frozen: Detector) -> tuple[Any, dict[str, str]]:
    """The detector's forward as an fp32 `openvino.Model`, and `onnx.modules` of the graph that it comes from."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        write_graph(frozen, graph)
        with quiet():
            return package().convert_model(graph), modules(graph)


class OpenVinoGraph:
    """An `openvino.Model`, quantised as often as is asked. See `base.Graph`.

    Asymmetric activations, symmetric weights of 7 bits with one scale a channel, whose sums are the same on a processor
    without VNNI, and biases corrected for what rounding shifts (NNCF's fast bias correction). The ends of the network
    stay in fp32 as `quantise.kept_in_float` says, but for the first layers: here they gain by INT8.
    """

    def __init__(self, model: Any, known: Mapping[str, str], canvases: Sequence[Image]) -> None:
        """Take an fp32 `model`, which is left as it is.

        Args:
            model: an `openvino.Model`.
            known: modules by the names of operations, as `model_of` returns them.
            canvases: calibration images, (H, W, 3) uint8, RGB.
        """
        self._model, self._canvases = model, canvases
        nodes, inputs, outputs = _nodes(model)
        for name, node in nodes.items():
            if node.layer:
                node.module = _module(name, nodes, known)
        self._layers = Layers(nodes, inputs, outputs, first=False)

    @property
    def layers(self) -> Sequence[str]:
        return self._layers.names

    def write(self, folder: Path, in_float: Collection[str] = ()) -> None:
        """See `base.Graph.write`."""
        package().save_model(self.quantised(in_float), folder / "model.xml", compress_to_fp16=False)

    def quantised(self, in_float: Collection[str] = ()) -> Any:
        """The INT8 version as an `openvino.Model`, with the layers `in_float` left in fp32."""
        names = self._layers.left(in_float)
        with unreported(), quiet():
            nncf = importlib.import_module("nncf")
            return nncf.quantize(
                self._model,
                nncf.Dataset(self._canvases, to_input),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(self._canvases),
                ignored_scope=nncf.IgnoredScope(names=names, validate=False),
                # Without VNNI, pairs of U8 x S8 products are summed in 16 bits, where 255 x 127 twice has no place.
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
            )


def _module(layer: str, nodes: Mapping[str, Node], known: Mapping[str, str]) -> str:
    """The module of a layer, by its own name or, where conversion has folded that away, by what follows it."""
    name = layer.split("/")[0]
    while name not in known:
        after = nodes[layer].after
        if not after or nodes[after[0]].layer:
            return ""
        name = layer = after[0]
    return known[name]


def _nodes(model: Any) -> tuple[Mapping[str, Node], Sequence[str], Sequence[str]]:
    """An OpenVINO model for `quantise.kept_in_float`: its operations in order, constants left out, and its ends."""
    operations = {
        operation.get_friendly_name(): operation
        for operation in model.get_ordered_ops()
        if operation.get_type_name() != "Constant"
    }
    nodes = {}
    for name, operation in operations.items():
        sources = [value.get_source_output().get_node() for value in operation.inputs()]
        places = sources[1:] if operation.get_type_name() in SAMPLERS else []
        nodes[name] = Node(
            layer=operation.get_type_name() in LAYERS,
            learned=any(source.get_type_name() == "Constant" for source in sources),
            chooses=operation.get_type_name() == "TopK",
            places=tuple(_computed(places)),
            before=_computed(sources),
            after=[
                user.get_node().get_friendly_name()
                for value in operation.outputs()
                for user in value.get_target_inputs()
            ],
        )
    inputs, outputs = (
        [node.get_friendly_name() for node in ends] for ends in (model.get_parameters(), model.get_results())
    )
    return nodes, inputs, outputs


def _computed(sources: Sequence[Any]) -> list[str]:
    """The names of those that are no constants."""
    return [source.get_friendly_name() for source in sources if source.get_type_name() != "Constant"]
