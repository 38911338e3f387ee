"""COCO: one JSON file with the lists images, categories and annotations.

Also as CVAT, FiftyOne, Label Studio and Roboflow write it: ids as texts, file names with another system's separators or
without their folders, the project as a class without boxes, one image under two ids.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import CLIP_TOLERANCE_PX, Raw
from acclimate.errors import AcclimateError
from acclimate.structures import Outline

FILES = "a COCO json"

_IMAGE_FOLDERS = ("images", "data", "JPEGImages", "imgs", "img")
_LABEL_FOLDER = re.compile(r"ann|label|json|gt|coco", re.IGNORECASE)
_TAKEN = object()
"""What stands in place of an annotation whose numbers were taken."""
_OVER, _ENOUGH = 0.1, 10_000
"""A sound index has no such part of its boxes over the border; so many of them tell."""
_FARTHEST = 1e9
"""No corner of a polygon is so far out."""
_SAMPLE = 32
"""So many file names decide which folder they are relative to."""


def find(path: Path) -> bool:
    """A json file, or a folder with an index in it, in annotations/, or one for each split's folder."""
    return path.suffix.lower() == ".json" if places.is_file(path) else bool(_indices(path))


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What an index says; see `formats.read`."""
    file = config.path if places.is_file(config.path) else _index(config.path, config.split)
    if places.is_file(config.path) and config.split is not None:
        raise AcclimateError(f"{file}: `split` is for a folder; a COCO json is one split already, so remove the key")
    prefix = f"{file}: annotation "
    raw = Raw(file.stem, locate=lambda where, place: f"{prefix}{place}", outlined=masks)
    reader = _Annotations(file, raw, masks, config.full)
    index = files.json_of(file, reader.taker())
    images, categories, annotations = (
        index.get(key) if isinstance(index, dict) else None for key in ("images", "categories", "annotations")
    )
    if not isinstance(images, list) or not isinstance(categories, list) or not isinstance(annotations, list):
        raise AcclimateError(f"{file}: not a COCO index (it needs the lists images, categories and annotations)")
    del index
    names = _categories(file, categories, reader.categories, raw)
    samples = _samples(file, images, config, raw)
    del images
    reader.hand_over(annotations, samples, names)
    return raw


class _Annotations:
    """Annotations as they are parsed: of each only its numbers stay, as the objects of an index are many and large."""

    def __init__(self, file: Path, raw: Raw, masks: bool, full: bool) -> None:
        self._file = file
        self._full = full
        self._parts: dict[int, Any] = {}
        """The whole box of an object whose visible one is its own, or its visible one; x, y, width, height."""
        self._raw = raw
        self._masks = masks
        self._ids: list[Any] = []
        self._images: dict[Any, int] = {}
        """A number for each image id that annotations name, and for each category's."""
        self._categories: dict[Any, int] = {}
        self._owners = array("q")
        self._kinds = array("q")
        self._boxes = array("d")
        self._flags: dict[int, tuple[Any, Any]] = {}
        """iscrowd and ignore, where one of them is not 0."""
        self._segmentations: dict[int, Any] = {}

    @property
    def categories(self) -> Collection[Any]:
        """The ids of the categories that annotations name."""
        return self._categories.keys()

    def taker(self) -> Callable[[dict[str, Any]], Any]:
        """A hook of the parser: of an annotation its numbers are taken and nothing stays; all else stays what it is."""
        # It is called for each of very many: what it needs is looked up once.
        ids, images, categories, boxes, flags = self._ids, self._images, self._categories, self._boxes, self._flags
        add_owner, add_kind, add_id, add_box = self._owners.append, self._kinds.append, ids.append, boxes.extend
        segmentations = self._segmentations if self._masks else None
        parts, part_key = self._parts, "full_bbox" if self._full else "visible_bbox"

        def take(item: dict[str, Any]) -> Any:
            get = item.get
            box = get("bbox")
            if box is None or "image_id" not in item:
                return item
            number = len(ids)
            try:
                left, top, width, height = box
                image = images.setdefault(item["image_id"], len(images))
                category = categories.setdefault(item["category_id"], len(categories))
                try:
                    add_box((left, top, width, height))
                except TypeError:
                    del boxes[4 * number :]
                    add_box((float(left), float(top), float(width), float(height)))
            except (TypeError, KeyError, ValueError, OverflowError):
                del boxes[4 * number :]
                return item
            add_owner(image)
            add_kind(category)
            add_id(get("id"))
            crowd, ignore = get("iscrowd"), get("ignore")
            if crowd or ignore:
                flags[number] = (crowd, ignore)
            if (part := get(part_key)) is not None:
                parts[number] = part
            if segmentations is not None:
                segmentations[number] = get("segmentation")
            return _TAKEN

        return take

    def hand_over(self, annotations: list[Any], samples: dict[Any, int], names: dict[Any, str]) -> None:
        """Pair the annotations with their images and classes."""
        raw, take = self._raw, self.taker()
        for number, item in enumerate(annotations):
            if item is not _TAKEN:
                box = _extent(item.get("segmentation")) if isinstance(item, dict) and not item.get("bbox") else None
                if box is not None and take({**item, "bbox": box}) is _TAKEN:
                    continue
                own = item.get("id", f"[{number}]") if isinstance(item, dict) else f"[{number}]"
                where = raw.locate("", own)
                raw.problem(where, "has no image_id, category_id or bbox of four numbers; left out")
        _tell_repeated(self._ids, raw)
        image_ids, category_ids = list(self._images), list(self._categories)
        found = _by_id(samples, image_ids)
        sample_of = np.array([-2 if sample is None else sample for sample in found], np.int64)
        kinds = _by_id(names, category_ids)
        known = np.array([kind is not None for kind in kinds], np.bool_)
        owners, classes = np.array(self._owners, np.int64), np.array(self._kinds, np.int64)
        own = sample_of[owners] if len(owners) else owners
        whole = known[classes] if len(classes) else np.zeros(0, np.bool_)
        for index in np.flatnonzero((own == -2) | ~whole).tolist():
            lost = f"image id {image_ids[owners[index]]!r}" if own[index] == -2 else ""
            what = lost or f"category id {category_ids[classes[index]]!r}"
            raw.problem(raw.locate("", self._place(index)), f"{what} is not in the index; left out")
        ignore = np.zeros(len(own), np.bool_)
        for index, flags in self._flags.items():
            for name, value in zip(("iscrowd", "ignore"), flags, strict=True):
                ignore[index] |= raw.flag(files.flag(value), raw.locate("", self._place(index)), name, value)
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        self._tell_of_corners(boxes, own)
        boxes[:, 2:] += boxes[:, :2]
        kept = np.flatnonzero((own >= 0) & whole)
        visible = self._visible(boxes)
        raw.visible |= {raw.objects + at: visible[n] for at, n in enumerate(kept.tolist()) if n in visible}
        outlines = {}
        for position, index in enumerate(kept.tolist() if self._masks else ()):
            where = raw.locate("", self._place(index))
            outlines[position] = self._outline(self._segmentations[index], where, bool(ignore[index]))
        ids = [self._place(index) for index in range(len(own))]
        whole_set = len(kept) == len(ids)
        raw.extend(
            own[kept],
            [kind or "" for kind in kinds],
            classes[kept],
            boxes if whole_set else boxes[kept],
            ids if whole_set else [ids[index] for index in kept],
            ignore[kept],
            outlines,
        )

    def _tell_of_corners(self, boxes: NDArray[np.float64], own: NDArray[np.int64]) -> None:
        """Boxes (N, 4) that reach over the border as left, top, width, height, and never as corners, are told."""
        some = np.flatnonzero(own >= 0)
        some = some[:: max(1, len(some) // _ENOUGH)]
        sizes = [self._raw.samples[sample].size for sample in own[some].tolist()]
        known = np.array([size is not None for size in sizes], np.bool_)
        limits = np.array([size for size in sizes if size is not None], np.float64).reshape(-1, 2)[:, ::-1]
        limits, tried = limits + CLIP_TOLERANCE_PX, boxes[some[known]]
        if not len(tried) or not ((tried[:, 2:] > tried[:, :2]).all() and (tried[:, 2:] <= limits).all()):
            return
        over = int((tried[:, :2] + tried[:, 2:] > limits).any(axis=1).sum())
        if over > _OVER * len(tried):
            told = f"{over} of {len(tried)} boxes reach over the border, and none would as left, top, right, bottom"
            self._raw.problem(self._file, f"{told}; bbox is read as COCO has it: left, top, width, height")

    def _place(self, index: int) -> int | str:
        own = self._ids[index]
        return own if isinstance(own, int | str) else f"[{index}]"

    def _visible(self, boxes: NDArray[np.float64]) -> dict[int, tuple[float, float, float, float]]:
        """The visible parts, by the annotation's number; with whole boxes, these take the place of those in `boxes`."""
        found = {}
        for number, part in self._parts.items():
            try:
                left, top, width, height = (float(value) for value in part)
            except (TypeError, ValueError, OverflowError):
                name = "full_bbox" if self._full else "visible_bbox"
                self._raw.problem(self._raw.locate("", self._place(number)), f"{name} is not four numbers; not used")
                continue
            corners = left, top, left + width, top + height
            if self._full:
                a, b, c, d = boxes[number].tolist()
                found[number] = a, b, c, d
                boxes[number] = corners
            else:
                found[number] = corners
        return found

    def _outline(self, segmentation: Any, where: str, ignore: bool) -> Outline:
        """The polygons of a `segmentation`; none where it has run lengths instead, as crowds have."""
        if not isinstance(segmentation, list):
            if not ignore:
                self._raw.problem(where, "has no polygons; its box is kept, and its mask is not learnt")
            return ()
        outline = []
        for listed in segmentation:
            polygon = files.points(listed)
            if polygon is not None and len(polygon) >= 3 and (np.abs(polygon) < _FARTHEST).all():
                outline.append(polygon.astype(np.float32))
            else:
                self._raw.problem(where, "a polygon is not a list of at least three x, y; left out")
        return tuple(outline)


def _extent(segmentation: Any) -> list[float] | None:
    """x, y, width and height of what polygons cover; None where there are none."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = [points for polygon in segmentation if (points := files.points(polygon)) is not None]
    corners = np.concatenate(polygons) if len(polygons) == len(segmentation) else np.zeros((0, 2))
    return [*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).tolist()] if len(corners) else None


def _tell_repeated(ids: list[Any], raw: Raw) -> None:
    """Files that were merged restart their ids; the boxes are sound, and nothing looks them up by id."""
    try:
        # As numbers they take an eighth of the memory that a set of them does.
        whole = len(np.unique(np.array(ids, np.int64))) if all(type(own) is int for own in ids) else len(set(ids))
    except OverflowError:
        whole = len(set(ids))
    except TypeError:
        return
    if whole == len(ids):
        return
    seen: set[Any] = set()
    for own in ids:
        if own is not None and own in seen:
            raw.problem(raw.locate("", own), "the annotation id is listed twice; both boxes are kept")
        seen.add(own)


def _by_id(table: dict[Any, Any], identities: Sequence[Any]) -> list[Any]:
    """What stands under each id, which one list may write as a number and the other as a text; None where nothing does.

    1, "1", "0001" and "1.0" are one id, unless the table itself tells them apart.
    """
    plain: dict[str, list[Any]] = {}
    if any(identity not in table for identity in identities):
        for identity, value in table.items():
            plain.setdefault(_plain_id(identity), []).append(value)
    found = []
    for identity in identities:
        value = table.get(identity)
        if value is None:
            alike = plain.get(_plain_id(identity), ())
            value = alike[0] if len(alike) == 1 else None
        found.append(value)
    return found


def _plain_id(identity: Any) -> str:
    return re.sub(r"^0+(?=\d+$)", "", re.sub(r"^(\d+)\.0*$", r"\1", str(identity).strip()))


def _categories(file: Path, categories: list[Any], used: Collection[Any], raw: Raw) -> dict[Any, str]:
    names: dict[Any, str] = {}
    parents: dict[Any, str] = {}
    for number, category in enumerate(categories):
        try:
            identity, name = category["id"], category["name"]
            taken = names.get(identity)
        except (TypeError, KeyError):
            name = None
        if not isinstance(name, str | int | float):
            raw.problem(f"{file}: categories[{number}]", "has no id or name; left out")
            continue
        if taken is not None:
            raw.problem(f"{file}: categories[{number}]", f"id {identity} is taken by {taken!r}; left out")
            continue
        names[identity] = str(name)
        parents[identity] = str(category.get("supercategory"))
    # Roboflow lists the project itself as a class above the others.
    projects = {
        identity
        for identity, name in names.items()
        if parents[identity] == "none"
        and identity not in used
        and len(names) > 1
        and all(parents[other] == name for other in names if other != identity)
    }
    names = {identity: name for identity, name in names.items() if identity not in projects}
    raw.declare(file, list(names.values()))
    return names


def _file_name(image: dict[str, Any]) -> str:
    """What an image is called; LVIS has its address alone. Empty where there is neither."""
    name = image.get("file_name") or image.get("coco_url")
    return "" if name is None else str(name)


def _samples(file: Path, images: list[Any], config: DataConfig, raw: Raw) -> dict[Any, int]:
    """The number of each image id's sample; -1 where the image is left out."""
    named = [name for image in images if isinstance(image, dict) and (name := _file_name(image))]
    folders = _folders(file, named, config, raw)
    below = [config.images] if config.images is not None else _set_folders(file)
    resolver = places.Images(folders, below, split=f"{config.split or ''} {file.stem} {file.parent.name}")
    samples: dict[Any, int] = {}
    by_path: dict[str, int] = {}
    prefix = f"{file}: image "
    for number, image in enumerate(images):
        try:
            identity, name = image["id"], _file_name(image)
            twice = identity in samples
        except (TypeError, KeyError):
            name = ""
        if not name:
            raw.problem(f"{file}: images[{number}]", "has no id or file_name; left out")
            continue
        where = f"{prefix}{identity}"
        if twice:
            raw.problem(where, f"the id is listed twice; {name[:80]} is left out")
            continue
        path = resolver.locate(name) or f"{folders[0]}/{name}".replace("\\", "/")
        size = files.size(image.get("height"), image.get("width"))
        if (first := by_path.get(path)) is not None:
            known = raw.samples[first].size
            name = raw.samples[first].path.name
            if size is not None and known is not None and size != known:
                raw.problem(where, f"image {name} is listed twice, with two sizes; these boxes are left out")
                samples[identity] = -1
                continue
            raw.problem(where, f"image {name} is listed twice; the boxes of both are taken together")
            samples[identity] = first
            continue
        samples[identity] = by_path[path] = raw.sample(Path(path), where, size)
    return samples


def _indices(folder: Path) -> list[Path]:
    """*.json in the folder, in annotations/, or beside the images of each split's folder; no other JSON files."""
    found = [*places.files_in(folder, ".json")]
    for inner in places.folders_in(folder):
        if inner.name.casefold() == "annotations":
            found += places.files_in(inner, ".json")
        else:
            found += [
                file for name in ("_annotations.coco.json", "labels.json") if places.is_file(file := inner / name)
            ]
    return sorted(file for file in found if files.mentions(file, b'"images"', b'"annotations"', b'"categories"'))


def _index(folder: Path, split: str | None) -> Path:
    every = found = _indices(folder)
    if split is not None:
        found = [file for file in found if split in (file.stem, file.parent.name)] or [
            file
            for file in found
            if any(places.same_split(split, word) for word in (*re.split(r"[_.\-]", file.stem), file.parent.name))
        ]
    # Beside instances_train2017.json lie captions and key points of the same images.
    parts = [file.stem.removeprefix("instances") for file in found if file.stem.startswith("instances_")]
    found = [file for file in found if file.stem.startswith("instances_") or not file.stem.endswith(tuple(parts))]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(str(file.relative_to(folder)) for file in found or every) or "none"
    raise AcclimateError(
        f"{folder}: {len(found)} COCO indices{f' for split {split!r}' if split else ''}; point `path` at one json file "
        f"(there: {choices})"
    )


def _set_folders(file: Path) -> list[Path]:
    """The set's own folder: the index's, or the one above where that holds labels alone."""
    root = file.parent.absolute()
    return [root.parent if _LABEL_FOLDER.match(root.name) and not _has_images(root) else root]


def _has_images(folder: Path) -> bool:
    return bool(places.images_in(folder)) or places.folder_in(folder, *_IMAGE_FOLDERS) is not None


def _folders(file: Path, names: Sequence[str], config: DataConfig, raw: Raw) -> list[Path]:
    """The folders that an index's file names are relative to, the one in which most of a sample of them exist first."""
    sample = [names[i] for i in np.linspace(0, len(names) - 1, min(_SAMPLE, len(names))).astype(int)]
    if config.images is not None:
        if not places.is_dir(config.images):
            raise AcclimateError(f"{config.images}: no such image folder (`images`)")
        tried = [config.images]
        if not sample or any(places.Images(tried, tried).find(name) for name in sample):
            return tried
        where = "there"
    else:
        root = file.parent
        parts = [file.stem, *file.stem.split("_", 1)[1:], *([config.split] if config.split else [])]
        own, above = _around(root, parts), _around(Path(os.path.normpath(root / "..")), parts)
        apart = bool(_LABEL_FOLDER.match(root.absolute().name))
        for tried, outside in ((own, False), (above, not apart)):
            hits = [sum(_plain(base, name) for name in sample) for base in tried]
            if any(hits):
                best = tried[int(np.argmax(hits))]
                if outside:
                    raw.problem(file, f"its images are taken from {best}, outside of its folder; or name `images`")
                return [best, *(base for base, count in zip(tried, hits, strict=True) if count and base != best)]
        tried = [*own[:2], *above[:2]]
        below = _set_folders(file)
        resolver = places.Images(own if not apart else [*own, *above], below, split=f"{file.stem} {root.name}")
        if not sample or any(resolver.find(name) for name in sample):
            return own if not apart else [*own, *above]
        where = f"in {', '.join(map(str, tried))}"
    given = f'"{config.images or "..."}"'
    raise AcclimateError(
        f"{file}: its images (such as {sample[0][:80]}) are not {where}; name their folder with `images` = {given}"
    )


def _around(root: Path, parts: Sequence[str]) -> list[Path]:
    bases = [root, *(root / name for name in _IMAGE_FOLDERS)]
    return [*bases, *(base / part for base in bases for part in parts)]


def _plain(base: Path, name: str) -> bool:
    return places.is_file(base / name) or ("\\" in name and places.is_file(base / name.replace("\\", "/")))
