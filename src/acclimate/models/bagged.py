"""Bagging of heads: several second stages on one backbone, each trained on a bootstrap of the boxes, and their mean.

Breiman 1996 (bagging), by the online bootstrap of Oza and Russell 2001: in each step every member counts each box as
often as a Poisson variable of mean 1 says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from acclimate.config import TwoStageConfig
from acclimate.models.losses import softmax_loss
from acclimate.models.roi_heads import RoiHead, Sample, Setting, SiblingHead, Truth, box_loss, mean_logits


class BaggedHead(RoiHead):
    """See the module. The class's probability and the offsets are the mean of the members'."""

    repels: ClassVar[bool] = False

    @classmethod
    def arguments(cls, options: TwoStageConfig) -> dict[str, int | float | None]:
        return {"members": options.members}

    def __init__(self, setting: Setting, members: int = 3) -> None:
        """Build with random weights.

        Args:
            setting: what for.
            members: how many there are.
        """
        super().__init__(setting, members * setting.hidden)
        self.members = nn.ModuleList(SiblingHead(setting) for _ in range(members))

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = [_of(member, pooled) for member, pooled in self._pooled(features, proposals)]
        return (
            mean_logits([logits for logits, _ in found]),
            torch.stack([offsets for _, offsets in found]).mean(0),
            proposals,
        )

    def losses(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth] = ()) -> dict[str, Tensor]:
        """The mean of the members' losses, each weighted by its own bootstrap."""
        proposals, labels, matched, _ = sample
        classes, boxes = [], []
        for member, pooled in self._pooled(features, proposals):
            logits, offsets = _of(member, pooled)
            count = torch.poisson(torch.ones_like(proposals[..., 0])) * (labels >= 0)
            loss = softmax_loss(logits.flatten(0, 1).float(), labels.flatten(), self.criteria).view_as(count)
            classes.append((loss * count).sum() / count.sum().clamp(min=1))
            boxes.append(box_loss(offsets, proposals, labels, matched, count, self.criteria.boxes))
        return {"roi_class": torch.stack(classes).mean(), "roi_box": torch.stack(boxes).mean()}

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return torch.cat([member.layers(pooled) for member, pooled in self._pooled(features, boxes)], -1)

    def _pooled(self, features: Sequence[Tensor], boxes: Tensor) -> list[tuple[SiblingHead, Tensor]]:
        """Each member with the features (B, K, D) of the boxes, which they share."""
        pooled = self.pool(features, boxes).flatten(2)
        return [(member, pooled) for member in self.members if isinstance(member, SiblingHead)]


def _of(member: SiblingHead, pooled: Tensor) -> tuple[Tensor, Tensor]:
    hidden = member.layers(pooled)
    return member.classify(hidden), member.regress(hidden).unflatten(-1, (-1, 4))
