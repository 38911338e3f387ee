"""RoIAlign as products, held against torchvision's operators."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from acclimate.config import ModelConfig, TwoStageConfig
from acclimate.models import pooling
from acclimate.models.detector import build, specify
from acclimate.models.two_stage import TwoStageDetector


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


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32)])
@pytest.mark.parametrize("canonical", [224.0, 90.0])
def test_levels_are_those_of_torchvision(strides: tuple[int, ...], canonical: float) -> None:
    """`MultiScaleRoIAlign` with its `canonical_scale`, at the boundaries too."""
    sides = torch.cat(
        [torch.rand(300, generator=torch.Generator().manual_seed(0)) * 800, canonical * 2.0 ** torch.arange(-3, 3)]
    )
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], 1)
    low, high = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    reference = LevelMapper(low, high, canonical_scale=canonical, canonical_level=4)([boxes])
    assert torch.equal(pooling.levels(boxes[None], strides, canonical)[0], reference)
    assert len(set(reference.tolist())) == len(strides)


@pytest.mark.parametrize(("canvas", "canonical"), [(192, 112.0), (320, 112.0), (480, 134.4), (800, 224.0)])
def test_by_default_a_small_canvas_uses_its_levels(canvas: int, canonical: float) -> None:
    config = ModelConfig(kind="two-stage", image_size=(canvas, canvas), weights="none")
    spec = specify(config, ["a"])
    assert spec.two_stage is not None
    assert spec.two_stage.canonical == pytest.approx(canonical)
    sides = torch.tensor([0.9, 1.1, 2.1]) * canonical
    boxes = torch.stack([torch.zeros(3), torch.zeros(3), sides, sides], 1)
    found = pooling.levels(boxes[None], (8, 16, 32), spec.two_stage.canonical)[0]
    assert found.tolist() == [0, 1, 2]
    # As many cells as bins, or more.
    assert all(side / stride >= 7 for side, stride in zip(sides.tolist(), (8, 16, 32), strict=True))
    asked = config.model_copy(update={"two_stage": TwoStageConfig(canonical=100.0)})
    chosen = specify(asked, ["a"]).two_stage
    assert chosen is not None
    assert chosen.canonical == 100


@pytest.mark.parametrize("head", ["sibling", "disentangled", "disentangled-light", "separate-fcs", "separate-backbone"])
def test_every_head_pools_by_the_detectors_levels(head: str) -> None:
    """A box of 40 px is read from stride 8 by the paper's rule and from stride 16 by a canonical side of 18; a detector
    saved before it could be told has the paper's."""
    options = TwoStageConfig(head=head, hidden=16, proposals=4, masks=True, canonical=18)  # type: ignore[arg-type]
    config = ModelConfig(
        kind="two-stage", image_size=(64, 64), strides=(8, 16), backbone="test_efficientnet", channels=8, norm="group",
        weights="none", two_stage=options,
    )  # fmt: skip
    spec = specify(config, ["a"])
    saved = spec.model_dump()
    del saved["two_stage"]["canonical"]
    old = type(spec).model_validate(saved)
    assert old.two_stage is not None
    assert old.two_stage.canonical == 224
    box = torch.tensor([[[8.0, 8.0, 48.0, 48.0]]])
    for one, level in ((spec, 1), (old, 0)):
        made = build(one)
        assert isinstance(made, TwoStageDetector)
        assert made.mask_head is not None
        features = [level.requires_grad_() for level in made.features(torch.rand(1, 3, 64, 64) * 255)[:2]]
        more = features if head != "separate-backbone" else [*features, *features]
        for output in (
            *made.roi_head(more, box)[:2],
            made.mask_head(features, box, torch.ones(1, 1, dtype=torch.bool)),
        ):
            gradients = torch.autograd.grad(output.sum(), features, allow_unused=True, retain_graph=True)
            read = [i for i, gradient in enumerate(gradients) if gradient is not None and gradient.any()]
            assert read == [level]
