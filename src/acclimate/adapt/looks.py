"""What a detector finds in an image that it looks at twice: with more pixels, mirrored, or both, and fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.boxes.fusion import fuse, mirrored
from acclimate.data.augment import FILL
from acclimate.data.dataset import plain_images
from acclimate.edge.images import Letterbox, Reading
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, device_of, evaluating
from acclimate.structures import Detections

_BATCH = 8


def check(detector: Detector, scale: float) -> None:
    """That the detector takes an input of another size, where one is asked for.

    Raises:
        AcclimateError: its boxes are made for one size.
    """
    if scale > 1 and not detector.any_size:
        raise AcclimateError(
            f"adapt.teacher.scale: the boxes of a {detector.spec.kind} detector are made for one input size; leave "
            "scale at 1 (flip is possible), or train a dense one"
        )


def large_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of the view with `scale` times the pixels a side."""
    return round(scale * size[0]), round(scale * size[1])


def look_again(detector: Detector, images: Tensor, size: tuple[int, int], flip: bool) -> list[Detections]:
    """Detections on a canvas of another size, of images of the same content in any size.

    Args:
        detector: one of convolutions alone, where `size` is not its own.
        images: (B, 3, H, W), RGB, 0..255.
        size: (height, width) of the canvas to look on, pixels.
        flip: whether it looks at the mirrored images; the boxes are mirrored back.
    """
    height, width = images.shape[-2:]
    seen = images.flip(-1) if flip else images
    stride = max(detector.spec.strides)
    # A level is added to the coarser one beside it, so each side is a whole number of the coarsest cells.
    seen = F.pad(seen, (0, -width % stride, 0, -height % stride), value=float(FILL))
    with torch.no_grad():
        raw = detector(seen)
    scale = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    limit = np.array([size[1], size[0]] * 2, np.float32)
    placed = []
    for found in detector.decode(raw, (int(seen.shape[-2]), int(seen.shape[-1]))):
        upright = mirrored(found, float(width)) if flip else found
        boxes = np.clip(upright.boxes * scale, 0, limit)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        placed.append(Detections(boxes[inside], found.labels[inside], found.scores[inside]))
    return placed


def fused(first: Sequence[Detections], second: Sequence[Detections]) -> list[Detections]:
    """Two looks at each image as one, by weighted boxes fusion."""
    return [fuse(pair) for pair in zip(first, second, strict=True)]


def predict_twice(detector: Detector, paths: Sequence[Path], scale: float, flip: bool) -> dict[Path, Detections]:
    """What both looks find in image files, fused, in the pixels of the images; a file that cannot be read is left out.

    Args:
        detector: what looks.
        paths: the image files.
        scale: how many times the pixels a side the second look has.
        flip: whether the second look is mirrored.

    Raises:
        AcclimateError: more than half of the images cannot be read.
    """
    size, device = detector.spec.image_size, device_of(detector)
    found: dict[Path, Detections] = {}
    with evaluating(detector):
        for group in _groups(paths, size, large_size(size, scale), detector.spec.reading):
            weak, large = (
                torch.from_numpy(np.stack(canvases)).to(device).permute(0, 3, 1, 2).float()
                for canvases in ([one[2] for one in group], [one[3] for one in group])
            )
            both = fused(detector.decode(detector(weak)), look_again(detector, large, size, flip))
            found |= {path: placed.to_image(one) for (path, placed, *_), one in zip(group, both, strict=True)}
    return found


def _groups(
    paths: Sequence[Path], size: tuple[int, int], large: tuple[int, int], reading: Reading
) -> Iterator[list[tuple[Path, Letterbox, np.ndarray, np.ndarray]]]:
    group = []
    pairs = zip(plain_images(paths, size, reading), plain_images(paths, large, reading), strict=True)
    for (path, canvas, placed), (_, enlarged, _) in pairs:
        group.append((path, placed, canvas, enlarged))
        if len(group) == _BATCH:
            yield group
            group = []
    if group:
        yield group
