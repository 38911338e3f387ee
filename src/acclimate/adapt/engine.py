"""THE loop: every training and adaptation runs through `fit`.

One step, in order: terms -> backward -> unscale -> gradient transforms -> clip -> optimiser -> update transforms ->
after_step.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console
from torch import nn

from acclimate.adapt.health import Health
from acclimate.adapt.objective import GradientTransform, Objective, UpdateTransform, Watcher
from acclimate.adapt.optimisers import optimiser, rate
from acclimate.config import ScheduleConfig
from acclimate.errors import AcclimateError, Interrupted
from acclimate.models import detector as models
from acclimate.models.synchronised import synchronise
from acclimate.progress import counting
from acclimate.run import Run, stop_signal, write_text, writing
from acclimate.trackers import Track

if TYPE_CHECKING:
    from acclimate.data.dataset import Loader

log = logging.getLogger(__name__)

_STATE_ROOM = 2**24
"""Bytes; with less than this left, a state that could not be written met a full disk."""


def accelerator(precision: str) -> Accelerator:
    """The Accelerate object; `auto` is bf16 on a GPU that has it, and fp32 on a CPU, which gains little."""
    device = models.accelerator()
    if precision == "auto":
        gpu = device is not None and device.type == "cuda"
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    # One process may run several verbs; Accelerate otherwise refuses a second precision.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        # Without being told, Accelerate takes several processes on a machine without accelerators for as many runs.
        cpu=device is None,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=True)],
    )


@dataclass(frozen=True, slots=True)
class Telling:
    """Whom a training tells how far it is.

    Attributes:
        title: of the progress bar.
        console: where that goes; None shows none.
        track: told the step and the values of each line that is logged.
    """

    title: str = "training"
    console: Console | None = None
    track: Track = lambda step, values: None


NOBODY = Telling()


def fit(
    run: Run,
    objective: Objective,
    loader: Loader,
    schedule: ScheduleConfig,
    acc: Accelerator,
    *,
    transforms: Sequence[GradientTransform] = (),
    telling: Telling = NOBODY,
) -> None:
    """Train until `schedule.steps`, taking up the state in `run` where there is one.

    Writes metrics.jsonl, checkpoints/step_N.safetensors (averaged weights) and state/ into the run folder.

    Args:
        run: the folder that is written; where it holds a state, training goes on from it.
        objective: the detector, its average and the terms.
        loader: the batches.
        schedule: how long and how fast.
        acc: device, precision and processes; see `accelerator`.
        transforms: of the gradients, in this order, between the backward pass and clipping.
        telling: whom it tells how far it is.

    Raises:
        Interrupted: on SIGINT or SIGTERM, once the state is saved.
        AcclimateError: the loss is not finite, or the disk refuses.
    """
    objective.to(acc.device)
    objective.detector.to(memory_format=torch.channels_last)
    objective.average.to(memory_format=torch.channels_last)
    synchronise(objective.detector)
    optimizer = optimiser(objective, schedule, getattr(objective.detector, "backbone", None))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate(schedule))
    model, optimizer = acc.prepare(objective, optimizer)
    acc.register_for_checkpointing(scheduler)
    start, window = _resume(run, acc)
    objective.train()
    speed = _Rate(schedule.batch_size * schedule.accumulate)
    # It looks at the gradients before a method changes them.
    watchers = [
        Health(objective.detector),
        *(part for part in (*transforms, *objective.terms) if isinstance(part, Watcher)),
    ]
    acting: Sequence[object] = transforms
    updates = [one for one in acting if isinstance(one, UpdateTransform)]
    batches = loader.batches(start * schedule.accumulate)
    step = start
    told = telling.console if acc.is_main_process else None
    with stop_signal() as stopped, counting(told, telling.title, start=start, lines=10) as advance:
        try:
            for step in range(start + 1, schedule.steps + 1):
                losses: dict[str, float] = {}
                for micro in range(schedule.accumulate):
                    source, target = next(batches)
                    source = source.to(acc.device) if source is not None else None
                    target = target.to(acc.device) if target is not None else None
                    sync = contextlib.nullcontext() if micro == schedule.accumulate - 1 else acc.no_sync(model)
                    with sync:
                        with acc.autocast():
                            parts = model(source, target, (step - 1) / schedule.steps)
                        acc.backward(sum(parts.values()) / schedule.accumulate)
                    # One copy from the device for all of them: each would wait for it.
                    values = torch.stack([value.detach().float() for value in parts.values()]).tolist()
                    for name, value in zip(parts, values, strict=True):
                        losses[name] = losses.get(name, 0.0) + value / schedule.accumulate
                acc.unscale_gradients()
                logged = step % schedule.log_every == 0 or step == schedule.steps
                for watcher in watchers if logged else ():
                    watcher.watch()
                for transform in transforms:
                    transform(objective.detector)
                norm = nn.utils.clip_grad_norm_(objective.parameters(), schedule.clip or math.inf)
                lr = scheduler.get_last_lr()[0]
                for update in updates:
                    update.before_step(optimizer)
                optimizer.step()
                for update in updates:
                    update.after_step()
                seen = {name: value for watcher in watchers for name, value in watcher.seen().items()}
                scheduler.step()
                optimizer.zero_grad()
                objective.after_step(step)
                speed.step()

                losses["loss"] = sum(losses.values())
                losses, stop = _agreed(acc, losses, stopped.is_set())
                if not math.isfinite(losses["loss"]):
                    kept = max(checkpoints(run), default=None)
                    raise AcclimateError(
                        f"{run.path}: the loss is {losses['loss']} at step {step}; lower the learning rate "
                        f"(now {schedule.lr:g}) or use precision fp32. "
                        + (f"The checkpoint of step {kept} is kept" if kept else "No checkpoint was written yet")
                    )
                losses["gradient_norm"] = float(norm)
                for name, value in losses.items():
                    window[name] = window.get(name, 0.0) + value
                window["steps"] = window.get("steps", 0.0) + 1
                if logged:
                    if acc.is_main_process:
                        means = {k: v / window["steps"] for k, v in window.items() if k != "steps"}
                        facts = {"lr": lr, "images_per_s": round(speed.images_per_s(), 2), **means, **seen}
                        run.log(step=step, **facts)
                        telling.track(step, facts)
                    window = {}
                advance(step, schedule.steps, f"loss {losses['loss']:.3f}, {speed.images_per_s():.1f} images/s")
                if step % schedule.checkpoint_every == 0 or step == schedule.steps:
                    if acc.is_main_process:
                        models.save_weights(objective.average, checkpoint(run, step))
                    _save_state(run, acc, step, window)
                if stop and step < schedule.steps:
                    _save_state(run, acc, step, window)
                    raise Interrupted(run.path, step)
        finally:
            batches.close()


def checkpoint(run: Run, step: int) -> Path:
    """Where the averaged weights after `step` are."""
    return run.path / "checkpoints" / f"step_{step:06d}.safetensors"


def checkpoints(run: Run) -> dict[int, Path]:
    """All checkpoints of a run, by step."""
    files = sorted((run.path / "checkpoints").glob("step_*.safetensors"))
    return {int(file.stem.removeprefix("step_")): file for file in files}


def reached(run: Run) -> int:
    """The step that a resume of the run goes on from; 0 where it starts anew."""
    state = _state(run)
    return 0 if state is None else int(state[1]["step"])


def _agreed(acc: Accelerator, losses: dict[str, float], stop: bool) -> tuple[dict[str, float], bool]:
    """Mean losses over the processes, and whether any of them is to stop.

    The processes act on both alike; one that stopped alone would leave the others waiting for it.
    """
    if acc.num_processes == 1:
        return losses, stop
    means = acc.reduce(torch.tensor([*losses.values(), float(stop)], device=acc.device), "mean").tolist()
    return dict(zip(losses, means[:-1], strict=True)), means[-1] > 0


def _save_state(run: Run, acc: Accelerator, step: int, window: dict[str, float]) -> None:
    """Everything an exact resume needs, swapped in whole: a kill leaves the old state or the new one."""
    new, state, old = (run.path / name for name in ("state.new", "state", "state.old"))
    acc.wait_for_everyone()
    with writing(run.path):
        if acc.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        acc.wait_for_everyone()
        try:
            acc.save_state(str(new), safe_serialization=False)
        except RuntimeError as error:
            # torch reports a write that failed as a RuntimeError, in words that differ by the place it failed at.
            full = shutil.disk_usage(run.path).free < _STATE_ROOM
            shutil.rmtree(new, ignore_errors=True)
            if not full:
                raise
            raise OSError(errno.ENOSPC, str(error)) from error
        acc.wait_for_everyone()
        if acc.is_main_process:
            write_text(new / "step.json", json.dumps({"step": step, "window": window}))
            # Where only the old state is left, a kill before the next line must leave it.
            if state.exists():
                shutil.rmtree(old, ignore_errors=True)
                state.rename(old)
            new.rename(state)
            shutil.rmtree(old, ignore_errors=True)
    acc.wait_for_everyone()


def _resume(run: Run, acc: Accelerator) -> tuple[int, dict[str, float]]:
    state = _state(run)
    if state is None:
        if acc.is_main_process:
            run.rewind(0)
        return 0, {}
    folder, saved = state
    try:
        acc.load_state(str(folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise AcclimateError(
            f"{folder}: does not fit what is trained now ({reason}); was it saved by another version? Delete "
            f"{run.path} and start again, or go on with the version that began"
        ) from None
    if acc.is_main_process:
        run.rewind(saved["step"])
        for step, file in checkpoints(run).items():
            if step > saved["step"]:
                file.unlink()
    acc.wait_for_everyone()
    return int(saved["step"]), dict(saved["window"])


def _state(run: Run) -> tuple[Path, dict[str, Any]] | None:
    """The folder that a resume reads, and the step and the sums in it."""
    for name in ("state", "state.old"):
        if run.has(f"{name}/step.json"):
            return run.path / name, run.read(f"{name}/step.json")
    return None


class _Rate:
    """Images a second over the last steps, the first one (which warms caches) left out."""

    def __init__(self, batch: int, keep: int = 50) -> None:
        self.batch = batch
        self.keep = keep
        self.times: list[float] = []

    def step(self) -> None:
        self.times = [*self.times[-self.keep :], time.perf_counter()]

    def images_per_s(self) -> float:
        if len(self.times) < 2:
            return 0.0
        return self.batch * (len(self.times) - 1) / (self.times[-1] - self.times[0])
