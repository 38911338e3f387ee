"""Data sets of generated scenes: for the demo, for tests and for experiments."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from acclimate.config import FIELD_OF_VIEW, ScenesConfig
from acclimate.data import weather
from acclimate.errors import AcclimateError, OtherInputsError
from acclimate.run import digest, locked, parsed, write_bytes, write_text, writing
from acclimate.scenes.render import CLASSES, VERSION, Camera, changed_camera, render

GENERATOR = "acclimate.data.scenes"
"""What a set's index says that made it; only such a set is ours to move."""

_JPEG_QUALITY = 92
_OUTLINE_ERROR = 0.5
"""By how much an outline may leave the border, samples: a quarter of a pixel."""


def wanted(scenes: ScenesConfig, seed: int = 0) -> Iterator[tuple[str, str | None, int, int]]:
    """(folder, condition, images, seed) of the four sets of a job or a suite: clear train and test, the condition's.

    No two of them share a scene, and the same words mean the same pixels wherever they are asked for.
    """
    number = 0
    for domain, condition in (("clear", None), (scenes.condition, scenes.condition)):
        for split, images in (("train", scenes.images), ("test", scenes.test_images)):
            yield f"{domain}-{split}", condition, images, 10_000 * number + seed
            number += 1


def generate(
    out: Path,
    images: int,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    condition: str | None = None,
    strength: float = 1.0,
    field_of_view: float = FIELD_OF_VIEW,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in COCO's format: `out/images/*.jpg` and `out/annotations.json`.

    A finished set of the same settings is left alone, an interrupted one goes on where it stopped. Boxes marked
    `ignore` are written with `iscrowd` 1, and each object with the outlines of what is visible of it. `progress` is
    called with (images done, images in all).

    Args:
        out: the set's folder; created.
        images: how many.
        size: (height, width) in pixels.
        seed: sets of different seeds share no scene.
        condition: None for clear weather, or one of `weather.CONDITIONS`.
        strength: of the condition; 1 is strong.
        field_of_view: of the camera, horizontal, degrees; a narrow one shows fewer and larger objects.
        progress: told after every image.

    Returns:
        The path of annotations.json.

    Raises:
        OtherInputsError: the folder holds a generated set of other settings.
        AcclimateError: it holds something else or cannot be written, or the condition does not exist.
    """
    if condition is not None and condition not in weather.CONDITIONS:
        raise AcclimateError(f"condition {condition!r} does not exist; choose one of {', '.join(weather.CONDITIONS)}")
    info: dict[str, Any] = {
        "description": f"acclimate street scenes, {condition or 'clear'}",
        "generator": GENERATOR,
        "version": VERSION,
        "seed": seed,
        "images": images,
        "size": list(size),
        "condition": condition,
        "strength": strength if condition else None,
    }
    if field_of_view != FIELD_OF_VIEW:
        # Left out otherwise, as in sets that were made before it could be chosen.
        info["field_of_view"] = field_of_view
    camera = Camera(fov_deg=field_of_view)
    if condition == "camera":
        camera = changed_camera(camera, strength)
    index = out / "annotations.json"
    partial = out / "annotations.partial.jsonl"
    if index.exists():
        found = _read_info(index)
        if found == info and _all_there(index):
            # What a process left that was killed when all was there; a set that can only be read is done all the same.
            with contextlib.suppress(AcclimateError, OSError), locked(out, "scenes"):
                partial.unlink(missing_ok=True)
            return index
        if found != info:
            raise _occupied(f"{out}: holds another data set; choose another folder, or delete it", found, info)
    with locked(out, "scenes"):
        records = _resume(out, partial, info)
        with writing(out):
            (out / "images").mkdir(parents=True, exist_ok=True)
            with open(partial, "a") as log:
                for number in range(len(records), images):
                    records.append(_write_scene(out, number, size, seed, condition, strength, camera))
                    log.write(json.dumps(records[-1]) + "\n")
                    log.flush()
                    if progress is not None:
                        progress(number + 1, images)
        write_text(index, json.dumps(_coco(info, records, size)) + "\n")
        with writing(out):
            partial.unlink(missing_ok=True)
    return index


def _write_scene(
    out: Path,
    number: int,
    size: tuple[int, int],
    seed: int,
    condition: str | None,
    strength: float,
    camera: Camera,
) -> dict[str, Any]:
    """Render image `number`, write its JPEG, and return its line of the set's log."""
    state = np.random.SeedSequence([seed, number]).generate_state(2, np.uint64)
    scene = render(int(state[0]), size, camera)
    image = scene.image
    if condition is not None:
        rng = np.random.default_rng(int(state[1]))
        image = weather.apply(image, condition, strength, rng, scene.depth, scene.emission)
    name = f"{number:06d}.jpg"
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=_JPEG_QUALITY, colorspace="RGB")
    write_bytes(out / "images" / name, data)
    found = scene.annotations
    return {
        "file_name": name,
        "boxes": [[round(float(v), 2) for v in box] for box in found.boxes],
        "labels": [int(v) for v in found.labels],
        "ignore": [int(v) for v in found.ignore],
        "whole": [[round(float(v), 2) for v in box] for box in scene.whole],
        "outlines": [outlines(scene.instances == number + 1) for number in range(len(found))],
    }


def outlines(seen: NDArray[np.bool_]) -> list[list[float]]:
    """The borders of the parts of an object, as COCO's polygons x0, y0, x1, y1, ... in pixels of the image. Polygons
    have no holes, so what is seen through a wheel is covered.

    Args:
        seen: (2H, 2W), whether a sample shows the object (`Scene.instances`).
    """
    left, top, width, height = cv2.boundingRect(seen.astype(np.uint8))
    # Each sample is four cells here, so that a border on either side of it has a place of its own.
    part = seen[top : top + height, left : left + width].astype(np.uint8)
    cells = cv2.resize(part, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    corner = np.array((left, top))
    found = []
    for contour in cv2.findContours(cells, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        border = cv2.approxPolyDP(np.asarray((contour + 1) // 2, np.int32), _OUTLINE_ERROR, closed=True)
        if len(border) >= 3:
            found.append([float(v) for v in ((border + corner) / 2).ravel()])
    return found


def _coco(info: dict[str, Any], records: Sequence[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        # A record of an earlier version, of a set that goes on, says nothing of whole objects and of outlines.
        wholes = record.get("whole", record["boxes"])
        borders = record.get("outlines", [[]] * len(wholes))
        for box, label, ignore, whole, border in zip(
            record["boxes"], record["labels"], record["ignore"], wholes, borders, strict=True
        ):
            width, height = round(box[2] - box[0], 2), round(box[3] - box[1], 2)
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": number + 1,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], width, height],
                    "area": round(width * height, 2),
                    "iscrowd": ignore,
                    "full_bbox": [*whole[:2], round(whole[2] - whole[0], 2), round(whole[3] - whole[1], 2)],
                    **({"segmentation": border} if border else {}),
                }
            )
    return {
        "info": info,
        "images": [
            {"id": n + 1, "file_name": record["file_name"], "height": size[0], "width": size[1]}
            for n, record in enumerate(records)
        ],
        "annotations": entries,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)],
    }


def _read_info(index: Path) -> Any:
    try:
        return parsed(index.read_text()).get("info")
    except (OSError, ValueError, AttributeError):
        return None


def _all_there(index: Path) -> bool:
    """Whether every image of the finished set is on disk."""
    present = {path.name for path in (index.parent / "images").glob("*.jpg")}
    return all(image["file_name"] in present for image in json.loads(index.read_text())["images"])


def _resume(out: Path, partial: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of images that are done; starts the log when there is none.

    Raises:
        AcclimateError: the folder holds something else, or cannot be written.
    """
    lines: list[dict[str, Any]] = []
    with writing(out):
        if partial.exists():
            for line in partial.read_text().splitlines():
                try:
                    lines.append(parsed(line))
                except ValueError:
                    break
            if lines and lines[0] != info:
                raise _occupied(
                    f"{out}: holds an unfinished data set of other settings; delete it or choose another",
                    lines[0],
                    info,
                )
        elif out.exists() and any(out.iterdir()) and not (out / "annotations.json").exists():
            raise AcclimateError(f"{out}: is not empty and is no generated data set; choose another folder")
        records = []
        for record in lines[1:]:
            if not (out / "images" / record["file_name"]).is_file():
                break
            records.append(record)
    write_text(partial, "".join(json.dumps(line) + "\n" for line in [info, *records]))
    return records


def _occupied(message: str, found: Any, wanted: dict[str, Any]) -> AcclimateError:
    """What to raise about a folder in which a set says of itself what is in `found`, and not what is `wanted`."""
    ours = isinstance(found, dict) and found.get("generator") == GENERATOR
    return OtherInputsError(message, digest(found), digest(wanted)) if ours else AcclimateError(message)
