"""What stays in floating point in every INT8 export, whatever quantises.

Which parts of a network lose by 256 levels is a matter of the network, not of the tool: box sides and low scores need
more, so the last layers stay in floating point, and coordinates are pixels. The first layers lose little, as an image
has 256 levels; whether they gain is a matter of the tool, so it says so (`benchmarks/stem.csv`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """An operation of a graph, as far as the choice of what stays in floating point asks.

    Attributes:
        layer: whether it is a convolution or a matrix product.
        learned: whether one of its inputs is a constant.
        chooses: whether it picks the best of many, as a two-stage detector picks proposals.
        places: names of the operations that say where it samples another one's result; empty where it samples nothing.
        module: the part of the detector that a layer comes from, which those of several levels share; empty if unknown.
        before: names of the operations whose results it takes.
        after: names of the operations that take its results.
    """

    layer: bool = False
    learned: bool = False
    chooses: bool = False
    places: tuple[str, ...] = ()
    module: str = ""
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def kept_in_float(
    nodes: Mapping[str, Node], inputs: Iterable[str], outputs: Iterable[str], first: bool = True
) -> list[str]:
    """Names of the operations from the input to the first layers, and from the last layers to the outputs.

    Also what is done with coordinates: in a two-stage detector from the choice of boxes to the layers of the second
    stage, and wherever something is sampled, from the last layers to the places. 256 levels over a canvas are pixels
    apart.

    Args:
        nodes: the operations by name.
        inputs: those that take the image.
        outputs: those that give the outputs.
        first: whether the first layers themselves are among them.
    """
    layers = {name for name, node in nodes.items() if node.layer}
    before = {name: node.before for name, node in nodes.items()}
    after = {name: node.after for name, node in nodes.items()}
    begin = _reached(inputs, after, layers)
    ends = _reached(outputs, before, layers) | (begin if first else begin - layers)
    learned = {name for name in layers if nodes[name].learned}
    coordinates = _reached([name for name, node in nodes.items() if node.chooses], after, learned) - learned
    sampled = _reached([name for node in nodes.values() for name in node.places], before, layers)
    return sorted(ends | coordinates | sampled)


def _reached(starts: Iterable[str], onward: Mapping[str, Sequence[str]], last: Collection[str]) -> set[str]:
    """All that `starts` lead to, themselves included; what is in `last` is reached and leads no further."""
    reached: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [] if name in last else onward[name]
    return reached


def owners(nodes: Mapping[str, Node]) -> dict[str, str]:
    """Each operation that a layer leads to -> the latest such layer, itself where it is one.

    Args:
        nodes: the operations by name, each after those whose results it takes.
    """
    place = {name: index for index, name in enumerate(nodes)}
    owner: dict[str, str] = {}
    for name, node in nodes.items():
        found = [name] if node.layer else [owner[before] for before in node.before if before in owner]
        if found:
            owner[name] = max(found, key=place.__getitem__)
    return owner


def blocks(nodes: Mapping[str, Node], kept: Collection[str]) -> dict[str, list[str]]:
    """The operations that are quantised, as blocks: each layer that is not `kept`, and what follows it up to the next.

    What joins branches belongs to the latest layer before it, and what follows a layer that is kept to the first block:
    so no operation that a layer leads to is outside all blocks but those in `kept`. A block is called after its layer's
    module, and the second of the same module (a tower is run on every level) "module (2)".

    Args:
        nodes: the operations by name, each after those whose results it takes.
        kept: what `kept_in_float` returns.
    """
    kept = set(kept)
    titles: dict[str, str] = {}
    times: Counter[str] = Counter()
    for name, node in nodes.items():
        if node.layer and name not in kept:
            title = node.module or name
            times[title] += 1
            titles[name] = f"{title} ({times[title]})" if times[title] > 1 else title
    found: dict[str, list[str]] = {title: [] for title in titles.values()}
    if found:
        first = next(iter(found))
        for name, layer in owners(nodes).items():
            if name not in kept:
                found[titles.get(layer, first)].append(name)
    return found


class Layers:
    """What of a graph is quantised, and what stays in floating point beside what is asked for.

    Attributes:
        kept: the operations that stay in any case.
        names: of what is quantised unless told otherwise: see `base.Graph.layers`.
    """

    def __init__(
        self, nodes: Mapping[str, Node], inputs: Sequence[str], outputs: Sequence[str], first: bool = True
    ) -> None:
        """See `kept_in_float`.

        Args:
            nodes: the operations by name, each after those whose results it takes.
            inputs: those that take the image.
            outputs: those that give the outputs.
            first: whether the first layers are kept too.
        """
        self.kept = kept_in_float(nodes, inputs, outputs, first)
        self._blocks = blocks(nodes, self.kept)
        self.names = tuple(self._blocks)

    def left(self, in_float: Collection[str]) -> list[str]:
        """The operations that stay where the layers `in_float` do, too."""
        return [*self.kept, *(node for layer in in_float for node in self._blocks[layer])]
