"""The mean teacher on unlabelled target images: what the averaged weights see in the weak view teaches the strong view.

Tarvainen and Valpola 2017 (mean teacher), Li et al. 2022 (Adaptive Teacher), Kay et al. 2024 (ALDI). Two kinds of
targets, each with its weight:

- boxes: the teacher's detections after NMS become targets of the detector's own losses, as labelled boxes would.
  Detections it is less sure of are ignored rather than taken for background. The assignment then asks a matched
  location for the overlap it reaches, which also raises scores that the shift has lowered.
- soft: the teacher's probabilities and boxes, location by location, without decoding or NMS. Both views share one
  geometry, so locations of a dense head correspond. It keeps the teacher's scores as they are.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.config import TeacherConfig
from acclimate.structures import Annotations, Detections


class Teacher(Term):
    """See the module. The teacher is the objective's average of the weights, in eval mode on the weak view."""

    views: ClassVar[tuple[View, ...]] = ("target_strong",)
    name: ClassVar[str] = "teacher"

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, step: Step) -> dict[str, Tensor]:
        view: View = "target_strong"
        seen = step.average_raw("target_weak")
        ramp = min(1.0, step.progress / self.config.ramp) if self.config.ramp > 0 else 1.0
        losses: dict[str, Tensor] = {}
        if self.config.boxes > 0:
            targets = [self._targets(found) for found in step.average.decode(seen)]
            for name, loss in step.detector.losses(step.features(view), targets, step.raw(view)).items():
                losses[f"teacher/{name}"] = ramp * self.config.boxes * loss
        if self.config.soft > 0:
            for name, loss in step.detector.distillation(step.raw(view), seen, self.config.threshold).items():
                losses[f"teacher/soft_{name}"] = ramp * self.config.soft * loss
        return losses

    def _targets(self, found: Detections) -> Annotations:
        """Sure detections as boxes, doubtful ones as regions to ignore; what is below both is background."""
        kept = found.above(self.config.doubt)
        return Annotations(kept.boxes, kept.labels, kept.scores < self.config.threshold)
