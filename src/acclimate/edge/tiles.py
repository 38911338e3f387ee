"""Tiled inference: a picture cut into overlapping tiles, and what was found in each put together again.

Where the same object is found in two tiles, or in a tile and in the whole picture, one box stays. A box that a tile's
border cuts is worth less than any that is whole, whatever its score: the neighbour sees all of the object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acclimate.boxes.iou import area, pairwise, shared
from acclimate.edge.artifact import Tiles
from acclimate.edge.images import Letterbox
from acclimate.errors import AcclimateError
from acclimate.structures import Detections, Image

MOST = 256
"""Tiles of one picture."""
AT_BORDER = 2.0
"""Pixels of the picture from a tile's border within which a box counts as cut by it."""
INSIDE = 0.6
"""Share of the smaller of two boxes of different tiles that lies in the other from which they are one object."""

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One input of the network: a canvas, and what of the picture it shows."""

    canvas: NDArray[Any]
    """As whoever cut the picture has prepared it: on the device (1, 3, H, W) float32, 0..255."""
    placed: Letterbox
    window: Window
    picture: tuple[int, int]
    """(height, width) of the whole picture."""


def tiles_of(text: str) -> Tiles:
    """The tiles that `480x640` (height x width) or `480x640+0.3` (with an overlap of 0.3) means.

    Raises:
        AcclimateError: it means none.
    """
    size, plus, overlap = text.partition("+")
    try:
        height, width = (int(side) for side in size.lower().split("x"))
        return Tiles(size=(height, width), overlap=float(overlap)) if plus else Tiles(size=(height, width))
    except ValueError:
        raise AcclimateError(
            f"--tiles {text}: write height x width in pixels, from 32 on, and the overlap: 480x640 or 480x640+0.3"
        ) from None


def windows(height: int, width: int, tiles: Tiles | None) -> list[Window]:
    """The tiles of a picture of `height` x `width` pixels, row by row; the whole of it first where that is asked for,
    and it alone where it is no larger than a tile.

    Raises:
        AcclimateError: there would be more than `MOST`.
    """
    whole = (0, 0, width, height)
    if tiles is None or (height <= tiles.size[0] and width <= tiles.size[1]):
        return [whole]
    rows, columns = _starts(height, tiles.size[0], tiles.overlap), _starts(width, tiles.size[1], tiles.overlap)
    if len(rows) * len(columns) > MOST:
        raise AcclimateError(
            f"a picture of {width} x {height} pixels has {len(rows) * len(columns)} tiles of {tiles.size[1]} x "
            f"{tiles.size[0]}; choose larger ones ({MOST} at most)"
        )
    cut = [
        (left, top, min(left + tiles.size[1], width), min(top + tiles.size[0], height))
        for top in rows
        for left in columns
    ]
    return [whole, *cut] if tiles.whole else cut


def cut(image: Image, tiles: Tiles | None, prepare: Callable[[Image], tuple[NDArray[Any], Letterbox]]) -> list[Piece]:
    """What the network sees of a picture: all of it, or the tiles that it is cut into.

    Args:
        image: (H, W, 3).
        tiles: None cuts nothing.
        prepare: from a part of it to a canvas, and how to go back.

    Raises:
        AcclimateError: see `windows`.
    """
    height, width = image.shape[:2]
    found = []
    for left, top, right, bottom in windows(height, width, tiles):
        canvas, placed = prepare(image[top:bottom, left:right])
        found.append(Piece(canvas, placed, (left, top, right, bottom), (height, width)))
    return found


def together(pieces: Sequence[Piece], found: Sequence[Detections], iou: float, most: int) -> Detections:
    """What was found in all pieces of a picture, best first, in its pixels.

    Args:
        pieces: of one picture.
        found: in each, in pixels of its window.
        iou: overlap from which two boxes of a class are one object.
        most: detections that are kept.
    """
    if len(pieces) == 1:
        return found[0]
    moved = [one.boxes + np.array(piece.window[:2] * 2, np.float32) for piece, one in zip(pieces, found, strict=True)]
    boxes = np.concatenate(moved)
    labels = np.concatenate([one.labels for one in found])
    scores = np.concatenate([one.scores for one in found])
    of = np.repeat(np.arange(len(pieces)), [len(one) for one in found])
    cut = np.concatenate([_cut(piece, one) for piece, one in zip(pieces, moved, strict=True)])
    order = np.lexsort((-scores, cut))
    kept: list[int] = []
    for candidate in order:
        rivals = np.array([k for k in kept if labels[k] == labels[candidate] and of[k] != of[candidate]], np.int64)
        if len(rivals):
            alike = pairwise(boxes[candidate][None], boxes[rivals])[0] > iou
            # Of a small object inside a large one of its class neither is cut, and both stay.
            both = area(shared(boxes[candidate], boxes[rivals]))
            smaller = np.minimum(area(boxes[candidate]), area(boxes[rivals]))
            part = cut[candidate] & (both / np.maximum(smaller, 1e-9) > INSIDE)
            if (alike | part).any():
                continue
        kept.append(int(candidate))
    best = np.array(sorted(kept, key=lambda k: -scores[k])[:most], np.int64)
    return Detections(boxes[best], labels[best], scores[best])


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where tiles along a side begin."""
    if side <= tile:
        return [0]
    step = max(1.0, tile * (1 - overlap))
    count = math.ceil((side - tile) / step) + 1
    return [round(number * (side - tile) / (count - 1)) for number in range(count)]


def _cut(piece: Piece, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of boxes (N, 4), in pixels of the picture, end at a border of the tile that is none of the picture."""
    height, width = piece.picture
    left, top, right, bottom = piece.window
    cut = np.zeros(len(boxes), np.bool_)
    borders = (left > 0, top > 0, right < width, bottom < height)
    for side, (place, is_inner) in enumerate(zip(piece.window, borders, strict=True)):
        if is_inner:
            cut |= np.abs(boxes[:, side] - place) <= AT_BORDER
    return cut
