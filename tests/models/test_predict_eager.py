from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.models.predict import predict
from brightness import BrightnessDetector


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
