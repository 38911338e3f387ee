"""The target's weather, told from how its images look, and put over source images.

`weather` has the effects; here the one is chosen under which source images look most like the target's. Boxes stay
valid, as no pixel moves. It reads target images and no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.data import weather
from acclimate.edge.monitor import look
from acclimate.structures import Image

STRENGTHS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.4)
"""That are tried of each condition."""
CLIMATE_IMAGES = 16
"""Of each domain that are looked at."""
SPREAD = (0.5, 1.25)
"""An image's strength, in parts of the one that fits best: weather is not the same every day."""
GAIN = 0.8
"""A weather has to bring the source at least so near: parts of the distance without one."""
_SIDE = 160
"""Pixels of the longer side at which looks are compared."""


@dataclass(frozen=True, slots=True)
class Climate:
    """Which weather source images are put under.

    Attributes:
        condition: one of `weather.CONDITIONS`.
        strength: that fits best.
        distance: of the source's looks from the target's under it, in parts of what it is without.
    """

    condition: str
    strength: float
    distance: float

    def over(self, image: Image, rng: np.random.Generator) -> Image:
        """A source image (H, W, 3) under it, at a random strength around the one that fits."""
        return weather.apply(image, self.condition, self.strength * rng.uniform(*SPREAD), rng)


def fitted(source: Sequence[Image], target: Sequence[Image], rng: np.random.Generator) -> Climate | None:
    """The condition and strength of weather under which source images look most like target images.

    Looks are those of the monitor on the device (`edge.monitor.look`: colours, contrast, haze, sharpness). The distance
    of two sets is the squared difference of their mean looks, each in the standard deviations within the two sets.

    Args:
        source: images, (H, W, 3).
        target: images of the other domain.
        rng: draws what is random in the weather.

    Returns:
        None where no weather brings the distance down to `GAIN` of what it is.
    """
    source, target = [_small(image) for image in source], [_small(image) for image in target]
    there = _looks(target)
    here = _looks(source)
    scale = np.sqrt((here.var(axis=0) + there.var(axis=0)) / 2) + 1e-3

    def distance(looks: NDArray[np.float64]) -> float:
        return float(np.square((looks.mean(axis=0) - there.mean(axis=0)) / scale).mean())

    without = distance(here)
    best: Climate | None = None
    for condition in weather.CONDITIONS:
        for strength in STRENGTHS:
            under = _looks([weather.apply(image, condition, strength, rng) for image in source])
            relative = distance(under) / max(without, 1e-12)
            if relative <= (GAIN if best is None else best.distance):
                best = Climate(condition, strength, relative)
    return best


def _looks(images: Sequence[Image]) -> NDArray[np.float64]:
    return np.array([look(image) for image in images])


def _small(image: Image) -> Image:
    scale = _SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
