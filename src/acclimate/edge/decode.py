"""From raw network outputs to boxes: the one decoding and NMS that every runtime shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.boxes.iou import area
from acclimate.boxes.locations import centres as location_centres
from acclimate.boxes.offsets import RPN_WEIGHTS, clip
from acclimate.boxes.offsets import decode as moved_by
from acclimate.boxes.soft_nms import decay, soft_nms
from acclimate.edge.artifact import Decode, Priors
from acclimate.errors import AcclimateError
from acclimate.structures import Detections

SAMPLED = 8
"""Of so many candidates one is looked at to tell how high the best are."""


def decode(outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]) -> list[Detections]:
    """Decode a batch of raw outputs as `Decode` documents them.

    What is below `options.score_threshold` is never decoded, and non-finite outputs are no detections.

    Args:
        outputs: the network's, in the order of `Decode`, float; the first axis is the batch.
        options: kind, thresholds and limits.
        image_size: (height, width) of the canvas in pixels.

    Returns:
        One `Detections` an image, boxes in canvas pixels and clipped to it, best first.

    Raises:
        AcclimateError: the outputs do not have the shapes that `options` and `image_size` imply.
    """
    if options.kind == "two-stage":
        return _decode_two_stage(outputs, options, image_size)
    if options.kind == "ssd":
        return _decode_ssd(outputs, options, image_size)
    if options.kind == "queries":
        return _decode_queries(outputs, options, image_size)
    if options.kind == "boxes":
        return _decode_boxes(outputs, options, image_size)
    if options.kind in {"retinanet", "fcos"}:
        return _decode_levels(outputs, options, image_size)
    logits, distances = outputs
    centres, strides = location_centres(image_size, options.strides)
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


def _decode_one(
    logits: NDArray[np.float32],
    distances: NDArray[Any],
    centres: NDArray[np.float32],
    strides: NDArray[np.float32],
    options: Decode,
    image_size: tuple[int, int],
) -> Detections:
    found, values = _best(logits.ravel(), _logit(options.score_threshold), options.candidates)
    where, labels = np.divmod(found, logits.shape[1])
    with np.errstate(all="ignore"):
        scores = (1 / (1 + np.exp(-values))).astype(np.float32)
        sides = np.logaddexp(np.float32(0), distances[where].astype(np.float32)) * strides[where, None]
        boxes = np.concatenate([centres[where] - sides[:, :2], centres[where] + sides[:, 2:]], axis=1)
    return _finish(boxes.astype(np.float32), scores, labels, options, image_size)


def _decode_two_stage(
    outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]
) -> list[Detections]:
    logits, offsets, boxes = outputs
    if logits.ndim != 3 or offsets.shape != (*logits.shape, 4) or boxes.shape != (*logits.shape[:2], 4):
        raise AcclimateError(
            f"the network's outputs have shapes {logits.shape}, {offsets.shape} and {boxes.shape}, which are not those "
            "of a two-stage detector; export the artifact again"
        )
    found = []
    for one, moves, anchors in zip(logits, offsets, boxes, strict=True):
        probabilities = _foreground(one.astype(np.float32))
        index, scores = _best(probabilities.ravel(), options.score_threshold, options.candidates)
        where, labels = np.divmod(index, probabilities.shape[1])
        moved = moved_by(moves[where, labels + 1].astype(np.float32), anchors[where].astype(np.float32))
        found.append(_finish(moved, scores, labels, options, image_size))
    return found


@lru_cache(maxsize=8)
def default_boxes(priors: tuple[Priors, ...], first: float = 0.5) -> NDArray[np.float32]:
    """The default boxes (A, 4) of all levels, xyxy pixels, in the order of `Decode`; they may reach over the border.

    `first` is how far the first centre is from the corner, in steps.
    """
    boxes = []
    for level in priors:
        y, x = np.mgrid[: level.rows, : level.columns].reshape(2, -1)
        centres = np.stack([x + first, y + first], axis=1) * (level.step[1], level.step[0])
        half = np.array(level.sizes) / 2
        corners = [centres[:, None] - half, centres[:, None] + half]
        boxes.append(np.concatenate(corners, axis=2).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


def _decode_ssd(outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]) -> list[Detections]:
    logits, offsets = outputs
    priors = default_boxes(options.priors)
    if logits.ndim != 3 or logits.shape[1] != len(priors) or offsets.shape != (logits.shape[0], len(priors), 4):
        raise AcclimateError(
            f"the network's outputs have shapes {logits.shape} and {offsets.shape}, but the artifact has {len(priors)} "
            "default boxes; export the artifact again"
        )
    lowest = np.float32(_logit(options.score_threshold))
    found = []
    for one, moves in zip(logits, offsets, strict=True):
        with np.errstate(all="ignore"):
            # A class is at most as likely as against the background alone: few boxes need their softmax.
            columns = np.ascontiguousarray(one.T, np.float32)
            able = np.flatnonzero(columns[1:].max(axis=0) >= columns[0] + lowest)
        probabilities = _foreground(one[able].astype(np.float32))
        limit = options.class_candidates
        count = options.candidates if limit is None else probabilities.size
        index, scores = _best(probabilities.ravel(), options.score_threshold, count)
        if limit is not None:
            first = _first_of_each(index % probabilities.shape[1], limit)[: options.candidates]
            index, scores = index[first], scores[first]
        row, labels = np.divmod(index, probabilities.shape[1])
        moved = moved_by(moves[able[row]].astype(np.float32), priors[able[row]])
        found.append(_finish(moved, scores, labels, options, image_size))
    return found


def _decode_levels(outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]) -> list[Detections]:
    """Of `retinanet`, and of `fcos`, which has a quality beside: the best of each level, then of all."""
    logits, moves, *quality = outputs
    priors = default_boxes(options.priors, 0.0)
    alike = all(
        output.shape == (logits.shape[0], len(priors), width)
        for output, width in zip((moves, *quality), (4, 1), strict=False)
    )
    if logits.ndim != 3 or logits.shape[1] != len(priors) or not alike:
        shapes = ", ".join(str(output.shape) for output in outputs)
        raise AcclimateError(
            f"the network's outputs have shapes {shapes}, but the artifact has {len(priors)} default boxes; export the "
            "artifact again"
        )
    ends = np.cumsum([level.rows * level.columns * len(level.sizes) for level in options.priors])
    # A quality is 1 at most, so few places need their sigmoids.
    lowest = np.float32(_logit(options.score_threshold ** (2 if quality else 1)))
    found = []
    for i, one in enumerate(logits):
        with np.errstate(all="ignore"):
            able = np.flatnonzero(one.max(axis=1) >= lowest)
            scores = _sigmoid(one[able])
            if quality:
                scores = np.sqrt(scores * _sigmoid(quality[0][i][able]))
        bounds = [0, *np.searchsorted(able, ends)]
        limit = options.level_candidates or options.candidates
        best = [
            (begin * scores.shape[1] + index, values)
            for begin, end in pairwise(bounds)
            for index, values in [_best(scores[begin:end].ravel(), options.score_threshold, limit)]
        ]
        index, values = (np.concatenate(part) for part in zip(*best, strict=True))
        order = np.lexsort((index, -values))[: options.candidates]
        row, labels = np.divmod(index[order], scores.shape[1])
        own, change = priors[able[row]], moves[i][able[row]].astype(np.float32)
        boxes = _by_sides(change, own) if quality else moved_by(change, own, RPN_WEIGHTS)
        found.append(_finish(boxes, values[order], labels, options, image_size))
    return found


def _by_sides(distances: NDArray[np.float32], priors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes (N, 4) whose sides are as far from the centres of the priors (N, 4), in their widths and heights."""
    with np.errstate(all="ignore"):
        size = priors[:, 2:] - priors[:, :2]
        centre = priors[:, :2] + size / 2
        return np.concatenate([centre - distances[:, :2] * size, centre + distances[:, 2:] * size], axis=1)


def _decode_queries(outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]) -> list[Detections]:
    logits, boxes = outputs
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise AcclimateError(
            f"the network's outputs have shapes {logits.shape} and {boxes.shape}, which are not those of queries; "
            "export the artifact again"
        )
    height, width = image_size
    found = []
    for one, shares in zip(logits, boxes, strict=True):
        lowest = _logit(options.score_threshold)
        index, values = _best(np.asarray(one, np.float32).ravel(), lowest, options.max_detections)
        where, labels = np.divmod(index, one.shape[1])
        with np.errstate(all="ignore"):
            scores = (1 / (1 + np.exp(-values))).astype(np.float32)
            centres, sizes = np.split(shares[where].astype(np.float32), 2, axis=1)
            corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
            corners *= np.array([width, height] * 2, np.float32)
            usable = np.isfinite(corners).all(axis=1)
            corners = clip(corners, image_size)
            usable &= area(corners) > 0
        found.append(Detections(corners[usable], labels[usable].astype(np.int64), scores[usable]))
    return found


def _decode_boxes(outputs: Sequence[NDArray[Any]], options: Decode, image_size: tuple[int, int]) -> list[Detections]:
    logits, boxes = outputs
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise AcclimateError(
            f"the network's outputs have shapes {logits.shape} and {boxes.shape}, which are not those of boxes; "
            "export the artifact again"
        )
    found = []
    for one, corners in zip(logits, boxes, strict=True):
        flat = np.asarray(one, np.float32).ravel()
        index, values = _best(flat, _logit(options.score_threshold), options.candidates)
        where, labels = np.divmod(index, one.shape[1])
        with np.errstate(all="ignore"):
            scores = (1 / (1 + np.exp(-values))).astype(np.float32)
        found.append(_finish(corners[where].astype(np.float32), scores, labels, options, image_size))
    return found


def _foreground(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax of logits (N, C + 1), without the first class, which is the background."""
    with np.errstate(all="ignore"):
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = (grown / grown.sum(axis=1, keepdims=True))[:, 1:]
    return probabilities


def _first_of_each(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Places of the first `count` of each label, in their order."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    return np.sort(order[rank < count])


def _best(flat: NDArray[np.float32], threshold: float, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where `flat` is finite and at least `threshold`, at most `count` places and their values, best first."""
    found = np.flatnonzero(flat >= threshold)
    values = flat[found]
    finite = np.isfinite(values)
    if not finite.all():
        found, values = found[finite], values[finite]
    if len(found) > SAMPLED * count:
        # A sample tells about how high the best are, so that most of the others need no sorting.
        sample = np.sort(values[::SAMPLED])
        high = np.flatnonzero(values >= sample[-2 * count // SAMPLED])
        if len(high) >= count:
            found, values = found[high], values[high]
    if len(found) > count:
        best = np.argpartition(values, len(values) - count)[-count:]
        found, values = found[best], values[best]
    order = np.lexsort((found, -values))
    return found[order], values[order]


def _finish(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    options: Decode,
    image_size: tuple[int, int],
) -> Detections:
    """Boxes cut at the border, without those that are not finite or have no area, after NMS."""
    usable = np.isfinite(boxes).all(axis=1)
    with np.errstate(all="ignore"):
        boxes = clip(boxes, image_size)
        usable &= area(boxes) > 0
    if not usable.all():
        boxes, scores, labels = boxes[usable], scores[usable], labels[usable]
    if options.suppression != "nms":
        factor = decay(options.suppression, options.nms_iou)
        kept, scores = soft_nms(boxes, scores, labels, factor, options.score_threshold)
        kept, scores = kept[: options.max_detections], scores[: options.max_detections]
        return Detections(boxes[kept], labels[kept].astype(np.int64), scores)
    kept = _first_kept(boxes, scores, labels, options)
    return Detections(boxes[kept], labels[kept].astype(np.int64), scores[kept])


def _first_kept(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], options: Decode
) -> NDArray[np.int64]:
    """Indices of the first `max_detections` boxes that NMS keeps, of boxes that come best first.

    Whether a box stays is decided by better ones alone, and how long NMS takes grows with the square of their number:
    most often the first three for one that is asked for are enough.
    """
    tried = 3 * options.max_detections
    kept = nms(boxes[:tried], scores[:tried], labels[:tried], options.nms_iou)
    if len(kept) < options.max_detections and len(boxes) > tried:
        left = np.concatenate([kept, np.arange(tried, len(boxes))])
        kept = left[nms(boxes[left], scores[left], labels[left], options.nms_iou)]
    return kept[: options.max_detections]


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = (1 / (1 + np.exp(-logits.astype(np.float32)))).astype(np.float32)
    return probabilities


def _logit(probability: float) -> float:
    """The inverse of the sigmoid, with its limits."""
    if probability <= 0:
        return -math.inf
    return math.log(probability / (1 - probability)) if probability < 1 else math.inf
