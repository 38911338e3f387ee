"""Self-supervised sample mining: regions that a detector does not find again where they are pasted in.

Wang et al. 2018, "Towards Human-Machine Cooperation: Self-Supervised Sample Mining for Object Detection". A region that
is found in one frame is pasted into labelled images; the share of these in which the detector finds the same class
there again is its consistency (cross image validation). Where it is high the detection can be believed, where it is low
a person should look; the teacher of an adaptation believes the others (`adapt.teacher.mining`). Regions keep their
place and size on the canvas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from acclimate.boxes.iou import pairwise
from acclimate.data.dataset import choose as drawn
from acclimate.data.dataset import plain_images
from acclimate.errors import AcclimateError
from acclimate.models.detector import device_of, evaluating
from acclimate.select.ask.seen import Choice, Seen, batch, highest, rarest
from acclimate.structures import Detections

IMAGES = 5
"""Labelled images that each region is pasted into."""
REGIONS = 8
"""Regions of a frame that are looked at: the surest that do not overlap."""
LEAST = 0.1
"""Score of a region that is looked at."""
FOUND = 0.5
"""IoU from which a region is found again; it has the same class, and half of the score that it had."""


def choose(seen: Seen, count: int) -> list[Choice]:
    """See `ask.choose`."""
    regions, consistencies = validated(seen)
    wanted = np.array(
        [
            float(((1 - share) * seen.weights[one.labels]).sum())
            for one, share in zip(regions, consistencies, strict=True)
        ]
    )
    return [
        Choice(
            index,
            f"{int((consistencies[index] < FOUND).sum())} of {len(regions[index])} regions are not found again in "
            "labelled images" + rarest(seen, index),
            {"inconsistency": float(wanted[index])},
        )
        for index in highest(wanted, count)
    ]


def validated(seen: Seen) -> tuple[list[Detections], list[NDArray[np.float64]]]:
    """The regions of each frame, and of its R regions the share (R,) of labelled images in which it is found again.

    Raises:
        AcclimateError: there are no source images.
    """
    if seen.source is None:
        raise AcclimateError(
            "ask: mining pastes into labelled source images, and the run's are not there; name another way"
        )
    spec, device = seen.detector.spec, device_of(seen.detector)
    labelled = drawn(seen.source.paths, IMAGES, seen.seed)
    canvases = [canvas for _, canvas, _ in plain_images(labelled, spec.image_size, seen.source.reading)]
    grounds = batch(canvases, device)
    regions: list[Detections] = []
    shares: list[NDArray[np.float64]] = []
    frames = plain_images(seen.paths, spec.image_size, spec.reading)
    with evaluating(seen.detector):
        for found, (_, canvas, _) in zip(seen.plain, frames, strict=True):
            likely = found.above(LEAST)
            own = likely[apart(likely)]
            regions.append(own)
            if not len(own):
                shares.append(np.zeros(0))
                continue
            again = seen.detector.decode(seen.detector(pasted(grounds, batch([canvas], device)[0], own)))
            shares.append(np.mean([found_again(own, one) for one in again], axis=0))
    return regions, shares


def pasted(grounds: Tensor, frame: Tensor, regions: Detections) -> Tensor:
    """Images (B, 3, H, W) with the regions of a frame (3, H, W) in their places."""
    images = grounds.clone()
    height, width = images.shape[-2:]
    for left, top, right, bottom in regions.boxes:
        rows = slice(max(0, int(top)), min(height, int(np.ceil(bottom))))
        columns = slice(max(0, int(left)), min(width, int(np.ceil(right))))
        images[..., rows, columns] = frame[..., rows, columns]
    return images


def found_again(regions: Detections, found: Detections) -> NDArray[np.float64]:
    """(N,) 1 for each region where a box of its class, and at least half of its score, lies; else 0."""
    if not len(found):
        return np.zeros(len(regions))
    iou = pairwise(regions.boxes, found.boxes)
    there = (
        (iou >= FOUND)
        & (regions.labels[:, None] == found.labels[None])
        & (found.scores[None] >= regions.scores[:, None] / 2)
    )
    return np.asarray(there.any(axis=1).astype(np.float64))


def apart(found: Detections) -> NDArray[np.int64]:
    """Indices (M,) of the surest detections, best first, of which none covers a part of another: all can be pasted at
    once."""
    iou = pairwise(found.boxes, found.boxes)
    chosen: list[int] = []
    for index in range(len(found)):
        if len(chosen) < REGIONS and not (iou[index, chosen] > 0).any():
            chosen.append(index)
    return np.array(chosen, np.int64)
