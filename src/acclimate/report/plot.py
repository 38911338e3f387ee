"""Plots as inline SVG, drawn for any width: shapes are placed in per cent, text keeps its size.

A plot is an `<svg>` without a viewBox, as wide as its column. Lines live in a nested SVG that is stretched
(`preserveAspectRatio="none"`, strokes kept), marks and text are placed in per cent, so nothing shrinks on a phone.
Colours are CSS classes `s-NAME` of the page's palette; all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve: `points` are (x, y) in order of x; `colour` names a colour of the page's palette."""

    label: str
    points: Points
    colour: str = "a"
    dashed: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar; None is shown as not measured. `text` is written at its end."""

    label: str
    value: float | None
    text: str
    colour: str


@dataclass(frozen=True)
class Mark:
    """One point of a scatter plot, with its name beside it."""

    label: str
    x: float
    y: float
    colour: str
    detail: str = ""


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with a tick at each of `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...] = field(default=())

    def at(self, value: float) -> float:
        """Where `value` lies, 0 at the low end and 100 at the high end."""
        return 100.0 * (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], *, zero: bool = False, count: int = 4) -> Axis:
    """An axis with round ticks (steps of 1, 2 or 5 times a power of ten) that covers `values`.

    Values that are not finite are left out; with nothing left the axis is 0..1.
    """
    finite = [float(v) for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = (low, high + pad) if zero else (low - pad, high + pad)
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


def number(value: float) -> str:
    """A tick's text: at most four significant digits, a real minus sign, no needless zeros."""
    if value == 0:
        return "0"
    text = f"{value:.0e}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"
    mantissa, found, exponent = text.partition("e")
    return (f"{mantissa}e{int(exponent)}" if found else text).replace("-", "\u2212")


def thin(points: Points, most: int = 240) -> list[tuple[float, float]]:
    """At most `most` points: the mean of equal stretches; points that are not finite are left out."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / most))
    chunks = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def lines(
    curves: Sequence[Line],
    *,
    label: str,
    height: int = 150,
    marker: tuple[float, str] | None = None,
    zero: bool = False,
    x_name: str = "step",
    span: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Markup:
    """Curves over a common x.

    Args:
        curves: what is drawn.
        label: the plot in words, for who cannot see it.
        height: pixels.
        marker: (x, text) of a vertical line.
        zero: whether the y axis begins at 0.
        x_name: what x is.
        span: what x and y go over, (low, high) each; None is what the curves cover.
    """
    curves = [Line(c.label, thin(c.points), c.colour, c.dashed, c.marks) for c in curves]
    xs = [x for c in curves for x, _ in c.points] + ([marker[0]] if marker else [])
    y_axis = axis([y for c in curves for _, y in c.points], zero=zero, count=3)
    low, high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    x_axis = Axis(low, high if high > low else low + 1.0)
    if span is not None:
        x_axis, y_axis = Axis(*span[0]), axis(span[1], count=4)
    parts = [_horizontal_grid(y_axis)]
    inner = [
        Markup('<polyline class="curve s-{}{}" points="{}"/>').format(
            c.colour,
            " dashed" if c.dashed else "",
            " ".join(f"{x_axis.at(x):.2f},{100 - y_axis.at(y):.2f}" for x, y in c.points),
        )
        for c in curves
    ]
    parts.append(
        Markup('<svg viewBox="0 0 100 100" width="100%" height="100%" preserveAspectRatio="none">{}</svg>').format(
            Markup("").join(inner)
        )
    )
    if marker:
        parts.append(_vertical(x_axis.at(marker[0]), marker[1], "chosen"))
    for c in curves:
        if c.marks:
            parts += [
                Markup('<circle class="mark s-{}" cx="{:.2f}%" cy="{:.2f}%" r="4"><title>{}</title></circle>').format(
                    c.colour, x_axis.at(x), 100 - y_axis.at(y), f"{c.label}, {x_name} {number(x)}: {number(y)}"
                )
                for x, y in c.points
            ]
    parts.append(Markup('<text class="tick" x="0" y="100%" dy="18">{} {}</text>').format(x_name, number(x_axis.low)))
    parts.append(
        Markup('<text class="tick end" x="100%" y="100%" dy="18">{}</text>').format(number(round(x_axis.high, 6)))
    )
    return _frame(parts, height, label, "lines")


def bars(group: Sequence[Bar], *, label: str, top: float = 100.0) -> Markup:
    """Horizontal bars from 0 to `top`: each has its name above it and its value's text at its end."""
    row = 44
    parts = []
    for i, bar in enumerate(group):
        y = i * row
        width = 0.0 if bar.value is None else max(0.0, min(100.0, 100.0 * bar.value / top))
        inside = width > 80
        parts.append(
            Markup(
                '<g><title>{}</title><text class="name" x="0" y="{}">{}</text>'
                '<rect class="track" x="0" y="{}" width="100%" height="16" rx="2"/>'
                '<rect class="bar s-{}" x="0" y="{}" width="{:.2f}%" height="16" rx="2"/>'
                '<text class="value{}" x="{:.2f}%" y="{}" dx="{}">{}</text></g>'
            ).format(
                f"{bar.label}: {bar.text}",
                y + 13,
                bar.label,
                y + 19,
                bar.colour,
                y + 19,
                width,
                f" inside on-{bar.colour}" if inside else "",
                width,
                y + 31,
                -6 if inside else 6,
                bar.text,
            )
        )
    return _frame(parts, max(1, len(group) * row - 6), label, "bars")


def scatter(
    marks: Sequence[Mark],
    *,
    label: str,
    limit: float | None = None,
    limit_text: str = "",
    levels: Sequence[tuple[str, float, str]] = (),
    height: int = 280,
) -> Markup:
    """Points over latency (x, from 0) and accuracy (y), with the budget as a vertical line and the rest shaded.

    The y axis spans at least ten units, so that a small difference looks small.

    Args:
        marks: the points; one without a name is drawn smaller.
        label: the plot in words, for who cannot see it.
        limit: of the latency, ms.
        limit_text: what is written beside it.
        levels: (name, y, colour) of horizontal lines.
        height: pixels.
    """
    x_axis = axis([m.x for m in marks] + [0.0] + ([limit * 1.1] if limit else []), zero=True, count=5)
    ys = [m.y for m in marks] + [y for _, y, _ in levels]
    middle = (min(ys) + max(ys)) / 2 if ys else 0.0
    # Points of accuracy are in 0..100.
    least = min(max(middle - 5, 0.0), 90.0)
    y_axis = axis([*ys, least, least + 10], count=4)
    parts = [_horizontal_grid(y_axis)]
    for tick in x_axis.ticks:
        anchor = " end" if tick == x_axis.high else " middle"
        parts.append(
            Markup('<text class="tick{}" x="{:.2f}%" y="100%" dy="18">{}</text>').format(
                anchor, x_axis.at(tick), number(tick)
            )
        )
    if limit:
        at = x_axis.at(limit)
        parts.append(
            Markup('<rect class="over" x="{:.2f}%" y="0" width="{:.2f}%" height="100%"/>').format(at, 100 - at)
        )
        parts.append(_vertical(at, limit_text, "limit"))
    marks = sorted(marks, key=lambda m: not m.label)
    named = [m for m in marks if m.label]
    xs = [x_axis.at(m.x) for m in named] + [0.0] * len(levels)
    # A level's name stands above its line.
    heights = [height * (1 - y_axis.at(m.y) / 100) for m in named]
    heights += [height * (1 - y_axis.at(y) / 100) - 9 for _, y, _ in levels]
    rows = _spread(list(zip(xs, heights, strict=True)), height)
    parts += [
        Markup('<g><title>{}</title><circle class="mark s-{}" cx="{:.2f}%" cy="{:.2f}%" r="4"/></g>').format(
            m.detail, m.colour, x_axis.at(m.x), 100 - y_axis.at(m.y)
        )
        for m in marks[len(named) :]
    ]
    for m, text_y in zip(named, rows, strict=False):
        x = x_axis.at(m.x)
        right = x > 50
        parts.append(
            Markup(
                '<g><title>{}</title><circle class="mark s-{}" cx="{:.2f}%" cy="{:.2f}%" r="6"/>'
                '<text class="name{}" x="{:.2f}%" y="{:.1f}" dx="{}">{}</text></g>'
            ).format(
                m.detail or m.label,
                m.colour,
                x,
                100 - y_axis.at(m.y),
                " end" if right else "",
                x,
                text_y + 4,
                -11 if right else 11,
                m.label,
            )
        )
    for (name, y, colour), text_y in zip(levels, rows[len(named) :], strict=True):
        parts.append(
            Markup(
                '<line class="level s-{}" x1="0" x2="100%" y1="{:.2f}%" y2="{:.2f}%"/>'
                '<text class="level-name" x="6" y="{:.1f}">{}</text>'
            ).format(colour, 100 - y_axis.at(y), 100 - y_axis.at(y), text_y + 4, name)
        )
    return _frame(parts, height, label, "scatter")


def _spread(places: Sequence[tuple[float, float]], height: float, apart: float = 17.0) -> list[float]:
    """Rows in pixels for labels at `places` (x in per cent, row in pixels), such that near ones do not touch.

    From the top down, a label that is less than `apart` from one already placed within half of the width goes
    below it, or where the plot ends above it.
    """
    placed: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, row = places[i]
        near = sorted(placed[j] for j in placed if abs(places[j][0] - x) < 50)
        wanted = row
        for other in near:
            if abs(other - wanted) < apart:
                wanted = other + apart
        placed[i] = wanted if wanted <= height or not near else min(row, near[0] - apart)
    return [placed[i] for i in range(len(places))]


def _horizontal_grid(y_axis: Axis) -> Markup:
    return Markup("").join(
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
            '<text class="tick end" x="0" dx="-8" y="{0:.2f}%" dy="4">{1}</text>'
        ).format(100 - y_axis.at(tick), number(tick))
        for tick in y_axis.ticks
    )


def _vertical(at: float, text: str, kind: str) -> Markup:
    """A vertical line with its name above the plot."""
    right = at > 85
    return Markup(
        '<line class="{0}" x1="{1:.2f}%" x2="{1:.2f}%" y1="0" y2="100%"/>'
        '<text class="{0}-name{2}" x="{1:.2f}%" y="-6" dx="{3}">{4}</text>'
    ).format(kind, at, " end" if right else " middle", 4 if right else 0, text)


def _frame(parts: Sequence[Markup], height: int, label: str, kind: str) -> Markup:
    return Markup('<svg class="plot {}" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        kind, escape(label), height, Markup("").join(parts)
    )
