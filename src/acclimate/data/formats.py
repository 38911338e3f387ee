"""Readers of labelled data sets (COCO, YOLO, Pascal VOC, KITTI, Cityscapes) and of plain image folders.

A bad label never stops a reader: the item is left out and kept as a `Problem`. What stops it is a set of which nothing
usable remains, an index that cannot be parsed, or a class that nobody said what to do with.

Box conventions: pixel i covers [i, i + 1), so a box is its left, top, right and bottom edge. COCO and KITTI are read as
stored. Pascal VOC is read as stored too, without subtracting 1: today's tools write 0-based corners (HIT-UAV, labelImg,
CVAT exports); in the 2007-2012 challenges, whose corners are 1-based and inclusive, a box then starts one pixel late.
Cityscapes boxes are the extents of the instance polygons' vertices.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from acclimate.config import DataConfig
from acclimate.data import orientation, safe_yaml
from acclimate.edge.headers import Header, read_header
from acclimate.edge.images import DEFAULT, SUFFIXES, Reading
from acclimate.edge.listing import images_below, images_listed, images_of, is_file
from acclimate.errors import AcclimateError
from acclimate.run import digest
from acclimate.structures import Annotations, Outline

Format = Literal["coco", "yolo", "voc", "kitti", "cityscapes"]

CITYSCAPES_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""The eight classes of Cityscapes that have instances, in the order of the label ids."""

IGNORED_NAME = "DontCare"
"""KITTI's name for regions that were not labelled; other sets borrow it. Ignored in every format unless renamed."""

CLIP_TOLERANCE_PX = 2.0
"""A box that reaches further over the image's border is clipped and reported; a smaller overhang is rounding."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a data set that was left out, or read other than it is written.

    Attributes:
        where: the file, and the line or item in it.
        what: what is wrong and what was done.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """One image with its boxes, in pixels of the picture as it is read (`LabelledSet.reading`)."""

    path: Path
    height: int
    width: int
    annotations: Annotations


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """A labelled data set; labels are indices into `classes`."""

    name: str
    format: Format
    classes: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    problems: tuple[Problem, ...] = ()
    reading: Reading = DEFAULT
    """How its pictures are read."""
    rotated: int = 0
    """How many files have an EXIF tag that turns them."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(image.path for image in self.images)

    @property
    def digest(self) -> str:
        """Of the images' names and what is labelled in them: the same wherever the set lies and however it is read."""
        labelled = sorted(((image.path.name, image.annotations) for image in self.images), key=lambda one: one[0])
        return digest(
            [
                (name, found.boxes.tolist(), [self.classes[label] for label in found.labels], found.ignore.tolist())
                for name, found in labelled
            ]
        )


@dataclass(frozen=True, slots=True, eq=False)
class UnlabelledSet:
    """Images alone. It has no place for labels, so what receives it cannot read any."""

    paths: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


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

    Raises:
        AcclimateError: the path is missing or of no known format, the index is damaged, the split or fog level is not
            there, a class has no counterpart in `classes`, nothing usable remains, or `masks` are asked of a set that
            has none.
    """
    path = config.path
    if not path.exists():
        raise AcclimateError(f"{path}: no such file or folder")
    found = detect(path) if config.format == "auto" else config.format
    if found is None:
        raise AcclimateError(
            f"{path}: no labels of a known format here (looked for a COCO json, a YOLO data.yaml, VOC's Annotations, "
            "KITTI's label_2, Cityscapes' gtFine); point `path` at the set's folder or index, or name its `format`"
        )
    if config.fog_level is not None and found != "cityscapes":
        raise AcclimateError(f"{path}: fog_level is for Foggy Cityscapes, and this is {found}; remove the key")
    if masks and found != "coco":
        raise AcclimateError(
            f"{path}: masks are read from COCO's polygons, and this is {found}; convert it, or set "
            "model.two_stage.masks = false"
        )
    raw = _read_coco(config, outlined=True) if masks else _READERS[found](config)
    return _assemble(config, raw, found, classes, masks, reading or own_reading(config))


def own_reading(config: DataConfig) -> Reading:
    """How a set's options say that its pictures are read."""
    return Reading(orientation=config.orientation, intensity=config.intensity)


def detect(path: Path) -> Format | None:
    """The format of the labelled set at `path`, or None where there are no labels that we know."""
    if path.is_file():
        return {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}.get(path.suffix.lower())  # type: ignore[return-value]
    if (path / "gtFine").is_dir():
        return "cityscapes"
    if _kitti_root(path, None) is not None:
        return "kitti"
    if _yolo_index(path) is not None:
        return "yolo"
    if any(any(folder.glob("*.xml")) for folder in (path / "Annotations", *path.glob("VOC*/Annotations"))):
        return "voc"
    if _coco_indices(path):
        return "coco"
    return "voc" if any(path.glob("*.xml")) else None


def unlabelled(path: Path) -> UnlabelledSet:
    """The images of a folder (with its subfolders, sorted), of a .txt list (one path a line, relative to the list's
    folder), or one image. No image and no annotation file is opened.

    Raises:
        AcclimateError: `path` is missing or holds no image.
    """
    listed = images_of(path)
    return UnlabelledSet(listed.paths, tuple(Problem(*problem) for problem in listed.problems))


def image_size(path: Path, reading: Reading = DEFAULT) -> tuple[int, int]:
    """(height, width) in pixels of the picture that reading a file gives, from its header.

    Raises:
        AcclimateError: the file is missing, no image, or has more pixels than are read.
    """
    return read_header(path).size(reading.orientation)


@dataclass(slots=True)
class _Object:
    """A box as its file has it: xyxy, in pixels or, in a YOLO file, in fractions of the image."""

    name: str
    box: tuple[float, float, float, float]
    where: str
    ignore: bool = False
    outline: Outline = ()


@dataclass(slots=True)
class _Sample:
    path: Path
    objects: list[_Object]
    where: str
    """The label file, or the item of the index."""
    size: tuple[int, int] | None = None
    """(height, width) that the labels claim."""
    fractions: bool = False


@dataclass(slots=True)
class _Raw:
    """What a reader found, before classes are mapped and boxes are checked."""

    name: str
    samples: list[_Sample] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    """The classes that the index declares; None where the format has no such list."""
    problems: list[Problem] = field(default_factory=list)

    def problem(self, where: str | Path, what: str) -> None:
        self.problems.append(Problem(str(where), what))


def _assemble(
    config: DataConfig, raw: _Raw, format_: Format, classes: Sequence[str] | None, masks: bool, reading: Reading
) -> LabelledSet:
    there: list[tuple[_Sample, Header]] = []
    seen: set[Path] = set()
    for sample in raw.samples:
        if sample.path in seen:
            raw.problem(sample.where, f"image {sample.path.name} is listed twice; the first is taken")
            continue
        try:
            header = read_header(sample.path)
        except AcclimateError as error:
            message = str(error).removeprefix(f"{sample.path}: ")
            raw.problem(sample.where, f"image {sample.path}: {message.split(';')[0]}; left out")
            continue
        seen.add(sample.path)
        there.append((sample, header))
    frames = orientation.frames(
        [sample.size for sample, _ in there], [header for _, header in there], config.orientation
    )
    kept: list[tuple[_Sample, int, int, list[_Object]]] = []
    for (sample, header), frame in zip(there, frames, strict=True):
        if frame is None:
            claimed = f"{sample.size[1]}x{sample.size[0]}" if sample.size else ""
            size = f"{header.width}x{header.height}"
            raw.problem(sample.where, f"labels are for {claimed} pixels, the image is {size}; left out")
            continue
        objects = _usable(sample, *header.size(frame), raw)
        for item in objects:
            item.box, item.outline = orientation.moved(item.box, item.outline, header, frame, reading.orientation)
        kept.append((sample, *header.size(reading.orientation), objects))

    mapping = _map_classes(config, raw, Counter(o.name for *_, objects in kept for o in objects), classes)
    images = []
    for sample, height, width, objects in kept:
        objects = [o for o in objects if o.name not in mapping.dropped]
        annotations = Annotations(
            np.array([o.box for o in objects], np.float32).reshape(-1, 4),
            np.array([mapping.labels.get(o.name, -1) for o in objects], np.int64),
            np.array([o.ignore or o.name in mapping.ignored for o in objects], np.bool_),
            tuple(o.outline for o in objects) if masks else None,
        )
        images.append(LabelledImage(sample.path, height, width, annotations))
    if not any((~image.annotations.ignore).any() for image in images):
        count = len(raw.problems)
        first = f" ({count} problem{'s' * (count > 1)}, the first: {raw.problems[0]})" if count else ""
        what = f"none of its {len(images)} images has a usable box" if images else "no usable image"
        raise AcclimateError(f"{config.path}: {what}{first}")
    if masks and not any(any(image.annotations.outlines or ()) for image in images):
        raise AcclimateError(
            f"{config.path}: none of its objects has a polygon (`segmentation`), and masks are to be learnt; set "
            "model.two_stage.masks = false"
        )
    rotated = sum(header.orientation != 1 for _, header in there)
    return LabelledSet(raw.name, format_, mapping.classes, tuple(images), tuple(raw.problems), reading, rotated)


def _usable(sample: _Sample, height: int, width: int, raw: _Raw) -> list[_Object]:
    """The objects of one image whose boxes have an area inside it, in pixels and clipped to it."""
    unit = (width, height, width, height) if sample.fractions else (1, 1, 1, 1)
    usable: dict[tuple[Any, ...], _Object] = {}
    for item in sample.objects:
        left, top, right, bottom = (value * size for value, size in zip(item.box, unit, strict=True))
        if not all(math.isfinite(value) for value in (left, top, right, bottom)):
            raw.problem(item.where, f"{item.name}: the box is not finite; left out")
            continue
        if right <= left or bottom <= top:
            kind = "inverted" if right < left or bottom < top else "empty"
            raw.problem(item.where, f"{item.name}: {kind} box ({_numbers(left, top, right, bottom)}); left out")
            continue
        box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if box[2] <= box[0] or box[3] <= box[1]:
            numbers = _numbers(left, top, right, bottom)
            raw.problem(item.where, f"{item.name}: box ({numbers}) is outside the {width}x{height} image; left out")
            continue
        overhang = max(-left, -top, right - width, bottom - height)
        if overhang > CLIP_TOLERANCE_PX:
            raw.problem(item.where, f"{item.name}: box reaches {overhang:.1f} px over the image's border; clipped")
        key = (item.name, item.ignore, *box)
        if key in usable:
            raw.problem(item.where, f"{item.name}: the same box a second time; left out")
            continue
        usable[key] = _Object(item.name, box, item.where, item.ignore, item.outline)
    return list(usable.values())


@dataclass(slots=True)
class _Mapping:
    """What becomes of each class name in the files."""

    classes: tuple[str, ...]
    labels: dict[str, int]
    ignored: set[str]
    dropped: set[str]


def _map_classes(config: DataConfig, raw: _Raw, counts: Counter[str], classes: Sequence[str] | None) -> _Mapping:
    names = [*(raw.classes or ()), *sorted(set(counts) - set(raw.classes or ()))]
    ignored, dropped, renamed = set(), set(), {}
    for name in names:
        ours = config.classes.get(name, name)
        if {name, ours} & set(config.drop):
            dropped.add(name)
        elif {name, ours} & set(config.ignore) or ours == IGNORED_NAME:
            ignored.add(name)
        else:
            renamed[name] = ours
    if raw.classes is not None:
        for key in ("classes", "ignore", "drop"):
            for name in getattr(config, key):
                if name not in names and not (key != "classes" and name in config.classes.values()):
                    raw.problem(config.path, f"{key} names {name!r}, which is no class of this set")
    if classes is None:
        own = tuple(dict.fromkeys(renamed.values()))
        return _Mapping(own, {name: own.index(ours) for name, ours in renamed.items()}, ignored, dropped)

    known = {name: label for label, name in enumerate(classes)}
    if renamed and not set(renamed.values()) & set(known):
        raise AcclimateError(
            f"{config.path}: its classes ({', '.join(renamed)}) and the detector's ({', '.join(known)}) have no name "
            f'in common; rename them with a line such as classes = {{ "{next(iter(renamed))}" = "{classes[0]}" }}'
        )
    unknown = [name for name, ours in renamed.items() if ours not in known and counts[name]]
    if unknown:
        quoted = ", ".join(f'"{name}"' for name in unknown)
        what = "is no class" if len(unknown) == 1 else "are no classes"
        lines = ", ".join(f'"{name}" = "{_closest(renamed[name], known)}"' for name in unknown)
        raise AcclimateError(
            f"{config.path}: {quoted} {what} of the detector ({', '.join(known)}); under this data set write "
            f"classes = {{ {lines} }} to rename, ignore = [{quoted}] to leave such boxes out of account, or "
            f"drop = [{quoted}] to make them background"
        )
    labels = {name: known[ours] for name, ours in renamed.items() if ours in known}
    return _Mapping(tuple(classes), labels, ignored, dropped)


def _closest(name: str, known: dict[str, int]) -> str:
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.0)
    return folded[close[0]] if close else next(iter(known))


def _numbers(*values: float) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _read_coco(config: DataConfig, outlined: bool = False) -> _Raw:
    file = config.path if config.path.is_file() else _coco_index(config.path, config.split)
    if config.path.is_file() and config.split is not None:
        raise AcclimateError(f"{file}: `split` is for a folder; a COCO json is one split already, so remove the key")
    index = _json(file)
    images, categories, annotations = (
        index.get(key) if isinstance(index, dict) else None for key in ("images", "categories", "annotations")
    )
    if not isinstance(images, list) or not isinstance(categories, list) or not isinstance(annotations, list):
        raise AcclimateError(f"{file}: not a COCO index (it needs the lists images, categories and annotations)")
    raw = _Raw(file.stem)

    names: dict[Any, str] = {}
    for number, category in enumerate(categories):
        try:
            identity, name = category["id"], str(category["name"])
            taken = names.get(identity)
        except (TypeError, KeyError):
            raw.problem(f"{file}: categories[{number}]", "has no id or name; left out")
            continue
        if taken is not None:
            raw.problem(f"{file}: categories[{number}]", f"id {identity} is taken by {taken!r}; left out")
            continue
        names[identity] = name
    raw.classes = tuple(dict.fromkeys(names.values()))

    files = [str(image["file_name"]) for image in images if isinstance(image, dict) and "file_name" in image]
    folder = _coco_images(file, files, config.images)
    samples: dict[Any, _Sample] = {}
    for number, image in enumerate(images):
        try:
            identity, path = image["id"], folder / str(image["file_name"])
            twice = identity in samples
        except (TypeError, KeyError):
            raw.problem(f"{file}: images[{number}]", "has no id or file_name; left out")
            continue
        where = f"{file}: image {identity}"
        if twice:
            raw.problem(where, f"the id is listed twice; {path.name} is left out")
            continue
        height, width = image.get("height"), image.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) and height and width else None
        samples[identity] = _Sample(path, [], where, size)
    raw.samples = list(samples.values())

    seen: set[Any] = set()
    for number, annotation in enumerate(annotations):
        where = f"{file}: annotations[{number}]"
        try:
            where = f"{file}: annotation {annotation.get('id', f'[{number}]')}"
            image, category = annotation["image_id"], annotation["category_id"]
            sample, kind, identity = samples.get(image), names.get(category), annotation.get("id")
            twice = identity is not None and identity in seen
            seen.add(identity)
            left, top, width, height = (float(value) for value in annotation["bbox"])
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
            raw.problem(where, "has no image_id, category_id or bbox of four numbers; left out")
            continue
        if sample is None:
            raw.problem(where, f"image id {image} is not in the index; left out")
            continue
        if kind is None:
            raw.problem(where, f"category id {category} is not in the index; left out")
            continue
        if twice:
            # Files that were merged restart their ids; the boxes are sound, and nothing here looks them up by id.
            raw.problem(where, "the annotation id is listed twice; both boxes are kept")
        ignore = bool(annotation.get("iscrowd")) or bool(annotation.get("ignore"))
        box = (left, top, left + width, top + height)
        outline = _coco_outline(annotation, where, ignore, raw) if outlined else ()
        sample.objects.append(_Object(kind, box, where, ignore, outline))
    return raw


def _coco_outline(annotation: dict[str, Any], where: str, ignore: bool, raw: _Raw) -> Outline:
    """The polygons of an annotation's `segmentation`; none where it has run lengths instead, as crowds have."""
    found = annotation.get("segmentation")
    if not isinstance(found, list):
        if not ignore:
            raw.problem(where, "has no polygons; its box is kept, and its mask is not learnt")
        return ()
    outline = []
    for listed in found:
        try:
            polygon = np.array(listed, np.float32).reshape(-1, 2)
        except (TypeError, ValueError):
            polygon = np.zeros((0, 2), np.float32)
        if len(polygon) >= 3 and np.isfinite(polygon).all():
            outline.append(polygon)
        else:
            raw.problem(where, "a polygon is not a list of at least three x, y; left out")
    return tuple(outline)


def _coco_indices(folder: Path) -> list[Path]:
    """COCO indices: *.json in the folder, in annotations/, or Roboflow's one per split folder; no other JSON files."""
    found = {*folder.glob("*.json"), *folder.glob("annotations/*.json"), *folder.glob("*/_annotations.coco.json")}
    return sorted(file for file in found if _has_keys(file))


def _has_keys(file: Path) -> bool:
    content = _bytes(file)
    return b'"images"' in content and b'"annotations"' in content


def _coco_index(folder: Path, split: str | None) -> Path:
    found = _coco_indices(folder)
    if split is not None:
        found = [file for file in found if split in (file.stem, file.parent.name)] or [
            file for file in found if split in re.split(r"[_.\-]", file.stem)
        ]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(str(file.relative_to(folder)) for file in found or _coco_indices(folder)) or "none"
    raise AcclimateError(
        f"{folder}: {len(found)} COCO indices{f' for split {split!r}' if split else ''}; point `path` at one json file "
        f"(there: {choices})"
    )


def _coco_images(file: Path, names: Sequence[str], given: Path | None) -> Path:
    """The folder that an index's file names are relative to: the one in which most of a sample of them exist."""
    if given is not None:
        if not given.is_dir():
            raise AcclimateError(f"{given}: no such image folder (`images`)")
        bases = [given]
    else:
        root = file.parent
        parts = [file.stem, *file.stem.split("_", 1)[1:]]
        tried = [root, root / "images", root.parent, root.parent / "images"]
        bases = [*tried, *(base / part for base in tried for part in parts)]
    sample = [names[i] for i in np.linspace(0, len(names) - 1, min(32, len(names))).astype(int)]
    best = max(bases, key=lambda base: sum(is_file(base / name) for name in sample))
    if sample and not any(is_file(best / name) for name in sample):
        where = "there" if given is not None else f"in {', '.join(str(base) for base in bases[:4])}"
        raise AcclimateError(
            f"{file}: its images (such as {sample[0]}) are not {where}; name their folder with `images` = "
            f'"{given or "..."}"'
        )
    return best


def _read_yolo(config: DataConfig) -> _Raw:
    index = config.path if config.path.is_file() else _yolo_index(config.path)
    if index is None:
        raise AcclimateError(f"{config.path}: no data.yaml with `names` in this folder")
    content = _yaml(index)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(key, int) for key in names):
        raise AcclimateError(f"{index}: `names` must list the classes, or map their numbers to them")
    table = {number: str(name) for number, name in sorted(names.items())}
    split = config.split or "train"
    raw = _Raw(f"{index.parent.name}/{split}", classes=tuple(dict.fromkeys(table.values())))

    roots = [index.parent]
    if content.get("path"):
        roots.insert(0, index.parent / str(content["path"]))
    entries = content.get(split)
    if entries is None:
        folders = [root / f for root in roots for f in (f"images/{split}", f"{split}/images", split)]
        entries = next((str(folder.absolute()) for folder in folders if folder.is_dir()), None)
    if entries is None:
        keys = [key for key in ("train", "val", "test") if content.get(key)]
        raise AcclimateError(f"{index}: no split {split!r} (there: {', '.join(keys) or 'none'}); set `split`")
    if config.images is not None:
        entries = str(config.images.absolute())
    paths: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        # Roboflow writes ../train/images although the folder lies beside the yaml.
        candidates = [root / e for e in (str(entry), re.sub(r"^(\.\./)+", "", str(entry))) for root in roots]
        place = next((candidate for candidate in candidates if candidate.exists()), None)
        if place is None:
            raise AcclimateError(f"{index}: {split}: {candidates[0]} does not exist")
        listed = images_below(place) if place.is_dir() else images_listed(place, (place.parent, *roots))
        paths += listed.paths
        raw.problems += [Problem(*problem) for problem in listed.problems]
    for path in paths:
        labels = _yolo_labels(path)
        text = _text(labels)
        if text is None:
            raw.problem(labels, "no label file; the image counts as one without objects")
        objects = _yolo_objects(labels, text or "", table, raw)
        raw.samples.append(_Sample(path, objects, str(labels), fractions=True))
    return raw


def _yolo_index(folder: Path) -> Path | None:
    """The yaml file of a YOLO set: data.yaml, or the only one that names classes."""
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    named = [file for file in files if re.search(r"^names\s*:", _text(file) or "", re.MULTILINE)]
    return named[0] if len(named) == 1 else None


def _yolo_labels(image: Path) -> Path:
    """.../images/a.jpg -> .../labels/a.txt; beside the image where no folder of its path is called images."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _yolo_objects(file: Path, text: str, names: dict[int, str], raw: _Raw) -> list[_Object]:
    objects = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            kind, *values = (float(value) for value in line.split())
        except ValueError:
            raw.problem(where, f"not numbers: {line.strip()[:60]!r}; left out")
            continue
        if len(values) == 4:
            x, y, w, h = values
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
            if not all(math.isfinite(value) for value in values):
                box = (math.nan,) * 4  # min and max may hide a NaN
        else:
            raw.problem(where, f"{len(values) + 1} fields, where a box has 5 (class x y w h); left out")
            continue
        if kind not in names:
            raw.problem(where, f"class {kind:g} is not in `names`; left out")
            continue
        objects.append(_Object(names[int(kind)], box, where))
    return objects


def _voc_root(path: Path) -> Path:
    """The folder with Annotations: `path`, or its only VOC* folder, as the challenges and Sim10K are unpacked."""
    if (path / "Annotations").is_dir():
        return path
    inner = sorted(folder.parent for folder in path.glob("VOC*/Annotations"))
    if len(inner) > 1:
        raise AcclimateError(f"{path}: several VOC sets ({', '.join(f.name for f in inner)}); point `path` at one")
    return inner[0] if inner else path


def _read_voc(config: DataConfig) -> _Raw:
    root = _voc_root(config.path)
    if not root.is_dir():
        raise AcclimateError(f"{root}: a VOC set is a folder with JPEGImages and Annotations")
    labels = root / "Annotations" if (root / "Annotations").is_dir() else root
    folder = config.images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else labels)
    raw = _Raw(f"{config.path.name}/{config.split}" if config.split else config.path.name)
    if config.split is None:
        names = sorted(file.stem for file in labels.glob("*.xml"))
    else:
        lists = root / "ImageSets" / "Main"
        text = _text(lists / f"{config.split}.txt")
        if text is None:
            there = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
            raise AcclimateError(f"{lists}: no list {config.split}.txt (there: {there}); set `split`")
        # A second column, of the per-class lists, says whether the class is in the image.
        names = [line.split()[0] for line in text.splitlines() if line.strip()]
    for name in names:
        file = labels / f"{name}.xml"
        try:
            tree = ElementTree.parse(file).getroot()
        except FileNotFoundError:
            raw.problem(file, "no label file; the image is left out")
            continue
        except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
            raw.problem(file, f"not readable XML ({error}); the image is left out")
            continue
        try:
            size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
        except (ValueError, OverflowError):
            size = (0, 0)
        objects = []
        for number, node in enumerate(tree.iter("object"), 1):
            where = f"{file}: object {number}"
            kind = (node.findtext("name") or "").strip()
            try:
                left, top, right, bottom = (
                    float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")
                )
            except ValueError:
                raw.problem(where, f"{kind or 'object'}: no bndbox of four numbers; left out")
                continue
            if not kind:
                raw.problem(where, "has no name; left out")
                continue
            ignore = (node.findtext("difficult") or "0").strip() not in {"", "0"}
            objects.append(_Object(kind, (left, top, right, bottom), where, ignore))
        path = _image_named(folder, name) or folder / (tree.findtext("filename") or f"{name}.jpg").strip()
        raw.samples.append(_Sample(path, objects, str(file), (size[0], size[1]) if all(size) else None))
    return raw


def _read_kitti(config: DataConfig) -> _Raw:
    root = _kitti_root(config.path, config.split)
    if root is None:
        raise AcclimateError(f"{config.path}: a KITTI set is a folder with image_2 and label_2")
    images = config.images or root / "image_2"
    raw = _Raw(f"{config.path.name}/{config.split}" if config.split else config.path.name)
    names = sorted(file.stem for file in (root / "label_2").glob("*.txt"))
    if config.split is not None and root.name != config.split:
        lists = [base / part / f"{config.split}.txt" for base in (root, root.parent) for part in ("ImageSets", ".")]
        text = next((text for text in map(_text, lists) if text is not None), None)
        if text is None:
            raise AcclimateError(f"{config.path}: split {config.split!r} is neither a folder nor a list ({lists[0]})")
        names = text.split()
    for name in names:
        file = root / "label_2" / f"{name}.txt"
        text = _text(file)
        if text is None:
            raw.problem(file, "no label file; the image is left out")
            continue
        objects = []
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            try:
                left, top, right, bottom = (float(value) for value in fields[4:8])
            except ValueError:
                raw.problem(f"{file}:{number}", f"not a KITTI label: {line.strip()[:60]!r}; left out")
                continue
            objects.append(_Object(fields[0], (left, top, right, bottom), f"{file}:{number}"))
        path = _image_named(images, name) or images / f"{name}.png"
        raw.samples.append(_Sample(path, objects, str(file)))
    return raw


def _kitti_root(path: Path, split: str | None) -> Path | None:
    candidates = [path / split] if split else []
    candidates += [path, path / "training"]
    return next((root for root in candidates if (root / "label_2").is_dir()), None)


def _read_cityscapes(config: DataConfig) -> _Raw:
    root, split = config.path, config.split or "train"
    labels = root / "gtFine" / split
    if not labels.is_dir():
        there = ", ".join(sorted(f.name for f in (root / "gtFine").glob("*") if f.is_dir())) or "none"
        raise AcclimateError(f"{labels}: no such folder (splits there: {there}); set `split`")
    folder = config.images or _cityscapes_images(root, foggy=config.fog_level is not None)
    if (folder / split).is_dir():
        folder = folder / split
    found: dict[str, dict[str | None, Path]] = {}
    for path in images_below(folder).paths:
        match = re.fullmatch(r"(.+?)_leftImg8bit(?:_foggy_beta_([0-9.]+))?", path.stem)
        if match:
            found.setdefault(match[1], {})[match[2]] = path
    levels = sorted({level for images in found.values() for level in images if level is not None}, key=float)
    level = _fog_level(folder, levels, config.fog_level)

    raw = _Raw(f"{root.name}/{split}" + (f"/fog {level}" if level else ""), classes=CITYSCAPES_CLASSES)
    for file in sorted(labels.rglob("*_gtFine_polygons.json")):
        stem = file.name.removesuffix("_gtFine_polygons.json")
        image = found.get(stem, {}).get(level)
        if image is None:
            raw.problem(file, f"no image {stem}_leftImg8bit in {folder}; left out")
            continue
        try:
            content = _json(file)
            size = (int(content["imgHeight"]), int(content["imgWidth"]))
            items = list(content["objects"])
        except AcclimateError:
            raw.problem(file, "damaged JSON; the image is left out")
            continue
        except (TypeError, KeyError, ValueError, OverflowError):
            raw.problem(file, "no imgHeight, imgWidth and objects; the image is left out")
            continue
        raw.samples.append(_Sample(image, _polygons(file, items, raw), str(file), size))
    return raw


def _polygons(file: Path, items: Sequence[Any], raw: _Raw) -> list[_Object]:
    objects = []
    for number, item in enumerate(items, 1):
        where = f"{file}: object {number}"
        try:
            label = str(item["label"])
            name = label.removesuffix("group")
            if name not in CITYSCAPES_CLASSES or item.get("deleted"):
                continue
            points = np.asarray(item["polygon"], np.float64).reshape(-1, 2)
            box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
            raw.problem(where, "no label or polygon; left out")
            continue
        objects.append(_Object(name, box, where, ignore=name != label))
    return objects


def _cityscapes_images(root: Path, foggy: bool) -> Path:
    folders = sorted(folder for folder in root.glob("leftImg8bit*") if folder.is_dir())
    if not folders:
        raise AcclimateError(f"{root}: no leftImg8bit folder; name the image folder with `images`")
    preferred = [folder for folder in folders if ("fog" in folder.name) == foggy] or folders
    if len(preferred) > 1:
        names = ", ".join(folder.name for folder in preferred)
        raise AcclimateError(f"{root}: several image folders ({names}); name one with `images`")
    return preferred[0]


def _fog_level(folder: Path, levels: Sequence[str], wanted: float | None) -> str | None:
    if wanted is not None:
        for level in levels:
            if math.isclose(float(level), wanted):
                return level
        there = ", ".join(levels) or "none, these are clear images"
        raise AcclimateError(f"{folder}: no images of fog_level {wanted:g} (there: {there})")
    if len(levels) > 1:
        raise AcclimateError(
            f"{folder}: several fog levels ({', '.join(levels)}); choose one with fog_level = {levels[-1]}"
        )
    return levels[0] if levels else None


_READERS: dict[Format, Callable[[DataConfig], _Raw]] = {
    "coco": _read_coco,
    "yolo": _read_yolo,
    "voc": _read_voc,
    "kitti": _read_kitti,
    "cityscapes": _read_cityscapes,
}


def _image_named(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in _SUFFIX_ORDER if is_file(path := folder / f"{stem}{suffix}")), None)


_SUFFIX_ORDER = tuple(
    s for suffix in (".jpg", ".png", *sorted(SUFFIXES - {".jpg", ".png"})) for s in (suffix, suffix.upper())
)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _text(file: Path) -> str | None:
    """The text of a file, or None where it is missing; bytes that are not UTF-8 are replaced, not fatal."""
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise AcclimateError(f"{file}: damaged JSON ({error}); copy the file again") from None


def _yaml(file: Path) -> Any:
    try:
        return safe_yaml.load(file.read_bytes())
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise AcclimateError(f"{file}: damaged YAML ({' '.join(str(error).split())})") from None
