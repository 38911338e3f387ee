"""The best width of a bank under each budget, found without labels.

Meng et al. 2022, "Slimmable Domain Adaptation" (SlimDA, CVPR), which calls the measure UPEM: on unlabelled target
images a candidate is judged by how far its outputs are from those of the anchor, the bank's largest model. Published
for classification; `Upem` is the counterpart for dense detectors. The largest model is the yardstick, so UPEM ranks
models of one bank and says nothing about how good that bank is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from acclimate.boxes.tensors import paired
from acclimate.config import Budget
from acclimate.data.dataset import plain_images
from acclimate.errors import AcclimateError
from acclimate.models.dense import DenseDetector
from acclimate.models.detector import Detector, device_of, evaluating
from acclimate.models.statistics import recalibrate
from acclimate.run import json_lines, writing
from acclimate.select.budget import Cost, Table, Width
from acclimate.select.record import Candidate, Hindsight, Try
from acclimate.verification.judge import within

LOCATIONS = 32
"""The anchor's best locations that are compared, for each image on average."""
IMAGES = 32
"""Target images that candidates are judged on, and as many that their statistics come from."""
EVALUATIONS = 32
"""Widths that evolution judges for each budget."""
POPULATION = 16
FRESH = 0.2
"""Chance that a child has no parents, so that evolution does not end in its first corner."""
TRIES = 6
"""Artifacts that are measured for a budget before it counts as missed."""


class Upem:
    """The distance of a detector's outputs to the anchor's, on the same images and at the same locations.

    The anchor's outputs are kept for its best locations: those with the highest class probability over all images
    together, as an image without any object has nothing to compare.
    """

    def __init__(self, anchor: Detector, paths: Sequence[Path], locations: int = LOCATIONS) -> None:
        """
        Args:
            anchor: the bank's largest model, its statistics taken on target images.
            paths: unlabelled target images.
            locations: compared for each image, on average.

        Raises:
            AcclimateError: more than half of the images cannot be read, or the detector is not a dense one.
        """
        self._canvases = [canvas for _, canvas, _ in plain_images(paths, anchor.spec.image_size, anchor.spec.reading)]
        scores, boxes = self._outputs(anchor)
        self._count = scores.shape[1]
        flat = scores.amax(-1).flatten()
        best = flat.topk(min(locations * len(scores), len(flat))).indices.sort().values
        self._best = best
        self._scores, self._boxes = scores.flatten(0, 1)[best], boxes.flatten(0, 1)[best]

    def __call__(self, detector: Detector) -> float:
        """Mean over the locations of the L2 distance of the class probabilities plus (1 - IoU) of the boxes."""
        scores, boxes = self._outputs(detector)
        if scores.shape[1] != self._count:
            raise AcclimateError("the detector's locations are not those of the bank's largest model")
        return distance(scores.flatten(0, 1)[self._best], boxes.flatten(0, 1)[self._best], self._scores, self._boxes)

    def _outputs(self, detector: Detector) -> tuple[Tensor, Tensor]:
        """Class probabilities (N, A, C) and boxes (N, A, 4) of all images."""
        if not hasattr(detector, "boxes"):
            raise AcclimateError(f"search: detectors of the kind {detector.spec.kind!r} have no locations to compare")
        dense, device = cast(DenseDetector, detector), device_of(detector)
        scores, boxes = [], []
        with evaluating(detector):
            for start in range(0, len(self._canvases), 8):
                batch = np.stack(self._canvases[start : start + 8])
                raw = detector(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float())
                scores.append(raw[0].float().sigmoid().cpu())
                boxes.append(dense.boxes(raw[1]).cpu())
        return torch.cat(scores), torch.cat(boxes)


def distance(scores: Tensor, boxes: Tensor, anchor_scores: Tensor, anchor_boxes: Tensor) -> float:
    """Mean over Q locations of ||p - p_a||_2 + (1 - IoU(b, b_a)).

    Args:
        scores: (Q, C) class probabilities p.
        boxes: (Q, 4) xyxy pixels b.
        anchor_scores: (Q, C) p_a, what is compared with.
        anchor_boxes: (Q, 4) b_a.
    """
    return float(((scores - anchor_scores).norm(dim=-1) + 1 - paired(boxes, anchor_boxes)).mean())


@dataclass(frozen=True)
class Space:
    """All different widths of a bank: one of its own choices for each stage, rising."""

    choices: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, bank: Bank) -> Space:
        """The widths of a bank that are different detectors."""
        return cls(bank.distinct())

    @property
    def stages(self) -> int:
        return len(self.choices)

    @property
    def largest(self) -> Width:
        return tuple(choices[-1] for choices in self.choices)

    @property
    def smallest(self) -> Width:
        return tuple(choices[0] for choices in self.choices)

    def random(self, rng: np.random.Generator) -> Width:
        return tuple(choices[int(rng.integers(len(choices)))] for choices in self.choices)

    def moved(self, width: Width, stage: int, by: int) -> Width | None:
        """`width` with one stage `by` choices wider; None where there is no such choice."""
        choices = self.choices[stage]
        index = choices.index(width[stage]) + by
        if not 0 <= index < len(choices):
            return None
        return (*width[:stage], choices[index], *width[stage + 1 :])

    def narrower(self, width: Width) -> list[Width]:
        """`width` with one stage one choice narrower, for each stage where that is possible."""
        moves = (self.moved(width, stage, -1) for stage in range(self.stages))
        return [move for move in moves if move is not None]


Judge = Callable[[Width], Candidate]


def greedy(space: Space, judge: Judge, budgets: Sequence[Budget]) -> list[Candidate]:
    """Shrink from the largest width, a stage a step, until every budget is met by prediction; all that was judged.

    A step takes the stage that moves the outputs least for the multiply-accumulates it saves. Budgets that not even
    the smallest width meets do not keep it going.
    """
    here = judge(space.largest)
    judged = {here.width: here}
    waiting = list(budgets)
    while waiting := [budget for budget in waiting if here.cost.over(budget)]:
        steps = [judge(width) for width in space.narrower(here.width)]
        judged |= {step.width: step for step in steps}
        if not steps:
            break
        at = here
        here = min(steps, key=lambda step: _price(at, step))
    return list(judged.values())


def _price(before: Candidate, after: Candidate) -> float:
    """Growth of the distance for each million multiply-accumulates saved."""
    saved = before.cost.macs_m - after.cost.macs_m
    return (after.upem - before.upem) / saved if saved > 0 else math.inf


def evolve(
    space: Space,
    judge: Judge,
    cost: Callable[[Width], Cost],
    budget: Budget,
    start: Iterable[Candidate],
    evaluations: int,
    seed: Sequence[int],
) -> list[Candidate]:
    """Regularised search by mutation and crossover among the widths that meet `budget` by prediction; all judged.

    A child takes each stage from one of two parents, moves stages to a neighbouring choice, and is shrunk until
    it fits. The parents are the `POPULATION` best so far; some children are drawn anew.

    Args:
        space: what there is.
        judge: UPEM and cost of a width.
        cost: the predicted cost alone, which needs no image.
        budget: what must hold.
        start: widths that were judged before; those that fit are the first parents.
        evaluations: how many widths are judged besides.
        seed: of all choices.
    """
    rng = np.random.default_rng(seed)
    known = {one.width: one for one in start if not one.cost.over(budget)}
    new: dict[Width, Candidate] = {}
    idle = 0
    while len(new) < evaluations and idle < 50:
        parents = sorted((known | new).values(), key=lambda one: (one.upem, one.width))[:POPULATION]
        child = _fitted(space, _child(space, parents, rng), cost, budget, rng)
        if child is None or child in known or child in new:
            idle += 1
            continue
        idle = 0
        new[child] = judge(child)
    return list(new.values())


def _child(space: Space, parents: Sequence[Candidate], rng: np.random.Generator) -> Width:
    if len(parents) < 2 or rng.random() < FRESH:
        return space.random(rng)
    first, second = (parents[int(i)].width for i in rng.choice(len(parents), 2, replace=False))
    child: Width = tuple(a if rng.random() < 0.5 else b for a, b in zip(first, second, strict=True))
    for stage in range(space.stages):
        if rng.random() < 1.5 / space.stages:
            child = space.moved(child, stage, 1 if rng.random() < 0.5 else -1) or child
    return child


def _fitted(
    space: Space, width: Width, cost: Callable[[Width], Cost], budget: Budget, rng: np.random.Generator
) -> Width | None:
    """`width` shrunk at random until it fits, and in half of the cases widened while it does; None where nothing fits.

    What is best under a budget usually uses all of it, and a random width seldom does.
    """
    while cost(width).over(budget):
        narrower = space.narrower(width)
        if not narrower:
            return None
        width = narrower[int(rng.integers(len(narrower)))]
    if rng.random() < 0.5:
        for stage in rng.permutation(space.stages):
            while (wider := space.moved(width, int(stage), 1)) is not None and not cost(wider).over(budget):
                width = wider
    return width


@dataclass(frozen=True)
class Outcome:
    """What became of one budget: what was measured, in order, and whether the last of it holds."""

    tries: tuple[Try, ...]
    met: bool
    unknown: str = ""
    """Why it cannot be said now whether the last of it holds; empty where it can."""
    nearest: tuple[Candidate, ...] = field(default=())
    """Where it does not: the candidates that come nearest by prediction."""


def settle(
    candidates: Iterable[Candidate], budget: Budget, measure: Callable[[Candidate], Cost], tries: int = TRIES
) -> Outcome:
    """Measure the best candidates as artifacts until one holds the budget.

    First comes the one with the smallest UPEM among those predicted to hold. Where its artifact breaks a limit, the
    prediction was too low by a factor that is now known, and those that it rules out are passed over. Where nothing is
    left, the one that comes nearest by prediction gets a chance before the budget counts as missed. Where a limit could
    not be measured, nothing is concluded: another width would be worse, or no better known.

    Args:
        candidates: widths that were judged and priced.
        budget: what has to hold.
        measure: makes and measures a width's artifact.
        tries: artifacts that are made at most.
    """
    pool = sorted(candidates, key=lambda one: (one.upem, one.cost.macs_m))
    waiting = [one for one in pool if not one.cost.over(budget)]
    done: list[Try] = []
    last_chance = True
    while len(done) < tries:
        if not waiting:
            tried = {one.width for one in done}
            rest = [one for one in pool if one.width not in tried]
            if not rest or not last_chance:
                break
            last_chance = False
            waiting = [min(rest, key=_excess(budget))]
        one = waiting.pop(0)
        cost = measure(one)
        done.append(Try(width=one.width, upem=one.upem, predicted=one.cost, measured=cost))
        over = cost.over(budget)
        if not over:
            unknown = cost.unknown(budget)
            return Outcome(tuple(done), not unknown, unknown)
        waiting = [other for other in waiting if not _ruled_out(other.cost, one.cost, cost, over, budget)]
    return Outcome(tuple(done), False, nearest=tuple(sorted(pool, key=_excess(budget))[:3]))


def _excess(budget: Budget) -> Callable[[Candidate], tuple[float, float]]:
    return lambda candidate: (candidate.cost.excess(budget), candidate.cost.macs_m)


def _ruled_out(other: Cost, predicted: Cost, measured: Cost, over: Mapping[str, float], budget: Budget) -> bool:
    """Whether what was measured of one candidate says that another breaks the same limit."""
    for name in over:
        ours, limit = getattr(predicted, name), getattr(budget, name)
        theirs = getattr(other, name)
        if ours is None or theirs is None:
            # Memory is not predicted; a network that computes as much needs as much.
            if other.macs_m >= predicted.macs_m:
                return True
        elif not within(theirs * getattr(measured, name) / ours, limit):
            return True
    return False


class Ledger:
    """Judged widths in a file, one a line, so that no search judges a width twice.

    A line that a kill cut short is left out, and judged again.
    """

    def __init__(self, file: Path, identity: str) -> None:
        """`identity` stands for whatever the distances depend on: weights, images, statistics."""
        self._file, self._identity = file, identity
        self._known: dict[Width, float] = {}
        for values in json_lines(file):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if values["identity"] == identity:
                    self._known[tuple(values["width"])] = float(values["upem"])

    def get(self, width: Width) -> float | None:
        return self._known.get(width)

    def add(self, width: Width, upem: float, **more: Any) -> None:
        """Keep one more, on disk too.

        Raises:
            AcclimateError: the file cannot be written.
        """
        self._known[width] = upem
        line = json.dumps({"identity": self._identity, "width": width, "upem": upem, **more})
        with writing(self._file.parent):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                start = b"" if file.read(1) in {b"", b"\n"} else b"\n"
                file.write(start + line.encode() + b"\n")

    def __iter__(self) -> Iterator[tuple[Width, float]]:
        return iter(self._known.items())

    def __len__(self) -> int:
        return len(self._known)


class Bank(Protocol):
    """What the search asks of a bank: a slimmable detector, or a supernet, whose widths are ranks of blocks."""

    def distinct(self) -> tuple[Width, ...]: ...

    def extract(self, width: Sequence[float]) -> Detector: ...

    def macs(self, width: Sequence[float]) -> int: ...

    def size(self, width: Sequence[float]) -> int: ...


class Survey:
    """Judges widths of one bank. What is known of a width is not computed again, in this process or a later one."""

    def __init__(
        self,
        bank: Bank,
        space: Space,
        statistics_from: Sequence[Path],
        judged_on: Sequence[Path],
        ledger: Ledger,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            bank: the slimmable detector.
            space: its widths.
            statistics_from: target images that each width's BatchNorm statistics are taken from.
            judged_on: target images that outputs are compared on.
            ledger: where distances are kept.
            progress: told how many widths this search has judged, whether or not they were known.
        """
        self.table: Table | None = None
        """Predicts latency and size; without it costs are exact counts alone."""
        self.judged: dict[Width, Candidate] = {}
        self._bank, self._space = bank, space
        self._ledger, self._progress = ledger, progress
        self._statistics_from, self._judged_on = statistics_from, judged_on
        self._counts: dict[Width, tuple[float, int]] = {}
        self._upem: Upem | None = None

    def plain(self, width: Width) -> Detector:
        """The plain detector of this width, with the statistics that the bank has for it."""
        return self._bank.extract(width)

    def detector(self, width: Width) -> Detector:
        """The plain detector of this width, its statistics taken on target images."""
        detector = self.plain(width)
        recalibrate(detector, self._statistics_from)
        return detector.eval()

    def cost(self, width: Width) -> Cost:
        """Exact counts, and the rest as the table predicts it."""
        if width not in self._counts:
            self._counts[width] = round(self._bank.macs(width) / 1e6, 3), self._bank.size(width)
        macs_m, parameters = self._counts[width]
        if self.table is None:
            return Cost(macs_m=macs_m, parameters=parameters)
        return self.table.predict(width, macs_m, parameters)

    def judge(self, width: Width) -> Candidate:
        """The width's distance to the largest one."""
        if width not in self.judged:
            upem = self._ledger.get(width)
            cost = self.cost(width)
            if upem is None:
                if self._upem is None:
                    self._upem = Upem(self.detector(self._space.largest), self._judged_on)
                upem = self._upem(self.detector(width))
                self._ledger.add(width, upem, macs_m=cost.macs_m)
            self.judged[width] = Candidate(width=width, upem=upem, cost=cost)
            if self._progress is not None:
                self._progress(len(self.judged))
        return self.judged[width]


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most `count` of them, evenly over their order by multiply-accumulates, the ends included."""
    ordered = sorted(candidates, key=lambda one: (one.cost.macs_m, one.width))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]


def hindsight(data: str, known: Sequence[tuple[Candidate, float, float]]) -> Hindsight:
    """True accuracy beside UPEM, with how well UPEM and multiply-accumulates alone order the widths by AP50."""
    truth = [ap50 for _, _, ap50 in known]
    orders = {"upem": [-one.upem for one, _, _ in known], "macs_m": [one.cost.macs_m for one, _, _ in known]}
    taus = {name: float(kendalltau(order, truth).statistic) for name, order in orders.items() if len(known) > 1}
    return Hindsight(
        data=data, candidates=tuple(known), tau={name: tau for name, tau in taus.items() if math.isfinite(tau)}
    )
