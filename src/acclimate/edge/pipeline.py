"""Stages of work, each in a thread of its own, with a bounded number of things between them.

What decodes a picture, what runs a network and what writes a result wait for one another when they share a thread. Here
the network's thread finds the next input ready and leaves its output behind. Order is kept, as each stage is one thread
and each queue first in, first out; what is in flight is bounded, and so is memory.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from acclimate import machine

AHEAD = 2
"""Things that wait between two stages."""
_TURN_S = 0.1
"""How often a thread that waits looks whether it is still wanted."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Failure:
    """What was raised in a stage, on its way to who asks for results."""

    error: BaseException


_END = object()


def ahead(threads: int) -> int:
    """How far to work ahead of a network on `threads` threads: not at all where no core is left for it."""
    return AHEAD if machine.usable_cores() > threads else 0


def in_stages(
    things: Iterable[Any], stages: Sequence[Callable[[Any], Any]], last: Callable[[Any], _Result], ahead: int = AHEAD
) -> Generator[_Result]:
    """What `last` makes of each thing after all stages, in the things' order.

    Things are drawn in a thread, each stage has one, and `last` runs where results are asked for. An exception in any
    of them is raised there, in its place in the order, and ends it. Whoever stops asking closes the iterator; the
    threads then end.

    Args:
        things: drawn as far ahead as the queues hold.
        stages: each takes what the one before made.
        last: the last stage.
        ahead: things between two stages; 0 does everything here, one thing after the other.
    """
    if ahead < 1:
        for thing in things:
            for stage in stages:
                thing = stage(thing)
            yield last(thing)
        return
    over = threading.Event()
    queues: list[queue.Queue[Any]] = [queue.Queue(ahead) for _ in range(len(stages) + 1)]
    threads = [threading.Thread(target=_feed, args=(things, queues[0], over), name="feed", daemon=True)]
    for number, stage in enumerate(stages):
        parts = (stage, queues[number], queues[number + 1], over)
        threads.append(threading.Thread(target=_work, args=parts, name=f"stage {number + 1}", daemon=True))
    for thread in threads:
        thread.start()
    try:
        while (thing := queues[-1].get()) is not _END:
            if isinstance(thing, _Failure):
                raise thing.error
            yield last(thing)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _feed(things: Iterable[Any], into: queue.Queue[Any], over: threading.Event) -> None:
    try:
        for thing in things:
            if not _put(into, thing, over):
                return
    except BaseException as error:
        _put(into, _Failure(error), over)
    _put(into, _END, over)


def _work(stage: Callable[[Any], Any], given: queue.Queue[Any], into: queue.Queue[Any], over: threading.Event) -> None:
    while not over.is_set():
        try:
            thing = given.get(timeout=_TURN_S)
        except queue.Empty:
            continue
        if thing is not _END and not isinstance(thing, _Failure):
            try:
                thing = stage(thing)
            except BaseException as error:
                thing = _Failure(error)
        if not _put(into, thing, over) or thing is _END:
            return


def _put(into: queue.Queue[Any], thing: Any, over: threading.Event) -> bool:
    """Wait for room; False where nobody wants it any more."""
    while not over.is_set():
        try:
            into.put(thing, timeout=_TURN_S)
        except queue.Full:
            continue
        return True
    return False
