"""What the ways of asking look at: what a detector finds in each frame, in two views, and its features of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acclimate.config import AugmentConfig
from acclimate.data.augment import strong
from acclimate.data.compare import Look, near_duplicates
from acclimate.data.dataset import plain_images
from acclimate.data.formats import LabelledSet
from acclimate.edge.images import Letterbox
from acclimate.models.detector import Detector, device_of, evaluating
from acclimate.structures import Detections, Image

FAINT = 0.05
"""Boxes from this score on are looked at: what a shift has made faint is what is asked about."""
RARE = 4.0
"""The rarest class weighs at most so many times the average one."""
BATCH = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """A frame that was chosen.

    Attributes:
        index: of the frame.
        why: in words.
        scores: what it was chosen by, higher is more wanted.
    """

    index: int
    why: str
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """N frames as a detector sees them; boxes are on its canvas.

    Attributes:
        detector: in evaluation mode, or to be put there.
        paths: the frames.
        placed: how each was put on the canvas.
        plain: what is found in each as it is, from the score `FAINT` on.
        changed: what is found in a strong view of it, in the same geometry.
        features: (N, F), the means of the pyramid's levels.
        weights: (C,) of the classes: the rarer on these frames, the heavier; their mean is 1.
        seed: of everything random.
        source: labelled source images, for a way that pastes into them.
    """

    detector: Detector
    paths: tuple[Path, ...]
    placed: tuple[Letterbox, ...]
    plain: tuple[Detections, ...]
    changed: tuple[Detections, ...]
    features: NDArray[np.float64]
    weights: NDArray[np.float64]
    seed: int
    source: LabelledSet | None = None


def look(
    detector: Detector,
    paths: Sequence[Path],
    augment: AugmentConfig,
    seed: int,
    source: LabelledSet | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Seen:
    """Show the frames to a detector; those that cannot be read are left out.

    Args:
        detector: on whatever device it is.
        paths: image files.
        augment: the strong views.
        seed: of the views.
        source: see `Seen`.
        progress: called with (done, all).

    Raises:
        AcclimateError: more than half of the frames cannot be read.
    """
    spec, device = detector.spec, device_of(detector)
    kept: list[Path] = []
    placed: list[Letterbox] = []
    plain: list[Detections] = []
    changed: list[Detections] = []
    features: list[NDArray[np.float64]] = []
    waiting: list[tuple[Image, Image]] = []

    def forward() -> None:
        if not waiting:
            return
        levels = detector.features(batch([canvas for canvas, _ in waiting], device))
        means = torch.cat([level.float().mean((2, 3)) for level in levels], 1)
        features.extend(means.cpu().numpy().astype(np.float64))
        plain.extend(found.above(FAINT) for found in detector.decode(detector.head(levels)))
        views = batch([view for _, view in waiting], device)
        changed.extend(found.above(FAINT) for found in detector.decode(detector(views)))
        waiting.clear()

    with evaluating(detector):
        for number, (path, canvas, letterbox) in enumerate(plain_images(paths, spec.image_size, spec.reading)):
            kept.append(path)
            placed.append(letterbox)
            waiting.append((canvas, strong(canvas, augment, np.random.default_rng([seed, number]))))
            if len(waiting) == BATCH:
                forward()
            if progress is not None:
                progress(number + 1, len(paths))
        forward()
        if progress is not None:
            progress(len(paths), len(paths))
    weights = class_weights(plain, len(spec.classes))
    return Seen(
        detector, tuple(kept), tuple(placed), tuple(plain), tuple(changed), np.array(features), weights, seed, source
    )


def class_weights(found: Sequence[Detections], classes: int) -> NDArray[np.float64]:
    """(C,) the weight of each class by how seldom it is found: the root of the mean count over its own, at most
    `RARE`, and then so that their mean is 1.

    A class's count is the sum of its boxes' scores, which is how many of them there are if scores are probabilities.
    """
    counts = np.zeros(classes)
    for one in found:
        np.add.at(counts, one.labels, one.scores)
    weights = np.minimum(np.sqrt((counts.mean() + 1) / (counts + 1)), RARE)
    return np.asarray(weights / weights.mean())


def batch(images: Sequence[Image], device: torch.device) -> torch.Tensor:
    """Canvases (H, W, 3) as a network's input (B, 3, H, W)."""
    stacked = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    return stacked.float().contiguous(memory_format=torch.channels_last)


def ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the place of each score among them, from 0, the lowest, to 1; equal ones share a place."""
    ordered = np.sort(scores)
    middle = (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right") - 1) / 2
    return np.asarray(middle / max(1, len(scores) - 1))


def highest(scores: NDArray[np.float64], count: int) -> list[int]:
    """Indices of the `count` highest of scores (N,), the highest first; of equal ones the earlier."""
    return [int(index) for index in np.argsort(-scores, kind="stable")[:count]]


def rarest(seen: Seen, index: int) -> str:
    """The rare class that a frame may show, in words; empty where it shows none that is rarer than the average."""
    found = seen.plain[index]
    if not len(found):
        return ""
    label = int(found.labels[seen.weights[found.labels].argmax()])
    return f"; may show {seen.detector.spec.classes[label]}, rare here" if seen.weights[label] > 1.2 else ""


def distinct(looks: Mapping[Path, Look], asked: Mapping[Path, Look]) -> tuple[list[Path], int]:
    """The frames of which none is nearly the same as another, or as one that was asked before; and how many are not.

    Of several that are, the first is left, in the order of `looks`.
    """
    groups: dict[Path, Look] = dict(asked)
    for path, seen in looks.items():
        if not near_duplicates({path: seen}, groups):
            groups[path] = seen
    left = [path for path in groups if path in looks and path not in asked]
    return left, len(looks) - len(left)
