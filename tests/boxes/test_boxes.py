"""Areas, overlaps, offsets and locations: numpy against torchvision, and the tensors against both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

from acclimate.boxes import iou, locations, offsets, tensors

coordinates = st.floats(-20, 120, width=32)


@st.composite
def box_lists(draw: st.DrawFn, most: int = 6) -> np.ndarray[Any, Any]:
    count = draw(st.integers(0, most))
    corners = [draw(st.tuples(coordinates, coordinates, coordinates, coordinates)) for _ in range(count)]
    boxes = np.array(corners, np.float32).reshape(-1, 2, 2)
    return np.concatenate([boxes.min(1), boxes.max(1)], -1)


@given(box_lists(), box_lists())
def test_overlaps_are_torchvisions(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    expected = torch.nan_to_num(box_iou(first.double(), second.double()))
    big = (box_area(first)[:, None] > 1e-6) & (box_area(second)[None] > 1e-6)
    for found in (torch.from_numpy(iou.pairwise(a, b)), tensors.pairwise(first, second).double()):
        assert found.shape == (len(a), len(b))
        torch.testing.assert_close(found * big, expected * big, rtol=1e-5, atol=1e-6)
        assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    count = min(len(a), len(b))
    pairs = tensors.paired(first[:count], second[:count])
    torch.testing.assert_close(pairs, tensors.pairwise(first[:count], second[:count]).diagonal(), rtol=1e-5, atol=1e-6)


@given(box_lists(), box_lists())
def test_areas_and_what_is_shared(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(iou.area(a), box_area(torch.from_numpy(a)).numpy(), rtol=1e-6)
    np.testing.assert_allclose(tensors.area(torch.from_numpy(a)).numpy(), iou.area(a), rtol=1e-6)
    common = iou.area(iou.shared(a[:, None], b[None]))
    np.testing.assert_allclose(common, tensors.intersection(torch.from_numpy(a), torch.from_numpy(b)), rtol=1e-6)


def test_boxes_with_swapped_corners_have_no_area() -> None:
    assert iou.area(np.float32([[5, 5, 2, 2], [0, 0, 2, 3]])).tolist() == [0, 6]


@pytest.mark.parametrize("weights", [offsets.ROI_WEIGHTS, offsets.RPN_WEIGHTS])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_offsets_are_torchvisions(weights: offsets.Weights, scale: float) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (50, 2)).astype(np.float32)
    anchors = np.concatenate([corners, corners + rng.uniform(1, 40, (50, 2)).astype(np.float32)], 1)
    moves = rng.normal(0, scale, (50, 4)).astype(np.float32)
    expected = BoxCoder(weights).decode_single(torch.from_numpy(moves), torch.from_numpy(anchors)).numpy()
    np.testing.assert_allclose(offsets.decode(moves, anchors, weights), expected, rtol=1e-4, atol=1e-2)
    found = tensors.decode(torch.from_numpy(moves), torch.from_numpy(anchors), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    # The inverse, for what is no larger than the largest scale.
    moderate = (moves / np.float32(weights)).clip(-2, 2) * np.float32(weights)
    there = offsets.decode(moderate, anchors, weights)
    found = tensors.encode(torch.from_numpy(there), torch.from_numpy(anchors), weights)
    np.testing.assert_allclose(found, moderate, rtol=1e-3, atol=1e-2)
    encoded = BoxCoder(weights).encode_single(torch.from_numpy(there), torch.from_numpy(anchors))
    torch.testing.assert_close(found, encoded, rtol=1e-4, atol=1e-3)
    clipped = clip_boxes_to_image(torch.from_numpy(anchors), (30, 50))
    np.testing.assert_array_equal(offsets.clip(anchors, (30, 50)), clipped.numpy())
    assert torch.equal(tensors.clip(torch.from_numpy(anchors), (30, 50)), clipped)


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_locations_are_the_centres_of_the_cells_of_padded_convolutions(size: tuple[int, int]) -> None:
    strides = (8, 16)
    points, owners = tensors.locations(size, strides)
    expected = []
    for stride in strides:
        level = torch.zeros(1, 1, *size)
        while size[0] / level.shape[2] < 0.75 * stride:
            level = torch.nn.functional.conv2d(level, torch.ones(1, 1, 3, 3), stride=2, padding=1)
        expected.append(level)
    counts = [level[0, 0].numel() for level in expected]
    assert len(points) == sum(counts) == locations.count(size, strides)
    assert owners.tolist() == [8.0] * counts[0] + [16.0] * counts[1]
    assert points[:2].tolist() == [[4, 4], [12, 4]]
    assert points[expected[0].shape[3]].tolist() == [4, 12]
    assert points[counts[0]].tolist() == [8, 8]
    centres, _ = locations.centres(size, strides)
    with pytest.raises(ValueError, match="read-only"):
        centres[0] = 0
