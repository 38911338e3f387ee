"""Which weights of an ncnn model survive fp16, and a model file that keeps the others in fp32.

ncnn writes what is below 6.1e-5, the smallest normal number of fp16, as zero, and what is above 65504 as infinity. A
layer whose weights are all small loses them; ncnn reads a file in which each layer's weights are in either precision.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHED = frozenset(
    {
        "Convolution", "Convolution1D", "Convolution3D", "ConvolutionDepthWise", "ConvolutionDepthWise1D",
        "ConvolutionDepthWise3D", "Deconvolution", "Deconvolution1D", "Deconvolution3D", "DeconvolutionDepthWise",
        "DeconvolutionDepthWise1D", "DeconvolutionDepthWise3D", "InnerProduct",
    }
)  # fmt: skip
"""Layers with one block of weights, which fp16 halves; option 0 is the number of their outputs."""
HALF = (0x01306B47).to_bytes(4, "little")
"""Stands before a block of weights in fp16."""
LOST = 1e-3
"""A layer whose weights change by a larger part of them stays in fp32; rounding to 11 bits changes them by 2e-4."""
FP32 = "31=3"
"""An option of every layer of ncnn: neither stored nor computed in fp16 where the processor could."""


@dataclass(frozen=True, slots=True)
class Part:
    """What ncnn reads from a weights file at once: at `start`, `size` bytes."""

    start: int
    size: int


def parts(param: Path, weights: bytes) -> list[Part]:
    """How ncnn reads a weights file, in order; a layer's weights are a mark of 4 bytes, then the numbers.

    Args:
        param: the model's .param file.
        weights: content of its .bin file.
    """
    ncnn = importlib.import_module("ncnn")
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    read: list[Part] = []

    class Reader(ncnn.DataReader):  # type: ignore[misc, name-defined]
        def read(self, buffer: Any, size: int) -> int:
            start = read[-1].start + read[-1].size if read else 0
            piece = weights[start : start + size]
            ctypes.memmove(address(buffer, None), piece, len(piece))
            read.append(Part(start, len(piece)))
            return len(piece)

    net = ncnn.Net()
    reader = Reader()
    if net.load_param(str(param)) or net.load_model(reader):
        return []
    return read


def lost(single: NDArray[np.float32], half: NDArray[np.float32], outputs: int) -> float:
    """The largest change of one output's weights, as a part of them, or of a usual output's where these are more.

    Args:
        single: the weights in fp32, (N,), those of one output together.
        half: what fp16 made of them, (N,).
        outputs: how many share them out; 1 where they do not divide.
    """
    rows = outputs if outputs > 0 and len(single) % outputs == 0 else 1
    weights = single.reshape(rows, -1).astype(np.float64)
    norms = np.linalg.norm(weights, axis=1)
    usual = float(np.sqrt((norms**2).mean()))
    with np.errstate(invalid="ignore", over="ignore"):
        changed = np.linalg.norm(weights - half.reshape(rows, -1), axis=1)
    return float((changed / np.maximum(np.maximum(norms, usual), 1e-30)).max())


def mixed(layers: Sequence[Sequence[str]], single: Path, half: Path) -> tuple[list[str], bytes] | None:
    """The layers that have to stay in fp32, and the weights file that keeps them there.

    Args:
        layers: the fields of the .param file's lines: type, name, number of inputs and outputs, their names, options.
        single: the model in fp32, a .param file with its .bin file beside it.
        half: the same in fp16.

    Returns:
        None where a layer's weights cannot be told apart in the files, so fp16 has to stand as it is.
    """
    ours, theirs = (file.with_suffix(".bin").read_bytes() for file in (single, half))
    read = list(zip(parts(single, ours), parts(half, theirs), strict=False))
    marks = [place for place, (_, part) in enumerate(read) if theirs[part.start : part.start + part.size] == HALF]
    named = [fields for fields in layers if fields[0] in WEIGHED]
    ends = [(part.start + part.size) for part in read[-1]] if read else []
    if ends != [len(ours), len(theirs)] or len(marks) != len(named):
        return None
    kept, whole = [], set()
    for place, fields in zip(marks, named, strict=True):
        one, other = read[place + 1]
        numbers = np.frombuffer(ours, np.float32, one.size // 4, one.start)
        rounded = np.frombuffer(theirs, np.float16, len(numbers), other.start).astype(np.float32)
        if not lost(numbers, rounded, _outputs(fields)) <= LOST:
            kept.append(fields[1])
            whole |= {place, place + 1}
    pieces = (
        ours[one.start : one.start + one.size] if place in whole else theirs[other.start : other.start + other.size]
        for place, (one, other) in enumerate(read)
    )
    return kept, b"".join(pieces)


def marked(text: str, kept: Collection[str]) -> str:
    """A .param file with the layers `kept` told to stay in fp32."""
    lines = text.splitlines()
    names = [line.split()[1] if place > 1 and line.strip() else "" for place, line in enumerate(lines)]
    told = (f"{line} {FP32}" if name in kept else line for line, name in zip(lines, names, strict=True))
    return "\n".join(told) + "\n"


def _outputs(fields: Sequence[str]) -> int:
    options = fields[4 + int(fields[2]) + int(fields[3]) :]
    return next((int(value) for key, _, value in (option.partition("=") for option in options) if key == "0"), 1)
