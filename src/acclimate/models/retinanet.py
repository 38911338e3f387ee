"""RetinaNet, as torchvision has it: nine default boxes a cell, and focal loss in place of sampling.

Lin et al. 2017 (RetinaNet); with `box_loss = "giou"` as torchvision's second version trains it. `models/towers.py` has
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from acclimate.boxes import tensors
from acclimate.boxes.offsets import RPN_WEIGHTS
from acclimate.errors import AcclimateError
from acclimate.models.dense import to_tensors
from acclimate.models.detector import DetectorSpec
from acclimate.models.roi_heads import SMALLEST
from acclimate.models.towers import (
    BACKGROUND,
    IGNORED,
    TowerDetector,
    TowerSpec,
    carried,
    cells_of,
    groups,
    level_priors,
    with_added,
)
from acclimate.models.two_stage import anchor_rows
from acclimate.structures import Annotations

OBJECT, NO_OBJECT = 0.5, 0.4
"""Overlap from which a default box is an object, and below which it is background."""
INSIDE_IGNORED = 0.5
"""Share of a default box's area inside an ignored region from which it is left out of the losses."""
SCALES, RATIOS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)
"""Of the default boxes of a level; the smallest is four strides wide."""


class RetinaNetDetector(TowerDetector):
    """See the module. Raw outputs: logits (B, A, C) and offsets (B, A, 4) of the default boxes, as
    `edge.artifact.Decode` says."""

    kind: ClassVar[str] = "retinanet"
    output_names: ClassVar[tuple[str, ...]] = ("logits", "offsets")

    @classmethod
    def own_spec(cls, common: DetectorSpec) -> TowerSpec:
        sides = [tuple(int(4 * stride * scale) for scale in SCALES) for stride in with_added(common.strides)]
        cells = cells_of(AnchorGenerator(tuple(sides), (RATIOS,) * len(sides)))
        priors = level_priors(common.image_size, common.strides, cells)
        return TowerSpec(priors=priors, tower_groups=groups(common.channels), nms_iou=0.5)

    def located(self, level: Tensor) -> tuple[Tensor, ...]:
        """Offsets (B, A_l, 4)."""
        return (anchor_rows(self.regress(self.box_tower(level)), 4),)

    def boxes(self, raw: Sequence[Tensor]) -> Tensor:
        return tensors.decode(raw[1].float(), self.priors, RPN_WEIGHTS)

    def scores(self, raw: Sequence[Tensor]) -> Tensor:
        return raw[0].float().sigmoid()

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Focal loss of the classes, and L1 of the offsets or GIoU of the boxes; both divided, image by image, by the
        number of default boxes that are objects."""
        logits, offsets = (output.float() for output in (self.head(features) if raw is None else raw))
        sums = {"class": logits.new_zeros(()), "box": logits.new_zeros(())}
        for scores, moves, target in zip(logits, offsets, targets, strict=True):
            with torch.no_grad():
                labels, matched = self._match(*to_tensors(target, logits.device))
                objects, used = labels >= 0, labels != IGNORED
                wanted = torch.zeros_like(scores)
                wanted[objects, labels[objects]] = 1.0
                total = objects.sum().clamp(min=1)
            sums["class"] += sigmoid_focal_loss(scores[used], wanted[used], reduction="sum") / total
            sums["box"] += self._box_loss(moves[objects], self.priors[objects], matched[objects]) / total
        return {name: value / len(targets) for name, value in sums.items()}

    def _box_loss(self, offsets: Tensor, priors: Tensor, wanted: Tensor) -> Tensor:
        """The sum over offsets (N, 4) of default boxes (N, 4) that answer for the boxes `wanted` (N, 4)."""
        if self.options.box_loss == "l1":
            return F.l1_loss(offsets, tensors.encode(wanted, priors, RPN_WEIGHTS), reduction="sum")
        loss: Tensor = generalized_box_iou_loss(tensors.decode(offsets, priors, RPN_WEIGHTS), wanted, reduction="sum")
        return loss

    def _match(self, boxes: Tensor, labels: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
        """What each default box answers for.

        Args:
            boxes: (M, 4) labelled boxes, with labels (M,) and ignore (M,).

        Returns:
            labels (A,): a class, `BACKGROUND`, or `IGNORED` where the overlap is neither, or it lies inside an ignored
            box; and the boxes (A, 4), where there is a class.
        """
        real = (boxes[:, 2:] - boxes[:, :2] > SMALLEST).all(-1)
        ignored, boxes, labels = boxes[real & ignore], boxes[real & ~ignore], labels[real & ~ignore]
        assigned = torch.full((len(self.priors),), BACKGROUND, device=boxes.device)
        matched = torch.zeros_like(self.priors)
        if len(boxes):
            found = Matcher(OBJECT, NO_OBJECT, allow_low_quality_matches=True)(tensors.pairwise(boxes, self.priors))
            which = found.clamp(min=0)
            assigned = torch.where(found >= 0, labels[which], torch.where(found == BACKGROUND, BACKGROUND, IGNORED))
            matched = boxes[which]
        if len(ignored):
            seen = tensors.clip(self.priors, self.spec.image_size)
            inside = tensors.intersection(ignored, seen).amax(0) >= INSIDE_IGNORED * tensors.area(seen)
            assigned = torch.where((assigned == BACKGROUND) & inside, IGNORED, assigned)
        return assigned, matched


def from_torchvision(
    model: RetinaNet, image_size: tuple[int, int], classes: Sequence[str] | None = None
) -> RetinaNetDetector:
    """A torchvision RetinaNet as a detector of this package, in eval mode, with the same detections.

    torchvision scales an image to its own size and pads it; this detector takes a canvas of `image_size` as it is. On a
    canvas that torchvision leaves alone (no scaling, each side a multiple of 32) both detect the same, up to rounding;
    what torchvision reports without any area is left out.

    Args:
        model: `retinanet_resnet50_fpn`, its `_v2`, or a model built of the same parts; trained or not.
        image_size: (height, width) of the canvas, multiples of 32.
        classes: their names without the background, which is the model's first column; or of all its columns. By
            default COCO's where there are as many, else numbers.

    Raises:
        AcclimateError: a part of the model is none that this detector has, or `classes` are too many or too few.
    """
    if not isinstance(model, RetinaNet):
        raise AcclimateError("from_torchvision: takes a RetinaNet of torchvision's")
    matcher, loss = model.proposal_matcher, model.head.regression_head._loss_type
    limits = matcher.high_threshold, matcher.low_threshold, matcher.allow_low_quality_matches
    if tuple(model.box_coder.weights) != RPN_WEIGHTS or limits != (OBJECT, NO_OBJECT, True):
        raise AcclimateError(
            f"from_torchvision: takes offsets in {RPN_WEIGHTS}, and default boxes that are objects from an overlap of "
            f"{OBJECT} and background below {NO_OBJECT}"
        )
    if loss not in {"l1", "giou"}:
        raise AcclimateError(f"from_torchvision: takes the box losses l1 and giou, not {loss}")
    return carried(RetinaNetDetector, model, image_size, classes, box_loss=loss)
