"""What is written is read by readers that are not ours, and read again it is the same."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from acclimate import workflow
from acclimate.config import DataConfig
from acclimate.data.formats import LabelledImage, LabelledSet, detect, read
from acclimate.data.write import FORMATS, write
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations

CLASSES = ["car", "person", "on", "050", 'traffic "light": red']

WITHOUT_IGNORED = {"yolo", "cvat", "labelstudio"}
"""Formats that have no word for an ignored box."""


@pytest.fixture
def images(tmp_path: Path) -> LabelledSet:
    """Boxes at odd places, an ignored one, one of no class, an empty image, and two images of one name."""
    rng = np.random.default_rng(3)
    index: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    names = [*CLASSES, "DontCare"]
    index["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    for number, (folder, name) in enumerate(itertools.product(("day", "night"), ("a.jpg", "b.jpg"))):
        file = tmp_path / "set" / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = 60 + number, 90 - number
        cv2.imwrite(str(file), rng.integers(0, 255, (height, width, 3), np.uint8))
        index["images"].append({"id": number, "file_name": f"{folder}/{name}", "height": height, "width": width})
        for row in range(5 * (number != 2)):
            left, top = rng.uniform(0, 30, 2).tolist()
            annotation = {"image_id": number, "category_id": (row + number) % 6, "bbox": [left, top, 10.5 + row, 20.25]}
            index["annotations"].append({**annotation, "id": len(index["annotations"]), "iscrowd": int(row == 1)})
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    return read(DataConfig(path=tmp_path / "set"))


def rows(found: LabelledSet, ignored: bool) -> list[list[tuple[object, ...]]]:
    shown = []
    for image in found.images:
        a = image.annotations
        kinds = [found.classes[label] if label >= 0 else "" for label in a.labels]
        objects = zip(map(tuple, a.boxes.round(3).tolist()), kinds, a.ignore.tolist(), strict=True)
        shown.append(sorted(one for one in objects if ignored or not one[2]))
    return sorted(shown, key=str)


@pytest.mark.parametrize("format_", FORMATS)
def test_read_again_it_is_the_same(tmp_path: Path, images: LabelledSet, format_: str) -> None:
    told = write(images, format_, tmp_path / "out")
    assert detect(tmp_path / "out") == format_
    again = read(DataConfig(path=tmp_path / "out"))
    assert again.problems == ()
    for one, other in zip(rows(images, format_ not in WITHOUT_IGNORED), rows(again, True), strict=True):
        for (box, *words), (same, *others) in zip(one, other, strict=True):
            np.testing.assert_allclose(box, same, atol=2e-3)
            assert words == others
    assert len(told) == (format_ in WITHOUT_IGNORED)
    if format_ not in {"voc", "labelstudio"}:
        assert again.classes[: len(CLASSES)] == tuple(CLASSES)


@pytest.mark.parametrize("format_", FORMATS)
def test_names_that_a_format_cannot_hold_are_changed(tmp_path: Path, format_: str) -> None:
    odd = [os.fsdecode(b"caf\xe9"), "line\nend", ".jpg", " around ", "back\\slash", "\u00e9", "e\u0301", "x" * 240]
    names = [f"{stem}.jpg" for stem in (*odd, "plain, #1 & <2>")]
    found = []
    for number, name in enumerate(names):
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", np.zeros((60, 80, 3), np.uint8))[1].tobytes())
        box = np.float32([[5, 5, 20 + number, 30]])
        found.append(LabelledImage(path, 60, 80, Annotations(box, np.zeros(1, np.int64), np.zeros(1, bool))))
    write(LabelledSet(odd[0], "coco", ("car",), tuple(found)), format_, tmp_path / "out")
    again = read(DataConfig(path=tmp_path / "out"))
    assert again.problems == ()
    rights = sorted(round(float(image.annotations.boxes[0, 2])) for image in again.images)
    assert rights == [20 + number for number in range(len(names))]
    assert names[-1] in {image.path.name for image in again.images}


@pytest.mark.parametrize("format_", FORMATS)
def test_written_twice_it_is_the_same_byte_for_byte(tmp_path: Path, images: LabelledSet, format_: str) -> None:
    """So no file tells of the name that the folder had until it was whole."""

    def files(out: Path) -> dict[str, bytes]:
        write(images, format_, out)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_coco_is_what_pycocotools_reads(tmp_path: Path, images: LabelledSet) -> None:
    write(images, "coco", tmp_path / "out")
    oracle = COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    assert [one["name"] for one in oracle.loadCats(oracle.getCatIds())] == [*CLASSES, "DontCare"]
    for image, identity in zip(images.images, oracle.getImgIds(), strict=True):
        listed = oracle.loadImgs(identity)[0]
        stored = cv2.imread(str(tmp_path / "out" / "images" / listed["file_name"]))
        assert stored is not None
        assert stored.shape[:2] == (listed["height"], listed["width"]) == (image.height, image.width)
        boxes = np.array([one["bbox"] for one in oracle.loadAnns(oracle.getAnnIds(imgIds=identity))]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, image.annotations.boxes, atol=1e-4)


def test_yolo_is_what_its_definition_says(tmp_path: Path, images: LabelledSet) -> None:
    """Centre and size as fractions, by the arithmetic of the format's definition, from the files alone."""
    write(images, "yolo", tmp_path / "out")
    files = sorted((tmp_path / "out" / "labels" / "train").iterdir())
    assert [file.stem for file in files] == ["a", "a_2", "b", "b_2"]
    assert not files[1].read_text()
    values = np.loadtxt(files[0])
    image = images.images[0]
    kept = image.annotations[~image.annotations.ignore]
    assert values[:, 0].tolist() == kept.labels.tolist()
    corners = np.hstack([values[:, 1:3] - values[:, 3:] / 2, values[:, 1:3] + values[:, 3:] / 2])
    scale = np.array([image.width, image.height] * 2)
    np.testing.assert_allclose(corners * scale, kept.boxes, atol=1e-3)


def test_a_set_is_not_written_into_itself(tmp_path: Path, images: LabelledSet) -> None:
    before = sorted((tmp_path / "set").rglob("*"))
    for out in (tmp_path / "set", tmp_path / "set" / "out"):
        with pytest.raises(AcclimateError, match="would become a part of it"):
            workflow.convert(tmp_path / "set", "coco", out)
    assert sorted((tmp_path / "set").rglob("*")) == before
    assert len(images) == 4


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, images: LabelledSet) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(AcclimateError, match="not empty"):
        write(images, "coco", tmp_path / "out")
    with pytest.raises(AcclimateError, match="choose coco, yolo, voc"):
        write(images, "kitti", tmp_path / "new")
    images.images[0].path.unlink()
    with pytest.raises(FileNotFoundError):
        write(images, "voc", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"], "nothing half written stays"
