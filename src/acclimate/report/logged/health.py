"""Whether trainings kept their networks alive: what `adapt.health` logged, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acclimate.report import verdict

if TYPE_CHECKING:
    from acclimate.report.content import Content, RunPart

LAST = 10
"""Logged steps at the end of a run that are looked at together: what one batch does not reach is not dead."""
MUCH = 0.2
"""Share of dead channels from which the page says so in words."""


def drawn(content: Content) -> list[dict[str, Any]]:
    """Of each run that logged it."""
    return [alive for part in content.parts if (alive := _health(part)) is not None]


def _health(part: RunPart) -> dict[str, Any] | None:
    """Dead channels over the steps and by layer at the end; None for a run that did not log them."""
    from acclimate.report import plot

    lines = [line for line in part.metrics if isinstance(line.get("health"), dict) and "dead_channels" in line]
    if not lines:
        return None
    last = lines[-LAST:]
    layers = list(last[-1]["health"])
    dead = [min(_values(last, layer, "dead")) for layer in layers]
    moves = [sum(found) / len(found) for layer in layers if (found := _values(last, layer, "update"))]
    share = min(float(line["dead_channels"]) for line in last)
    silent = [layer for layer, part_dead in zip(layers, dead, strict=True) if part_dead == 1]
    numbered = [(i + 1.0, 100 * value) for i, value in enumerate(dead)]
    over_time = [(float(line["step"]), 100 * float(line["dead_channels"])) for line in lines]
    told = f"{part.label}: dead channels in %, at the end {verdict.quantity(100 * share)}"
    charts = [
        {
            "title": "Dead channels over the steps, %",
            "plot": plot.lines([plot.Line("dead", over_time, "a")], label=told, zero=True),
        },
        {
            "title": f"Dead channels of each of the {len(layers)} layers at the end, %",
            "plot": plot.lines(
                [plot.Line("dead", numbered, "a")], label=f"{told}, by layer", x_name="layer", zero=True
            ),
        },
    ]
    return {
        "label": part.label,
        "charts": charts,
        "layers": layers,
        "silent": silent,
        "share": share,
        "much": share >= MUCH,
        "move": sum(moves) / len(moves) if moves else None,
    }


def _values(lines: Sequence[Mapping[str, Any]], layer: str, name: str) -> list[float]:
    """What the lines say of a layer; 0 where none says anything, as of a layer that was not looked at."""
    found = [line["health"].get(layer) for line in lines]
    return [float(value[name]) for value in found if isinstance(value, dict) and name in value] or [0.0]
