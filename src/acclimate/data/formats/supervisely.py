"""Supervisely: one JSON file an image in ann/, the images in img/; a box is the extent of a shape's outer points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "Supervisely's ann and img"


def find(path: Path) -> bool:
    """A folder with ann/ and img/, or a project with meta.json whose data sets have them."""
    return places.is_dir(path) and bool(_sets(path, deep=1))


def _sets(path: Path, deep: int = 8) -> list[Path]:
    """The data sets at a path and below it, as one may lie in another."""
    own = [path] if places.is_dir(path / "ann") and places.is_dir(path / "img") else []
    inner = [folder for folder in places.folders_in(path) if folder.name not in {"ann", "img"}] if deep else []
    return [*own, *(one for folder in inner for one in _sets(folder, deep - 1))]


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the files say; see `formats.read`."""
    sets = [
        folder for folder in _sets(config.path) if config.split is None or places.same_split(config.split, folder.name)
    ]
    if not sets:
        there = ", ".join(folder.name for folder in _sets(config.path)) or "none"
        raise AcclimateError(f"{config.path}: no data set of that name (there: {there}); set `split`")
    raw = Raw(
        f"{config.path.name}/{config.split}" if config.split else config.path.name,
        locate=lambda where, place: f"{where}: object {place}",
    )
    for folder in sets:
        images = config.images or folder / "img"
        resolver = places.Images([images])
        for file in places.files_below(folder / "ann", ".json"):
            if (taken := files.of_image(raw, file, _taken, "objects")) is None:
                continue
            size, items = taken
            # a.jpg.json belongs to a.jpg; the old form, a.json, to any image a.
            sample = raw.sample(resolver.find(file.stem) or images / file.stem, file, size)
            for number, item in enumerate(items, 1):
                _object(sample, item, number, raw)
    return raw


def _taken(content: Any) -> tuple[tuple[int, int] | None, list[Any]]:
    size = content.get("size") or {}
    return files.size(size.get("height"), size.get("width")), list(content["objects"])


def _object(sample: int, item: Any, number: int, raw: Raw) -> None:
    where = raw.locate(raw.samples[sample].where, number)
    name = item.get("classTitle") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raw.problem(where, "no classTitle; left out")
        return
    kind = str(item.get("geometryType") or "polygon")
    outer = item.get("points")
    points = files.points(outer.get("exterior")) if isinstance(outer, dict) else None
    if kind not in {"rectangle", "polygon"} or points is None or len(points) < 2:
        raw.problem(where, f"{name}: a {kind} has no box that is read; left out")
        return
    raw.add(sample, name, [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()], number)
