"""Generated street scenes with exact boxes, depth and lamps: data sets for the demo, for tests and for experiments.

A scene is a small world in metres (road, pavement, buildings, trees, road users) seen through a pinhole camera. It
is drawn from far to near at twice the wanted resolution, together with a depth, an object number and a lamp code
for every sample, so boxes are the extents of what is visible and weather knows distances. numpy and OpenCV only.

World frame: x right, y up, z forward, the camera at (0, height, 0). Object frame: l forward, u up, w right.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from acclimate.data import weather
from acclimate.errors import AcclimateError
from acclimate.run import write_bytes, write_text, writing
from acclimate.structures import Annotations, Image

CLASSES = ("car", "truck", "person", "bicycle", "traffic sign")
"""Class names in label order."""

VERSION = 1
"""Of the generator: the same version, seed, size and camera give the same pixels."""

MIN_VISIBLE = 0.25
"""Objects of which less is visible are marked `ignore`."""

MIN_SIDE_PX = 8.0
"""Objects whose longer visible side is shorter are marked `ignore`."""

_SS = 2
_NEAR_M = 0.5
_FAR_M = 400.0
_SHIFT = 4
_CAR, _TRUCK, _PERSON, _BICYCLE, _SIGN = range(5)
_HEADLIGHT, _TAIL_LIGHT, _LAMP, _WINDOW = 1, 2, 3, 4
_RADIANCE = np.array(
    [(0, 0, 0), (14.0, 13.0, 11.0), (4.0, 0.25, 0.15), (14.0, 9.5, 5.0), (0.55, 0.38, 0.2)], np.float32
)
_JPEG_QUALITY = 92

Floats = NDArray[np.float32]
_Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera above the road, looking along it.

    Attributes:
        fov_deg: horizontal field of view.
        height_m: above the ground.
        pitch_deg: downwards.
        distortion: radial distortion k: a point at radius r from the centre (in half diagonals) shows what a
            pinhole would show at r (1 + k r^2) / (1 + k). Positive is pincushion, negative barrel; the corners stay.
    """

    fov_deg: float = 52.0
    height_m: float = 1.55
    pitch_deg: float = 3.0
    distortion: float = 0.0

    def focal_px(self, width: int) -> float:
        """Focal length in pixels of an image `width` pixels wide."""
        return width / 2 / math.tan(math.radians(self.fov_deg) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One rendered scene.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        depth: (H, W) float32, metres along the optical axis; the sky is inf.
        annotations: boxes are the extents of visible samples, labels index `CLASSES`.
        camera: the camera of this scene, after its per-scene variation.
        emission: (H, W, 3) float32, linear radiance of lamps and lit windows were it night, 1 = white at daylight.
        instances: (2H, 2W) uint8, 1 + index into `annotations` of the object seen, 0 elsewhere; at the resolution
            of the drawing, so that a box edge falls on half pixels.
        heights_m: (N,) float32, metric height of each annotated object.
        visible: (N,) float32, fraction of each object's samples that are neither covered nor outside the image.
    """

    image: Image
    depth: Floats
    annotations: Annotations
    camera: Camera
    emission: Floats
    instances: NDArray[np.uint8]
    heights_m: Floats
    visible: Floats


def render(seed: int, size: tuple[int, int] = (240, 320), camera: Camera = Camera()) -> Scene:
    """Render the scene `seed` at `size` (height, width); the same arguments give the same pixels."""
    return _World(np.random.default_rng(seed), size, camera).render()


def generate(
    out: Path,
    images: int,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    condition: str | None = None,
    strength: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in COCO's format: `out/images/*.jpg` and `out/annotations.json`.

    A finished set of the same settings is left alone, an interrupted one goes on where it stopped. Boxes marked
    `ignore` are written with `iscrowd` 1. `progress` is called with (images done, images in all).

    Args:
        out: the set's folder; created.
        images: how many.
        size: (height, width) in pixels.
        seed: sets of different seeds share no scene.
        condition: None for clear weather, or one of `weather.CONDITIONS`.
        strength: of the condition; 1 is strong.
        progress: told after every image.

    Returns:
        The path of annotations.json.

    Raises:
        AcclimateError: the folder holds something else or cannot be written, or the condition does not exist.
    """
    if condition is not None and condition not in weather.CONDITIONS:
        raise AcclimateError(f"condition {condition!r} does not exist; choose one of {', '.join(weather.CONDITIONS)}")
    info: dict[str, Any] = {
        "description": f"acclimate street scenes, {condition or 'clear'}",
        "generator": "acclimate.data.scenes",
        "version": VERSION,
        "seed": seed,
        "images": images,
        "size": list(size),
        "condition": condition,
        "strength": strength if condition else None,
    }
    index = out / "annotations.json"
    partial = out / "annotations.partial.jsonl"
    if index.exists():
        if _read_info(index) == info and _all_there(index):
            return index
        if _read_info(index) != info:
            raise AcclimateError(f"{out}: holds another data set; choose another folder, or delete it")
    records = _resume(out, partial, info)
    with writing(out):
        (out / "images").mkdir(parents=True, exist_ok=True)
        with open(partial, "a") as log:
            for number in range(len(records), images):
                records.append(_write_scene(out, number, size, seed, condition, strength))
                log.write(json.dumps(records[-1]) + "\n")
                log.flush()
                if progress is not None:
                    progress(number + 1, images)
    write_text(index, json.dumps(_coco(info, records, size)) + "\n")
    with writing(out):
        partial.unlink()
    return index


def changed_camera(camera: Camera, strength: float) -> Camera:
    """The camera of the condition "camera": from a windscreen up to a pole, with a wider, distorting lens."""
    return replace(
        camera,
        fov_deg=min(camera.fov_deg + 22.0 * strength, 110.0),
        height_m=camera.height_m + 3.2 * strength,
        pitch_deg=min(camera.pitch_deg + 11.0 * strength, 40.0),
        distortion=camera.distortion - min(0.12 * strength, 0.2),
    )


def _write_scene(
    out: Path, number: int, size: tuple[int, int], seed: int, condition: str | None, strength: float
) -> dict[str, Any]:
    """Render image `number`, write its JPEG, and return its line of the set's log."""
    state = np.random.SeedSequence([seed, number]).generate_state(2, np.uint64)
    camera = changed_camera(Camera(), strength) if condition == "camera" else Camera()
    scene = render(int(state[0]), size, camera)
    image = scene.image
    if condition is not None:
        rng = np.random.default_rng(int(state[1]))
        image = weather.apply(image, condition, strength, rng, scene.depth, scene.emission)
    name = f"{number:06d}.jpg"
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=_JPEG_QUALITY, colorspace="RGB")
    write_bytes(out / "images" / name, data)
    found = scene.annotations
    return {
        "file_name": name,
        "boxes": [[round(float(v), 2) for v in box] for box in found.boxes],
        "labels": [int(v) for v in found.labels],
        "ignore": [int(v) for v in found.ignore],
    }


def _coco(info: dict[str, Any], records: Sequence[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        for box, label, ignore in zip(record["boxes"], record["labels"], record["ignore"], strict=True):
            width, height = round(box[2] - box[0], 2), round(box[3] - box[1], 2)
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": number + 1,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], width, height],
                    "area": round(width * height, 2),
                    "iscrowd": ignore,
                }
            )
    return {
        "info": info,
        "images": [
            {"id": n + 1, "file_name": record["file_name"], "height": size[0], "width": size[1]}
            for n, record in enumerate(records)
        ],
        "annotations": entries,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)],
    }


def _read_info(index: Path) -> Any:
    try:
        return json.loads(index.read_text()).get("info")
    except (OSError, ValueError, AttributeError):
        return None


def _all_there(index: Path) -> bool:
    """Whether every image of the finished set is on disk."""
    present = {path.name for path in (index.parent / "images").glob("*.jpg")}
    return all(image["file_name"] in present for image in json.loads(index.read_text())["images"])


def _resume(out: Path, partial: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of images that are done; starts the log when there is none.

    Raises:
        AcclimateError: the folder holds something else, or cannot be written.
    """
    lines: list[dict[str, Any]] = []
    with writing(out):
        if partial.exists():
            for line in partial.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
            if lines and lines[0] != info:
                raise AcclimateError(
                    f"{out}: holds an unfinished data set of other settings; delete it or choose another"
                )
        elif out.exists() and any(out.iterdir()) and not (out / "annotations.json").exists():
            raise AcclimateError(f"{out}: is not empty and is no generated data set; choose another folder")
        records = []
        for record in lines[1:]:
            if not (out / "images" / record["file_name"]).is_file():
                break
            records.append(record)
    write_text(partial, "".join(json.dumps(line) + "\n" for line in [info, *records]))
    return records


class _View:
    """Pinhole projection. Camera frame: right, down, forward."""

    def __init__(self, camera: Camera, size: tuple[int, int], scale: int) -> None:
        self.focal = camera.focal_px(size[1]) * scale
        self.cx, self.cy = size[1] * scale / 2, size[0] * scale / 2
        self.height_m = camera.height_m
        pitch = math.radians(camera.pitch_deg)
        self.cos, self.sin = math.cos(pitch), math.sin(pitch)

    def to_camera(self, world: Floats) -> Floats:
        down, forward = self.height_m - world[:, 1], world[:, 2]
        return np.stack(
            (world[:, 0], down * self.cos - forward * self.sin, down * self.sin + forward * self.cos), axis=1
        ).astype(np.float32)

    def to_pixels(self, points: Floats) -> Floats:
        """(N, 3) in the camera frame, in front of it -> (N, 2) x, y; a pixel's centre is at + 0.5."""
        scale = self.focal / np.maximum(points[:, 2], 1e-3)
        return np.stack((self.cx + points[:, 0] * scale, self.cy + points[:, 1] * scale), axis=1).astype(np.float32)

    def ground(self, rows: int, columns: int, scale: float) -> tuple[Floats, Floats, Floats]:
        """For each row of an image `scale` times smaller: depth (rows,), forward z (rows,), and x (rows, columns).

        Rows that do not meet the ground within `_FAR_M` have depth inf.
        """
        slope = ((np.arange(rows) + 0.5) * scale - self.cy) / self.focal
        fall = slope * self.cos + self.sin
        with np.errstate(divide="ignore"):
            depth = np.where(fall > self.height_m / _FAR_M, self.height_m / np.maximum(fall, 1e-6), np.inf)
        finite = np.where(np.isfinite(depth), depth, 0.0)
        forward = finite * (self.cos - slope * self.sin)
        across = finite[:, None] * (((np.arange(columns) + 0.5) * scale - self.cx) / self.focal)[None]
        return depth.astype(np.float32), forward.astype(np.float32), across.astype(np.float32)


@dataclass(slots=True)
class _Part:
    """One primitive of a thing: points[start:stop] as a face, a tube (two points) or a ball (one point)."""

    start: int
    stop: int
    colour: _Colour
    radius: float = 0.0
    outward: tuple[float, float, float] | None = None
    owner: int = -1
    lamp: int = 0
    shaded: bool = True


class _Thing:
    """Something made of parts, standing on the ground at (x, z) and heading `heading` radians right of forward."""

    def __init__(self, x: float, z: float, heading: float, label: int = -1) -> None:
        self.x, self.z, self.heading, self.label = x, z, heading, label
        self.points: list[tuple[float, float, float]] = []
        self.parts: list[_Part] = []
        self.convex = False
        """Whether no part can cover another one's details, so that these may all be drawn last."""

    def face(
        self,
        points: Sequence[tuple[float, float, float]],
        colour: _Colour,
        outward: tuple[float, float, float] | None = None,
        owner: int = -1,
        lamp: int = 0,
        shaded: bool = True,
    ) -> int:
        """A flat polygon. With `outward` it shows from that side only; with `owner` it shows when that face does."""
        start = len(self.points)
        self.points.extend(points)
        self.parts.append(_Part(start, len(self.points), colour, 0.0, outward, owner, lamp, shaded))
        return len(self.parts) - 1

    def tube(
        self,
        a: tuple[float, float, float],
        b: tuple[float, float, float],
        radius: float,
        colour: _Colour,
        lamp: int = 0,
        owner: int = -1,
    ) -> None:
        start = len(self.points)
        self.points.extend((a, b))
        self.parts.append(_Part(start, start + 2, colour, radius, None, owner, lamp))

    def ball(self, centre: tuple[float, float, float], radius: float, colour: _Colour, lamp: int = 0) -> None:
        self.points.append(centre)
        self.parts.append(_Part(len(self.points) - 1, len(self.points), colour, radius, None, -1, lamp))

    def box(
        self,
        centre: tuple[float, float],
        length: float,
        width: float,
        low: float,
        high: float,
        colour: _Colour,
        top: _Colour | None = None,
    ) -> dict[str, int]:
        """An upright box; returns its faces by name (front, back, left, right, top)."""
        cl, cw = centre
        l0, l1, w0, w1 = cl - length / 2, cl + length / 2, cw - width / 2, cw + width / 2
        return {
            "front": self.face([(l1, low, w0), (l1, low, w1), (l1, high, w1), (l1, high, w0)], colour, (1, 0, 0)),
            "back": self.face([(l0, low, w0), (l0, low, w1), (l0, high, w1), (l0, high, w0)], colour, (-1, 0, 0)),
            "left": self.face([(l0, low, w0), (l1, low, w0), (l1, high, w0), (l0, high, w0)], colour, (0, 0, -1)),
            "right": self.face([(l0, low, w1), (l1, low, w1), (l1, high, w1), (l0, high, w1)], colour, (0, 0, 1)),
            "top": self.face(
                [(l0, high, w0), (l1, high, w0), (l1, high, w1), (l0, high, w1)], top or colour, (0, 1, 0)
            ),
        }

    def world(self) -> Floats:
        """(P, 3) all points in the world frame."""
        local = np.asarray(self.points, np.float32).reshape(-1, 3)
        return self.turn(local) + np.array([self.x, 0.0, self.z], np.float32)

    def turn(self, vectors: Floats) -> Floats:
        """Vectors (N, 3) from the object's frame (l, u, w) into the world's."""
        s, c = math.sin(self.heading), math.cos(self.heading)
        forward, up, right = vectors[:, 0], vectors[:, 1], vectors[:, 2]
        return np.stack((forward * s + right * c, up, forward * c - right * s), axis=1).astype(np.float32)


def _disc(centre: tuple[float, float, float], radius: float, points: int = 14) -> list[tuple[float, float, float]]:
    """A circle in the plane of l and u."""
    angles = [2 * math.pi * k / points for k in range(points)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a), centre[2]) for a in angles]


def _mix(a: _Colour, b: _Colour, amount: float) -> _Colour:
    return (a[0] + (b[0] - a[0]) * amount, a[1] + (b[1] - a[1]) * amount, a[2] + (b[2] - a[2]) * amount)


def _dim(a: _Colour, factor: float) -> _Colour:
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def _noise(rng: np.random.Generator, size: tuple[int, int], octaves: Sequence[int]) -> Floats:
    """(H, W) smooth noise of about unit deviation; `octaves` are the numbers of cells along the height."""
    total = np.zeros(size, np.float32)
    for k, cells in enumerate(octaves):
        shape = (cells + 1, max(2, round(cells * size[1] / size[0]) + 1))
        grid = rng.standard_normal(shape, dtype=np.float32)
        total += cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**k)
    return total / np.float32(max(float(total.std()), 1e-6))


def _palette(codes: str) -> tuple[_Colour, ...]:
    """Colours from hexadecimal codes, rrggbb, separated by blanks."""
    return tuple(
        (float(c >> 16), float(c >> 8 & 255), float(c & 255)) for c in (int(code, 16) for code in codes.split())
    )


_PAINT = _palette(
    "e1e1e4 f0f0ec 96999e 5f6268 282a2e 1c1c20 a51c1e 781422 1e3e82 3a68a5 22543e c4ac46 ce6e22 968064 608c96"
)
_CLOTHES = _palette("1e2028 3c3e46 283860 506ea0 96282c be3c3c 3c5a3c c8beaa e6e4e0 cda032 785082 6e5038 dc783c 469696")
_SKIN = _palette("ecc4a8 d6a482 b07a58 785038 54382a")
_WALLS = _palette("a86e58 8e5646 c4b498 d6cebe 969492 76787e bea078 b0babe 848c78 ccb2a8")
_GLASS: _Colour = (46, 58, 68)


def _profile(points: str) -> list[tuple[float, float]]:
    """Points "l,u" in percent of length and height, separated by blanks, as fractions."""
    return [(int(a) / 100, int(b) / 100) for a, b in (point.split(",") for point in points.split())]


# Side profiles as fractions of (length, height), from the front bumper over the roof to the rear bumper; the panes
# are (strip index of the windscreen, of the rear window or -1) and the outline of the side windows.
_BODIES: dict[str, tuple[list[tuple[float, float]], tuple[int, int], list[tuple[float, float]]]] = {
    "sedan": (
        _profile("49,20 50,42 46,55 20,64 5,96 -20,100 -36,68 -49,63 -50,42 -49,20"),
        (3, 5),
        _profile("16,67 4,91 -19,93 -31,69"),
    ),
    "hatchback": (
        _profile("49,20 50,44 45,57 24,65 8,96 -32,100 -47,66 -50,42 -49,20"),
        (3, 5),
        _profile("19,68 7,91 -30,93 -42,70"),
    ),
    "estate": (
        _profile("49,22 50,50 46,60 25,66 12,97 -42,100 -49,66 -50,44 -49,22"),
        (3, 5),
        _profile("20,69 10,92 -39,94 -45,70"),
    ),
    "van": (
        _profile("49,17 50,42 43,53 28,95 22,100 -47,100 -50,60 -50,17"),
        (2, 5),
        _profile("37,57 26,90 -40,90 -42,60"),
    ),
    "pickup": (
        _profile("49,25 50,50 47,60 24,66 12,97 -9,100 -15,64 -50,62 -49,25"),
        (3, 5),
        _profile("19,69 10,91 -7,93 -10,69"),
    ),
}


def _pick(rng: np.random.Generator, colours: Sequence[_Colour], spread: float = 10.0) -> _Colour:
    base = colours[int(rng.integers(len(colours)))]
    shift = rng.normal(0, spread, 3)
    r, g, b = (float(np.clip(base[k] + shift[k], 8, 250)) for k in range(3))
    return (r, g, b)


def _wheel(thing: _Thing, at: float, radius: float, side: float, owner: int, hub: _Colour) -> None:
    thing.face(_disc((at, radius, side), radius), (24, 24, 26), owner=owner)
    thing.face(_disc((at, radius, side), radius * 0.62, 10), hub, owner=owner)
    thing.face(_disc((at, radius, side), radius * 0.2, 6), _dim(hub, 0.5), owner=owner)


def _prism(
    thing: _Thing, profile: Sequence[tuple[float, float]], half: Callable[[float], float], colour: _Colour
) -> tuple[list[int], int, int]:
    """Extrude a side profile (l, u) to the half width `half(u)`: (strips between neighbours, left side, right side)."""
    cl = sum(p[0] for p in profile) / len(profile)
    cu = sum(p[1] for p in profile) / len(profile)
    left = thing.face([(a, u, -half(u)) for a, u in profile], colour, (0, 0, -1))
    right = thing.face([(a, u, half(u)) for a, u in profile], colour, (0, 0, 1))
    strips = []
    for (a0, u0), (a1, u1) in itertools.pairwise(profile):
        quad = [(a0, u0, -half(u0)), (a0, u0, half(u0)), (a1, u1, half(u1)), (a1, u1, -half(u1))]
        strips.append(thing.face(quad, colour, ((a0 + a1) / 2 - cl, (u0 + u1) / 2 - cu, 0)))
    return strips, left, right


def _inset(quad: Sequence[tuple[float, float, float]], amount: float) -> list[tuple[float, float, float]]:
    n = len(quad)
    c = [sum(p[k] for p in quad) / n for k in range(3)]
    return [(p[0] + (c[0] - p[0]) * amount, p[1] + (c[1] - p[1]) * amount, p[2] + (c[2] - p[2]) * amount) for p in quad]


def _car(rng: np.random.Generator, x: float, z: float, heading: float) -> _Thing:
    thing = _Thing(x, z, heading, _CAR)
    thing.convex = True
    kind = ("sedan", "hatchback", "estate", "van", "pickup")[int(rng.choice(5, p=(0.3, 0.26, 0.24, 0.11, 0.09)))]
    outline, panes, windows = _BODIES[kind]
    length = rng.uniform(*{"sedan": (4.3, 4.9), "hatchback": (3.6, 4.2), "pickup": (4.9, 5.3)}.get(kind, (4.2, 4.8)))
    height = rng.uniform(*{"van": (1.8, 2.05), "estate": (1.5, 1.75), "pickup": (1.7, 1.85)}.get(kind, (1.4, 1.54)))
    hw = rng.uniform(0.84, 0.95)
    paint = _pick(rng, _PAINT)
    belt = height * 0.62

    def half(u: float) -> float:
        return hw if u <= belt else hw * (1 - 0.2 * (u - belt) / (height - belt))

    profile = [(a * length, u * height) for a, u in outline]
    for at in (0.3, -0.3):
        for side in (-1, 1):
            w0, w1 = side * hw * 0.96, side * hw * 0.68
            for end in (1, -1):
                edge = at * length + end * 0.2
                tyre = [(edge, 0.0, w0), (edge, 0.0, w1), (edge, 0.5, w1), (edge, 0.5, w0)]
                thing.face(tyre, (22, 22, 24), (end, 0, 0))
    under = profile[0][1]
    for end in (1, -1):
        edge = end * 0.42 * length
        floor = [(edge, under * 0.55, -hw * 0.8), (edge, under * 0.55, hw * 0.8), (edge, under, hw * 0.8)]
        thing.face([*floor, (edge, under, -hw * 0.8)], (26, 26, 28), (end, 0, 0))
    strips, left, right = _prism(thing, profile, half, paint)
    radius = rng.uniform(0.3, 0.36)
    hub = _pick(rng, ((170, 172, 176), (120, 122, 126), (60, 60, 64)))
    sky = rng.uniform(0.0, 0.35)
    glass = _mix(_GLASS, (150, 175, 200), sky)
    for side, owner in ((-1, left), (1, right)):
        pane = [(a * length, u * height) for a, u in windows]
        thing.face([(a, u, side * half(u)) for a, u in pane], glass, owner=owner)
        pillar = 0.45 * pane[1][0] + 0.55 * pane[2][0]
        top = 0.93 * height
        thing.tube((pillar, belt, side * half(belt)), (pillar, top, side * half(top)), 0.04, paint, owner=owner)
        low = [(0.47 * length, under), (0.47 * length, under * 1.45), (-0.47 * length, under * 1.45)]
        sill = [(a, u, side * hw) for a, u in [*low, (-0.47 * length, under)]]
        thing.face(sill, _dim(paint, 0.55), owner=owner)
        for at in (0.3, -0.3):
            _wheel(thing, at * length, radius, side * (hw + 0.01), owner, hub)
            if at > 0:
                seam = 0.14 * length
                bottom, head = (seam, under * 1.4, side * hw), (seam, belt, side * hw)
                thing.tube(bottom, head, 0.012, _dim(paint, 0.6), owner=owner)
    for k in panes:
        a0, u0 = profile[k]
        a1, u1 = profile[k + 1]
        quad = [(a0, u0, -half(u0)), (a0, u0, half(u0)), (a1, u1, half(u1)), (a1, u1, -half(u1))]
        thing.face(_inset(quad, 0.13), glass, owner=strips[k])
    nose = strips[0]
    e = 0.5 * length + 0.02
    u0, u1 = height * 0.4, height * 0.5
    lamp = (240, 240, 230)
    for side in (-1, 1):
        quad = [(e, u0, side * hw * 0.98), (e, u0, side * hw * 0.58), (e, u1, side * hw * 0.62), (e, u1, side * hw)]
        thing.face(quad, lamp, owner=nose, lamp=_HEADLIGHT, shaded=False)
    grille = [(e, u0 * 0.72, -hw * 0.5), (e, u0 * 0.72, hw * 0.5), (e, u1, hw * 0.45), (e, u1, -hw * 0.45)]
    thing.face(grille, (30, 30, 32), owner=nose)
    tail = strips[-1] if kind == "van" else strips[-2]
    t0, t1 = height * 0.42, height * (0.58 if kind != "van" else 0.55)
    for side in (-1, 1):
        wide = rng.uniform(0.62, 0.78)
        quad = [(-e, t0, side * hw), (-e, t0, side * hw * wide), (-e, t1, side * hw * wide), (-e, t1, side * hw)]
        thing.face(quad, (190, 24, 24), owner=tail, lamp=_TAIL_LIGHT, shaded=False)
    for edge, owner in ((e, nose), (-e, tail)):
        plate = [(edge, height * 0.26, -0.26), (edge, height * 0.26, 0.26), (edge, height * 0.34, 0.26)]
        thing.face([*plate, (edge, height * 0.34, -0.26)], (230, 228, 200), owner=owner)
    return thing


def _truck(rng: np.random.Generator, x: float, z: float, heading: float) -> _Thing:
    thing = _Thing(x, z, heading, _TRUCK)
    hw = rng.uniform(1.1, 1.25)
    cab_length, cab_height = rng.uniform(1.7, 2.2), rng.uniform(2.3, 2.9)
    load_length = rng.uniform(3.6, 7.0)
    length = cab_length + load_length + 0.15
    front, back = length / 2, -length / 2
    cab = _pick(rng, _PAINT)
    deck = rng.uniform(0.85, 1.05)
    thing.box((-0.05, 0), length - 0.3, hw * 1.2, 0.45, deck, (36, 36, 38))
    style = int(rng.integers(3))
    load_mid = back + load_length / 2
    top = rng.uniform(max(2.6, cab_height - 0.1), 3.6)
    if style < 2:
        colour = _pick(
            rng, ((232, 232, 230), (214, 214, 210), (60, 90, 150), (170, 40, 40), (220, 190, 80), (90, 130, 90))
        )
        faces = thing.box((load_mid, 0), load_length, 2 * hw, deck, top, colour)
        band = _pick(rng, _CLOTHES, 20)
        b0, b1 = sorted(rng.uniform(deck + 0.2, top - 0.2, 2))
        l0, l1 = back + 0.06 * load_length, back + 0.94 * load_length
        if rng.random() < 0.4:
            l1 = l0 + (l1 - l0) * rng.uniform(0.3, 0.7)
        for side, name in ((-1, "left"), (1, "right")):
            quad = [(l0, b0, side * hw), (l1, b0, side * hw), (l1, b1, side * hw), (l0, b1, side * hw)]
            thing.face(quad, band, owner=faces[name])
        rear = faces["back"]
        thing.tube((back, deck, 0), (back, top, 0), 0.03, _dim(colour, 0.5), owner=rear)
        for side in (-1, 1):
            thing.tube((back, deck, side * hw * 0.9), (back, top, side * hw * 0.9), 0.03, _dim(colour, 0.6), owner=rear)
    else:
        colour = _pick(rng, ((170, 120, 40), (110, 112, 116), (60, 100, 60), (150, 60, 40)))
        wall = deck + rng.uniform(0.5, 1.0)
        faces = thing.box((load_mid, 0), load_length, 2 * hw, deck, wall, colour)
        ribs = np.linspace(back + 0.2, back + load_length - 0.2, 6)
        for side, name in ((-1, "left"), (1, "right")):
            for rib in ribs:
                thing.tube((rib, deck, side * hw), (rib, wall, side * hw), 0.05, _dim(colour, 0.7), owner=faces[name])
        for _ in range(5):
            at = rng.uniform(back + 0.8, back + load_length - 0.8)
            thing.ball(
                (at, wall - 0.1, rng.uniform(-0.4, 0.4) * hw), rng.uniform(0.4, 0.8), _pick(rng, ((120, 96, 70),))
            )
        rear = faces["back"]
    c0 = front - cab_length
    profile = [
        (front, 0.45),
        (front, 1.25),
        (front - 0.12, cab_height * 0.93),
        (front - 0.35, cab_height),
        (c0, cab_height),
        (c0, 0.6),
    ]
    strips, left, right = _prism(thing, profile, lambda u: hw * 0.97, cab)
    glass = _mix(_GLASS, (150, 175, 200), rng.uniform(0, 0.3))
    (a0, u0), (a1, u1) = profile[1], profile[2]
    screen = [(a0, u0 + 0.1, -hw * 0.88), (a0, u0 + 0.1, hw * 0.88), (a1, u1, hw * 0.85), (a1, u1, -hw * 0.85)]
    thing.face(screen, glass, owner=strips[1])
    for side in (-1, 1):
        lamp = [(front + 0.02, 0.6, side * hw * 0.92), (front + 0.02, 0.6, side * hw * 0.65)]
        lamp += [(front + 0.02, 0.85, side * hw * 0.65), (front + 0.02, 0.85, side * hw * 0.92)]
        thing.face(lamp, (240, 240, 230), owner=strips[0], lamp=_HEADLIGHT, shaded=False)
        red = [(back - 0.03, 0.75, side * hw * 0.95), (back - 0.03, 0.75, side * hw * 0.7)]
        red += [(back - 0.03, 0.98, side * hw * 0.7), (back - 0.03, 0.98, side * hw * 0.95)]
        thing.face(red, (190, 24, 24), owner=rear, lamp=_TAIL_LIGHT, shaded=False)
    grille = [(front + 0.02, 0.95, -hw * 0.6), (front + 0.02, 0.95, hw * 0.6), (front + 0.02, 1.2, hw * 0.6)]
    thing.face([*grille, (front + 0.02, 1.2, -hw * 0.6)], (32, 32, 34), owner=strips[0])
    radius = rng.uniform(0.45, 0.52)
    axles = [front - cab_length * 0.55, back + 1.0] + ([back + 2.1] if load_length > 5 else [])
    for side, owner in ((-1, left), (1, right)):
        pane = [(front - 0.25, 1.4), (front - 0.3, cab_height * 0.88), (c0 + 0.35, cab_height * 0.88), (c0 + 0.35, 1.4)]
        thing.face([(a, u, side * hw * 0.97) for a, u in pane], glass, owner=owner)
        thing.tube((front - 0.05, 1.5, side * (hw + 0.18)), (front - 0.05, 2.0, side * (hw + 0.18)), 0.09, (30, 30, 32))
        for axle in axles:
            _wheel(thing, axle, radius, side * (hw + 0.01), owner, (110, 110, 114))
    for axle in axles:
        for side in (-1, 1):
            w0, w1 = side * hw, side * hw * 0.72
            for end in (1, -1):
                edge = axle + end * 0.3
                tyre = [(edge, 0.0, w0), (edge, 0.0, w1), (edge, 0.8, w1), (edge, 0.8, w0)]
                thing.face(tyre, (22, 22, 24), (end, 0, 0))
    return thing


def _limbs(
    thing: _Thing,
    rng: np.random.Generator,
    h: float,
    joints: dict[str, tuple[float, float, float]],
    trousers: _Colour,
    shirt: _Colour,
) -> None:
    """Draw a body of height `h` through its joints; the names end in 0 (left) and 1 (right)."""
    skin = _pick(rng, _SKIN, 6)
    shoes = _pick(rng, ((30, 28, 28), (220, 220, 220), (110, 70, 50), (160, 40, 40)))
    stout = rng.uniform(0.85, 1.25)
    for k in ("0", "1"):
        thing.tube(joints["hip" + k], joints["knee" + k], 0.046 * h * stout, trousers)
        thing.tube(joints["knee" + k], joints["foot" + k], 0.034 * h * stout, _dim(trousers, 0.94))
        foot = joints["foot" + k]
        thing.tube(foot, (foot[0] + 0.07 * h, foot[1] - 0.012 * h, foot[2]), 0.026 * h, shoes)
        thing.tube(joints["shoulder" + k], joints["elbow" + k], 0.032 * h * stout, _dim(shirt, 0.9))
        thing.tube(joints["elbow" + k], joints["hand" + k], 0.026 * h * stout, _dim(shirt, 0.9))
        thing.ball(joints["hand" + k], 0.026 * h, skin)
        thing.tube(joints["shoulder" + k], joints["hip" + k], 0.062 * h * stout, shirt)
    middle = [
        tuple((joints[name + "0"][k] + joints[name + "1"][k]) / 2 for k in range(3)) for name in ("shoulder", "hip")
    ]
    chest, waist = cast(list[tuple[float, float, float]], middle)
    thing.tube(chest, waist, 0.075 * h * stout, shirt)
    head = joints["head"]
    thing.tube(chest, head, 0.034 * h, _dim(skin, 0.85))
    thing.ball(head, 0.066 * h, skin)
    if rng.random() < 0.85:
        hair = _pick(rng, ((30, 24, 20), (70, 46, 30), (150, 116, 70), (130, 130, 130), (170, 40, 40), (40, 60, 110)))
        thing.ball((head[0] - 0.018 * h, head[1] + 0.026 * h, head[2]), 0.058 * h, hair)


def _person(rng: np.random.Generator, x: float, z: float, heading: float) -> _Thing:
    thing = _Thing(x, z, heading, _PERSON)
    h = rng.uniform(1.55, 1.9) if rng.random() < 0.88 else rng.uniform(1.05, 1.4)
    stride = rng.uniform(0.15, 0.6) if rng.random() < 0.7 else rng.uniform(0.0, 0.08)
    phase = rng.uniform(0, 2 * math.pi)
    lean = rng.uniform(-0.02, 0.06) * h
    joints: dict[str, tuple[float, float, float]] = {"head": (lean * 1.2, 0.925 * h, 0.0)}
    for k, side, swing in (("0", -1, math.sin(phase)), ("1", 1, -math.sin(phase))):
        a = stride * swing
        bend = stride * max(0.0, -math.cos(phase) * side) * 0.9 + 0.05
        hip = (0.0, 0.51 * h, side * 0.052 * h)
        knee = (hip[0] + 0.24 * h * math.sin(a), hip[1] - 0.24 * h * math.cos(a), hip[2])
        foot = (knee[0] + 0.24 * h * math.sin(a - bend), knee[1] - 0.24 * h * math.cos(a - bend), hip[2])
        shoulder = (lean, 0.81 * h, side * 0.115 * h)
        raised = rng.uniform(1.2, 2.6) if rng.random() < 0.06 else -a * 0.9
        elbow = (
            shoulder[0] + 0.17 * h * math.sin(raised),
            shoulder[1] - 0.17 * h * math.cos(raised),
            side * rng.uniform(0.125, 0.16) * h,
        )
        flex = raised + rng.uniform(0.1, 0.9)
        hand = (elbow[0] + 0.15 * h * math.sin(flex), elbow[1] - 0.15 * h * math.cos(flex), elbow[2])
        joints |= {"hip" + k: hip, "knee" + k: knee, "foot" + k: foot}
        joints |= {"shoulder" + k: shoulder, "elbow" + k: elbow, "hand" + k: hand}
    shirt, trousers = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES[:8])
    _limbs(thing, rng, h, joints, trousers, shirt)
    extra = rng.random()
    if extra < 0.2:
        thing.tube((-0.1 * h, 0.76 * h, 0), (-0.1 * h, 0.6 * h, 0), 0.08 * h, _pick(rng, _CLOTHES))
    elif extra < 0.35:
        hand = joints["hand1"]
        thing.tube(
            (hand[0], hand[1] - 0.08 * h, hand[2]), (hand[0], hand[1] - 0.16 * h, hand[2]), 0.06 * h, (90, 60, 40)
        )
    elif extra < 0.5:
        for side in (-1, 1):
            thing.tube((0, 0.5 * h, side * 0.06 * h), (0.02, 0.33 * h, side * 0.08 * h), 0.075 * h, shirt)
    return thing


def _bicycle(rng: np.random.Generator, x: float, z: float, heading: float) -> tuple[_Thing, _Thing | None]:
    """A bicycle, and its rider if it has one."""
    thing = _Thing(x, z, heading, _BICYCLE)
    size = rng.uniform(0.92, 1.06)
    r = 0.34 * size
    frame = _pick(rng, _PAINT, 20)
    tyre: _Colour = (24, 24, 24)
    ends = (0.53 * size, -0.53 * size)
    for at in ends:
        ring = _disc((at, r, 0.0), r - 0.02, 16)
        for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
            thing.tube(a, b, 0.024, tyre)
        for k in range(0, 16, 4):
            thing.tube(ring[k], (at, r, 0.0), 0.006, (150, 150, 150))
    saddle, crank = (-0.22 * size, 0.86 * size, 0.0), (-0.06 * size, 0.29 * size, 0.0)
    head, bars = (0.36 * size, 0.78 * size, 0.0), (0.33 * size, 0.98 * size, 0.0)
    seat_top = (-0.18 * size, 0.72 * size, 0.0)
    for a, b in (
        (crank, head),
        (seat_top, head),
        (crank, seat_top),
        (crank, (ends[1], r, 0.0)),
        (seat_top, (ends[1], r, 0.0)),
        (head, (ends[0], r, 0.0)),
    ):
        thing.tube(a, b, 0.022, frame)
    thing.tube(seat_top, saddle, 0.016, (60, 60, 62))
    thing.tube((-0.32 * size, 0.88 * size, 0.0), (-0.1 * size, 0.87 * size, 0.0), 0.04, (28, 28, 28))
    thing.tube(head, bars, 0.018, (60, 60, 62))
    thing.tube((bars[0], bars[1], -0.26), (bars[0], bars[1], 0.26), 0.018, (40, 40, 42))
    thing.tube((crank[0] + 0.12, crank[1] - 0.12, 0.1), (crank[0] - 0.12, crank[1] + 0.12, -0.1), 0.02, (50, 50, 52))
    if rng.random() < 0.3:
        thing.box((0.42 * size, 0), 0.25, 0.34, 0.68 * size, 0.9 * size, (120, 96, 60))
    if rng.random() < 0.35:
        return thing, None
    # The rider stands a little nearer to the camera, so that it is drawn over the bicycle.
    scale = 1 - 0.02 / max(math.hypot(x, z), 1.0)
    rider = _Thing(x * scale, z * scale, heading, _PERSON)
    h = rng.uniform(1.6, 1.85)
    lean = rng.uniform(0.12, 0.4)
    turn = rng.uniform(0, math.pi)
    joints: dict[str, tuple[float, float, float]] = {"head": (-0.18 + lean + 0.1, 0.95 * size + 0.43 * h, 0.0)}
    for name, side in (("0", -1), ("1", 1)):
        pedal = (crank[0] + side * 0.16 * math.cos(turn), crank[1] + side * 0.16 * math.sin(turn), side * 0.1)
        hip = (-0.2, 0.95 * size, side * 0.08)
        knee = ((hip[0] + pedal[0]) / 2 + 0.26, (hip[1] + pedal[1]) / 2 + 0.1, side * 0.1)
        shoulder = (-0.18 + lean, 0.95 * size + 0.3 * h, side * 0.115 * h)
        hand = (bars[0], bars[1] + 0.02, side * 0.22)
        elbow = ((shoulder[0] + hand[0]) / 2 - 0.06, (shoulder[1] + hand[1]) / 2 - 0.06, side * 0.26)
        joints |= {"hip" + name: hip, "knee" + name: knee, "foot" + name: pedal}
        joints |= {"shoulder" + name: shoulder, "elbow" + name: elbow, "hand" + name: hand}
    _limbs(rider, rng, h, joints, _pick(rng, _CLOTHES[:8]), _pick(rng, _CLOTHES))
    return thing, rider


def _sign(rng: np.random.Generator, x: float, z: float, heading: float) -> tuple[_Thing, _Thing]:
    """The plate, which is the labelled object, and its pole."""
    pole = _Thing(x, z, heading)
    plate = _Thing(x, z, heading, _SIGN)
    r = rng.uniform(0.34, 0.5)
    u = rng.uniform(2.0, 2.7)
    kind = int(rng.integers(7))
    red, white, black = (196, 26, 34), (238, 238, 236), (26, 26, 28)
    blue, yellow = (24, 80, 168), (244, 196, 40)
    pole.tube((0.05, 0.0, 0.0), (0.05, u + r * 0.6, 0.0), 0.04, (140, 142, 144))

    def shape(sides: int, radius: float, turn: float, colour: _Colour, layer: int, height: float = u) -> None:
        angles = [turn + 2 * math.pi * k / sides for k in range(sides)]
        edge = -0.004 * layer
        plate.face([(edge, height + radius * math.sin(a), radius * math.cos(a)) for a in angles], colour, shaded=False)

    def bar(w0: float, w1: float, u0: float, u1: float, colour: _Colour, layer: int) -> None:
        edge = -0.004 * layer
        quad = [
            (edge, u + u0 * r, w0 * r),
            (edge, u + u0 * r, w1 * r),
            (edge, u + u1 * r, w1 * r),
            (edge, u + u1 * r, w0 * r),
        ]
        plate.face(quad, colour, shaded=False)

    up = math.pi / 2
    if kind == 0:
        shape(3, r * 1.15, up, red, 1)
        shape(3, r * 0.75, up, white if rng.random() < 0.7 else yellow, 2)
        bar(-0.09, 0.09, -0.22, 0.3, black, 3)
    elif kind == 1:
        shape(20, r, 0, red, 1)
        shape(20, r * 0.74, 0, white, 2)
        bar(-0.4, -0.08, -0.32, 0.32, black, 3)
        bar(0.08, 0.42, -0.32, 0.32, black, 3)
        bar(0.18, 0.32, -0.16, 0.16, white, 4)
    elif kind == 2:
        shape(20, r, 0, red, 1)
        bar(-0.7, 0.7, -0.17, 0.17, white, 2)
    elif kind == 3:
        shape(8, r * 1.05, math.pi / 8, white, 1)
        shape(8, r * 0.97, math.pi / 8, red, 2)
        for k in range(4):
            bar(-0.66 + 0.36 * k, -0.44 + 0.36 * k, -0.2, 0.2, white, 3)
    elif kind == 4:
        shape(20, r, 0, blue, 1)
        bar(-0.1, 0.1, -0.6, 0.2, white, 2)
        plate.face(
            [(-0.01, u + 0.65 * r, 0), (-0.01, u + 0.1 * r, -0.4 * r), (-0.01, u + 0.1 * r, 0.4 * r)],
            white,
            shaded=False,
        )
    elif kind == 5:
        bar(-0.95, 0.95, -0.95, 0.95, white, 1)
        bar(-0.88, 0.88, -0.88, 0.88, blue, 2)
        bar(-0.4, -0.15, -0.62, 0.62, white, 3)
        bar(-0.4, 0.38, 0.0, 0.62, white, 3)
        bar(-0.15, 0.16, 0.2, 0.42, blue, 4)
    else:
        shape(4, r * 1.2, up, white, 1)
        shape(4, r * 1.0, up, yellow, 2)
        if rng.random() < 0.5:
            bar(-0.08, 0.08, -0.4, 0.4, black, 3)
    return plate, pole


def _tree(rng: np.random.Generator, x: float, z: float, small: bool) -> _Thing:
    thing = _Thing(x, z, 0.0)
    green = _pick(rng, ((70, 104, 46), (54, 88, 44), (92, 116, 50), (116, 110, 48), (150, 98, 40)), 8)
    if small:
        height, spread, base = rng.uniform(0.5, 1.3), rng.uniform(0.4, 0.9), 0.0
        count = 22
    else:
        height, spread, base = rng.uniform(3.5, 7.5), rng.uniform(1.1, 2.2), rng.uniform(1.6, 2.6)
        count = 44
        bark = _pick(rng, ((84, 66, 50), (110, 100, 88), (60, 50, 42)))
        thing.tube((0, 0, 0), (rng.uniform(-0.2, 0.2), base + 1.0, 0), rng.uniform(0.09, 0.2), bark)
    middle = (base + height) / 2
    for _ in range(count):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction) + 1e-6
        reach = rng.uniform(0.3, 0.9)
        a, b, c = (float(v) for v in direction * reach)
        centre = (a * spread, middle + b * (height - base) / 2, c * spread)
        tone = 0.72 + 0.4 * (b * 0.5 + 0.5) + rng.normal(0, 0.08)
        thing.ball(centre, rng.uniform(0.18, 0.42) * spread, _dim(green, tone))
    return thing


def _lamp_post(rng: np.random.Generator, x: float, z: float, toward: float) -> _Thing:
    thing = _Thing(x, z, 0.0)
    height = rng.uniform(4.5, 6.5)
    grey = _pick(rng, ((90, 92, 94), (60, 66, 62), (140, 142, 144)))
    reach = toward * rng.uniform(0.8, 1.8)
    thing.tube((0, 0, 0), (0, height, 0), 0.065, grey)
    thing.tube((0, height, 0), (0, height + 0.15, reach), 0.05, grey)
    thing.tube((0, height + 0.1, reach), (0, height + 0.1, reach * 1.25), 0.1, (214, 214, 206), lamp=_LAMP)
    return thing


def _distractor(rng: np.random.Generator, x: float, z: float, heading: float) -> _Thing:
    """Street furniture that shares shapes and colours with the classes and is none of them."""
    thing = _Thing(x, z, heading)
    kind = int(rng.integers(8))
    colour = _pick(rng, _PAINT + _CLOTHES, 14)
    if kind == 0:
        faces = thing.box((0, 0), 0.6, 0.6, 0.05, rng.uniform(0.9, 1.25), colour, _dim(colour, 0.6))
        thing.face(
            [(0.3, 0.5, -0.15), (0.3, 0.5, 0.15), (0.3, 0.7, 0.15), (0.3, 0.7, -0.15)],
            (230, 230, 230),
            owner=faces["front"],
        )
    elif kind == 1:
        thing.tube((0, 0, 0), (0, rng.uniform(0.7, 1.1), 0), rng.uniform(0.06, 0.13), colour)
        thing.ball((0, 0.95, 0), 0.1, _dim(colour, 1.2))
    elif kind == 2:
        wide, low, high = rng.uniform(1.4, 3.2), rng.uniform(0.6, 1.8), rng.uniform(2.4, 3.6)
        for w in (-wide * 0.4, wide * 0.4):
            thing.tube((0.05, 0, w), (0.05, high, w), 0.06, (90, 90, 94))
        thing.face([(0, low, -wide / 2), (0, low, wide / 2), (0, high, wide / 2), (0, high, -wide / 2)], colour)
        for _ in range(4):
            w0, w1 = sorted(rng.uniform(-wide / 2, wide / 2, 2))
            u0, u1 = sorted(rng.uniform(low, high, 2))
            thing.face([(-0.01, u0, w0), (-0.01, u0, w1), (-0.01, u1, w1), (-0.01, u1, w0)], _pick(rng, _CLOTHES, 30))
    elif kind == 3:
        for w in (-0.25, 0.25):
            thing.tube((0, 0, w), (0, 0.45, w), 0.03, (50, 50, 50))
        thing.box((0, 0), 0.45, 1.6, 0.42, 0.48, (130, 90, 56))
        thing.face([(-0.2, 0.55, -0.8), (-0.2, 0.55, 0.8), (-0.24, 0.9, 0.8), (-0.24, 0.9, -0.8)], (120, 84, 52))
    elif kind == 4:
        for k in range(5):
            radius = 0.16 * (1 - k / 5.5)
            thing.tube(
                (0, 0.06 + k * 0.13, 0),
                (0, 0.12 + k * 0.13, 0),
                radius,
                (236, 96, 30) if k % 2 == 0 else (236, 236, 236),
            )
    elif kind == 5:
        length = rng.uniform(1.8, 4.5)
        thing.box((0, 0), length, rng.uniform(1.4, 2.0), 0.1, rng.uniform(1.1, 2.3), colour, _dim(colour, 0.8))
        if rng.random() < 0.5:
            for k in range(1, 5):
                at = -length / 2 + k * length / 5
                thing.tube((at, 0.2, -0.72), (at, 1.0, -0.72), 0.04, _dim(colour, 0.7))
    elif kind == 6:
        thing.tube((0, 0, 0), (0, 2.6, 0), 0.05, (70, 72, 74))
        thing.box((0, 0), 0.25, 0.3, 2.3, 3.1, (30, 32, 32))
        for k, light in enumerate(_palette("b42828 aa8c28 328c46")):
            thing.ball((-0.14, 2.95 - 0.26 * k, 0), 0.1, light if rng.random() < 0.5 else _dim(light, 0.4))
    else:
        high = rng.uniform(1.6, 2.3)
        thing.tube((0, 0, 0), (0, high, 0), 0.16, colour)
        thing.tube((0, high, 0), (0, high + 0.15, 0), 0.22, _dim(colour, 0.7))
    return thing


@dataclass(slots=True)
class _Road:
    """The street's layout. Road frame: s along the road, t to the right of its middle."""

    half: float
    pavement: float
    setback: float
    bend: float
    heading: float
    offset: float
    style: str

    def to_world(self, s: float, t: float) -> tuple[float, float, float]:
        """x, z and the road's direction there."""
        along, across = s, t + self.bend * s * s - self.offset
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        direction = self.heading + math.atan(2 * self.bend * s)
        return across * cos + along * sin, along * cos - across * sin, direction


class _World:
    """One scene: decides what stands where, then draws it."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], camera: Camera) -> None:
        self.rng = rng
        self.size = size
        self.camera = replace(
            camera, height_m=camera.height_m * rng.uniform(0.9, 1.15), pitch_deg=camera.pitch_deg + rng.normal(0, 0.9)
        )
        self.view = _View(self.camera, size, _SS)
        style = ("city", "suburb", "open", "square")[int(rng.choice(4, p=(0.42, 0.28, 0.15, 0.15)))]
        half = rng.uniform(3.2, 6.5) if style != "square" else rng.uniform(8.0, 13.0)
        self.road = _Road(
            half=half,
            pavement=rng.uniform(1.6, 4.0),
            setback={"city": 0.2, "suburb": rng.uniform(3, 7), "open": rng.uniform(6, 14), "square": 1.0}[style],
            bend=rng.normal(0, 0.0012),
            heading=rng.normal(0, 0.07),
            offset=rng.uniform(-0.55, 0.55) * half,
            style=style,
        )
        self.overcast = bool(rng.random() < 0.35)
        azimuth, elevation = rng.uniform(-math.pi, math.pi), rng.uniform(0.4, 1.15)
        self.sun = np.array(
            [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)],
            np.float32,
        )
        self.things: list[_Thing] = []
        self.taken: list[tuple[float, float, float]] = []

    def render(self) -> Scene:
        height, width = self.size
        buildings = self._buildings()
        self._place_road_users()
        self._place_furniture()
        self.things.sort(key=lambda thing: -math.hypot(thing.x, thing.z))
        image = self._backdrop()
        samples = np.zeros((height * _SS, width * _SS, 3), np.float32)
        depth_rows = self.view.ground(height * _SS, 1, 1.0)[0]
        samples[:, :, 0] = depth_rows[:, None]
        self._skyline(image, samples)
        self._draw(buildings, image, samples, 0)
        drawn: list[tuple[_Thing, int, float, tuple[int, int, int, int]]] = []
        for thing in self.things:
            number = len(drawn) + 1 if thing.label >= 0 and len(drawn) < 250 else 0
            window, inside = self._draw(thing, image, samples, number)
            if number:
                x0, y0, x1, y1 = window
                count = int(np.count_nonzero(samples[y0:y1, x0:x1, 1] == number))
                drawn.append((thing, count, inside, window))
        counts = [
            int(np.count_nonzero(samples[w[1] : w[3], w[0] : w[2], 1] == n + 1)) for n, (_, _, _, w) in enumerate(drawn)
        ]
        # A part has one depth; where it reaches lower in the picture than that, the ground in front of it is the limit.
        np.minimum(samples[:, :, 0], depth_rows[:, None], out=samples[:, :, 0])
        if self.camera.distortion:
            image, samples = self._distort(image, samples)
        annotations, instances, heights, visible = self._annotate(drawn, counts, samples)
        depth = np.ascontiguousarray(samples[_SS // 2 :: _SS, _SS // 2 :: _SS, 0])
        emission = self._emission(cv2.extractChannel(samples, 2))
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32)
        finished = self._expose(small, depth, instances)
        return Scene(finished, depth, annotations, self.camera, emission, instances, heights, visible)

    def _emission(self, codes: NDArray[Any]) -> Floats:
        """(H, W, 3) radiance of the lamps, from the code of each sample."""
        height, width = self.size
        table = np.zeros((256, 1, 3), np.uint8)
        table[: len(_RADIANCE), 0] = np.round(_RADIANCE * 16)
        lamps = cv2.LUT(cv2.cvtColor(codes.astype(np.uint8), cv2.COLOR_GRAY2RGB), table)
        return np.asarray(cv2.resize(lamps, (width, height), interpolation=cv2.INTER_AREA), np.float32) / np.float32(16)

    def _free(self, x: float, z: float, radius: float) -> bool:
        if any(math.hypot(x - a, z - b) < radius + r for a, b, r in self.taken):
            return False
        self.taken.append((x, z, radius))
        return True

    def _in_view(self, x: float, z: float, height: float) -> bool:
        point = self.view.to_camera(np.array([[x, height / 2, z]], np.float32))
        if point[0, 2] < 2.0:
            return False
        px, py = self.view.to_pixels(point)[0]
        return bool(0.03 < px / (2 * self.view.cx) < 0.97 and py < 2 * self.view.cy)

    def _place_road_users(self) -> None:
        rng, road = self.rng, self.road
        wanted = int(rng.integers(4, 12))
        shares = rng.dirichlet(np.array([3.2, 1.3, 2.6, 1.9, 1.5]) * 1.3)
        ranges = {_CAR: (6, 45), _TRUCK: (11, 50), _PERSON: (4.5, 36), _BICYCLE: (4.5, 28), _SIGN: (6, 24)}
        placed = 0
        for _ in range(60):
            if placed >= wanted:
                break
            label = int(rng.choice(5, p=shares))
            low, high = ranges[label]
            s = math.exp(rng.uniform(math.log(low), math.log(high)))
            side = 1 if rng.random() < 0.5 else -1
            if label in (_CAR, _TRUCK):
                parked = rng.random() < 0.4 and label == _CAR
                t = side * (road.half - 1.1 if parked else rng.uniform(0.25, 0.75) * road.half)
                turn = 0.0 if side > 0 else math.pi
                turn += rng.normal(0, 0.06)
                if rng.random() < (0.6 if road.style == "square" else 0.16):
                    turn = rng.uniform(-math.pi, math.pi)
                radius = 2.1 if label == _CAR else 3.4
            elif label == _PERSON:
                crossing = rng.random() < 0.3
                t = (
                    rng.uniform(-1, 1) * road.half
                    if crossing
                    else side * (road.half + rng.uniform(0.3, 1) * road.pavement)
                )
                turn = rng.uniform(-math.pi, math.pi) if rng.random() < 0.5 else side * math.pi / 2 * crossing
                radius = 0.45
            elif label == _BICYCLE:
                t = side * (road.half + rng.uniform(-1.6, 0.6 * road.pavement))
                turn = (0.0 if side > 0 else math.pi) + rng.normal(0, 0.3)
                if rng.random() < 0.45:
                    turn = rng.uniform(-math.pi, math.pi)
                radius = 0.9
            else:
                t = side * (road.half + rng.uniform(0.3, 0.8))
                turn = rng.normal(0, 0.3)
                radius = 0.35
            x, z, direction = road.to_world(s, t)
            if not self._in_view(x, z, 1.6 if label != _SIGN else 4.4) or not self._free(x, z, radius):
                continue
            placed += 1
            heading = direction + turn
            if label == _CAR:
                self.things.append(_car(rng, x, z, heading))
            elif label == _TRUCK:
                self.things.append(_truck(rng, x, z, heading))
            elif label == _PERSON:
                self.things.append(_person(rng, x, z, heading))
            elif label == _BICYCLE:
                bicycle, rider = _bicycle(rng, x, z, heading)
                self.things.append(bicycle)
                if rider is not None:
                    self.things.append(rider)
                    placed += 1
            else:
                plate, pole = _sign(rng, x, z, math.atan2(x, z) + turn)
                self.things += [pole, plate]

    def _place_furniture(self) -> None:
        rng, road = self.rng, self.road
        edge = road.half + road.pavement
        for _ in range(int(rng.integers(3, 10))):
            side = 1 if rng.random() < 0.5 else -1
            s = math.exp(rng.uniform(math.log(5), math.log(60)))
            x, z, direction = road.to_world(s, side * (edge - rng.uniform(0.0, 0.8) * road.pavement))
            if self._free(x, z, 1.0):
                self.things.append(
                    _distractor(rng, x, z, direction + rng.choice((0.0, 1.57, 3.14)) + rng.normal(0, 0.15))
                )
        trees = {"city": (0, 5), "suburb": (4, 12), "open": (5, 14), "square": (0, 6)}[road.style]
        for _ in range(int(rng.integers(*trees))):
            side = 1 if rng.random() < 0.5 else -1
            small = bool(rng.random() < 0.4)
            s = math.exp(rng.uniform(math.log(6 if small else 11), math.log(75)))
            reach = road.setback + 1.5 if road.style in ("suburb", "open") else -0.4 * road.pavement
            x, z, _ = road.to_world(s, side * (edge + rng.uniform(min(reach, 0.0), max(reach, 0.0))))
            if self._free(x, z, 0.7):
                self.things.append(_tree(rng, x, z, small))
        spacing = rng.uniform(14, 24)
        for k in range(int(rng.integers(0, 4))):
            for side in (-1, 1):
                x, z, _ = road.to_world(8 + rng.uniform(0, 3) + k * spacing, side * (road.half + 0.5))
                if self._free(x, z, 0.4):
                    self.things.append(_lamp_post(rng, x, z, -side))

    def _buildings(self) -> _Thing:
        """All facades as one thing: bays sorted by depth; coordinates are the world's (l = z, w = x)."""
        rng, road = self.rng, self.road
        thing = _Thing(0.0, 0.0, 0.0)
        line = road.half + road.pavement + road.setback
        house = road.style in ("suburb", "open")
        for side in (-1, 1):
            s = rng.uniform(1, 6)
            while s < 95:
                if rng.random() < {"city": 0.08, "suburb": 0.25, "open": 0.8, "square": 0.2}[road.style]:
                    s += rng.uniform(6, 16)
                    continue
                floors = int(rng.integers(1, 3)) if house else int(rng.integers(2, 8))
                bays = int(rng.integers(2, 5)) if house else int(rng.integers(3, 7))
                bay, storey = rng.uniform(2.4, 3.6), rng.uniform(2.8, 3.4)
                self._facade(thing, s, side * (line + rng.uniform(0, 0.8)), side, bays, bay, floors, storey, house)
                s += bays * bay + (rng.uniform(2, 8) if house else rng.choice((0.0, 0.0, 2.0)))
        return thing

    def _facade(
        self,
        thing: _Thing,
        s: float,
        t: float,
        side: int,
        bays: int,
        bay: float,
        floors: int,
        storey: float,
        house: bool,
    ) -> None:
        rng, road = self.rng, self.road
        wall = _pick(rng, _WALLS)
        trim = _mix(wall, (235, 232, 226), rng.uniform(0.2, 0.8))
        top = floors * storey + rng.uniform(0.2, 0.8)
        wide, tall = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.68)
        shop = not house and rng.random() < 0.5
        awning = _pick(rng, _CLOTHES, 20)
        deep = rng.uniform(7, 11)

        def at(along: float, across: float, up: float) -> tuple[float, float, float]:
            x, z, _ = road.to_world(along, across)
            return (z, up, x)

        def pane(
            along0: float, along1: float, up0: float, up1: float, colour: _Colour, owner: int, lamp: int = 0
        ) -> None:
            quad = [at(along0, t, up0), at(along1, t, up0), at(along1, t, up1), at(along0, t, up1)]
            thing.face(quad, colour, owner=owner, lamp=lamp)

        toward = (0.0, 0.0, -float(side))
        for k in range(bays):
            a0, a1 = s + k * bay, s + (k + 1) * bay
            tint = _dim(wall, rng.uniform(0.95, 1.04))
            quad = [at(a0, t, 0), at(a1, t, 0), at(a1, t, top), at(a0, t, top)]
            owner = thing.face(quad, tint, toward)
            detailed = a0 < 60
            for floor in range(floors):
                base = floor * storey
                m = bay * (1 - wide) / 2
                glass = _mix(_GLASS, (130, 150, 170), rng.uniform(0, 0.5))
                lit = _WINDOW if rng.random() < 0.35 else 0
                if floor == 0 and shop:
                    pane(a0 + 0.15, a1 - 0.15, 0.3, storey * 0.72, glass, owner, lit)
                    pane(a0, a1, storey * 0.74, storey * 0.92, awning, owner)
                elif floor == 0 and k == bays // 2:
                    pane(a0 + m, a0 + m + 1.0, 0.0, 2.1, _dim(trim, 0.5), owner)
                else:
                    u0 = base + storey * (1 - tall) * 0.6
                    if detailed:
                        pane(a0 + m - 0.12, a1 - m + 0.12, u0 - 0.15, u0 + storey * tall + 0.12, trim, owner)
                    pane(a0 + m, a1 - m, u0, u0 + storey * tall, glass, owner, lit)
            pane(a0, a1, top - 0.25, top, _dim(trim, 0.85), owner)
            if house:
                roof = _mix((110, 60, 48), (70, 70, 78), rng.uniform(0, 0.4))
                ridge = t + side * deep / 2
                slope = [at(a0, t, top), at(a1, t, top), at(a1, ridge, top + 2.4), at(a0, ridge, top + 2.4)]
                thing.face(slope, roof, (0.0, 1.0, -float(side) * 0.5))
        end_wall = [at(s, t, 0), at(s, t + side * deep, 0), at(s, t + side * deep, top), at(s, t, top)]
        if house:
            end_wall = [*end_wall[:3], at(s, t + side * deep / 2, top + 2.4), end_wall[3]]
        thing.face(end_wall, _dim(wall, 0.92), (-1.0, 0.0, 0.0))

    def _backdrop(self) -> NDArray[np.uint8]:
        """Sky and ground with its shadows, at the drawing's resolution."""
        height, width = self.size
        depth, forward, across = self.view.ground(height, width, _SS)
        canvas = np.empty((height, width, 3), np.float32)
        horizon = int(np.searchsorted(np.isfinite(depth), True))
        canvas[:] = self._sky(horizon)
        if horizon < height:
            rows = slice(horizon, height)
            ground = self._ground(forward[rows, None] * np.ones((1, width), np.float32), across[rows], depth[rows])
            canvas[rows] = ground * self._shadows()[rows, :, None]
        coarse = np.clip(canvas, 0, 255).astype(np.uint8)
        return np.asarray(cv2.resize(coarse, (width * _SS, height * _SS), interpolation=cv2.INTER_LINEAR), np.uint8)

    def _sky(self, horizon: int) -> Floats:
        rng, (height, width) = self.rng, self.size
        if self.overcast:
            grey = rng.uniform(150, 215)
            top, low = np.array([grey * 0.86, grey * 0.9, grey * 0.96]), np.array([grey * 1.08] * 3)
        else:
            top = np.array([rng.uniform(50, 110), rng.uniform(110, 155), rng.uniform(185, 230)])
            low = np.array([rng.uniform(190, 235), rng.uniform(200, 222), rng.uniform(200, 240)])
        self.haze = np.clip(low, 0, 245).astype(np.float32)
        level = np.clip(np.arange(height) / max(horizon, 1), 0, 1)[:, None, None] ** 1.3
        sky = (top + (low - top) * level).astype(np.float32) * np.ones((1, width, 1), np.float32)
        cover = rng.uniform(-0.9, 1.3)
        clouds = np.clip((_noise(rng, (height, width), (3, 6, 13, 30)) + cover) * 0.55, 0, 1)[:, :, None]
        white = np.float32(min(250.0, float(self.haze.mean()) * 1.12))
        return np.asarray(sky + (white - sky) * clouds * (0.25 if self.overcast else 0.75), np.float32)

    def _ground(self, z: Floats, x: Floats, depth: Floats) -> Floats:
        """Colours of the ground at world positions x, z (R, W); depth (R,)."""
        rng, road = self.rng, self.road
        sin, cos = math.sin(road.heading), math.cos(road.heading)
        s = (x * sin + z * cos).astype(np.float32)
        t = (x * cos - z * sin + road.offset - road.bend * s * s).astype(np.float32)
        footprint = (depth / self.view.focal * _SS)[:, None]
        along = np.maximum(footprint * depth[:, None] / self.camera.height_m, 1e-3)

        def band(value: NDArray[Any], low: float, high: float, blur: NDArray[Any]) -> Floats:
            """How much of each pixel's footprint lies between `low` and `high`."""
            middle, reach = np.float32((low + high) / 2), np.float32((high - low) / 2)
            share = (reach - np.abs(value.astype(np.float32) - middle)) / blur.astype(np.float32) + np.float32(0.5)
            return np.asarray(np.minimum(np.maximum(share, 0), 1), np.float32)

        base: _Colour = _pick(rng, ((86, 108, 54), (104, 116, 62), (126, 112, 80)), 8)
        if road.style in ("city", "square"):
            base = _pick(rng, ((150, 146, 140), (128, 124, 118)), 8)
        asphalt = _pick(rng, ((92, 92, 95), (112, 110, 108), (74, 76, 80), (128, 124, 118)), 6)
        paving = _pick(rng, ((164, 158, 150), (146, 140, 134), (176, 160, 140), (150, 120, 104)), 6)
        tile = _noise(rng, (128, 128), (8, 24, 64))
        fine = tile[(s * 9).astype(np.int32) & 127, (t * 9).astype(np.int32) & 127]
        coarse = tile[(s * 0.7).astype(np.int32) & 127, (t * 1.3).astype(np.int32) & 127]
        fade = np.clip(12.0 / np.maximum(depth, 1.0), 0.05, 1.0)[:, None]
        texture = (fine * 7.0 * fade + coarse * 5.0 * np.clip(fade * 2, 0, 1))[:, :, None]
        colours = np.empty((*s.shape, 3), np.float32)
        colours[:] = base

        def lay(mask: NDArray[Any], colour: _Colour) -> None:
            colours[:] += (np.array(colour, np.float32) - colours) * mask[:, :, None]

        edge = road.half + road.pavement
        lay(band(t, -edge, edge, footprint), paving)
        joints = band(np.mod(s, 1.2), 0.0, 0.05, along) + band(np.mod(t, 1.2), 0.0, 0.05, footprint)
        lay(np.clip(joints, 0, 1) * band(t, -edge, edge, footprint) * 0.5 * fade, _dim(paving, 0.7))
        lay(band(t, -road.half - 0.2, road.half + 0.2, footprint), _mix(paving, (190, 190, 188), 0.4))
        lay(band(t, -road.half, road.half, footprint), asphalt)
        tracks = np.zeros_like(t)
        for wheel in (-0.68, -0.3, 0.3, 0.68):
            tracks += band(t, wheel * road.half - 0.3, wheel * road.half + 0.3, footprint + 0.3)
        lay(tracks * np.float32(0.12), (40, 40, 42))
        paint: _Colour = (222, 220, 212) if rng.random() < 0.85 else (214, 180, 60)
        wear = np.clip(0.8 + 0.15 * coarse, 0.3, 1).astype(np.float32)
        if road.style == "square":
            marks = band(np.mod(t, 2.6), 0.0, 0.12, footprint) * band(np.mod(s, 11.0), 0.0, 5.0, along)
        else:
            dash, gap = rng.uniform(2, 4), rng.uniform(3, 6)
            dashes = band(np.mod(s + rng.uniform(0, 9), dash + gap), 0.0, dash, along)
            marks = band(t, -0.08, 0.08, footprint)
            if road.half > 4.5:
                for lane in (-0.5, 0.5):
                    marks += band(t, lane * road.half - 0.07, lane * road.half + 0.07, footprint)
            marks *= dashes
            if rng.random() < 0.5:
                for lane in (-1, 1):
                    middle = lane * (road.half - 0.35)
                    marks += band(t, middle - 0.07, middle + 0.07, footprint)
            if rng.random() < 0.45:
                start = rng.uniform(5, 25)
                zebra = band(np.mod(t, 1.0), 0.0, 0.5, footprint) * band(s, start, start + 3.2, along)
                marks += zebra * band(t, -road.half + 0.3, road.half - 0.3, footprint)
        lay(np.minimum(marks, 1) * wear, paint)
        for _ in range(int(rng.integers(0, 4))):
            ps, pt = rng.uniform(4, 25), rng.uniform(-1, 1) * road.half
            patch = band(s, ps, ps + rng.uniform(0.8, 5), along) * band(t, pt, pt + rng.uniform(0.6, 2), footprint)
            lay(patch * np.float32(0.5), _dim(asphalt, rng.uniform(0.7, 1.15)))
        light = 1.0 if self.overcast else 1.02 + 0.15 * float(self.sun[1])
        return np.asarray((colours + texture) * np.float32(light), np.float32)

    def _shadows(self) -> Floats:
        """(H, W) factor on the ground's brightness: cast shadows under the sun, a soft dark patch when overcast."""
        height, width = self.size
        view = _View(self.camera, self.size, 1)
        mask = np.zeros((height, width), np.uint8)
        contact = np.zeros((height, width), np.uint8)
        for thing in self.things:
            world = thing.world()
            low = world.copy()
            if not self.overcast:
                reach = world[:, 1:2] / max(float(self.sun[1]), 0.2)
                low = world - self.sun[None] * reach
            low[:, 1] = 0.0
            camera = view.to_camera(low)
            flat = view.to_camera(np.stack((world[:, 0], np.zeros(len(world)), world[:, 2]), 1).astype(np.float32))
            base = world[:, 1] < 1.2
            if base.any() and (flat[base, 2] > _NEAR_M).all():
                hull = cv2.convexHull(np.round(view.to_pixels(flat[base]) * 16 - 8).astype(np.int32))
                cv2.fillConvexPoly(contact, np.asarray(hull, np.int32), 255, cv2.LINE_AA, _SHIFT)
            if self.overcast:
                continue
            pixels = np.round(view.to_pixels(camera) * 16 - 8).clip(-2e5, 2e5).astype(np.int32)
            for part in thing.parts:
                points = camera[part.start : part.stop]
                if (points[:, 2] < _NEAR_M).any() or part.owner >= 0:
                    continue
                where = pixels[part.start : part.stop]
                if part.radius == 0.0:
                    cv2.fillPoly(mask, [where], 255, cv2.LINE_8, _SHIFT)
                    continue
                wide = max(1, round(2 * part.radius * view.focal / float(points[:, 2].mean())))
                if part.stop - part.start == 2:
                    cv2.line(mask, where[0].tolist(), where[1].tolist(), 255, min(wide, 200), cv2.LINE_8, _SHIFT)
                else:
                    axes = (wide * 8, max(8, round(wide * 8 * self._foreshortening(float(points[0, 2])))))
                    cv2.ellipse(mask, where[0].tolist(), axes, 0, 0, 360, 255, -1, cv2.LINE_8, _SHIFT)
        soft = cv2.GaussianBlur(contact, (0, 0), 1.6).astype(np.float32) / 255
        hard = cv2.GaussianBlur(mask, (0, 0), 0.6).astype(np.float32) / 255
        return np.asarray((1 - 0.45 * soft) * (1 - 0.42 * hard), np.float32)

    def _foreshortening(self, depth: float) -> float:
        """How flat a circle on the ground looks at this depth."""
        return min(1.0, self.camera.height_m / max(depth, 0.1) + 0.02)

    def _skyline(self, image: NDArray[np.uint8], samples: Floats) -> None:
        """Far hills, woods or roofs along the horizon."""
        rng = self.rng
        width = image.shape[1]
        horizon = self.view.cy - self.view.focal * self.view.sin / self.view.cos
        for far, haze in ((350.0, 0.75), (160.0, 0.5)):
            rise = rng.uniform(4, 16) if far < 200 else rng.uniform(10, 40)
            scale = self.view.focal / far
            if rng.random() < 0.5:
                steps = np.repeat(rng.uniform(0.2, 1.0, 24), 2)
            else:
                steps = np.abs(_noise(rng, (2, 48), (2,))[0]) * 0.5 + 0.2
            xs = np.linspace(-10, width + 10, len(steps))
            ys = horizon - steps * rise * scale
            foot = horizon + self.view.height_m * scale + 2
            outline = np.stack((np.r_[xs, width + 10, -10], np.r_[ys, foot, foot]), 1)
            tone = _pick(rng, ((70, 90, 66), (120, 116, 116), (96, 104, 116)))
            mixed = _mix(tone, (float(self.haze[0]), float(self.haze[1]), float(self.haze[2])), haze)
            where = [np.round(outline * 16 - 8).astype(np.int32)]
            cv2.fillPoly(image, where, mixed, cv2.LINE_8, _SHIFT)
            cv2.fillPoly(samples, where, (far, 0.0, 0.0), cv2.LINE_8, _SHIFT)

    def _draw(
        self, thing: _Thing, image: NDArray[np.uint8], samples: Floats, number: int
    ) -> tuple[tuple[int, int, int, int], float]:
        """Draw a thing from its far parts to its near ones.

        Returns:
            The window of samples it may have touched (x0, y0, x1, y1), and the fraction of its outline's box that
            lies inside the image.
        """
        height, width = image.shape[:2]
        if not thing.parts:
            return (0, 0, 0, 0), 0.0
        world = thing.world()
        camera = self.view.to_camera(world)
        pixels = self.view.to_pixels(camera)
        fixed = np.round(pixels * 16 - 8).clip(-4e5, 4e5).astype(np.int32)
        eye = np.array([0.0, self.camera.height_m, 0.0], np.float32)
        starts = np.array([part.start for part in thing.parts])
        stops = np.array([part.stop for part in thing.parts])
        sums = np.concatenate((np.zeros((1, 3), np.float32), np.cumsum(world, axis=0, dtype=np.float64)))
        middles = (sums[stops] - sums[starts]) / (stops - starts)[:, None]
        depths = self.view.to_camera(middles.astype(np.float32))[:, 2]
        faces = (stops - starts) >= 3
        second, third = np.minimum(starts + 1, len(world) - 1), np.minimum(starts + 2, len(world) - 1)
        normals = np.cross(world[second] - world[starts], world[third] - world[starts])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
        outward = thing.turn(np.array([part.outward or (0, 0, 0) for part in thing.parts], np.float32))
        facing = eye[None] - middles
        oriented = (outward**2).sum(1) > 0
        flip = np.where(oriented, (normals * outward).sum(1), (normals * facing).sum(1)) < 0
        normals[flip] *= -1
        hidden = oriented & ((normals * facing).sum(1) <= 0)
        lit = np.clip(normals @ self.sun, 0, 1)
        shade = (0.86 + 0.16 * normals[:, 1]) if self.overcast else (0.66 + 0.1 * normals[:, 1] + 0.46 * lit)
        shade = np.where(faces, shade, 0.92)
        details: dict[int, list[int]] = {}
        for k, part in enumerate(thing.parts):
            if part.owner >= 0:
                details.setdefault(part.owner, []).append(k)
        roots = [k for k in np.argsort(-depths, kind="stable") if thing.parts[k].owner < 0 and not hidden[k]]
        if thing.convex:
            order = [int(root) for root in roots] + [k for root in roots for k in details.get(int(root), ())]
        else:
            order = [k for root in roots for k in (int(root), *details.get(int(root), ()))]
        for k in order:
            part = thing.parts[k]
            start, stop = part.start, part.stop
            near = float(camera[start:stop, 2].min())
            depth = float(depths[k])
            if near < _NEAR_M and (part.owner >= 0 or not faces[k] or depth < -30):
                continue
            factor = float(shade[k]) if part.shaded else 1.0
            colour = _dim(part.colour, factor)
            sample = (depth if part.owner < 0 else float(depths[part.owner]), float(number), float(part.lamp))
            where = fixed[start:stop]
            if faces[k]:
                if near < _NEAR_M:
                    where = self._clipped(camera[start:stop])
                    if len(where) < 3:
                        continue
                    sample = (max(depth, _NEAR_M), sample[1], sample[2])
                if stop - start == 4:
                    cv2.fillConvexPoly(image, where, colour, cv2.LINE_8, _SHIFT)
                    cv2.fillConvexPoly(samples, where, sample, cv2.LINE_8, _SHIFT)
                else:
                    cv2.fillPoly(image, [where], colour, cv2.LINE_8, _SHIFT)
                    cv2.fillPoly(samples, [where], sample, cv2.LINE_8, _SHIFT)
                continue
            wide = 2 * part.radius * self.view.focal / depth
            if stop - start == 2:
                thick = min(max(1, round(wide)), 250)
                a, b = where[0].tolist(), where[1].tolist()
                cv2.line(image, a, b, colour, thick, cv2.LINE_8, _SHIFT)
                cv2.line(samples, a, b, sample, thick, cv2.LINE_8, _SHIFT)
            else:
                radius = max(8, round(wide * 8))
                cv2.circle(image, where[0].tolist(), radius, colour, -1, cv2.LINE_8, _SHIFT)
                cv2.circle(samples, where[0].tolist(), radius, sample, -1, cv2.LINE_8, _SHIFT)
        reach = np.array([part.radius for part in thing.parts]).max() * self.view.focal / max(float(depths.min()), 0.5)
        if not number:
            return (0, 0, 0, 0), 0.0
        low, high = pixels.min(0) - reach, pixels.max(0) + reach
        x0, y0 = max(0, math.floor(low[0]) - 2), max(0, math.floor(low[1]) - 2)
        x1, y1 = min(width, math.ceil(high[0]) + 3), min(height, math.ceil(high[1]) + 3)
        whole = float((high[0] - low[0]) * (high[1] - low[1]))
        part_in = max(0.0, min(width, high[0]) - max(0.0, low[0])) * max(0.0, min(height, high[1]) - max(0.0, low[1]))
        return (min(x0, width), min(y0, height), max(x1, 0), max(y1, 0)), float(part_in / max(whole, 1e-6))

    def _clipped(self, points: Floats) -> NDArray[np.int32]:
        """The polygon (N, 3) in the camera frame, cut at the near plane, as fixed-point pixels."""
        kept = []
        for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
            if a[2] >= _NEAR_M:
                kept.append(a)
            if (a[2] >= _NEAR_M) != (b[2] >= _NEAR_M):
                kept.append(a + (b - a) * ((_NEAR_M - a[2]) / (b[2] - a[2])))
        if len(kept) < 3:
            return np.zeros((0, 2), np.int32)
        pixels = self.view.to_pixels(np.asarray(kept, np.float32))
        return np.round(pixels * 16 - 8).clip(-4e5, 4e5).astype(np.int32)

    def _distort(self, image: NDArray[np.uint8], samples: Floats) -> tuple[NDArray[np.uint8], Floats]:
        height, width = image.shape[:2]
        k = self.camera.distortion
        x = np.arange(width, dtype=np.float32) + 0.5 - width / 2
        y = np.arange(height, dtype=np.float32) + 0.5 - height / 2
        radius = (x[None] ** 2 + y[:, None] ** 2) / np.float32((width**2 + height**2) / 4)
        factor = (1 + k * radius) / (1 + k)
        map_x = (x[None] * factor + width / 2 - 0.5).astype(np.float32)
        map_y = (y[:, None] * factor + height / 2 - 0.5).astype(np.float32)
        bent = cv2.remap(image, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        moved = cv2.remap(samples, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(bent, np.uint8), np.asarray(moved, np.float32)

    def _annotate(
        self,
        drawn: Sequence[tuple[_Thing, int, float, tuple[int, int, int, int]]],
        counts: Sequence[int],
        samples: Floats,
    ) -> tuple[Annotations, NDArray[np.uint8], Floats, Floats]:
        numbers = samples[:, :, 1].astype(np.uint8)
        boxes, labels, ignore, heights, visible = [], [], [], [], []
        renumber = np.zeros(256, np.uint8)
        for n, ((thing, whole, inside, window), count) in enumerate(zip(drawn, counts, strict=True)):
            x0, y0, x1, y1 = window if not self.camera.distortion else (0, 0, numbers.shape[1], numbers.shape[0])
            found = numbers[y0:y1, x0:x1] == n + 1
            columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
            if not len(columns):
                continue
            box = np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1]) / _SS
            wide, high = box[2] - box[0], box[3] - box[1]
            if wide * high < 4:
                continue
            part = count / max(whole, 1) * inside
            boxes.append(box)
            labels.append(thing.label)
            ignore.append(part < MIN_VISIBLE or max(wide, high) < MIN_SIDE_PX)
            heights.append(self._metric_height(thing))
            visible.append(part)
            renumber[n + 1] = len(boxes)
        annotations = Annotations(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(ignore, np.bool_)
        )
        return annotations, renumber[numbers], np.array(heights, np.float32), np.array(visible, np.float32)

    def _metric_height(self, thing: _Thing) -> float:
        high = max(max(p[1] for p in thing.points[part.start : part.stop]) + part.radius for part in thing.parts)
        low = min(min(p[1] for p in thing.points[part.start : part.stop]) - part.radius for part in thing.parts)
        return high - low

    def _expose(self, image: Floats, depth: Floats, instances: NDArray[np.uint8]) -> Image:
        """From radiance-like colours to what a camera delivers."""
        rng, (height, width) = self.rng, self.size
        clear = np.exp(-np.minimum(depth, 1e4) * np.float32(rng.uniform(0.0008, 0.004)))
        clear[~np.isfinite(depth)] = 1.0
        grain = _noise(rng, (height, width), (12, 40))
        object_here = instances[_SS // 2 :: _SS, _SS // 2 :: _SS] > 0
        warm = rng.normal(0, 0.04)
        gains = np.array([1 + warm, 1 + rng.normal(0, 0.015), 1 - warm], np.float32) * np.float32(
            rng.uniform(0.78, 1.18) / 255
        )
        x = np.linspace(-1, 1, width, dtype=np.float32)
        y = np.linspace(-1, 1, height, dtype=np.float32)
        level = 1 - np.float32(rng.uniform(0, 0.12)) * (x[None] ** 2 + y[:, None] ** 2)
        level *= 1 + grain * np.where(object_here, np.float32(0.035), np.float32(0.025))
        image -= self.haze
        image *= clear[:, :, None]
        image += self.haze
        image *= level[:, :, None]
        image *= gains
        # Saturation is a mix with the grey value, and so linear: one matrix.
        share = np.float32(rng.uniform(0.75, 1.15))
        matrix = np.eye(3, dtype=np.float32) * share + (1 - share) * np.array([[0.299, 0.587, 0.114]], np.float32)
        image = np.maximum(cv2.transform(image, matrix), 0)
        image = np.asarray(cv2.pow(image, float(rng.uniform(0.85, 1.2))), np.float32)
        blur = float(rng.uniform(0.0, 0.65))
        if blur > 0.25:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.float32)
        image *= 255
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(rng.uniform(1.0, 3.5))
        image += noise
        image += np.float32(0.5)
        return np.asarray(np.minimum(np.maximum(image, 0), 255), np.uint8)
