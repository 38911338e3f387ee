"""WIDER FACE: one text file a split: an image's path, the number of faces, and a line for each: x, y, width, height and
flags."""

from __future__ import annotations

from pathlib import Path

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.edge.images import SUFFIXES
from acclimate.errors import AcclimateError

FILES = "WIDER FACE's *_bbx_gt.txt"

_INVALID = 7
"""The column that says that a face is not to be counted."""


def find(path: Path) -> bool:
    """Such a file, or a folder with one in it or in wider_face_split/."""
    return path.name.endswith("_bbx_gt.txt") if places.is_file(path) else bool(_files(path))


def _files(folder: Path) -> list[Path]:
    return [file for place in (folder, folder / "wider_face_split") for file in places.files_in(place, "_bbx_gt.txt")]


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What a split's file says; see `formats.read`."""
    found = [config.path] if places.is_file(config.path) else _files(config.path)
    if config.split is not None:
        found = [file for file in found if places.splits_in(config.split) & places.splits_in(file.stem)]
    if len(found) != 1:
        there = ", ".join(file.name for file in _files(config.path)) or "none"
        raise AcclimateError(f"{config.path}: {len(found)} files of boxes (there: {there}); set `split`")
    file = found[0]
    root = file.parent.parent if file.parent.name == "wider_face_split" else file.parent
    raw = Raw(file.stem, classes=("face",))
    bases = (
        [config.images] if config.images else [*(f / "images" for f in places.folders_in(root)), root / "images", root]
    )
    named = [base for base in bases if places.splits_in(base.parent.name) & places.splits_in(file.stem)]
    resolver = places.Images([*named, *(base for base in bases if base not in named)], split=file.stem)
    sample, expected = -1, 0
    for number, line in files.lines(files.text(file) or ""):
        words = line.split()
        if line.lower().endswith(tuple(SUFFIXES)):
            sample = raw.sample(resolver.find(line) or bases[0] / line, file)
        elif len(words) == 1 and words[0].isdecimal():
            expected = int(words[0])
        elif sample < 0 or (values := files.numbers(words)) is None or len(values) < 4:
            raw.problem(f"{file}:{number}", f"neither an image nor a box: {line[:60]!r}; left out")
        elif expected:
            left, top, width, height = values[:4]
            ignore = len(values) > _INVALID and values[_INVALID] > 0
            raw.add(sample, "face", (left, top, left + width, top + height), number, ignore)
    return raw
