"""Drop path whose rate rises with the training (Zoph et al. 2018, section 4: ScheduledDropPath).

timm's blocks drop themselves (stochastic depth, Huang et al. 2016), deeper ones more often; here each of their rates is
multiplied by how far the training is. `model.drop_path` gives the rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from timm.layers.drop import DropPath
from torch import Tensor, nn

from acclimate.adapt.objective import Step, Term

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


class DropPathSchedule(Term):
    """Changes what the detector drops and has no loss."""

    name: ClassVar[str] = "drop_path"

    def __init__(self, detector: nn.Module, most: float = 1.0) -> None:
        """For timm's blocks below `detector`; `most` is the part of their rates that the end of the training has."""
        super().__init__()
        self.most = most
        # In a tuple, as these are the detector's.
        self._parts = tuple((part, float(part.drop_prob)) for part in detector.modules() if isinstance(part, DropPath))

    @classmethod
    def create(cls, options: float, detector: Detector, source: LabelledSet) -> DropPathSchedule:
        return cls(detector, options)

    def prepare(self, step: Step) -> None:
        for part, rate in self._parts:
            part.drop_prob = rate * self.most * step.progress

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {}
