"""Frames in whose weak and strong view the detector finds different things.

What it finds in one view and not in the other is in doubt, whatever its score: Gao et al. 2020, "Consistency-Based
Semi-Supervised Active Learning". Boxes of both views are matched as `select.score` does it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acclimate.select.ask.seen import Choice, Seen, highest, rarest
from acclimate.select.score import SHOWN, consensus
from acclimate.structures import Detections


def choose(seen: Seen, count: int) -> list[Choice]:
    """See `ask.choose`."""
    scores = unmatched(seen)
    return [
        Choice(
            index,
            f"two views of it do not show the same ({scores[index]:.2f} boxes' worth)" + rarest(seen, index),
            {"disagreement": float(scores[index])},
        )
        for index in highest(scores, count)
    ]


def unmatched(seen: Seen) -> NDArray[np.float64]:
    """(N,) the scores of both views' shown boxes less what they have in common, weighed by class, of each frame."""
    return np.array([_apart(weak, strong, seen.weights) for weak, strong in zip(seen.plain, seen.changed, strict=True)])


def _apart(weak: Detections, strong: Detections, weights: NDArray[np.float64]) -> float:
    total = 0.0
    for label in np.union1d(weak.above(SHOWN).labels, strong.above(SHOWN).labels):
        one, other = (view[view.labels == label].above(SHOWN) for view in (weak, strong))
        both = consensus([one], [other])
        total += float(weights[label]) * (float(one.scores.sum() + other.scores.sum()) - 2 * both)
    return total
