"""Drift alarms of `watch`: how soon after clear turns to fog or day to night, and how often where nothing changes.

    python benchmarks/drift.py --pairs scenes-fog scenes-night carla-fog carla-glare thermal-night

A small detector is trained on the first domain and exported; its artifact's reference comes from the training images.
Each held-out image of both domains, and copies of it moved by up to 2 % of its side, with a gain of up to 5 % and
sensor noise of 2 grey levels, go through the artifact once. Streams are then drawn from these measured features: an
image stays for a number of frames drawn from a geometric distribution, each frame another copy. So a stream is real
pixels and real detections frame by frame, but its order is drawn, not filmed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import adaptation
import rows
from acclimate import machine, workflow
from acclimate.config import Config, DataConfig, ModelConfig, ScheduleConfig
from acclimate.data import formats
from acclimate.data.dataset import choose
from acclimate.edge import monitor
from acclimate.edge.artifact import Reference
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.scenes import sets
from acclimate.structures import Image

CSV = Path(__file__).with_suffix(".csv")
IMAGES = 150
"""Held-out images of a domain, evenly spread; all where there are fewer."""
COPIES = 5
DWELL = 10
"""Frames that an image stays, on average."""
SEQUENCES, BEFORE, AFTER = 20, 500, 500
LONG = 6000
"""Frames of the second domain where the last ones are also looked at as a group, which takes thousands."""
STATIONARY = 20_000
GROUPS = " and groups"
"""The default detector of single frames, beside it the mean of the last frames: what `watch` does."""
THRESHOLDS: dict[Any, tuple[float, ...]] = {
    "page-hinkley": (10, 20, 40, 60, 100, 150, 250),
    "adwin": (0.1, 2e-3, 1e-5, 1e-10, 1e-20),
    "kswin": (1e-4,),
    "page-hinkley" + GROUPS: (150,),
}

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Training images of the first domain, and held-out images of both."""

    train: DataConfig
    before: Sequence[Path]
    after: Sequence[Path]
    image_size: tuple[int, int]


def pair_of(name: str, folder: Path) -> Pair:
    family, _, change = name.partition("-")
    if family == "scenes":

        def made(count: int, seed: int, condition: str | None) -> DataConfig:
            out = folder / f"{condition or 'clear'}-{seed}"
            return DataConfig(path=sets.generate(out, count, (240, 320), seed, condition))

        clear, held_out, changed = made(300, 0, None), made(IMAGES, 1, None), made(IMAGES, 2, change)
        return Pair(clear, formats.read(held_out).paths, formats.read(changed).paths, (128, 160))
    first, size = ("clear", (128, 192)) if family == "carla" else ("day", (160, 192))

    def held(domain: str) -> Sequence[Path]:
        return choose(formats.read(adaptation.data(family, domain, "test")).paths, IMAGES, 0)

    return Pair(adaptation.data(family, first, "train"), held(first), held(change), size)


def artifact(pair: Pair, folder: Path, steps: int) -> Predictor:
    schedule = ScheduleConfig(steps=steps, batch_size=8, warmup=20, checkpoint_every=steps, log_every=50, workers=1)
    model = ModelConfig(size="nano", conv="depthwise", image_size=pair.image_size, weights="none")
    run = workflow.train(Config(source=pair.train, model=model, train=schedule), folder / "run")
    return Predictor.load(workflow.export(run.path, precision="fp32"))


def copies(image: Image, rng: np.random.Generator) -> list[Image]:
    """The image, and moved, brighter or darker, noisier ones."""
    height, width = image.shape[:2]
    found = [image]
    for _ in range(COPIES - 1):
        moves = rng.uniform(-0.02, 0.02, 2) * (width, height)
        matrix = np.array([[1, 0, moves[0]], [0, 1, moves[1]]], np.float32)
        moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        noisy = moved * rng.uniform(0.95, 1.05) + rng.normal(0, 2, image.shape)
        found.append(noisy.round().clip(0, 255).astype(np.uint8))
    return found


def measured(predictor: Predictor, paths: Sequence[Path], seed: int) -> Rows:
    """Features (images, copies, features)."""
    rng = np.random.default_rng(seed)
    shown = predictor.manifest.show_threshold
    return np.array(
        [
            [
                np.concatenate([monitor.look(copy), monitor.answer(predictor(copy), shown)])
                for copy in copies(read_image(path), rng)
            ]
            for path in paths
        ]
    )


def stream(features: Rows, frames: int, rng: np.random.Generator) -> Rows:
    """Features (frames, features) of images that stay for a while, in an order that is drawn."""
    stays = rng.geometric(1 / DWELL, frames)
    images = np.repeat(rng.integers(0, len(features), frames), stays)[:frames]
    return features[images, rng.integers(0, features.shape[1], frames)]


def alarms(reference: Reference, detector: Any, threshold: float, frames: Rows) -> list[int]:
    """The frames at which an alarm begins."""
    name = detector.removesuffix(GROUPS)
    if name == detector:
        reference = reference.model_copy(update={"independent": 0.0})
    watching = monitor.Monitor(reference, detector=monitor.change_detector(name, threshold))
    found = []
    for number, features in enumerate(frames):
        reading = watching.update(features)
        if reading.changed and reading.state == "alarm":
            found.append(number)
    return found


def scores(reference: Reference, features: Rows) -> NDArray[np.float64]:
    watching = monitor.Monitor(reference)
    return np.array([watching.update(row).score for row in features.reshape(-1, features.shape[-1])])


def measure(name: str, folder: Path, steps: int) -> None:
    """Append the rows of a pair that are not there yet."""
    there = {(row["detector"], row["threshold"]) for row in rows.read(CSV) if row["pair"] == name}
    wanted = [(d, t) for d, thresholds in THRESHOLDS.items() for t in thresholds if (d, f"{t:g}") not in there]
    if not wanted:
        return
    pair = pair_of(name, folder)
    # Pairs of a family share their first domain, and so the detector.
    predictor = artifact(pair, folder / name.partition("-")[0], steps)
    reference = predictor.manifest.reference
    assert reference is not None
    before, after = measured(predictor, pair.before, 1), measured(predictor, pair.after, 2)
    calm, changed = scores(reference, before), scores(reference, after)
    auc = roc_auc_score(np.repeat([0, 1], [len(calm), len(changed)]), np.concatenate([calm, changed]))
    rng = np.random.default_rng(3)
    still = stream(before, STATIONARY, rng)
    short, long = (
        [np.concatenate([stream(before, BEFORE, rng), stream(after, frames, rng)]) for _ in range(SEQUENCES)]
        for frames in (AFTER, LONG)
    )
    for detector, threshold in wanted:
        sequences = long if detector.endswith(GROUPS) else short
        began = time.process_time()
        false = len(alarms(reference, detector, threshold, still))
        found = [alarms(reference, detector, threshold, frames) for frames in sequences]
        spent = time.process_time() - began
        delays = [next((at - BEFORE for at in one if at >= BEFORE), None) for one in found]
        known = [delay for delay in delays if delay is not None]
        row = {
            "pair": name,
            "detector": detector,
            "threshold": f"{threshold:g}",
            "auc": f"{auc:.3f}",
            "score_before": f"{calm.mean():.2f}",
            "score_after": f"{changed.mean():.2f}",
            "detected": f"{len(known) / SEQUENCES:.2f}",
            "delay_median": f"{np.median(known):.0f}" if known else "",
            "delay_largest": max(known, default=""),
            "early": f"{sum(any(at < BEFORE for at in one) for one in found) / SEQUENCES:.2f}",
            "false_alarms": false,
            "stationary_frames": STATIONARY,
            "sequences": SEQUENCES,
            "dwell": DWELL,
            "images": f"{reference.images}/{len(pair.before)}/{len(pair.after)}",
            "image_size": "x".join(map(str, pair.image_size)),
            "steps": steps,
            "us_per_frame": f"{1e6 * spent / (STATIONARY + sum(map(len, sequences))):.0f}",
            "processor": machine.facts()["processor"],
        }
        rows.append(CSV, row)
        print({key: row[key] for key in list(row)[:11]}, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["scenes-fog", "scenes-night"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="where data and runs are kept; default: nowhere")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.pairs:
            measure(name, options.folder or Path(temporary), options.steps)


if __name__ == "__main__":
    main()
