"""What the convolution of pyramid and head costs in latency: each choice beside the depthwise one, interleaved.

    python benchmarks/head_latency.py

Random weights, as they do not change how long a network takes. All networks of a size are timed in turn, round by
round, on one thread; a ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import rows
from acclimate import machine
from acclimate.config import ModelConfig
from acclimate.edge.engines import engine
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.export import exporter
from acclimate.models import detector as models
from acclimate.scenes import sets
from timing import median_ms, spread, within

CSV = Path(__file__).with_suffix(".csv")
SIZES = ("nano", "tiny", "small")
CANVAS = (320, 320)
CHOICES: dict[str, dict[str, Any]] = {
    "depthwise": {"conv": "depthwise"},
    "heterogeneous": {"conv": "heterogeneous"},
    "ordinary": {"conv": "ordinary"},
    "ordinary, one tower": {"conv": "ordinary", "shared_tower": True},
}
PRECISIONS = ("fp32", "int8")


def measure(size: str, folder: Path, paths: Sequence[Path], rounds: int, runs: int) -> None:
    """Time all choices of a size, and write their rows."""
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    macs = {}
    canvas = to_input(letterbox(read_image(paths[0]), CANVAS)[0])
    for name, options in CHOICES.items():
        config = ModelConfig.model_validate({"size": size, "image_size": CANVAS, "weights": "none", **options})
        detector = models.build(models.specify(config, ["a", "b", "c"])).eval()
        for precision in PRECISIONS:
            artifact = exporter("onnx").export(detector, folder / f"{size} {name} {precision}", precision, paths)
            macs[name] = float(artifact.manifest.notes.macs_m)
            network = engine("onnx").load(artifact, 1)
            calls[name, precision] = lambda network=network: network(canvas)
    seen = [{key: median_ms(call, runs) for key, call in calls.items()} for _ in range(rounds)]
    for name, precision in calls:
        row = {
            "size": size,
            "head": name,
            "precision": precision,
            "image_size": "x".join(map(str, CANVAS)),
            "macs_m": f"{macs[name]:.0f}",
            "latency_ms": f"{statistics.median(one[name, precision] for one in seen):.2f}",
            **spread(within(seen, (name, precision), ("depthwise", precision))),
            "speed_up": f"{statistics.median(one[name, 'fp32'] / one[name, precision] for one in seen):.2f}",
            "rounds": rounds,
            "processor": machine.processor(),
            "onnxruntime": onnxruntime.__version__,
        }
        rows.append(CSV, row)
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    CSV.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        images = sets.generate(Path(temporary) / "scenes", 16, (240, 320), 0).parent / "images"
        paths = sorted(images.glob("*.jpg"))
        for size in SIZES:
            measure(size, Path(temporary), paths, options.rounds, options.runs)


if __name__ == "__main__":
    main()
