"""Reading images and putting them on the network's canvas, the same way in training and on the device."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from acclimate.edge.headers import UNREADABLE, Header, Orientation, open_regular, parse_header
from acclimate.errors import AcclimateError
from acclimate.structures import Detections, Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
"""File name endings that count as images, in lower case."""

PERCENTILES = (0.1, 99.9)
"""Of a picture of more than 8 bits: what becomes black and white unless a range is given. One hot pixel, or a row of
them, is beyond."""
_SAMPLE = 1 << 20
"""So many values, evenly spread, make the percentiles of a picture."""
_NO_VALUE = frozenset({0.0, 999.0, 9999.0, 99999.0, 32767.0, 32768.0, 65535.0})
_NO_VALUE_FROM = 1e6
"""Floating-point numbers that stand for "no value" where they are alone, of either sign; and from which on any may."""
SET_IMAGES, _SET_SAMPLE = 256, 1 << 14
"""Of a set, so many pictures, evenly spread, and so many values of each."""
_ROWS_AT_ONCE = 1 << 22
"""Values that are scaled at once, which bounds the memory that it takes."""


class Reading(BaseModel):
    """How files become pictures. It belongs to a detector: it was trained on pictures that were read so.

    The default leaves every picture of 8 bits without an EXIF tag as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    orientation: Orientation = "apply"
    """Whether the EXIF tag turns a picture, as every viewer does, or stored pixels are taken."""
    intensity: tuple[float, float] | None = None
    """What becomes black and white in pictures of more than 8 bits, in their own units; None takes each picture's own
    `PERCENTILES`."""

    @model_validator(mode="after")
    def _rising(self) -> Reading:
        if self.intensity is not None and not self.intensity[0] < self.intensity[1]:
            raise ValueError("intensity: the first value becomes black and the second white, so it must be larger")
        return self


DEFAULT = Reading()


def read_image(path: str | Path, reading: Reading = DEFAULT) -> Image:
    """Decode an image file to (H, W, 3) RGB uint8; see `decode_image`.

    Examples:
        >>> from acclimate import read_image
        >>> read_image("scenes/fog-test/images/000000.jpg").shape
        (96, 128, 3)

    Raises:
        AcclimateError: the file is missing, no regular file, or see `decode_image`.
    """
    return decode_image(_bytes(Path(path)), str(path), reading)


def read_reduced(
    path: str | Path, canvas: tuple[int, int], reading: Reading = DEFAULT
) -> tuple[Image, tuple[int, int]]:
    """`read_image`, of a JPEG in the smallest of the scales that its decoder has (eighths) that fills the canvas.

    The inverse cosine transform of 8 x 8 pixels is computed at fewer points, which leaves the highest frequencies out:
    less work than to decode all pixels and shrink them, and nearly the same canvas.

    Args:
        path: the file.
        canvas: (height, width) that the picture is going to be put on.
        reading: how.

    Returns:
        The picture (H, W, 3), and (height, width) of the whole one.

    Raises:
        AcclimateError: as `read_image`.
    """
    data, name = _bytes(Path(path)), str(path)
    header = parse_header(data, name)
    turns = reading.orientation == "apply" and header.orientation >= 5
    full = (header.width, header.height) if turns else (header.height, header.width)
    _, inner = _fitted(full, canvas)
    least = inner[::-1] if turns else inner
    return decode_image(data, name, reading, least), full


def _bytes(path: Path) -> bytes:
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise AcclimateError(f"{path}: cannot be read ({error.strerror})") from None
    except MemoryError:
        raise AcclimateError(f"{path}: {_NO_MEMORY}") from None


def decode_image(data: bytes, name: str, reading: Reading = DEFAULT, least: tuple[int, int] = (0, 0)) -> Image:
    """Decode what is in an image file to (H, W, 3) RGB uint8, whatever its mode.

    Grey becomes three equal channels, and alpha is dropped. More than 8 bits (thermal cameras, depth, floating point)
    are scaled as `reading` says. A picture that its EXIF tag turns is turned, in every format, unless `reading` takes
    stored pixels. What lacks its end but no pixel is whole; what lacks pixels, or is damaged so far that the decoder
    notices, is refused.

    Args:
        data: the file.
        name: what an error calls it.
        reading: how.
        least: (height, width) as stored that are enough of a JPEG; see `read_reduced`.

    Raises:
        AcclimateError: it is empty, cut, damaged, no image, has more pixels than are read
            (`edge.headers.MAX_PIXELS`), or there is no memory for it.
    """
    header = parse_header(data, name)
    try:
        picture = _to_rgb(_stored(data, header, name, least), reading.intensity, name)
        return turned(picture, header.orientation) if reading.orientation == "apply" else picture
    except MemoryError:
        raise AcclimateError(f"{name}: {_NO_MEMORY}") from None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise AcclimateError(f"{name}: {_NO_MEMORY}") from None
        raise AcclimateError(f"{name}: {UNREADABLE}") from None


_NO_MEMORY = "there is no memory for an image of this size; shrink it or cut it into tiles"


def turned(picture: Image, orientation: int) -> Image:
    """A stored picture (H, W, 3) as EXIF's `orientation` (1 to 8) shows it; (W, H, 3) from 5 on.

    CIPA DC-008 (EXIF 2.32), tag 274: 2 mirrored left to right, 3 by 180 degrees, 4 mirrored top to bottom, 5
    transposed, 6 clockwise by 90 degrees, 7 transposed along the other diagonal, 8 counter-clockwise.
    """
    if orientation in {5, 6, 7, 8}:
        picture = np.asarray(cv2.transpose(picture), np.uint8)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return picture if flip is None else np.asarray(cv2.flip(picture, flip), np.uint8)


def turned_points(points: NDArray[Any], size: tuple[int, int], orientation: int) -> NDArray[Any]:
    """Points (N, 2), x and y in pixels of a stored picture of `size` (height, width), in the picture that `turned`
    makes of it."""
    height, width = size
    x, y = points[:, 0], points[:, 1]
    right, below = width - x, height - y
    kept = {1: (x, y), 2: (right, y), 3: (right, below), 4: (x, below)}
    changed = {5: (y, x), 6: (below, x), 7: (below, right), 8: (y, right)}
    return np.stack({**kept, **changed}[orientation], axis=1)


def turned_back(orientation: int) -> int:
    """The orientation that undoes `orientation`."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def _stored(data: bytes, header: Header, name: str, least: tuple[int, int] = (0, 0)) -> NDArray[Any]:
    """The pixels as they are stored: RGB of a JPEG, else what OpenCV reads (BGR, BGRA or grey)."""
    if header.format == "jpeg":
        decoded = _jpeg(data, name, least)
        if decoded is not None:
            return decoded[:, :, ::-1]
    elif header.format == "png":
        data = _sound_png(data, name)
    elif header.tag_at is not None:
        # OpenCV turns TIFF, and no other format, whatever it is told; so the tag is taken away.
        place, code = header.tag_at
        changed = bytearray(data)
        struct.pack_into(code, changed, place, 1)
        data = bytes(changed)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.ndim not in {2, 3} or image.shape[:2] != (header.height, header.width):
        raise AcclimateError(f"{name}: {UNREADABLE}")
    return image


_HARMLESS = re.compile(r"SOS parameters|Adobe color transform|progression sequence|JFIF|ICC", re.IGNORECASE)
"""Of libjpeg's warnings, those that say nothing about the pixels."""
_OTHER_KIND = re.compile(r"color conversion|data precision", re.IGNORECASE)
"""Of its errors, those about a kind of JPEG that simplejpeg does not read and OpenCV may."""
_CUT = re.compile(r"premature end of JPEG", re.IGNORECASE)


def _jpeg(data: bytes, name: str, least: tuple[int, int] = (0, 0)) -> Image | None:
    """A JPEG's RGB pixels; None where it is of a kind that simplejpeg does not read (CMYK, 12 bits).

    Raises:
        AcclimateError: pixels are lost.
    """
    cut = False
    how = {"colorspace": "RGB", "min_height": least[0], "min_width": least[1]}
    try:
        picture: Image = simplejpeg.decode_jpeg(data, **how)
    except ValueError as error:
        if _OTHER_KIND.search(str(error)):
            return None
        cut = _CUT.search(str(error)) is not None
        try:
            if _HARMLESS.search(str(error)):
                picture = simplejpeg.decode_jpeg(data, **how, strict=False)
            else:
                # The end marker is missing, or fill bytes stand before it: then every pixel is there.
                end = data.rfind(b"\xff\xd9")
                body = data if cut or end < 0 else data[:end]
                body = body.rstrip(b"\0").removesuffix(b"\xff") + b"\xff\xd9"
                picture = simplejpeg.decode_jpeg(body, **how)
        except ValueError:
            what = "truncated" if cut else "damaged"
            raise AcclimateError(f"{name}: the JPEG is {what}; copy the file again or remove it") from None
    if _hole(data):
        raise AcclimateError(f"{name}: the JPEG is damaged; copy the file again or remove it")
    return picture


def _hole(data: bytes) -> bool:
    """Whether a block of zeros lies in a baseline JPEG's pixels, as a copy that was broken off leaves it.

    The decoder takes zeros for the first code of each table. They may be sound where that is the end of a block in
    every table of AC coefficients, as those that are made for a picture with even areas have it.
    """
    start = data.find(b"\xff\xda")
    if start < 0 or data.find(bytes(64), start, data.rfind(b"\xff\xd9")) < 0:
        return False
    at, even = 2, True
    while at + 4 <= start and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xC2:
            return False
        tables, stop = at + 4, at + 2 + length
        while marker == 0xC4 and tables + 17 < stop:
            even &= data[tables] < 0x10 or data[tables + 17] == 0
            tables += 17 + sum(data[tables + 1 : tables + 17])
        at = stop
    return not even


def _sound_png(data: bytes, name: str) -> bytes:
    """A PNG whose chunks' checksums hold, with the end that it may lack.

    Raises:
        AcclimateError: a chunk is damaged or cut.
    """
    at, end = 8, struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        stop = at + 8 + length
        if kind == b"IEND":
            break
        if stop > len(data):
            raise AcclimateError(f"{name}: the PNG is truncated; copy the file again or remove it")
        checksum = struct.pack(">I", zlib.crc32(memoryview(data)[at + 4 : stop]))
        if stop + 4 > len(data):
            return data[:stop] + checksum + end
        if kind[:1].isupper() and data[stop : stop + 4] != checksum:
            raise AcclimateError(f"{name}: the PNG is damaged; copy the file again or remove it")
        at = stop + 4
    return data[:at] + end


def _to_rgb(image: NDArray[Any], intensity: tuple[float, float] | None, name: str) -> Image:
    if image.ndim == 3 and image.shape[2] not in {1, 3, 4}:
        raise AcclimateError(f"{name}: has {image.shape[2]} channels; convert it to grey or RGB")
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3]
    if image.dtype != np.uint8:
        image = _scaled(image, intensity or _range(_measured(image, _SAMPLE)))
    if image.ndim == 2 or image.shape[2] == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.ascontiguousarray(image[:, :, ::-1])


def intensity_of(paths: Sequence[Path]) -> tuple[float, float] | None:
    """What becomes black and white in all pictures of a set that have more than 8 bits, in their own units:
    `PERCENTILES` of the values of `SET_IMAGES` of them; None where none can be read.

    Args:
        paths: image files of more than 8 bits.
    """
    places = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), SET_IMAGES)).round().astype(int))
    samples: list[NDArray[np.float64]] = []
    for path in (paths[place] for place in places):
        try:
            data = path.read_bytes()
            image = _stored(data, parse_header(data, str(path)), str(path))
        except (AcclimateError, OSError, cv2.error, MemoryError):
            continue
        if image.dtype != np.uint8:
            samples.append(_measured(image[:, :, :3] if image.ndim == 3 else image, _SET_SAMPLE).astype(np.float64))
    if not samples:
        return None
    low, high = _range(np.concatenate(samples))
    # As a person reads and writes them; a digit more says nothing, unless it is all that tells them apart.
    shown = float(f"{low:.7g}"), float(f"{high:.7g}")
    return shown if shown[0] < shown[1] else (low, high)


def _measured(image: NDArray[Any], count: int) -> NDArray[Any]:
    """About `count` values of a picture, evenly spread over rows and columns, without those that stand for "no value".

    These are what is not finite, and one number in borders and dead areas: 0, the type's limit, -9999 or the like,
    where it is further from all others than these are from each other.
    """
    step = max(1, image.size // count)
    while math.gcd(step, image[0].size) > 1:
        step += 1
    values: NDArray[Any] = image.reshape(-1)[::step]
    values = values[np.isfinite(values)]
    for end in (np.min, np.max):
        limit = end(values) if len(values) else 0
        if np.issubdtype(values.dtype, np.integer):
            marks = limit in {0, np.iinfo(values.dtype).min, np.iinfo(values.dtype).max}
        else:
            marks = abs(limit) in _NO_VALUE or abs(limit) >= _NO_VALUE_FROM
        rest = values[values != limit] if marks else values[:0]
        if len(rest):
            low, high = (float(value) for value in np.percentile(rest, PERCENTILES))
            if 0 < high - low < max(low - float(limit), float(limit) - high):
                values = rest
    return values


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """What becomes black and white: `PERCENTILES` of values, or all of them where nearly all are equal."""
    if not len(values):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if low == high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 1.0, low + 1.0)


def _scaled(image: NDArray[Any], limits: tuple[float, float]) -> Image:
    """`limits` become 0 and 255, in uint8; what is beyond is clipped, and what is no number is black."""
    low, high = limits
    kind: type[np.floating[Any]] = np.float32 if image.dtype.itemsize <= 2 else np.float64
    scaled = np.empty(image.shape, np.uint8)
    rows = max(1, _ROWS_AT_ONCE // max(1, image[0].size))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(image), rows):
            values: NDArray[np.floating[Any]] = image[start : start + rows].astype(kind)
            values -= low
            values *= 255.0 / (high - low)
            whole = np.rint(np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255))
            scaled[start : start + rows] = whole
    return scaled


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


def letterbox(
    image: Image, size: tuple[int, int], fill: int = 114, full: tuple[int, int] | None = None
) -> tuple[Image, Letterbox]:
    """Scale `image` to fit `size` (height, width) with its aspect kept; fill the right and lower rest.

    Args:
        image: (H, W, 3).
        size: (height, width) of the canvas.
        fill: value of the rest.
        full: (height, width) of the whole picture, where `image` is of a reduced scale; see `read_reduced`.

    Returns:
        The canvas, (H, W, 3) uint8, and how to go back.
    """
    height, width = full or image.shape[:2]
    scale, (rows, columns) = _fitted((height, width), size)
    inner = (columns, rows)
    if inner != image.shape[1::-1]:
        image = np.asarray(
            cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8
        )
    if image.shape[:2] == size:
        return np.ascontiguousarray(image), Letterbox(scale, height, width)
    canvas = np.full((*size, 3), fill, np.uint8)
    canvas[: inner[1], : inner[0]] = image
    return canvas, Letterbox(scale, height, width)


def _fitted(picture: tuple[int, int], canvas: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """The scale of a picture on a canvas, and its (height, width) there."""
    scale = min(canvas[0] / picture[0], canvas[1] / picture[1])
    return scale, (max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale)))


def to_input(canvas: Image) -> NDArray[np.float32]:
    """The network's input, (1, 3, H, W) float32, 0..255, from a canvas (H, W, 3) uint8."""
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], dtype=np.float32)
