"""How far something is: a bar on a terminal, lines elsewhere; and over a chain of stages, how long it may take yet."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from acclimate import machine
from acclimate.terminal import Terminal

KEPT_S = 1.0
"""A stage that took less time, and counted nothing, was done before: it says nothing about how fast this machine is."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Tick(Protocol):
    """Told how many of how many are done, and what else is worth a word."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True)
class Stage:
    """One of a chain: `what` says what it is for, `cost` how much work it is beside the others.

    Work of another kind than most, which says nothing of their pace, costs 0.
    """

    name: str
    what: str
    cost: float


class Overview:
    """A chain of stages on its way: which one it is at, and about how long the rest takes.

    The estimate is work by work: what is left, at the pace of what was done in this call.
    """

    def __init__(self, stages: Sequence[Stage], console: Console | None, display: Progress | None) -> None:
        self._stages, self._console, self.display = list(stages), console, display
        self._at = -1
        self._share = 0.0
        self._counted = False
        self._entered = time.monotonic()
        self._paced = (0.0, 0.0)
        """Cost and seconds of the stages that were worked at."""
        self._task: TaskID | None = None

    def enter(self, name: str) -> None:
        """The chain goes on to the stage of that name, which comes after the one that it is at.

        Raises:
            ValueError: there is no such stage.
        """
        self._leave()
        places = [place for place, stage in enumerate(self._stages) if stage.name == name and place > self._at]
        if not places:
            raise ValueError(f"no stage {name!r} after number {self._at + 1}")
        self._at, self._share, self._counted, self._entered = places[0], 0.0, False, time.monotonic()
        stage = self._stages[self._at]
        left = self.left_s()
        told = f"[{self._at + 1}/{len(self._stages)}] {stage.name}: {stage.what}"
        if self._console is not None:
            after = f" (about {duration(left)} left)" if left is not None else ""
            self._console.print(told + after, markup=False, highlight=False)
        self._show()

    def count(self, share: float) -> None:
        """The stage that it is at is so far done, 0 to 1."""
        self._share, self._counted = max(self._share, min(share, 1.0)), True
        self._show()

    def left_s(self) -> float | None:
        """Seconds until the end; None before anything was worked at."""
        cost, seconds = self._paced
        if self._counted and self._stages[self._at].cost > 0:
            cost += self._stages[self._at].cost * self._share
            seconds += time.monotonic() - self._entered
        if cost <= 0:
            return None
        rest = sum(stage.cost for stage in self._stages[self._at + 1 :])
        rest += self._stages[self._at].cost * (1 - self._share)
        return rest * seconds / cost

    def _leave(self) -> None:
        seconds = time.monotonic() - self._entered
        if self._at >= 0 and self._stages[self._at].cost > 0 and (self._counted or seconds >= KEPT_S):
            self._paced = (self._paced[0] + self._stages[self._at].cost, self._paced[1] + seconds)

    def _show(self) -> None:
        if self.display is None:
            return
        total = sum(stage.cost for stage in self._stages) or 1.0
        done = sum(stage.cost for stage in self._stages[: self._at]) + self._stages[self._at].cost * self._share
        left = self.left_s()
        note = f"about {duration(left)} left" if left is not None else ""
        title = f"stage {self._at + 1}/{len(self._stages)}, {self._stages[self._at].name}"
        if self._task is None:
            self._task = self.display.add_task(title, total=1000, note=note, kind="chain")
        self.display.update(self._task, description=title, completed=round(1000 * done / total), note=note)


_CHAIN: ContextVar[Overview | None] = ContextVar("chain", default=None)
"""The chain that this call is a part of."""


@contextlib.contextmanager
def overview(console: Console | None, stages: Sequence[Stage]) -> Iterator[Overview]:
    """One display over all stages of a chain; what `counting` counts meanwhile stands in it too."""
    display = _display(console) if console is not None and console.is_terminal else None
    with display or contextlib.nullcontext():
        chain = Overview(stages, console, display)
        token = _CHAIN.set(chain)
        try:
            yield chain
        finally:
            _CHAIN.reset(token)


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
    chain = _CHAIN.get()

    def share(done: int, total: int) -> None:
        if chain is not None:
            # What was done before this call says nothing about its pace.
            chain.count((done - start) / max(1, total - start))

    if console is None or not (lines or console.is_terminal):
        yield lambda done, total, note="": share(done, total)
        return

    def line(done: int, total: int, note: str) -> str:
        if done != total and not (lines > 1 and done % max(1, total // lines) == 0):
            return ""
        told = f"{title}: {total}" if lines <= 1 else f"{title}: step {done}/{total}"
        return f"{told}, {note}" if note else told

    if not console.is_terminal:

        def tell(done: int, total: int, note: str = "") -> None:
            share(done, total)
            if text := line(done, total, note):
                console.print(text, markup=False, highlight=False)

        yield tell
        return
    own = None if chain is not None and chain.display is not None else _display(console)
    bar = own or (chain.display if chain is not None else None)
    assert bar is not None
    with own or contextlib.nullcontext():
        task = bar.add_task(title, total=None, completed=start, note="", kind="count")

        def move(done: int, total: int, note: str = "") -> None:
            share(done, total)
            bar.update(task, completed=done, total=total, note=note)
            if isinstance(console, Logged) and (text := line(done, total, note)):
                console.note(text)

        try:
            yield move
        finally:
            if own is None:
                bar.remove_task(task)


class _Count(MofNCompleteColumn):
    """Counts of what is counted; a chain of stages has its number in its title."""

    def render(self, task: Any) -> Any:
        return "" if task.fields.get("kind") == "chain" else super().render(task)


class _Left(TimeRemainingColumn):
    """Likewise: a chain says in its note how long it takes yet."""

    def render(self, task: Any) -> Any:
        return "" if task.fields.get("kind") == "chain" else super().render(task)


def _display(console: Console) -> Progress:
    title, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    return Progress(title, BarColumn(), _Count(), note, _Left(), console=console)


class Logged(Terminal):
    """A console whose lines go into a file as well, each with the time; and so do warnings of the package.

    The file is written from `begin` on, with what was said before, so that what is refused at once leaves no trace.
    Where it cannot be written, what is shown goes on without it.
    """

    def __init__(self, shown: Console | None, file: Path) -> None:
        """Show what `shown` would show, or nothing where it is None."""
        super().__init__(
            file=shown.file if shown is not None else io.StringIO(),
            soft_wrap=True,
            quiet=shown is None or shown.quiet,
            force_terminal=shown.is_terminal if shown is not None else False,
            width=shown.width if shown is not None else None,
        )
        self._log = file
        self._held: list[str] | None = []

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        text = io.StringIO()
        Terminal(file=text, width=200, soft_wrap=True).print(*objects, **options)
        self.note(text.getvalue())

    def note(self, text: str) -> None:
        """Lines for the file alone."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = [f"{stamp} {line}\n" for line in text.splitlines() if line.strip()]
        if self._held is None:
            self._write(lines)
        else:
            self._held += lines

    def begin(self) -> None:
        """Write what was held back, and from now on each line as it comes."""
        held, self._held = self._held, None
        self._write(held or [])

    def _write(self, lines: Sequence[str]) -> None:
        with contextlib.suppress(OSError):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """While it lasts, what the package logs goes into the file too."""
        handler = _Lines(self)
        logger = logging.getLogger("acclimate")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, console: Logged) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.note(f"{record.levelname.lower()}: {record.getMessage()}")


def duration(seconds: float) -> str:
    """In words, as exactly as an estimate deserves: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds / 5)) * 5} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
