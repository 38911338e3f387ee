"""Heads of the second stage: what a box holds, and how to correct it, from the features inside it.

Conventions are torchvision's, so that its checkpoints load: class 0 is the background, class c of the specification is
c + 1 here, and every class (the background included, unused) has four offsets of its own.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS, Weights
from acclimate.config import TwoStageConfig
from acclimate.config.losses import LossConfig
from acclimate.models.detector import LossKind
from acclimate.models.losses import hardest, iou_loss, repelled, softmax_loss
from acclimate.models.pooling import CANONICAL_SIDE, pool
from acclimate.structures import Annotations

BINS = 7
PLAIN = LossConfig()
SMOOTH = 1 / 9
"""Where the box loss turns from a square to a line."""
IOU_WEIGHT = 10.0
"""Of a box loss on overlaps, which is smaller than smooth L1: as mmdetection's Faster R-CNN with GIoU has it."""
OBJECT, BACKGROUND = 0.7, 0.3
"""Overlap from which an anchor is an object, and below which it is background."""
ROI_OBJECT = 0.5
"""Overlap from which a proposal is an object; all others are background."""
INSIDE_IGNORED = 0.5
"""Share of a box's area inside an ignored region from which the box is left out of the losses."""
LEAST = 1e-6
"""Probability below which a class's logarithm goes no further."""
SMALLEST = 1e-3
"""Pixels; proposals and labelled boxes below it are dropped."""


class Truth:
    """The labelled boxes of an image, and what it says about anchors and proposals.

    `boxes` and `visible` (M, 4) and `labels` (M,) are those that count, `ignored` (I, 4) the regions that no
    loss is taken in.
    """

    def __init__(self, target: Annotations, device: torch.device) -> None:
        boxes = torch.as_tensor(target.boxes, dtype=torch.float32).reshape(-1, 4)
        visible = boxes if target.visible is None else torch.as_tensor(target.visible, dtype=torch.float32)
        ignore = torch.as_tensor(target.ignore, dtype=torch.bool)
        labels = torch.as_tensor(target.labels, dtype=torch.int64)
        real = ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST).all(-1)
        kept = real & ~ignore
        self.outlines = [target.outlines[row] for row in kept.nonzero()[:, 0].tolist()] if target.outlines else []
        self.boxes = boxes[kept].to(device)
        self.visible = visible[kept].to(device)
        self.labels = labels[kept].to(device)
        self.ignored = boxes[real & ignore].to(device)

    def match_anchors(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N,): 1 object, 0 background, -1 neither; and the boxes (N, 4) that they answer for."""
        if not len(self.boxes):
            labels = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
            return self._without_ignored(labels, anchors), torch.zeros_like(anchors)
        overlap = tensors.pairwise(self.boxes, anchors)
        best, which = overlap.max(0)
        labels = torch.where(best >= OBJECT, 1, torch.where(best < BACKGROUND, 0, -1))
        # Each box has its best anchors, however small their overlap.
        highest = overlap.amax(1, keepdim=True)
        labels[((overlap == highest) & (highest > 0)).any(0)] = 1
        return self._without_ignored(labels, anchors), self.boxes[which]

    def match_proposals(self, proposals: Tensor, least: float = ROI_OBJECT) -> tuple[Tensor, Tensor]:
        """Labels (N,): c + 1 an object of class c, 0 background, -1 neither; and which boxes they answer for (N,).

        `least` is the overlap from which a proposal is an object.
        """
        if len(self.boxes):
            best, which = tensors.pairwise(self.boxes, proposals).max(0)
            labels = torch.where(best >= least, self.labels[which] + 1, 0)
        else:
            labels, which = torch.zeros(2, len(proposals), dtype=torch.int64, device=proposals.device)
        labels[(proposals[:, 2:] - proposals[:, :2]).amin(-1) < SMALLEST] = -1
        return self._without_ignored(labels, proposals), which

    def boxes_of(self, which: Tensor) -> Tensor:
        """(N, 4): the labelled boxes of these numbers (N,); zeros where the image has none."""
        return self.boxes[which] if len(self.boxes) else self.boxes.new_zeros(len(which), 4)

    def visible_of(self, which: Tensor) -> Tensor:
        """(N, 4): as `boxes_of`, the part of each object that is not hidden; all of it where nobody said."""
        return self.visible[which] if len(self.boxes) else self.boxes.new_zeros(len(which), 4)

    def _without_ignored(self, labels: Tensor, boxes: Tensor) -> Tensor:
        if not len(self.ignored):
            return labels
        inside = tensors.intersection(self.ignored, boxes).amax(0)
        return torch.where((labels == 0) & (inside > INSIDE_IGNORED * tensors.area(boxes)), -1, labels)


class Sample(NamedTuple):
    """Boxes that something is learnt of, and what they are.

    Attributes:
        boxes: (B, K, 4) xyxy pixels.
        labels: (B, K) int64: -1 is left out of every loss, 0 is background, c + 1 an object of class c.
        matched: (B, K, 4), the labelled box that each answers for; anything where the label is not above 0.
        objects: (B, K), which of its image's labelled boxes that is.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor
    objects: Tensor


class Setting(NamedTuple):
    """What a head is built for.

    Attributes:
        channels: of the pyramid's levels.
        strides: of the pyramid's levels, pixels.
        classes: how many, the background not counted.
        hidden: width of the fully connected layers.
        canonical: side of the boxes that are pooled from stride 16 (`pooling.levels`).
        criteria: what the losses are made of.
    """

    channels: int
    strides: tuple[int, ...]
    classes: int
    hidden: int
    canonical: float = CANONICAL_SIDE
    criteria: LossConfig = PLAIN


class RoiHead(nn.Module, ABC):
    """What `models/two_stage.py` asks of a second stage.

    A subclass takes a `Setting`, then arguments of its own (`arguments`), and has a line in `models.two_stage.HEADS`.
    All shapes are static: every image has K boxes. A box of no area is padding; whatever the head says of it is
    dropped.

    Attributes:
        outputs: width D of what `instances` returns.
        strides: see `Setting`.
        canonical: likewise.
        criteria: likewise.
        loss_kinds: of each loss that `losses` returns, by its name.
        pyramids: how many pyramids the head reads. With 2, the detector has two backbones, and `features` is the one's
            levels followed by the other's; the first pyramid also serves the proposals.
        repels: whether its losses know `LossConfig.repulsion`.
    """

    loss_kinds: Mapping[str, LossKind] = {"roi_class": "class", "roi_box": "box"}
    pyramids: ClassVar[int] = 1
    repels: ClassVar[bool] = True

    def __init__(self, setting: Setting, outputs: int | None = None) -> None:
        """Build with random weights.

        Args:
            setting: what for.
            outputs: see the class; None means `setting.hidden`.
        """
        super().__init__()
        self.strides = setting.strides
        self.outputs = setting.hidden if outputs is None else outputs
        self.canonical = setting.canonical
        self.criteria = setting.criteria

    def pool(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """RoI features (B, K, C, BINS, BINS) of boxes (B, K, 4), from levels (B, C, H_l, W_l)."""
        return pool(features, boxes, self.strides, BINS, self.canonical)

    @classmethod
    def arguments(cls, options: TwoStageConfig) -> dict[str, int | float | None]:
        """Further arguments of the constructor, as the specification keeps them."""
        return {}

    def begin(self, options: TwoStageConfig) -> None:
        """What a new head takes from elsewhere, before it is trained."""

    @abstractmethod
    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is exported: no dropped branch, no loop over boxes, nothing of a shape that depends on values.

        Args:
            features: (B, C, H_l, W_l) a level, from fine to coarse.
            proposals: (B, K, 4) xyxy pixels on the canvas, without gradients.

        Returns:
            logits (B, K, C + 1), class 0 the background; offsets (B, K, C + 1, 4) with `boxes.ROI_WEIGHTS`; and the
            boxes (B, K, 4) that the offsets are relative to: the proposals, or where the head has moved them to.
        """

    def losses(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth] = ()) -> dict[str, Tensor]:
        """Named scalar losses of sampled boxes; may train branches that `forward` does not run.

        Args:
            features: as in `forward`, with gradients.
            sample: the proposals.
            truth: of each image, for a head that looks at more than what each proposal is.
        """
        return self.losses_of(self(features, sample.boxes), sample, truth)

    def losses_of(
        self, outputs: tuple[Tensor, Tensor, Tensor], sample: Sample, truth: Sequence[Truth]
    ) -> dict[str, Tensor]:
        """Named scalar losses of what `forward` returns.

        Args:
            outputs: of `forward`.
            sample: as in `losses`.
            truth: of each image.
        """
        (logits, offsets, anchors), (_, labels, matched, _) = outputs, sample
        losses = {
            "roi_class": class_loss(logits, labels, self.criteria),
            "roi_box": box_loss(offsets, anchors, labels, matched, kind=self.criteria.boxes),
        }
        if self.criteria.repulsion:
            images = zip(offsets, anchors, labels, matched, strict=True)
            own = [(located(move, anchor, label), box[label > 0]) for move, anchor, label, box in images]
            losses["roi_repulsion"] = self.criteria.repulsion * repelled(own, [one.boxes for one in truth])
        return losses

    @torch.no_grad()
    def each_loss(self, features: Sequence[Tensor], sample: Sample) -> Tensor:
        """(B, K): the class and box loss of each proposal, without gradients; features (B, C, H_l, W_l) a level."""
        proposals, labels, matched, _ = sample
        logits, offsets, anchors = self(features, proposals)
        loss = softmax_loss(logits.flatten(0, 1).float(), labels.flatten(), self.criteria).view_as(labels)
        row = labels.clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
        objects = labels > 0
        own = offsets.gather(2, row)[:, :, 0][objects].float()
        loss[objects] += move_loss(own, anchors[objects].float(), matched[objects])
        # A head may have moved a proposal out of the canvas, where nothing is left to encode against.
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0)

    def refined(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth]) -> list[Sample]:
        """What a mask branch learns of: the sampled boxes (B, K, 4), or where a head's stages move them to."""
        return [sample]

    @abstractmethod
    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(B, K, D): the last features before the class scores, with gradients; what instance critics look at."""


class SiblingHead(RoiHead):
    """Two fully connected layers, then two sibling layers: class and box (Ren et al. 2015, Lin et al. 2017)."""

    def __init__(self, setting: Setting, convolutions: int = 0, layers: int = 2) -> None:
        """Build with random weights.

        Args:
            setting: what for.
            convolutions: how many, with BatchNorm, come before the fully connected layers.
            layers: how many fully connected layers there are.
        """
        super().__init__(setting)
        channels = setting.channels
        convs: list[nn.Module] = []
        for _ in range(convolutions):
            convs += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.convolutions = nn.Sequential(*convs)
        self.layers = fully_connected(channels, setting.hidden, layers)
        self.classify, self.regress = predictors(setting.hidden, setting.classes)

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.instances(features, proposals)
        return self.classify(hidden), self.regress(hidden).view(*proposals.shape[:2], -1, 4), proposals

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        pooled = self.pool(features, boxes).flatten(0, 1)
        hidden: Tensor = self.layers(self.convolutions(pooled).flatten(1))
        return hidden.view(*boxes.shape[:2], self.outputs)


def fully_connected(channels: int, hidden: int, layers: int, bins: int = BINS) -> nn.Sequential:
    """Linear layers with ReLU, on flat RoI features.

    Args:
        channels: of the features.
        hidden: width of each layer.
        layers: how many.
        bins: of the features, a side.
    """
    widths = [channels * bins * bins] + [hidden] * layers
    return nn.Sequential(
        *(module for before, after in itertools.pairwise(widths) for module in (nn.Linear(before, after), nn.ReLU()))
    )


def predictors(hidden: int, classes: int, box_hidden: int | None = None) -> tuple[nn.Linear, nn.Linear]:
    """The last layers, of (classes + 1) scores and (classes + 1) x 4 offsets, which start near zero; `box_hidden` is
    the width of what the offsets are read from, where that is another."""
    classify, regress = nn.Linear(hidden, classes + 1), nn.Linear(box_hidden or hidden, 4 * (classes + 1))
    for layer, spread in ((classify, 0.01), (regress, 0.001)):
        nn.init.normal_(layer.weight, std=spread)
        nn.init.zeros_(layer.bias)
    return classify, regress


def class_loss(logits: Tensor, labels: Tensor, criteria: LossConfig = PLAIN) -> Tensor:
    """Mean class loss of logits (B, K, C + 1) over the boxes whose label (B, K) is not -1; of the background only the
    hardest boxes, where `criteria` says so."""
    used = labels >= 0
    if criteria == PLAIN:
        # One call of torch, so that earlier runs repeat to the bit.
        total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-1, reduction="sum")
        return total / used.sum().clamp(min=1)
    loss = softmax_loss(logits.flatten(0, 1).float(), labels.flatten(), criteria).view_as(labels)
    if criteria.negatives is not None:
        used = (labels > 0) | hardest(loss.detach(), labels == 0, labels > 0, criteria.negatives)
    return (loss * used).sum() / used.sum().clamp(min=1)


def box_loss(
    offsets: Tensor,
    anchors: Tensor,
    labels: Tensor,
    matched: Tensor,
    weight: Tensor | None = None,
    kind: str = "default",
) -> Tensor:
    """The loss of the labelled class's box, summed over the objects, divided by the number of boxes used.

    Args:
        offsets: (B, K, C + 1, 4).
        anchors: (B, K, 4), what they are relative to; with gradients where the head moves them.
        labels: (B, K).
        matched: (B, K, 4).
        weight: (B, K), of each object.
        kind: smooth L1 of the offsets by default, or a loss on overlaps (`LossConfig.boxes`).
    """
    used = (labels >= 0).sum().clamp(min=1)
    image, row = torch.nonzero(labels > 0, as_tuple=True)
    own = offsets[image, row, labels[image, row]].float()
    loss = move_loss(own, anchors[image, row].float(), matched[image, row], kind)
    return (loss if weight is None else loss * weight[image, row]).sum() / used


def move_loss(
    own: Tensor, base: Tensor, wanted: Tensor, kind: str = "default", weights: Weights = ROI_WEIGHTS
) -> Tensor:
    """(N,): the loss of each object's offsets.

    Args:
        own: (N, 4), the offsets.
        base: (N, 4), the boxes that they move.
        wanted: (N, 4), the labelled boxes.
        kind: as in `box_loss`.
        weights: that the offsets are divided by.
    """
    if kind == "default":
        target = tensors.encode(wanted, base, weights)
        return F.smooth_l1_loss(own, target, beta=SMOOTH, reduction="none").sum(-1)
    return IOU_WEIGHT * iou_loss(kind, tensors.decode(own, base, weights), wanted)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """(B, K, C + 1): logits whose softmax is the mean of the probabilities of several (B, K, C + 1)."""
    return torch.stack([one.float().softmax(-1) for one in logits]).mean(0).clamp(min=LEAST).log()


def located(offsets: Tensor, anchors: Tensor, labels: Tensor) -> Tensor:
    """The boxes (P, 4) that the labelled class's offsets make of one image's objects.

    Offsets are (K, C + 1, 4), anchors (K, 4), labels (K,); P have a label above 0.
    """
    rows = (labels > 0).nonzero()[:, 0]
    return tensors.decode(offsets[rows, labels[rows]].float(), anchors[rows].float(), ROI_WEIGHTS)
