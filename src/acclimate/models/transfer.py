"""Weights carried from one detector into another: the start of a job, and a detector of other classes.

All layers must agree but those whose outputs belong to classes (`Detector.class_rows`): of these the rows go over whose
classes have the same name, and the background's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acclimate.errors import AcclimateError
from acclimate.models.detector import ClassRows, Detector, DetectorSpec, build, load, specification

if TYPE_CHECKING:
    from acclimate.config import ModelConfig

_TOLD = ("kind", "backbone", "strides", "channels", "depth", "norm", "widths")
"""Fields of a specification that explain why weights do not fit."""
_OF_KINDS = ("two_stage", "ssd", "towers", "conv", "shared_tower", "context")
"""And those that not every kind has, or that say it in many words."""


def begin(config: ModelConfig, spec: DetectorSpec) -> Detector:
    """A detector to train: on the weights of its backbone, or on all those of the run that `model.start` names.

    Raises:
        AcclimateError: there are no such weights, or the run's detector has another architecture.
    """
    if config.start is None:
        detector = build(spec, config.weights)
        detector.begin(config)
        return detector
    return _begun(config.start, load(config.start), build(spec))


def _begun(start: Path, other: Detector, detector: Detector) -> Detector:
    spec = detector.spec
    known = [name for name in spec.classes if name in other.spec.classes]
    try:
        carry(other, detector, {name: name for name in known})
    except AcclimateError as error:
        raise AcclimateError(f"model.start: {start}: {error}") from None
    told = f"the run {start}, " + (f"with its classes {', '.join(known)}" if known else "none of its classes")
    detector.spec = spec.model_copy(update={"start": told})
    return detector


def check(config: ModelConfig, spec: DetectorSpec) -> None:
    """Refuse what `begin` would refuse of the run that `model.start` names, without reading its weights.

    Raises:
        AcclimateError: see `begin`.
    """
    if config.start is None:
        return
    with torch.device("meta"):
        _begun(config.start, build(specification(config.start)), build(spec))


def with_classes(detector: Detector, classes: Mapping[str, str]) -> Detector:
    """The same detector for these classes alone, in their order: our name -> its name. In eval mode.

    Where scores are a softmax, what was a class that is left out is shared among those that stay.

    Raises:
        AcclimateError: `classes` names one that the detector does not know.
    """
    if tuple(classes) == tuple(classes.values()) == detector.spec.classes:
        return detector.eval()
    made = build(detector.spec.model_copy(update={"classes": tuple(classes)}))
    carry(detector, made, classes)
    return made.eval()


def carry(other: Detector, detector: Detector, classes: Mapping[str, str]) -> None:
    """Fill `detector` with the weights of `other`, and those of its classes by `classes`: its name -> the other's.

    Raises:
        AcclimateError: the two have another architecture; the line says where.
    """
    theirs, own = other.state_dict(), detector.state_dict()
    rows = detector.class_rows()
    if theirs.keys() != own.keys() or detector.spec.anchored != other.spec.anchored:
        raise _differs(detector.spec, other.spec, next(iter(theirs.keys() ^ own.keys()), "its anchors"))
    pairs = [
        (detector.spec.classes.index(ours), other.spec.classes.index(name))
        for ours, name in classes.items()
        if _known(name, other)
    ]
    counts = len(detector.spec.classes), len(other.spec.classes)
    filled = {}
    for key, value in own.items():
        layer = rows.get(key.rpartition(".")[0])
        if layer is not None:
            filled[key] = _with_rows(value, theirs[key], layer, counts, pairs)
        elif value.shape != theirs[key].shape:
            raise _differs(detector.spec, other.spec, key)
        else:
            filled[key] = theirs[key]
    detector.load_state_dict(filled)


def _known(name: str, detector: Detector) -> bool:
    if name not in detector.spec.classes:
        raise AcclimateError(f"its classes are {', '.join(detector.spec.classes)}; there is no {name!r}")
    return True


def _with_rows(
    own: Tensor, theirs: Tensor, layer: ClassRows, counts: tuple[int, int], pairs: list[tuple[int, int]]
) -> Tensor:
    """`own` with the rows of the background and of these pairs of classes (its index, the other's) from `theirs`."""
    mine, given = (
        tensor.view(layer.groups, layer.background + count + layer.last, layer.each, *tensor.shape[1:])
        for tensor, count in zip((own.clone(), theirs), counts, strict=True)
    )
    every = [(0, 0)] * layer.background + [(layer.background + a, layer.background + b) for a, b in pairs]
    every += [(mine.shape[1] - 1 - i, given.shape[1] - 1 - i) for i in range(layer.last)]
    if every:
        to, source = (torch.tensor(index) for index in zip(*every, strict=True))
        mine[:, to] = given[:, source]
    return mine.view(own.shape)


def _differs(own: DetectorSpec, other: DetectorSpec, key: str) -> AcclimateError:
    told = [
        f"{name} is {getattr(other, name)} there and {getattr(own, name)} here"
        for name in _TOLD
        if getattr(own, name) != getattr(other, name)
    ]
    if not told:
        told = [f"{name} differs" for name in _OF_KINDS if getattr(own, name, None) != getattr(other, name, None)]
    where = "; ".join(told) or f"they differ at {key}"
    return AcclimateError(f"its detector has another architecture: {where}; set the options under [model] alike")
