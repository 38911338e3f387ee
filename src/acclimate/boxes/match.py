"""Which boxes of two sets are the same object's, in two ways: greedily from the best down, and best as a whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from acclimate.boxes.iou import pairwise
from acclimate.structures import Detections


def overlaps(a: Detections, b: Detections) -> NDArray[np.float64]:
    """(M, N): intersection over union of detections M and N of one class; 0 for those of different classes."""
    return np.where(a.labels[:, None] == b.labels[None], pairwise(a.boxes, b.boxes), 0.0)


def greedy(overlap: NDArray[np.float64], least: float) -> NDArray[np.int64]:
    """Each row, in its order, takes the free column that it overlaps most, as COCO's protocol matches.

    Args:
        overlap: (M, N), for example the `overlaps` of detections, best first, and labelled boxes.
        least: overlap from which a column is taken.

    Returns:
        (M,) the column of each row; -1 where it has none.
    """
    columns = np.full(len(overlap), -1, np.int64)
    free = np.ones(overlap.shape[1], bool)
    for row, values in enumerate(overlap):
        if free.any():
            column = int(np.where(free, values, -1.0).argmax())
            if values[column] >= least:
                columns[row], free[column] = column, False
    return columns


def best(a: Detections, b: Detections) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The one-to-one matching of boxes of the same class with the largest sum of overlaps (the Hungarian method).

    Returns:
        IoU, row in `a` and row in `b` of each of P pairs, (P,); boxes that do not overlap are no pair.
    """
    overlap = overlaps(a, b)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    meet = overlap[rows, columns] > 0
    rows, columns = rows[meet], columns[meet]
    return overlap[rows, columns], rows, columns
