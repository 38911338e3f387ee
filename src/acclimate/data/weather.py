"""Weather and camera effects from physics, on an image and its distances; for photos, with a plausible depth.

Radiance adds up in linear light, so every effect decodes the sRGB values first and encodes them again at the end.
`apply` combines effects as a named condition; none of them moves a pixel, so boxes stay valid.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.errors import AcclimateError
from acclimate.structures import Image

CONDITIONS = ("fog", "rain", "night", "camera")
"""Names that `apply` knows."""

CONTRAST_THRESHOLD = 0.05
"""Contrast left at the meteorological optical range (WMO-No. 8, part I, chapter 9)."""

FOG_VISIBILITY_M = 45.0
"""Meteorological optical range of fog at strength 1."""

Floats = NDArray[np.float32]

_DECODE = np.where(
    np.arange(256) / 255 <= 0.04045, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_LEVELS = np.linspace(0, 1, 65536)
_ENCODE = np.round(
    255 * np.where(_LEVELS <= 0.0031308, 12.92 * _LEVELS, 1.055 * np.maximum(_LEVELS, 1e-9) ** (1 / 2.4) - 0.055)
).astype(np.uint8)
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)


def to_linear(image: Image) -> Floats:
    """sRGB values (..., 3) uint8 to linear light (..., 3) in 0..1 (IEC 61966-2-1)."""
    return _DECODE[image]


def to_srgb(linear: Floats) -> Image:
    """Linear light (..., 3), clipped to 0..1, to sRGB values (..., 3) uint8 (IEC 61966-2-1)."""
    return _ENCODE[(np.clip(linear, 0, 1) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)]


def extinction(visibility_m: float) -> float:
    """Extinction coefficient per metre: ln(1 / 0.05) / MOR (Koschmieder 1924; WMO's 5 % contrast threshold)."""
    return math.log(1 / CONTRAST_THRESHOLD) / visibility_m


def fog(
    image: Image,
    depth: Floats,
    visibility_m: float | None = None,
    *,
    beta: float | None = None,
    air_light: Floats | None = None,
    variation: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Image:
    """Homogeneous or slightly patchy fog: I = J t + A (1 - t), t = exp(-beta d), in linear light.

    Koschmieder (1924); the same model as Foggy Cityscapes (Sakaridis et al., IJCV 2018), whose beta is 0.005,
    0.01 and 0.02 per metre and which mixes display values. Light adds up linearly, so this mixes linear light.

    Args:
        image: (H, W, 3) uint8.
        depth: (H, W) metres; inf (sky) becomes pure air light.
        visibility_m: meteorological optical range; the contrast of a black object falls to 5 % there.
        beta: extinction per metre, instead of `visibility_m`.
        air_light: (3,) linear light in 0..1; estimated from the sky where None.
        variation: relative deviation of the fog's density over the image; needs `rng`.
        rng: draws the density.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: both or neither of `visibility_m` and `beta` are given, or `variation` without `rng`.
    """
    if (visibility_m is None) == (beta is None):
        raise ValueError("give either visibility_m or beta")
    coefficient = beta if beta is not None else extinction(float(visibility_m or 0))
    linear = to_linear(image)
    light = estimate_air_light(linear, depth) if air_light is None else np.asarray(air_light, np.float32)
    thickness: Floats = np.minimum(depth, np.float32(1e6)) * np.float32(coefficient)
    if variation:
        if rng is None:
            raise ValueError("a varying density needs rng")
        height, width = image.shape[:2]
        patches = _smooth(rng, (height, width), 4)
        thickness *= np.clip(1 + np.float32(variation) * patches, np.float32(0.3), np.float32(2.0))
    transmission = np.exp(-thickness)[:, :, None]
    return to_srgb(light + (linear - light) * transmission)


def estimate_air_light(linear: Floats, depth: Floats) -> Floats:
    """(3,) the light of the horizon sky: the median of the sky's brighter half, with most of its colour removed.

    Fog scatters all wavelengths alike, so its light is nearly grey whatever the sky's blue. Where no pixel is
    farther than 300 m the brightest tenth of the image stands in for the sky. Between 0.35 and 0.9.
    """
    far = linear[depth > 300.0]
    pixels = far if len(far) >= 0.01 * depth.size else linear.reshape(-1, 3)
    grey = pixels @ _LUMA
    bright = pixels[grey >= np.quantile(grey, 0.5 if pixels is far else 0.9)]
    colour = np.median(bright, axis=0)
    level = float(np.clip(colour @ _LUMA, 0.35, 0.9))
    tint = np.float32(0.85 * level) + np.float32(0.15) * colour
    return np.asarray(tint * level / max(float(tint @ _LUMA), 1e-6), np.float32)


def rain(image: Image, depth: Floats, strength: float, rng: np.random.Generator) -> Image:
    """Rain: a grey, darker day, a veil, streaks in layers of distance, and a few drops on the lens.

    Streaks are motion-blurred drops that refract the sky: they brighten what is behind them, long and blurred
    near the camera, short and dense far away (Garg and Nayar, IJCV 2007), and only where nothing stands nearer.
    The veil is fog with a visibility of 260 m at strength 1.

    Args:
        image: (H, W, 3) sRGB.
        depth: (H, W), metres.
        strength: 1 is strong.
        rng: what is drawn from.
    """
    height, width = depth.shape
    linear = to_linear(image)
    light = estimate_air_light(linear, depth) * np.float32(0.62)
    grey = (linear @ _LUMA)[:, :, None]
    amount = np.float32(min(strength, 1.5))
    dull = grey + (linear - grey) * (1 - np.float32(0.3) * amount)
    linear = np.asarray(dull * (1 - np.float32(0.35) * amount), np.float32)
    sky = (np.minimum(depth, 1e6) > 300)[:, :, None]
    linear = np.where(sky, light + (linear - light) * np.float32(0.35), linear)
    below = np.clip((np.arange(height, dtype=np.float32) / height - 0.5) * 2, 0, 1)[:, None, None]
    gloss = cv2.GaussianBlur(linear[::-1], (0, 0), 2.5, sigmaY=height / 18)
    shine = np.float32(0.22) * amount * below * np.clip(1.3 - depth / 60, 0, 1)[:, :, None]
    linear = linear * (1 - np.float32(0.25) * amount * below) + gloss * shine
    thickness = np.minimum(depth, np.float32(1e6)) * np.float32(strength * extinction(260.0))
    linear = light + (linear - light) * np.exp(-thickness)[:, :, None]
    slant = rng.normal(0, 0.12)
    for distance, drops, length, thick in ((3.0, 26, 0.16, 2), (8.0, 110, 0.075, 1), (18.0, 380, 0.035, 1)):
        layer = np.zeros((height, width), np.float32)
        for _ in range(int(rng.poisson(drops * strength * width / 320 * 240 / max(height, 1)))):
            x, y = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height
            reach = length * height * rng.uniform(0.6, 1.4)
            lean = slant + rng.normal(0, 0.02)
            end = (round((x + reach * lean) * 16), round((y + reach) * 16))
            start = (round(x * 16), round(y * 16))
            cv2.line(layer, start, end, float(rng.uniform(0.4, 1)), thick, cv2.LINE_AA, 4)
        layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), 0.5 if thick == 1 else 0.9), np.float32)
        seen = layer * (depth > distance) * np.float32(0.3)
        linear = linear + (light * np.float32(1.25) - linear) * np.clip(seen, 0, 1)[:, :, None]
    if rng.random() < 0.7:
        linear = _lens_drops(linear, rng, int(rng.integers(2, 3 + round(5 * strength))))
    return to_srgb(np.asarray(linear, np.float32))


def _lens_drops(linear: Floats, rng: np.random.Generator, drops: int) -> Floats:
    """Out-of-focus drops: inside them the image is blurred and shifted upside down."""
    height, width = linear.shape[:2]
    blurred = cv2.GaussianBlur(linear, (0, 0), height / 40)
    mask = np.zeros((height, width), np.float32)
    for _ in range(drops):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        radius = rng.uniform(0.012, 0.04) * height
        cv2.ellipse(mask, centre, (round(radius), round(radius * rng.uniform(0.9, 1.4))), 0, 0, 360, 1.0, -1)
    soft = cv2.GaussianBlur(mask, (0, 0), height / 160)[:, :, None] * np.float32(0.85)
    return np.asarray(linear + (blurred * np.float32(1.08) - linear) * soft, np.float32)


def night(
    image: Image, depth: Floats, strength: float, rng: np.random.Generator, emission: Floats | None = None
) -> Image:
    """Night: dim blue ambient light, the camera's own headlights, lamps that glow, and a noisy sensor.

    The ambient light falls to 1/40 at strength 1 and the camera exposes longer to win back part of it; what is lit
    by the headlights falls with the distance squared. Lamps add their own radiance, a bloom of the lens, and light
    on what is near them in the image. Noise is shot noise (variance proportional to the signal) plus read noise, both
    before the gain (Foi et al., TIP 2008).

    Args:
        image: (H, W, 3) uint8, a daylight image.
        depth: (H, W) metres.
        strength: 1 is a dark night; 0.5 dusk.
        rng: draws the noise, the exposure and the headlights' aim.
        emission: (H, W, 3) linear radiance of lamps, as in a generated `Scene`; where None, small saturated
            white, yellow and red spots of the photo are taken for lamps.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = depth.shape
    linear = to_linear(image)
    if emission is None:
        emission = _likely_lamps(linear, depth)
    ambient = np.float32(40.0 ** -min(strength, 1.6) * rng.uniform(0.8, 1.25))
    blue = np.array([0.72, 0.9, 1.3], np.float32)
    grey = (linear @ _LUMA)[:, :, None]
    moon = (grey + (linear - grey) * np.float32(0.55)) * blue * ambient
    sky = (np.minimum(depth, 1e6) > 300)[:, :, None]
    glow = np.float32(0.35 * ambient) * np.linspace(0.3, 1.0, height, dtype=np.float32)[:, None, None]
    moon = np.where(sky, moon * np.float32(0.12) + glow * np.array([1.15, 0.95, 0.8], np.float32), moon)
    x = (np.arange(width, dtype=np.float32) / width - np.float32(0.5 + rng.normal(0, 0.03)))[None]
    y = (np.arange(height, dtype=np.float32) / height - np.float32(0.56))[:, None]
    cone = np.exp(-((x / 0.36) ** 2) - (y / np.where(y < 0, 0.16, 0.4).astype(np.float32)) ** 2)
    distance = np.maximum(np.minimum(depth, 1e4), 4.0)
    own = np.float32(0.5 * min(strength, 1.0)) * cone * (9.0 / distance) ** 2 / (1 + (9.0 / distance) ** 2)
    pools = _spread(emission, height / 9) * np.float32(0.55) + _spread(emission, height / 4) * np.float32(0.45)
    lit = linear * (
        own[:, :, None] * np.array([1.0, 0.95, 0.85], np.float32) + pools * np.float32(0.9 * min(strength, 1.0))
    )
    lit = np.where(sky, 0.0, lit)
    lamps = emission * np.float32(min(strength, 1.0))
    bloom = _spread(lamps, height / 130) * np.float32(0.35) + _spread(lamps, height / 36) * np.float32(0.14)
    bloom += _spread(lamps, height / 12) * np.float32(0.04)
    scene = (moon + lit + lamps * np.float32(0.35) + bloom) * np.float32(1 + 1.6 * min(strength, 1.6))
    electrons = np.float32(900.0 / (1 + 3 * min(strength, 1.6)))
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    sigma = np.sqrt(np.maximum(scene, 0) / electrons + np.float32((0.0035 * min(strength, 1.6)) ** 2))
    return to_srgb(np.asarray(scene + noise * sigma, np.float32))


def _spread(light: Floats, sigma: float) -> Floats:
    """A wide Gaussian blur, at a quarter of the resolution where the blur allows it."""
    height, width = light.shape[:2]
    if sigma < 8:
        return np.asarray(cv2.GaussianBlur(light, (0, 0), max(sigma, 0.3)), np.float32)
    small = cv2.resize(light, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / 4)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _likely_lamps(linear: Floats, depth: Floats) -> Floats:
    """Small spots of a photo that stand out white or red from what is around them, as lamps (H, W, 3)."""
    height = linear.shape[0]
    around = cv2.blur(linear, (height // 12 | 1, height // 12 | 1))
    excess = linear - around
    white = (linear.min(2) > 0.75) & (excess.min(2) > 0.35)
    red = (linear[:, :, 0] > 0.45) & (linear[:, :, 1:].max(2) < 0.18) & (excess[:, :, 0] > 0.2)
    near = np.minimum(depth, 1e6) < 300
    lamps = np.zeros_like(linear)
    lamps[white & near] = (5.0, 4.4, 3.6)
    lamps[red & near] = (2.0, 0.15, 0.1)
    return lamps


def sensor(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Another, cheaper camera, of an image (H, W, 3): colour balance, tone curve, read and shot noise, over-sharpening,
    JPEG blocks."""
    linear = to_linear(image)
    gains = 1 + np.float32(strength) * rng.normal(0, 1, 3).astype(np.float32) * np.array([0.07, 0.02, 0.09], np.float32)
    gains += np.float32(0.1 * strength) * np.array([-1, 0.1, 0.8], np.float32)
    linear = linear * np.maximum(gains, 0.3)
    noise = rng.standard_normal(linear.shape, dtype=np.float32)
    linear = linear + noise * np.sqrt(linear * np.float32(0.0012 * strength) + np.float32((0.006 * strength) ** 2))
    values = to_srgb(np.asarray(linear, np.float32)).astype(np.float32) / 255
    contrast = np.float32(1 + 0.35 * strength)
    values = np.clip(0.5 + (values - 0.5) * contrast, 0, 1)
    soft = cv2.GaussianBlur(values, (0, 0), 1.3)
    values = np.clip(values + np.float32(0.9 * strength) * (values - soft), 0, 1) * 255
    bgr = np.ascontiguousarray(np.round(values).astype(np.uint8)[:, :, ::-1])
    quality = int(np.clip(92 - 52 * strength, 15, 95))
    coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def plausible_depth(
    image: Image,
    horizon: float = 0.45,
    camera_height_m: float = 1.5,
    half_width_m: float = 9.0,
    fov_deg: float = 60.0,
) -> Floats:
    """A depth that an outdoor photo could have: a prior, not an estimate.

    A corridor: the ground plane's depth h f / (y - horizon), between two upright walls at `half_width_m` to the
    left and right, W f / |x - centre|, and an end at 60 m; inf where the pixel looks like sky (bright, smooth,
    joined to the top edge). The prior's inverse is smoothed along the image's structure with a guided filter (He
    et al., TPAMI 2013), so that distances change at edges of the image rather than along its rows.

    Args:
        image: (H, W, 3) uint8.
        horizon: as a fraction of the image's height from the top.
        camera_height_m: above the ground.
        half_width_m: of the corridor.
        fov_deg: horizontal field of view.

    Returns:
        (H, W) float32 metres, at least 1; inf in the sky.
    """
    height, width = image.shape[:2]
    focal = width / 2 / math.tan(math.radians(fov_deg) / 2)
    down = (np.arange(height, dtype=np.float32) + 0.5 - np.float32(horizon * height))[:, None]
    aside = np.abs(np.arange(width, dtype=np.float32) + 0.5 - np.float32(width / 2))[None]
    ground = down / np.float32(camera_height_m * focal)
    prior = np.maximum(np.maximum(ground, aside / np.float32(half_width_m * focal)), np.float32(1 / 60))
    grey = np.asarray(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255, np.float32)
    smooth = _guided(grey, np.asarray(prior, np.float32), max(2, height // 16), 2e-3)
    depth = 1 / np.clip(smooth, 1 / 200.0, 1.0)
    depth[_sky(image, grey, horizon)] = np.inf
    return np.asarray(depth, np.float32)


def _sky(image: Image, grey: Floats, horizon: float) -> NDArray[np.bool_]:
    height, width = grey.shape
    gradient = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (5, 5))
    bluish = image[:, :, 2].astype(np.float32) >= image[:, :, 0].astype(np.float32) - 12
    candidate = (grey > max(0.35, float(np.quantile(grey, 0.3)))) & (gradient < 0.025) & bluish
    candidate[int(height * min(horizon + 0.1, 1.0)) :] = False
    count, regions = cv2.connectedComponents(candidate.astype(np.uint8))
    top = np.unique(regions[: max(1, height // 50)])
    sky = np.isin(regions, top[top > 0])
    if count < 2 or sky.sum() < 0.01 * height * width:
        return np.zeros((height, width), np.bool_)
    closed = cv2.morphologyEx(sky.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return np.asarray(closed, np.bool_)


def _guided(guide: Floats, values: Floats, radius: int, epsilon: float) -> Floats:
    """Guided filter with box windows (He et al., TPAMI 2013, equations 5 to 8)."""

    def mean(a: Floats) -> Floats:
        return np.asarray(cv2.blur(a, (2 * radius + 1, 2 * radius + 1)), np.float32)

    m_guide, m_values = mean(guide), mean(values)
    slope = (mean(guide * values) - m_guide * m_values) / (mean(guide * guide) - m_guide**2 + np.float32(epsilon))
    offset = m_values - slope * m_guide
    return np.asarray(mean(slope) * guide + mean(offset), np.float32)


def _smooth(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Floats:
    grid = rng.standard_normal((cells, cells + 2), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def apply(
    image: Image,
    condition: str,
    strength: float,
    rng: np.random.Generator,
    depth: Floats | None = None,
    emission: Floats | None = None,
) -> Image:
    """The image under a named condition; no pixel moves, so boxes stay valid.

    "fog" has a visibility of `FOG_VISIBILITY_M` / strength, varied by a quarter either way, and slightly patchy;
    "camera" changes the sensor alone (generated scenes change the whole camera).

    Args:
        image: (H, W, 3) uint8.
        condition: one of `CONDITIONS`.
        strength: 1 is strong, 0 next to nothing.
        rng: all chance comes from here.
        depth: (H, W) metres; `plausible_depth` of the image where None.
        emission: (H, W, 3) lamps for "night".

    Returns:
        (H, W, 3) uint8.

    Raises:
        AcclimateError: the condition does not exist, or the strength is not positive.
    """
    if condition not in CONDITIONS:
        raise AcclimateError(f"condition {condition!r} does not exist; choose one of {', '.join(CONDITIONS)}")
    if not strength > 0:
        raise AcclimateError(f"strength {strength} of {condition} must be greater than 0")
    if condition == "camera":
        return sensor(image, strength, rng)
    distances = plausible_depth(image) if depth is None else depth
    if condition == "rain":
        return rain(image, distances, strength, rng)
    if condition == "night":
        return night(image, distances, strength, rng, emission)
    visibility = FOG_VISIBILITY_M / strength * rng.uniform(0.75, 1.25)
    foggy = fog(image, distances, visibility, variation=0.12, rng=rng).astype(np.float32)
    foggy += rng.standard_normal(foggy.shape, dtype=np.float32) * np.float32(1.5)
    return np.asarray(np.clip(np.round(foggy), 0, 255), np.uint8)
