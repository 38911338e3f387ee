"""Which layers of a convolutional network share their channels, and what is left of them at a width.

A tensor's channels are made by one layer, pass others, and are read by more. A depthwise convolution and a
normalisation have the channels that come in; a sum gives both of its sides the same ones, so a residual group shares
one order and one count. `follow` finds all this from the network's graph. With it channels can be sorted by importance
(`sort`) and a leading part of them cut out (`cut`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn

from acclimate.errors import AcclimateError

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_SHAPES = {"size", "dim", "getattr"}
"""What reads a tensor and gives none."""
_REFUSED = {"chunk", "split", "getitem", "view", "reshape", "permute", "pixel_shuffle", "matmul", "einsum"}
"""What may move channels to other places."""


@dataclass(frozen=True)
class Space:
    """Channels that are the same ones wherever they go."""

    size: int
    unit: int
    """Only multiples of it can be kept: the channels of a group in a grouped convolution."""
    stage: int | None
    """Whose width they follow; None for the input and the outputs, which stay."""


@dataclass(frozen=True)
class Channels:
    """The spaces of a network."""

    stages: tuple[str, ...]
    spaces: tuple[Space, ...]
    layers: Mapping[str, tuple[int, int]]
    """Name of a convolution, linear or normalisation layer -> the spaces that it reads and that it makes."""

    def counts(self, widths: Sequence[float], divisor: int) -> dict[str, tuple[int, int]]:
        """How many channels each layer reads and makes at `widths`, a ratio for each stage."""
        kept = [
            space.size
            if space.stage is None
            else round_channels(space.size, widths[space.stage], math.lcm(divisor, space.unit))
            for space in self.spaces
        ]
        return {name: (kept[reads], kept[makes]) for name, (reads, makes) in self.layers.items()}


def round_channels(size: int, ratio: float, divisor: int) -> int:
    """What `ratio` of `size` channels leaves: the nearest multiple of `divisor`, at least one of it, at most all."""
    return size if ratio == 1 else min(size, max(1, math.floor(size * ratio / divisor + 0.5)) * divisor)


def follow(module: nn.Module, stages: Mapping[str, str]) -> Channels:
    """The channels of `module`, a network of one tensor.

    Args:
        module: of convolutions, linear layers, BatchNorm and whatever keeps channels in their places.
        stages: name of a stage -> the submodule that it ends with, in the order of the graph; an empty one for a last
            stage, which has the rest. A space that reaches several stages follows the last; a stage that has no space
            then is not among `Channels.stages`.

    Raises:
        AcclimateError: channels are concatenated, split or normalised in a way that has no leading part.
    """
    graph = _Tracer().trace(module)
    parts: dict[str, nn.Module] = dict(module.named_modules())
    found = _Spaces()
    layers: dict[str, tuple[int, int]] = {}
    stage_of = _stages(graph, list(stages.values()))
    of: dict[fx.Node, int | None] = {}
    for position, node in enumerate(graph.nodes):
        inputs = [space for one in node.all_input_nodes if (space := of[one]) is not None]
        name = str(node.target)
        if node.op == "placeholder":
            of[node] = found.new()
        elif node.op == "output":
            for space in inputs:
                found.fix(space)
        elif node.op == "get_attr" or not inputs:
            of[node] = None
        elif node.op == "call_module":
            of[node] = _layer(name, parts[name], inputs, found, layers)
            if name in layers:
                found.reach(layers[name][1], stage_of[position])
        else:
            of[node] = _operator(node, inputs, found)
    return found.channels(tuple(stages), layers)


class _Tracer(fx.Tracer):
    """Leaves every layer that has channels of its own whole, whoever wrote it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
        return whole or super().is_leaf_module(m, module_qualified_name)


class _Spaces:
    """Spaces while they are found: sets of numbers that are joined (union-find)."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.size: list[int | None] = []
        self.unit: list[int] = []
        self.stage: list[int] = []
        self.fixed: list[bool] = []

    def new(self, size: int | None = None) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.unit.append(1)
        self.stage.append(-1)
        self.fixed.append(size is None)
        return len(self.parent) - 1

    def root(self, space: int) -> int:
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def join(self, spaces: Sequence[int], where: str) -> int:
        roots = sorted({self.root(space) for space in spaces})
        first = roots[0]
        for other in roots[1:]:
            sizes = {self.size[first], self.size[other]} - {None}
            if len(sizes) > 1:
                raise _refusal(where)
            self.parent[other] = first
            self.size[first] = next(iter(sizes), None)
            self.unit[first] = math.lcm(self.unit[first], self.unit[other])
            self.stage[first] = max(self.stage[first], self.stage[other])
            self.fixed[first] |= self.fixed[other]
        return first

    def read(self, space: int, size: int, where: str) -> None:
        root = self.root(space)
        if self.size[root] not in (None, size):
            raise _refusal(where)
        self.size[root] = size

    def fix(self, space: int) -> None:
        self.fixed[self.root(space)] = True

    def reach(self, space: int, stage: int) -> None:
        root = self.root(space)
        self.stage[root] = max(self.stage[root], stage)

    def channels(self, stages: Sequence[str], layers: Mapping[str, tuple[int, int]]) -> Channels:
        roots = sorted({self.root(space) for pair in layers.values() for space in pair})
        index = {root: i for i, root in enumerate(roots)}
        used = sorted({self.stage[root] for root in roots if not self.fixed[root]})
        spaces = tuple(
            Space(self.size[root] or 0, self.unit[root], None if self.fixed[root] else used.index(self.stage[root]))
            for root in roots
        )
        pairs = {name: (index[self.root(reads)], index[self.root(makes)]) for name, (reads, makes) in layers.items()}
        return Channels(tuple(stages[stage] for stage in used), spaces, pairs)


def _stages(graph: fx.Graph, ends: Sequence[str]) -> list[int]:
    """The stage of each node of the graph: they end where the last node within a module of `ends` stands."""
    names = [str(node.target) if node.op == "call_module" else "" for node in graph.nodes]
    last = [
        max((i for i, name in enumerate(names) if name == end or name.startswith(end + ".")), default=-1)
        if end
        else len(names)
        for end in ends
    ]
    return [next((stage for stage, end in enumerate(last) if i <= end), len(ends) - 1) for i in range(len(names))]


def _layer(
    name: str, part: nn.Module, inputs: Sequence[int], found: _Spaces, layers: dict[str, tuple[int, int]]
) -> int:
    """The space that a call of a module makes; a module that is called again makes the same one."""
    space = found.join(inputs, name)
    if isinstance(part, nn.BatchNorm2d):
        if type(part) not in _NORMS:
            raise _refusal(name)
        found.read(space, part.num_features, name)
        layers[name] = (space, space)
        return space
    if isinstance(part, nn.Conv2d | nn.Linear):
        reads, makes = (
            (part.in_channels, part.out_channels)
            if isinstance(part, nn.Conv2d)
            else (part.in_features, part.out_features)
        )
        found.read(space, reads, name)
        if name in layers:
            before, made = layers[name]
            found.join([before, space], name)
        elif isinstance(part, nn.Conv2d) and part.groups > 1:
            if reads != makes or type(part) not in _CONVOLUTIONS:
                raise _refusal(name)
            found.unit[found.root(space)] = math.lcm(found.unit[found.root(space)], reads // part.groups)
            made = space
        elif isinstance(part, nn.Linear) or type(part) in _CONVOLUTIONS:
            made = found.new(makes)
        else:
            raise _refusal(name)
        layers[name] = (space, made)
        return made
    if any(True for _ in part.parameters()):
        raise _refusal(name)
    return space


def _operator(node: fx.Node, inputs: Sequence[int], found: _Spaces) -> int | None:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if name in _SHAPES:
        return None
    if name in _REFUSED or (name in ("cat", "concat") and _dimension(node) not in (2, 3)):
        raise _refusal(name)
    return found.join(inputs, name)


def _dimension(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _refusal(where: str) -> AcclimateError:
    return AcclimateError(
        f"model.backbone: its channels cannot be narrowed at {where!r}; slimmable is a network of convolutions, sums "
        "and BatchNorm (norm = 'batch' or 'frozen')"
    )


@torch.no_grad()
def sort(
    module: nn.Module, channels: Channels, within: str = "", by: Literal["readers", "filters"] = "readers"
) -> None:
    """Put the channels of every space in the order of importance, the most important first; the function stays.

    By its readers a channel is as important as the L1 norm of the weights that read it (Cai et al. 2020,
    Once-for-all); where nothing does, as the sum of |gamma| over the norms that it passes. By its filters it is as the
    L1 norm of the weights that make it (Li et al. 2017). A residual group is one space, and a depthwise
    convolution has its producer's, so both keep to one order.

    Args:
        module: changed in place.
        channels: what `follow` found in it.
        within: the start of the names of those layers whose weights say what is important.
        by: which weights say it.
    """
    parts = {name: module.get_submodule(name) for name in channels.layers}
    orders: list[Tensor | None] = []
    for index, space in enumerate(channels.spaces):
        if space.stage is None:
            orders.append(None)
            continue
        scale, read = torch.zeros(space.size), torch.zeros(space.size)
        for name, (reads, makes) in channels.layers.items():
            part = parts[name]
            if index != (reads if by == "readers" else makes) or not name.startswith(within):
                continue
            if isinstance(part, nn.BatchNorm2d):
                scale += part.weight.abs().cpu()
            elif not _grouped(part) and by == "filters":
                assert isinstance(part.weight, Tensor)
                read += part.weight.abs().flatten(1).sum(1).cpu()
            elif not _grouped(part):
                assert isinstance(part.weight, Tensor)
                read += part.weight.abs().transpose(0, 1).flatten(1).sum(1).cpu()
        importance = read if read.any() else scale
        blocks = importance.view(-1, space.unit).sum(1).argsort(descending=True, stable=True)
        orders.append((blocks[:, None] * space.unit + torch.arange(space.unit)).flatten())
    for name, (reads, makes) in channels.layers.items():
        part, makers, readers = parts[name], orders[makes], orders[reads]
        for value in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if makers is not None and value.ndim:
                value.copy_(value[makers.to(value.device)])
            if readers is not None and value.ndim > 1 and not _grouped(part):
                value.copy_(value[:, readers.to(value.device)])


@torch.no_grad()
def cut(module: nn.Module, counts: Mapping[str, tuple[int, int]]) -> None:
    """Keep the leading channels of every layer, in place.

    Args:
        module: plain layers.
        counts: name of a layer -> the channels that it reads and makes, as `Channels.counts` says.
    """
    for name, (reads, makes) in counts.items():
        part: Any = module.get_submodule(name)
        if isinstance(part, nn.BatchNorm2d):
            part.num_features = makes
        elif isinstance(part, nn.Linear):
            part.in_features, part.out_features = reads, makes
        else:
            part.groups = reads * part.groups // part.in_channels if _grouped(part) else 1
            part.in_channels, part.out_channels = reads, makes
        for key, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if not value.ndim:
                continue
            kept = value[:makes] if value.ndim == 1 or _grouped(part) else value[:makes, :reads]
            if isinstance(value, nn.Parameter):
                setattr(part, key, nn.Parameter(kept.clone(), requires_grad=value.requires_grad))
            else:
                setattr(part, key, kept.clone())


def _grouped(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and part.groups > 1
