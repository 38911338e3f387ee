"""What one training step optimises: terms over shared views, and the average of the weights.

An adaptation method is a list of terms. The module that DistributedDataParallel wraps is their sum.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from acclimate.models.detector import Detector
from acclimate.models.reparametrise import folded, folded_state
from acclimate.models.statistics import unheard
from acclimate.structures import Annotations, Batch

View = Literal["source_weak", "source_strong", "target_weak", "target_strong", "labelled_strong", "mixed"]
"""`labelled` images are those of the target that a person has labelled. `mixed` images hold parts of both domains; a
term makes them (`Term.prepare`)."""

GradientTransform = Callable[[nn.Module], None]
"""Edits the gradients of a module in place, between backward (after unscaling) and the optimiser's step."""


@runtime_checkable
class UpdateTransform(Protocol):
    """A gradient transform that also acts on what the optimiser makes of the gradients."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called right before the optimiser's step, after clipping."""

    def after_step(self) -> None:
        """Called right after it, while the gradients are still there; edits the weights in place."""


@runtime_checkable
class Watcher(Protocol):
    """A gradient transform or a term that measures what it does in the steps that are logged."""

    def watch(self) -> None:
        """Called after the terms and before the transforms of such a step."""

    def seen(self) -> dict[str, Any]:
        """Called after the optimiser; what goes into the line of metrics.jsonl."""


class Step:
    """One training step, shared by all terms. No view is forwarded twice, however many terms ask.

    The views that the terms train on go through the detector as one batch, so that batch statistics see the mixture
    that the running statistics will describe. With `by_domain` those of the source go by themselves, normalised by
    their own statistics, which the running ones do not hear of: these describe the target, where the detector will be.

    Args:
        detector: what is trained.
        average: the average of its weights, the mean teacher.
        source: views and boxes of labelled images.
        target: views of target images; None where a training has no target.
        progress: fraction of the run that is done, 0..1.
        views: those that gradients are taken through.
        by_domain: whether each domain is normalised by its own batch.
    """

    def __init__(
        self,
        detector: Detector,
        average: Detector,
        source: Batch | None,
        target: Batch | None,
        progress: float,
        views: Sequence[View],
        by_domain: bool = False,
    ) -> None:
        self.detector = detector
        self.average = average
        self.source = source
        self.target = target
        self.progress = progress
        self.views = tuple(views)
        self.by_domain = by_domain
        self.notes: dict[str, Any] = {}
        """What a term keeps for the rest of the step."""
        self._made: dict[View, tuple[Tensor, Sequence[Annotations]]] = {}
        self._all: list[list[Tensor]] = []
        self._features: dict[View, list[Tensor]] = {}
        self._raw: dict[View, tuple[Tensor, ...]] = {}
        self._average_raw: dict[View, tuple[Tensor, ...]] = {}

    def provide(self, view: View, images: Tensor, targets: Sequence[Annotations]) -> None:
        """The images of a view that no batch holds, (B, 3, H, W), and the boxes of each.

        Before any view is forwarded, see `Term.prepare`.
        """
        self._made[view] = images, targets

    def targets(self, view: View) -> Sequence[Annotations]:
        """The boxes of a view that was provided."""
        return self._made[view][1]

    def images(self, view: View) -> Tensor:
        """(B, 3, H, W) of a view."""
        if view in self._made:
            return self._made[view][0]
        domain, _, strength = view.partition("_")
        batch = self.source if domain == "source" else self.target
        if domain == "labelled" and batch is not None:
            batch = batch.labelled
        if batch is None:
            raise ValueError(f"this step has no {domain} images, so there is no view {view!r}")
        return batch.weak if strength == "weak" else batch.strong

    def features(self, view: View) -> list[Tensor]:
        """The detector's pyramid of a view that a term declared in `Term.views`: (B, C_l, H_l, W_l), one a level."""
        self._forward()
        return self._features[view]

    def shared(self, view: View) -> tuple[list[Tensor], slice]:
        """The pyramid (B', C_l, H_l, W_l) of all images that were forwarded together with a view's, and which of the B'
        are the view's.

        What the head was run on: all gradients of a view arrive here, and only some of them at `features`.
        """
        self._forward()
        for views, features in zip(self._together(), self._all, strict=True):
            start = 0
            for one in views:
                size = len(self._features[one][0])
                if one == view:
                    return features, slice(start, start + size)
                start += size
        raise KeyError(view)

    def raw(self, view: View) -> tuple[Tensor, ...]:
        """The detector's raw outputs of such a view, (B, ...) each; see `Detector.head`."""
        self._forward()
        if not self._raw:
            for views, features in zip(self._together(), self._all, strict=True):
                sizes = [len(self._features[one][0]) for one in views]
                with self._normalising(views[0]):
                    outputs = [torch.split(output, sizes) for output in self.detector.head(features)]
                for i, one in enumerate(views):
                    self._raw[one] = tuple(output[i] for output in outputs)
        return self._raw[view]

    def losses(self, view: View, targets: Sequence[Annotations]) -> dict[str, Tensor]:
        """The detector's losses of a view against boxes on its canvas: named scalars."""
        features, raw = self.features(view), self._shared_raw(view)
        with self._normalising(view):
            return self.detector.losses(features, targets, raw)

    def distillation(self, view: View, soft: tuple[Tensor, ...], threshold: float) -> dict[str, Tensor]:
        """The detector's losses of a view against another detector's raw outputs, (B, ...) each: named scalars."""
        return self.detector.distillation(self.features(view), soft, threshold, self._shared_raw(view))

    def regions(self, view: View, count: int) -> list[Tensor]:
        """The boxes of a view that most likely hold an object, (count, 4) an image."""
        return self.detector.regions(self.features(view), count, self._shared_raw(view))

    def average_raw(self, view: View) -> tuple[Tensor, ...]:
        """Raw outputs, (B, ...) each, of the averaged weights (the mean teacher) in eval mode, without gradients; of
        any view."""
        if view not in self._average_raw:
            with torch.no_grad():
                self._average_raw[view] = self.average(self.images(view))
        return self._average_raw[view]

    def _forward(self) -> None:
        if self._features:
            return
        for views in self._together():
            images = [self.images(view) for view in views]
            sizes = [len(batch) for batch in images]
            with self._normalising(views[0]):
                features = self.detector.features(torch.cat(images) if len(images) > 1 else images[0])
            self._all.append(features)
            levels = [torch.split(level, sizes) for level in features]
            for i, view in enumerate(views):
                self._features[view] = [level[i] for level in levels]

    def _together(self) -> list[tuple[View, ...]]:
        """The views that share a batch."""
        if not self.by_domain or self.target is None:
            return [self.views]
        own = tuple(view for view in self.views if view.startswith("source"))
        others = tuple(view for view in self.views if view not in own)
        return [views for views in (own, others) if views]

    @contextlib.contextmanager
    def _normalising(self, view: View) -> Iterator[None]:
        """Where domains are apart, the running statistics do not hear of the source's."""
        if not self.by_domain or self.target is None or not view.startswith("source"):
            yield
            return
        with unheard(self.detector):
            yield

    def _shared_raw(self, view: View) -> tuple[Tensor, ...] | None:
        return self.raw(view) if self.detector.trains_on_raw else None


class Term(nn.Module):
    """One part of the objective. A term that needs its own optimiser owns it; its state is part of the checkpoint."""

    views: ClassVar[tuple[View, ...]] = ()
    """The views that the term takes gradients through."""
    needs_target: ClassVar[bool] = True
    """Whether its views of the target must be there; False is a term that does with the others (`Step.views`)."""
    name: ClassVar[str] = ""
    """Of the method: the field of `AdaptConfig` and the file that it is in."""

    @classmethod
    def uses_target(cls, options: Any) -> bool:
        """Whether the term with these options looks at target images."""
        return any(not view.startswith("source") for view in cls.views)

    @property
    def one_width(self) -> str:
        """Why the term works for a detector of one width alone, and what to do; empty where it works for several."""
        return ""

    def prepare(self, step: Step) -> None:
        """Called for every term before any of them: makes the views of its own (`Step.provide`)."""

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """Weighted scalar losses, named "term/loss"; their sum is what is minimised."""

    def arithmetic(self, step: Step) -> contextlib.AbstractContextManager[None]:
        """Entered around all terms of a step: what the detector computes in, where that is not what it is kept in."""
        return contextlib.nullcontext()

    def after_step(self, detector: Detector) -> None:
        """Called after the optimiser's step."""

    def deployed(self) -> dict[str, Tensor]:
        """Weights and statistics, by the detector's names and in its shapes, that the average follows in place of the
        detector's own."""
        return {}


class Wrapper(Term):
    """A term around all others: `create(options, detector, terms, seed)`."""


class Objective(nn.Module):
    """The detector, the average of its weights, and the terms.

    The average (Polyak averaging; Tarvainen and Valpola 2017 as a mean teacher) is what checkpoints hold. It is a plain
    detector: where a method has reparametrised the layers, what is averaged are the weights that they compute with, and
    where a term has trained a part to be deployed in place of the detector's own (`Term.deployed`), that part.
    """

    def __init__(
        self, detector: Detector, terms: Sequence[Term], ema: float, warm: bool, by_domain: bool = False
    ) -> None:
        """Put the average and the terms beside a detector.

        Args:
            detector: what is trained.
            terms: whose losses are summed.
            ema: decay of the average, a step.
            warm: let the average follow quickly at first, for weights that start from nothing.
            by_domain: see `Step`.
        """
        super().__init__()
        self.detector = detector
        self.average = folded(detector).requires_grad_(False).eval()
        self.terms = nn.ModuleList(terms)
        self.ema = ema
        self.warm = warm
        self.by_domain = by_domain
        self.views: tuple[View, ...] = tuple(dict.fromkeys(view for term in terms for view in term.views))
        needed = {view for term in terms for view in term.views if term.needs_target or view.startswith("source")}
        self._without_target = tuple(view for view in self.views if view in needed)
        if not self.views:
            raise ValueError("an objective needs at least one term that trains on a view")

    def forward(self, source: Batch | None, target: Batch | None, progress: float) -> dict[str, Tensor]:
        """The losses of all terms in one step, by name: scalars, with gradients. Their sum is what is minimised."""
        views = self._without_target if target is None else self.views
        step = Step(self.detector, self.average, source, target, progress, views, self.by_domain)
        losses: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for term in self.terms:
                assert isinstance(term, Term)
                stack.enter_context(term.arithmetic(step))
            for term in self.terms:
                assert isinstance(term, Term)
                term.prepare(step)
            for term in self.terms:
                losses.update(term(step))
        return losses

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average towards the weights just reached; then let the terms finish."""
        decay = min(self.ema, (1 + step) / (10 + step)) if self.warm else self.ema
        own, average = folded_state(self.detector), self.average.state_dict()
        for term in self.terms:
            assert isinstance(term, Term)
            own |= term.deployed()
        moving = [name for name, value in average.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[n] for n in moving], [own[n] for n in moving], 1 - decay)
        for name, value in average.items():
            if not value.is_floating_point():
                value.copy_(own[name])
        for term in self.terms:
            assert isinstance(term, Term)
            term.after_step(self.detector)
