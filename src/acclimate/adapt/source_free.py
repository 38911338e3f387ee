"""Adaptation without the source images: what is measured of them while they are there.

Without the source a detector that teaches itself has nothing that holds it. What a run has kept
(`adapt.source_statistics`) sets the teacher's thresholds, and says how features look that the head was trained for, to
which `adapt.matching` draws the target's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

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
