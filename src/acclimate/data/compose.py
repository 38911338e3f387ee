"""Views that are made of several images: mosaic, mixup, and objects that are cut out of one image and put into another.

Bochkovskiy et al. 2020 (YOLOv4: mosaic), Zhang et al. 2019 (Bag of freebies: mixup of images with all of their boxes),
Ghiasi et al. 2021 (copy-paste). Each takes canvases of one size with the boxes on them, as `augment.geometry` returns
them, and changes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.data.augment import MIN_VISIBLE, on_canvas
from acclimate.structures import Annotations, Image, Outline

View = tuple[Image, Annotations]
MIXUP = 1.5
"""Both parameters of the Beta distribution of mixup's share, as in the paper on detection."""
CENTRE = (0.25, 0.75)
"""Where the four images of a mosaic meet, in parts of the canvas, along each axis."""


def together(parts: Sequence[Annotations]) -> Annotations:
    """The objects of several parts as those of one image."""
    outlines = None
    if all(part.outlines is not None for part in parts):
        outlines = tuple(outline for part in parts for outline in part.outlines or ())
    visible = None
    if any(part.visible is not None for part in parts):
        visible = np.concatenate([part.boxes if part.visible is None else part.visible for part in parts])
    return Annotations(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.ignore for part in parts]),
        outlines,
        visible,
    )


def mosaic(views: Sequence[View], centre: tuple[int, int]) -> View:
    """Four images around a centre, each as large as its quadrant needs and cut at the far sides.

    Args:
        views: four canvases (H, W, 3) with their boxes: top left, top right, bottom left, bottom right.
        centre: (row, column) where they meet, inside the canvas.
    """
    height, width = views[0][0].shape[:2]
    canvas = np.empty_like(views[0][0])
    parts = []
    for place, (image, own) in enumerate(views):
        lower, right = divmod(place, 2)
        rows, columns = (height - centre[0] if lower else centre[0]), (width - centre[1] if right else centre[1])
        scale = max(rows / height, columns / width)
        inner = max(rows, round(scale * height)), max(columns, round(scale * width))
        small = cv2.resize(image, (inner[1], inner[0]), interpolation=cv2.INTER_AREA)
        # The corner that lies at the centre stays.
        top, left = (0 if lower else inner[0] - rows), (0 if right else inner[1] - columns)
        start = (centre[0] if lower else 0), (centre[1] if right else 0)
        quadrant = canvas[start[0] : start[0] + rows, start[1] : start[1] + columns]
        quadrant[...] = small[top : top + rows, left : left + columns]
        shrunk = own.moved((inner[1] / width, inner[0] / height), (-left, -top))
        parts.append(on_canvas(shrunk, (rows, columns)).moved((1.0, 1.0), (start[1], start[0])))
    return canvas, together(parts)


def mixup(first: View, second: View, share: float) -> View:
    """`share` of the first image and the rest of the second, with the boxes of both."""
    mixed = cv2.addWeighted(first[0], share, second[0], 1 - share, 0)
    return np.asarray(mixed, np.uint8), together([first[1], second[1]])


def copy_paste(onto: View, other: View, chosen: NDArray[np.bool_]) -> View:
    """The chosen objects of `other` on `onto`, pixel by pixel.

    What they cover of an object goes from its outline, and its box becomes that of what is left; one of which less than
    MIN_VISIBLE is left goes.

    Args:
        onto: a canvas and its boxes, with outlines; an object without one keeps its box.
        other: likewise.
        chosen: (N,), which objects of `other`; those without an outline, and ignored ones, stay where they are.
    """
    image, annotations = onto
    size = image.shape[0], image.shape[1]
    outlines = other[1].outlines or ((),) * len(other[1])
    usable = chosen & ~other[1].ignore & np.array([bool(outline) for outline in outlines], bool)
    if not usable.any():
        return onto
    masks = [covered(outlines[row], size) for row in np.flatnonzero(usable)]
    pasted = np.logical_or.reduce(masks)
    canvas = np.where(pasted[..., None], other[0], image)
    boxes, left = annotations.boxes.copy(), list(annotations.outlines or ((),) * len(annotations))
    kept = np.ones(len(annotations), bool)
    for row, outline in enumerate(left):
        if annotations.ignore[row]:
            continue
        own = covered(outline, size) if outline else _filled(boxes[row], size)
        rest = own & ~pasted
        kept[row] = rest.sum() >= MIN_VISIBLE * own.sum()
        if kept[row] and outline and rest.sum() < own.sum():
            left[row] = _outline(rest)
            rows, columns = np.nonzero(rest)
            boxes[row] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    shown = replace(annotations, boxes=boxes, outlines=tuple(left))[kept]
    return np.asarray(canvas, np.uint8), together([shown, other[1][usable]])


def covered(outline: Outline, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) of an outline on a canvas of `size` (height, width)."""
    mask = np.zeros(size, np.uint8)
    for polygon in outline:
        # A pixel's centre is half a pixel from its edges.
        cv2.fillPoly(mask, [np.round(polygon - 0.5).astype(np.int32)], 1)
    return mask.astype(bool)


def _filled(box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = box
    return covered((np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32),), size)


def _outline(mask: NDArray[np.bool_]) -> Outline:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # Contours run through the centres of pixels; a line or a point has no area.
    return tuple(contour[:, 0].astype(np.float32) + 0.5 for contour in contours if len(contour) >= 3)
