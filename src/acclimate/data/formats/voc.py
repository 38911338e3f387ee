"""Pascal VOC: one XML file an image.

As the challenges unpack (Annotations, JPEGImages, ImageSets), in lower case, in subfolders (CVAT), or beside the images
of each split (Roboflow). Corners are read as stored, without subtracting 1: today's tools write 0-based corners
(HIT-UAV, labelImg, CVAT); in the challenges of 2007 to 2012, whose corners are 1-based and inclusive, a box starts one
pixel late.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "VOC's Annotations"

_LABELS = ("Annotations", "annotation", "xmls", "xml", "labels", "ann")
_IMAGES = ("JPEGImages", "images", "image", "imgs", "img")


def find(path: Path) -> bool:
    """XML files in Annotations (in the folder or its only VOC* folder), beside the images, or in a folder a split."""
    return places.is_dir(path) and any(True for _ in _label_folders(path))


def _label_folders(path: Path) -> Iterator[Path]:
    """The folders whose XML files are labels, the likeliest first."""
    for root in (path, *_challenges(path)):
        for name in _LABELS:
            folder = places.folder_in(root, name)
            if folder is not None and _labels_in(folder, deep=True):
                yield folder
    if _labels_in(path):
        yield path
    yield from (folder for folder in places.folders_in(path) if _labels_in(folder))


def _challenges(path: Path) -> list[Path]:
    """The folders VOC2007, VOC2012 and the like."""
    return [folder for folder in places.folders_in(path) if folder.name.startswith("VOC")]


def _labels_in(folder: Path, deep: bool = False) -> bool:
    """Whether the XML files of a folder are labels; the first few are looked into."""
    some = places.files_in(folder, ".xml")
    if not some and deep:
        some = places.files_below(folder, ".xml")
    words = (b"<annotation>", b"<annotation ")
    return any(files.mentions(file, word) for file in some[:3] for word in words) or bool(deep and some)


def _root(path: Path) -> Path:
    """The folder with Annotations: `path`, or its only VOC* folder, as the challenges and Sim10K are unpacked."""
    if places.folder_in(path, *_LABELS) is not None or _labels_in(path):
        return path
    inner = [folder for folder in _challenges(path) if places.is_dir(folder / "Annotations")]
    if len(inner) > 1:
        raise AcclimateError(f"{path}: several VOC sets ({', '.join(f.name for f in inner)}); point `path` at one")
    return inner[0] if inner else path


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the XML files say; see `formats.read`."""
    root = _root(config.path)
    if not places.is_dir(root):
        raise AcclimateError(f"{root}: a VOC set is a folder with JPEGImages and Annotations")
    raw = Raw(
        f"{config.path.name}/{config.split}" if config.split else config.path.name,
        locate=lambda where, place: f"{where}: object {place}",
    )
    labels, chosen = _chosen(root, config.split)
    beside = labels if _labels_in(labels) and places.images_in(labels) else None
    folder = config.images or beside or places.folder_in(root, *_IMAGES) or labels
    entries = (
        places.files_below(labels, ".xml")
        if chosen is None
        else [places.label_of(labels, name, ".xml") for name in chosen]
    )
    resolver = places.Images([folder], [folder], split=config.split or "")
    for file in entries:
        try:
            tree = files.xml_of(file)
        except FileNotFoundError:
            raw.problem(file, "no label file; the image is left out")
            continue
        except AcclimateError as error:
            raw.problem(file, f"{str(error).removeprefix(f'{file}: ')}; the image is left out")
            continue
        _image(file, tree, labels, folder, resolver, raw)
    if chosen is None:
        own = places.folder_in(folder, labels.name) if config.split is not None else None
        places.tell_unlabelled(raw, own or folder, entries)
    return raw


def _image(
    file: Path, tree: ElementTree.Element, labels: Path, folder: Path, resolver: places.Images, raw: Raw
) -> None:
    size = files.size(tree.findtext("size/height"), tree.findtext("size/width"))
    own = str(file.relative_to(labels).with_suffix("")) if file.is_relative_to(labels) else file.stem
    written = (tree.findtext("filename") or tree.findtext("path") or "").strip()
    by_name = resolver.find(own)
    stem = re.split(r"[\\/]", written)[-1].rsplit(".", 1)[0] if "." in written else written
    by_tag = resolver.find(written) if written and (by_name is None or stem != file.stem) else by_name
    if by_name is not None and by_tag is not None and by_tag != by_name:
        raw.problem(
            file, f"<filename> is {written}, which is there too; read with {by_name.name}, named as the file is"
        )
    path = by_name or by_tag or folder / (written or f"{own}.jpg").replace("\\", "/")
    sample = raw.sample(path, file, size)
    for number, node in enumerate(tree.iter("object"), 1):
        where = f"{file}: object {number}"
        kind = (node.findtext("name") or "").strip()
        box = [node.findtext(f"bndbox/{key}") or "" for key in ("xmin", "ymin", "xmax", "ymax")]
        corners = files.numbers(box)
        if corners is None and (points := files.numbers([pt.text or "" for pt in node.iterfind("polygon/pt/*")])):
            # LabelMe's old format: x and y of each corner.
            corners = [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
        if corners is None or len(corners) != 4:
            raw.problem(where, f"{kind or 'object'}: no bndbox of four numbers; left out")
            continue
        if not kind:
            raw.problem(where, "has no name; left out")
            continue
        difficult = node.findtext("difficult")
        raw.add(sample, kind, corners, number, raw.flag(files.flag(difficult), where, "difficult", difficult))


def _chosen(root: Path, split: str | None) -> tuple[Path, list[str] | None]:
    """The folder of the labels, and the names in it that the split lists; None where all of it is read."""
    labels = places.folder_in(root, *_LABELS)
    labels = labels if labels is not None and places.files_below(labels, ".xml") else None
    splits = [folder for folder in places.folders_in(root) if _labels_in(folder) and folder != labels]
    if labels is None and _labels_in(root):
        labels = root
    if split is None:
        if labels is None and splits:
            if len(splits) > 1:
                names = ", ".join(folder.name for folder in splits)
                raise AcclimateError(f"{root}: several splits ({names}); set `split`")
            return splits[0], None
        return labels or root, None
    above = places.folder_in(root, "ImageSets") or root / "ImageSets"
    lists = places.folder_in(above, "Main") or above / "Main"
    if (listed := places.split_list((lists, above, root), split)) is not None:
        return labels or root, listed
    inside = [folder for base in (root, labels) if base is not None for folder in places.folders_in(base)]
    for folder in inside:
        if places.same_split(split, folder.name) and places.files_below(folder, ".xml"):
            return folder, None
    there = sorted({file.stem for file in places.files_in(lists, ".txt")} | {folder.name for folder in splits})
    raise AcclimateError(f"{lists}: no list {split}.txt (there: {', '.join(there) or 'none'}); set `split`")
