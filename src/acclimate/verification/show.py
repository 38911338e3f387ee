"""A verification in words and tables, on the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from acclimate.edge.artifact import MixedPrecision
from acclimate.evaluate import Interval
from acclimate.verification.judge import Check
from acclimate.verification.record import LPIRC_IMAGES, LPIRC_MINUTES, Parity, Score, Verification

LAYERS_SHOWN = 10
CLASSES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Compared:
    """One of several artifacts that were verified together.

    Attributes:
        path: of the artifact.
        verification: None where it could not be measured.
        problem: why not; empty where it could.
    """

    path: Path
    verification: Verification | None
    problem: str = ""


def print_compared(compared: Sequence[Compared], console: Console, *, score: bool = False) -> None:
    """One row an artifact, its verdict first; below, why one was not measured, and each artifact's notes.

    With `score` there are columns for accuracy over time and over energy, see `record.Score`.
    """
    several = len({one.path.parent for one in compared}) > 1
    measured = [one.verification for one in compared if one.verification is not None]
    threads = sorted({bench.threads for v in measured for bench in v.benches})
    rows = [("artifact", *headings(threads, score=score))]
    for one in compared:
        v = one.verification
        found = cells(v, threads, score=score) if v is not None else ("not measured", *"-" * (len(rows[0]) - 2))
        rows.append((str(one.path) if several else one.path.name, *found))
    print_rows(rows, 1, console)
    for one in compared:
        notes: tuple[str, ...] = (one.problem,)
        if one.verification is not None:
            notes = (*one.verification.doubts, *one.verification.notes)
        for note in notes:
            console.print(f"note: {one.path.name}: {note}", markup=False, highlight=False, soft_wrap=True)
    if measured and all(v.latency.energy_mj is None for v in measured):
        console.print("note: energy is not told by this machine, or not to this user", highlight=False, soft_wrap=True)


def headings(threads: Sequence[int], *, score: bool = True) -> tuple[str, ...]:
    """What the cells of `cells` are, the verdict first."""
    latencies = [f"ms, {count} thread{'s' * (count > 1)} (p95)" for count in threads]
    accuracy = ("AP50 (95 %)", "AP (95 %)", "drop (95 %)")
    of_score = ("AP50/min", "AP50/Wh") if score else ()
    return ("verdict", *accuracy, *latencies, "mJ", "MB memory", "MB size", *of_score)


def cells(verification: Verification, threads: Sequence[int], *, score: bool = True) -> tuple[str, ...]:
    """A verification as a row of a table, with the latencies on so many `threads`; a dash is what was not measured."""
    v, s = verification, verification.score
    benches = {bench.threads: bench for bench in v.benches}
    found = [benches.get(count) for count in threads]
    a = v.accuracy[s.data] if s else None
    return (
        verdict(v),
        _within(s.ap50 if s else None, a.ap50_interval if a else None, ".3f"),
        _within(a.artifact_ap if a else None, a.ap_interval if a else None, ".3f"),
        _within(v.drop, v.drop_interval, "+.4f"),
        *("-" if bench is None else f"{bench.median_ms:.2f} ({bench.p95_ms:.2f})" for bench in found),
        _number(v.latency.energy_mj, ".1f"),
        f"{v.peak_memory_mb:.0f}",
        f"{v.size_mb:.2f}",
        *(_number(getattr(s, name) if s else None, ".3f") for name in ("ap50_per_minute", "ap50_per_wh") if score),
    )


def verdict(verification: Verification) -> str:
    """In a word or two, with the limits that decided: "passed", "failed: size_mb", "incomplete: latency_ms"."""
    why = {"failed": False, "incomplete": None}
    v = verification
    if v.verdict not in why:
        return v.verdict
    names = [check.name for check in v.checks if check.passed is why[v.verdict]]
    return f"{v.verdict}: {', '.join(names)}"


def print_rows(rows: Sequence[Sequence[str]], verdict: int, console: Console) -> None:
    """A table, its headings first; the column `verdict` says how a row is coloured."""
    # Not rich's table, which drops numbers where the terminal is narrow: here the lines wrap instead.
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        word = row[verdict].partition(":")[0]
        style = {"passed": "green", "measured": None, "verdict": "bold", "incomplete": "yellow"}.get(word, "red")
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value + 0.0, form)


def _within(value: float | None, interval: Interval | None, form: str) -> str:
    """A number, with its interval where that is known."""
    return _number(value, form) if interval is None else f"{_number(value, form)} ({_interval(interval, form)})"


def print_verification(verification: Verification, console: Console, *, score: bool = False) -> None:
    """The verdict first, then each limit, then what was measured; with `score` also accuracy over time and energy."""
    v = verification
    if v.first:
        console.print(v.first, style="bold red", markup=False, highlight=False)
    verdict = {
        "passed": "[bold green]PASSED[/]",
        "failed": "[bold red]FAILED[/]",
        "incomplete": "[bold yellow]INCOMPLETE[/]",
        "measured": "[bold]MEASURED[/] (no limit to check)",
    }[v.verdict]
    console.print(f"{verdict}  {v.artifact} ({v.runtime}, {v.precision})", highlight=False)
    for check in v.checks:
        if check.passed is None:
            console.print(f"{check.name}: {check.reason}", style="yellow", markup=False, highlight=False)
    for doubt in v.doubts:
        console.print(f"doubt: {doubt}", style="yellow", markup=False, highlight=False)
    if fell := list(v.changed()):
        more = f" and {len(fell) - CLASSES_SHOWN} more" if len(fell) > CLASSES_SHOWN else ""
        told = f"classes that changed against source-only: {', '.join(fell[:CLASSES_SHOWN])}{more}"
        console.print(told, markup=False, highlight=False)
    table = Table("limit", "allowed", "measured", "", box=None)
    for check in v.checks:
        value = "not measured" if check.value is None else f"{check.value + 0.0:.4g}"
        least = "at least " if check.name.startswith("min_") else ""
        table.add_row(check.name, f"{least}{check.limit:.4g}", value, _outcome(check))
    if v.checks:
        console.print(table)
    if v.accuracy:
        table = Table("set", "images", "AP50", "95 %", "eager", "difference", "95 %", "AP", "95 %", "eager", box=None)
        for name, a in v.accuracy.items():
            table.add_row(
                name,
                f"{a.images} (+{a.unreadable} unreadable)" if a.unreadable else str(a.images),
                f"{a.artifact_ap50:.3f}",
                _interval(a.ap50_interval, ".3f"),
                "-" if a.eager_ap50 is None else f"{a.eager_ap50:.3f}",
                "-" if a.difference_ap50 is None else f"{a.difference_ap50:+.4f}",
                _interval(a.export.ap50.interval if a.export else None, "+.4f"),
                f"{a.artifact_ap:.3f}",
                _interval(a.ap_interval, ".3f"),
                "-" if a.eager_ap is None else f"{a.eager_ap:.3f}",
            )
        console.print(table)
        for name, a in v.accuracy.items():
            if a.gain is not None:
                spread = _interval(a.gain.ap50.interval, "+.4f")
                told = f"{name}: AP50 {a.gain.ap50.difference:+.4f} against source-only ({a.source_only})"
                console.print(f"{told}, 95 % {spread}", markup=False, highlight=False)
    b = v.latency
    parts = ", ".join(f"{name} {value:.2f}" for name, value in b.parts.items())
    threads = f"{b.threads} thread" + "s" * (b.threads > 1)
    lines = [
        f"latency {b.median_ms:.2f} ms median, {b.p95_ms:.2f} p95, {b.iqr_ms:.2f} between quartiles",
        f"  {threads}; {parts}",
        f"size {v.size_mb:.2f} MB, peak memory {v.peak_memory_mb:.0f} MB"
        + (f", {v.macs_m:.0f} M multiply-accumulates" if v.macs_m is not None else ""),
    ]
    lines[2:2] = [
        f"  {one.threads} thread{'s' * (one.threads > 1)}: {one.median_ms:.2f} ms median, {one.p95_ms:.2f} p95"
        for one in v.other_threads
    ]
    if b.energy_mj is not None:
        lines.append(f"energy {b.energy_mj:.1f} mJ an image, all that runs on the processor included")
    if score and v.score is not None:
        lines.append(_score_line(v.score))
    if v.parity is not None:
        lines += _parity_lines(v.parity)
    if v.mixed is not None:
        lines += _mixed_lines(v.mixed)
    lines += [f"note: {note}" for note in v.notes]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _outcome(check: Check) -> str:
    return {True: "ok", False: "[red]broken[/]", None: "[yellow]not known[/]"}[check.passed]


def _interval(interval: Interval | None, form: str) -> str:
    return "-" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _score_line(s: Score) -> str:
    late = "" if s.in_time else f", too late for {LPIRC_MINUTES:.0f}"
    energy = "" if s.ap50_per_wh is None else f"; AP50 per watt-hour {s.ap50_per_wh:.3f} ({s.energy_wh:.3f} Wh)"
    return f"AP50 per minute {s.ap50_per_minute:.3f} ({LPIRC_IMAGES} images take {s.minutes:.1f} min{late}){energy}"


def _mixed_lines(mixed: MixedPrecision) -> Iterator[str]:
    """What the tolerance cost, then the layers in fp32 with the agreement where each alone is quantised."""
    yield (
        f"agreement with fp32 on {mixed.images} unlabelled images: {mixed.before:.3f} with all {mixed.layers} layers "
        f"in INT8, {mixed.after:.3f} with {len(mixed.in_float)} of them in fp32 ({mixed.tolerance:g} asked for)"
    )
    alone = {one.layer: one.agreement for one in mixed.alone}
    width = max(map(len, mixed.in_float[:LAYERS_SHOWN]), default=0)
    for layer in mixed.in_float[:LAYERS_SHOWN]:
        yield f"  {layer:<{width}}  {alone[layer]:.3f} where it alone is in INT8"
    if len(mixed.in_float) > LAYERS_SHOWN:
        yield f"  and {len(mixed.in_float) - LAYERS_SHOWN} less sensitive ones; artifact.json has them all"


def _parity_lines(parity: Parity) -> Iterator[str]:
    p = parity
    if not p.compared:
        yield (
            f"parity: nothing was compared: on {p.images} images neither the eager model nor the artifact detects "
            f"anything with a score of {p.score:g}"
        )
        return
    yield f"parity on {p.images} images: {p.matched} detections matched, {p.unmatched} without a partner" + (
        ""
        if p.score_max is None
        else f"; score differs by {p.score_mean:.2g} (mean), {p.score_max:.2g} (max), box by {p.box_px_mean:.2g} and "
        f"{p.box_px_max:.2g} px, IoU {p.iou_mean:.4f} (mean), {p.iou_min:.4f} (min)"
    )
    for pair in p.worst:
        if pair.eager_score is None or pair.artifact_score is None:
            who = "artifact" if pair.eager_score is None else "eager model"
            score = pair.artifact_score if pair.eager_score is None else pair.eager_score
            yield f"  {Path(pair.image).name}: {pair.name} {score:.2f} seen by the {who} alone"
        elif abs(pair.eager_score - pair.artifact_score) > 0.05 or (pair.iou or 0) < 0.9:
            yield (
                f"  {Path(pair.image).name}: {pair.name} {pair.eager_score:.2f} -> {pair.artifact_score:.2f}, "
                f"IoU {pair.iou:.2f}"
            )
