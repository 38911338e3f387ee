"""Backbones under the dense detector: AP50 against latency in fp32 and INT8, each from the same short training.

    python benchmarks/front.py

Every backbone is trained on the labelled images of one set for the same number of steps, from random weights; the one
whose ImageNet weights come as a package from these too. Trainings are run folders below runs/front and are taken up
where they stopped. Then all artifacts are timed in turn, on one thread, round by round, as in edge.py, and the rows of
a seed are written together; a seed whose rows are there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

import adaptation
import edge
import rows
from acclimate import machine, workflow
from acclimate.config import Config, ScheduleConfig
from acclimate.data import formats
from acclimate.data.dataset import draw
from acclimate.edge import engines
from acclimate.edge.predict import Predictor
from acclimate.export import base
from acclimate.models import detector as models
from acclimate.run import Run

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path(__file__).parents[1] / "runs" / "front"
FAMILY, DOMAIN = "blood", "bccd"
RANDOM, IMAGENET = "none", "auto"
BACKBONES = (
    ("tf_efficientnet_lite0", IMAGENET),
    ("tf_efficientnet_lite0", RANDOM),
    ("mobilenetv4_conv_small_050", RANDOM),
    ("mobilenetv4_conv_small", RANDOM),
    ("mobilenetv4_conv_medium", RANDOM),
    ("mobilenetv2_100", RANDOM),
    ("lcnet_100", RANDOM),
    ("regnetx_004", RANDOM),
    ("efficientnet_es", RANDOM),
    ("resnet10t", RANDOM),
    ("resnet18", RANDOM),
)
"""timm's names, and where the weights come from. They differ in what INT8 kernels like: lcnet has hard swish and, at
its end, squeeze-and-excitation; lite0, mobilenetv2 and lcnet have depthwise and regnetx grouped convolutions on large
maps; mobilenetv4 and efficientnet_es begin with ordinary ones; ResNets have nothing else."""
PRECISIONS: tuple[base.Precision, ...] = ("fp32", "int8")
CALIBRATION = 64


def trained(backbone: str, weights: str, seed: int, options: argparse.Namespace, console: Console) -> Run:
    setting = adaptation.SETTINGS[FAMILY]
    own = {"norm": "frozen", "freeze": 2} if weights == IMAGENET else {"norm": "batch", "freeze": 0}
    config = Config(
        seed=seed,
        source=adaptation.data(FAMILY, DOMAIN, "train"),
        model=setting.model.model_copy(update={"backbone": backbone, "weights": weights, "conv": "depthwise", **own}),
        augment=setting.augment,
        train=ScheduleConfig(
            steps=options.steps,
            batch_size=setting.batch,
            lr=setting.lr,
            warmup=min(50, options.steps // 4),
            ema=0.995,
            checkpoint_every=options.steps,
            workers=1,
        ),
    )
    return workflow.train(config, options.folder / f"{backbone}-{weights}-{options.steps}-{seed}", console=console)


def measure(seed: int, options: argparse.Namespace, console: Console) -> None:
    """All rows of one seed."""
    if any(row["seed"] == str(seed) for row in rows.read(options.csv)):
        return
    training = formats.read(adaptation.data(FAMILY, DOMAIN, "train"))
    truth = adaptation.test_images(FAMILY, DOMAIN, training.classes, options.test_images)
    calibration = list(draw(training.paths, CALIBRATION, seed, "diverse"))
    pictures = edge.shown(truth)
    with tempfile.TemporaryDirectory() as temporary:
        predictors: dict[tuple[str, str, base.Precision], Predictor] = {}
        facts: dict[tuple[str, str, base.Precision], list[float]] = {}
        for backbone, weights in options.backbones:
            detector = base.frozen_copy(models.load(trained(backbone, weights, seed, options, console).path))
            for precision in PRECISIONS:
                key = (backbone, weights, precision)
                predictors[key], *facts[key] = edge.exported(
                    detector, "onnx", precision, Path(temporary), calibration, truth
                )
                console.print(f"{' '.join(key)}: AP50 {100 * facts[key][0]:.1f}")
        timed = edge.rounds_of(predictors, pictures, options)
    for key, predictor in predictors.items():
        backbone, weights, precision = key
        single = (backbone, weights, "fp32")
        rows.append(
            options.csv,
            {
                "backbone": backbone,
                "weights": {RANDOM: "random", IMAGENET: "ImageNet"}[weights],
                "precision": precision,
                "seed": seed,
                "ap50": f"{facts[key][0]:.4f}",
                "loss": f"{facts[single][0] - facts[key][0]:.4f}",
                "latency_ms": f"{statistics.median(one[key] for one in timed):.2f}",
                "speed_up": f"{statistics.median(one[single] / one[key] for one in timed):.2f}",
                "macs_m": f"{float(predictor.manifest.notes.macs_m):.0f}",
                "size_mb": f"{facts[key][1]:.2f}",
                "image_size": "x".join(map(str, predictor.manifest.image_size)),
                "steps": options.steps,
                "test_images": len(truth.images),
                "rounds": options.rounds,
                "processor": machine.facts()["processor"],
                "engine": engines.engine("onnx").version(),
            },
        )


def tables(csv: Path = CSV) -> Iterator[str]:
    """In Markdown, means over the seeds; `front` marks what nothing else beats in both AP50 and latency."""
    found: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows.read(csv):
        found.setdefault((row["backbone"], row["weights"], row["precision"]), []).append(row)
    if not found:
        yield "No rows yet."
        return

    def mean(name: str, own: Sequence[dict[str, str]]) -> float:
        return statistics.mean(float(row[name]) for row in own)

    at = {key: (mean("latency_ms", own), mean("ap50", own)) for key, own in found.items()}
    yield "| backbone | weights | precision | MACs (M) | ms | times fp32 | AP50 | loss | front |"
    yield "|" + "---|" * 9
    for key, own in sorted(found.items(), key=lambda item: at[item[0]]):
        latency, ap50 = at[key]
        beaten = any(other[0] <= latency and other[1] >= ap50 and other != at[key] for other in at.values())
        cells = [
            *key, own[0]["macs_m"], f"{latency:.2f}", f"{mean('speed_up', own):.2f}", f"{100 * ap50:.1f}",
            f"{100 * mean('loss', own):+.1f}", "" if beaten else "yes",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--only", nargs="+", choices=sorted({name for name, _ in BACKBONES}), help="of the backbones")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each artifact in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--test-images", type=int, default=adaptation.TEST_IMAGES)
    parser.add_argument("--folder", type=Path, default=RUNS)
    parser.add_argument("--csv", type=Path, default=CSV)
    options = parser.parse_args(arguments)
    options.backbones = [pair for pair in BACKBONES if not options.only or pair[0] in options.only]
    torch.set_num_threads(1)
    for seed in options.seeds:
        measure(seed, options, Console())


if __name__ == "__main__":
    main()
