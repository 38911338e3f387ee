"""What critics of features said of teacher and student: what `adapt.distillation` logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acclimate.report import verdict

if TYPE_CHECKING:
    from acclimate.report.content import Content, RunPart


def drawn(content: Content) -> list[dict[str, Any]]:
    """The critics of each run that logged some."""
    return [_charts(part, found) for part in content.parts if (found := critics(part))]


def _charts(part: RunPart, found: Sequence[Critic]) -> dict[str, Any]:
    """The scores of each level's critic on both sides, and which critics have collapsed."""
    from acclimate.report import plot

    charts = []
    for one in found:
        title = f"Critic at stride {one.stride}"
        gap, last = one.student[-1][1] - one.teacher[-1][1], one.student[-1][0]
        told = f"{part.label}: {title}, scores of both sides over {len(one.teacher)} logged steps, "
        told += f"{verdict.quantity(gap)} apart at step {plot.number(last)}"
        curves = [plot.Line("teacher", one.teacher, "a"), plot.Line("student", one.student, "b")]
        charts.append({"title": title, "plot": plot.lines(curves, label=told), "collapsed": one.collapsed})
    dead = [one.stride for one in found if one.collapsed]
    return {"label": part.label, "charts": charts, "collapsed": dead, "path": part.run.path}


@dataclass(frozen=True)
class Critic:
    """What the critic of one level said of features, over the logged steps.

    Attributes:
        stride: of its level.
        teacher, student: (step, mean score) of either side.
        spread: how far the scores of images were from their side's mean, at the same steps.
    """

    stride: str
    teacher: Sequence[tuple[float, float]]
    student: Sequence[tuple[float, float]]
    spread: Sequence[float]

    @property
    def collapsed(self) -> bool:
        """At the end it says the same of both sides and of every image, measured by the widest gap it has known."""
        gaps = [abs(own[1] - other[1]) for own, other in zip(self.teacher, self.student, strict=True)]
        end = max(1, len(gaps) // 4)
        known = max(gaps)
        flat = (sum(values[-end:]) / end <= max(FLAT * known, NOTHING) for values in (gaps, list(self.spread)))
        return known <= NOTHING or all(flat)


FLAT = 0.05
"""Share of a critic's widest gap below which its last gaps, and its last scores' spread, are nothing."""
NOTHING = 1e-3
"""A gap that no training learns from."""


def critics(part: RunPart) -> list[Critic]:
    """The critics of a distillation, from the finest level on, as far as the run logged them."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for line in part.metrics:
        step, scores = line.get("step"), line.get("critics")
        for stride, one in scores.items() if isinstance(scores, dict) else ():
            values = [one.get(name) for name in ("teacher", "student", "spread")] if isinstance(one, dict) else [None]
            if all(isinstance(value, int | float) for value in (step, *values)):
                found.setdefault(stride, []).append((step, *values))
    return [
        Critic(
            stride,
            [(step, teacher) for step, teacher, _, _ in rows],
            [(step, student) for step, _, student, _ in rows],
            [spread for *_, spread in rows],
        )
        for stride, rows in found.items()
    ]
