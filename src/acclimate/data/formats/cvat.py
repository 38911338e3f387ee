"""CVAT for images: one XML file with an element for each image, and its shapes in it; a box is a shape's extent."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "CVAT's annotations.xml"


def find(path: Path) -> bool:
    """annotations.xml of "CVAT for images", or a folder with it, or with such a file for each split."""
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    some = [path] if places.is_file(path) else places.files_in(path, ".xml") if places.is_dir(path) else []
    named = [file for file in some if file.name == "annotations.xml"]
    # Others lie there by the thousand where each image has one: the first tell what they are.
    some = named or (some if len(some) == 1 or all(map(_is_index, some[:2])) else [])
    return [file for file in some if _is_index(file)]


def _is_index(file: Path) -> bool:
    return file.suffix.lower() == ".xml" and files.mentions(file, b"<annotations", b"<image ")


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the file says; see `formats.read`."""
    found = _files(config.path)
    own = [file for file in found if config.split is not None and places.same_split(config.split, file.stem)]
    if len(own or found) != 1:
        there = ", ".join(file.name for file in found) or "none"
        raise AcclimateError(f"{config.path}: {len(found)} files of CVAT for images (there: {there}); set `split`")
    (file,) = own or found
    tree = files.xml_of(file)
    raw = Raw(config.path.stem, locate=lambda where, place: f"{where}: shape {place}")
    if labels := [node.findtext("name") or "" for node in tree.iterfind(".//labels/label")]:
        raw.declare(file, list(dict.fromkeys(labels)))
    root = config.images or file.parent
    resolver = places.Images([root, root / "images"], [root], split=config.split or "")
    for image in tree.iter("image"):
        name = image.get("name") or ""
        if config.split is not None and not own and not places.same_split(config.split, image.get("subset") or ""):
            continue
        size = files.size(image.get("height"), image.get("width"))
        where = f"{file}: image {name}"
        sample = raw.sample(resolver.find(name) or root / name, where, size)
        for number, shape in enumerate(image, 1):
            _shape(sample, shape, number, raw)
    return raw


def _shape(sample: int, shape: ElementTree.Element, number: int, raw: Raw) -> None:
    where = raw.locate(raw.samples[sample].where, number)
    label = shape.get("label")
    if label is None or shape.tag == "tag":
        return
    if shape.tag == "box":
        box = files.numbers([shape.get(key) or "" for key in ("xtl", "ytl", "xbr", "ybr")])
    elif shape.tag == "ellipse":
        parts = files.numbers([shape.get(key) or "" for key in ("cx", "cy", "rx", "ry")])
        box = [parts[0] - parts[2], parts[1] - parts[3], parts[0] + parts[2], parts[1] + parts[3]] if parts else None
    elif shape.tag == "polygon":
        points = files.numbers((shape.get("points") or "").replace(";", " ").replace(",", " ").split()) or []
        box = [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])] if len(points) >= 6 else None
    else:
        raw.problem(where, f"{label}: {shape.tag} has no box that is read; left out")
        return
    if box is None:
        raw.problem(where, f"{label}: no box of four numbers; left out")
        return
    if files.numbers([shape.get("rotation") or "0"]) != [0]:
        raw.problem(where, f"{label}: a turned {shape.tag}; read as if it were upright")
    raw.add(sample, label, box, number)
