"""An acclimate run as a labeller: several looks at each image, at several sizes and mirrored, as one set of boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from acclimate.boxes.fusion import fuse, mirrored
from acclimate.data.scored import Found
from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, device_of, evaluating
from acclimate.structures import Detections, Image


def check(detector: Detector, scales: Sequence[float]) -> None:
    """That the detector takes inputs of these sizes.

    Raises:
        AcclimateError: its boxes are made for one size.
    """
    if any(scale != 1 for scale in scales) and not detector.any_size:
        raise AcclimateError(
            f"--scales: the boxes of a {detector.spec.kind} detector are made for one input size; leave --scales out "
            "(--flip is possible), or label with a dense one"
        )


def label(
    detector: Detector,
    paths: Sequence[Path],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    tick: Callable[[int, int], object] = lambda done, total: None,
    report: Callable[[str], object] = lambda problem: None,
) -> dict[Path, Found]:
    """What all looks find in image files, by weighted boxes fusion; a file that cannot be read is left out.

    Args:
        detector: on whatever device it is.
        paths: image files.
        scales: of the input's sides; each is a look, on a canvas of the nearest whole number of the coarsest cells.
        flip: whether each scale is also looked at mirrored.
        tick: called with how many are done, and of how many.
        report: called with each problem.

    Raises:
        AcclimateError: see `check`.
    """
    check(detector, scales)
    found: dict[Path, Found] = {}
    with evaluating(detector):
        for done, path in enumerate(paths, 1):
            try:
                image = read_image(path, detector.spec.reading)
            except AcclimateError as error:
                report(str(error))
                continue
            looks = [
                _look(detector, image, scale, turned)
                for scale in scales
                for turned in ((False, True) if flip else (False,))
            ]
            found[path] = Found((image.shape[1], image.shape[0]), fuse(looks))
            tick(done, len(paths))
    return found


def _look(detector: Detector, image: Image, scale: float, turned: bool) -> Detections:
    stride = max(detector.spec.strides)
    rows, columns = (
        (side if scale == 1 else max(stride, round(scale * side / stride) * stride))
        for side in detector.spec.image_size
    )
    canvas, placed = letterbox(image, (rows, columns))
    # As `models.predict` lays a batch out: another layout rounds otherwise, and near ties change their order.
    pixels = torch.from_numpy(np.stack([canvas[:, ::-1] if turned else canvas])).to(device_of(detector))
    raw = detector(pixels.permute(0, 3, 1, 2).float())
    seen = detector.decode(raw, (rows, columns))[0]
    return placed.to_image(mirrored(seen, float(columns)) if turned else seen)
