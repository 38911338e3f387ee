"""What the tests of `watch` share: an artifact that knows its domain, images of it, and the lines that were written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

import coloured_squares as squares
from acclimate.edge import monitor
from acclimate.edge.predict import Predictor
from acclimate.export import base, exporter

SIZE = (96, 128)


def frame(number: int, foggy: bool = False) -> np.ndarray:
    """A scene of squares, dimmer or brighter from frame to frame; in fog it is grey and nothing is found in it."""
    rng = np.random.default_rng(1000 + number)
    image = squares.scene(number % 50, squares=int(rng.integers(2, 6)))[0].astype(np.float32)
    image = image * rng.uniform(0.85, 1.0) + rng.normal(0, 2, image.shape)
    return (image * 0.25 + 150 if foggy else image).clip(0, 255).astype(np.uint8)


def export(folder: Path, known: bool = True) -> Path:
    """An artifact, with a reference where it is `known`."""
    artifact = exporter("onnx").export(squares.SquareDetector(), folder, "fp32", [])
    if known:
        images = folder.parent / f"{folder.name}-domain"
        put_images(images, range(100, 164))
        base.annotate(artifact, reference=monitor.reference(Predictor(artifact), sorted(images.iterdir())))
    return artifact.folder


def put_images(folder: Path, numbers: Sequence[int], foggy: bool = False) -> None:
    """Write frames as a careful program does: under another name, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        temporary = folder / ".part.bmp"
        cv2.imwrite(str(temporary), frame(number, foggy)[..., ::-1])
        temporary.rename(folder / f"{number:06}.bmp")


def put_video(file: Path, frames: Sequence[np.ndarray], fps: float = 50) -> Path:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), fps, SIZE[::-1])
    for image in frames:
        writer.write(image[..., ::-1])
    writer.release()
    return file


def lines(out: Path, name: str = "detections") -> list[dict]:
    """All lines of a journal, oldest first."""
    files = [*sorted(out.glob(f"{name}.*.jsonl")), out / f"{name}.jsonl"]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def events(out: Path) -> list[str]:
    return [line["event"] for line in lines(out, "events")]
