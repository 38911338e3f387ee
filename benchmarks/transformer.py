"""From a transformer to the edge: what is left of it in INT8, and of the convolutional student it taught.

    python benchmarks/transformer.py
    python benchmarks/transformer.py --train     # without the measurements, which want a quiet machine

A published checkpoint cannot be had without a network, so the teacher is made here: a small RT-DETR of Hugging Face's
`transformers` on EfficientNet-Lite0 with ImageNet's weights, its encoder and decoder from random ones. It learns the
blood cells of one laboratory, is adapted to another's images without their labels, and teaches the preset `nano`. All
three, and nano trained on the source alone, are exported in fp32 and INT8 and measured on each runtime that takes them:
AP50 on the target's test images, and processor time of the network on one thread, all in turn, round by round.

Runs stay in runs/transformer and are taken up where they stopped. Rows go to transformer.csv.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import machine, workflow
from acclimate.config import Config, ModelConfig
from acclimate.data import formats
from acclimate.data.dataset import choose
from acclimate.edge import engines
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.export import exporter
from acclimate.models import detector as models
from acclimate.models.backbones import load_weights
from acclimate.run import Run
from timing import median_ms, spread, within

HERE = Path(__file__).parent
CSV = HERE / "transformer.csv"
RUNS = HERE.parent / "runs" / "transformer"
BACKBONE = "tf_efficientnet_lite0"
FAMILY, SOURCE, TARGET = "blood", "pbc", "bccd"
CANVAS = (128, 128)
RUNTIMES = ("onnx", "openvino")
PRECISIONS = ("fp32", "int8")
TRAIN: dict[str, Any] = {"batch_size": 4, "warmup": 100, "workers": 1, "steps": 2500, "lr": 5e-4, "backbone_lr": 0.2}
ADAPT: dict[str, Any] = {"batch_size": 4, "warmup": 50, "workers": 1, "steps": 400, "lr": 1e-4, "backbone_lr": 0.2}
STUDENT: dict[str, Any] = {"batch_size": 4, "warmup": 50, "steps": 1500, "lr": 3e-3, "backbone_lr": 1.0}


def published(folder: Path, classes: Sequence[str]) -> Path:
    """A folder as `transformers` writes one: an RT-DETR whose backbone has ImageNet's weights, all else random."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, TimmBackboneConfig

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    backbone = TimmBackboneConfig(
        backbone=BACKBONE, out_indices=(2, 3, 4), use_pretrained_backbone=False, features_only=True
    )
    network = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_in_channels=[40, 112, 320],
            encoder_hidden_dim=128,
            encoder_ffn_dim=256,
            hidden_expansion=0.5,
            d_model=128,
            decoder_in_channels=[128, 128, 128],
            decoder_ffn_dim=256,
            decoder_layers=3,
            num_queries=100,
            num_denoising=30,
            # Freezing puts plain layers in the place of timm's, which have the activations in them.
            freeze_backbone_batch_norms=False,
            id2label=dict(enumerate(classes)),
            label2id={name: place for place, name in enumerate(classes)},
        )
    )
    own = models.build(models.specify(ModelConfig(backbone=BACKBONE, image_size=CANVAS), classes)).backbone
    load_weights(own, BACKBONE, "auto")
    network.model.backbone.model._backbone.load_state_dict(own.body.state_dict())
    network.save_pretrained(folder)
    RTDetrImageProcessor(
        size={"height": CANVAS[0], "width": CANVAS[1]},
        do_normalize=True,
        image_mean=own.mean,
        image_std=own.std,
    ).save_pretrained(folder)
    return folder


def train(console: Console) -> dict[str, Run]:
    """Title of a detector -> its run."""
    source = adaptation.data(FAMILY, SOURCE, "train")
    site = adaptation.target_list(FAMILY, TARGET, RUNS)
    augment = adaptation.SETTINGS[FAMILY].augment.model_dump()
    theirs = published(RUNS / "checkpoint", formats.read(source).classes)
    config = Config.model_validate(
        {
            "source": source,
            "augment": augment,
            "model": {"kind": "transformers", "image_size": CANVAS, "transformers": {"checkpoint": str(theirs)}},
            "train": {**TRAIN, "checkpoint_every": 400, "ema": 0.995},
            "schedule": {**ADAPT, "checkpoint_every": 40, "ema": 0.99},
        }
    )
    begun = workflow.train(config, RUNS / "source", console=console)
    teacher = workflow.adapt(begun.path, site, RUNS / "teacher", console=console)
    longer = [f"train.{key}={value}" for key, value in STUDENT.items()]
    student = workflow.distil(teacher.path, "nano", RUNS / "student", longer, target=site, console=console)
    alone = Config.model_validate(
        {
            "source": source,
            "augment": augment,
            "model": {"size": "nano", "image_size": CANVAS},
            "train": {**STUDENT, "checkpoint_every": 500, "workers": 1, "ema": 0.995},
        }
    )
    return {
        "RT-DETR, source": begun,
        "RT-DETR, adapted": teacher,
        "nano, taught by it": student,
        "nano, source": workflow.train(alone, RUNS / "student-source", console=console),
    }


def measure(runs: dict[str, Run], rounds: int, calls: int) -> None:
    """A row for each detector and runtime, once its artifacts are there."""
    site = formats.unlabelled(adaptation.target_list(FAMILY, TARGET, RUNS)).paths
    seen = choose(site, 64, 0)
    picture = read_image(seen[0])
    detectors = {title: models.load(run.path) for title, run in runs.items()}
    for runtime in RUNTIMES:
        predictors = {
            (title, precision): Predictor(
                exporter(runtime).export(
                    detector, RUNS / "artifacts" / f"{runs[title].path.name}-{runtime}-{precision}", precision, seen
                )
            )
            for title, detector in detectors.items()
            for precision in PRECISIONS
        }
        networks = {key: partial(one.run, one.prepare(picture)[0]) for key, one in predictors.items()}
        times = [
            {key: median_ms(call, calls, time.process_time) for key, call in networks.items()} for _ in range(rounds)
        ]
        for title, run in runs.items():
            record(title, run, runtime, {p: predictors[title, p] for p in PRECISIONS}, times)


def record(
    title: str,
    run: Run,
    runtime: str,
    predictors: dict[str, Predictor],
    times: Sequence[dict[tuple[str, str], float]],
) -> None:
    truth = adaptation.test_images(FAMILY, TARGET, models.specification(run.path).classes, adaptation.TEST_IMAGES)
    found = {p: adaptation.evaluate_artifact(predictor, truth).ap50 for p, predictor in predictors.items()}
    row = {
        "detector": title,
        "runtime": runtime,
        **{f"{p}_ap50": f"{value:.4f}" for p, value in found.items()},
        **{f"{p}_ms": f"{statistics.median(one[title, p] for one in times):.2f}" for p in PRECISIONS},
        **spread(within(times, (title, "int8"), (title, "fp32"))),
        **{f"{p}_mb": f"{one.artifact.size_mb:.2f}" for p, one in predictors.items()},
        "image_size": "x".join(map(str, CANVAS)),
        "test_images": len(truth.paths),
        "minutes": f"{run.manifest.seconds / 60:.1f}",
        "rounds": len(times),
        "processor": machine.processor(),
        "engine": engines.engine(runtime).version(),
    }
    rows.append(CSV, row)
    print(row, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--train", action="store_true", help="stop before the measurements, which want a quiet machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = train(Console())
    if not options.train:
        measure(runs, options.rounds, options.calls)


if __name__ == "__main__":
    main()
