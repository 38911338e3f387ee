"""Every runtime and precision on trained detectors: speed, share of the machine's peak, and what AP50 it costs.

    python benchmarks/edge.py
    python benchmarks/edge.py --pairs day->night --runtimes onnx ncnn

The detectors are those that adaptation.py has adapted. One thread. Each round measures the peaks (latency.py says
which) and all artifacts of a detector in turn, so that a slow minute of the machine falls on all of them; the CSV has
medians over rounds. AP50 is measured on the target's test images, on the runtime itself. A detector whose rows are all
there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import machine
from acclimate.data import formats
from acclimate.data.dataset import draw
from acclimate.edge import engines
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.export import available, base, exporter
from acclimate.models import detector as models
from acclimate.run import Run
from latency import peak, rates
from timing import median_ms

CSV = Path(__file__).with_suffix(".csv")
CALIBRATION = 64
SHOWN = 24
"""Test images whose outputs post-processing is timed on: how long it takes depends on what is in a picture."""
REFERENCE = ("onnx", "fp32")


def variants(runtimes: Sequence[str]) -> list[tuple[str, base.Precision]]:
    """What is compared: every precision of every runtime, the reference among them."""
    found = [(name, precision) for name in runtimes for precision in exporter(name).precisions]
    return found if REFERENCE in found else [("onnx", "fp32"), *found]


def measure(pair: str, seed: int, options: argparse.Namespace, console: Console) -> None:
    """All rows of one detector."""
    wanted = variants(options.runtimes)
    known = {(r["runtime"], r["precision"]) for r in rows.read(CSV) if (r["pair"], r["seed"]) == (pair, str(seed))}
    if set(wanted) <= known:
        return
    family, source, target = adaptation.PAIRS[pair]
    run = Run.open(options.folder / f"{family}-{source}-{target}-{seed}")
    detector = base.frozen_copy(models.load(run.path))
    truth = adaptation.test_images(family, target, detector.spec.classes, options.test_images)
    pool = formats.unlabelled(adaptation.target_list(family, target, options.folder)).paths
    calibration = list(draw(pool, CALIBRATION, seed, "diverse"))
    pictures = shown(truth)
    with tempfile.TemporaryDirectory() as temporary:
        predictors: dict[tuple[str, base.Precision], Predictor] = {}
        facts: dict[tuple[str, base.Precision], list[float]] = {}
        for name, precision in wanted:
            key = (name, precision)
            predictors[key], *facts[key] = exported(detector, *key, Path(temporary), calibration, truth)
            console.print(f"{pair} {name} {precision}: AP50 {100 * facts[key][0]:.1f}")
        macs = float(predictors[REFERENCE].manifest.notes.macs_m)
        rounds = rounds_of(predictors, pictures, options)
    for name, precision in wanted:
        key = (name, precision)
        rate, best = rates(rounds, key, "int8" if precision == "int8" else "fp32", macs)
        rows.append(
            CSV,
            {
                "pair": pair,
                "seed": seed,
                "runtime": name,
                "precision": precision,
                "image_size": "x".join(map(str, detector.spec.image_size)),
                "macs_m": f"{macs:.0f}",
                "size_mb": f"{facts[key][1]:.2f}",
                "target_ap50": f"{facts[key][0]:.4f}",
                "loss": f"{facts[REFERENCE][0] - facts[key][0]:.4f}",
                "latency_ms": f"{statistics.median(one[key] for one in rounds):.2f}",
                "speed_up": f"{statistics.median(one[REFERENCE] / one[key] for one in rounds):.2f}",
                "rate_gops": f"{rate:.1f}",
                "peak_gops": f"{best:.0f}",
                "fraction_of_peak": f"{rate / best:.3f}",
                "finish_ms": f"{statistics.median(one['finish', key] for one in rounds):.3f}",
                "test_images": len(truth.images),
                "rounds": options.rounds,
                "processor": machine.facts()["processor"],
                "engine": engines.engine(name).version(),
            },
        )


def shown(truth: formats.LabelledSet) -> list[Any]:
    """The test images that post-processing is timed on."""
    return [read_image(image.path) for image in truth.images[:: max(1, len(truth.images) // SHOWN)]]


def exported(
    detector: Any, runtime: str, precision: base.Precision, folder: Path, calibration: Sequence[Path],
    truth: formats.LabelledSet,
) -> tuple[Predictor, float, float]:  # fmt: skip
    """A detector as an artifact in a folder of its own below `folder`: loaded, AP50 on test images, size in MB."""
    own = Path(tempfile.mkdtemp(dir=folder)) / f"{runtime}-{precision}"
    artifact = exporter(runtime).export(detector, own, precision, calibration)
    predictor = Predictor(artifact)
    ap50 = adaptation.evaluate_artifact(predictor, truth).ap50
    return predictor, ap50, sum(file.stat().st_size for file in own.rglob("*") if file.is_file()) / 1e6


def rounds_of(
    predictors: dict[tuple[str, base.Precision], Predictor], pictures: Sequence[Any], options: argparse.Namespace
) -> list[dict[Any, float]]:
    """Milliseconds of everything, round by round: peaks by name, networks by variant, post-processing beside them."""
    peaks = {kind: peak(kind) for kind in ("fp32", "int8")}
    calls: dict[Any, Callable[[], Any]] = {}
    outputs = {}
    for key, predictor in predictors.items():
        placed = [predictor.prepare(picture) for picture in pictures]
        calls[key] = partial(predictor.run, placed[0][0])
        outputs[key] = [(predictor.run(canvas), place) for canvas, place in placed]
    measured = []
    for _ in range(options.rounds):
        one: dict[Any, float] = {}
        for key, call in {**peaks, **calls}.items():
            one[key] = median_ms(call, options.runs)
        for key, predictor in predictors.items():
            one["finish", key] = statistics.mean(
                median_ms(partial(predictor.finish, raw, place), 3) for raw, place in outputs[key]
            )
        measured.append(one)
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["day->night", "raabin->bccd", "clear->fog"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runtimes", nargs="+", default=available())
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each artifact in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--test-images", type=int, default=adaptation.TEST_IMAGES)
    parser.add_argument("--folder", type=Path, default=adaptation.RUNS, help="of the detectors")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    for pair in options.pairs:
        for seed in options.seeds:
            measure(pair, seed, options, console)


if __name__ == "__main__":
    main()
