"""A detector of a few weights and what it needs to be trained: the loop is tested without waiting for convolutions.

Run as a program, it trains until it kills itself: `python toy_training.py RUN STEP`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from acclimate.adapt.engine import accelerator, checkpoints, fit
from acclimate.adapt.objective import Objective, Step, Term, View
from acclimate.config import ScheduleConfig
from acclimate.edge.artifact import Decode
from acclimate.errors import Interrupted
from acclimate.models.detector import Detector, DetectorSpec
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations, Batch

SIDE = 8


class ToyDetector(Detector):
    """One convolution, one BatchNorm (with its integer counter), one convolution; counts its forward passes."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spec = DetectorSpec(
            classes=("a",), image_size=(SIDE, SIDE), backbone="toy", strides=(1,), channels=8, depth=0
        )
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.last = nn.Conv2d(8, 1, 1)
        self.passes: list[int] = []

    def features(self, images: Tensor) -> list[Tensor]:
        self.passes.append(len(images))
        return [torch.relu(self.norm(self.first(images / 255)))]

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (self.last(features[0]).flatten(2).transpose(1, 2),)

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        (output,) = self.head(features) if raw is None else raw
        wanted = torch.tensor([float(len(target)) for target in targets])
        return {"class": (output.mean((1, 2)) - wanted).square().mean()}

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        (output,) = self.head(features) if raw is None else raw
        return {"class": (output - soft[0]).square().mean()}

    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        return [torch.tensor([[0.0, 0.0, SIDE, SIDE]]).expand(count, 4) for _ in features[0]]

    def decode_options(self) -> Decode:
        return Decode(strides=(1,))

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return torch.stack([features[0][i].mean((1, 2)) for i, found in enumerate(boxes) for _ in found])


class Restless(Term):
    """Draws random numbers and carries state of its own: a resume that forgets either is found out."""

    views: ClassVar[tuple[View, ...]] = ("source_strong",)
    name: ClassVar[str] = "restless"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("memory", torch.zeros(()))

    def forward(self, step: Step) -> dict[str, Tensor]:
        (raw,) = step.raw("source_strong")
        noise = torch.rand(len(raw), 1, 1)
        return {"restless/noise": 0.1 * (self.scale * raw * noise - self.memory).square().mean()}

    def after_step(self, detector: Detector) -> None:
        self.memory.mul_(0.9).add_(0.1 * float(next(detector.parameters()).detach().mean()))


class ToyLoader:
    """Endless batches that depend on the step alone; `at` is called before each."""

    def __init__(self, batch_size: int, at: Callable[[int], None] = lambda step: None, target: bool = True) -> None:
        self.batch_size = batch_size
        self.at = at
        self.target = target
        self.closed = False

    def batches(self, start: int = 0) -> Generator[tuple[Batch, Batch | None], None, None]:
        try:
            step = start
            while True:
                self.at(step)
                yield self.batch(step)
                step += 1
        finally:
            self.closed = True

    def batch(self, step: int) -> tuple[Batch, Batch | None]:
        source = [image(step * self.batch_size + i) for i in range(self.batch_size)]
        targets = [annotations((step * self.batch_size + i) % 3) for i in range(self.batch_size)]
        weak, strong = torch.stack(source), torch.stack(source).flip(-1)
        return Batch(weak, strong, targets), Batch(strong, weak) if self.target else None


def image(index: int) -> Tensor:
    return 255 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))


def annotations(count: int) -> Annotations:
    boxes = torch.tensor([[1.0, 1, 5, 5]]).repeat(count, 1).numpy()
    return Annotations(boxes, torch.zeros(count, dtype=torch.int64).numpy(), torch.zeros(count).bool().numpy())


def schedule(**changes: Any) -> ScheduleConfig:
    values = {"steps": 12, "batch_size": 4, "lr": 0.01, "warmup": 3, "ema": 0.9, "precision": "fp32"}
    return ScheduleConfig(**{**values, "checkpoint_every": 5, "log_every": 2, "workers": 0, **changes})


def train(
    path: Path,
    terms: Callable[[], Sequence[Term]],
    at: Callable[[int], None] = lambda step: None,
    *,
    norm: bool = True,
    transforms: Sequence[Callable[[nn.Module], None]] = (),
    **changes: Any,
) -> tuple[Run, Objective]:
    """Train the toy into `path`, or go on there; everything but the run folder is new, as in another process."""
    torch.manual_seed(7)
    settings = schedule(**changes)
    objective = Objective(ToyDetector(norm), terms(), settings.ema, warm=True)
    run = Run.create(path, Manifest(verb="train"))
    fit(run, objective, ToyLoader(settings.batch_size, at), settings, accelerator("fp32"), transforms=transforms)
    return run, objective


def stopped_and_resumed(
    folder: Path, terms: Callable[[], Sequence[Term]], step: int
) -> tuple[tuple[Run, Objective], tuple[Run, Objective]]:
    """A whole training, and one that is interrupted at `step` and goes on: they log and keep the same."""

    def stop(now: int) -> None:
        if now == step:
            signal.raise_signal(signal.SIGINT)

    whole = train(folder / "whole", terms)
    with pytest.raises(Interrupted):
        train(folder / "run", terms, stop)
    again = train(folder / "run", terms)
    for line, other in zip(again[0].metrics(), whole[0].metrics(), strict=True):
        assert {**line, "images_per_s": 0} == {**other, "images_per_s": 0}
    for one, other in zip(checkpoints(again[0]).values(), checkpoints(whole[0]).values(), strict=True):
        own, wanted = (safetensors.torch.load_file(file) for file in (one, other))
        assert all(torch.equal(own[name], value) for name, value in wanted.items())
    return whole, again


if __name__ == "__main__":
    from acclimate.adapt.supervised import Supervised

    def kill(step: int) -> None:
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

    train(Path(sys.argv[1]), lambda: [Supervised(), Restless()], kill)
