"""Readers of labelled data sets and of plain image folders.

A format is a file here and its name in `config.FORMATS`; that table is what `detect` goes through, what the option
`format` allows and what messages name. The file says

    FILES                what it is known by, as a message names it
    find(path)           whether a folder or file is such a set
    read(config, masks)  what the files say, as they say it: a `raw.Raw`
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from acclimate.config import FORMATS, DataConfig
from acclimate.data.formats import looked
from acclimate.data.formats.raw import (
    LabelledImage,
    LabelledSet,
    Problem,
    Raw,
    UnlabelledSet,
    assemble,
    image_size,
)
from acclimate.edge.images import Reading
from acclimate.edge.listing import images_of
from acclimate.errors import AcclimateError

__all__ = [
    "LabelledImage",
    "LabelledSet",
    "Problem",
    "UnlabelledSet",
    "detect",
    "image_size",
    "read",
    "unlabelled",
]


class _Format(Protocol):
    """What the file of a format holds."""

    FILES: str

    @staticmethod
    def find(path: Path) -> bool: ...

    @staticmethod
    def read(config: DataConfig, masks: bool) -> Raw: ...


def _format(name: str) -> _Format:
    # Relative, so that it finds nothing but what lies in this folder.
    return cast(_Format, importlib.import_module(f".{name}", __name__))


def read(
    config: DataConfig, classes: Sequence[str] | None = None, masks: bool = False, reading: Reading | None = None
) -> LabelledSet:
    """Read a labelled data set.

    Args:
        config: where it is, which part of it, and what becomes of its classes.
        classes: the detector's classes; the set's classes are mapped to them by name, after `config.classes` renamed
            them. Without it the classes are the set's own, in the order of its index, or by name where the format has
            none (VOC, KITTI).
        masks: also read the objects' outlines: COCO's polygons. An object whose mask is written as run lengths keeps
            its box and has an empty outline; as a rule it is a crowd, and ignored.
        reading: how a detector reads pictures, which are those that the boxes are then of; None reads them as the
            set's own options say.

    Examples:
        >>> from pathlib import Path
        >>> from acclimate import DataConfig
        >>> from acclimate.data import formats
        >>> labelled = formats.read(DataConfig(path=Path("scenes/fog-test")))
        >>> len(labelled.images), labelled.classes
        (6, ('car', 'truck', 'person', 'bicycle', 'traffic sign'))

    Raises:
        AcclimateError: the path is missing or of no known format, the index is damaged, the split or fog level is not
            there, a class has no counterpart in `classes`, nothing usable remains, or `masks` are asked of a set that
            has none.
    """
    path = config.path
    if not path.exists():
        raise AcclimateError(f"{path}: no such file or folder")
    with _collector_paused():
        format_, raw = _found(config, masks)
        asked = (config.model_dump_json(), None if classes is None else tuple(classes), masks, reading)
        known = raw.assembled.get(asked)
        if known is None or not raw.headers.still(sample.path for sample in raw.samples):
            known = raw.assembled[asked] = assemble(config, raw, format_, classes, masks, reading)
        raw.assembled.move_to_end(asked)
        while len(raw.assembled) > looked.ASSEMBLED:
            raw.assembled.popitem(last=False)
        return known


def _found(config: DataConfig, masks: bool) -> tuple[str, Raw]:
    """The format, and what its reader finds: what an earlier call found, where all that it looked at is as it was."""
    decides = config.model_dump_json(exclude={"classes", "ignore", "drop", "orientation", "intensity"})
    key = (str(Path.cwd()), decides, str(masks))
    format_, raw = looked.found(key, lambda: _read(config, masks))
    # What becomes of it adds problems.
    return format_, replace(raw, problems=[*raw.problems])


def _read(config: DataConfig, masks: bool) -> tuple[str, Raw]:
    path = config.path
    named = [name for name in FORMATS if _format(name).find(path)] if config.format == "auto" else [config.format]
    if not named:
        raise AcclimateError(
            f"{path}: no labels of a known format here (looked for {looked_for()}); point `path` at the set's folder "
            "or index, or name its `format`"
        )
    if config.fog_level is not None and named[0] != "cityscapes":
        raise AcclimateError(f"{path}: fog_level is for Foggy Cityscapes, and this is {named[0]}; remove the key")
    raw = _format(named[0]).read(config, masks)
    for other in named[1:]:
        raw.problem(
            path, f"read as {named[0]}, and {_format(other).FILES} lies here too; format = {other!r} reads that"
        )
    return named[0], raw


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Reading makes millions of objects and no cycles; looking for cycles among them takes a fifth of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def detect(path: Path) -> str | None:
    """The format of the labelled set at `path`, or None where there are no labels that we know."""
    with looked.looking():
        return next((name for name in FORMATS if _format(name).find(path)), None)


def looked_for() -> str:
    """What the formats are known by, for a message."""
    return ", ".join(_format(name).FILES for name in FORMATS)


def unlabelled(path: Path) -> UnlabelledSet:
    """The images of a folder (with its subfolders, sorted), of a .txt list (one path a line, relative to the list's
    folder), or one image. No image and no annotation file is opened.

    Raises:
        AcclimateError: `path` is missing or holds no image.
    """
    listed = images_of(path)
    return UnlabelledSet(listed.paths, tuple(Problem(*problem) for problem in listed.problems))
