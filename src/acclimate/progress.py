"""How far something is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from acclimate import machine

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Tick(Protocol):
    """Told how many of how many are done, and what else is worth a word."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def in_threads(
    work: Callable[[_Item], _Result], items: Sequence[_Item], tick: Callable[[int, int], None] | None = None
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `work` makes of it, in order, on as many threads as there are cores, 8 at most.

    Args:
        work: lets other threads run, as reading files and decoding images does.
        items: what it is called with.
        tick: is called with how many of how many are done, after every 32 and at the end.
    """
    with ThreadPoolExecutor(min(8, machine.usable_cores())) as pool:
        for done, (item, result) in enumerate(zip(items, pool.map(work, items), strict=True), 1):
            yield item, result
            if tick is not None and (done % 32 == 0 or done == len(items)):
                tick(done, len(items))


@contextlib.contextmanager
def counting(console: Console | None, title: str, *, start: int = 0, lines: int = 1) -> Iterator[Tick]:
    """A callback for how far it is.

    Args:
        console: where it is shown; None shows nothing.
        title: what is counted.
        start: how many were done before.
        lines: how many lines tell of it where the console is no terminal, evenly spread; the last is at the end. None
            for 0.
    """
    if console is None or not (lines or console.is_terminal):
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
