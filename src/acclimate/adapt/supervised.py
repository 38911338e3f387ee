"""The detector's own losses on labelled source images, strong view."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from acclimate.adapt.objective import Step, Term, View


class Supervised(Term):
    """Source-only training, and the part of every adaptation that keeps the source in the mix."""

    views: ClassVar[tuple[View, ...]] = ("source_strong",)
    name: ClassVar[str] = "supervised"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        view: View = "source_strong"
        assert step.source.targets is not None
        losses = step.detector.losses(step.features(view), step.source.targets, step.raw(view))
        return {f"supervised/{name}": self.weight * loss for name, loss in losses.items()}
