"""Writing what was read as a COCO, YOLO, Pascal VOC, CVAT or Label Studio set, to check, correct or take it along."""

from __future__ import annotations

import functools
import json
import shutil
import unicodedata
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from acclimate.data.formats import LabelledImage, LabelledSet, Problem
from acclimate.data.formats.raw import IGNORED_NAME
from acclimate.errors import AcclimateError
from acclimate.run import locked, writing_folder

_SPLIT = "train"
_LONGEST = 230
"""Bytes of a stem; a number and an ending fit behind it on every file system."""


def write(images: LabelledSet, format_: str, out: Path, *, drafts: bool = False) -> tuple[Problem, ...]:
    """Write a set with copies of its image files.

    Boxes are those of the pictures as they are seen: a reader that ignores EXIF tags needs `orientation = "stored"`.

    Args:
        images: the set.
        format_: one of `FORMATS`.
        out: a new or an empty folder.
        drafts: whether the boxes are a detector's, for a person to correct. A format that has a word for that says
            so (Label Studio's predictions).

    Returns:
        What the format has no words for, and so was left out.

    Raises:
        AcclimateError: the format is unknown, `out` holds something, or it cannot be written.
    """
    if format_ not in FORMATS:
        raise AcclimateError(f"--to {format_}: choose {', '.join(FORMATS)}")
    if any(image.path.absolute().is_relative_to(out.absolute()) for image in images.images):
        raise AcclimateError(f"{out}: holds the set that is read; choose another folder")
    with locked(out, "data"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise AcclimateError(f"{out}: is there and not empty; choose a new folder")
        return _written(images, format_, out, drafts)


def _written(images: LabelledSet, format_: str, out: Path, drafts: bool) -> tuple[Problem, ...]:
    names = file_names(images.images)
    folder, labelled = FORMATS[format_]
    if drafts:
        labelled = _DRAFTS.get(format_, labelled)
    with writing_folder(out.absolute()) as fresh:
        (fresh / folder).mkdir(parents=True)
        for image, name in zip(images.images, names, strict=True):
            shutil.copyfile(image.path, fresh / folder / name)
        problems = labelled(images, names, fresh)
    return tuple(Problem(str(out), problem) for problem in problems)


def file_names(images: Sequence[LabelledImage]) -> list[str]:
    """A file name for each image, with a stem that no other has: label files are named by it.

    It is the image's own where every format can hold that: text without line ends, separators or spaces around it,
    which is no hidden file's name.
    """
    names = []
    taken: set[str] = set()
    for image in images:
        own = _plain(image.path.stem)
        stem, number = own, 1
        # Capitals, and how an accent is written, make no difference on some file systems.
        while (key := unicodedata.normalize("NFC", stem).casefold()) in taken:
            number += 1
            stem = f"{own}_{number}"
        taken.add(key)
        names.append(stem + image.path.suffix)
    return names


def _plain(name: str) -> str:
    shown = "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in name).strip()
    shown = f"_{shown[1:]}" if shown.startswith(".") else shown or "_"
    return shown.encode()[:_LONGEST].decode(errors="ignore")


def _class(images: LabelledSet, label: int) -> str:
    # An ignored box may be of no class of the set.
    return images.classes[label] if label >= 0 else IGNORED_NAME


def _coco(images: LabelledSet, names: Sequence[str], out: Path) -> list[str]:
    classes = list(images.classes)
    if any((image.annotations.labels < 0).any() for image in images.images):
        classes.append(IGNORED_NAME)
    index: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }
    for number, (image, name) in enumerate(zip(images.images, names, strict=True), 1):
        index["images"].append({"id": number, "file_name": name, "height": image.height, "width": image.width})
        a = image.annotations
        for row, (box, label, ignore) in enumerate(zip(a.boxes.tolist(), a.labels, a.ignore, strict=True)):
            left, top, right, bottom = box
            polygons = [polygon.ravel().tolist() for polygon in a.outlines[row]] if a.outlines else []
            index["annotations"].append(
                {
                    "id": len(index["annotations"]) + 1,
                    "image_id": number,
                    "category_id": classes.index(_class(images, label)) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(ignore),
                    "segmentation": polygons,
                }
            )
    _text(out / "annotations" / f"instances_{_SPLIT}.json", json.dumps(index))
    return []


def _yolo(images: LabelledSet, names: Sequence[str], out: Path) -> list[str]:
    lost = 0
    for image, name in zip(images.images, names, strict=True):
        a, rows = image.annotations, []
        for (left, top, right, bottom), label, ignore in zip(a.boxes.tolist(), a.labels, a.ignore, strict=True):
            if ignore:
                lost += 1
                continue
            centre = ((left + right) / 2 / image.width, (top + bottom) / 2 / image.height)
            size = ((right - left) / image.width, (bottom - top) / image.height)
            rows.append(" ".join([str(int(label)), *(f"{value:.8f}" for value in (*centre, *size))]))
        _text(out / "labels" / _SPLIT / f"{Path(name).stem}.txt", "".join(f"{row}\n" for row in rows))
    listed = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(images.classes))
    _text(out / "data.yaml", f"path: .\ntrain: images/{_SPLIT}\nval: images/{_SPLIT}\nnames:\n{listed}")
    return _without_ignored(lost, "YOLO")


def _voc(images: LabelledSet, names: Sequence[str], out: Path) -> list[str]:
    for image, name in zip(images.images, names, strict=True):
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "filename").text = name
        size = ElementTree.SubElement(tree, "size")
        for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(value)
        a = image.annotations
        for box, label, ignore in zip(a.boxes.tolist(), a.labels, a.ignore, strict=True):
            node = ElementTree.SubElement(tree, "object")
            ElementTree.SubElement(node, "name").text = _class(images, label)
            ElementTree.SubElement(node, "difficult").text = str(int(ignore))
            corners = ElementTree.SubElement(node, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(corners, key).text = f"{value:.8g}"
        ElementTree.indent(tree)
        _text(out / "Annotations" / f"{Path(name).stem}.xml", ElementTree.tostring(tree, "unicode"))
    stems = "".join(f"{Path(name).stem}\n" for name in names)
    _text(out / "ImageSets" / "Main" / f"{_SPLIT}.txt", stems)
    return []


def _cvat(images: LabelledSet, names: Sequence[str], out: Path) -> list[str]:
    """CVAT's XML 1.1 for images, which a task that holds the images takes by "upload annotations"."""
    lost = 0
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for key, value in (
        ("name", _plain(images.name)),
        ("size", str(len(images))),
        ("mode", "annotation"),
        ("overlap", "0"),
    ):
        ElementTree.SubElement(task, key).text = value
    labels = ElementTree.SubElement(task, "labels")
    for name in images.classes:
        label_node = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label_node, "name").text = name
        ElementTree.SubElement(label_node, "attributes")
    for number, (image, name) in enumerate(zip(images.images, names, strict=True)):
        size = {"width": str(image.width), "height": str(image.height)}
        node = ElementTree.SubElement(root, "image", {"id": str(number), "name": name, **size})
        a = image.annotations
        lost += int(a.ignore.sum())
        for box, label in zip(a.boxes[~a.ignore].tolist(), a.labels[~a.ignore], strict=True):
            corners = {key: f"{value:.3f}" for key, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
            more = {"source": "auto", "occluded": "0", **corners, "z_order": "0"}
            ElementTree.SubElement(node, "box", {"label": images.classes[label], **more})
    ElementTree.indent(root)
    _text(out / "annotations.xml", ElementTree.tostring(root, "unicode", xml_declaration=True))
    return _without_ignored(lost, "CVAT")


def _labelstudio(
    images: LabelledSet, names: Sequence[str], out: Path, part: Literal["annotations", "predictions"] = "annotations"
) -> list[str]:
    """Label Studio's tasks, and the labelling interface that they are for. A box is in percent of the picture.

    Images are named as Label Studio serves them from local files, below the folder that is its document root.
    """
    lost = 0
    tasks = []
    for number, (image, name) in enumerate(zip(images.images, names, strict=True), 1):
        a = image.annotations
        lost += int(a.ignore.sum())
        results = []
        for row, (box, label) in enumerate(zip(a.boxes[~a.ignore].tolist(), a.labels[~a.ignore], strict=True)):
            left, top, right, bottom = box
            value = {
                "x": 100 * left / image.width,
                "y": 100 * top / image.height,
                "width": 100 * (right - left) / image.width,
                "height": 100 * (bottom - top) / image.height,
                "rotation": 0,
                "rectanglelabels": [images.classes[label]],
            }
            results.append(
                {
                    "id": f"{number}-{row}",
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": image.width,
                    "original_height": image.height,
                    "image_rotation": 0,
                    "value": value,
                }
            )
        model = {"model_version": "acclimate"} if part == "predictions" else {}
        address = f"/data/local-files/?d={urllib.parse.quote(f'images/{name}')}"
        tasks.append({"id": number, "data": {"image": address}, part: [{**model, "result": results}]})
    _text(out / "tasks.json", json.dumps(tasks, indent=1))
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
    choices = ElementTree.SubElement(view, "RectangleLabels", {"name": "label", "toName": "image"})
    for name in images.classes:
        ElementTree.SubElement(choices, "Label", {"value": name})
    ElementTree.indent(view)
    _text(out / "interface.xml", ElementTree.tostring(view, "unicode"))
    return _without_ignored(lost, "Label Studio")


def _without_ignored(count: int, format_: str) -> list[str]:
    return [f"{count} ignored boxes are left out: {format_} has no word for them"] if count else []


def _text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


_Writer = Callable[[LabelledSet, Sequence[str], Path], list[str]]

FORMATS: dict[str, tuple[str, _Writer]] = {
    "coco": ("images", _coco),
    "yolo": (f"images/{_SPLIT}", _yolo),
    "voc": ("JPEGImages", _voc),
    "cvat": ("images", _cvat),
    "labelstudio": ("images", _labelstudio),
}
"""Where a format has its images, and what writes its labels."""
_DRAFTS: dict[str, _Writer] = {"labelstudio": functools.partial(_labelstudio, part="predictions")}
"""What writes them where they are to be corrected, if that is another thing."""
