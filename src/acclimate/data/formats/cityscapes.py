"""Cityscapes and Foggy Cityscapes: polygons in gtFine; a box is the extent of an instance's vertices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "Cityscapes' gtFine"

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""The eight classes of Cityscapes that have instances, in the order of the label ids."""


def find(path: Path) -> bool:
    """A folder with gtFine."""
    return places.is_dir(path / "gtFine")


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the polygon files say; see `formats.read`."""
    root, split = config.path, config.split or "train"
    labels, folder = folders(config, "gtFine", foggy=config.fog_level is not None)
    found: dict[str, dict[str | None, Path]] = {}
    for path in places.images_below(folder):
        match = re.fullmatch(r"(.+?)_leftImg8bit(?:_foggy_beta_([0-9.]+))?", path.stem)
        if match:
            found.setdefault(match[1], {})[match[2]] = path
    levels = sorted({level for images in found.values() for level in images if level is not None}, key=float)
    level = _fog_level(folder, levels, config.fog_level)

    raw = Raw(
        f"{root.name}/{split}" + (f"/fog {level}" if level else ""),
        classes=CLASSES,
        locate=lambda where, place: f"{where}: object {place}",
    )
    for file in places.files_below(labels, "_gtfine_polygons.json"):
        stem = file.name.removesuffix("_gtFine_polygons.json")
        image = found.get(stem, {}).get(level)
        if image is None:
            raw.problem(file, f"no image {stem}_leftImg8bit in {folder}; left out")
            continue
        if (told := files.of_image(raw, file, taken, "imgHeight, imgWidth and objects")) is not None:
            size, items = told
            _polygons(raw.sample(image, file, size), file, items, raw)
    return raw


def folders(config: DataConfig, kind: str, foggy: bool) -> tuple[Path, Path]:
    """Of a split: the folder of its label files below the folder `kind`, and that of its images.

    Raises:
        AcclimateError: there is no such split, or no folder of images.
    """
    root, split = config.path, config.split or "train"
    labels = root / kind / split
    if not places.is_dir(labels):
        there = ", ".join(folder.name for folder in places.folders_in(root / kind)) or "none"
        raise AcclimateError(f"{labels}: no such folder (splits there: {there}); set `split`")
    images = config.images or images_folder(root, foggy)
    return labels, images / split if places.is_dir(images / split) else images


def taken(content: Any) -> tuple[tuple[int, int], list[Any]]:
    """The size (height, width) of an image and its objects, of a file's content."""
    return (int(content["imgHeight"]), int(content["imgWidth"])), list(content["objects"])


def _polygons(sample: int, file: Path, items: Sequence[Any], raw: Raw) -> None:
    for number, item in enumerate(items, 1):
        where = f"{file}: object {number}"
        try:
            label = str(item["label"])
            name = label.removesuffix("group")
            if name not in CLASSES or item.get("deleted"):
                continue
            points = files.points(item["polygon"])
        except (AttributeError, TypeError, KeyError):
            points = None
        if points is None or not len(points):
            raw.problem(where, "no label or polygon; left out")
            continue
        box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        raw.add(sample, name, box, number, ignore=name != label)


def images_folder(root: Path, foggy: bool) -> Path:
    """The folder of images beside the labels; of those with fog where `foggy`, as far as there are any.

    Raises:
        AcclimateError: there is none, or there are several.
    """
    folders = [folder for folder in places.folders_in(root) if folder.name.startswith("leftImg8bit")]
    if not folders:
        raise AcclimateError(f"{root}: no leftImg8bit folder; name the image folder with `images`")
    preferred = [folder for folder in folders if ("fog" in folder.name) == foggy] or folders
    if len(preferred) > 1:
        names = ", ".join(folder.name for folder in preferred)
        raise AcclimateError(f"{root}: several image folders ({names}); name one with `images`")
    return preferred[0]


def _fog_level(folder: Path, levels: Sequence[str], wanted: float | None) -> str | None:
    if wanted is not None:
        for level in levels:
            if math.isclose(float(level), wanted):
                return level
        there = ", ".join(levels) or "none, these are clear images"
        raise AcclimateError(f"{folder}: no images of fog_level {wanted:g} (there: {there})")
    if len(levels) > 1:
        raise AcclimateError(
            f"{folder}: several fog levels ({', '.join(levels)}); choose one with fog_level = {levels[-1]}"
        )
    return levels[0] if levels else None
