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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acclimate.edge.images import DEFAULT, Reading, read_image
from acclimate.errors import AcclimateError
from acclimate.run import Run, digest, read_json, write_bytes
from acclimate.structures import Detections

LONGEST = 480
"""Longest side of a stored picture in pixels."""


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
    threshold: float = 0.35,
    longest: int = LONGEST,
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
        threshold: score from which the report draws a box.
        longest: of the copies' sides, pixels.
        reading: how files become pixels.

    Raises:
        AcclimateError: an image cannot be read, or the folder cannot be written.
        ValueError: not one `Detections` for each image.
    """
    pictures = []
    for path, found in zip(images, detections, strict=True):
        image = read_image(path, reading)
        height, width = image.shape[:2]
        scale = min(1.0, longest / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        done, data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
        if not done:
            raise AcclimateError(f"{path}: could not be stored as a JPEG; remove it or convert it to 8-bit RGB")
        name = f"images/{digest(str(path), longest)}.jpg"
        write_bytes(run.path / "pictures" / name, np.asarray(data, np.uint8).tobytes())
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
    album = Album(model=model, classes=tuple(classes), threshold=threshold, pictures=tuple(pictures))
    return run.write(f"pictures/{model}.json", album)


def load(run: Run, model: str = "eager") -> Album | None:
    """What `save` stored for `model`, or None where nothing was.

    Raises:
        AcclimateError: the file is damaged.
    """
    file = run.path / "pictures" / f"{model}.json"
    if not file.is_file():
        return None
    values: Any = read_json(file)
    try:
        return Album.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AcclimateError(
            f"{file}: {where}: {first['msg']}; delete the folder's pictures and make them again"
        ) from None


def data_uri(run: Run, picture: Picture) -> str | None:
    """The stored JPEG as a data URI, or None where it is not in the run's `pictures` folder."""
    folder = (run.path / "pictures").resolve()
    file = (folder / picture.image).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()
