from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.report.verdict import Gap, against, check_row, percent, points, quantity, signed
from acclimate.verification.judge import Check


def test_the_gap_is_the_textbook_fraction() -> None:
    gap = Gap(0.403, 0.52, 0.592)
    assert gap.closed == pytest.approx((0.52 - 0.403) / (0.592 - 0.403))
    assert Gap(0.4, 0.3, 0.6).closed == pytest.approx(-0.5)
    assert Gap(0.4, 0.5).closed is None
    assert Gap(0.4, 0.5, 0.405).closed is None
    assert Gap(0.4, 0.5, 0.3).closed is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.512, "51.2"), (0.0, "0.0"), (1.0, "100.0"), (None, "\u2013"), (math.nan, "\u2013"), (-1.0, "\u2212100.0")],
)
def test_points(value: float | None, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.063, "+6.3"), (-0.021, "\u22122.1"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0004, "0.0")]
)
def test_signed(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.2, "7.2"), (12.43, "12.4"), (1234.5, "1234"), (0.01234, "0.0123"), (0, "0"), (100, "100"), (-3.0, "\u22123")],
)
def test_quantity(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.62, "62"), (1.0, "100"), (1.004, "100.4"), (-0.122, "\u221212")])
def test_percent(value: float, text: str) -> None:
    assert percent(value) == f"{text}\u00a0%"


@given(st.floats(0.001, 1e5), st.floats(0.001, 1e5))
def test_a_measurement_never_reads_as_its_limit_unless_it_is_close_to_a_millionth(value: float, limit: float) -> None:
    if abs(value - limit) > 1e-5 * limit + 1e-5:
        assert against(value, limit) != quantity(limit, 4) or quantity(limit, 4) != quantity(limit, 7)


def test_the_tolerance_is_told_in_points_and_a_gain_as_no_loss() -> None:
    row = check_row(Check(name="max_ap50_drop", limit=0.01, value=0.0104, passed=False))
    assert (row.value, row.limit) == ("1.04 points", "1 point")
    assert check_row(Check(name="max_ap50_drop", limit=0.01, value=-0.01, passed=True)).value.startswith("none")
    assert check_row(Check(name="max_ap50_drop", limit=0.01, value=None, passed=None)).value == "not measured"


def test_a_check_that_nobody_knows_is_shown_as_it_is() -> None:
    row = check_row(Check(name="energy_mj", limit=5, value=4, passed=True))
    assert (row.title, row.value, row.limit) == ("energy mj", "4", "5")


def test_limits_on_accuracy_are_told_in_points() -> None:
    row = check_row(Check(name="min_ap50", limit=0.3, value=0.011, passed=False))
    assert (row.title, row.value, row.limit) == ("AP50 on the target", "1.1 points", "at least 30 points")
    row = check_row(Check(name="min_gain_ap50", limit=0.02, value=-0.013, passed=False))
    assert (row.value, row.limit) == ("\u22121.3 points", "at least 2 points")
    row = check_row(Check(name="max_class_drop_ap50", limit=0.05, value=0.122, passed=False))
    assert (row.title, row.value) == ("AP50 lost by a class against source-only", "12.2 points")
