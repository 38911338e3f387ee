"""Heads of the second stage: what a box holds, and how to correct it, from the features inside it.

Conventions are torchvision's, so that its checkpoints load: class 0 is the background, class c of the specification is
c + 1 here, and every class (the background included, unused) has four offsets of its own.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS
from acclimate.models.detector import LossKind
from acclimate.models.pooling import CANONICAL_SIDE, pool

BINS = 7
SMOOTH = 1 / 9
"""Where the box loss turns from a square to a line."""


class RoiHead(nn.Module, ABC):
    """What `models/two_stage.py` asks of a second stage.

    A subclass takes the constructor's arguments of `SiblingHead` and has a line in `models.two_stage.HEADS`. All shapes
    are static: every image has K boxes. A box of no area is padding; whatever the head says of it is dropped.

    Attributes:
        outputs: width D of what `instances` returns.
        strides: of the pyramid's levels, pixels.
        canonical: side of the boxes that are pooled from stride 16 (`pooling.levels`); the detector sets it.
        loss_kinds: of each loss that `losses` returns, by its name.
        pyramids: how many pyramids the head reads. With 2, the detector has two backbones, and `features` is the one's
            levels followed by the other's; the first pyramid also serves the proposals.
    """

    outputs: int
    strides: tuple[int, ...]
    canonical: float = CANONICAL_SIDE
    loss_kinds: ClassVar[Mapping[str, LossKind]] = {"roi_class": "class", "roi_box": "box"}
    pyramids: ClassVar[int] = 1

    def pool(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """RoI features (B, K, C, BINS, BINS) of boxes (B, K, 4), from levels (B, C, H_l, W_l)."""
        return pool(features, boxes, self.strides, BINS, self.canonical)

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

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, labels: Tensor, matched: Tensor
    ) -> dict[str, Tensor]:
        """Named scalar losses of sampled boxes; may train branches that `forward` does not run.

        Args:
            features: as in `forward`, with gradients.
            proposals: (B, K, 4).
            labels: (B, K) int64: -1 is left out of every loss, 0 is background, c + 1 an object of class c.
            matched: (B, K, 4), the labelled box of each proposal; anything where the label is not above 0.
        """
        logits, offsets, anchors = self(features, proposals)
        return {"roi_class": class_loss(logits, labels), "roi_box": box_loss(offsets, anchors, labels, matched)}

    @abstractmethod
    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(B, K, D): the last features before the class scores, with gradients; what instance critics look at."""


class SiblingHead(RoiHead):
    """Two fully connected layers, then two sibling layers: class and box (Ren et al. 2015, Lin et al. 2017)."""

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        classes: int,
        hidden: int,
        convolutions: int = 0,
        layers: int = 2,
    ) -> None:
        """Build with random weights.

        Args:
            channels: of the pyramid's levels.
            strides: of the pyramid's levels, pixels.
            classes: how many, the background not counted.
            hidden: width of the fully connected layers.
            convolutions: how many, with BatchNorm, come before those.
            layers: how many fully connected layers there are.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.outputs = hidden
        convs: list[nn.Module] = []
        for _ in range(convolutions):
            convs += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.convolutions = nn.Sequential(*convs)
        self.layers = fully_connected(channels, hidden, layers)
        self.classify, self.regress = predictors(hidden, classes)

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.instances(features, proposals)
        return self.classify(hidden), self.regress(hidden).view(*proposals.shape[:2], -1, 4), proposals

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        pooled = self.pool(features, boxes).flatten(0, 1)
        hidden: Tensor = self.layers(self.convolutions(pooled).flatten(1))
        return hidden.view(*boxes.shape[:2], self.outputs)


def fully_connected(channels: int, hidden: int, layers: int) -> nn.Sequential:
    """`layers` of width `hidden` with ReLU, on flat RoI features of `channels`."""
    widths = [channels * BINS * BINS] + [hidden] * layers
    return nn.Sequential(
        *(module for before, after in itertools.pairwise(widths) for module in (nn.Linear(before, after), nn.ReLU()))
    )


def predictors(hidden: int, classes: int) -> tuple[nn.Linear, nn.Linear]:
    """The last layers, of (classes + 1) scores and (classes + 1) x 4 offsets, which start near zero."""
    classify, regress = nn.Linear(hidden, classes + 1), nn.Linear(hidden, 4 * (classes + 1))
    for layer, spread in ((classify, 0.01), (regress, 0.001)):
        nn.init.normal_(layer.weight, std=spread)
        nn.init.zeros_(layer.bias)
    return classify, regress


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (B, K, C + 1) over the boxes whose label (B, K) is not -1."""
    used = (labels >= 0).sum().clamp(min=1)
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-1, reduction="sum")
    return total / used


def box_loss(offsets: Tensor, anchors: Tensor, labels: Tensor, matched: Tensor, weight: Tensor | None = None) -> Tensor:
    """Smooth L1 of the labelled class's offsets, summed over the objects, divided by the number of boxes used.

    Args:
        offsets: (B, K, C + 1, 4).
        anchors: (B, K, 4), what they are relative to; with gradients where the head moves them.
        labels: (B, K).
        matched: (B, K, 4).
        weight: (B, K), of each object.
    """
    used = (labels >= 0).sum().clamp(min=1)
    image, row = torch.nonzero(labels > 0, as_tuple=True)
    own = offsets[image, row, labels[image, row]].float()
    wanted = tensors.encode(matched[image, row], anchors[image, row].float(), ROI_WEIGHTS)
    loss = F.smooth_l1_loss(own, wanted, beta=SMOOTH, reduction="none").sum(-1)
    return (loss if weight is None else loss * weight[image, row]).sum() / used
