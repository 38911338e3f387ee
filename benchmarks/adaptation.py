"""Adaptation on real shifts: source-only, adapted and oracle, by seed and pair, appended to adaptation.csv.

    python benchmarks/adaptation.py --pairs blood carla --seeds 0 1 2
    python benchmarks/adaptation.py --summary

Every training is a run folder below runs/adaptation and is taken up where it stopped; a pair and seed whose rows are
in the CSV is not run again. Processes with different --pairs may write at once. Target labels are read by the oracle
and by the evaluation at the end, never by the adaptation. What a row holds is in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import rows
from acclimate import stages, workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import AdaptConfig, AugmentConfig, Config, DataConfig, ModelConfig, ScheduleConfig, TeacherConfig
from acclimate.data import formats
from acclimate.data.dataset import choose
from acclimate.evaluate import evaluate_detector
from acclimate.models import detector as models
from acclimate.run import Evaluation, Run, machine
from acclimate.select.score import rank

HERE = Path(__file__).parent
DATA = Path(os.environ.get("ACCLIMATE_DATA", HERE.parent.parent / "shared" / "data"))
CSV = HERE / "adaptation.csv"
RUNS = HERE.parent / "runs" / "adaptation"
TEST_IMAGES = 150
"""Test images of a domain, evenly spread; all where there are fewer."""
FEW = 50
"""A class with fewer boxes than this in the source cannot be learned there; `shared` columns leave it out."""


@dataclass(frozen=True)
class Setting:
    """How one data set is trained: small enough for CPU cores, the same for source-only, adapted and oracle.

    The oracle takes as many steps as the others, or `oracle_steps` where its images are so many fewer that equal passes
    over them are the fair comparison.
    """

    model: ModelConfig
    augment: AugmentConfig
    steps: int
    adapt_steps: int
    oracle_steps: int | None = None
    batch: int = 4
    lr: float = 1.5e-3

    def total(self, method: str) -> int:
        """Steps that a detector has seen at its end."""
        together = self.steps + self.adapt_steps
        return (self.oracle_steps or together) if method == "oracle" else together


LITE = {"backbone": "tf_efficientnet_lite0", "weights": "auto", "depth": 1}
SETTINGS = {
    "blood": Setting(
        ModelConfig(**LITE, channels=48, image_size=(192, 192), strides=(8, 16, 32)),
        AugmentConfig(vertical_flip=0.5, scale=(0.7, 1.5)),
        steps=800,
        adapt_steps=300,
    ),
    "carla": Setting(
        ModelConfig(**LITE, channels=48, image_size=(256, 256), strides=(8, 16)),
        AugmentConfig(scale=(0.8, 2.0)),
        steps=2400,
        adapt_steps=300,
        oracle_steps=1100,
    ),
    "robocup": Setting(
        ModelConfig(**LITE, channels=48, image_size=(256, 256), strides=(8, 16, 32)),
        AugmentConfig(),
        steps=1200,
        adapt_steps=600,
    ),
    "thermal": Setting(
        ModelConfig(**LITE, channels=32, image_size=(320, 384), strides=(4, 8)),
        AugmentConfig(vertical_flip=0.5, scale=(0.8, 1.5), invert=0.3, tone=0.6),
        steps=1000,
        adapt_steps=300,
    ),
}
PAIRS = {
    "day->night": ("thermal", "day", "night"),
    "raabin->bccd": ("blood", "raabin", "bccd"),
    "pbc->bccd": ("blood", "pbc", "bccd"),
    "clear->fog": ("carla", "clear", "fog"),
    "clear->glare": ("carla", "clear", "glare"),
    "home->bangkok": ("robocup", "home", "bangkok"),
    "home->eindhoven": ("robocup", "home", "eindhoven"),
    "bccd->raabin": ("blood", "bccd", "raabin"),
    "night->day": ("thermal", "night", "day"),
}

TEACHERS = {"adapted": TeacherConfig(), "matched": TeacherConfig(threshold="matched")}
"""Methods of adaptation: the default, and thresholds that fall until the target shows as many boxes as the source."""

COOL: dict[str, Any] = {"lr": 5e-4, "ema": 0.99}
"""Of an adaptation. With 1.5e-3 and 0.98 the teacher follows its own mistakes before others outvote them: it loses a
class in some runs (vehicles in glare, white cells at a checkpoint), and no score without labels tells which."""

LIGHTS_AND_SIGNS = {
    **{f"traffic_light_{colour}": "traffic_light" for colour in ("green", "orange", "red")},
    **{f"traffic_sign_{limit}": "traffic_sign" for limit in (30, 60, 90)},
}
"""At 256 px a light's colour and a sign's number are a pixel or two: one class each."""


def data(family: str, domain: str, split: str) -> DataConfig:
    if family == "thermal":
        return DataConfig(path=DATA / "thermal-uav" / domain, split=split, ignore=("DontCare", "OtherVehicle"))
    if family == "robocup":
        return DataConfig(path=DATA / "robocup-msl" / domain, split={"train": "train", "test": "val"}[split])
    if family == "blood":
        return DataConfig(path=DATA / "blood-cells" / domain, split={"train": "train", "test": "val"}[split])
    file = DATA / "carla-weather" / "annotations" / f"{domain}_{split}.json"
    return DataConfig(path=file, classes=LIGHTS_AND_SIGNS)


def target_list(family: str, domain: str, folder: Path = RUNS) -> Path:
    """A list of the target's training images: what an engineer would have as a folder. Written once, without labels."""
    file = folder / f"{family}-{domain}-images.txt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        paths = formats.read(data(family, domain, "train")).paths
        file.write_text("".join(f"{path.resolve()}\n" for path in paths))
    return file


def config(pair: str, seed: int) -> Config:
    family, source, target = PAIRS[pair]
    setting = SETTINGS[family]
    common: dict[str, Any] = {"batch_size": setting.batch, "workers": 1, "warmup": 50}
    return Config(
        seed=seed,
        source=data(family, source, "train"),
        oracle=data(family, target, "train"),
        model=setting.model,
        augment=setting.augment,
        train=ScheduleConfig(**common, steps=setting.steps, lr=setting.lr, ema=0.995, checkpoint_every=setting.steps),
        schedule=ScheduleConfig(**common, **COOL, steps=setting.adapt_steps, checkpoint_every=setting.adapt_steps // 3),
        adapt=AdaptConfig(teacher=TeacherConfig()),
    )


def run_pair(pair: str, seed: int, methods: Sequence[str], console: Console) -> None:
    """The runs of one pair and seed. Source-only is trained on as long as adaptation takes; so is the oracle."""
    done = {row["method"] for row in rows.read(CSV) if (row["pair"], row["seed"]) == (pair, str(seed))}
    methods = [method for method in methods if method not in done]
    if not methods:
        return
    family, source, target = PAIRS[pair]
    settings = config(pair, seed)
    images = target_list(family, target)
    start = RUNS / f"{family}-{source}-{seed}"
    workflow.train(settings, start, console=console)
    if "source-only" in methods:
        alone = settings.model_copy(
            update={"adapt": AdaptConfig(teacher=None), "augment": settings.augment.model_copy(update={"style": 0.0})}
        )
        own = target_list(family, source)
        run = workflow.adapt(start, own, RUNS / f"{family}-{source}-only-{seed}", config=alone, console=console)
        record(pair, seed, "source-only", "last", run, *evaluate(run, pair))
    for method, teacher in TEACHERS.items():
        if method in methods:
            taught = settings.model_copy(update={"adapt": AdaptConfig(teacher=teacher)})
            parts = (family, source, target, *([] if method == "adapted" else [method]), str(seed))
            record_adapted(
                pair,
                seed,
                method,
                workflow.adapt(start, images, RUNS / "-".join(parts), config=taught, console=console),
            )
    if "oracle" in methods:
        longer = settings.train.model_copy(update={"steps": SETTINGS[family].total("oracle")})
        run = workflow.train(
            settings.model_copy(update={"train": longer}),
            RUNS / f"{family}-{target}-oracle-{seed}",
            role="oracle",
            console=console,
        )
        record(pair, seed, "oracle", "last", run, *evaluate(run, pair))


def test_images(family: str, domain: str, classes: Sequence[str], count: int) -> formats.LabelledSet:
    """So many of a domain's test images, evenly spread, or all."""
    truth = formats.read(data(family, domain, "test"), classes)
    kept = set(choose(truth.paths, count, 0))
    return formats.LabelledSet(
        truth.name, truth.format, truth.classes, tuple(i for i in truth.images if i.path in kept), truth.problems
    )


def evaluate(
    run: Run, pair: str, weights: Path | None = None, source: bool = True
) -> tuple[Evaluation, Evaluation | None]:
    """AP on the target's test images, and on the source's."""
    family, *domains = PAIRS[pair]
    detector = stages.to_device(models.load(run.path, weights))
    found: list[Evaluation] = []
    for domain, role in ((domains[1], "target"), (domains[0], "source"))[: 2 if source else 1]:
        truth = test_images(family, domain, detector.spec.classes, TEST_IMAGES)
        found.append(evaluate_detector(detector, truth, domain, role))
    return found[0], found[1] if source else None


def record_adapted(pair: str, seed: int, method: str, run: Run) -> None:
    """Three rows: the last checkpoint, the one chosen without labels, and the best in hindsight."""
    selection = run.selection()
    assert selection is not None
    files = checkpoints(run)
    hindsight = {step: evaluate(run, pair, file, source=False)[0].ap50 for step, file in files.items()}
    selection = rank(selection, hindsight)
    run.write("selection.json", selection)
    steps = {
        "last": max(files),
        "chosen": selection.chosen_step,
        "hindsight": max(hindsight, key=lambda s: hindsight[s]),
    }
    scored = {step: evaluate(run, pair, files[step]) for step in set(steps.values())}
    for name, step in steps.items():
        record(pair, seed, method, name, run, *scored[step], step=step, taus=selection.rank_correlation)


def record(
    pair: str,
    seed: int,
    method: str,
    checkpoint: str,
    run: Run,
    target: Evaluation,
    source: Evaluation | None,
    step: int | None = None,
    taus: dict[str, float] | None = None,
) -> None:
    family, domain, _ = PAIRS[pair]
    setting = SETTINGS[family]
    counts = Run.open(RUNS / f"{family}-{domain}-{seed}").manifest.notes["class_boxes"]
    learnable = [c.ap50 for name, c in target.classes.items() if counts.get(name, 0) >= FEW and c.ap50 is not None]
    steps = setting.total(method)
    taus = taus or {}
    rows.append(
        CSV,
        {
            "pair": pair,
            "seed": seed,
            "method": method,
            "checkpoint": checkpoint,
            "target_ap50": f"{target.ap50:.4f}",
            "target_ap": f"{target.ap:.4f}",
            "source_ap50": f"{source.ap50:.4f}" if source else "",
            "source_ap": f"{source.ap:.4f}" if source else "",
            "target_ap50_shared": f"{statistics.mean(learnable):.4f}",
            "classes": " ".join(f"{n}={c.ap50:.3f}" for n, c in target.classes.items() if c.ap50 is not None),
            "step": steps if step is None else setting.steps + step,
            "tau_stability": f"{taus['stability']:.3f}" if "stability" in taus else "",
            "tau_agreement": f"{taus['agreement']:.3f}" if "agreement" in taus else "",
            "tau_consensus": f"{taus['consensus']:.3f}" if "consensus" in taus else "",
            "start": models.load(run.path).spec.start,
            "image_size": "x".join(map(str, setting.model.image_size)),
            "steps": steps,
            "batch": setting.batch,
            "test_images": target.images,
            "minutes": f"{run.manifest.seconds / 60:.1f}",
            "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else machine()["processor"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )


def recorded(pair: str, method: str, checkpoint: str) -> list[dict[str, str]]:
    """The rows of a pair's method at one of its checkpoints, one a seed."""
    wanted = (pair, method, checkpoint)
    return [row for row in rows.read(CSV) if (row["pair"], row["method"], row["checkpoint"]) == wanted]


def summary(column: str = "target_ap50") -> Iterator[str]:
    """A table in Markdown: mean and spread (standard deviation over seeds), and the fraction of the gap closed."""

    def values(pair: str, method: str, checkpoint: str, key: str) -> dict[str, float]:
        return {r["seed"]: float(r[key]) for r in recorded(pair, method, checkpoint) if r[key]}

    def cell(found: dict[str, float]) -> str:
        scaled = [100 * v for v in found.values()]
        if not scaled:
            return "-"
        return f"{statistics.mean(scaled):.1f} ± {statistics.stdev(scaled) if len(scaled) > 1 else 0.0:.1f}"

    yield "| pair | seeds | source-only | adapted, last | adapted, chosen | best in hindsight | oracle | gap closed |"
    yield "|---|---|---|---|---|---|---|---|"
    closed = []
    for pair in PAIRS:
        low = values(pair, "source-only", "last", column)
        kinds = {name: values(pair, "adapted", name, column) for name in ("last", "chosen", "hindsight")}
        high = values(pair, "oracle", "last", column)
        if not low:
            continue
        gap = "-"
        both = low.keys() & kinds["chosen"].keys() & high.keys()
        if both:
            gain = statistics.mean(kinds["chosen"][seed] - low[seed] for seed in both)
            room = statistics.mean(high[seed] - low[seed] for seed in both)
            gap = f"{100 * gain / room:.0f} %" if room > 0.02 else f"no gap ({100 * gain:+.1f})"
            if room > 0.02:
                closed.append(gain / room)
        cells = [cell(low), *(cell(kinds[name]) for name in kinds), cell(high)]
        yield f"| {pair} | {len(low)} | {' | '.join(cells)} | {gap} |"
    if closed:
        yield f"\nGap closed, mean over the pairs that have one: {100 * statistics.mean(closed):.0f} %."


def source_summary() -> Iterator[str]:
    """What adaptation costs on the source, and Kendall's tau of each label-free score with AP50 in hindsight."""

    def mean(pair: str, method: str, checkpoint: str, key: str, scale: float, form: str) -> str:
        known = [scale * float(row[key]) for row in recorded(pair, method, checkpoint) if row[key]]
        return format(statistics.mean(known), form) if known else "-"

    yield "| pair | source-only | adapted, chosen | tau of stability | tau of agreement | tau of consensus |"
    yield "|---|---|---|---|---|---|"
    for pair in PAIRS:
        cells = [
            mean(pair, "source-only", "last", "source_ap50", 100, ".1f"),
            mean(pair, "adapted", "chosen", "source_ap50", 100, ".1f"),
            mean(pair, "adapted", "chosen", "tau_stability", 1, "+.2f"),
            mean(pair, "adapted", "chosen", "tau_agreement", 1, "+.2f"),
            mean(pair, "adapted", "chosen", "tau_consensus", 1, "+.2f"),
        ]
        yield f"| {pair} | {' | '.join(cells)} |"


def threshold_summary() -> Iterator[str]:
    """Thresholds matched to the source's rate of boxes against the source's thresholds, on the seeds that have both."""

    def classes(pair: str, method: str, seeds: set[str]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for row in recorded(pair, method, "last" if method == "source-only" else "chosen"):
            if row["seed"] in seeds:
                found.setdefault("mean", []).append(float(row["target_ap50"]))
                for name, value in (part.split("=") for part in row["classes"].split()):
                    found.setdefault(name, []).append(float(value))
        return found

    for pair in PAIRS:
        seeds = {row["seed"] for row in recorded(pair, "matched", "chosen")}
        if not seeds:
            continue
        columns = {method: classes(pair, method, seeds) for method in ("source-only", *TEACHERS)}
        yield f"| {pair}, {len(seeds)} seeds | source-only | source's thresholds | matched |"
        yield "|---|---|---|---|"
        for name in columns["matched"]:
            cells = (f"{100 * statistics.mean(columns[method][name]):.1f}" for method in columns)
            yield f"| {name} | {' | '.join(cells)} |"
        yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", nargs="+", default=list(PAIRS), help=f"of {', '.join(PAIRS)}, or {', '.join(SETTINGS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["source-only", "adapted", "oracle"],
        choices=["source-only", *TEACHERS, "oracle"],
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true", help="print the table of what is in the CSV")
    options = parser.parse_args(arguments)
    if options.summary:
        print("AP50, all classes\n", *summary(), sep="\n")
        print(f"\nAP50, classes with at least {FEW} boxes in the source\n", *summary("target_ap50_shared"), sep="\n")
        return
    torch.set_num_threads(options.threads)
    console = Console()
    wanted = [p for p in PAIRS if p in options.pairs or PAIRS[p][0] in options.pairs]
    began = time.monotonic()
    for seed in options.seeds:
        for pair in wanted:
            run_pair(pair, seed, options.methods, console)
            console.print(f"{pair} seed {seed} done after {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
