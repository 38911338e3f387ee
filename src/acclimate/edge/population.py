"""Whether frames are of the domain as a group, where each for itself could be.

A thermal camera scales every frame to its own range, so that a night's frames lie inside the spread of the day's; yet
their mean does not lie where the day's does. What is tested is the mean of the last frames: how far it is from that of
the reference, and whether so far can be chance. Neighbouring frames say the same thing twice, so chance is judged by
how many of them are independent.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

BLOCK, BLOCKS = 64, 64
"""Frames are taken together by `BLOCK`, and the last `BLOCKS` such means are looked at: 4,096 frames."""
FEWEST = 32.0
"""Independent blocks without which nothing is said."""
VARIED = 0.25
"""Share of the domain's variance without which nothing is said: a camera that sees one scene all the time tells of that
scene, however many frames it shows."""
LARGE = 0.03
"""Squared distance of the mean, a feature, from which a shift matters: that of 0.17 standard deviations in each of
several independent features."""
UNLIKELY = 3.0
"""Multiple of what chance makes of that distance from which it is none."""
CORRELATED = 0.05
"""Autocorrelation below which later ones are taken for noise."""

Floats = NDArray[np.float64]


def independent(rows: Floats, inverse: Floats) -> float:
    """How many independent rows tell as much of their mean as rows (N, P) in a sequence do, 1..N.

    N over the autocorrelation time, which is 1 + 2 times the sum of the autocorrelations up to the first that is
    nearly 0 (the initial positive sequence: Geyer, Practical Markov Chain Monte Carlo, 1992), of distances with the
    inverse covariance (P, P).
    """
    count = len(rows)
    centred = rows - rows.mean(axis=0)
    turned = centred @ inverse
    own = float((turned * centred).sum()) / count
    if own <= 0:
        return 1.0
    time = 1.0
    for lag in range(1, count // 2):
        correlation = float((turned[:-lag] * centred[lag:]).sum()) / count / own
        if correlation < CORRELATED:
            break
        time += 2 * correlation
    return max(1.0, count / time)


class Population:
    """The mean of the last frames against that of a reference.

    Attributes:
        distance: the squared Mahalanobis distance, a feature, of that mean; None while too little is known.
        ratio: that over what it would be by chance; None likewise.
        moved: (P,), how far that mean is, in standard deviations of a frame.
        foreign: whether it is too far for the domain, and for chance.
    """

    def __init__(self, images: float, usual: float) -> None:
        """Begin with no frame.

        Args:
            images: independent ones that the reference's mean is of.
            usual: squared distance, a feature, of a frame in the domain: what chance makes of a reference of one image.
        """
        self._usual, self._by_chance = usual, usual / images
        self._sum: Floats | float = 0.0
        self._squares = 0.0
        self._frames = 0
        self._blocks: deque[tuple[Floats, float]] = deque(maxlen=BLOCKS)
        self.foreign = False
        self.distance: float | None = None
        self.ratio: float | None = None
        self.moved: Floats = np.zeros(0)

    def clear(self) -> None:
        """Forget all frames."""
        self._blocks.clear()
        self._sum, self._squares, self._frames, self.foreign = 0.0, 0.0, 0, False
        self.distance = self.ratio = None

    def update(self, features: Floats, mean: Floats, spread: Floats, inverse: Floats) -> bool:
        """Take up one frame, (P,); whether the last ones are foreign. Looks anew when a block has ended.

        Args:
            features: of the frame.
            mean: of the reference.
            spread: its standard deviations.
            inverse: of its correlation matrix.
        """
        z = (features - mean) / spread
        self._sum = self._sum + features
        self._squares += float(z @ inverse @ z) / len(z)
        self._frames += 1
        if self._frames == BLOCK:
            self._blocks.append((np.asarray(self._sum / BLOCK), self._squares / BLOCK))
            self._sum, self._squares, self._frames = 0.0, 0.0, 0
            self._look((np.array([block for block, _ in self._blocks]) - mean) / spread, inverse)
        return self.foreign

    def _look(self, blocks: Floats, inverse: Floats) -> None:
        middle = blocks.mean(axis=0)
        size = len(middle)
        distance = float(middle @ inverse @ middle) / size
        varied = float(np.mean([square for _, square in self._blocks])) - distance
        count = independent(blocks, inverse)
        if count < FEWEST or varied < VARIED * self._usual:
            # What was known stays until there is news.
            return
        centred = blocks - middle
        dispersion = float(((centred @ inverse) * centred).sum()) / len(blocks) / size
        self.moved, self.distance = middle, distance
        self.ratio = distance / (dispersion / count + self._by_chance)
        # Half as much ends it, so that it does not come and go.
        enough = 0.5 if self.foreign else 1.0
        self.foreign = self.distance > enough * LARGE and self.ratio > enough * UNLIKELY
