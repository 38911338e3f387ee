"""Pictures for the report: the same target images with the detections of each run drawn on them.

A run folder holds `pictures/NAME.json` (an `Album`, one for each model that looked at the images) and the images
it names, made small and stored as JPEG under `pictures/images/`. So the report needs neither the data set nor torch.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from acclimate.edge.images import DEFAULT, Reading, read_image
from acclimate.errors import AcclimateError
from acclimate.run import Run, digest, read_as, write_bytes
from acclimate.structures import Detections

LONGEST = 480
"""Longest side of a stored picture in pixels."""
CROP = 160
"""Longest side of a stored region in pixels."""


class Boxes(BaseModel):
    """`Detections` as lists: boxes (N, 4) xyxy in pixels of the stored picture, labels and scores (N)."""

    boxes: list[tuple[float, float, float, float]] = Field(default_factory=list)
    labels: list[int] = Field(default_factory=list)
    scores: list[float] = Field(default_factory=list)

    @model_validator(mode="after")
    def _same_length(self) -> Boxes:
        if not len(self.boxes) == len(self.labels) == len(self.scores):
            raise ValueError("boxes, labels and scores differ in number")
        return self


class Picture(BaseModel):
    """One image: `image` is the stored file, relative to `pictures/`; `source` the path it came from."""

    image: str
    source: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    detections: Boxes


class Album(BaseModel):
    """What one model found in the pictures. `threshold` is the score from which the report draws a box."""

    model_config = ConfigDict(extra="ignore")

    model: str
    classes: tuple[str, ...]
    threshold: float = 0.35
    pictures: tuple[Picture, ...]


def save(
    run: Run,
    images: Sequence[Path],
    detections: Sequence[Detections],
    classes: Sequence[str],
    *,
    model: str = "eager",
    reading: Reading = DEFAULT,
) -> Path:
    """Store small copies of images and what was found in them in a run folder; returns the album's file.

    The report matches the images of several runs by path. Detections with a score below 0.05 are left out.

    Args:
        run: whose folder gets them.
        images: the image files, the same for every run that the report compares.
        detections: one for each image, in pixels of the original.
        classes: the names of their labels.
        model: what found them, for the album's name.
        reading: how files become pixels.

    Raises:
        AcclimateError: an image cannot be read, or the folder cannot be written.
        ValueError: not one `Detections` for each image.
    """
    pictures = []
    for path, found in zip(images, detections, strict=True):
        name, size, (width, height) = keep(run, path, reading)
        kept = found.above(0.05)
        factors = np.array([size[0] / width, size[1] / height] * 2)
        boxes = (kept.boxes.astype(np.float64) * factors).round(1)
        pictures.append(
            Picture(
                image=name,
                source=str(path),
                width=size[0],
                height=size[1],
                detections=Boxes(
                    boxes=[(b[0], b[1], b[2], b[3]) for b in boxes.tolist()],
                    labels=kept.labels.tolist(),
                    scores=kept.scores.astype(np.float64).round(4).tolist(),
                ),
            )
        )
    album = Album(model=model, classes=tuple(classes), pictures=tuple(pictures))
    return run.write(f"pictures/{model}.json", album)


def keep(
    run: Run, path: Path, reading: Reading = DEFAULT, longest: int = LONGEST
) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Store a small copy of an image; its name below `pictures/`, and the sizes (width, height) of copy and image.

    Args:
        run: whose folder gets it.
        path: the image file.
        reading: how files become pixels.
        longest: of the copy's sides, pixels.

    Raises:
        AcclimateError: the image cannot be read, or the folder cannot be written.
    """
    image = read_image(path, reading)
    height, width = image.shape[:2]
    size = stored_size(width, height, longest)
    name = _name(str(path), longest)
    _write(run, name, path, cv2.resize(image, size, interpolation=cv2.INTER_AREA) if size != (width, height) else image)
    return name, size, (width, height)


def keep_crop(run: Run, path: Path, region: tuple[int, int, int, int], reading: Reading = DEFAULT) -> None:
    """Store a region of an image, a small one enlarged to `CROP` pixels, a large one reduced.

    Args:
        run: whose folder gets it.
        path: the image file.
        region: xyxy, whole pixels.
        reading: how files become pixels.

    Raises:
        AcclimateError: the image cannot be read, or the folder cannot be written.
    """
    image = read_image(path, reading)
    x1, y1, x2, y2 = region
    part = np.ascontiguousarray(image[y1:y2, x1:x2])
    if not part.size:
        raise AcclimateError(f"{path}: is smaller than it was when it was evaluated; evaluate again")
    scale = CROP / max(part.shape[:2])
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    resized = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    _write(run, _name(str(path), region), path, resized)


def stored_size(width: int, height: int, longest: int = LONGEST) -> tuple[int, int]:
    """(width, height) of the small copy of an image."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _name(*of: object) -> str:
    return f"images/{digest(*of)}.jpg"


def _write(run: Run, name: str, path: Path, image: NDArray[Any]) -> None:
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise AcclimateError(f"{path}: could not be stored as a JPEG; remove it or convert it to 8-bit RGB")
    write_bytes(run.path / "pictures" / name, np.asarray(data, np.uint8).tobytes())


def uri_of(run: Run, path: str, longest: int = LONGEST) -> str | None:
    """The stored copy of an image as a data URI; None where there is none."""
    return _uri(run, _name(path, longest))


def crop_uri(run: Run, path: str, region: tuple[int, int, int, int]) -> str | None:
    """The stored region of an image as a data URI; None where there is none."""
    return _uri(run, _name(path, region))


def load(run: Run, model: str = "eager") -> Album | None:
    """What `save` stored for `model`, or None where nothing was.

    Raises:
        AcclimateError: the file is damaged.
    """
    file = run.path / "pictures" / f"{model}.json"
    if not file.is_file():
        return None
    return read_as(Album, file, "delete the folder's pictures and make them again")


def data_uri(run: Run, picture: Picture) -> str | None:
    """The stored JPEG as a data URI, or None where it is not in the run's `pictures` folder."""
    return _uri(run, picture.image)


def _uri(run: Run, name: str) -> str | None:
    folder = (run.path / "pictures").resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()
