"""A series of jobs on one page: what differs between them, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acclimate import __version__
from acclimate.errors import AcclimateError
from acclimate.evaluate import Change
from acclimate.report import verdict
from acclimate.report.content import Content, Score, Subject, changed, gather
from acclimate.run import Run, listed

FORMAT = 1
JOB = ("source", "baseline", "adapted", "oracle")
"""Folders of a job, as `acclimate run` names them."""
_ASIDE = {"out", "command"}
"""Settings that differ between any two runs and say nothing."""


@dataclass(frozen=True)
class Row:
    """One job of the series.

    Attributes:
        path: of the run, or of the job's folder.
        steps, seed: of the run that is measured.
        target, source: its scores there; None where it was not measured.
        change: of the target's AP50 from the first row of the series; None for the first, and on other images.
        gain: of the target's AP50 from the job's own source-only detector.
        artifact: the one that its report would be about.
        settings: those that are not the same in all rows, as dotted keys.
    """

    path: Path
    seed: int
    steps: int | None
    target: Score | None
    source: Score | None
    change: Change | None
    gain: Change | None
    artifact: Subject | None
    settings: Mapping[str, str]


def compare(paths: Sequence[Path]) -> list[Row]:
    """Read a series of runs, or of jobs' folders, in the order in which they are given.

    Raises:
        AcclimateError: fewer than two are given, one is neither a run nor a job, or a file is damaged.
    """
    folders = list(dict.fromkeys(Path(path) for path in paths))
    if len(folders) < 2:
        raise AcclimateError("report --compare: name two runs or more, such as runs/a runs/b")
    contents = [gather(_runs(folder)) for folder in folders]
    last = [_last(content) for content in contents]
    settings = _different([dict(_settings(subject.run)) for subject in last])
    rows: list[Row] = []
    for folder, content, subject, own in zip(folders, contents, last, settings, strict=True):
        target, base = subject.on(content.target), content.source_only
        first = last[0].on(contents[0].target)
        moved = changed(first, target) if rows else None
        gained = changed(base.on(content.target), target) if base is not None and base is not subject else None
        part = next(part for part in content.parts if part.run is subject.run)
        rows.append(
            Row(
                folder,
                subject.run.manifest.seed,
                part.steps,
                target,
                subject.on(content.source),
                moved.ap50 if moved is not None else None,
                gained.ap50 if gained is not None else None,
                content.headline,
                own,
            )
        )
    return rows


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The series as JSON; AP in 0..1."""
    return {"format": FORMAT, "version": __version__, "jobs": [_told(row) for row in rows]}


def context(rows: Sequence[Row]) -> dict[str, Any]:
    """What the template draws."""
    from markupsafe import Markup

    from acclimate.report import plot

    known = [(row, 100 * row.target.ap50) for row in rows if row.target is not None]
    bars = [plot.Bar(_name(row.path, rows), value, verdict.points(value / 100), "adapted") for row, value in known]
    told = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return {
        "title": f"{len(rows)} jobs compared",
        "css": Markup((Path(__file__).parent / "page.css").read_text()),
        "version": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "rows": [{"row": row, "name": _name(row.path, rows), "artifact": _artifact(row)} for row in rows],
        "keys": sorted({key for row in rows for key in row.settings}),
        "bars": plot.bars(bars, label=f"AP50 on the target in points: {told}") if bars else None,
        "incomparable": any(row.change is None and row.target is not None for row in rows[1:]),
    }


def _runs(folder: Path) -> list[Path]:
    """The run itself, or those of a job."""
    if (folder / "run.json").is_file():
        return [folder]
    inside = [folder / name for name in JOB if (folder / name / "run.json").is_file()]
    if not inside:
        names = [file.parent.name for file in listed(folder, "*/run.json")]
        inside_said = f"; it has the runs {', '.join(names)} in it: name those" if names else ""
        raise AcclimateError(f"{folder}: neither a run folder nor the folder of a job{inside_said}")
    return inside


def _last(content: Content) -> Subject:
    return content.eager("adapted") or content.source_only or content.subjects[-1]


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    config = run.read("config.json") if run.has("config.json") else {}
    yield "verb", run.manifest.verb
    yield from _flat(config if isinstance(config, dict) else {}, "")


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{before}.{key}" if before else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif name not in _ASIDE:
            yield name, "none" if value is None else str(value)


def _different(settings: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    keys = list(dict.fromkeys(key for one in settings for key in one))
    apart = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    return [{key: one.get(key, "not there") for key in apart} for one in settings]


def _name(path: Path, rows: Sequence[Row]) -> str:
    """As much of the path's end as tells it from the others."""
    for count in range(1, len(path.parts) + 1):
        name = Path(*path.parts[-count:])
        if sum(Path(*row.path.parts[-count:]) == name for row in rows) == 1:
            return str(name)
    return str(path)


def _artifact(row: Row) -> dict[str, str] | None:
    artifact = row.artifact.artifact if row.artifact is not None else None
    if artifact is None or artifact.verified is None:
        return None
    return {
        "title": artifact.title,
        "latency": verdict.quantity(artifact.verified.latency.median_ms),
        "size": verdict.quantity(artifact.verified.size_mb),
        "verdict": str(artifact.verdict),
    }


def _told(row: Row) -> dict[str, Any]:
    def change(one: Change | None) -> dict[str, Any] | None:
        return None if one is None else {"difference": one.difference, "interval": one.interval}

    def score(one: Score | None) -> dict[str, Any] | None:
        return None if one is None else {"ap50": one.ap50, "ap": one.ap, "interval": one.interval, "images": one.images}

    artifact = row.artifact.artifact if row.artifact is not None else None
    verified = artifact.verified if artifact is not None else None
    return {
        "path": str(row.path),
        "seed": row.seed,
        "steps": row.steps,
        "target": score(row.target),
        "source": score(row.source),
        "change_from_first": change(row.change),
        "gain_over_source_only": change(row.gain),
        "artifact": artifact.name if artifact is not None else None,
        "verdict": artifact.verdict if artifact is not None else None,
        "latency_ms": verified.latency.median_ms if verified is not None else None,
        "size_mb": verified.size_mb if verified is not None else None,
        "settings": dict(row.settings),
    }
