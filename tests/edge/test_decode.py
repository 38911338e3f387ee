from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD

from acclimate.edge.artifact import Decode, Priors
from acclimate.edge.decode import _best, _first_kept, decode, default_boxes, nms
from acclimate.errors import AcclimateError

STRIDES = (8, 16, 32)
SIZE = (96, 160)
LOCATIONS = sum((SIZE[0] // s) * (SIZE[1] // s) for s in STRIDES)


def raw(seed: int, classes: int = 3, batch: int = 1, mean: float = -4.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(mean, 2.0, (batch, LOCATIONS, classes)).astype(np.float32)
    return logits, rng.normal(0.5, 1.5, (batch, LOCATIONS, 4)).astype(np.float32)


def reference(logits: np.ndarray, distances: np.ndarray, options: Decode, size: tuple[int, int]):
    """The documented arithmetic, location by location, with torchvision's NMS."""
    rows = []
    location = 0
    for stride in options.strides:
        for y in range(size[0] // stride):
            for x in range(size[1] // stride):
                left, top, right, bottom = torch.nn.functional.softplus(torch.tensor(distances[location])) * stride
                cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                box = torch.stack([cx - left, cy - top, cx + right, cy + bottom])
                for label, score in enumerate(torch.tensor(logits[location]).sigmoid()):
                    if score >= options.score_threshold:
                        rows.append((float(score), label, box))
                location += 1
    rows.sort(key=lambda row: -row[0])
    rows = rows[: options.candidates]
    boxes = torchvision.ops.clip_boxes_to_image(torch.stack([row[2] for row in rows]), size)
    scores, labels = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    kept = torchvision.ops.batched_nms(boxes, scores, labels, options.nms_iou)[: options.max_detections]
    return boxes[kept].numpy(), labels[kept].numpy(), scores[kept].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        Decode(strides=STRIDES),
        Decode(strides=STRIDES, score_threshold=0.3, nms_iou=0.3),
        Decode(strides=STRIDES, candidates=40, max_detections=7),
    ],
)
def test_equals_the_documented_arithmetic(seed: int, options: Decode) -> None:
    logits, distances = raw(seed, batch=2)
    found = decode([logits, distances], options, SIZE)
    assert len(found) == 2
    for index, one in enumerate(found):
        boxes, labels, scores = reference(logits[index], distances[index], options, SIZE)
        np.testing.assert_allclose(one.scores, scores, atol=1e-6)
        np.testing.assert_array_equal(one.labels, labels)
        np.testing.assert_allclose(one.boxes, boxes, atol=1e-3)
        assert one.boxes.dtype == np.float32
        assert one.scores.dtype == np.float32
        assert one.labels.dtype == np.int64


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 120),
    classes=st.integers(1, 4),
    iou=st.sampled_from([0.0, 0.3, 0.6, 0.95]),
)
def test_nms_equals_torchvision(seed: int, count: int, classes: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 50, (count, 2))], 1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.01, 1, count)).astype(np.float32)
    labels = rng.integers(0, classes, count)
    expected = torchvision.ops.batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), iou)
    np.testing.assert_array_equal(nms(boxes, scores, labels, iou), expected.numpy())


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 2000),
    count=st.integers(1, 120),
    levels=st.integers(1, 3000),
    rising=st.booleans(),
)
def test_the_best_are_those_of_a_whole_sort(seed: int, length: int, count: int, levels: int, rising: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, length).astype(np.float32)
    if rising:
        values.sort()
    index, found = _best(values, levels / 4, count)
    assert (found == np.sort(values[values >= levels / 4])[::-1][:count]).all()
    assert (values[index] == found).all()
    assert len(np.unique(index)) == len(index)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 80), asked=st.integers(1, 30), spread=st.floats(0, 300))
def test_the_first_kept_are_those_of_nms_on_all(seed: int, count: int, asked: int, spread: float) -> None:
    """On a small spread most boxes are of one thing, so that the first candidates are not enough."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, spread, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (count, 2))], axis=1).astype(np.float32)
    scores, labels = np.sort(rng.uniform(0.01, 1, count).astype(np.float32))[::-1], rng.integers(0, 2, count)
    options = Decode(strides=STRIDES, max_detections=asked)
    expected = nms(boxes, scores, labels, options.nms_iou)[:asked]
    assert _first_kept(boxes, scores, labels, options).tolist() == expected.tolist()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), mean=st.floats(-9, 3))
def test_detections_are_well_formed(seed: int, mean: float) -> None:
    options = Decode(strides=STRIDES)
    (one,) = decode(raw(seed, mean=mean), options, SIZE)
    assert len(one) <= options.max_detections
    assert (np.diff(one.scores) <= 0).all()
    assert (one.scores >= options.score_threshold - 1e-6).all()
    assert (one.boxes[:, :2] >= 0).all()
    assert (one.boxes[:, 2] <= SIZE[1]).all()
    assert (one.boxes[:, 3] <= SIZE[0]).all()
    assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()


def test_one_location_by_hand() -> None:
    logits = np.full((1, LOCATIONS, 2), -20, np.float32)
    distances = np.zeros((1, LOCATIONS, 4), np.float32)
    second_row_of_second_level = 12 * 20 + 10 + 3
    logits[0, second_row_of_second_level, 1] = 0
    distances[0, second_row_of_second_level] = [-1, -2, -3, 1]
    (one,) = decode([logits, distances], Decode(strides=STRIDES), SIZE)
    left, top, right, bottom = 16 * np.log1p(np.exp([-1, -2, -3, 1]))
    np.testing.assert_allclose(one.boxes, [[56 - left, 24 - top, 56 + right, 24 + bottom]], rtol=1e-6)
    assert one.labels.tolist() == [1]
    assert one.scores.tolist() == [0.5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_no_detections(bad: float) -> None:
    logits, distances = raw(0)
    clean = decode([logits, distances], Decode(strides=STRIDES), SIZE)[0]
    assert len(clean) > 10
    for target in (logits, distances):
        spoiled = target.copy()
        spoiled[0, ::2] = bad
        outputs = [spoiled, distances] if target is logits else [logits, spoiled]
        (one,) = decode(outputs, Decode(strides=STRIDES), SIZE)
        assert np.isfinite(one.boxes).all()
        assert np.isfinite(one.scores).all()
        everything = np.full_like(target, bad)
        outputs = [everything, distances] if target is logits else [logits, everything]
        assert len(decode(outputs, Decode(strides=STRIDES), SIZE)[0]) == 0


def test_huge_distances_neither_overflow_nor_warn() -> None:
    logits, distances = raw(0)
    with np.errstate(all="raise"):
        assert len(decode([logits, distances * np.float32(1e30)], Decode(strides=STRIDES), SIZE)[0])
    assert len(decode([logits * np.float32(1e3), distances], Decode(strides=STRIDES), SIZE)[0])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_extreme_thresholds(threshold: float) -> None:
    (one,) = decode(raw(0), Decode(strides=STRIDES, score_threshold=threshold), SIZE)
    assert len(one) == (100 if threshold == 0 else 0)


def test_half_precision_outputs() -> None:
    logits, distances = (output.astype(np.float16) for output in raw(0))
    (half,) = decode([logits, distances], Decode(strides=STRIDES), SIZE)
    (single,) = decode([logits.astype(np.float32), distances.astype(np.float32)], Decode(strides=STRIDES), SIZE)
    np.testing.assert_array_equal(half.boxes, single.boxes)


def test_outputs_of_another_canvas_are_refused() -> None:
    with pytest.raises(AcclimateError, match="locations; export the artifact again"):
        decode(raw(0), Decode(strides=STRIDES), (64, 64))
    logits, distances = raw(0)
    with pytest.raises(AcclimateError, match="locations"):
        decode([logits, distances[..., :3]], Decode(strides=STRIDES), SIZE)


def raw_two_stage(seed: int, count: int = 40, classes: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-10, 130, (2, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (2, count, 2))], axis=2)
    boxes[:, -3:] = 0
    outputs = rng.normal(0, 2, (2, count, classes + 1)), rng.normal(0, 3, (2, count, classes + 1, 4)), boxes
    return [output.astype(np.float32) for output in outputs]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.05, 0.4])
def test_two_stage_outputs_become_what_torchvision_makes_of_them(seed: int, threshold: float) -> None:
    heads = RoIHeads(*[None] * 3, 0.5, 0.5, 1, 0.5, None, threshold, 0.4, 30)
    logits, offsets, boxes = (torch.from_numpy(output) for output in raw_two_stage(seed))
    expected = heads.postprocess_detections(
        logits.flatten(0, 1), offsets.flatten(0, 1).flatten(1), list(boxes), [SIZE, SIZE]
    )
    options = Decode(kind="two-stage", score_threshold=threshold, nms_iou=0.4, candidates=1000, max_detections=30)
    found = decode(raw_two_stage(seed), options, SIZE)
    for one, box, score, label in zip(found, *expected, strict=True):
        assert len(one) == len(score) > 0
        np.testing.assert_allclose(one.scores, score.numpy(), rtol=1e-5)
        np.testing.assert_allclose(one.boxes, box.numpy(), atol=1e-3)
        assert (one.labels == label.numpy() - 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_two_stage_outputs_that_are_not_finite_are_no_detections(bad: float) -> None:
    options = Decode(kind="two-stage", score_threshold=0.05)
    for index in range(3):
        outputs = raw_two_stage(0)
        outputs[index][:] = bad
        for found in decode(outputs, options, SIZE):
            assert np.isfinite(found.boxes).all()
            assert np.isfinite(found.scores).all()
            assert not len(found) or index == 1


def test_two_stage_outputs_of_other_shapes_are_refused() -> None:
    logits, offsets, boxes = raw_two_stage(0)
    with pytest.raises(AcclimateError, match="two-stage"):
        decode([logits, offsets[:, :5], boxes], Decode(kind="two-stage"), SIZE)


PRIORS = (
    Priors(rows=6, columns=10, step=(16.0, 16.0), sizes=((20.0, 20.0), (12.0, 30.0), (30.0, 12.0))),
    Priors(rows=2, columns=3, step=(48.0, 160 / 3), sizes=((70.0, 60.0),)),
)


def raw_ssd(seed: int, classes: int = 3, background: float = 3.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (2, 186, classes + 1))
    logits[..., 0] += background
    # Centres stay on the canvas: torchvision also reports boxes that have no area left there.
    offsets = rng.normal(0, 3, (2, 186, 4)) * [0.2, 0.2, 1, 1]
    return [logits.astype(np.float32), offsets.astype(np.float32)]


def test_default_boxes_by_hand() -> None:
    boxes = default_boxes(PRIORS)
    assert boxes.shape == (186, 4)
    np.testing.assert_array_equal(boxes[:2], [[-2, -2, 18, 18], [2, -7, 14, 23]])
    second_row_third_column = 3 * (10 + 2)
    np.testing.assert_array_equal(boxes[second_row_third_column], [30, 14, 50, 34])
    np.testing.assert_allclose(boxes[-1], [400 / 3 - 35, 72 - 30, 400 / 3 + 35, 72 + 30], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("threshold", "limit"), [(0.01, 400), (0.01, 7), (0.3, 20)])
def test_ssd_outputs_become_what_torchvision_makes_of_them(seed: int, threshold: float, limit: int) -> None:
    model = SimpleNamespace(
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), score_thresh=threshold, topk_candidates=limit, nms_thresh=0.4,
        detections_per_img=30,
    )  # fmt: skip
    logits, offsets = (torch.from_numpy(output) for output in raw_ssd(seed))
    anchors = [torch.from_numpy(default_boxes(PRIORS))] * 2
    expected = SSD.postprocess_detections(
        model, {"cls_logits": logits, "bbox_regression": offsets}, anchors, [SIZE, SIZE]
    )
    options = Decode(
        kind="ssd", priors=PRIORS, score_threshold=threshold, nms_iou=0.4, candidates=3 * limit,
        class_candidates=limit, max_detections=30,
    )  # fmt: skip
    for one, theirs in zip(decode(raw_ssd(seed), options, SIZE), expected, strict=True):
        assert len(one) == len(theirs["scores"]) > 0
        np.testing.assert_allclose(one.scores, theirs["scores"].numpy(), rtol=1e-5)
        np.testing.assert_allclose(one.boxes, theirs["boxes"].numpy(), atol=1e-3)
        assert (one.labels == theirs["labels"].numpy() - 1).all()


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_candidates_of_ssd_are_the_best_pairs(threshold: float) -> None:
    logits, offsets = raw_ssd(0)
    options = Decode(kind="ssd", priors=PRIORS, score_threshold=threshold, nms_iou=1.0, candidates=9)
    probabilities = torch.from_numpy(logits).softmax(-1)[..., 1:].flatten(1)
    for one, expected in zip(decode([logits, 0 * offsets], options, SIZE), probabilities, strict=True):
        expected = expected.topk(9).values
        np.testing.assert_allclose(one.scores, expected[expected >= threshold].numpy(), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ssd_outputs_that_are_not_finite_are_no_detections(bad: float) -> None:
    options = Decode(kind="ssd", priors=PRIORS)
    for index in range(2):
        outputs = raw_ssd(0)
        outputs[index][:] = bad
        for found in decode(outputs, options, SIZE):
            assert np.isfinite(found.boxes).all()
            assert np.isfinite(found.scores).all()
            assert not len(found) or index == 1


def test_ssd_outputs_of_other_default_boxes_are_refused() -> None:
    logits, offsets = raw_ssd(0)
    for outputs in ([logits[:, :9], offsets[:, :9]], [logits, offsets[:, :9]]):
        with pytest.raises(AcclimateError, match="186 default boxes; export the artifact again"):
            decode(outputs, Decode(kind="ssd", priors=PRIORS), SIZE)


def raw_levels(kind: Literal["retinanet", "fcos"]) -> tuple[list[np.ndarray], Decode]:
    priors = PRIORS if kind == "retinanet" else tuple(p.model_copy(update={"sizes": p.sizes[:1]}) for p in PRIORS)
    count = len(default_boxes(priors))
    rng = np.random.default_rng(0)
    outputs = [rng.normal(-1, 2, (2, count, 3)), rng.uniform(0.1, 1, (2, count, 4)), rng.normal(0, 1, (2, count, 1))]
    listed = [output.astype(np.float32) for output in outputs[: 2 if kind == "retinanet" else 3]]
    return listed, Decode(kind=kind, priors=priors, level_candidates=9, candidates=400, nms_iou=1.0)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_each_level_has_its_own_limit(kind: Literal["retinanet", "fcos"]) -> None:
    outputs, options = raw_levels(kind)
    scores = torch.from_numpy(outputs[0]).sigmoid()
    if kind == "fcos":
        scores = (scores * torch.from_numpy(outputs[2]).sigmoid()).sqrt()
    ends = np.cumsum([level.rows * level.columns * len(level.sizes) for level in options.priors])
    for one, expected in zip(decode(outputs, options, SIZE), scores, strict=True):
        parts = torch.tensor_split(expected, [int(end) for end in ends[:-1]])
        best = torch.cat([part.flatten().topk(9).values for part in parts]).sort(descending=True).values
        np.testing.assert_allclose(one.scores, best[: len(one)].numpy(), rtol=1e-5)
        assert len(one) == len(best)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_outputs_of_levels_that_are_not_finite_are_no_detections(kind: Literal["retinanet", "fcos"]) -> None:
    outputs, options = raw_levels(kind)
    for index in range(len(outputs)):
        for bad in (np.nan, np.inf, -np.inf):
            broken = [output.copy() for output in outputs]
            broken[index][:] = bad
            for found in decode(broken, options, SIZE):
                assert np.isfinite(found.boxes).all()
                assert np.isfinite(found.scores).all()
        with pytest.raises(AcclimateError, match=r"default boxes; export the\s+artifact again"):
            decode([*outputs[:index], outputs[index][:, :4], *outputs[index + 1 :]], options, SIZE)


def queries(seed: int, count: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, 2.0, (2, count, classes)).astype(np.float32)
    return logits, rng.uniform(0.05, 0.7, (2, count, 4)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("limit", "threshold"), [(40, 0.01), (10, 0.01), (40, 0.6)])
def test_queries_are_the_documented_arithmetic(seed: int, limit: int, threshold: float) -> None:
    """Pair by pair in torch: a sigmoid, the best of them, centre and size to corners, no NMS."""
    logits, boxes = queries(seed)
    found = decode((logits, boxes), Decode(kind="queries", max_detections=limit, score_threshold=threshold), SIZE)
    for one, scores, shares in zip(found, torch.tensor(logits).sigmoid(), torch.tensor(boxes), strict=True):
        best, index = scores.flatten().topk(limit)
        index, best = index[best >= threshold], best[best >= threshold]
        corners = torchvision.ops.box_convert(shares[index // 3], "cxcywh", "xyxy")
        corners = torchvision.ops.clip_boxes_to_image(corners * torch.tensor([SIZE[1], SIZE[0]] * 2), SIZE)
        np.testing.assert_allclose(one.scores, best, atol=1e-6)
        np.testing.assert_array_equal(one.labels, index % 3)
        np.testing.assert_allclose(one.boxes, corners, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_queries_that_are_not_finite_are_no_detections(bad: float) -> None:
    logits, boxes = queries(0)
    logits[0, 3], boxes[0, 5, 2] = bad, bad
    options = Decode(kind="queries", max_detections=40)
    first, second = decode((logits, boxes), options, SIZE)
    assert np.isfinite(first.boxes).all()
    assert np.isfinite(first.scores).all()
    assert len(second) == len(decode(queries(0), options, SIZE)[1])


def test_queries_of_other_shapes_are_refused() -> None:
    logits, boxes = queries(0)
    with pytest.raises(AcclimateError, match="not those of queries; export the artifact again"):
        decode((logits, boxes[:, 1:]), Decode(kind="queries"), SIZE)
