"""How often source images are drawn, by hand and against the shares that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.data.balance import LIMIT, by_class, by_counts, drawn
from acclimate.structures import Annotations


def showing(*labels: int) -> Annotations:
    return Annotations(np.zeros((len(labels), 4), np.float32), np.array(labels, np.int64), np.zeros(len(labels), bool))


def test_repeat_factors_worked_by_hand() -> None:
    # Class 0 is in all four images, class 1 in one: its factor is sqrt(4 / 1) = 2. Means are put to 1: 2 / (5 / 4).
    weights = by_class([showing(0, 0), showing(0), showing(0, 1), showing(0)], 2)
    assert weights.tolist() == pytest.approx([0.8, 0.8, 1.6, 0.8])
    assert by_class([showing(), showing(0)], 1).tolist() == pytest.approx([1, 1])


def test_ignored_boxes_do_not_count() -> None:
    hidden = Annotations(np.zeros((1, 4), np.float32), np.array([1]), np.array([True]))
    assert by_class([hidden, showing(0), showing(0, 1)], 2).tolist() == pytest.approx(
        [3 / (2 + 2**0.5), 3 / (2 + 2**0.5), 3 * 2**0.5 / (2 + 2**0.5)]
    )


def test_images_follow_the_targets_counts() -> None:
    images = [showing(0), showing(0), showing(0), showing(1), showing()]
    weights = by_counts(images, [300, 100], [100, 300])
    assert weights[3] / weights[0] == pytest.approx(3, rel=0.02), "the square root of nine times as often"
    assert weights[0] < weights[4] < weights[3]
    assert by_counts(images, [30, 10], [3, 1]) == pytest.approx(np.ones(5), abs=0.15)
    assert by_counts(images, [300, 100], [0, 300]).max() <= LIMIT


@given(st.integers(0, 9999), st.integers(1, 40))
def test_an_epoch_has_each_image_as_often_as_its_share(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.25, 4, count)
    places = drawn(weights, rng)
    assert len(places) == count
    expected = weights / weights.sum() * count
    times = np.bincount(places, minlength=count)
    assert (np.abs(times - expected) < 1 + 1e-9).all()
    assert sorted(drawn(np.ones(count), rng)) == list(range(count))
