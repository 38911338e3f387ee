"""The offsets that anchor-based detectors regress, in numpy; `tensors` has the same for training, and the inverse."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
"""What a first stage's offsets are divided by."""
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What those of a second stage and of SSD are divided by (Girshick, Fast R-CNN, 2015, as released)."""
LARGEST_LOG_SCALE = math.log(1000 / 16)
"""A box is at most this much larger than the one it is relative to, so that exp cannot overflow."""

Weights = tuple[float, float, float, float]


def decode(
    offsets: NDArray[np.float32], anchors: NDArray[np.float32], weights: Weights = ROI_WEIGHTS
) -> NDArray[np.float32]:
    """The boxes (N, 4) that `offsets` (N, 4) make of `anchors` (N, 4): Ren et al. 2015 (Faster R-CNN), equation 2.

    What is not finite stays so, without a warning.
    """
    scaled = offsets / np.array(weights, np.float32)
    with np.errstate(all="ignore"):
        size = anchors[:, 2:] - anchors[:, :2]
        centre = anchors[:, :2] + 0.5 * size + scaled[:, :2] * size
        half = 0.5 * np.exp(np.minimum(scaled[:, 2:], np.float32(LARGEST_LOG_SCALE))) * size
    return np.concatenate([centre - half, centre + half], axis=1)


def clip(boxes: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (..., 4) cut at the border of an image of (height, width) pixels."""
    height, width = image_size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
