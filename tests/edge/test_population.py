from __future__ import annotations

import numpy as np
import pytest

from acclimate.edge.population import BLOCK, BLOCKS, Population, independent

SIZE = 4
MEAN, SPREAD, INVERSE = np.zeros(SIZE), np.ones(SIZE), np.eye(SIZE)


def autoregression(count: int, correlation: float, seed: int) -> np.ndarray:
    """Rows of variance 1 of which each has this correlation with the one before."""
    rng = np.random.default_rng(seed)
    found = np.empty((count, SIZE))
    found[0] = rng.standard_normal(SIZE)
    for i in range(1, count):
        found[i] = correlation * found[i - 1] + np.sqrt(1 - correlation**2) * rng.standard_normal(SIZE)
    return found


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.95])
def test_independent_rows_are_those_of_the_autocorrelation_time(correlation: float) -> None:
    """Of an autoregression that time is (1 + r) / (1 - r), a closed formula."""
    found = [independent(autoregression(4000, correlation, seed), INVERSE) for seed in range(5)]
    assert np.mean(found) == pytest.approx(4000 * (1 - correlation) / (1 + correlation), rel=0.15)


def test_rows_that_are_all_the_same_count_as_one() -> None:
    assert independent(np.ones((50, SIZE)), INVERSE) == 1


def told(population: Population, rows: np.ndarray) -> list[bool]:
    return [population.update(row, MEAN, SPREAD, INVERSE) for row in rows]


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_chance_is_what_the_ratio_says(correlation: float) -> None:
    """In the domain the distance is as large as expected, whatever the frames' correlation."""
    ratios = []
    for seed in range(20):
        own = np.random.default_rng(1000 + seed).standard_normal(SIZE) / np.sqrt(128)
        population = Population(128, 1.0)
        told(population, autoregression(BLOCK * BLOCKS, correlation, seed) + own)
        assert population.ratio is not None
        ratios.append(population.ratio)
    assert np.mean(ratios) == pytest.approx(1, abs=0.35)


def test_the_distance_is_that_of_the_mean() -> None:
    population = Population(1e9, 1.0)
    moved = np.array([0.5, -0.5, 0.0, 0.0])
    assert told(population, np.random.default_rng(0).standard_normal((BLOCK * BLOCKS, SIZE)) + moved)[-1]
    np.testing.assert_allclose(population.moved, moved, atol=0.05)
    assert population.distance == pytest.approx((moved**2).sum() / SIZE, rel=0.2)


def test_a_scene_that_stands_still_says_nothing() -> None:
    """It is one sample of the domain, however many frames show it."""
    rng = np.random.default_rng(0)
    population = Population(128, 1.0)
    scenes = np.repeat(rng.standard_normal((4, SIZE)) * 1.5, BLOCK * BLOCKS, axis=0)
    assert not any(told(population, scenes + 0.01 * rng.standard_normal(scenes.shape)))
    assert population.ratio is None


def test_it_forgets() -> None:
    population = Population(1e9, 1.0)
    rows = np.random.default_rng(0).standard_normal((BLOCK * BLOCKS, SIZE))
    assert told(population, rows + 1)[-1]
    population.clear()
    assert not population.foreign
    assert population.distance is None
    assert not any(told(population, rows))
