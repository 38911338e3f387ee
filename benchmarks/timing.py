"""How the benchmarks time calls and write ratios; all that are compared are timed in turn, round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WARM_UP = 3
"""Calls before those that count."""


def median_ms(call: Callable[[], Any], runs: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median of milliseconds of a call.

    Args:
        call: what is timed.
        runs: how often, after `WARM_UP` calls.
        clock: in seconds; `time.process_time` weighs other load on the machine less, and counts all threads.
    """
    times = []
    for _ in range(WARM_UP + runs):
        began = clock()
        call()
        times.append(1e3 * (clock() - began))
    return statistics.median(times[WARM_UP:])


def within(rounds: Sequence[Mapping[Any, float]], key: Any, reference: Any) -> list[float]:
    """The ratio of one measure to another in each round that has both."""
    return [one[key] / one[reference] for one in rounds if reference in one]


def spread(ratios: Sequence[float]) -> dict[str, str]:
    """Columns: median, lowest and highest of ratios; none of no ratio."""
    if not ratios:
        return {}
    found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {f"ratio_{name}": f"{value:.3f}" for name, value in found.items()}
