"""Normalisations of feature maps: `model.norm`. Each is BatchNorm's replacement in a backbone, pyramid or head.

Wu and He 2018 (GroupNorm), Luo et al. 2019 (switchable normalisation), Yan et al. 2020 (MABN: moving averages in both
directions, for batches of a few images). BatchNorm over several processes is `synchronised.py`; frozen, `backbones.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

BUFFER = 16
"""Batches that MABN's simple moving averages are over."""
MOST = 1.05
"""By which the short average of MABN's second moment may differ from the long one in the forward pass."""


class SwitchableNorm2d(nn.BatchNorm2d):
    """Normalises by a learned mixture of the statistics of the image and channel (IN), of the image (LN) and of the
    batch (BN): equations 3 to 5 of Luo et al. 2019, one softmax for the means and one for the variances.

    In evaluation the batch's part comes from the running statistics. Those are an exponential average while it trains;
    `statistics.recalibrate` makes them the plain average over batches that the paper evaluates with.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        x = input.float()
        mean_in = x.mean((2, 3), keepdim=True)
        var_in = (x - mean_in).square().mean((2, 3), keepdim=True)
        square = var_in + mean_in.square()
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = square.mean(1, keepdim=True) - mean_ln.square()
        if self.training:
            mean_bn = mean_in.mean(0, keepdim=True)
            var_bn = square.mean(0, keepdim=True) - mean_bn.square()
            self._follow(mean_bn.detach().flatten(), var_bn.detach().flatten())
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean_bn, var_bn = self.running_mean.view(1, -1, 1, 1), self.running_var.view(1, -1, 1, 1)
        a, b = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        y = (x - mean) * torch.rsqrt(var + self.eps)
        return (y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class MovingAverageBatchNorm2d(nn.Module):
    """MABN: y = x / sqrt(E[x^2]) gamma + beta, with moving averages in place of E[x^2] and, in the backward pass, of
    E[z dL/dz]; both then vary little from batch to batch, however small batches are (Yan et al. 2020, section 4).

    The mean is not subtracted: the convolution before it has centred weights (`centre`). Until `buffer` batches have
    been seen, the batch's own statistics serve. Evaluation uses the long average of E[x^2], and so folds.
    """

    running_square: Tensor
    squares: Tensor
    products: Tensor
    seen: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.02, buffer: int = BUFFER) -> None:
        """Build it.

        Args:
            channels: of the maps.
            eps: added to the second moment.
            momentum: share of a new batch in the long average.
            buffer: batches in the short averages.
        """
        super().__init__()
        self.num_features, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_square", torch.ones(channels))
        self.register_buffer("squares", torch.zeros(buffer, channels))
        self.register_buffer("products", torch.zeros(buffer, channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        weight, bias = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
        if not self.training:
            return x * torch.rsqrt(self.running_square + self.eps).view(1, -1, 1, 1) * weight + bias
        z: Tensor = _Moving.apply(x.float(), self)
        return (z * weight + bias).to(x.dtype)

    def deployed(self) -> nn.Module:
        """The same in evaluation, as a BatchNorm, which every exporter folds."""
        return batch_norm(self, self.eps, torch.zeros_like(self.running_square), self.running_square)


def batch_norm(norm: Any, eps: float, mean: Tensor, variance: Tensor) -> nn.BatchNorm2d:
    """A BatchNorm in evaluation, with the scale and shift that `norm` has as `weight` and `bias`, (C,).

    Args:
        norm: a module that normalises.
        eps: added to the variance.
        mean: (C,), of each channel.
        variance: (C,), of each channel.
    """
    made = nn.BatchNorm2d(len(mean), eps=eps)
    state = {"weight": norm.weight.detach(), "bias": norm.bias.detach(), "running_mean": mean, "running_var": variance}
    made.load_state_dict({**state, "num_batches_tracked": torch.zeros((), dtype=torch.int64)})
    return made.eval()


def unfrozen(norm: nn.Module) -> nn.BatchNorm2d | None:
    """A frozen normalisation of torchvision or `transformers` as a BatchNorm in evaluation, which computes the same;
    None for any other module.

    The libraries write them as a product and a sum, which no exporter folds into the convolution before, and INT8 then
    rounds what they multiply. Each of `transformers`' models has a class of its own, with a fixed epsilon.
    """
    if not type(norm).__name__.endswith("FrozenBatchNorm2d"):
        return None
    known: Any = norm
    return batch_norm(known, float(getattr(known, "eps", 1e-5)), known.running_mean, known.running_var)


class _Moving(torch.autograd.Function):
    """x / sqrt(E[x^2]), (B, C, H, W), by the averages of a `MovingAverageBatchNorm2d`, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: MovingAverageBatchNorm2d) -> Tensor:
        square = x.square().mean((0, 2, 3))
        size, seen = len(norm.squares), int(norm.seen)
        full = seen >= size
        norm.squares[seen % size] = square
        short = norm.squares.mean(0) if full else square
        deviation = (short + norm.eps).sqrt().view(1, -1, 1, 1)
        ratio = torch.ones_like(deviation)
        if full:
            ratio = deviation / (norm.running_square + norm.eps).sqrt().view(1, -1, 1, 1)
            ratio = ratio.clamp(1 / MOST, MOST)
        # While the short average fills up, the long one is the plain mean of what was seen.
        norm.running_square.lerp_(square, norm.momentum if full else 1 / (seen + 1))
        norm.seen.add_(1)
        z = x / deviation
        ctx.save_for_backward(z, deviation, ratio)
        ctx.norm, ctx.place, ctx.full = norm, seen % size, full
        return z * ratio

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        z, deviation, ratio = ctx.saved_tensors
        gradient = gradients[0] * ratio
        product = (z * gradient).mean((0, 2, 3))
        ctx.norm.products[ctx.place] = product
        average = (ctx.norm.products.mean(0) if ctx.full else product).view(1, -1, 1, 1)
        return (gradient - z * average) / deviation, None


class _Centred(nn.Conv2d):
    """In front of a convolution's class among the bases: it computes with weights less their mean over each filter."""

    def forward(self, input: Tensor) -> Tensor:
        x = pad_same(input, list(self.kernel_size), list(self.stride), list(self.dilation)) if self._same else input
        return F.conv2d(x, self.centred(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    @property
    def _same(self) -> bool:
        return isinstance(self, Conv2dSame)

    def centred(self) -> Tensor:
        """The weights (O, I, k, k) that it computes with."""
        return self.weight - self.weight.mean((1, 2, 3), keepdim=True)

    def deployed(self) -> nn.Module:
        """The plain convolution that computes the same."""
        plain: nn.Conv2d = copy.deepcopy(self)
        plain.__class__ = Conv2dSame if self._same else nn.Conv2d
        plain.weight.data = self.centred().detach()
        return plain


_CENTRED: dict[type[nn.Module], type[nn.Conv2d]] = {
    own: cast(type[nn.Conv2d], type(f"Centred{own.__name__}", (_Centred, own), {})) for own in (nn.Conv2d, Conv2dSame)
}


def centre(module: nn.Module) -> None:
    """Let the convolutions below `module` that a normalisation follows (those without a bias) compute with centred
    weights; names and parameters stay."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and type(part) in _CENTRED and part.bias is None:
            part.__class__ = _CENTRED[type(part)]


def normalisation(kind: str, channels: int) -> nn.Module:
    """The normalisation of so many channels that `model.norm` asks for, in a pyramid or a head.

    BatchNorm folds for the device, and so does MABN; what is `frozen` in the backbone is trained there.
    """
    return _MADE.get(kind, nn.BatchNorm2d)(channels)


def replace(module: nn.Module, kind: str) -> None:
    """Put the normalisation `kind` in the place of every BatchNorm below `module`; scale, shift and activation stay."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace(child, kind)
            continue
        channels = child.num_features
        # Pretrained channels are many: eight a group, in place of the eight groups of a head.
        norm = (
            nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)
            if kind == "group"
            else normalisation(kind, channels)
        )
        norm.load_state_dict({"weight": child.weight.data, "bias": child.bias.data}, strict=False)
        after = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
        setattr(module, name, nn.Sequential(norm, *after) if after else norm)


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


_MADE: dict[str, Callable[[int], nn.Module]] = {
    "group": _group,
    "switchable": SwitchableNorm2d,
    "moving": MovingAverageBatchNorm2d,
}
REPLACED = tuple(_MADE)
"""The normalisations that take BatchNorm's place, and have weights that a pretrained backbone does not bring."""
