"""What the options of the study notes compute and need, and how well a smoother of scores learns; into craft.csv.

    python benchmarks/craft.py
    python benchmarks/craft.py --summary

Nothing is timed. Ensembles are made of the runs of the suite `heads`, and what no suite can say (a detector of other
classes to learn from, a bank's single paths) is trained on its scenes, where it has made them (some 25 minutes of a
core).
Multiply-accumulates and parameters are those of what is exported of a one-stage detector at 320 pixels. The smoother's
rows are of made tracks: an object that stands and is missed in a fifth of the frames, and boxes of nothing that last
one frame each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adaptation
import backbones
import rows
from acclimate import workflow
from acclimate.benchmark import suite as suites
from acclimate.config import Config, DataConfig, ModelConfig
from acclimate.data import formats
from acclimate.edge.smoothing import KINDS, Kind, Smoother, flicker
from acclimate.evaluate import evaluate_detector
from acclimate.models import groupable
from acclimate.models.deploy import deploy
from acclimate.models.detector import Detector, build, load, parameters, specify
from acclimate.models.pruning import prune
from acclimate.models.recurrent import train_smoother
from acclimate.models.slimmable import macs
from acclimate.models.statistics import IMAGES, recalibrate
from acclimate.models.supernet import RANKS, SupernetDetector
from acclimate.run import Run
from acclimate.structures import Annotations, Detections
from acclimate.workflow.ensembles import Looks, evaluate_together

CSV = Path(__file__).with_suffix(".csv")
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    **{
        f"conv = {one}": {"conv": one}
        for one in ("shuffle", "self-calibrated", "pyramid", "heterogeneous", "poly-scale")
    },
    "context = strip": {"context": "strip"},
    "output_stride = 16": {"output_stride": 16},
    **{f"norm = {one}": {"norm": one} for one in ("group", "switchable", "moving")},
}
FRAMES = 30


def detector(**options: Any) -> Detector:
    values = {
        "backbone": "tf_efficientnet_lite0",
        "weights": "none",
        "size": "nano",
        "image_size": [320, 320],
        "conv": "depthwise",
    }
    torch.manual_seed(0)
    return build(specify(ModelConfig.model_validate({**values, "strides": [8, 16], **options}), ["a", "b"]))


def counted(name: str, made: Detector) -> dict[str, str]:
    """The row of a detector as it is exported."""
    made = made.plain().eval().requires_grad_(False)
    deploy(made)
    return {"what": name, "measure": "MACs (M)", "value": f"{macs(made) / 1e6:.1f}"} | {
        "parameters_m": f"{parameters(made) / 1e6:.3f}"
    }


def grouped(made: Detector, groups: int) -> tuple[Detector, float]:
    """The detector with the weights between the best groups at 0, and the part of the relevance that is left."""
    shares = []
    for name, part in made.named_modules():
        if not (isinstance(part, torch.nn.Conv2d) and name.startswith("backbone.") and part.kernel_size == (1, 1)):
            continue
        if part.groups == 1 and part.in_channels % groups == part.out_channels % groups == 0:
            matrix = groupable.relevance(part).detach().double().numpy()
            found = groupable.assign(matrix, groups)
            shares.append(groupable.kept(matrix, found))
            with torch.no_grad():
                part.weight *= torch.from_numpy(np.equal.outer(*found))[:, :, None, None]
    return made, float(np.mean(shares))


def frames(seed: int, count: int = FRAMES) -> list[tuple[Detections, Annotations]]:
    """An object that stands, its score unsteady and now and then missed; and boxes of nothing that last one frame."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        boxes, scores = [], []
        if rng.random() < 0.8:
            boxes.append([20, 20, 60, 60])
            scores.append(rng.uniform(0.3, 0.8))
        x, y = rng.uniform(100, 900, 2)
        boxes.append([x, y, x + 30, y + 30])
        scores.append(rng.uniform(0.3, 0.8))
        order = np.argsort(scores)[::-1]
        found = Detections(np.float32(boxes)[order], np.zeros(len(boxes), np.int64), np.float32(scores)[order])
        made.append((found, Annotations(np.float32([[20, 20, 60, 60]]), np.array([0]), np.array([False]))))
    return made


def wrong(found: Sequence[Detections]) -> float:
    """A frame: objects that are not shown, and boxes of nothing that are."""
    shown = [one.above(0.5).boxes[:, 0] for one in found]
    return sum(int(20 not in boxes) + int((boxes != 20).sum()) for boxes in shown) / len(found)


def smoothed(name: str, smoother: Smoother | None) -> dict[str, str]:
    """Flicker and mistakes on sequences that none was trained on."""
    flickers, mistakes = [], []
    for seed in range(100, 110):
        plain = [found for found, _ in frames(seed)]
        if smoother is not None:
            fresh = Smoother(smoother.kind, smoother.weights)
            plain = [fresh(found) for found in plain]
        flickers.append(flicker(plain))
        mistakes.append(wrong(plain))
    return {
        "what": name, "measure": "flicker; mistakes a frame",
        "value": f"{np.mean(flickers):.3f}; {np.mean(mistakes):.2f}", "parameters_m": "",
    }  # fmt: skip


def uncut(name: str) -> dict[str, str]:
    """The row of a backbone, counted without making it."""
    with torch.device("meta"):
        made = build(specify(backbones.config(name, backbones.COUNTED), ["a", "b"]))
    return {
        "what": f"backbone {name}", "measure": "MACs (M)", "value": f"{macs(made) / 1e6:.0f}",
        "parameters_m": f"{parameters(made) / 1e6:.2f}",
    }  # fmt: skip


def with_options(name: str) -> dict[str, str]:
    return counted(name, detector(**OPTIONS[name]))


def pruned() -> dict[str, str]:
    cut = detector()
    prune(cut, 0.5)
    return counted("pruning, keep = 0.5", cut)


def groupable_row() -> dict[str, str]:
    """Of ImageNet's weights as they are: nothing is fine-tuned."""
    made, share = grouped(detector(weights="auto"), 4)
    row = counted("groupable, groups = 4", made)
    return row | {"measure": "MACs (M); relevance kept", "value": f"{row['value']}; {share:.2f}"}


def one_path(rank: float, name: str) -> dict[str, str]:
    bank = detector(kind="supernet", backbone=None)
    assert isinstance(bank, SupernetDetector)
    bank.set_path((rank,) * len(bank.stages))
    return counted(name, bank)


def smoother(kind: Kind) -> dict[str, str]:
    training = [frames(seed) for seed in range(8)]
    return smoothed(f"smoother {kind}", train_smoother(training, kind, steps=200))


HEADS = Path(__file__).parent.parent / "runs" / "heads"
"""Where the suite `heads` puts its runs."""
ENSEMBLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "evaluate dense": (("dense",), ()),
    "evaluate iou": (("iou",), ()),
    "evaluate dense iou --fuse wbf": (("dense", "iou"), ()),
    "evaluate dense --view flip": (("dense",), ("flip",)),
    "evaluate dense --view flip --view 1.25": (("dense",), ("flip", "1.25")),
}
"""What a row is of -> the methods of the suite whose detectors are taken, and the further views that they have."""


TRAINED_AT = HEADS.with_name("craft-trained")
PATHS = 6
"""Of the supernet, drawn at random, that are measured."""


def together(name: str) -> dict[str, str]:
    """AP50 in points on the suite's test images in fog."""
    methods, views = ENSEMBLES[name]
    found = [next(HEADS.glob(f"clear-fog-{method}-????????-seed0")) for method in methods]
    data = DataConfig(path=HEADS / "scenes" / "fog-test" / "annotations.json")
    ap50 = evaluate_together(found, data, "craft", "target", Looks.of("wbf", views, None)).ap50
    return {"what": name, "measure": "AP50", "value": f"{100 * ap50:.1f}", "parameters_m": ""}


def trained(name: str, config: Config) -> Run:
    """A run beside the suite's, now or before."""
    return workflow.train(config, TRAINED_AT / name)


def settings(model: dict[str, Any], source: DataConfig, steps: int = 300) -> Config:
    """Those of the suite's detectors but for the model and how long it trains."""
    suite = suites.load("heads")
    config = suites.source_configuration(suite, "clear->fog", suite.reference)
    schedule = config.train.model_copy(update={"steps": steps, "checkpoint_every": steps})
    own = ModelConfig.model_validate({**suite.model, **model})
    return config.model_copy(update={"source": source, "train": schedule, "model": own})


def scenes(name: str) -> DataConfig:
    return DataConfig(path=HEADS / "scenes" / name / "annotations.json")


def ap50(detector: Detector, name: str) -> float:
    """In points, on scenes of the suite."""
    return 100 * evaluate_detector(detector, formats.read(scenes(name)), name, "target").ap50


def transferred() -> dict[str, str]:
    """AP50 in fog, in points, of the graph's head with what a detector of the simulator's ten classes has learnt."""
    simulated = adaptation.DATA / "carla-weather"
    coco = DataConfig(path=simulated / "annotations" / "clear_train.json", images=simulated / "images" / "clear")
    other = trained("carla", settings({"kind": "two-stage"}, coco))
    model = {"kind": "two-stage", "two_stage": {"head": "graph", "transfer": str(other.path)}}
    begun = settings(model, scenes("clear-train"))
    # The suite's rows are of detectors that are trained on for as long as an adaptation takes.
    further = suites.configuration(suites.load("heads"), "clear->fog", "two-stage + graph")
    further = further.model_copy(update={"source": begun.source, "model": begun.model})
    target = HEADS / "scenes" / "fog-train" / "images"
    start = trained("transfer-begun", begun)
    run = workflow.adapt(start.path, target, TRAINED_AT / "transfer", config=further)
    found = ap50(load(run.path), "fog-test")
    of_suite = rows.read(CSV.with_name("suite_heads.csv"))
    without = next(float(row["target_ap50"]) for row in of_suite if row["method"] == "two-stage + graph")
    return {
        "what": "graph with transfer from ten other classes", "measure": "AP50; without",
        "value": f"{found:.1f}; {100 * without:.1f}", "parameters_m": "",
    }  # fmt: skip


def single_paths() -> dict[str, str]:
    """AP50 in points in clear weather of a supernet's paths, with the statistics that all share and with their own."""
    model = {"kind": "supernet", "backbone": None, "weights": "none", "strides": [8, 16]}
    bank = load(trained("supernet", settings(model, scenes("clear-train"), steps=4000)).path)
    assert isinstance(bank, SupernetDetector)
    seen = formats.unlabelled(HEADS / "scenes" / "clear-train" / "images").paths[:IMAGES]
    draw = np.random.default_rng(0)
    shared, own = [], []
    for _ in range(PATHS):
        plain = bank.extract(tuple(draw.choice(RANKS, len(bank.stages))))
        shared.append(ap50(plain, "clear-test"))
        recalibrate(plain, seen)
        own.append(ap50(plain, "clear-test"))
    return {
        "what": f"supernet, BatchNorm of each of {PATHS} paths", "measure": "AP50; with shared statistics",
        "value": f"{np.mean(own):.1f}; {np.mean(shared):.1f}", "parameters_m": "",
    }  # fmt: skip


TRAINED: dict[str, Callable[[], dict[str, str]]] = {
    "graph with transfer from ten other classes": transferred,
    f"supernet, BatchNorm of each of {PATHS} paths": single_paths,
}
CASES: dict[str, Callable[[], dict[str, str]]] = {
    **{name: partial(with_options, name) for name in OPTIONS},
    "pruning, keep = 0.5": pruned,
    "groupable, groups = 4": groupable_row,
    "supernet, smallest path": partial(one_path, 0.25, "supernet, smallest path"),
    "supernet, largest path": partial(one_path, 1.0, "supernet, largest path"),
    "scores as they are": partial(smoothed, "scores as they are", None),
    **{f"smoother {kind}": partial(smoother, kind) for kind in KINDS},
    **{f"backbone {name}": partial(uncut, name) for name in backbones.BACKBONES},
}
"""What a row is of -> makes it."""


def table(file: Path = CSV) -> Iterator[str]:
    """A table in Markdown."""
    found = rows.read(file)
    if not found:
        yield "No rows yet."
        return
    yield "| what | measure | value | parameters (M) |"
    yield "|---|---|---|---|"
    for row in found:
        yield f"| {row['what']} | {row['measure']} | {row['value']} | {row['parameters_m']} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="print the table of what is in the CSV")
    options = parser.parse_args(arguments)
    if not options.summary:
        done = {row["what"] for row in rows.read(options.csv)}
        ensembles = {name: partial(together, name) for name in ENSEMBLES}
        for name, make in {**CASES, **(ensembles | TRAINED if HEADS.exists() else {})}.items():
            if name not in done:
                rows.append(options.csv, make())
                print(name, flush=True)
    print(*table(options.csv), sep="\n")


if __name__ == "__main__":
    main()
