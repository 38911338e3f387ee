"""What every INT8 export shares, whatever quantises: the images, what stays in floating point, the check of the result.

Which parts of a network lose by 256 levels is a matter of the network, not of the tool: box sides and low scores need
more, so the last layers stay in floating point; the first one has three input channels, which fill too little of an
INT8 dot product to gain anything; and coordinates are pixels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from acclimate.edge.artifact import Artifact
from acclimate.edge.images import DEFAULT, Reading, letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.runtimes.base import (
    Choose,
    Network,
    Quantiser,
    complexity,
    describe_calibration,
    frozen_copy,
    why_not,
    write_artifact,
)
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Node:
    """An operation of a graph, as far as the choice of what stays in floating point asks.

    Attributes:
        layer: whether it is a convolution or a matrix product.
        learned: whether one of its inputs is a constant.
        chooses: whether it picks the best of many, as a two-stage detector picks proposals.
        module: the part of the detector that a layer comes from, which those of several levels share; empty if unknown.
        before: names of the operations whose results it takes.
        after: names of the operations that take its results.
    """

    layer: bool = False
    learned: bool = False
    chooses: bool = False
    module: str = ""
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def kept_in_float(nodes: Mapping[str, Node], inputs: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Names of the operations from the input to the first layers, and from the last layers to the outputs.

    In a two-stage detector also what is done with the coordinates of the chosen boxes, from their choice to the layers
    of the second stage.

    Args:
        nodes: the operations by name.
        inputs: those that take the image.
        outputs: those that give the outputs.
    """
    layers = {name for name, node in nodes.items() if node.layer}
    before = {name: node.before for name, node in nodes.items()}
    after = {name: node.after for name, node in nodes.items()}
    ends = _reached(outputs, before, layers) | _reached(inputs, after, layers)
    learned = {name for name in layers if nodes[name].learned}
    coordinates = _reached([name for name, node in nodes.items() if node.chooses], after, learned) - learned
    return sorted(ends | coordinates)


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


class Writer(Quantiser, Protocol):
    """A `Quantiser` that writes what it quantises."""

    def write(self, file: Path, in_float: Collection[str] = ()) -> None:
        """Write the INT8 version to `file`, with the layers `in_float` left in floating point."""


def export(
    name: str,
    detector: Detector,
    folder: Path,
    calibration: Sequence[Path],
    choose: Choose | None,
    *,
    file: str,
    quantiser: Callable[[Detector, Sequence[Image]], AbstractContextManager[Writer]],
    load: Callable[[Path, Sequence[str]], Network],
) -> Artifact:
    """`base.Mixes.export_mixed` of the runtime `name`.

    Args:
        detector, folder, calibration, choose: as there.
        file: name of the model file in the artifact.
        quantiser: opens the graph of what `frozen_copy` returns, with canvases (H, W, 3) uint8, RGB.
        load: the network of a written file, with the names of its outputs.
    """
    if missing := why_not(name, "export"):
        raise AcclimateError(missing)
    frozen = frozen_copy(detector)
    canvases, used = calibration_canvases(calibration, frozen.spec.image_size, frozen.spec.reading)

    def build(temporary: Path) -> None:
        with quantiser(frozen, canvases) as graph:
            graph.write(temporary / file, choose(graph) if choose is not None else ())
        check_finite(load(temporary / file, frozen.output_names), canvases[:4])

    return write_artifact(name, frozen, folder, "int8", build, describe_calibration(used), notes=complexity(frozen))


def calibration_canvases(
    paths: Sequence[Path], size: tuple[int, int], reading: Reading = DEFAULT
) -> tuple[list[Image], list[Path]]:
    """The images on the network's canvas (height, width), and which of `paths` they came from.

    What cannot be read is left out with a warning.

    Raises:
        AcclimateError: there is none.
    """
    canvases, used, problems = [], [], []
    for path in paths:
        try:
            canvases.append(letterbox(read_image(path, reading), size)[0])
        except AcclimateError as error:
            problems.append(str(error))
        else:
            used.append(path)
    if not canvases:
        first = f" (first: {problems[0]})" if problems else ""
        raise AcclimateError(
            f"int8 needs calibration images from the target, and none of {len(paths)} could be read{first}; "
            "give a folder of unlabelled target images with --calibration"
        )
    for problem in problems:
        log.warning("left out of the calibration: %s", problem)
    return canvases, used


def check_finite(run: Network, canvases: Sequence[Image]) -> None:
    """Run the quantised network on `canvases`.

    Raises:
        AcclimateError: an output is not finite.
    """
    if not all(np.isfinite(output).all() for canvas in canvases for output in run(to_input(canvas))):
        raise AcclimateError("int8: the quantised network's output is not finite; export fp32 instead")
