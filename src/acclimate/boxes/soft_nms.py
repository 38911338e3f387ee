"""Soft-NMS: a box that overlaps a better one of its class loses score in place of being dropped.

Bodla et al. 2017, "Soft-NMS: Improving object detection with one line of code", section 3. Where objects of a class
stand close to one another, NMS drops the ones behind; here they stay, with less score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from acclimate.boxes.iou import pairwise

Suppression = Literal["nms", "soft-linear", "soft-gaussian"]
"""What becomes of a box that overlaps a better one of its class."""
SIGMA = 0.5
"""Of the Gaussian decay, as in the paper."""

Overlap = NDArray[np.floating[Any]]
Decay = Callable[[Overlap], Overlap]
"""From IoU with a better box, 0..1, to the factor that the score is multiplied by."""


def decay(kind: Suppression, iou: float) -> Decay:
    """The decay of a kind; `iou` is NMS's threshold, 0..1.

    `nms` drops what overlaps by more than `iou`; `soft-linear` multiplies its score by 1 - IoU (equation before 3);
    `soft-gaussian` multiplies every score by exp(-IoU^2 / SIGMA) (equation 3) and has no use for `iou`.
    """
    if kind == "soft-gaussian":
        return lambda overlap: np.exp(-(overlap**2) / SIGMA)
    if kind == "soft-linear":
        return lambda overlap: np.where(overlap > iou, 1 - overlap, 1.0)
    return lambda overlap: np.where(overlap > iou, 0.0, 1.0)


def soft_nms(
    boxes: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    factor: Decay,
    least: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Soft-NMS within each class.

    Args:
        boxes: (N, 4) xyxy pixels.
        scores: (N,).
        labels: (N,).
        factor: how the score of a box decays by its overlap with a better one.
        least: a box whose score falls to it or below is dropped.

    Returns:
        Indices of the boxes that stay and their scores, best first; ties keep their order.
    """
    left = np.asarray(scores, np.float64).copy()
    open_ = np.ones(len(left), np.bool_)
    order, final = [], []
    overlap = np.where(labels[:, None] == labels[None], pairwise(boxes, boxes), 0.0)
    for _ in range(len(left)):
        best = int(np.where(open_, left, -np.inf).argmax())
        if left[best] <= least:
            break
        order.append(best)
        final.append(left[best])
        open_[best] = False
        left = np.where(open_, left * factor(overlap[best]), left)
    return np.array(order, np.int64), np.array(final, np.float32)
