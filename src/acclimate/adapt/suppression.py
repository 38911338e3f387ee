"""Domain-Specific Suppression (DSS): what remains of a step without its share along the weight itself.

Wang et al., Domain-Specific Suppression for Adaptive Object Detection, CVPR 2021 (arXiv 2105.03570). Once training on
the source has converged, the direction of a weight is an estimate of what is specific to the source; so while adapting,
a convolution does not move along its weight.

In anybody's loop it is one line, for SGD and for an adaptive optimizer (Adam) in turn:

    DomainSpecificSuppression(model.backbone).attach(optimizer)
    UpdateSuppression(model.backbone).attach(optimizer)

Forms, which are not the same. W is a convolution's weight, g the loss's gradient with respect to it, dW what the
optimizer makes of g, eta the learning rate of SGD, P g = g - <g, W> W / ||W||^2:

    gradient         W <- W - eta (g - strength <g, W> W / ||W||^2)
    update           W <- W + dW - strength <dW, W> W / ||W||^2
    reparametrised   W = s V / ||V||, and V is what is trained: V <- V - eta (s / ||V||) P g
    rescale          W <- W - eta f g

The paper's rule is `gradient`, and it is one for SGD, whose step is a multiple of the gradient; there `update` is the
same. An adaptive optimizer divides each entry by the gradients it has seen there, so that a projected gradient does not
make a projected step: `update` projects the step itself.

Entries whose own gradient is exactly 0, as of a channel that is dead, are left alone in every form: P and the
projection of dW look at the other entries of W alone. Otherwise the projection writes a little of -W into them, of
which an adaptive optimizer makes full steps.

With s = ||W_0|| the norm when the adaptation starts, the network computes what it did before. A step of the
reparametrised form is, seen from W, a step of length f = (s / ||V||)^2 along P g and then a return to the norm s. The
f of a V that starts as W_0 is 1; that of the paper, whose layers compute with V / ||V||, is 1 / ||W||^2. To have the
paper's f, which differs from layer to layer, without its shrunk activations, V starts as (s / c) W_0: then
f = (c / s)^2, with c the geometric mean of s over the layers so that steps stay as long on the whole.
`reparametrised-rescale` does so, and `rescale` is that f alone, by W = (c / s) V.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from acclimate.models.reparametrise import Granularity, convolutions, reparametrise, rescale, trained_weight

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from acclimate.config import SuppressionConfig
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)

NOTHING = 0.02
"""A gradient that has less than this part of what a random direction has along the weight has nothing there: rounding
leaves 1e-5 of it in float32 and 1e-2 in bfloat16, and of random directions 1.3 % have less."""
PROPORTIONAL = {"SGD", "ASGD", "SGDW", "Lars", "LARS"}
"""Optimizers whose step is a multiple of the gradient, or of a mean of gradients, in each layer."""
_PLAIN = {torch.float32, torch.float64}
_TINY = torch.finfo(torch.float32).tiny
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class LayerWatch:
    """Measures what a step does to each convolution, in the steps that are logged; changes nothing.

    A gradient transform of `fit`, which calls `watch` before such a step and `seen` after it.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str] = ("*",), granularity: Granularity = "tensor") -> None:
        """Take the convolutions below `module` that train; see `convolutions`.

        Cosines are those of whole weights, or with the granularity "channel" means over each output channel's.

        Raises:
            AcclimateError: there is none.
        """
        self.layers = convolutions(module, layers)
        self.granularity = granularity
        self._watching = False
        self._step: _Measured | None = None

    @torch.no_grad()
    def __call__(self, module: nn.Module | None = None) -> None:
        """Look at the gradients, and change them where the method does; `module` is not needed."""
        trained = self._trained()
        if not self._watching or not trained:
            self._transform(trained)
            return
        weights, gradients = list(trained.values()), _gradients(trained.values())
        # What an optimizer moves has not the size of what computes where a layer is reparametrised.
        before = [self.layers[name].weight.detach().clone() for name in trained]
        cosines, lengths = _cosines(gradients, weights, gradients, self.granularity), _lengths(gradients)
        raw = [gradient.clone() for gradient in gradients]
        self._transform(trained)
        self._step = _Measured(list(trained), before, raw, cosines, lengths, _lengths(_gradients(trained.values())))

    def watch(self) -> None:
        """Measure in the step that follows."""
        self._watching = True

    def seen(self) -> dict[str, Any]:
        """What was measured, once the optimizer has stepped: {"suppression": {layer: ...}}, in the order of the layers.

        Of each layer that has a gradient: `cosine` of gradient and weight; norm of the `gradient`, and of what is left
        of it, `suppressed`; norm of the `update` and of the `weight` before it; `update_cosine` of these two, and
        `update_cosine_without` of what the update would have been in this step without suppression, where the form can
        tell. With the granularity "channel" a cosine is the mean |cosine| over the channels that have a gradient. Of a
        reparametrised layer, the first three are those of the weights that are trained, so its cosine is 0 by
        construction. `chance` is the |cosine| that a direction drawn at random has on average.
        """
        step, self._step, self._watching = self._step, None, False
        if step is None:
            return {}
        with torch.no_grad():
            now = [self.layers[name].weight.detach() for name in step.names]
            moved = torch._foreach_sub(now, step.before)
            columns = {
                "cosine": step.cosines,
                "gradient": step.lengths,
                "suppressed": step.left,
                "update": _lengths(moved),
                "weight": _lengths(step.before),
                "update_cosine": _cosines(moved, step.before, step.raw, self.granularity),
            }
            if step.without:
                without = _cosines(step.without, step.before, step.raw, self.granularity)
                columns["update_cosine_without"] = without
        rows = torch.stack([column.float() for column in columns.values()], 1).tolist()
        found = {}
        for name, row, weight in zip(step.names, rows, step.before, strict=True):
            # A GradScaler that skips the step has gradients that are not finite; a dead layer has none.
            if all(map(math.isfinite, row)) and row[1] > 0:
                size = weight.numel() / (len(weight) if self.granularity == "channel" else 1)
                values = {**dict(zip(columns, row, strict=True)), "chance": chance(size)}
                found[name] = {key: float(f"{value:.4g}") for key, value in values.items()}
        return {"suppression": found}

    def _trained(self) -> dict[str, Tensor]:
        """What an optimizer moves in the layers that have a gradient."""
        trained = {name: trained_weight(layer) for name, layer in self.layers.items()}
        return {name: weight for name, weight in trained.items() if weight.grad is not None}

    def _transform(self, trained: Mapping[str, Tensor]) -> None:
        """Change the gradients of the weights, in place."""


class _Measured(NamedTuple):
    """A watched step: layers with a gradient, their weights before it, the gradients as they came, and of each layer
    the cosine of both and the norms of the gradient before and after the transform; `without` are the updates that
    there would have been without suppression."""

    names: list[str]
    before: list[Tensor]
    raw: list[Tensor]
    cosines: Tensor
    lengths: Tensor
    left: Tensor
    without: Sequence[Tensor] = ()


class DomainSpecificSuppression(LayerWatch):
    """The gradient form: g <- g - strength <g, W> W / ||W||^2 for each convolution of a module.

    Either call it between backward and the optimizer's step, before clipping, or `attach` it to the optimizer. It comes
    after the all-reduce of DistributedDataParallel and once a step when gradients are accumulated. It is linear in the
    gradient, so it does not matter whether a GradScaler has unscaled yet. Sums are taken in float32 (float64 for double
    weights). What the optimizer adds on its own stays outside: momentum averages suppressed gradients, decoupled weight
    decay is not suppressed, and an adaptive step (Adam) is not orthogonal to W: for that there is `UpdateSuppression`,
    as a warning says once.

    Where a normalisation follows that undoes the weight's scale (BatchNorm in training mode; GroupNorm with granularity
    "tensor"), <g, W> is 0 and there is nothing to suppress. A warning says so, once.
    """

    name: ClassVar[str] = "suppression"

    def __init__(
        self,
        module: nn.Module,
        strength: float = 1.0,
        granularity: Granularity = "tensor",
        layers: Sequence[str] = ("*",),
    ) -> None:
        """Suppress in the convolutions below `module`, the backbone as a rule: not the head, nor a domain critic.

        Args:
            module: its trainable convolutions are taken.
            strength: 1 removes the whole projection, 0 none (and leaves the measurements).
            granularity: "tensor" projects on the whole weight, as the paper does; "channel" on each output channel's.
            layers: patterns of names below `module`, as in a shell ("blocks.[45].*").

        Raises:
            AcclimateError: no such convolution trains.
        """
        super().__init__(module, layers, granularity)
        self.strength = strength
        self._checked = strength == 0
        self._warned = strength == 0
        self._trying = False
        self._norms = [part for part in module.modules() if isinstance(part, _NORMS)]

    @classmethod
    def create(cls, options: SuppressionConfig, detector: Detector) -> LayerWatch:
        """What `options` say, for the backbone of `detector`; the forms of reparametrised layers change them.

        Raises:
            AcclimateError: no convolution of the backbone trains, or none has a name that `options.layers` asks for.
        """
        backbone = getattr(detector, "backbone", detector)
        if options.form in {"gradient", "update"}:
            form = cls if options.form == "gradient" else UpdateSuppression
            return form(backbone, options.strength, options.granularity, options.layers)
        watch = LayerWatch(backbone, options.layers, options.granularity)
        if options.form == "rescale":
            rescale(backbone, options.layers)
        else:
            paper = options.form == "reparametrised-rescale"
            reparametrise(backbone, options.granularity, options.layers, rescaled=paper)
        return watch

    def attach(self, optimizer: torch.optim.Optimizer) -> Attached:
        """Suppress in every step of `optimizer`; the handle's `remove` undoes it.

        With clipping in the loop, call the object itself before it instead: the norm that is clipped is then that of
        the suppressed gradient. (With `UpdateSuppression` it makes no difference.)
        """

        def before_step(
            optimizer: torch.optim.Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if self._trying:
                return None
            # As torch passes them, the arguments begin with the optimizer itself.
            closure = arguments[1] if len(arguments) > 1 else named.get("closure")
            if closure is None:
                self()
                self.before_step(optimizer)
                return None
            self.before_step(optimizer)

            # The gradients of this step are not there before its closure has been called.
            def suppressed() -> Any:
                loss = closure()
                self()
                return loss

            return (optimizer, suppressed), {}

        def after_step(*arguments: Any) -> None:
            if not self._trying:
                self.after_step()

        return Attached(optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(after_step))

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn of an optimizer that the form is not for; in a watched step, try the update without suppression."""
        name = type(_unwrapped(optimizer)).__name__
        if not self._warned and name not in PROPORTIONAL:
            self._warned = True
            log.warning(
                "DSS projects the gradient, and %s makes steps of it that have a share along the weights again; use "
                "the form that projects the step: adapt.suppression.form = update",
                name,
            )
        if self._step is not None and self.strength > 0:
            self._step = self._step._replace(without=self._tried(optimizer, self._step))

    def after_step(self) -> None:
        """Nothing: the gradient was projected."""

    def _tried(self, optimizer: torch.optim.Optimizer, step: _Measured) -> list[Tensor]:
        """The updates that the optimizer would make, from the state it is in, of the gradients before suppression.

        Weights, gradients and the optimizer's state are afterwards what they were.
        """
        plain = _unwrapped(optimizer)
        own = [trained_weight(self.layers[name]) for name in step.names]
        gradients = _gradients(own)
        everything = [p for group in plain.param_groups for p in group["params"]]
        kept = [(p, p.grad) for p in everything]
        groups = [{key: value for key, value in group.items() if key != "params"} for group in plain.param_groups]
        states = {p: plain.state[p] for p in own if p in plain.state}
        # Clipping has multiplied all gradients by one number since.
        clipped = (_lengths(gradients).norm() / step.left.norm().clamp_min(_TINY)).item()
        self._trying = True
        try:
            for p in everything:
                p.grad = None
            for p, raw in zip(own, step.raw, strict=True):
                p.grad = raw * clipped
                if p in states:
                    plain.state[p] = copy.deepcopy(states[p])
            plain.step()
            return [p.detach() - before for p, before in zip(own, step.before, strict=True)]
        finally:
            self._trying = False
            for p, gradient in kept:
                p.grad = gradient
            for p, before in zip(own, step.before, strict=True):
                p.copy_(before)
                plain.state.pop(p, None)
            plain.state.update(states)
            for group, values in zip(plain.param_groups, groups, strict=True):
                group.update(values)

    def _transform(self, trained: Mapping[str, Tensor]) -> None:
        if self.strength == 0 or not trained:
            return
        gradients = _gradients(trained.values())
        weights = [weight.detach() for weight in trained.values()]
        shares = _along(gradients, weights, gradients, self.granularity)
        if not self._checked:
            self._check(list(trained), shares)
        _subtract(gradients, shares, self.strength)

    def _check(self, names: Sequence[str], shares: _Along) -> None:
        """Warn, on the first finite gradients, where a norm has left hardly anything of them along the weights."""
        along = torch.stack([(d * d / s).sum() for d, s in zip(shares.dots, shares.squares, strict=True)]).sqrt()
        # A layer without any gradient tells nothing.
        share = (along / _lengths(shares.vectors)).tolist()
        known = [value for value in share if math.isfinite(value)]
        if not known:
            return
        self._checked = True
        if not any(norm.training or not isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in self._norms):
            return
        sizes = [v.numel() / d.numel() for v, d in zip(shares.vectors, shares.dots, strict=True)]
        empty = [name for name, value, size in zip(names, share, sizes, strict=True) if value < NOTHING * chance(size)]
        if 4 * len(empty) >= len(known):
            log.warning(
                "DSS changes nothing in %d of %d convolutions (%s, ...): their gradients have no component along the "
                "weights, as a normalisation behind them undoes the weights' scale (BatchNorm in training mode, "
                "GroupNorm). Freeze or fold it: model.norm = frozen",
                len(empty),
                len(known),
                empty[0],
            )


class UpdateSuppression(DomainSpecificSuppression):
    """The update form: what the optimizer has moved a weight by, without its share along the weight.

    dW <- dW - strength <dW, W> W / ||W||^2 with W the weight before the step: whatever the optimizer, momentum and
    weight decay are part of what is projected. `attach` it, or call `before_step` and `after_step` around the
    optimizer's step. Channels and entries that have no gradient in a step are left to the optimizer.
    """

    _before: Mapping[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the weights."""
        self._before = {name: trained_weight(layer).detach().clone() for name, layer in self.layers.items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take from the weights what they have moved along themselves."""
        trained, kept = self._trained(), self._before
        self._before = {}
        if not trained or not kept or self.strength == 0:
            return
        weights = [weight.detach() for weight in trained.values()]
        before = [kept[name] for name in trained]
        moved = torch._foreach_sub(weights, before)
        if self._step is not None:
            # A gradient's norm stays what it was; that of the update is measured at the end.
            self._step = self._step._replace(without=[one.clone() for one in moved])
        _subtract(weights, _along(moved, before, _gradients(trained.values()), self.granularity), self.strength)

    def _transform(self, trained: Mapping[str, Tensor]) -> None:
        if trained and not self._checked:
            gradients, weights = _gradients(trained.values()), [weight.detach() for weight in trained.values()]
            self._check(list(trained), _along(gradients, weights, gradients, self.granularity))


class Attached:
    """What `attach` has hung on an optimizer."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take it off."""
        for handle in self._handles:
            handle.remove()


def chance(size: float) -> float:
    """The mean |cosine| of a direction drawn at random with a fixed one in `size` dimensions; near sqrt(2 / pi n)."""
    return math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)


class _Along(NamedTuple):
    """Of vectors, in full precision: <v, W> and ||W||^2 where W is `live`, one a weight or one a channel."""

    vectors: list[Tensor]
    live: list[Tensor]
    dots: list[Tensor]
    squares: list[Tensor]


def _along(
    vectors: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor], granularity: Granularity
) -> _Along:
    """What `vectors` have along `weights`, whose entries without a gradient count as 0."""
    live = _wide([torch.where(g != 0, w, 0) for w, g in zip(weights, gradients, strict=True)])
    wide = _wide(vectors)
    if granularity == "tensor":
        dots = [_dot(v, w) for v, w in zip(wide, live, strict=True)]
        squares = list(torch._foreach_pow(torch._foreach_norm(live), 2))
    else:
        dots = _channel_sums(torch._foreach_mul(wide, live))
        squares = _channel_sums(torch._foreach_mul(live, live))
    # A weight of zeros has no direction.
    torch._foreach_clamp_min_(squares, _TINY)
    return _Along(wide, live, dots, squares)


def _subtract(tensors: list[Tensor], shares: _Along, strength: float) -> None:
    """Take `strength` times the share along the weights from `tensors`, in place."""
    wide = _wide(tensors)
    factors = torch._foreach_div(shares.dots, shares.squares)
    torch._foreach_addcmul_(wide, shares.live, factors, value=-strength)
    if any(one is not other for one, other in zip(wide, tensors, strict=True)):
        torch._foreach_copy_(tensors, wide)


def _cosines(
    vectors: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor], granularity: Granularity
) -> Tensor:
    """(L,): the cosine of each pair, or the mean |cosine| of the channels that have a gradient; 0 for no vector."""
    found = []
    for vector, weight, gradient in zip(_wide(vectors), _wide(weights), gradients, strict=True):
        rows = 1 if granularity == "tensor" else len(vector)
        one, other = vector.reshape(rows, -1), weight.reshape(rows, -1)
        norms = (one.norm(dim=1) * other.norm(dim=1)).clamp_min(_TINY)
        cosines = (one * other).sum(1) / norms
        if granularity == "channel":
            alive = gradient.reshape(rows, -1).ne(0).any(1)
            cosines = (cosines.abs() * alive).sum(0, keepdim=True) / alive.sum().clamp(min=1)
        found.append(cosines[0].float())
    return torch.stack(found)


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's, if it is one."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, torch.optim.Optimizer) else optimizer


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """At least in float32; the tensors themselves where they all are."""
    if all(tensor.dtype in _PLAIN for tensor in tensors):
        return list(tensors)
    return [tensor.float() for tensor in tensors]


def _gradients(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """The inner product of two tensors of one shape; in the order of the second's memory, so that nothing is copied."""
    order = sorted(range(second.ndim), key=second.stride, reverse=True)
    return torch.dot(first.permute(order).reshape(-1), second.permute(order).reshape(-1))


def _channel_sums(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Over each output channel of each tensor, shaped to broadcast with it."""
    return [tensor.sum(tuple(range(1, tensor.ndim)), keepdim=True) for tensor in tensors]


def _lengths(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of each tensor, as one tensor."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(_wide(tensors))])
