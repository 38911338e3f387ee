"""YOLO: one text file an image, a line an object: its class's number, then its box in fractions of the image.

As data.yaml describes it (Ultralytics, Roboflow), and with the classes in a plain list: CVAT's YOLO 1.1 (obj.data,
obj.names), Darknet's (any .names, Roboflow's _darknet.labels) and Label Studio's, LabelImg's (classes.txt). Rows may
have a confidence, key points (pose) or be polygons.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "a YOLO data.yaml or classes.txt"

_NAME_LISTS = ("obj.names", "classes.txt", "_darknet.labels")
_SEEN = 50
"""So many label files are looked into to know what a folder holds."""


def find(path: Path) -> bool:
    """A yaml file, or a folder with one that has `names`; or one with a list of classes and rows of numbers."""
    if places.is_file(path):
        return path.suffix.lower() in {".yaml", ".yml"} or path.name == "obj.data"
    return _index(path) is not None or _names_file(path) is not None


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the index and the label files say; see `formats.read`."""
    index = config.path if places.is_file(config.path) else _index(config.path)
    if index is not None and index.suffix.lower() in {".yaml", ".yml"}:
        return _read_yaml(index, config)
    root = config.path.parent if places.is_file(config.path) else config.path
    names = _names_file(root)
    if names is None:
        raise AcclimateError(f"{config.path}: no data.yaml with `names` in this folder")
    return _read_plain(root, names, config)


def _read_yaml(index: Path, config: DataConfig) -> Raw:
    content = files.yaml_of(index)
    content = content if isinstance(content, dict) else {}
    split = config.split or "train"
    raw = Raw(f"{index.parent.name}/{split}")
    names = _names(index, content.get("names"), raw)
    raw.declare(index, list(names.values()))
    if files.finite(count := str(content.get("nc", ""))) and float(count) != len(names):
        raw.problem(index, f"nc is {count}, and `names` has {len(names)}; `names` counts")
    roots = [index.parent]
    if (given := _value(content, "path")) is not None:
        named = index.parent / str(given).replace("\\", "/")
        if places.is_dir(named):
            roots.insert(0, named)
    entries = next((_value(content, key) for key in content if places.same_split(split, str(key))), None)
    if config.images is not None:
        entries = str(config.images.absolute())
    if entries is None:
        folders = [root / f for root in roots for f in (f"images/{split}", f"{split}/images", split)]
        entries = next((str(folder.absolute()) for folder in folders if places.is_dir(folder)), None)
    if (
        entries is None
        and config.split is None
        and not any(_value(content, key) for key in content if places.splits_in(str(key)))
    ):
        # supervision's names no split at all.
        entries = str((places.folder_in(index.parent, "images") or index.parent).absolute())
    if entries is None:
        keys = [key for key in ("train", "val", "valid", "test") if _value(content, key) is not None]
        raise AcclimateError(f"{index}: no split {split!r} (there: {', '.join(keys) or 'none'}); set `split`")
    paths: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = _place(index, split, str(entry), roots, raw)
        if places.is_dir(place):
            paths += places.images_below(place, raw)
        else:
            paths += places.listed(place, (place.parent, *roots), raw)
    _add(paths, roots[0], names, _points(content.get("kpt_shape")), raw)
    return raw


def _value(content: dict[str, Any], key: str) -> Any:
    """What a key of a yaml says; None where it says nothing, in any of YAML's ways."""
    value = content.get(key)
    return None if value in (None, "", "~", "null", [], {}) else value


def _place(index: Path, split: str, entry: str, roots: Sequence[Path], raw: Raw) -> Path:
    """The folder or list that an entry of a yaml means.

    Roboflow writes ../train/images although the folder lies beside the yaml, and notebooks write absolute paths of
    their machine (/content/ds/train/images). What lies beside the yaml is taken; what is next door only where it is not
    there, and then it is said.
    """
    written = entry.replace("\\", "/")
    parts = [part for part in written.split("/") if part not in {"", ".", ".."}]
    own = [root.joinpath(*parts) for root in roots]
    as_written = [Path(os.path.normpath(root / written)) for root in roots]
    outside = written.startswith("..") and len(roots) == 1
    inside = next((place for place in own if _exists(place)), None)
    literal = next((place for place in as_written if _exists(place)), None)
    if outside:
        if inside is not None and literal is not None:
            raw.problem(index, f"{split}: {entry} is {inside} or {literal}; the one beside the yaml is read")
        elif inside is None and literal is not None and not _holds(literal, index.parent):
            raw.problem(index, f"{split}: {entry} is read from {literal}, outside of the yaml's folder")
        place = inside or literal
    else:
        place = literal or inside
    if place is None:
        tails = [root.joinpath(*parts[start:]) for start in range(1, len(parts)) for root in roots]
        place = next((tail for tail in tails if _exists(tail)), None)
    if place is None:
        raise AcclimateError(f"{index}: {split}: {as_written[0]} does not exist")
    return place


def _exists(path: Path) -> bool:
    return places.is_dir(path) or places.is_file(path)


def _holds(folder: Path, inner: Path) -> bool:
    """Whether one folder is the other, or one above it."""
    return inner.resolve().is_relative_to(folder.resolve())


def _read_plain(root: Path, names_file: Path, config: DataConfig) -> Raw:
    """A set whose classes stand in a list, a line each: no file says where its images are."""
    split = config.split or "train"
    raw = Raw(f"{root.name}/{config.split}" if config.split else root.name)
    names = dict(enumerate(_listed_names(names_file, raw)))
    raw.declare(names_file, list(names.values()))
    lists = [file for file in places.files_in(root, ".txt") if places.same_split(split, file.stem)]
    folders = [
        folder
        for base in (places.folder_in(root, "images"), root)
        if base is not None
        for folder in places.folders_in(base)
        if places.same_split(split, folder.name) or folder.name == f"obj_{split}_data"
    ]
    if config.images is not None:
        paths = places.images_below(config.images, raw)
    elif lists:
        paths = places.listed(lists[0], (lists[0].parent, root), raw)
    elif folders:
        paths = places.images_below(folders[0], raw)
    elif config.split is None:
        paths = places.images_below(places.folder_in(root, "images") or root, raw)
    else:
        raise AcclimateError(f"{root}: no split {split!r}, neither a folder nor a list {split}.txt; set `split`")
    _add(paths, root, names, None, raw)
    return raw


def _listed_names(file: Path, raw: Raw) -> list[str]:
    """The classes of a list, a line each."""
    content = files.text(file) or ""
    names = [line for _, line in files.lines(content)]
    if len(names) < len(content.rstrip().splitlines()):
        raw.problem(file, "has blank lines among the classes; they are passed over, and count for no number")
    return names


def _names(index: Path, written: Any, raw: Raw) -> dict[int, str]:
    """The class of each number."""
    if isinstance(written, str) and places.is_file(index.parent / written):
        written = _listed_names(index.parent / written, raw)
    if isinstance(written, list):
        written = {str(number): name for number, name in enumerate(written)}
    try:
        names = {int(key): name for key, name in written.items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if not names or not all(isinstance(name, str) for name in names.values()):
        raise AcclimateError(f"{index}: `names` must list the classes, or map their numbers to them")
    return dict(sorted(names.items()))


def _points(shape: Any) -> int | None:
    """How many numbers a row's key points have, where `kpt_shape` tells it."""
    try:
        return int(shape[0]) * int(shape[1])
    except (TypeError, ValueError, IndexError):
        return None


def _index(folder: Path) -> Path | None:
    """The yaml file of a YOLO set: data.yaml, or the only one that names classes."""
    if places.is_file(folder / "data.yaml"):
        return folder / "data.yaml"
    named = [
        file
        for file in places.files_in(folder, ".yaml", ".yml")
        if re.search(r"^names\s*:", files.text(file) or "", re.MULTILINE)
    ]
    return named[0] if len(named) == 1 else None


def _names_file(folder: Path) -> Path | None:
    """The list of classes of a set without a yaml, where there are rows that count in them."""
    if not places.is_dir(folder):
        return None
    inner = [folder, *places.folders_in(folder)]
    inner += [below for place in inner[1:] for below in places.folders_in(place)]
    known = (place / name for name in _NAME_LISTS for place in inner if places.is_file(place / name))
    others = (file for place in inner for file in places.files_in(place, ".names"))
    found = next(itertools.chain(known, others), None)
    if found is None:
        return None
    rows = (
        row[1].split()
        for place in inner
        for file in places.files_in(place, ".txt")[:_SEEN]
        if file.name not in _NAME_LISTS and (row := next(files.lines(files.text(file) or ""), None)) is not None
    )
    return found if any(len(row) >= 5 and files.numbers(row) is not None for row in rows) else None


def _add(paths: Iterable[Path], root: Path, names: dict[int, str], points: int | None, raw: Raw) -> None:
    """Add each image with the rows of its label file."""
    base, top = str(root.absolute()), str(root)
    labelled: list[tuple[Path, Path, str]] = []
    alike = places.Alike()
    for path in paths:
        candidates = _label_files(path, top, base)
        file, text = next(
            ((file, text) for file in candidates if (text := files.text(file)) is not None), (candidates[0], None)
        )
        if text is None:
            # Labels/, a.TXT, or a.jpg.txt.
            tried = [(str(file.parent), name) for file in candidates for name in (file.name, f"{path.name}.txt")]
            other = next((found for folder, name in tried if (found := alike.find(folder, name))), None)
            file, text = (Path(other), files.text(Path(other))) if other else (file, None)
        if text is None:
            raw.problem(file, "no label file; the image counts as one without objects")
        labelled.append((path, file, text or ""))
    reader = _reader(labelled, points)
    extra: dict[str, list[str]] = {}
    for path, file, text in labelled:
        sample = raw.sample(path, file, fractions=True)
        for number, line in files.lines(text):
            where = f"{file}:{number}"
            words = files.numbers(line.split())
            if words is None:
                raw.problem(where, f"not numbers: {line[:60]!r}; left out")
                continue
            box, remark = reader(words[1:])
            if box is None:
                raw.problem(where, f"{remark}; left out")
                continue
            if words[0] not in names:
                raw.problem(where, f"class {words[0]:g} is not in `names`; left out")
                continue
            if remark:
                extra.setdefault(remark, []).append(where)
            raw.add(sample, names[int(words[0])], box, number)
    for remark, wheres in extra.items():
        raw.problem(wheres[0], f"{remark} ({len(wheres)} rows, this the first)")
    _orphans(labelled, raw)


def _label_files(image: Path, top: str, base: str) -> list[Path]:
    """Where an image's label file may be, the likeliest first.

    .../images/a.jpg -> .../labels/a.txt for the folders called images inside of the set, then beside the image, then
    for those above the set.
    """
    parts = image.parts
    own = len(PurePath(top).parts) if str(image).startswith(top) else len(PurePath(base).parts)
    inside: list[Path] = []
    above: list[Path] = []
    for position in range(len(parts) - 2, -1, -1):
        if parts[position].casefold() == "images":
            swapped = Path(*parts[:position], "labels", *parts[position + 1 :]).with_suffix(".txt")
            (inside if position >= own or top in {"", "."} else above).append(swapped)
    return [*inside, image.with_suffix(".txt"), *above]


def _reader(
    labelled: Sequence[tuple[Path, Path, str]], points: int | None
) -> Callable[[list[float]], tuple[tuple[float, ...] | None, str]]:
    """How this set's rows are read: from a row's numbers after the class to its box, and a remark."""
    if points is not None:
        return lambda values: _pose(values) if len(values) in {4 + points, 4} else _row(values, posed=True)
    shape, told = _looks_like_points(labelled)
    if shape:
        return lambda values: (_pose(values)[0], told if len(values) > 5 else _pose(values)[1])
    if told:
        return lambda values: (_row(values)[0], told if len(values) > 5 else _row(values)[1])
    return _row


def _row(values: list[float], posed: bool = False) -> tuple[tuple[float, ...] | None, str]:
    if len(values) == 4:
        return _centred(values), ""
    if len(values) == 5 and 0 <= values[4] <= 1 and not posed:
        return _centred(values), "a sixth number, read as a confidence and left out of account"
    if len(values) == 6 and values[5] > 1 and values[5] % 1 == 0 and 0 <= values[4] <= 1 and not posed:
        return _centred(values), "a confidence and a track, left out of account"
    if len(values) >= 6 and len(values) % 2 == 0 and not posed:
        if not all(math.isfinite(value) for value in values):
            return (math.nan,) * 4, ""  # min and max may hide a NaN
        return (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])), ""
    expected = "the numbers that `kpt_shape` says" if posed else "5 (class x y w h)"
    return None, f"{len(values) + 1} fields, where a box has {expected}"


def _pose(values: list[float]) -> tuple[tuple[float, ...] | None, str]:
    return (_centred(values), "") if len(values) >= 4 else (None, f"{len(values) + 1} fields, where a box has 5")


def _centred(values: list[float]) -> tuple[float, ...]:
    x, y, w, h = values[:4]
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _looks_like_points(labelled: Sequence[tuple[Path, Path, str]]) -> tuple[int, str]:
    """How many numbers each key point seems to have, where no `kpt_shape` says so, and what is to be told of it.

    Rows of key points are all of one length; their points lie in their box, or are 0 0 where they are not seen. Read as
    such, a polygon's second corner is the box's size: that lies near the other corners, and a size does not.
    """
    rows = _long_rows(labelled)
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or (length := lengths.pop()) < 6:
        return 0, ""
    table = np.array(rows)
    if not np.isfinite(table).all():
        return 0, ""
    if (length - 4) % 3 == 0 and np.isin(table[:, 6::3], (0, 1, 2)).all():
        points = table[:, 4:].reshape(len(table), -1, 3)
        if length % 2 or (table[:, 6::3] == 2).any() or _within(table, points[..., :2]):
            return 3, ""
    if length % 2:
        return 0, ""
    points = table[:, 4:].reshape(len(table), -1, 2)
    if not _within(table, points):
        return 0, ""
    others = np.concatenate([table[:, None, :2], points], axis=1)
    low, high = others.min(axis=1), others.max(axis=1)
    beyond = np.maximum(low - table[:, 2:4], table[:, 2:4] - high).max(axis=1) / (high - low).max(axis=1).clip(1e-6)
    apart = float(np.mean(beyond > _APART))
    told = "a box and key points rather than a polygon, by their places; `kpt_shape` in the yaml would say it"
    if length > 6 and apart > 0.4:
        return 2, told
    likely = length == 6 or apart > 0.02
    return 0, "a polygon, which may be a box and key points; then set `kpt_shape` in the yaml" if likely else ""


_APART = 0.75
"""Of the extent of a row's other points: so far from them lies a size that is no corner."""


def _long_rows(labelled: Sequence[tuple[Path, Path, str]]) -> list[list[float]]:
    """What follows the class in the rows that hold more than a box and two numbers, of the first files."""
    rows: list[list[float]] = []
    for _, _, text in labelled:
        values = [(files.numbers(line.split()) or [])[1:] for _, line in files.lines(text)]
        rows += [row for row in values if len(row) > 5]
        if len(rows) > _SEEN:
            break
    return rows


def _within(table: NDArray[np.float64], points: NDArray[np.float64]) -> bool:
    """Whether nearly all points (rows, points, 2) lie in their rows' boxes; one that is not seen is 0 0."""
    centres, sides = table[:, None, :2], table[:, None, 2:4]
    inside = (np.abs(points - centres) <= sides * 0.55 + 0.005).all(axis=2)
    return bool((sides > 0).all() and np.mean(inside | ~points.any(axis=2)) > 0.95)


def _orphans(labelled: Sequence[tuple[Path, Path, str]], raw: Raw) -> None:
    """Label files whose image is not there are told, once a folder."""
    used = {str(file) for _, file, _ in labelled}
    images = {path.parent for path, _, _ in labelled}
    stems = {path.stem for folder in images for path in places.images_in(folder)}
    for folder in sorted({file.parent for _, file, _ in labelled}):
        left = [
            file
            for file in places.files_in(folder, ".txt")
            if str(file) not in used and file.stem not in stems and file.name not in _NAME_LISTS
            and _is_label(file)
        ]  # fmt: skip
        if left:
            raw.problem(folder, f"{len(left)} label files have no image and are left out (the first: {left[0].name})")


def _is_label(file: Path) -> bool:
    row = next(files.lines(files.text(file) or ""), None)
    return row is not None and len(row[1].split()) >= 5 and files.numbers(row[1].split()) is not None
