"""Scores that rank a run's checkpoints on unlabelled target images, and the choice made with them.

`stability`: Yang et al. 2024, "Bounding Box Stability against Feature Dropout Reflects Detector Generalization across
Environments" (BoS): how far boxes move when features are dropped. `agreement`: how far a weak and a strong view of one
image give the same detections. `consensus`: how much they both find. All look at detections alone, never at labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import kendalltau
from torchvision.ops import box_iou

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
RULE = "consensus"
"""The score that decides. The other two do not miss what is not found: a checkpoint that shows few boxes, which early
ones do, agrees with itself best. benchmarks/adaptation.csv has how well each ranks."""


def choose_checkpoint(
    detector: Detector,
    checkpoints: Mapping[int, Path],
    images: Sequence[Path],
    augment: AugmentConfig,
    seed: int,
    count: int = 48,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Score every checkpoint on the same `count` target images and views, and choose the best.

    Leaves the chosen weights in `detector`.
    """
    canvases = [
        canvas
        for _, canvas, _ in plain_images(choose(images, count, seed), detector.spec.image_size, detector.spec.reading)
    ]
    views = [strong(canvas, augment, np.random.default_rng([seed, i])) for i, canvas in enumerate(canvases)]
    candidates = []
    for done, (step, file) in enumerate(sorted(checkpoints.items())):
        load_weights(detector, file)
        candidates.append(Candidate(step=step, scores=score(detector, canvases, views, seed)))
        if progress is not None:
            progress(done + 1, len(checkpoints))
    best = max(candidates, key=lambda candidate: (candidate.scores[RULE], candidate.step))
    load_weights(detector, checkpoints[best.step])
    return Selection(rule=RULE, chosen_step=best.step, candidates=tuple(candidates))


def score(detector: Detector, canvases: Sequence[Image], views: Sequence[Image], seed: int = 0) -> dict[str, float]:
    """The scores of a detector, higher is better.

    Args:
        detector: evaluated as it is, in eval mode.
        canvases: (H, W, 3) target images on the detector's canvas.
        views: a strong view of each, in the same geometry.
        seed: of the dropout.
    """
    device = device_of(detector)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    plain: list[Detections] = []
    dropped: list[Detections] = []
    changed: list[Detections] = []
    with evaluating(detector):
        for start in range(0, len(canvases), 8):
            features = detector.features(_tensor(canvases[start : start + 8], device))
            plain += detector.decode(detector.head(features))
            masks = [torch.rand((*level.shape[:2], 1, 1), generator=generator) >= DROPOUT for level in features]
            kept = [level * mask.to(level) / (1 - DROPOUT) for level, mask in zip(features, masks, strict=True)]
            dropped += detector.decode(detector.head(kept))
            changed += detector.decode(detector(_tensor(views[start : start + 8], device)))
    return {
        "stability": stability(plain, dropped),
        "agreement": agreement(plain, changed),
        "consensus": consensus(plain, changed),
    }


def stability(plain: Sequence[Detections], dropped: Sequence[Detections]) -> float:
    """Mean IoU of each shown box with the box it is matched to after feature dropout; 0 where there is none.

    Boxes are matched one to one by the Hungarian method on IoU, as in BoS; 0 for a detector that shows no box at
    all, which would otherwise be perfectly stable.
    """
    total, count = 0.0, 0
    for a, b in zip(plain, dropped, strict=True):
        shown = a.above(SHOWN)
        total += float(_matched(shown, b.above(SHOWN / 2))[0].sum())
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
        iou, rows, columns = _matched(a, b)
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


def _matched(a: Detections, b: Detections) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """IoU, row and column of the best one-to-one matching of same-class boxes; pairs that do not overlap go."""
    if not len(a) or not len(b):
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    iou = box_iou(torch.from_numpy(a.boxes), torch.from_numpy(b.boxes)).numpy().astype(np.float64)
    iou[a.labels[:, None] != b.labels[None]] = 0.0
    rows, columns = linear_sum_assignment(iou, maximize=True)
    kept = iou[rows, columns] > 0
    return iou[rows, columns][kept], rows[kept], columns[kept]


def _tensor(images: Sequence[Image], device: torch.device) -> torch.Tensor:
    batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    return batch.float().contiguous(memory_format=torch.channels_last)
