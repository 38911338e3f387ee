"""What reading a set does not show: label files that no format places, and images whose headers promise too much."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import simplejpeg

from acclimate.config import DataConfig
from acclimate.data.formats import LabelledSet, Problem, files, looked_for, places
from acclimate.edge.headers import read_header
from acclimate.edge.images import DEFAULT, Reading, decode_image, read_image
from acclimate.errors import AcclimateError
from acclimate.progress import in_threads

_TEXTS = (".txt", ".xml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".yaml", ".yml", ".gt", ".lst")
_BINARY = (".mat", ".tfrecord", ".tfrecords", ".parquet", ".h5", ".hdf5", ".pkl", ".npz", ".arrow")
_PACKED = (".json.gz", ".xml.gz", ".csv.gz", ".txt.gz")
_WORDS = (
    b"bbox", b"xmin", b"x_min", b"shapes", b"annotation", b"boundingbox", b"bounding_box", b"labelname", b"category",
    b"polygon", b"objects", b"names:",
)  # fmt: skip
_FOLDERS = ("label", "annot", "gt", "ground", "bbox")
_LOOKED_AT = 1 << 16


def unplaced(folder: Path) -> list[Problem]:
    """Files below a folder that look like labels, where no format knows the folder; one line for each kind of file.

    Looks like labels what has the name of an image, what lies in a folder called labels or the like, and what speaks of
    boxes.
    """
    if not folder.is_dir():
        return []
    stems = {path.stem for path in places.images_below(folder)}
    return _told(folder, [file for file in _candidates(folder) if _may_be_label(file, folder, stems)])


def not_placed(found: LabelledSet, config: DataConfig) -> list[Problem]:
    """Files below a labelled set's folder that hold boxes, and that its reader did not take; likewise.

    Files of another split than those that were read are left alone, and so is all of a set of which a split is chosen.
    """
    if not config.path.is_dir() or config.split is not None:
        return []
    root = config.path
    known = {_file_of(where) for where in (*found.label_files, *(problem.where for problem in found.problems))}
    read = [Path(where) for where in known] + list(found.paths[:_SOME])
    own = frozenset().union(*(_splits_below(path, root) for path in read[:_SOME] + read[-_SOME:]))
    stems = {path.stem for path in found.paths}
    left = [
        file
        for file in _candidates(root)
        if _file_of(str(file)) not in known
        and not ((there := _splits_below(file, root)) and not there & own)
        and not _SIDE.search(str(file.relative_to(root)))
        and _holds_boxes(file, stems)
    ]
    return _told(root, left, f"read as {found.format}")


_SIDE = re.compile(
    r"(?:^|/)(?:calib|oxts|velodyne|poses|captions_|person_keypoints_|panoptic_|stuff_)[^/]*(?:/|$)", re.IGNORECASE
)
"""What lies beside the boxes of KITTI and COCO."""
_SOME = 2000


def _file_of(where: str) -> str:
    """The file that a problem's or a sample's `where` begins with."""
    return re.sub(r":\d+$", "", where.partition(": ")[0])


def _splits_below(path: Path, root: Path) -> frozenset[str]:
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return frozenset().union(*(places.splits_in(part) for part in parts))


def _candidates(folder: Path) -> list[Path]:
    return places.files_below(folder, *_TEXTS, *_BINARY, *_PACKED)


def _told(folder: Path, files_left: Sequence[Path], read: str = "") -> list[Problem]:
    found: dict[str, list[Path]] = {}
    for file in files_left:
        found.setdefault(file.suffix.lower(), []).append(file)
    why = (
        f"are no part of it ({read})"
        if read
        else (
            f"no known format places them (looked for {looked_for()}); rows of YOLO need a list of their classes, "
            "data.yaml or classes.txt"
        )
    )
    return [
        Problem(str(named[0]), f"{len(named)} {suffix} file{'s' * (len(named) > 1)} here may be labels, and {why}")
        for suffix, named in sorted(found.items())
    ]


def _may_be_label(file: Path, folder: Path, stems: set[str]) -> bool:
    inner = [part.casefold() for part in file.relative_to(folder).parts[:-1]]
    named = file.stem in stems or file.name.lower().endswith((*_BINARY, *_PACKED))
    named = named or any(part.startswith(_FOLDERS) for part in inner)
    return named or _speaks_of_boxes(file) or _names_images(file, stems)


def _holds_boxes(file: Path, stems: set[str]) -> bool:
    """Of a set that is read already: a row of numbers in a text, boxes or shapes in other files."""
    start, ending = _start(file).lower(), file.suffix.lower()
    if ending in {".yaml", ".yml", *_BINARY}:
        return False
    if ending == ".txt":
        return _has_row(start) or _names_images(file, stems)
    return any(word in start for word in _BOXES)


_BOXES = (
    b'"bbox"', b"<bndbox", b'"shapes"', b'"classtitle"', b"<polygon", b"xmin", b"x_min", b'"rectanglelabels"',
    b"shape_attributes",
)  # fmt: skip


def _names_images(file: Path, stems: set[str]) -> bool:
    """Whether a text names an image of the set, with numbers behind it: a list alone has none."""
    found = re.findall(rb"([^\s\"'/\\,;:<>]+)\.(?:jpe?g|png|bmp|webp|tiff?|ppm|pgm)\b([^\n]*)", _start(file))
    alone = file.suffix.lower() == ".txt"
    return any(
        name.decode("utf-8", "replace") in stems and (not alone or re.search(rb"\d", rest)) for name, rest in found
    )


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_LOOKED_AT)
    except OSError:
        return b""


def _speaks_of_boxes(file: Path) -> bool:
    start = _start(file).lower()
    return any(word in start for word in _WORDS) or (file.suffix.lower() == ".txt" and _has_row(start))


def _has_row(start: bytes) -> bool:
    row = next(files.lines(start.decode("utf-8", "replace")), None)
    return row is not None and len(row[1].split()) >= 5 and files.numbers(row[1].split()[1:5]) is not None


def undecodable(
    paths: Sequence[Path], reading: Reading = DEFAULT, progress: Callable[[int, int], None] | None = None
) -> dict[Path, str]:
    """The images that cannot be decoded, and why. Every one is decoded; a JPEG at an eighth of its size, as its data
    are all read for that too.

    Args:
        paths: image files.
        reading: how they are read.
        progress: is called with how many of how many are done.
    """
    reasons = in_threads(lambda path: _reason(path, reading), paths, progress)
    return {path: reason for path, reason in reasons if reason is not None}


def _reason(path: Path, reading: Reading) -> str | None:
    try:
        if read_header(path).format == "jpeg":
            data = path.read_bytes()
            try:
                simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
            except ValueError:
                # The decoder that everything else uses has the last word.
                decode_image(data, str(path), reading)
        else:
            read_image(path, reading)
    except (AcclimateError, OSError) as error:
        return str(error).removeprefix(f"{path}: ").split(";")[0]
    return None
