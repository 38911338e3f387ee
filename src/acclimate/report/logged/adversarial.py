"""How often critics told the domains apart: what `adapt.adversarial` logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acclimate.report import verdict

if TYPE_CHECKING:
    from acclimate.report.content import Content, RunPart


def drawn(content: Content) -> list[dict[str, Any]]:
    """The critics of each run that logged some."""
    return [_charts(part, curves) for part in content.parts if (curves := _curves(part))]


def _charts(part: RunPart, found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """How often each critic told the domains apart."""
    from acclimate.report import plot

    charts = []
    for name, points in found.items():
        told = f"{part.label}: share that the critic {name} got right over {len(points)} logged steps, "
        told += f"{verdict.quantity(points[-1][1])} at step {plot.number(points[-1][0])}"
        charts.append({"title": f"Critic: {name}", "plot": plot.lines([plot.Line("right", points, "a")], label=told)})
    return {"label": part.label, "charts": charts}


def _curves(part: RunPart) -> dict[str, list[tuple[float, float]]]:
    """(step, share that it got right) of each critic of the domain, as far as the run logged them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in part.metrics:
        step, shares = line.get("step"), line.get("domain_critics")
        for name, share in shares.items() if isinstance(shares, dict) else ():
            if isinstance(step, int | float) and isinstance(share, int | float):
                found.setdefault(name, []).append((step, share))
    return found
