"""The cascade: three second stages one behind the other, each on the boxes that the one before has made better.

Cai and Vasconcelos 2018 (Cascade R-CNN). A stage learns from proposals that overlap their object by 0.5, 0.6 and 0.7,
so that the last is strict about what an object is, and sees boxes that are good enough for that. Boxes are moved
whatever the class, and the class's probability is the mean of the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS, Weights
from acclimate.models.detector import LossKind
from acclimate.models.roi_heads import (
    ROI_OBJECT,
    RoiHead,
    Sample,
    Setting,
    Truth,
    class_loss,
    fully_connected,
    mean_logits,
    move_loss,
    predictors,
)

OVERLAPS = (ROI_OBJECT, 0.6, 0.7)
"""From which a box is an object, stage by stage."""
SHARES = (1.0, 0.5, 0.25)
"""Weight of each stage's losses, as the authors released them."""


def weights_of(stage: int) -> Weights:
    """What a stage's offsets are divided by: boxes that are better move less (as released: 10, 20, 30)."""
    x, y, w, h = (weight * (stage + 1) for weight in ROI_WEIGHTS)
    return x, y, w, h


class _Stage(nn.Module):
    """Two fully connected layers, a class, and one move whatever the class."""

    def __init__(self, channels: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.layers = fully_connected(channels, hidden, 2)
        self.classify, self.move = predictors(hidden, classes)[0], predictors(hidden, 0)[1]

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(pooled.flatten(2))
        return self.classify(hidden), self.move(hidden)


class CascadeHead(RoiHead):
    """See the module."""

    repels: ClassVar[bool] = False

    loss_kinds: Mapping[str, LossKind] = {
        "roi_class": "class", "roi_box": "box",
        "roi_class_2": "class", "roi_box_2": "box",
        "roi_class_3": "class", "roi_box_3": "box",
    }  # fmt: skip

    def __init__(self, setting: Setting) -> None:
        """Build with random weights."""
        super().__init__(setting)
        self.stages = nn.ModuleList(_Stage(setting.channels, setting.classes, setting.hidden) for _ in OVERLAPS)

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, boxes, logits, moves = [], proposals, proposals, proposals
        for number, stage in enumerate(self.stages):
            if number:
                boxes = self._moved(features, boxes, moves, number - 1)
            logits, moves = stage(self.pool(features, boxes))
            scores.append(logits)
        return mean_logits(scores), _spread(moves, logits.shape[-1]), boxes

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        first = self.stages[0]
        assert isinstance(first, _Stage)
        hidden: Tensor = first.layers(self.pool(features, boxes).flatten(2))
        return hidden

    def losses(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth] = ()) -> dict[str, Tensor]:
        """Each stage's class and box loss, on the boxes of the stage before, labelled anew by its own overlap."""
        losses: dict[str, Tensor] = {}
        boxes, labels, matched, _ = sample
        moves, used = boxes, labels >= 0
        for number, (stage, share) in enumerate(zip(self.stages, SHARES, strict=True)):
            if number:
                boxes = self._moved(features, boxes, moves, number - 1)
                _, labels, matched, _ = relabelled(boxes, used, truth, OVERLAPS[number])
            logits, moves = stage(self.pool(features, boxes))
            name = f"_{number + 1}" if number else ""
            losses[f"roi_class{name}"] = share * class_loss(logits, labels, self.criteria)
            losses[f"roi_box{name}"] = share * self._box_loss(moves, boxes, labels, matched, number)
        return losses

    @torch.no_grad()
    def refined(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth]) -> list[Sample]:
        """The boxes (B, K, 4) that leave each stage, labelled by its overlap."""
        boxes, used = sample.boxes, sample.labels >= 0
        samples = []
        for number, stage in enumerate(self.stages):
            _, moves = stage(self.pool(features, boxes))
            boxes = self._moved(features, boxes, moves, number)
            samples.append(relabelled(boxes, used, truth, OVERLAPS[number]))
        return samples

    def _moved(self, features: Sequence[Tensor], boxes: Tensor, moves: Tensor, stage: int) -> Tensor:
        """Where a stage moves its boxes to, on the canvas and without gradients."""
        height, width = (side * self.strides[0] for side in features[0].shape[-2:])
        moved = tensors.decode(moves.detach().float(), boxes.float(), weights_of(stage))
        return tensors.clip(moved, (height, width))

    def _box_loss(self, moves: Tensor, boxes: Tensor, labels: Tensor, matched: Tensor, stage: int) -> Tensor:
        objects, weights = labels > 0, weights_of(stage)
        own, base = moves[objects].float(), boxes[objects].float()
        loss = move_loss(own, base, matched[objects], self.criteria.boxes, weights)
        return loss.sum() / (labels >= 0).sum().clamp(min=1)


def relabelled(boxes: Tensor, used: Tensor, truth: Sequence[Truth], least: float) -> Sample:
    """What boxes are after they have moved.

    Args:
        boxes: (B, K, 4).
        used: (B, K) bool; the others stay out of every loss.
        truth: of each image.
        least: overlap from which a box is an object.
    """
    found = [one.match_proposals(box, least) for one, box in zip(truth, boxes, strict=True)]
    labels, objects = (torch.stack(part) for part in zip(*found, strict=True))
    matched = torch.stack([one.boxes_of(which) for one, which in zip(truth, objects, strict=True)])
    return Sample(boxes, torch.where(used, labels, -1), matched, objects)


def _spread(moves: Tensor, classes: int) -> Tensor:
    """The last stage's moves (B, K, 4) as offsets (B, K, classes, 4) in the scale of `edge.artifact.Decode`, every
    class's alike."""
    return torch.stack([moves / len(OVERLAPS)] * classes, 2)
