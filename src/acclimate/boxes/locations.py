"""Where on the network's input its outputs look from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def grid(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of a level: as a padded convolution makes them, the last one may reach over the border."""
    return math.ceil(image_size[0] / stride), math.ceil(image_size[1] / stride)


def count(image_size: tuple[int, int], strides: Sequence[int]) -> int:
    """How many locations all levels have."""
    return sum(math.prod(grid(image_size, stride)) for stride in strides)


@lru_cache(maxsize=8)
def centres(image_size: tuple[int, int], strides: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres (A, 2) as x, y in pixels and strides (A,) of all locations, level by level, row by row.

    Both are kept and not to be changed.
    """
    points, owners = [], []
    for stride in strides:
        rows, columns = grid(image_size, stride)
        y, x = np.mgrid[:rows, :columns].reshape(2, -1)
        points.append((np.stack([x, y], axis=1) + 0.5) * stride)
        owners.append(np.full(rows * columns, stride))
    made = np.concatenate(points).astype(np.float32), np.concatenate(owners).astype(np.float32)
    for array in made:
        array.flags.writeable = False
    return made
