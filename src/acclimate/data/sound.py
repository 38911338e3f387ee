"""What reading a set does not show: label files that no format places, and images whose headers promise too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import simplejpeg

from acclimate.data.formats import Problem, files, looked_for, places
from acclimate.edge.headers import read_header
from acclimate.edge.images import DEFAULT, Reading, decode_image, read_image
from acclimate.errors import AcclimateError
from acclimate.progress import in_threads

_TEXTS = (".txt", ".xml", ".json", ".csv", ".yaml", ".yml")
_BINARY = (".mat", ".tfrecord", ".tfrecords", ".parquet", ".h5", ".hdf5", ".pkl", ".npz", ".arrow")
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
    found: dict[str, list[Path]] = {}
    for file in places.files_below(folder, *_TEXTS, *_BINARY):
        inner = [part.casefold() for part in file.relative_to(folder).parts[:-1]]
        if (
            file.stem in stems
            or file.suffix.lower() in _BINARY
            or any(part.startswith(_FOLDERS) for part in inner)
            or _speaks_of_boxes(file)
        ):
            found.setdefault(file.suffix.lower(), []).append(file)
    return [
        Problem(
            str(named[0]),
            f"{len(named)} {suffix} file{'s' * (len(named) > 1)} here may be labels, and no known format places them "
            f"(looked for {looked_for()}); rows of YOLO need a list of their classes, data.yaml or classes.txt",
        )
        for suffix, named in sorted(found.items())
    ]


def _speaks_of_boxes(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            start = opened.read(_LOOKED_AT).lower()
    except OSError:
        return False
    if any(word in start for word in _WORDS):
        return True
    row = next(files.lines(start.decode("utf-8", "replace")), None) if file.suffix.lower() == ".txt" else None
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
