"""The optimiser of a training and how its learning rate goes: what the sections `train` and `schedule` say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2, list_optimizers
from torch import nn

from acclimate.config import ScheduleConfig
from acclimate.errors import AcclimateError

LEAST = 0.02
"""Of the learning rate: where `cosine` ends."""
FACTOR = 0.1
"""By which `step` multiplies the learning rate at each of `schedule.decay_at`."""


def optimiser(
    objective: nn.Module, schedule: ScheduleConfig, backbone: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser of the parameters of `objective` that train, in groups of one rate and one decay each.

    `adamw` and `sgd` are torch's (SGD with `schedule.momentum`); every other name is asked of timm's factory.

    Args:
        objective: what is trained.
        schedule: names the optimiser and its rates.
        backbone: the pretrained part, whose rate is `schedule.backbone_lr` times that of the rest.

    Raises:
        AcclimateError: timm knows no such optimiser either, or it refuses its arguments.
    """
    groups = parameter_groups(objective, schedule, backbone)
    name = schedule.optimizer.lower()
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
    names = [str(known) for known in list_optimizers()]
    if name not in names:
        close = [known for known in names if known.startswith(name[:3])][:6]
        near = f"; near: {', '.join(close)}" if close else ""
        raise AcclimateError(f"optimizer: neither adamw nor sgd, and timm has no {schedule.optimizer!r}{near}")
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=name, lr=schedule.lr, weight_decay=0.0, momentum=schedule.momentum
        )
    except (ImportError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AcclimateError(f"optimizer: timm cannot make {schedule.optimizer!r} here ({reason})") from None
    return made


def parameter_groups(
    objective: nn.Module, schedule: ScheduleConfig, backbone: nn.Module | None = None
) -> list[dict[str, Any]]:
    """The parameters that train, with the rate and the weight decay of each.

    Norms and biases (one-dimensional parameters) are not decayed. A parameter of the backbone has `backbone_lr` times
    the rate, and with `layer_decay` d that times d^(L - l) in the l-th of its L stages (Clark et al. 2020, ELECTRA, for
    fine-tuning; Bao et al. 2022, BEiT), so that what is nearest to the image moves least.
    """
    stages = _stages(backbone) if backbone is not None else {}
    count = 1 + max(stages.values(), default=0)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter in objective.parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if id(parameter) in stages:
            factor = schedule.backbone_lr
            if schedule.layer_decay is not None:
                factor *= schedule.layer_decay ** (count - stages[id(parameter)])
        decayed = parameter.ndim > 1
        decay = schedule.weight_decay if decayed else 0.0
        group = groups.setdefault((factor, decayed), {"params": [], "lr": schedule.lr * factor, "weight_decay": decay})
        group["params"].append(parameter)
    # Decayed parameters first, as in every state that was saved when there were two groups.
    return [groups[key] for key in sorted(groups, key=lambda key: (-key[0], not key[1]))]


def _stages(backbone: nn.Module) -> dict[int, int]:
    """Of each parameter of a backbone, by `id`: the stage that it is in, counted from the image."""
    stages: dict[int, int] = {}
    seen: dict[str, int] = {}
    for name, parameter in backbone.named_parameters():
        # "body.blocks.3.0.conv.weight" is in the stage "body.blocks.3", "body.layer2.0..." in "body.layer2".
        found = re.match(r"(?:body\.)?(?:trunk\.)?(?:(?:blocks|stages|layers|features)[._]\d+|[^.]+)", name)
        stage = found.group() if found else name
        stages[id(parameter)] = seen.setdefault(stage, len(seen))
    return stages


def rate(schedule: ScheduleConfig) -> Callable[[int], float]:
    """The factor of the learning rate after so many steps: up linearly over `warmup`, then as `decay` says.

    `cosine` and `linear` go down to `LEAST`; `restarts` does so along a cosine in each of `cycles`, every one
    `cycle_growth` times as long as the one before (Loshchilov and Hutter 2017, SGDR); `step` multiplies by `FACTOR` at
    each part of the run in `decay_at`; `constant` stays.
    """

    def factor(step: int) -> float:
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        if schedule.decay == "constant":
            return 1.0
        if schedule.decay == "step":
            return FACTOR ** sum(step >= part * schedule.steps for part in schedule.decay_at)
        progress = min(1.0, (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup))
        if schedule.decay == "linear":
            return 1 - (1 - LEAST) * progress
        if schedule.decay == "restarts":
            progress = _within_cycle(progress, schedule.cycles, schedule.cycle_growth)
        return LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _within_cycle(progress: float, cycles: int, growth: float) -> float:
    """How far along its own cycle a run is that is so far along, 0..1."""
    lengths = [growth**i for i in range(cycles)]
    start = 0.0
    for length in lengths:
        share = length / sum(lengths)
        # A restart is the first step of its cycle, wherever rounding puts it.
        if progress < start + share - 1e-9:
            return max(0.0, (progress - start) / share)
        start += share
    return 1.0
