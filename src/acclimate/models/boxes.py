"""Arithmetic on boxes (..., 4), xyxy pixels: overlaps, and the offsets that anchor-based detectors regress."""

from __future__ import annotations

import torch
from torch import Tensor

from acclimate.edge.decode import LARGEST_LOG_SCALE, OFFSET_SCALES

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = OFFSET_SCALES
"""Scale of the offsets of the second stage, which the device decodes."""


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Offsets (..., 4) that turn `anchors` into `boxes`: of the centre in anchor sizes, of the size as a logarithm.

    Boxes and anchors are (..., 4) xyxy of positive width and height. Ren et al. 2015 (Faster R-CNN), equation 2.
    """
    size, centre = _size_and_centre(anchors)
    wanted_size, wanted_centre = _size_and_centre(boxes)
    offsets = torch.cat([(wanted_centre - centre) / size, (wanted_size / size).log()], -1)
    return offsets * offsets.new_tensor(weights)


def decode(offsets: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """The boxes (..., 4) that `offsets` (..., 4) make of `anchors` (..., 4); the inverse of `encode`. Shapes
    broadcast."""
    size, centre = _size_and_centre(anchors)
    x, y, w, h = weights
    moved = centre + offsets[..., :2] / offsets.new_tensor((x, y)) * size
    scale = (offsets[..., 2:] / offsets.new_tensor((w, h))).clamp(max=LARGEST_LOG_SCALE)
    half = 0.5 * scale.exp() * size
    return torch.cat([moved - half, moved + half], -1)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut at the border of a canvas of (height, width) pixels."""
    height, width = image_size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def area(boxes: Tensor) -> Tensor:
    """Square pixels (N,) of boxes (N, 4), or of any number of dimensions before the last."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(M, N): square pixels that boxes (M, 4) and (N, 4) share.

    Without the (M, N, 2) temporaries of the general operator, as this is among a step's largest tensors.
    """
    width = torch.minimum(a[:, None, 2], b[None, :, 2]) - torch.maximum(a[:, None, 0], b[None, :, 0])
    height = torch.minimum(a[:, None, 3], b[None, :, 3]) - torch.maximum(a[:, None, 1], b[None, :, 1])
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(M, N): intersection over union of boxes (M, 4) and (N, 4)."""
    shared = intersection(a, b)
    return shared / (area(a)[:, None] + area(b)[None] - shared).clamp(min=1e-9)


def _size_and_centre(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return size, boxes[..., :2] + 0.5 * size
