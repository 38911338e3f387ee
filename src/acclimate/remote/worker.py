"""Detects for the agent in a process of its own, so that an image or a model that kills it does not kill the agent.

`python -m acclimate.remote.worker ARTIFACT --threads N` reads frames on standard input and answers each on standard
output. A frame is four bytes of length, one byte, and as many bytes. In a question the byte is `RAW` where the
network's outputs are wanted too, and the bytes are an image file; in an answer it is `FOUND`, with the arrays of
`pack`, or `PROBLEM`, with one line. The first answer, to no question, says whether the artifact was loaded.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.edge.images import decode_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.structures import Detections

HEAD = struct.Struct(">IB")
FOUND, PROBLEM = 0, 1
PLAIN, RAW = 0, 1


def pack(detections: Detections, outputs: Sequence[NDArray[Any]] = ()) -> bytes:
    """Detections and raw outputs (1, ...) as an .npz file: exact, and read without unpickling."""
    arrays = {"boxes": detections.boxes, "labels": detections.labels, "scores": detections.scores}
    arrays |= {f"output_{index}": output for index, output in enumerate(outputs)}
    buffer = BytesIO()
    # The stubs take the arrays for `allow_pickle`.
    np.savez(buffer, **cast(Any, arrays))
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[list[NDArray[Any]], Detections]:
    """What `pack` packed: raw outputs (1, ...), and detections.

    Raises:
        ValueError: it is something else.
    """
    try:
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            outputs = [arrays[f"output_{index}"] for index in range(len(arrays) - 3)]
            found = Detections(
                arrays["boxes"].astype(np.float32).reshape(-1, 4),
                arrays["labels"].astype(np.int64),
                arrays["scores"].astype(np.float32),
            )
    except Exception as error:  # numpy and zipfile raise many unrelated types here, all about these bytes
        raise ValueError(f"no detections ({error})") from None
    if not len(found.boxes) == len(found.labels) == len(found.scores):
        raise ValueError("no detections (of different lengths)")
    return outputs, found


def main() -> None:
    """The command line; ends when standard input does."""
    parser = argparse.ArgumentParser(description="Detects in images on standard input, for the agent.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "wb")
    # What a runtime prints must not come between the answers.
    os.dup2(2, 1)
    cv2.setNumThreads(options.threads)
    try:
        predictor = Predictor.load(options.artifact, options.threads)
    except AcclimateError as error:
        _answer(answers, PROBLEM, str(error).encode())
        return
    _answer(answers, FOUND, b"")
    while head := sys.stdin.buffer.read(HEAD.size):
        size, wanted = HEAD.unpack(head)
        data = sys.stdin.buffer.read(size)
        try:
            canvas, placed = predictor.prepare(decode_image(data, "the image", predictor.manifest.reading))
            outputs = predictor.run(canvas)
            found = pack(predictor.finish(outputs, placed), outputs if wanted == RAW else ())
        except AcclimateError as error:
            _answer(answers, PROBLEM, str(error).encode())
        else:
            _answer(answers, FOUND, found)


def _answer(stream: IO[bytes], kind: int, data: bytes) -> None:
    stream.write(HEAD.pack(len(data), kind) + data)
    stream.flush()


if __name__ == "__main__":
    main()
