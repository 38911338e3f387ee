"""Scores that rank a run's checkpoints on unlabelled target images, and the choice made with them.

Self-training makes what it believes. A score that counts what a checkpoint finds (`consensus`), or how far it agrees
with itself on what it shows (`agreement`), rises while false boxes multiply: each is found in both views. Nor does the
level of the scores say anything, as self-training raises or lowers it for true and false boxes alike. So the choice is
made by

- `ranked`: how far two views agree on the boxes of the highest scores, a fixed number of each class. False boxes must
  drive true ones out of that number to be counted at all, and boxes that are hard to see are not found where they were.

and a checkpoint is out that fails one of two that lean on what stands still, the start (the weights before the
adaptation) and the source's labels:

- `plausible`: what both views find, against how many objects there can be. That is at most the larger, and at least the
  smaller, of what the start finds on the target and what the source's labels have an image.
- `kept`: how much of what the start is sure of is still found.

Of those that `ranked` cannot tell from the best the latest is chosen.

`stability`: Yang et al. 2024, "Bounding Box Stability against Feature Dropout Reflects Detector Generalization across
Environments" (BoS): how far boxes move when features are dropped. All look at detections of the target, never at labels
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from acclimate.boxes import match
from acclimate.config import AugmentConfig
from acclimate.data.augment import strong
from acclimate.data.dataset import choose, plain_images
from acclimate.models.detector import Detector, device_of, evaluating, load_weights
from acclimate.run import Candidate, Selection
from acclimate.structures import Detections, Image

DROPOUT = 0.1
"""Chance that a channel of a pyramid level is dropped."""
SHOWN = 0.25
"""Boxes from this score on are compared."""
SURE = 0.5
"""The start is sure of a box with this score."""
KEPT = 0.5
"""A checkpoint that has kept less of them is not chosen: it has become another detector."""
PLAUSIBLE = 0.7
"""Nor is one whose `plausible` is less than this share of the start's: its counts have run away."""
LOST = 0.1
"""Nor is one that has lost this share of the best checkpoint's score."""
RULE = "ranked"
"""The score that decides; the others stand beside it in the report."""
IMAGES = 48
"""Target images that are looked at, at most."""
SHARE = 0.5
"""Boxes that are ranked, as a share of the source's rate: a target may show fewer objects, as fog does."""
LOOKS = 480
"""And so many over all checkpoints together, as long as each has a third of `IMAGES`."""


def choose_checkpoint(
    detector: Detector,
    checkpoints: Mapping[int, Path],
    images: Sequence[Path],
    augment: AugmentConfig,
    seed: int,
    rates: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Score every checkpoint on the same target images and views, and choose the best.

    At most `IMAGES` are looked at, fewer where there are many checkpoints. Leaves the chosen weights in `detector`.

    Args:
        detector: of the checkpoints' architecture.
        checkpoints: by step; the first is what the others are held against, so it should be the start, as step 0.
        images: of the target.
        augment: the strong views.
        seed: of the views, the dropout and the images.
        rates: labelled boxes of each of the detector's classes an image of the source.
        progress: called with (done, all).
    """
    steps = sorted(checkpoints)
    count = max(IMAGES // 3, min(IMAGES, LOOKS // len(steps)))
    spec, chosen = detector.spec, choose(images, count, seed)
    canvases = [canvas for _, canvas, _ in plain_images(chosen, spec.image_size, spec.reading)]
    views = [strong(canvas, augment, np.random.default_rng([seed, i])) for i, canvas in enumerate(canvases)]
    candidates: list[Candidate] = []
    by_image: list[NDArray[np.float64]] = []
    start: Looks | None = None
    for done, step in enumerate(steps, 1):
        load_weights(detector, checkpoints[step])
        looks = look(detector, canvases, views, seed)
        start = start or looks
        by_image.append(ranked_by_image(looks.plain, looks.changed, rates))
        candidates.append(Candidate(step=step, scores=score(looks, start, rates, by_image[-1])))
        if progress is not None:
            progress(done, len(steps))
    chosen_step = latest_as_good(candidates, by_image)
    load_weights(detector, checkpoints[chosen_step])
    return Selection(rule=RULE, chosen_step=chosen_step, candidates=tuple(candidates))


def latest_as_good(candidates: Sequence[Candidate], by_image: Sequence[NDArray[np.float64]]) -> int:
    """The step of the latest checkpoint that is not worse than the best by more than a standard error, or `LOST`.

    An adaptation is made to help, so a score that cannot tell two checkpoints apart is no reason to go back: the one
    standard error rule (Breiman et al. 1984), which prefers the simpler model there, prefers the later one here. The
    error is that of the mean difference of two checkpoints on the same images. On few images it is so large that it
    would excuse a collapse, hence the share.

    Args:
        candidates: with their scores, in the order of their steps, the start first; those that `KEPT` or `PLAUSIBLE`
            exclude are out where others are left.
        by_image: for each the rule's score of each image, (N,).
    """
    start = candidates[0].scores["plausible"]
    eligible = [
        i
        for i, one in enumerate(candidates)
        if one.scores["kept"] >= KEPT and one.scores["plausible"] >= PLAUSIBLE * start
    ] or list(range(len(candidates)))
    best = max(eligible, key=lambda i: candidates[i].scores[RULE])
    for i in reversed(eligible):
        difference = by_image[best] - by_image[i]
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        if difference.mean() <= min(error, LOST * candidates[best].scores[RULE]):
            return candidates[i].step
    raise AssertionError("the best is as good as itself")


class Looks(NamedTuple):
    """What a detector finds in each image: as it is, with features dropped, and in a strong view."""

    plain: list[Detections]
    dropped: list[Detections]
    changed: list[Detections]


def look(detector: Detector, canvases: Sequence[Image], views: Sequence[Image], seed: int = 0) -> Looks:
    """The detections that scores are made of.

    Args:
        detector: evaluated as it is, in eval mode.
        canvases: (H, W, 3) target images on the detector's canvas.
        views: a strong view of each, in the same geometry.
        seed: of the dropout.
    """
    device = device_of(detector)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    looks = Looks([], [], [])
    with evaluating(detector):
        for start in range(0, len(canvases), 8):
            features = detector.features(_tensor(canvases[start : start + 8], device))
            looks.plain.extend(detector.decode(detector.head(features)))
            masks = [torch.rand((*level.shape[:2], 1, 1), generator=generator) >= DROPOUT for level in features]
            remaining = [level * mask.to(level) / (1 - DROPOUT) for level, mask in zip(features, masks, strict=True)]
            looks.dropped.extend(detector.decode(detector.head(remaining)))
            looks.changed.extend(detector.decode(detector(_tensor(views[start : start + 8], device))))
    return looks


def score(
    looks: Looks, start: Looks, rates: Sequence[float], by_image: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """The scores of a detector, higher is better.

    Args:
        looks: the detector's.
        start: those of the detector that it was before the adaptation, at the same images and views.
        rates: labelled boxes of each class an image of the source.
        by_image: what `ranked_by_image` gives of these looks, (N,), where that is known already.
    """
    before = (counts(start.plain, len(rates)) + counts(start.changed, len(rates))) / 2
    if by_image is None:
        by_image = ranked_by_image(looks.plain, looks.changed, rates)
    return {
        RULE: float(by_image.mean()) if len(by_image) else 0.0,
        "plausible": plausible(looks.plain, looks.changed, before, rates),
        "kept": kept(start.plain, looks.plain),
        "stability": stability(looks.plain, looks.dropped),
        "agreement": agreement(looks.plain, looks.changed),
        "consensus": consensus(looks.plain, looks.changed),
    }


def ranked_by_image(
    weak: Sequence[Detections], strong_view: Sequence[Detections], rates: Sequence[float]
) -> NDArray[np.float64]:
    """Of each image, how far two views agree on the boxes of the highest scores over all images, (N,).

    Of each class as many boxes are looked at in a view, over all images, as `SHARE` of `rates` makes. An image's value
    is the summed IoU of those that are matched, over that number an image; without ties the mean is at most 1. Classes
    count by the square root of their rate, as rare ones are seen in few of the images.

    Args:
        weak: detections, one an image.
        strong_view: those in another view of it.
        rates: labelled boxes of each class an image of the source.
    """
    images = max(1, len(weak))
    numbers = np.round(SHARE * images * np.asarray(rates, np.float64)) / images
    weights = np.sqrt(numbers)
    first, second = (_highest(view, numbers) for view in (weak, strong_view))
    matched = np.zeros((len(weak), len(numbers)))
    for image, (a, b) in enumerate(zip(first, second, strict=True)):
        iou, rows, _ = match.best(a, b)
        np.add.at(matched[image], a.labels[rows], iou)
    values: NDArray[np.float64] = (matched / np.maximum(numbers, 1e-9)) @ weights / max(weights.sum(), 1e-9)
    return values


def _highest(found: Sequence[Detections], numbers: NDArray[np.float64]) -> list[Detections]:
    """Of each class the so many (C,) boxes an image that have the highest scores of all images together."""
    scores = np.concatenate([np.zeros(0, np.float32), *(one.scores for one in found)])
    labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in found)])
    lowest = np.full(len(numbers), np.inf, np.float32)
    for label, number in enumerate(numbers):
        of_class = np.sort(scores[labels == label])[::-1][: round(number * len(found))]
        if len(of_class):
            lowest[label] = of_class[-1]
    return [one.above(lowest) for one in found]


def plausible(
    weak: Sequence[Detections],
    strong_view: Sequence[Detections],
    one: Sequence[float] | NDArray[np.float64],
    other: Sequence[float] | NDArray[np.float64],
) -> float:
    """An F1 of what both views find, were there as many objects as is plausible: 0..1.

    Of each class, with m the summed IoU of boxes that are matched between the views, n the boxes shown in a view, both
    an image, and N the number of objects, this is 2 min(m, N) / (n + N). N is not known. It is taken to be n as far as
    that lies between two opinions which self-training cannot move; so what is found beyond both counts as false, and
    what is missing from both as missed. Classes count by the square root of the larger opinion, as rare ones are seen
    in few of the images.

    Args:
        weak: detections, one an image.
        strong_view: those in another view of it.
        one: objects of each class an image, for example what the start finds.
        other: likewise, for example what the source's labels have.
    """
    least, most = np.minimum(one, other), np.maximum(one, other)
    shown = (counts(weak, len(most)) + counts(strong_view, len(most))) / 2
    matched = np.zeros(len(most))
    for a, b in zip((d.above(SHOWN) for d in weak), (d.above(SHOWN) for d in strong_view), strict=True):
        iou, rows, _ = match.best(a, b)
        np.add.at(matched, a.labels[rows], iou)
    matched /= max(1, len(weak))
    objects = np.clip(shown, least, most)
    f1 = 2 * np.minimum(matched, objects) / np.maximum(shown + objects, 1e-9)
    weights = np.sqrt(most)
    return float((f1 * weights).sum() / weights.sum()) if weights.any() else 0.0


def counts(found: Sequence[Detections], classes: int) -> NDArray[np.float64]:
    """Shown boxes of each class an image, (C,)."""
    labels = np.concatenate([np.zeros(0, np.int64), *(one.above(SHOWN).labels for one in found)])
    return np.bincount(labels, minlength=classes) / max(1, len(found))


def kept(start: Sequence[Detections], now: Sequence[Detections]) -> float:
    """The share of the start's sure boxes that are shown with an IoU of at least 0.5; 1 where it is sure of none."""
    total, found = 0, 0
    for before, after in zip(start, now, strict=True):
        sure = before.above(SURE)
        total += len(sure)
        found += int((match.best(sure, after.above(SHOWN))[0] >= 0.5).sum())
    return found / total if total else 1.0


def stability(plain: Sequence[Detections], dropped: Sequence[Detections]) -> float:
    """Mean IoU of each shown box with the box it is matched to after feature dropout; 0 where there is none.

    Boxes are matched one to one by the Hungarian method on IoU, as in BoS; 0 for a detector that shows no box at
    all, which would otherwise be perfectly stable.
    """
    total, count = 0.0, 0
    for a, b in zip(plain, dropped, strict=True):
        shown = a.above(SHOWN)
        total += float(match.best(shown, b.above(SHOWN / 2))[0].sum())
        count += len(shown)
    return total / count if count else 0.0


def agreement(weak: Sequence[Detections], strong_view: Sequence[Detections]) -> float:
    """Soft Dice of two views' detections: twice the matched weight over both views' scores.

    A matched pair of one class weighs its IoU times the smaller score. 0 for a detector that shows no box.
    """
    both, total = _overlap(weak, strong_view)
    return 2 * both / total if total else 0.0


def consensus(weak: Sequence[Detections], strong_view: Sequence[Detections]) -> float:
    """The matched weight of `agreement`, an image: about how many objects both views find, of 0 or more."""
    return _overlap(weak, strong_view)[0] / len(weak) if weak else 0.0


def _overlap(weak: Sequence[Detections], strong_view: Sequence[Detections]) -> tuple[float, float]:
    """The matched weight of two views' shown detections, and all their scores."""
    both, total = 0.0, 0.0
    for a, b in zip((d.above(SHOWN) for d in weak), (d.above(SHOWN) for d in strong_view), strict=True):
        iou, rows, columns = match.best(a, b)
        both += float((iou * np.minimum(a.scores[rows], b.scores[columns])).sum())
        total += float(a.scores.sum() + b.scores.sum())
    return both, total


def rank(selection: Selection, hindsight: Mapping[int, float]) -> Selection:
    """`selection` with each candidate's AP50 in hindsight and how well each score ranked them (Kendall's tau)."""
    candidates = tuple(
        candidate.model_copy(update={"hindsight_ap50": hindsight.get(candidate.step)})
        for candidate in selection.candidates
    )
    known = [c for c in candidates if c.hindsight_ap50 is not None]
    truth = [c.hindsight_ap50 for c in known]
    taus: dict[str, float] = {}
    for name in known[0].scores if len(known) > 1 else ():
        tau = float(kendalltau([c.scores[name] for c in known], truth).statistic)
        if np.isfinite(tau):
            taus[name] = tau
    return selection.model_copy(update={"candidates": candidates, "rank_correlation": taus})


def _tensor(images: Sequence[Image], device: torch.device) -> torch.Tensor:
    batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    return batch.float().contiguous(memory_format=torch.channels_last)
