"""Exports that tools of others wrote (`make_foreign.py`): each is read with boxes on what they are of, or told."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from acclimate.config import DataConfig
from acclimate.data.formats import LabelledSet, UnlabelledSet
from acclimate.data.inspect import load
from acclimate.edge.images import read_image

ARCHIVE = Path(__file__).with_name("foreign.zip")
TRAIN, VAL, ALL = ("a", "b"), ("c",), ("a", "b", "c")
READ = {
    "datumaro-coco": ("coco", {"train": TRAIN, "val": VAL}),
    "datumaro-coco_instances": ("coco", {"train": TRAIN, "val": VAL}),
    "datumaro-cvat": ("cvat", {"train": TRAIN, "val": VAL}),
    "datumaro-kitti_detection": ("kitti", {"train": TRAIN, "val": VAL}),
    "datumaro-label_me": ("voc", {None: ALL, "train": TRAIN, "val": VAL}),
    "datumaro-open_images": ("openimages", {"train": TRAIN, "val": VAL}),
    "datumaro-voc": ("voc", {None: ALL, "train": TRAIN, "val": VAL}),
    "datumaro-voc_detection": ("voc", {None: ALL, "train": TRAIN, "val": VAL}),
    "datumaro-yolo": ("yolo", {None: TRAIN, "val": VAL}),
    "datumaro-yolo_ultralytics": ("yolo", {None: TRAIN, "val": VAL}),
    "globox-coco": ("coco", {None: TRAIN}),
    "globox-cvat": ("cvat", {None: TRAIN}),
    "globox-labelme": ("labelme", {None: TRAIN}),
    "globox-openimage": ("openimages", {None: TRAIN}),
    "globox-pascal_voc": ("voc", {None: TRAIN}),
    "globox-yolo_darknet": ("yolo", {None: TRAIN}),
    "globox-yolo_v5": ("yolo", {None: TRAIN}),
    "label_studio-COCO": ("coco", {None: TRAIN}),
    "label_studio-JSON": ("labelstudio", {None: TRAIN}),
    "label_studio-JSON_MIN": ("labelstudio", {None: TRAIN}),
    "label_studio-VOC": ("voc", {None: TRAIN}),
    "label_studio-YOLO": ("yolo", {None: TRAIN}),
    "label_studio-YOLO_OBB": ("yolo", {None: TRAIN}),
    "labelme2coco-coco": ("coco", {None: TRAIN}),
    "supervision-coco": ("coco", {None: TRAIN}),
    "supervision-pascal_voc": ("voc", {None: TRAIN}),
    "supervision-yolo": ("yolo", {None: TRAIN}),
}
"""The format, and the images of each split."""
TOLD = ("datumaro-datumaro", "datumaro-mot_seq_gt", "globox-via_json", "label_studio-CSV", "label_studio-TSV")
"""Not read: the images are, and that labels lie there is told."""
_BESIDE = ("the annotation id is listed twice",)
"""True of Datumaro's COCO: its ids begin anew with each image."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def test_every_export_of_the_archive_is_tried(exports: Path) -> None:
    assert {folder.name for folder in exports.iterdir()} == {*READ, *TOLD}


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, (_, splits) in READ.items() for split in splits])
def test_boxes_of_an_export_lie_on_what_they_are_of(exports: Path, name: str, split: str | None) -> None:
    format_, splits = READ[name]
    found = load(DataConfig(path=exports / name, split=split))
    assert isinstance(found, LabelledSet)
    assert found.format == format_
    assert sorted(image.path.stem[-1] for image in found.images) == [*splits[split]]
    assert set(found.classes) == {"car", "person"}
    for image in found.images:
        picture = read_image(image.path, found.reading).astype(int)
        assert sorted(found.classes[label] for label in image.annotations.labels) == ["car", "person"]
        for box, label in zip(image.annotations.boxes, image.annotations.labels, strict=True):
            left, top, right, bottom = box.round().astype(int)
            # A pixel inside the box's border all is of one colour; supervision's VOC counts from 1.
            colour = picture[top + 1 : bottom - 1, left + 1 : right - 1].reshape(-1, 3)
            assert (colour == ((230, 20, 20) if found.classes[label] == "car" else (20, 20, 230))).all()
            around = picture[top - 2, left:right], picture[bottom + 1, left:right]
            assert all(abs(side - side[:, :1]).max() == 0 for side in around), "grey lies outside"
    assert [p for p in found.problems if not any(said in p.what for said in _BESIDE)] == []


@pytest.mark.parametrize("name", TOLD)
def test_labels_that_are_not_read_are_told(exports: Path, name: str) -> None:
    found = load(exports / name)
    assert isinstance(found, UnlabelledSet)
    assert any("may be labels, and no known format places them" in problem.what for problem in found.problems)
