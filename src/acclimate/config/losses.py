"""Options of what a detector's losses are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from acclimate.config.options import Options


class LossConfig(Options):
    """What the losses against labelled boxes are made of (`models/losses.py`), in place of the kind's own."""

    classes: Literal["default", "cross-entropy", "focal", "quality-focal"] = "default"
    """The loss of the class; by default `quality-focal` in a dense detector, `cross-entropy` elsewhere. `quality-focal`
    is for a dense one alone."""
    gamma: float = Field(default=2.0, ge=0, le=10)
    """Exponent of `focal`."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing: the share of a class's probability that is spread over all classes alike."""
    boxes: Literal["default", "iou", "giou", "diou", "ciou"] = "default"
    """The loss of the box; by default `giou` in a dense detector, smooth L1 of the offsets elsewhere."""
    negatives: float | None = Field(default=None, gt=0, le=1000)
    """Hard negative mining: for each object so many places of background count, those with the highest loss (an SSD
    takes 3 by itself)."""
    ohem: bool = False
    """For `two-stage` alone: the second stage trains on the proposals with the highest loss (online hard example
    mining), not on a random sample."""
    repulsion: float = Field(default=0.0, ge=0, le=100)
    """Weight of the repulsion loss, by which boxes keep away from objects that are not theirs, and from
    one another."""

    def asked(self) -> Iterator[str]:
        """What is asked for beyond the kind's own, as `Detector.losses_known` names it."""
        yield from (word for word in (self.classes, self.boxes) if word != "default")
        values = {"smoothing": self.smoothing, "negatives": self.negatives, "ohem": self.ohem}
        yield from (name for name, value in {**values, "repulsion": self.repulsion}.items() if value)
