"""What a second stage costs on the device, against the sibling head of the same detector.

    python benchmarks/tsd.py

One thread, one image, the network without decoding. The heads of a model take turns in one process, image by image, so
that a slow minute of the machine falls on all; what counts is processor time, which other processes on the machine
take little part in. The ratio is that of the medians of a round, the CSV has its median and extremes over the rounds.
`gridsample` is TSD exported with the operator of that name, which eager mode uses. Weights are random: time does not
depend on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch

import rows
from acclimate import machine
from acclimate.config import ModelConfig
from acclimate.edge import engines
from acclimate.export import exporter
from acclimate.export.base import complexity, frozen_copy
from acclimate.models import detector as models
from acclimate.models import disentangled
from timing import spread

CSV = Path(__file__).with_suffix(".csv")
CLASSES = [f"class {i}" for i in range(8)]
LIGHT: dict[str, Any] = {"size": "tiny", "image_size": (320, 320), "two_stage": {"proposals": 64, "hidden": 256}}
FULL: dict[str, Any] = {
    "backbone": "resnet50", "image_size": (480, 640), "strides": (4, 8, 16, 32), "channels": 256, "norm": "frozen",
    "two_stage": {"proposals": 300, "hidden": 1024},
}  # fmt: skip
MODELS = {"light": LIGHT, "torchvision-sized": FULL}
HEADS = ("sibling", "disentangled", "disentangled-light", "separate-fcs", "separate-backbone")


def build(options: dict[str, Any], head: str) -> models.Detector:
    torch.manual_seed(0)
    two_stage = {**options["two_stage"], "head": head}
    config = ModelConfig(**{**options, "kind": "two-stage", "weights": "none", "two_stage": two_stage})
    return frozen_copy(models.build(models.specify(config, CLASSES))).to(memory_format=torch.channels_last)


def processor_ms(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began)


def rounds_of(calls: dict[str, Callable[[], Any]], rounds: int, runs: int) -> dict[str, list[float]]:
    """Median processor time of each call in each round, the calls in turns."""
    for call in calls.values():
        call()
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(runs):
            for name, call in calls.items():
                times[name].append(processor_ms(call))
        for name in calls:
            medians[name].append(statistics.median(times[name]))
    return medians


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="sibling is always among them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    onnx, runs = exporter("onnx"), engines.engine("onnx")
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        for name in options.models:
            size = MODELS[name]["image_size"]
            image = (255 * np.random.default_rng(0).random((1, 3, *size))).astype(np.float32)
            tensor = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
            eager, exported, macs = {}, {}, {}
            for head in dict.fromkeys(["sibling", *options.heads]):
                detector = build(MODELS[name], head)
                macs[head] = complexity(detector).macs_m
                network = runs.load(onnx.export(detector, Path(temporary) / name / head, "fp32", []), 1)
                eager[head] = lambda detector=detector, tensor=tensor: detector(tensor)
                exported[head] = lambda network=network, image=image: network(image)
                if head == "disentangled":
                    with patch.object(disentangled, "_sample_by_gather", disentangled._sample_by_grid):
                        artifact = onnx.export(detector, Path(temporary) / name / "gridsample", "fp32", [])
                    network = runs.load(artifact, 1)
                    macs["gridsample"] = macs[head]
                    exported["gridsample"] = lambda network=network, image=image: network(image)
            for engine, calls in (("eager", eager), ("onnx", exported)):
                load = os.getloadavg()[0]
                medians = rounds_of(calls, options.rounds, options.runs)
                for head, found in medians.items():
                    ratios = [one / beside for one, beside in zip(found, medians["sibling"], strict=True)]
                    row = {
                        "model": name,
                        "runtime": engine,
                        "head": head,
                        "image_size": "x".join(map(str, size)),
                        "proposals": MODELS[name]["two_stage"]["proposals"],
                        "macs_m": f"{macs[head]:.0f}",
                        "cpu_ms": f"{statistics.median(found):.2f}",
                        **spread(ratios),
                        "rounds": options.rounds,
                        "runs": options.runs,
                        "load": f"{load:.1f}",
                        "processor": machine.facts()["processor"],
                        "torch": torch.__version__,
                        "onnxruntime": onnxruntime.__version__,
                    }
                    rows.append(CSV, row)
                    print(row, flush=True)


if __name__ == "__main__":
    main()
