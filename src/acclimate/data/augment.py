"""Random views of an image, on uint8: one warp for the geometry, look-up tables and one 3x3 matrix for the colours.

The weak view is the warped canvas; the strong view is `strong(weak)`, so both share one geometry and one set of boxes.
Every function draws from the generator that it is given and from nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.config import AugmentConfig
from acclimate.structures import Annotations, Image, Outline

FILL = 114
"""Grey of the canvas outside the image, as in `edge.images.letterbox`."""

MIN_VISIBLE = 0.2
"""A box of which less than this part of its area is left on the canvas is no longer a target."""

MIN_SIDE_PX = 1.5
"""Nor is a box with a shorter side on the canvas."""

_NOISE_SIGMA = 40.0
_SAMPLE_SIDE = 96
"""Statistics are taken from about this many pixels a side; more do not change a mean or a quantile visibly."""

_IDENTITY = np.arange(256, dtype=np.float32)
_SMOOTH = np.full(9, 1 / 9)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float64)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def geometry(
    image: Image,
    annotations: Annotations,
    image_size: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[Image, Annotations]:
    """Flip, scale and shift an image onto a canvas, in one warp.

    The scale is relative to the letterbox fit; with no jitter and no shift the result is the letterbox. A box that
    leaves the canvas is clipped; see `MIN_VISIBLE` and `MIN_SIDE_PX` for what is dropped.

    Args:
        image: (H, W, 3) RGB.
        annotations: its boxes.
        image_size: (height, width) of the canvas, pixels.
        config: chances and ranges.
        rng: what is drawn from.

    Returns:
        The canvas, (H, W, 3), and the boxes on it.
    """
    height, width = image.shape[:2]
    rows, columns = image_size
    fit = min(rows / height, columns / width)
    low, high = config.scale
    factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    scale = fit * factor
    flip_x, flip_y = rng.random(2) < (config.flip, config.vertical_flip)
    place = rng.random(2)
    shift = rng.uniform(-config.translate, config.translate, 2)
    # Shrunk, the content moves within the area that the letterbox would fill; enlarged, a random part of it shows.
    x = width * fit * (place[0] * (1.0 - factor) + shift[0])
    y = height * fit * (place[1] * (1.0 - factor) + shift[1])

    # Edges, not pixel centres: canvas = a * image + b.
    ax, bx = (-scale, x + scale * width) if flip_x else (scale, x)
    ay, by = (-scale, y + scale * height) if flip_y else (scale, y)

    # Bilinear sampling skips pixels below half size; a power of two is averaged away first.
    shrink = 2 ** max(0, math.floor(math.log2(1.0 / scale) + 1e-9)) if scale < 1.0 else 1
    if shrink > 1:
        image = np.asarray(
            cv2.resize(image, (max(1, width // shrink), max(1, height // shrink)), interpolation=cv2.INTER_AREA),
            np.uint8,
        )
    sx, sy = ax * width / image.shape[1], ay * height / image.shape[0]
    matrix = np.array([[sx, 0.0, bx + 0.5 * sx - 0.5], [0.0, sy, by + 0.5 * sy - 0.5]])
    canvas = cv2.warpAffine(
        image,
        matrix,
        (columns, rows),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL),
    )
    return np.asarray(canvas, np.uint8), on_canvas(annotations.moved((ax, ay), (bx, by)), image_size)


def on_canvas(annotations: Annotations, image_size: tuple[int, int]) -> Annotations:
    """Annotations clipped to a canvas of (height, width), without those of which too little is left.

    Outlines are clipped too; a box keeps the extent that its own clipping gives it.
    """
    if not len(annotations):
        return annotations
    boxes = annotations.boxes
    rows, columns = image_size
    clipped = np.empty_like(boxes)
    np.clip(boxes[:, 0::2], 0, columns, out=clipped[:, 0::2])
    np.clip(boxes[:, 1::2], 0, rows, out=clipped[:, 1::2])
    before = boxes[:, 2:] - boxes[:, :2]
    after = clipped[:, 2:] - clipped[:, :2]
    kept = (after.min(axis=1) >= MIN_SIDE_PX) & (after.prod(axis=1) >= MIN_VISIBLE * before.prod(axis=1))
    found = annotations.with_boxes(clipped)[kept]
    if found.visible is not None:
        limit = np.array([columns, rows] * 2, np.float32)
        found = replace(found, visible=np.clip(found.visible, 0, limit))
    if found.outlines is None:
        return found
    return replace(found, outlines=tuple(clipped_outline(one, image_size) for one in found.outlines))


def clipped_outline(outline: Outline, image_size: tuple[int, int]) -> Outline:
    """The part of an outline on a canvas of (height, width), one side after the other (Sutherland and Hodgman 1974).

    What is left of a polygon in several pieces stays one, its pieces joined along the border by edges of no area.
    """
    rows, columns = image_size
    kept = []
    for polygon in outline:
        for axis, limit, sign in ((0, 0, 1), (0, columns, -1), (1, 0, 1), (1, rows, -1)):
            distance = sign * (polygon[:, axis] - limit)
            if len(polygon) and distance.min() < 0:
                polygon = _half(polygon, distance, axis, limit)
        if len(polygon) >= 3:
            kept.append(polygon)
    return tuple(kept)


def _half(polygon: NDArray[np.float32], distance: NDArray[np.float32], axis: int, limit: float) -> NDArray[np.float32]:
    """The part of a polygon (M, 2) at a `distance` (M,) of at least 0 from a line across `axis` at `limit`."""
    after, beyond = np.roll(polygon, -1, axis=0), np.roll(distance, -1)
    crosses = (distance >= 0) != (beyond >= 0)
    part = np.divide(distance, distance - beyond, out=np.zeros_like(distance), where=crosses)
    crossing = polygon + part[:, None] * (after - polygon)
    crossing[:, axis] = limit
    # Each vertex inside, and after it the point where its edge crosses.
    return np.asarray(np.stack([polygon, crossing], 1)[np.stack([distance >= 0, crosses], 1)], np.float32)


def strong(canvas: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Another look of the same canvas (H, W, 3): colours, tone, blur, noise, cut-out rectangles. The input is not
    changed.

    Colour jitter, hue and grey are one matrix in YIQ; brightness, contrast, tone curve and inversion are one table.
    """
    chance = rng.random(7)
    image = canvas
    matrix = _colour_matrix(chance[0] < config.colour, chance[1] < config.grey, rng)
    if matrix is not None:
        image = np.asarray(cv2.transform(image, matrix), np.uint8)
    table = _tone_table(chance[0] < config.colour, chance[2] < config.tone, chance[3] < config.invert, rng)
    if table is not None:
        image = np.asarray(cv2.LUT(image, table), np.uint8)
    if chance[4] < config.blur:
        sigma = rng.uniform(0.3, 1.6) * max(1.0, max(canvas.shape[:2]) / 320)
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.uint8)
    if chance[5] < config.noise:
        image = _noisy(image, rng)
    if chance[6] < config.cutout:
        if image is canvas:
            image = canvas.copy()
        _cut_out(image, rng)
    return image if image is not canvas else canvas.copy()


def _colour_matrix(colour: bool, grey: bool, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """Saturation, hue rotation and white balance (3x3, RGB -> RGB); None where nothing changes."""
    if not colour and not grey:
        return None
    matrix = np.eye(3)
    if colour:
        saturation, angle = rng.uniform(0.4, 1.6), rng.uniform(-0.3, 0.3)
        cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
        matrix = _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
        matrix = np.exp(rng.uniform(-0.1, 0.1, (3, 1))) * matrix
    if grey:
        matrix = np.repeat(_LUMA[None].astype(np.float64), 3, axis=0) @ matrix
    return matrix


def _tone_table(colour: bool, tone: bool, invert: bool, rng: np.random.Generator) -> NDArray[np.uint8] | None:
    """A 256-entry table: contrast and brightness, a random monotone curve, inversion; None where nothing changes."""
    if not (colour or tone or invert):
        return None
    values: NDArray[Any] = _IDENTITY
    if colour:
        contrast, brightness = math.exp(rng.uniform(-0.45, 0.45)), rng.uniform(-40.0, 40.0)
        values = (values - 127.5) * contrast + 127.5 + brightness
    if tone:
        values = np.interp(values, np.linspace(0, 255, 7), _curve(rng))
    if invert:
        values = 255.0 - values
    return np.asarray(np.clip(values + 0.5, 0, 255), np.uint8)


def _curve(rng: np.random.Generator) -> NDArray[np.float64]:
    """Seven knots of a random monotone curve over 0..255: a gamma, bent by random positive increments."""
    gamma = math.exp(rng.uniform(-0.7, 0.7))
    steps = np.diff(np.linspace(0.0, 1.0, 7) ** gamma) * np.exp(rng.normal(0.0, 0.4, 6))
    knots = np.concatenate(([0.0], np.cumsum(steps)))
    low, high = rng.uniform(0.0, 50.0), rng.uniform(205.0, 255.0)
    return np.asarray(low + (high - low) * knots / knots[-1])


@lru_cache(maxsize=2)
def _noise_bank(channels: int, side: int) -> Image:
    """Gaussian noise around 128, drawn once; slices of it are cheap and no two views need the same slice."""
    rng = np.random.default_rng(0)
    noise = rng.normal(128.0, _NOISE_SIGMA, (side, side, channels)).clip(0, 255).astype(np.uint8)
    return np.repeat(noise, 3, axis=2) if channels == 1 else noise


def _noise(height: int, width: int, rng: np.random.Generator) -> Image:
    side = max(1024, 2 ** math.ceil(math.log2(2 * max(height, width))))
    bank = _noise_bank(3 if rng.random() < 0.5 else 1, side)
    top, left = rng.integers(bank.shape[0] - height), rng.integers(bank.shape[1] - width)
    return bank[top : top + height, left : left + width]


def _noisy(image: Image, rng: np.random.Generator) -> Image:
    weight = rng.uniform(2.0, 16.0) / _NOISE_SIGMA
    noise = _noise(image.shape[0], image.shape[1], rng)
    return np.asarray(cv2.addWeighted(image, 1.0, noise, weight, -128.0 * weight), np.uint8)


def _cut_out(image: Image, rng: np.random.Generator) -> None:
    """Random erasing (Zhong et al. 2020) of one to five rectangles, each 0.5 to 6 % of the canvas, in place."""
    rows, columns = image.shape[:2]
    for _ in range(rng.integers(1, 6)):
        area = rng.uniform(0.005, 0.06) * rows * columns
        aspect = math.exp(rng.uniform(-1.1, 1.1))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        part = image[top : top + height, left : left + width]
        part[...] = rng.integers(0, 256, 3, dtype=np.uint8) if rng.random() < 0.5 else _noise(height, width, rng)


def masked(canvas: Image, block: int, ratio: float, rng: np.random.Generator) -> Image:
    """The canvas with square blocks hidden at random, so that what they hold has to be told from what is around them.

    Hoyer et al. 2023, MIC, equations 3 and 4: each block of a grid stays with the chance 1 - `ratio`. What is hidden is
    grey, as it is outside the image. The input is not changed.

    Args:
        canvas: (H, W, 3).
        block: side of a block in pixels; those at the right and lower edge may be narrower.
        ratio: share of the blocks that are hidden, on average.
        rng: draws them.
    """
    rows, columns = canvas.shape[:2]
    hidden = rng.random((-(-rows // block), -(-columns // block))) < ratio
    seen = canvas.copy()
    seen[hidden.repeat(block, 0).repeat(block, 1)[:rows, :columns]] = FILL
    return seen


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Colours of one image in OpenCV's 8-bit Lab.

    Attributes:
        mean: (3,).
        deviation: (3,) standard deviations.
        shares: (3, 256) share of pixels below each value, plus half of those at it.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    shares: NDArray[np.float32]


def statistics(image: Image) -> Statistics:
    """The colour statistics of an image (H, W, 3), from an evenly spaced sample of its pixels."""
    step = max(1, min(image.shape[:2]) // _SAMPLE_SIDE)
    return _lab_statistics(cv2.cvtColor(np.ascontiguousarray(image[::step, ::step]), cv2.COLOR_RGB2LAB))


def _lab_statistics(sample: NDArray[Any]) -> Statistics:
    mean, deviation = cv2.meanStdDev(sample)
    counts = np.stack([np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)])
    shares = np.asarray((np.cumsum(counts, axis=1) - counts / 2) / counts[0].sum(), np.float32)
    return Statistics(np.asarray(mean.ravel(), np.float32), np.asarray(deviation.ravel(), np.float32), shares)


def restyle(
    image: Image,
    target: Statistics,
    rng: np.random.Generator,
    *,
    strength: float | None = None,
    method: Literal["moments", "histogram"] | None = None,
) -> Image:
    """`image` with the colours of a target image, blended with its own by a random strength in 0.5..1.

    Both methods work on each channel of Lab, where lightness and colour are about independent; OpenCV's Lab stands in
    for the paper's l-alpha-beta.

    Args:
        image: (H, W, 3) RGB.
        target: of the image whose look is taken on.
        rng: draws what is not given.
        strength: 0 keeps the image, 1 takes on the target's statistics in full.
        method: "moments" matches mean and standard deviation (Reinhard et al. 2001, eq. 10-11), "histogram" the whole
            distribution, by a curve that is smoothed so that it does not band.
    """
    drawn = rng.random(2)
    strength = 0.5 + 0.5 * float(drawn[0]) if strength is None else strength
    method = ("moments" if drawn[1] < 0.5 else "histogram") if method is None else method
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    step = max(1, min(image.shape[:2]) // _SAMPLE_SIDE)
    own = _lab_statistics(np.ascontiguousarray(lab[::step, ::step]))
    table = np.empty((256, 3), np.float32)
    if method == "histogram":
        for channel in range(3):
            # Values that the image does not have go where its darkest or brightest pixels go.
            shares = own.shares[channel].clip(1e-4, 1 - 1e-4)
            matched = np.interp(shares, target.shares[channel], _IDENTITY)
            padded = np.pad(matched, len(_SMOOTH) // 2, mode="edge")
            table[:, channel] = np.convolve(padded, _SMOOTH, mode="valid")
    else:
        # A flat image has no contrast to stretch; beyond a few times, its noise is all that would be seen.
        gain = np.minimum(target.deviation / np.maximum(own.deviation, 1.0), 4.0)
        table[:] = (_IDENTITY[:, None] - own.mean) * gain + target.mean
    table = strength * table + (1.0 - strength) * _IDENTITY[:, None]
    lab = cv2.LUT(lab, np.asarray(np.clip(table + 0.5, 0, 255), np.uint8)[None])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def fourier(image: Image, target: Image, beta: float) -> Image:
    """`image` with the amplitudes of a target image at the lowest frequencies, and its own phases (FDA).

    Yang and Soatto 2020, section 3.1: amplitudes say how light and colour are spread over a picture, phases where its
    edges are. The target is stretched to the image's size first, as there.

    Args:
        image: (H, W, 3) RGB.
        target: the image whose look is taken on, of any size.
        beta: frequencies up to `beta * H` and `beta * W` cycles an image are swapped; 0 keeps the image, 0.5 swaps all.
    """
    if beta == 0:
        return image
    height, width = image.shape[:2]
    # Only these few are computed: two thin matrix products each way instead of a whole transform.
    highest, across = (min(int(beta * side), (side - 1) // 2) for side in (height, width))
    down, along = _waves(height, 0, highest), _waves(width, -across, across)
    shrinks = target.shape[0] > height and target.shape[1] > width
    target = np.asarray(
        cv2.resize(target, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
    )
    own, other = (_lowest(picture, down, along) for picture in (image, target))
    change = (np.abs(other) - np.abs(own)) * np.exp(1j * np.angle(own)) / (height * width)
    # Those of negative frequency down the image are their mirror images, with the same share in the sum.
    change[1:] *= 2
    spread = np.einsum("uvc,vx->uxc", change, along.conj(), optimize=True).reshape(len(down), -1)
    moved = np.concatenate([down.real, down.imag]).T @ np.concatenate([spread.real, spread.imag])
    return np.asarray(cv2.add(image, np.asarray(moved.reshape(image.shape), np.float32), dtype=cv2.CV_8U), np.uint8)


@lru_cache(maxsize=64)
def _waves(side: int, lowest: int, highest: int) -> NDArray[np.complex64]:
    """exp(-2 pi i k n / side): a row for each k in lowest..highest, n = 0..side-1 along it."""
    turns = np.outer(np.arange(lowest, highest + 1), np.arange(side)) % side / side
    return np.asarray(np.exp(-2j * math.pi * turns), np.complex64)


def _lowest(image: Image, down: NDArray[np.complex64], along: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """(U, V, 3): the coefficients of the discrete Fourier transform at the frequencies of two sets of waves."""
    flat = image.reshape(len(image), -1).astype(np.float32)
    real, imaginary = np.split(np.concatenate([down.real, down.imag]) @ flat, 2)
    rows = (real + 1j * imaginary).reshape(len(down), *image.shape[1:])
    return np.asarray(np.einsum("uxc,vx->uvc", rows, along, optimize=True), np.complex64)
