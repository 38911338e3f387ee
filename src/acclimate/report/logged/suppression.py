"""What suppression acted on, layer by layer: what `adapt.suppression` logged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acclimate.report.content import Content, RunPart


def drawn(content: Content) -> list[dict[str, Any]]:
    """Layer by layer, what suppression had to act on and how far a step moved; nothing where no run measured it."""
    measured = {_form(part): layers for part in content.parts if (layers := _layers(part))}
    if not measured:
        return []
    order = list(dict.fromkeys(layer for layers in measured.values() for layer in layers))

    def chart(title: str, curves: dict[str, dict[str, float]], *, powers: bool = False) -> dict[str, Any]:
        """Curves over the layers' numbers; `powers` draws logarithms, as layers differ by orders of magnitude."""
        from acclimate.report import plot

        drawn = []
        for i, (label, values) in enumerate(curves.items()):
            points = [(order.index(layer) + 1.0, value) for layer, value in values.items() if value > 0 or not powers]
            points = [(x, math.log10(y)) for x, y in points] if powers else points
            drawn.append(plot.Line(label, points, "abcde"[i % 5], dashed=i % 2 == 1))
        told = f"{title}, over {len(order)} layers: {', '.join(curves)}"
        legend = [(line.label, line.colour) for line in drawn]
        return {"title": title, "plot": plot.lines(drawn, label=told, x_name="layer"), "legend": legend}

    def column(layers: dict[str, dict[str, float]], name: str) -> dict[str, float]:
        return {layer: values[name] for layer, values in layers.items() if name in values}

    charts = []
    for form, layers in measured.items():
        along = {"measured": column(layers, "cosine"), "of a random direction": column(layers, "chance")}
        charts.append(chart(f"{form}: cosine of gradient and weight, without its sign", along))
        of_update = {
            "with suppression": column(layers, "update_cosine"),
            "without it, in the same steps": column(layers, "update_cosine_without"),
            "of a random direction": column(layers, "chance"),
        }
        # Runs of earlier versions have no cosine of the update, and not every form can tell it without suppression.
        if of_update["with suppression"]:
            known = {name: values for name, values in of_update.items() if values}
            charts.append(chart(f"{form}: cosine of update and weight, without its sign", known))
        norms = {"without suppression": column(layers, "gradient"), "with it": column(layers, "suppressed")}
        charts.append(chart(f"{form}: norm of the gradient, powers of ten", norms, powers=True))
    moved = {
        form: {layer: v["update"] / v["weight"] for layer, v in layers.items() if v.get("weight") and "update" in v}
        for form, layers in measured.items()
    }
    charts.append(chart("Update in a step over the weight, norms, powers of ten", moved, powers=True))
    return [{"charts": charts, "layers": order}]


def _form(part: RunPart) -> str:
    """A run and which form of suppression it had; one that only measured had none."""
    method = part.config.get("adapt")
    options = method.get("suppression") if isinstance(method, Mapping) else None
    if not isinstance(options, Mapping):
        return part.label
    form = "only measured" if options.get("strength") == 0 else f"suppression: {options.get('form', 'gradient')}"
    return f"{part.label} ({form})"


def _layers(part: RunPart) -> dict[str, dict[str, float]]:
    """What suppression measured of each convolution, in order: |cosine| and norms, means over the logged steps."""
    sums: dict[str, Counter[str]] = {}
    for line in part.metrics:
        measured = line.get("suppression")
        for layer, values in measured.items() if isinstance(measured, dict) else ():
            if isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values()):
                found = sums.setdefault(layer, Counter())
                found.update({name: abs(value) for name, value in values.items()})
                found["steps"] += 1
    return {layer: {name: value / found["steps"] for name, value in found.items()} for layer, found in sums.items()}
