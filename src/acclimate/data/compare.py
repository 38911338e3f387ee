"""Domains side by side, before anything is trained: sizes, boxes on the network's input, light and colour, classes, and
images that are in two sets at once. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acclimate.data.formats import LabelledSet, Problem, UnlabelledSet
from acclimate.edge.headers import DEEP, read_header
from acclimate.edge.images import DEFAULT, Reading, intensity_of, read_image, turned
from acclimate.errors import AcclimateError
from acclimate.progress import in_threads
from acclimate.structures import Image

SMALL_PX = 8
"""A box of this side on the network's input is as large as one cell of the finest level of most detectors."""
NEAR_BITS = 6
"""Two images whose hashes differ in at most so many of 64 bits show the same."""
DARK_LEVELS, FAR = 25.0, 5.0
"""An outlier is so many grey levels, and so many robust standard deviations, away from its set's median."""
SHIFT_LEVELS = 30.0
"""A difference of medians between source and target from which it is said."""
FEW_BOXES = 50
BEYOND = 0.1
"""Values that go beyond a fixed range by such a part of it are told."""

_SIDE = 32
_SHOWN = 3

Role = Literal["source", "target", "test"]


@dataclass(frozen=True, slots=True)
class Look:
    """What one image looks like.

    Attributes:
        size: (height, width) in pixels.
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        colour: mean difference of the largest and the smallest of R, G and B; 0 is grey.
        hash: 64 bits, see `perceptual_hash`.
        deep: whether it has more than 8 bits.
    """

    size: tuple[int, int]
    brightness: float
    contrast: float
    colour: float
    hash: int
    deep: bool = False


@dataclass(frozen=True, slots=True)
class Domain:
    """A set as it takes part in the comparison.

    Attributes:
        role: what it is for.
        name: its path.
        looks: of the images that can be read.
        sides: (N,) sides of the boxes, the root of their areas, in pixels of the network's input.
        classes: boxes of each class; None where the set has no labels.
        reading: how its pictures are read.
        deep: how many of its pictures have more than 8 bits.
        values: what their values range over (`edge.images.intensity_of`).
        problems: what was left out of it.
    """

    role: Role
    name: str
    looks: Mapping[Path, Look]
    sides: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    classes: Mapping[str, int] | None = None
    problems: tuple[Problem, ...] = ()
    reading: Reading = DEFAULT
    deep: int = 0
    values: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The domains, and in words what matters about their differences."""

    image_size: tuple[int, int]
    domains: tuple[Domain, ...]
    findings: tuple[str, ...]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison for JSON: of each domain its counts and the quartiles of its boxes' sides, and the findings."""
    return {
        "image_size": list(comparison.image_size),
        "domains": [
            {
                "role": domain.role,
                "name": domain.name,
                "images": len(domain.looks),
                "classes": dict(domain.classes) if domain.classes is not None else None,
                "boxes": len(domain.sides),
                "sides_px": np.percentile(domain.sides, [25, 50, 75]).round(2).tolist() if len(domain.sides) else None,
                "problems": [str(problem) for problem in domain.problems],
            }
            for domain in comparison.domains
        ],
        "findings": list(comparison.findings),
    }


def perceptual_hash(grey: NDArray[np.float32]) -> int:
    """64 bits of a picture (32, 32): the signs of its lowest frequencies around their median.

    Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", the DCT hash. It stays what it is
    under scaling, compression and a change of brightness.
    """
    frequencies = cv2.dct(grey)[:8, :8].ravel()
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def look(path: Path, reading: Reading = DEFAULT) -> Look:
    """What an image looks like; a JPEG is decoded at a fraction of its size.

    Raises:
        AcclimateError: it cannot be read.
    """
    header = read_header(path)
    picture: Image | None = None
    if header.format == "jpeg":
        try:
            data = path.read_bytes()
            picture = simplejpeg.decode_jpeg(data, "RGB", min_height=2 * _SIDE, min_width=2 * _SIDE)
        except (OSError, ValueError):
            picture = None
        if picture is not None and reading.orientation == "apply":
            picture = turned(picture, header.orientation)
    if picture is None:
        picture = read_image(path, reading)
    small = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    return Look(
        size=header.size(reading.orientation),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        colour=float(np.ptp(small, axis=2).mean()),
        hash=perceptual_hash(grey),
        deep=header.bits > DEEP,
    )


def domain(
    role: Role,
    name: str,
    images: LabelledSet | UnlabelledSet,
    image_size: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
    reading: Reading | None = None,
) -> Domain:
    """Look at every image of a set.

    Args:
        role: what it is for.
        name: its path.
        images: the set.
        image_size: (height, width) of the network's input.
        progress: is called with how many of how many are done.
        reading: how pictures without labels are read; None for the usual way.

    Raises:
        AcclimateError: none of its images can be read.
    """
    reading = images.reading if isinstance(images, LabelledSet) else reading or DEFAULT
    looks: dict[Path, Look] = {}
    problems = list(images.problems)

    def attempt(path: Path) -> Look | str:
        try:
            return look(path, reading)
        except AcclimateError as error:
            return str(error).removeprefix(f"{path}: ").split(";")[0]

    for path, seen in in_threads(attempt, images.paths, progress):
        if isinstance(seen, str):
            problems.append(Problem(str(path), f"{seen}; left out"))
        else:
            looks[path] = seen
    if not looks:
        raise AcclimateError(f"{name}: none of its {len(images)} images can be read (the first: {problems[-1]})")
    deep = [path for path, seen in looks.items() if seen.deep]
    values = intensity_of(deep)
    if isinstance(images, UnlabelledSet):
        return Domain(role, name, looks, problems=tuple(problems), reading=reading, deep=len(deep), values=values)
    counts: Counter[int] = Counter()
    sides = [np.zeros(0)]
    for image in images.images:
        kept = image.annotations[~image.annotations.ignore]
        counts.update(kept.labels.tolist())
        scale = min(image_size[0] / image.height, image_size[1] / image.width)
        sides.append(np.sqrt((kept.boxes[:, 2:] - kept.boxes[:, :2]).prod(axis=1)) * scale)
    classes = {name: counts[label] for label, name in enumerate(images.classes)}
    return Domain(role, name, looks, np.concatenate(sides), classes, tuple(problems), reading, len(deep), values)


def compare(domains: Sequence[Domain], image_size: tuple[int, int]) -> Comparison:
    """Say what matters about a source, a target and any tests, in this order."""
    source, target, *tests = domains
    findings = [
        *_boxes(source, image_size), *_light(source, target), *_intensity(source, [target, *tests]),
        *_classes(source, tests),
    ]  # fmt: skip
    for test in tests:
        findings += _shared(test, source, "training has seen them, so it measures memory")
        findings += _shared(test, target, "the adaptation sees them; keep them apart, or say so with the number")
    findings += _shared(target, source, "they are no target images")
    for one in domains:
        findings += _outliers(one)
        if one.problems:
            count = len(one.problems)
            findings.append(f"{one.name}: {count} problem{'s' * (count > 1)}, the first: {one.problems[0]}")
    return Comparison(image_size, tuple(domains), tuple(findings))


def _boxes(source: Domain, image_size: tuple[int, int]) -> list[str]:
    sides = source.sides
    share = float((sides < SMALL_PX).mean()) if len(sides) else 0.0
    if share < 0.1:
        return []
    shown = f"{image_size[0]}x{image_size[1]}"
    amount = "half" if 0.45 <= share <= 0.55 else f"{share:.0%}"
    factor = SMALL_PX / max(float(np.quantile(sides, 0.1)), 1e-6)
    larger = " and ".join(f"{32 * int(np.ceil(side * factor / 32))}" for side in image_size)
    return [
        f"{source.name}: {amount} of its boxes are below {SMALL_PX} px on an input of {shown}, too small to be found; "
        f"an input of height and width {larger} brings nine of ten above it, or cut the images into tiles"
    ]


def _light(source: Domain, target: Domain) -> list[str]:
    said = []
    for name, less, more in (
        ("brightness", "darker", "brighter"),
        ("contrast", "lower in contrast", "higher in contrast"),
        ("colour", "less coloured", "more coloured"),
    ):
        values = [float(np.median([getattr(seen, name) for seen in one.looks.values()])) for one in (source, target)]
        difference = values[1] - values[0]
        limit = SHIFT_LEVELS if name == "brightness" else SHIFT_LEVELS / 2
        if abs(difference) >= limit:
            word = more if difference > 0 else less
            said.append(f"the target is {word} than the source: {name} {values[1]:.0f} against {values[0]:.0f}")
    sizes = [np.median([seen.size for seen in one.looks.values()], axis=0) for one in (source, target)]
    shapes = [size[1] / size[0] for size in sizes]
    if max(shapes) / min(shapes) > 1.25:
        shown = " against ".join(f"{size[1]:.0f}x{size[0]:.0f}" for size in reversed(sizes))
        said.append(f"the target's images have another shape: {shown} (width x height), so boxes change their sizes")
    return said


def _intensity(source: Domain, others: Sequence[Domain]) -> list[str]:
    """What fixed limits of black and white cut off, and sets that are scaled by different rules."""
    said = []
    fixed = source.reading.intensity
    for one in (source, *others):
        if fixed is not None and one.values is not None:
            width = fixed[1] - fixed[0]
            if max(fixed[0] - one.values[0], one.values[1] - fixed[1]) > BEYOND * width:
                said.append(
                    f"{one.name}: its values, {_limits(one.values)}, go beyond the intensity {_limits(fixed)}, where "
                    "all is black or white; give a wider one, or leave `intensity` out: then each picture has its own"
                )
        if (one.deep > 0) != (source.deep > 0):
            more, less = (source, one) if source.deep else (one, source)
            said.append(
                f"{more.name} has pictures of more than 8 bits and {less.name} has none: they are scaled by different "
                "rules, so light and contrast differ for that reason too"
            )
    return said


def _limits(values: tuple[float, float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


def _classes(source: Domain, tests: Sequence[Domain]) -> list[str]:
    said = []
    own = source.classes or {}
    rare = [f"{name} ({count})" for name, count in own.items() if count < FEW_BOXES]
    if rare:
        said.append(f"{source.name}: few boxes to learn from: {', '.join(rare)}")
    for test in tests:
        other = test.classes or {}
        unknown = [name for name, count in other.items() if count and name not in own]
        if unknown:
            named = ", ".join(unknown)
            what = "is no class" if len(unknown) == 1 else "are no classes"
            said.append(f"{test.name}: {named} {what} of the source; rename, ignore or drop (see data formats)")
        absent = [name for name, count in own.items() if count and not other.get(name)]
        if absent and set(absent) < set(own):
            said.append(f"{test.name}: has no box of {', '.join(absent)}, so these are not measured")
    return said


def _shared(one: Domain, other: Domain, why: str) -> list[str]:
    """Images of `one` that are in `other` too: the same file, or nearly the same picture."""
    files = {_identity(path): path for path in other.looks}
    same = [(path, files[_identity(path)]) for path in one.looks if _identity(path) in files]
    taken = {path for path, _ in same}
    near = near_duplicates({path: seen for path, seen in one.looks.items() if path not in taken}, other.looks)
    said = []
    for pairs, one_is, they_are in (
        (same, "is the same file as an image", "are the same files as images"),
        (near, "is nearly the same as an image", "are nearly the same as images"),
    ):
        if pairs:
            told = f"1 image {one_is}" if len(pairs) == 1 else f"{len(pairs)} images {they_are}"
            # One path where both sets hold the very file.
            first = " and ".join(dict.fromkeys(map(str, pairs[0])))
            said.append(f"{one.name}: {told} of {other.name} ({first}): {why}")
    return said


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def near_duplicates(ones: Mapping[Path, Look], others: Mapping[Path, Look]) -> list[tuple[Path, Path]]:
    """Images of `ones` with the first image of `others` that shows the same: hashes within `NEAR_BITS`.

    Pictures without contrast (a lens cap, fog alone) have no shape to compare, and are never near to anything.
    """
    left = [(path, seen.hash) for path, seen in ones.items() if seen.contrast >= 4]
    right = [(path, seen.hash) for path, seen in others.items() if seen.contrast >= 4]
    table = np.array([bits for _, bits in right], np.uint64)
    pairs = []
    for path, bits in left:
        differing = (table ^ np.uint64(bits)).view(np.uint16).reshape(-1, 4)
        near = np.flatnonzero(_BITS_SET[differing].sum(axis=1) <= NEAR_BITS)
        if len(near):
            pairs.append((path, right[near[0]][0]))
    return pairs


_BITS_SET = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
"""How many bits of a number below 65,536 are set."""


def _outliers(one: Domain) -> list[str]:
    """Images unlike the others of their set, such as a night frame among day images."""
    if len(one.looks) < 8:
        return []
    said = []
    paths = list(one.looks)
    for name, low, high in (
        ("brightness", "dark", "bright"), ("contrast", "flat", "harsh"), ("colour", "grey", "coloured"),
    ):  # fmt: skip
        values = np.array([getattr(one.looks[path], name) for path in paths])
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - middle)))
        away = values - middle
        odd = np.flatnonzero((np.abs(away) > DARK_LEVELS) & (np.abs(away) > FAR * max(spread, 1.0)))
        # A tenth of a set is no outlier but a part of it.
        if not len(odd) or len(odd) > max(1, len(paths) // 10):
            continue
        odd = odd[np.argsort(-np.abs(away[odd]))]
        words = {low if away[index] < 0 else high for index in odd}
        shown = ", ".join(f"{paths[index].name} ({values[index]:.0f})" for index in odd[:_SHOWN])
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        kind = " or ".join(sorted(words))
        said.append(f"{one.name}: unusually {kind} for the set ({name} {middle:.0f} as a rule): {shown}{more}")
    return said


def show(comparison: Comparison, console: Console) -> None:
    """Print the domains side by side, then the findings."""
    table = Table("", *(escape(f"{one.role}: {Path(one.name).name}") for one in comparison.domains), box=None)
    rows: list[tuple[str, Callable[[Domain], str]]] = [
        ("images", lambda one: f"{len(one.looks):,}"),
        ("width x height", _sizes),
        ("brightness", lambda one: _spread(one, "brightness")),
        ("contrast", lambda one: _spread(one, "contrast")),
        ("colour", lambda one: _spread(one, "colour")),
        ("boxes", lambda one: "-" if one.classes is None else f"{len(one.sides):,}"),
        ("boxes an image", lambda one: "-" if one.classes is None else f"{len(one.sides) / len(one.looks):.1f}"),
        ("box side, px of input", _sides),
        (f"boxes below {SMALL_PX} px", _share),
    ]
    if any(one.deep for one in comparison.domains):
        rows.append(("values above 8 bits", lambda one: "-" if one.values is None else _limits(one.values)))
    for name, cell in rows:
        table.add_row(name, *(escape(cell(one)) for one in comparison.domains))
    names = dict.fromkeys(name for one in comparison.domains for name in one.classes or ())
    for name in names:
        cells = ("-" if one.classes is None else f"{one.classes.get(name, 0):,}" for one in comparison.domains)
        table.add_row(escape(f"  {name}"), *cells)
    height, width = comparison.image_size
    console.print(
        f"input of the network: {height}x{width} (height x width); medians, and 5 % to 95 % in brackets", soft_wrap=True
    )
    console.print(table)
    for finding in comparison.findings:
        console.print(f"- {escape(finding)}", soft_wrap=True, highlight=False)
    if not comparison.findings:
        console.print("nothing stands out")


def _sizes(one: Domain) -> str:
    (height, width), count = Counter(seen.size for seen in one.looks.values()).most_common(1)[0]
    others = len({seen.size for seen in one.looks.values()}) - 1
    return f"{width}x{height}" + (f" ({count / len(one.looks):.0%}), {others} more" if others else "")


def _spread(one: Domain, name: str) -> str:
    low, middle, high = np.quantile([getattr(seen, name) for seen in one.looks.values()], (0.05, 0.5, 0.95))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _sides(one: Domain) -> str:
    if not len(one.sides):
        return "-"
    low, middle, high = np.quantile(one.sides, (0.05, 0.5, 0.95))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _share(one: Domain) -> str:
    return f"{(one.sides < SMALL_PX).mean():.0%}" if len(one.sides) else "-"
