"""Domain-Specific Suppression (DSS): what remains of a gradient without its share along the weight itself.

Wang et al., Domain-Specific Suppression for Adaptive Object Detection, CVPR 2021 (arXiv 2105.03570). Once training on
the source has converged, the direction of a weight is an estimate of what is specific to the source; so while adapting,
a convolution's gradient loses its component along the weight.

In anybody's loop, with any optimizer, it is one line:

    DomainSpecificSuppression(model.backbone).attach(optimizer)

Three forms, which are not the same. W is a convolution's weight, g the loss's gradient with respect to it, eta the
learning rate of SGD, P g = g - <g, W> W / ||W||^2:

    gradient         W <- W - eta (g - strength <g, W> W / ||W||^2)
    reparametrised   W = s V / ||V||, and V is what is trained: V <- V - eta (s / ||V||) P g
    rescale          W <- W - eta f g

with s = ||W_0|| the norm when the adaptation starts, so that the network computes what it did before. A step of the
reparametrised form is, seen from W, a step of length f = (s / ||V||)^2 along P g and then a return to the norm s. The
f of a V that starts as W_0 is 1; that of the paper, whose layers compute with V / ||V||, is 1 / ||W||^2. To have the
paper's f, which differs from layer to layer, without its shrunk activations, V starts as (s / c) W_0: then
f = (c / s)^2, with c the geometric mean of s over the layers so that steps stay as long on the whole.
`reparametrised-rescale` does so, and `rescale` is that f alone, by W = (c / s) V.
"""

from __future__ import annotations

import copy
import fnmatch
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from acclimate.errors import AcclimateError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from acclimate.config import SuppressionConfig
    from acclimate.models.detector import Detector

Granularity = Literal["tensor", "channel"]
"""One projection a weight, or one for each of its output channels."""

log = logging.getLogger(__name__)

NOTHING = 0.02
"""A gradient that has less than this part of what a random direction has along the weight has nothing there: rounding
leaves 1e-5 of it in float32 and 1e-2 in bfloat16, and of random directions 1.3 % have less."""
_Module = TypeVar("_Module", bound=nn.Module)
_PLAIN = {torch.float32, torch.float64}
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class LayerWatch:
    """Measures what a step does to each convolution, in the steps that are logged; changes nothing.

    A gradient transform of `fit`, which calls `watch` before such a step and `seen` after it.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str] = ("*",)) -> None:
        """Take the convolutions below `module` that train; see `convolutions`.

        Raises:
            AcclimateError: there is none.
        """
        self.layers = convolutions(module, layers)
        self._watching = False
        self._names: list[str] = []
        self._before: list[Tensor] = []
        self._measured: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, module: nn.Module | None = None) -> None:
        """Look at the gradients, and change them where the method does; `module` is not needed."""
        trained = {name: _trained(layer) for name, layer in self.layers.items()}
        trained = {name: weight for name, weight in trained.items() if weight.grad is not None}
        if not self._watching or not trained:
            self._transform(trained)
            return
        self._names = list(trained)
        self._before = [self.layers[name].weight.detach().clone() for name in trained]
        weights, gradients = list(trained.values()), _gradients(trained.values())
        dots = torch.stack([_dot(g.float(), w.float()) for g, w in zip(gradients, weights, strict=True)])
        lengths = _lengths(gradients)
        self._transform(trained)
        self._measured = [dots / (lengths * _lengths(weights)), lengths, _lengths(gradients)]

    def watch(self) -> None:
        """Measure in the step that follows."""
        self._watching = True

    def seen(self) -> dict[str, Any]:
        """What was measured, once the optimizer has stepped: {"suppression": {layer: ...}}, in the order of the layers.

        Of each layer that has a gradient: `cosine` of gradient and weight; norm of the `gradient`, and of what is left
        of it, `suppressed`; norm of the `update` and of the `weight` before it. Of a reparametrised layer, the first
        three are those of the weights that are trained, so its cosine is 0 by construction. `chance` is the |cosine|
        that a direction drawn at random has on average.
        """
        if not self._names:
            return {}
        with torch.no_grad():
            moved = torch._foreach_sub([self.layers[name].weight.detach() for name in self._names], self._before)
            columns = [*self._measured, _lengths(moved), _lengths(self._before)]
        chances = [_chance(weight.numel()) for weight in self._before]
        rows = [(*row, chance) for row, chance in zip(torch.stack(columns, 1).tolist(), chances, strict=True)]
        layers = self._names
        self._watching, self._names, self._before, self._measured = False, [], [], []
        names = ("cosine", "gradient", "suppressed", "update", "weight", "chance")
        return {
            "suppression": {
                layer: {name: float(f"{value:.4g}") for name, value in zip(names, row, strict=True)}
                for layer, row in zip(layers, rows, strict=True)
                # A GradScaler that skips the step has gradients that are not finite.
                if all(map(math.isfinite, row))
            }
        }

    def _transform(self, trained: Mapping[str, Tensor]) -> None:
        """Change the gradients of the weights, in place."""


class DomainSpecificSuppression(LayerWatch):
    """The gradient form: g <- g - strength <g, W> W / ||W||^2 for each convolution of a module.

    Either call it between backward and the optimizer's step, before clipping, or `attach` it to the optimizer. It comes
    after the all-reduce of DistributedDataParallel and once a step when gradients are accumulated. It is linear in the
    gradient, so it does not matter whether a GradScaler has unscaled yet. Sums are taken in float32 (float64 for double
    weights). What the optimizer adds on its own stays outside: momentum averages suppressed gradients, decoupled weight
    decay is not suppressed, and an adaptive step (Adam) need not be orthogonal to W.

    Where a normalisation follows that undoes the weight's scale (BatchNorm in training mode; GroupNorm with granularity
    "tensor"), <g, W> is 0 and there is nothing to suppress. A warning says so, once.
    """

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
        super().__init__(module, layers)
        self.strength = strength
        self.granularity = granularity
        self._checked = strength == 0
        self._norms = [part for part in module.modules() if isinstance(part, _NORMS)]

    @classmethod
    def create(cls, options: SuppressionConfig, detector: Detector) -> LayerWatch:
        """What `options` say, for the backbone of `detector`; the forms other than the gradient's change its layers.

        Raises:
            AcclimateError: no convolution of the backbone trains, or none has a name that `options.layers` asks for.
        """
        backbone = getattr(detector, "backbone", detector)
        if options.form == "gradient":
            return cls(backbone, options.strength, options.granularity, options.layers)
        watch = LayerWatch(backbone, options.layers)
        if options.form == "rescale":
            rescale(backbone, options.layers)
        else:
            paper = options.form == "reparametrised-rescale"
            reparametrise(backbone, options.granularity, options.layers, rescaled=paper)
        return watch

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Suppress at the start of every step of `optimizer`; the handle's `remove` undoes it.

        With clipping in the loop, call the object itself before it instead: the norm that is clipped is then that of
        the suppressed gradient.
        """

        def before_step(
            optimizer: torch.optim.Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            # As torch passes them, the arguments begin with the optimizer itself.
            closure = arguments[1] if len(arguments) > 1 else named.get("closure")
            if closure is None:
                self()
                return None

            # The gradients of this step are not there before its closure has been called.
            def suppressed() -> Any:
                loss = closure()
                self()
                return loss

            return (optimizer, suppressed), {}

        return optimizer.register_step_pre_hook(before_step)

    def _transform(self, trained: Mapping[str, Tensor]) -> None:
        if self.strength == 0 or not trained:
            return
        weights, gradients = [weight.detach() for weight in trained.values()], _gradients(trained.values())
        plain = all(x.dtype in _PLAIN for x in (*weights, *gradients))
        wide_weights = weights if plain else [w.float() for w in weights]
        wide = gradients if plain else [g.float() for g in gradients]
        if self.granularity == "tensor":
            dots = [_dot(g, w) for g, w in zip(wide, wide_weights, strict=True)]
            squares = list(torch._foreach_pow(torch._foreach_norm(wide_weights), 2))
        else:
            dots = _channel_sums(torch._foreach_mul(wide, wide_weights))
            squares = _channel_sums(torch._foreach_mul(wide_weights, wide_weights))
        # A weight of zeros has no direction.
        torch._foreach_clamp_min_(squares, torch.finfo(torch.float32).tiny)
        if not self._checked:
            self._check(list(trained), wide, dots, squares)
        torch._foreach_addcmul_(wide, wide_weights, torch._foreach_div(dots, squares), value=-self.strength)
        if not plain:
            torch._foreach_copy_(gradients, wide)

    def _check(
        self, names: Sequence[str], gradients: Sequence[Tensor], dots: Sequence[Tensor], squares: Sequence[Tensor]
    ) -> None:
        """Warn, on the first finite gradients, where a norm has left hardly anything of them along the weights."""
        along = torch.stack([(d * d / s).sum() for d, s in zip(dots, squares, strict=True)]).sqrt()
        share = (along / _lengths(gradients)).tolist()
        known = [value for value in share if math.isfinite(value)]
        if not known:
            return
        self._checked = True
        if not any(norm.training or not isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in self._norms):
            return
        least = [NOTHING * _chance(g.numel() / d.numel()) for g, d in zip(gradients, dots, strict=True)]
        empty = [name for name, value, bound in zip(names, share, least, strict=True) if value < bound]
        if 4 * len(empty) >= len(known):
            log.warning(
                "DSS changes nothing in %d of %d convolutions (%s, ...): their gradients have no component along the "
                "weights, as a normalisation behind them undoes the weights' scale (BatchNorm in training mode, "
                "GroupNorm). Freeze or fold it: model.norm = frozen",
                len(empty),
                len(known),
                empty[0],
            )


class FrobeniusNorm(nn.Module):
    """The parametrisation W = s V / ||V|| of a weight, by `torch.nn.utils.parametrize`.

    Attributes:
        scale: s, the norm of the weight it is made for, a scalar or (channels, 1, 1, 1); it stays.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, granularity: Granularity = "tensor", stretch: float = 1.0) -> None:
        """For a convolution's `weight`; V starts as `stretch` times it, and a step of SGD is `stretch`**2 shorter."""
        super().__init__()
        self.granularity = granularity
        self.stretch = stretch
        self.register_buffer("scale", self._norm(weight.detach()))

    def forward(self, raw: Tensor) -> Tensor:
        norm = self._norm(raw).clamp_min(torch.finfo(torch.float32).tiny)
        return (raw * (self.scale / norm)).to(raw.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The V that gives `weight`, where that has the norm s."""
        return weight * self.stretch

    def _norm(self, weight: Tensor) -> Tensor:
        dims = tuple(range(1 if self.granularity == "channel" else 0, weight.ndim))
        norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
        return norm


class _Multiple(nn.Module):
    """The parametrisation W = V / stretch: a step of SGD is `stretch`**2 shorter, and nothing else differs."""

    stretch: Tensor

    def __init__(self, weight: Tensor, stretch: float) -> None:
        super().__init__()
        self.register_buffer("stretch", weight.new_tensor(stretch))

    def forward(self, raw: Tensor) -> Tensor:
        return raw / self.stretch

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * self.stretch


class FrobeniusConv2d(nn.Conv2d):
    """A convolution with the weight s V / ||V|| of fixed norm s, V being trained; `fold` makes a plain one of it.

    `reparametrise` does the same to the convolutions of a network that is there.
    """

    def __init__(self, *arguments: Any, granularity: Granularity = "tensor", **named: Any) -> None:
        """As `nn.Conv2d`; s is the norm of the weight it draws."""
        super().__init__(*arguments, **named)
        parametrize.register_parametrization(self, "weight", FrobeniusNorm(self.weight, granularity))


def convolutions(module: nn.Module, layers: Sequence[str] = ("*",)) -> dict[str, _Convolution]:
    """The convolutions below `module` that train, by name, as far as `layers` (patterns as in a shell) name them.

    Raises:
        AcclimateError: there is none.
    """
    found = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _Convolution) and _trained(part).requires_grad
    }
    chosen = {name: part for name, part in found.items() if any(fnmatch.fnmatchcase(name, one) for one in layers)}
    if not chosen:
        some = f"; there are {', '.join(list(found)[:3])}, ..." if found else ""
        raise AcclimateError(f"adapt.suppression: no convolution that trains is called {' or '.join(layers)}{some}")
    return chosen


def reparametrise(
    module: _Module, granularity: Granularity = "tensor", layers: Sequence[str] = ("*",), *, rescaled: bool = False
) -> _Module:
    """Let the convolutions below `module` compute with s V / ||V||, s being the norm each weight has; returns `module`.

    The module computes what it did before. Do it after loading the weights and before making DistributedDataParallel
    of it; `fold` undoes it, keeping the function. `rescaled` adds the paper's length of the step, as the head of this
    file tells.

    Raises:
        AcclimateError: no such convolution trains.
    """
    chosen = convolutions(fold(module), layers)
    stretches = _stretches(chosen) if rescaled else dict.fromkeys(chosen, 1.0)
    for name, layer in chosen.items():
        form = FrobeniusNorm(layer.weight, granularity, stretches[name])
        parametrize.register_parametrization(layer, "weight", form)
    return module


def rescale(module: _Module, layers: Sequence[str] = ("*",)) -> _Module:
    """Change how far a step moves the convolutions below `module`, as the paper's reparametrised form does, and nothing
    else; returns `module`.

    A step of SGD is multiplied by (c / ||W_0||)^2, one of Adam, which does not see a gradient's scale, by c / ||W_0||.

    Raises:
        AcclimateError: no such convolution trains.
    """
    chosen = convolutions(fold(module), layers)
    stretches = _stretches(chosen)
    for name, layer in chosen.items():
        parametrize.register_parametrization(layer, "weight", _Multiple(layer.weight, stretches[name]))
    return module


def fold(module: _Module) -> _Module:
    """Make plain convolutions again of those that `reparametrise` and `rescale` changed; returns `module`."""
    for _, layer in _changed(module):
        weight = layer.get_parameter("parametrizations.weight.original")
        with torch.no_grad():
            weight.copy_(layer.weight.clone())
        # `parametrize.remove_parametrizations` would take the property from the class, which copies of the layer share.
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        layer.register_parameter("weight", weight)
    return module


def folded(module: _Module) -> _Module:
    """A copy of `module` with plain convolutions."""
    return fold(copy.deepcopy(module))


def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` that `module` would have after `fold`; the tensors of other layers are not copied."""
    state: dict[str, Tensor] = dict(module.state_dict())
    for name, layer in _changed(module):
        prefix = f"{name}." if name else ""
        for key in [key for key in state if key.startswith(f"{prefix}parametrizations.weight.")]:
            del state[key]
        state[f"{prefix}weight"] = layer.weight.detach()
    return state


def _changed(module: nn.Module) -> list[tuple[str, _Convolution]]:
    """The convolutions with a parametrisation of this file, by name."""
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, _Convolution)
        and parametrize.is_parametrized(part, "weight")
        and isinstance(part.get_submodule("parametrizations.weight.0"), FrobeniusNorm | _Multiple)
    ]


def _stretches(layers: Mapping[str, _Convolution]) -> dict[str, float]:
    """||W|| / c of each layer, c being the geometric mean of the norms."""
    norms = {name: float(layer.weight.detach().norm()) or 1.0 for name, layer in layers.items()}
    mean = math.exp(sum(math.log(norm) for norm in norms.values()) / len(norms))
    return {name: norm / mean for name, norm in norms.items()}


def _trained(layer: _Convolution) -> Tensor:
    """The parameter that an optimizer moves: the weight, or what it is made of."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.get_parameter("parametrizations.weight.original")
    return layer.weight


def _chance(size: float) -> float:
    """The mean |cosine| of a random direction with a fixed one in `size` dimensions, if these are not few."""
    return math.sqrt(2 / (math.pi * size))


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
    wide = [tensor if tensor.dtype in _PLAIN else tensor.float() for tensor in tensors]
    return torch.stack([norm.float() for norm in torch._foreach_norm(wide)])
