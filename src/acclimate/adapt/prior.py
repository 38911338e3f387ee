"""Few objects an image: the prior of a sparse detection, as a loss.

Wang et al. 2020, "BiDet: An Efficient Binarized Object Detector" (section 3.3): of the boxes that suppression leaves,
the scores normalised to 1 are to have a small entropy, -(sum s log s), so that they gather on few boxes and false ones
fade. Published for binary networks; the loss asks for none. BiDet's gated precision and its binary convolutions are not
here, as none of the runtimes that artifacts run on computes with one bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchvision.ops import nms

from acclimate.adapt.objective import Step, Term, View
from acclimate.errors import AcclimateError
from acclimate.models.dense import DenseDetector

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

BOXES = 100
"""Of an image, with the highest scores, before suppression."""
OVERLAP = 0.5
"""The IoU from which suppression takes a box away."""


class Prior(Term):
    """See the module; on source images, strong view."""

    views: ClassVar[tuple[View, ...]] = ("source_strong",)
    name: ClassVar[str] = "prior"

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def create(cls, options: float, detector: Detector, source: LabelledSet) -> Prior:
        """Make the term.

        Raises:
            AcclimateError: the detector is not of a kind that says at each location how sure it is.
        """
        if not isinstance(detector, DenseDetector):
            raise AcclimateError(f"adapt.prior: not for a {detector.spec.kind} detector; take model.kind=dense")
        return cls(options)

    def forward(self, step: Step) -> dict[str, Tensor]:
        detector = step.detector
        assert isinstance(detector, DenseDetector)
        logits, distances = step.raw("source_strong")
        scores = logits.float().sigmoid().amax(-1)
        boxes = detector.boxes(distances.detach())
        entropies = [entropy(score[_left(score.detach(), box)]) for score, box in zip(scores, boxes, strict=True)]
        return {"prior/entropy": self.weight * torch.stack(entropies).mean()}


def entropy(scores: Tensor) -> Tensor:
    """-(sum s log s) of scores (N,) that are divided by their sum first: 0 for one box, log N for N alike."""
    shares = scores / scores.sum().clamp_min(1e-9)
    return -(shares * shares.clamp_min(1e-12).log()).sum()


def _left(scores: Tensor, boxes: Tensor) -> Tensor:
    """Which of the locations (A,) suppression leaves of the best."""
    best = scores.topk(min(BOXES, len(scores))).indices
    return best[nms(boxes[best], scores[best], OVERLAP)]
