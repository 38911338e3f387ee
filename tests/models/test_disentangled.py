"""TSD and what it is compared with: against torchvision's operators, finite differences, and the paper's formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, roi_align

from acclimate.config import ModelConfig
from acclimate.edge.engines import engine
from acclimate.export import exporter
from acclimate.models import detector as models
from acclimate.models.disentangled import (
    DisentangledHead,
    LightDisentangledHead,
    SeparateBackboneHead,
    SeparateLayersHead,
    _points,
    _sample_by_gather,
    _sample_by_grid,
    box_constraint,
    class_constraint,
    pool_moved,
)
from acclimate.models.pooling import levels, pool
from acclimate.models.roi_heads import BINS, RoiHead, Sample, Setting
from acclimate.structures import Annotations

STRIDES = (8, 16, 32)
CANVAS = 96
CHANNELS = 4


def by(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`pool_moved`, whether or not a graph is being exported."""

    def pooled(
        features: Sequence[Tensor], boxes: Tensor, offsets: Tensor, strides: Sequence[int], samples: int = 2
    ) -> Tensor:
        level = levels(boxes, strides)
        return sample(features, level, _points(features, boxes, offsets, strides, level, samples))

    return pooled


SAMPLERS = [by(_sample_by_grid), by(_sample_by_gather)]


def pyramid(batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, CHANNELS, CANVAS // s, CANVAS // s, generator=generator, dtype=dtype) for s in STRIDES]


def random_boxes(batch: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of all sizes, some of them beyond the canvas."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=generator, dtype=dtype) * CANVAS * 1.2 - 10
    size = 2 ** (torch.rand(batch, count, 2, generator=generator, dtype=dtype) * 9)
    return torch.cat([low, low + size], -1)


def operator(features: Sequence[Tensor], boxes: Tensor, level: Tensor, bins: int = BINS, ratio: int = 2) -> Tensor:
    """torchvision's RoIAlign, box by box, from a given level."""
    rows = [
        roi_align(
            features[one][image : image + 1], [boxes[image, i][None]], bins, 1 / STRIDES[one], ratio, aligned=False
        )
        for image in range(len(boxes))
        for i, one in enumerate(level[image].tolist())
    ]
    return torch.cat(rows).unflatten(0, boxes.shape[:2])


def no_offsets(boxes: Tensor) -> Tensor:
    return boxes.new_zeros(*boxes.shape[:2], BINS, BINS, 2)


def test_the_first_offsets_are_those_of_the_released_initialisation() -> None:
    """Kaiming's normal with gain 1: each layer has weights of variance 1 / inputs, so with two ReLUs before it an
    output has a quarter of the variance of the first layer's inputs (their mean square, to be exact)."""
    torch.manual_seed(0)
    head = DisentangledHead(Setting(64, STRIDES, 2, 16))
    for branch in (head.shared, head.move_box, head.move_bins):
        for layer in branch:
            if isinstance(layer, nn.Linear):
                assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.1)
                assert not layer.bias.any()
    flat = torch.randn(400, 64 * BINS * BINS)
    with torch.no_grad():
        out = head.move_bins(head.shared(flat))
    assert out.square().mean().item() == pytest.approx(flat.square().mean().item() / 4, rel=0.15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_without_offsets_it_is_average_roi_pooling(seed: int) -> None:
    features, boxes = pyramid(seed=seed), random_boxes(2, 5, seed)
    found = pool_moved(features, boxes, no_offsets(boxes), STRIDES)
    torch.testing.assert_close(found, operator(features, boxes, levels(boxes, STRIDES)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, pool(features, boxes, STRIDES, BINS), rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 7]), st.sampled_from([1, 2, 3]))
def test_any_number_of_bins_and_samples_is_average_roi_pooling(seed: int, bins: int, samples: int) -> None:
    features, boxes = pyramid(seed=seed), random_boxes(2, 5, seed)
    offsets = boxes.new_zeros(*boxes.shape[:2], bins, bins, 2)
    expected = operator(features, boxes, levels(boxes, STRIDES), bins, samples)
    for sample in SAMPLERS:
        found = sample(features, boxes, offsets, STRIDES, samples=samples)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-60, 60), st.floats(-60, 60))
def test_the_same_offset_everywhere_is_the_pooling_of_the_moved_box(seed: int, x: float, y: float) -> None:
    features, boxes = pyramid(seed=seed), random_boxes(2, 5, seed)
    found = pool_moved(features, boxes, no_offsets(boxes) + torch.tensor([x, y]), STRIDES)
    moved = boxes + torch.tensor([x, y, x, y])
    torch.testing.assert_close(found, operator(features, moved, levels(boxes, STRIDES)), rtol=1e-2, atol=2e-2)


def test_each_bin_goes_its_own_way() -> None:
    boxes = torch.tensor([[[8.0, 16.0, 64.0, 79.0]]])
    offsets = no_offsets(boxes) + 6 * torch.rand(1, 1, BINS, BINS, 2, generator=torch.Generator().manual_seed(0)) - 3
    # On a plane, bilinear samples are exact and their average is the value in the middle of the bin.
    ys, xs = torch.meshgrid(*(torch.arange(CANVAS // 8, dtype=torch.float32),) * 2, indexing="ij")
    found = pool_moved([(3 * xs - 2 * ys + 1)[None, None]], boxes, offsets, STRIDES[:1])[0, 0, 0]
    middle = (torch.arange(BINS) + 0.5) / BINS
    x = (8 + 56 * middle[None, :] + offsets[0, 0, ..., 0]) / 8
    y = (16 + 63 * middle[:, None] + offsets[0, 0, ..., 1]) / 8
    torch.testing.assert_close(found, 3 * x - 2 * y + 1, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 10.0, 300.0]))
def test_both_ways_to_sample_agree(seed: int, reach: float) -> None:
    features, boxes = pyramid(seed=seed, dtype=torch.float64), random_boxes(2, 5, seed, torch.float64)
    offsets = reach * torch.randn(no_offsets(boxes).shape, dtype=torch.float64)
    one, other = (sample(features, boxes, offsets, STRIDES) for sample in SAMPLERS)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sample", SAMPLERS)
def test_gradients_are_those_of_finite_differences(sample: Callable[..., Tensor]) -> None:
    features = [feature[:, :2].requires_grad_() for feature in pyramid(2, 3, torch.float64)]
    boxes = torch.tensor([[[5.0, 9, 41, 33], [-6, 20, 140, 150]], [[30, 3, 90, 95], [0, 0, 5, 90]]]).double()
    generator = torch.Generator().manual_seed(2)
    offsets = 5 * torch.randn(2, 2, 3, 3, 2, generator=generator, dtype=torch.float64)

    def pooled(offsets: Tensor, *features: Tensor) -> Tensor:
        return sample(features, boxes, offsets, STRIDES)

    assert torch.autograd.gradcheck(pooled, (offsets.requires_grad_(), *features), eps=1e-7, fast_mode=True)


@pytest.mark.parametrize("sample", SAMPLERS)
def test_the_level_is_that_of_the_box_where_it_was(sample: Callable[..., Tensor]) -> None:
    features = [feature.requires_grad_() for feature in pyramid(1)]
    boxes = torch.tensor([[[20.0, 20, 60, 60]], [[0, 0, 300, 300]]])
    for box, level in zip(boxes, (0, 1), strict=True):
        offsets = no_offsets(box[None]) + 11.0
        sample(features, box[None], offsets, STRIDES).sum().backward()
        assert [feature.grad is not None and bool(feature.grad.any()) for feature in features] == [
            i == level for i in range(3)
        ]
        for feature in features:
            feature.grad = None


class Pooling(nn.Module):
    def __init__(self, sample: Callable[..., Tensor]) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, boxes: Tensor, offsets: Tensor, *features: Tensor) -> Tensor:
        return self.sample(features, boxes, offsets, STRIDES)


@pytest.mark.parametrize("sample", SAMPLERS)
def test_onnx_runtime_pools_alike(sample: Callable[..., Tensor], tmp_path: Path) -> None:
    features, boxes = pyramid(1), random_boxes(1, 40)
    offsets = 20 * torch.randn(no_offsets(boxes).shape, generator=torch.Generator().manual_seed(1))
    module, inputs = Pooling(sample).eval(), (boxes, offsets, *features)
    file = tmp_path / "pool.onnx"
    torch.onnx.export(module, inputs, str(file), dynamo=True, opset_version=18, verbose=False, external_data=False)
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert ("GridSample" in operators) == (sample is SAMPLERS[0])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
    np.testing.assert_allclose(session.run(None, feed)[0], module(*inputs), rtol=1e-3, atol=1e-3)


def head_of(kind: type[SeparateLayersHead] = DisentangledHead, **options: Any) -> Any:
    torch.manual_seed(0)
    head = kind(Setting(CHANNELS, STRIDES, 3, 16), **options)
    # The last layers start so close to zero that every box would be the same.
    last = [module for name, module in head.named_modules() if name.endswith(("classify", "regress"))]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(30)
    return head


def sample_of_boxes() -> Sample:
    """Proposals (2, 6, 4), labels with padding, background and objects, and their labelled boxes."""
    proposals = torch.tensor([[10.0, 12, 50, 60], [30, 8, 90, 40], [4, 50, 44, 90]])
    proposals = torch.cat([proposals, proposals + 3])[None].repeat(2, 1, 1)
    labels = torch.tensor([[1, 3, 0, 2, 0, -1], [0, 0, 2, -1, 1, 3]])
    shift = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(5)) * 3
    return Sample(proposals, labels, proposals + shift, torch.zeros_like(labels))


def test_offsets_are_a_tenth_of_the_size_times_what_the_layers_say() -> None:
    head = head_of()
    features, proposals = pyramid(), random_boxes(2, 4)
    still = pool(features, proposals, STRIDES, BINS)
    box, bins = head.offsets(still, proposals)
    size = proposals[..., 2:] - proposals[..., :2]
    hidden = F.relu(F.linear(still.flatten(2), head.shared[0].weight, head.shared[0].bias))
    assert hidden.shape[-1] == 256
    for found, layers, scale in (
        (box, head.move_box, size),
        (bins.flatten(2), head.move_bins, size.repeat(1, 1, BINS * BINS)),
    ):
        inner = F.relu(F.linear(hidden, layers[0].weight, layers[0].bias))
        assert inner.shape[-1] == 256
        torch.testing.assert_close(found, 0.1 * F.linear(inner, layers[2].weight, layers[2].bias) * scale)
    assert (box != 0).float().mean() > 0.5, "offsets start at zero"


def test_the_box_is_read_and_regressed_at_the_moved_proposal() -> None:
    head = head_of()
    features, proposals = pyramid(), random_boxes(2, 4)
    still = pool(features, proposals, STRIDES, BINS)
    box, bins = head.offsets(still, proposals)
    _, offsets, anchors = head(features, proposals)
    moved = proposals + torch.cat([box, box], -1)
    torch.testing.assert_close(anchors, moved)
    looked = operator(features, moved, levels(proposals, STRIDES))
    expected = head.regress(head.box_layers(looked.flatten(2))).view(2, 4, 4, 4)
    torch.testing.assert_close(offsets, expected, rtol=1e-2, atol=1e-2)
    looked = pool_moved(features, proposals, bins, STRIDES)
    torch.testing.assert_close(head.instances(features, proposals), head.class_layers(looked.flatten(2)))


def test_where_nothing_moves_it_is_separate_layers() -> None:
    head, plain = head_of(), head_of(SeparateLayersHead)
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if key in plain.state_dict()})
    for layers in (head.move_box, head.move_bins):
        nn.init.zeros_(layers[2].weight)
    features, proposals = pyramid(), random_boxes(2, 4)
    for found, expected in zip(head(features, proposals), plain(features, proposals), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_where_nothing_moves_the_light_head_reads_fewer_bins_and_samples() -> None:
    head = head_of(LightDisentangledHead)
    for layers in (head.move_box, head.move_bins):
        nn.init.zeros_(layers[2].weight)
    features, proposals = pyramid(), random_boxes(2, 4)
    logits, offsets, anchors = head(features, proposals)
    level = levels(proposals, STRIDES)
    hidden = head.class_layers(operator(features, proposals, level, ratio=1, bins=4).flatten(2))
    torch.testing.assert_close(logits, head.classify(hidden), rtol=1e-3, atol=1e-3)
    hidden = head.box_layers(operator(features, proposals, level, ratio=1).flatten(2))
    assert hidden.shape[-1] == 8
    torch.testing.assert_close(offsets.flatten(2), head.regress(hidden), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(anchors, proposals)


def test_the_light_head_moves_by_means_of_the_proposals_bins() -> None:
    head = head_of(LightDisentangledHead)
    features, proposals = pyramid(), random_boxes(2, 4)
    still = pool(features, proposals, STRIDES, BINS)
    # The last row and column of seven have no neighbour.
    blocks = [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    means = torch.stack([torch.stack([still[..., y, x].mean((-2, -1)) for x in blocks], -1) for y in blocks], -2)
    box, bins = head.offsets(still, proposals)
    hidden = head.shared(means.flatten(2))
    size = proposals[..., 2:] - proposals[..., :2]
    torch.testing.assert_close(box, 0.1 * head.move_box(hidden) * size)
    torch.testing.assert_close(bins.flatten(2), 0.1 * head.move_bins(hidden) * size.repeat(1, 1, 16))
    assert bins.any()


def test_a_box_of_no_area_stays_one() -> None:
    boxes = torch.tensor([[[0.0, 0, 0, 0], [33.3, 21.7, 33.3, 21.7], [10, 10, 40, 40]]])
    anchors = head_of()(pyramid(1), boxes)[2]
    area = (anchors[..., 2:] - anchors[..., :2]).prod(-1)
    assert (area > 0).tolist() == [[False, False, True]]


def softmax(logits: Tensor) -> np.ndarray[Any, Any]:
    values = np.exp(logits.detach().double().numpy())
    return np.asarray(values / values.sum(-1, keepdims=True))


def test_the_class_constraint_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, sibling = (3 * torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    labels = sample_of_boxes().labels
    own, beside = softmax(logits), softmax(sibling)
    terms = []
    for image, row in itertools.product(range(2), range(6)):
        label = int(labels[image, row])
        if label >= 0:
            p, s = own[image, row, label], beside[image, row, label]
            terms.append(max(0.0, s - p + min(1 - s, 0.2)))
    assert len(terms) == 10
    assert any(terms[i] > 0 for i in (2, 4)), "the background counts"
    found = class_constraint(logits, sibling, labels, 0.2)
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_box_constraint_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = sample_of_boxes().boxes.flatten(0, 1)
    own, sibling = (truth + 8 * torch.randn(12, 4, generator=generator) for _ in range(2))
    first, second = box_iou(own, truth).diagonal(), box_iou(sibling, truth).diagonal()
    terms = [max(0.0, float(s - p + min(1 - s, 0.2))) for p, s in zip(first, second, strict=True)]
    assert box_constraint(own, sibling, truth, 0.2).item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert box_constraint(*(torch.zeros(0, 4),) * 3, 0.2).item() == 0


def test_the_margin_is_capped_at_certainty() -> None:
    labels = torch.tensor([[1]])
    certain = torch.tensor([[[-30.0, 30.0]]])
    assert class_constraint(certain, certain, labels, 0.3).item() == pytest.approx(0, abs=1e-6)
    truth = torch.tensor([[10.0, 10, 30, 40]])
    assert box_constraint(truth, truth, truth, 0.3).item() == pytest.approx(0, abs=1e-6)
    # Without certainty, two that are equal are the whole margin apart.
    unsure = torch.zeros(1, 1, 2)
    assert class_constraint(unsure, unsure, labels, 0.3).item() == pytest.approx(0.3)


def test_the_constraint_pulls_the_head_and_not_the_sibling() -> None:
    own, sibling = (torch.zeros(1, 2, 3, requires_grad=True) for _ in range(2))
    class_constraint(own, sibling, torch.tensor([[1, 0]]), 0.2).backward()
    assert sibling.grad is None
    assert (own.grad[0, 0, 1] < 0) & (own.grad[0, 1, 0] < 0)
    truth = torch.tensor([[10.0, 10, 30, 40]])
    own, sibling = ((truth + 4).requires_grad_() for _ in range(2))
    box_constraint(own, sibling, truth, 0.2).backward()
    assert sibling.grad is None
    assert own.grad.any()


def expected_losses(outputs: tuple[Tensor, Tensor, Tensor], labels: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Fast R-CNN's two losses as torchvision computes them, on the boxes whose label is not -1."""
    logits, offsets, anchors = (output.flatten(0, 1) for output in outputs)
    labels, matched = labels.flatten(), matched.flatten(0, 1)
    used, objects = labels >= 0, labels > 0
    wanted = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode([matched[objects]], [anchors[objects]])[0]
    own = offsets[objects, labels[objects]]
    box = F.smooth_l1_loss(own, wanted, beta=1 / 9, reduction="sum") / used.sum()
    return F.cross_entropy(logits[used], labels[used]), box


def test_the_total_loss_is_its_parts() -> None:
    head = head_of(margin=0.3)
    features, sample = pyramid(), sample_of_boxes()
    proposals, labels, matched, _ = sample
    losses = head.losses(features, sample)
    outputs, beside = head(features, proposals), head.sibling(features, proposals)
    for prefix, three in (("roi", outputs), ("sibling", beside)):
        wanted = expected_losses(three, labels, matched)
        for name, value in zip(("class", "box"), wanted, strict=True):
            torch.testing.assert_close(losses[f"{prefix}_{name}"], value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        losses["constraint_class"], class_constraint(outputs[0], beside[0], labels, 0.3), rtol=1e-3, atol=1e-4
    )
    objects = labels > 0
    boxes = [
        BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(
            three[1][objects].gather(1, labels[objects][:, None, None].expand(-1, -1, 4))[:, 0], three[2][objects]
        )
        for three in (outputs, beside)
    ]
    torch.testing.assert_close(
        losses["constraint_box"], box_constraint(*boxes, matched[objects], 0.3), rtol=1e-3, atol=1e-4
    )
    assert losses.keys() == {
        "roi_class", "roi_box", "sibling_class", "sibling_box", "constraint_class", "constraint_box",
    }  # fmt: skip
    free = head_of(margin=None).losses(features, sample)
    assert free.keys() == {"roi_class", "roi_box", "sibling_class", "sibling_box"}


def test_without_objects_there_is_nothing_to_localise() -> None:
    head = head_of()
    sample = sample_of_boxes()
    losses = head.losses(pyramid(), sample._replace(labels=sample.labels.clamp(max=0)))
    assert losses["roi_box"] == losses["sibling_box"] == losses["constraint_box"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_every_parameter_is_trained() -> None:
    head = head_of()
    features = [feature.requires_grad_() for feature in pyramid()]
    sum(head.losses(features, sample_of_boxes()).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    assert all(feature.grad is not None and torch.isfinite(feature.grad).all() for feature in features)


def test_the_sibling_is_kept_but_not_run() -> None:
    head = head_of()
    features, proposals = pyramid(), random_boxes(2, 4)
    before = head(features, proposals)
    with torch.no_grad():
        for parameter in head.sibling.parameters():
            parameter.fill_(torch.nan)
    for one, other in zip(head(features, proposals), before, strict=True):
        assert torch.equal(one, other)
    assert "sibling.classify.weight" in head.state_dict()


@pytest.mark.parametrize(("loss", "idle"), [("roi_class", "box_layers"), ("roi_box", "class_layers")])
def test_separate_layers_share_only_the_features(loss: str, idle: str) -> None:
    head = head_of(SeparateLayersHead)
    features = [feature.requires_grad_() for feature in pyramid()]
    head.losses(features, sample_of_boxes())[loss].backward()
    assert all(p.grad is None for p in getattr(head, idle).parameters())
    assert features[0].grad.any()


@pytest.mark.parametrize(("loss", "pyramid_of_it"), [("roi_class", 0), ("roi_box", 1)])
def test_separate_backbones_share_nothing(loss: str, pyramid_of_it: int) -> None:
    head = head_of(SeparateBackboneHead)
    features = [feature.requires_grad_() for feature in pyramid(seed=0) + pyramid(seed=1)]
    head.losses(features, sample_of_boxes())[loss].backward()
    reached = [feature.grad is not None and bool(feature.grad.any()) for feature in features]
    assert any(reached[3 * pyramid_of_it : 3 * pyramid_of_it + 3])
    assert not any(reached[3 - 3 * pyramid_of_it : 6 - 3 * pyramid_of_it])


def test_low_precision_keeps_its_coordinates() -> None:
    head = head_of()
    features, proposals = pyramid(1), random_boxes(1, 4)
    exact = head(features, proposals)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head([feature.bfloat16() for feature in features], proposals)
    assert rough[2].dtype == torch.float32
    torch.testing.assert_close(rough[2], exact[2], rtol=0.05, atol=0.5)


def detector(head: str, **two_stage: Any) -> Any:
    torch.manual_seed(0)
    config = ModelConfig(
        kind="two-stage", backbone="test_efficientnet", image_size=(64, 96), weights="none", channels=16, norm="frozen",
        two_stage={"head": head, "proposals": 8, "hidden": 16, **two_stage},
    )  # fmt: skip
    return models.build(models.specify(config, ["a", "b"]))


KINDS = {
    "disentangled": DisentangledHead,
    "disentangled-light": LightDisentangledHead,
    "separate-fcs": SeparateLayersHead,
    "separate-backbone": SeparateBackboneHead,
}


@pytest.mark.parametrize("head", KINDS)
def test_one_word_of_configuration_chooses(head: str) -> None:
    built = detector(head)
    assert type(built.roi_head) is KINDS[head]
    assert isinstance(built.roi_head, RoiHead)
    logits, offsets, boxes = built.eval()(255 * torch.rand(2, 3, 64, 96))
    assert (logits.shape, offsets.shape, boxes.shape) == ((2, 8, 3), (2, 8, 3, 4), (2, 8, 4))


@pytest.mark.parametrize(
    "head", ["disentangled", "disentangled-light", pytest.param("separate-backbone", marks=pytest.mark.slow)]
)
def test_the_artifact_detects_what_the_detector_detects(head: str, tmp_path: Path) -> None:
    built = detector(head).eval()
    with torch.no_grad():
        built.roi_head.classify.weight.mul_(100)
        built.roi_head.regress.weight.mul_(100)
    artifact = exporter("onnx").export(built, tmp_path / "artifacts" / head, "fp32", [])
    images = 255 * torch.rand(1, 3, 64, 96)
    network = engine("onnx").load(artifact, 1)
    outputs = network(images.numpy())
    with torch.no_grad():
        expected = built(images)
    for found, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)
    from_artifact = built.decode(tuple(torch.from_numpy(output) for output in outputs))[0]
    eager = built.decode(expected)[0]
    assert len(eager) == len(from_artifact) > 0
    np.testing.assert_allclose(from_artifact.scores, eager.scores, atol=1e-3)
    np.testing.assert_allclose(from_artifact.boxes, eager.boxes, atol=0.1)
    graph = onnx.load(artifact.file(".onnx")).graph
    assert holds(graph, built.roi_head.class_layers[0].weight)
    if head.startswith("disentangled"):
        assert not holds(graph, built.roi_head.sibling.layers[0].weight), "the sibling is exported"


def holds(graph: onnx.GraphProto, wanted: Tensor) -> bool:
    """Whether a weight is among the graph's constants, transposed or not."""
    values = np.sort(wanted.detach().numpy().ravel())
    constants = (onnx.numpy_helper.to_array(constant) for constant in graph.initializer)
    return any(array.size == values.size and np.allclose(np.sort(array.ravel()), values) for array in constants)


@pytest.mark.parametrize("constraint", [None, 0.3])
def test_the_constraint_is_an_option(constraint: float | None) -> None:
    built = detector("disentangled", constraint=constraint)
    assert built.roi_head.margin == constraint
    image = Annotations(np.float32([[12, 10, 44, 42]]), np.array([0]), np.array([False]))
    losses = built.losses(built.features(255 * torch.rand(1, 3, 64, 96)), [image])
    assert ("constraint_class" in losses) == ("constraint_box" in losses) == (constraint is not None)


def test_training_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    built = detector("disentangled", constraint=0.25)
    models.save(built, tmp_path)
    again = models.load(tmp_path)
    assert torch.equal(again.roi_head.sibling.classify.weight, built.roi_head.sibling.classify.weight)
    assert again.roi_head.margin == 0.25


@pytest.mark.parametrize("head", KINDS)
def test_the_loss_falls(head: str) -> None:
    built = detector(head).train()
    generator = torch.Generator().manual_seed(1)
    images = 60 * torch.rand(2, 3, 64, 96, generator=generator)
    images[0, 0, 10:42, 12:44] += 180
    images[1, 2, 20:52, 40:72] += 180
    targets = [
        Annotations(np.float32([[12, 10, 44, 42]]), np.array([0]), np.array([False])),
        Annotations(np.float32([[40, 20, 72, 52]]), np.array([1]), np.array([False])),
    ]
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = built.losses(built.features(images), targets)
        total = sum(losses.values())
        total.backward()
        nn.utils.clip_grad_norm_(built.parameters(), 10.0)
        optimizer.step()
        totals.append(total.item())
    assert np.mean(totals[-3:]) < 0.7 * np.mean(totals[:3]), totals
