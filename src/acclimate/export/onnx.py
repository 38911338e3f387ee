"""ONNX through `torch.export`: fp32, and static INT8 in the QDQ format by ONNX Runtime's quantiser."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.images import to_input
from acclimate.export.base import INPUT, Exporter, Precision, quiet
from acclimate.export.quantise import Layers, Node, owners
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

OPSET = 18
LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
"""Operations that may have weights."""
SAMPLERS = frozenset({"GridSample"})
"""Operations whose second input says where they look at their first."""


class Onnx(Exporter):
    """One `model.onnx`, batch 1, static shapes."""

    name: ClassVar[str] = "onnx"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    why_no_other: ClassVar[str] = "ONNX Runtime's CPU kernels would convert it to fp32 and back"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")

    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> None:
        """See `Exporter.convert`."""
        write_graph(frozen, folder / "model.onnx")

    def quantise(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> OnnxGraph:
        """See `Exporter.quantise`."""
        single = scratch / "fp32.onnx"
        write_graph(frozen, single)
        return OnnxGraph(single, canvases)


def write_graph(frozen: Detector, file: Path) -> None:
    """The detector's forward as an ONNX file."""
    import torch

    image = torch.zeros(1, 3, *frozen.spec.image_size)
    with quiet():
        torch.onnx.export(
            frozen,
            (image,),
            str(file),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(frozen.output_names),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


class OnnxGraph:
    """An ONNX graph, quantised as often as is asked. See `base.Graph`.

    Asymmetric unsigned activations and symmetric signed weights of 7 bits with one scale a channel: sums are the same
    and as fast as may be on a processor without VNNI. In fp32 stay the last convolutions and what follows, as box sides
    and low scores need more than 256 levels, and the normalisation and the first convolution, whose three input
    channels fill too little of an INT8 dot product to gain anything.

    Attributes:
        modules: those parts of the detector whose weights are rounded, from the image on.
    """

    def __init__(self, single: Path, canvases: Sequence[Image]) -> None:
        """Take the fp32 file `single`, beside which others are written.

        Args:
            single: the fp32 file.
            canvases: calibration images, (H, W, 3) uint8, RGB.
        """
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._canvases = canvases
        self._prepared = single.with_name("prepared.onnx")
        with quiet():
            quant_pre_process(single, self._prepared, skip_symbolic_shape=True)
        nodes, inputs, outputs = _nodes(onnx.load(self._prepared).graph, modules(single))
        self._layers = Layers(nodes, inputs, outputs)
        kept = set(self._layers.kept)
        made = (node.module for name, node in nodes.items() if node.layer and node.learned and name not in kept)
        self.modules = tuple(dict.fromkeys(module for module in made if module))

    @property
    def layers(self) -> Sequence[str]:
        return self._layers.names

    def write(self, folder: Path, in_float: Collection[str] = ()) -> None:
        """See `base.Graph.write`."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        # Ranges are those of the fp32 network whatever is quantised; an older ONNX Runtime measures them each time.
        cached = "calibration_cache_path" in inspect.signature(quantize_static).parameters
        ranges = {"calibration_cache_path": self._prepared.with_name("ranges.json")} if cached else {}
        with quiet():
            quantize_static(
                self._prepared,
                folder / "model.onnx",
                _Reader(self._canvases),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # Without VNNI, pairs of U8 x S8 products are summed in 16 bits, where 255 x 127 twice has no place.
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=self._layers.left(in_float),
                **ranges,
            )


def quantised_modules(frozen: Detector) -> tuple[str, ...]:
    """The detector's modules whose weights INT8 rounds, from the image on.

    Args:
        frozen: what `base.frozen_copy` returns.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return Onnx().quantise(frozen, (), Path(scratch)).modules


class _Reader:
    """Calibration images for ONNX Runtime's calibrator, which asks for one at a time."""

    def __init__(self, canvases: Sequence[Image]) -> None:
        self._rest = iter(canvases)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        canvas = next(self._rest, None)
        return None if canvas is None else {INPUT: to_input(canvas)}


def modules(file: Path) -> dict[str, str]:
    """Each operation of a graph that `write_graph` wrote -> the module whose weights the latest layer up to it has."""
    import onnx

    graph = onnx.load(file).graph
    nodes, _, _ = _nodes(graph)
    weights = {node.name: [name for name in node.input if name.endswith(".weight")] for node in graph.node}
    owned = {name: weights[layer] for name, layer in owners(nodes).items()}
    return {name: found[0].removesuffix(".weight") for name, found in owned.items() if found}


def _nodes(
    graph: Any, known: Mapping[str, str] | None = None
) -> tuple[Mapping[str, Node], Sequence[str], Sequence[str]]:
    """An ONNX graph for `quantise.kept_in_float`: its operations in order, those that begin and those that end it.

    Args:
        graph: of an ONNX model.
        known: modules of layers by the layer's name.
    """
    learned = {value.name for value in graph.initializer}
    maker = {output: node.name for node in graph.node for output in node.output}
    nodes = {
        node.name: Node(
            layer=node.op_type in LAYERS,
            learned=not learned.isdisjoint(node.input),
            chooses=node.op_type == "TopK",
            places=tuple(maker[name] for name in node.input[1:] if name in maker and node.op_type in SAMPLERS),
            module=(known or {}).get(node.name, ""),
            before=[maker[name] for name in node.input if name in maker],
        )
        for node in graph.node
    }
    for name, node in nodes.items():
        for before in node.before:
            nodes[before].after.append(name)
    inputs = [node.name for node in graph.node if INPUT in node.input]
    return nodes, inputs, [maker[output.name] for output in graph.output]
