"""RoIAlign as products, held against torchvision's operators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from acclimate.models import pooling


def _boxes(seed: int, batch: int, count: int, side: float) -> Tensor:
    """Boxes of all sizes, some degenerate, some partly or wholly outside."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 1.4 * side - 0.2 * side
    size = torch.rand(batch, count, 2, generator=generator).pow(3) * 1.5 * side
    size[:, 0] = 0
    return torch.cat([corner, corner + size], -1)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(3, 17), st.integers(3, 17), st.sampled_from([1, 2, 7]))
@settings(max_examples=40, deadline=None)
def test_products_equal_the_operator_forward_and_backward(
    seed: int, batch: int, height: int, width: int, size: int
) -> None:
    torch.manual_seed(seed)
    feature = torch.randn(batch, 4, height, width, requires_grad=True)
    boxes = _boxes(seed, batch, 6, 8.0 * max(height, width))
    ours = pooling.roi_align_products(feature, boxes, 1 / 8, size)
    theirs = roi_align(feature, list(boxes), size, 1 / 8, pooling.SAMPLES).unflatten(0, (batch, 6))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    upstream = torch.randn_like(ours)
    (mine,) = torch.autograd.grad(ours, feature, upstream)
    (reference,) = torch.autograd.grad(theirs, feature, upstream)
    torch.testing.assert_close(mine, reference, atol=2e-5 * 6 * size, rtol=1e-5)


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32), (16,)])
@pytest.mark.parametrize("largest", [0, 2**20])
def test_levels_are_chosen_as_torchvision_does(
    strides: tuple[int, ...], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "LARGEST_PRODUCT", largest)
    torch.manual_seed(0)
    side = 256
    features = [torch.randn(2, 3, side // stride, side // stride) for stride in strides]
    boxes = _boxes(1, 2, 40, side)
    named = {str(i): feature for i, feature in enumerate(features)}
    reference = MultiScaleRoIAlign(list(named), 7, 2)(named, list(boxes), [(side, side)] * 2)
    ours = pooling.pool(features, boxes, strides, 7)
    torch.testing.assert_close(ours, reference.unflatten(0, (2, 40)), atol=2e-5, rtol=0)


def test_gradients_reach_the_boxes() -> None:
    torch.manual_seed(0)
    feature = torch.randn(1, 2, 9, 9)
    boxes = torch.tensor([[[9.3, 11.7, 43.1, 50.9]]], requires_grad=True)
    weight = torch.randn(1, 1, 2, 3, 3)

    def value(at: Tensor) -> Tensor:
        return (pooling.roi_align_products(feature, at, 1 / 8, 3) * weight).sum()

    (gradient,) = torch.autograd.grad(value(boxes), boxes)
    with torch.no_grad():
        steps = torch.eye(4).view(4, 1, 1, 4) * 0.02
        slope = torch.stack([(value(boxes + step) - value(boxes - step)) / 0.04 for step in steps])
    torch.testing.assert_close(gradient.flatten(), slope, atol=2e-3, rtol=2e-2)
