"""From raw network outputs to boxes: the one decoding and NMS that every runtime shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Decode
from acclimate.errors import AcclimateError
from acclimate.structures import Detections


def decode(outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]) -> list[Detections]:
    """Decode a batch of dense outputs as `Decode` documents them.

    Locations below `options.score_threshold` are never decoded, and non-finite outputs are no detections.

    Args:
        outputs: logits (B, A, C) and raw side distances (B, A, 4), float.
        options: strides, thresholds and limits.
        image_size: (height, width) of the canvas in pixels.

    Returns:
        One `Detections` an image, boxes in canvas pixels and clipped to it, best first.

    Raises:
        AcclimateError: the outputs do not have the shapes that `image_size` and `options.strides` imply.
    """
    logits, distances = outputs
    centres, strides = _locations(image_size, options.strides)
    expected = len(strides)
    if logits.ndim != 3 or logits.shape[1] != expected or distances.shape != (logits.shape[0], expected, 4):
        raise AcclimateError(
            f"the network's outputs have shapes {logits.shape} and {distances.shape}, but a canvas of {image_size} "
            f"with strides {options.strides} has {expected} locations; export the artifact again"
        )
    return [
        _decode_one(np.asarray(one, np.float32), raw, centres, strides, options, image_size)
        for one, raw in zip(logits, distances, strict=True)
    ]


def nms(
    boxes: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]], labels: NDArray[np.int64], iou: float
) -> NDArray[np.int64]:
    """Greedy class-wise NMS: a box goes when a better one of its class overlaps it by more than `iou`.

    Args:
        boxes: (N, 4) xyxy pixels, finite, of positive area.
        scores: (N,), above 0; a box with score 0 is not kept.
        labels: (N,).
        iou: overlap from which the lower score goes, 0..1.

    Returns:
        Indices of the kept boxes, best first; ties keep their order.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    corner_and_size = boxes.astype(np.float64)
    corner_and_size[:, 2:] -= corner_and_size[:, :2]
    # OpenCV takes arrays here; its type stubs only know lists.
    suppress = cast(Any, cv2.dnn.NMSBoxesBatched)
    kept = suppress(corner_and_size, scores, labels.astype(np.int32), 0.0, iou)
    return np.asarray(kept, np.int64).reshape(-1)


@lru_cache(maxsize=8)
def _locations(
    image_size: tuple[int, int], strides: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres (A, 2) as x, y in pixels and strides (A,) of all locations, level by level, row by row."""
    centres, sizes = [], []
    for stride in strides:
        rows, columns = math.ceil(image_size[0] / stride), math.ceil(image_size[1] / stride)
        y, x = np.mgrid[:rows, :columns].reshape(2, -1)
        centres.append((np.stack([x, y], axis=1) + 0.5) * stride)
        sizes.append(np.full(rows * columns, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(sizes).astype(np.float32)


def _decode_one(
    logits: NDArray[np.float32],
    distances: NDArray[Any],
    centres: NDArray[np.float32],
    strides: NDArray[np.float32],
    options: Decode,
    image_size: tuple[int, int],
) -> Detections:
    flat = logits.ravel()
    found = np.flatnonzero(flat >= _logit(options.score_threshold))
    values = flat[found]
    finite = np.isfinite(values)
    if not finite.all():
        found, values = found[finite], values[finite]
    if len(found) > options.candidates:
        best = np.argpartition(values, len(values) - options.candidates)[-options.candidates :]
        found, values = found[best], values[best]
    order = np.lexsort((found, -values))
    found, values = found[order], values[order]
    where, labels = np.divmod(found, logits.shape[1])
    with np.errstate(all="ignore"):
        scores = (1 / (1 + np.exp(-values))).astype(np.float32)
        sides = np.logaddexp(np.float32(0), distances[where].astype(np.float32)) * strides[where, None]
        corners = np.concatenate([centres[where] - sides[:, :2], centres[where] + sides[:, 2:]], axis=1)
        boxes = corners.astype(np.float32)
        usable = np.isfinite(boxes).all(axis=1)
    height, width = image_size
    np.clip(boxes, 0, np.array([width, height, width, height], np.float32), out=boxes)
    usable &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not usable.all():
        boxes, scores, labels = boxes[usable], scores[usable], labels[usable]
    kept = nms(boxes, scores, labels, options.nms_iou)[: options.max_detections]
    return Detections(boxes[kept], labels[kept].astype(np.int64), scores[kept])


def _logit(probability: float) -> float:
    """The inverse of the sigmoid, with its limits."""
    if probability <= 0:
        return -math.inf
    return math.log(probability / (1 - probability)) if probability < 1 else math.inf
