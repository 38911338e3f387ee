"""How far something is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Tick(Protocol):
    """Told how many of how many are done, and what else is worth a word."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextlib.contextmanager
def counting(console: Console | None, title: str, *, start: int = 0, lines: int = 1) -> Iterator[Tick]:
    """A callback for how far it is.

    Args:
        console: where it is shown; None shows nothing.
        title: what is counted.
        start: how many were done before.
        lines: how many lines tell of it where the console is no terminal, evenly spread; the last is at the end.
    """
    if console is None:
        yield lambda done, total, note="": None
        return
    if not console.is_terminal:

        def line(done: int, total: int, note: str = "") -> None:
            if done == total or (lines > 1 and done % max(1, total // lines) == 0):
                told = f"{title}: {total}" if lines == 1 else f"{title}: step {done}/{total}"
                console.print(f"{told}, {note}" if note else told, markup=False, highlight=False)

        yield line
        return
    columns = (TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=None, completed=start, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
