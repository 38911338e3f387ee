"""The rows of a suite in a CSV that processes share, and what they say: means, spreads, paired differences."""

from __future__ import annotations

import csv
import io
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from acclimate import locks
from acclimate.benchmark.suite import Suite
from acclimate.errors import AcclimateError
from acclimate.run import write_bytes, writing

FIELDS = (
    "pair", "seed", "method", "checkpoint", "target_ap50", "target_ap", "source_ap50", "source_ap",
    "target_ap50_shared", "classes", "step", "tau_stability", "tau_agreement", "tau_consensus", "start", "image_size",
    "steps", "batch", "test_images", "minutes", "processor", "threads", "torch", "role", "digest",
)  # fmt: skip

GAP = 0.02
"""An oracle that leads by less than this leaves no gap to close a part of."""

Row = dict[str, str]


def read(file: Path) -> list[Row]:
    """All whole rows; a line that a full disk cut short is left out.

    Raises:
        AcclimateError: the file is no results table of this version.
    """
    if not file.exists():
        return []
    with open(file, newline="") as opened:
        lines = list(csv.reader(opened))
    if lines and tuple(lines[0]) != FIELDS:
        raise AcclimateError(f"{file}: its columns are not those of a benchmark; choose another --out, or move it away")
    return [dict(zip(FIELDS, line, strict=True)) for line in lines[1:] if len(line) == len(FIELDS)]


def append(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows in one system call, one process after the other; a kill leaves all of them or none.

    Raises:
        AcclimateError: the file cannot be written.
    """
    added = _text([[str(row[field]) for field in FIELDS] for row in rows])
    with locks.held(file, "benchmark", wait=True), writing(file.parent):
        if not file.exists():
            write_bytes(file, _text([FIELDS]) + added)
            return
        with open(file, "ab+", buffering=0) as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - 1))
            whole = opened.read(1) in {b"", b"\n"}
            opened.write((b"" if whole else b"\n") + added)


def _text(lines: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def tables(suite: Suite, rows: Sequence[Row], column: str = "target_ap50") -> Iterator[str]:
    """Markdown lines: a table for each pair that has rows or published numbers, then one over all pairs.

    Mean and standard deviation over seeds, in points. A difference is taken seed by seed to the method it is compared
    with, between the last checkpoints of both, as one that is chosen among several has an advantage over one that is
    not; beside it is half of its 95 % interval by Student's t, which is also the smallest difference that so many seeds
    could have told from none. The share of the gap is the chosen checkpoint's, or the last one's where nothing chose.
    """
    if suite.title:
        yield f"{suite.title}\n"
    shown = [pair for pair in suite.pairs if any(row["pair"] == pair for row in rows) or pair in suite.published]
    if not shown:
        yield "No rows yet."
        return
    for pair in shown:
        yield from _pair_table(suite, rows, pair, column)
    if len({row["pair"] for row in rows}) > 1:
        yield from _overall(suite, rows, column)
    yield (
        "Against: the method that the differences are taken to, seed by seed, last checkpoint against last, with half "
        "of the 95 % interval (a smaller difference could not have been seen); in brackets the seeds in which it wins."
    )
    if suite.published and suite.published_from:
        yield f"Published: {suite.published_from}"
    if suite.note:
        yield suite.note


def _pair_table(suite: Suite, rows: Sequence[Row], pair: str, column: str) -> Iterator[str]:
    published = suite.published.get(pair, {})
    oracle = next((name for name, method in suite.methods.items() if method.role == "oracle"), None)
    low, high = (_values(rows, pair, name, column) if name else {} for name in (suite.reference, oracle))
    header = ["method", "seeds", "last", "chosen", "hindsight", "against", "difference", "gap closed", "source"]
    header += ["published"] if published else []
    yield f"### {pair}\n"
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for method in suite.methods:
        own = _values(rows, pair, method, column)
        if not own and method not in published:
            continue
        other = suite.against(method)
        paired = _paired(rows, pair, method, other, column)
        cells = [method, str(len(own))]
        cells += [
            _mean(_values(rows, pair, method, column, checkpoint)) for checkpoint in ("last", "chosen", "hindsight")
        ]
        cells += [other if other and paired else "-", _difference(paired)]
        cells += ["-" if method in (suite.reference, oracle) else _gap(own, low, high)]
        cells += [_mean(_values(rows, pair, method, column.replace("target", "source")))]
        cells += [f"{published[method]:.1f}" if method in published else "-"] if published else []
        yield f"| {' | '.join(cells)} |"
    for name in published:
        if name not in suite.methods:
            yield f"| {name} (published) | {' | '.join('-' * (len(header) - 2))} | {published[name]:.1f} |"
    yield ""


def _overall(suite: Suite, rows: Sequence[Row], column: str) -> Iterator[str]:
    """Differences over all pairs and seeds, each pair weighing the same."""
    yield "### all pairs\n"
    yield "| method | pairs | against | mean difference | wins |"
    yield "|---|---|---|---|---|"
    for method in suite.methods:
        other = suite.against(method)
        if other is None:
            continue
        found = [list(_paired(rows, pair, method, other, column).values()) for pair in suite.pairs]
        found = [paired for paired in found if paired]
        if not found:
            continue
        mean = statistics.mean(statistics.mean(paired) for paired in found)
        wins, count = sum(value > 0 for paired in found for value in paired), sum(map(len, found))
        yield f"| {method} | {len(found)} | {other} | {100 * mean:+.1f} | {wins} of {count} |"
    yield ""


def _values(
    rows: Sequence[Row], pair: str, method: str, column: str, checkpoint: str | None = None
) -> dict[str, float]:
    """Seed -> value; without a checkpoint the chosen one's, or the last one's where nothing chose."""
    found: dict[str, float] = {}
    for name in [checkpoint] if checkpoint else ["last", "chosen"]:
        for row in rows:
            if (row["pair"], row["method"], row["checkpoint"]) == (pair, method, name) and row.get(column):
                found[row["seed"]] = float(row[column])
    return found


def _paired(rows: Sequence[Row], pair: str, method: str, other: str | None, column: str) -> dict[str, float]:
    """Seed -> what a method has more than another, both at their last checkpoint."""
    if other is None:
        return {}
    own, theirs = (_values(rows, pair, name, column, "last") for name in (method, other))
    return {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}


def _mean(values: dict[str, float]) -> str:
    scaled = [100 * value for value in values.values()]
    if not scaled:
        return "-"
    return f"{statistics.mean(scaled):.1f}" + (f" ± {statistics.stdev(scaled):.1f}" if len(scaled) > 1 else "")


def _difference(paired: dict[str, float]) -> str:
    scaled = [100 * value for value in paired.values()]
    if not scaled:
        return "-"
    from scipy.stats import t

    half = (
        float(t.ppf(0.975, len(scaled) - 1)) * statistics.stdev(scaled) / len(scaled) ** 0.5 if len(scaled) > 1 else 0
    )
    spread = f" ± {half:.1f}" if len(scaled) > 1 else ""
    return f"{statistics.mean(scaled):+.1f}{spread} ({sum(value > 0 for value in scaled)} of {len(scaled)})"


def _gap(own: dict[str, float], low: dict[str, float], high: dict[str, float]) -> str:
    both = own.keys() & low.keys() & high.keys()
    if not both:
        return "-"
    room = statistics.mean(high[seed] - low[seed] for seed in both)
    if room <= GAP:
        return "no gap"
    return f"{100 * statistics.mean(own[seed] - low[seed] for seed in both) / room:.0f} %"
