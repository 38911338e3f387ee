"""Reading images and putting them on the network's canvas, the same way in training and on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from acclimate.errors import AcclimateError
from acclimate.structures import Detections, Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""File name endings that count as images, in lower case."""


def read_image(path: str | Path) -> Image:
    """Decode an image file; see `decode_image`.

    Raises:
        AcclimateError: the file is missing, empty, truncated or no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise AcclimateError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Image:
    """Decode what is in an image file to (H, W, 3) RGB uint8, whatever its mode.

    Grey becomes three equal channels, alpha is dropped, and 16-bit is scaled from its own range (0 to its
    maximum) to 0..255, as thermal cameras use a small part of 16 bits. EXIF orientation is not applied: labels
    are drawn on stored pixels.

    Args:
        data: the file.
        name: what an error calls it.

    Raises:
        AcclimateError: it is empty, truncated or no image.
    """
    if data[:3] == b"\xff\xd8\xff":
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")  # type: ignore[no-any-return]
        except ValueError as error:
            if "truncated" in str(error).lower() or "premature" in str(error).lower():
                raise AcclimateError(f"{name}: the JPEG is truncated; copy the file again or remove it") from None
    image = None
    if data:
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise AcclimateError(f"{name}: not a readable image; remove it or copy it again")
    return _to_rgb(image)


def _to_rgb(image: NDArray[np.integer[Any] | np.floating[Any]]) -> Image:
    if image.dtype != np.uint8:
        values = np.nan_to_num(image.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        image = (values * (255.0 / max(float(values.max()), 1e-9))).clip(0, 255).astype(np.uint8)
    if image.ndim == 2:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    code = cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image was put on the canvas: scaled by `scale`, at the top left."""

    scale: float
    height: int
    width: int

    def to_image(self, detections: Detections) -> Detections:
        """Detections on the canvas, in the pixels of the original image and clipped to it; empty boxes go."""
        boxes = detections.boxes / np.float32(self.scale)
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, self.width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, self.height)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes[kept], detections.labels[kept], detections.scores[kept])


def letterbox(image: Image, size: tuple[int, int], fill: int = 114) -> tuple[Image, Letterbox]:
    """Scale `image` to fit `size` (height, width) with its aspect kept; fill the right and lower rest.

    Returns:
        The canvas, (H, W, 3) uint8, and how to go back.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    if inner != (width, height):
        image = np.asarray(
            cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8
        )
    if image.shape[:2] == size:
        return np.ascontiguousarray(image), Letterbox(scale, height, width)
    canvas = np.full((*size, 3), fill, np.uint8)
    canvas[: inner[1], : inner[0]] = image
    return canvas, Letterbox(scale, height, width)


def to_input(canvas: Image) -> NDArray[np.float32]:
    """The network's input, (1, 3, H, W) float32, 0..255, from a canvas (H, W, 3) uint8."""
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], dtype=np.float32)
