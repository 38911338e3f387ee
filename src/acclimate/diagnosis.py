"""Where a detector is right and wrong on a labelled set: curves, thresholds, confusions, sizes, calibration, boxes.

Matching is that of COCO's protocol at an IoU of 0.5, as `evaluate` counts it; hotcoco does it, and the confusion matrix
and the calibration of scores (Guo et al. 2017, On Calibration of Modern Neural Networks) too. All of it is read from
labels after the fact: nothing is chosen by a diagnosis of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from acclimate.edge.images import Reading
from acclimate.evaluate import evaluator_of
from acclimate.run import Role, Run, listed, read_as
from acclimate.structures import Annotations, Detections

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet


FOLDER = "diagnoses"
"""Of a run: one file a set and model, under the names that its evaluations have."""
LEAST_SCORE = 0.1
"""Boxes of a lower score are counted in curves, and not listed image by image."""
SHOWN = 0.35
"""Score from which a box counts as shown: what `predict` reports unless told otherwise."""
POINTS = 101
"""At most so many points of a curve are kept."""
SIDES = (0.0, 8.0, 16.0, 32.0, 96.0)
"""Limits between sizes of objects: the square root of the area on the network's input, in pixels."""
BINS = 10

Box = tuple[float, float, float, float]


class Curve(BaseModel):
    """Precision and recall of one class at falling scores, as they are: not interpolated."""

    score: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]

    def f1(self) -> tuple[float, ...]:
        """Harmonic mean of precision and recall at each score; 0 where both are."""
        pairs = zip(self.precision, self.recall, strict=True)
        return tuple(2 * p * r / (p + r) if p + r > 0 else 0.0 for p, r in pairs)


class Threshold(BaseModel):
    """The score at which F1 is highest, and what is reached there."""

    score: float
    f1: float
    precision: float
    recall: float


class OfSize(BaseModel):
    """Objects whose side on the network's input, the root of their area, is from `low_px` to `high_px`."""

    low_px: float
    high_px: float | None
    """None has no upper limit."""
    boxes: int
    ap50: float | None
    """None where there is no such box."""


class Bin(BaseModel):
    """Detections with a score from `low` to `high`: how sure they were, and what share of them was right."""

    low: float
    high: float
    score: float
    right: float
    count: int


class Reliability(BaseModel):
    """`error` is the expected calibration error: the mean of |score - share that is right|, by number of detections."""

    error: float
    bins: tuple[Bin, ...]


class Seen(BaseModel):
    """One image: its true boxes that count, and the detections from `LEAST_SCORE` up that count.

    Boxes are xyxy in pixels of the image; labels are indices into the diagnosis's classes.
    """

    path: str
    width: int
    height: int
    truth: tuple[Box, ...] = ()
    truth_labels: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    finds: tuple[int, ...] = ()
    """Index of the true box that each found; -1 for a false one."""
    confuses: tuple[int, ...] = ()
    """Of a false one, index of the true box of another class that it lies on (IoU 0.5 or more); else -1."""


class Diagnosis(BaseModel):
    """What `diagnose` says of one model on one labelled set."""

    data: str
    role: Role
    model: str = "eager"
    digest: str = ""
    """Of the set, as its `Evaluation` has it."""
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) of the network's input."""
    reading: Reading = Reading()
    curves: dict[str, Curve]
    """Of each class that the set has a box of."""
    thresholds: dict[str, Threshold]
    """Of each class that anything was found of."""
    confusion: tuple[tuple[int, ...], ...]
    """(K + 1, K + 1), from the score `SHOWN` up: a row is a true class, a column what was detected; the last of each is
    the background."""
    sizes: tuple[OfSize, ...]
    reliability: Reliability | None
    """None where nothing was detected."""
    images: tuple[Seen, ...]


def diagnose(
    predictions: Sequence[Detections | None],
    truth: LabelledSet,
    *,
    data: str,
    role: Role,
    model: str = "eager",
    image_size: tuple[int, int],
) -> Diagnosis:
    """Diagnose predictions on a labelled set.

    Args:
        predictions: as of `evaluate.average_precision`.
        truth: the labelled images.
        data: the set's name.
        role: whose domain it is of.
        model: what made the predictions.
        image_size: (height, width) of the network's input, on which sizes of objects are told.
    """
    pairs = [(found, image) for found, image in zip(predictions, truth.images, strict=True) if found is not None]
    detections = [found for found, _ in pairs]
    whole, truth = truth, replace(truth, images=tuple(image for _, image in pairs))
    scales = [min(image_size[0] / image.height, image_size[1] / image.width) for image in truth.images]
    evaluator = evaluator_of(detections, truth)
    matches = [np.full(len(found), -1, np.int64) for found in detections]
    counts = [np.ones(len(found), bool) for found in detections]
    if evaluator is not None:
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluator.evaluate()
        matches, counts = _matches(evaluator.eval_imgs, detections, truth)
    curves, thresholds = {}, {}
    for label, name in enumerate(truth.classes):
        boxes = sum(int((_counting(image.annotations).labels == label).sum()) for image in truth.images)
        of_class = [found.labels == label for found in detections]
        scores = _joined(
            found.scores[own & good] for found, own, good in zip(detections, of_class, counts, strict=True)
        )
        right = _joined(found[own & good] >= 0 for found, own, good in zip(matches, of_class, counts, strict=True))
        if boxes:
            curves[name] = _curve(scores, right > 0, boxes)
        if boxes and right.any():
            thresholds[name] = _threshold(scores, right > 0, boxes)
    return Diagnosis(
        data=data,
        role=role,
        model=model,
        digest=whole.digest,
        classes=truth.classes,
        image_size=image_size,
        reading=truth.reading,
        curves=curves,
        thresholds=thresholds,
        confusion=_confusion(detections, counts, truth),
        sizes=_sizes(detections, truth, scales),
        reliability=_reliability(evaluator),
        images=tuple(
            _seen(image.path, (image.width, image.height), _counting(image.annotations), found[good], match[good])
            for image, found, match, good in zip(truth.images, detections, matches, counts, strict=True)
        ),
    )


def save(run: Run, name: str, diagnosis: Diagnosis) -> Path:
    """Write a diagnosis beside the evaluation of that name."""
    return run.write(f"{FOLDER}/{name}.json", diagnosis)


def saved(run: Run) -> list[Diagnosis]:
    """The diagnoses of a run, in the order of their files' names.

    Raises:
        AcclimateError: a file is damaged.
    """
    return [read_as(Diagnosis, file, "delete it and evaluate again") for file in listed(run.path / FOLDER, "*.json")]


def suggested(run: Run) -> dict[str, float]:
    """The score of each class at which F1 is highest on labelled images of the source; empty where none were looked at.

    Those of the target are not asked: its labels choose nothing.
    """
    for one in saved(run):
        if one.role == "source" and one.model == "eager":
            return {name: round(found.score, 4) for name, found in one.thresholds.items()}
    return {}


def _counting(annotations: Annotations) -> Annotations:
    keep = ~annotations.ignore
    return Annotations(annotations.boxes[keep], annotations.labels[keep], annotations.ignore[keep])


def _joined(parts: Iterator[NDArray[Any]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts])


def _matches(
    cells: Sequence[Any], detections: Sequence[Detections], truth: LabelledSet
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.bool_]]]:
    """Of each image and detection: which of the boxes that count it found, or -1; and whether it counts at all.

    A detection beyond the protocol's 100 an image and class was not looked at, and does not count.
    """
    first_detection = np.cumsum([1, *(len(found) for found in detections)])
    # An ignored box of unknown class stands for one of each class.
    spans = [[1 if label >= 0 else len(truth.classes) for label in image.annotations.labels] for image in truth.images]
    first_box = np.cumsum([1, *(sum(span) for span in spans)])
    places = []
    for image, span in zip(truth.images, spans, strict=True):
        own = np.full(sum(span), -1, np.int64)
        starts = np.cumsum([0, *span])[:-1][~image.annotations.ignore] if span else np.zeros(0, np.int64)
        own[starts] = np.arange(len(starts))
        places.append(own)
    matches = [np.full(len(found), -1, np.int64) for found in detections]
    counts = [np.zeros(len(found), bool) for found in detections]
    for cell in cells:
        if cell is None:
            continue
        image = cell["image_id"]
        ignored = cell["dtIgnore"][0] if cell["dtIds"] else []
        for identity, box, ignore in zip(cell["dtIds"], cell["dtMatches"][0], ignored, strict=True):
            place = identity - first_detection[image]
            counts[image][place] = not ignore
            if box and not ignore:
                matches[image][place] = places[image][box - first_box[image]]
    return matches, counts


def _order(scores: NDArray[np.float64], right: NDArray[np.bool_], boxes: int) -> tuple[NDArray[np.float64], ...]:
    """Scores that fall, and precision and recall of what has at least that score: one place for equal scores."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    return scores[last], hits[last] / (last + 1), hits[last] / boxes


def _curve(scores: NDArray[np.float64], right: NDArray[np.bool_], boxes: int) -> Curve:
    falling, precision, recall = _order(scores, right, boxes)
    some = np.unique(np.linspace(0, len(falling) - 1, min(POINTS, len(falling))).round().astype(int))
    kept = (tuple(values[some].round(4).tolist()) for values in (falling, precision, recall))
    return Curve(**dict(zip(("score", "precision", "recall"), kept, strict=True)))


def _threshold(scores: NDArray[np.float64], right: NDArray[np.bool_], boxes: int) -> Threshold:
    falling, precision, recall = _order(scores, right, boxes)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    # Half-way to the next lower score: a detection that moves by a rounding stays on its side.
    below = falling[best + 1] if best + 1 < len(falling) else falling[best]
    return Threshold(
        score=float((falling[best] + below) / 2),
        f1=float(f1[best]),
        precision=float(precision[best]),
        recall=float(recall[best]),
    )


def _confusion(
    detections: Sequence[Detections], counts: Sequence[NDArray[np.bool_]], truth: LabelledSet
) -> tuple[tuple[int, ...], ...]:
    shown = [found[good].above(SHOWN) for found, good in zip(detections, counts, strict=True)]
    # hotcoco's matrix knows no ignored box, so those, and what was found on them, are left out before.
    images = tuple(replace(image, annotations=_counting(image.annotations)) for image in truth.images)
    evaluator = evaluator_of(shown, replace(truth, images=images))
    if evaluator is not None:
        matrix = evaluator.confusion_matrix(iou_thr=0.5)["matrix"]
        return tuple(tuple(int(value) for value in row) for row in matrix)
    missed = [
        sum(int((image.annotations.labels == label).sum()) for image in images) for label in range(len(truth.classes))
    ]
    return tuple((*[0] * len(missed), count) for count in [*missed, 0])


def _sizes(detections: Sequence[Detections], truth: LabelledSet, scales: Sequence[float]) -> tuple[OfSize, ...]:
    sides = _joined(
        np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) * scale
        for image, scale in zip(truth.images, scales, strict=True)
        for boxes in [_counting(image.annotations).boxes.astype(np.float64)]
    )
    limits = list(zip(SIDES, [*SIDES[1:], np.inf], strict=True))
    evaluator = evaluator_of(detections, truth, scales)
    precision = None
    if evaluator is not None:
        evaluator.params.areaRng = [[low**2, min(high**2, 1e10)] for low, high in limits]
        evaluator.params.areaRngLbl = [f"{low:g}" for low, _ in limits]
        evaluator.evaluate()
        evaluator.accumulate()
        precision = np.asarray(evaluator.eval["precision"], np.float64)[0, :, :, :, -1]
    sizes = []
    for place, (low, high) in enumerate(limits):
        boxes = int(((sides >= low) & (sides < high)).sum())
        curves = precision[:, :, place] if precision is not None else np.zeros((1, 1))
        known = curves[:, (curves > -1).all(axis=0)]
        ap50 = float(known.mean()) if boxes and known.size else 0.0 if boxes else None
        sizes.append(OfSize(low_px=low, high_px=high if np.isfinite(high) else None, boxes=boxes, ap50=ap50))
    return tuple(sizes)


def _reliability(evaluator: Any | None) -> Reliability | None:
    if evaluator is None:
        return None
    found = evaluator.calibration(n_bins=BINS, iou_threshold=0.5)
    bins = tuple(
        Bin(
            low=one["bin_lower"],
            high=one["bin_upper"],
            score=one["avg_confidence"],
            right=one["avg_accuracy"],
            count=one["count"],
        )
        for one in found["bins"]
    )
    return Reliability(error=found["ece"], bins=bins)


def _seen(path: Path, size: tuple[int, int], truth: Annotations, found: Detections, matches: NDArray[np.int64]) -> Seen:
    shown = found.scores >= LEAST_SCORE
    found, matches = found[shown], matches[shown]
    return Seen(
        path=str(path),
        width=size[0],
        height=size[1],
        truth=_boxes(truth.boxes),
        truth_labels=tuple(truth.labels.tolist()),
        boxes=_boxes(found.boxes),
        labels=tuple(found.labels.tolist()),
        scores=tuple(found.scores.astype(np.float64).round(4).tolist()),
        finds=tuple(matches.tolist()),
        confuses=_confused(truth, found, matches),
    )


def _boxes(boxes: NDArray[np.float32]) -> tuple[Box, ...]:
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.astype(np.float64).round(1).tolist())


def _confused(truth: Annotations, found: Detections, matches: NDArray[np.int64]) -> tuple[int, ...]:
    from hotcoco import mask

    if not len(found) or not len(truth.boxes):
        return (-1,) * len(found)
    sides = [
        np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1).astype(np.float64) for b in (found.boxes, truth.boxes)
    ]
    overlaps = np.asarray(mask.iou(sides[0], sides[1], [False] * len(truth.boxes)))
    overlaps = np.where(found.labels[:, None] == truth.labels[None], 0.0, overlaps)
    best = overlaps.argmax(axis=1)
    return tuple(
        int(place) if match < 0 and overlaps[row, place] >= 0.5 else -1
        for row, (place, match) in enumerate(zip(best, matches, strict=True))
    )
