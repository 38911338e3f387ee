"""Whether a training keeps its network alive: channels that get no gradient any more, and how far each step moves.

A channel behind a ReLU (or ReLU6) whose input has left the part with a slope passes no gradient back: its weights stay
as they are for ever, and the network is narrower by one channel without a word. A rate that is right for a new head can
do that to most of a pretrained backbone while the loss still falls.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.models.reparametrise import trained_weight

log = logging.getLogger(__name__)

AGAIN = 3
"""So many logged steps in a row without any gradient make a layer a dead one."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Health:
    """Watches every convolution that trains, in the steps that are logged; changes nothing.

    A channel is dead in a step if the gradient of its weights is exactly zero.
    """

    def __init__(self, detector: nn.Module) -> None:
        self._layers = {
            name: part
            for name, part in detector.named_modules()
            if isinstance(part, _CONVOLUTIONS) and any(p.requires_grad for p in part.parameters())
        }
        self._silent = dict.fromkeys(self._layers, 0)
        self._warned = False
        self._names: list[str] = []
        self._before: list[Tensor] = []
        self._dead: list[float] = []
        self._channels: list[int] = []

    @torch.no_grad()
    def watch(self) -> None:
        """Look at the gradients, once they are whole and before anything changes them."""
        self._names, self._before, alive = [], [], []
        for name, layer in self._layers.items():
            weight = trained_weight(layer)
            if weight.grad is None:
                continue
            self._names.append(name)
            self._before.append(weight.detach().clone())
            alive.append(weight.grad.flatten(1).ne(0).any(1))
        if not alive:
            return
        self._channels = [len(channels) for channels in alive]
        self._dead = (1 - torch.stack([channels.float().mean() for channels in alive])).tolist()
        self._warn()

    @torch.no_grad()
    def seen(self) -> dict[str, Any]:
        """What was seen, once the optimiser has stepped.

        Returns:
            `dead_channels`, the share of all channels whose weights got no gradient; `update_ratio`, the norm of the
            step over that of the weights, for all layers together; and `health`, {layer: {"dead": share of its
            channels, "update": norm of its step over that of its weight}}.
        """
        if not self._names:
            return {}
        moved = torch._foreach_sub([trained_weight(self._layers[name]).detach() for name in self._names], self._before)
        steps = torch.stack([norm.float() for norm in torch._foreach_norm(moved)])
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(self._before)])
        ratios = (steps / norms.clamp_min(torch.finfo(torch.float32).tiny)).tolist()
        channels = sum(self._channels)
        dead = sum(share * count for share, count in zip(self._dead, self._channels, strict=True)) / channels
        row = {
            "dead_channels": round(dead, 4),
            "update_ratio": float(f"{float(steps.norm() / norms.norm()):.4g}"),
            "health": {
                name: {"dead": round(share, 4), "update": float(f"{ratio:.4g}")}
                for name, share, ratio in zip(self._names, self._dead, ratios, strict=True)
                # A GradScaler that skips the step has gradients that are not finite.
                if math.isfinite(ratio)
            },
        }
        self._names, self._before = [], []
        return row

    def _warn(self) -> None:
        for name, share in zip(self._names, self._dead, strict=True):
            self._silent[name] = self._silent[name] + 1 if share == 1 else 0
        dead = [name for name, times in self._silent.items() if times >= AGAIN]
        if dead and not self._warned:
            self._warned = True
            log.warning(
                "%d of %d convolutions no longer learn (%s%s): every one of their channels is dead. Lower the learning "
                "rate (lr, or backbone_lr for a pretrained backbone alone), or let BatchNorm train: model.norm = batch",
                len(dead),
                len(self._layers),
                ", ".join(dead[:3]),
                ", ..." if len(dead) > 3 else "",
            )
