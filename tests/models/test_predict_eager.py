from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import coloured_squares as squares
from acclimate.edge.artifact import Running, Tiles
from acclimate.edge.predict import Predictor
from acclimate.models.predict import predict
from acclimate.structures import View
from brightness import BrightnessDetector


def test_tiles_are_those_of_the_device(tmp_path: Path) -> None:
    """Squares that are too small on the whole picture; what the device finds in tiles, at the same places."""
    run, _ = squares.exported(tmp_path, 1, "fp32")
    image, known = squares.scene(0)
    small = np.tile(image, (3, 2, 1))
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), small[..., ::-1])
    tiles = Tiles(size=squares.CANVAS, overlap=0.0)
    paths = [tmp_path / "a.png", tmp_path / "gone.png", tmp_path / "b.png"]
    problems: list[str] = []
    detector = squares.SquareDetector()
    first, gone, second = predict(detector, paths, batch_size=4, report=problems.append, tiles=tiles)
    predictor = Predictor.load(run.path / "artifacts" / "onnx-fp32", running=Running(tiles=tiles))
    device = predictor(tmp_path / "a.png")
    assert gone is None
    assert len(problems) == 1
    assert first is not None
    assert second is not None
    for found in (first, second):
        np.testing.assert_allclose(found.boxes, device.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, device.scores, atol=1e-4)
    (plain,) = predict(detector, paths[:1])
    assert plain is not None
    assert len(plain.above(0.5)) < len(first.above(0.5)) == 6 * len(known.boxes)
    (mirrored,) = predict(detector, paths[:1], view=View(flip=True), tiles=tiles)
    assert mirrored is not None
    assert len(mirrored.above(0.5)) == 6 * len(known.boxes)


def test_predict_keeps_order_pixels_and_modes(tmp_path: Path) -> None:
    paths = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.full((128, 192, 3), 40 * index + 10, np.uint8))
        paths.append(path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    paths.insert(2, tmp_path / "broken.png")
    detector = BrightnessDetector().train()
    detector.frozen.eval()
    problems: list[str] = []
    found = predict(detector, paths, batch_size=2, report=problems.append)
    assert detector.training
    assert detector.norm.training
    assert not detector.frozen.training
    assert [None if one is None else len(one) for one in found] == [1, 1, None, 1, 1, 1]
    scores = [float(one.scores[0]) for one in found if one is not None]
    expected = [1 / (1 + np.exp(-(40 * index + 10) / 50)) for index in range(5)]
    assert scores == pytest.approx(expected, rel=1e-6)
    side = 2 * 32 * np.log(2)  # twice as large as the canvas; softplus(0) = log 2
    assert found[0].boxes[0] == pytest.approx([0, 0, 32 + side, 32 + side], abs=1e-3)
    assert found[0].labels[0] == 1
    assert len(problems) == 1
    assert "broken.png" in problems[0]
    assert predict(detector, []) == []
