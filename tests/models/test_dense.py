"""The dense detector against closed formulas, torchvision's operators, and the properties of its assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou, roi_align, sigmoid_focal_loss

from acclimate.boxes.tensors import pairwise
from acclimate.data.formats import LabelledImage, LabelledSet
from acclimate.evaluate import average_precision
from acclimate.models.dense import PRIOR, START_DISTANCE, TOP_LOCATIONS, DenseDetector
from acclimate.models.detector import DetectorSpec
from acclimate.models.losses import quality_focal_loss as qfl
from acclimate.structures import Annotations

GFL_BOX_WEIGHT = 2.0
"""Of the box loss beside the class loss, as the paper of generalised focal loss has it; written here a second time."""

SIZE = (64, 96)
STRIDES = (8, 16, 32)


def build(**changes: Any) -> DenseDetector:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "classes": ("a", "b", "c"), "image_size": SIZE, "backbone": "test_efficientnet", "strides": STRIDES,
        "channels": 16, "depth": 1,
    }  # fmt: skip
    return DenseDetector(DetectorSpec(**{**values, **changes}))


DETECTOR = build()
LOCATIONS = len(DETECTOR.points)


def annotations(boxes: Any, labels: Any = None, ignore: Any = None) -> Annotations:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Annotations(
        boxes,
        np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64),
        np.zeros(len(boxes), bool) if ignore is None else np.asarray(ignore, bool),
    )


def raw_outputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(batch, LOCATIONS, 3, generator=generator) - 1,
        2 * torch.randn(batch, LOCATIONS, 4, generator=generator),
    )


def raw_distances(boxes: Tensor) -> Tensor:
    """What `DenseDetector.boxes` decodes to one box (A, 4) a location, where the location is inside it."""
    sides = torch.cat([DETECTOR.points - boxes[:, :2], boxes[:, 2:] - DETECTOR.points], -1).clamp(min=1e-3)
    return (sides.double() / DETECTOR.point_strides[:, None]).expm1().log().float()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 16), (16,)])
def test_outputs_have_one_row_a_location_whatever_is_in_the_images(strides: tuple[int, ...], batch: int) -> None:
    detector = build(strides=strides).eval()
    locations = sum((SIZE[0] // s) * (SIZE[1] // s) for s in strides)
    for images in (torch.zeros(batch, 3, *SIZE), 255 * torch.rand(batch, 3, *SIZE)):
        logits, distances = detector(images)
        assert (tuple(logits.shape), tuple(distances.shape)) == ((batch, locations, 3), (batch, locations, 4))


def test_forward_is_the_head_of_the_features() -> None:
    detector = build().eval()
    images = 255 * torch.rand(2, 3, *SIZE)
    features = detector.features(images)
    assert [tuple(level.shape) for level in features] == [(2, 16, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    for found, expected in zip(detector(images), detector.head(features), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_a_fresh_head_starts_from_the_prior_and_the_start_distance(norm: str) -> None:
    logits, distances = build(norm=norm).train()(255 * torch.rand(4, 3, *SIZE))
    assert abs(float(logits.detach().sigmoid().mean()) - PRIOR) < PRIOR
    assert abs(float(torch.nn.functional.softplus(distances.detach()).mean()) - START_DISTANCE) < 0.5


def test_group_norm_holds_throughout_when_asked_for() -> None:
    kinds = {type(module).__name__ for module in build(norm="group").modules()}
    assert "GroupNorm" in kinds
    assert not any("BatchNorm" in kind for kind in kinds)


@pytest.mark.parametrize("seed", range(5))
def test_what_the_device_decodes_is_what_the_losses_see(seed: int) -> None:
    raw = raw_outputs(2, seed)
    boxes = DETECTOR.boxes(raw[1]).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]]))
    scores = raw[0].sigmoid()
    for image, found in enumerate(DETECTOR.decode(raw)):
        assert len(found)
        best = int(scores[image].max(-1).values.argmax())
        np.testing.assert_allclose(found.boxes[0], boxes[image, best].numpy(), atol=1e-3)
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
            where = int((scores[image, :, label] - float(score)).abs().argmin())
            assert abs(float(scores[image, where, label]) - score) < 1e-5
            np.testing.assert_allclose(box, boxes[image, where].numpy(), atol=1e-3)


probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)


@given(probabilities, st.integers(0, 99))
def test_quality_focal_loss_is_its_formula(targets: list[float], seed: int) -> None:
    target = torch.tensor(targets, dtype=torch.float64)
    logits = 3 * torch.randn(len(targets), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p, y = 1 / (1 + np.exp(-logits.numpy())), target.numpy()
    expected = (y - p) ** 2 * -((1 - y) * np.log(1 - p) + y * np.log(p))
    np.testing.assert_allclose(qfl(logits, target).numpy(), expected, rtol=1e-9, atol=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 99))
def test_quality_focal_loss_of_hard_targets_is_torchvisions_focal_loss(targets: list[bool], seed: int) -> None:
    target = torch.tensor(targets, dtype=torch.float32)
    logits = 4 * torch.randn(len(targets), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(qfl(logits, target), sigmoid_focal_loss(logits, target, alpha=-1, gamma=2))


@st.composite
def assignments(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, predicted boxes, and up to six labelled boxes on the canvas, some ignored, some tiny, some huge."""
    count = draw(st.integers(0, 6))
    rows = []
    for _ in range(count):
        width, height = draw(st.floats(1, 96)), draw(st.floats(1, 64))
        x, y = draw(st.floats(0, 96 - width)), draw(st.floats(0, 64 - height))
        rows.append([x, y, x + width, y + height])
    truth = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=torch.int64)
    ignore = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=torch.bool)
    labels[ignore] = torch.tensor(-1)
    logits, distances = raw_outputs(1, draw(st.integers(0, 999)))
    return logits[0].sigmoid(), DETECTOR.boxes(distances)[0], truth, labels, ignore


def candidates(truth: Tensor) -> Tensor:
    """(M, A): inside the box, or within three quarters of a stride of its centre."""
    points, strides = DETECTOR.points[None], DETECTOR.point_strides[None]
    inside = ((points > truth[:, None, :2]) & (points < truth[:, None, 2:])).all(-1)
    centres = (truth[:, None, :2] + truth[:, None, 2:]) / 2
    return inside | ((points - centres).abs() <= 0.75 * strides[..., None]).all(-1)


@settings(max_examples=100)
@given(assignments())
def test_assignment(case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    scores, boxes, truth, labels, ignore = case
    quality, matched, weight = DETECTOR._assign(*case)
    taken = matched.any(-1)
    kept, kept_labels = truth[~ignore], labels[~ignore]
    possible = candidates(kept)
    owners = (matched[:, None] == kept[None]).all(-1)
    classes = quality.gt(0).sum(-1)

    assert ((quality >= 0) & (quality <= 1)).all()
    assert (classes <= 1).all(), "a location answers for two classes"
    assert not quality[~taken].any(), "a location without a box has a target"
    assert owners[taken].any(-1).all(), "a location answers for what is no labelled box"
    assert (owners & possible.T)[taken].any(-1).all(), "a location answers for a box it is too far from"
    overlap = pairwise(kept, boxes)
    for index in range(len(kept)):
        same = (kept == kept[index]).all(-1)
        own = owners[:, index]
        assert own.sum() <= TOP_LOCATIONS * same.sum()
        others = possible[~same].any(0)
        if (possible[index] & ~others).any() and same.sum() == 1:
            # Only a location that several boxes want may be lost to another.
            free = possible[index] & ~others
            first = (scores[:, kept_labels[index]] * overlap[index] ** 6 * possible[index]).topk(TOP_LOCATIONS).indices
            assert own.any() or not free[first].any()
        if own.any() and same.sum() == 1:
            assert not quality[own][:, [c for c in range(3) if c != kept_labels[index]]].any()
            best = float(overlap[index, own].max().clamp(max=1))
            assert abs(float(quality[own].max()) - best) < 1e-4, "the best location's target is the box's best IoU"
    held = torch.zeros(len(weight), dtype=torch.bool)
    for box in truth[ignore]:
        held |= ((DETECTOR.points > box[:2]) & (DETECTOR.points < box[2:])).all(-1)
    assert torch.equal(weight, (~held | taken).float())


@settings(max_examples=50)
@given(assignments())
def test_a_box_that_shares_no_location_is_always_assigned(case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    _, _, truth, _, ignore = case
    matched = DETECTOR._assign(*case)[1]
    possible = candidates(truth[~ignore])
    for index, box in enumerate(truth[~ignore]):
        others = torch.cat([possible[:index], possible[index + 1 :]]).any(0)
        if not (possible[index] & others).any():
            assert (matched == box).all(-1).any()


@pytest.mark.parametrize("box", [(33, 21, 34, 22), (0, 0, 2, 2), (47.5, 31.5, 48.5, 32.5), (95, 63, 96, 64)])
def test_a_box_smaller_than_a_stride_is_assigned(box: tuple[float, ...]) -> None:
    logits, distances = raw_outputs(1)
    truth = torch.tensor([box], dtype=torch.float32)
    quality, matched, _ = DETECTOR._assign(
        logits[0].sigmoid(), DETECTOR.boxes(distances)[0], truth, torch.tensor([1]), torch.tensor([False])
    )
    assert (matched == truth).all(-1).any()
    assert quality[:, 1].max() > 0


def test_a_box_over_everything_is_assigned() -> None:
    logits, distances = raw_outputs(1)
    truth = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    quality, matched, weight = DETECTOR._assign(
        logits[0].sigmoid(), DETECTOR.boxes(distances)[0], truth, torch.tensor([2]), torch.tensor([False])
    )
    assert int((matched == truth).all(-1).sum()) == TOP_LOCATIONS
    assert (quality[:, 2] > 0).sum() == TOP_LOCATIONS
    assert weight.all()


def test_losses_are_those_of_the_assignment() -> None:
    raw = raw_outputs(2)
    targets = [
        annotations([[4, 4, 40, 40], [50, 10, 90, 60], [20, 30, 30, 44]], [0, 1, 2]),
        annotations([[10, 8, 70, 50], [60, 30, 95, 63]], [2, -1], [False, True]),
    ]
    class_loss, box_loss, total = 0.0, 0.0, 0.0
    boxes = DETECTOR.boxes(raw[1])
    for image, target in enumerate(targets):
        truth = (torch.from_numpy(target.boxes), torch.from_numpy(target.labels), torch.from_numpy(target.ignore))
        quality, matched, weight = DETECTOR._assign(raw[0][image].sigmoid(), boxes[image], *truth)
        strength = quality.sum(-1)
        soft = qfl(raw[0][image], quality).sum(-1)
        class_loss += float((soft * weight).sum())
        box_loss += float((strength * (1 - generalized_box_iou(boxes[image], matched).diagonal())).sum())
        total += float(strength.sum())
    assert total > 1
    losses = DETECTOR.losses([], targets, raw)
    assert losses["class"].item() == pytest.approx(class_loss / total, rel=1e-4)
    assert losses["box"].item() == pytest.approx(GFL_BOX_WEIGHT * box_loss / total, rel=1e-4)


def test_an_ignored_region_says_nothing_about_the_class() -> None:
    logits, distances = raw_outputs(1)
    logits.requires_grad_()
    region = annotations([[16, 16, 64, 48]], [-1], [True])
    DETECTOR.losses([], [region], (logits, distances))["class"].backward()
    low, high = torch.tensor([16.0, 16.0]), torch.tensor([64.0, 48.0])
    inside = ((DETECTOR.points > low) & (DETECTOR.points < high)).all(-1)
    assert inside.any()
    assert not logits.grad[0, inside].any()
    assert logits.grad[0, ~inside].all()


def test_without_boxes_everything_is_background() -> None:
    logits, distances = (output.requires_grad_() for output in raw_outputs(2))
    losses = DETECTOR.losses([], [Annotations.empty(), Annotations.empty()], (logits, distances))
    torch.testing.assert_close(losses["class"], sigmoid_focal_loss(logits, torch.zeros_like(logits), -1).sum())
    assert losses["box"].item() == 0
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert not distances.grad.any()


def test_perfect_outputs_cost_almost_nothing() -> None:
    # Each box holds few enough locations for all of them to be chosen.
    truth = torch.tensor([[8.0, 8.0, 24.0, 32.0], [56.0, 30.0, 80.0, 50.0]])
    labels = [2, 0]
    logits, boxes = torch.full((1, LOCATIONS, 3), -20.0), torch.zeros(LOCATIONS, 4)
    for box, label in zip(truth, labels, strict=True):
        inside = ((DETECTOR.points > box[:2]) & (DETECTOR.points < box[2:])).all(-1)
        assert 0 < int(inside.sum()) <= TOP_LOCATIONS
        logits[0, inside, label] = 20.0
        boxes[inside] = box
    outside = ~boxes.any(-1)
    boxes[outside] = torch.cat([DETECTOR.points - 1, DETECTOR.points + 1], -1)[outside]
    raw = (logits, raw_distances(boxes)[None])
    perfect = DETECTOR.losses([], [annotations(truth.numpy(), labels)], raw)
    assert perfect["class"].item() < 1e-3
    assert perfect["box"].item() < 1e-3
    assert sum(DETECTOR.losses([], [annotations(truth.numpy(), labels)], raw_outputs(1)).values()) > 1


def test_losses_are_the_same_with_the_heads_output_at_hand() -> None:
    detector = build().eval()
    features = detector.features(255 * torch.rand(1, 3, *SIZE))
    targets = [annotations([[4, 4, 40, 40]], [1])]
    for name, value in detector.losses(features, targets).items():
        torch.testing.assert_close(value, detector.losses(features, targets, detector.head(features))[name])


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_gradients_are_finite_however_far_off_the_outputs_are(scale: float) -> None:
    raw = tuple((scale * output).requires_grad_() for output in raw_outputs(2))
    targets = [annotations([[4, 4, 40, 40], [33, 21, 34, 22]], [0, 1]), Annotations.empty()]
    losses = DETECTOR.losses([], targets, raw)
    sum(losses.values()).backward()
    for output in raw:
        assert torch.isfinite(output.grad).all()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_every_trained_parameter_gets_a_finite_gradient() -> None:
    detector = build(depth=2).train()
    features = detector.features(255 * torch.rand(2, 3, *SIZE))
    targets = [annotations([[4, 4, 40, 40], [50, 10, 90, 60]], [0, 2]), Annotations.empty()]
    sum(detector.losses(features, targets).values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_distillation_towards_itself_asks_for_no_change() -> None:
    raw = raw_outputs(2)
    student = tuple(output.clone().requires_grad_() for output in raw)
    losses = DETECTOR.distillation([], raw, 0.3, student)
    sum(losses.values()).backward()
    assert losses["box"].item() == pytest.approx(0, abs=1e-5)
    for output in student:
        assert output.grad.abs().max() < 1e-5


def test_distillation_is_its_formula() -> None:
    student, teacher = raw_outputs(1, 1), raw_outputs(1, 2)
    losses = DETECTOR.distillation([], teacher, 0.4, student)
    scores = teacher[0][0].sigmoid()
    strength = scores.amax(-1)
    trusted = strength >= 0.4
    total = max(1.0, float(strength[trusted].sum()))
    boxes, wanted = DETECTOR.boxes(student[1])[0], DETECTOR.boxes(teacher[1])[0]
    gap = 1 - generalized_box_iou(boxes, wanted).diagonal()
    assert losses["class"].item() == pytest.approx(float(qfl(student[0][0], scores).sum()) / total, rel=1e-4)
    expected = GFL_BOX_WEIGHT * float((gap * strength)[trusted].sum()) / total
    assert losses["box"].item() == pytest.approx(expected, rel=1e-4)


def test_distillation_moves_the_student_towards_the_teacher() -> None:
    student = [output.clone().requires_grad_() for output in raw_outputs(1, 1)]
    teacher = raw_outputs(1, 2)
    optimizer = torch.optim.Adam(student, lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        losses = DETECTOR.distillation([], teacher, 0.3, (student[0], student[1]))
        sum(losses.values()).backward()
        optimizer.step()
    assert (student[0].sigmoid() - teacher[0].sigmoid()).abs().mean() < 0.05
    trusted = teacher[0].sigmoid().amax(-1) >= 0.3
    overlap = box_iou(DETECTOR.boxes(student[1])[trusted], DETECTOR.boxes(teacher[1])[trusted]).diagonal()
    assert overlap.mean() > 0.9


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("student", [-1000.0, 0.0, 1000.0])
@pytest.mark.parametrize("teacher", [-1000.0, 0.0, 1000.0])
def test_distillation_between_extremes_is_finite(student: float, teacher: float, threshold: float) -> None:
    own = tuple(torch.full((1, LOCATIONS, n), student, requires_grad=True) for n in (3, 4))
    soft = tuple(torch.full((1, LOCATIONS, n), teacher) for n in (3, 4))
    losses = DETECTOR.distillation([], soft, threshold, own)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(output.grad).all() for output in own)


def test_instances_are_torchvisions_regions_of_the_level_that_fits() -> None:
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(2, 16, SIZE[0] // s, SIZE[1] // s, generator=generator).requires_grad_() for s in STRIDES]
    # Sides of 32, 64 and 128 belong to strides 8, 16 and 32; the odd ones to the nearest.
    boxes = [torch.tensor([[10.0, 10, 42, 42], [0, 0, 96, 64], [5, 5, 9, 11]]), torch.tensor([[20.0, 2, 80, 60]])]
    levels = [[0, 1, 0], [1]]
    found = DETECTOR.instances(features, boxes)
    expected = []
    for image, (rows, chosen) in enumerate(zip(boxes, levels, strict=True)):
        for box, level in zip(rows, chosen, strict=True):
            pooled = roi_align(
                features[level][image : image + 1], [box[None]], 7, 1 / STRIDES[level], sampling_ratio=2, aligned=True
            )
            expected.append(pooled.mean((2, 3))[0])
    torch.testing.assert_close(found, torch.stack(expected))
    found.square().sum().backward()
    assert features[0].grad.any()
    assert features[1].grad.any()


def test_instances_of_no_box_are_none() -> None:
    features = [torch.randn(2, 16, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    assert DETECTOR.instances(features, [torch.zeros(0, 4), torch.zeros(0, 4)]).shape == (0, 16)
    assert DETECTOR.instances(features, [torch.zeros(0, 4), torch.tensor([[1.0, 2, 30, 40]])]).shape == (1, 16)


def test_instances_keep_their_coordinates_in_low_precision() -> None:
    features = [torch.randn(1, 16, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    boxes = [torch.tensor([[65.3, 20.7, 91.9, 45.2]])]
    full = DETECTOR.instances([level.bfloat16().float() for level in features], boxes)
    half = DETECTOR.instances([level.bfloat16() for level in features], boxes)
    torch.testing.assert_close(half.float(), full, rtol=1e-2, atol=1e-2)


def test_the_graph_exports() -> None:
    detector = build().eval()
    program = torch.export.export(detector, (torch.zeros(1, 3, *SIZE),), strict=False)
    images = 255 * torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        for found, expected in zip(program.module()(images), detector(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def drawn(seed: int) -> tuple[np.ndarray[Any, Any], Annotations]:
    """A grey picture with two filled rectangles of different classes."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(90, 120, (*SIZE, 3)).astype(np.uint8)
    boxes = np.array([[6 + 8 * seed, 8, 36, 40], [52, 20, 88 - 6 * seed, 56]], np.float32)
    for box, colour in zip(boxes.astype(int).tolist(), ((220, 30, 30), (30, 40, 220)), strict=True):
        cv2.rectangle(picture, (box[0], box[1]), (box[2] - 1, box[3] - 1), colour, -1)
    return picture, annotations(boxes, [0, 2])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_two_images_are_learnt_by_heart(norm: str) -> None:
    detector = build(norm=norm).train()
    pictures, targets = zip(*(drawn(seed) for seed in range(2)), strict=True)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        sum(detector.losses(detector.features(images), targets).values()).backward()
        optimizer.step()
    with torch.no_grad():
        # Statistics of the two images alone, as in training: running ones lag behind after so few steps.
        found = detector.decode(detector(images))
    truth = LabelledSet(
        "drawn",
        "coco",
        detector.spec.classes,
        tuple(LabelledImage(Path(f"{i}.png"), *SIZE, target) for i, target in enumerate(targets)),
    )
    result = average_precision(found, truth, data="drawn", role="source")
    assert result.ap50 > 0.95
    assert result.ap > 0.6
