"""What the first bytes of an image file say: its format, its size, and how it is to be turned. Nothing is decoded."""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acclimate.errors import AcclimateError

Orientation = Literal["apply", "stored"]
"""Whether a picture is turned as its EXIF tag says, which is how a person sees it, or left as it is stored."""

MAX_PIXELS = 1 << 27
"""An image of more pixels (134 million) is refused before it is decoded: a few kB can claim as many as they like."""
MAX_BYTES = 1 << 30
"""A file of more bytes is no image."""
MAX_CHANNELS = 4
DEEP = 8
"""Pictures of more bits a sample are scaled to so many."""

_HEAD = 1 << 14
_TAIL = 1 << 16
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image.

    Attributes:
        format: by its content, whatever it is called.
        height: stored rows.
        width: stored columns.
        orientation: EXIF's, 1 to 8; 1 is a picture that is stored as it is seen.
        tag_at: of a TIFF, where in the file the orientation stands and how it is packed; None where it does not.
        bits: of a sample; above 8 in pictures of thermal cameras, depth and floating point.
    """

    format: Literal["jpeg", "png", "webp", "bmp", "tiff", "pnm"]
    height: int
    width: int
    orientation: int = 1
    tag_at: tuple[int, str] | None = None
    bits: int = 8

    def size(self, orientation: Orientation = "apply") -> tuple[int, int]:
        """(height, width) of the picture as it is read."""
        if orientation == "apply" and self.orientation >= 5:
            return self.width, self.height
        return self.height, self.width


class _Short(Exception):  # noqa: N818 - it asks for more bytes
    """What is looked for lies beyond the bytes that were read."""


def read_header(path: str | Path) -> Header:
    """The header of an image file, by reading its beginning; all of it where the header lies further back.

    Raises:
        AcclimateError: see `parse_header`; or the file is missing, no regular file, empty or too large.
    """
    return read_header_of(path)[0]


def read_header_of(path: str | Path) -> tuple[Header, os.stat_result]:
    """Likewise, and what the file was when it was opened. Raises as `read_header` does."""
    descriptor, status = _opened(path, MAX_BYTES)
    size = status.st_size
    try:
        head = os.read(descriptor, _HEAD)
        tail = b""
        if head[:4] == b"\x89PNG" and size > len(head):
            tail = os.pread(descriptor, min(_TAIL, size - len(head)), max(len(head), size - _TAIL))
        try:
            return _checked(_parse(head, tail), path), status
        except _Short:
            rest = os.pread(descriptor, max(0, size - len(head)), len(head))
            return parse_header(head + rest, str(path)), status
    except OSError as error:
        raise AcclimateError(f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


def parse_header(data: bytes, name: str) -> Header:
    """The header of an image file that is in memory.

    Args:
        data: the whole file.
        name: what an error calls it.

    Raises:
        AcclimateError: it is empty, no image of a known format, damaged, or has more than `MAX_PIXELS`.
    """
    try:
        return _checked(_parse(data, data[-_TAIL:]), name)
    except _Short:
        raise AcclimateError(f"{name}: {UNREADABLE}") from None


UNREADABLE = "not a readable image; remove it or copy it again"


def open_regular(path: Path, max_bytes: int | None = MAX_BYTES) -> int:
    """A descriptor for reading `path`: a pipe or a device would be waited for without end.

    Raises:
        AcclimateError: it is missing, no regular file, empty, or larger than `max_bytes`.
    """
    return _opened(path, max_bytes)[0]


_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _opened(path: str | Path, max_bytes: int | None) -> tuple[int, os.stat_result]:
    """A descriptor as `open_regular` gives it, and what the file is."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise AcclimateError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise AcclimateError(f"{path!s}: not a file name") from None
    status = os.fstat(descriptor)
    size = status.st_size
    if stat.S_ISREG(status.st_mode) and size and (max_bytes is None or size <= max_bytes):
        return descriptor, status
    os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        problem = "cannot be read (Is a directory)"
    elif not stat.S_ISREG(status.st_mode):
        problem = "not a regular file; remove it"
    elif not size:
        problem = "an empty file; remove it or copy it again"
    else:
        problem = f"a file of {size / 1e9:.1f} GB is no image; remove it"
    raise AcclimateError(f"{path}: {problem}")


def _checked(header: Header | None, name: str | Path) -> Header:
    if header is None or header.height < 1 or header.width < 1:
        raise AcclimateError(f"{name}: {UNREADABLE}")
    if header.height * header.width > MAX_PIXELS:
        raise AcclimateError(
            f"{name}: {header.width} x {header.height} pixels are more than the {MAX_PIXELS / 1e6:.0f} million that "
            "are read; shrink the image or cut it into tiles"
        )
    return header


def _parse(data: bytes, tail: bytes) -> Header | None:
    """The header in `data`, the beginning of a file whose end is `tail`; None where no format that we know begins so.

    Raises:
        _Short: the header goes on behind `data`.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data, tail)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:2] == b"BM":
            return _bmp(data)
        if data[:2] in {b"P5", b"P6"}:
            return _pnm(data)
        if data[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
            tags = _ifd(data)
            (height, _), (width, _) = tags[257], tags[256]
            if tags.get(277, (1, None))[0] > MAX_CHANNELS:
                return None
            value, place = tags.get(274, (1, None))
            bits, _ = tags.get(258, (8, None))
            return Header("tiff", height, width, value if 1 <= value <= 8 else 1, place, bits)
    except (struct.error, IndexError):
        raise _Short from None
    except KeyError:
        return None
    return None


def _jpeg(data: bytes) -> Header | None:
    at, orientation = 2, None
    while True:
        while data[at] != 0xFF:  # libjpeg too goes on at the next marker
            at += 1
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        if marker in {0xD9, 0xDA}:
            return None
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return Header("jpeg", height, width, orientation or 1)
        if marker == 0xE1 and orientation is None and data[at + 2 : at + 8] == b"Exif\0\0":
            if len(data) < at + length:
                raise _Short
            orientation = _exif(data[at + 8 : at + length])
        at += max(2, length)


def _png(data: bytes, tail: bytes) -> Header | None:
    width, height = struct.unpack_from(">II", data, 16)
    bits = data[24]
    at, orientation = 8, 1
    while width * height <= MAX_PIXELS:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            if len(data) < at + 8 + length:
                raise _Short
            return Header("png", height, width, _exif(data[at + 8 : at + 8 + length]), bits=bits)
        if kind in {b"IDAT", b"IEND"}:
            break
        at += 12 + length
    # Some writers put it behind the pixels.
    place = tail.rfind(b"eXIf")
    if place >= 4:
        (length,) = struct.unpack_from(">I", tail, place - 4)
        found = tail[place + 4 : place + 4 + length]
        if len(found) == length and found[:2] in {b"II", b"MM"}:
            orientation = _exif(found)
    return Header("png", height, width, orientation, bits=bits)


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", height & 0x3FFF, width & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("webp", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind != b"VP8X":
        return None
    flags, *size = struct.unpack_from("<B3x3B3B", data, 20)
    width, height = (1 + sum(byte << 8 * place for place, byte in enumerate(part)) for part in (size[:3], size[3:]))
    orientation, at = 1, 30
    while flags & 0x08:
        length = struct.unpack_from("<I", data, at + 4)[0]
        if data[at : at + 4] == b"EXIF":
            if len(data) < at + 8 + length:
                raise _Short
            orientation = _exif(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
            break
        at += 8 + length + length % 2
    return Header("webp", height, width, orientation)


def _bmp(data: bytes) -> Header | None:
    (kind,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if kind == 12 else "<ii", data, 18)
    return Header("bmp", abs(height), width)


def _pnm(data: bytes) -> Header | None:
    """A binary PGM or PPM, as Netpbm specifies them."""
    number = rb"(?:\s+|#[^\n]*\n)+(\d{1,9})"
    found = re.match(rb"P[56]" + 3 * number + rb"\s", data)
    if found is None:
        return None
    width, height, largest = (int(word) for word in found.groups())
    return Header("pnm", height, width, bits=8 if largest < 256 else 16)


def _exif(data: bytes) -> int:
    """The orientation in an EXIF block; 1 where it has none, or is damaged."""
    try:
        value = _ifd(data)[274][0]
    except (struct.error, IndexError, KeyError):
        return 1
    return value if 1 <= value <= 8 else 1


def _ifd(data: bytes) -> dict[int, tuple[int, tuple[int, str]]]:
    """The whole numbers among the tags of a TIFF's (or EXIF's) first directory; of each its first value, and where in
    `data` that is and how it is packed. TIFF 6.0, and BigTIFF, whose offsets have 8 bytes."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = data[2:4] in {b"+\0", b"\0+"}
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    entry, offset = ("HHQ", "Q") if big else ("HHI", "I")
    size = struct.calcsize(order + entry + offset)
    at = start + (8 if big else 2)
    if count > 1 << 16:
        raise KeyError(count)
    tags = {}
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + entry, data, at)
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if code is not None:
            place = at + struct.calcsize(order + entry)
            if values * struct.calcsize(order + code) > struct.calcsize(order + offset):
                (place,) = struct.unpack_from(order + offset, data, place)
            if tag in {256, 257, 258, 274, 277}:
                tags[tag] = (int(struct.unpack_from(order + code, data, place)[0]), (place, order + code))
        at += size
    return tags
