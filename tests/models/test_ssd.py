"""SSD: its default boxes, matching and loss against torchvision's, and what the protocol asks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection import _utils as reference
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, roi_align

from acclimate.boxes import tensors
from acclimate.config import ModelConfig, SsdConfig
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models.backbones import Backbone
from acclimate.models.ssd import NEGATIVES, SSDDetector
from acclimate.structures import Annotations

SIZE = (64, 96)
STRIDES = (8, 16, 32)
CODER = reference.BoxCoder((10.0, 10.0, 5.0, 5.0))


def make(seed: int = 0, norm: str = "batch", size: tuple[int, int] = SIZE, **options: object) -> SSDDetector:
    config = ModelConfig.model_validate(
        {
            "kind": "ssd", "image_size": size, "backbone": "lcnet_050", "weights": "none", "channels": 16, "norm": norm,
            "ssd": {"extra": 2, **options},
        }
    )  # fmt: skip
    torch.manual_seed(seed)
    built = detectors.build(detectors.specify(config, ["car", "person", "dog"]))
    assert isinstance(built, SSDDetector)
    return built


def lively(detector: SSDDetector) -> SSDDetector:
    """With scores and offsets that differ from place to place, as after training."""
    generator = torch.Generator().manual_seed(1)
    for layer in (*detector.classify.modules(), *detector.regress.modules()):
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                layer.weight.normal_(std=0.1, generator=generator)
    return detector.eval()


def annotations(*boxes: tuple[float, float, float, float], label: int = 1, ignore: bool = False) -> Annotations:
    count = len(boxes)
    listed = np.float32(boxes).reshape(-1, 4)
    return Annotations(listed, np.full(count, -1 if ignore else label), np.full(count, ignore))


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values(), torch.zeros(()))


IMAGES = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(5)) * 255
DETECTOR = make()
PRIORS = DETECTOR.priors


@pytest.mark.parametrize("lite", [False, True])
def test_raw_outputs_have_static_shapes_and_decode(lite: bool) -> None:
    detector = lively(make(lite=lite))
    with torch.inference_mode():
        logits, offsets = detector(IMAGES)
    cells = [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1]
    each = [6] * 5 if lite else [4, 6, 6, 4, 4]
    count = sum(cell * sizes for cell, sizes in zip(cells, each, strict=True))
    assert logits.shape == (2, count, 4)
    assert offsets.shape == (2, count, 4)
    for found in detector.decode((logits, offsets)):
        assert len(found)
        assert (np.diff(found.scores) <= 0).all()
        assert set(found.labels) <= {0, 1, 2}
        assert found.boxes.min() >= 0
        assert (found.boxes.max(0) <= [SIZE[1], SIZE[0]] * 2).all()


def test_the_head_takes_any_pyramid_of_its_widths() -> None:
    with torch.no_grad():
        features = DETECTOR.features(IMAGES)
        for one, other in zip(DETECTOR.head(features), DETECTOR.eval()(IMAGES), strict=True):
            assert one.shape == other.shape
    assert [level.shape[1] for level in features] == [*DETECTOR.backbone.channels, 16, 16]
    other = DETECTOR.head([torch.randn_like(level) for level in features])
    assert [tuple(output.shape) for output in other] == [(2, len(PRIORS), 4), (2, len(PRIORS), 4)]


@pytest.mark.parametrize("scales", [None, (0.05, 0.1, 0.3, 0.5, 0.8, 1.0)])
@pytest.mark.parametrize("ratios", [None, (1.5, 3.0)])
def test_default_boxes_are_those_of_torchvision(
    scales: tuple[float, ...] | None, ratios: tuple[float, ...] | None
) -> None:
    detector = make(size=(96, 96), scales=scales, ratios=ratios)
    step = (0.9 - 0.15) / 3
    wanted = scales or (0.075, 0.15, 0.15 + step, 0.15 + 2 * step, 0.9, 0.9 + step)
    listed = [list(ratios)] * 5 if ratios else [[2], [2, 3], [2, 3], [2], [2]]
    generator = DefaultBoxGenerator(listed, scales=list(wanted))
    maps = [torch.zeros(1, 1, side, side) for side in (12, 6, 3, 2, 1)]
    expected = generator(ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)]), maps)[0]
    torch.testing.assert_close(detector.priors, expected, atol=1e-4, rtol=1e-5)


def test_default_boxes_keep_their_aspect_on_an_oblong_canvas() -> None:
    first = PRIORS[:4]
    sides = first[:, 2:] - first[:, :2]
    aspects = (sides[:, 0] / sides[:, 1]).tolist()
    assert aspects == pytest.approx([1, 1, 2, 0.5])
    assert float(sides[0, 0]) == pytest.approx(0.075 * math.sqrt(SIZE[0] * SIZE[1]))


boxes_st = st.tuples(st.floats(0, 80), st.floats(0, 50), st.floats(3, 60), st.floats(3, 60))


@given(st.lists(boxes_st, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_default_boxes_are_matched_as_torchvision_does(listed: list[tuple[float, float, float, float]]) -> None:
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in listed])
    overlap = box_iou(boxes, PRIORS)
    # Where two boxes have the same best default box, torchvision gives it to the later one.
    assume(len(overlap.argmax(1).unique()) == len(boxes))
    matches = reference.SSDMatcher(0.5)(overlap)
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    labels, matched = DETECTOR._match(boxes, torch.arange(len(boxes)), kept)
    assert torch.equal(labels, (matches + 1).clamp(min=0))
    assert torch.equal(matched[labels > 0], boxes[matches[matches >= 0]])


def test_of_two_boxes_with_one_default_box_the_nearer_has_it() -> None:
    boxes = torch.tensor([[40.0, 24, 48, 32], [40, 24, 47.6, 32]])
    overlap = box_iou(boxes, PRIORS)
    assert len(overlap.argmax(1).unique()) == 1
    first = int(overlap.argmax(1)[0])
    for order in ([0, 1], [1, 0]):
        labels, matched = DETECTOR._match(boxes[order], torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool))
        nearer = int(overlap[order][:, first].argmax())
        assert int(labels[first]) == nearer + 1
        assert torch.equal(matched[first], boxes[order][nearer])


def test_losses_are_those_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(PRIORS), 4, generator=generator)
    offsets = torch.randn(2, len(PRIORS), 4, generator=generator)
    targets = [annotations((10, 10, 40, 40), (50, 20, 70, 60)), annotations((5, 5, 25, 30), label=2)]
    found = DETECTOR.losses([], targets, (logits, offsets))
    model = SimpleNamespace(box_coder=CODER, neg_to_pos_ratio=3.0)
    boxes = [torch.from_numpy(target.boxes) for target in targets]
    matches = [reference.SSDMatcher(0.5)(box_iou(box, PRIORS)) for box in boxes]
    truth = [
        {"boxes": box, "labels": torch.from_numpy(target.labels) + 1}
        for box, target in zip(boxes, targets, strict=True)
    ]
    outputs = {"bbox_regression": offsets, "cls_logits": logits}
    expected = SSD.compute_loss(model, truth, outputs, [PRIORS] * 2, matches)
    assert found["class"].item() == pytest.approx(expected["classification"].item(), rel=1e-5)
    assert found["box"].item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-5)


def test_an_image_without_objects_teaches_its_hardest_background() -> None:
    logits, offsets = torch.randn(1, len(PRIORS), 4), torch.randn(1, len(PRIORS), 4)
    losses = DETECTOR.losses([], [Annotations.empty()], (logits, offsets))
    worst = -logits[0].log_softmax(-1)[:, 0]
    assert losses["class"].item() == pytest.approx(worst.topk(NEGATIVES).values.sum().item(), rel=1e-5)
    assert losses["box"].item() == 0


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("lite", [False, True])
def test_every_parameter_trains(lite: bool, norm: str) -> None:
    detector = make(lite=lite, norm=norm)
    losses = detector.losses(detector.features(IMAGES), [annotations((10, 10, 40, 40)), Annotations.empty()])
    assert losses.keys() == {"class", "box"}
    total(losses).backward()
    silent = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    norms = [name for name, part in detector.backbone.named_modules() if isinstance(part, nn.BatchNorm2d)]
    fixed = [f"backbone.{name}.{kind}" for name in norms for kind in ("weight", "bias")] if norm == "frozen" else []
    assert silent == fixed
    kinds = {type(module) for module in detector.extra.modules()} | {type(m) for m in detector.classify.modules()}
    assert (nn.GroupNorm in kinds) == (norm == "group")


def test_a_single_image_trains_a_level_of_one_cell() -> None:
    detector = make(lite=True).train()
    features = detector.features(IMAGES[:1])
    assert features[-1].shape[-2:] == (1, 1)
    assert math.isfinite(total(detector.losses(features, [annotations((10, 10, 40, 40))])).item())


def test_frozen_stages_keep_their_weights() -> None:
    config = ModelConfig(
        kind="ssd", image_size=SIZE, backbone="lcnet_050", weights="none", freeze=2, ssd=SsdConfig(extra=1)
    )
    detector = detectors.build(detectors.specify(config, ["car"]))
    total(detector.losses(detector.features(IMAGES), [annotations((10, 10, 40, 40), label=0)] * 2)).backward()
    assert isinstance(detector, SSDDetector)
    assert isinstance(detector.backbone, Backbone)
    still = [name for name, parameter in detector.backbone.named_parameters() if parameter.grad is None]
    assert any("conv_stem" in name for name in still)
    assert len(still) < len(list(detector.backbone.parameters()))


def test_boxes_inside_ignored_regions_are_in_no_loss() -> None:
    region = annotations((0, 0, SIZE[1], SIZE[0]), ignore=True)
    features = DETECTOR.features(IMAGES)
    losses = DETECTOR.losses(features, [region, region])
    assert [loss.item() for loss in losses.values()] == [0, 0]


@given(boxes_st)
@settings(max_examples=40, deadline=None)
def test_what_an_ignored_box_would_have_matched_is_no_background(corners: tuple[float, float, float, float]) -> None:
    x, y, w, h = corners
    box = torch.tensor([[x, y, min(x + w, SIZE[1]), min(y + h, SIZE[0])]])
    label, real = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    as_object, _ = DETECTOR._match(box, label, real)
    ignored, _ = DETECTOR._match(box, label - 1, ~real)
    assert (ignored <= 0).all()
    assert (ignored[as_object > 0] == -1).all()


def test_an_object_beside_an_ignored_region_still_counts() -> None:
    boxes = torch.tensor([[8.0, 8, 40, 40], [0, 0, 96, 64]])
    labels, matched = DETECTOR._match(boxes, torch.tensor([1, -1]), torch.tensor([False, True]))
    assert set(labels.tolist()) == {-1, 2}
    assert (matched[labels > 0] == boxes[0]).all()


def test_a_box_without_area_is_no_target() -> None:
    losses = DETECTOR.losses(DETECTOR.features(IMAGES), [annotations((10, 10, 10, 40)), Annotations.empty()])
    assert math.isfinite(losses["class"].item())
    assert losses["box"].item() == 0


def test_a_teacher_that_agrees_gives_no_gradient() -> None:
    detector = lively(make())
    features = [level.detach().requires_grad_() for level in detector.features(IMAGES)]
    with torch.no_grad():
        soft = detector.head(features)
    losses = detector.distillation(features, soft, 0.3)
    gradients = torch.autograd.grad(losses["class"], [layer.weight for layer in detector.classify])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5
    # What reaches over the border is cut there, so a box at the border differs from its own.
    logits, offsets = soft[0], torch.zeros_like(soft[1])
    inside = (PRIORS >= 0).all(1) & (PRIORS[:, 2] <= SIZE[1]) & (PRIORS[:, 3] <= SIZE[0])
    sure = torch.where(inside[:, None], logits, logits.new_tensor([50.0, 0, 0, 0]))
    assert float(detector.distillation(features, (sure, offsets), 0.3, (sure, offsets))["box"]) < 1e-6


def test_a_teacher_that_is_never_sure_moves_no_box() -> None:
    detector = lively(make())
    features = detector.features(IMAGES)
    with torch.no_grad():
        logits, offsets = detector.head(features)
    losses = detector.distillation(features, (logits * 2, offsets + 1), 2.0)
    assert float(losses["box"].detach()) == 0.0
    assert float(losses["class"].detach()) > 0


def test_a_teacher_moves_the_student_to_its_boxes() -> None:
    detector = lively(make())
    with torch.no_grad():
        features = detector.features(IMAGES)
        logits, offsets = detector.head(features)
    wanted = offsets + 1.0
    optimizer = torch.optim.Adam([*detector.classify.parameters(), *detector.regress.parameters()], 1e-2)
    history = []
    for _ in range(20):
        losses = detector.distillation(features, (logits * 2, wanted), 0.1)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["box"] < 0.5 * history[0]["box"]
    assert history[-1]["class"] < 0.5 * history[0]["class"]


def test_regions_are_the_likeliest_boxes() -> None:
    detector = lively(make())
    with torch.no_grad():
        features = detector.features(IMAGES)
        logits, offsets = detector.head(features)
    regions = detector.regions(features, 7)
    assert [tuple(region.shape) for region in regions] == [(7, 4), (7, 4)]
    for region, logit, offset in zip(regions, logits, offsets, strict=True):
        objects = 1 - logit.softmax(-1)[:, 0]
        boxes = CODER.decode_single(offset, PRIORS)
        expected = tensors.clip(boxes[objects.topk(7).indices], SIZE)
        torch.testing.assert_close(region, expected, atol=1e-3, rtol=1e-4)


def test_instances_are_pooled_from_the_backbones_levels() -> None:
    features = DETECTOR.eval().features(IMAGES)
    boxes = [torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([[10.0, 8, 90, 60], [0, 0, 96, 64]])]
    found = DETECTOR.instances(features, boxes)
    assert found.shape == (3, sum(DETECTOR.backbone.channels))
    first = roi_align(features[0], boxes, 7, 1 / 8, 2, aligned=True).mean((2, 3))
    torch.testing.assert_close(found[:, : first.shape[1]], first)
    found.sum().backward()
    assert DETECTOR.instances(features, [torch.zeros(0, 4)] * 2).shape == (0, found.shape[1])


@pytest.mark.parametrize("lite", [False, True])
def test_the_exported_graph_is_forward(lite: bool) -> None:
    detector = lively(make(lite=lite))
    with torch.no_grad():
        exported = torch.export.export(detector, (IMAGES[:1],)).module()(IMAGES[:1])
        for one, other in zip(exported, detector(IMAGES[:1]), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_saved_detector_is_the_same(tmp_path: Path) -> None:
    detector = lively(make(lite=True, ratios=[2.0]))
    detectors.save(detector, tmp_path)
    loaded = detectors.load(tmp_path)
    assert loaded.spec == detector.spec
    with torch.inference_mode():
        for one, other in zip(detector(IMAGES), loaded(IMAGES), strict=True):
            torch.testing.assert_close(one, other)


def test_levels_are_those_of_the_papers() -> None:
    """SSD300 has maps of 38, 19, 10, 5, 3, 1 cells a side, and SSD512 of 64, 32, 16, 8, 4, 2, 1."""
    for side, extra, expected in ((320, 3, [40, 20, 10, 5, 3, 2]), (512, 4, [64, 32, 16, 8, 4, 2, 1])):
        config = ModelConfig(kind="ssd", image_size=(side, side), ssd=SsdConfig(extra=extra))
        spec = detectors.specify(config, ["car"]).ssd
        assert spec is not None
        assert [level.rows for level in spec.priors] == expected
    config = ModelConfig(kind="ssd", strides=(16, 32), ssd=SsdConfig(extra=4, lite=True))
    spec = detectors.specify(config, ["car"]).ssd
    assert spec is not None
    assert [level.columns for level in spec.priors] == [20, 10, 5, 3, 2, 1]
    assert {len(level.sizes) for level in spec.priors} == {6}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"extra": 3}, r"model.ssd.extra: .* room for 2 levels"), ({"scales": [0.1, 0.2]}, "5 levels need 6 scales")],
)
def test_levels_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(AcclimateError, match=message):
        make(**options)


@pytest.mark.parametrize("lite", [False, True])
def test_it_learns_two_images_by_heart(lite: bool) -> None:
    """GroupNorm does the same in training and evaluation, so what it has learnt is seen at once."""
    detector = make(seed=1, lite=lite, norm="group")
    optimizer = torch.optim.AdamW(detector.parameters(), 5e-3)
    images = torch.full((2, 3, *SIZE), 60.0)
    images[0, :, 10:40, 20:60] = 220
    images[1, 0, 30:60, 5:30] = 220
    images[1, 1, 4:50, 50:90] = 200
    targets = [
        annotations((20, 10, 60, 40)),
        Annotations(np.float32([[5, 30, 30, 60], [50, 4, 90, 50]]), np.array([0, 2]), np.zeros(2, bool)),
    ]
    for _ in range(40):
        optimizer.zero_grad()
        total(detector.losses(detector.features(images), targets)).backward()
        optimizer.step()
    detector.eval()
    with torch.inference_mode():
        found = detector.decode(detector(images))
    for one, target in zip(found, targets, strict=True):
        best = one[: len(target.boxes)]
        assert best.labels.tolist() == target.labels.tolist()
        assert box_iou(torch.from_numpy(best.boxes), torch.from_numpy(target.boxes)).diag().min() > 0.8
        assert len(one) == len(best) or one.scores[len(best)] < best.scores[-1] / 2
