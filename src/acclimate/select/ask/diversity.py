"""Frames that look as different as they can, to the detector: k-centre greedy on its features.

Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acclimate.data.dataset import farthest
from acclimate.select.ask.seen import Choice, Seen


def choose(seen: Seen, count: int) -> list[Choice]:
    """See `ask.choose`."""
    points = standardised(seen.features)
    choices: list[Choice] = []
    chosen: list[int] = []
    for index in farthest(points, count):
        away = distance(points, index, chosen)
        why = f"unlike those before it (distance {away:.1f})" if chosen else "the most typical frame"
        choices.append(Choice(index, why, {"distance": away}))
        chosen.append(index)
    return choices


def standardised(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, F) in the standard deviations of each feature over the frames."""
    return np.asarray((features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6))


def distance(points: NDArray[np.float64], index: int, chosen: list[int]) -> float:
    """From one of the points (N, F) to the nearest of the chosen ones, in standard deviations; 0 where there is
    none."""
    if not chosen:
        return 0.0
    return float(np.sqrt(np.square(points[chosen] - points[index]).mean(axis=1)).min())
