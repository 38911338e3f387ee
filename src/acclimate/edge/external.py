"""Whether an ONNX file is all there is: its weights may stand in other files, which it names by any path.

ONNX Runtime up to 1.23 reads such a file wherever it is, so a foreign model could carry any file of the device into its
outputs. It is looked for before a session exists, whatever the version. `onnx` is not on a device, so the few parts of
the protocol buffer that lead to a tensor are walked here; a field's numbers are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from acclimate.errors import AcclimateError

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}
"""Message -> field number -> the message in it, as far as tensors are inside."""
_EXTERNAL, _LOCATION = 13, 14
"""Fields of a tensor: where its values are outside, and (1) that they are."""
_DEEPEST = 100
"""Nested messages; protocol buffers stop there too."""


def check_self_contained(file: Path) -> None:
    """Refuse an ONNX file that reads others.

    Raises:
        AcclimateError: it does, or cannot be read, or is no ONNX file.
    """
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            outside = _reads_others(data, 0, len(data), "model", _DEEPEST)
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise AcclimateError(f"{file}: ONNX Runtime does not accept it ({error})") from None
    if outside:
        raise AcclimateError(
            f"{file}: keeps weights in other files, which no artifact of acclimate does; export the artifact again"
        )


def _reads_others(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> bool:
    if not depth:
        raise ValueError("it is nested too deep")
    inside = _INSIDE[message]
    for number, first, last in _fields(data, start, end):
        if message == "tensor":
            # A number that stands where a message should, or the other way round, is not looked into: it is refused.
            if number == _EXTERNAL or (number == _LOCATION and (last < 0 or first)):
                return True
        elif number in inside:
            if last < 0:
                raise ValueError("it is damaged")
            if _reads_others(data, first, last, inside[number], depth - 1):
                return True
    return False


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field that holds bytes; number, value and -1 of one that is a number.

    Raises:
        ValueError: the bytes are no protocol buffer.
    """
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, value, -1
        elif wire == 2:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError("it is cut short")
            yield number, at, at + length
            at += length
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
            if at > end:
                raise ValueError("it is cut short")
        else:
            raise ValueError("it is no protocol buffer")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7
    raise ValueError("it is damaged")
