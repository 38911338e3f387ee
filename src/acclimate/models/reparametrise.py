"""Convolutions that compute with a function of the weight that is trained, and how to make plain ones of them again.

With V the parameter that an optimizer moves, W = s V / ||V|| has a fixed norm s, and W = V / stretch lets the optimizer
take other steps than it would in W. A detector may be trained in this form; what is averaged, saved and exported is
always the plain one. What it is for: `adapt/suppression.py`.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from acclimate.errors import AcclimateError

Granularity = Literal["tensor", "channel"]
"""One norm a weight, or one for each of its output channels."""
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

_Module = TypeVar("_Module", bound=nn.Module)


class FrobeniusNorm(nn.Module):
    """The parametrisation W = s V / ||V|| of a weight, by `torch.nn.utils.parametrize`.

    Its gradient is dL/dV = (s / ||V||) (g - <g, V> V / ||V||^2) with g = dL/dW. Where g is exactly 0 nothing is written
    (V counts as 0 there, in the product and the norm): an adaptive optimizer makes full steps of however little, and
    would move the weights of channels that are dead.

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
        """The weight (O, ...) that the layer computes with, of what is trained, in the same shape."""
        normed: Tensor = _Normed.apply(raw, self.scale, self._dims(raw))
        return normed

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The V (O, ...) that gives `weight` (O, ...), where that has the norm s."""
        return weight * self.stretch

    def _norm(self, weight: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(weight, dim=self._dims(weight), keepdim=True)
        return norm

    def _dims(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(range(1 if self.granularity == "channel" else 0, weight.ndim))


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, scale: Tensor, dims: tuple[int, ...]) -> Tensor:
        norm = torch.linalg.vector_norm(raw, dim=dims, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        factor = scale / norm
        ctx.save_for_backward(raw, factor)
        ctx.dims = dims
        weight: Tensor = (raw * factor).to(raw.dtype)
        return weight

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raw, factor = ctx.saved_tensors
        gradient = gradients[0]
        exact = torch.promote_types(raw.dtype, torch.float32)
        wide, live = gradient.to(exact), torch.where(_alive(gradient), raw, 0).to(exact)
        along, square = (live.mul(other).sum(ctx.dims, keepdim=True) for other in (wide, live))
        rest = wide - live * (along / square.clamp_min(torch.finfo(torch.float32).tiny))
        return (rest * factor).to(raw.dtype), None, None


def _alive(gradient: Tensor) -> Tensor:
    """Which entries have a gradient, in whatever process: the projection has to be the same in all of them."""
    alive = gradient != 0
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # Every process goes through its layers in the same order.
        known = alive.to(torch.uint8)
        dist.all_reduce(known, dist.ReduceOp.MAX)
        alive = known.bool()
    return alive


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


def convolutions(module: nn.Module, layers: Sequence[str] = ("*",)) -> dict[str, Convolution]:
    """The convolutions below `module` that train, by name, as far as `layers` (patterns as in a shell) name them.

    Raises:
        AcclimateError: there is none.
    """
    found = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, Convolution) and trained_weight(part).requires_grad
    }
    chosen = {name: part for name, part in found.items() if any(fnmatch.fnmatchcase(name, one) for one in layers)}
    if not chosen:
        some = f"; there are {', '.join(list(found)[:3])}, ..." if found else ""
        raise AcclimateError(f"adapt.suppression: no convolution that trains is called {' or '.join(layers)}{some}")
    return chosen


def reparametrise(
    module: _Module, granularity: Granularity = "tensor", layers: Sequence[str] = ("*",), *, rescaled: bool = False
) -> _Module:
    """Let the convolutions of a module compute with s V / ||V||, s being the norm each weight has; returns the module.

    Do it after loading the weights and before making DistributedDataParallel of it; `fold` undoes it, keeping the
    function.

    Args:
        module: it computes what it did before.
        granularity: one norm a weight, or one for each output channel.
        layers: which convolutions, as patterns of their names.
        rescaled: whether a step has the paper's length, as the head of `adapt/suppression.py` tells.

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
    """The `state_dict`, names and shapes, that `module` would have after `fold`; the tensors of other layers are not
    copied."""
    state: dict[str, Tensor] = dict(module.state_dict())
    for name, layer in _changed(module):
        prefix = f"{name}." if name else ""
        for key in [key for key in state if key.startswith(f"{prefix}parametrizations.weight.")]:
            del state[key]
        state[f"{prefix}weight"] = layer.weight.detach()
    return state


def _changed(module: nn.Module) -> list[tuple[str, Convolution]]:
    """The convolutions with a parametrisation of this file, by name."""
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, Convolution)
        and parametrize.is_parametrized(part, "weight")
        and isinstance(part.get_submodule("parametrizations.weight.0"), FrobeniusNorm | _Multiple)
    ]


def _stretches(layers: Mapping[str, Convolution]) -> dict[str, float]:
    """||W|| / c of each layer, c being the geometric mean of the norms."""
    norms = {name: float(layer.weight.detach().norm()) or 1.0 for name, layer in layers.items()}
    mean = math.exp(sum(math.log(norm) for norm in norms.values()) / len(norms))
    return {name: norm / mean for name, norm in norms.items()}


def trained_weight(layer: nn.Module) -> Tensor:
    """The parameter (O, ...) that an optimizer moves: a convolution's weight, or what a parametrisation makes it of."""
    parametrisations = getattr(layer, "parametrizations", None)
    if parametrisations is not None and "weight" in parametrisations:
        original: Tensor = parametrisations["weight"].original
        return original
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
