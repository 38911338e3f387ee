"""The detector's own losses on what a labeller has found in the target images, strong view.

Where the mean teacher follows the student, a labeller stands still: a larger detector, or one that a great deal of data
has trained, whose boxes were written to a file before (`acclimate label`). Lavoie, Mahmoud and Waslander 2025 ("Large
Self-Supervised Models Bridge the Gap in Domain Adaptive Object Detection", CVPR) adapt by such labels.

What it is sure of is a target, by thresholds class by class; what it is less sure of is ignored. With `agreement` the
mean teacher looks at the same image, and what only one of the two shows is ignored as well: two detectors that were
trained in different ways are seldom wrong in the same place. Boxes that both show are fused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.adapt.teacher import NEVER, UNSURE, as_targets, measure
from acclimate.boxes.fusion import IOU, fuse
from acclimate.boxes.match import overlaps
from acclimate.config import LabelsConfig
from acclimate.data import scored
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations, Detections

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


class Labels(Term):
    """See the module."""

    views: ClassVar[tuple[View, ...]] = ("target_strong",)
    name: ClassVar[str] = "labels"

    def __init__(
        self,
        config: LabelsConfig,
        thresholds: Sequence[float],
        teacher_thresholds: Sequence[float] | None = None,
    ) -> None:
        """With the score of each class from which the labeller is sure, and, for `agreement`, the mean teacher."""
        super().__init__()
        self.config = config
        self._thresholds = np.asarray(thresholds, np.float32)
        self._teacher = None if teacher_thresholds is None else np.asarray(teacher_thresholds, np.float32)

    @classmethod
    def create(cls, options: LabelsConfig, detector: Detector, source: LabelledSet) -> Labels:
        """With the thresholds of the file, or the configured ones.

        Raises:
            AcclimateError: the file cannot be read, or there is no threshold for a class of the detector.
        """
        known = scored.read(options.file)
        classes = detector.spec.classes
        teacher = measure(detector, source).thresholds if options.agreement else None
        if teacher is not None:
            order = [source.classes.index(name) for name in classes]
            teacher = [teacher[place] for place in order]
        return cls(options, _thresholds(options, known, classes), teacher)

    def forward(self, step: Step) -> dict[str, Tensor]:
        assert step.target is not None
        assert step.target.found is not None
        ramp = min(1.0, step.progress / self.config.ramp) if self.config.ramp > 0 else 1.0
        if self._teacher is None:
            targets = [as_targets(one, self._thresholds, self.config.doubt) for one in step.target.found]
        else:
            seen = step.average.decode(step.average_raw("target_weak"))
            targets = [
                agreed(own, other, self._thresholds, self._teacher, self.config.doubt)
                for own, other in zip(step.target.found, seen, strict=True)
            ]
        losses = step.losses("target_strong", targets)
        return {f"labels/{name}": ramp * self.config.weight * loss for name, loss in losses.items()}


def agreed(
    labelled: Detections,
    seen: Detections,
    thresholds: NDArray[np.float32],
    teacher_thresholds: NDArray[np.float32],
    doubt: float,
) -> Annotations:
    """Boxes that either is sure of and both show, fused; whatever else either shows is ignored.

    Args:
        labelled: of the labeller, in one image.
        seen: of the mean teacher, in the same pixels.
        thresholds: (C,), the score from which the labeller is sure.
        teacher_thresholds: (C,), likewise.
        doubt: fraction of the threshold from which a detection is shown at all.
    """
    shown = []
    for found, needed in ((labelled, thresholds), (seen, teacher_thresholds)):
        kept = found[found.scores >= doubt * np.minimum(needed, UNSURE)[found.labels]]
        # Scores of two detectors are not alike: each counts by how sure its own threshold makes it.
        shown.append((kept, kept.scores >= needed[kept.labels]))
    (own, own_sure), (other, other_sure) = shown
    both = fuse([own, other], IOU)
    sure: NDArray[np.bool_] = np.zeros(len(both), bool)
    if len(own) and len(other):
        partners = [overlaps(both, one) > IOU for one in (own, other)]
        met = np.all([overlap.any(1) for overlap in partners], 0)
        flags = (own_sure, other_sure)
        convinced = np.any([(overlap & flag[None]).any(1) for overlap, flag in zip(partners, flags, strict=True)], 0)
        sure = met & convinced
    return Annotations(both.boxes, both.labels, ~sure)


def _thresholds(options: LabelsConfig, known: scored.ScoredLabels, classes: Sequence[str]) -> list[float]:
    """Of each of the detector's classes; a class that the labeller does not know is never labelled."""
    told: Mapping[str, float] = known.thresholds
    if isinstance(options.threshold, float | int):
        told = dict.fromkeys(known.classes, float(options.threshold))
    elif isinstance(options.threshold, dict):
        told = {**told, **options.threshold}
    absent = [name for name in classes if name in known.classes and name not in told]
    if absent:
        raise AcclimateError(
            f"{options.file}: says from which score its labeller is sure of no {absent[0]}; label with --source SET, "
            "which measures it, or give adapt.labels.threshold=0.5"
        )
    return [told.get(name, NEVER) for name in classes]
