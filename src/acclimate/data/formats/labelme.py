"""LabelMe: one JSON file an image, with shapes; a box is a shape's extent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "LabelMe's json files beside the images"

_LOOKED_AT = 20
_BOXED = frozenset({"rectangle", "polygon", "circle", "rotation", "mask"})


def find(path: Path) -> bool:
    """A json file with shapes and an imagePath, or a folder with one in it or in its subfolders."""
    if places.is_file(path):
        return path.suffix.lower() == ".json" and _is_label(path)
    some = places.files_in(path, ".json")[:_LOOKED_AT]
    for folder in places.folders_in(path) if not some else ():
        some += places.files_in(folder, ".json")[:_LOOKED_AT]
    return any(_is_label(file) for file in some)


def _is_label(file: Path) -> bool:
    return files.mentions(file, b'"shapes"', b'"imagePath"')


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the files say; see `formats.read`."""
    root = config.path.parent if places.is_file(config.path) else config.path
    if config.split is not None:
        folder = next((f for f in places.folders_in(root) if places.same_split(config.split, f.name)), None)
        if folder is None:
            there = ", ".join(f.name for f in places.folders_in(root)) or "none"
            raise AcclimateError(f"{root}: no folder {config.split} (there: {there}); set `split`")
        root = folder
    labels = (
        [config.path] if places.is_file(config.path) else [f for f in places.files_below(root, ".json") if _is_label(f)]
    )
    if not labels:
        raise AcclimateError(f"{root}: no LabelMe json (one with `shapes` and `imagePath`) in this folder")
    raw = Raw(
        f"{config.path.name}/{config.split}" if config.split else config.path.name,
        locate=lambda where, place: f"{where}: shape {place}",
    )
    resolvers: dict[Path, places.Images] = {}
    below = [config.images] if config.images is not None else [root]
    for file in labels:
        bases = [config.images] if config.images is not None else [file.parent, root]
        resolver = resolvers.setdefault(file.parent, places.Images(bases, below, split=config.split or ""))
        taken = files.of_image(
            raw, file, lambda it: (list(it["shapes"]), str(it["imagePath"]), it), "list of shapes and imagePath"
        )
        if taken is None:
            continue
        shapes, written, content = taken
        by_tag, by_name = resolver.find(written), resolver.find(file.stem)
        if by_tag is not None and by_name is not None and by_tag != by_name:
            raw.problem(file, f"imagePath is {written}, though {by_name.name} is there too; read with {by_tag.name}")
        path = by_tag or by_name or file.parent / written.replace("\\", "/")
        size = files.size(content.get("imageHeight"), content.get("imageWidth"))
        sample = raw.sample(path, file, size)
        for number, shape in enumerate(shapes, 1):
            _shape(sample, shape, number, raw)
    if not places.is_file(config.path):
        places.tell_unlabelled(raw, config.images or root, labels)
    return raw


def _shape(sample: int, shape: Any, number: int, raw: Raw) -> None:
    where = raw.locate(raw.samples[sample].where, number)
    content = shape if isinstance(shape, dict) else {}
    label, kind = content.get("label"), str(content.get("shape_type") or "polygon")
    points = files.points(content.get("points"))
    if not isinstance(label, str | int | float) or points is None:
        raw.problem(where, "no label or points; left out")
        return
    if kind not in _BOXED or len(points) < 2:
        raw.problem(where, f"{label}: a {kind} of {len(points)} points has no box; left out")
        return
    if kind == "circle":
        # Its centre, and a point of its edge.
        radius = math.hypot(*(points[1] - points[0]))
        points = np.array([points[0] - radius, points[0] + radius])
    # X-AnyLabeling has a flag of its own for it, others one of the user's.
    flags = content.get("flags")
    written = content.get("difficult") or (flags.get("difficult") if isinstance(flags, dict) else None)
    difficult = raw.flag(files.flag(written), where, "difficult", written)
    raw.add(sample, str(label), [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()], number, difficult)
