"""The target's features drawn to the moments that a run keeps of its source's.

Ishii and Sugiyama 2021, "Source-free Domain Adaptation via Distributional Alignment by Matching Batch Normalization
Statistics", here on the levels of the pyramid. It stands in for source images that are not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.adapt.source_free import moments
from acclimate.adapt.source_statistics import Level, SourceStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

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
