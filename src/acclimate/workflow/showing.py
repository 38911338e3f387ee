"""The verbs that show what there is: report, leaderboard, data; and scenes, which makes data to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from acclimate.config import Budget, DataConfig
from acclimate.progress import counting
from acclimate.run import write_text

if TYPE_CHECKING:
    from acclimate.data.inspect import DataSummary
    from acclimate.report.leaderboard import Leaderboard


def report(runs: Sequence[str | Path], out: str | Path = "report.html", *, budget: Budget | None = None) -> Path:
    """Write one self-contained HTML page about `runs`; returns the file.

    Raises:
        AcclimateError: a folder is no run, or `out` cannot be written.
    """
    from acclimate.report import page

    return page.write([Path(run) for run in runs], Path(out), budget=budget)


def leaderboard(
    paths: Sequence[str | Path],
    *,
    sort: str = "score",
    as_json: str | Path | None = None,
    as_csv: str | Path | None = None,
    console: Console | None = None,
) -> Leaderboard:
    """One table over runs and runtimes, from what `verify` has stored; nothing is measured. Needs no torch.

    Args:
        paths: artifacts' folders, packages, run folders, and folders of those.
        sort: what ranks rows, one of `report.leaderboard.SORTS`.
        as_json: a file for the rows and what was left out.
        as_csv: a file for the rows.
        console: where the table goes.

    Raises:
        AcclimateError: there is no verification at all, a path does not exist, `sort` is unknown, or a file cannot be
            written.
    """
    from acclimate.report import leaderboard as boards

    board = boards.gather([Path(path) for path in paths], sort)
    if console is not None:
        boards.show(board, console)
    if as_json is not None:
        write_text(Path(as_json), boards.as_json(board))
    if as_csv is not None:
        write_text(Path(as_csv), boards.as_csv(board))
    return board


def data(
    source: str | Path | DataConfig, sheet: str | Path | None = None, *, console: Console | None = None
) -> DataSummary:
    """What is in a data set: format, classes, counts, sizes, problems; with `sheet`, a contact sheet goes to that file.

    Raises:
        AcclimateError: it cannot be read, or nothing in it is usable.
    """
    from acclimate.data import inspect

    images = inspect.load(source if isinstance(source, DataConfig) else Path(source))
    summary = inspect.summary(images)
    if console is not None:
        inspect.print_summary(summary, console)
    if sheet is not None:
        inspect.contact_sheet(images, Path(sheet))
    return summary


def scenes(
    out: str | Path,
    images: int = 300,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    condition: str | None = None,
    strength: float = 1.0,
    *,
    console: Console | None = None,
) -> DataConfig:
    """Generate street scenes of (height, width) `size` with exact boxes; the data set, ready to train on.

    Raises:
        AcclimateError: `out` holds something else or cannot be written, or the condition does not exist.
    """
    from acclimate.data.scenes import generate

    with counting(console, f"{Path(out).name} scenes") as tick:
        return DataConfig(path=generate(Path(out), images, size, seed, condition, strength, progress=tick))
