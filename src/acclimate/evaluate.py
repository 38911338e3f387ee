"""COCO average precision, and the eager detections it is computed from.

AP is the COCO protocol (101 recall points, IoU 0.50:0.05:0.95, all areas, at most 100 detections an image) as
hotcoco computes it; the tests hold it against pycocotools.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.decode import decode
from acclimate.edge.images import Letterbox, letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.run import ClassAP, Evaluation
from acclimate.structures import Annotations, Detections, Image

if TYPE_CHECKING:
    import torch

    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)


def average_precision(
    predictions: Sequence[Detections],
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
            into `truth.classes`.
        truth: the labelled images.
        data: the set's name, as the report shows it.
        role: which domain the set is.
        model: what made the predictions, "eager" or an artifact's name.

    Raises:
        AcclimateError: the set has no box that counts, so AP is not defined.
        ValueError: not one prediction an image, or a label outside the classes.
    """
    if len(predictions) != len(truth.images):
        raise ValueError(f"{len(predictions)} predictions for {len(truth.images)} images")
    classes = len(truth.classes)
    if any(len(found) and not 0 <= found.labels.min() <= found.labels.max() < classes for found in predictions):
        raise ValueError(f"a prediction has a label outside 0..{classes - 1}")
    boxes = np.zeros(classes, np.int64)
    for image in truth.images:
        annotations = image.annotations
        boxes += np.bincount(annotations.labels[~annotations.ignore], minlength=classes)
    if not boxes.any():
        raise AcclimateError(f"{data}: has no labelled box of the classes {', '.join(truth.classes)}; AP is undefined")

    precision = _precision(predictions, truth)
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
    device: torch.device | str | None = None,
    report: Callable[[str], None] = log.warning,
) -> Evaluation:
    """COCO AP of an eager detector; see `predict_eager` and `average_precision`.

    Raises:
        AcclimateError: the set has a class that the detector does not know, or no box that counts.
    """
    found = predict_eager(
        detector, [image.path for image in truth.images], batch_size=batch_size, device=device, report=report
    )
    renamed = relabel(found, detector.spec.classes, truth.classes, data)
    return average_precision(renamed, truth, data=data, role=role, model=model)


def relabel(
    predictions: Sequence[Detections], classes: Sequence[str], wanted: Sequence[str], data: str
) -> list[Detections]:
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
    renamed = []
    for found in predictions:
        labels = table[found.labels]
        renamed.append(Detections(found.boxes, labels, found.scores)[labels >= 0])
    return renamed


def predict_eager(
    detector: Detector,
    paths: Sequence[Path],
    batch_size: int = 16,
    device: torch.device | str | None = None,
    *,
    report: Callable[[str], None] = log.warning,
) -> list[Detections]:
    """What an eager detector finds, in the order of `paths` and the pixels of the original images.

    The detector runs in evaluation mode, without gradients, and gets its modes back. Images are read ahead in
    a thread. An image that cannot be read has no detections, and `report` is told in one line.

    Args:
        detector: on whatever device it is.
        paths: image files.
        batch_size: images a forward pass.
        device: where to run; None means where the detector is, and the detector is moved there otherwise.
        report: called with each problem.
    """
    import torch

    from acclimate.models.detector import device_of

    device = torch.device(device) if device is not None else device_of(detector)
    detector.to(device)
    size = detector.spec.image_size
    options = detector.decode_options()
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    detections: list[Detections] = []
    try:
        with torch.inference_mode():
            for batch in _read_ahead(paths, size, batch_size):
                canvases = torch.from_numpy(np.stack([canvas for canvas, _, _ in batch])).to(device)
                outputs = detector(canvases.permute(0, 3, 1, 2).float())
                found = decode([output.float().cpu().numpy() for output in outputs], options, size)
                for one, (_, placed, problem) in zip(found, batch, strict=True):
                    if problem:
                        report(problem)
                    detections.append(Detections.empty() if placed is None else placed.to_image(one))
    finally:
        for module, training in modes:
            module.training = training
    return detections


_Placed = tuple[Image, Letterbox | None, str]
"""A canvas, how the image was put on it, and the problem where it could not be read."""


def _read_ahead(paths: Sequence[Path], size: tuple[int, int], batch_size: int) -> Iterator[list[_Placed]]:
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(1) as reader:
        coming: deque[Future[list[_Placed]]] = deque()
        for batch in batches:
            coming.append(reader.submit(lambda paths: [_place(path, size) for path in paths], batch))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _place(path: Path, size: tuple[int, int]) -> _Placed:
    try:
        canvas, placed = letterbox(read_image(path), size)
    except AcclimateError as error:
        return np.zeros((*size, 3), np.uint8), None, str(error)
    return canvas, placed, ""


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
