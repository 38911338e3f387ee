"""COCO average precision, and how far chance could have moved it.

AP is the COCO protocol (101 recall points, IoU 0.50:0.05:0.95, all areas, at most 100 detections an image) as
hotcoco computes it; the tests hold it against pycocotools. Its uncertainty is the percentile bootstrap over images
(Efron 1979): images are drawn with replacement, and precision is accumulated anew from the detections that the
evaluator has matched once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from acclimate.errors import AcclimateError
from acclimate.run import ClassAP, Evaluation, Resamples
from acclimate.structures import Annotations, Detections, View

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.edge.artifact import Tiles
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)

RESAMPLES = 300
"""Draws of the bootstrap."""
SEED = 0
"""Of the draws. It is the same everywhere: draws of two models on the same images belong together, pair by pair."""
FEWEST_IMAGES = 10
"""Of fewer images, draws are too alike to say anything about other images."""
CONFIDENCE = 0.95
CELLS = 4_000_000
"""Numbers that the bootstrap holds in one array, so that large sets fit into memory."""

Interval = tuple[float, float]


class Change(BaseModel):
    """A difference of AP between two models on the same images, 0..1."""

    before: float
    after: float
    interval: Interval | None = None
    """Of the difference, 95 %; None where it cannot be told."""

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def clear(self) -> bool:
        """Whether the interval is on one side of zero: another draw of images would hardly turn it round."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


class Comparison(BaseModel):
    """What changed from one model to another."""

    ap: Change
    ap50: Change
    classes: dict[str, Change]
    """AP50 of each class that the set has a box of."""


def average_precision(
    predictions: Sequence[Detections | None],
    truth: LabelledSet,
    *,
    data: str,
    role: Literal["source", "target"],
    model: str = "eager",
) -> Evaluation:
    """COCO AP of `predictions` on a labelled set; the mean is over the classes that have a box.

    An ignored box takes no part: detections on it (more than IoU of their own area) count neither for nor
    against, for its class, or for every class where its class is unknown (label -1).

    Args:
        predictions: one an image of `truth`, in its order; boxes in the pixels of the original image, labels
            into `truth.classes`. None is an image that could not be read: it takes no part, and is counted.
        truth: the labelled images.
        data: the set's name, as the report shows it.
        role: which domain the set is.
        model: what made the predictions, "eager" or an artifact's name.

    Examples:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from acclimate import DataConfig, Detections
        >>> from acclimate.data import formats
        >>> from acclimate.evaluate import average_precision
        >>> truth = formats.read(DataConfig(path=Path("scenes/fog-test")))
        >>> counted = [image.annotations[~image.annotations.ignore] for image in truth.images]
        >>> perfect = [Detections(one.boxes, one.labels, np.ones(len(one), np.float32)) for one in counted]
        >>> average_precision(perfect, truth, data="fog-test", role="target").ap50
        1.0

    Raises:
        AcclimateError: the set has no box that counts, so AP is not defined; or no image could be read.
        ValueError: not one prediction an image, or a label outside the classes.
    """
    if len(predictions) != len(truth.images):
        raise ValueError(f"{len(predictions)} predictions for {len(truth.images)} images")
    unreadable = sum(found is None for found in predictions)
    read = [(found, image) for found, image in zip(predictions, truth.images, strict=True) if found is not None]
    if unreadable and not read:
        raise AcclimateError(f"{data}: none of its {unreadable} images can be read; copy the data again")
    detections = [found for found, _ in read]
    truth = replace(truth, images=tuple(image for _, image in read)) if unreadable else truth
    classes = len(truth.classes)
    if any(len(found) and not 0 <= found.labels.min() <= found.labels.max() < classes for found in detections):
        raise ValueError(f"a prediction has a label outside 0..{classes - 1}")
    boxes = np.zeros(classes, np.int64)
    for image in truth.images:
        annotations = image.annotations
        boxes += np.bincount(annotations.labels[~annotations.ignore], minlength=classes)
    if not boxes.any():
        raise AcclimateError(f"{data}: has no labelled box of the classes {', '.join(truth.classes)}; AP is undefined")

    precision, matched = _evaluated(detections, truth)
    per_class = {}
    for index, name in enumerate(truth.classes):
        curves = precision[:, :, index]
        present = bool(boxes[index])
        per_class[name] = ClassAP(
            ap=float(curves.mean()) if present else None,
            ap50=float(curves[0].mean()) if present else None,
            boxes=int(boxes[index]),
        )
    present_curves = precision[:, :, boxes > 0]
    return Evaluation(
        data=data,
        role=role,
        model=model,
        images=len(truth.images),
        unreadable=unreadable,
        ap=float(present_curves.mean()),
        ap50=float(present_curves[0].mean()),
        ap75=float(present_curves[5].mean()),
        classes=per_class,
        digest=truth.digest,
        resamples=_bootstrap(matched, truth),
    )


def mask_average_precision(
    predictions: Sequence[tuple[Detections, Sequence[Mapping[str, Any]]] | None], truth: LabelledSet
) -> tuple[float, float]:
    """COCO AP and AP50 of masks, 0..1; a mean over the classes that have an object with an outline.

    Args:
        predictions: one an image of `truth`: what was found, with labels into its classes, and the mask of each as
            COCO's run lengths; None where an image could not be read, which then takes no part.
        truth: labelled images with outlines; an object without one takes no part.

    Raises:
        AcclimateError: no object that counts has an outline.
    """
    from hotcoco import COCO, COCOeval
    from hotcoco import mask as coco

    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for index, (image, found) in enumerate(zip(truth.images, predictions, strict=True)):
        if found is None:
            continue
        images.append({"id": index, "file_name": str(index), "height": image.height, "width": image.width})
        own = image.annotations
        for box, label, ignored, outline in zip(own.boxes, own.labels, own.ignore, own.outlines or (), strict=True):
            if outline and label >= 0:
                polygons = [polygon.ravel().astype(float).tolist() for polygon in outline]
                merged = coco.merge(coco.frPyObjects(polygons, image.height, image.width))
                named = {"id": len(objects) + 1, "image_id": index, "category_id": int(label), "iscrowd": int(ignored)}
                shape = {"segmentation": merged, "area": float(coco.area(merged)), "bbox": _xywh(box[None])[0].tolist()}
                objects.append(named | shape)
        detections, masks = found
        results += [
            {"image_id": index, "category_id": int(label), "score": float(score), "segmentation": mask}
            for label, score, mask in zip(detections.labels, detections.scores, masks, strict=True)
        ]
    if not any(not one["iscrowd"] for one in objects):
        raise AcclimateError("no object of the set has an outline, so AP of masks is not defined")
    if not results:
        return 0.0, 0.0
    names = [{"id": index, "name": name} for index, name in enumerate(truth.classes)]
    gold = COCO({"images": images, "categories": names, "annotations": objects})
    run = COCOeval(gold, gold.load_res(results), "segm")
    run.run()
    return float(run.stats[0]), float(run.stats[1])


def interval(resamples: str | NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of the draws (R,); None where more than half of them have no value."""
    values = _decoded(resamples) if isinstance(resamples, str) else resamples
    known = values[np.isfinite(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.percentile(known, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def ap50_draws(evaluation: Evaluation) -> NDArray[np.float64] | None:
    """The AP50 of each draw of images (R,), 0..1; NaN for a draw that has none. None where nothing was drawn."""
    resamples = evaluation.resamples
    return None if resamples is None or resamples.ap50 is None else _decoded(resamples.ap50)


def ap50_interval(evaluation: Evaluation) -> Interval | None:
    """Of the AP50; None where it cannot be told."""
    return interval(evaluation.resamples.ap50) if evaluation.resamples is not None else None


def told(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation for JSON, with intervals in the place of the draws that they are made of."""
    draws = evaluation.resamples
    return {
        **evaluation.model_dump(mode="json", exclude={"resamples"}),
        "ap50_interval": ap50_interval(evaluation),
        "ap_interval": ap_interval(evaluation),
        "class_ap50_intervals": {name: interval(text) for name, text in draws.classes.items()} if draws else {},
    }


def ap_interval(evaluation: Evaluation) -> Interval | None:
    """Of the AP; None where it cannot be told."""
    return interval(evaluation.resamples.ap) if evaluation.resamples is not None else None


def compare(before: Evaluation, after: Evaluation) -> Comparison | None:
    """What changed, with intervals where both were drawn from the same images; None for sets that are known to differ.

    Differences are paired: in each draw both models are seen on the same images.
    """
    if before.digest and after.digest and before.digest != after.digest:
        return None
    first, second = before.resamples, after.resamples
    paired = first is not None and second is not None and before.digest == after.digest != ""

    def change(old: float, new: float, pick: Callable[[Resamples], str | None]) -> Change:
        told = [pick(one) for one in (first, second) if one is not None] if paired else []
        texts = [text for text in told if text is not None]
        spread = interval(_decoded(texts[1]) - _decoded(texts[0])) if len(texts) == 2 else None
        return Change(before=old, after=new, interval=spread)

    classes = {}
    for name, new in after.classes.items():
        old = before.classes.get(name)
        if old is not None and old.ap50 is not None and new.ap50 is not None:
            classes[name] = change(old.ap50, new.ap50, lambda one, name=name: one.classes.get(name))  # type: ignore[misc]
    return Comparison(
        ap=change(before.ap, after.ap, lambda one: one.ap),
        ap50=change(before.ap50, after.ap50, lambda one: one.ap50),
        classes=classes,
    )


def evaluate_detector(
    detector: Detector,
    truth: LabelledSet,
    data: str,
    role: Literal["source", "target"],
    model: str = "eager",
    *,
    batch_size: int = 16,
    report: Callable[[str], None] = log.warning,
) -> Evaluation:
    """COCO AP of an eager detector; see `models.predict` and `average_precision`.

    Args:
        detector: as it is, on its device.
        truth: the labelled images.
        data: the set's name.
        role: whose domain it is of.
        model: the name under which the numbers are shown.
        batch_size: images a forward pass.
        report: told of images that cannot be read.

    Raises:
        AcclimateError: the set has a class that the detector does not know, or no box that counts.
    """
    found = predictions_of(detector, truth, data, batch_size=batch_size, report=report)
    return average_precision(found, truth, data=data, role=role, model=model)


def predictions_of(
    detector: Detector,
    truth: LabelledSet,
    data: str,
    *,
    batch_size: int = 16,
    report: Callable[[str], None] = log.warning,
    view: View | None = None,
    tiles: Tiles | None = None,
) -> list[Detections | None]:
    """What an eager detector sees in the images of a set, with labels into the set's classes.

    Args:
        detector: as it is, on its device.
        truth: the images, and the classes of the set.
        data: the set's name, for the message.
        batch_size: images a forward pass.
        report: told of images that cannot be read.
        view: how they are looked at; as they are where None.
        tiles: how they are cut before the detector sees them.

    Raises:
        AcclimateError: the set has a class that the detector does not know, or the view is not for this detector.
    """
    from acclimate.models.predict import PLAIN, predict

    paths = [image.path for image in truth.images]
    found = predict(detector, paths, batch_size=batch_size, report=report, view=view or PLAIN, tiles=tiles)
    return relabel(found, detector.spec.classes, truth.classes, data)


def relabel(
    predictions: Sequence[Detections | None], classes: Sequence[str], wanted: Sequence[str], data: str
) -> list[Detections | None]:
    """Predictions with the labels of another list of classes, matched by name; other classes' boxes go.

    Args:
        predictions: one an image; None for one that could not be read.
        classes: what their labels mean.
        wanted: the classes of the set.
        data: the set's name, for the message.

    Raises:
        AcclimateError: the set has a class that is not in `classes`.
    """
    unknown = [name for name in wanted if name not in classes]
    if unknown:
        raise AcclimateError(
            f"{data}: the detector does not know the class{'es' * (len(unknown) > 1)} {', '.join(unknown)}; it knows "
            f"{', '.join(classes)}. Rename, ignore or drop classes with the data set's `classes`, `ignore` or `drop`"
        )
    if tuple(classes) == tuple(wanted):
        return list(predictions)
    table = np.array([wanted.index(name) if name in wanted else -1 for name in classes], np.int64)
    renamed: list[Detections | None] = []
    for found in predictions:
        if found is None:
            renamed.append(None)
            continue
        labels = table[found.labels]
        renamed.append(Detections(found.boxes, labels, found.scores)[labels >= 0])
    return renamed


@dataclass(frozen=True)
class _Matched:
    """The detections of one class, best first, as the evaluator matched them at its T IoU thresholds.

    Attributes:
        image: (D,) index of the image of each.
        right: (T, D) whether it is the one that found a box.
        counts: (T, D) whether it counts, for or against.
        boxes: (N,) how many boxes of the class each image has that count.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def evaluator_of(
    predictions: Sequence[Detections], truth: LabelledSet, scales: Sequence[float] | None = None
) -> Any | None:
    """hotcoco's evaluator over detections and true boxes, not run yet; None where nothing was detected.

    Its image ids are indices into `truth.images`, its category ids into `truth.classes`. Ids of detections and of true
    boxes count from 1, in the order of the images and of their boxes.

    Args:
        predictions: one an image, labels into `truth.classes`.
        truth: the labelled images; a box of unknown class (-1) that is ignored counts once for each class.
        scales: what boxes of each image are multiplied by; None leaves them in pixels of the image.
    """
    from hotcoco import COCO, COCOeval

    factors = [1.0] * len(truth.images) if scales is None else scales
    names = [{"id": index, "name": name} for index, name in enumerate(truth.classes)]
    images = [
        {"id": index, "file_name": str(index), "height": image.height, "width": image.width}
        for index, image in enumerate(truth.images)
    ]
    rows = [
        (index, label, box * factors[index], ignored)
        for index, image in enumerate(truth.images)
        for label, box, ignored in _boxes(image.annotations, len(truth.classes))
    ]
    gold = COCO.from_arrays(
        images,
        names,
        np.array([index for index, _, _, _ in rows], np.int64),
        np.array([label for _, label, _, _ in rows], np.int64),
        _xywh(np.array([box for _, _, box, _ in rows])),
        iscrowd=np.array([ignored for _, _, _, ignored in rows], np.int64),
    )
    table = np.concatenate(
        [np.zeros((0, 7))]
        + [
            np.column_stack(
                [np.full(len(found), index), factors[index] * _xywh(found.boxes), found.scores, found.labels]
            )
            for index, found in enumerate(predictions)
        ]
    )
    return COCOeval(gold, gold.load_res(table), "bbox") if len(table) else None


def _evaluated(
    predictions: Sequence[Detections], truth: LabelledSet
) -> tuple[NDArray[np.float64], dict[str, _Matched]]:
    """Interpolated precision (10 IoU thresholds, 101 recalls, classes), -1 where it is undefined; and what was matched
    of each class."""
    boxes = np.zeros((len(truth.classes), len(truth.images)), np.int64)
    for index, image in enumerate(truth.images):
        for label, _, ignored in _boxes(image.annotations, len(truth.classes)):
            boxes[label, index] += not ignored
    evaluator = evaluator_of(predictions, truth)
    if evaluator is None:
        nothing = np.zeros((10, 0), bool)
        matched = {
            name: _Matched(np.zeros(0, np.int64), nothing, nothing, boxes[label])
            for label, name in enumerate(truth.classes)
        }
        return np.where(boxes.sum(1) == 0, -1.0, np.zeros((10, 101, 1))), matched
    # One range of areas: the smaller ones would be matched likewise, and nobody reads them.
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0.0, 1e10]], ["all"]
    evaluator.evaluate()
    evaluator.accumulate()
    curves: Any = evaluator.eval
    found = _matched(evaluator.eval_imgs, truth.classes, boxes)
    return np.asarray(curves["precision"], np.float64)[:, :, :, 0, -1], found


def _matched(
    cells: Sequence[Mapping[str, Any] | None], classes: Sequence[str], boxes: NDArray[np.int64]
) -> dict[str, _Matched]:
    """What the evaluator says of each image and class, class by class."""
    grouped: dict[int, list[Mapping[str, Any]]] = {label: [] for label in range(len(classes))}
    for cell in cells:
        if cell is not None and cell["dtScores"]:
            grouped[cell["category_id"]].append(cell)
    found = {}
    for label, name in enumerate(classes):
        own = sorted(grouped[label], key=lambda cell: cell["image_id"])
        image = np.repeat([cell["image_id"] for cell in own], [len(cell["dtScores"]) for cell in own]).astype(np.int64)
        scores = np.concatenate([np.zeros(0), *(np.asarray(cell["dtScores"], np.float64) for cell in own)])
        nothing = np.zeros((10, 0), bool)
        ignored = np.concatenate([nothing, *(np.asarray(cell["dtIgnore"], bool) for cell in own)], axis=1)
        right = np.concatenate([nothing, *(np.asarray(cell["dtMatched"], bool) for cell in own)], axis=1) & ~ignored
        # As the protocol sorts: equal scores stay in the order of the images.
        order = np.argsort(-scores, kind="stable")
        found[name] = _Matched(image[order], right[:, order], ~ignored[:, order], boxes[label])
    return found


def _bootstrap(matched: Mapping[str, _Matched], truth: LabelledSet) -> Resamples | None:
    """The APs of `RESAMPLES` draws of images; None for too few images.

    Which images a draw holds goes by their names, in whatever order a reader lists them.
    """
    count = len(truth.images)
    if count < FEWEST_IMAGES:
        return None
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.empty_like(draws)
    weights[:, np.argsort([image.path.name for image in truth.images], kind="stable")] = draws
    present = {name: one for name, one in matched.items() if one.boxes.any()}
    # (classes, draws, thresholds), NaN for a draw without a box of the class.
    found = np.stack([accumulate(one.image, one.right, one.counts, one.boxes, weights) for one in present.values()])
    absent = np.asarray(np.isnan(found[:, :, 0]).all(axis=0), bool)
    some = np.where(absent[None, :, None], 0.0, found)
    ap, ap50 = np.nanmean(some, axis=(0, 2)), np.nanmean(some[:, :, 0], axis=0)
    return Resamples(
        ap=_encoded(np.where(absent, np.nan, ap)),
        ap50=_encoded(np.where(absent, np.nan, ap50)),
        classes={name: _encoded(found[index, :, 0]) for index, name in enumerate(present)},
    )


def accumulate(
    image: NDArray[np.int64],
    right: NDArray[np.bool_],
    counts: NDArray[np.bool_],
    boxes: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> NDArray[np.float64]:
    """AP of one class where each image counts several times or not at all.

    Args:
        image: (D,) the image of each detection, best detection first.
        right: (T, D) whether it found a box, at each of T IoU thresholds.
        counts: (T, D) whether it counts, for or against.
        boxes: (N,) boxes of the class that count, by image.
        weights: (B, N) how often each image counts, in B draws.

    Returns:
        (B, T); NaN where a draw has no box.
    """
    result = np.zeros((len(weights), len(right)))
    recalls = np.linspace(0, 1, 101)
    chunk = max(1, CELLS // max(1, len(image)))
    for start in range(0, len(weights), chunk):
        drawn = weights[start : start + chunk]
        total = (drawn @ boxes).astype(np.float64)
        often = drawn[:, image]
        all_count = bool(counts.all())
        seen = np.cumsum(often, axis=1) if all_count else None
        for level in range(len(right)):
            # Precision is highest, and recall grows, at detections that are right; no other place matters.
            at = np.flatnonzero(right[level])
            if not len(at):
                continue
            hits = np.cumsum(often[:, at], axis=1)
            shown = (seen if seen is not None else np.cumsum(often * counts[level], axis=1))[:, at]
            precision = hits / np.maximum(shown, 1)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(recalls, hits / np.maximum(total, 1)[:, None], side="right")
            result[start : start + chunk, level] = (best * np.diff(reached, axis=1, prepend=0)).sum(1) / len(recalls)
        result[start : start + chunk][total == 0] = np.nan
    return result


def _encoded(values: NDArray[np.float64]) -> str:
    return " ".join("-" if np.isnan(value) else str(round(1e5 * value)) for value in values)


def _decoded(text: str) -> NDArray[np.float64]:
    return np.array([np.nan if word == "-" else int(word) / 1e5 for word in text.split()])


def _boxes(annotations: Annotations, classes: int) -> Iterator[tuple[int, NDArray[np.float32], bool]]:
    for box, label, ignored in zip(annotations.boxes, annotations.labels, annotations.ignore, strict=True):
        for one in [int(label)] if label >= 0 else range(classes):
            yield one, box, bool(ignored)


def _xywh(boxes: NDArray[Any]) -> NDArray[np.float64]:
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
