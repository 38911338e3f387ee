"""The pipeline around the network: does `predict` keep up with it, and what does reduced decoding cost in AP?

    python benchmarks/pipeline.py

A small detector is trained on real images (`blood-cells/bccd`, JPEGs of 640 x 480 px) and exported in INT8 for ONNX
Runtime, on one thread. Its own rate is that of the network alone on a canvas that is ready. `predict` then goes through
folders of JPEGs of two sizes and through a video: one thing after the other and in stages, with pictures drawn and
without, decoded in full and at a reduced scale. Everything is in one process and in turn, round after round, each
compared with the network's rate of the same round. AP is of the test images, decoded in full and at a reduced scale, by
the same artifact; the interval of its difference is a paired bootstrap over the images. The training is a run below
runs/pipeline, taken up where it stopped: `--train` does it alone, the measurement wants a quiet machine. `--smoke` only
sees that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from rich.console import Console

import adaptation
import rows
from acclimate import machine, workflow
from acclimate.config import Config, DataConfig, ModelConfig, ScheduleConfig
from acclimate.data import formats
from acclimate.edge import pipeline
from acclimate.edge.artifact import Running
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor, predict_folder
from acclimate.evaluate import average_precision, relabel
from acclimate.structures import Detections
from timing import spread

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path(__file__).parents[1] / "runs" / "pipeline"
SIZES = {"640 x 480": (480, 640), "1920 x 1080": (1080, 1920)}
SERIAL, STAGES = "one after the other", "stages"
Images = Callable[[], int]


def network_rate(predictor: Predictor, runs: int) -> float:
    """Images a second of the network alone."""
    canvas = np.full((1, 3, *predictor.manifest.image_size), predictor.manifest.fill, np.float32)
    for _ in range(5):
        predictor.run(canvas)
    began = time.perf_counter()
    for _ in range(runs):
        predictor.run(canvas)
    return runs / (time.perf_counter() - began)


def go(predictor: Predictor, source: Path, folder: Path, pictures: bool, ahead: int) -> float:
    """Images a second of `predict` over a folder or video."""
    usual = pipeline.ahead
    pipeline.ahead = lambda threads: ahead  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            began = time.perf_counter()
            file = predict_folder(predictor, source, Path(out), pictures=pictures)
            seconds = time.perf_counter() - began
            text = file.read_text()
    finally:
        pipeline.ahead = usual
    return text.count('"detections"') / seconds


def rates(artifact: Path, paths: list[Path], folder: Path, rounds: int, images: int) -> None:
    """Append a row for each way through the pipeline."""
    full = Predictor.load(artifact)
    reduced = Predictor.load(artifact, running=Running(reduced=True))
    ways: dict[tuple[str, str, str, str], Callable[[], float]] = {}
    for name, (height, width) in SIZES.items():
        source = folder / name.replace(" ", "")
        source.mkdir()
        for number, path in enumerate(paths[:images]):
            large = cv2.resize(read_image(path), (width, height), interpolation=cv2.INTER_CUBIC)
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(large), quality=90)
            (source / f"{number:04}.jpg").write_bytes(data)
        for order, ahead in ((SERIAL, 0), (STAGES, pipeline.AHEAD)):
            for pictures in (True, False):
                for decoded, predictor in (("full", full), ("reduced", reduced)):
                    key = (f"JPEGs, {name}", order, "drawn" if pictures else "none", decoded)
                    ways[key] = partial(go, predictor, source, folder, pictures, ahead)
    video = folder / "video.avi"
    height, width = SIZES["640 x 480"]
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 25, (width, height))
    for path in paths[:images]:
        writer.write(cv2.resize(read_image(path), (width, height))[..., ::-1])
    writer.release()
    for order, ahead in ((SERIAL, 0), (STAGES, pipeline.AHEAD)):
        ways["video, 640 x 480", order, "none", "full"] = partial(go, full, video, folder, False, ahead)
    own: list[float] = []
    ratios: dict[tuple[str, str, str, str], list[float]] = {key: [] for key in ways}
    for number in range(rounds):
        order = list(ways.items())
        for key, way in order if number % 2 else reversed(order):
            before = network_rate(full, images)
            rate = way()
            alone = (before + network_rate(full, images)) / 2
            own.append(alone)
            ratios[key].append(rate / alone)
    for (source_name, order_name, pictures_name, decoded), found in ratios.items():
        rows.append(
            CSV,
            {
                "what": "rate", "source": source_name, "order": order_name, "pictures": pictures_name,
                "decoded": decoded, **spread(found),
                "network_images_per_s": f"{statistics.median(own):.1f}", "ap": "", "ap50": "", "interval": "",
                "images": images, "rounds": rounds, "cores": machine.usable_cores(), "machine": machine.processor(),
            },
        )  # fmt: skip


def accuracy(artifact: Path, data: DataConfig, resamples: int) -> None:
    """Append a row for each way to decode: AP of the test images, and the interval of the difference from full."""
    by_way: dict[str, list[Detections | None]] = {}
    truth = None
    for decoded in ("full", "reduced"):
        predictor = Predictor.load(artifact, running=Running(reduced=decoded == "reduced"))
        truth = formats.read(data, predictor.manifest.classes, reading=predictor.manifest.reading)
        found = [predictor(path) for path in truth.paths]
        by_way[decoded] = relabel(found, predictor.manifest.classes, truth.classes, "test")
    assert truth is not None
    results = {way: average_precision(found, truth, data="test", role="target") for way, found in by_way.items()}
    for way, result in results.items():
        interval = "" if way == "full" else differences(by_way["full"], by_way[way], truth, resamples)
        rows.append(
            CSV,
            {
                "what": "accuracy", "source": "blood-cells/bccd, test", "order": "", "pictures": "", "decoded": way,
                "ratio_median": "", "ratio_min": "", "ratio_max": "", "network_images_per_s": "",
                "ap": f"{result.ap:.4f}", "ap50": f"{result.ap50:.4f}", "interval": interval,
                "images": len(truth.paths), "rounds": "", "cores": machine.usable_cores(),
                "machine": machine.processor(),
            },
        )  # fmt: skip


def differences(full: list[Detections | None], reduced: list[Detections | None], truth: Any, resamples: int) -> str:
    """The 95 % interval of the AP50 that reduced decoding gains, over images drawn with replacement."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(truth.images), len(truth.images))
        again = replace(truth, images=[truth.images[index] for index in drawn])
        pair = [
            average_precision([found[index] for index in drawn], again, data="drawn", role="target").ap50
            for found in (full, reduced)
        ]
        gains.append(pair[1] - pair[0])
    low, high = np.percentile(gains, (2.5, 97.5))
    return f"{low:+.4f} to {high:+.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--train", action="store_true", help="train and export, and measure another time")
    parser.add_argument("--smoke", action="store_true", help="see that it runs; writes build/pipeline-smoke.csv")
    options = parser.parse_args()
    if options.smoke:
        global CSV
        CSV = CSV.parents[1] / "build" / "pipeline-smoke.csv"
        CSV.parent.mkdir(exist_ok=True)
        options.steps, options.rounds, options.images, options.resamples = 5, 1, 4, 2
    bccd = adaptation.DATA / "blood-cells" / "bccd"
    train, test = (DataConfig(path=bccd, split=split) for split in ("train", "val"))
    out = RUNS / ("smoke" if options.smoke else "trained")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = Config(
            source=train,
            model=ModelConfig(size="nano", conv="depthwise", image_size=(192, 256), weights="none"),
            train=ScheduleConfig(steps=options.steps, batch_size=8),
        )
        workflow.train(config, out, console=Console())
        images = bccd / "images" / "train"
        artifact = workflow.export(out, precision="int8", calibration=images, images=64)
        if options.train:
            return
        CSV.unlink(missing_ok=True)
        accuracy(artifact, test, options.resamples)
        rates(artifact, sorted(images.iterdir()), folder, options.rounds, options.images)
    print(CSV.read_text())


if __name__ == "__main__":
    main()
