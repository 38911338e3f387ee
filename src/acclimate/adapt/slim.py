"""A bank of widths adapted at once: any terms over a batch of models, and an ensemble of them that teaches each.

Yu and Huang 2019 (the sandwich rule), Meng et al. 2022 (SlimDA: Slimmable Domain Adaptation). Every step draws a batch
of models, which are widths of one slimmable detector: always the largest and the smallest, and others at random. The
terms run on each of them as if it were alone. With SEED, the mean of what they say about target images, weighted by how
much each is trusted, becomes the soft target of every one, location by location.

The averaged weights stay at full width. So does what they are normalised by: the running statistics follow the largest
model alone. A mean teacher inside is therefore the full average, whatever the width that it teaches; the statistics of
a narrower model are taken anew before it is judged or extracted.

With a third head (SlimDA's OSTC) the detector's own head is left to the terms, and provides the ensemble. What the
ensemble says is taught to a copy of that head alone, at every width, and the average of the weights follows the copy:
checkpoints are plain banks whose head is the copy, so whatever loads one deploys it.

All models' activations are kept until the one backward pass of the step: memory grows with their number.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from acclimate.adapt.objective import Step, Term, View, Wrapper
from acclimate.boxes.tensors import paired
from acclimate.config import SlimConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector
from acclimate.models.slimmable import Slimmable, Widths, macs
from acclimate.models.statistics import unheard

Confidence = Literal["uniform", "macs", "hinge"]

_STREAM = 7
"""Keeps these draws apart from others made from the same seed."""


def model_batch(
    choices: Sequence[float], stages: int, count: int, seed: int, step: int, each_stage: bool = True
) -> list[Widths]:
    """The models of one step, all different: the largest, others at random, the smallest (the sandwich rule).

    They depend on the seed and the step alone, so every process draws the same, and so does a run that was resumed.

    Args:
        choices: the widths that a stage may have.
        stages: how many stages take a width of their own.
        count: how many models; fewer where there are not so many.
        seed: of the run.
        step: optimiser steps done.
        each_stage: whether a random model's stages differ, or all have one width.
    """
    choices = sorted(choices)
    largest, smallest = (choices[-1],) * stages, (choices[0],) * stages
    possible = len(choices) ** stages if each_stage else len(choices)
    rng = np.random.default_rng([seed, _STREAM, step])
    batch = dict.fromkeys([largest, smallest])
    while len(batch) < min(count, possible):
        drawn = rng.integers(len(choices), size=stages if each_stage else 1)
        batch.setdefault(tuple(choices[i] for i in drawn) if each_stage else (choices[drawn[0]],) * stages)
    return [largest, *(one for one in batch if one not in (largest, smallest)), *([smallest] * (possible > 1))]


def confidence(kind: Confidence, macs: Sequence[float], distances: Sequence[float], margin: float) -> list[float]:
    """How much each model of a batch counts in the ensemble; sums to 1. The paper leaves the formula open.

    Args:
        kind: `uniform`; `macs`, in proportion to what a model computes; `hinge`, max(0, margin - distance).
        macs: of each model.
        distances: of each model's predictions to the largest model's, whose own is 0.
        margin: of the hinge, above 0: the distance from which a model counts for nothing.
    """
    if kind == "uniform":
        trust = [1.0] * len(macs)
    elif kind == "macs":
        trust = list(macs)
    else:
        trust = [max(0.0, margin - distance) for distance in distances]
    total = sum(trust)
    return [one / total for one in trust]


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1 / temperature) of probabilities (..., K), scaled to sum to 1 over the last dimension (Berthelot et al. 2019,
    MixMatch, equation 7)."""
    return (probabilities.clamp(min=1e-12).log() / temperature).softmax(-1)


def dense_ensemble(
    raws: Sequence[tuple[Tensor, ...]], weights: Sequence[float], temperature: float
) -> tuple[Tensor, Tensor]:
    """The weighted mean of dense detectors' outputs, written as raw outputs again, without gradients.

    Probabilities and side distances are averaged, location by location. A location's class is a yes or no for each
    class, so sharpening pushes a probability p away from 1/2: p^(1/t) / (p^(1/t) + (1 - p)^(1/t)).

    Args:
        raws: of each model: logits (B, A, C) and raw distances (B, A, 4), as `DenseDetector` has them.
        weights: of each model; they sum to 1.
        temperature: of the sharpening; 1 leaves the mean as it is.
    """
    scores, sides = (
        sum(w * p for w, p in zip(weights, parts, strict=True)) for parts in zip(*map(_plain, raws), strict=True)
    )
    assert isinstance(scores, Tensor)
    assert isinstance(sides, Tensor)
    # The inverse of softplus, from which the detector computes the sides.
    return torch.logit(scores, 1e-6) / temperature, sides + torch.log(-torch.expm1(-sides.clamp(min=1e-6)))


def dense_distance(raw: tuple[Tensor, ...], largest: tuple[Tensor, ...]) -> float:
    """How differently two dense detectors see the same images, from their raw outputs (B, A, C) and (B, A, 4): 0 where
    they agree.

    The mean over locations, weighted by the largest model's best score, of ||p - p_largest||_2 + (1 - IoU).
    """
    (scores, sides), (other, other_sides) = _plain(raw), _plain(largest)
    strength = other.amax(-1)
    # Both boxes are around the same location, wherever that is.
    boxes, other_boxes = (torch.cat([-side[..., :2], side[..., 2:]], -1) for side in (sides, other_sides))
    each = (scores - other).norm(dim=-1) + 1 - paired(boxes, other_boxes)
    return float((each * strength).sum() / strength.sum().clamp(min=1e-9))


class Slim(Wrapper):
    """See the module. Wraps the terms of a method; their losses keep their names, summed or averaged over the models.

    `views` is the most that a model is run on: the views of the terms inside, and the ensemble's where there is one.
    """

    views: ClassVar[tuple[View, ...]] = ("source_strong", "target_strong")
    name: ClassVar[str] = "slim"

    done: Tensor

    def __init__(
        self,
        config: SlimConfig,
        terms: Sequence[Term],
        macs: Callable[[Widths], float],
        seed: int,
        third: nn.ModuleDict | None = None,
    ) -> None:
        """
        Args:
            config: the options.
            terms: what each model trains on.
            macs: counts what a model computes, in any unit.
            seed: the run's.
            third: a copy of the detector's `predictors`, by their names, that the ensemble teaches in their place.
        """
        super().__init__()
        self.config = config
        self.terms = nn.ModuleList(terms)
        self.macs = macs
        self.seed = seed
        self.third = third
        self.inner: tuple[View, ...] = tuple(dict.fromkeys(view for term in terms for view in term.views))
        if config.ensemble > 0:
            seen: View = "target_weak" if config.view == "weak" else "target_strong"
            self.inner = tuple(dict.fromkeys((*self.inner, "target_strong", seen)))
            self.seen = seen
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    @classmethod
    def uses_target(cls, options: SlimConfig) -> bool:
        return options.ensemble > 0

    @classmethod
    def create(cls, options: SlimConfig, detector: Detector, terms: Sequence[Term], seed: int) -> Slim:
        """Wrap `terms` for a slimmable detector.

        Args:
            options: of the section `adapt.slim`.
            detector: the slimmable detector that is about to be adapted.
            terms: what each of its widths learns by.
            seed: of the widths that are drawn.

        Raises:
            AcclimateError: `detector` has one width, or a term depends on its number of channels.
        """
        if not isinstance(detector, Slimmable):
            raise AcclimateError(
                f"adapt.slim: a {detector.spec.kind} detector has one width; train the source with model.kind=slimmable"
            )
        if why := next(filter(None, (term.one_width for term in terms)), ""):
            raise AcclimateError(f"adapt.{why}, or leave out adapt.slim")
        copied = {name: copy.deepcopy(detector.get_submodule(name)) for name in detector.predictors}
        third = nn.ModuleDict(copied) if options.third else None
        return cls(options, terms, functools.partial(macs, detector), seed, third)

    def forward(self, step: Step) -> dict[str, Tensor]:
        detector, average = step.detector, step.average
        assert isinstance(detector, Slimmable)
        assert isinstance(average, Slimmable)
        batch = model_batch(
            detector.choices,
            len(detector.stages),
            self.config.models,
            self.seed,
            int(self.done),
            self.config.each_stage,
        )  # fmt: skip
        average.set_width(batch[0])
        scale = 1.0 if self.config.reduce == "sum" else 1 / len(batch)
        losses: dict[str, Tensor] = {}
        steps = [_OneModel(step, self.inner) for _ in batch]
        try:
            for i, (widths, one) in enumerate(zip(batch, steps, strict=True)):
                detector.set_width(widths)
                with _statistics_of_the_largest(i, detector):
                    for term in self.terms:
                        _add(losses, term(one), scale)
                    if self.config.ensemble > 0:
                        one.raw(self.seen)
            if self.config.ensemble > 0:
                weight = self.config.ensemble * min(1.0, step.progress / self.config.ramp if self.config.ramp else 1.0)
                soft = self._ensemble(batch, [one.raw(self.seen) for one in steps])
                for i, (widths, one) in enumerate(zip(batch, steps, strict=True)):
                    detector.set_width(widths)
                    with _statistics_of_the_largest(i, detector):
                        found = self._taught(one, soft)
                    _add(losses, {f"slim/{name}": loss for name, loss in found.items()}, scale * weight)
        finally:
            detector.set_width(batch[0])
        return losses

    def after_step(self, detector: Detector) -> None:
        self.done += 1
        for term in self.terms:
            assert isinstance(term, Term)
            term.after_step(detector)

    def deployed(self) -> dict[str, Tensor]:
        return {} if self.third is None else self.third.state_dict()

    def _taught(self, one: Step, soft: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What one model still has to learn of the ensemble: its own head, or the third on its features."""
        if self.third is None:
            return one.distillation("target_strong", soft, self.config.threshold)
        features = one.features("target_strong")
        if not self.config.reaches_features:
            features = [level.detach() for level in features]
        # The detector's layers know the width; they compute with the third head's weights, and keep its statistics.
        state = {
            f"detector.{name}": value
            for values in (self.third.named_parameters(), self.third.named_buffers())
            for name, value in values
        }
        raw = functional_call(_Head(one.detector), state, (features,))
        return one.detector.distillation(features, soft, self.config.threshold, raw)

    @torch.no_grad()
    def _ensemble(self, batch: Sequence[Widths], raws: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        config = self.config
        weights = confidence(
            config.confidence,
            [self.macs(widths) for widths in batch] if config.confidence == "macs" else [1.0] * len(batch),
            [dense_distance(raw, raws[0]) for raw in raws] if config.confidence == "hinge" else [0.0] * len(batch),
            config.margin,
        )
        return dense_ensemble(raws, weights, config.temperature)


class _OneModel(Step):
    """A step of one model of the batch. The teacher's outputs are the batch's, computed once."""

    def __init__(self, step: Step, views: Sequence[View]) -> None:
        super().__init__(step.detector, step.average, step.source, step.target, step.progress, views)
        self._batch = step
        self.notes = step.notes

    def average_raw(self, view: View) -> tuple[Tensor, ...]:
        return self._batch.average_raw(view)


class _Head(nn.Module):
    """A detector's head alone, as a module that is called."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.detector.head(features)


def _add(losses: dict[str, Tensor], more: dict[str, Tensor], scale: float) -> None:
    for name, loss in more.items():
        losses[name] = losses[name] + scale * loss if name in losses else scale * loss


def _statistics_of_the_largest(place: int, module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Batches are normalised as ever; running statistics hear of those of the model at place 0 alone, the largest."""
    return contextlib.nullcontext() if place == 0 else unheard(module)


def _plain(raw: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Probabilities, and side distances in strides, of raw outputs."""
    return raw[0].detach().float().sigmoid(), F.softplus(raw[1].detach().float())
