from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.report.plot import Bar, Line, Mark, axis, bars, lines, number, scatter, thin

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=20), st.booleans())
def test_an_axis_covers_its_values_with_few_round_ticks(values: list[float], zero: bool) -> None:
    made = axis(values, zero=zero)
    span = made.high - made.low
    assert made.low <= min(values) + 1e-6 * span
    assert made.high >= max(values) - 1e-6 * span
    assert 2 <= len(made.ticks) <= 8
    steps = np.diff(made.ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-2
    if zero:
        assert any(abs(tick) < 1e-9 * span for tick in made.ticks)


def test_values_that_are_not_finite_leave_an_axis() -> None:
    assert axis([math.nan, math.inf]).low == 0.0


def test_places_on_an_axis_are_per_cent() -> None:
    made = axis([0.0, 10.0])
    assert (made.at(0), made.at(5), made.at(10)) == (0.0, 50.0, 100.0)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "0.5"), (12.5, "12.5"), (5e-4, "5e\u22124"), (-2, "\u22122"), (2e7, "2e7")]
)
def test_number(value: float, text: str) -> None:
    assert number(value).replace("e\u2212", "e\u2212") == text


def test_thin_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), math.sin(x / 50)) for x in range(1000)]
    kept = thin(points, 100)
    assert len(kept) == 100
    np.testing.assert_allclose(np.mean([y for _, y in kept]), np.mean([y for _, y in points]))
    assert kept == sorted(kept)
    assert thin([(0, math.nan), (1, 2.0)]) == [(1.0, 2.0)]


def test_plots_are_xml_and_escape_their_labels() -> None:
    evil = '<script>"&'
    made = [
        lines([Line(evil, [(0, 1), (1, 2)], marks=True)], label=evil, marker=(0.5, evil)),
        lines([], label="nothing"),
        lines([Line("one point", [(3, 3)])], label="one"),
        bars([Bar(evil, 40.0, evil, "a"), Bar("none", None, "-", "b")], label=evil),
        scatter([Mark(evil, 7, 50, "a", evil)], label=evil, limit=10, limit_text=evil, levels=[(evil, 40, "b")]),
        scatter([Mark("x", 7, 50, "a")], label="no limit"),
    ]
    for plot in made:
        root = ET.fromstring(str(plot))
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.find(".//script") is None


def test_a_bar_is_as_long_as_its_value() -> None:
    root = ET.fromstring(str(bars([Bar("a", 37.5, "37.5", "a"), Bar("b", 150.0, "150", "b")], label="bars")))
    widths = [rect.get("width") for rect in root.iter("rect") if "bar" in (rect.get("class") or "").split()]
    assert widths == ["37.50%", "100.00%"]


@pytest.mark.parametrize("values", [(1.0, 3.0), (0.0,), (97.0, 99.5), (20.0, 80.0)])
def test_the_axis_of_accuracy_stays_between_0_and_100_points(values: tuple[float, ...]) -> None:
    root = ET.fromstring(str(scatter([Mark("", 1.0, value, "a") for value in values], label="s")))
    circles = [float(str(one.get("cy")).rstrip("%")) for one in root.iter() if one.tag.endswith("circle")]
    assert all(0 <= at <= 100 for at in circles)
    texts = [one.text or "" for one in root.iter() if one.tag.endswith("text") and "end" in str(one.get("class"))]
    ticks = [float(text.replace("\u2212", "-")) for text in texts if text.lstrip("\u2212-").replace(".", "").isdigit()]
    assert ticks
    assert all(0 <= tick <= 100 for tick in ticks)


def test_scatter_puts_points_and_budget_where_they_belong_and_labels_apart() -> None:
    marks = [Mark("a", 2, 50.0, "a"), Mark("b", 2, 50.1, "b"), Mark("c", 8, 52, "c")]
    root = ET.fromstring(str(scatter(marks, label="s", limit=5, limit_text="budget", height=280)))
    circles = [(float(c.get("cx", "").rstrip("%")), float(c.get("cy", "").rstrip("%"))) for c in root.iter("circle")]
    assert [x for x, _ in circles] == pytest.approx([25, 25, 100])
    assert circles[2][1] < circles[1][1] < circles[0][1]
    limit = next(line for line in root.iter("line") if line.get("class") == "limit")
    assert limit.get("x1") == "62.50%"
    rows = [float(t.get("y", "")) for t in root.iter("text") if (t.get("class") or "").startswith("name")]
    assert abs(rows[0] - rows[1]) >= 16
