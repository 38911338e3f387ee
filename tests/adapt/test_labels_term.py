"""A labeller's boxes as targets: thresholds by class, what is doubtful, and agreement with the mean teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_teacher import batch, detector

from acclimate.adapt.labels import Labels, _thresholds, agreed
from acclimate.adapt.objective import Objective, Step
from acclimate.adapt.teacher import NEVER
from acclimate.config import LabelsConfig
from acclimate.data.scored import ScoredLabels
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations, Detections

FILE = Path("labels.json")
HALF = np.float32([0.5, 0.5])


def found(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    table = np.array(sorted(rows, key=lambda row: -row[5]), np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(np.float32))


def losses(term: Labels, seen: Detections, progress: float = 1.0) -> dict[str, torch.Tensor]:
    objective = Objective(detector(), [term], 0.9, warm=False).train()
    target = replace(batch(2), found=[seen, seen])
    step = Step(objective.detector, objective.average, batch(1, labelled=True), target, progress, objective.views)
    return term(step)


def test_sure_boxes_are_the_targets() -> None:
    """The losses are the detector's own on boxes that a person would have drawn there."""
    config = LabelsConfig(file=FILE, weight=2.0, doubt=1.0)
    seen = found((8, 8, 40, 48, 1, 0.8), (0, 0, 10, 10, 0, 0.3))
    told = losses(Labels(config, [0.5, 0.5]), seen)
    objective = Objective(detector(), [Labels(config, [0.5, 0.5])], 0.9, warm=False).train()
    step = Step(objective.detector, objective.average, batch(1), batch(2), 1.0, objective.views)
    box = Annotations(np.float32([[8, 8, 40, 48]]), np.array([1]), np.array([False]))
    for name, loss in step.losses("target_strong", [box, box]).items():
        torch.testing.assert_close(told[f"labels/{name}"], 2.0 * loss)


def test_the_weight_rises() -> None:
    term = Labels(LabelsConfig(file=FILE, ramp=0.5), [0.5, 0.5])
    seen = found((8, 8, 40, 48, 1, 0.8))
    early, late = losses(term, seen, 0.25), losses(term, seen, 0.75)
    for name in late:
        torch.testing.assert_close(early[name], 0.5 * late[name])


def test_agreement_looks_at_the_mean_teacher() -> None:
    """The losses are those on what its detections in the weak view and the labeller's agree on."""
    config = LabelsConfig(file=FILE, agreement=True)
    seen = found((8, 8, 40, 48, 1, 0.8), (0, 0, 9, 9, 0, 0.9))
    told = losses(Labels(config, [0.5, 0.5], [0.4, 0.4]), seen)
    objective = Objective(detector(), [Labels(config, HALF.tolist())], 0.9, warm=False).train()
    step = Step(objective.detector, objective.average, batch(1), batch(2), 1.0, objective.views)
    with torch.no_grad():
        shown = objective.average.decode(objective.average(batch(2).weak))
    targets = [agreed(seen, one, HALF, np.float32([0.4, 0.4]), 0.0) for one in shown]
    assert sum(len(one) for one in targets) > 2 * len(seen), "the teacher shows something of its own"
    for name, loss in step.losses("target_strong", targets).items():
        torch.testing.assert_close(told[f"labels/{name}"], loss)


def test_what_both_show_is_sure_and_what_one_shows_is_ignored() -> None:
    own = found((10, 10, 30, 30, 0, 0.9), (50, 50, 70, 70, 1, 0.9))
    teacher = found((12, 10, 32, 30, 0, 0.3), (80, 80, 90, 90, 1, 0.95))
    both = agreed(own, teacher, HALF, HALF, 0.0)
    sure = both.boxes[~both.ignore]
    assert sure.shape == (1, 4)
    # Weighted by the scores, as weighted boxes fusion does.
    np.testing.assert_allclose(sure[0], [10 + 2 * 0.3 / 1.2, 10, 30 + 2 * 0.3 / 1.2, 30], rtol=1e-5)
    assert int(both.ignore.sum()) == 2


@pytest.mark.parametrize(
    ("rows", "sure"),
    [
        (((10, 10, 30, 30, 0, 0.4), (12, 10, 32, 30, 0, 0.3)), 0),  # neither is sure
        (((10, 10, 30, 30, 0, 0.9), (12, 10, 32, 30, 1, 0.9)), 0),  # of another class
        (((10, 10, 30, 30, 0, 0.9), (25, 25, 45, 45, 0, 0.9)), 0),  # elsewhere
        (((10, 10, 30, 30, 0, 0.4), (12, 10, 32, 30, 0, 0.9)), 1),
    ],
)
def test_agreement_by_hand(rows: tuple[Any, Any], sure: int) -> None:
    both = agreed(found(rows[0]), found(rows[1]), HALF, HALF, 0.0)
    assert int((~both.ignore).sum()) == sure
    # Nothing that either shows is taken for background.
    assert len(both) >= 1
    empty = agreed(found(rows[0]), found(), HALF, HALF, 0.0)
    assert empty.ignore.all()
    assert len(agreed(found(), found(), HALF, HALF, 0.0)) == 0


def test_thresholds_are_the_files_unless_told_otherwise() -> None:
    known = ScoredLabels(("a", "b"), {}, {"a": 0.3, "b": 0.7})
    classes = ("b", "a", "c")
    assert _thresholds(LabelsConfig(file=FILE), known, classes) == [0.7, 0.3, NEVER]
    assert _thresholds(LabelsConfig(file=FILE, threshold=0.4), known, classes) == [0.4, 0.4, NEVER]
    assert _thresholds(LabelsConfig(file=FILE, threshold={"a": 0.5}), known, classes) == [0.7, 0.5, NEVER]
    with pytest.raises(AcclimateError, match="sure of no b; label with --source SET"):
        _thresholds(LabelsConfig(file=FILE, threshold={"a": 0.5}), ScoredLabels(("a", "b"), {}), classes)
    with pytest.raises(ValueError, match="threshold is a score"):
        LabelsConfig(file=FILE, threshold=1.5)
