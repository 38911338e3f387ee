"""Weather against the formulas it implements, worked out here by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.data import weather
from acclimate.errors import AcclimateError


def srgb_to_linear(value: float) -> float:
    """IEC 61966-2-1 for one value in 0..255."""
    v = value / 255
    return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4


def textured(seed: int = 0, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_linear_light_is_srgb_and_goes_back_without_loss():
    values = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)
    linear = weather.to_linear(values)
    assert linear[:, 0, 0] == pytest.approx([srgb_to_linear(v) for v in range(256)], abs=1e-6)
    np.testing.assert_array_equal(weather.to_srgb(linear), values)


def test_fog_at_distance_zero_leaves_the_image():
    image = textured()
    np.testing.assert_array_equal(weather.fog(image, np.zeros((60, 80), np.float32), 30.0), image)


def test_fog_at_infinity_is_air_light():
    light = np.array([0.5, 0.55, 0.6], np.float32)
    foggy = weather.fog(textured(), np.full((60, 80), np.inf, np.float32), 30.0, air_light=light)
    expected = weather.to_srgb(light[None])[0]
    assert (foggy == expected).all()


@given(beta=st.floats(0.005, 0.2), distance=st.floats(0, 60), grey=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_transmission_is_exp_minus_beta_d(beta: float, distance: float, grey: int):
    image = np.full((4, 4, 3), grey, np.uint8)
    light = 0.8
    foggy = weather.fog(
        image, np.full((4, 4), distance, np.float32), beta=beta, air_light=np.full(3, light, np.float32)
    )
    t = math.exp(-beta * distance)
    wanted = srgb_to_linear(grey) * t + light * (1 - t)
    value = float(foggy[0, 0, 0])
    assert srgb_to_linear(max(value - 0.51, 0)) <= wanted + 1e-4
    assert srgb_to_linear(min(value + 0.51, 255)) >= wanted - 1e-4


@pytest.mark.parametrize("visibility", [20.0, 100.0, 1000.0])
def test_a_black_object_keeps_five_percent_contrast_at_the_visibility(visibility: float):
    black = np.zeros((1, 1, 3), np.uint8)
    light = 0.9
    foggy = weather.fog(
        black, np.full((1, 1), visibility, np.float32), visibility, air_light=np.full(3, light, np.float32)
    )
    contrast = (light - srgb_to_linear(float(foggy[0, 0, 0]))) / light
    assert contrast == pytest.approx(0.05, abs=0.006)


def test_extinction_of_foggy_cityscapes():
    """Sakaridis et al. give beta 0.005, 0.01, 0.02 as visibilities of about 600, 300 and 150 m."""
    assert [round(v * weather.extinction(v), 3) for v in (600.0, 300.0, 150.0)] == [2.996] * 3
    assert [weather.extinction(v) for v in (600.0, 300.0, 150.0)] == pytest.approx([0.005, 0.01, 0.02], rel=0.01)


def test_fog_takes_exactly_one_measure():
    image, depth = textured(), np.ones((60, 80), np.float32)
    for arguments in ({}, {"visibility_m": 50.0, "beta": 0.01}):
        with pytest.raises(ValueError, match="either visibility_m or beta"):
            weather.fog(image, depth, **arguments)
    with pytest.raises(ValueError, match="rng"):
        weather.fog(image, depth, 50.0, variation=0.2)


def test_air_light_is_the_sky_not_the_brightest_object():
    linear = np.full((40, 40, 3), 0.1, np.float32)
    depth = np.full((40, 40), 10.0, np.float32)
    linear[:20], depth[:20] = (0.45, 0.5, 0.6), np.inf
    linear[30:] = 1.0
    light = weather.estimate_air_light(linear, depth)
    assert float(light @ np.array([0.2126, 0.7152, 0.0722])) == pytest.approx(0.497, abs=0.01)
    assert light.max() - light.min() < 0.05


@pytest.mark.parametrize("condition", weather.CONDITIONS)
def test_conditions_are_deterministic_and_keep_shape(condition: str):
    image = textured(3, (96, 128))
    before = image.copy()
    depth = np.linspace(200, 4, 96, dtype=np.float32)[:, None].repeat(128, 1)
    depth[:20] = np.inf
    results = [weather.apply(image, condition, 1.0, np.random.default_rng(seed), depth) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()
    assert results[0].dtype == np.uint8
    assert results[0].shape == image.shape
    np.testing.assert_array_equal(image, before)


@given(
    condition=st.sampled_from(weather.CONDITIONS),
    size=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    strength=st.floats(0.05, 3),
    level=st.sampled_from([0, 128, 255]),
)
@settings(max_examples=40, deadline=None)
def test_conditions_accept_any_photo(condition: str, size: tuple[int, int], strength: float, level: int):
    image = np.full((*size, 3), level, np.uint8)
    changed = weather.apply(image, condition, strength, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8


@pytest.mark.parametrize(("condition", "strength"), [("hail", 1.0), ("fog", 0.0), ("fog", float("nan"))])
def test_wrong_conditions_are_named(condition: str, strength: float):
    with pytest.raises(AcclimateError, match=condition):
        weather.apply(textured(), condition, strength, np.random.default_rng(0))


def test_fog_of_strength_one_hides_far_objects_and_keeps_near_ones():
    checks = np.kron(np.indices((12, 16)).sum(0) % 2, np.ones((10, 10))) * 160 + 40
    image = checks[:, :, None].repeat(3, 2).astype(np.uint8)
    spread = {}
    for distance in (6.0, 70.0):
        foggy = weather.apply(image, "fog", 1.0, np.random.default_rng(0), np.full((120, 160), distance, np.float32))
        spread[distance] = foggy.astype(float).std() / image.astype(float).std()
    assert spread[6.0] > 0.4
    assert spread[70.0] < 0.06


def test_rain_darkens_and_veils():
    image = textured(5, (96, 128)) // 2 + 60
    depth = np.full((96, 128), 60.0, np.float32)
    wet = weather.apply(image, "rain", 1.0, np.random.default_rng(0), depth).astype(float)
    assert wet.mean() < image.mean()
    assert wet.std() < image.astype(float).std()


def test_night_is_dark_and_lamps_glow_beyond_their_own_pixels():
    image = np.full((120, 160, 3), 120, np.uint8)
    depth = np.full((120, 160), 40.0, np.float32)
    depth[:30] = np.inf
    none = np.zeros((120, 160, 3), np.float32)
    lamp = none.copy()
    lamp[48:51, 78:81] = (14.0, 9.5, 5.0)
    dark = weather.night(image, depth, 1.0, np.random.default_rng(0), none).astype(float)
    lit = weather.night(image, depth, 1.0, np.random.default_rng(0), lamp).astype(float)
    assert dark.mean() < 0.4 * image.mean()
    assert dark[:25].mean() < dark[60:].mean()
    assert lit[49, 79].min() > 200
    ring = (slice(54, 58), slice(76, 84))
    assert lit[ring].mean() > dark[ring].mean() + 15
    assert lit[115, 5].mean() == pytest.approx(dark[115, 5].mean(), abs=12)


def test_plausible_depth_of_a_plain_image_is_the_ground_plane():
    image = np.full((240, 320, 3), 90, np.uint8)
    depth = weather.plausible_depth(image, horizon=0.5, camera_height_m=1.5, fov_deg=60.0)
    focal = 160 / math.tan(math.radians(30))
    rows = np.arange(170, 220)
    expected = 1.5 * focal / (rows + 0.5 - 120)
    np.testing.assert_allclose(depth[rows, 160], expected, rtol=0.05)
    assert depth.min() >= 1


def test_plausible_depth_finds_the_sky_and_keeps_dark_things_out_of_it():
    image = np.full((120, 160, 3), 80, np.uint8)
    image[:50] = (140, 180, 230)
    image[20:50, 60:90] = (60, 40, 30)
    depth = weather.plausible_depth(image)
    assert np.isinf(depth[5, :]).all()
    assert np.isfinite(depth[35, 65:85]).all()
    assert np.isfinite(depth[70:]).all()
