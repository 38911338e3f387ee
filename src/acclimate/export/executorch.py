"""ExecuTorch, lowered from `torch.export` for its XNNPACK: fp32, and static INT8.

What XNNPACK does not carry is left to ExecuTorch's own kernels, operation by operation.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from acclimate.edge.engines.base import reason
from acclimate.edge.engines.executorch import METHOD, told
from acclimate.edge.images import to_input
from acclimate.errors import AcclimateError
from acclimate.export.base import INPUT, Exporter, Precision, quiet
from acclimate.export.quantise import Layers, Node
from acclimate.structures import Image

if TYPE_CHECKING:
    from torch import Tensor, fx

    from acclimate.models.detector import Detector

LAYERS = frozenset({"conv1d", "conv2d", "conv_transpose2d", "convolution", "linear", "matmul", "mm", "bmm", "addmm"})


SAMPLERS = frozenset({"grid_sampler", "grid_sampler_2d"})
"""Operations whose second input says where they look at their first."""


class ExecuTorch(Exporter):
    """One `model.pte`, batch 1, static shapes."""

    name: ClassVar[str] = "executorch"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    why_no_other: ClassVar[str] = "it is not one of its precisions"
    packages: ClassVar[tuple[str, ...]] = ("executorch", "torchao")
    extra: ClassVar[str] = "executorch-export"
    compared: ClassVar[bool] = True

    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> None:
        """See `Exporter.convert`.

        Raises:
            AcclimateError: an operation is not carried.
        """
        lower(program(frozen), frozen.spec.image_size, frozen.output_names, folder / "model.pte")

    def quantise(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> ExecuTorchGraph:
        """See `Exporter.quantise`."""
        return ExecuTorchGraph(program(frozen), frozen.spec.image_size, frozen.output_names, canvases)


def program(frozen: Detector) -> fx.GraphModule:
    """The detector's forward as a graph, with its BatchNorms in the weights of the convolutions before them.

    A convolution that runs on several levels, each with its own BatchNorm, becomes one a level. ExecuTorch and torchao
    would write the weights of every level over those of the one before.
    """
    import torch

    with _carried():
        graph: fx.GraphModule = torch.export.export(frozen, (torch.zeros(1, 3, *frozen.spec.image_size),)).module()
        norms = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
        for place, norm in enumerate(norms):
            layer = norm.args[0]
            if layer.target == torch.ops.aten.conv2d.default and len(layer.users) == 1:
                _fold(graph, layer, norm, f"folded_{place}")
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return graph


def _fold(graph: fx.GraphModule, layer: fx.Node, norm: fx.Node, name: str) -> None:
    """Give a convolution the weights and the bias with which it needs no BatchNorm, as parameters called `name`..."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    inputs, weight, bias, *options = (*layer.args, None)[: max(3, len(layer.args))]
    _, scale, shift, mean, variance, _, _, epsilon, *_ = norm.args
    values = [_value(graph, part) for part in (weight, bias, mean, variance, epsilon, scale, shift)]
    folded = zip(("weight", "bias"), fuse_conv_bn_weights(*values), strict=True)
    layer.args = (inputs, *(_constant(graph, layer, f"{name}_{part}", made) for part, made in folded), *options)
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def _value(graph: fx.GraphModule, node: Any) -> Any:
    """What a node of a constant stands for; what is no node as it is."""
    return operator.attrgetter(node.target)(graph) if hasattr(node, "target") else node


def _constant(graph: fx.GraphModule, layer: fx.Node, name: str, values: Tensor) -> fx.Node:
    """A node of a new constant, before the layer that is to use it."""
    graph.register_buffer(name, values.detach())
    with graph.graph.inserting_before(layer):
        node = graph.graph.get_attr(name)
    # The quantiser asks every node what it is.
    node.meta["val"] = layer.meta["val"].fake_mode.from_tensor(values, static_shapes=True)
    return node


def _unshared(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy in which every layer has weights of its own: in INT8, XNNPACK refuses those of several levels.

    A bias has the scale of the layer's input, which is another on each.
    """
    made = copy.deepcopy(graph)
    seen: set[Any] = set()
    for layer in [node for node in made.graph.nodes if _kind(node) in LAYERS]:
        for place, source in enumerate(layer.all_input_nodes):
            if source.op == "get_attr" and source.target in seen:
                values = _value(made, source).clone()
                layer.replace_input_with(source, _constant(made, layer, f"{layer.name}_{place}", values))
            seen.add(source.target)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _kind(node: fx.Node) -> str:
    """What an operation is called, without its variant; empty where a node is none."""
    return getattr(node.target, "__name__", "").split(".")[0] if node.op == "call_function" else ""


def _clips(node: fx.Node) -> bool:
    """Whether it clips what a layer returns, as a ReLU6 does."""
    clips = _kind(node).rstrip("_") in {"hardtanh", "relu6", "clamp"}
    return clips and _kind(node.all_input_nodes[0]) in LAYERS


def lower(graph: fx.GraphModule, size: tuple[int, int], outputs: Sequence[str], file: Path) -> None:
    """Write a graph, in fp32 or quantised, as a .pte file.

    Args:
        graph: takes one image.
        size: (height, width) of the image.
        outputs: what its outputs are called.
        file: to write.

    Raises:
        AcclimateError: an operation is not carried.
    """
    import torch

    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    names = {told("input", INPUT): 0, **{told("output", name): place for place, name in enumerate(outputs)}}
    with _carried():
        exported = torch.export.export(graph, (torch.zeros(1, 3, *size),))
        for node in exported.graph.nodes:
            # Every pass would copy where each node came from, which takes longer than most of what they do.
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
        edge = to_edge_transform_and_lower(
            {METHOD: exported}, partitioner=[XnnpackPartitioner()], constant_methods=names
        )
        made = edge.to_executorch().buffer
    file.write_bytes(made)


@contextlib.contextmanager
def _carried() -> Iterator[None]:
    """Convert without a word, and say in one line what is not carried.

    Raises:
        AcclimateError: in place of the errors of many unrelated types that converters raise about operations.
    """
    import torch

    try:
        with quiet(), torch.no_grad():
            yield
    except Exception as error:
        raise AcclimateError(
            f"executorch: it does not carry this detector ({type(error).__name__}: {reason(error)[:200]}); "
            "use another runtime"
        ) from None


class ExecuTorchGraph:
    """A detector's graph, quantised as often as is asked. See `base.Graph`.

    Asymmetric activations, their ranges by histogram; symmetric weights with one scale a channel. The ends of the
    network stay in fp32 as `quantise.kept_in_float` says.
    """

    def __init__(
        self, graph: fx.GraphModule, size: tuple[int, int], outputs: Sequence[str], canvases: Sequence[Image]
    ) -> None:
        """Take the fp32 graph, which is left as it is.

        Args:
            graph: what `program` returns.
            size: (height, width) of the images.
            outputs: what its outputs are called.
            canvases: calibration images, (H, W, 3) uint8, RGB.
        """
        self._graph, self._size, self._outputs, self._canvases = _unshared(graph), size, outputs, canvases
        self._layers = Layers(*_nodes(self._graph))

    @property
    def layers(self) -> Sequence[str]:
        return self._layers.names

    def write(self, folder: Path, in_float: Collection[str] = ()) -> None:
        """See `base.Graph.write`."""
        lower(self.quantised(in_float), self._size, self._outputs, folder / "model.pte")

    def quantised(self, in_float: Collection[str] = ()) -> fx.GraphModule:
        """The graph with INT8 layers, those of `in_float` left in fp32."""
        import torch

        with quiet():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

        kept = set(self._layers.left(in_float))
        graph = copy.deepcopy(self._graph)
        for node in graph.graph.nodes:
            if node.name in kept:
                # Its filter does not keep a concatenation, or what only moves values; a note that is there does.
                node.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)

        class Quantiser(xnnpack.XNNPACKQuantizer):  # type: ignore[misc]
            """XNNPACK's, which gives a layer and the ReLU behind it one range, and here a ReLU6 as well.

            It knows no other clipping. What lies above 6 would take most of the 256 levels, and be cut off after.
            """

            def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
                clipped = {node: node.target for node in model.graph.nodes if _clips(node)}
                for node in clipped:
                    node.target = torch.ops.aten.relu.default
                annotated: fx.GraphModule = super().annotate(model)
                for node, target in clipped.items():
                    node.target = target
                return annotated

        quantiser = Quantiser()
        quantiser.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
        with _carried():
            observed = prepare_pt2e(graph, quantiser)
            for canvas in self._canvases:
                observed(torch.from_numpy(to_input(canvas)))
            made: fx.GraphModule = convert_pt2e(observed)
        return made


def _nodes(graph: fx.GraphModule) -> tuple[Mapping[str, Node], Sequence[str], Sequence[str]]:
    """A graph for `quantise.kept_in_float`: its operations in order, constants left out, and its ends."""
    nodes = {}
    for node in graph.graph.nodes:
        if node.op not in {"placeholder", "call_function"}:
            continue
        nodes[node.name] = Node(
            layer=_kind(node) in LAYERS,
            learned=any(source.op == "get_attr" for source in node.all_input_nodes),
            chooses=_kind(node) == "topk",
            places=tuple(source.name for source in node.all_input_nodes[1:] if _kind(node) in SAMPLERS),
            module=next(reversed(node.meta.get("nn_module_stack", {"": ("",)}).values()))[0],
            before=[source.name for source in node.all_input_nodes if source.op != "get_attr"],
            after=[user.name for user in node.users if user.op != "output"],
        )
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    outputs = [source.name for source in graph.graph.output_node().all_input_nodes]
    return nodes, inputs, outputs
