"""What a run keeps of its source: the features' moments against numpy, and the term that uses them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from toy_training import SIDE, ToyDetector

from acclimate.adapt.matching import Matching
from acclimate.adapt.objective import Objective
from acclimate.adapt.source_free import LOOKED_AT, moments
from acclimate.adapt.source_statistics import Level
from acclimate.structures import Batch


def test_moments_are_those_of_all_places_of_all_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(11)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    detector = ToyDetector()
    (level,) = moments(detector, paths)
    pixels = np.stack([cv2.imread(str(path))[:, :, ::-1] for path in paths])
    detector.eval()
    with torch.no_grad():
        (features,) = detector.features(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float())
    places = features.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(8, -1)
    np.testing.assert_allclose(level.mean, places.mean(1), rtol=1e-5)
    np.testing.assert_allclose(level.variance, places.var(1), rtol=1e-4)
    assert len(paths) < LOOKED_AT


def distance(images: torch.Tensor, level: Level) -> tuple[float, ToyDetector]:
    detector = ToyDetector(norm=False)
    objective = Objective(detector, [Matching(2.0, [level])], ema=0.9, warm=False)
    loss = objective(None, Batch(images, images), 0.5)["matching/distance"]
    loss.backward()
    return float(loss.detach()), detector


def test_the_distance_is_the_closed_form_and_nothing_where_domains_agree() -> None:
    images = torch.rand(4, 3, SIDE, SIDE) * 255
    with torch.no_grad():
        (features,) = ToyDetector(norm=False).features(images)
    places = features.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(8, -1)
    mean, variance = places.mean(1), places.var(1)
    own, _ = distance(images, Level(mean=tuple(mean), variance=tuple(variance)))
    assert own == pytest.approx(0, abs=1e-3)
    shifted, detector = distance(images, Level(mean=tuple(mean + 0.3), variance=tuple(4 * variance + 0.01)))
    deviation = np.sqrt(4 * variance + 0.01)
    wanted = 2 * ((0.3 / deviation) ** 2 + (np.sqrt(variance) / deviation - 1) ** 2).mean()
    assert shifted == pytest.approx(wanted, rel=1e-3)
    assert detector.first.weight.grad is not None
    assert float(detector.first.weight.grad.abs().sum()) > 0


def test_a_channel_that_never_fires_sets_no_scale() -> None:
    images = torch.rand(2, 3, SIDE, SIDE) * 255
    loss, _ = distance(images, Level(mean=(0.0,) * 8, variance=(0.0,) * 8))
    assert np.isfinite(loss)
