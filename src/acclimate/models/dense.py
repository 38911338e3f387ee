"""The one-stage, anchor-free detector: any timm backbone, a light FPN, a depthwise head.

Lin et al. 2017 (feature pyramid), Tian et al. 2019 (FCOS: one location, four side distances), Feng et al. 2021
(TOOD: task-aligned assignment), Li et al. 2020 (GFL: quality focal loss), Rezatofighi et al. 2019 (GIoU), Lyu et
al. 2022 (RTMDet: the head's convolutions are shared by the levels, its normalisation is not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from acclimate.boxes import tensors
from acclimate.edge.artifact import Decode
from acclimate.errors import AcclimateError
from acclimate.models import pooling
from acclimate.models.backbones import Backbone, load_weights
from acclimate.models.blocks import CONTEXTS, CONVOLUTIONS
from acclimate.models.channels import Channels, cut, follow, sort
from acclimate.models.detector import ClassRows, Detector, DetectorSpec
from acclimate.models.losses import hardest, iou_loss, quality_focal_loss, repelled, sigmoid_loss
from acclimate.models.normalisations import centre, normalisation
from acclimate.structures import Annotations

TOP_LOCATIONS = 13
CLASS_POWER, IOU_POWER = 1.0, 6.0
BOX_WEIGHT = 2.0
PRIOR = 0.01
START_DISTANCE = 2.0
_START = math.log(math.expm1(START_DISTANCE))


class _Separable(nn.Module):
    """A spatial and a pointwise convolution with one normalisation a level; the convolutions are shared."""

    def __init__(self, channels: int, levels: int, norm: str, conv: str = "depthwise") -> None:
        super().__init__()
        self.depthwise = CONVOLUTIONS[conv](channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.first = nn.ModuleList(normalisation(norm, channels) for _ in range(levels))
        self.second = nn.ModuleList(normalisation(norm, channels) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        x = F.relu(self.first[level](self.depthwise(x)))
        return F.relu(self.second[level](self.pointwise(x)))


class _Ordinary(nn.Module):
    """A 3x3 convolution over all channels with one normalisation a level; the convolution is shared."""

    def __init__(self, channels: int, levels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(normalisation(norm, channels) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        return F.relu(self.norms[level](self.conv(x)))


def _block(spec: DetectorSpec) -> nn.Module:
    """What smooths the levels of the pyramid, and what the towers are made of."""
    levels = len(spec.strides)
    if spec.conv == "ordinary":
        return _Ordinary(spec.channels, levels, spec.norm)
    return _Separable(spec.channels, levels, spec.norm, spec.conv)


class DenseDetector(Detector):
    """See the module. Raw outputs: logits (B, A, C) and side distances (B, A, 4), as `edge.artifact.Decode` says."""

    kind = "dense"
    any_size = True
    imitates = True
    # A quality focal loss is small where student and teacher nearly agree.
    response = 5.0
    losses_known = (
        "cross-entropy", "focal", "quality-focal", "iou", "giou", "diou", "ciou", "smoothing", "negatives", "repulsion",
    )  # fmt: skip
    predictors = ("class_tower", "box_tower", "classify", "regress")
    points: Tensor
    point_strides: Tensor

    def __init__(self, spec: DetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """Build from a specification; `weights` starts the backbone.

        Raises:
            AcclimateError: the backbone is unknown, lacks a level, or the weights do not fit.
        """
        super().__init__()
        self.backbone = self.make_backbone(spec)
        from_where = load_weights(self.backbone, spec.backbone, weights) if weights != "none" else spec.start
        self.spec = spec.model_copy(update={"start": from_where})
        self._normalise_by(self.backbone.mean, self.backbone.std)
        channels, norm = spec.channels, spec.norm
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels, 1, bias=False), normalisation(norm, channels))
            for c in self.backbone.channels
        )
        self.smooth = _block(spec)
        # Where one tower serves both, it is the classes'.
        self.class_tower = nn.ModuleList(_block(spec) for _ in range(spec.depth))
        self.box_tower = nn.ModuleList(_block(spec) for _ in range(0 if spec.shared_tower else spec.depth))
        if spec.context is not None:
            self.context = CONTEXTS[spec.context](channels)
        if norm == "moving":
            for part in (self.lateral, self.smooth, self.class_tower, self.box_tower):
                centre(part)
        self.classify = nn.Conv2d(channels, len(spec.classes), 1)
        self.regress = nn.Conv2d(channels, 4, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.normal_(self.regress.weight, std=0.01)
        with torch.no_grad():
            for layer, start in ((self.classify, -math.log((1 - PRIOR) / PRIOR)), (self.regress, _START)):
                assert layer.bias is not None
                layer.bias.fill_(start)
        points, strides = tensors.locations(spec.image_size, spec.strides)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("point_strides", strides, persistent=False)
        self.finish(weights != "none")

    def make_backbone(self, spec: DetectorSpec) -> Backbone:
        """The backbone, without weights."""
        return Backbone(
            spec.backbone, spec.strides, spec.norm, spec.freeze,
            output_stride=spec.output_stride, drop_path=spec.drop_path,
        )  # fmt: skip

    def finish(self, pretrained: bool) -> None:
        """The end of the construction: cut what `spec.widths` says, and freeze what the options say."""
        if self.spec.widths is not None:
            channels = self.sorted_channels(pretrained)
            if len(self.spec.widths) != len(channels.stages):
                raise AcclimateError(f"spec: widths must be {len(channels.stages)}, for {', '.join(channels.stages)}")
            cut(self, channels.counts(self.spec.widths, self.spec.divisor))
        self.backbone.settle(self.spec.folded)

    def sorted_channels(self, pretrained: bool) -> Channels:
        """Which layers share their channels, from the image to the head; pretrained ones are put in order first.

        A stage is what the backbone computes at a stride; the last is the pyramid with the head.
        """
        levels: Any = self.backbone.body
        ends = {
            f"stride{entry['reduction']}": f"backbone.body.{_name_within(self.backbone.body, entry['module'])}"
            for entry in levels.feature_info.info
            if entry["reduction"] <= max(self.spec.strides)
        }
        channels = follow(self, {**ends, "head": ""})
        if pretrained:
            sort(self, channels, "backbone.")
        return channels

    def features(self, images: Tensor) -> list[Tensor]:
        found = self.backbone(self._normalised(images))
        merged = [lateral(level) for lateral, level in zip(self.lateral, found, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            factor = self.spec.strides[i] // self.spec.strides[i - 1]
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], scale_factor=float(factor), mode="nearest")
        levels = [self.smooth(level, i) for i, level in enumerate(merged)]
        return levels if self.spec.context is None else [self.context(level) for level in levels]

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, A, C) and side distances (B, A, 4) in strides, of all A locations."""
        logits, distances = [], []
        for i, level in enumerate(features):
            c = b = level
            for block in self.class_tower:
                c = block(c, i)
            for block in self.box_tower:
                b = block(b, i)
            if self.spec.shared_tower:
                b = c
            logits.append(self.classify(c).flatten(2))
            distances.append(self.regress(b).flatten(2))
        return torch.cat(logits, 2).transpose(1, 2), torch.cat(distances, 2).transpose(1, 2)

    def boxes(self, distances: Tensor) -> Tensor:
        """Boxes (B, A, 4), xyxy pixels on the canvas, of raw side distances (B, A, 4)."""
        sides = F.softplus(distances.float()) * self.point_strides[:, None]
        return torch.cat([self.points - sides[..., :2], self.points + sides[..., 2:]], -1)

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        logits, distances = self.head(features) if raw is None else raw
        logits, boxes = logits.float(), self.boxes(distances)
        truth = [to_tensors(target, boxes.device) for target in targets]
        with torch.no_grad():
            parts = [
                self._assign(logit.sigmoid(), box, *image)
                for logit, box, image in zip(logits, boxes, truth, strict=True)
            ]
            quality, matched, weight = (torch.stack(part) for part in zip(*parts, strict=True))
            strength = quality.amax(-1)
            total = share_of_total(strength.sum())
        config, positive = self.spec.losses, strength > 0
        kind = "giou" if config.boxes == "default" else config.boxes
        box_loss = (iou_loss(kind, boxes[positive], matched[positive]) * strength[positive]).sum()
        class_loss = (sigmoid_loss(logits, quality, config) * weight[..., None]).sum(-1)
        if config.negatives is not None:
            background = ~positive & (weight > 0)
            class_loss = class_loss * (positive | hardest(class_loss.detach(), background, positive, config.negatives))
        losses = {"class": class_loss.sum() / total, "box": BOX_WEIGHT * box_loss / total}
        if config.repulsion:
            own = [(box[chosen], wanted[chosen]) for box, wanted, chosen in zip(boxes, matched, positive, strict=True)]
            labelled = [box[~ignore] for box, _, ignore in truth]
            losses["repulsion"] = config.repulsion * repelled(own, labelled)
        return losses

    def _assign(
        self, scores: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor, ignore: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Task-aligned assignment of one image (TOOD, section 3.2).

        Args:
            scores: (A, C) class probabilities.
            boxes: (A, 4) predicted boxes.
            truth: (M, 4) labelled boxes, with labels (M,) and ignore (M,).

        Returns:
            quality (A, C), the soft class target; matched (A, 4), the box each location answers for; weight (A,),
            0 where an ignored box says nothing about the class.
        """
        quality, matched, weight = torch.zeros_like(scores), torch.zeros_like(boxes), scores.new_ones(len(scores))
        inside = _inside(self.points, truth)
        if ignore.any():
            weight = weight.masked_fill(inside[ignore].any(0), 0.0)
            truth, labels, inside = truth[~ignore], labels[~ignore], inside[~ignore]
        if not len(truth):
            return quality, matched, weight
        # A box smaller than a stride may hold no location: the nearest ones then answer for it.
        reach = (self.points[None] - (truth[:, None, :2] + truth[:, None, 2:]) / 2).abs().amax(-1)
        candidate = inside | (reach <= 0.75 * self.point_strides[None])
        iou = tensors.pairwise(truth, boxes)
        metric = scores[:, labels].T.pow(CLASS_POWER) * iou.pow(IOU_POWER)
        metric = torch.where(candidate, metric + 1e-9, metric.new_zeros(()))
        count = min(TOP_LOCATIONS, metric.shape[1])
        chosen = torch.zeros_like(metric).scatter_(1, metric.topk(count, 1).indices, 1.0).bool() & candidate
        # A location that several boxes claim answers for the one it overlaps most.
        owner = torch.where(chosen, iou + 1e-9, iou.new_full((), -1.0)).argmax(0)
        own = torch.zeros_like(chosen).scatter_(0, owner[None], True) & chosen
        metric = metric * own
        best = metric.amax(1, keepdim=True).clamp(min=1e-12)
        target = (metric / best * (iou * own).amax(1, keepdim=True)).amax(0)
        taken = own.any(0)
        quality[taken, labels[owner[taken]]] = target[taken].clamp(0, 1)
        matched[taken] = truth[owner[taken]]
        weight = torch.where(taken, torch.ones_like(weight), weight)
        return quality, matched, weight

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Location by location: quality focal loss towards the teacher's probabilities, GIoU towards its boxes.

        Both views share one geometry, so locations correspond. Class terms use every location (a low teacher score
        is evidence of background); box terms only those whose teacher score reaches `threshold`, weighted by it.
        """
        logits, distances = self.head(features) if raw is None else raw
        logits, boxes = logits.float(), self.boxes(distances)
        with torch.no_grad():
            scores, teacher_boxes = soft[0].float().sigmoid(), self.boxes(soft[1])
            strength = scores.amax(-1)
            trusted = strength >= threshold
            total = share_of_total((strength * trusted).sum())
        box = (generalized_box_iou_loss(boxes[trusted], teacher_boxes[trusted]) * strength[trusted]).sum()
        return {"class": quality_focal_loss(logits, scores).sum() / total, "box": BOX_WEIGHT * box / total}

    @torch.no_grad()
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The locations with the best scores, without NMS: neighbours of an object tell a critic the same."""
        logits, distances = self.head(features) if raw is None else raw
        best = logits.amax(-1).topk(min(count, logits.shape[1]), 1).indices[..., None].expand(-1, -1, 4)
        return list(tensors.clip(self.boxes(distances).gather(1, best), self.spec.image_size))

    def class_rows(self) -> dict[str, ClassRows]:
        return {"classify": ClassRows(background=0)}

    def decode_options(self) -> Decode:
        return Decode(strides=self.spec.strides, suppression=self.spec.suppression)

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Average-pooled RoIAlign features; the level is the one whose stride is nearest to a quarter of the side."""
        return pooling.by_side(features, self.spec.strides, boxes)


def _name_within(body: nn.Module, name: str) -> str:
    """The name of one of timm's modules in an extractor, which may have flattened the first dot."""
    return name if any(own == name for own, _ in body.named_modules()) else name.replace(".", "_")


def to_tensors(target: Annotations, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (M, 4), labels (M,) and ignore (M,) of an image."""
    return (
        torch.as_tensor(target.boxes, dtype=torch.float32, device=device).reshape(-1, 4),
        torch.as_tensor(target.labels, dtype=torch.int64, device=device),
        torch.as_tensor(target.ignore, dtype=torch.bool, device=device),
    )


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(M, A): whether a location lies inside a box."""
    low = points[None] - boxes[:, None, :2]
    high = boxes[:, None, 2:] - points[None]
    return torch.minimum(low, high).amin(-1) > 0


def share_of_total(value: Tensor) -> Tensor:
    """This process's share of the sum of a scalar over all processes, which is at least 1.

    A loss divided by it and averaged over the processes is normalised by the global batch, however many there are.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        return value.clamp(min=1.0) / dist.get_world_size()
    return value.clamp(min=1.0)
