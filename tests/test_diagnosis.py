"""Diagnoses, against closed formulas, scikit-learn's curves and the evaluation that they belong to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from acclimate import diagnosis
from acclimate.data.formats.raw import LabelledImage, LabelledSet
from acclimate.diagnosis import diagnose
from acclimate.errors import AcclimateError
from acclimate.evaluate import average_precision
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations, Detections

Row = tuple[tuple[float, float, float, float], int]


def labelled(images: list[list[tuple[tuple[float, float, float, float], int, bool]]]) -> LabelledSet:
    """Images of 200 x 100 (height, width) with boxes (xyxy, label, ignored) of the classes a and b."""
    made = tuple(
        LabelledImage(
            Path(f"{index}.jpg"),
            200,
            100,
            Annotations(
                np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
                np.array([label for _, label, _ in rows], np.int64),
                np.array([ignored for _, _, ignored in rows], bool),
            ),
        )
        for index, rows in enumerate(images)
    )
    return LabelledSet("set", "coco", ("a", "b"), made)


def seen(*rows: tuple[tuple[float, float, float, float], int, float]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([score for _, _, score in rows], np.float32),
    )


A, B, FAR = (0.0, 0.0, 10.0, 10.0), (40.0, 40.0, 60.0, 60.0), (80.0, 0.0, 90.0, 10.0)


def test_every_box_has_its_outcome() -> None:
    truth = labelled([[(A, 0, False), (B, 1, False)], [(A, 0, True), (B, 0, False)], []])
    found = [
        seen((A, 0, 0.9), (B, 0, 0.8), (FAR, 1, 0.5), (A, 0, 0.05)),
        seen((A, 0, 0.7), (B, 0, 0.6)),
        seen((FAR, 1, 0.95)),
    ]
    result = diagnose(found, truth, data="d", role="target", image_size=(200, 100))
    first, second, third = result.images
    assert first.finds == (0, -1, -1)
    assert first.confuses == (-1, 1, -1)
    # What lies on an ignored box counts neither way, and of the second image the box that counts is number 0.
    assert second.truth == (B,)
    assert second.scores == pytest.approx((0.6,))
    assert second.finds == (0,)
    assert third.finds == (-1,)
    # True a: two found; true b: one taken for a; two false b.
    assert result.confusion == ((2, 0, 0), (1, 0, 0), (0, 2, 0))


def test_a_box_of_unknown_class_that_is_ignored_shifts_no_match() -> None:
    truth = labelled([[(FAR, -1, True), (A, 0, False)], [(B, 1, False)]])
    found = [seen((A, 0, 0.9), (FAR, 1, 0.8)), seen((B, 1, 0.7))]
    result = diagnose(found, truth, data="d", role="target", image_size=(200, 100))
    assert [one.finds for one in result.images] == [(0,), (0,)]
    assert result.confusion == ((1, 0, 0), (0, 1, 0), (0, 0, 0))


def test_curves_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    right = random.random(60) < 0.6
    scores = random.permutation(60) / 61 + 0.001
    # An image each: a detection on the box, or beside it.
    truth = labelled([[(A, 0, False)] for _ in right])
    found = [seen((A if hit else FAR, 0, score)) for hit, score in zip(right, scores, strict=True)]
    curve = diagnose(found, truth, data="d", role="target", image_size=(200, 100)).curves["a"]
    precision, recall, at = precision_recall_curve(right, scores.astype(np.float32))
    # scikit-learn's recall is of the objects that are there, which is those that were hit; ours of all 60 boxes.
    np.testing.assert_allclose(curve.score[::-1], at, atol=1e-4)
    np.testing.assert_allclose(curve.precision[::-1], precision[:-1], atol=1e-4)
    np.testing.assert_allclose(curve.recall[::-1], recall[:-1] * right.sum() / 60, atol=1e-4)


def test_the_threshold_is_where_f1_is_highest() -> None:
    truth = labelled([[(A, 0, False)], [(A, 0, False)], [(A, 0, False)], []])
    found = [seen((A, 0, 0.9)), seen((A, 0, 0.8)), seen((A, 0, 0.3)), seen((FAR, 0, 0.5), (B, 0, 0.6))]
    at = diagnose(found, truth, data="d", role="target", image_size=(200, 100)).thresholds["a"]
    # 2 right of 2 shown: F1 = 2 * 1 * 2/3 / (1 + 2/3) = 0.8; with all, 2 * 0.6 * 1 / 1.6 = 0.75.
    assert at.f1 == pytest.approx(0.8)
    assert (at.precision, at.recall) == pytest.approx((1.0, 2 / 3))
    assert at.score == pytest.approx(0.7)


def test_a_curve_of_many_scores_stays_small() -> None:
    scores = np.linspace(0.9, 0.1, 1000)
    truth = labelled([[(A, 0, False)] for _ in scores])
    found = [seen((A, 0, score)) for score in scores]
    curve = diagnose(found, truth, data="d", role="target", image_size=(200, 100)).curves["a"]
    assert len(curve.score) == diagnosis.POINTS
    assert curve.recall[-1] == 1.0


def test_sizes_are_those_on_the_networks_input() -> None:
    small, large = (0.0, 0.0, 12.0, 12.0), (50.0, 10.0, 100.0, 60.0)
    truth = labelled([[(small, 0, False), (large, 0, False)]])
    found = [seen((large, 0, 0.9))]
    at_home = diagnose(found, truth, data="d", role="target", image_size=(200, 100)).sizes
    assert [(one.low_px, one.boxes, one.ap50) for one in at_home if one.boxes] == [(8, 1, 0), (32, 1, pytest.approx(1))]
    halved = diagnose(found, truth, data="d", role="target", image_size=(100, 50)).sizes
    assert [(one.low_px, one.boxes) for one in halved if one.boxes] == [(0, 1), (16, 1)]
    assert sum(one.boxes for one in at_home) == 2
    assert all(one.ap50 is None for one in at_home if not one.boxes)


def test_calibration_is_the_share_that_is_right() -> None:
    truth = labelled([[(A, 0, False)] for _ in range(10)])
    found = [seen((A if index < 7 else FAR, 0, 0.95)) for index in range(10)]
    result = diagnose(found, truth, data="d", role="target", image_size=(200, 100)).reliability
    assert result is not None
    assert result.error == pytest.approx(0.25, abs=1e-6)
    (filled,) = [one for one in result.bins if one.count]
    assert (filled.count, filled.right) == (10, pytest.approx(0.7))
    assert filled.score == pytest.approx(0.95)


def test_a_detector_that_sees_nothing_is_diagnosed_too() -> None:
    truth = labelled([[(A, 0, False), (B, 1, False)], []])
    result = diagnose([Detections.empty(), None], truth, data="d", role="target", image_size=(200, 100))
    assert result.confusion == ((0, 0, 1), (0, 0, 1), (0, 0, 0))
    assert result.reliability is None
    assert not result.thresholds
    assert len(result.images) == 1
    assert [one.ap50 for one in result.sizes if one.boxes] == [0.0, 0.0]


def test_the_area_under_the_curve_is_the_evaluations_ap() -> None:
    random = np.random.default_rng(1)
    boxes = [(float(x), float(y), float(x + 20), float(y + 20)) for x, y in random.integers(0, 70, (40, 2))]
    truth = labelled([[(box, int(label), False)] for box, label in zip(boxes, random.integers(0, 2, 40), strict=True)])
    found = [
        seen(
            *[
                (tuple(np.array(box) + random.normal(0, 3, 4)), int(random.integers(0, 2)), float(random.random()))
                for _ in range(3)
            ]
        )  # type: ignore[misc]
        for box in boxes
    ]
    ap50 = average_precision(found, truth, data="d", role="target").classes["a"].ap50
    curve = diagnose(found, truth, data="d", role="target", image_size=(200, 100)).curves["a"]
    # COCO's 101 points: the best precision at that recall or more.
    best = [
        max((p for p, r in zip(curve.precision, curve.recall, strict=True) if r >= at - 1e-4), default=0.0)
        for at in np.linspace(0, 1, 101)
    ]
    assert np.mean(best) == pytest.approx(ap50, abs=2e-3)


def test_suggested_thresholds_come_from_the_source(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Manifest(verb="train"))
    truth = labelled([[(A, 0, False)]])
    assert diagnosis.suggested(run) == {}
    for role, score in (("target", 0.9), ("source", 0.6)):
        one = diagnose([seen((A, 0, score))], truth, data=f"{role}_test", role=role, image_size=(200, 100))  # type: ignore[arg-type]
        diagnosis.save(run, f"{role}_test", one)
        assert diagnosis.suggested(run) == ({} if role == "target" else {"a": pytest.approx(0.6)})
    assert [one.role for one in diagnosis.saved(run)] == ["source", "target"]
    assert math.isclose(diagnosis.saved(run)[0].curves["a"].f1()[0], 1.0)
    (run.path / "diagnoses" / "source_test.json").write_text("{}")
    with pytest.raises(AcclimateError, match=r"source_test\.json: damaged .* evaluate again"):
        diagnosis.saved(run)
