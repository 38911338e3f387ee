"""Generated street scenes with exact boxes, depth and lamps.

A scene is a small world in metres (road, pavement, buildings, trees, road users) seen through a pinhole camera. It
is drawn from far to near at twice the wanted resolution, together with a depth, an object number and a lamp code
for every sample, so boxes are the extents of what is visible and weather knows distances. numpy and OpenCV only.

World frame: x right, y up, z forward, the camera at (0, height, 0). Object frame: l forward, u up, w right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.config import FIELD_OF_VIEW
from acclimate.scenes import street
from acclimate.structures import Annotations, Image

CLASSES = street.CLASSES
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
_RADIANCE = np.array(
    [(0, 0, 0), (14.0, 13.0, 11.0), (4.0, 0.25, 0.15), (14.0, 9.5, 5.0), (0.55, 0.38, 0.2)], np.float32
)

Floats = NDArray[np.float32]


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

    fov_deg: float = FIELD_OF_VIEW
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
        whole: (N, 4) float32, the extents of each object as if nothing stood before it, inside the image.
    """

    image: Image
    depth: Floats
    annotations: Annotations
    camera: Camera
    emission: Floats
    instances: NDArray[np.uint8]
    heights_m: Floats
    visible: Floats
    whole: Floats


def render(seed: int, size: tuple[int, int] = (240, 320), camera: Camera = Camera()) -> Scene:
    """Render the scene `seed` at `size` (height, width); the same arguments give the same pixels."""
    return _World(np.random.default_rng(seed), size, camera).render()


def changed_camera(camera: Camera, strength: float) -> Camera:
    """The camera of the condition "camera": from a windscreen up to a pole, with a wider, distorting lens."""
    return replace(
        camera,
        fov_deg=min(camera.fov_deg + 22.0 * strength, 110.0),
        height_m=camera.height_m + 3.2 * strength,
        pitch_deg=min(camera.pitch_deg + 11.0 * strength, 40.0),
        distortion=camera.distortion - min(0.12 * strength, 0.2),
    )


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


def _noise(rng: np.random.Generator, size: tuple[int, int], octaves: Sequence[int]) -> Floats:
    """(H, W) smooth noise of about unit deviation; `octaves` are the numbers of cells along the height."""
    total = np.zeros(size, np.float32)
    for k, cells in enumerate(octaves):
        shape = (cells + 1, max(2, round(cells * size[1] / size[0]) + 1))
        grid = rng.standard_normal(shape, dtype=np.float32)
        total += cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**k)
    return total / np.float32(max(float(total.std()), 1e-6))


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


@dataclass(frozen=True, slots=True)
class _Building:
    """A house or a block of flats along the road, metres.

    Attributes:
        corner: where its front begins: along the road, and across from its middle.
        side: of the road, -1 or 1.
        bays: windows side by side.
        bay: the width of each.
        floors: one above the other.
        storey: the height of each.
        house: whether it is a house, with a pitched roof.
    """

    corner: tuple[float, float]
    side: int
    bays: int
    bay: float
    floors: int
    storey: float
    house: bool


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
        self.things: list[street.Thing] = []
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
        drawn: list[tuple[street.Thing, int, float, tuple[int, int, int, int]]] = []
        extents: list[NDArray[np.float64] | None] = []
        for thing in self.things:
            number = len(drawn) + 1 if thing.label >= 0 and len(drawn) < 250 else 0
            window, inside = self._draw(thing, image, samples, number)
            if number:
                x0, y0, x1, y1 = window
                own = samples[y0:y1, x0:x1, 1] == number
                # What stands before it is drawn later.
                extents.append(_extent(own, x0, y0))
                drawn.append((thing, int(np.count_nonzero(own)), inside, window))
        counts = [
            int(np.count_nonzero(samples[w[1] : w[3], w[0] : w[2], 1] == n + 1)) for n, (_, _, _, w) in enumerate(drawn)
        ]
        # A part has one depth; where it reaches lower in the picture than that, the ground in front of it is the limit.
        np.minimum(samples[:, :, 0], depth_rows[:, None], out=samples[:, :, 0])
        if self.camera.distortion:
            image, samples = self._distort(image, samples)
        annotations, instances, heights, visible, rows = self._annotate(drawn, counts, samples)
        whole = annotations.boxes.copy()
        if not self.camera.distortion:
            for place, row in enumerate(rows):
                if (extent := extents[row]) is not None:
                    whole[place] = extent
        depth = np.ascontiguousarray(samples[_SS // 2 :: _SS, _SS // 2 :: _SS, 0])
        emission = self._emission(cv2.extractChannel(samples, 2))
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32)
        finished = self._expose(small, depth, instances)
        return Scene(finished, depth, annotations, self.camera, emission, instances, heights, visible, whole)

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
        ranges = {
            street.CAR: (6, 45),
            street.TRUCK: (11, 50),
            street.PERSON: (4.5, 36),
            street.BICYCLE: (4.5, 28),
            street.SIGN: (6, 24),
        }
        placed = 0
        for _ in range(60):
            if placed >= wanted:
                break
            label = int(rng.choice(5, p=shares))
            low, high = ranges[label]
            s = math.exp(rng.uniform(math.log(low), math.log(high)))
            side = 1 if rng.random() < 0.5 else -1
            if label in (street.CAR, street.TRUCK):
                parked = rng.random() < 0.4 and label == street.CAR
                t = side * (road.half - 1.1 if parked else rng.uniform(0.25, 0.75) * road.half)
                turn = 0.0 if side > 0 else math.pi
                turn += rng.normal(0, 0.06)
                if rng.random() < (0.6 if road.style == "square" else 0.16):
                    turn = rng.uniform(-math.pi, math.pi)
                radius = 2.1 if label == street.CAR else 3.4
            elif label == street.PERSON:
                crossing = rng.random() < 0.3
                t = (
                    rng.uniform(-1, 1) * road.half
                    if crossing
                    else side * (road.half + rng.uniform(0.3, 1) * road.pavement)
                )
                turn = rng.uniform(-math.pi, math.pi) if rng.random() < 0.5 else side * math.pi / 2 * crossing
                radius = 0.45
            elif label == street.BICYCLE:
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
            if not self._in_view(x, z, 1.6 if label != street.SIGN else 4.4) or not self._free(x, z, radius):
                continue
            placed += 1
            heading = direction + turn
            if label == street.CAR:
                self.things.append(street.car(rng, x, z, heading))
            elif label == street.TRUCK:
                self.things.append(street.truck(rng, x, z, heading))
            elif label == street.PERSON:
                self.things.append(street.person(rng, x, z, heading))
            elif label == street.BICYCLE:
                bicycle, rider = street.bicycle(rng, x, z, heading)
                self.things.append(bicycle)
                if rider is not None:
                    self.things.append(rider)
                    placed += 1
            else:
                plate, pole = street.sign(rng, x, z, math.atan2(x, z) + turn)
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
                    street.distractor(rng, x, z, direction + rng.choice((0.0, 1.57, 3.14)) + rng.normal(0, 0.15))
                )
        trees = {"city": (0, 5), "suburb": (4, 12), "open": (5, 14), "square": (0, 6)}[road.style]
        for _ in range(int(rng.integers(*trees))):
            side = 1 if rng.random() < 0.5 else -1
            small = bool(rng.random() < 0.4)
            s = math.exp(rng.uniform(math.log(6 if small else 11), math.log(75)))
            reach = road.setback + 1.5 if road.style in ("suburb", "open") else -0.4 * road.pavement
            x, z, _ = road.to_world(s, side * (edge + rng.uniform(min(reach, 0.0), max(reach, 0.0))))
            if self._free(x, z, 0.7):
                self.things.append(street.tree(rng, x, z, small))
        spacing = rng.uniform(14, 24)
        for k in range(int(rng.integers(0, 4))):
            for side in (-1, 1):
                x, z, _ = road.to_world(8 + rng.uniform(0, 3) + k * spacing, side * (road.half + 0.5))
                if self._free(x, z, 0.4):
                    self.things.append(street.lamp_post(rng, x, z, -side))

    def _buildings(self) -> street.Thing:
        """All facades as one thing: bays sorted by depth; coordinates are the world's (l = z, w = x)."""
        rng, road = self.rng, self.road
        thing = street.Thing(0.0, 0.0, 0.0)
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
                front = side * (line + rng.uniform(0, 0.8))
                self._facade(thing, _Building((s, front), side, bays, bay, floors, storey, house))
                s += bays * bay + (rng.uniform(2, 8) if house else rng.choice((0.0, 0.0, 2.0)))
        return thing

    def _facade(self, thing: street.Thing, building: _Building) -> None:
        rng, road = self.rng, self.road
        (s, t), side, house = building.corner, building.side, building.house
        bay, floors, storey = building.bay, building.floors, building.storey
        wall = street.pick(rng, street.WALLS)
        trim = street.mix(wall, (235, 232, 226), rng.uniform(0.2, 0.8))
        top = floors * storey + rng.uniform(0.2, 0.8)
        wide, tall = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.68)
        shop = not house and rng.random() < 0.5
        awning = street.pick(rng, street.CLOTHES, 20)
        deep = rng.uniform(7, 11)

        def at(along: float, across: float, up: float) -> tuple[float, float, float]:
            x, z, _ = road.to_world(along, across)
            return (z, up, x)

        def pane(
            along0: float, along1: float, up0: float, up1: float, colour: street.Colour, owner: int, lamp: int = 0
        ) -> None:
            quad = [at(along0, t, up0), at(along1, t, up0), at(along1, t, up1), at(along0, t, up1)]
            thing.face(quad, colour, owner=owner, lamp=lamp)

        toward = (0.0, 0.0, -float(side))
        for k in range(building.bays):
            a0, a1 = s + k * bay, s + (k + 1) * bay
            tint = street.dim(wall, rng.uniform(0.95, 1.04))
            quad = [at(a0, t, 0), at(a1, t, 0), at(a1, t, top), at(a0, t, top)]
            owner = thing.face(quad, tint, toward)
            detailed = a0 < 60
            for floor in range(floors):
                base = floor * storey
                m = bay * (1 - wide) / 2
                glass = street.mix(street.GLASS, (130, 150, 170), rng.uniform(0, 0.5))
                lit = street.WINDOW if rng.random() < 0.35 else 0
                if floor == 0 and shop:
                    pane(a0 + 0.15, a1 - 0.15, 0.3, storey * 0.72, glass, owner, lit)
                    pane(a0, a1, storey * 0.74, storey * 0.92, awning, owner)
                elif floor == 0 and k == building.bays // 2:
                    pane(a0 + m, a0 + m + 1.0, 0.0, 2.1, street.dim(trim, 0.5), owner)
                else:
                    u0 = base + storey * (1 - tall) * 0.6
                    if detailed:
                        pane(a0 + m - 0.12, a1 - m + 0.12, u0 - 0.15, u0 + storey * tall + 0.12, trim, owner)
                    pane(a0 + m, a1 - m, u0, u0 + storey * tall, glass, owner, lit)
            pane(a0, a1, top - 0.25, top, street.dim(trim, 0.85), owner)
            if house:
                roof = street.mix((110, 60, 48), (70, 70, 78), rng.uniform(0, 0.4))
                ridge = t + side * deep / 2
                slope = [at(a0, t, top), at(a1, t, top), at(a1, ridge, top + 2.4), at(a0, ridge, top + 2.4)]
                thing.face(slope, roof, (0.0, 1.0, -float(side) * 0.5))
        end_wall = [at(s, t, 0), at(s, t + side * deep, 0), at(s, t + side * deep, top), at(s, t, top)]
        if house:
            end_wall = [*end_wall[:3], at(s, t + side * deep / 2, top + 2.4), end_wall[3]]
        thing.face(end_wall, street.dim(wall, 0.92), (-1.0, 0.0, 0.0))

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

        base: street.Colour = street.pick(rng, ((86, 108, 54), (104, 116, 62), (126, 112, 80)), 8)
        if road.style in ("city", "square"):
            base = street.pick(rng, ((150, 146, 140), (128, 124, 118)), 8)
        asphalt = street.pick(rng, ((92, 92, 95), (112, 110, 108), (74, 76, 80), (128, 124, 118)), 6)
        paving = street.pick(rng, ((164, 158, 150), (146, 140, 134), (176, 160, 140), (150, 120, 104)), 6)
        tile = _noise(rng, (128, 128), (8, 24, 64))
        fine = tile[(s * 9).astype(np.int32) & 127, (t * 9).astype(np.int32) & 127]
        coarse = tile[(s * 0.7).astype(np.int32) & 127, (t * 1.3).astype(np.int32) & 127]
        fade = np.clip(12.0 / np.maximum(depth, 1.0), 0.05, 1.0)[:, None]
        texture = (fine * 7.0 * fade + coarse * 5.0 * np.clip(fade * 2, 0, 1))[:, :, None]
        colours = np.empty((*s.shape, 3), np.float32)
        colours[:] = base

        def lay(mask: NDArray[Any], colour: street.Colour) -> None:
            colours[:] += (np.array(colour, np.float32) - colours) * mask[:, :, None]

        edge = road.half + road.pavement
        lay(band(t, -edge, edge, footprint), paving)
        joints = band(np.mod(s, 1.2), 0.0, 0.05, along) + band(np.mod(t, 1.2), 0.0, 0.05, footprint)
        lay(np.clip(joints, 0, 1) * band(t, -edge, edge, footprint) * 0.5 * fade, street.dim(paving, 0.7))
        lay(band(t, -road.half - 0.2, road.half + 0.2, footprint), street.mix(paving, (190, 190, 188), 0.4))
        lay(band(t, -road.half, road.half, footprint), asphalt)
        tracks = np.zeros_like(t)
        for wheel in (-0.68, -0.3, 0.3, 0.68):
            tracks += band(t, wheel * road.half - 0.3, wheel * road.half + 0.3, footprint + 0.3)
        lay(tracks * np.float32(0.12), (40, 40, 42))
        paint: street.Colour = (222, 220, 212) if rng.random() < 0.85 else (214, 180, 60)
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
            lay(patch * np.float32(0.5), street.dim(asphalt, rng.uniform(0.7, 1.15)))
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
            tone = street.pick(rng, ((70, 90, 66), (120, 116, 116), (96, 104, 116)))
            mixed = street.mix(tone, (float(self.haze[0]), float(self.haze[1]), float(self.haze[2])), haze)
            where = [np.round(outline * 16 - 8).astype(np.int32)]
            cv2.fillPoly(image, where, mixed, cv2.LINE_8, _SHIFT)
            cv2.fillPoly(samples, where, (far, 0.0, 0.0), cv2.LINE_8, _SHIFT)

    def _draw(
        self, thing: street.Thing, image: NDArray[np.uint8], samples: Floats, number: int
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
            colour = street.dim(part.colour, factor)
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
        drawn: Sequence[tuple[street.Thing, int, float, tuple[int, int, int, int]]],
        counts: Sequence[int],
        samples: Floats,
    ) -> tuple[Annotations, NDArray[np.uint8], Floats, Floats, list[int]]:
        numbers = samples[:, :, 1].astype(np.uint8)
        boxes, labels, ignore, heights, visible, numbered = [], [], [], [], [], []
        renumber = np.zeros(256, np.uint8)
        for n, ((thing, whole, inside, window), count) in enumerate(zip(drawn, counts, strict=True)):
            x0, y0, x1, y1 = window if not self.camera.distortion else (0, 0, numbers.shape[1], numbers.shape[0])
            found = numbers[y0:y1, x0:x1] == n + 1
            box = _extent(found, x0, y0)
            if box is None:
                continue
            wide, high = box[2] - box[0], box[3] - box[1]
            if wide * high < 4:
                continue
            part = count / max(whole, 1) * inside
            boxes.append(box)
            labels.append(thing.label)
            ignore.append(part < MIN_VISIBLE or max(wide, high) < MIN_SIDE_PX)
            heights.append(self._metric_height(thing))
            visible.append(part)
            numbered.append(n)
            renumber[n + 1] = len(boxes)
        annotations = Annotations(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(ignore, np.bool_)
        )
        parts = np.array(visible, np.float32)
        return annotations, renumber[numbers], np.array(heights, np.float32), parts, numbered

    def _metric_height(self, thing: street.Thing) -> float:
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


def _extent(found: NDArray[np.bool_], left: int, top: int) -> NDArray[np.float64] | None:
    """The box (4,) in pixels of the image around what was found in a window of samples; None where that is nothing."""
    columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
    if not len(columns):
        return None
    return np.array([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]) / _SS
