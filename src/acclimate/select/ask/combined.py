"""Of each kind of frame the one in the greatest doubt: uncertainty and disagreement within k-centre clusters.

Doubt alone asks for many frames of one scene, and diversity alone for those that need no label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acclimate.data.dataset import farthest
from acclimate.select.ask.disagreement import unmatched
from acclimate.select.ask.diversity import standardised
from acclimate.select.ask.seen import Choice, Seen, ranks, rarest
from acclimate.select.ask.uncertainty import doubt


def choose(seen: Seen, count: int) -> list[Choice]:
    """See `ask.choose`."""
    unsure, apart = doubt(seen), ranks(unmatched(seen))
    wanted = (unsure + apart) / 2
    clusters = nearest(standardised(seen.features), count)
    best: list[tuple[int, int]] = []
    for centre in np.unique(clusters):
        members = np.flatnonzero(clusters == centre)
        best.append((int(members[wanted[members].argmax()]), len(members)))
    best.sort(key=lambda one: -wanted[one[0]])
    return [
        Choice(
            index,
            f"in the greatest doubt of {size} frames like it: above {unsure[index]:.0%} of all by uncertainty, above "
            f"{apart[index]:.0%} by disagreement of two views" + rarest(seen, index),
            {"uncertainty": float(unsure[index]), "disagreement": float(apart[index]), "cluster": float(size)},
        )
        for index, size in best
    ]


def nearest(points: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """(N,) which of `count` centres, chosen by k-centre greedy, each of the (N, P) points is nearest to."""
    centres = farthest(points, count)
    away = np.stack([np.square(points - points[centre]).sum(axis=1) for centre in centres], axis=1)
    # A centre is its own, also where another one lies at the same place.
    away[centres, range(len(centres))] = -1.0
    return np.asarray(away.argmin(axis=1))
