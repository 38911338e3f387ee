"""What `iou`, `offsets` and `locations` compute, on tensors and with gradients; boxes are (..., 4), xyxy pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from acclimate.boxes import locations as numpy_locations
from acclimate.boxes.offsets import LARGEST_LOG_SCALE, Weights


def locations(image_size: tuple[int, int], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Centres (A, 2) and strides (A,) of `locations.centres`, as tensors of their own."""
    centres, owners = numpy_locations.centres(image_size, strides)
    return torch.tensor(centres), torch.tensor(owners)


def encode(boxes: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
    """Offsets (..., 4) that turn `anchors` into `boxes`: of the centre in anchor sizes, of the size as a logarithm.

    Boxes and anchors are (..., 4) xyxy of positive width and height. Ren et al. 2015 (Faster R-CNN), equation 2.
    """
    size, centre = _size_and_centre(anchors)
    wanted_size, wanted_centre = _size_and_centre(boxes)
    offsets = torch.cat([(wanted_centre - centre) / size, (wanted_size / size).log()], -1)
    return offsets * offsets.new_tensor(weights)


def decode(offsets: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
    """The boxes (..., 4) that `offsets` (..., 4) make of `anchors` (..., 4); `encode`'s inverse. Shapes broadcast."""
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


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """(M, N): intersection over union of boxes (M, 4) and (N, 4)."""
    shared = intersection(a, b)
    return shared / (area(a)[:, None] + area(b)[None] - shared).clamp(min=1e-9)


def paired(a: Tensor, b: Tensor) -> Tensor:
    """(...,): intersection over union of boxes (..., 4), each with its own partner."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    return shared / (area(a) + area(b) - shared).clamp(min=1e-9)


def _size_and_centre(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return size, boxes[..., :2] + 0.5 * size
