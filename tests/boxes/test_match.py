"""Matching of detections: by hand, and the best sum against trying every matching."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from acclimate.boxes import match
from acclimate.boxes.iou import pairwise
from acclimate.structures import Detections


def detections(rng: np.random.Generator, count: int) -> Detections:
    corners = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (count, 2))], 1).astype(np.float32)
    return Detections(boxes, rng.integers(0, 2, count), rng.uniform(0, 1, count).astype(np.float32))


def test_a_row_takes_the_free_column_that_it_overlaps_most() -> None:
    overlap = np.array([[0.6, 0.9, 0.0], [0.7, 0.95, 0.0], [0.4, 0.5, 0.49], [0.5, 0.5, 0.5]])
    # The second row would overlap column 1 more, but comes later; the third finds nothing from 0.5 up that is free.
    assert match.greedy(overlap, 0.5).tolist() == [1, 0, -1, 2]
    assert match.greedy(np.zeros((2, 0)), 0.5).tolist() == [-1, -1]
    assert match.greedy(np.zeros((0, 2)), 0.5).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_the_best_matching_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = detections(rng, 4), detections(rng, 5)
    overlap = pairwise(a.boxes, b.boxes) * (a.labels[:, None] == b.labels[None])
    most = max(overlap[range(4), list(columns)].sum() for columns in itertools.permutations(range(5), 4))
    values, rows, columns = match.best(a, b)
    assert values.sum() == pytest.approx(most)
    assert (values > 0).all()
    np.testing.assert_array_equal(a.labels[rows], b.labels[columns])
    np.testing.assert_allclose(values, overlap[rows, columns])


def test_nothing_matches_nothing() -> None:
    some = detections(np.random.default_rng(0), 3)
    for a, b in ((some, Detections.empty()), (Detections.empty(), some), (Detections.empty(), Detections.empty())):
        assert [len(part) for part in match.best(a, b)] == [0, 0, 0]
