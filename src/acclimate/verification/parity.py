"""Parity: does the artifact see what the eager model sees, detection by detection?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from acclimate.boxes import match
from acclimate.edge.decode import decode
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.structures import Detections
from acclimate.verification.record import PARITY_SCORE, Pair, Parity

if TYPE_CHECKING:
    from acclimate.edge.artifact import ArtifactManifest
    from acclimate.models.detector import Detector

PARITY_IMAGES = 32
PARITY_IOU = 0.5

Outputs = Callable[[Path], tuple[list[NDArray[Any]], Detections]]


def compare(manifest: ArtifactManifest, detector: Detector, paths: Sequence[Path], outputs: Outputs) -> Parity:
    """Both models on the same images.

    Args:
        manifest: of the artifact.
        detector: the eager model.
        paths: images; one that cannot be read is passed over.
        outputs: the artifact's raw outputs and detections of the image at a path.
    """
    from acclimate.models.predict import network

    reference = network(detector.eval())
    found_pairs: list[Pair] = []
    raw = dict.fromkeys(manifest.output_names, 0.0)
    images = 0
    for path in paths:
        try:
            image = read_image(path, manifest.reading)
        except AcclimateError:
            continue
        images += 1
        canvas, placed = letterbox(image, manifest.image_size, manifest.fill)
        theirs = reference(to_input(canvas))
        ours, found = outputs(path)
        for name, a, b in zip(manifest.output_names, theirs, ours, strict=True):
            raw[name] = max(raw[name], float(np.abs(a - b).max()))
        eager = placed.to_image(decode(theirs, detector.decode_options(), manifest.image_size)[0])
        found_pairs += pairs(eager, found, str(path), manifest.classes)
    both = [pair for pair in found_pairs if pair.eager_score is not None and pair.artifact_score is not None]
    alone = [pair for pair in found_pairs if pair.eager_score is None or pair.artifact_score is None]
    scores = np.array([abs((pair.eager_score or 0) - (pair.artifact_score or 0)) for pair in both])
    ious, pixels = (np.array([getattr(pair, key) for pair in both]) for key in ("iou", "box_px"))
    worst = sorted(alone, key=lambda pair: -max(pair.eager_score or 0, pair.artifact_score or 0))
    worst += [both[index] for index in np.argsort(-scores)]
    parity = Parity(images=images, matched=len(both), unmatched=len(alone), raw_max=raw, worst=tuple(worst[:5]))
    if not both:
        return parity
    return parity.model_copy(
        update={
            "score_max": float(scores.max()),
            "score_p99": float(np.percentile(scores, 99)),
            "score_mean": float(scores.mean()),
            "iou_min": float(ious.min()),
            "iou_mean": float(ious.mean()),
            "box_px_max": float(pixels.max()),
            "box_px_p99": float(np.percentile(pixels, 99)),
            "box_px_mean": float(pixels.mean()),
        }
    )


def pairs(eager: Detections, artifact: Detections, image: str, classes: Sequence[str]) -> Iterator[Pair]:
    """Each detection above `PARITY_SCORE` once, with the other model's detection of the same object.

    Args:
        eager: what the eager model finds in an image.
        artifact: what the artifact finds there.
        image: its name.
        classes: the names of their labels.
    """
    overlap = match.overlaps(eager, artifact)
    partner = match.greedy(overlap, PARITY_IOU)
    for row, column in enumerate(partner):
        score = float(eager.scores[row])
        if column < 0:
            if score >= PARITY_SCORE:
                yield Pair(
                    image=image,
                    name=classes[int(eager.labels[row])],
                    eager_score=score,
                    artifact_score=None,
                    iou=None,
                    box_px=None,
                )
        elif max(score, float(artifact.scores[column])) >= PARITY_SCORE:
            yield Pair(
                image=image,
                name=classes[int(eager.labels[row])],
                eager_score=score,
                artifact_score=float(artifact.scores[column]),
                iou=float(overlap[row, column]),
                box_px=float(np.abs(eager.boxes[row] - artifact.boxes[column]).max()),
            )
    for column in sorted(set(range(len(artifact))) - set(partner.tolist())):
        if artifact.scores[column] >= PARITY_SCORE:
            yield Pair(
                image=image,
                name=classes[int(artifact.labels[column])],
                eager_score=None,
                artifact_score=float(artifact.scores[column]),
                iou=None,
                box_px=None,
            )
