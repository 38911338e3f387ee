"""Class by class and size by size: what changed, which threshold, what is confused, what a score is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from acclimate.diagnosis import SHOWN, SIDES, Curve, Diagnosis, OfSize
from acclimate.report.content import Content, changed
from acclimate.report.sections.pair import Pair

CLASSES = 8
"""So many classes get curves of their own, those with the most boxes."""
MATRIX = 12
"""The confusion matrix shows so many classes, those with the most boxes; the rest is summed as others."""


def section(content: Content, both: Pair | None) -> dict[str, Any] | None:
    """What the template draws; None without a diagnosis."""
    if both is None:
        return None
    from acclimate.report import plot

    after = both.after.diagnosis
    before = both.before.diagnosis if both.before is not None else None
    rows = classes(content, both)
    curves = []
    for row in rows[:CLASSES]:
        name = row["name"]
        own, other = after.curves.get(name), before.curves.get(name) if before is not None else None
        if own is None:
            continue
        at = after.thresholds.get(name)
        told = f"{name} on {both.domain.name}"
        curves.append(
            {
                "name": name,
                "precision": plot.lines(
                    [
                        *([plot.Line("before", _recalled(other), "e", dashed=True)] if other else []),
                        plot.Line("after", _recalled(own), "a"),
                    ],
                    label=f"Precision over recall, {told}",
                    x_name="recall",
                    span=((0.0, 1.0), (0.0, 1.0)),
                ),
                "f1": plot.lines(
                    [
                        *([plot.Line("before", _scored(other), "e", dashed=True)] if other else []),
                        plot.Line("after", _scored(own), "a"),
                    ],
                    label=f"F1 over the threshold, {told}",
                    x_name="score",
                    span=((0.0, 1.0), (0.0, 1.0)),
                    marker=(at.score, f"{at.score:.2f}") if at is not None else None,
                ),
            }
        )
    return {
        "domain": both.domain,
        "compared": before is not None,
        "rows": rows,
        "suggested": any(row["suggested"] is not None for row in rows),
        "shown": SHOWN,
        "curves": curves,
        "left": len([row for row in rows if row["name"] in after.curves]) - len(curves),
        "confusion": _matrix(after),
        "sizes": sizes(both),
        "reliability": _reliability(both),
    }


def classes(content: Content, both: Pair) -> list[dict[str, Any]]:
    """Of each class: its boxes, AP50 before and after with the interval of the change, and its thresholds.

    `suggested` is the threshold that the artifact carries, from images of the source; `best` where F1 is highest here,
    which is known in hindsight.
    """
    base, adapted = content.source_only, content.eager("adapted")
    last = adapted or base
    score = last.on(both.domain) if last is not None else None
    found = changed(base.on(both.domain), adapted.on(both.domain)) if base and adapted else None
    headline = content.headline
    suggested = headline.artifact.suggested if headline is not None and headline.artifact is not None else {}
    truth = [label for seen in both.after.diagnosis.images for label in seen.truth_labels]
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(both.after.diagnosis.classes):
        change = found.classes.get(name) if found is not None else None
        at = both.after.diagnosis.thresholds.get(name)
        own = score.classes.get(name) if score is not None else None
        rows.append(
            {
                "name": name,
                "boxes": truth.count(label),
                "ap50": own.ap50 if own is not None else None,
                "change": change,
                "direction": _direction(change),
                "suggested": suggested.get(name),
                "best": at,
            }
        )
    return sorted(rows, key=lambda row: -row["boxes"])


def _direction(change: Any) -> str:
    """An arrow where chance would hardly have made the change, a sign of "about" elsewhere; empty without a change."""
    if change is None:
        return ""
    if not change.clear:
        return "\u2248"
    return "\u25b2" if change.difference > 0 else "\u25bc"


def _recalled(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.recall, curve.precision, strict=True))


def _scored(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.score, curve.f1(), strict=True))[::-1]


def _matrix(diagnosis: Diagnosis) -> dict[str, Any]:
    """Rows are true classes, columns what was detected, each with its share of the row; the background comes last."""
    order = sorted(range(len(diagnosis.classes)), key=lambda label: -sum(diagnosis.confusion[label]))
    shown, rest = order[:MATRIX], order[MATRIX:]
    groups = [[label] for label in shown] + ([rest] if rest else []) + [[len(diagnosis.classes)]]
    names = [diagnosis.classes[label] for label in shown] + ([f"{len(rest)} others"] if rest else [])
    cells = [
        [sum(diagnosis.confusion[true][found] for true in row for found in column) for column in groups]
        for row in groups
    ]
    rows = []
    for place, row in enumerate(cells):
        total = sum(row) or 1
        last = place == len(cells) - 1
        rows.append(
            {
                "name": "nothing there" if last else names[place],
                "cells": [
                    {"count": count, "share": count / total, "right": place == column and not last}
                    for column, count in enumerate(row)
                ],
            }
        )
    return {"columns": [*names, "missed"], "rows": rows}


def sizes(both: Pair) -> list[dict[str, Any]]:
    """AP50 of objects by their side on the network's input, before and after; sizes that do not occur are left out."""
    total = max(1, sum(one.boxes for one in both.after.diagnosis.sizes))
    before: Sequence[OfSize | None] = [None] * len(SIDES)
    if both.before is not None:
        before = both.before.diagnosis.sizes
    return [
        {
            "name": f"{one.low_px:g} px and more" if one.high_px is None else f"{one.low_px:g} to {one.high_px:g} px",
            "boxes": one.boxes,
            "share": one.boxes / total,
            "before": other.ap50 if other is not None else None,
            "after": one.ap50,
        }
        for one, other in zip(both.after.diagnosis.sizes, before, strict=True)
        if one.boxes
    ]


def _reliability(both: Pair) -> dict[str, Any] | None:
    from acclimate.report import plot

    known = [(view, view.diagnosis.reliability) for view in both.views if view.diagnosis.reliability is not None]
    if not known:
        return None
    lines = [plot.Line("as sure as right", [(0.0, 0.0), (1.0, 1.0)], "e", dashed=True)]
    errors: list[dict[str, Any]] = []
    for place, (view, one) in enumerate(known):
        after = view is both.after
        points = [(each.score, each.right) for each in one.bins if each.count]
        lines.append(plot.Line(view.label, points, "a" if after else "d", marks=True))
        errors.append({"model": view.label, "error": one.error, "colour": lines[place + 1].colour})
    told = ", ".join(f"{one['model']} {100 * one['error']:.1f} points off" for one in errors)
    return {
        "errors": errors,
        "plot": plot.lines(
            lines,
            label=f"Share of boxes that are right over their score on {both.domain.name}: {told}",
            x_name="score",
            span=((0.0, 1.0), (0.0, 1.0)),
            height=220,
        ),
    }
