"""Soft-NMS: with the hard decay it is torchvision's NMS, and the paper's formulas by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from acclimate.boxes.soft_nms import decay, soft_nms
from acclimate.edge.artifact import Decode
from acclimate.edge.decode import decode as decoded

# One third, one ninth and nothing of the first are shared; the last is another class's.
BOXES = np.float32([[0, 0, 10, 10], [5, 0, 15, 10], [8, 0, 18, 10], [50, 50, 60, 60], [0, 0, 10, 10]])
SCORES = np.float32([0.9, 0.8, 0.7, 0.6, 0.5])
LABELS = np.array([0, 0, 0, 0, 1])


@given(st.integers(0, 9999), st.floats(0.2, 0.8))
def test_with_the_hard_decay_it_is_nms(seed: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (30, 2))], 1).astype(np.float32)
    scores, labels = rng.permutation(30).astype(np.float32) / 30 + 0.01, rng.integers(0, 3, 30)
    kept, left = soft_nms(boxes, scores, labels, decay("nms", iou), 0.0)
    theirs = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, labels)), iou)
    assert kept.tolist() == theirs.tolist()
    np.testing.assert_array_equal(left, scores[kept])


def test_linear_and_gaussian_decay_are_the_papers() -> None:
    third, second = 5 / 15, 7 / 13
    kept, left = soft_nms(BOXES, SCORES, LABELS, decay("soft-linear", 0.3), 0.001)
    expected = {0: 0.9, 1: 0.8 * (1 - third), 2: 0.7, 3: 0.6, 4: 0.5}
    # 2 overlaps 0 by one ninth, below the threshold; it is better than what is left of 1, which it then lowers.
    expected[1] *= 1 - second
    assert dict(zip(kept.tolist(), left.tolist(), strict=True)) == pytest.approx(expected)
    assert (np.diff(left) <= 0).all()

    kept, left = soft_nms(BOXES, SCORES, LABELS, decay("soft-gaussian", 0.0), 0.001)
    first = {1: 0.8 * math.exp(-(third**2) / 0.5), 2: 0.7 * math.exp(-((2 / 18) ** 2) / 0.5)}
    # Of both, 2 is the better one now, and lowers 1.
    assert first[2] > first[1]
    expected = {0: 0.9, 1: first[1] * math.exp(-(second**2) / 0.5), 2: first[2], 3: 0.6, 4: 0.5}
    assert dict(zip(kept.tolist(), left.tolist(), strict=True)) == pytest.approx(expected, rel=1e-6)


def test_decoding_keeps_what_nms_drops() -> None:
    outputs = [np.float32([[[2.0], [1.0]]]), np.full((1, 2, 4), 2.0, np.float32)]
    options = Decode(strides=(8,), nms_iou=0.3)
    hard, soft = (
        decoded(outputs, options.model_copy(update={"suppression": way}), (8, 16))[0]
        for way in ("nms", "soft-gaussian")
    )
    assert len(hard) == 1
    assert len(soft) == 2
    assert soft.scores[0] == hard.scores[0]
    assert 0.01 < soft.scores[1] < 1 / (1 + math.exp(-1))
