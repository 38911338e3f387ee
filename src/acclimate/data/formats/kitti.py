"""KITTI: one text file an image; a class, then truncated, occluded, alpha, the box and seven numbers in space.

Fifteen columns, sixteen with a score, eight without the numbers in space; tracking's rows have a frame and a track
before the class, and one file a sequence. A class may be of several words.
"""

from __future__ import annotations

from pathlib import Path

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "KITTI's label_2"

_FOLDERS = (("label_2", "image_2"), ("label_02", "image_02"))
_NUMBERS = (14, 15, 7, 8)
"""How many numbers follow the class: without and with a score, with and without a place in space."""


def find(path: Path) -> bool:
    """label_2 (or tracking's label_02) in the folder or in training/; or labels/ with rows that begin with a word."""
    return places.is_dir(path) and (
        _root(path, None) is not None or _plain(path, None) is not None or bool(_splits(path))
    )


def _splits(path: Path) -> list[str]:
    """Folders that each are a set, as Datumaro writes the splits."""
    return [folder.name for folder in places.folders_in(path) if _root(folder, None) is not None]


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the label files say; see `formats.read`."""
    split = config.split
    place = _root(config.path, split) or _plain(config.path, split)
    if place is None and (splits := _splits(config.path)):
        chosen = splits if split is None else [name for name in splits if places.same_split(split, name)]
        if len(chosen) != 1:
            raise AcclimateError(f"{config.path}: several splits ({', '.join(splits)}); set `split`")
        split = chosen[0]
        place = _root(config.path, split)
    if place is None:
        raise AcclimateError(f"{config.path}: a KITTI set is a folder with image_2 and label_2")
    root, labels, beside = place
    images = config.images or beside
    raw = Raw(f"{config.path.name}/{config.split}" if config.split else config.path.name)
    names = [str(file.relative_to(labels).with_suffix("")) for file in places.files_below(labels, ".txt")]
    listed = split is not None and split not in {root.name, labels.name}
    if listed:
        folders = [base / part for base in (root, root.parent) for part in ("ImageSets", ".")]
        lines = places.split_list(folders, split or "")
        if lines is None:
            where = folders[0] / f"{split}.txt"
            raise AcclimateError(f"{config.path}: split {split!r} is neither a folder nor a list ({where})")
        listed_files = [places.label_of(labels, line, ".txt") for line in lines]
        names = [str(file.relative_to(labels).with_suffix("")) for file in listed_files]
    resolver = places.Images([images], split=config.split or "")
    for name in names:
        file = labels / f"{name}.txt"
        text = files.text(file)
        if text is None:
            raw.problem(file, "no label file; the image is left out")
            continue
        path = resolver.find(name)
        if path is None and places.is_dir(images / name):
            _sequence(file, text, images / name, raw)
        else:
            _still(file, text, path or images / f"{name}.png", raw)
    if not listed:
        places.tell_unlabelled(raw, images, [])
    return raw


def _still(file: Path, text: str, path: Path, raw: Raw) -> None:
    sample = raw.sample(path, file)
    frame = None
    for number, line in files.lines(text):
        row = _row(line)
        if row is None:
            raw.problem(f"{file}:{number}", f"not a KITTI label: {line[:60]!r}; left out")
            continue
        name, box, own = row
        frame = own if frame is None else frame
        if own != frame:
            raw.problem(f"{file}:{number}", f"a row of frame {own}, and the one image is frame {frame}; left out")
            continue
        raw.add(sample, name, box, number)


def _sequence(file: Path, text: str, folder: Path, raw: Raw) -> None:
    """Tracking: one file for the frames in a folder of its name. Frames without a row have no object."""
    frames = {int(path.stem): raw.sample(path, file) for path in places.images_below(folder) if path.stem.isdecimal()}
    for number, line in files.lines(text):
        row = _row(line)
        if row is None or row[2] is None:
            raw.problem(f"{file}:{number}", f"not a KITTI tracking label: {line[:60]!r}; left out")
        elif row[2] not in frames:
            raw.problem(f"{file}:{number}", f"no image of frame {row[2]} in {folder}; left out")
        else:
            raw.add(frames[row[2]], row[0], row[1], number)


def _row(line: str) -> tuple[str, list[float], int | None] | None:
    """(class, box, frame of a tracking row); None where the columns can be read in no way, or in two."""
    words = line.split()
    frame = None
    if len(words) > 3 and words[0].isdecimal() and words[1].lstrip("-").isdecimal() and not files.finite(words[2]):
        frame, words = int(words[0]), words[2:]
    first = next((place for place, word in enumerate(words) if files.finite(word)), len(words))
    if not first:
        return None
    # A class may end in a number ("Type 2"): the columns that follow tell where it ends.
    readings = []
    for start in range(first, len(words)):
        values = files.numbers(words[start:])
        if values is not None and len(values) in _NUMBERS:
            readings.append((" ".join(words[:start]), values))
    if len(readings) > 1:
        readings = [reading for reading in readings if _likely(reading[1])]
    return (readings[0][0], readings[0][1][3:7], frame) if len(readings) == 1 else None


def _likely(values: list[float]) -> bool:
    truncated, occluded, alpha, left, top, right, bottom, *_ = values
    return (
        (truncated == -1 or 0 <= truncated <= 1)
        and occluded in {-1, 0, 1, 2, 3}
        and abs(alpha) <= 10
        and right > left
        and bottom > top
    )


def _root(path: Path, split: str | None) -> tuple[Path, Path, Path] | None:
    """(root, labels, images) in KITTI's own names."""
    candidates = [path / split] if split else []
    candidates += [path, *filter(None, [places.folder_in(path, "training")])]
    for root in candidates:
        for labels, images in _FOLDERS:
            if (own := places.folder_in(root, labels)) is not None:
                return root, own, places.folder_in(root, images) or root / images
    return None


def _plain(path: Path, split: str | None) -> tuple[Path, Path, Path] | None:
    """(root, labels, images) where they are called labels and images, and the rows are KITTI's."""
    for root in ([path / split] if split else []) + [path]:
        labels, images = places.folder_in(root, "labels", "label"), places.folder_in(root, "images", "image")
        if labels is None or images is None:
            continue
        if split and places.is_dir(labels / split) and places.is_dir(images / split):
            labels, images = labels / split, images / split
        first = (next(files.lines(files.text(file) or ""), None) for file in places.files_below(labels, ".txt")[:20])
        rows = [row[1] for row in first if row is not None]
        if rows and all(not files.finite(row.split()[0]) and _row(row) is not None for row in rows):
            return root, labels, images
    return None
