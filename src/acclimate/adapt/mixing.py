"""Source images with a part of a target image pasted in: both domains in one picture, with the boxes of both.

Yun et al. 2019 (CutMix) paste a random rectangle. Mattolin et al. 2023 (ConfMix) paste the quarter of the target image
where the detector is surest, so that what is learnt there is most likely right; boxes are the source's labels outside
of it and the teacher's inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acclimate.boxes.iou import area, shared
from acclimate.data.augment import MIN_SIDE_PX, MIN_VISIBLE
from acclimate.structures import Annotations, Detections

Part = tuple[int, int, int, int]
"""Left, top, right and lower edge of a rectangle in whole pixels."""


def confident_quarter(found: Detections, size: tuple[int, int]) -> Part:
    """The quarter of an image of (height, width) whose detections have the best mean score (ConfMix, section 3.2).

    A detection belongs to the quarter that its centre is in. Where nothing is found it is the first.
    """
    height, width = size
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    right, low = centres[:, 0] >= width // 2, centres[:, 1] >= height // 2
    quarter = 2 * low + right
    means = [float(found.scores[quarter == i].mean()) if (quarter == i).any() else 0.0 for i in range(4)]
    row, column = divmod(int(np.argmax(means)), 2)
    return (
        column * (width // 2), row * (height // 2),
        width if column else width // 2, height if row else height // 2,
    )  # fmt: skip


def random_part(size: tuple[int, int], generator: torch.Generator | None = None) -> Part:
    """A rectangle of the image's aspect whose share of its area is uniform in 0..1 (CutMix, equations 1 and 2).

    The share is at least a tenth and at most a half, so that both domains show something.
    """
    height, width = size
    share, across, down = torch.rand(3, generator=generator).tolist()
    side = (0.1 + 0.4 * share) ** 0.5
    w, h = max(1, round(side * width)), max(1, round(side * height))
    left, top = round(across * (width - w)), round(down * (height - h))
    return left, top, left + w, top + h


def paste(
    source: Tensor,
    source_boxes: Sequence[Annotations],
    target: Tensor,
    target_boxes: Sequence[Annotations],
    parts: Sequence[Part],
) -> tuple[Tensor, list[Annotations]]:
    """Source images with a part of a target image in the same place, and the boxes of both.

    Of the target's boxes what lies in the part is kept, clipped to it; of the source's what the part leaves visible.
    What is left of a box has to be enough, as in `augment.on_canvas`.

    Args:
        source: (B, 3, H, W).
        source_boxes: of each.
        target: the same shape.
        target_boxes: of each, those to ignore marked.
        parts: of each, within the image.

    Returns:
        New images (B, 3, H, W) and their boxes.
    """
    mixed, boxes = source.clone(), []
    for i, part in enumerate(parts):
        left, top, right, low = part
        mixed[i, :, top:low, left:right] = target[i, :, top:low, left:right]
        boxes.append(_joined(_outside(source_boxes[i], part), _inside(target_boxes[i], part)))
    return mixed, boxes


def _inside(annotations: Annotations, part: Part) -> Annotations:
    boxes = annotations.boxes
    clipped = shared(boxes, np.array(part, np.float32))
    return _visible(annotations, clipped, area(clipped))


def _outside(annotations: Annotations, part: Part) -> Annotations:
    """The source's boxes: one whose side is covered over its whole length ends where the part begins.

    One of which the part covers more than a little in another way is ignored, as no box says what is left of it.
    """
    boxes = annotations.boxes
    covered = shared(boxes, np.array(part, np.float32))
    left_over = area(boxes) - area(covered)
    clipped = boxes.copy()
    whole = np.zeros(len(boxes), bool)
    touched = area(covered) > 0
    for axis, other in ((0, 1), (1, 0)):
        across = touched & (part[other] <= boxes[:, other]) & (part[other + 2] >= boxes[:, other + 2])
        for end, limit in ((axis, axis + 2), (axis + 2, axis)):
            # The side at `end` is covered, the opposite one is not: the box now ends at the part's far edge.
            low_end = end == axis
            side = part[axis] <= boxes[:, axis] if low_end else part[axis + 2] >= boxes[:, axis + 2]
            ends = across & side & ~whole
            clipped[ends, end] = part[limit]
            whole |= ends
    found = _visible(annotations, clipped, left_over)
    partly = (~whole & (area(covered) > MIN_VISIBLE * area(boxes)))[_is_visible(annotations.boxes, clipped, left_over)]
    return Annotations(found.boxes, found.labels, found.ignore | partly)


def _is_visible(boxes: np.ndarray, clipped: np.ndarray, left_over: np.ndarray) -> np.ndarray:
    sides = (clipped[:, 2:] - clipped[:, :2]).min(axis=1) if len(boxes) else np.zeros(0)
    return np.asarray((sides >= MIN_SIDE_PX) & (left_over >= MIN_VISIBLE * area(boxes)))


def _visible(annotations: Annotations, clipped: np.ndarray, left_over: np.ndarray) -> Annotations:
    kept = _is_visible(annotations.boxes, clipped, left_over)
    return Annotations(clipped[kept], annotations.labels[kept], annotations.ignore[kept])


def _joined(first: Annotations, second: Annotations) -> Annotations:
    return Annotations(
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.ignore, second.ignore]),
    )
