"""RoIAlign (He et al., Mask R-CNN, ICCV 2017) as two matrix products, over a pyramid, with static shapes.

Bilinear sampling on a regular grid separates into rows and columns: with R (bins, H) and C (bins, W) the mean sampling
weights of a box, its pooled features are R F C^T. Products go through every exporter, are deterministic, and on a CPU
and a small canvas they are faster than the operator, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

SAMPLES = 2
"""Sampling points a bin and axis."""
CANONICAL_SIDE, CANONICAL_STRIDE = 224.0, 16.0
"""A box of this side (pixels) is pooled from the level of this stride (Lin et al., FPN, CVPR 2017, equation 1)."""
CANONICAL_CANVAS = 800.0
"""The shorter side of the images that this was chosen for, pixels."""
SMALLEST_SIDE = 7 * CANONICAL_STRIDE
"""Below this a box of the canonical side would have fewer cells a side than bins it is pooled into, 7 in every head."""
LARGEST_PRODUCT = 2**12
"""Above so many cells a level the operator is used in eager mode: products touch every cell for every box."""


def pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    strides: Sequence[int],
    size: int,
    canonical: float = CANONICAL_SIDE,
) -> Tensor:
    """Features of boxes, each from the level that suits its size.

    The same as torchvision's `MultiScaleRoIAlign` with `sampling_ratio=2`. Gradients reach the features and, through
    the sampling weights, the boxes (where a level is small enough for products).

    Args:
        features: (B, C, H_l, W_l) a level, from fine to coarse.
        boxes: (B, K, 4) xyxy pixels.
        strides: of the levels, pixels.
        size: bins a side.
        canonical: see `levels`.

    Returns:
        (B, K, C, size, size).
    """
    level = levels(boxes, strides, canonical)
    if torch.compiler.is_exporting() or (features[0].is_cuda and _products_suit(features[0])):
        pooled = features[0].new_zeros(())
        for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
            mine = (level == i).to(feature.dtype)
            pooled = pooled + roi_align_products(feature, boxes, 1 / stride, size, mine)
        return pooled
    parts, places = [], []
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        image, row = (level == i).nonzero(as_tuple=True)
        if len(row):
            one = _by_image if _products_suit(feature) else _operator
            parts.append(one(feature, boxes[image, row], image, 1 / stride, size))
            places.append(image * boxes.shape[1] + row)
    if not parts:
        return features[0].new_zeros(*boxes.shape[:2], features[0].shape[1], size, size)
    flat = torch.cat(parts)[torch.cat(places).argsort()]
    return flat.view(*boxes.shape[:2], *flat.shape[1:])


def side_by_side(levels: Sequence[tuple[Tensor, int]], boxes: Sequence[Tensor]) -> Tensor:
    """Average-pooled RoIAlign features of every level, side by side, for levels whose widths differ: (N, sum of C_l).

    Args:
        levels: maps (B, C_l, H_l, W_l) and their strides in pixels.
        boxes: of each image, (N_b, 4) xyxy in pixels; N is their number over the batch.
    """
    rois = [box.to(levels[0][0].device, torch.float32) for box in boxes]
    pooled = [roi_align(level.float(), rois, 7, 1 / stride, 2, aligned=True).mean((2, 3)) for level, stride in levels]
    return torch.cat(pooled, 1)


def by_side(features: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor]) -> Tensor:
    """Average-pooled RoIAlign features (N, C) of one level a box: whose stride is nearest to a quarter of its side.

    Args:
        features: maps (B, C, H_l, W_l).
        strides: of the levels, pixels.
        boxes: of each image, (N_b, 4) xyxy in pixels; N is their number over the batch.
    """
    # Coordinates stay in full precision: in bfloat16 a pixel far from the origin is lost.
    flat = torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)]).to(features[0].device).float()
    side = ((flat[:, 3] - flat[:, 1]) * (flat[:, 4] - flat[:, 2])).clamp(min=1).sqrt()
    level = (side[:, None] / (4 * flat.new_tensor(strides))).log().abs().argmin(1)
    out = flat.new_zeros(len(flat), features[0].shape[1])
    for i, stride in enumerate(strides):
        rows = (level == i).nonzero()[:, 0]
        pooled = roi_align(features[i].float(), flat[rows], 7, 1 / stride, 2, aligned=True).mean((2, 3))
        out = out.index_copy(0, rows, pooled)
    return out


def canonical_side(image_size: tuple[int, int]) -> float:
    """Of a canvas (height, width): the side of a box, in pixels, that fills as much of it as in the paper.

    224 px of an image of 800 would send every box of a small canvas to the finest level. It is `SMALLEST_SIDE` at
    least: a box is not pooled from fewer cells than there are bins for the sake of a coarser level.
    """
    return max(SMALLEST_SIDE, CANONICAL_SIDE * min(image_size) / CANONICAL_CANVAS)


def levels(boxes: Tensor, strides: Sequence[int], canonical: float = CANONICAL_SIDE) -> Tensor:
    """(B, K): index of the level of boxes (B, K, 4), by the rule of FPN; `strides` are powers of 2.

    A box of the side `canonical` (pixels) is from the level of stride `CANONICAL_STRIDE`, one twice as large from the
    next coarser one, as far as there are any.
    """
    # The size without a gradient: which level serves a box is no smooth function of it.
    size = (boxes[..., 2:] - boxes[..., :2]).detach().float()
    side = (size[..., 0] * size[..., 1]).clamp(min=1e-12).sqrt()
    finest, coarsest = math.log2(strides[0]), math.log2(strides[-1])
    # The small constant is torchvision's, so that a box exactly at a boundary goes where it goes there.
    exponent = (math.log2(CANONICAL_STRIDE) + (side / canonical).log2() + 1e-6).floor()
    return exponent.nan_to_num().clamp(finest, coarsest).sub(finest).long()


def roi_align_products(feature: Tensor, boxes: Tensor, scale: float, size: int, weight: Tensor | None = None) -> Tensor:
    """RoIAlign of one level.

    Args:
        feature: (B, C, H, W); fastest in channels-last memory.
        boxes: (B, K, 4) xyxy pixels of the image.
        scale: pixels of the image to cells of the feature map.
        size: bins a side.
        weight: (B, K), a factor on each box's result.

    Returns:
        (B, K, C, size, size).
    """
    batch, channels, height, width = feature.shape
    count = boxes.shape[1]
    rows = sampling_weights(boxes[..., 1::2] * scale, height, size).to(feature.dtype)
    columns = sampling_weights(boxes[..., 0::2] * scale, width, size).to(feature.dtype)
    if weight is not None:
        rows = rows * weight[..., None, None]
    # Rows first: (K bins, H) @ (H, W C), then each box's columns (bins, W) @ (W, C), all without a copy of the map.
    flat = feature.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    strips = rows.reshape(batch, count * size, height) @ flat
    cells = columns[:, :, None] @ strips.view(batch, count, size, width, channels)
    return cells.permute(0, 1, 4, 2, 3)


def sampling_weights(spans: Tensor, cells: int, size: int) -> Tensor:
    """Mean bilinear weight that each bin gives each cell of one axis.

    Args:
        spans: (..., 2) start and end on the axis, in cells; below 1 cell they are widened to 1 from the start.
        cells: how many the axis has; cell i is at coordinate i.
        size: bins.

    Returns:
        (..., size, cells). A sample further than 1 cell outside counts 0, one nearer takes the border's value.
    """
    spans = spans.float()
    start, length = spans[..., :1], (spans[..., 1:] - spans[..., :1]).clamp(min=1.0)
    points = (torch.arange(size * SAMPLES, device=spans.device) + 0.5) / (size * SAMPLES)
    at = start + length * points
    inside = (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1)
    tent = (1 - (at[..., None] - torch.arange(cells, device=spans.device)).abs()).clamp(min=0) * inside[..., None]
    return tent.view(*tent.shape[:-2], size, SAMPLES, cells).mean(-2)


def _products_suit(feature: Tensor) -> bool:
    return feature.shape[2] * feature.shape[3] <= LARGEST_PRODUCT


def _by_image(feature: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int) -> Tensor:
    """(N, C, size, size) of boxes (N, 4), grouped by the images (N,) that they are of.

    What the products of one image make stays in a processor's cache, and each box is pooled from its own level alone.
    """
    counts = torch.bincount(image, minlength=len(feature)).tolist()
    pooled = [
        roi_align_products(feature[i : i + 1], mine[None], scale, size)[0]
        for i, mine in enumerate(torch.split(boxes, counts))
        if len(mine)
    ]
    return torch.cat(pooled)


def _operator(feature: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int) -> Tensor:
    listed = torch.cat([image[:, None].float(), boxes.float()], 1)
    pooled: Tensor = roi_align(feature.float(), listed, size, scale, SAMPLES)
    return pooled.to(feature.dtype)
