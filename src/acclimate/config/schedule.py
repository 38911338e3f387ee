"""Options of a training: how long and how fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from acclimate.config.options import MOST_WORKERS, Added, Options


class ScheduleConfig(Options):
    """How long and how fast. Steps count optimiser steps; a batch is the global one, over all processes."""

    steps: int = Field(default=2000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Images of one domain a step, over all processes."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate at the end of the warm-up."""
    optimizer: Annotated[str, Added("adamw")] = "adamw"
    """`adamw`, `sgd` (with momentum), or any other that timm's factory knows."""
    momentum: Annotated[float, Added(0.9)] = Field(default=0.9, ge=0, lt=1)
    """Momentum of `sgd`, and of timm's optimisers that have one."""
    backbone_lr: Annotated[float, Added(1.0)] = Field(default=1.0, gt=0)
    """The backbone's learning rate as a multiple of `lr`."""
    layer_decay: Annotated[float | None, Added(None)] = Field(default=None, gt=0, le=1)
    """Factor by which the learning rate falls from one stage of the backbone to the one before it; 0.7 to 0.9 are
    usual."""
    decay: Annotated[Literal["cosine", "restarts", "linear", "step", "constant"], Added("cosine")] = "cosine"
    """How the learning rate goes after `warmup`: `cosine` falls to 2 % of `lr`, `restarts` does so several times,
    `linear` falls to 2 % in a straight line, `step` to a tenth at each of `decay_at`, `constant` stays."""
    cycles: Annotated[int, Added(3)] = Field(default=3, ge=1, le=100)
    """Only for `restarts`: how many times the learning rate falls."""
    cycle_growth: Annotated[float, Added(2.0)] = Field(default=2.0, ge=1, le=10)
    """Only for `restarts`: how many times as long each cycle is as the one before it."""
    decay_at: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Added((0.67, 0.89))] = (0.67, 0.89)
    """Only for `step`: parts of the run after which the learning rate is a tenth of what it was."""
    weight_decay: float = Field(default=0.02, ge=0)
    """Weight decay of weights with more than one dimension; norms and biases have none."""
    warmup: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay a step of the averaged weights, which are what is kept."""
    clip: float | None = Field(default=10.0, gt=0)
    """Largest norm of the gradient; `none` switches clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the training; `auto` is bf16 on a GPU that has it, else fp32."""
    accumulate: int = Field(default=1, ge=1, le=65_536)
    """Batches a step; the effective batch is `batch_size` times this."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints, which are also where a killed run goes on and, in an adaptation, what is chosen
    from."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of `metrics.jsonl`."""
    workers: int = Field(default=2, ge=0, le=MOST_WORKERS)
    """Loader threads a process; 0 loads in the training thread."""
    cache_mb: int = Field(default=2048, ge=0)
    """Memory for decoded images, MB."""
