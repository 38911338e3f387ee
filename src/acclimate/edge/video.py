"""Videos frame by frame: reading with time stamps, and writing annotated ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from acclimate.errors import AcclimateError
from acclimate.structures import Image

SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
"""File name endings that count as videos, in lower case."""


class Video:
    """A video file open for reading; use it in a `with` statement.

    Attributes:
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        fps: frames a second as the file says; 25 where it does not.
        frames: how many frames the file says it has; 0 where it does not.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            AcclimateError: it is missing, or OpenCV cannot decode it.
        """
        if not path.is_file():
            raise AcclimateError(f"{path}: no such file")
        self._capture = cv2.VideoCapture(str(path))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        if not self._capture.isOpened() or not self.height or not self.width:
            raise AcclimateError(f"{path}: not a video that can be decoded; convert it, for example to H.264 in MP4")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps < 1000 else 25.0
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[tuple[float, Image]]:
        """Each frame's time in seconds from the start, and the frame, (H, W, 3) RGB."""
        index = 0
        while True:
            read, frame = self._capture.read()
            if not read:
                return
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Some containers carry no time stamps: then the frame rate is all there is.
            time_s = stamp if stamp > 0 or index == 0 else index / self.fps
            yield max(0.0, time_s), np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
            index += 1


class Writer:
    """An MP4 file being written; use it in a `with` statement, which closes it even after an error."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        """Create `path` for frames of `size` (height, width).

        Raises:
            AcclimateError: the file cannot be written.
        """
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (size[1], size[0]))
        if not self._writer.isOpened():
            raise AcclimateError(f"{path}: the video cannot be written; is the folder writable?")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._writer.release()

    def write(self, frame: Image) -> None:
        """Append one frame, (H, W, 3) RGB."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
