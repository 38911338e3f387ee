"""Regions of a frame that do not count: a clock that the camera draws, a pavement, the neighbour's garden.

What lies in them is neither reported nor looked at for drift. A region is a polygon in shares of the frame's width and
height, so it holds whatever the size of the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.errors import AcclimateError
from acclimate.structures import Detections

LARGE = 0.1
"""Share of the frame from which what is left is another picture than the one that an artifact's reference is of."""
_FINE = 16
"""Bits behind the point of the corners that are drawn."""

Polygon = tuple[tuple[float, float], ...]
"""Corners, x and y from 0 to 1."""


def polygon(text: str) -> Polygon:
    """The region that `0,0 0.3,0 0.3,0.1` means: corners x,y, with spaces between them.

    Raises:
        AcclimateError: it has fewer than three corners, no area, or numbers outside of 0 to 1.
    """
    try:
        corners = tuple((float(x), float(y)) for x, y in (corner.split(",") for corner in text.split()))
    except ValueError:
        corners = ()
    inside = all(0 <= value <= 1 for corner in corners for value in corner)
    if len(corners) < 3 or not inside or not cv2.contourArea(np.array(corners, np.float32)) > 0:
        raise AcclimateError(
            f"{text!r}: a region is three corners x,y or more in shares of the frame, from 0 to 1: '0,0 0.3,0 0.3,0.1'"
        )
    return corners


class Regions:
    """Polygons whose inside does not count.

    Attributes:
        share: of the frame that they cover, 0..1.
    """

    def __init__(self, polygons: Sequence[Polygon] = ()) -> None:
        """Leave out `polygons`, which may overlap."""
        self.polygons = tuple(polygons)
        self.share = 1 - float(self.kept((512, 512)).mean()) if self.polygons else 0.0

    def __bool__(self) -> bool:
        return bool(self.polygons)

    def kept(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Which pixels (H, W) of a picture of `size` (height, width) count: those that no region touches."""
        return _kept(self.polygons, size)

    def outside(self, detections: Detections, size: tuple[int, int]) -> Detections:
        """The detections whose box has its centre in no region, of a frame of `size` (height, width)."""
        if not self.polygons or not len(detections):
            return detections
        centres = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2 / np.array(size[::-1], np.float32)
        contours = [np.array(corners, np.float32) for corners in self.polygons]
        counts = [
            all(cv2.pointPolygonTest(contour, (float(x), float(y)), False) < 0 for contour in contours)
            for x, y in centres
        ]
        return detections[np.array(counts)]


@lru_cache(maxsize=64)
def _kept(polygons: tuple[Polygon, ...], size: tuple[int, int]) -> NDArray[np.bool_]:
    left_out = np.zeros(size, np.uint8)
    for corners in polygons:
        # Pixel centres lie at half of a pixel.
        places = (np.array(corners) * size[::-1] - 0.5) * 2**_FINE
        cv2.fillPoly(left_out, [places.round().astype(np.int32)], 1, shift=_FINE)
    # A pixel of a thumbnail that is made of some inside counts as inside.
    kept = np.asarray(cv2.dilate(left_out, np.ones((3, 3), np.uint8)) == 0)
    kept.setflags(write=False)
    return kept
