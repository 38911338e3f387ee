"""The one judge: measurements and a budget in, checks and a verdict out.

The verbs verify, run and search, the report and the leaderboard all ask it, so none of them can say another thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from acclimate.config import Budget
from acclimate.edge.bench import Bench

Verdict = Literal["passed", "failed", "incomplete", "measured"]
"""`incomplete`: no limit is broken, and one that is in force could not be measured; `measured`: none is in force."""
TOLERANCE = "max_ap50_drop"
"""The limit that is in force without being asked for."""
ON_PROCESSOR = 0.8
"""Below this share of processor time in the latency on one thread, something else was running."""
WAITING = 0.2
"""Above this share of a thread's time in a run queue, likewise."""
SPREAD = 0.5
"""Above this distance of the quartiles in medians, likewise, where the system tells nothing better."""
CONTENTION = 2.0
"""What processor time may grow by because others use the same caches: beyond it a latency is too long in any case."""
MUCH = 0.05
"""Five points of AP50: a class that loses as many is named even where chance may have done it."""
LEARNT = 0.1
"""Below this AP50 on its own domain a detector has learnt next to nothing."""


class Check(BaseModel):
    """One limit and what was measured.

    `passed` is None where it is not known whether the limit holds; `reason` then says why, and what to do.
    """

    name: str
    limit: float
    value: float | None
    passed: bool | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What limits are held against, in the units of `Budget`; None is what was not measured.

    Attributes:
        latency_ms, size_mb, memory_mb, macs_m: costs.
        ap50_drop: AP50 lost against the eager model, on the worst labelled set.
        ap50: of the artifact on the worst labelled set of the target.
        gain_ap50: AP50 over that of source-only there.
        class_drop_ap50: the largest loss of a class's AP50 against source-only there.
        latency_at_least: what the latency is at least, however busy the machine was; None where that is not known.
        disturbed: why the latency may be too long; empty where it can be trusted.
        reasons: why something was not measured, by the name of its limit, where more can be said than `UNMEASURED`.
    """

    latency_ms: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    macs_m: float | None = None
    ap50_drop: float | None = None
    ap50: float | None = None
    gain_ap50: float | None = None
    class_drop_ap50: float | None = None
    latency_at_least: float | None = None
    disturbed: str = ""
    reasons: tuple[tuple[str, str], ...] = ()


LIMITS: tuple[tuple[str, str, Literal["most", "least"]], ...] = (
    ("latency_ms", "latency_ms", "most"),
    ("size_mb", "size_mb", "most"),
    ("memory_mb", "memory_mb", "most"),
    ("macs_m", "macs_m", "most"),
    ("max_ap50_drop", "ap50_drop", "most"),
    ("min_ap50", "ap50", "least"),
    ("min_gain_ap50", "gain_ap50", "least"),
    ("max_class_drop_ap50", "class_drop_ap50", "most"),
)
"""Each limit of `Budget`, the field of `Measured` that is held against it, and which side is good."""

UNMEASURED = {
    "latency_ms": "the latency was not measured",
    "size_mb": "the size was not measured",
    "memory_mb": "the memory was not measured",
    "macs_m": "the artifact does not say its multiply-accumulates; export it again",
    "max_ap50_drop": "it was not compared with the model before export on labelled images; name some with --data or "
    "--source, or take the limit away with max_ap50_drop=none",
    "min_ap50": "no labelled images of the target were measured; name some with --data",
    "min_gain_ap50": "it was not compared with a source-only run on labelled images of the target; it lies beside the "
    "adapted run, and --data names the images",
    "max_class_drop_ap50": "it was not compared with a source-only run on labelled images of the target; it lies "
    "beside the adapted run, and --data names the images",
}


def judge(measured: Measured, budget: Budget) -> tuple[Check, ...]:
    """Hold what was measured against every limit that is in force.

    Examples:
        >>> from acclimate.config import parse_budget
        >>> from acclimate.verification.judge import Measured, judge
        >>> measured = Measured(latency_ms=12.0, size_mb=3.0)
        >>> checks = judge(measured, parse_budget("latency_ms=10,size_mb=4,max_ap50_drop=none"))
        >>> [(check.name, check.passed) for check in checks]
        [('latency_ms', False), ('size_mb', True)]
    """
    return tuple(_checks(measured, budget))


def _checks(measured: Measured, budget: Budget) -> Iterator[Check]:
    reasons = {**UNMEASURED, **dict(measured.reasons)}
    for name, field, side in LIMITS:
        limit: float | None = getattr(budget, name)
        if limit is None:
            continue
        value: float | None = getattr(measured, field)
        if value is None:
            yield Check(name=name, limit=limit, value=None, passed=None, reason=reasons[name])
            continue
        passed: bool | None = within(value, limit) if side == "most" else within(limit, value)
        reason = ""
        if name == "latency_ms" and not passed and measured.disturbed and _may_hold(measured, limit):
            passed, reason = None, f"latency could not be measured now: {measured.disturbed}"
        yield Check(name=name, limit=limit, value=value, passed=passed, reason=reason)


def within(value: float, limit: float) -> bool:
    """Whether a value is at most a limit. The last digits are noise, as of a difference of two APs, and break none."""
    return value <= limit + 1e-9 * max(1.0, abs(limit))


def _may_hold(measured: Measured, limit: float) -> bool:
    return measured.latency_at_least is None or within(measured.latency_at_least, limit)


def verdict(checks: Sequence[Check]) -> Verdict:
    """What the checks come to: a limit that is broken says more than one that was not measured."""
    if any(check.passed is False for check in checks):
        return "failed"
    if any(check.passed is None for check in checks):
        return "incomplete"
    return "passed" if checks else "measured"


def disturbance(latency: Bench) -> str:
    """Why something else must have run while a latency was measured; empty where nothing says so."""
    b = latency
    if b.threads == 1 and b.cpu_ms < ON_PROCESSOR * b.median_ms:
        return f"the machine was busy: an image took {b.median_ms:.1f} ms, of which {b.cpu_ms:.1f} ms on the processor"
    if b.waited_ms is not None:
        if b.waited_ms > WAITING * b.threads * b.median_ms:
            return (
                f"the machine was busy: threads waited {b.waited_ms:.1f} ms for a processor in an image that took "
                f"{b.median_ms:.1f} ms"
            )
    elif b.threads > 1 and b.iqr_ms > SPREAD * b.median_ms:
        return f"times spread too far: {b.iqr_ms:.1f} ms between the quartiles around {b.median_ms:.1f} ms"
    return ""


def at_least(latency: Bench) -> float | None:
    """What an image takes at least, by the processor time of one thread; None for several."""
    return latency.cpu_ms / CONTENTION if latency.threads == 1 else None


def not_learnt(ap50: float | None) -> str:
    """What is said first of a source detector that has learnt next to nothing; empty where it has, or nobody knows.

    Args:
        ap50: on a test set of its own domain, 0..1.
    """
    if ap50 is None or ap50 >= LEARNT:
        return ""
    return (
        f"the source detector has not learnt: AP50 {100 * ap50:.1f} on its own domain; train longer or start from "
        "pretrained weights"
    )
