"""Whether INT8 was calibrated well, without a label: on images like the target's, and with the detections of fp32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acclimate.data.dataset import choose
from acclimate.edge.artifact import Artifact, Calibration
from acclimate.edge.images import Reading, read_image
from acclimate.edge.monitor import FEWEST, OUTSIDE, look, unlike
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector
from acclimate.models.predict import network
from acclimate.select.mixed import held_out
from acclimate.select.score import SHOWN, agreement
from acclimate.structures import Detections, Image

IMAGES = 16
"""Images of the domain on which INT8 is compared with fp32."""

log = logging.getLogger(__name__)


def judge(
    artifact: Artifact, detector: Detector, images: Sequence[Path], domain: Sequence[Path], seed: int
) -> Calibration | None:
    """The artifact's calibration, with what speaks for and against it.

    Args:
        artifact: in INT8; another one has no calibration.
        detector: that it was exported from, on the CPU, in evaluation mode.
        images: that it was calibrated on.
        domain: images as the run knows them, without labels; none where they are not here any more.
        seed: of the draw of the images that are compared.
    """
    calibration = artifact.manifest.calibration
    if calibration is None:
        return None
    compared = choose(held_out(domain or images, images, seed), IMAGES, seed)
    alike, count = _agreement(Predictor(artifact), detector, compared)
    return calibration.model_copy(
        update={"foreign": _foreign(images, domain, artifact.manifest.reading), "agreement": alike, "compared": count}
    )


def _foreign(images: Sequence[Path], domain: Sequence[Path], reading: Reading) -> int | None:
    """How many of `images` look unlike `domain`; None where that has too few images to say."""
    if set(images) <= set(domain):
        return 0
    known = [look(image) for image in _readable(domain, reading)]
    if len(known) < FEWEST:
        return None
    seen = [look(image) for image in _readable(images, reading)]
    return int((unlike(np.array(seen), np.array(known)) > OUTSIDE).sum()) if seen else None


def _agreement(predictor: Predictor, detector: Detector, paths: Sequence[Path]) -> tuple[float | None, int]:
    """How INT8 agrees with fp32 (`score.agreement`), and on how many images; None where fp32 shows no box."""
    reference = network(detector)
    single: list[Detections] = []
    quantised: list[Detections] = []
    for image in _readable(paths, predictor.manifest.reading):
        canvas, placed = predictor.prepare(image)
        single.append(predictor.finish(reference(canvas), placed))
        quantised.append(predictor.finish(predictor.run(canvas), placed))
    if not any(len(found.above(SHOWN)) for found in single):
        return None, 0
    return agreement(single, quantised), len(single)


def _readable(paths: Sequence[Path], reading: Reading) -> list[Image]:
    images = []
    for path in paths:
        try:
            images.append(read_image(path, reading))
        except AcclimateError as error:
            log.debug("not looked at: %s", error)
    return images
