"""Kinds of labels and layouts, made here: flags, columns, names, places, and formats of other tools."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from acclimate.config import FORMATS, DataConfig
from acclimate.data.formats import LabelledSet, detect, files, kitti, places, read
from acclimate.data.inspect import load
from acclimate.errors import AcclimateError
from acclimate.evaluate import average_precision
from acclimate.structures import Detections
from another_format import READER

CAR, PERSON = (20.0, 30.0, 60.0, 70.0), (100.0, 20.0, 120.0, 80.0)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((120, 160, 3), 90, np.uint8))
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def boxes(found: LabelledSet) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    return {
        image.path.name: sorted(
            (found.classes[label] if label >= 0 else "", tuple(round(value, 2) for value in box))
            for box, label in zip(image.annotations.boxes.tolist(), image.annotations.labels, strict=True)
        )
        for image in found.images
    }


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *((word, True) for word in (1, 1.0, True, "1", " TRUE ", "yes", "On", "2")),
        *(
            (word, False)
            for word in (0, None, False, "", "0", "0.0", "False", "no", "Unspecified", "unknown", -1, "-1")
        ),
        *((word, None) for word in ("maybe", [], {})),
    ],
)
def test_flags(written: Any, meant: bool | None) -> None:
    assert files.flag(written) is meant


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Car 0 0 0 20 30 60 70", ("Car", None)),
        ("Car 0 0 -1.57 20 30 60 70 1 1 1 0 0 0 0 0.93", ("Car", None)),
        ("Traffic Light 0.00 0 0 20 30 60 70 1 1 1 0 0 0 0", ("Traffic Light", None)),
        ("Type 2 0.00 0 0.1 20 30 60 70 1 1 1 0 0 0 0", ("Type 2", None)),
        ("3 7 Car 0 0 0 20 30 60 70 1 1 1 0 0 0 0", ("Car", 3)),
        ("3 -1 Big Van 0 0 0 20 30 60 70 1 1 1 0 0 0 0 0.5", ("Big Van", 3)),
    ],
)
def test_kitti_columns_are_found_from_their_count(line: str, expected: tuple[str, int | None]) -> None:
    row = kitti._row(line)
    assert row is not None
    assert (row[0], row[2]) == expected
    assert row[1] == [20, 30, 60, 70]


@pytest.mark.parametrize("line", ["", "Car 1 2 3", "0 0.5 0.5 0.1 0.1", "Car a b c d e f g", "Car 0 0 0 1 2 3 4 5 6"])
def test_kitti_columns_that_cannot_be_told_are_none(line: str) -> None:
    assert kitti._row(line) is None


def test_kitti_tracking_has_a_file_a_sequence(tmp_path: Path) -> None:
    for frame in range(3):
        picture(tmp_path / "training" / "image_02" / "0000" / f"{frame:06d}.png")
    row = "{} 1 Car 0 0 0 20 30 60 70 1 1 1 0 0 0 0\n"
    text(tmp_path / "training" / "label_02" / "0000.txt", row.format(0) + row.format(2) + row.format(9))
    found = read(DataConfig(path=tmp_path))
    assert boxes(found) == {"000000.png": [("Car", CAR)], "000001.png": [], "000002.png": [("Car", CAR)]}
    assert ["no image of frame 9" in str(problem) for problem in found.problems] == [True]


def yolo(root: Path, rows: str, extra: str = "") -> LabelledSet:
    picture(root / "images" / "train" / "a.png")
    text(root / "labels" / "train" / "a.txt", rows)
    text(root / "data.yaml", f"train: images/train\nnames: [car, person]\n{extra}")
    return read(DataConfig(path=root))


def test_yolo_rows_with_more_than_a_box(tmp_path: Path) -> None:
    box = "0 0.25 0.416667 0.25 0.333333"
    found = yolo(tmp_path / "confidence", f"{box} 0.9\n{box.replace('0 ', '1 ', 1)} 0.4\n")
    assert boxes(found) == {"a.png": [("car", CAR), ("person", CAR)]}
    assert ["read as a confidence and left out of account (2 rows" in str(p) for p in found.problems] == [True]
    points = " 0.2 0.3 2 0.3 0.3 1 0.2 0.5 0 0.3 0.5 2"
    assert boxes(yolo(tmp_path / "pose", f"{box}{points}\n")) == {"a.png": [("car", CAR)]}
    flat = " 0.2 0.3 0.3 0.3"
    assert boxes(yolo(tmp_path / "flat", f"{box}{flat}\n", "kpt_shape: [2, 2]\n")) == {"a.png": [("car", CAR)]}
    polygon = "0 0.125 0.25 0.375 0.25 0.375 0.583333 0.125 0.583333\n"
    assert boxes(yolo(tmp_path / "polygon", polygon)) == {"a.png": [("car", CAR)]}
    # A polygon along the border has zeros and ones where key points have their visibility.
    closed = "0 0 0 1 0 1 1 0 1 0 0\n"
    assert boxes(yolo(tmp_path / "border", closed)) == {"a.png": [("car", (0, 0, 160, 120))]}
    wrong = yolo(tmp_path / "count", f"{box}\n0 0.1 0.1 0.2 0.2 0.3 0.3\n", "kpt_shape: [4, 3]\n")
    assert ["numbers that `kpt_shape` says" in str(problem) for problem in wrong.problems] == [True]


def test_yolo_names_stay_what_is_written(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "a.png")
    text(tmp_path / "labels" / "train" / "a.txt", "".join(f"{i} 0.5 0.5 0.{i + 1} 0.2\n" for i in range(8)))
    text(tmp_path / "data.yaml", "path: ~\ntrain: images/train\nnames: [on, no, 050, ~, null, 1e3, 2020-01-01, 'x']\n")
    expected = ("on", "no", "050", "~", "null", "1e3", "2020-01-01", "x")
    assert read(DataConfig(path=tmp_path)).classes == expected


def test_label_files_without_their_image_are_told(tmp_path: Path) -> None:
    text(tmp_path / "labels" / "train" / "lost.txt", "0 0.5 0.5 0.1 0.1\n")
    found = yolo(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    assert ["1 label files have no image" in str(problem) for problem in found.problems] == [True]


def coco(root: Path, names: list[str], **keys: Any) -> Path:
    index = {
        "images": [{"id": number, "file_name": name, "width": 160, "height": 120} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 30, 40, 40], **keys}
            for number in range(len(names))
        ],
        "categories": [{"id": 1, "name": "car"}],
    }
    return text(root / "labels.json", json.dumps(index))


def test_images_of_another_split_or_set_are_never_taken(tmp_path: Path) -> None:
    """FiftyOne's data/ and labels.json for each split, with the same names in both."""
    coco(tmp_path / "train", ["0.png", "1.png"])
    coco(tmp_path / "val", ["0.png", "1.png"])
    for split, name in (("train", "0.png"), ("val", "0.png"), ("val", "1.png")):
        picture(tmp_path / split / "data" / name)
    found = read(DataConfig(path=tmp_path / "train"))
    assert [image.path for image in found.images] == [tmp_path / "train" / "data" / "0.png"]
    assert len(found.problems) == 1
    shutil.rmtree(tmp_path / "train" / "data")
    with pytest.raises(AcclimateError, match="name their folder with `images`"):
        read(DataConfig(path=tmp_path / "train"))


def test_one_resolver_for_names_of_other_machines(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/deep/er/b.jpg", "images/train/c.jpg", "images/val/c.jpg", "images/e v.PNG"):
        picture(tmp_path / name)
    images = places.Images([tmp_path], [tmp_path / "images"], split="train")
    for written, file in (
        ("images\\a.jpg", "images/a.jpg"),
        ("C:\\Users\\me\\ds\\images\\a.jpg", "images/a.jpg"),
        ("/content/ds/images/a", "images/a.jpg"),
        ("..\\images\\a.jpg", "images/a.jpg"),
        ("b.jpg", "images/deep/er/b.jpg"),
        ("c.jpg", "images/train/c.jpg"),
        ("/x/val/c.jpg", "images/val/c.jpg"),
        ("e v", "images/e v.PNG"),
    ):
        assert images.find(written) == tmp_path / file, written
    for unknown in ("", "..", "x" * 300, "a\0b", "d.jpg", "/x/test/c.jpg"):
        assert images.find(unknown) is None, unknown
    assert places.Images([tmp_path], [tmp_path / "images"]).find("c.jpg") is None, "two splits have one"


@pytest.mark.parametrize(("word", "ignored"), [("0", False), ("false", False), ("1", True), ("Unspecified", False)])
def test_voc_flags_and_names_with_spaces(tmp_path: Path, word: str, ignored: bool) -> None:
    row = "<bndbox><xmin>20</xmin><ymin>30</ymin><xmax>60</xmax><ymax>70</ymax></bndbox>"
    for name, flag in (("my image", word), ("my", "0")):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        content = f"<annotation><object><name>car</name><difficult>{flag}</difficult>{row}</object></annotation>"
        text(tmp_path / "Annotations" / f"{name}.xml", content)
    text(tmp_path / "ImageSets" / "Main" / "val.txt", "my image -1\nmy\n")
    found = read(DataConfig(path=tmp_path, split="val"))
    assert {image.path.name: image.annotations.ignore.tolist() for image in found.images} == {
        "my image.jpg": [ignored],
        "my.jpg": [False],
    }


def test_dota_boxes_are_the_extent_of_the_corners(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "images" / "P1.png")
    rows = "40 30 60 50 40 70 20 50 small-vehicle 0\n100 20 120 20 120 80 100 80 ship 1\nbad\n"
    text(tmp_path / "train" / "labelTxt" / "P1.txt", "imagesource:GoogleEarth\ngsd:0.1\n" + rows)
    found = read(DataConfig(path=tmp_path))
    assert (found.format, boxes(found)) == ("dota", {"P1.png": [("ship", PERSON), ("small-vehicle", CAR)]})
    assert sorted(found.images[0].annotations.ignore.tolist()) == [False, True]
    assert len(found.problems) == 1


def test_labelme_shapes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    shapes = [
        {"label": "car", "points": [[60, 70], [20, 30]], "shape_type": "rectangle"},
        {"label": "person", "points": [[100, 20], [120, 50], [110, 80]], "shape_type": "polygon"},
        {"label": "ball", "points": [[50, 50], [53, 54]], "shape_type": "circle"},
        {"label": "tip", "points": [[5, 5]], "shape_type": "point"},
    ]
    content = {"shapes": shapes, "imagePath": "..\\elsewhere\\a.png", "imageHeight": 120, "imageWidth": 160}
    text(tmp_path / "a.json", json.dumps(content))
    picture(tmp_path / "b.png")
    found = read(DataConfig(path=tmp_path))
    assert boxes(found) == {"a.png": [("ball", (45, 45, 55, 55)), ("car", CAR), ("person", PERSON)]}
    told = "\n".join(map(str, found.problems))
    assert "tip: a point of 1 points has no box" in told
    assert "1 image has no label file, left out (the first: b.png)" in told


def test_supervisely_wider_and_cvat(tmp_path: Path) -> None:
    picture(tmp_path / "sly" / "ds0" / "img" / "a.png")
    item = {"classTitle": "car", "geometryType": "rectangle", "points": {"exterior": [[20, 30], [60, 70]]}}
    sly = {"size": {"height": 120, "width": 160}, "objects": [item]}
    text(tmp_path / "sly" / "ds0" / "ann" / "a.png.json", json.dumps(sly))
    text(tmp_path / "sly" / "meta.json", "{}")
    picture(tmp_path / "wider" / "WIDER_val" / "images" / "0--Parade" / "p.jpg")
    rows = "0--Parade/p.jpg\n2\n20 30 40 40 0 0 0 0 0 0\n100 20 20 60 0 0 0 1 0 0\n"
    text(tmp_path / "wider" / "wider_face_split" / "wider_face_val_bbx_gt.txt", rows)
    picture(tmp_path / "cvat" / "images" / "a.png")
    shape = '<box label="car" xtl="20" ytl="30" xbr="60" ybr="70" occluded="0"/><points label="tip" points="1,2"/>'
    image = f'<image id="0" name="a.png" width="160" height="120">{shape}</image>'
    text(tmp_path / "cvat" / "annotations.xml", f"<annotations><version>1.1</version>{image}</annotations>")
    for name, format_, kind, problems in (
        ("sly", "supervisely", "car", 0),
        ("wider", "wider", "face", 0),
        ("cvat", "cvat", "car", 1),
    ):
        found = read(DataConfig(path=tmp_path / name))
        assert (found.format, len(found.problems)) == (format_, problems)
        assert (kind, CAR) in next(iter(boxes(found).values()))
    assert read(DataConfig(path=tmp_path / "wider")).images[0].annotations.ignore.tolist() == [False, True]


def open_images(root: Path) -> Path:
    picture(root / "validation" / "a.jpg")
    flags = "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    header = f"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,{flags}\n"
    rows = [
        "a,xclick,/m/car,1,0.125,0.375,0.25,0.583333,0,0,0,0,0",
        "a,xclick,/m/person,1,0.625,0.75,0.166667,0.666667,-1,-1,1,-1,-1",
        "gone,xclick,/m/car,1,0.1,0.2,0.1,0.2,0,0,0,0,0",
    ]
    text(root / "validation-annotations-bbox.csv", header + "\n".join(rows) + "\n")
    text(root / "class-descriptions-boxable.csv", "/m/car,Car\n/m/person,Person\n/m/vehicle,Vehicle\n/m/all,Entity\n")
    tree = {"LabelName": "/m/vehicle", "Subcategory": [{"LabelName": "/m/car", "Part": [{"LabelName": "/m/wheel"}]}]}
    hierarchy = {"LabelName": "/m/all", "Subcategory": [tree, {"LabelName": "/m/person"}]}
    text(root / "bbox_labels_600_hierarchy.json", json.dumps(hierarchy))
    return root


def test_open_images_counts_for_the_classes_above(tmp_path: Path) -> None:
    found = read(DataConfig(path=open_images(tmp_path)))
    assert (found.format, set(found.classes)) == ("openimages", {"Car", "Vehicle", "Person"})
    image = found.images[0].annotations
    kinds = [(found.classes[label], bool(ignore)) for label, ignore in zip(image.labels, image.ignore, strict=True)]
    assert sorted(kinds) == [("Car", False), ("Person", True), ("Vehicle", False)]
    assert ["1 images (1 boxes) are not there" in str(problem) for problem in found.problems] == [True]


@pytest.mark.parametrize(
    "tree",
    [[], {"Subcategory": 3}, {"Subcategory": [None, 3, {}, {"LabelName": "/m/car", "Subcategory": {"LabelName": 1}}]}],
)
def test_a_hierarchy_that_is_none_has_no_classes_above(tmp_path: Path, tree: Any) -> None:
    root = open_images(tmp_path)
    # The word by which such a file is known.
    named = {"LabelName": "x", **tree} if isinstance(tree, dict) else [tree, "LabelName"]
    text(root / "bbox_labels_600_hierarchy.json", json.dumps(named))
    assert set(read(DataConfig(path=root)).classes) == {"Car", "Person"}


@pytest.mark.parametrize("row", ['"a,x,/m/car', "x" * 200_000])
def test_a_damaged_table_is_told_with_its_line(tmp_path: Path, row: str) -> None:
    file = open_images(tmp_path) / "validation-annotations-bbox.csv"
    file.write_text(f"{file.read_text()}\n{row}")
    with pytest.raises(AcclimateError, match=r"bbox\.csv:6: damaged CSV"):
        read(DataConfig(path=tmp_path))


def test_data_sets_of_supervisely_in_one_another(tmp_path: Path) -> None:
    item = {"classTitle": "car", "geometryType": None, "points": {"exterior": [[20, 30], [60, 70]]}}
    for name, folder in (("a", "ds"), ("b", "ds/datasets/inner")):
        picture(tmp_path / folder / "img" / f"{name}.png")
        content = {"size": {"height": "120", "width": 160.0}, "objects": [item, {**item, "classTitle": None}]}
        text(
            tmp_path / folder / "ann" / f"{name}.png.json", json.dumps(content if name == "a" else {"objects": [item]})
        )
    found = read(DataConfig(path=tmp_path))
    assert boxes(found) == {"a.png": [("car", CAR)], "b.png": [("car", CAR)]}
    assert ["no classTitle" in str(problem) for problem in found.problems] == [True]


def test_a_group_of_open_images_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    """The official evaluation's rule: detections inside of a group-of box count neither way, however many, and a group
    that is missed is no miss. By hand: of three detections of a person two lie in the group, and one is right."""
    root = open_images(tmp_path)
    file = root / "validation-annotations-bbox.csv"
    alone = "a,xclick,/m/person,1,0.02,0.1,0.05,0.5,0,0,0,0,0\n"
    file.write_text(file.read_text() + alone)
    truth = read(DataConfig(path=root, drop=("Car", "Vehicle")))
    inside = [[102.0, 25.0, 110.0, 50.0], [110.0, 40.0, 118.0, 75.0]]
    right = [3.2, 6.0, 16.0, 60.0]

    def ap50(rows: list[list[float]], scores: list[float]) -> float:
        found = Detections(np.float32(rows), np.zeros(len(rows), np.int64), np.float32(scores))
        return average_precision([found], truth, data="x", role="target").ap50

    assert truth.classes == ("Person",)
    assert ap50([right], [0.9]) == pytest.approx(1)
    assert ap50([*inside, right], [0.9, 0.8, 0.7]) == pytest.approx(1)
    # One above it that is in no group halves the precision at every recall.
    assert ap50([[60.0, 5.0, 80.0, 30.0], *inside, right], [0.95, 0.9, 0.8, 0.7]) == pytest.approx(0.5, abs=0.01)


def test_labels_in_two_formats_are_told(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    coco(tmp_path, ["images/train/a.png"])
    found = read(DataConfig(path=tmp_path))
    assert found.format == "yolo"
    assert ["format = 'coco' reads that" in str(problem) for problem in found.problems] == [True]
    assert read(DataConfig(path=tmp_path, format="coco")).format == "coco"


def test_a_new_format_is_one_file_and_one_line_in_the_table(tmp_path: Path) -> None:
    package = tmp_path / "acclimate"
    shutil.copytree(Path(read.__code__.co_filename).parents[2], package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "data" / "formats" / "listed.py").write_text(READER)
    table = package / "config" / "data.py"
    lines = table.read_text().splitlines()
    place = lines.index("FORMATS = (") + 1
    lines.insert(place, '    "listed",')
    table.write_text("\n".join(lines) + "\n")
    picture(tmp_path / "set" / "a.png")
    text(tmp_path / "set" / "boxes.list", "a.png car 20 30 60 70\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from acclimate.config import DataConfig; from acclimate.data import formats\n"
        "found = formats.read(DataConfig(path=Path(sys.argv[1])))\n"
        "assert formats.__file__.startswith(sys.argv[2])\n"
        "DataConfig(path=Path('x'), format='listed')\n"
        "try: formats.read(DataConfig(path=Path(sys.argv[2])))\n"
        "except Exception as error: assert 'a boxes.list' in str(error), error\n"
        "print(found.format, found.classes, found.images[0].annotations.boxes.tolist(), len(found.problems))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set"), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout.strip() == "listed ('car',) [[20.0, 30.0, 60.0, 70.0]] 0", done.stderr


def test_every_format_of_the_table_is_a_file_that_knows_nothing_here(tmp_path: Path) -> None:
    assert detect(tmp_path) is None
    there = {path.stem for path in Path(places.__file__).parent.glob("*.py")}
    assert there == {*FORMATS, "__init__", "raw", "files", "places", "looked"}


@pytest.mark.parametrize("written", [(80, 60), (80.0, 60.0), ("80", "60"), ("80.0", " 60 ")])
@pytest.mark.parametrize("format_", ["coco", "cvat", "labelme", "labelstudio", "voc"])
def test_a_size_written_in_any_way_tells_the_frame(tmp_path: Path, format_: str, written: tuple[Any, Any]) -> None:
    # Stored 60 wide and 80 high with an EXIF tag that turns it; the index has the stored size, so boxes are turned.
    image = Image.new("RGB", (80, 60))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    width, height = written
    box = {"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 50}
    if format_ == "coco":
        index = {"images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}]}
        index |= {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 20, 30]}]}
        text(tmp_path / "index.json", json.dumps({**index, "categories": [{"id": 1, "name": "car"}]}))
    elif format_ == "cvat":
        shape = '<box label="car" xtl="10" ytl="20" xbr="30" ybr="50"/>'
        listed = f'<image id="0" name="a.jpg" width="{width}" height="{height}">{shape}</image>'
        text(tmp_path / "annotations.xml", f"<annotations>{listed}</annotations>")
    elif format_ == "labelme":
        shapes = [{"label": "car", "points": [[10, 20], [30, 50]], "shape_type": "rectangle"}]
        content = {"shapes": shapes, "imagePath": "a.jpg", "imageWidth": width, "imageHeight": height}
        text(tmp_path / "a.json", json.dumps(content))
    elif format_ == "labelstudio":
        value = {"x": 12.5, "y": 100 / 3, "width": 25, "height": 50, "rectanglelabels": ["car"]}
        result = {"value": value, "original_width": width, "original_height": height, "type": "rectanglelabels"}
        task = {"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}
        text(tmp_path / "tasks.json", json.dumps([task]))
    else:
        corners = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
        inner = f"<object><name>car</name><bndbox>{corners}</bndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text(tmp_path / "a.xml", f'<annotation xmlns="http://example.org">{size}{inner}</annotation>')
    found = read(DataConfig(path=tmp_path))
    assert found.format == format_
    assert [(im.width, im.height) for im in found.images] == [(60, 80)]
    # Clockwise by 90 degrees: x becomes 60 - y, y becomes x.
    assert boxes(found) == {"a.jpg": [("car", (10, 10, 40, 30))]}
    assert found.problems == ()


def test_key_points_without_a_shape_are_no_polygons_and_polygons_no_key_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.1, 0.3, (6, 2))
    centres = rng.uniform(0.2, 0.8, (6, 2))
    inside = centres[:, None] + rng.uniform(-0.45, 0.45, (6, 4, 2)) * sides[:, None]
    both = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float64) * [160, 120, 160, 120]
    expected = sorted(tuple(row) for row in both.round(1).tolist())

    def read_rows(name: str, points: np.ndarray) -> tuple[list[tuple[float, ...]], list[str]]:
        table = np.concatenate([centres, sides, points.reshape(6, -1)], axis=1)
        rows = "".join("0 " + " ".join(f"{value:.6f}" for value in row) + "\n" for row in table)
        found = yolo(tmp_path / name, rows)
        shown = [tuple(round(value, 1) for value in box) for box in found.images[0].annotations.boxes.tolist()]
        return sorted(shown), [problem.what for problem in found.problems]

    for value in (0, 1, 2):
        seen = np.full((6, 4, 1), value)
        got, told = read_rows(f"visible {value}", np.concatenate([inside, seen], axis=2))
        assert np.allclose(got, expected, atol=0.11)
        assert told == []
    got, told = read_rows("flat", inside)
    assert np.allclose(got, expected, atol=0.11)
    assert ["a box and key points rather than a polygon" in what for what in told] == [True]
    # Small pentagons: their corners lie in the "box" that the first two of them would be, and they stay polygons.
    angles = 0.4 * np.pi * np.arange(5) + rng.uniform(-0.3, 0.3, (6, 5))
    corners = centres[:, None] + 0.05 * np.stack([np.cos(angles), np.sin(angles)], axis=2)
    rows = "".join("0 " + " ".join(f"{value:.6f}" for value in row) + "\n" for row in corners.reshape(6, -1))
    found = yolo(tmp_path / "polygons", rows)
    assert found.problems == ()
    extents = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1) * [160, 120, 160, 120]
    got = sorted(tuple(box) for box in found.images[0].annotations.boxes.tolist())
    assert np.allclose(got, sorted(map(tuple, extents.tolist())), atol=0.01)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("a%20b.jpg", "a b.jpg"),
        ("\u00e9.jpg", "e\u0301.jpg"),
        ("e\u0301.jpg", "\u00e9.jpg"),
        ("IMG.JPG", "img.jpg"),
        ("https://host/x/a.jpg?token=1", "a.jpg"),
    ],
)
def test_names_that_are_written_otherwise_are_found_where_one_file_fits(
    tmp_path: Path, written: str, stored: str
) -> None:
    picture(tmp_path / "images" / stored)
    resolver = places.Images([tmp_path / "images"])
    assert resolver.find(written) == tmp_path / "images" / stored
    assert places.Images([tmp_path], [tmp_path]).find(written) == tmp_path / "images" / stored


def test_two_files_that_fit_are_none(tmp_path: Path) -> None:
    picture(tmp_path / "A.jpg")
    picture(tmp_path / "a.JPG")
    assert places.Images([tmp_path]).find("a.jpg") is None


@pytest.mark.parametrize("label", ["Labels/train/a.txt", "labels/train/A.TXT", "labels/train/a.png.txt"])
def test_label_files_in_other_capitals_are_read(tmp_path: Path, label: str) -> None:
    picture(tmp_path / "images" / "train" / "a.png")
    text(tmp_path / label, "0 0.25 0.416667 0.25 0.333333\n")
    text(tmp_path / "data.yaml", "train: images/train\nnames: [car]\n")
    found = read(DataConfig(path=tmp_path))
    assert boxes(found) == {"a.png": [("car", CAR)]}
    assert found.problems == ()


def test_boxes_in_another_unit_are_never_taken_in_silence(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    index = coco(tmp_path, ["a.png"])
    content = json.loads(index.read_text())
    content["annotations"] = [
        {"id": number, "image_id": 0, "category_id": 1, "bbox": box} for number, box in enumerate((CAR, PERSON))
    ]
    index.write_text(json.dumps(content))
    found = read(DataConfig(path=index))
    assert any("none would as left, top, right, bottom" in problem.what for problem in found.problems)
    content["annotations"] = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0.1, 0.2, 0.3, 0.4]}]
    index.write_text(json.dumps(content))
    with pytest.raises(AcclimateError, match="may be fractions"):
        read(DataConfig(path=index))


def test_labels_beside_a_format_that_is_known_are_told(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.25 0.416667 0.25 0.333333\n")
    assert load(tmp_path).problems == ()
    text(tmp_path / "README.txt", "bbox annotations of 4 classes\n")
    text(tmp_path / "labels" / "val" / "b.txt", "0 0.5 0.5 0.1 0.1\n")  # another split is no problem
    assert load(tmp_path).problems == ()
    text(tmp_path / "labels" / "night" / "b.txt", "0 0.5 0.5 0.1 0.1\n")
    text(tmp_path / "more.csv", "image,xmin,ymin,xmax,ymax\na.png,1,2,3,4\n")
    told = [(Path(problem.where).name, problem.what) for problem in load(tmp_path).problems]
    assert [where for where, _ in told] == ["more.csv", "b.txt"]
    assert all("are no part of it (read as yolo)" in what for _, what in told)


def test_a_rotation_that_is_no_number_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    shape = '<box label="car" xtl="20" ytl="30" xbr="60" ybr="70" rotation="{}"/>'
    for rotation, told in (("0.0", False), ("30", True), ("left", True)):
        image = f'<image id="0" name="a.png" width="160" height="120">{shape.format(rotation)}</image>'
        text(tmp_path / "annotations.xml", f"<annotations>{image}</annotations>")
        found = read(DataConfig(path=tmp_path))
        assert boxes(found) == {"a.png": [("car", CAR)]}
        assert any("a turned box" in problem.what for problem in found.problems) is told


VOC = (
    "<annotation>{}<object><name>{}</name><bndbox><xmin>20</xmin><ymin>30</ymin><xmax>60</xmax><ymax>70</ymax></bndbox>"
    "</object></annotation>"
)
KITTI = "Car 0 0 -1 20 30 60 70 1 1 1 1 1 1 1\n"


@pytest.mark.parametrize(
    ("names", "classes", "told"),
    [
        (["traffic\u00a0light", "per\u200bson \n"], ("traffic light", "person"), ""),
        (["cafe\u0301", "caf\u00e9"], ("caf\u00e9",), "lists the class 'caf\u00e9' 2 times"),
        (["car", "car "], ("car",), "lists the class 'car' 2 times; it is read as one"),
        (["Car", "car"], ("Car", "car"), 'differ in capitals alone; to make them one: classes = { "car" = "Car" }'),
        (["car", "\u200b"], ("car",), "its class has no name; left out (1 boxes, the first here)"),
    ],
)
@pytest.mark.parametrize("format_", ["coco", "yolo"])
def test_class_names_are_what_one_sees(
    tmp_path: Path, format_: str, names: list[str], classes: tuple[str, ...], told: str
) -> None:
    """An artifact refuses names that cannot be shown: not after all training, but here."""
    picture(tmp_path / "images" / "a.png")
    if format_ == "coco":
        index = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
            "annotations": [{"id": n, "image_id": 1, "category_id": n, "bbox": [9 * n, 9, 9, 9]} for n in range(2)],
        }
        text(tmp_path / "x.json", json.dumps(index))
    else:
        text(tmp_path / "data.yaml", f"train: images\nnames: {json.dumps(names)}\n")
        text(tmp_path / "labels" / "a.txt", "0 .3 .3 .1 .1\n1 .6 .6 .1 .1\n")
    found = read(DataConfig(path=tmp_path))
    assert found.classes == classes
    assert [told in str(problem) for problem in found.problems] == [True] * bool(told)
    assert read(DataConfig(path=tmp_path), found.classes).classes == classes


@pytest.mark.parametrize(
    ("split", "lists", "line"),
    [
        ("train", "ImageSets/Main/train.txt", "\ufeffa b"),
        ("valid", "ImageSets/Main/val.txt", "a b.xml"),
        ("train", "ImageSets/train.txt", "IMAGES/a b.png"),
        ("train", "train.txt", ".\\IMAGES\\a b.png"),
        ("train", "train.txt", "/content/set/IMAGES/a b.png  1"),
    ],
)
@pytest.mark.parametrize("format_", ["voc", "kitti"])
def test_split_lists_of_any_writing(tmp_path: Path, format_: str, split: str, lists: str, line: str) -> None:
    images, labels, ending = ("JPEGImages", "Annotations", "xml") if format_ == "voc" else ("image_2", "label_2", "txt")
    for name in ("a b", "a"):
        picture(tmp_path / images / f"{name}.png")
        text(tmp_path / labels / f"{name}.{ending}", VOC.format("", "Car") if format_ == "voc" else KITTI)
    lists = lists.replace("Main/", "") if format_ == "kitti" else lists
    line = line.replace("IMAGES", images).replace(".xml", f".{ending}")
    text(tmp_path / lists, f"{line}\r\n\r\n")
    assert boxes(read(DataConfig(path=tmp_path, split=split))) == {"a b.png": [("Car", CAR)]}


def test_a_list_of_images_and_labels_in_pairs(tmp_path: Path) -> None:
    """PaddleDetection's."""
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
        text(tmp_path / "annotations" / f"{name}.xml", VOC.format("", "car"))
    text(tmp_path / "train.txt", "./images/a.png ./annotations/a.xml\n")
    assert boxes(read(DataConfig(path=tmp_path, split="train"))) == {"a.png": [("car", CAR)]}


def test_labels_that_name_their_image_in_another_key(tmp_path: Path) -> None:
    """VOC by `path` alone, LVIS by `coco_url`."""
    picture(tmp_path / "voc" / "JPEGImages" / "b.png")
    text(tmp_path / "voc" / "Annotations" / "a.xml", VOC.format("<path>C:\\x\\b.png</path>", "car"))
    picture(tmp_path / "lvis" / "val2017" / "b.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 30, 40, 40]}
    images = [{"id": 1, "coco_url": "http://images.cocodataset.org/val2017/b.png"}, {"id": 2, "file_name": None}]
    index = {"images": images, "categories": [{"id": 1, "name": "car"}], "annotations": [box]}
    text(tmp_path / "lvis" / "lvis_v1_val.json", json.dumps(index))
    for name, problems in (("voc", 0), ("lvis", 1)):
        found = read(DataConfig(path=tmp_path / name))
        assert boxes(found) == {"b.png": [("car", CAR)]}
        assert len(found.problems) == problems


@pytest.mark.parametrize(
    "points", [[[1, 2, 3], [4, 5, 6]], [[10**400, 1], [2, 3]], [1, 2, 3], "points", None, [[1], 2]]
)
def test_points_that_are_none_are_told(tmp_path: Path, points: Any) -> None:
    picture(tmp_path / "labelme" / "a.png")
    shapes = [{"label": "car", "points": [[20, 30], [60, 70]]}, {"label": "car", "points": points}]
    text(tmp_path / "labelme" / "a.json", json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    picture(tmp_path / "sly" / "img" / "a.png")
    objects = [{"classTitle": one["label"], "points": {"exterior": one["points"]}} for one in shapes]
    content = json.dumps({"size": {"height": 120, "width": 160}, "objects": [*objects, {"classTitle": "x"}]})
    text(tmp_path / "sly" / "ann" / "a.png.json", content)
    for name, problems in (("labelme", 1), ("sly", 2)):
        found = read(DataConfig(path=tmp_path / name))
        assert boxes(found) == {"a.png": [("car", CAR)]}
        assert len(found.problems) == problems
    outline = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [points]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[20, 30, 60, 30, 60, 70]]}
    index = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "car"}]}
    text(tmp_path / "labelme" / "x" / "x.json", json.dumps({**index, "annotations": [box, outline]}))
    picture(tmp_path / "labelme" / "x" / "a.png")
    found = read(DataConfig(path=tmp_path / "labelme" / "x"), masks=True)
    assert boxes(found) == {"a.png": [("car", (1, 2, 4, 6)), ("car", CAR)]}
    assert len(found.problems) == 1


def test_difficult_shapes_of_labelme_are_ignored(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    flags = [{}, {"difficult": True}, {"flags": {"difficult": "yes"}}, {"difficult": False, "flags": {"odd": True}}]
    shapes = [{"label": "car", "points": [[9 * n, 1], [9 * n + 8, 9]], **flag} for n, flag in enumerate(flags)]
    text(tmp_path / "a.json", json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    found = read(DataConfig(path=tmp_path))
    assert found.images[0].annotations.ignore.tolist() == [False, True, True, False]


def test_dota_classes_of_several_words_and_mmrotates_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    corners = "20 30 60 30 60 70 20 70"
    rows = [f"{corners} large vehicle 0", f"{corners} large vehicle", f"{corners} ship 2", f"{corners} 0"]
    text(tmp_path / "annfiles" / "a.txt", "\n".join(["'imagesource':GoogleEarth", *rows]))
    found = read(DataConfig(path=tmp_path))
    assert boxes(found) == {"a.png": [("large vehicle", CAR), ("ship", CAR)]}
    assert ["second time" in str(problem) for problem in found.problems] == [False, True]
    assert found.images[0].annotations.ignore.tolist() == [False, True]


def test_kitti_in_other_capitals(tmp_path: Path) -> None:
    picture(tmp_path / "Training" / "Image_2" / "a.png")
    region = "dontcare -1 -1 -10 1 1 5 5 -1 -1 -1 -1 -1 -1 -1\n"
    text(tmp_path / "Training" / "Label_2" / "a.txt", KITTI + region)
    found = read(DataConfig(path=tmp_path))
    assert (found.classes, found.problems) == (("Car",), ())
    assert found.images[0].annotations.ignore.tolist() == [False, True]


@pytest.mark.parametrize("names", ["train/_darknet.labels", "coco.names", "train/classes.txt"])
def test_lists_of_classes_by_any_name(tmp_path: Path, names: str) -> None:
    picture(tmp_path / "train" / "a.png")
    text(tmp_path / names, "car\n\nperson\n\n")
    text(tmp_path / "train" / "a.txt", "1 0.25 0.4166667 0.25 0.3333333\n")
    found = read(DataConfig(path=tmp_path))
    assert (found.classes, boxes(found)) == (("car", "person"), {"a.png": [("person", CAR)]})
    assert ["blank lines among the classes" in str(problem) for problem in found.problems] == [True]


def test_an_ellipse_of_cvat_has_a_box(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    shapes = '<ellipse label="car" cx="40" cy="50" rx="20" ry="20"/><ellipse label="car" cx="40"/>'
    image = f'<image id="0" name="a.png" width="160" height="120">{shapes}</image>'
    text(tmp_path / "annotations.xml", f"<annotations>{image}</annotations>")
    found = read(DataConfig(path=tmp_path))
    assert (boxes(found), len(found.problems)) == ({"a.png": [("car", CAR)]}, 1)


def test_packed_labels_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "instances.json.gz").write_bytes(b"\x1f\x8b")
    found = load(tmp_path)
    assert ["1 .gz file here may be labels" in problem.what for problem in found.problems] == [True]
