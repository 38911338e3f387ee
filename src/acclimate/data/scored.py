"""Labels that a detector made: scored boxes of images that nobody has labelled, in one COCO file.

It is a COCO index whose annotations also have a `score`, as results have in COCO's own evaluation, so every tool that
reads COCO shows it. Beside what COCO says, `info` has the `thresholds`: the score of each class from which the labeller
is sure, where it was measured. A file without them, or without scores, is read too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.data.formats import files
from acclimate.errors import AcclimateError
from acclimate.run import write_text
from acclimate.structures import Detections


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one image.

    Attributes:
        size: (width, height) of the image in pixels, as it is shown.
        detections: boxes in its pixels, best first; labels are places among the classes.
    """

    size: tuple[int, int]
    detections: Detections


@dataclass(frozen=True, slots=True)
class ScoredLabels:
    """See the module.

    Attributes:
        classes: names, in the order of the labels.
        images: by file.
        thresholds: class -> score from which a box is sure; above 1 where none of the class is.
        labeller: what made them, for a reader.
    """

    classes: tuple[str, ...]
    images: Mapping[Path, Found]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    labeller: str = ""

    def of(self, paths: Sequence[Path], classes: Sequence[str], file: Path) -> dict[Path, Found]:
        """What was found in each of `paths`, with labels in the order of `classes`; others of its classes are left out.

        An image is known by its file, or by its name alone where that is told from all others.

        Raises:
            AcclimateError: none of them is in it, or it knows none of the classes; `file` is what the line names.
        """
        shared = [name for name in classes if name in self.classes]
        if not shared:
            raise AcclimateError(
                f"{file}: its classes are {', '.join(self.classes)}, and the detector's {', '.join(classes)}; label "
                "with those names (--classes theirs=ours)"
            )
        place = np.array([classes.index(name) if name in classes else -1 for name in self.classes], np.int64)
        by_file = {image.resolve(): found for image, found in self.images.items()}
        names = Counter(image.name for image in self.images)
        by_name = {image.name: found for image, found in self.images.items() if names[image.name] == 1}
        own = Counter(path.name for path in paths)
        known = {}
        for path in paths:
            found = by_file.get(path.resolve())
            if found is None and own[path.name] == 1:
                found = by_name.get(path.name)
            if found is not None:
                labels = place[found.detections.labels]
                kept = found.detections[labels >= 0]
                known[path] = Found(found.size, Detections(kept.boxes, labels[labels >= 0], kept.scores))
        if not known:
            raise AcclimateError(f"{file}: has none of the target images; label them with `acclimate label`")
        return known


def write(labels: ScoredLabels, file: Path) -> None:
    """Write `labels`, with the images' places relative to the file's folder.

    Raises:
        AcclimateError: it cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (path, found) in enumerate(labels.images.items(), 1):
        name = Path(os.path.relpath(path.resolve(), file.resolve().parent)).as_posix()
        width, height = found.size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for result in found.detections.to_coco(number):
            x, y, w, h = (round(value, 2) for value in result["bbox"])
            box = {"bbox": [x, y, w, h], "area": round(w * h, 2), "iscrowd": 0, "score": round(result["score"], 5)}
            annotations.append({"id": len(annotations) + 1, **result, **box})
    info = {"description": f"labelled by {labels.labeller}", "thresholds": dict(labels.thresholds)}
    index = {
        "info": info,
        "categories": [{"id": i, "name": name} for i, name in enumerate(labels.classes, 1)],
        "images": images,
        "annotations": annotations,
    }
    write_text(file, json.dumps(index, ensure_ascii=False) + "\n")


def read(file: Path) -> ScoredLabels:
    """What `write`, or any other tool that writes COCO, has written; a box without a score has the score 1.

    Raises:
        AcclimateError: the file is missing, damaged, or no COCO index.
    """
    if not file.is_file():
        raise AcclimateError(f"{file}: no such file; `acclimate label` writes one")
    index = files.json_of(file)
    if isinstance(index, list):
        raise AcclimateError(
            f"{file}: COCO results alone, which do not name their images; put them as annotations into the index of "
            "the images (images, categories, annotations)"
        )
    try:
        names = {category["id"]: str(category["name"]) for category in index["categories"]}
        classes = tuple(dict.fromkeys(names.values()))
        sizes = {image["id"]: (int(image["width"]), int(image["height"])) for image in index["images"]}
        places = {image["id"]: file.parent / str(image["file_name"]) for image in index["images"]}
        rows: dict[Any, list[tuple[float, ...]]] = {identity: [] for identity in places}
        for one in index["annotations"]:
            x, y, w, h = (float(value) for value in one["bbox"])
            score, label = float(one.get("score", 1.0)), classes.index(names[one["category_id"]])
            if w > 0 and h > 0 and 0 <= score <= 1 and not one.get("iscrowd"):
                rows[one["image_id"]].append((score, label, x, y, x + w, y + h))
        info = index.get("info") or {}
        thresholds = {str(name): float(score) for name, score in (info.get("thresholds") or {}).items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise AcclimateError(
            f"{file}: not a COCO index with scores ({type(error).__name__}: {error}); it needs images with file_name, "
            "width and height, categories, and annotations with image_id, category_id, bbox and score"
        ) from None
    images = {places[identity]: Found(sizes[identity], _detections(rows[identity])) for identity in places}
    return ScoredLabels(classes, images, thresholds, str(info.get("description", "")).removeprefix("labelled by "))


def _detections(rows: Sequence[tuple[float, ...]]) -> Detections:
    table = np.array(sorted(rows, key=lambda row: -row[0]), np.float64).reshape(-1, 6)
    return Detections(table[:, 2:].astype(np.float32), table[:, 1].astype(np.int64), table[:, 0].astype(np.float32))
