"""How often each source image is drawn: by the classes that it shows.

A class that few images show is learnt from few of them, and what the source shows often the target may show seldom.
Both are weights of images, and `drawn` makes an epoch of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from acclimate.structures import Annotations

LIMIT = 4.0
"""An image is drawn at most so many times as often as the average one, and at least its reciprocal."""


def by_class(images: Sequence[Annotations], classes: int) -> NDArray[np.float64]:
    """The weights (N,) of repeat factor sampling: Gupta et al. 2019, LVIS, section 3.

    A class's factor is sqrt(t / f), f the share of images that show it and t that of the commonest one; an image has
    the largest factor of its classes. One that shows nothing has the commonest class's, 1.

    Args:
        images: the boxes of each.
        classes: how many there are.
    """
    shows = np.zeros((len(images), classes), bool)
    for row, boxes in enumerate(images):
        shows[row, boxes.labels[~boxes.ignore]] = True
    share = shows.mean(axis=0)
    factors = np.sqrt(share.max(initial=0.0) / np.maximum(share, 1e-12))
    return _limited(np.where(shows, factors, 1.0).max(axis=1, initial=1.0))


def by_counts(images: Sequence[Annotations], source: Sequence[float], target: Sequence[float]) -> NDArray[np.float64]:
    """Weights (N,) that bring the classes of the source up as often as those of the target.

    A box weighs the square root of its class's share of the target's boxes over its share of the source's, as counts
    that a detector made are uncertain; an image has the mean of its boxes, and one without boxes 1.

    Args:
        images: the boxes of each source image.
        source: boxes of each class, or boxes an image.
        target: likewise; as the detector found them.
    """
    # Half a box in each class keeps a class that was not seen from being drawn never, or always.
    shares = [
        (np.asarray(counts, np.float64) + 0.5) / (np.sum(counts) + 0.5 * len(counts)) for counts in (source, target)
    ]
    factors = np.sqrt(shares[1] / shares[0])
    labels = [boxes.labels[~boxes.ignore] for boxes in images]
    return _limited(np.array([factors[one].mean() if len(one) else 1.0 for one in labels]))


def drawn(weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One epoch: as many places as there are images, in random order, each as often as its weight says.

    Systematic resampling: the n draws are evenly spread over the summed weights from one random start, so an image
    whose share is k of n comes up floor(k) or ceil(k) times.

    Args:
        weights: (N,), above 0.
        rng: draws the start and the order.
    """
    count = len(weights)
    ends = np.cumsum(weights) / np.sum(weights) * count
    ends[-1] = count
    return np.asarray(rng.permutation(np.searchsorted(ends, np.arange(count) + rng.random(), side="right")), np.int64)


def _limited(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(weights / max(float(weights.mean()), 1e-12), 1 / LIMIT, LIMIT) if len(weights) else weights
