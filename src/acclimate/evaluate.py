"""COCO average precision.

AP is the COCO protocol (101 recall points, IoU 0.50:0.05:0.95, all areas, at most 100 detections an image) as
hotcoco computes it; the tests hold it against pycocotools.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from acclimate.errors import AcclimateError
from acclimate.run import ClassAP, Evaluation
from acclimate.structures import Annotations, Detections

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)


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

    precision = _precision(detections, truth)
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
    """COCO AP of an eager detector, where it is; see `models.predict` and `average_precision`.

    Raises:
        AcclimateError: the set has a class that the detector does not know, or no box that counts.
    """
    from acclimate.models.predict import predict

    found = predict(detector, [image.path for image in truth.images], batch_size=batch_size, report=report)
    renamed = relabel(found, detector.spec.classes, truth.classes, data)
    return average_precision(renamed, truth, data=data, role=role, model=model)


def relabel(
    predictions: Sequence[Detections | None], classes: Sequence[str], wanted: Sequence[str], data: str
) -> list[Detections | None]:
    """Predictions with labels into `wanted` instead of `classes`, matched by name; other classes' boxes go.

    Raises:
        AcclimateError: `wanted`, the classes of the set named `data`, has one that is not in `classes`.
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


def _precision(predictions: Sequence[Detections], truth: LabelledSet) -> NDArray[np.float64]:
    """Interpolated precision (10 IoU thresholds, 101 recalls, classes); -1 where it is undefined."""
    from hotcoco import COCO, COCOeval

    names = [{"id": index, "name": name} for index, name in enumerate(truth.classes)]
    images = [
        {"id": index, "file_name": str(index), "height": image.height, "width": image.width}
        for index, image in enumerate(truth.images)
    ]
    rows = [
        (index, label, box, ignored)
        for index, image in enumerate(truth.images)
        for label, box, ignored in _boxes(image.annotations, len(truth.classes))
    ]
    corner_and_size = _xywh(np.array([box for _, _, box, _ in rows]))
    gold = COCO.from_arrays(
        images,
        names,
        np.array([index for index, _, _, _ in rows], np.int64),
        np.array([label for _, label, _, _ in rows], np.int64),
        corner_and_size,
        iscrowd=np.array([ignored for _, _, _, ignored in rows], np.int64),
    )
    table = np.concatenate(
        [np.zeros((0, 7))]
        + [
            np.column_stack([np.full(len(found), index), _xywh(found.boxes), found.scores, found.labels])
            for index, found in enumerate(predictions)
        ]
    )
    if not len(table):
        undefined = np.bincount([label for _, label, _, ignored in rows if not ignored], minlength=len(names)) == 0
        return np.where(undefined, -1.0, np.zeros((10, 101, 1)))
    evaluator = COCOeval(gold, gold.load_res(table), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    curves: Any = evaluator.eval
    return np.asarray(curves["precision"], np.float64)[:, :, :, 0, -1]


def _boxes(annotations: Annotations, classes: int) -> Iterator[tuple[int, NDArray[np.float32], bool]]:
    for box, label, ignored in zip(annotations.boxes, annotations.labels, annotations.ignore, strict=True):
        for one in [int(label)] if label >= 0 else range(classes):
            yield one, box, bool(ignored)


def _xywh(boxes: NDArray[Any]) -> NDArray[np.float64]:
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
