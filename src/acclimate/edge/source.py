"""Frames of a camera, a stream, a video or a folder that is being filled, read ahead in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np

from acclimate.edge import video
from acclimate.edge.credentials import masked, with_password
from acclimate.edge.images import SUFFIXES, read_image
from acclimate.errors import AcclimateError
from acclimate.structures import Image

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
"""Between two tries to open a source again the wait doubles from the first to the longest."""
SETTLED_S = 0.3
"""An image in a folder is read once it has not changed for so long: whoever writes it has finished."""
POLL_S = 0.2
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 10_000

Kind = Literal["camera", "stream", "video", "folder"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        image: (H, W, 3) RGB.
        taken: seconds since the epoch, when it was read.
        file: the image's name, where the source is a folder.
        mark: where the folder was read up to; hand it to the next `Source` to go on after this frame.
    """

    image: Image
    taken: float
    file: str = ""
    mark: Mark | None = None


Mark = tuple[int, str]
"""Of an image in a folder: when it last changed (ns, `st_ctime_ns`) and its name; images are read in this order."""


def kind_of(where: str) -> Kind:
    """A number is a camera, what has :// a stream, a video by its ending a video; anything else is a folder."""
    if where.isdecimal():
        return "camera"
    if "://" in where:
        return "stream"
    return "video" if Path(where).suffix.lower() in video.SUFFIXES else "folder"


class Source:
    """A source of frames that never lags and never gives up; use it in a `with` statement.

    A thread reads; between it and the reader is one place. A live source (camera, stream, a video at its own rate)
    overwrites what is in it, so that `next` gives the newest frame and `dropped` counts the others. Images of a folder,
    and a video with `once`, wait there instead: none is dropped. A source that is not there, or breaks off, is opened
    again after a wait that doubles up to `LONGEST_WAIT_S`; a video that ends begins again.

    Attributes:
        kind: what `where` means.
        dropped: frames that were read and never asked for.
        reopened: how often the source came back.
        problems: images of a folder that could not be read.
    """

    def __init__(self, where: str, *, once: bool = False, mark: Mark | None = None) -> None:
        """Open `where` as soon as the `with` statement begins.

        Args:
            where: see `kind_of`.
            once: end with the video, or with the last image in the folder.
            mark: images of a folder up to it are left out.

        Raises:
            AcclimateError: `once` of a source that has no end, or of a path that is not there.
        """
        self.where, self.kind = where, kind_of(where)
        if once and self.kind in {"camera", "stream"}:
            raise AcclimateError(f"{masked(where)}: a {self.kind} has no end; leave out --once")
        if once and not Path(where).exists():
            raise AcclimateError(f"{where}: no such video or folder")
        self._once, self._mark = once, mark
        self.dropped = 0
        self.reopened = 0
        self.problems = 0
        self._live = self.kind != "folder" and not once
        self._place: Frame | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._ended = False
        self._present = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def __enter__(self) -> Source:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        # A read that hangs in a driver must not keep the process; the thread is a daemon.
        self._thread.join(timeout=2)

    @property
    def present(self) -> bool:
        """Whether the source is open."""
        return self._present

    @property
    def ended(self) -> bool:
        """Whether there will be no further frame."""
        return self._ended and self._place is None

    def next(self, timeout_s: float) -> Frame | None:
        """The newest frame (of a folder or with `once`: the next one), waited for up to `timeout_s`; None if none came.

        Raises:
            BaseException: what ended the reading thread, if it was no problem of the source.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._place is not None or self._ended, timeout_s)
            frame, self._place = self._place, None
            self._changed.notify_all()
        if frame is None and self._failure is not None:
            raise self._failure
        return frame

    def _run(self) -> None:
        try:
            if self.kind == "folder":
                self._keep_open(self._folder)
            else:
                self._keep_open(self._capture)
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _keep_open(self, frames: Callable[[], Iterator[Frame | None]]) -> None:
        """Hand on what `frames()` yields; open it again whenever it breaks off."""
        wait, gone_since, before = FIRST_WAIT_S, 0.0, False
        while not self._closing.is_set():
            reason, count = "", 0
            try:
                for frame in frames():
                    count += 1
                    if not self._present:
                        self._present = True
                        if before:
                            self.reopened += 1
                            log.warning("%s: is back after %.0f s", masked(self.where), time.monotonic() - gone_since)
                        wait, before = FIRST_WAIT_S, True
                    if frame is not None:
                        self._put(frame)
                    if self._closing.is_set():
                        return
            except (AcclimateError, OSError) as error:
                reason = masked(str(error).removeprefix(f"{masked(self.where)}: "))
            if self._once:
                if reason:
                    log.warning("%s: %s", masked(self.where), reason)
                return
            if count and not reason:
                continue
            if self._present or not gone_since:
                gone_since = time.monotonic()
                log.warning("%s: %s; trying again until it is there", masked(self.where), reason or "has no frame")
            self._present, before = False, True
            self._closing.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if not self._live:
                self._changed.wait_for(lambda: self._place is None or self._closing.is_set())
            elif self._place is not None:
                self.dropped += 1
            self._place = frame
            self._changed.notify_all()

    def _capture(self) -> Iterator[Frame]:
        """Frames of a camera, stream or video until it breaks off or ends."""
        if self.kind == "video":
            with video.Video(Path(self.where)) as reader:
                began = time.monotonic()
                for count, (_, image) in enumerate(reader):
                    if self._live and self._closing.wait(max(0.0, began + count / reader.fps - time.monotonic())):
                        return
                    yield Frame(image, time.time())
            return
        # OpenCV tells on standard error each time what is told once here.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        if self.kind == "camera":
            capture = cv2.VideoCapture(int(self.where))
        else:
            timeouts = [
                *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
                *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
            ]
            capture = cv2.VideoCapture(with_password(self.where), cv2.CAP_FFMPEG, timeouts)
        try:
            if not capture.isOpened():
                raise AcclimateError(f"{masked(self.where)}: the {self.kind} cannot be opened")
            while not self._closing.is_set():
                read, taken = capture.read()
                if not read:
                    raise AcclimateError(f"{masked(self.where)}: the {self.kind} gives no more frames")
                yield Frame(np.asarray(cv2.cvtColor(taken, cv2.COLOR_BGR2RGB), np.uint8), time.time())
        finally:
            capture.release()

    def _folder(self) -> Iterator[Frame | None]:
        """Images in the order in which they came, and None when there is no new one; with `once` until the last."""
        while not self._closing.is_set():
            waiting, settling = self._new_images()
            yield None
            for mark in waiting:
                path = Path(self.where, mark[1])
                with contextlib.suppress(FileNotFoundError):
                    image = self._read(path)
                    self._mark = mark
                    if image is not None:
                        yield Frame(image, time.time(), mark[1], mark)
                if self._closing.is_set():
                    return
            if self._once and not waiting and not settling:
                return
            if not waiting:
                self._closing.wait(POLL_S)

    def _new_images(self) -> tuple[list[Mark], bool]:
        """Images after the mark, in order, and whether there are some that may still be written.

        What is remembered is one mark however many images there are. It is of `st_ctime`, which copying tools do not
        set back.
        """
        now = time.time_ns()
        if self._mark is not None and self._mark[0] > now:
            log.warning("%s: the clock was set back; images are new from now on", masked(self.where))
            self._mark = (now, "")
        waiting, settling = [], False
        with os.scandir(self.where) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    mark = (entry.stat().st_ctime_ns, name)
                    if self._mark is not None and mark <= self._mark:
                        continue
                    if mark[0] > now - SETTLED_S * 1e9:
                        settling = True
                    else:
                        waiting.append(mark)
        return sorted(waiting), settling

    def _read(self, path: Path) -> Image | None:
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            return read_image(path)
        except AcclimateError as error:
            self.problems += 1
            log.warning("%s", error)
            return None
