"""One source that `watch` looks at: what happens to each of its frames, and what its page is told about it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from acclimate.edge.artifact import Reference
from acclimate.edge.collect import STRANGE, Collection
from acclimate.edge.counts import Counts
from acclimate.edge.credentials import masked
from acclimate.edge.journal import Journal
from acclimate.edge.monitor import (
    LOOK,
    OUTSIDE,
    THUMBNAIL,
    Adjustment,
    Monitor,
    Reading,
    answer,
    change_detector,
    doubt,
    look,
)
from acclimate.edge.outbox import Kind, Message, Outbox
from acclimate.edge.page import View
from acclimate.edge.predict import Predictor, as_json
from acclimate.edge.regions import LARGE, Regions
from acclimate.edge.source import Frame, Mark, Source
from acclimate.edge.timeline import Timeline
from acclimate.edge.tracks import Links
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.run import listed, read_json, write_bytes, write_text
from acclimate.structures import Detections

log = logging.getLogger(__name__)

DETECTIONS = "detections.jsonl"
EVENTS = "events.jsonl"
COLLECTED = "collected"
ALARMS = "alarms"
LEARNT = "reference.json"
ADJUSTED = "adjusted.json"
COUNTED = "counts.json"
KNOWN = (LEARNT, ADJUSTED, COUNTED)
"""What a device has found out by itself."""

PATIENCE = 15
"""Frames that a track goes on for unseen."""
GONE_S = 5.0
"""A camera, stream or video that gave nothing for so long counts as gone."""
ALARM_FOLDERS = 20
"""With more alarms than this, the oldest one's frames go."""
BEFORE, EVERY, AFTER = 4, 5, 4
"""Frames of an alarm: so many before it, each so many frames after the other, and so many after it."""
SAVE_EVERY = 500
"""Frames between two writings of what is adjusted and counted."""
MARKED = frozenset({"alarm", "over", "collapsed", "found", "gone", "there", "learnt"})
"""Events that the page's time line shows."""
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
        collapses: alarms as hardly anything was found.
        collected: frames in the folder of those worth sending home.
        tracks: begun, with those of earlier processes; 0 where boxes are not joined.
        seconds: from the first frame to the end.
    """

    frames: int
    dropped: int
    unreadable: int
    reopened: int
    lines: int
    unwritten: int
    alarms: int
    collapses: int
    collected: int
    tracks: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Manner:
    """How frames are looked at; see `watch` for each."""

    threshold: float | None = None
    keep: int = 100
    learn: int = 200
    adjust: bool = False
    collapse: float = 0.2
    track: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a station writes."""

    name: str
    """Of the source; empty where there is only one."""
    path: Path
    detections: Journal
    events: Journal

    @property
    def mark(self) -> tuple[Mark | None, int]:
        """Where an earlier process was in a folder of images, and before its clock was set back."""
        last = self.detections.last or {}
        changed, file = _whole(last, "changed_ns"), last.get("file")
        if changed is None or not isinstance(file, str):
            return None, 0
        return (changed, file), _whole(last, "until_ns") or 0

    @property
    def tracks(self) -> int:
        """How many tracks earlier processes have begun."""
        return _whole(self.detections.last or {}, "tracks") or 0

    @property
    def frames(self) -> int:
        """How many frames earlier processes have counted."""
        last = _whole(self.detections.last or {}, "frame")
        return 0 if last is None else last + 1


def _whole(line: Mapping[str, Any], key: str) -> int | None:
    """A whole number of a line that may be damaged."""
    value = line.get(key)
    return value if type(value) is int else None


class Station:
    """A source, its folder, and all that is known of it.

    Attributes:
        name: of the source where there are several; empty where it is the only one.
        source: where its frames come from.
        view: what the page shows of it.
        resumed: an earlier process has read from this folder of images.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: Source,
        folder: Folder,
        manner: Manner,
        regions: Regions,
        outboxes: Sequence[Outbox] = (),
    ) -> None:
        """Take up what an earlier process has found out.

        Args:
            predictor: detects; shared by all stations.
            source: not yet opened.
            folder: where all of it is written.
            manner: how frames are looked at.
            regions: what of them does not count.
            outboxes: where events and lines go besides.

        Raises:
            AcclimateError: the regions leave nothing of the frame.
        """
        manifest = predictor.manifest
        self.name, self.source = folder.name, source
        self._predictor, self._out, self._outboxes = predictor, folder.path, outboxes
        self._detections, self._events = folder.detections, folder.events
        self._shown = manifest.show_threshold if manner.threshold is None else manner.threshold
        self.resumed = folder.mark[0] is not None
        self._number = folder.frames
        self._regions = regions
        self._kept = regions.kept(THUMBNAIL) if regions else None
        if self._kept is not None and not self._kept.any():
            raise AcclimateError("--leave-out leaves nothing of the frame")
        self._tracks = manner.track
        self._links = Links(begun=folder.tracks, patience=PATIENCE, follow=True)
        self._frames = 0
        self._size: tuple[int, int] | None = None
        self._where = masked(source.where)
        self._began = 0.0
        self._newest = time.monotonic()
        self._interval = 0.0
        self._latency_ms = 0.0
        self._present = False
        self._stopped = False
        self._failed = False
        self._time = ""
        self._reading = Reading(None, "learning")
        self._found: list[dict[str, Any]] = []
        self._collection = Collection(folder.path / COLLECTED, manner.keep)
        self._before: deque[bytes] = deque(maxlen=BEFORE)
        self._alarm_folder: Path | None = None
        self._after = 0
        self._adjusts = manner.adjust
        self._adjustment: Adjustment | None = None
        self._told: NDArray[np.float64] = np.zeros(0)
        self._detector = change_detector()
        if self._detector is None:
            log.warning("no drift alarms: river is not installed (%s); scores are shown", hint("watch"))
        # What is left of a frame without large regions is another picture than those that the reference is of.
        own = manifest.reference if regions.share < LARGE else None
        known = own or self._learnt()
        self._monitor = Monitor(known, manner.learn, self._detector, len(manifest.classes))
        self._collapse = manner.collapse
        self._counts = Counts(None, manner.collapse)
        self._timeline = Timeline()
        if known is None:
            why = "knows whole frames alone" if manifest.reference else "has no reference statistics"
            log.warning(
                "%s: %s; they are learnt from the first %d frames, which count as its domain",
                predictor.artifact.folder, why, self._monitor.to_learn,
            )  # fmt: skip
        else:
            self._knows(known)
        self.view = View(manifest.classes, self.status, history=self._timeline.as_json)
        self._tell("started", artifact=predictor.artifact.digest, source=masked(source.where), frame=self._number)

    def take(self, frame: Frame, found: Detections) -> None:
        """Write the line of a frame in which this was found, and look at what it says of the domain."""
        manifest = self._predictor.manifest
        now = time.monotonic()
        self._began = self._began or now
        found = self._regions.outside(found, (frame.image.shape[0], frame.image.shape[1]))
        features = np.concatenate([look(frame.image, self._kept), answer(found, manifest.show_threshold)])
        usual = found.above(manifest.show_threshold)
        self._reading = self._monitor.update(features, np.bincount(usual.labels, minlength=len(manifest.classes)))
        sure = found.scores >= self._thresholds()[found.labels]
        shown = found[sure]
        self._found = as_json(shown, manifest.classes)
        if self._tracks:
            self._links.step(found, sure)
            numbers = [number for number, of_one in zip(self._links.numbers, sure, strict=True) if of_one]
            self._found = [one | {"track": number} for one, number in zip(self._found, numbers, strict=True)]
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
            # Without tracking too, where a folder has some: the last line tells a later process where to count on.
            **({"tracks": self._links.begun} if self._tracks or self._links.begun else {}),
            "detections": self._found,
        }
        self._detections.write(line)
        self._send("detections", line)
        self._look_at_size(frame)
        self._look_at_counts(frame, len(usual))
        self._look_after(frame, found, features)
        self.view.latest = (self._number, frame.image, shown)
        ended = time.time()
        self._latency_ms = max(0.0, 1e3 * (ended - frame.taken))
        self._timeline.add(ended, score, len(shown), self._latency_ms)
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
        if self.source.present != self._present:
            self._present = self.source.present
            self._tell("there" if self._present else "gone", source=masked(self.source.where))

    @property
    def _state(self) -> str:
        """`learning`, `alarm`, `collapsed`, `low` or `ok`: the worst of what drift and counts say."""
        drift = self._monitor.state
        return self._counts.state if drift == "ok" and self._counts.state in {"low", "collapsed"} else drift

    def status(self) -> dict[str, Any]:
        """For the page and /health; called in its threads."""
        source, monitor, counts, manifest = self.source, self._monitor, self._counts, self._predictor.manifest
        quiet = time.monotonic() - self._newest
        gone = not source.present or (source.kind not in {"folder", "files"} and quiet > GONE_S)
        latest = self.view.latest
        return {
            "status": "stopped" if self._stopped else "gone" if gone else self._state,
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
            "counts": {
                "now": None if counts.now is None else round(counts.now, 2),
                "usual": None if counts.usual is None else round(counts.usual, 2),
                "share": self._collapse,
                "state": counts.state,
                "alarms": counts.alarms,
            },
            "latency_ms": round(self._latency_ms, 1),
            "output": {"lines": self._detections.written, "unwritten": self._detections.unwritten},
            "collected": len(self._collection),
            "detections": self._found,
        }

    def finish(self) -> Summary:
        """Write what is not yet written, and say what was done."""
        self._save_adjusted()
        self._save_counted()
        self._stopped = True
        summary = Summary(
            frames=self._frames,
            dropped=self.source.dropped,
            unreadable=self.source.problems,
            reopened=self.source.reopened,
            lines=self._detections.written,
            unwritten=self._detections.unwritten,
            alarms=self._monitor.alarms,
            collapses=self._counts.alarms,
            collected=len(self._collection),
            tracks=self._links.begun if self._tracks else 0,
            seconds=round(time.monotonic() - self._began, 1) if self._began else 0.0,
        )
        self._tell("stopped", **asdict(summary))
        return summary

    def _look_at_size(self, frame: Frame) -> None:
        """Tell when a camera, a stream or a video goes on with frames of another size."""
        size = (frame.image.shape[1], frame.image.shape[0])
        if frame.mark is None and self._size not in {None, size} and self.source.kind != "files":
            self._tell("size", frame=self._number, width=size[0], height=size[1])
            log.warning("%s: from frame %d on frames have %d x %d pixels", self._where, self._number, *size)
        self._size = size

    def _look_at_counts(self, frame: Frame, count: int) -> None:
        """Alarms as hardly anything is found; where the input is foreign, that explains it."""
        counts = self._counts
        if self._monitor.state != "ok" or self._reading.score is None:
            if counts.pause():
                self._tell("found", frame=self._number, why="drift")
            return
        if not counts.update(count, frame.taken):
            return
        facts = {"frame": self._number, "now": round(counts.now or 0.0, 3), "usual": round(counts.usual or 0.0, 3)}
        if counts.state == "collapsed":
            self._tell("collapsed", **facts)
            log.warning(
                "%s: hardly anything has been found up to frame %d (%.2f boxes a frame, usually %.2f), though "
                "the frames look as they should; look at the camera and the artifact",
                self._where, self._number, counts.now or 0.0, counts.usual or 0.0,
            )  # fmt: skip
        else:
            self._tell("found", **facts)
            log.warning("%s: about as much is found as usual again (frame %d)", self._where, self._number)

    def _save_counted(self) -> None:
        values = {"artifact": self._predictor.artifact.digest, **self._counts.as_json()}
        self._attempt(lambda: write_text(self._out / COUNTED, json.dumps(values, indent=1) + "\n"))

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
            self._save_counted()

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
            if values["artifact"] == self._predictor.artifact.digest and values.get("regions", []) == self._left_out():
                return Reference.model_validate(values["reference"])
            log.warning("%s: was learnt with another artifact, or other regions; learning anew", file)
        except (AcclimateError, ValueError, KeyError, TypeError):
            log.warning("%s: damaged; learning anew", file)
        return None

    def _learn(self) -> None:
        reference = self._monitor.reference
        assert reference is not None
        values: dict[str, Any] = {
            "artifact": self._predictor.artifact.digest,
            "reference": reference.model_dump(mode="json"),
        }
        if self._regions:
            values["regions"] = self._left_out()
        self._attempt(lambda: write_text(self._out / LEARNT, json.dumps(values, indent=1) + "\n"))
        self._tell("learnt", frame=self._number, frames=reference.images)
        log.warning("learnt from %d frames what the domain looks like; %s", reference.images, self._out / LEARNT)
        self._knows(reference)

    def _left_out(self) -> list[list[list[float]]]:
        return [[list(corner) for corner in polygon] for polygon in self._regions.polygons]

    def _knows(self, reference: Reference) -> None:
        self._collection.scale(reference)
        live = self.source.live
        self._counts = Counts(sum(reference.rates), self._collapse, live)
        counted = self._out / COUNTED
        if counted.is_file():
            text = counted.read_text(errors="replace")
            if not (self._predictor.artifact.digest in text and self._counts.take_up(text)):
                log.warning("%s: damaged or of another artifact; counting anew", counted)
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
        now = time.time()
        line = {"event": event, "time": _stamp(now), **facts}
        self._events.write(line)
        self._send("event", line)
        if event in MARKED:
            self._timeline.mark(now, event)

    def _send(self, kind: Kind, line: dict[str, Any]) -> None:
        for outbox in self._outboxes:
            outbox.put(Message(kind, self.name, line))


def _jpeg(frame: Frame) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(frame.image), quality=90, colorspace="RGB")
    return data


def _stamp(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03}Z"
