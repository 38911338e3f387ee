"""The mask branch: targets, loss and pasting against torchvision's, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image, project_masks_on_boxes

from acclimate.config import ModelConfig, TwoStageConfig
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models.masks import SIDE, MaskHead, paste, rasterise
from acclimate.models.roi_heads import Sample, Setting
from acclimate.models.two_stage import TwoStageDetector
from acclimate.structures import Annotations, Detections, Outline

SIZE = (64, 96)


def ellipse(x: float, y: float, wide: float, high: float) -> NDArray[np.float32]:
    """32 corners around a centre."""
    angle = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    return np.stack([x + wide * np.cos(angle), y + high * np.sin(angle)], 1).astype(np.float32)


def bitmap(*outlines: Outline, scale: int = 1) -> Tensor:
    """(N, H, W), filled by OpenCV at `scale` times the size; its fill reaches half a pixel over the edge."""
    sheets = np.zeros((len(outlines), SIZE[0] * scale, SIZE[1] * scale), np.uint8)
    for sheet, outline in zip(sheets, outlines, strict=True):
        for polygon in outline:
            cv2.fillPoly(sheet, [np.round(polygon * scale * 16 - 8).astype(np.int32)], (1,), shift=4)
    return torch.from_numpy(sheets)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_targets_are_those_of_torchvision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outlines = [(ellipse(*rng.uniform((30, 20, 10, 8), (60, 45, 30, 20))),) for _ in range(2)]
    corner = rng.uniform(0, 25, (2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (2, 2))], 1).astype(np.float32)
    own = np.stack([rasterise(outline, box) for outline, box in zip(outlines, boxes, strict=True)])
    scale = 8
    rois = torch.from_numpy(boxes) * scale
    theirs = project_masks_on_boxes(bitmap(*outlines, scale=scale), rois, torch.arange(2), SIDE).numpy()
    assert np.abs(own - theirs).mean() < 0.015
    # Where they say for sure which side a cell is on, we say so too.
    assert (own[theirs > 0.99] >= 0.5).all()
    assert (own[theirs < 0.01] <= 0.5).all()


@given(st.integers(0, 10**6), st.integers(3, 12))
@example(61769, 6)
@settings(max_examples=40, deadline=None)
def test_the_covered_area_is_that_of_the_shoelace_formula(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * math.pi, corners))
    reach = rng.uniform(5, 20, corners)
    polygon = np.stack([30 + reach * np.cos(angle), 30 + reach * np.sin(angle)], 1).astype(np.float32)
    x, y = polygon.T.astype(np.float64)
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    box = np.float32([8, 8, 52, 52])
    cell = (44 / SIDE) ** 2
    covered = float(rasterise((polygon,), box).sum()) * cell
    edge = float(np.hypot(*(polygon - np.roll(polygon, -1, 0)).T).sum())
    # A cell is whole or not at all, so what is wrong lies within its half diagonal of the outline, on one side of it.
    assert abs(covered - area) <= 44 / SIDE * math.sqrt(0.5) * edge


def test_polygons_of_one_object_are_joined_and_edges_fall_on_cells() -> None:
    box = np.float32([0, 0, 28, 28])
    square = np.float32([[0, 0], [14, 0], [14, 28], [0, 28]])
    again = np.float32([[7, 0], [21, 0], [21, 14], [7, 14]])
    expected = np.zeros((28, 28), np.float32)
    expected[:, :14] = 1
    expected[:14, 14:21] = 1
    assert np.array_equal(rasterise((square, again), box), expected)
    assert not rasterise((), box).any()
    assert not rasterise((square + 100,), box).any()
    half = rasterise((np.float32([[-50, -50], [13.5, -50], [13.5, 99], [-50, 99]]),), box)
    assert np.array_equal(half[0], np.float32([1] * 13 + [0.5] + [0] * 14))


def test_the_loss_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    head = MaskHead(Setting(8, (8, 16), 3, 16))
    features = [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]
    corners = np.float32([[8, 8], [64, 8], [64, 36], [8, 36]])
    outlines = [[(corners,), ()], [(corners + 4,)]]
    proposals = torch.tensor(
        [[[8.0, 8, 64, 64], [0, 0, 9, 9], [8, 8, 36, 36]], [[0, 8, 56, 64], [8, 8, 64, 64], [0] * 4]]
    )
    labels = torch.tensor([[2, 0, 1], [-1, 3, -1]])
    objects = torch.tensor([[0, 0, 1], [0, 0, 0]])
    chosen = torch.tensor([[True, False, False], [False, True, False]])
    found = head.losses(features, [Sample(proposals, labels, proposals, objects)], outlines)
    bitmaps = [torch.zeros(1, *SIZE, dtype=torch.uint8) for _ in range(2)]
    bitmaps[0][:, 8:36, 8:64] = 1
    bitmaps[1][:, 12:40, 12:68] = 1
    expected = maskrcnn_loss(
        head(features, proposals, chosen),
        [one[own] for one, own in zip(proposals, chosen, strict=True)],
        bitmaps,
        [torch.tensor([2]), torch.tensor([3])],
        [torch.tensor([0]), torch.tensor([0])],
    )
    # Their samples at the outline are blurred by a pixel.
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


@given(st.integers(0, 10**6), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_masks_are_pasted_as_torchvision_pastes_them(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, SIDE, SIDE, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * 60 - 2
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 50], 1)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
    expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0] if count else torch.zeros(0, *SIZE)
    np.testing.assert_allclose(paste(masks.numpy(), boxes.numpy(), SIZE), expected.numpy(), atol=1e-6)


def make(**options: object) -> TwoStageDetector:
    config = ModelConfig(
        kind="two-stage", image_size=SIZE, backbone="lcnet_050", weights="none", channels=16,
        two_stage=TwoStageConfig.model_validate({"proposals": 16, "hidden": 16, **options}),
    )  # fmt: skip
    torch.manual_seed(0)
    built = detectors.build(detectors.specify(config, ["disc", "ring"]))
    assert isinstance(built, TwoStageDetector)
    return built


def batch(rng: np.random.Generator, count: int = 4) -> tuple[Tensor, list[Annotations]]:
    """A bright triangle an image: the lower left half of its box in one class, the upper right in the other."""
    images, targets = torch.full((count, 3, *SIZE), 60.0), []
    for image in images:
        wide, high = rng.uniform((26, 26), (60, 50))
        x, y = rng.uniform((0, 0), (SIZE[1] - wide, SIZE[0] - high))
        label = int(rng.integers(2))
        corners = np.float32([[0, 0], [1, 1], [1, 0] if label else [0, 1]])
        polygon = corners * np.float32([wide, high]) + np.float32([x, y])
        image += 160.0 * bitmap((polygon,))[0]
        box = np.float32([[x, y, x + wide, y + high]])
        targets.append(Annotations(box, np.array([label]), np.array([False]), ((polygon,),)))
    return images, targets


@pytest.mark.parametrize("head", ["sibling", "disentangled"])
def test_it_learns_the_shape_of_triangles(head: str) -> None:
    detector = make(head=head, masks=True)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    history = []
    for _ in range(30):
        images, targets = batch(rng)
        losses = detector.losses(detector.features(images), targets)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        history.append(float(losses["roi_mask"].detach()))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])

    images, targets = batch(rng)
    detector.eval()
    known = [Detections(target.boxes, target.labels, np.ones(1, np.float32)) for target in targets]
    with torch.inference_mode():
        masks = detector.masks(detector.features(images), known)
    contrast = []
    for mask, target in zip(masks, targets, strict=True):
        assert target.outlines is not None
        true = rasterise(target.outlines[0], target.boxes[0])
        contrast.append(mask[0][true == 1].mean() - mask[0][true == 0].mean())
    # A mask that knows the box alone has none.
    assert np.mean(contrast) > 0.15


def test_masks_keep_the_order_and_the_number_of_detections() -> None:
    detector = make(masks=True).eval()
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(5)) * 255
    one = Detections(np.float32([[5, 5, 40, 40], [30, 10, 90, 60]]), np.array([0, 1]), np.float32([0.9, 0.8]))
    with torch.inference_mode():
        features = detector.features(images)
        masks = detector.masks(features, [Detections.empty(), one])
        swapped = detector.masks(features, [Detections.empty(), one[np.array([1, 0])]])
        none = detector.masks(features, [Detections.empty()] * 2)
    assert [mask.shape for mask in masks] == [(0, SIDE, SIDE), (2, SIDE, SIDE)]
    np.testing.assert_allclose(masks[1], swapped[1][::-1], atol=1e-5)
    assert [mask.shape for mask in none] == [(0, SIDE, SIDE)] * 2


def test_ignored_objects_and_those_without_outline_teach_no_mask() -> None:
    detector = make(masks=True)
    images, targets = batch(np.random.default_rng(1), 1)
    features = detector.features(images)
    ignored = replace(targets[0], ignore=np.array([True]))
    for target in (ignored, replace(targets[0], outlines=((),)), replace(targets[0], outlines=None)):
        assert detector.losses(features, [target])["roi_mask"].item() == 0


def test_a_detector_without_the_branch_says_so() -> None:
    detector = make()
    assert not any("mask" in name for name in detector.state_dict())
    with pytest.raises(AcclimateError, match="masks = true"):
        detector.masks([torch.zeros(1, 16, 8, 8)], [Detections.empty()])
