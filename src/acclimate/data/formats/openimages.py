"""Open Images: a csv of boxes in fractions, classes by machine ids, and a hierarchy of classes.

Boxes count for all classes above theirs too, and a box of a group is ignored, as in the official evaluation: a
detection inside a group is neither right nor wrong (`object_detection/utils/per_image_evaluation.py` of TensorFlow's
models with a group's weight of 0; `oid_hierarchical_labels_expansion.py` for the classes above, without the root). What
the evaluation does with image-level labels, to leave out classes that nobody checked, has no counterpart here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "an Open Images csv of boxes"

_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


def find(path: Path) -> bool:
    """A csv of boxes, or a folder with one in it or at most two folders further down."""
    return bool(_boxes([path]) if places.is_file(path) else _boxes(_tables(path)))


def _tables(folder: Path) -> Iterator[Path]:
    inner = [folder, *places.folders_in(folder)]
    inner += [below for place in inner[1:] for below in places.folders_in(place)]
    return (file for place in inner for file in places.files_in(place, ".csv"))


def _boxes(tables: Iterator[Path] | list[Path]) -> list[Path]:
    """The tables that have boxes."""
    return [file for file in tables if file.suffix.lower() == ".csv" and set(_COLUMNS) <= set(_header(file))]


def _header(file: Path) -> list[str]:
    return next(csv.reader([files.first_line(file)]), [])


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What a table of boxes says; see `formats.read`."""
    root = config.path.parent if places.is_file(config.path) else config.path
    table = config.path if places.is_file(config.path) else _chosen(root, config.split)
    names = _descriptions(root)
    above = _hierarchy(root)
    folders = [config.images] if config.images is not None else [table.parent, root]
    raw = Raw(table.stem)
    split = f"{config.split or ''} {table.stem} {table.parent.name}"
    resolver = places.Images(folders, [config.images or root], split=split)
    samples: dict[str, int | None] = {}
    missing = 0
    for number, row in _rows(table):
        where = f"{table}:{number}"
        identity, label = row.get("ImageID") or "", row.get("LabelName") or ""
        box = files.numbers([row.get(key) or "" for key in ("XMin", "YMin", "XMax", "YMax")])
        if not identity or not label or box is None:
            raw.problem(where, "no ImageID, LabelName or box of four numbers; left out")
            continue
        if identity not in samples:
            path = resolver.find(identity)
            samples[identity] = None if path is None else raw.sample(path, table, fractions=True)
        sample = samples[identity]
        if sample is None:
            missing += 1
            continue
        group = row.get("IsGroupOf")
        ignore = raw.flag(files.flag(group), where, "IsGroupOf", group)
        for kind in (label, *sorted(above.get(label, ()))):
            raw.add(sample, names.get(kind, kind), box, number, ignore)
    if missing:
        first = next(identity for identity, sample in samples.items() if sample is None)
        count = sum(sample is None for sample in samples.values())
        raw.problem(table, f"{count} images ({missing} boxes) are not there and are left out (the first: {first})")
    return raw


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """The rows of a table by their columns, and the line in which each ends.

    Raises:
        AcclimateError: a quotation mark is never closed, or a field is longer than any.
    """
    reader = csv.DictReader(io.StringIO(files.text(table) or "", newline=""), strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise AcclimateError(f"{table}:{reader.line_num + 1}: damaged CSV ({error}); copy the file again") from None


def _chosen(root: Path, split: str | None) -> Path:
    tables = every = _boxes(_tables(root))
    if split is not None:
        wanted = places.splits_in(split) or {split}
        tables = [
            file for file in tables if split in file.stem or wanted & places.splits_in(f"{file.stem} {file.parent}")
        ]
    if len(tables) == 1:
        return tables[0]
    there = ", ".join(str(file.relative_to(root)) for file in tables or every) or "none"
    raise AcclimateError(
        f"{root}: {len(tables)} csv files of boxes (there: {there}); set `split`, or name one as `path`"
    )


def _descriptions(root: Path) -> dict[str, str]:
    """Class names by machine id, from class-descriptions*.csv or FiftyOne's classes.csv."""
    for file in _tables(root):
        if file.stem.startswith(("class-descriptions", "classes", "oidv")) and not set(_COLUMNS) <= set(_header(file)):
            rows = map(next, map(csv.reader, ([line] for _, line in files.lines(files.text(file) or ""))))
            names = {row[0].strip(): row[1].strip() for row in rows if len(row) >= 2}
            names.pop("LabelName", None)
            if names:
                return names
    return {}


def _hierarchy(root: Path) -> dict[str, set[str]]:
    """The classes above each class, without the root."""
    inner = [root, *places.folders_in(root)]
    inner += [below for place in inner[1:] for below in places.folders_in(place)]
    for file in (file for place in inner for file in places.files_in(place, ".json")):
        if "hierarchy" in file.stem.casefold() and files.mentions(file, b'"LabelName"'):
            above: dict[str, set[str]] = {}
            tree = files.json_of(file)
            _descend(tree if isinstance(tree, dict) else {}, (), above)
            return above
    return {}


def _descend(node: dict[str, Any], ancestors: tuple[str, ...], above: dict[str, set[str]]) -> None:
    children = node.get("Subcategory")
    for child in children if isinstance(children, list) else ():
        if not isinstance(child, dict) or not isinstance(name := child.get("LabelName"), str):
            continue
        # A class may stand under several others.
        above.setdefault(name, set()).update(ancestors)
        _descend(child, (*ancestors, name), above)
