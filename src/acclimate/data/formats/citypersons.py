"""CityPersons: whole and visible boxes of the persons in Cityscapes (`gtBboxCityPersons` beside `leftImg8bit`).

Zhang, Benenson and Schiele 2017. Pedestrians count; riders, persons who sit or are in another pose, groups, and regions
that are marked `ignore` count neither for nor against, as in the authors' protocol. A folder that also has `gtFine` is
read as Cityscapes unless `format = "citypersons"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.config import DataConfig
from acclimate.data.formats import cityscapes, files, places
from acclimate.data.formats.raw import Raw

FILES = "CityPersons' gtBboxCityPersons"
PERSON = "pedestrian"
OTHERS = ("rider", "sitting person", "person (other)", "person group", "ignore")
"""Labels that count neither for nor against."""


def find(path: Path) -> bool:
    """A folder with gtBboxCityPersons."""
    return places.is_dir(path / "gtBboxCityPersons")


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the box files say; see `formats.read`."""
    root, split = config.path, config.split or "train"
    labels, folder = cityscapes.folders(config, "gtBboxCityPersons", foggy=False)
    found = {path.stem.removesuffix("_leftImg8bit"): path for path in places.images_below(folder)}
    raw = Raw(f"{root.name}/{split}", classes=(PERSON,), locate=lambda where, place: f"{where}: object {place}")
    for file in places.files_below(labels, "_gtbboxcitypersons.json"):
        stem = file.name.removesuffix("_gtBboxCityPersons.json")
        image = found.get(stem)
        if image is None:
            raw.problem(file, f"no image {stem}_leftImg8bit in {folder}; left out")
            continue
        if (taken := files.of_image(raw, file, cityscapes.taken, "imgHeight, imgWidth and objects")) is not None:
            size, items = taken
            _boxes(raw.sample(image, file, size), file, items, raw)
    return raw


def _boxes(sample: int, file: Path, items: Sequence[Any], raw: Raw) -> None:
    for number, item in enumerate(items, 1):
        where = f"{file}: object {number}"
        try:
            label = str(item["label"])
            whole, seen = (_corners(item[key]) for key in ("bbox", "bboxVis"))
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
            raw.problem(where, "no label, bbox or bboxVis of four numbers; left out")
            continue
        if label != PERSON and label not in OTHERS:
            raw.problem(where, f"label {label[:40]!r} is none of CityPersons'; left out")
            continue
        raw.visible[raw.objects] = seen
        raw.add(sample, PERSON, whole, number, ignore=label != PERSON)


def _corners(box: Any) -> tuple[float, float, float, float]:
    left, top, width, height = np.asarray(box, np.float64).tolist()
    return left, top, left + width, top + height
