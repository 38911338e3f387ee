"""What stands in a street: road users, signs, trees and furniture as parts in metres, each drawn at random.

Frame of a thing: l forward, u up, w right, standing on the ground at (0, 0, 0). Faces are flat polygons, tubes have
round ends, balls are spheres; `scenes` turns, projects, shades and draws them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

CLASSES = ("car", "truck", "person", "bicycle", "traffic sign")
"""Class names in label order."""

CAR, TRUCK, PERSON, BICYCLE, SIGN = range(len(CLASSES))
HEADLIGHT, TAIL_LIGHT, LAMP, WINDOW = 1, 2, 3, 4
"""Codes of what shines at night; 0 does not."""

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]


@dataclass(slots=True)
class Part:
    """One primitive of a thing: points[start:stop] as a face, a tube (two points) or a ball (one point)."""

    start: int
    stop: int
    colour: Colour
    radius: float = 0.0
    outward: Point | None = None
    owner: int = -1
    lamp: int = 0
    shaded: bool = True


class Thing:
    """Something made of parts, standing on the ground.

    Args:
        x: metres to the right of the camera.
        z: metres before it.
        heading: radians right of forward.
        label: an index of `CLASSES`; -1 for what is no object of a class.
    """

    def __init__(self, x: float, z: float, heading: float, label: int = -1) -> None:
        self.x, self.z, self.heading, self.label = x, z, heading, label
        self.points: list[Point] = []
        self.parts: list[Part] = []
        self.convex = False
        """Whether no part can cover another one's details, so that these may all be drawn last."""

    def face(
        self,
        points: Sequence[Point],
        colour: Colour,
        outward: Point | None = None,
        owner: int = -1,
        lamp: int = 0,
        shaded: bool = True,
    ) -> int:
        """A flat polygon; returns its number.

        Args:
            points: its corners (forward, up, right), metres.
            colour: RGB, 0..255.
            outward: the side from which alone it shows.
            owner: the number of a face: this one shows when that does.
            lamp: a code of what shines at night; 0 does not.
            shaded: whether light falls on it.
        """
        start = len(self.points)
        self.points.extend(points)
        self.parts.append(Part(start, len(self.points), colour, 0.0, outward, owner, lamp, shaded))
        return len(self.parts) - 1

    def tube(
        self,
        a: Point,
        b: Point,
        radius: float,
        colour: Colour,
        lamp: int = 0,
        owner: int = -1,
    ) -> None:
        """A tube with round ends.

        Args:
            a: where it begins (forward, up, right), metres.
            b: where it ends.
            radius: metres.
            colour: as in `face`.
            lamp: as in `face`.
            owner: as in `face`.
        """
        start = len(self.points)
        self.points.extend((a, b))
        self.parts.append(Part(start, start + 2, colour, radius, None, owner, lamp))

    def ball(self, centre: Point, radius: float, colour: Colour, lamp: int = 0) -> None:
        """A sphere.

        Args:
            centre: (forward, up, right), metres.
            radius: metres.
            colour: as in `face`.
            lamp: as in `face`.
        """
        self.points.append(centre)
        self.parts.append(Part(len(self.points) - 1, len(self.points), colour, radius, None, -1, lamp))

    def box(
        self,
        centre: tuple[float, float],
        length: float,
        width: float,
        low: float,
        high: float,
        colour: Colour,
        top: Colour | None = None,
    ) -> dict[str, int]:
        """An upright box; returns its faces by name (front, back, left, right, top).

        Args:
            centre: (forward, right), metres.
            length: along the heading, metres.
            width: across it, metres.
            low: height of its lower face above the ground, metres.
            high: height of its upper face.
            colour: as in `face`.
            top: colour of its upper face; by default `colour`.
        """
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


def _disc(centre: Point, radius: float, points: int = 14) -> list[Point]:
    """A circle in the plane of l and u."""
    angles = [2 * math.pi * k / points for k in range(points)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a), centre[2]) for a in angles]


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """`a` at amount 0, `b` at amount 1."""
    return (a[0] + (b[0] - a[0]) * amount, a[1] + (b[1] - a[1]) * amount, a[2] + (b[2] - a[2]) * amount)


def dim(a: Colour, factor: float) -> Colour:
    """The colour, `factor` times as bright."""
    return (a[0] * factor, a[1] * factor, a[2] * factor)


def palette(codes: str) -> tuple[Colour, ...]:
    """Colours from hexadecimal codes, rrggbb, separated by blanks."""
    return tuple(
        (float(c >> 16), float(c >> 8 & 255), float(c & 255)) for c in (int(code, 16) for code in codes.split())
    )


_PAINT = palette(
    "e1e1e4 f0f0ec 96999e 5f6268 282a2e 1c1c20 a51c1e 781422 1e3e82 3a68a5 22543e c4ac46 ce6e22 968064 608c96"
)
CLOTHES = palette("1e2028 3c3e46 283860 506ea0 96282c be3c3c 3c5a3c c8beaa e6e4e0 cda032 785082 6e5038 dc783c 469696")
_SKIN = palette("ecc4a8 d6a482 b07a58 785038 54382a")
WALLS = palette("a86e58 8e5646 c4b498 d6cebe 969492 76787e bea078 b0babe 848c78 ccb2a8")
GLASS: Colour = (46, 58, 68)


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


def pick(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 10.0) -> Colour:
    """One of `colours`, varied with a deviation of `spread` in each channel."""
    base = colours[int(rng.integers(len(colours)))]
    shift = rng.normal(0, spread, 3)
    r, g, b = (float(np.clip(base[k] + shift[k], 8, 250)) for k in range(3))
    return (r, g, b)


def _wheel(thing: Thing, at: float, radius: float, side: float, owner: int, hub: Colour) -> None:
    thing.face(_disc((at, radius, side), radius), (24, 24, 26), owner=owner)
    thing.face(_disc((at, radius, side), radius * 0.62, 10), hub, owner=owner)
    thing.face(_disc((at, radius, side), radius * 0.2, 6), dim(hub, 0.5), owner=owner)


def _prism(
    thing: Thing, profile: Sequence[tuple[float, float]], half: Callable[[float], float], colour: Colour
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


def _inset(quad: Sequence[Point], amount: float) -> list[Point]:
    n = len(quad)
    c = [sum(p[k] for p in quad) / n for k in range(3)]
    return [(p[0] + (c[0] - p[0]) * amount, p[1] + (c[1] - p[1]) * amount, p[2] + (c[2] - p[2]) * amount) for p in quad]


def car(rng: np.random.Generator, x: float, z: float, heading: float) -> Thing:
    """A saloon, hatchback, estate, van or pickup: an extruded side profile with panes, lights, plates and wheels.

    Args:
        rng: what its shape and colours are drawn from.
        x: as of `Thing`.
        z: as of `Thing`.
        heading: as of `Thing`.
    """
    thing = Thing(x, z, heading, CAR)
    thing.convex = True
    kind = ("sedan", "hatchback", "estate", "van", "pickup")[int(rng.choice(5, p=(0.3, 0.26, 0.24, 0.11, 0.09)))]
    outline, panes, windows = _BODIES[kind]
    length = rng.uniform(*{"sedan": (4.3, 4.9), "hatchback": (3.6, 4.2), "pickup": (4.9, 5.3)}.get(kind, (4.2, 4.8)))
    height = rng.uniform(*{"van": (1.8, 2.05), "estate": (1.5, 1.75), "pickup": (1.7, 1.85)}.get(kind, (1.4, 1.54)))
    hw = rng.uniform(0.84, 0.95)
    paint = pick(rng, _PAINT)
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
    hub = pick(rng, ((170, 172, 176), (120, 122, 126), (60, 60, 64)))
    sky = rng.uniform(0.0, 0.35)
    glass = mix(GLASS, (150, 175, 200), sky)
    for side, owner in ((-1, left), (1, right)):
        pane = [(a * length, u * height) for a, u in windows]
        thing.face([(a, u, side * half(u)) for a, u in pane], glass, owner=owner)
        pillar = 0.45 * pane[1][0] + 0.55 * pane[2][0]
        top = 0.93 * height
        thing.tube((pillar, belt, side * half(belt)), (pillar, top, side * half(top)), 0.04, paint, owner=owner)
        low = [(0.47 * length, under), (0.47 * length, under * 1.45), (-0.47 * length, under * 1.45)]
        sill = [(a, u, side * hw) for a, u in [*low, (-0.47 * length, under)]]
        thing.face(sill, dim(paint, 0.55), owner=owner)
        for at in (0.3, -0.3):
            _wheel(thing, at * length, radius, side * (hw + 0.01), owner, hub)
            if at > 0:
                seam = 0.14 * length
                bottom, head = (seam, under * 1.4, side * hw), (seam, belt, side * hw)
                thing.tube(bottom, head, 0.012, dim(paint, 0.6), owner=owner)
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
        thing.face(quad, lamp, owner=nose, lamp=HEADLIGHT, shaded=False)
    grille = [(e, u0 * 0.72, -hw * 0.5), (e, u0 * 0.72, hw * 0.5), (e, u1, hw * 0.45), (e, u1, -hw * 0.45)]
    thing.face(grille, (30, 30, 32), owner=nose)
    tail = strips[-1] if kind in ("van", "pickup") else strips[-2]
    t0, t1 = height * 0.42, height * (0.58 if kind != "van" else 0.55)
    for side in (-1, 1):
        wide = rng.uniform(0.62, 0.78)
        quad = [(-e, t0, side * hw), (-e, t0, side * hw * wide), (-e, t1, side * hw * wide), (-e, t1, side * hw)]
        thing.face(quad, (190, 24, 24), owner=tail, lamp=TAIL_LIGHT, shaded=False)
    for edge, owner in ((e, nose), (-e, tail)):
        plate = [(edge, height * 0.26, -0.26), (edge, height * 0.26, 0.26), (edge, height * 0.34, 0.26)]
        thing.face([*plate, (edge, height * 0.34, -0.26)], (230, 228, 200), owner=owner)
    return thing


def truck(rng: np.random.Generator, x: float, z: float, heading: float) -> Thing:
    """A cab with a box or an open bed with a load. Arguments as of `car`."""
    thing = Thing(x, z, heading, TRUCK)
    hw = rng.uniform(1.1, 1.25)
    cab_length, cab_height = rng.uniform(1.7, 2.2), rng.uniform(2.3, 2.9)
    load_length = rng.uniform(3.6, 7.0)
    length = cab_length + load_length + 0.15
    front, back = length / 2, -length / 2
    cab = pick(rng, _PAINT)
    deck = rng.uniform(0.85, 1.05)
    thing.box((-0.05, 0), length - 0.3, hw * 1.2, 0.45, deck, (36, 36, 38))
    style = int(rng.integers(3))
    load_mid = back + load_length / 2
    top = rng.uniform(max(2.6, cab_height - 0.1), 3.6)
    if style < 2:
        colour = pick(
            rng, ((232, 232, 230), (214, 214, 210), (60, 90, 150), (170, 40, 40), (220, 190, 80), (90, 130, 90))
        )
        faces = thing.box((load_mid, 0), load_length, 2 * hw, deck, top, colour)
        band = pick(rng, CLOTHES, 20)
        b0, b1 = sorted(rng.uniform(deck + 0.2, top - 0.2, 2))
        l0, l1 = back + 0.06 * load_length, back + 0.94 * load_length
        if rng.random() < 0.4:
            l1 = l0 + (l1 - l0) * rng.uniform(0.3, 0.7)
        for side, name in ((-1, "left"), (1, "right")):
            quad = [(l0, b0, side * hw), (l1, b0, side * hw), (l1, b1, side * hw), (l0, b1, side * hw)]
            thing.face(quad, band, owner=faces[name])
        rear = faces["back"]
        thing.tube((back, deck, 0), (back, top, 0), 0.03, dim(colour, 0.5), owner=rear)
        for side in (-1, 1):
            thing.tube((back, deck, side * hw * 0.9), (back, top, side * hw * 0.9), 0.03, dim(colour, 0.6), owner=rear)
    else:
        colour = pick(rng, ((170, 120, 40), (110, 112, 116), (60, 100, 60), (150, 60, 40)))
        wall = deck + rng.uniform(0.5, 1.0)
        faces = thing.box((load_mid, 0), load_length, 2 * hw, deck, wall, colour)
        ribs = np.linspace(back + 0.2, back + load_length - 0.2, 6)
        for side, name in ((-1, "left"), (1, "right")):
            for rib in ribs:
                thing.tube((rib, deck, side * hw), (rib, wall, side * hw), 0.05, dim(colour, 0.7), owner=faces[name])
        for _ in range(5):
            at = rng.uniform(back + 0.8, back + load_length - 0.8)
            thing.ball(
                (at, wall - 0.1, rng.uniform(-0.4, 0.4) * hw), rng.uniform(0.4, 0.8), pick(rng, ((120, 96, 70),))
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
    glass = mix(GLASS, (150, 175, 200), rng.uniform(0, 0.3))
    (a0, u0), (a1, u1) = profile[1], profile[2]
    screen = [(a0, u0 + 0.1, -hw * 0.88), (a0, u0 + 0.1, hw * 0.88), (a1, u1, hw * 0.85), (a1, u1, -hw * 0.85)]
    thing.face(screen, glass, owner=strips[1])
    for side in (-1, 1):
        lamp = [(front + 0.02, 0.6, side * hw * 0.92), (front + 0.02, 0.6, side * hw * 0.65)]
        lamp += [(front + 0.02, 0.85, side * hw * 0.65), (front + 0.02, 0.85, side * hw * 0.92)]
        thing.face(lamp, (240, 240, 230), owner=strips[0], lamp=HEADLIGHT, shaded=False)
        red = [(back - 0.03, 0.75, side * hw * 0.95), (back - 0.03, 0.75, side * hw * 0.7)]
        red += [(back - 0.03, 0.98, side * hw * 0.7), (back - 0.03, 0.98, side * hw * 0.95)]
        thing.face(red, (190, 24, 24), owner=rear, lamp=TAIL_LIGHT, shaded=False)
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
    thing: Thing,
    rng: np.random.Generator,
    h: float,
    joints: dict[str, Point],
    trousers: Colour,
    shirt: Colour,
) -> None:
    """Draw a body of height `h` through its joints; the names end in 0 (left) and 1 (right)."""
    skin = pick(rng, _SKIN, 6)
    shoes = pick(rng, ((30, 28, 28), (220, 220, 220), (110, 70, 50), (160, 40, 40)))
    stout = rng.uniform(0.85, 1.25)
    for k in ("0", "1"):
        thing.tube(joints["hip" + k], joints["knee" + k], 0.046 * h * stout, trousers)
        thing.tube(joints["knee" + k], joints["foot" + k], 0.034 * h * stout, dim(trousers, 0.94))
        foot = joints["foot" + k]
        thing.tube(foot, (foot[0] + 0.07 * h, foot[1] - 0.012 * h, foot[2]), 0.026 * h, shoes)
        thing.tube(joints["shoulder" + k], joints["elbow" + k], 0.032 * h * stout, dim(shirt, 0.9))
        thing.tube(joints["elbow" + k], joints["hand" + k], 0.026 * h * stout, dim(shirt, 0.9))
        thing.ball(joints["hand" + k], 0.026 * h, skin)
        thing.tube(joints["shoulder" + k], joints["hip" + k], 0.062 * h * stout, shirt)
    middle = [
        tuple((joints[name + "0"][k] + joints[name + "1"][k]) / 2 for k in range(3)) for name in ("shoulder", "hip")
    ]
    chest, waist = cast(list[Point], middle)
    thing.tube(chest, waist, 0.075 * h * stout, shirt)
    head = joints["head"]
    thing.tube(chest, head, 0.034 * h, dim(skin, 0.85))
    thing.ball(head, 0.066 * h, skin)
    if rng.random() < 0.85:
        hair = pick(rng, ((30, 24, 20), (70, 46, 30), (150, 116, 70), (130, 130, 130), (170, 40, 40), (40, 60, 110)))
        thing.ball((head[0] - 0.018 * h, head[1] + 0.026 * h, head[2]), 0.058 * h, hair)


def person(rng: np.random.Generator, x: float, z: float, heading: float) -> Thing:
    """Somebody who walks or stands: an adult or a child, perhaps with a bag, a rucksack or a long coat. Arguments as of
    `car`."""
    thing = Thing(x, z, heading, PERSON)
    h = rng.uniform(1.55, 1.9) if rng.random() < 0.88 else rng.uniform(1.05, 1.4)
    stride = rng.uniform(0.15, 0.6) if rng.random() < 0.7 else rng.uniform(0.0, 0.08)
    phase = rng.uniform(0, 2 * math.pi)
    lean = rng.uniform(-0.02, 0.06) * h
    joints: dict[str, Point] = {"head": (lean * 1.2, 0.925 * h, 0.0)}
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
    shirt, trousers = pick(rng, CLOTHES), pick(rng, CLOTHES[:8])
    _limbs(thing, rng, h, joints, trousers, shirt)
    extra = rng.random()
    if extra < 0.2:
        thing.tube((-0.1 * h, 0.76 * h, 0), (-0.1 * h, 0.6 * h, 0), 0.08 * h, pick(rng, CLOTHES))
    elif extra < 0.35:
        hand = joints["hand1"]
        thing.tube(
            (hand[0], hand[1] - 0.08 * h, hand[2]), (hand[0], hand[1] - 0.16 * h, hand[2]), 0.06 * h, (90, 60, 40)
        )
    elif extra < 0.5:
        for side in (-1, 1):
            thing.tube((0, 0.5 * h, side * 0.06 * h), (0.02, 0.33 * h, side * 0.08 * h), 0.075 * h, shirt)
    return thing


def bicycle(rng: np.random.Generator, x: float, z: float, heading: float) -> tuple[Thing, Thing | None]:
    """A bicycle, and its rider if it has one. Arguments as of `car`."""
    thing = Thing(x, z, heading, BICYCLE)
    size = rng.uniform(0.92, 1.06)
    r = 0.34 * size
    frame = pick(rng, _PAINT, 20)
    tyre: Colour = (24, 24, 24)
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
    rider = Thing(x * scale, z * scale, heading, PERSON)
    h = rng.uniform(1.6, 1.85)
    lean = rng.uniform(0.12, 0.4)
    turn = rng.uniform(0, math.pi)
    joints: dict[str, Point] = {"head": (-0.18 + lean + 0.1, 0.95 * size + 0.43 * h, 0.0)}
    for name, side in (("0", -1), ("1", 1)):
        pedal = (crank[0] + side * 0.16 * math.cos(turn), crank[1] + side * 0.16 * math.sin(turn), side * 0.1)
        hip = (-0.2, 0.95 * size, side * 0.08)
        knee = ((hip[0] + pedal[0]) / 2 + 0.26, (hip[1] + pedal[1]) / 2 + 0.1, side * 0.1)
        shoulder = (-0.18 + lean, 0.95 * size + 0.3 * h, side * 0.115 * h)
        hand = (bars[0], bars[1] + 0.02, side * 0.22)
        elbow = ((shoulder[0] + hand[0]) / 2 - 0.06, (shoulder[1] + hand[1]) / 2 - 0.06, side * 0.26)
        joints |= {"hip" + name: hip, "knee" + name: knee, "foot" + name: pedal}
        joints |= {"shoulder" + name: shoulder, "elbow" + name: elbow, "hand" + name: hand}
    _limbs(rider, rng, h, joints, pick(rng, CLOTHES[:8]), pick(rng, CLOTHES))
    return thing, rider


def sign(rng: np.random.Generator, x: float, z: float, heading: float) -> tuple[Thing, Thing]:
    """The plate, which is the labelled object, and its pole. Arguments as of `car`."""
    pole = Thing(x, z, heading)
    plate = Thing(x, z, heading, SIGN)
    r = rng.uniform(0.34, 0.5)
    u = rng.uniform(2.0, 2.7)
    kind = int(rng.integers(7))
    red, white, black = (196, 26, 34), (238, 238, 236), (26, 26, 28)
    blue, yellow = (24, 80, 168), (244, 196, 40)
    pole.tube((0.05, 0.0, 0.0), (0.05, u + r * 0.6, 0.0), 0.04, (140, 142, 144))

    def shape(sides: int, radius: float, turn: float, colour: Colour, layer: int, height: float = u) -> None:
        angles = [turn + 2 * math.pi * k / sides for k in range(sides)]
        edge = -0.004 * layer
        plate.face([(edge, height + radius * math.sin(a), radius * math.cos(a)) for a in angles], colour, shaded=False)

    def bar(w0: float, w1: float, u0: float, u1: float, colour: Colour, layer: int) -> None:
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


def tree(rng: np.random.Generator, x: float, z: float, small: bool) -> Thing:
    """A tree or a bush.

    Args:
        rng: what its shape and colours are drawn from.
        x: as of `Thing`.
        z: as of `Thing`.
        small: whether it is a bush.
    """
    thing = Thing(x, z, 0.0)
    green = pick(rng, ((70, 104, 46), (54, 88, 44), (92, 116, 50), (116, 110, 48), (150, 98, 40)), 8)
    if small:
        height, spread, base = rng.uniform(0.5, 1.3), rng.uniform(0.4, 0.9), 0.0
        count = 22
    else:
        height, spread, base = rng.uniform(3.5, 7.5), rng.uniform(1.1, 2.2), rng.uniform(1.6, 2.6)
        count = 44
        bark = pick(rng, ((84, 66, 50), (110, 100, 88), (60, 50, 42)))
        thing.tube((0, 0, 0), (rng.uniform(-0.2, 0.2), base + 1.0, 0), rng.uniform(0.09, 0.2), bark)
    middle = (base + height) / 2
    for _ in range(count):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction) + 1e-6
        reach = rng.uniform(0.3, 0.9)
        a, b, c = (float(v) for v in direction * reach)
        centre = (a * spread, middle + b * (height - base) / 2, c * spread)
        tone = 0.72 + 0.4 * (b * 0.5 + 0.5) + rng.normal(0, 0.08)
        thing.ball(centre, rng.uniform(0.18, 0.42) * spread, dim(green, tone))
    return thing


def lamp_post(rng: np.random.Generator, x: float, z: float, toward: float) -> Thing:
    """A street lamp.

    Args:
        rng: what its shape and colours are drawn from.
        x: as of `Thing`.
        z: as of `Thing`.
        toward: where its arm reaches: to the right where it is positive, else to the left.
    """
    thing = Thing(x, z, 0.0)
    height = rng.uniform(4.5, 6.5)
    grey = pick(rng, ((90, 92, 94), (60, 66, 62), (140, 142, 144)))
    reach = toward * rng.uniform(0.8, 1.8)
    thing.tube((0, 0, 0), (0, height, 0), 0.065, grey)
    thing.tube((0, height, 0), (0, height + 0.15, reach), 0.05, grey)
    thing.tube((0, height + 0.1, reach), (0, height + 0.1, reach * 1.25), 0.1, (214, 214, 206), lamp=LAMP)
    return thing


def distractor(rng: np.random.Generator, x: float, z: float, heading: float) -> Thing:
    """Street furniture that shares shapes and colours with the classes and is none of them. Arguments as of `car`."""
    thing = Thing(x, z, heading)
    kind = int(rng.integers(8))
    colour = pick(rng, _PAINT + CLOTHES, 14)
    if kind == 0:
        faces = thing.box((0, 0), 0.6, 0.6, 0.05, rng.uniform(0.9, 1.25), colour, dim(colour, 0.6))
        thing.face(
            [(0.3, 0.5, -0.15), (0.3, 0.5, 0.15), (0.3, 0.7, 0.15), (0.3, 0.7, -0.15)],
            (230, 230, 230),
            owner=faces["front"],
        )
    elif kind == 1:
        thing.tube((0, 0, 0), (0, rng.uniform(0.7, 1.1), 0), rng.uniform(0.06, 0.13), colour)
        thing.ball((0, 0.95, 0), 0.1, dim(colour, 1.2))
    elif kind == 2:
        wide, low, high = rng.uniform(1.4, 3.2), rng.uniform(0.6, 1.8), rng.uniform(2.4, 3.6)
        for w in (-wide * 0.4, wide * 0.4):
            thing.tube((0.05, 0, w), (0.05, high, w), 0.06, (90, 90, 94))
        thing.face([(0, low, -wide / 2), (0, low, wide / 2), (0, high, wide / 2), (0, high, -wide / 2)], colour)
        for _ in range(4):
            w0, w1 = sorted(rng.uniform(-wide / 2, wide / 2, 2))
            u0, u1 = sorted(rng.uniform(low, high, 2))
            thing.face([(-0.01, u0, w0), (-0.01, u0, w1), (-0.01, u1, w1), (-0.01, u1, w0)], pick(rng, CLOTHES, 30))
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
        thing.box((0, 0), length, rng.uniform(1.4, 2.0), 0.1, rng.uniform(1.1, 2.3), colour, dim(colour, 0.8))
        if rng.random() < 0.5:
            for k in range(1, 5):
                at = -length / 2 + k * length / 5
                thing.tube((at, 0.2, -0.72), (at, 1.0, -0.72), 0.04, dim(colour, 0.7))
    elif kind == 6:
        thing.tube((0, 0, 0), (0, 2.6, 0), 0.05, (70, 72, 74))
        thing.box((0, 0), 0.25, 0.3, 2.3, 3.1, (30, 32, 32))
        for k, light in enumerate(palette("b42828 aa8c28 328c46")):
            thing.ball((-0.14, 2.95 - 0.26 * k, 0), 0.1, light if rng.random() < 0.5 else dim(light, 0.4))
    else:
        high = rng.uniform(1.6, 2.3)
        thing.tube((0, 0, 0), (0, high, 0), 0.16, colour)
        thing.tube((0, high, 0), (0, high + 0.15, 0), 0.22, dim(colour, 0.7))
    return thing
