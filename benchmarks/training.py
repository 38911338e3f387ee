"""The training loop against a bare forward and backward loop of the same model, in turns in one process.

    python benchmarks/training.py

The loop loads, augments, clips, steps the optimiser, averages weights and logs; the bare loop has its batch in memory
and only runs the model forward, its losses, and backward; in an adaptation on both domains, and the teacher forward.
Writes training.csv; `ratio` is loop / bare, images a second.
"""

from __future__ import annotations

import argparse
import itertools
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
from acclimate.adapt.methods import method
from acclimate.adapt.objective import Objective, Term
from acclimate.config import AdaptConfig, DataConfig, ModelConfig, ScheduleConfig, TeacherConfig
from acclimate.data import formats
from acclimate.data.dataset import Loader, TrainingSets, Views
from acclimate.models import detector as models
from acclimate.run import Manifest, Run
from acclimate.scenes import sets
from timing import spread

CSV = Path(__file__).with_suffix(".csv")
MODELS = {
    "nano 224": ModelConfig(size="nano", image_size=(224, 224), weights="none"),
    "tiny 224": ModelConfig(size="tiny", image_size=(224, 224), weights="none"),
    "tiny 320": ModelConfig(size="tiny", image_size=(320, 320), weights="none"),
    "tiny 224 frozen norm": ModelConfig(size="tiny", image_size=(224, 224), weights="none", norm="frozen"),
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


def bare_adaptation(student: models.Detector, teacher: models.Detector, loader: Loader, steps: int) -> float:
    """Images a second of an adaptation's passes on batches in memory: the teacher forward on the weak view of the
    target, the student forward and backward on the source and on the strong view of the target."""
    source, target = loader.batch(0)
    assert source is not None
    assert target is not None
    assert source.targets is not None
    weak, *views = (
        images.contiguous(memory_format=torch.channels_last) for images in (target.weak, source.strong, target.strong)
    )
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        with torch.inference_mode():
            teacher(weak)
        for images in views:
            features = student.features(images)
            sum(student.losses(features, source.targets).values()).backward()
        times.append(time.perf_counter() - began)
        student.zero_grad(set_to_none=True)
    return len(weak) / statistics.median(times[1:])


def loop(
    model: models.Detector, loader: Loader, schedule: ScheduleConfig, folder: Path, terms: Sequence[Term]
) -> float:
    """Images a second of `fit`, as it logs them: after the first step, checkpoints left out."""
    run = Run.create(folder, Manifest(verb="train", digest="benchmark"))
    fit(run, Objective(model, terms, schedule.ema, warm=True), loader, schedule, accelerator("fp32"))
    return float(run.metrics()[-1]["images_per_s"])


def loading(loader: Loader, batches: int) -> float:
    """Milliseconds of loading and augmentation, in one thread, with a warm cache, for a source image and the target's
    beside it."""
    began = time.perf_counter()
    for step in range(batches):
        loader.batch(step)
    return 1e3 * (time.perf_counter() - began) / (batches * 8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    CSV.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        source = formats.read(DataConfig(path=sets.generate(made / "clear", 48, (240, 320), 0)))
        target = formats.unlabelled(sets.generate(made / "fog", 48, (240, 320), 1, "fog").parent / "images")
        for name, shown, workers in itertools.product(options.models, (None, target), (0, 1)):
            row = measured(name, workers, source, shown, made / "run", options)
            rows.append(CSV, row)
            print(row, flush=True)


def measured(
    name: str,
    workers: int,
    source: formats.LabelledSet,
    target: formats.UnlabelledSet | None,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The row of a model; with a target, an adaptation by the mean teacher."""
    schedule = ScheduleConfig(
        steps=options.steps, batch_size=8, warmup=0, log_every=options.steps, workers=workers,
        checkpoint_every=options.steps,
    )  # fmt: skip
    spec = models.specify(MODELS[name], source.classes)
    loader = Loader(TrainingSets(source, target), Views(spec.image_size), schedule, 0)
    per_image = [loading(loader, 6) for _ in range(3)][-1]
    plain = models.build(spec).to(memory_format=torch.channels_last).train()
    teacher = models.build(spec).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    config = AdaptConfig(teacher=TeacherConfig(threshold=0.5) if target is not None else None)
    pairs = []
    for _ in range(options.rounds):
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        model = models.build(spec)
        terms = method(config, model, source).terms
        if target is not None:
            alone = bare_adaptation(plain, teacher, loader, options.steps)
        else:
            alone = bare(plain, loader, options.steps)
        pairs.append((alone, loop(model, loader, schedule, folder, terms)))
    ratios = [b / a for a, b in pairs]
    speed = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return {
        "model": name,
        "verb": "train" if target is None else "adapt",
        "threads": options.threads,
        "loader_threads": workers,
        "bare_images_per_s": f"{speed[0]:.1f}",
        "loop_images_per_s": f"{speed[1]:.1f}",
        **spread(ratios),
        "loading_ms_per_image": f"{per_image:.2f}",
        "loading_share": f"{per_image * speed[0] / 1e3:.3f}",
        "rounds": options.rounds,
        "processor": machine.facts()["processor"],
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
