"""The forecast of the section on a few labels, against power laws that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acclimate.data.formats import LabelledImage, LabelledSet
from acclimate.evaluate import average_precision
from acclimate.report.sections.labels import Point, extrapolated, forecast
from acclimate.structures import Annotations, Detections


def test_a_power_law_is_found_again() -> None:
    frames = np.array([0.0, 8.0, 16.0, 40.0])
    slopes = np.array([-0.2, 0.0, 0.1, -1.0])
    errors = 0.6 * (1 + frames[:, None]) ** slopes
    np.testing.assert_allclose(extrapolated(frames, errors, 50.0), 0.6 * 51.0**slopes, rtol=1e-9)
    errors[2, 1] = np.nan
    assert np.isnan(extrapolated(frames, errors, 50.0)).tolist() == [False, True, False, False]


def evaluated(found: int, count: int = 20, name: str = "test") -> Point:
    """A detector that finds the box in so many of the images."""
    box = np.float32([[10, 10, 40, 40]])
    images = tuple(
        LabelledImage(Path(f"{name}-{i}.png"), 64, 64, Annotations(box, np.zeros(1, np.int64), np.zeros(1, bool)))
        for i in range(count)
    )
    right = Detections(box, np.zeros(1, np.int64), np.ones(1, np.float32))
    truth = LabelledSet(name, "coco", ("car",), images)
    found_in = [right if i < found else Detections.empty() for i in range(count)]
    return Point(0, "", average_precision(found_in, truth, data=name, role="target"))


def at(frames: int, point: Point) -> Point:
    return Point(frames, "", point.evaluation)


def test_the_range_holds_what_the_law_says_and_is_wider_with_fewer_images() -> None:
    before, after = evaluated(10), evaluated(15)
    (low, high) = forecast([at(0, before), at(16, after)]) or (0.0, 0.0)
    errors = np.array([[1 - before.ap50], [1 - after.ap50]])
    expected = 1 - extrapolated(np.array([0.0, 16.0]), errors, 26.0)[0]
    assert low < expected < high
    assert after.ap50 < expected
    more = forecast([at(0, evaluated(100, 200)), at(16, evaluated(150, 200))])
    assert more is not None
    assert more[1] - more[0] < (high - low) / 2


def test_without_two_numbers_of_frames_on_the_same_images_there_is_none() -> None:
    assert forecast([at(0, evaluated(10))]) is None
    assert forecast([at(8, evaluated(10)), at(8, evaluated(12))]) is None
    assert forecast([at(0, evaluated(10)), at(8, evaluated(12, name="other"))]) is None
    # Of fewer than ten images no draw is made.
    assert forecast([at(0, evaluated(3, 5)), at(8, evaluated(4, 5))]) is None


def test_an_error_of_nothing_stays_within_bounds() -> None:
    low, high = forecast([at(0, evaluated(20)), at(8, evaluated(20))]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((0.999, 0.999), abs=1e-3)
