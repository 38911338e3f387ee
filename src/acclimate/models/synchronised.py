"""BatchNorm over the batches of all processes, on any device.

Ioffe and Szegedy 2015 normalise by the statistics of the batch. Where several processes share a batch, each would
normalise by its own part, and two processes would train another detector than one does. torch's SyncBatchNorm does not
run on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def synchronise(module: nn.Module) -> None:
    """Let every BatchNorm below `module` take its batch statistics over all processes, where there are several.

    Names, weights and what it computes in eval mode stay as they are. torch's layer and timm's with an activation are
    meant; a layer that computes otherwise, as a slimmable one does, normalises by its own process's part.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    classes: dict[type[nn.Module], Any] = {}
    for part in module.modules():
        own = type(part)
        if own in (nn.BatchNorm2d, BatchNormAct2d):
            part.__class__ = classes.setdefault(own, type(f"Synchronised{own.__name__}", (_Synchronised, own), {}))


class _Synchronised(nn.BatchNorm2d):
    """In front of BatchNorm2d, or of timm's with an activation, among the bases of a layer's class."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(count)
        mean = _total(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        out = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        out = out.to(input.dtype)
        # What timm's layer does after the normalisation.
        for name in ("drop", "act"):
            after: Any = getattr(self, name, None)
            out = out if after is None else after(out)
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


def _total(value: Tensor) -> Tensor:
    """The sum over the processes, through which gradients go back to all of them."""
    summed: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
    return summed
