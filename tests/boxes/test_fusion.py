"""Weighted boxes fusion, against the authors' own implementation and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.boxes.fusion import fuse, mirrored
from acclimate.structures import Detections


def detections(*rows: tuple[float, ...]) -> Detections:
    """Rows of x1, y1, x2, y2, label, score."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    table = table[np.argsort(-table[:, 5], kind="stable")]
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(np.float32))


def rows(found: Detections) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([found.boxes, found.labels[:, None], found.scores[:, None]], 1)


def test_fusion_of_three_looks_is_the_authors() -> None:
    looks = [
        detections(
            (10, 10, 50, 60, 0, 0.9), (12, 8, 54, 58, 0, 0.6), (60, 20, 90, 80, 1, 0.7), (61, 22, 88, 82, 0, 0.65)
        ),
        detections((11, 12, 49, 63, 0, 0.8), (58, 18, 92, 78, 1, 0.4), (5, 70, 25, 95, 1, 0.3)),
        detections((9, 9, 52, 61, 0, 0.5), (60, 24, 90, 81, 0, 0.55), (40, 40, 70, 70, 1, 0.2)),
    ]
    # What ensemble-boxes 1.0.9 (MIT, by the paper's authors) returns for them on a canvas of 100 x 100, iou_thr 0.55.
    theirs = [
        (10.536, 9.964, 50.929, 60.607, 0, 0.7),
        (60.542, 22.917, 88.917, 81.542, 0, 0.4),
        (59.273, 19.273, 90.727, 79.273, 1, 0.36667),
        (5.0, 70.0, 25.0, 95.0, 1, 0.1),
        (40.0, 40.0, 70.0, 70.0, 1, 0.06667),
    ]
    np.testing.assert_allclose(rows(fuse(looks)), theirs, atol=1e-3)


def test_two_boxes_are_their_mean_by_score_and_one_alone_loses_half() -> None:
    fused = fuse([detections((0, 0, 10, 10, 0, 0.9), (50, 50, 60, 60, 1, 0.8)), detections((2, 0, 12, 10, 0, 0.3))])
    np.testing.assert_allclose(rows(fused), [(0.5, 0, 10.5, 10, 0, 0.6), (50, 50, 60, 60, 1, 0.4)], atol=1e-5)


def test_other_classes_and_places_stay_apart() -> None:
    fused = fuse([detections((0, 0, 10, 10, 0, 0.9)), detections((0, 0, 10, 10, 1, 0.9), (5, 0, 15, 10, 0, 0.9))])
    assert len(fused) == 3


def test_one_look_is_left_as_it_is_and_none_is_none() -> None:
    one = detections((0, 0, 10, 10, 0, 0.9), (1, 0, 11, 10, 0, 0.8))
    assert fuse([one]) is one
    assert len(fuse([Detections.empty(), Detections.empty()])) == 0


@given(st.integers(0, 9999), st.integers(2, 4))
def test_equal_looks_change_nothing(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    # Far from one another, so that each is a cluster of its own.
    found = detections(*((40.0 * i, 0, 40 * i + rng.uniform(5, 30), 20, 0, rng.uniform(0.01, 1)) for i in range(4)))
    np.testing.assert_allclose(rows(fuse([found] * count)), rows(found), rtol=1e-5)


def test_mirroring_twice_is_the_start() -> None:
    found = detections((1, 2, 11, 22, 0, 0.9), (30, 0, 64, 8, 1, 0.5))
    assert mirrored(found, 64).boxes[0].tolist() == pytest.approx([53, 2, 63, 22])
    np.testing.assert_allclose(rows(mirrored(mirrored(found, 64), 64)), rows(found))
