"""Adaptation without the source images: what is measured of them while they are there, and a term that stands in.

Without the source a detector that teaches itself has nothing that holds it. What a run has kept
(`adapt.source_statistics`) sets the teacher's thresholds, and says how features look that the head was trained for.
`Matching` draws the target's there: Ishii and Sugiyama 2021, "Source-free Domain Adaptation via Distributional
Alignment by Matching Batch Normalization Statistics", here on the levels of the pyramid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.adapt.source_statistics import Level, SourceStatistics
from acclimate.adapt.teacher import measure
from acclimate.data.dataset import choose, plain_images
from acclimate.models.detector import device_of, evaluating

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

LOOKED_AT = 32
"""Images that the features' moments are taken from, evenly spread; each has thousands of places."""
BATCH = 8
FLOOR = 1e-3
"""Deviation that a channel is taken to have at least: one that never fires on the source sets no scale."""


class Matching(Term):
    """The squared distance of the target's mean and deviation to the source's, in the latter's deviations.

    A mean over channels and levels, of the weak view: that is nearest to the pictures that the source's were taken of.
    """

    views: ClassVar[tuple[View, ...]] = ("target_weak",)
    name: ClassVar[str] = "matching"

    def __init__(self, weight: float, levels: Sequence[Level]) -> None:
        super().__init__()
        self.weight = weight
        self._levels = len(levels)
        for index, level in enumerate(levels):
            self.register_buffer(f"mean_{index}", torch.tensor(level.mean))
            self.register_buffer(f"deviation_{index}", torch.tensor(level.variance).sqrt().clamp(min=FLOOR))

    @classmethod
    def create(cls, options: float, detector: Detector, source: LabelledSet | SourceStatistics) -> Matching:
        """With the source's moments as a run keeps them, or measured now."""
        levels = source.levels if isinstance(source, SourceStatistics) else moments(detector, source.paths)
        return cls(options, levels)

    def forward(self, step: Step) -> dict[str, Tensor]:
        distances = []
        for index, level in enumerate(step.features("target_weak")):
            mean, deviation = self.get_buffer(f"mean_{index}"), self.get_buffer(f"deviation_{index}")
            # Sums of squares want full precision.
            places = level.float().transpose(0, 1).flatten(1)
            own = (places.var(1, correction=0) + FLOOR**2).sqrt()
            distances.append((((places.mean(1) - mean) / deviation).square() + (own / deviation - 1).square()).mean())
        return {"matching/distance": self.weight * torch.stack(distances).mean()}


def measure_source(detector: Detector, source: LabelledSet) -> SourceStatistics:
    """What a run keeps of the source that its detector was trained on; see `SourceStatistics`.

    Args:
        detector: on whatever device it is.
        source: labelled images, with the detector's classes in its order.
    """
    known = measure(detector, source)
    boxes = np.zeros(len(source.classes), np.int64)
    for image in source.images:
        labels = image.annotations.labels[~image.annotations.ignore]
        boxes += np.bincount(labels, minlength=len(boxes))
    return SourceStatistics(
        classes=source.classes,
        images=len(source),
        boxes=dict(zip(source.classes, boxes.tolist(), strict=True)),
        thresholds=tuple(known.thresholds),
        floors=tuple(known.floors),
        rates=tuple(known.rates),
        means=tuple(known.means),
        levels=moments(detector, source.paths),
    )


def moments(detector: Detector, paths: Sequence[Path]) -> tuple[Level, ...]:
    """Mean and variance of each channel of each level of the pyramid, over the places of `LOOKED_AT` of the images."""
    spec = detector.spec
    sums: list[Tensor] = []
    with evaluating(detector):
        chosen = choose(paths, LOOKED_AT, 0)
        canvases = [canvas for _, canvas, _ in plain_images(chosen, spec.image_size, spec.reading)]
        for start in range(0, len(canvases), BATCH):
            pixels = torch.from_numpy(np.stack(canvases[start : start + BATCH])).to(device_of(detector))
            features = detector.features(pixels.permute(0, 3, 1, 2).float())
            levels = [level.double().transpose(0, 1).flatten(1).cpu() for level in features]
            seen = [
                torch.stack([torch.full(level.shape[:1], level.shape[1]), level.sum(1), level.square().sum(1)])
                for level in levels
            ]
            sums = [one + more for one, more in zip(sums, seen, strict=True)] if sums else seen
    return tuple(_level(*one.unbind()) for one in sums)


def _level(count: Tensor, total: Tensor, squares: Tensor) -> Level:
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return Level(mean=tuple(mean.tolist()), variance=tuple(variance.tolist()))
