"""Videos frame by frame: reading with time stamps, and writing annotated ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from acclimate.edge.headers import Orientation, open_regular
from acclimate.edge.images import letterbox
from acclimate.errors import AcclimateError
from acclimate.structures import Image

SUFFIXES = frozenset(
    {
        ".3gp", ".asf", ".avi", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4",
        ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
"""File name endings that count as videos, in lower case, where there is no file yet to look into."""

# What ffmpeg finds wrong with a file is told by us, in one line; it looks at this once, when it is first used.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

MAX_RATE = 240.0
"""Frames a second beyond which a container tells the unit of its time stamps rather than a rate."""
USUAL_RATE = 25.0
"""Where a file says no rate that can be one."""
MAX_WRITTEN_RATE = 60.0
LONGEST_STILL_S = 60.0
"""An annotated video shows a frame for so long at most, whatever the time stamps say."""


class Video:
    """A video file open for reading; use it in a `with` statement.

    A video that is stored turned (a phone's, held upright) is turned as its container says, unless stored pixels are
    asked for, as an image is by its EXIF tag.

    Attributes:
        height: of the first frame, in pixels.
        width: of the first frame, in pixels.
        fps: frames a second as the file says; 25 where it does not, or says more than 240.
        frames: how many frames the file says it has; 0 where it does not, or cannot know, as its rate varies.
        duration_s: how long it says it lasts; 0 where it does not.
    """

    def __init__(self, path: Path, orientation: Orientation = "apply") -> None:
        """Open `path` and decode its first frame.

        Raises:
            AcclimateError: it is missing, no file, empty, no video, or its codec cannot be decoded here.
        """
        descriptor = open_regular(path, None)
        try:
            self._capture = _opened(path, descriptor)
        finally:
            os.close(descriptor)
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1 if orientation == "apply" else 0)
        read, frame = self._capture.read()
        if not read:
            codec = _codec(self._capture)
            self._capture.release()
            what = f"its codec ({codec}) cannot be decoded here" if codec else "not a video that can be decoded"
            raise AcclimateError(f"{path}: {what}; convert it, for example: ffmpeg -i IN -c:v libx264 OUT.mp4")
        self._first = frame
        self.height, self.width = (int(side) for side in frame.shape[:2])
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        told = 0 < fps <= MAX_RATE
        self.fps = fps if told else USUAL_RATE
        self.frames = count if told else 0
        self.duration_s = count / fps if 0 < fps < float("inf") else 0.0
        self._count = 0
        self._ends = self._gap = 0.0

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[tuple[float, Image]]:
        """Each frame's time in seconds from the start, rising, and the frame, (H, W, 3) RGB.

        To be gone through once. OpenCV's FFmpeg scales frames of another size to the first one's.
        """
        frame, last = self._first, 0.0
        while True:
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Some containers carry no time stamps: then the frame rate is all there is.
            time_s = max(0.0, stamp) if stamp > last or self._count == 0 else last + 1 / self.fps
            self._gap = time_s - last if self._count else 1 / self.fps
            self._ends = time_s + self._gap
            self._count += 1
            last = time_s
            yield time_s, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
            read, frame = self._capture.read()
            if not read:
                return

    def missing(self) -> str:
        """What a video that was gone through lacks of what it says it has; empty where it is whole.

        Counts that a container estimates from a rate are wrong where the rate varies, so its end has to be early too.
        """
        if self._count >= self.frames - 1 > 0 or self._ends >= self.duration_s - 1.5 * self._gap:
            return ""
        if self.frames:
            return f"ends after {self._count} of {self.frames} frames; is it cut?"
        return f"ends after {self._ends:.1f} of {self.duration_s:.1f} s; is it cut?"


def _opened(path: Path, descriptor: int) -> cv2.VideoCapture:
    """The first of OpenCV's readers of files that opens `path`, but for the one that takes a name for a pattern.

    A name that is no UTF-8 ends OpenCV 5 with a segmentation fault; then the file is opened by its descriptor.
    """
    name = os.fspath(path)
    if not _is_utf8(name):
        name = f"/proc/self/fd/{descriptor}"
        if not Path(name).exists():
            raise AcclimateError(f"{path}: a video's name has to be UTF-8 here; rename it")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        backends = [one for one in cv2.videoio_registry.getStreamBackends() if one != cv2.CAP_IMAGES]
        for backend in [cv2.CAP_FFMPEG] if cv2.CAP_FFMPEG in backends else backends:
            capture = cv2.VideoCapture(name, backend)
            if capture.isOpened():
                return capture
    except cv2.error as error:
        raise AcclimateError(f"{path}: not a video that can be decoded ({' '.join(str(error).split())})") from None
    raise AcclimateError(
        f"{path}: not a video that can be decoded; convert it, for example: ffmpeg -i IN -c:v libx264 OUT.mp4"
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _codec(capture: cv2.VideoCapture) -> str:
    """The four letters of the codec; empty where the container says none."""
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    letters = code.to_bytes(4, "little").decode("latin-1").strip("\0 ")
    name = letters if letters.isprintable() and letters.isascii() else f"{code:#x}"
    return {"av01": "AV1, av01", "AV01": "AV1, AV01"}.get(name, name) if code else ""


class Writer:
    """An MP4 file being written; use it in a `with` statement, which closes it even after an error.

    Frames are shown at their times: of a rate that varies, a frame is repeated for as long as it is to be seen.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        """Write `path`, which is created with the first frame, for frames of `size` (height, width)."""
        self._path, self._fps, self._size = path, fps, size
        self._writer: cv2.VideoWriter | None = None
        self._written = 0
        self._waiting: Image | None = None
        self._began = self._last = 0.0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._show_until(self._written + 1)
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: Image, time_s: float) -> None:
        """Append one frame, (H, W, 3) RGB, to be seen from `time_s` on; one of another size is fitted in.

        Raises:
            AcclimateError: the file cannot be written.
        """
        if self._waiting is None:
            self._began = self._last = time_s
        else:
            # Time stamps that jump by hours must not become hours of one picture.
            self._began += max(0.0, time_s - self._last - LONGEST_STILL_S)
            if not self._written and 0 < time_s - self._last < 0.8 / self._fps:
                # Where the rate varies, what the file says is an average: too coarse for its fast parts.
                self._fps = min(MAX_WRITTEN_RATE, 1 / (time_s - self._last))
            self._last = time_s
            self._show_until(max(self._written + 1, round((time_s - self._began) * self._fps)))
        self._waiting = frame if frame.shape[:2] == self._size else letterbox(frame, self._size)[0]

    def _show_until(self, count: int) -> None:
        """Repeat the frame that waits until so many are written."""
        while self._waiting is not None and self._written < count:
            self._writer = self._writer or self._open()
            self._writer.write(cv2.cvtColor(self._waiting, cv2.COLOR_RGB2BGR))
            self._written += 1

    def _open(self) -> cv2.VideoWriter:
        if not _is_utf8(str(self._path)):
            raise AcclimateError(f"{self._path}: OpenCV writes no file whose name is not UTF-8; choose another --out")
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(self._path), code, self._fps, (self._size[1], self._size[0]))
        if not writer.isOpened():
            raise AcclimateError(f"{self._path}: the video cannot be written; is the folder writable?")
        return writer
