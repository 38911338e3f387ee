"""Frames of whose boxes the detector is not sure: the entropy of their scores, and how close a second class comes.

Brust et al. 2019, "Active Learning for Deep Object Detection": the difference between the best and the second best
class of a box, summed over the boxes of an image. Scores are of classes by themselves, so the second best of a box is
the best other class at the same place, or nothing being there at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acclimate.boxes.iou import pairwise
from acclimate.select.ask.seen import Choice, Seen, highest, ranks, rarest
from acclimate.structures import Detections

SAME_PLACE = 0.5
"""IoU from which boxes of two classes are about one thing."""


def choose(seen: Seen, count: int) -> list[Choice]:
    """See `ask.choose`."""
    entropies, margins = entropy(seen), margin(seen)
    wanted = doubt(seen)
    return [
        Choice(
            index,
            f"the detector is unsure of what it finds (entropy {entropies[index]:.2f}, margin {margins[index]:.2f})"
            + rarest(seen, index),
            {"entropy": float(entropies[index]), "margin": float(margins[index])},
        )
        for index in highest(wanted, count)
    ]


def doubt(seen: Seen) -> NDArray[np.float64]:
    """(N,) 0..1: the mean of a frame's ranks by entropy and by margin."""
    return (ranks(entropy(seen)) + ranks(margin(seen))) / 2


def entropy(seen: Seen) -> NDArray[np.float64]:
    """(N,) the binary entropy in bits of each box's score, weighed by its class, summed over a frame."""
    return np.array([float((bits(one.scores) * seen.weights[one.labels]).sum()) for one in seen.plain])


def bits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """The entropy in bits, (N,), of each of scores (N,), taken for a probability."""
    p = np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def margin(seen: Seen) -> NDArray[np.float64]:
    """(N,) 1 less the difference between best and second best, weighed by class, summed over a frame's boxes."""
    return np.array([float(((1 - differences(one)) * seen.weights[one.labels]).sum()) for one in seen.plain])


def differences(found: Detections) -> NDArray[np.float64]:
    """(N,) 0..1: how far the second best lies behind the best where each box is."""
    scores = found.scores.astype(np.float64)
    if not len(found):
        return scores
    rival = np.where(
        (pairwise(found.boxes, found.boxes) >= SAME_PLACE) & (found.labels[:, None] != found.labels[None]),
        scores[None],
        0.0,
    ).max(axis=1)
    # One minus a score is how likely it is that nothing of this class is there.
    ordered = np.sort(np.column_stack([scores, rival, 1 - np.maximum(scores, rival)]), axis=1)
    return np.asarray(ordered[:, 2] - ordered[:, 1])
