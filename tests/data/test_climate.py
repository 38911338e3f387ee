"""The weather of a target is told from how its images look."""

from __future__ import annotations

import numpy as np
import pytest

from acclimate.data import weather
from acclimate.data.climate import Climate, fitted
from acclimate.scenes.render import render
from acclimate.structures import Image

SIZE = (96, 128)


@pytest.fixture(scope="module")
def clear() -> list[Image]:
    return [render(seed, SIZE).image for seed in range(8)]


@pytest.mark.parametrize("condition", ["fog", "night"])
def test_the_condition_of_generated_scenes_is_told(condition: str, clear: list[Image]) -> None:
    scenes = [render(seed, SIZE) for seed in range(20, 28)]
    rng = np.random.default_rng(0)
    target = [weather.apply(scene.image, condition, 1.0, rng, scene.depth, scene.emission) for scene in scenes]
    climate = fitted(clear, target, np.random.default_rng(1))
    assert climate is not None
    assert climate.condition == condition
    assert climate.distance < 0.5


def test_the_same_place_in_the_same_weather_has_none(clear: list[Image]) -> None:
    assert fitted(clear, clear, np.random.default_rng(0)) is None
    assert fitted(clear[:4], clear[4:], np.random.default_rng(0)) is None


def test_images_differ_in_strength_and_keep_their_size(clear: list[Image]) -> None:
    climate = Climate("fog", 1.0, 0.1)
    rng = np.random.default_rng(0)
    first, second = (climate.over(clear[0], rng) for _ in range(2))
    assert first.shape == clear[0].shape
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, clear[0])
