"""The mean teacher on unlabelled target images: what the averaged weights see in the weak view teaches the strong view.

Tarvainen and Valpola 2017 (mean teacher), Li et al. 2022 (Adaptive Teacher), Kay et al. 2024 (ALDI). Three
kinds of targets, each with its weight:

- boxes: the teacher's detections after NMS become targets of the detector's own losses, as labelled boxes would.
  Detections it is less sure of are ignored rather than taken for background. The assignment then asks a matched
  location for the overlap it reaches, which also raises scores that the shift has lowered.
- mix: the same boxes inside a part of the target image that is pasted into a source image (`adapt/mixing.py`).
- soft: the teacher's probabilities and boxes, location by location, without decoding or NMS. Both views share one
  geometry, so locations of a dense head correspond. It keeps the teacher's scores as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate.adapt.looks import check, fused, look_again, predict_twice
from acclimate.adapt.mixing import confident_quarter, paste, random_part
from acclimate.adapt.objective import Step, Term, View
from acclimate.adapt.source_statistics import SourceStatistics
from acclimate.boxes import match
from acclimate.boxes.iou import pairwise
from acclimate.config import TeacherConfig
from acclimate.data.dataset import choose
from acclimate.errors import AcclimateError
from acclimate.models.predict import predict
from acclimate.select.ask.mining import LEAST, apart, found_again, pasted
from acclimate.structures import Annotations, Detections

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.models.detector import Detector


class Teacher(Term):
    """See the module. The teacher is the objective's average of the weights, in eval mode on the weak view."""

    views: ClassVar[tuple[View, ...]] = ("target_strong",)
    name: ClassVar[str] = "teacher"

    thresholds: Tensor
    floors: Tensor
    rates: Tensor
    histogram: Tensor
    means: Tensor
    confidence: Tensor

    def __init__(self, config: TeacherConfig, known: Known) -> None:
        """With what is `known` of the teacher's scores, see `measure`."""
        super().__init__()
        self.config = config
        self.register_buffer("thresholds", torch.tensor(known.thresholds, dtype=torch.float32))
        self.register_buffer("floors", torch.tensor(known.floors, dtype=torch.float32))
        self.register_buffer("rates", torch.tensor(known.rates, dtype=torch.float32))
        self.register_buffer("histogram", torch.zeros(len(known.thresholds), BINS))
        if config.threshold == "adaptive":
            self.register_buffer("means", torch.tensor(known.means, dtype=torch.float32))
            self.register_buffer("confidence", self.means.clone())
        if config.mix > 0:
            own: tuple[View, ...] = ("target_strong",) if config.boxes > 0 or config.soft > 0 else ()
            self.views = (*own, "mixed")  # type: ignore[misc]

    @property
    def one_width(self) -> str:
        mixes = "teacher.mix: images of both domains are not made for several widths; set it to 0"
        return mixes if "mixed" in self.views else ""

    @classmethod
    def create(cls, options: TeacherConfig, detector: Detector, source: LabelledSet | SourceStatistics) -> Teacher:
        """With the configured threshold, or those measured on `MEASURED` labelled source images, now or by the run.

        Raises:
            AcclimateError: the teacher is to look at images of a size that the detector does not take, or twice, and
                only a single look at the source was measured.
        """
        check(detector, options.scale)
        if not isinstance(options.threshold, str):
            return cls(options, Known.fixed([float(options.threshold)] * len(detector.spec.classes)))
        if not isinstance(source, SourceStatistics):
            return cls(options, measure(detector, source, options.scale, options.flip))
        if options.scale > 1 or options.flip:
            raise AcclimateError(
                "adapt.teacher: scores of two looks need a threshold that source images tell, and there are none; set "
                "adapt.teacher.threshold to a score, or leave out scale and flip"
            )
        return cls(options, Known(source.thresholds, source.floors, source.rates, source.means))

    def prepare(self, step: Step) -> None:
        if self.config.mix == 0 or step.target is None:
            return
        images, targets = step.images("target_strong"), self._targets(step)
        size = int(images.shape[-2]), int(images.shape[-1])
        if self.config.mix_part == "random":
            parts = [random_part(size) for _ in targets]
        else:
            parts = [confident_quarter(found, size) for found in self._found(step)]
        assert step.source is not None
        assert step.source.targets is not None
        step.provide("mixed", *paste(step.images("source_strong"), step.source.targets, images, targets, parts))

    def forward(self, step: Step) -> dict[str, Tensor]:
        view: View = "target_strong"
        ramp = min(1.0, step.progress / self.config.ramp) if self.config.ramp > 0 else 1.0
        losses: dict[str, Tensor] = {}
        if self.config.boxes > 0:
            for name, loss in step.losses(view, self._targets(step)).items():
                moves = step.detector.loss_kinds[name] == "box"
                weight = self.config.boxes * (self.config.regression if moves else 1.0)
                losses[f"teacher/{name}"] = ramp * weight * loss
        if self.config.soft > 0:
            trusted = float(self.thresholds.min())
            for name, loss in step.distillation(view, step.average_raw("target_weak"), trusted).items():
                losses[f"teacher/soft_{name}"] = ramp * self.config.soft * loss
        if self.config.mix > 0:
            for name, loss in step.losses("mixed", step.targets("mixed")).items():
                losses[f"teacher/mix_{name}"] = ramp * self.config.mix * loss
        return losses

    def _found(self, step: Step) -> list[Detections]:
        """What the teacher finds in the weak view, by one look or two; once a step."""
        if "teacher" not in step.notes:
            found = step.average.decode(step.average_raw("target_weak"))
            if self.config.scale > 1 or self.config.flip:
                weak = step.images("target_weak")
                assert step.target is not None
                closer = weak if step.target.large is None else step.target.large
                size = int(weak.shape[-2]), int(weak.shape[-1])
                found = fused(found, look_again(step.average, closer, size, self.config.flip))
            step.notes["teacher"] = found, self._current(found)
        kept: list[Detections] = step.notes["teacher"][0]
        return kept

    def _targets(self, step: Step) -> list[Annotations]:
        found, thresholds = self._found(step), step.notes["teacher"][1]
        if "consistent" not in step.notes:
            step.notes["consistent"] = [self._consistent(step, index, one) for index, one in enumerate(found)]
        return [
            as_targets(one, thresholds, self.config.doubt, sure)
            for one, sure in zip(found, step.notes["consistent"], strict=True)
        ]

    def _consistent(self, step: Step, index: int, found: Detections) -> NDArray[np.bool_] | None:
        """Which detections of an image of the batch are found again where they are pasted into source images.

        Wang et al. 2018, self-supervised sample mining: a region that is the same object in other surroundings can be
        believed, also with a score that the shift has lowered.
        """
        if self.config.mining == 0 or not len(found):
            return None
        likely = np.flatnonzero(found.scores >= LEAST)
        places = likely[apart(found[likely])]
        sure = np.zeros(len(found), bool)
        if not len(places):
            return sure
        grounds = step.images("source_weak")
        others = [(index + turn) % len(grounds) for turn in range(min(self.config.mining, len(grounds)))]
        images = pasted(grounds[others], step.images("target_weak")[index], found[places])
        with torch.no_grad():
            again = step.average.decode(step.average(images))
        sure[places] = np.mean([found_again(found[places], one) for one in again], axis=0) > HALF
        return sure

    def _current(self, found: Sequence[Detections]) -> NDArray[np.float32]:
        """The thresholds, moved to where the target's scores are (running estimates)."""
        thresholds: NDArray[np.float32] = self.thresholds.cpu().numpy()
        if self.config.threshold == "adaptive":
            return self._adapted(found, thresholds)
        if self.config.threshold != "matched":
            return thresholds
        counts = np.zeros(self.histogram.shape, np.float32)
        for one in found:
            np.add.at(counts, (one.labels, np.minimum((one.scores * BINS).astype(np.int64), BINS - 1)), 1)
        step = torch.from_numpy(counts).to(self.histogram) / max(1, len(found))
        self.histogram.lerp_(step, 1 - MEMORY if self.histogram.any() else 1.0)
        above = self.histogram.flip(1).cumsum(1).flip(1).cpu().numpy()
        enough = above >= self.rates.cpu().numpy()[:, None]
        matched = np.where(enough, np.arange(BINS, dtype=np.float32) / BINS, 0).max(1)
        return np.asarray(np.clip(matched, self.floors.cpu().numpy(), thresholds), np.float32)

    def _adapted(self, found: Sequence[Detections], thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
        """The source's thresholds times the teacher's mean score on the target over that on the source, class by class.

        Wang et al. 2023, FreeMatch, section 4: a running mean of the confidence tells how far a class has been learnt.
        A class of which the target shows fewer objects keeps its threshold, unlike one that is `matched`; and where
        self-training raises scores, the threshold rises with them, up to `CEILING`.
        """
        labels = np.concatenate([one.labels for one in found])
        scores = np.concatenate([one.scores for one in found])
        floors, means = self.floors.cpu().numpy(), self.means.cpu().numpy()
        for label in range(len(thresholds)):
            mine = scores[(labels == label) & (scores >= floors[label])]
            if len(mine):
                self.confidence[label].lerp_(self.confidence.new_tensor(float(mine.mean())), 1 - MEMORY)
        moved = thresholds * self.confidence.cpu().numpy() / np.maximum(means, 1e-6)
        return np.where(thresholds > 1, thresholds, np.clip(moved, floors, np.maximum(thresholds, CEILING)))


class Known(NamedTuple):
    """What labelled images tell of a detector's scores, one value a class.

    Attributes:
        thresholds: from which a detection is sure.
        floors: how far a threshold may fall where the target's scores are lower.
        rates: detections an image that the threshold lets through.
        means: mean score of the detections from the floor on.
    """

    thresholds: Sequence[float]
    floors: Sequence[float]
    rates: Sequence[float]
    means: Sequence[float] = ()

    @classmethod
    def fixed(cls, thresholds: Sequence[float]) -> Known:
        """Thresholds that stay where they are."""
        return cls(thresholds, thresholds, [0.0] * len(thresholds))


MEASURED = 96
"""Source images that the thresholds are measured on, evenly spread."""
BETA = 0.5
"""Precision counts twice as much as recall: a wrong target box costs more than a missing one."""
MIN_PRECISION = 0.5
"""A class that is not right at least this often on the source, where it was trained, gives no target box."""
NEVER = 2.0
"""A threshold that no score reaches."""
HALF = 0.5
"""A detection that is found again in more than this share of the source images that it is pasted into is a target."""
UNSURE = 0.5
"""What `doubt` is a fraction of where the threshold is higher: what a class that is never sure may be
is not background either."""
MATCHED = 0.5
"""How far a threshold may fall, at most, to match the source's rate of detections."""
SAFE = 2 / 3
"""And only as far as this share of what it lets through is right on the source. Where the target has fewer objects of
a class than the source, a rate that is matched is made up of mistakes."""
CEILING = 0.9
"""How far an adaptive threshold may rise."""
BINS = 100
MEMORY = 0.95
"""Of the running histogram of the teacher's scores, a step."""


def as_targets(
    found: Detections, thresholds: NDArray[np.float32], doubt: float, consistent: NDArray[np.bool_] | None = None
) -> Annotations:
    """Sure detections as boxes, doubtful ones as regions to ignore; what is below both is background.

    Args:
        found: of one image.
        thresholds: (C,), the score from which a detection of each class is sure.
        doubt: the fraction of it from which it is doubtful.
        consistent: (N,), detections that are sure whatever their score; None without any.
    """
    needed = thresholds[found.labels]
    unsure = found.scores < needed
    kept = found.scores >= doubt * np.minimum(needed, UNSURE)
    if consistent is not None:
        # A class that is never sure on the source is none here either.
        consistent = consistent & (needed < NEVER)
        unsure, kept = unsure & ~consistent, kept | consistent
    return Annotations(found.boxes[kept], found.labels[kept], unsure[kept])


def measure(detector: Detector, source: LabelledSet, scale: float = 1.0, flip: bool = False) -> Known:
    """What `MEASURED` of the source's images tell of a detector's scores, in the order of the source's classes.

    Args:
        detector: knows the same classes, in whatever order.
        source: labelled images.
        scale: of a second look at them, as the teacher takes it (`adapt/looks.py`).
        flip: whether that is mirrored.
    """
    classes = len(source.classes)
    images = source.images[:: max(1, len(source.images) // MEASURED)]
    order = np.array([source.classes.index(name) for name in detector.spec.classes])
    paths = [image.path for image in images]
    if scale > 1 or flip:
        seen = predict_twice(detector, paths, scale, flip)
        detections = [seen.get(path) for path in paths]
    else:
        detections = predict(detector, paths)
    read = [(one, image.annotations) for one, image in zip(detections, images, strict=True) if one is not None]
    found = [Detections(one.boxes, order[one.labels], one.scores) for one, _ in read]
    return known_from(found, [annotations for _, annotations in read], classes)


def counted(detector: Detector, source: LabelledSet, target: UnlabelledSet, seed: int) -> list[int]:
    """Boxes of each of the source's classes that the detector is sure of on `MEASURED` target images.

    Sure by the thresholds that `measure` finds on the source; a class that is never sure there counts nothing.

    Args:
        detector: what looks.
        source: labelled images, which say what is sure.
        target: images without labels.
        seed: of the draw of images.
    """
    thresholds = measure(detector, source).thresholds
    counts = [0] * len(source.classes)
    for found in predict(detector, choose(target.paths, MEASURED, seed)):
        if found is None:
            continue
        for own, score in zip(found.labels, found.scores, strict=True):
            label = source.classes.index(detector.spec.classes[own])
            counts[label] += bool(score >= thresholds[label])
    return counts


def known_from(found: Sequence[Detections], truth: Sequence[Annotations], classes: int) -> Known:
    """Each class's threshold is the score of its best F-beta (`BETA`) at IoU 0.5, on labelled images.

    The source's labels set what counts as sure, so no target label has to. A class without labelled boxes, or whose
    precision at its best stays below `MIN_PRECISION`, gets `NEVER`.

    Args:
        found: detections, one an image.
        truth: labelled boxes, in the same pixels and order.
        classes: how many there are.
    """
    thresholds, floors, rates, means = [], [], [], []
    for label in range(classes):
        scores, hits = [], []
        total = 0
        for detections, labelled in zip(found, truth, strict=True):
            mine = detections[detections.labels == label]
            boxes = labelled.boxes[(labelled.labels == label) & ~labelled.ignore]
            scores.append(mine.scores)
            hits.append(_hits(mine.boxes, boxes))
            total += len(boxes)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        ranked = np.concatenate(scores)[order]
        right = np.cumsum(np.concatenate(hits)[order])
        taken = np.arange(1, len(right) + 1)
        measure = (1 + BETA**2) * right / (taken + BETA**2 * total)
        best = int(measure.argmax()) if len(right) else 0
        sure = total > 0 and len(right) > 0 and right[best] >= MIN_PRECISION * taken[best]
        threshold = float(ranked[best]) if sure else NEVER
        safe = ranked[right >= SAFE * taken]
        thresholds.append(threshold)
        lowest = max(MATCHED * threshold, float(safe.min())) if sure and len(safe) else threshold
        floors.append(min(threshold, lowest))
        rates.append(float((ranked >= threshold).sum()) / max(1, len(found)))
        above = ranked[ranked >= floors[-1]]
        means.append(float(above.mean()) if len(above) else threshold)
    return Known(thresholds, floors, rates, means)


def _hits(found: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which detections, best first, match a box of their own with an IoU of at least 0.5."""
    return match.greedy(pairwise(found, boxes), 0.5) >= 0
