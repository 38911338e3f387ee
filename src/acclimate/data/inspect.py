"""What is in a data set: format, classes, sizes, problems, and a contact sheet to look at. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acclimate.config import DataConfig
from acclimate.data.formats import (
    LabelledImage,
    LabelledSet,
    Problem,
    UnlabelledSet,
    detect,
    read,
    unlabelled,
)
from acclimate.data.sound import not_placed, undecodable, unplaced
from acclimate.edge.draw import put_text, text_size
from acclimate.edge.headers import DEEP, read_header
from acclimate.edge.images import DEFAULT, Reading, intensity_of, letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.run import write_bytes
from acclimate.structures import Annotations, Image

SMALL_AREA_PX, LARGE_AREA_PX = 32**2, 96**2
"""COCO's bounds between small, medium and large boxes, in pixels of the stored image."""

_PROBLEMS_SHOWN = 10
_TILE = (240, 320)
_CAPTION = 20
_PALETTE = (
    (230, 57, 70), (42, 157, 143), (69, 123, 230), (244, 162, 40), (155, 93, 229), (0, 187, 249),
    (241, 91, 181), (120, 180, 40), (200, 120, 70), (70, 70, 90),
)  # fmt: skip
_GREY = (150, 150, 150)

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Counts over a data set.

    Attributes:
        path: what was inspected.
        format: of the labels, or "folder" for images without any.
        images: readable ones.
        empty: images without a box; None where there are no labels.
        classes: boxes of each class, without ignored ones, in the set's order.
        ignored: boxes that count neither for nor against.
        box_sizes: boxes by COCO's areas: small, medium, large.
        image_sizes: (width, height) -> images, the most frequent first.
        problems: what was left out, or read other than it is written.
        rotated: files that an EXIF tag turns.
        deep: files of more than 8 bits.
        values: what `edge.images.PERCENTILES` of the values in these are, over the set; None where there are none.
        intensity: what becomes black and white in them; None takes each picture's own percentiles.
    """

    path: str
    format: str
    images: int
    empty: int | None
    classes: Mapping[str, int]
    ignored: int
    box_sizes: Mapping[str, int]
    image_sizes: Mapping[tuple[int, int], int]
    problems: tuple[Problem, ...]
    rotated: int = 0
    deep: int = 0
    values: tuple[float, float] | None = None
    intensity: tuple[float, float] | None = None

    @property
    def boxes(self) -> int:
        return sum(self.classes.values())


def load(data: Path | DataConfig, reading: Reading | None = None) -> LabelledSet | UnlabelledSet:
    """The labelled set at a path or of a configuration; a path without labels that we know gives its images.

    Files that look like labels there, and that no format places, are problems. Pictures with labels are read as
    `reading` says, or as the set's own options do.

    Raises:
        AcclimateError: as `formats.read` and `formats.unlabelled` do.
    """
    if isinstance(data, DataConfig):
        return _whole(data, reading)
    if not data.exists() or detect(data) is None:
        images = unlabelled(data)
        return replace(images, problems=(*images.problems, *unplaced(data)))
    return _whole(DataConfig(path=data), reading)


def _whole(config: DataConfig, reading: Reading | None) -> LabelledSet:
    found = read(config, reading=reading)
    return replace(found, problems=(*found.problems, *not_placed(found, config)))


def decoded(
    found: LabelledSet | UnlabelledSet, progress: Callable[[int, int], None] | None = None
) -> LabelledSet | UnlabelledSet:
    """The set without the images that cannot be decoded, which become problems. Every image is decoded.

    Raises:
        AcclimateError: none of them can be.
    """
    reading = found.reading if isinstance(found, LabelledSet) else DEFAULT
    bad = undecodable(found.paths, reading, progress)
    if not bad:
        return found
    problems = (*found.problems, *(Problem(str(path), f"{reason}; left out") for path, reason in bad.items()))
    if len(bad) == len(found):
        where = found.name if isinstance(found, LabelledSet) else str(found.paths[0].parent)
        raise AcclimateError(f"{where}: none of its {len(found)} images can be read (the first: {problems[-len(bad)]})")
    if isinstance(found, LabelledSet):
        images = tuple(image for image in found.images if image.path not in bad)
        return replace(found, images=images, problems=problems)
    return replace(found, paths=tuple(path for path in found.paths if path not in bad), problems=problems)


def sheet_place(data: Path, sheet: Path | None = None) -> Path:
    """Where the contact sheet of a set goes: `sheet`, or NAME-sheet.jpg in the working directory, or beside the set's
    folder where that is the working directory or holds it.

    Raises:
        AcclimateError: `sheet` lies in the folder that is looked at, where it would become an image of the set.
    """
    root = data.resolve() if data.is_dir() else None
    place = sheet or Path(f"{data.resolve().name}-sheet.jpg")
    if root is None or not place.resolve().is_relative_to(root):
        return place
    if sheet is not None:
        raise AcclimateError(f"--sheet {sheet}: lies in {data}, and would become an image of it; choose another place")
    return root.parent / place.name


def summary(data: Path | DataConfig | LabelledSet | UnlabelledSet) -> DataSummary:
    """Count what is in a data set; images are not decoded, see `decoded`.

    Raises:
        AcclimateError: it cannot be read, or nothing in it is usable.
    """
    path = str(data.path if isinstance(data, DataConfig) else data if isinstance(data, Path) else "")
    found = load(data) if isinstance(data, Path | DataConfig) else data
    if isinstance(found, UnlabelledSet):
        return _folder_summary(path or str(found.paths[0].parent), found)
    sizes = Counter((image.width, image.height) for image in found.images)
    counts = dict.fromkeys(found.classes, 0)
    areas = dict.fromkeys(("small", "medium", "large"), 0)
    ignored = 0
    for image in found.images:
        kept = image.annotations[~image.annotations.ignore]
        ignored += len(image.annotations) - len(kept)
        for label in kept.labels:
            counts[found.classes[label]] += 1
        for area in (kept.boxes[:, 2:] - kept.boxes[:, :2]).prod(axis=1):
            areas["small" if area < SMALL_AREA_PX else "medium" if area < LARGE_AREA_PX else "large"] += 1
    return DataSummary(
        path=path or found.name,
        format=found.format,
        images=len(found),
        empty=sum(not len(image.annotations) for image in found.images),
        classes=counts,
        ignored=ignored,
        box_sizes=areas,
        image_sizes=dict(sizes.most_common()),
        problems=found.problems,
        rotated=found.rotated,
        deep=len(found.deep),
        values=intensity_of(found.deep),
        intensity=found.reading.intensity,
    )


def _folder_summary(path: str, found: UnlabelledSet) -> DataSummary:
    sizes: Counter[tuple[int, int]] = Counter()
    problems, rotated = list(found.problems), 0
    deep: list[Path] = []
    for image in found.paths:
        try:
            header = read_header(image)
            height, width = header.size()
            sizes[width, height] += 1
            rotated += header.orientation != 1
            deep += [image] if header.bits > DEEP else []
        except AcclimateError as error:
            problems.append(Problem(str(image), str(error).removeprefix(f"{image}: ")))
    if not sizes:
        raise AcclimateError(f"{path}: none of its {len(found)} images can be read (the first: {problems[0]})")
    ordered = dict(sizes.most_common())
    return DataSummary(
        path, "folder", sizes.total(), None, {}, 0, {}, ordered, tuple(problems), rotated, len(deep), intensity_of(deep)
    )


def print_summary(summary: DataSummary, console: Console) -> None:
    """Show a summary as a short text and a table of classes."""
    kind = "images without labels" if summary.empty is None else f"{summary.format} labels"
    console.print(f"[bold]{escape(summary.path)}[/bold]: {kind}, {_count(summary.images, 'image')}", soft_wrap=True)
    sizes = list(summary.image_sizes.items())
    shown = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes[:3])
    rest = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
    console.print(f"image sizes (width x height): {shown}{rest}", soft_wrap=True)
    if summary.rotated:
        are = "is" if summary.rotated == 1 else "are"
        console.print(f"{_count(summary.rotated, 'file')} {are} stored turned (EXIF orientation)", soft_wrap=True)
    if summary.deep:
        have = "has" if summary.deep == 1 else "have"
        values = "" if summary.values is None else ", with values from {:g} to {:g}".format(*summary.values)
        taken = (
            "each picture's own percentiles"
            if summary.intensity is None
            else "{:g} and {:g}".format(*summary.intensity)
        )
        told = f"{_count(summary.deep, 'file')} {have} more than 8 bits{values}; black and white are {taken}"
        console.print(told, soft_wrap=True)
    if summary.empty is not None:
        table = Table("class", "boxes", "share", box=None, pad_edge=False)
        table.columns[1].justify = table.columns[2].justify = "right"
        for name, count in summary.classes.items():
            table.add_row(escape(name), f"{count:,}", f"{count / max(1, summary.boxes):.1%}")
        console.print(table)
        areas = ", ".join(f"{count:,} {name}" for name, count in summary.box_sizes.items())
        console.print(
            f"{_count(summary.boxes, 'box', 'boxes')}: {areas} (below 32x32 px, up to 96x96 px, above); "
            f"{summary.ignored:,} more ignored; {_count(summary.empty, 'image')} without a box",
            soft_wrap=True,
        )
    print_problems(summary.problems, console)


def print_problems(problems: Sequence[Problem], console: Console) -> None:
    """Show the first problems, and how many there are."""
    if not problems:
        console.print("no problems found")
        return
    console.print(f"[yellow]{_count(len(problems), 'problem')}[/yellow]")
    for problem in problems[:_PROBLEMS_SHOWN]:
        console.print(f"  {escape(str(problem))}", soft_wrap=True, highlight=False)
    if len(problems) > _PROBLEMS_SHOWN:
        console.print(f"  and {len(problems) - _PROBLEMS_SHOWN} more")


def contact_sheet(found: LabelledSet | UnlabelledSet, out: Path, count: int = 16) -> Path:
    """Write a JPEG of `count` images in a grid, evenly spread over the set, with boxes, class names and a legend.

    Ignored boxes are grey. Of a labelled set, images that have boxes come first. Damaged images are skipped.

    Raises:
        AcclimateError: no image can be read, or `out` cannot be written.
    """
    tiles = []
    classes: tuple[str, ...] = ()
    reading = found.reading if isinstance(found, LabelledSet) else DEFAULT
    if isinstance(found, LabelledSet):
        classes = found.classes
        items: Sequence[LabelledImage] = [i for i in found.images if len(i.annotations)]
        items = items if len(items) >= count else found.images
        chosen = [(item.path, item.annotations) for item in _spread(items, count)]
    else:
        chosen = [(path, Annotations.empty()) for path in _spread(found.paths, count)]
    for path, boxes in chosen:
        try:
            tiles.append(_tile(path, boxes, classes, reading))
        except AcclimateError as error:
            problem = error
    if not tiles:
        raise problem
    columns = min(len(tiles), max(1, round(len(tiles) ** 0.5)))
    blank = np.full_like(tiles[0], 255)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    rows[-1] = [*rows[-1], *[blank] * (columns - len(rows[-1]))]
    grid = np.vstack([np.hstack(row) for row in rows])
    sheet = np.vstack([grid, *_legend(classes, grid.shape[1])])
    return write_bytes(out, simplejpeg.encode_jpeg(np.ascontiguousarray(sheet), quality=88, colorspace="RGB"))


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _tile(path: Path, annotations: Annotations, classes: Sequence[str], reading: Reading) -> Image:
    """The image letterboxed on white with its boxes, above its file name."""
    canvas, placed = letterbox(read_image(path, reading), _TILE, fill=255)
    canvas = canvas.copy()
    boxes = (annotations.boxes * placed.scale).round().astype(int)
    # Names of a crowd of small boxes would hide them; the legend tells the classes by colour.
    named = len(boxes) <= 8
    for (left, top, right, bottom), label, ignore in zip(boxes, annotations.labels, annotations.ignore, strict=True):
        colour = _GREY if ignore or label < 0 else _PALETTE[label % len(_PALETTE)]
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, 1)
        if named and label >= 0:
            name = f"{classes[label]} (ignored)" if ignore else classes[label]
            width = text_size(name, 0.35)[0] + 4
            x, y = max(0, min(left, _TILE[1] - width)), max(12, top)
            cv2.rectangle(canvas, (x, y - 12), (x + width, y), colour, -1)
            _write(canvas, name, (x + 2, y - 3), (255, 255, 255))
    caption = np.full((_CAPTION, _TILE[1], 3), 255, np.uint8)
    text = path.name if len(path.name) <= 48 else f"...{path.name[-45:]}"
    _write(caption, text, (2, 13), (60, 60, 60))
    return np.pad(np.vstack([canvas, caption]), ((4, 4), (4, 4), (0, 0)), constant_values=255)


def _legend(classes: Sequence[str], width: int) -> list[Image]:
    """Lines with a coloured square and a name for each class; none without classes."""
    lines: list[Image] = []
    x = width
    for label, name in enumerate(classes):
        needed = 24 + text_size(name, 0.35)[0]
        if x + needed > width:
            lines.append(np.full((20, width, 3), 255, np.uint8))
            x = 6
        cv2.rectangle(lines[-1], (x, 4), (x + 11, 15), _PALETTE[label % len(_PALETTE)], -1)
        _write(lines[-1], name, (x + 15, 14), (60, 60, 60))
        x += needed
    return lines


def _write(image: Image, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    put_text(image, text, place, 0.35, colour)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
