"""What suppression costs of a training step, and what it has to act on, in turns in one process.

    python benchmarks/suppression.py

A step is what `fit` does after the batch is there: forward, losses, backward, [suppression,] clipping, AdamW, the
average. Each round times one step without and one with, in changing order, by the processor's time, which other
processes on the machine do not stretch. Writes suppression.csv; `share_percent` is suppression's own time, of the step
without.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acclimate import machine
from acclimate.adapt.objective import Objective, UpdateTransform
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.suppression import DomainSpecificSuppression, LayerWatch
from acclimate.config import DataConfig, ModelConfig, ScheduleConfig, SuppressionConfig
from acclimate.data import formats
from acclimate.data.dataset import Loader, TrainingSets, Views
from acclimate.models import detector as models
from acclimate.scenes import sets

CSV = Path(__file__).with_suffix(".csv")
BATCH = 4
COMMON: dict[str, Any] = {"image_size": (224, 224), "weights": "none", "norm": "frozen", "conv": "depthwise"}
MODELS = {
    "tiny 224": ModelConfig(**COMMON),
    "resnet18 224": ModelConfig(**COMMON, backbone="resnet18"),
}
FORMS = {
    "gradient": SuppressionConfig(),
    "gradient, channel": SuppressionConfig(granularity="channel"),
    "gradient, measured": SuppressionConfig(),
    "update": SuppressionConfig(form="update"),
    "reparametrised": SuppressionConfig(form="reparametrised"),
}


class Training:
    """One detector and all that a step needs."""

    def __init__(self, config: ModelConfig, images: formats.LabelledSet, options: SuppressionConfig | None) -> None:
        torch.manual_seed(0)
        spec = models.specify(config, images.classes)
        detector = models.build(spec)
        self.suppress: LayerWatch | None = (
            DomainSpecificSuppression.create(options, detector) if options is not None else None
        )
        self.objective = Objective(detector, [Supervised()], ema=0.998, warm=False).train()
        self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.objective.detector.parameters(), lr=1e-5)
        loader = Loader(TrainingSets(images), Views(spec.image_size), ScheduleConfig(batch_size=BATCH), 0)
        self.batch, _ = loader.batch(0)

    def step(self, measured: bool = False) -> tuple[float, float]:
        """Milliseconds of processor time of a whole step, and of the suppression in it."""
        began = time.process_time()
        sum(self.objective(self.batch, None, 0.0).values()).backward()
        before = time.process_time()
        if self.suppress is not None:
            if measured:
                self.suppress.watch()
            self.suppress()
        spent = time.process_time() - before
        nn.utils.clip_grad_norm_(self.objective.detector.parameters(), 10.0)
        around = self.suppress if isinstance(self.suppress, UpdateTransform) else None
        before = time.process_time()
        if around is not None:
            around.before_step(self.optimizer)
        spent += time.process_time() - before
        self.optimizer.step()
        before = time.process_time()
        if around is not None:
            around.after_step()
        if self.suppress is not None:
            self.suppress.seen()
        spent += time.process_time() - before
        self.optimizer.zero_grad()
        self.objective.after_step(1)
        return 1e3 * (time.process_time() - began), 1e3 * spent


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary, open(CSV, "w", newline="") as file:
        images = formats.read(DataConfig(path=sets.generate(Path(temporary) / "scenes", 8, (240, 320), 0)))
        names = ("model", "form", "layers", "weights", "step_ms", "step_with_ms", "suppression_ms", "share_percent",
                 "step_difference_percent", "rounds", "batch", "threads", "processor", "torch")  # fmt: skip
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for model, config in MODELS.items():
            for form, suppression in FORMS.items():
                plain, other = Training(config, images, None), Training(config, images, suppression)
                assert other.suppress is not None
                measured = form.endswith("measured")
                plain.step()
                other.step(measured)
                pairs = []
                for i in range(options.rounds):
                    first = plain.step() if i % 2 else None
                    with_it = other.step(measured)
                    pairs.append(((first or plain.step())[0], *with_it))
                without, whole, spent = (statistics.median(column) for column in zip(*pairs, strict=True))
                share = statistics.median(100 * part / base for base, _, part in pairs)
                difference = statistics.median(100 * (total / base - 1) for base, total, _ in pairs)
                layers = other.suppress.layers
                row = (
                    model, form, len(layers), sum(layer.weight.numel() for layer in layers.values()),
                    f"{without:.1f}", f"{whole:.1f}", f"{spent:.2f}", f"{share:.2f}", f"{difference:.1f}",
                    options.rounds, BATCH, options.threads, machine.facts()["processor"], torch.__version__,
                )  # fmt: skip
                writer.writerow(row)
                file.flush()
                print(dict(zip(names, row, strict=True)), flush=True)


if __name__ == "__main__":
    main()
