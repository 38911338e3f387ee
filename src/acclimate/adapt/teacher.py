"""The mean teacher on unlabelled target images: soft targets of the averaged weights, weak view to strong view.

Tarvainen and Valpola 2017 (mean teacher), Li et al. 2022 (Adaptive Teacher), Kay et al. 2024 (ALDI: soft
distillation rather than thresholded pseudo-labels). Written for dense heads: both views share one geometry, so
the teacher's outputs are targets location by location, without decoding, NMS or a hard threshold.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.config import TeacherConfig


class Teacher(Term):
    """Distils the averaged weights' view of the weak target image into the detector's view of the strong one."""

    views: ClassVar[tuple[View, ...]] = ("target_strong",)
    name: ClassVar[str] = "teacher"

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, step: Step) -> dict[str, Tensor]:
        soft = step.average_raw("target_weak")
        if self.config.sharpen != 1.0:
            soft = (torch.special.logit(_sharpen(soft[0].float().sigmoid(), self.config.sharpen), 1e-6), *soft[1:])
        losses = step.detector.distillation(step.raw("target_strong"), soft, self.config.threshold)
        ramp = min(1.0, step.progress / self.config.ramp) if self.config.ramp > 0 else 1.0
        weights = {"class": self.config.weight, "box": self.config.weight * self.config.box_weight}
        return {f"teacher/{name}": ramp * weights.get(name, self.config.weight) * loss for name, loss in losses.items()}


def _sharpen(p: Tensor, exponent: float) -> Tensor:
    """p^e / (p^e + (1 - p)^e): 1 leaves a probability alone, more pushes it away from a half."""
    yes, no = p.pow(exponent), (1 - p).pow(exponent)
    return yes / (yes + no).clamp(min=1e-12)
