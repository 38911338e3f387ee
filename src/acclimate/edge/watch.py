"""Detection that goes on by itself on the device: frames in, JSON lines out, a live page, and an eye on the domain."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rich.console import Console

from acclimate.edge.artifact import Reference
from acclimate.edge.collect import STRANGE, Collection
from acclimate.edge.credentials import masked
from acclimate.edge.journal import Journal
from acclimate.edge.monitor import (
    LOOK,
    OUTSIDE,
    Adjustment,
    Monitor,
    Reading,
    answer,
    change_detector,
    doubt,
    look,
)
from acclimate.edge.package import Expected
from acclimate.edge.page import Page, View
from acclimate.edge.predict import Predictor, as_json
from acclimate.edge.source import Frame, Mark, Source
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.run import listed, locked, read_json, stop_signal, write_bytes, write_text, writing
from acclimate.structures import Detections

log = logging.getLogger(__name__)

DETECTIONS = "detections.jsonl"
EVENTS = "events.jsonl"
COLLECTED = "collected"
ALARMS = "alarms"
LEARNT = "reference.json"
ADJUSTED = "adjusted.json"

GONE_S = 5.0
"""A camera, stream or video that gave nothing for so long counts as gone."""
WAIT_S = 0.25
"""The longest that the loop waits for a frame before it looks whether it is asked to stop."""
ALARM_FOLDERS = 20
"""With more alarms than this, the oldest one's frames go."""
BEFORE, EVERY, AFTER = 4, 5, 4
"""Frames of an alarm: so many before it, each so many frames after the other, and so many after it."""
SAVE_EVERY = 500
"""Frames between two writings of what is adjusted."""
SAID = 0.02
"""A threshold that moved by so much since the last time is told."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call of `watch` did.

    Attributes:
        frames: processed.
        dropped: read from the source and not processed, as newer ones were there.
        unreadable: images of a folder that could not be read.
        reopened: how often the source came back.
        lines: of detections, written.
        unwritten: of detections, for want of space.
        alarms: of drift.
        collected: frames in the folder of those worth sending home.
        seconds: from the first frame to the end.
    """

    frames: int
    dropped: int
    unreadable: int
    reopened: int
    lines: int
    unwritten: int
    alarms: int
    collected: int
    seconds: float


def watch(
    artifact: str | Path,
    source: str,
    out: str | Path,
    *,
    threshold: float | None = None,
    threads: int = 1,
    fps: float | None = None,
    once: bool = False,
    page: bool = True,
    bind: str = "127.0.0.1",
    port: int = 8350,
    token: str | None = None,
    keep: int = 100,
    learn: int = 200,
    adjust: bool = False,
    reset: bool = False,
    file_mb: float = 16.0,
    files: int = 16,
    expected: Expected = "",
    console: Console | None = None,
) -> Summary:
    """Detect in what a source gives until it is asked to stop (SIGTERM, Ctrl-C) or, with `once`, the source ends.

    Writes into `out`

    - `detections.jsonl`, a line a frame: `frame` (a number that goes on over restarts), `time` (UTC), `width`,
      `height`, `drift` (the score; null while a reference is learnt) and `detections` as `predict` writes them; of a
      folder's images also `file` and `changed_ns` (and `until_ns` while a clock is set back), of pictures `file`, of a
      video `time_s`. Older lines are in `detections.000001.jsonl` and so on.
    - `events.jsonl`, likewise: `started`, `stopped`, `there`, `gone`, `size`, `learnt`, `alarm`, `over`, `adjusted`.
    - `alarms/TIME/`: `alarm.json` and frames before and after it.
    - `collected/`: frames worth sending home; see `edge.collect`.
    - `reference.json`, where the artifact brings none and one was learnt; `adjusted.json`, with `adjust`.

    Called again with the same `out` it goes on: numbers follow each other, and of a folder only images that are newer
    than the last line are read. A disk that is full is told once; detection goes on, and what cannot be written is
    counted.

    Args:
        artifact: an artifact's folder, or a package.
        source: the number or device of a camera, the address of a stream (rtsp://...), a video, a picture, a .txt list,
            a pattern of pictures and videos, or a folder that is being filled. Pictures end as with `once`.
        out: the folder to write; of one process at a time.
        threshold: lowest score that is written; None means the artifact's own.
        threads: of the network.
        fps: frames a second at most, evenly spaced; None is as many as there are and as can be done.
        once: end with the video or with the folder's last image, and drop none.
        page: serve the live page.
        bind: the address it listens at. Other than a loopback address it needs a token.
        port: 0 is any that is free.
        token: at least 12 characters; None makes one where one is needed.
        keep: frames worth sending home, at most; 0 keeps none.
        learn: frames that make the reference where the artifact brings none.
        adjust: let thresholds and the mean of the reference follow the site; see `edge.monitor.Adjustment`.
        reset: first forget what was learnt and adjusted.
        file_mb: size of a file of lines, in 10^6 bytes.
        files: of lines, at most; beyond, the oldest goes.
        expected: the digest that the package must have, or by whom it must be signed.
        console: where the address of the page and the summary go.

    Raises:
        AcclimateError: the artifact cannot be used, another process writes into `out`, it cannot be written, the page's
            address is taken, `source` is a file that cannot be read, it and options do not go together, or it ended
            and no frame of it could be read.
    """
    if adjust and threshold is not None:
        raise AcclimateError("--adjust moves the artifact's own thresholds; leave out --threshold")
    if fps is not None and not fps > 0:
        raise AcclimateError(f"--fps {fps}: give a number above 0")
    out = Path(out)
    predictor = Predictor.load(Path(artifact), threads, expected)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out, "watch"))
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            for name in (ADJUSTED, LEARNT) if reset else ():
                (out / name).unlink(missing_ok=True)
        detections = stack.enter_context(Journal(out / DETECTIONS, round(1e6 * file_mb), files))
        events = stack.enter_context(Journal(out / EVENTS, 1_000_000, 4))
        mark, until = _mark(detections.last)
        camera = Source(source, once=once, mark=mark, until=until, reading=predictor.manifest.reading)
        loop = _Loop(predictor, camera, out, detections, events, threshold, keep, learn, adjust)
        if page:
            server = stack.enter_context(Page(loop.view, bind, port, token))
            if console is not None:
                console.print(f"live page: {server.address}", markup=False, highlight=False)
        if console is not None:
            console.print(f"{masked(source)}: watching; lines go to {out / DETECTIONS}", markup=False, highlight=False)
        stopped = stack.enter_context(stop_signal())
        try:
            with camera:
                for frame in _paced(camera, fps, stopped.is_set, stopped.wait, loop.idle):
                    loop.take(frame)
        finally:
            summary = loop.finish()
            if console is not None:
                _say(console, summary)
        if camera.ended and not summary.frames and (mark is None or camera.kind != "folder" or summary.unreadable):
            raise AcclimateError(f"{masked(source)}: nothing was read ({camera.trouble or 'there is no image in it'})")
    return summary


def _paced(
    source: Source,
    fps: float | None,
    stopped: Callable[[], bool],
    wait: Callable[[float], bool],
    idle: Callable[[], None],
) -> Iterator[Frame]:
    """Frames until the end, evenly spaced; a moment that was missed is left out rather than made up for."""
    due = time.monotonic()
    while not stopped() and not source.ended:
        now = time.monotonic()
        if fps is not None and now < due:
            wait(min(due - now, WAIT_S))
            continue
        frame = source.next(WAIT_S)
        if frame is None:
            idle()
            continue
        if fps is not None:
            now = time.monotonic()
            due = due + 1 / fps if due + 1 / fps > now else now + 1 / fps
        yield frame


class _Loop:
    """What happens to each frame, and what the page is told about it."""

    def __init__(
        self,
        predictor: Predictor,
        source: Source,
        out: Path,
        detections: Journal,
        events: Journal,
        threshold: float | None,
        keep: int,
        learn: int,
        adjust: bool,
    ) -> None:
        manifest = predictor.manifest
        self._predictor, self._source, self._out = predictor, source, out
        self._detections, self._events = detections, events
        self._shown = manifest.show_threshold if threshold is None else threshold
        self._number = int(detections.last["frame"]) + 1 if detections.last and "frame" in detections.last else 0
        self._frames = 0
        self._size: tuple[int, int] | None = None
        self._where = masked(source.where)
        self._began = 0.0
        self._newest = time.monotonic()
        self._interval = 0.0
        self._present = False
        self._stopped = False
        self._failed = False
        self._time = ""
        self._reading = Reading(None, "learning")
        self._found: list[dict[str, Any]] = []
        self._collection = Collection(out / COLLECTED, keep)
        self._before: deque[bytes] = deque(maxlen=BEFORE)
        self._alarm_folder: Path | None = None
        self._after = 0
        self._adjusts = adjust
        self._adjustment: Adjustment | None = None
        self._told: NDArray[np.float64] = np.zeros(0)
        self._detector = change_detector()
        if self._detector is None:
            log.warning("no drift alarms: river is not installed (%s); scores are shown", hint("watch"))
        known = manifest.reference or self._learnt()
        self._monitor = Monitor(known, learn, self._detector, len(manifest.classes))
        if known is None:
            log.warning(
                "%s: has no reference statistics; they are learnt from the first %d frames, which count as its domain",
                predictor.artifact.folder, self._monitor.to_learn,
            )  # fmt: skip
        else:
            self._knows(known)
        self.view = View(manifest.classes, self.status)
        self._tell("started", artifact=predictor.artifact.digest, source=masked(source.where), frame=self._number)

    def take(self, frame: Frame) -> None:
        """Detect in a frame, write its line, and look at what it says of the domain."""
        manifest = self._predictor.manifest
        now = time.monotonic()
        self._began = self._began or now
        found = self._predictor(frame.image)
        features = np.concatenate([look(frame.image), answer(found, manifest.show_threshold)])
        usual = found.above(manifest.show_threshold)
        self._reading = self._monitor.update(features, np.bincount(usual.labels, minlength=len(manifest.classes)))
        shown = found[found.scores >= self._thresholds()[found.labels]]
        self._found = as_json(shown, manifest.classes)
        self._time = _stamp(frame.taken)
        score = self._reading.score
        line: dict[str, Any] = {"frame": self._number, "time": self._time}
        if frame.mark is not None:
            line |= {"file": frame.file, "changed_ns": frame.mark[0]}
            if frame.until:
                line["until_ns"] = frame.until
        elif frame.file:
            line["file"] = frame.file
        if frame.time_s is not None:
            line["time_s"] = round(frame.time_s, 4)
        line |= {
            "width": frame.image.shape[1],
            "height": frame.image.shape[0],
            "drift": None if score is None else round(score, 3),
            "detections": self._found,
        }
        self._detections.write(line)
        self._look_at_size(frame)
        self._look_after(frame, found, features)
        self.view.latest = (self._number, frame.image, shown)
        if self._frames:
            # Of the last ten frames or so.
            interval = now - self._newest
            self._interval += (interval - self._interval) * (0.1 if self._interval else 1.0)
        self._newest = now
        self._frames += 1
        self._number += 1
        self.idle()

    def idle(self) -> None:
        """Tell when the source went or came; also called while there is no frame."""
        if self._source.present != self._present:
            self._present = self._source.present
            self._tell("there" if self._present else "gone", source=masked(self._source.where))

    def status(self) -> dict[str, Any]:
        """For the page and /health; called in its threads."""
        source, monitor, manifest = self._source, self._monitor, self._predictor.manifest
        quiet = time.monotonic() - self._newest
        gone = not source.present or (source.kind not in {"folder", "files"} and quiet > GONE_S)
        latest = self.view.latest
        return {
            "status": "stopped" if self._stopped else "gone" if gone else monitor.state,
            "artifact": {
                "name": manifest.name,
                "runtime": manifest.runtime,
                "precision": manifest.precision,
                "digest": self._predictor.artifact.digest,
            },
            "source": {"where": masked(source.where), "present": not gone, "reopened": source.reopened},
            "frame": latest[0] if latest else None,
            "time": self._time or None,
            "frames": self._frames,
            "rate": round(1 / self._interval if self._interval and quiet < GONE_S else 0.0, 2),
            "dropped": source.dropped,
            "drift": {
                "score": None if self._reading.score is None else round(self._reading.score, 2),
                "level": round(monitor.level, 2),
                "outside": OUTSIDE,
                "alarm": monitor.state == "alarm",
                "alarms": monitor.alarms,
                "detector": self._detector is not None,
                "to_learn": monitor.to_learn,
            },
            "output": {"lines": self._detections.written, "unwritten": self._detections.unwritten},
            "collected": len(self._collection),
            "detections": self._found,
        }

    def finish(self) -> Summary:
        """Write what is not yet written, and say what was done."""
        self._save_adjusted()
        self._stopped = True
        summary = Summary(
            frames=self._frames,
            dropped=self._source.dropped,
            unreadable=self._source.problems,
            reopened=self._source.reopened,
            lines=self._detections.written,
            unwritten=self._detections.unwritten,
            alarms=self._monitor.alarms,
            collected=len(self._collection),
            seconds=round(time.monotonic() - self._began, 1) if self._began else 0.0,
        )
        self._tell("stopped", **asdict(summary))
        return summary

    def _look_at_size(self, frame: Frame) -> None:
        """Tell when a camera, a stream or a video goes on with frames of another size."""
        size = (frame.image.shape[1], frame.image.shape[0])
        if frame.mark is None and self._size not in {None, size} and self._source.kind != "files":
            self._tell("size", frame=self._number, width=size[0], height=size[1])
            log.warning("%s: from frame %d on frames have %d x %d pixels", self._where, self._number, *size)
        self._size = size

    def _look_after(self, frame: Frame, found: Detections, features: NDArray[np.float64]) -> None:
        """Alarms, the collection, the adjustment."""
        reading, manifest = self._reading, self._predictor.manifest
        if reading.changed and reading.state == "alarm":
            self._raise_alarm(frame, reading)
        elif reading.changed and reading.score is None:
            self._learn()
        elif reading.changed:
            self._tell("over", frame=self._number, level=round(self._monitor.level, 2))
            log.warning("drift: the frames look like the domain again (frame %d)", self._number)
        if self._after:
            self._after -= 1
            self._keep_for_alarm(f"after-{AFTER - self._after}", _jpeg(frame))
        elif self._frames % EVERY == 0:
            self._before.append(_jpeg(frame))
        if self._monitor.reference is not None:
            strange = reading.score is not None and reading.score > OUTSIDE
            unsure = STRANGE if strange else doubt(found, manifest.show_threshold)
            self._attempt(lambda: self._collection.offer(frame.image, features[: len(LOOK)], unsure, frame.taken))
        if self._adjustment is not None:
            self._adjustment.update(found, features, reading.state)
            self._monitor.refresh(self._adjustment.mean)
            if self._frames % SAVE_EVERY == SAVE_EVERY - 1:
                self._save_adjusted()

    def _raise_alarm(self, frame: Frame, reading: Reading) -> None:
        self._alarm_folder = self._out / ALARMS / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(frame.taken))
        record = {
            "time": _stamp(frame.taken),
            "frame": self._number,
            "score": None if reading.score is None else round(reading.score, 3),
            "level": round(self._monitor.level, 3),
            "group": reading.group,
            "moved": dict(reading.moved),
            "artifact": self._predictor.artifact.digest,
        }
        self._tell("alarm", **record, folder=f"{ALARMS}/{self._alarm_folder.name}")
        names = ", ".join(name for name, _ in reading.moved[:3])
        which = "the last frames, taken together," if reading.group else "the frames"
        log.warning(
            "drift: since about frame %d %s are unlike the domain (most in %s); %s",
            self._number, which, names, self._alarm_folder,
        )  # fmt: skip
        folder, text = self._alarm_folder, json.dumps(record, indent=1) + "\n"
        self._attempt(lambda: write_text(folder / "alarm.json", text))
        for number, data in enumerate(self._before, 1):
            self._keep_for_alarm(f"before-{number}", data)
        self._before.clear()
        self._after = AFTER
        for old in listed(self._out / ALARMS, "*")[:-ALARM_FOLDERS]:
            shutil.rmtree(old, ignore_errors=True)

    def _keep_for_alarm(self, name: str, data: bytes) -> None:
        folder = self._alarm_folder
        if folder is not None:
            self._attempt(lambda: write_bytes(folder / f"{name}.jpg", data))

    def _attempt(self, write: Callable[[], object]) -> None:
        """Write something that is not detections; what fails is told once and forgone."""
        try:
            write()
            self._failed = False
        except (AcclimateError, OSError) as error:
            if not self._failed:
                log.error("%s", error)
            self._failed = True

    def _thresholds(self) -> NDArray[np.float64]:
        if self._adjustment is not None:
            return self._adjustment.thresholds
        return np.full(len(self._predictor.manifest.classes), self._shown)

    def _learnt(self) -> Reference | None:
        """The reference that an earlier process has learnt for this artifact."""
        file = self._out / LEARNT
        if not file.is_file():
            return None
        try:
            values = read_json(file)
            if values["artifact"] == self._predictor.artifact.digest:
                return Reference.model_validate(values["reference"])
            log.warning("%s: was learnt with another artifact; learning anew", file)
        except (AcclimateError, ValueError, KeyError, TypeError):
            log.warning("%s: damaged; learning anew", file)
        return None

    def _learn(self) -> None:
        reference = self._monitor.reference
        assert reference is not None
        values = {"artifact": self._predictor.artifact.digest, "reference": reference.model_dump(mode="json")}
        self._attempt(lambda: write_text(self._out / LEARNT, json.dumps(values, indent=1) + "\n"))
        self._tell("learnt", frame=self._number, frames=reference.images)
        log.warning("learnt from %d frames what the domain looks like; %s", reference.images, self._out / LEARNT)
        self._knows(reference)

    def _knows(self, reference: Reference) -> None:
        self._collection.scale(reference)
        if not self._adjusts:
            return
        self._adjustment = Adjustment(self._predictor.manifest, reference)
        file = self._out / ADJUSTED
        if file.is_file():
            text = file.read_text(errors="replace")
            if self._predictor.artifact.digest in text and self._adjustment.take_up(text):
                log.warning("%s: going on with it; --reset forgets it", file)
            else:
                log.warning("%s: damaged or of another artifact; beginning with the artifact's own", file)
        self._told = self._adjustment.thresholds.copy()
        self._monitor.refresh(self._adjustment.mean)

    def _save_adjusted(self) -> None:
        adjustment = self._adjustment
        if adjustment is None:
            return
        values = {"artifact": self._predictor.artifact.digest, **adjustment.as_json()}
        self._attempt(lambda: write_text(self._out / ADJUSTED, json.dumps(values, indent=1) + "\n"))
        if np.abs(adjustment.thresholds - self._told).max(initial=0.0) >= SAID:
            self._told = adjustment.thresholds.copy()
            self._tell("adjusted", frame=self._number, thresholds=values["thresholds"])
            log.warning("adjusted thresholds: %s", values["thresholds"])

    def _tell(self, event: str, **facts: Any) -> None:
        self._events.write({"event": event, "time": _stamp(time.time()), **facts})


def _mark(last: dict[str, Any] | None) -> tuple[Mark | None, int]:
    """Where an earlier process was in a folder of images, and before its clock was set back."""
    if not last or "changed_ns" not in last or "file" not in last:
        return None, 0
    return (int(last["changed_ns"]), str(last["file"])), int(last.get("until_ns", 0))


def _jpeg(frame: Frame) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(frame.image), quality=90, colorspace="RGB")
    return data


def _stamp(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03}Z"


def _say(console: Console, summary: Summary) -> None:
    lost = f", {summary.unwritten} lines could not be written" if summary.unwritten else ""
    console.print(
        f"{summary.frames} frames in {summary.seconds:.0f} s ({summary.dropped} dropped), {summary.lines} lines{lost}, "
        f"{summary.alarms} drift alarms, {summary.collected} frames to send home",
        highlight=False,
    )
