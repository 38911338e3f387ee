"""Frames of a camera, a stream, a video, pictures or a folder that is being filled, read ahead in its own thread."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np

from acclimate.edge import video
from acclimate.edge.credentials import masked, with_password
from acclimate.edge.images import DEFAULT, Reading, read_image
from acclimate.edge.listing import images_listed, is_image_name, is_not_read, is_pattern, matching, not_read
from acclimate.errors import AcclimateError
from acclimate.structures import Image

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
"""Between two tries to open a source again the wait doubles from the first to the longest."""
SETTLED_S = 0.3
"""An image in a folder is read once it has not changed for so long: whoever writes it has finished."""
POLL_S = 0.2
UNCERTAIN_S = 10.0
"""Where a clock was set back, images that seem so old or younger may be new, and are read unless they just were."""
RECENT = 1000
"""How many of the last images are remembered one by one."""
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 10_000

Kind = Literal["camera", "stream", "video", "files", "folder"]

TAKES = (
    "--source takes a camera's number or device (0, /dev/video0), an address (rtsp://...), a video, a picture, a .txt "
    "list, a pattern in quotes ('day*/*.jpg'), or a folder that is being filled"
)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        image: (H, W, 3) RGB.
        taken: seconds since the epoch, when it was read.
        file: the image's name, where the source is a folder; its path, of pictures.
        mark: where the folder was read up to; hand it to the next `Source` to go on after this frame.
        until: 0, or where it was read up to before a clock was set back (ns); to be handed on likewise.
        time_s: of a video, seconds from its beginning.
    """

    image: Image
    taken: float
    file: str = ""
    mark: Mark | None = None
    until: int = 0
    time_s: float | None = None


Mark = tuple[int, str]
"""Of an image in a folder: when it last changed (ns, `st_ctime_ns`) and its name; images are read in this order."""


def kind_of(where: str) -> Kind:
    """What `where` means: `TAKES`, in this order; what is not there is a video by its ending, else a folder."""
    path = Path(where)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        mode = 0
    if where.isdecimal() or stat.S_ISCHR(mode) or (not mode and where.startswith("/dev/")):
        return "camera"
    if "://" in where:
        return "stream"
    if stat.S_ISDIR(mode):
        return "folder"
    if is_image_name(path.name) or path.suffix.lower() == ".txt" or (not mode and is_pattern(where)):
        return "files"
    return "video" if mode or path.suffix.lower() in video.SUFFIXES else "folder"


class Source:
    """A source of frames that never lags and never gives up; use it in a `with` statement.

    A thread reads; between it and the reader is one place. A live source (camera, stream, a video at its own rate)
    overwrites what is in it, so that `next` gives the newest frame and `dropped` counts the others. Images of a folder,
    pictures, and a video with `once`, wait there instead: none is dropped. A source that is not there, or breaks off,
    is opened again after a wait that doubles up to `LONGEST_WAIT_S`; a video that ends begins again, pictures end.

    Attributes:
        kind: what `where` means.
        dropped: frames that were read and never asked for.
        reopened: how often the source came back.
        problems: images that could not be read.
        trouble: what was last wrong with the source; empty where nothing was.
        live: frames come by the clock, and those that nobody asks for in time are dropped.
    """

    def __init__(
        self, where: str, *, once: bool = False, mark: Mark | None = None, until: int = 0, reading: Reading = DEFAULT
    ) -> None:
        """Open `where` as soon as the `with` statement begins.

        Args:
            where: see `kind_of`.
            once: end with the video, or with the last image in the folder.
            mark: images of a folder up to it are left out.
            until: of the frame that `mark` is of.
            reading: how files become pictures; a video is turned, or left as it is stored, likewise.

        Raises:
            AcclimateError: `once` of a source that has no end, or of a path that is not there; a file that is there and
                is no source; or an address with spaces.
        """
        self.where, self.kind = where, kind_of(where)
        if self.kind == "stream" and re.search(r"\s", where):
            # Nor may it be shown: there is no telling a password from what is around it.
            raise AcclimateError(f"--source {where.partition('://')[0]}://...: an address has no spaces; write %20")
        self._files = _files(where) if self.kind == "files" else []
        if once and self.kind in {"camera", "stream"}:
            raise AcclimateError(f"{masked(where)}: a {self.kind} has no end; leave out --once")
        if once and self.kind != "files" and not Path(where).exists():
            raise AcclimateError(f"{where}: no such video or folder; {TAKES}")
        if self.kind == "video" and Path(where).exists():
            _check_video(Path(where), reading)
        self._once, self._mark = once or self.kind == "files", mark
        self._reading = reading
        self._until = until
        self._resumes = bool(until)
        self._told_of_clock = False
        self._told_of_kinds: set[str] = set()
        self._done: set[Mark] = set()
        self._settling: dict[Mark, float] = {}
        self._recent: deque[Mark] = deque(maxlen=RECENT)
        self.dropped = 0
        self.reopened = 0
        self.problems = 0
        self.trouble = ""
        self.live = self.kind != "folder" and not self._once
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
            sources = {"folder": self._folder, "files": self._pictures, "video": self._video}
            self._keep_open(sources.get(self.kind, self._capture))
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
                reason = self.trouble = masked(str(error).removeprefix(f"{masked(self.where)}: "))
            if self._once:
                if reason:
                    log.warning("%s: %s", masked(self.where), reason)
                return
            if count and not reason:
                continue
            if self._present or not gone_since:
                gone_since = time.monotonic()
                reason = reason or "has no frame"
                hint = f" ({TAKES})" if not before and not self._present else ""
                log.warning("%s: %s; trying again until it is there%s", masked(self.where), reason, hint)
            self._present, before = False, True
            self._closing.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if not self.live:
                self._changed.wait_for(lambda: self._place is None or self._closing.is_set())
            elif self._place is not None:
                self.dropped += 1
            self._place = frame
            self._changed.notify_all()

    def _capture(self) -> Iterator[Frame]:
        """Frames of a camera or stream until it breaks off."""
        # OpenCV tells on standard error each time what is told once here.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        if self.kind == "camera":
            capture = cv2.VideoCapture(_device(self.where))
        else:
            timeouts = [
                *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
                *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
            ]
            capture = cv2.VideoCapture(with_password(self.where), cv2.CAP_FFMPEG, timeouts)
        try:
            if not capture.isOpened():
                raise AcclimateError(f"{masked(self.where)}: the {self.kind} cannot be opened")
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1 if self._reading.orientation == "apply" else 0)
            while not self._closing.is_set():
                read, taken = capture.read()
                if not read:
                    raise AcclimateError(f"{masked(self.where)}: the {self.kind} gives no more frames")
                yield Frame(np.asarray(cv2.cvtColor(taken, cv2.COLOR_BGR2RGB), np.uint8), time.time())
        finally:
            capture.release()

    def _video(self) -> Iterator[Frame]:
        """Frames of the video, at its own rate where it is live."""
        yield from self._frames_of(Path(self.where))

    def _frames_of(self, path: Path, file: str = "") -> Iterator[Frame]:
        with video.Video(path, self._reading.orientation) as reader:
            began = time.monotonic()
            for time_s, image in reader:
                if self.live and self._closing.wait(max(0.0, began + time_s - time.monotonic())):
                    return
                yield Frame(image, time.time(), file, time_s=time_s)
            if missing := reader.missing():
                log.warning("%s: %s", path, missing)

    def _pictures(self) -> Iterator[Frame]:
        """Each of the files, pictures and videos, once."""
        for path in self._files:
            if is_image_name(path.name):
                image = self._read(path)
                if image is not None:
                    yield Frame(image, time.time(), str(path))
                continue
            try:
                yield from self._frames_of(path, str(path))
            except AcclimateError as error:
                self._report(str(error))

    def _folder(self) -> Iterator[Frame | None]:
        """Images in the order in which they came, and None when there is no new one; with `once` until the last."""
        while not self._closing.is_set():
            waiting, settling = self._new_images()
            yield None
            for mark in waiting:
                path = Path(self.where, mark[1])
                if not path.exists():
                    continue
                image = self._read(path)
                self._mark = mark
                self._recent.append(mark)
                if image is not None:
                    yield Frame(image, time.time(), mark[1], mark, self._until if mark[0] < self._until else 0)
                if self._closing.is_set():
                    return
            if self._once and not waiting and not settling:
                return
            if not waiting:
                self._closing.wait(POLL_S)

    def _new_images(self) -> tuple[list[Mark], bool]:
        """Images after the mark, in order, and whether there are some that may still be written.

        What is remembered is one mark, however many images there are, and those that a clock has made to lie behind it
        although they were read. Whether an image is still being written is seen by the clock, or, of one that seems to
        come from the future, by looking again.
        """
        now, moment = time.time_ns(), time.monotonic()
        there = self._listed()
        if self._resumes:
            # An earlier process read up to `until` before the clock was set back; now it was set right, or not yet.
            mark = self._mark or (0, "")
            right = now >= self._until
            self._done |= {key for key in there if mark < key and key[0] <= self._until and (right or key[0] > now)}
            self._resumes = False
        if self._mark is not None and self._mark[0] > now:
            if not self._told_of_clock:
                log.warning("%s: the clock was set back, or images come from the future", masked(self.where))
            self._told_of_clock = True
            uncertain = now - round(UNCERTAIN_S * 1e9)
            read, recent = self._mark, set(self._recent)
            self._done |= {
                key for key in there if uncertain < key[0] and key <= read and (key[0] > now or key in recent)
            }
            self._until = max(self._until, read[0])
            self._mark = (uncertain, "")
        self._done &= there
        waiting, settling, unsettled = [], {}, False
        for key in there:
            if (self._mark is not None and key <= self._mark) or key in self._done:
                continue
            if key[0] > now - SETTLED_S * 1e9:
                settling[key] = self._settling.get(key, moment)
                if moment - settling[key] < SETTLED_S:
                    unsettled = True
                    continue
            waiting.append(key)
        self._settling = settling
        return sorted(waiting), unsettled

    def _listed(self) -> set[Mark]:
        """The images in the folder. When one changed is its `st_ctime`, which copying tools do not set back; of a link
        the later one of its own and the file's, as it may point to an old file."""
        there = set()
        with os.scandir(self.where) as entries:
            for entry in entries:
                if not is_image_name(entry.name):
                    if is_not_read(entry.name) and (ending := Path(entry.name).suffix) not in self._told_of_kinds:
                        self._told_of_kinds.add(ending)
                        log.warning("%s: %s", *not_read([entry.path])[0])
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if not entry.is_dir():
                        own = entry.stat(follow_symlinks=False).st_ctime_ns
                        there.add((max(own, entry.stat().st_ctime_ns), entry.name))
        return there

    def _read(self, path: Path) -> Image | None:
        try:
            return read_image(path, self._reading)
        except AcclimateError as error:
            self._report(str(error))
            return None

    def _report(self, problem: str) -> None:
        self.problems += 1
        self.trouble = masked(problem.removeprefix(f"{self.where}: "))
        log.warning("%s", problem)


def _files(where: str) -> list[Path]:
    """The pictures and videos that a pattern, a list or a picture means.

    Raises:
        AcclimateError: there is none.
    """
    path = Path(where)
    if not path.exists():
        found = matching(where) if is_pattern(where) else []
        files = [file for file in found if is_image_name(file.name) or file.suffix.lower() in video.SUFFIXES]
        if not files:
            what = "no picture or video matches" if is_pattern(where) else "no such file"
            raise AcclimateError(f"{where}: {what}; {TAKES}")
        return files
    if path.suffix.lower() != ".txt":
        return [path]
    listed = images_listed(path, (path.parent,))
    for name, problem in listed.problems:
        log.warning("%s: %s", name, problem)
    if not listed.paths:
        raise AcclimateError(f"{where}: lists no image that is there; {TAKES}")
    return list(listed.paths)


def _check_video(path: Path, reading: Reading) -> None:
    try:
        with video.Video(path, reading.orientation):
            pass
    except AcclimateError as error:
        raise AcclimateError(f"{error} ({TAKES})") from None


def _device(where: str) -> int | str:
    """A camera's number, of /dev/video2 and of a link such as /dev/v4l/by-id/... to it too; any other device as it is.

    Raises:
        AcclimateError: there is no such device.
    """
    if where.isdecimal():
        return int(where)
    path = os.path.realpath(where)
    if not os.path.lexists(path):
        raise AcclimateError(f"{where}: no such device")
    match = re.fullmatch(r"/dev/video(\d+)", path)
    return int(match[1]) if match else path
