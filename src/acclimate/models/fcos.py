"""FCOS, as torchvision has it: from each place four side distances, and how central the place is in its box.

Tian et al. 2019 (FCOS), with what its authors added later (Tian et al. 2020): centre sampling, GIoU, and the
centre-ness on the box tower. The box tower's distances are in strides. `models/towers.py` has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from acclimate.edge.artifact import Priors
from acclimate.errors import AcclimateError
from acclimate.models.dense import share_of_total, to_tensors
from acclimate.models.detector import DetectorSpec, LossKind
from acclimate.models.towers import (
    BACKGROUND,
    IGNORED,
    TowerDetector,
    TowerDetectorSpec,
    TowerSpec,
    carried,
    groups,
    level_priors,
    predictor,
    with_added,
)
from acclimate.models.two_stage import anchor_rows, copy_tensors
from acclimate.structures import Annotations

RADIUS = 1.5
"""Strides around the centre of a box within which a place answers for it."""
SMALLEST, LARGEST = 4.0, 8.0
"""Of the longest side distance that a level answers for, in strides; without limit at the first and the last level."""


class FCOSDetector(TowerDetector):
    """See the module. Raw outputs: logits (B, A, C), side distances (B, A, 4), 0 and more, and quality (B, A, 1), as
    `edge.artifact.Decode` says."""

    kind: ClassVar[str] = "fcos"
    output_names: ClassVar[tuple[str, ...]] = ("logits", "distances", "quality")
    predictors: ClassVar[tuple[str, ...]] = (*TowerDetector.predictors, "quality")

    longest: Tensor

    def __init__(self, spec: TowerDetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """See `TowerDetector`."""
        super().__init__(spec, weights)
        self.quality = predictor(spec.channels, 1)
        self.register_buffer("longest", _longest(self.options.priors), persistent=False)

    @classmethod
    def own_spec(cls, common: DetectorSpec) -> TowerSpec:
        cells = [[(float(stride), float(stride))] for stride in with_added(common.strides)]
        priors = level_priors(common.image_size, common.strides, cells)
        return TowerSpec(priors=priors, tower_groups=groups(common.channels))

    @property
    def loss_kinds(self) -> Mapping[str, LossKind]:
        return {**super().loss_kinds, "quality": "quality"}

    def located(self, level: Tensor) -> tuple[Tensor, ...]:
        """Side distances (B, A_l, 4), in strides, and the logits of the centre-ness (B, A_l, 1)."""
        found = self.box_tower(level)
        return anchor_rows(F.relu(self.regress(found)), 4), anchor_rows(self.quality(found), 1)

    def boxes(self, raw: Sequence[Tensor]) -> Tensor:
        size, centre = self._places()
        distances = raw[1].float()
        return torch.cat([centre - distances[..., :2] * size, centre + distances[..., 2:] * size], -1)

    def scores(self, raw: Sequence[Tensor]) -> Tensor:
        return (raw[0].float().sigmoid() * raw[2].float().sigmoid()).sqrt()

    def _places(self) -> tuple[Tensor, Tensor]:
        """Strides (A, 2) and centres (A, 2) of all places, x and y in pixels."""
        size = self.priors[:, 2:] - self.priors[:, :2]
        return size, self.priors[:, :2] + size / 2

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Focal loss of the classes; GIoU and cross entropy of the centre-ness where there are objects; all divided by
        the number of places that answer for one."""
        own = tuple(output.float() for output in (self.head(features) if raw is None else raw))
        logits, quality = own[0], own[2][..., 0]
        with torch.no_grad():
            found = [self._assign(*to_tensors(target, logits.device)) for target in targets]
            labels, matched = (torch.stack(part) for part in zip(*found, strict=True))
            objects = labels >= 0
            wanted = torch.zeros_like(logits)
            wanted[objects, labels[objects]] = 1.0
            total = share_of_total(objects.sum().float())
            central = self._centrality(matched)[objects]
        focal = sigmoid_focal_loss(logits, wanted).sum(-1)
        box = generalized_box_iou_loss(self.boxes(own)[objects], matched[objects], reduction="sum")
        centre = F.binary_cross_entropy_with_logits(quality[objects], central, reduction="sum")
        return {"class": focal[labels != IGNORED].sum() / total, "box": box / total, "quality": centre / total}

    def _assign(self, boxes: Tensor, labels: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
        """What each place answers for: the smallest box that it is near the centre of, and whose size suits its level.

        Args:
            boxes: (M, 4) labelled boxes, with labels (M,) and ignore (M,).

        Returns:
            labels (A,): a class, `BACKGROUND`, or `IGNORED` inside an ignored box; and the boxes (A, 4), where there is
            a class.
        """
        size, centre = self._places()
        assigned = torch.full((len(centre),), BACKGROUND, device=centre.device)
        matched = torch.zeros_like(self.priors)
        apart = torch.cat([centre[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centre[:, None]], -1)
        inside = apart.amin(-1) > 0
        if ignore.any():
            assigned[inside[:, ignore].any(1)] = IGNORED
            boxes, labels, apart, inside = boxes[~ignore], labels[~ignore], apart[:, ~ignore], inside[:, ~ignore]
        if len(boxes):
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2
            near = (centre[:, None] - middle).abs().amax(-1) < RADIUS * size[:, :1]
            longest = apart.amax(-1)
            suits = (longest > self.longest[:, :1]) & (longest < self.longest[:, 1:])
            area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
            smallest, which = torch.where(inside & near & suits, area, torch.inf).min(1)
            taken = smallest < torch.inf
            assigned = torch.where(taken, labels[which], assigned)
            matched[taken] = boxes[which[taken]]
        return assigned, matched

    def _centrality(self, matched: Tensor) -> Tensor:
        """(B, A): how central each place is in its box (B, A, 4), 1 in the middle (Tian et al. 2019, equation 3)."""
        size, centre = self._places()
        low, high = (centre - matched[..., :2]) / size, (matched[..., 2:] - centre) / size
        return (torch.minimum(low, high) / torch.maximum(low, high)).prod(-1).sqrt()

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """As of `TowerDetector`; the centre-ness learns towards the teacher's where the boxes do."""
        own = self.head(features) if raw is None else raw
        losses = super().distillation(features, soft, threshold, own)
        strength, trusted, total = self._trusted(soft, threshold)
        wanted = soft[2].detach().float().sigmoid()[..., 0][trusted]
        centre = F.binary_cross_entropy_with_logits(own[2].float()[..., 0][trusted], wanted, reduction="none")
        return {**losses, "quality": (centre * strength[trusted]).sum() / total}


def _longest(priors: Sequence[Priors]) -> Tensor:
    """(A, 2): the longest side distance that each place answers for is above the first and below the second, pixels."""
    rows = []
    for i, level in enumerate(priors):
        stride = level.sizes[0][0]
        low = SMALLEST * stride if i else 0.0
        high = LARGEST * stride if i < len(priors) - 1 else math.inf
        rows.append(torch.tensor([[low, high]]).expand(level.rows * level.columns, 2))
    return torch.cat(rows)


def from_torchvision(model: FCOS, image_size: tuple[int, int], classes: Sequence[str] | None = None) -> FCOSDetector:
    """A torchvision FCOS as a detector of this package, in eval mode, with the same detections.

    torchvision scales an image to its own size and pads it; this detector takes a canvas of `image_size` as it is. On a
    canvas that torchvision leaves alone (no scaling, each side a multiple of 32) both detect the same, up to rounding;
    what torchvision reports without any area is left out.

    Args:
        model: `fcos_resnet50_fpn`, or a model built of the same parts; trained or not.
        image_size: (height, width) of the canvas, multiples of 32.
        classes: their names without the background, which is the model's first column; or of all its columns. By
            default COCO's where there are as many, else numbers.

    Raises:
        AcclimateError: a part of the model is none that this detector has, or `classes` are too many or too few.
    """
    if not isinstance(model, FCOS):
        raise AcclimateError("from_torchvision: takes an FCOS of torchvision's")
    if model.center_sampling_radius != RADIUS or not model.box_coder.normalize_by_size:
        raise AcclimateError(f"from_torchvision: takes distances in strides, and places within {RADIUS} of a centre")
    detector = carried(FCOSDetector, model, image_size, classes)
    copy_tensors(detector.quality, model.head.regression_head.bbox_ctrness)
    return detector
