"""One table over runs and runtimes, from the verifications that are stored with artifacts. Measures nothing.

Numbers compare where the labelled images, the machine and the number of threads of the latency are the same. What
differs in one of them is in another table, and no row is ranked, or on a Pareto front, against one of another table.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from acclimate.edge.artifact import Artifact
from acclimate.edge.package import opened
from acclimate.errors import AcclimateError
from acclimate.run import Run, counted, listed
from acclimate.verification.judge import disturbance
from acclimate.verification.record import Verification, load, verifications
from acclimate.verification.show import cells, headings, print_rows, verdict

NAMED = 8
"""So many paths of a kind are named in one line; of more, the rest is counted."""


SORTS = {
    "score": ("ap50_per_minute", -1),
    "score-energy": ("ap50_per_wh", -1),
    "ap50": ("ap50", -1),
    "ap": ("ap", -1),
    "latency": ("latency_ms", 1),
    "latency-all": ("latency_all_threads_ms", 1),
    "energy": ("energy_mj", 1),
    "memory": ("memory_mb", 1),
    "size": ("size_mb", 1),
}
"""What rows can be ranked by: the number in `records`, and whether more of it is better (-1) or less."""


@dataclass(frozen=True, slots=True)
class Row:
    """One artifact on one machine.

    Attributes:
        path: of the artifact or package.
        run: the run that it lies in; None where it lies in none.
        verification: what was measured.
        rank: in its table, from 1; the same for equal ones.
        front: on the Pareto front of its table, by AP50 and median latency.
    """

    path: Path
    run: Path | None
    verification: Verification
    rank: int = 0
    front: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that compare, ranked.

    Attributes:
        data: the labelled set, by its name in the verification; empty where accuracy was not measured.
        images: those that count.
        unreadable: images of it that could not be read.
        digest: of it; empty where an earlier version measured.
        machine: in words.
        threads: of the latency that score and front are made of.
        rows: the best first.
    """

    data: str
    images: int
    unreadable: int
    digest: str
    machine: str
    threads: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        known = f"set {self.digest[:8]}" if self.digest else "known by name and number alone"
        data = f"{self.data}: {counted(self.images, self.unreadable)} ({known})" if self.data else "no labelled images"
        return f"{data}; {self.machine}; {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """What `gather` found.

    Attributes:
        groups: tables, the largest first.
        unverified: artifacts and packages without a verification.
        bare: runs without an artifact.
        strangers: paths that are none of all these and have no run in them.
        problems: a line for each verification, artifact or run that is damaged or does not fit.
    """

    groups: tuple[Group, ...]
    unverified: tuple[Path, ...]
    bare: tuple[Path, ...]
    strangers: tuple[Path, ...]
    problems: tuple[str, ...]


def gather(paths: Sequence[Path], sort: str = "score") -> Leaderboard:
    """Read the verifications of artifacts.

    Args:
        paths: artifacts' folders, packages, runs, which stand for all artifacts in them, and folders of runs, which
            stand for all runs below but those that were moved to `previous/`.
        sort: one of `SORTS`.

    Raises:
        AcclimateError: `sort` is unknown, a path does not exist, or there is no verification at all.
    """
    if sort not in SORTS:
        raise AcclimateError(f"--sort {sort}: choose {', '.join(list(SORTS)[:-1])} or {list(SORTS)[-1]}")
    artifacts: dict[Path, None] = {}
    bare: list[Path] = []
    strangers: list[Path] = []
    unverified: list[Path] = []
    problems: list[str] = []
    rows: list[Row] = []
    for path in paths:
        found, runs = _found(path)
        if not found and not runs:
            strangers.append(path)
        for run in runs:
            try:
                inside = Run.open(run).artifacts()
            except AcclimateError as error:
                problems.append(str(error))
                continue
            found += inside
            bare += [] if inside else [run]
        artifacts |= dict.fromkeys(found)
    for path in artifacts:
        files = verifications(path)
        if not files:
            unverified.append(path)
            continue
        try:
            with opened(path) as folder:
                there = Artifact.open(folder).digest
        except AcclimateError as error:
            problems.append(str(error))
            continue
        for file in files:
            try:
                verification = load(file)
            except AcclimateError as error:
                problems.append(str(error))
                continue
            if verification.digest != there:
                problems.append(f"{file}: is of another artifact than is there now; verify the artifact again")
                continue
            home = path.parent.parent
            rows.append(Row(path, home if (home / "run.json").is_file() else None, verification))
    if not rows:
        how = f"acclimate verify {(*unverified, *paths)[0]} --data LABELLED_IMAGES"
        raise AcclimateError(f"no verification found; make one: {how}" if not problems else problems[0])
    return Leaderboard(_grouped(rows, sort), tuple(unverified), tuple(bare), tuple(strangers), tuple(problems))


def _found(path: Path) -> tuple[list[Path], list[Path]]:
    """Artifacts, and runs that may hold some, at or below `path`."""
    if not path.exists():
        raise AcclimateError(f"{path}: no such run, artifact or package")
    if path.is_file():
        return ([path] if path.suffix == ".zip" else []), []
    if (path / "artifact.json").is_file():
        return [path], []
    if (path / "run.json").is_file():
        return [], [path]
    below = (file.parent for file in listed(path, "**/run.json"))
    return [], [run for run in below if "previous" not in run.relative_to(path).parts]


def _grouped(rows: Sequence[Row], sort: str) -> tuple[Group, ...]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        v = row.verification
        data, images, unreadable, digest = _set(v)
        # Where some images could not be read, the others alone are another set.
        groups.setdefault((digest or data, images, unreadable, _machine(v)[0], v.latency.threads), []).append(row)
    made = []
    for found in groups.values():
        v = found[0].verification
        made.append(Group(*_set(v), _machine(v)[1], v.latency.threads, tuple(_ranked(found, sort))))
    return tuple(sorted(made, key=lambda group: (-len(group.rows), group.title)))


def _set(v: Verification) -> tuple[str, int, int, str]:
    """Name, images, unreadable images and digest of the labelled set that the score is of."""
    if v.score is None:
        return "", 0, 0, ""
    accuracy = v.accuracy[v.score.data]
    return v.score.data, accuracy.images, accuracy.unreadable, accuracy.digest


def _machine(v: Verification) -> tuple[tuple[str, ...], str]:
    """What tells a machine from others, and what it is called."""
    facts = v.machine
    processor, cores = facts.get("processor", "processor not told"), facts.get("cores", "?")
    if "fingerprint" in facts:
        return (facts["fingerprint"],), f"{facts.get('device', 'device')} ({processor}, {cores} cores)"
    return (processor, cores, facts.get("memory_gb", "")), f"{processor}, {cores} cores"


def _ranked(rows: Sequence[Row], sort: str) -> Iterator[Row]:
    name, sign = SORTS[sort]

    def value(row: Row) -> float:
        found = _numbers(row.verification)[name]
        return math.inf if found is None else sign * found

    def beats(other: Verification, one: Verification) -> bool:
        if other.score is None or one.score is None:
            return False
        gains = other.score.ap50 - one.score.ap50, one.latency.median_ms - other.latency.median_ms
        return min(gains) >= 0 and max(gains) > 0

    ordered = sorted(rows, key=lambda row: (value(row), str(row.path)))
    for row in ordered:
        v = row.verification
        front = v.score is not None and not any(beats(other.verification, v) for other in rows)
        yield Row(row.path, row.run, v, 1 + sum(value(other) < value(row) for other in ordered), front)


def show(board: Leaderboard, console: Console) -> None:
    """A table for each group, then what is in none."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for group in board.groups:
        say(group.title)
        threads = sorted({bench.threads for row in group.rows for bench in row.verification.benches})
        names = [(str(row.run or row.path), row.verification.runtime, row.verification.precision) for row in group.rows]
        rows = [("", "", "run", "runtime", "precision", *headings(threads))]
        for row, (run, runtime, precision) in zip(group.rows, names, strict=True):
            twin = f" ({row.path.name})" if row.run and names.count((run, runtime, precision)) > 1 else ""
            mark = "*" if row.front else ""
            rows.append((str(row.rank), mark, run + twin, runtime, precision, *cells(row.verification, threads)))
        print_rows(rows, 5, console)
        say("")
    if any(row.front for group in board.groups for row in group.rows):
        say("* on the Pareto front of its table: no other row is as accurate (AP50) and as fast, and better in one")
    if len(board.groups) > 1:
        say("rows of different tables do not compare: their images, machine or number of threads differ")
    for paths, what, way_out in (
        (_busy(board), "measured while something else ran", "their latency is too long; verify them again"),
        (board.unverified, "not verified", "acclimate verify PATH --data LABELLED_IMAGES measures one"),
        (board.bare, "without an artifact", "acclimate export RUN makes one"),
        (board.strangers, "passed over", "neither a run, an artifact nor a package, and no run below"),
    ):
        if paths:
            more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
            say(f"{what}: {', '.join(map(str, paths[:NAMED]))}{more}; {way_out}")
    for problem in board.problems:
        say(f"left out: {problem}")


def _busy(board: Leaderboard) -> tuple[Path, ...]:
    found = (row.path for group in board.groups for row in group.rows if disturbance(row.verification.latency))
    return tuple(dict.fromkeys(found))


def records(board: Leaderboard) -> list[dict[str, Any]]:
    """The rows as flat mappings, for a file; None is what was not measured."""
    return [_record(group, row) for group in board.groups for row in group.rows]


def _record(group: Group, row: Row) -> dict[str, Any]:
    return {
        "data": group.data or None,
        "data_digest": group.digest or None,
        "images": group.images or None,
        "unreadable": group.unreadable,
        "machine": group.machine,
        "threads": group.threads,
        "rank": row.rank,
        "front": row.front,
        "run": str(row.run) if row.run else None,
        "artifact": str(row.path),
        "runtime": row.verification.runtime,
        "precision": row.verification.precision,
        "verdict": verdict(row.verification),
        "busy": bool(disturbance(row.verification.latency)),
        **_numbers(row.verification),
    }


def _numbers(v: Verification) -> dict[str, float | None]:
    s = v.score
    benches = {str(bench.threads): bench.median_ms for bench in v.benches}
    a = v.accuracy[s.data] if s else None
    intervals = {
        "ap50": a.ap50_interval if a else None, "ap": a.ap_interval if a else None, "ap50_drop": v.drop_interval
    }  # fmt: skip
    return {
        "ap50": s.ap50 if s else None,
        "ap": a.artifact_ap if a else None,
        "ap50_drop": v.drop,
        **{f"{name}_low": interval[0] if interval else None for name, interval in intervals.items()},
        **{f"{name}_high": interval[1] if interval else None for name, interval in intervals.items()},
        "latency_ms": v.latency.median_ms,
        "latency_p95_ms": v.latency.p95_ms,
        "latency_1_thread_ms": benches.get("1"),
        "latency_all_threads_ms": benches.get(v.machine.get("cores", "")),
        "energy_mj": v.latency.energy_mj,
        "memory_mb": v.peak_memory_mb,
        "size_mb": v.size_mb,
        "ap50_per_minute": s.ap50_per_minute if s else None,
        "ap50_per_wh": s.ap50_per_wh if s else None,
    }


def as_json(board: Leaderboard) -> str:
    """The text of a JSON file: `records` as `rows`, and what was left out."""
    left = {name: list(map(str, getattr(board, name))) for name in ("unverified", "bare", "strangers", "problems")}
    return json.dumps({"rows": records(board), **left}, indent=1) + "\n"


def as_csv(board: Leaderboard) -> str:
    """`records` as the text of a CSV file; empty is what was not measured."""
    text = io.StringIO()
    rows = records(board)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
