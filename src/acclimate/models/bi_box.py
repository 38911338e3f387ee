"""The bi-box head: where an object is, and which part of it can be seen.

Zhou and Yuan 2018 (Bi-box regression for pedestrian detection and occlusion estimation). Two branches look at the same
proposal: one tells and places the whole object, the other the part of it that is not hidden. A proposal is an object
when it overlaps the whole box, and also covers enough of the visible one. A proposal of background has a visible part
too: a point, its centre, so that the branch learns how little of an object there is where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.boxes import tensors
from acclimate.config import TwoStageConfig
from acclimate.models.detector import LossKind
from acclimate.models.roi_heads import (
    SMOOTH,
    RoiHead,
    Sample,
    Setting,
    Truth,
    box_loss,
    class_loss,
    fully_connected,
    predictors,
)


class BiBoxHead(RoiHead):
    """See the module. The score is the softmax of both branches' logits together; the box is the whole object's."""

    repels: ClassVar[bool] = False

    loss_kinds: Mapping[str, LossKind] = {
        "roi_class": "class", "roi_box": "box", "visible_class": "class", "visible_box": "box",
    }  # fmt: skip

    @classmethod
    def arguments(cls, options: TwoStageConfig) -> dict[str, int | float | None]:
        return {"visible_share": options.visible_share, "shrink": options.shrink}

    def __init__(self, setting: Setting, visible_share: float = 0.5, shrink: bool = True) -> None:
        """Build with random weights.

        Args:
            setting: what for.
            visible_share: part of the visible box that a proposal has to cover to be an object.
            shrink: whether the visible part of background shrinks to a point; otherwise it is not learnt there.
        """
        hidden, classes = setting.hidden, setting.classes
        super().__init__(setting, 2 * hidden)
        self.visible_share, self.shrink = visible_share, shrink
        self.whole, self.part = (fully_connected(setting.channels, hidden, 2) for _ in range(2))
        self.classify, self.regress = predictors(hidden, classes)
        self.visible = nn.ModuleDict({"classify": predictors(hidden, classes)[0], "place": predictors(hidden, 0)[1]})

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = self.pool(features, proposals).flatten(2)
        whole, part = self.whole(pooled), self.part(pooled)
        offsets = self.regress(whole).unflatten(-1, (-1, 4))
        return self.classify(whole) + self.visible["classify"](part), offsets, proposals

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        pooled = self.pool(features, boxes).flatten(2)
        return torch.cat([self.whole(pooled), self.part(pooled)], -1)

    def losses(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth] = ()) -> dict[str, Tensor]:
        """Both branches' class and box loss (equation 4), each of the branch's own logits."""
        proposals, labels, matched, _ = sample
        pooled = self.pool(features, proposals).flatten(2)
        whole, part = self.whole(pooled), self.part(pooled)
        visible = torch.stack(
            [one.visible_of(one.match_proposals(box)[1]) for one, box in zip(truth, proposals, strict=True)]
        )
        labels = torch.where((labels > 0) & (share(proposals, visible) < self.visible_share), 0, labels)
        wanted = torch.where((labels > 0)[..., None], placement(visible, proposals), 0.0)
        place = self.visible["place"](part).float()
        learnt = labels >= 0 if self.shrink else labels > 0
        loss = F.smooth_l1_loss(place, wanted, beta=SMOOTH, reduction="none").sum(-1)
        offsets = self.regress(whole).unflatten(-1, (-1, 4))
        return {
            "roi_class": class_loss(self.classify(whole), labels, self.criteria),
            "roi_box": box_loss(offsets, proposals, labels, matched, kind=self.criteria.boxes),
            "visible_class": class_loss(self.visible["classify"](part), labels, self.criteria),
            "visible_box": (loss * learnt).sum() / (labels >= 0).sum().clamp(min=1),
        }


def share(proposals: Tensor, visible: Tensor) -> Tensor:
    """(...,): how much of each visible box (..., 4) its proposal (..., 4) covers; 0 where nothing is visible."""
    sides = torch.minimum(proposals[..., 2:], visible[..., 2:]) - torch.maximum(proposals[..., :2], visible[..., :2])
    return sides.clamp(min=0).prod(-1) / tensors.area(visible).clamp(min=1e-9)


def placement(boxes: Tensor, proposals: Tensor) -> Tensor:
    """Where boxes (..., 4) lie in proposals (..., 4): their centre from the proposal's, and their size, in its sizes.

    Not by a logarithm, which has no value for a point: a point at the centre is (0, 0, 0, 0).
    """
    size = (proposals[..., 2:] - proposals[..., :2]).clamp(min=1e-3)
    apart = (boxes[..., :2] + boxes[..., 2:] - proposals[..., :2] - proposals[..., 2:]) / 2
    return torch.cat([apart / size, (boxes[..., 2:] - boxes[..., :2]) / size], -1)
