"""What INT8 first layers gain and lose on each runtime, beside first layers in fp32, into stem.csv.

    python benchmarks/stem.py
    python benchmarks/stem.py --pairs "generated clear->fog" "pbc->bccd"

Without pairs latency is measured: random weights, as they do not change how long a network takes, both forms of a
network in turn, round by round, on one thread, as processor time; a ratio is taken within a round. With pairs it is the
AP50 of the students of labellers.py (seed 0), in fp32 and both forms, on each runtime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
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
FORMS = {"fp32": True, "int8": False}
"""The precision of the first layers -> what `kept_in_float` is told."""


def export(runtime: str, detector: models.Detector, folder: Path, first: str, images: Sequence[Path]) -> Artifact:
    """The detector in INT8, its first layers in the precision `first`, whatever the runtime does by itself."""
    rule = quantise.kept_in_float

    def told(*graph: Any) -> list[str]:
        return rule(*graph[:3], first=FORMS[first])

    with patch.object(quantise, "kept_in_float", told):
        return exporter(runtime).export(detector, folder, "int8", images)


def latency(runtime: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    config = ModelConfig(size=size, image_size=CANVAS, weights="none")
    detector = models.build(models.specify(config, ["a", "b", "c"])).eval()
    with tempfile.TemporaryDirectory() as temporary:
        images = sets.generate(Path(temporary) / "scenes", 16, (240, 320), 0).parent / "images"
        paths = sorted(images.glob("*.jpg"))
        canvas = to_input(letterbox(read_image(paths[0]), CANVAS)[0])
        calls: dict[str, Callable[[], Any]] = {}
        for first in FORMS:
            artifact = export(runtime, detector, Path(temporary) / first, first, paths)
            calls[first] = partial(engines.engine(runtime).load(artifact, 1), canvas)
        seen = [
            {first: median_ms(call, options.runs, time.process_time) for first, call in calls.items()}
            for _ in range(options.rounds)
        ]
    return {
        "network": f"{size} {'x'.join(map(str, CANVAS))}",
        "fp32_ms": f"{statistics.median(one['fp32'] for one in seen):.2f}",
        "int8_ms": f"{statistics.median(one['int8'] for one in seen):.2f}",
        **spread(within(seen, "int8", "fp32")),
        "rounds": options.rounds,
    }


def accuracy(runtime: str, pair: str) -> dict[str, Any]:
    """AP50 on target test images: of the network in fp32, and in INT8 by the precision of its first layers."""
    family, source, target = adaptation.PAIRS[pair]
    detector = models.load(labellers.RUNS / f"{family}-{source}-{target}-0-student")
    truth = adaptation.test_images(family, target, detector.spec.classes, adaptation.TEST_IMAGES)
    seen = choose(formats.unlabelled(adaptation.target_list(family, target, labellers.RUNS)).paths, 64, 0)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = {"all_fp32": exporter(runtime).export(detector, Path(temporary) / "all", "fp32", [])}
        artifacts |= {first: export(runtime, detector, Path(temporary) / first, first, seen) for first in FORMS}
        for name, artifact in artifacts.items():
            found[name] = adaptation.evaluate_artifact(Predictor(artifact, 1), truth).ap50
    return {
        "network": f"student of {pair}", "all_fp32_ap50": f"{found['all_fp32']:.4f}",
        "fp32_ap50": f"{found['fp32']:.4f}", "int8_ap50": f"{found['int8']:.4f}", "test_images": len(truth.paths),
    }  # fmt: skip


COLUMNS = (
    "runtime", "network", "fp32_ms", "int8_ms", "ratio_median", "ratio_min", "ratio_max", "rounds",
    "all_fp32_ap50", "fp32_ap50", "int8_ap50", "test_images", "processor", "engine",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--pairs", nargs="+", choices=labellers.PAIRS, default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--csv", type=Path, default=CSV)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for runtime in options.runtimes:
        made = [partial(accuracy, runtime, pair) for pair in options.pairs]
        for make in made or [partial(latency, runtime, size, options) for size in SIZES]:
            row = {
                "runtime": runtime,
                **make(),
                "processor": machine.processor(),
                "engine": engines.engine(runtime).version(),
            }
            rows.append(options.csv, {column: row.get(column, "") for column in COLUMNS})
            print(row, flush=True)


if __name__ == "__main__":
    main()
