"""Adaptation on real shifts: source-only, adapted and two oracles, by seed and pair, appended to adaptation.csv.

    python benchmarks/adaptation.py --pairs blood carla --seeds 0 1 2
    python benchmarks/adaptation.py --conv depthwise     # the head that was the default before
    python benchmarks/adaptation.py --summary

Every training is a run folder below runs/adaptation and is taken up where it stopped; a pair and seed whose rows are
in the CSV is not run again. Processes with different --pairs may write at once. Target labels are read by the oracle
and by the evaluation at the end, never by the adaptation. What a row holds is in docs/benchmarks/adaptation.md.

How much of a gap can be closed at all is bounded by the better of two oracles, each trained for as many steps as the
others: one on the target's labels alone, and one on the source's and the target's together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from scipy.stats import t

import rows
from acclimate import workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import AdaptConfig, AugmentConfig, Config, DataConfig, ModelConfig, ScheduleConfig, TeacherConfig
from acclimate.data import formats
from acclimate.data.dataset import part_of
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.evaluate import average_precision, evaluate_detector
from acclimate.models import detector as models
from acclimate.run import Evaluation, Run
from acclimate.select.score import rank

HERE = Path(__file__).parent
DATA = Path(os.environ.get("ACCLIMATE_DATA", HERE.parent.parent / "shared" / "data"))
CSV = HERE / "adaptation.csv"
RUNS = HERE.parent / "runs" / "adaptation"
TEST_IMAGES = 150
"""Test images of a domain, evenly spread; all where there are fewer."""
NO_GAP = 0.02
"""AP50 below which the better oracle is no better than source-only, so that no share of the gap is told."""
METHODS = ("source-only", "adapted", "weather", "oracle", "oracle-both")
"""`weather` is `adapted` with source images under the target's weather, as often as `WEATHER` says."""
WEATHER = 0.5
CONV = "ordinary"
"""`model.conv` of what is trained unless told otherwise."""
FEW = 50
"""A class with fewer boxes than this in the source cannot be learned there; `shared` columns leave it out."""


@dataclass(frozen=True)
class Setting:
    """How one data set is trained: small enough for CPU cores, the same for source-only, adapted and the oracles."""

    model: ModelConfig
    augment: AugmentConfig
    steps: int
    adapt_steps: int
    batch: int = 4
    lr: float = 1.5e-3

    @property
    def total(self) -> int:
        """Steps that a detector has seen at its end."""
        return self.steps + self.adapt_steps


LITE = {"backbone": "tf_efficientnet_lite0", "weights": "auto", "depth": 1}
SETTINGS = {
    "blood": Setting(
        ModelConfig(**LITE, channels=48, image_size=(192, 192), strides=(8, 16, 32)),
        AugmentConfig(vertical_flip=0.5, scale=(0.7, 1.5)),
        steps=800,
        adapt_steps=600,
    ),
    "carla": Setting(
        ModelConfig(**LITE, channels=48, image_size=(256, 256), strides=(8, 16)),
        AugmentConfig(scale=(0.8, 2.0)),
        steps=2400,
        adapt_steps=600,
    ),
    "robocup": Setting(
        ModelConfig(**LITE, channels=48, image_size=(256, 256), strides=(8, 16, 32)),
        AugmentConfig(),
        steps=1200,
        adapt_steps=600,
        lr=3e-3,
    ),
    "scenes": Setting(
        ModelConfig(**LITE, channels=48, image_size=(128, 160), strides=(8, 16, 32)),
        AugmentConfig(),
        steps=900,
        adapt_steps=600,
        lr=3e-3,
    ),
    "thermal": Setting(
        ModelConfig(**LITE, channels=32, image_size=(256, 320), strides=(4, 8)),
        AugmentConfig(vertical_flip=0.5, scale=(0.8, 1.5), invert=0.3, tone=0.6),
        steps=1000,
        adapt_steps=600,
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
    "generated clear->fog": ("scenes", "clear", "fog"),
    "bccd->raabin": ("blood", "bccd", "raabin"),
    "night->day": ("thermal", "night", "day"),
}

FIELD_OF_VIEW = 30.0
"""Degrees of the generated scenes: at 52, most objects would be under eight pixels on so small a canvas."""

COOL: dict[str, Any] = {"lr": 5e-4, "ema": 0.99}
"""Of an adaptation. With 1.5e-3 and 0.98 the teacher follows its own mistakes before others outvote them: it loses a
class in some runs (vehicles in glare, white cells at a checkpoint), and no score without labels tells which."""

LIGHTS_AND_SIGNS = {
    **{f"traffic_light_{colour}": "traffic_light" for colour in ("green", "orange", "red")},
    **{f"traffic_sign_{limit}": "traffic_sign" for limit in (30, 60, 90)},
}
"""At 256 px a light's colour and a sign's number are a pixel or two: one class each."""


def data(family: str, domain: str, split: str) -> DataConfig:
    if family == "scenes":
        return DataConfig(path=RUNS / "scenes" / f"{domain}-{split}" / "annotations.json")
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


@dataclass(frozen=True)
class Case:
    """What is trained: on a pair, from a seed, with a convolution of pyramid and head."""

    pair: str
    seed: int
    conv: str = CONV

    def folder(self, *name: str) -> Path:
        """Of a run of it."""
        own = () if self.conv == CONV else (self.conv,)
        return RUNS / "-".join((PAIRS[self.pair][0], *name, *own, str(self.seed)))

    @property
    def start(self) -> Path:
        """Its source training."""
        return self.folder(PAIRS[self.pair][1])


def config(pair: str, seed: int, conv: str = CONV) -> Config:
    family, source, target = PAIRS[pair]
    setting = SETTINGS[family]
    common: dict[str, Any] = {"batch_size": setting.batch, "workers": 1, "warmup": 50}
    return Config(
        seed=seed,
        source=data(family, source, "train"),
        oracle=data(family, target, "train"),
        model=setting.model.model_copy(update={"conv": conv}),
        augment=setting.augment,
        train=ScheduleConfig(**common, steps=setting.steps, lr=setting.lr, ema=0.995, checkpoint_every=setting.steps),
        schedule=ScheduleConfig(
            **common, **COOL, steps=setting.adapt_steps, checkpoint_every=setting.adapt_steps // 10
        ),
        adapt=AdaptConfig(teacher=TeacherConfig()),
    )


def run_case(case: Case, methods: Sequence[str], console: Console) -> None:
    """The runs of one case. Source-only is trained on for as long as adaptation takes; so are the oracles."""
    done = {row["method"] for row in rows.read(CSV) if _case(row) == case}
    methods = [method for method in methods if method not in done]
    if not methods:
        return
    family, source, target = PAIRS[case.pair]
    settings = config(case.pair, case.seed, case.conv)
    if family == "scenes":
        generate(console)
    workflow.train(settings, case.start, console=console)
    if "source-only" in methods:
        alone = settings.model_copy(
            update={"adapt": AdaptConfig(teacher=None), "augment": settings.augment.model_copy(update={"style": 0.0})}
        )
        own, out = target_list(family, source), case.folder(f"{source}-only")
        run = workflow.adapt(case.start, own, out, config=alone, console=console)
        record(case, "source-only", "last", run, *evaluate(run, case.pair))
    weather = settings.model_copy(update={"augment": settings.augment.model_copy(update={"weather": WEATHER})})
    for method, changed, name in (("adapted", settings, ()), ("weather", weather, ("weather",))):
        if method in methods:
            images, out = target_list(family, target), case.folder(source, target, *name)
            record_adapted(case, method, workflow.adapt(case.start, images, out, config=changed, console=console))
    longer = settings.train.model_copy(update={"steps": SETTINGS[family].total, "checkpoint_every": 10**6})
    for method, labelled in (("oracle", settings.oracle), ("oracle-both", both(family, source, target))):
        if method in methods:
            run = workflow.train(
                settings.model_copy(update={"train": longer, "oracle": labelled}),
                case.folder(source, target, method),
                role="oracle",
                console=console,
            )
            record(case, method, "last", run, *evaluate(run, case.pair))


def _case(row: dict[str, str]) -> Case:
    return Case(row["pair"], int(row["seed"]), row["conv"])


def generate(console: Console) -> None:
    """The generated sets, the same for every seed of training."""
    for domain, condition in (("clear", None), ("fog", "fog")):
        for split, count, seed in (("train", 300, 0), ("test", 150, 1)):
            folder = RUNS / "scenes" / f"{domain}-{split}"
            seed += 20_000 * (condition is not None)
            size = SETTINGS["scenes"].model.image_size
            workflow.scenes(folder, count, size, seed, condition, field_of_view=FIELD_OF_VIEW, console=console)


def both(family: str, source: str, target: str) -> DataConfig:
    """The source's and the target's labelled training images as one COCO set."""
    file = RUNS / f"{family}-{source}-and-{target}.json"
    if not file.exists():
        first = formats.read(data(family, source, "train"))
        sets = (first, formats.read(data(family, target, "train"), first.classes))
        records: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        records["categories"] = [{"id": i, "name": name} for i, name in enumerate(first.classes)]
        for image in [image for one in sets for image in one.images]:
            found = image.annotations
            number = len(records["images"])
            records["images"].append(
                {"id": number, "file_name": str(image.path.resolve()), "height": image.height, "width": image.width}
            )
            for box, label, ignore in zip(
                found.boxes.tolist(), found.labels.tolist(), found.ignore.tolist(), strict=True
            ):
                left, top, right, bottom = box
                records["annotations"].append(
                    {
                        "id": len(records["annotations"]), "image_id": number, "category_id": max(label, 0),
                        "iscrowd": int(ignore), "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                    }
                )  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(records))
    return DataConfig(path=file, format="coco", images=Path("/"))


def test_images(family: str, domain: str, classes: Sequence[str], count: int) -> formats.LabelledSet:
    """So many of a domain's test images, evenly spread, or all."""
    return part_of(formats.read(data(family, domain, "test"), classes), count, 0)


def evaluate(
    run: Run, pair: str, weights: Path | None = None, source: bool = True
) -> tuple[Evaluation, Evaluation | None]:
    """AP on the target's test images, and on the source's."""
    family, *domains = PAIRS[pair]
    detector = models.to_device(models.load(run.path, weights))
    found: list[Evaluation] = []
    for domain, role in ((domains[1], "target"), (domains[0], "source"))[: 2 if source else 1]:
        truth = test_images(family, domain, detector.spec.classes, TEST_IMAGES)
        found.append(evaluate_detector(detector, truth, domain, role))
    return found[0], found[1] if source else None


def evaluate_artifact(
    predictor: Predictor, truth: formats.LabelledSet, role: Literal["source", "target"] = "target"
) -> Evaluation:
    """AP of an artifact on labelled images."""
    found = [predictor(read_image(path)) for path in truth.paths]
    return average_precision(found, truth, data=role, role=role, model=predictor.manifest.name)


def record_adapted(case: Case, method: str, run: Run) -> None:
    """Three rows: the last checkpoint, the one chosen without labels, and the best in hindsight."""
    selection = run.selection()
    assert selection is not None
    files = checkpoints(run)
    hindsight = {step: evaluate(run, case.pair, file, source=False)[0].ap50 for step, file in files.items()}
    selection = rank(selection, hindsight)
    run.write("selection.json", selection)
    steps = {
        "last": max(files),
        "chosen": selection.chosen_step,
        "hindsight": max(hindsight, key=lambda s: hindsight[s]),
    }
    scored = {step: evaluate(run, case.pair, files[step]) for step in set(steps.values())}
    for name, step in steps.items():
        record(case, method, name, run, *scored[step], step=step, taus=selection.rank_correlation)


def record(
    case: Case,
    method: str,
    checkpoint: str,
    run: Run,
    target: Evaluation,
    source: Evaluation | None,
    step: int | None = None,
    taus: dict[str, float] | None = None,
) -> None:
    setting = SETTINGS[PAIRS[case.pair][0]]
    health = [line["dead_channels"] for line in run.metrics() if "dead_channels" in line][-10:]
    counts = Run.open(case.start).manifest.notes.class_boxes
    learnable = [c.ap50 for name, c in target.classes.items() if counts.get(name, 0) >= FEW and c.ap50 is not None]
    taus = taus or {}
    rows.append(
        CSV,
        {
            "pair": case.pair,
            "seed": case.seed,
            "conv": case.conv,
            "method": method,
            "checkpoint": checkpoint,
            "target_ap50": f"{target.ap50:.4f}",
            "target_ap": f"{target.ap:.4f}",
            "source_ap50": f"{source.ap50:.4f}" if source else "",
            "source_ap": f"{source.ap:.4f}" if source else "",
            "target_ap50_shared": f"{statistics.mean(learnable):.4f}",
            "classes": " ".join(f"{n}={c.ap50:.3f}" for n, c in target.classes.items() if c.ap50 is not None),
            "step": setting.total if step is None else setting.steps + step,
            "taus": " ".join(f"{name}={tau:.3f}" for name, tau in taus.items()),
            "start": models.load(run.path).spec.start,
            "image_size": "x".join(map(str, setting.model.image_size)),
            "steps": setting.total,
            "dead_channels": f"{statistics.mean(health):.4f}" if health else "",
            "batch": setting.batch,
            "test_images": target.images,
            "minutes": f"{run.manifest.seconds / 60:.1f}",
            "processor": models.device_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    )


def recorded(pair: str, conv: str, method: str, checkpoint: str = "last") -> dict[str, dict[str, str]]:
    """The rows of a pair's method at one of its checkpoints, with a head of that convolution, by seed."""
    wanted = (pair, conv, method, checkpoint)
    keys = ("pair", "conv", "method", "checkpoint")
    return {row["seed"]: row for row in rows.read(CSV) if tuple(row[key] for key in keys) == wanted}


def measured() -> list[tuple[str, str]]:
    """The pairs and convolutions that have rows, in the order of the pairs."""
    found = {(row["pair"], row["conv"]) for row in rows.read(CSV)}
    return sorted(found, key=lambda one: (list(PAIRS).index(one[0]), one[1] != CONV, one[1]))


def mean_and_interval(values: Sequence[float]) -> str:
    """The mean of paired differences over seeds and half of its 95 % interval by Student's t, in points."""
    points = [100 * value for value in values]
    if len(points) < 2:
        return f"{points[0]:+.1f}"
    half = float(t.ppf(0.975, len(points) - 1)) * statistics.stdev(points) / len(points) ** 0.5
    return f"{statistics.mean(points):+.1f} ± {half:.1f}"


def summary(column: str = "target_ap50") -> Iterator[str]:
    """A table in Markdown: means over seeds, the paired gains with their intervals, and the shares of the gap."""
    yield (
        "| pair | head | seeds | source-only | adapted, last | adapted, chosen | best in hindsight | weather, chosen "
        "| oracle | oracle, both | gain, chosen | gain, weather | gap | closed, chosen | closed, weather |"
    )
    yield "|" + "---|" * 15
    closed: dict[str, dict[str, float]] = {"chosen": {}, "weather": {}}
    for pair, conv in measured():
        columns = {
            "source-only": recorded(pair, conv, "source-only"),
            **{name: recorded(pair, conv, "adapted", name) for name in ("last", "chosen", "hindsight")},
            "weather": recorded(pair, conv, "weather", "chosen"),
            "oracle": recorded(pair, conv, "oracle"),
            "both": recorded(pair, conv, "oracle-both"),
        }
        points = {name: {seed: float(row[column]) for seed, row in found.items()} for name, found in columns.items()}
        seeds = sorted(points["source-only"].keys() & points["chosen"].keys())
        if not seeds:
            continue
        cells = [
            f"{100 * statistics.mean(found[seed] for seed in seeds if seed in found):.1f}"
            if found.keys() & set(seeds)
            else "-"
            for found in points.values()
        ]
        alone = points["source-only"]
        gains = {
            name: {seed: points[name][seed] - alone[seed] for seed in seeds if seed in points[name]} for name in closed
        }
        oracles = (points["oracle"], points["both"])
        bounded = [seed for seed in seeds if any(seed in found for found in oracles)]
        rooms = {seed: max(found[seed] for found in oracles if seed in found) - alone[seed] for seed in bounded}
        room = statistics.mean(rooms.values()) if rooms else 0.0
        shares = []
        for name, found in gains.items():
            known = [seed for seed in bounded if seed in found]
            if not known or room <= NO_GAP:
                shares.append("-")
                continue
            share = statistics.mean(found[seed] for seed in known) / statistics.mean(rooms[seed] for seed in known)
            # Of a pair with both heads the default's, which comes first.
            closed[name].setdefault(pair, share)
            shares.append(f"{100 * share:.0f} %")
        told = [mean_and_interval(list(found.values())) if found else "-" for found in gains.values()]
        gap = f"{100 * room:.1f}" if rooms else "-"
        yield f"| {' | '.join([pair, conv, str(len(seeds)), *cells, *told, gap, *shares])} |"
    for name, known in closed.items():
        if known:
            yield (
                f"\nGap closed by {name}, mean over the {len(known)} pairs that have one and rows of it: "
                f"{100 * statistics.mean(known.values()):.0f} %."
            )


def source_summary() -> Iterator[str]:
    """What adaptation costs on the source, how alive the networks are, and what the label-free choice is worth."""
    scores = sorted({part.split("=")[0] for row in rows.read(CSV) for part in row["taus"].split()})
    yield (
        "| pair | head | source, source-only | source, adapted | dead channels, source-only | adapted "
        "| regret of the choice |" + "".join(f" tau of {name} |" for name in scores)
    )
    yield "|" + "---|" * (7 + len(scores))

    def mean(found: dict[str, dict[str, str]], key: str) -> str:
        known = [100 * float(row[key]) for row in found.values() if row[key]]
        return f"{statistics.mean(known):.1f}" if known else "-"

    for pair, conv in measured():
        alone, chosen, best = (
            recorded(pair, conv, "source-only"),
            recorded(pair, conv, "adapted", "chosen"),
            recorded(pair, conv, "adapted", "hindsight"),
        )
        if not alone or not chosen:
            continue
        regret = statistics.mean(
            100 * (float(best[seed]["target_ap50"]) - float(row["target_ap50"])) for seed, row in chosen.items()
        )
        taus: dict[str, list[float]] = {name: [] for name in scores}
        for row in chosen.values():
            for part in row["taus"].split():
                name, value = part.split("=")
                taus[name].append(float(value))
        cells = [
            mean(alone, "source_ap50"), mean(chosen, "source_ap50"), mean(alone, "dead_channels") + " %",
            mean(chosen, "dead_channels") + " %", f"{regret:.1f}",
            *(f"{statistics.mean(found):+.2f}" if found else "-" for found in taus.values()),
        ]  # fmt: skip
        yield f"| {pair} | {conv} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", nargs="+", default=list(PAIRS), help=f"of {', '.join(PAIRS)}, or {', '.join(SETTINGS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=list(METHODS),
    )
    parser.add_argument("--conv", default=CONV, help="model.conv of what is trained")
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
            run_case(Case(pair, seed, options.conv), options.methods, console)
            console.print(f"{pair} seed {seed} done after {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
