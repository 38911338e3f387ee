"""Convolution blocks that no library here has, as options of a detector's pyramid and head (`model.conv`, `.context`).

All keep the size of a map and, but for ShuffleNet's unit, the number of its channels. None has a normalisation of its
own unless it is given one: in a head whose convolutions are shared by the levels each level has its own behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""

KERNELS, GROUPS = (3, 5, 7, 9), (1, 4, 8, 16)
"""Of the levels of a pyramidal convolution (Duta et al. 2020, table 1, first stage)."""
DILATIONS = (1, 2, 1, 4)
"""Along the channels of a poly-scale convolution (Li et al. 2020, section 3.2)."""


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) with channels (g, C / g) in the order (C / g, g): what follows reads from all groups."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """ShuffleNet v1's unit: pointwise group convolution, channel shuffle, depthwise 3x3, pointwise group convolution,
    and a shortcut (Zhang et al. 2018, figure 2 b and c).

    With stride 2 the shortcut is pooled and concatenated, so that `outputs` counts the inputs too.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int = 3,
        stride: int = 1,
        *,
        first: int = 0,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        """Build a unit.

        Args:
            inputs: channels that come in.
            outputs: channels that go out; with stride 1 as many as come in.
            groups: of both pointwise convolutions.
            stride: 1, or 2 for a unit that halves the map.
            first: groups of the first pointwise convolution, where it has others: 1 behind the stem.
            norm: makes the normalisation behind each convolution; `nn.Identity` for none.
        """
        super().__init__()
        self.stride, self.groups = stride, groups
        made = outputs - inputs if stride > 1 else outputs
        middle = math.ceil(outputs / 4 / groups) * groups
        self.compress = nn.Conv2d(inputs, middle, 1, groups=first or groups, bias=False)
        self.norm1 = norm(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.norm2 = norm(middle)
        self.expand = nn.Conv2d(middle, made, 1, groups=groups, bias=False)
        self.norm3 = norm(made)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.compress(x)))
        y = self.norm2(self.depthwise(channel_shuffle(y, self.groups)))
        y = self.norm3(self.expand(y))
        if self.stride == 1:
            return F.relu(x + y)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, self.stride, 1), y], 1))


class SelfCalibratedConv2d(nn.Module):
    """A convolution half of whose channels is gated by what a smaller map sees around each place (Liu et al. 2020,
    equations 1 to 5).

    One half X2 passes a 3x3 convolution. The other, X1, is pooled by `pooling`, convolved, and enlarged again; the
    sigmoid of its sum with X1 gates a convolution of X1, which is convolved once more.
    """

    def __init__(self, channels: int, pooling: int = 4) -> None:
        """For `channels`, an even number; `pooling` is the side of the places that are pooled together."""
        super().__init__()
        half, rest = channels // 2, channels - channels // 2
        self.pooling = pooling
        self.plain = _conv(rest, rest)
        self.around = _conv(half, half)
        self.gated = _conv(half, half)
        self.last = _conv(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        half = self.around.in_channels
        first, second = x[:, :half], x[:, half:]
        # A map smaller than a pool is one place.
        side = (min(self.pooling, x.shape[2]), min(self.pooling, x.shape[3]))
        around = self.around(F.avg_pool2d(first, side))
        gate = torch.sigmoid(first + F.interpolate(around, size=x.shape[2:], mode="nearest"))
        return torch.cat([self.last(self.gated(first) * gate), self.plain(second)], 1)


class StripPooling(nn.Module):
    """Gates a map by what its rows and columns hold, each pooled over its whole length (Hou et al. 2020, equations 1 to
    4): long, thin things reach as far as they are long."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.columns = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        rows, columns = self.rows(x.mean(3, keepdim=True)), self.columns(x.mean(2, keepdim=True))
        gate: Tensor = torch.sigmoid(self.gate(F.relu(rows + columns)))
        return x * gate


class PyramidalConv2d(nn.Module):
    """PyConv: a part of the outputs from each of several kernel sizes, larger kernels in more groups (Duta et al. 2020,
    section 3)."""

    def __init__(self, channels: int, kernels: tuple[int, ...] = KERNELS, groups: tuple[int, ...] = GROUPS) -> None:
        """For `channels`, divisible by the number of levels; a level has the most groups, up to those of `groups`, that
        divide its inputs and outputs."""
        super().__init__()
        each = [channels // len(kernels)] * len(kernels)
        each[0] += channels - sum(each)
        self.levels = nn.ModuleList(
            nn.Conv2d(channels, made, kernel, padding=kernel // 2, groups=math.gcd(group, channels, made), bias=False)
            for made, kernel, group in zip(each, kernels, groups, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return torch.cat([level(x) for level in self.levels], 1)


class HeterogeneousConv2d(nn.Module):
    """HetConv: each filter has 3x3 kernels for one part in `parts` of its inputs and 1x1 for the others (Singh et al.
    2019, section 3).

    Written as the sum of a 3x3 convolution in `parts` groups and a pointwise one. That has the same functions; where
    both read a channel, the pointwise weight adds to the centre of the 3x3 kernel.
    """

    def __init__(self, channels: int, parts: int = 4) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, groups=math.gcd(parts, channels), bias=False)
        self.narrow = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        y: Tensor = self.wide(x) + self.narrow(x)
        return y


class PolyScaleConv2d(nn.Module):
    """PSConv: within a 3x3 convolution the dilation changes from channel to channel, in and out, in a cycle (Li et al.
    2020, section 3.2).

    Inputs and outputs fall into as many parts as there are dilations; part i of the outputs reads part j of the inputs
    with the dilation at (j - i) modulo their number. As many weights as a plain convolution has.
    """

    def __init__(self, channels: int, dilations: tuple[int, ...] = DILATIONS) -> None:
        """For `channels`, divisible by the number of dilations.

        Raises:
            ValueError: they are not.
        """
        super().__init__()
        parts = len(dilations)
        if channels % parts:
            raise ValueError(f"{channels} channels do not fall into {parts} equal parts")
        self.part = channels // parts
        self.scales = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=one, dilation=one, groups=parts, bias=False) for one in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        total: Tensor = self.scales[0](x)
        for shift in range(1, len(self.scales)):
            turned = torch.cat([x[:, shift * self.part :], x[:, : shift * self.part]], 1)
            total = total + self.scales[shift](turned)
        return total


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _depthwise(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def _shuffle(channels: int) -> nn.Module:
    return ShuffleUnit(channels, channels, math.gcd(4, channels // 4), norm=lambda _: nn.Identity())


CONVOLUTIONS: dict[str, Callable[[int], nn.Module]] = {
    "depthwise": _depthwise,
    "shuffle": _shuffle,
    "self-calibrated": SelfCalibratedConv2d,
    "pyramid": PyramidalConv2d,
    "heterogeneous": HeterogeneousConv2d,
    "poly-scale": PolyScaleConv2d,
}
"""What `model.conv` may be: makes the spatial convolution of so many channels."""

CONTEXTS: dict[str, Callable[[int], nn.Module]] = {"strip": StripPooling}
"""What `model.context` may be."""
