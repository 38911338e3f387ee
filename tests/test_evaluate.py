from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from acclimate.data.formats import LabelledImage, LabelledSet
from acclimate.errors import AcclimateError
from acclimate.evaluate import average_precision, evaluate_detector, relabel
from acclimate.structures import Annotations, Detections
from brightness import BrightnessDetector


def labelled_set(classes: tuple[str, ...], images: list[LabelledImage]) -> LabelledSet:
    return LabelledSet("set", "coco", classes, tuple(images))


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 150, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, 90, (count, 2))], 1).astype(np.float32)


def random_set(seed: int, classes: int = 3, images: int = 12, ignore: bool = True):
    """A set in which class `classes - 1` has no box that counts, and predictions that are partly right."""
    rng = np.random.default_rng(seed)
    labelled, predictions = [], []
    for index in range(images):
        count = int(rng.integers(0, 7))
        boxes = random_boxes(rng, count)
        labels = rng.integers(0, classes - 1, count)
        ignored = rng.random(count) < (0.25 if ignore else 0)
        labels = np.where(ignored & (rng.random(count) < 0.5), -1, labels)
        labelled.append(LabelledImage(Path(f"{index}.png"), 240, 240, Annotations(boxes, labels, ignored)))
        near = boxes + rng.normal(0, 4, boxes.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        false = random_boxes(rng, int(rng.integers(0, 130 if index == 0 else 6)))
        found = np.concatenate([near, false])
        scores = np.sort(rng.integers(1, 30, len(found)) / 30)[::-1].astype(np.float32)  # with ties
        found_labels = np.concatenate([np.maximum(labels, 0), rng.integers(0, classes, len(false))]).astype(np.int64)
        order = rng.permutation(len(found))
        predictions.append(Detections(found[order], found_labels[order], scores))
    return labelled_set(tuple("abcdef"[:classes]), labelled), predictions


def reference(truth: LabelledSet, predictions: list[Detections]) -> COCOeval:
    def xywh(box: np.ndarray) -> list[float]:
        x1, y1, x2, y2 = (float(v) for v in box)
        return [x1, y1, x2 - x1, y2 - y1]

    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(truth.images):
        a = image.annotations
        for box, label, ignored in zip(a.boxes, a.labels, a.ignore, strict=True):
            for category in range(len(truth.classes)) if label < 0 else [int(label)]:
                wh = xywh(box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": category,
                        "bbox": wh,
                        "area": wh[2] * wh[3],
                        "iscrowd": int(ignored),
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = {
            "images": [{"id": i, "height": 240, "width": 240} for i in range(len(truth.images))],
            "categories": [{"id": i, "name": n} for i, n in enumerate(truth.classes)],
            "annotations": annotations,
        }
        gold.createIndex()
        found = gold.loadRes(
            [
                {"image_id": i, "category_id": int(label), "bbox": xywh(box), "score": float(score)}
                for i, one in enumerate(predictions)
                for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
            ]
        )
        evaluator = COCOeval(gold, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    truth, predictions = random_set(seed)
    ours = average_precision(predictions, truth, data="random", role="target", model="m")
    assert capfd.readouterr() == ("", "")
    theirs = reference(truth, predictions)
    assert (ours.ap, ours.ap50, ours.ap75) == pytest.approx(tuple(theirs.stats[:3]), abs=1e-9)
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    for index, name in enumerate(truth.classes):
        curves = precision[:, :, index]
        if (curves == -1).all():
            assert ours.classes[name].ap is None
            assert ours.classes[name].ap50 is None
        else:
            assert ours.classes[name].ap == pytest.approx(curves.mean(), abs=1e-9)
            assert ours.classes[name].ap50 == pytest.approx(curves[0].mean(), abs=1e-9)
    assert ours.classes["c"].boxes == 0
    assert ours.images == len(truth.images)
    assert (ours.data, ours.role, ours.model) == ("random", "target", "m")


def one_image(boxes: Any, labels: Any, ignore: Any, classes: tuple[str, ...] = ("a", "b")) -> LabelledSet:
    annotations = Annotations(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(ignore, bool)
    )
    return labelled_set(classes, [LabelledImage(Path("0.png"), 100, 100, annotations)])


def detections(*rows: tuple[tuple[float, ...], int, float]) -> Detections:
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float32),
    )


def test_perfect_predictions_give_one_and_none_give_zero() -> None:
    truth = one_image([(0, 0, 50, 50), (40, 40, 90, 99)], [0, 1], [False, False])
    perfect = detections(((0, 0, 50, 50), 0, 0.9), ((40, 40, 90, 99), 1, 0.8))
    assert average_precision([perfect], truth, data="d", role="source").ap == pytest.approx(1.0)
    nothing = average_precision([Detections.empty()], truth, data="d", role="source")
    assert (nothing.ap, nothing.ap50, nothing.ap75) == (0.0, 0.0, 0.0)
    assert nothing.classes["a"].ap == 0.0


def test_no_predictions_keep_absent_classes_undefined() -> None:
    truth = one_image([(0, 0, 50, 50)], [0], [False])
    nothing = average_precision([Detections.empty()], truth, data="d", role="source")
    assert nothing.classes["b"].ap is None
    assert nothing.classes["b"].ap50 is None


def test_detections_on_ignored_boxes_do_not_count() -> None:
    right = ((0, 0, 20, 20), 0, 0.5)
    on_ignored = ((60, 60, 80, 80), 0, 0.9)
    unknown = one_image([(0, 0, 20, 20), (50, 50, 99, 99)], [0, -1], [False, True])
    assert average_precision([detections(on_ignored, right)], unknown, data="d", role="source").ap == pytest.approx(1.0)
    of_b = one_image([(0, 0, 20, 20), (50, 50, 99, 99)], [0, 1], [False, True])
    assert average_precision([detections(on_ignored, right)], of_b, data="d", role="source").ap == pytest.approx(0.5)


def test_predictions_on_an_image_without_boxes_count_against() -> None:
    first = one_image([(0, 0, 20, 20)], [0], [False])
    empty = LabelledImage(Path("1.png"), 100, 100, Annotations.empty())
    truth = labelled_set(first.classes, [*first.images, empty])
    found = [detections(((0, 0, 20, 20), 0, 0.5)), detections(((0, 0, 20, 20), 0, 0.9))]
    assert average_precision(found, truth, data="d", role="source").ap == pytest.approx(0.5)


def test_a_set_without_boxes_is_one_clear_line() -> None:
    truth = one_image([(0, 0, 20, 20)], [-1], [True])
    with pytest.raises(AcclimateError, match="night: has no labelled box"):
        average_precision([Detections.empty()], truth, data="night", role="target")


def test_misuse_is_refused() -> None:
    truth = one_image([(0, 0, 20, 20)], [0], [False])
    with pytest.raises(ValueError, match="2 predictions for 1 images"):
        average_precision([Detections.empty()] * 2, truth, data="d", role="source")
    with pytest.raises(ValueError, match="label outside"):
        average_precision([detections(((0, 0, 9, 9), 2, 0.5))], truth, data="d", role="source")


def test_relabel_goes_by_name() -> None:
    found = detections(((0, 0, 9, 9), 0, 0.9), ((1, 1, 9, 9), 1, 0.8), ((2, 2, 9, 9), 2, 0.7))
    (renamed,) = relabel([found], ("car", "dog", "bus"), ("bus", "car"), "set")
    assert renamed.labels.tolist() == [1, 0]
    assert renamed.boxes[:, 0].tolist() == [0, 2]
    with pytest.raises(AcclimateError, match="night: the detector does not know the class lorry"):
        relabel([found], ("car",), ("car", "lorry"), "night")


def test_evaluate_detector(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    cv2.imwrite(str(path), np.full((64, 96, 3), 200, np.uint8))
    side = 32 * np.log(2)
    box = (16 - side, 16 - side, 16 + side, 16 + side)
    annotations = Annotations(np.array([box], np.float32).clip(0), np.array([0]), np.array([False]))
    truth = labelled_set(("b",), [LabelledImage(path, 64, 96, annotations)])
    evaluation = evaluate_detector(BrightnessDetector(), truth, "bright", "source")
    assert evaluation.ap == pytest.approx(1.0)
    assert evaluation.classes["b"].boxes == 1


def test_an_image_that_cannot_be_read_takes_no_part(tmp_path: Path) -> None:
    annotations = Annotations(np.array([(0, 0, 50, 50)], np.float32), np.array([0]), np.array([False]))
    images = [LabelledImage(tmp_path / f"{number}.png", 64, 96, annotations) for number in range(3)]
    truth = labelled_set(("a",), images)
    perfect = detections(((0, 0, 50, 50), 0, 0.9))
    evaluation = average_precision([perfect, None, perfect], truth, data="d", role="source")
    assert (evaluation.ap50, evaluation.images, evaluation.unreadable) == (pytest.approx(1.0), 2, 1)
    assert evaluation.classes["a"].boxes == 2
    with pytest.raises(AcclimateError, match="none of its 3 images can be read"):
        average_precision([None] * 3, truth, data="d", role="source")
    told: list[str] = []
    cv2.imwrite(str(images[0].path), np.full((64, 96, 3), 200, np.uint8))
    images[1].path.write_bytes(b"no image")
    detector_truth = labelled_set(("b",), images[:2])
    one = evaluate_detector(BrightnessDetector(), detector_truth, "d", "source", report=told.append)
    assert (one.images, one.unreadable) == (1, 1)
    assert "1.png" in told[0]


def scattered(count: int) -> tuple[LabelledSet, list[Detections]]:
    """Three classes with ignored boxes, and detections of distinct scores, some near boxes and some anywhere."""
    rng = np.random.default_rng(3)
    images, found = [], []
    for index in range(count):
        boxes = int(rng.integers(1, 8))
        corner, side = rng.uniform(0, 80, (boxes, 2)), rng.uniform(5, 20, (boxes, 2))
        xyxy = np.concatenate([corner, corner + side], 1).astype(np.float32)
        labels = rng.integers(0, 3, boxes)
        images.append(LabelledImage(Path(f"{index}.png"), 100, 100, Annotations(xyxy, labels, rng.random(boxes) < 0.1)))
        anywhere = np.sort(rng.uniform(0, 100, (6, 2, 2)), axis=1).reshape(-1, 4)
        near = xyxy + rng.normal(0, 2, xyxy.shape)
        scores = np.sort(rng.random(boxes + 6).astype(np.float32))[::-1]
        order = rng.permutation(boxes + 6)
        every, names = np.concatenate([near, anywhere]).astype(np.float32), np.append(labels, rng.integers(0, 3, 6))
        found.append(Detections(every[order], names[order], scores))
    return labelled_set(("a", "b", "c"), images), found


@pytest.mark.parametrize("drawn", [False, True])
def test_accumulating_anew_is_what_the_evaluator_says_of_the_drawn_images(drawn: bool) -> None:
    from acclimate import evaluate

    truth, found = scattered(40)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40)) if drawn else np.ones(40, np.int64)
    chosen = np.repeat(np.arange(40), weights)
    repeated = labelled_set(truth.classes, [truth.images[index] for index in chosen])
    expected = average_precision([found[index] for index in chosen], repeated, data="d", role="source")
    _, matched = evaluate._evaluated(found, truth)
    for name, one in matched.items():
        (ours,) = evaluate.accumulate(one.image, one.right, one.counts, one.boxes, weights[None])
        assert ours.mean() == pytest.approx(expected.classes[name].ap)
        assert ours[0] == pytest.approx(expected.classes[name].ap50)


def test_differences_are_paired_and_only_of_the_same_images() -> None:
    from acclimate.evaluate import ap50_interval, compare

    truth, found = scattered(40)
    one = average_precision(found, truth, data="d", role="source")
    again = average_precision(found[::-1], labelled_set(truth.classes, truth.images[::-1]), data="d", role="source")
    spread = ap50_interval(one)
    assert spread is not None
    assert spread[0] < one.ap50 < spread[1]
    same = compare(one, again)
    assert same is not None
    assert same.ap50.interval == pytest.approx((0, 0), abs=2e-5), "the draws go by names, not by the order"
    assert not compare(one, one).ap50.clear  # type: ignore[union-attr]
    blind = average_precision([Detections.empty()] * 40, truth, data="d", role="source")
    lost = compare(one, blind)
    assert lost is not None
    assert lost.ap50.clear
    assert lost.classes["a"].difference == -one.classes["a"].ap50  # type: ignore[operator]
    assert compare(one, one.model_copy(update={"digest": "other"})) is None
    few, found_few = scattered(5)
    assert average_precision(found_few, few, data="d", role="source").resamples is None
