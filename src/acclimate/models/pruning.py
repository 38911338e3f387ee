"""Filters of small L1 norm are cut out of a dense detector (Li et al. 2017, "Pruning Filters for Efficient ConvNets").

What shares its channels is cut together (`channels.follow`): a residual group by the sum over the layers that make it.
"""

from __future__ import annotations

from collections.abc import Sequence

from acclimate.errors import AcclimateError
from acclimate.models.channels import cut, sort
from acclimate.models.dense import DenseDetector
from acclimate.models.detector import Detector


def prune(detector: Detector, keep: float | Sequence[float]) -> None:
    """Keep the filters of the largest L1 norm, in place; the specification says how many from then on.

    Args:
        detector: of the kind dense, whole.
        keep: the part of the channels that stays, one for all stages of the backbone and the head, or one for each;
            counts are rounded to multiples of `spec.divisor`.

    Raises:
        AcclimateError: it is of another kind or cut already, its channels cannot be narrowed, `keep` is not within
            (0, 1], or it has not one number for each stage.
    """
    if not isinstance(detector, DenseDetector) or detector.kind != "dense":
        raise AcclimateError(f"adapt.pruning: a {detector.spec.kind} detector cannot be cut; take model.kind=dense")
    if detector.spec.widths is not None:
        raise AcclimateError("adapt.pruning: the detector is cut already; begin with the run that it was cut from")
    channels = detector.sorted_channels(False)
    widths = tuple(keep) if isinstance(keep, Sequence) else (keep,) * len(channels.stages)
    if len(widths) != len(channels.stages) or not all(0 < width <= 1 for width in widths):
        raise AcclimateError(
            f"adapt.pruning.keep: one number above 0 and up to 1, or {len(channels.stages)} of them, for "
            f"{', '.join(channels.stages)}"
        )
    sort(detector, channels, by="filters")
    cut(detector, channels.counts(widths, detector.spec.divisor))
    detector.spec = detector.spec.model_copy(update={"widths": widths})
