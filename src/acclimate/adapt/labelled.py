"""The detector's own losses on target images that a person has labelled, strong view."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.config import LabelledConfig

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


class Labelled(Term):
    """As the supervised term is of the source; normalised with the target where the domains are apart."""

    views: ClassVar[tuple[View, ...]] = ("labelled_strong",)
    name: ClassVar[str] = "labelled"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def create(cls, options: LabelledConfig, detector: Detector, source: LabelledSet) -> Labelled:
        return cls(options.weight)

    def forward(self, step: Step) -> dict[str, Tensor]:
        assert step.target is not None
        assert step.target.labelled is not None
        assert step.target.labelled.targets is not None
        losses = step.losses("labelled_strong", step.target.labelled.targets)
        return {f"labelled/{name}": self.weight * loss for name, loss in losses.items()}
