"""What INT8 first layers gain and lose on each runtime, beside first layers in fp32, into stem.csv.

    python benchmarks/stem.py
    python benchmarks/stem.py --pairs "generated clear->fog" "pbc->bccd"

Without pairs latency is measured: random weights, as they do not change how long a network takes, both forms of a
network in turn, round by round, on one thread, as processor time; a ratio is taken within a round. With pairs it is the
AP50 of the students of labellers.py, in fp32 and both forms, on each runtime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import adaptation
import labellers
import rows
from acclimate import machine
from acclimate.config import ModelConfig
from acclimate.data import formats
from acclimate.data.dataset import choose
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.export import exporter, quantise
from acclimate.models import detector as models
from acclimate.scenes import sets
from timing import median_ms, spread, within

CSV = Path(__file__).with_suffix(".csv")
RUNTIMES = ("onnx", "openvino", "litert", "executorch")
SIZES = ("nano", "tiny")
CANVAS = (320, 320)
Export = Callable[[str, models.Detector, Path, Sequence[Path]], Artifact]
"""Of a runtime, a detector, a folder to write into and calibration images."""


def export(first: bool, runtime: str, detector: models.Detector, folder: Path, images: Sequence[Path]) -> Artifact:
    """The detector in INT8, its `first` layers in fp32 or not, whatever the runtime does by itself."""
    rule = quantise.kept_in_float

    def told(*graph: Any) -> list[str]:
        return rule(*graph[:3], first=first)

    with patch.object(quantise, "kept_in_float", told):
        return exporter(runtime).export(detector, folder, "int8", images)


FORMS: Mapping[str, Export] = {"fp32": partial(export, True), "int8": partial(export, False)}
"""The precision of the first layers -> an export with it."""


def latency(forms: Mapping[str, Export], runtime: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Processor time of two forms of a network of random weights, and the second's ratio to the first."""
    torch.manual_seed(0)
    config = ModelConfig(size=size, image_size=CANVAS, weights="none")
    detector = models.build(models.specify(config, ["a", "b", "c"])).eval()
    with tempfile.TemporaryDirectory() as temporary:
        images = sets.generate(Path(temporary) / "scenes", 16, (240, 320), 0).parent / "images"
        paths = sorted(images.glob("*.jpg"))
        canvas = to_input(letterbox(read_image(paths[0]), CANVAS)[0])
        calls: dict[str, Callable[[], Any]] = {}
        for form, make in forms.items():
            artifact = make(runtime, detector, Path(temporary) / form, paths)
            calls[form] = partial(engines.engine(runtime).load(artifact, 1), canvas)
        seen = [
            {form: median_ms(call, options.runs, time.process_time) for form, call in calls.items()}
            for _ in range(options.rounds)
        ]
    before, after = forms
    return {
        "network": f"{size} {'x'.join(map(str, CANVAS))}",
        **{f"{form}_ms": f"{statistics.median(one[form] for one in seen):.2f}" for form in forms},
        **spread(within(seen, after, before)),
        "rounds": options.rounds,
    }


def accuracy(forms: Mapping[str, Export], runtime: str, pair: str, seed: int) -> dict[str, Any]:
    """AP50 on target test images: of the network in fp32, and in both forms of INT8."""
    family, source, target = adaptation.PAIRS[pair]
    detector = models.load(labellers.RUNS / f"{family}-{source}-{target}-{seed}-student")
    truth = adaptation.test_images(family, target, detector.spec.classes, adaptation.TEST_IMAGES)
    seen = choose(formats.unlabelled(adaptation.target_list(family, target, labellers.RUNS)).paths, 64, 0)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = {"all_fp32": exporter(runtime).export(detector, Path(temporary) / "all", "fp32", [])}
        artifacts |= {form: make(runtime, detector, Path(temporary) / form, seen) for form, make in forms.items()}
        for name, artifact in artifacts.items():
            found[name] = adaptation.evaluate_artifact(Predictor(artifact, 1), truth).ap50
    return {
        "network": f"student of {pair}",
        **{f"{name}_ap50": f"{ap50:.4f}" for name, ap50 in found.items()},
        "test_images": len(truth.paths),
    }


def columns(forms: Mapping[str, Export]) -> Sequence[str]:
    """Of a CSV that compares them."""
    return [
        "runtime", "network", *(f"{form}_ms" for form in forms), "ratio_median", "ratio_min", "ratio_max", "rounds",
        "all_fp32_ap50", *(f"{form}_ap50" for form in forms), "test_images", "processor", "engine",
    ]  # fmt: skip


def compare(
    description: str, forms: Mapping[str, Export], runtimes: Sequence[str], csv: Path, arguments: Sequence[str] | None
) -> None:
    """Measure two forms of INT8 as the command line says, a row for each runtime and network.

    Args:
        description: for `--help`.
        forms: names that stand in columns -> how to export, the yardstick first.
        runtimes: those of which it is asked.
        csv: where rows go unless the command line says otherwise.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runtimes", nargs="+", choices=runtimes, default=list(runtimes))
    parser.add_argument("--pairs", nargs="+", choices=labellers.PAIRS, default=[])
    parser.add_argument("--seed", type=int, default=0, help="of the students of --pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--csv", type=Path, default=csv)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for runtime in options.runtimes:
        made = [partial(accuracy, forms, runtime, pair, options.seed) for pair in options.pairs]
        for make in made or [partial(latency, forms, runtime, size, options) for size in SIZES]:
            row = {
                "runtime": runtime,
                **make(),
                "processor": machine.processor(),
                "engine": engines.engine(runtime).version(),
            }
            rows.append(options.csv, {column: row.get(column, "") for column in columns(forms)})
            print(row, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    compare(__doc__.splitlines()[0], FORMS, RUNTIMES, CSV, arguments)


if __name__ == "__main__":
    main()
