"""Second stages that treat the two tasks apart: TSD, and the alternatives that its paper compares it with.

Song et al., Revisiting the Sibling Head in Object Detector, CVPR 2020 (task-aware spatial disentanglement, TSD). Where
a class is seen best and where a border is are different places, so each task learns to look at its own: the box at the
proposal moved as a whole, the class at its bins moved one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS
from acclimate.config import TwoStageConfig
from acclimate.models.detector import LossKind
from acclimate.models.pooling import CANONICAL_SIDE, SAMPLES, levels
from acclimate.models.roi_heads import (
    BINS,
    RoiHead,
    Sample,
    Setting,
    SiblingHead,
    Truth,
    box_loss,
    class_loss,
    fully_connected,
    predictors,
)

GAMMA = 0.1
"""Offsets are this fraction of the proposal's size times what the layers say."""
MARGIN = 0.2
"""By how much the head is to beat the sibling; the paper's ablations' value (the released code has 0.3)."""

FETCHED = 32
"""Boxes whose cells an exported graph holds at a time."""
CACHED = 2**19
"""Numbers that stay in a core's cache between two operators. Up to so many, ONNX Runtime sums weighted cells faster
than it goes through one small product a bin."""


class SeparateLayersHead(RoiHead):
    """One RoI feature, and fully connected layers of each task's own (`separate-fcs`)."""

    class_bins: ClassVar[int] = BINS
    """Of what the class is read from, a side."""
    box_narrower: ClassVar[int] = 1
    """How many times as wide as the box's layers those of the class are."""

    def __init__(self, setting: Setting, layers: int = 2) -> None:
        """Build with random weights.

        Args:
            setting: what for; the paper's layers have a width of 1024.
            layers: how many fully connected ones each task has before its last one.
        """
        super().__init__(setting)
        narrow = max(1, setting.hidden // self.box_narrower)
        self.class_layers = fully_connected(setting.channels, setting.hidden, layers, self.class_bins)
        self.box_layers = fully_connected(setting.channels, narrow, layers)
        self.classify, self.regress = predictors(setting.hidden, setting.classes, narrow)

    def pooled(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each task looks at, and what the box offsets are relative to.

        Returns:
            (B, K, channels, bins, bins) for the class and for the box, and boxes (B, K, 4).
        """
        found = self.pool(features, proposals)
        return found, found, proposals

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._predict(*self.pooled(features, proposals))

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        hidden: Tensor = self.class_layers(self.pooled(features, boxes)[0].flatten(2))
        return hidden

    def _predict(self, for_class: Tensor, for_box: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.classify(self.class_layers(for_class.flatten(2)))
        offsets = self.regress(self.box_layers(for_box.flatten(2)))
        return logits, offsets.unflatten(-1, (-1, 4)), anchors


class SeparateBackboneHead(SeparateLayersHead):
    """Nothing is shared: the class is read from the first of two backbones with pyramids, the box from the second."""

    pyramids: ClassVar[int] = 2

    def pooled(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `SeparateLayersHead.pooled`."""
        count = len(self.strides)
        for_class = self.pool(features[:count], proposals)
        return for_class, self.pool(features[count:], proposals), proposals

    def instances(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        pooled = self.pool(features[: len(self.strides)], boxes)
        hidden: Tensor = self.class_layers(pooled.flatten(2))
        return hidden


class DisentangledHead(SeparateLayersHead):
    """TSD. The ordinary sibling head trains beside it, and neither `forward` nor what is exported runs it.

    The offsets of a box are relative to the moved proposal; whether it is an object is decided where it was.
    """

    loss_kinds: Mapping[str, LossKind] = {
        "roi_class": "class",
        "roi_box": "box",
        "sibling_class": "class",
        "sibling_box": "box",
        "constraint_class": "class",
        "constraint_box": "box",
    }

    offset_bins: ClassVar[int] = BINS
    """Of the proposal's features that the offsets are read from, a side."""
    offset_width: ClassVar[int] = 256
    """Of the layers that the offsets come from."""
    samples: ClassVar[int] = SAMPLES
    """Of a bin that has moved, a side."""

    @classmethod
    def arguments(cls, options: TwoStageConfig) -> dict[str, int | float | None]:
        return {"margin": options.constraint}

    def __init__(self, setting: Setting, layers: int = 2, margin: float | None = MARGIN) -> None:
        """Build with random weights.

        Args:
            setting: as of `SeparateLayersHead.__init__`.
            layers: likewise.
            margin: of the progressive constraint; None leaves it out.
        """
        super().__init__(setting, layers)
        self.margin = margin
        width = self.offset_width
        self.shared = nn.Sequential(nn.Linear(setting.channels * self.offset_bins**2, width), nn.ReLU())
        self.move_box = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.move_bins = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * self.class_bins**2))
        # As in the released code: Kaiming's with a = 1, a gain of 1, where a ReLU's would be sqrt(2). Through the three
        # layers that lead to an offset, the first offsets would be 2.8 times as large.
        for layer in (*self.shared, *self.move_box, *self.move_bins):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
        self.sibling = SiblingHead(setting, layers=layers)

    def pooled(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `SeparateLayersHead.pooled`."""
        return self._disentangle(features, proposals, self.pool(features, proposals))

    def offsets(self, still: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """How far each task moves, in pixels, x and y (equations 3 and 5).

        Args:
            still: (B, K, channels, BINS, BINS), the features of the proposals where they are.
            proposals: (B, K, 4).

        Returns:
            (B, K, 2) of the whole proposal, for the box; (B, K, class_bins, class_bins, 2) of its bins, for the class.
        """
        shared = self.shared(self._read(still).flatten(2))
        size = proposals[..., 2:] - proposals[..., :2]
        box = GAMMA * self.move_box(shared).to(size.dtype) * size
        bins = self.move_bins(shared).to(size.dtype).unflatten(-1, (self.class_bins, self.class_bins, 2))
        return box, GAMMA * bins * size[:, :, None, None]

    def _read(self, still: Tensor) -> Tensor:
        """What the offsets are read from, (B, K, channels, offset_bins, offset_bins)."""
        return still

    def losses(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth] = ()) -> dict[str, Tensor]:
        """The head's own losses, the sibling's, and the progressive constraint between them."""
        proposals, labels, matched, _ = sample
        still = self.pool(features, proposals)
        logits, offsets, anchors = self._predict(*self._disentangle(features, proposals, still))
        hidden = self.sibling.layers(still.flatten(2))
        beside_logits = self.sibling.classify(hidden)
        beside_offsets = self.sibling.regress(hidden).unflatten(-1, (-1, 4))
        losses = {
            **self.losses_of((logits, offsets, anchors), sample, truth),
            "sibling_class": class_loss(beside_logits, labels, self.criteria),
            "sibling_box": box_loss(beside_offsets, proposals, labels, matched, kind=self.criteria.boxes),
        }
        if self.margin is not None:
            losses["constraint_class"] = class_constraint(logits, beside_logits, labels, self.margin)
            image, row = torch.nonzero(labels > 0, as_tuple=True)
            at = image, row, labels[image, row]
            losses["constraint_box"] = box_constraint(
                _decoded(offsets[at], anchors[image, row]),
                _decoded(beside_offsets[at], proposals[image, row]),
                matched[image, row],
                self.margin,
            )
        return losses

    def _disentangle(
        self, features: Sequence[Tensor], proposals: Tensor, still: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        box, bins = self.offsets(still, proposals)
        whole = box[:, :, None, None].expand(-1, -1, BINS, BINS, -1)
        if self.class_bins == BINS:
            # At once, as the levels are put below each other only once then.
            twice, moved = proposals.repeat(1, 2, 1), torch.cat([bins, whole], 1)
            both = pool_moved(features, twice, moved, self.strides, self.canonical, self.samples)
            for_class, for_box = both.chunk(2, 1)
        else:
            for_class, for_box = (
                pool_moved(features, proposals, moved, self.strides, self.canonical, self.samples)
                for moved in (bins, whole)
            )
        return for_class, for_box, proposals + box.repeat(1, 1, 2)


class LightDisentangledHead(DisentangledHead):
    """TSD for small devices (`disentangled-light`), where its two further poolings and its layers cost as much as a
    good part of the network. None of this is in the paper.

    The class is read from 4 x 4 bins, and so are the offsets (from means of the proposal's bins, by layers a quarter as
    wide); a bin that has moved is one sample, in its middle, in place of four; and the layers of the box, which has no
    classes to tell apart, are half as wide.
    """

    class_bins: ClassVar[int] = (BINS + 1) // 2
    box_narrower: ClassVar[int] = 2
    offset_bins: ClassVar[int] = (BINS + 1) // 2
    offset_width: ClassVar[int] = 64
    samples: ClassVar[int] = 1

    def _read(self, still: Tensor) -> Tensor:
        means = F.avg_pool2d(still.flatten(0, 1), 2, ceil_mode=True, count_include_pad=False)
        return means.reshape(*still.shape[:2], *means.shape[1:])


def class_constraint(logits: Tensor, sibling: Tensor, labels: Tensor, margin: float) -> Tensor:
    """By how much the probability of the true class is short of the sibling's plus a margin (equation 7).

    The margin is at most what is left to 1, so a sibling that is certain asks for no more than certainty. Mean over the
    boxes whose label is not -1, the background's included; the sibling is detached.

    Args:
        logits: (B, K, C + 1), of the head.
        sibling: (B, K, C + 1).
        labels: (B, K), as in `RoiHead.losses`.
        margin: in probability.
    """
    own, beside = (
        x.float().softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] for x in (logits, sibling.detach())
    )
    short = F.relu(beside - own + (1 - beside).clamp(max=margin))
    used = labels >= 0
    return (short * used).sum() / used.sum().clamp(min=1)


def box_constraint(boxes: Tensor, sibling: Tensor, matched: Tensor, margin: float) -> Tensor:
    """By how much the overlap with the labelled box is short of the sibling's plus a margin (equation 8).

    Capped and detached as in `class_constraint`. Mean over the objects; 0 where there is none.

    Args:
        boxes: (N, 4), the head's, xyxy pixels.
        sibling: (N, 4).
        matched: (N, 4), the labelled ones.
        margin: in intersection over union.
    """
    own, beside = tensors.paired(boxes, matched), tensors.paired(sibling.detach(), matched)
    short = F.relu(beside - own + (1 - beside).clamp(max=margin))
    return short.sum() / max(1, len(short))


def pool_moved(
    features: Sequence[Tensor],
    boxes: Tensor,
    offsets: Tensor,
    strides: Sequence[int],
    canonical: float = CANONICAL_SIDE,
    samples: int = SAMPLES,
) -> Tensor:
    """RoIAlign whose bins are moved, each by its own offset (deformable RoI pooling, Dai et al., ICCV 2017).

    Each bin is the average of `samples` x `samples` bilinear samples, so with two and no offset it is `pooling.pool`,
    and torchvision's `roi_align(..., sampling_ratio=samples, aligned=False)`. Gradients reach the features and the
    offsets. The level is the one that suits the box where it was.

    Args:
        features: (B, C, H_l, W_l) a level, from fine to coarse.
        boxes: (B, K, 4) xyxy pixels.
        offsets: (B, K, size, size, 2) pixels, x and y; row and column of the bin.
        strides: of the levels, pixels.
        canonical: see `pooling.levels`.
        samples: of a bin, a side.

    Returns:
        (B, K, C, size, size).
    """
    level = levels(boxes, strides, canonical)
    sample = _sample_by_gather if torch.compiler.is_exporting() else _sample_by_grid
    return sample(features, level, _points(features, boxes, offsets, strides, level, samples))


Points = list[tuple[Tensor, Tensor]]
"""In x and in y: where to sample, (B, K, size, size, samples), and whether that counts."""


def _points(
    features: Sequence[Tensor], boxes: Tensor, offsets: Tensor, strides: Sequence[int], level: Tensor, samples: int
) -> Points:
    """Where to sample, in x and in y; a bin's samples are all pairs of its x and its y.

    Returns:
        For each axis, cells of the box's level, (B, K, size, size, samples), put on the border where they are beyond
        it; and whether they count, of the same shape.
    """
    size = offsets.shape[2]
    scale = (1 / boxes.new_tensor(strides))[level]
    fractions = (torch.arange(size * samples, device=boxes.device, dtype=boxes.dtype) + 0.5) / (size * samples)
    found = []
    for axis in (0, 1):
        start = boxes[..., axis] * scale
        length = (boxes[..., axis + 2] * scale - start).clamp(min=1.0)
        regular = (start[..., None] + length[..., None] * fractions).view(*boxes.shape[:2], size, samples)
        regular = regular[:, :, :, None] if axis else regular[:, :, None]
        moved = regular + (offsets[..., axis] * scale[..., None, None])[..., None]
        cells = boxes.new_tensor([feature.shape[3 - axis] for feature in features])[level][:, :, None, None, None]
        found.append((moved.clamp(min=0).minimum(cells - 1), (moved >= -1) & (moved <= cells)))
    return found


def _sample_by_grid(features: Sequence[Tensor], level: Tensor, points: Points) -> Tensor:
    """`grid_sample` on one map: the levels below each other, and a row of zeros for the samples that do not count."""
    (x, in_x), (y, in_y) = points
    batch, count, size = x.shape[:3]
    width = max(feature.shape[3] for feature in features)
    sheets = [F.pad(feature, (0, width - feature.shape[3])) for feature in features]
    sheet = F.pad(torch.cat(sheets, 2), (0, 0, 0, 1)).to(x.dtype)
    height = sheet.shape[2]
    first = list(itertools.accumulate((feature.shape[2] for feature in features[:-1]), initial=0))
    top = x.new_tensor(first)[level][:, :, None, None, None, None]
    counts = in_y[..., :, None] & in_x[..., None, :]
    y = torch.where(counts, y[..., :, None] + top, height - 1.0)
    x = x[..., None, :].expand_as(y)
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / (height - 1) - 1], -1)
    found = F.grid_sample(sheet, grid.reshape(batch, count * size * size, -1, 2), align_corners=True)
    bins = found.mean(-1).view(batch, -1, count, size, size)
    return bins.transpose(1, 2).to(features[0].dtype)


def _sample_by_gather(features: Sequence[Tensor], level: Tensor, points: Points) -> Tensor:
    """The same by fetching the cells around the samples, all channels at once, and one product a bin.

    ONNX Runtime's GridSample goes through the points anew for every channel and takes several times as long.
    """
    cells = torch.cat([feature.flatten(2) for feature in features], 2).transpose(1, 2)
    batch, total, channels = cells.shape
    shapes = [feature.shape[2:] for feature in features]
    first = list(itertools.accumulate((height * width for height, width in shapes[:-1]), initial=0))
    rights, bottoms, widths, starts = (
        torch.tensor(values, device=level.device)[level][:, :, None, None, None]
        for values in ([s[1] - 1 for s in shapes], [s[0] - 1 for s in shapes], [s[1] for s in shapes], first)
    )
    indices, weights = [], []
    for (at, counts), last in zip(points, (rights, bottoms), strict=True):
        below = at.floor()
        part = (at - below).to(cells.dtype)
        near = below.long()
        share = counts.to(cells.dtype) / counts.shape[-1]
        indices.append(torch.cat([near, (near + 1).minimum(last)], -1))
        weights.append(torch.cat([share * (1 - part), share * part], -1))
    starts = starts + total * torch.arange(batch, device=level.device).view(-1, 1, 1, 1, 1)
    rows = ((indices[1] * widths + starts)[..., :, None] + indices[0][..., None, :]).flatten(4)
    weight = (weights[1][..., :, None] * weights[0][..., None, :]).flatten(4)
    cells = cells.reshape(batch * total, channels)
    # A few boxes at a time, as what is fetched is sixteen times what is made of it.
    parts = zip(*(torch.split(each, FETCHED, 1) for each in (rows, weight)), strict=True)
    weigh = _by_sum if FETCHED * channels * math.prod(weight.shape[2:]) <= CACHED else _by_product
    found = torch.cat([weigh(cells[row], one) for row, one in parts], 1)
    return found.permute(0, 1, 4, 2, 3)


def _by_product(cells: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None, :] @ cells)[..., 0, :]


def _by_sum(cells: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None] * cells).sum(-2)


def _decoded(offsets: Tensor, anchors: Tensor) -> Tensor:
    return tensors.decode(offsets.float(), anchors.float(), ROI_WEIGHTS)
