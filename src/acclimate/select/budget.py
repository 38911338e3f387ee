"""What a width of a bank costs: exact counts, a prediction from a few measured artifacts, and measurements.

Exporting and timing every candidate of a search would take hours. A few widths are exported and timed once; from them
the latency of any width follows as a sum of non-negative shares: a constant (pre- and post-processing), one for the
multiply-accumulates, and one for each stage's channels (what is read and written). How far that is off is measured on
widths that were not fitted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from acclimate import machine
from acclimate.config import Budget
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.run import digest
from acclimate.structures import Image
from acclimate.verification.judge import Measured, judge

Width = tuple[float, ...]
"""The share of its channels that each stage of a bank keeps, in 0..1."""
FITTED, HELD_OUT = 12, 4
"""Widths that the prediction is fitted on, and that it is checked on."""
ROUNDS, TURN = 12, 4
"""Timed images of an artifact: so many rounds over all artifacts, so many in a row in each."""


class Cost(BaseModel):
    """What a detector needs, in the units of `Budget`; None where it is neither known nor predicted."""

    macs_m: float
    parameters: int = 0
    latency_ms: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    latency_at_least: float | None = None
    disturbed: str = ""
    """What the judge asks of a latency that was measured; see `verification.judge.Measured`."""

    def as_measured(self, measured: Measured) -> Cost:
        """These exact counts, with what a verification measured in place of what was predicted."""
        names = ("latency_ms", "size_mb", "memory_mb", "latency_at_least", "disturbed")
        return self.model_copy(update={name: getattr(measured, name) for name in names})

    def shares(self, budget: Budget) -> dict[str, float]:
        """What is used of each limit that is set and known: 1 is all of it."""
        known = {name: getattr(self, name) for name in budget.limits()}
        return {name: known[name] / limit for name, limit in budget.limits().items() if known[name] is not None}

    def over(self, budget: Budget) -> dict[str, float]:
        """The shares of limits that are broken, as `verification.judge` says."""
        broken = {check.name for check in judge(self.measured, budget) if check.passed is False}
        return {name: share for name, share in self.shares(budget).items() if name in broken}

    def unknown(self, budget: Budget) -> str:
        """Why it cannot be said whether a limit that was measured holds; empty where it can."""
        checks = judge(self.measured, budget)
        return next((one.reason for one in checks if one.passed is None and one.value is not None), "")

    @property
    def measured(self) -> Measured:
        """These costs, for the judge."""
        return Measured(
            latency_ms=self.latency_ms,
            size_mb=self.size_mb,
            memory_mb=self.memory_mb,
            macs_m=self.macs_m,
            latency_at_least=self.latency_at_least,
            disturbed=self.disturbed,
        )

    def excess(self, budget: Budget) -> float:
        """The largest share; 0 where no limit is set and known."""
        return max(self.shares(budget).values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Platform:
    """What artifacts are timed on; another one has another table.

    Attributes:
        runtime: that runs them.
        precision: of their arithmetic.
        threads: of the runtime.
        machine: facts of this one.
    """

    runtime: str
    precision: str
    threads: int
    machine: dict[str, str] = field(default_factory=machine.facts)

    @property
    def file(self) -> str:
        """The name of its table's file."""
        here = digest(self.machine["processor"], self.machine["cores"])[:8]
        return f"{self.runtime}-{self.precision}-{self.threads}-{here}.json"


class Sample(BaseModel):
    """One width that was exported and timed."""

    width: Width
    macs_m: float
    parameters: int
    size_mb: float
    latency_ms: float


class Table(BaseModel):
    """Measured widths of one bank on one runtime and machine, and what follows from them for any other width."""

    runtime: str
    precision: str
    threads: int
    machine: dict[str, str]
    fitted: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    latency_shares: tuple[float, ...]
    """Milliseconds: the constant, per million multiply-accumulates, then per stage at full width."""
    size_shares: tuple[float, float]
    """Megabytes: the constant, per million parameters."""
    latency_error: float | None = Field(default=None)
    """Mean of |predicted - measured| / measured over the widths held out; None where there are none."""
    latency_error_max: float | None = None
    size_error: float | None = None

    def predict(self, width: Width, macs_m: float, parameters: int) -> Cost:
        """The cost of any width with these exact counts."""
        return Cost(
            macs_m=macs_m,
            parameters=parameters,
            latency_ms=float(_traits(width, macs_m) @ np.array(self.latency_shares)),
            size_mb=self.size_shares[0] + self.size_shares[1] * parameters / 1e6,
        )


def fit(samples: Sequence[Sample], held_out: Sequence[Sample], platform: Platform) -> Table:
    """The prediction of a width's cost that some widths give, checked on others.

    Least squares of relative errors, so that a small width counts as much as a large one, with shares that are not
    negative (Lawson and Hanson 1974): more channels never make a prediction faster.

    Args:
        samples: widths that were exported and timed.
        held_out: others, which only check the prediction.
        platform: what they ran on.
    """
    latency = np.array([sample.latency_ms for sample in samples])
    size = np.array([sample.size_mb for sample in samples])
    counts = np.array([[1.0, sample.parameters / 1e6] for sample in samples])
    table = Table(
        runtime=platform.runtime,
        precision=platform.precision,
        threads=platform.threads,
        machine=platform.machine,
        fitted=tuple(samples),
        held_out=tuple(held_out),
        latency_shares=tuple(_relative(np.stack([_traits(s.width, s.macs_m) for s in samples]), latency)),
        size_shares=(*_relative(counts, size),),
    )
    if not held_out:
        return table
    predicted = [table.predict(s.width, s.macs_m, s.parameters) for s in held_out]
    off = [abs((p.latency_ms or 0) / s.latency_ms - 1) for p, s in zip(predicted, held_out, strict=True)]
    sizes = [abs((p.size_mb or 0) / s.size_mb - 1) for p, s in zip(predicted, held_out, strict=True)]
    return table.model_copy(
        update={
            "latency_error": statistics.fmean(off),
            "latency_error_max": max(off),
            "size_error": statistics.fmean(sizes),
        }
    )


def _traits(width: Width, macs_m: float) -> NDArray[np.float64]:
    return np.array([1.0, macs_m, *width])


def _relative(traits: NDArray[np.float64], values: NDArray[np.float64]) -> Any:
    """Non-negative shares whose sums come nearest to `values`, in relative terms."""
    from scipy.optimize import nnls

    rows = traits / values[:, None]
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    shares, _ = nnls(rows / scale, np.ones(len(values)))
    return (shares / scale).tolist()


def representative(choices: Sequence[Sequence[float]], count: int, seed: int) -> list[Width]:
    """`count` different widths to measure: evenly narrower ones from the largest on, then random ones.

    The last ones are random, so they are fit to be held out. There are fewer where there are not so many.

    Args:
        choices: of each stage, rising.
        count: how many.
        seed: of the random ones.
    """
    levels = max(map(len, choices))
    found: dict[Width, None] = {}
    for level in reversed(range(levels)):
        found[tuple(one[round(level * (len(one) - 1) / max(1, levels - 1))] for one in choices)] = None
    rng = np.random.default_rng(seed)
    while len(found) < min(count, math.prod(map(len, choices))):
        found[tuple(one[int(rng.integers(len(one)))] for one in choices)] = None
    return list(found)[:count]


def interleaved(
    artifacts: Sequence[Path], images: Sequence[Image], threads: int, rounds: int, turn: int
) -> list[float]:
    """Latency in ms of each artifact, pre- and post-processing included: the median over its turns of a turn's fastest.

    On a busy machine half of all images may be interrupted, but seldom all of a turn. All artifacts are
    loaded and take turns, so a machine that gets busier slows all of them.

    Args:
        artifacts: their folders.
        images: (H, W, 3) each.
        threads: of the runtime.
        rounds: turns of each artifact.
        turn: timed images a turn, after one that warms the caches.

    Raises:
        AcclimateError: an artifact cannot be loaded.
    """
    predictors = [Predictor.load(folder, threads) for folder in artifacts]
    times: list[list[float]] = [[] for _ in predictors]
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        supply = cycle(images)
        for number in range(rounds):
            order = list(enumerate(predictors))
            for index, predictor in order if number % 2 else reversed(order):
                predictor(next(supply))
                taken = []
                for _ in range(turn):
                    image = next(supply)
                    start = time.perf_counter()
                    predictor(image)
                    taken.append(1e3 * (time.perf_counter() - start))
                times[index].append(min(taken))
    finally:
        cv2.setNumThreads(before)
    return [statistics.median(turns) for turns in times]


def readable(paths: Iterable[Path], count: int) -> list[Image]:
    """Up to `count` images (H, W, 3) of those that can be read; noise where there is none."""
    images = []
    for path in paths:
        try:
            images.append(read_image(path))
        except AcclimateError:
            continue
        if len(images) == count:
            break
    return images or [np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)]


def take(
    widths: Sequence[Width],
    held_out: int,
    export: Callable[[Width], tuple[Path, Cost]],
    images: Sequence[Image],
    platform: Platform,
    *,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Export `widths`, time them in turns, and fit; the last `held_out` of them only check the fit.

    Args:
        widths: which; see `representative`.
        held_out: how many of them.
        export: makes a width's artifact; its folder, and its cost with the exact counts and the size.
        images: (H, W, 3) each, to time on.
        platform: what the artifacts run on.
        rounds: see `interleaved`.
        progress: told (done, all) after each export.
    """
    folders, costs = [], []
    for done, width in enumerate(widths, 1):
        folder, cost = export(width)
        folders.append(folder)
        costs.append(cost)
        if progress is not None:
            progress(done, len(widths))
    times = interleaved(folders, images, platform.threads, rounds, TURN)
    samples = [
        Sample(width=width, macs_m=c.macs_m, parameters=c.parameters, size_mb=c.size_mb or 0.0, latency_ms=latency)
        for width, c, latency in zip(widths, costs, times, strict=True)
    ]
    kept = len(samples) - min(held_out, len(samples) - 1)
    return fit(samples[:kept], samples[kept:], platform)
