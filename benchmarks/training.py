"""The training loop against a bare forward and backward loop of the same model, in turns in one process.

    python benchmarks/training.py

The loop loads, augments, clips, steps the optimiser, averages weights and logs; the bare loop has its batch in memory
and only runs the model forward, its losses, and backward. Writes training.csv; `ratio` is loop / bare, images a second.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import rows
from acclimate import machine
from acclimate.adapt.engine import accelerator, fit
from acclimate.adapt.objective import Objective
from acclimate.adapt.supervised import Supervised
from acclimate.config import DataConfig, ModelConfig, ScheduleConfig
from acclimate.data import formats
from acclimate.data.dataset import Loader, TrainingSets, Views
from acclimate.models import detector as models
from acclimate.run import Manifest, Run
from acclimate.scenes import sets

CSV = Path(__file__).with_suffix(".csv")
COMMON: dict[str, Any] = {"weights": "none", "conv": "depthwise"}
MODELS = {
    "nano 224": ModelConfig(size="nano", image_size=(224, 224), **COMMON),
    "tiny 224": ModelConfig(size="tiny", image_size=(224, 224), **COMMON),
    "tiny 320": ModelConfig(size="tiny", image_size=(320, 320), **COMMON),
    "tiny 224 frozen norm": ModelConfig(size="tiny", image_size=(224, 224), **COMMON, norm="frozen"),
}


def bare(model: models.Detector, loader: Loader, steps: int) -> float:
    """Images a second of forward, losses and backward on a batch in memory."""
    batch, _ = loader.batch(0)
    assert batch.targets is not None
    images = batch.strong.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        features = model.features(images)
        sum(model.losses(features, batch.targets).values()).backward()
        times.append(time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
    return len(images) / statistics.median(times[1:])


def loop(model: models.Detector, loader: Loader, schedule: ScheduleConfig, folder: Path) -> float:
    """Images a second of `fit`, as it logs them: after the first step, checkpoints left out."""
    run = Run.create(folder, Manifest(verb="train", digest="benchmark"))
    fit(run, Objective(model, [Supervised()], schedule.ema, warm=True), loader, schedule, accelerator("fp32"))
    return float(run.metrics()[-1]["images_per_s"])


def loading(loader: Loader, batches: int) -> float:
    """Milliseconds an image of loading and augmentation, in one thread, with a warm cache."""
    began = time.perf_counter()
    for step in range(batches):
        loader.batch(step)
    return 1e3 * (time.perf_counter() - began) / (batches * 8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        index = sets.generate(Path(temporary) / "scenes", 48, (240, 320), 0)
        images = formats.read(DataConfig(path=index))
        CSV.unlink(missing_ok=True)
        for name, config in MODELS.items():
            for workers in (0, 1):
                schedule = ScheduleConfig(
                    steps=options.steps, batch_size=8, warmup=0, log_every=options.steps, workers=workers,
                    checkpoint_every=options.steps,
                )  # fmt: skip
                spec = models.specify(config, images.classes)
                loader = Loader(TrainingSets(images), Views(spec.image_size), schedule, 0)
                per_image = [loading(loader, 6) for _ in range(3)][-1]
                plain = models.build(spec).to(memory_format=torch.channels_last).train()
                pairs = []
                for _ in range(options.rounds):
                    folder = Path(temporary) / "run"
                    shutil.rmtree(folder, ignore_errors=True)
                    torch.manual_seed(0)
                    pairs.append(
                        (bare(plain, loader, options.steps), loop(models.build(spec), loader, schedule, folder))
                    )
                ratios = [b / a for a, b in pairs]
                speed = [statistics.median(column) for column in zip(*pairs, strict=True)]
                row = {
                    "model": name,
                    "threads": options.threads,
                    "loader_threads": workers,
                    "bare_images_per_s": f"{speed[0]:.1f}",
                    "loop_images_per_s": f"{speed[1]:.1f}",
                    "ratio_median": f"{statistics.median(ratios):.3f}",
                    "ratio_min": f"{min(ratios):.3f}",
                    "ratio_max": f"{max(ratios):.3f}",
                    "loading_ms_per_image": f"{per_image:.2f}",
                    "loading_share": f"{per_image * speed[0] / 1e3:.3f}",
                    "rounds": options.rounds,
                    "processor": machine.facts()["processor"],
                    "torch": torch.__version__,
                }
                rows.append(CSV, row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
