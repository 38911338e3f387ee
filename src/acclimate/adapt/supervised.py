"""The detector's own losses on labelled source images, strong view."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from acclimate.adapt.objective import Step, Term, View

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


class Supervised(Term):
    """Source-only training, and the part of every adaptation that keeps the source in the mix."""

    views: ClassVar[tuple[View, ...]] = ("source_strong",)
    name: ClassVar[str] = "supervised"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def create(cls, options: float, detector: Detector, source: LabelledSet) -> Supervised:
        return cls(options)

    def forward(self, step: Step) -> dict[str, Tensor]:
        assert step.source is not None
        assert step.source.targets is not None
        losses = step.losses("source_strong", step.source.targets)
        return {f"supervised/{name}": self.weight * loss for name, loss in losses.items()}
