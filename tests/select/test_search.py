from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from acclimate.config import Budget, ModelConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, build, specify
from acclimate.models.slimmable import SlimmableDetector
from acclimate.select.budget import Cost, Width
from acclimate.select.search import (
    Candidate,
    Ledger,
    Space,
    Survey,
    Upem,
    distance,
    evolve,
    greedy,
    hindsight,
    settle,
    spread,
)
from coloured_squares import SquareDetector, write_scenes

SPACE = Space(((0.25, 0.5, 0.75, 1.0),) * 3)
HARM, MACS = (9.0, 1.0, 4.0), (100.0, 100.0, 200.0)


def toy_cost(width: Width) -> Cost:
    return Cost(macs_m=float(np.dot(MACS, width)), latency_ms=1 + float(np.dot(MACS, width)) / 50)


def toy(width: Width) -> Candidate:
    """A separable bank: each stage harms by itself, the more the narrower it is."""
    harm = sum(h * (1 - w) ** 2 for h, w in zip(HARM, width, strict=True))
    return Candidate(width=width, upem=harm, cost=toy_cost(width))


def every(space: Space = SPACE) -> list[Candidate]:
    return [toy(width) for width in itertools.product(*space.choices)]


def test_distance_by_hand() -> None:
    anchor_scores, anchor_boxes = torch.tensor([[0.9, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4]])
    scores, boxes = torch.tensor([[0.6, 0.4], [0.5, 0.5]]), torch.tensor([[5.0, 0, 15, 10], [0, 0, 4, 4]])
    # ||(0.3, 0.4)|| = 0.5 and IoU 50 / 150; the second location agrees.
    assert distance(scores, boxes, anchor_scores, anchor_boxes) == pytest.approx((0.5 + 1 - 1 / 3) / 2)
    assert distance(scores, boxes, scores, boxes) == 0


@given(st.integers(0, 10_000))
def test_the_overlap_is_torchvisions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(5, 4, generator=generator) * 50 for _ in range(2))
    boxes, anchor = (torch.cat([b[:, :2], b[:, :2] + b[:, 2:] + 0.1], 1) for b in (first, second))
    scores = torch.zeros(5, 2)
    expected = 1 - box_iou(boxes, anchor).diagonal().mean().item()
    assert distance(scores, boxes, scores, anchor) == pytest.approx(expected, abs=1e-5)


class Fixed(SquareDetector):
    """Says what it is told to, whatever the image: as many locations as the canvas has, one class."""

    def __init__(self, logits: Tensor, shift: float = 0.0) -> None:
        super().__init__()
        self.logits, self.shift, self.calls = logits, shift, 0

    def features(self, images: Tensor) -> list[Tensor]:
        self.calls += 1
        return [images]

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        count = len(features[0])
        distances = torch.zeros(1, len(self.logits), 4) + self.shift
        return self.logits[None].expand(count, -1, -1), distances.expand(count, -1, -1)

    def boxes(self, distances: Tensor) -> Tensor:
        low = distances[..., :1].expand(*distances.shape[:2], 2)
        return torch.cat([low, low + 10], -1)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((24, 32, 3), np.uint8))
    return paths


def test_upem_looks_at_the_anchors_best_locations_alone(images: list[Path]) -> None:
    anchor = Fixed(torch.tensor([[2.0], [-9.0], [1.0], [-9.0]]))
    upem = Upem(anchor, images, locations=2)
    assert upem(anchor) == 0
    seen = anchor.calls
    # Where the anchor sees nothing another may see anything.
    assert upem(Fixed(torch.tensor([[2.0], [5.0], [1.0], [5.0]]))) == pytest.approx(0, abs=1e-6)
    expected = (torch.tensor(2.0).sigmoid() - torch.tensor(0.0).sigmoid()).item() / 2
    assert upem(Fixed(torch.tensor([[0.0], [-9.0], [1.0], [-9.0]]))) == pytest.approx(expected, abs=1e-6)
    # Boxes of 10 x 10 pixels moved by (1, 1): the overlap is 81 of 119.
    assert upem(Fixed(anchor.logits, shift=1.0)) == pytest.approx(1 - 81 / 119, abs=1e-6)
    assert anchor.calls == seen, "the anchor's outputs are kept"
    with pytest.raises(AcclimateError, match="locations are not those"):
        upem(Fixed(torch.zeros(3, 1)))


def test_what_has_no_locations_is_told(images: list[Path]) -> None:
    with pytest.raises(AcclimateError, match="'squares' have no locations"):
        Upem(SquareDetector(), images)


def test_greedy_takes_the_stage_that_harms_least_for_what_it_saves() -> None:
    judged = greedy(SPACE, toy, [Budget(macs_m=310)])
    # Steps from full width by hand: prices of a quarter less are h / 16 / (m / 4), so 9/400, 1/400, 4/800 ...
    widths = [one.width for one in judged]
    assert widths[0] == (1.0, 1.0, 1.0)
    assert set(widths[1:4]) == {(0.75, 1.0, 1.0), (1.0, 0.75, 1.0), (1.0, 1.0, 0.75)}
    best = min((one for one in judged if not one.cost.over(Budget(macs_m=310))), key=lambda one: one.upem)
    exact = min((one for one in every() if one.cost.macs_m <= 310), key=lambda one: one.upem)
    assert best.upem == exact.upem


def test_greedy_goes_on_for_the_tightest_budget_and_ends_at_the_smallest_width() -> None:
    loose, tight = Budget(macs_m=1000), Budget(macs_m=150)
    assert greedy(SPACE, toy, [loose]) == [toy(SPACE.largest)]
    assert min(one.cost.macs_m for one in greedy(SPACE, toy, [loose, tight])) <= 150
    assert SPACE.smallest in {one.width for one in greedy(SPACE, toy, [Budget(macs_m=1)])}


def test_evolution_finds_the_best_of_a_small_space_and_repeats_itself() -> None:
    space, budget = Space(((0.25, 0.5, 0.75, 1.0),) * 3), Budget(macs_m=260)
    found = evolve(space, toy, toy_cost, budget, [toy(space.smallest)], 30, (0, 1))
    assert all(not one.cost.over(budget) for one in found)
    assert len({one.width for one in found}) == len(found) <= 30
    exact = min((one for one in every() if one.cost.macs_m <= 260), key=lambda one: one.upem)
    assert min(one.upem for one in found) == exact.upem
    assert found == evolve(space, toy, toy_cost, budget, [toy(space.smallest)], 30, (0, 1))
    assert found != evolve(space, toy, toy_cost, budget, [toy(space.smallest)], 30, (1, 1))


def test_evolution_ends_where_nothing_fits() -> None:
    assert evolve(SPACE, toy, toy_cost, Budget(macs_m=1), [], 30, (0,)) == []


def truly(factor: float, memory: Callable[[Candidate], float] = lambda one: 100.0) -> Callable[[Candidate], Cost]:
    """Artifacts that are slower than predicted by a factor."""

    def measure(one: Candidate) -> Cost:
        asked.append(one.width)
        slower = factor * (one.cost.latency_ms or 0)
        return one.cost.model_copy(update={"latency_ms": slower, "memory_mb": memory(one)})

    asked: list[Width] = []
    measure.asked = asked  # type: ignore[attr-defined]
    return measure


def test_the_best_candidate_whose_artifact_holds_is_chosen() -> None:
    budget = Budget(latency_ms=6)
    outcome = settle(every(), budget, truly(1.0))
    assert outcome.met
    assert len(outcome.tries) == 1
    exact = min((one for one in every() if (one.cost.latency_ms or 0) <= 6), key=lambda one: one.upem)
    assert outcome.tries[0].upem == exact.upem


def test_a_broken_artifact_is_replaced_by_the_best_that_the_measurement_does_not_rule_out() -> None:
    outcome = settle(every(), Budget(latency_ms=6), truly(1.3))
    assert outcome.met
    first, last = outcome.tries
    assert first.measured.latency_ms == pytest.approx(1.3 * (first.predicted.latency_ms or 0))
    exact = min((one for one in every() if 1.3 * (one.cost.latency_ms or 0) <= 6), key=lambda one: one.upem)
    assert last.upem == exact.upem


def test_memory_is_not_predicted_and_what_computes_as_much_is_passed_over() -> None:
    outcome = settle(every(), Budget(memory_mb=60), truly(1.0, memory=lambda one: one.cost.macs_m / 5), tries=40)
    assert outcome.met
    sizes = [one.predicted.macs_m for one in outcome.tries]
    assert sizes == sorted(sizes, reverse=True)
    assert outcome.tries[-1].measured.memory_mb <= 60 < outcome.tries[-2].measured.memory_mb  # type: ignore[operator]


def test_a_budget_that_nothing_meets_tries_the_nearest_once_and_says_so() -> None:
    measure = truly(1.0)
    outcome = settle(every(), Budget(latency_ms=2), measure)
    assert not outcome.met
    assert measure.asked == [SPACE.smallest]  # type: ignore[attr-defined]
    assert outcome.nearest[0].width == SPACE.smallest
    assert len(outcome.nearest) == 3
    # The prediction may be too high: then the nearest holds after all.
    assert settle(every(), Budget(latency_ms=2.5), truly(0.8)).met


def test_known_distances_are_read_again_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "search" / "judged.jsonl"
    ledger = Ledger(file, "a")
    ledger.add((0.5, 1.0), 0.25, macs_m=3)
    ledger.add((1.0, 1.0), 0.0)
    with open(file, "a") as opened:
        opened.write('{"identity": "a", "wid')
    again = Ledger(file, "a")
    assert dict(again) == {(0.5, 1.0): 0.25, (1.0, 1.0): 0.0}
    again.add((0.25, 0.25), 0.5)
    assert len(Ledger(file, "a")) == 3
    assert Ledger(file, "b").get((0.5, 1.0)) is None


class Stand:
    """A bank of two stages over square detectors; narrower stages are further from the truth."""

    def __init__(self) -> None:
        self.extracted: list[Width] = []

    def macs(self, width: Sequence[float]) -> int:
        return round(10e6 * sum(width))

    def size(self, width: Sequence[float]) -> int:
        return round(100 * sum(width))

    def extract(self, width: Sequence[float]) -> Detector:
        self.extracted.append(tuple(width))
        return Fixed(torch.tensor([[4.0], [-9.0]]) * float(np.mean(width)))


def test_a_survey_judges_a_width_once_and_a_later_one_knows_it(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "images", 2).paths
    space, bank = Space(((0.5, 1.0),) * 2), Stand()
    told: list[int] = []

    survey = Survey(bank, space, paths, paths, Ledger(tmp_path / "l.jsonl", "x"), told.append)
    anchor, small = survey.judge(space.largest), survey.judge(space.smallest)
    assert anchor.upem == 0 < small.upem
    assert survey.judge(space.smallest) is small
    assert (anchor.cost.macs_m, small.cost.parameters) == (20, 100)
    assert told == [1, 2]
    bank = Stand()
    later = Survey(bank, space, paths, paths, Ledger(tmp_path / "l.jsonl", "x"))
    assert later.judge(space.smallest) == small
    assert bank.extracted == []


@pytest.fixture(scope="module")
def slimmable() -> SlimmableDetector:
    config = ModelConfig(kind="slimmable", size="nano", backbone="lcnet_050", image_size=(64, 64), weights="none")
    return cast(SlimmableDetector, build(specify(config, ["car", "person"])))


def test_choices_that_keep_the_same_channels_are_one(slimmable: SlimmableDetector) -> None:
    space = Space.of(slimmable)
    assert space.stages == len(slimmable.stages)
    assert space.largest == (1.0,) * space.stages
    for stage, choices in enumerate(space.choices):
        kept = []
        for choice in choices:
            widths = tuple(choice if i == stage else 1.0 for i in range(space.stages))
            kept.append(slimmable.channels.counts(widths, slimmable.divisor))
        assert all(a != b for a, b in itertools.pairwise(kept))
        assert list(choices) == sorted(choices)
    assert slimmable.channels.counts(space.smallest, 8) == slimmable.channels.counts(
        (min(slimmable.choices),) * space.stages, 8
    )
    # The first stage is narrow, and its counts are rounded to eight.
    assert len(space.choices[0]) < len(slimmable.choices)


def test_candidates_are_spread_over_their_cost() -> None:
    chosen = spread(every(), 5)
    macs = [one.cost.macs_m for one in chosen]
    assert len(chosen) == 5
    assert macs == sorted(macs)
    assert (macs[0], macs[-1]) == (100.0, 400.0)
    assert len(spread(every()[:3], 5)) == 3


def test_hindsight_says_how_well_distances_ordered_the_truth() -> None:
    candidates = spread(every(), 6)
    perfect = hindsight("target_test", [(one, 0.0, 1 - one.upem / 20) for one in candidates])
    assert perfect.tau["upem"] == pytest.approx(1)
    reverse = hindsight("target_test", [(one, 0.0, -one.cost.macs_m) for one in candidates])
    assert reverse.tau["macs_m"] == pytest.approx(-1)
    assert hindsight("target_test", [(candidates[0], 0.1, 0.2)]).tau == {}
