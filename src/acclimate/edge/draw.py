"""Detections drawn on the image they were found in."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.structures import Detections, Image

_GOLDEN = 0.618033988749895
"""Hues that advance by it stay far apart however many classes there are."""


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class, the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * _GOLDEN) % 1.0, 0.85, 0.95 if label % 2 == 0 else 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: Image, detections: Detections, classes: Sequence[str], masks: Sequence[NDArray[Any]] | None = None
) -> Image:
    """A copy of `image` with boxes, class names and scores; better detections lie on top.

    Args:
        image: (H, W, 3) RGB.
        detections: boxes in its pixels.
        classes: names that the labels index.
        masks: the pixels (H, W) of each detection, painted in its class's colour.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 240))
    size = max(0.36, min(height, width) / 900)
    for index, mask in reversed([*enumerate(masks or ())]):
        covered = np.asarray(mask, bool)
        tint = np.array(colour(int(detections.labels[index])), np.float32)
        canvas[covered] = (0.5 * canvas[covered] + 0.5 * tint).astype(np.uint8)
    # Names after all boxes, so that no line crosses a name.
    for index in reversed(range(len(detections))):
        x1, y1, x2, y2 = (round(float(value)) for value in detections.boxes[index])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour(int(detections.labels[index])), thickness)
    for index in reversed(range(len(detections))):
        x1, y1 = (round(float(value)) for value in detections.boxes[index, :2])
        label = int(detections.labels[index])
        paint = colour(label)
        text = f"{classes[label]} {detections.scores[index]:.2f}"
        text_width, text_height, below = text_size(text, size)
        left = min(max(0, x1), max(0, width - text_width - 2))
        top = y1 - text_height - below - 2
        if top < 0:
            top = min(max(0, y1), max(0, height - text_height - below - 2))
        bottom = top + text_height + below + 2
        cv2.rectangle(canvas, (left, top), (left + text_width + 2, bottom), paint, cv2.FILLED)
        # Rec. 601 luma: black or white, whichever reads better on the class's colour.
        dark = 0.299 * paint[0] + 0.587 * paint[1] + 0.114 * paint[2] > 140
        ink = (0, 0, 0) if dark else (255, 255, 255)
        origin = (left + 1, bottom - below)
        put_text(canvas, text, origin, size, ink)
    return canvas


def text_size(text: str, size: float) -> tuple[int, int, int]:
    """(width, height above the base line, height below it) in pixels of what `put_text` writes."""
    (width, height), below = cv2.getTextSize(_printable(text), cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    return width, height, below


def put_text(image: Image, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int]) -> None:
    """Write a line of text into an image.

    Args:
        image: (H, W, 3), written into.
        text: a line; what the font lacks is replaced.
        place: (x, y) where its base line begins, pixels.
        size: of the font; 1 is some 22 pixels high.
        colour: RGB, 0..255.
    """
    cv2.putText(image, _printable(text), place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _printable(text: str) -> str:
    """`text` without what no font has: OpenCV 5 dies of bytes of a file name that are no UTF-8."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
