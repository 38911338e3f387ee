"""Which label source teaches a small detector best on a new domain, appended to labellers.csv.

    python benchmarks/labellers.py --pairs "pbc->bccd" "generated clear->fog" --seeds 0 1 2
    python benchmarks/labellers.py --summary

The student is an EfficientNet-Lite0 detector at a small input, trained on the source. It is adapted for the same number
of steps in each way: by its own mean teacher; by the labels of an EfficientNet-Lite2 detector of the same source that
looks at the target with one and a half times the input's size, mirrored too; by those of that one and a second labeller
(MobileNetV2 where its weights are installed, else Lite1) fused; by the first labels where the mean teacher agrees; and
by the mean teacher with the student's features drawn to Lite2's ImageNet features. Source-only is trained on as long.

Every training is a run folder below runs/labellers and is taken up where it stopped; a row that is in the CSV is not
run again, and is written as soon as its run ends. No label of the target is read but by the evaluation at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import machine, workflow
from acclimate.config import (
    AdaptConfig,
    AlignmentConfig,
    Config,
    LabelsConfig,
    ModelConfig,
    ScheduleConfig,
    TeacherConfig,
)
from acclimate.evaluate import evaluate_detector
from acclimate.models import detector as models
from acclimate.models.weights import installed
from acclimate.run import Evaluation, Run

HERE = Path(__file__).parent
CSV = HERE / "labellers.csv"
RUNS = HERE.parent / "runs" / "labellers"
PAIRS = ("pbc->bccd", "generated clear->fog")
SIZES = {"blood": (128, 128), "scenes": (128, 160)}
"""Of the student's input: small, as the device is, and so that a pair and seed take some twenty minutes of a core."""
STEPS, ADAPT_STEPS, BATCH = 500, 300, 4
LARGE = 1.5
"""The labeller's input in sides of the student's."""
SECOND = "mobilenetv2_100" if "mobilenetv2_100" in installed() else "tf_efficientnet_lite1"
METHODS = ("source-only", "teacher", "labels", "fused", "agreement", "alignment")


def model(family: str, backbone: str, scale: float = 1.0) -> ModelConfig:
    """A dense detector of one recipe; only backbone and input differ."""
    setting = adaptation.SETTINGS[family].model
    height, width = (round(scale * side / 32) * 32 for side in SIZES[family])
    return setting.model_copy(update={"backbone": backbone, "image_size": (height, width)})


def config(pair: str, seed: int, backbone: str, scale: float = 1.0) -> Config:
    family = adaptation.PAIRS[pair][0]
    settings = adaptation.config(pair, seed)
    return settings.model_copy(
        update={
            "model": model(family, backbone, scale),
            "train": shortened(settings.train, STEPS),
            "schedule": shortened(settings.schedule, ADAPT_STEPS),
        }
    )


def shortened(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    return schedule.model_copy(update={"steps": steps, "checkpoint_every": steps, "batch_size": BATCH})


def run_pair(pair: str, seed: int, methods: Sequence[str], console: Console) -> None:
    """The runs of one pair and seed, a row as each ends."""
    done = {row["method"] for row in rows.read(CSV) if (row["pair"], row["seed"]) == (pair, str(seed))}
    wanted = [method for method in methods if method not in done]
    if not wanted:
        return
    family, source, target = adaptation.PAIRS[pair]
    if family == "scenes":
        adaptation.generate(console)
    name = f"{family}-{source}-{target}-{seed}"
    settings = config(pair, seed, "tf_efficientnet_lite0")
    student = RUNS / f"{name}-student"
    workflow.train(settings, student, console=console)
    images = adaptation.target_list(family, target, RUNS)

    def labeller(backbone: str) -> Path:
        folder = RUNS / f"{name}-{backbone}"
        if not (folder / "run.json").exists() or not Run.open(folder).done:
            run = workflow.train(config(pair, seed, backbone, LARGE), folder, console=console)
            if f"labeller {backbone}" not in done:
                record(pair, seed, f"labeller {backbone}", run, measured(run, pair), labels="")
        return folder

    def labelled(kind: str) -> Path:
        """The first labeller's labels, or those of both."""
        file = RUNS / f"{name}-{kind}.json"
        if not file.exists():
            first = labeller("tf_efficientnet_lite2")
            others = [labeller(SECOND)] if kind == "fused" else []
            workflow.label(images, first, file, flip=True, fuse_with=others, console=console)
        return file

    teacher = TeacherConfig()
    ways: dict[str, Callable[[], AdaptConfig]] = {
        "source-only": lambda: AdaptConfig(teacher=None),
        "teacher": lambda: AdaptConfig(teacher=teacher),
        "labels": lambda: AdaptConfig(teacher=None, labels=LabelsConfig(file=labelled("labels"))),
        "fused": lambda: AdaptConfig(teacher=None, labels=LabelsConfig(file=labelled("fused"))),
        "agreement": lambda: AdaptConfig(teacher=None, labels=LabelsConfig(file=labelled("labels"), agreement=True)),
        "alignment": lambda: AdaptConfig(teacher=teacher, alignment=AlignmentConfig(encoder="tf_efficientnet_lite2")),
    }
    for method in wanted:
        own = settings.model_copy(update={"adapt": ways[method]()})
        where = images
        if method == "source-only":
            where = adaptation.target_list(family, source, RUNS)
            own = own.model_copy(update={"augment": settings.augment.model_copy(update={"style": 0.0})})
        run = workflow.adapt(student, where, RUNS / f"{name}-{method}", config=own, console=console)
        used = {"labels": "labels", "agreement": "labels", "fused": "fused"}.get(method)
        # The last weights of every method: which checkpoint is kept is another question.
        labels = counted(RUNS / f"{name}-{used}.json") if used else ""
        record(pair, seed, method, run, measured(run, pair, last=True), labels)


def measured(run: Run, pair: str, last: bool = False) -> Evaluation:
    """AP on the target's test images."""
    from acclimate.adapt.engine import checkpoints

    family, _, target = adaptation.PAIRS[pair]
    weights = checkpoints(run)[max(checkpoints(run))] if last else None
    detector = models.to_device(models.load(run.path, weights))
    truth = adaptation.test_images(family, target, detector.spec.classes, adaptation.TEST_IMAGES)
    return evaluate_detector(detector, truth, target, "target")


def counted(file: Path) -> str:
    """Sure boxes an image that a student learns from."""
    from acclimate.data import scored

    labels = scored.read(file)
    needed = [labels.thresholds.get(name, 2.0) for name in labels.classes]
    sure = sum(
        float(score) >= needed[label]
        for found in labels.images.values()
        for score, label in zip(found.detections.scores, found.detections.labels, strict=True)
    )
    return f"{sure / len(labels.images):.2f}"


def record(pair: str, seed: int, method: str, run: Run, target: Evaluation, labels: str) -> None:
    detector = models.load(run.path)
    rows.append(
        CSV,
        {
            "pair": pair,
            "seed": seed,
            "method": method,
            "target_ap50": f"{target.ap50:.4f}",
            "target_ap": f"{target.ap:.4f}",
            "classes": " ".join(f"{n}={c.ap50:.3f}" for n, c in target.classes.items() if c.ap50 is not None),
            "labels": labels,
            "image_size": "x".join(map(str, detector.spec.image_size)),
            "steps": STEPS + (0 if method.startswith("labeller") else ADAPT_STEPS),
            "batch": BATCH,
            "test_images": target.images,
            "minutes": f"{run.manifest.seconds / 60:.1f}",
            "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else machine.facts()["processor"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )


def summary() -> Iterator[str]:
    """A table in Markdown: AP50 by method, mean and spread over the seeds, and the gain over the mean teacher."""
    yield "| pair | method | seeds | AP50 | over the mean teacher |"
    yield "|---|---|---|---|---|"
    found = rows.read(CSV)
    for pair in PAIRS:
        points: dict[str, dict[str, float]] = {}
        for row in found:
            if row["pair"] == pair:
                points.setdefault(row["method"], {})[row["seed"]] = float(row["target_ap50"])
        for method, by_seed in points.items():
            values = [100 * value for value in by_seed.values()]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            paired = [by_seed[s] - points.get("teacher", {})[s] for s in by_seed if s in points.get("teacher", {})]
            gain = adaptation.mean_and_interval(paired) if paired and method != "teacher" else "-"
            yield f"| {pair} | {method} | {len(values)} | {statistics.mean(values):.1f}{spread} | {gain} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=[*adaptation.PAIRS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true", help="print the table of what is in the CSV")
    options = parser.parse_args(arguments)
    if options.summary:
        print(*summary(), sep="\n")
        return
    torch.set_num_threads(options.threads)
    console = Console()
    began = time.monotonic()
    for seed in options.seeds:
        for pair in options.pairs:
            run_pair(pair, seed, options.methods, console)
            console.print(f"{pair} seed {seed} done after {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
