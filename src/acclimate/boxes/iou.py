"""Areas and overlaps of boxes (..., 4), xyxy pixels, in numpy; `tensors` has the same for training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating[Any]]


def area(boxes: Boxes) -> NDArray[np.floating[Any]]:
    """(...,): square pixels; 0 for a box whose corners are the wrong way round."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clip(min=0)
    product: NDArray[np.floating[Any]] = sides[..., 0] * sides[..., 1]
    return product


def shared(a: Boxes, b: Boxes) -> Boxes:
    """The box (..., 4) that two boxes have in common, shapes broadcast; of no `area` where that is nothing."""
    return np.concatenate(
        [np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1, dtype=np.result_type(a, b)
    )


def pairwise(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """(M, N): intersection over union of boxes (M, 4) and (N, 4); 0 for two boxes of no area."""
    first, second = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    inter = area(shared(first, second))
    overlap: NDArray[np.float64] = inter / np.maximum(area(first) + area(second) - inter, 1e-9)
    return overlap
