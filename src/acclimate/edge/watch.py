"""Detection that goes on by itself on the device: frames in, JSON lines out, a live page, and an eye on the domain."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from acclimate.edge import pipeline
from acclimate.edge.artifact import Running
from acclimate.edge.credentials import masked
from acclimate.edge.journal import Journal
from acclimate.edge.outbox import Mqtt, Outbox, Receiver, Webhook
from acclimate.edge.package import Expected
from acclimate.edge.page import Page
from acclimate.edge.predict import AS_IT_SAYS, Predictor
from acclimate.edge.regions import Polygon, Regions, polygon
from acclimate.edge.source import Frame, Source
from acclimate.edge.station import DETECTIONS, EVENTS, KNOWN, Folder, Manner, Station, Summary
from acclimate.errors import AcclimateError
from acclimate.run import locked, stop_signal, writing

WAIT_S = 0.25
"""The longest that the loop waits for a frame before it looks whether it is asked to stop."""
TURN_S = 0.005
"""How long it waits where none of several sources has one."""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})=(.*)", re.DOTALL)

_Job = tuple[Station, Frame, Any]
"""A frame of a station, and what a stage has made of it."""
Sources = Mapping[str, str]
"""Name of each source, empty where there is only one without a name -> what it is."""


def watch(
    artifact: str | Path,
    source: str | Sequence[str],
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
    collapse: float = 0.2,
    track: bool = False,
    leave_out: Sequence[str] = (),
    running: Running = AS_IT_SAYS,
    webhook: str = "",
    mqtt: str = "",
    send_detections: bool = False,
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
      video `time_s`. With `track` each detection has the number of its `track`; the line then, and ever after, has
      `tracks`, how many have begun so far. Older lines are in `detections.000001.jsonl` and so on.
    - `events.jsonl`, likewise: `started`, `stopped`, `there`, `gone`, `size`, `learnt`, `alarm`, `over`, `collapsed`,
      `found`, `adjusted`.
    - `alarms/TIME/`: `alarm.json` and frames before and after it.
    - `collected/`: frames worth sending home; see `edge.collect`.
    - `reference.json`, where the artifact brings none and one was learnt; `adjusted.json`, with `adjust`;
      `counts.json`, how much is usually found.

    A source that has a name writes into a folder of that name in `out`.

    Called again with the same `out` it goes on: numbers follow each other, and of a folder only images that are newer
    than the last line are read. A disk that is full is told once; detection goes on, and what cannot be written is
    counted.

    Args:
        artifact: an artifact's folder, or a package.
        source: the number or device of a camera, the address of a stream (rtsp://...), a video, a picture, a .txt list,
            a pattern of pictures and videos, or a folder that is being filled. Pictures end as with `once`. Several
            are NAME=SOURCE each.
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
        reset: first forget what was learnt, adjusted and counted.
        collapse: share of the usual number of boxes below which it is an alarm in the end; 0 is never.
        track: join the boxes of successive frames to tracks; see `edge.tracks`.
        leave_out: regions that do not count, for boxes and for drift; see `regions_of`.
        running: what is to be otherwise than the artifact says.
        webhook: where events are sent; see `edge.outbox.Webhook`.
        mqtt: likewise; see `edge.outbox.Mqtt`.
        send_detections: send every line of detections too.
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
    out, wheres = Path(out), sources_of(source)
    regions = regions_of(leave_out, wheres)
    receivers: list[Receiver] = [*map(Webhook, [webhook] if webhook else []), *map(Mqtt, [mqtt] if mqtt else [])]
    predictor = Predictor.load(Path(artifact), threads, expected, running=running)
    manner = Manner(threshold, keep, learn, adjust, collapse, track)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out, "watch"))
        outboxes = [stack.enter_context(Outbox(receiver, detections=send_detections)) for receiver in receivers]
        stations = []
        for name, where in wheres.items():
            folder = stack.enter_context(_folder(out, name, reset, round(1e6 * file_mb), files))
            mark, until = folder.mark
            camera = Source(where, once=once, mark=mark, until=until, reading=predictor.manifest.reading)
            stations.append(Station(predictor, camera, folder, manner, regions[name], outboxes))
        if page:
            server = stack.enter_context(Page({one.name: one.view for one in stations}, bind, port, token))
            if console is not None:
                console.print(f"live page: {server.address}", markup=False, highlight=False)
        if console is not None:
            for name, where in wheres.items():
                told = f"{masked(where)}: watching; lines go to {out / name / DETECTIONS}"
                console.print(told, markup=False, highlight=False)
        stopped = stack.enter_context(stop_signal())
        try:
            with contextlib.ExitStack() as opened:
                for one in stations:
                    opened.enter_context(one.source)
                _go(predictor, stations, _paced(stations, fps, stopped.is_set, stopped.wait))
        finally:
            summaries = [one.finish() for one in stations]
            summary = _total(summaries)
            if console is not None:
                _say(console, summary)
        for one, own in zip(stations, summaries, strict=True):
            camera = one.source
            nothing = camera.ended and not own.frames
            if nothing and (not one.resumed or camera.kind != "folder" or own.unreadable):
                why = camera.trouble or "there is no image in it; those of subfolders are not read"
                raise AcclimateError(f"{masked(camera.where)}: nothing was read ({why})")
    return summary


def sources_of(source: str | Sequence[str]) -> Sources:
    """What `--source` means: one source, or several that are each written NAME=SOURCE.

    Raises:
        AcclimateError: there is none, one of several has no name, or two have the same.
    """
    given = [source] if isinstance(source, str) else list(source)
    found: dict[str, str] = {}
    for text in given:
        match = None if Path(text[:4000].replace("\0", "")).exists() else _NAMED.fullmatch(text)
        name, where = (match[1], match[2]) if match else ("", text)
        if name in found or (not name and len(given) > 1) or not where:
            raise AcclimateError(
                f"--source {masked(text)}: of several sources each has a name of its own: --source gate=0 "
                "--source yard=rtsp://camera.site/stream"
            )
        found[name] = where
    if not found:
        raise AcclimateError("--source: names no source")
    return found


def regions_of(leave_out: Sequence[str], sources: Sequence[str] | Sources) -> dict[str, Regions]:
    """What `--leave-out` leaves out of each source: a polygon, or NAME=polygon for the source of that name.

    Raises:
        AcclimateError: see `edge.regions.polygon`, or there is no source of that name.
    """
    polygons: dict[str, list[Polygon]] = {name: [] for name in sources}
    for text in leave_out:
        name, named, corners = text.rpartition("=")
        if named and name not in polygons:
            raise AcclimateError(
                f"--leave-out {text}: no source is called {name} ({', '.join(filter(None, polygons))})"
            )
        for one in [name] if named else list(polygons):
            polygons[one].append(polygon(corners))
    return {name: Regions(found) for name, found in polygons.items()}


@contextlib.contextmanager
def _folder(out: Path, name: str, reset: bool, file_bytes: int, files: int) -> Iterator[Folder]:
    path = out / name
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        for known in KNOWN if reset else ():
            (path / known).unlink(missing_ok=True)
    with Journal(path / DETECTIONS, file_bytes, files) as detections, Journal(path / EVENTS, 1_000_000, 4) as events:
        yield Folder(name, path, detections, events)


def _go(predictor: Predictor, stations: Sequence[Station], frames: Iterator[tuple[Station, Frame] | None]) -> None:
    """Hand each frame, with what was found in it, to its station; a moment without a frame to all."""

    def prepare(given: tuple[Station, Frame] | None) -> _Job | None:
        return None if given is None else (*given, predictor.pieces(given[1].image))

    def compute(given: _Job | None) -> _Job | None:
        return None if given is None else (given[0], given[1], (given[2], predictor.answers(given[2])))

    def take(given: _Job | None) -> None:
        if given is not None:
            station, frame, (pieces, answers) = given
            station.take(frame, predictor.gather(pieces, answers))
        for one in stations:
            one.idle()

    # One frame between two stages: what waits there grows old.
    ahead = min(1, pipeline.ahead(predictor.threads))
    with contextlib.closing(pipeline.in_stages(frames, [prepare, compute], take, ahead)) as done:
        for _ in done:
            pass


def _paced(
    stations: Sequence[Station], fps: float | None, stopped: Callable[[], bool], wait: Callable[[float], object]
) -> Iterator[tuple[Station, Frame] | None]:
    """Frames of all stations in turn until the end of the last, those of one evenly spaced; None where none comes.

    A moment that was missed is left out rather than made up for.
    """
    due = [time.monotonic()] * len(stations)
    given = time.monotonic()
    while not stopped() and not all(one.source.ended for one in stations):
        before = given
        for place, one in enumerate(stations):
            now = time.monotonic()
            if fps is not None and now < due[place]:
                if len(stations) == 1:
                    wait(min(due[place] - now, WAIT_S))
                continue
            frame = one.source.next(WAIT_S if len(stations) == 1 else 0.0)
            if frame is None:
                continue
            given = now = time.monotonic()
            if fps is not None:
                due[place] = due[place] + 1 / fps if due[place] + 1 / fps > now else now + 1 / fps
            yield one, frame
        if given != before:
            continue
        if len(stations) > 1:
            wait(TURN_S)
        if time.monotonic() - given >= WAIT_S:
            given = time.monotonic()
            yield None


def _total(summaries: Sequence[Summary]) -> Summary:
    if len(summaries) == 1:
        return summaries[0]
    names = [field.name for field in fields(Summary)]
    sums: dict[str, Any] = {name: sum(getattr(one, name) for one in summaries) for name in names}
    return Summary(**{**sums, "seconds": max(one.seconds for one in summaries)})


def _say(console: Console, summary: Summary) -> None:
    lost = f", {summary.unwritten} lines could not be written" if summary.unwritten else ""
    tracks = f"{summary.tracks} tracks, " if summary.tracks else ""
    collapses = f", {summary.collapses} as hardly anything was found" if summary.collapses else ""
    console.print(
        f"{summary.frames} frames in {summary.seconds:.0f} s ({summary.dropped} dropped), {summary.lines} lines{lost}, "
        f"{tracks}{summary.alarms} drift alarms{collapses}, {summary.collected} frames to send home",
        highlight=False,
    )
