"""In which frame the boxes of a labelled set lie: on the pictures as they are seen, or as they are stored.

A file can be stored turned, with an EXIF tag that says how to turn it back. Labelling tools mostly draw on what is
seen. Where an index gives a picture's size, the size tells; where it cannot, as of a square picture or of one that
stands on its head, the other pictures of the index do; and where there is no size, or nothing to tell, `orientation`
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from acclimate.edge.headers import Header, Orientation
from acclimate.edge.images import turned_back, turned_points
from acclimate.structures import Outline

Size = tuple[int, int]
Box = tuple[float, float, float, float]


def frames(claimed: Sequence[Size | None], headers: Sequence[Header], asked: Orientation) -> list[Orientation | None]:
    """For each picture the frame of its boxes; None where the claimed size is that of neither frame.

    Args:
        claimed: (height, width) that the labels say; None where they say none.
        headers: of the files, in the same order.
        asked: what decides where nothing else does.
    """
    if all(size is None for size in claimed):
        return [asked] * len(claimed)
    fitting = [_fitting(size, header) for size, header in zip(claimed, headers, strict=True)]
    told = _told(fitting, headers)
    most = max(_FRAMES, key=lambda frame: (told.count(frame), frame == asked))
    chosen: list[Orientation | None] = []
    for fits in fitting:
        if fits is None:
            chosen.append(asked)
        elif len(fits) == 1:
            chosen.append(next(iter(fits)))
        else:
            chosen.append(most if fits else None)
    return chosen


def undecided(claimed: Sequence[Size | None], headers: Sequence[Header]) -> int:
    """How many turned pictures' sizes do not tell their frame, where those of the others tell of both."""
    turned = [(size, header) for size, header in zip(claimed, headers, strict=True) if header.orientation != 1]
    fitting = [_fitting(size, header) for size, header in turned]
    told = set(_told(fitting, [header for _, header in turned]))
    return sum(fits == _BOTH for fits in fitting) if len(told) > 1 else 0


def _fitting(size: Size | None, header: Header) -> AbstractSet[Orientation] | None:
    """The frames that a claimed size may be of; None where there is none."""
    if size is None:
        return None
    if header.orientation < 5 and size == (header.height, header.width):
        return _BOTH
    return {frame for frame in _FRAMES if header.size(frame) == size}


def _told(fitting: Sequence[AbstractSet[Orientation] | None], headers: Sequence[Header]) -> list[Orientation]:
    """The frames of the turned pictures whose sizes tell it."""
    return [
        next(iter(fits))
        for fits, header in zip(fitting, headers, strict=True)
        if header.orientation != 1 and fits is not None and len(fits) == 1
    ]


_FRAMES: tuple[Orientation, Orientation] = ("apply", "stored")
_BOTH: frozenset[Orientation] = frozenset(_FRAMES)


def moved(box: Box, outline: Outline, header: Header, frame: Orientation, wanted: Orientation) -> tuple[Box, Outline]:
    """A box and its polygons, moved from one frame of an image to another.

    Args:
        box: xyxy in pixels of `frame`.
        outline: its polygons, likewise.
        header: of the image file: its size and its EXIF orientation.
        frame: in which the box is drawn.
        wanted: in which it is to be.
    """
    if frame == wanted or header.orientation == 1:
        return box, outline
    orientation = header.orientation if wanted == "apply" else turned_back(header.orientation)
    size = header.size(frame)
    corners = turned_points(np.array(box, np.float64).reshape(2, 2), size, orientation)
    left, top, right, bottom = (float(value) for value in (*corners.min(axis=0), *corners.max(axis=0)))
    # An inverted box stays one: it is told, and left out, where boxes are checked.
    if box[2] < box[0] or box[3] < box[1]:
        left, top, right, bottom = right, bottom, left, top
    return (left, top, right, bottom), tuple(turned_points(polygon, size, orientation) for polygon in outline)
