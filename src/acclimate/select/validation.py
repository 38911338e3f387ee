"""The choice of a checkpoint by labelled frames that were held back for it.

A few frames tell more than any score without labels, and less than one would like: the report has the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from acclimate.data.formats import LabelledSet
from acclimate.evaluate import evaluate_detector
from acclimate.models.detector import Detector, load_weights
from acclimate.run import Evaluation, Selection
from acclimate.select.record import Validation

RULE = "validated_ap"
"""AP over IoU 0.5 to 0.95: on few boxes it has fewer ties than AP50."""


def choose_validated(
    detector: Detector,
    checkpoints: Mapping[int, Path],
    held: LabelledSet,
    without_labels: Selection,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Selection, Validation]:
    """Choose the checkpoint with the best AP on the frames held back, of equal ones the later.

    Leaves the chosen weights in `detector`.

    Args:
        detector: of the checkpoints' architecture.
        checkpoints: by step; 0 is the start.
        held: labelled frames that nothing was learnt from.
        without_labels: the scores that need no label; they stay beside the one that decides.
        progress: called with (done, all).
    """
    measured: dict[int, Evaluation] = {}
    for done, step in enumerate(sorted(checkpoints), 1):
        load_weights(detector, checkpoints[step])
        measured[step] = evaluate_detector(detector, held, "frames held back", "target")
        if progress is not None:
            progress(done, len(checkpoints))
    best = max(measured, key=lambda step: (measured[step].ap, step))
    load_weights(detector, checkpoints[best])
    candidates = tuple(
        one.model_copy(update={"scores": {**one.scores, RULE: measured[one.step].ap}})
        for one in without_labels.candidates
    )
    chosen = without_labels.model_copy(
        update={"rule": RULE, "chosen_step": best, "candidates": candidates, "validated_on": len(held)}
    )
    return chosen, Validation(start=measured.get(0), chosen=measured[best])
