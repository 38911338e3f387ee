"""One small data set is written in every format by the rules of that format and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from acclimate.config import DataConfig
from acclimate.data.formats import LabelledSet, detect, image_size, read, unlabelled
from acclimate.errors import AcclimateError

CLASSES = ("car", "person", "bicycle")
# name, (height, width), [(class, xyxy)]; the last image has no object
TRUTH: list[tuple[str, tuple[int, int], list[tuple[str, tuple[float, float, float, float]]]]] = [
    ("a1", (60, 100), [("car", (10, 12, 40, 50)), ("person", (60.5, 20.25, 71, 44)), ("car", (0, 0, 100, 60))]),
    ("b2", (80, 80), [("bicycle", (5, 5, 21, 30)), ("person", (70, 60, 80, 80))]),
    ("c3", (50, 90), []),
]


def picture(path: Path, size: tuple[int, int] = (60, 100)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), np.uint8)
    assert cv2.imwrite(str(path), noise)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def coco_index() -> dict[str, Any]:
    index: dict[str, Any] = {"images": [], "annotations": []}
    index["categories"] = [{"id": 3 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
    for number, (name, (height, width), objects) in enumerate(TRUTH, 1):
        index["images"].append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        for kind, (x0, y0, x1, y1) in objects:
            index["annotations"].append(
                {
                    "id": len(index["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 3 * (CLASSES.index(kind) + 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    return index


def write_coco(root: Path, index: dict[str, Any] | None = None) -> Path:
    for name, size, _ in TRUTH:
        picture(root / "images" / f"{name}.jpg", size)
    return text(root / "annotations" / "train.json", json.dumps(index or coco_index()))


def yolo_line(kind: str, box: tuple[float, ...], height: int, width: int) -> str:
    x0, y0, x1, y1 = box
    values = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    return " ".join([str(CLASSES.index(kind)), *(f"{value:.8f}" for value in values)])


def write_yolo(root: Path) -> Path:
    for name, (height, width), objects in TRUTH:
        picture(root / "images" / "train" / f"{name}.png", (height, width))
        lines = [yolo_line(kind, box, height, width) for kind, box in objects]
        text(root / "labels" / "train" / f"{name}.txt", "\n".join(lines))
    text(root / "data.yaml", "path: .\ntrain: images/train\nnames:\n  0: car\n  1: person\n  2: bicycle\n")
    return root


def voc_xml(name: str, size: tuple[int, int], objects: list[tuple[str, tuple[Any, ...]]], extra: str = "") -> str:
    items = "".join(
        f"<object><name>{escape(kind)}</name>{extra}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for kind, (x0, y0, x1, y1) in objects
    )
    dimensions = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{dimensions}{items}</annotation>"


def write_voc(root: Path) -> Path:
    for name, size, objects in TRUTH:
        picture(root / "JPEGImages" / f"{name}.jpg", size)
        text(root / "Annotations" / f"{name}.xml", voc_xml(name, size, objects))
    text(root / "ImageSets" / "Main" / "train.txt", "a1\nb2\n")
    text(root / "ImageSets" / "Main" / "car_train.txt", "a1  1\nb2 -1\n")
    return root


def write_kitti(root: Path) -> Path:
    for name, size, objects in TRUTH:
        picture(root / "training" / "image_2" / f"{name}.png", size)
        lines = [
            f"{kind} 0.00 0 -1.57 {' '.join(map(str, box))} 1.5 1.6 3.9 1.0 1.5 20.0 -1.5" for kind, box in objects
        ]
        text(root / "training" / "label_2" / f"{name}.txt", "\n".join(lines))
    return root


def write_cityscapes(root: Path, levels: tuple[str, ...] = ()) -> Path:
    for number, (_, size, objects) in enumerate(TRUTH):
        stem = f"aachen_{number:06d}_000019"
        if levels:
            for level in levels:
                picture(root / f"leftImg8bit_foggy/train/aachen/{stem}_leftImg8bit_foggy_beta_{level}.png", size)
        else:
            picture(root / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png", size)
        polygons = [
            {"label": kind, "polygon": [[x0, (y0 + y1) / 2], [(x0 + x1) / 2, y0], [x1, y1], [x0 + 1, y1 - 1]]}
            for kind, (x0, y0, x1, y1) in objects
        ]
        road = {"label": "road", "polygon": [[0, 0], [size[1], 0], [size[1], size[0]]]}
        content = {"imgHeight": size[0], "imgWidth": size[1], "objects": [road, *polygons]}
        text(root / f"gtFine/train/aachen/{stem}_gtFine_polygons.json", json.dumps(content))
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "kitti": write_kitti,
    "cityscapes": write_cityscapes,
}


def boxes_by_name(found: LabelledSet) -> list[list[tuple[str, tuple[float, ...]]]]:
    return [
        sorted(
            (found.classes[label], tuple(round(float(value), 3) for value in box))
            for box, label in zip(image.annotations.boxes, image.annotations.labels, strict=True)
        )
        for image in found.images
    ]


def only_problem(found: LabelledSet, *parts: str) -> None:
    assert len(found.problems) == 1, [str(problem) for problem in found.problems]
    for part in parts:
        assert part in str(found.problems[0])


@pytest.mark.parametrize("format_", WRITERS)
def test_every_format_reads_the_same_set(tmp_path: Path, format_: str) -> None:
    path = WRITERS[format_](tmp_path / "set")
    assert detect(path) == format_
    found = read(DataConfig(path=path))
    assert found.format == format_
    assert found.problems == ()
    assert boxes_by_name(found) == [sorted((kind, tuple(map(float, box))) for kind, box in o) for *_, o in TRUTH]
    assert [(image.height, image.width) for image in found.images] == [size for _, size, _ in TRUTH]
    assert all(image.path.is_file() for image in found.images)
    for image in found.images:
        assert image.annotations.boxes.dtype == np.float32
        assert image.annotations.labels.dtype == np.int64
        assert not image.annotations.ignore.any()
    if format_ in {"coco", "yolo"}:
        assert found.classes == CLASSES
    assert read(DataConfig(path=path, format=format_)).classes == found.classes


@pytest.mark.parametrize("format_", WRITERS)
def test_classes_of_the_detector_are_mapped_by_name(tmp_path: Path, format_: str) -> None:
    path = WRITERS[format_](tmp_path / "set")
    ours = ("human", "wheel", "automobile")
    renames = {"car": "automobile", "person": "human"}
    found = read(DataConfig(path=path, classes=renames, drop=("bicycle",)), ours)
    assert found.classes == ours
    named = [[(kind, box) for kind, box in image] for image in boxes_by_name(found)]
    assert [len(image) for image in named] == [3, 1, 0]
    assert {kind for image in named for kind, _ in image} == {"human", "automobile"}
    ignored = read(DataConfig(path=path, classes=renames, ignore=("bicycle",)), ours)
    second = ignored.images[1].annotations
    assert sorted(zip(second.labels.tolist(), second.ignore.tolist(), strict=True)) == [(-1, True), (0, False)]


def test_a_class_without_counterpart_is_an_error_with_the_line_to_write(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    with pytest.raises(AcclimateError) as caught:
        read(DataConfig(path=path), ("car", "person", "Bicycles"))
    message = str(caught.value)
    assert '"bicycle" is no class of the detector' in message
    assert 'classes = { "bicycle" = "Bicycles" }' in message
    assert 'ignore = ["bicycle"]' in message
    assert 'drop = ["bicycle"]' in message
    assert "\n" not in message
    # Declared, but without a box: nothing to decide.
    index = coco_index()
    index["categories"].append({"id": 99, "name": "unused"})
    assert read(DataConfig(path=write_coco(tmp_path / "b", index)), CLASSES).classes == CLASSES


def test_no_class_in_common_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="no name in common"):
        read(DataConfig(path=write_voc(tmp_path)), ("RBC", "WBC"))


def test_own_classes_follow_renames_and_keep_order(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    found = read(DataConfig(path=path, classes={"bicycle": "two-wheeler", "car": "vehicle"}, drop=("person",)))
    assert found.classes == ("vehicle", "two-wheeler")
    merged = read(DataConfig(path=path, classes={"bicycle": "car"}))
    assert merged.classes == ("car", "person")
    assert sorted(kind for image in boxes_by_name(merged) for kind, _ in image) == ["car"] * 3 + ["person"] * 2
    misspelt = read(DataConfig(path=path, drop=("persn",)))
    only_problem(misspelt, "'persn'", "no class of this set")


def test_coco_agrees_with_pycocotools(tmp_path: Path) -> None:
    index = coco_index()
    index["annotations"][1]["iscrowd"] = 1
    path = write_coco(tmp_path, index)
    oracle = COCO(str(path))
    found = read(DataConfig(path=path))
    assert found.classes == tuple(category["name"] for category in oracle.loadCats(oracle.getCatIds()))
    for image, identity in zip(found.images, oracle.getImgIds(), strict=True):
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=identity))
        expected = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_allclose(image.annotations.boxes, expected)
        assert image.annotations.ignore.tolist() == [bool(a["iscrowd"]) for a in annotations]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({"bbox": [math.nan, 1, 5, 5]}, "not finite"),
        ({"bbox": [1, 1, math.inf, 5]}, "not finite"),
        ({"bbox": [20, 20, -5, 5]}, "inverted"),
        ({"bbox": [20, 20, 0, 5]}, "empty box"),
        ({"bbox": [200, 20, 5, 5]}, "outside"),
        ({"bbox": [-30, 20, 10, 5]}, "outside"),
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": None}, "four numbers"),
        ({"bbox": ["a", 2, 3, 4]}, "four numbers"),
        ({"category_id": 77}, "category id 77"),
        ({"category_id": [1]}, "four numbers"),
        ({"image_id": 77}, "image id 77"),
    ],
)
def test_coco_bad_annotations_are_left_out_and_told(tmp_path: Path, annotation: dict[str, Any], said: str) -> None:
    index = coco_index()
    good = {"id": 100, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]}
    index["annotations"].append({**good, **annotation})
    found = read(DataConfig(path=write_coco(tmp_path, index)))
    only_problem(found, "train.json: annotation 100", said)
    assert [len(image.annotations) for image in found.images] == [3, 2, 0]


def test_outlines_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    index = coco_index()
    first, crowd, lengths, damaged = index["annotations"][:4]
    polygons = [[1, 2, 30, 2, 30, 40], [5.5, 6, 9, 6, 9, 8, 5.5, 8]]
    first["segmentation"] = polygons
    crowd.update(iscrowd=1, segmentation={"counts": [10, 5, 20], "size": [60, 100]})
    lengths["segmentation"] = {"counts": "PQR", "size": [60, 100]}
    damaged["segmentation"] = [[1, 2, 3, 4], [1, 2, 3], ["a"] * 6, [math.nan] * 6, polygons[0]]
    path = write_coco(tmp_path, index)
    plain, found = read(DataConfig(path=path)), read(DataConfig(path=path), masks=True)
    assert all(image.annotations.outlines is None for image in plain.images)
    outlines = [outline for image in found.images for outline in image.annotations.outlines or ()]
    assert [len(outline) for outline in outlines[:4]] == [2, 0, 0, 1]
    for polygon, expected in zip(outlines[0], polygons, strict=True):
        assert np.array_equal(polygon, np.float32(expected).reshape(-1, 2))
    for one, other in zip(plain.images, found.images, strict=True):
        assert np.array_equal(one.annotations.boxes, other.annotations.boxes)
        assert np.array_equal(one.annotations.ignore, other.annotations.ignore)
    assert found.images[0].annotations.ignore.tolist() == [False, True, False]
    told = [str(problem) for problem in found.problems]
    assert sum("annotation 4: a polygon" in problem for problem in told) == 4
    assert not any("annotation 2" in problem for problem in told), "a crowd has run lengths, which is as it should be"
    assert any("annotation 3: has no polygons" in problem for problem in told)


def test_masks_of_a_set_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="none of its objects has a polygon"):
        read(DataConfig(path=write_coco(tmp_path / "coco")), masks=True)
    write_voc(tmp_path / "voc")
    with pytest.raises(AcclimateError, match="masks are read from COCO's polygons, and this is voc"):
        read(DataConfig(path=tmp_path / "voc"), masks=True)


def test_boxes_over_the_border_are_clipped(tmp_path: Path) -> None:
    index = coco_index()
    index["annotations"][0]["bbox"] = [-10, 12, 50, 38]
    index["annotations"][1]["bbox"] = [60, 20, 41.5, 41]
    found = read(DataConfig(path=write_coco(tmp_path, index)))
    np.testing.assert_allclose(found.images[0].annotations.boxes[:2], [[0, 12, 40, 50], [60, 20, 100, 60]])
    only_problem(found, "annotation 1", "10.0 px over", "clipped")


def test_coco_duplicates(tmp_path: Path) -> None:
    index = coco_index()
    index["images"].append({"id": 1, "file_name": "other.jpg"})
    index["images"].append({"id": 9, "file_name": "b2.jpg"})
    index["categories"].append({"id": 3, "name": "again"})
    index["annotations"][1]["id"] = 1
    index["annotations"].append({**index["annotations"][0], "id": 50})
    found = read(DataConfig(path=write_coco(tmp_path, index)))
    assert [image.path.name for image in found.images] == ["a1.jpg", "b2.jpg", "c3.jpg"]
    assert [len(image.annotations) for image in found.images] == [3, 2, 0]
    told = "\n".join(map(str, found.problems))
    for part in ("image 1: the id is listed twice", "image b2.jpg is listed twice", "id 3 is taken by 'car'"):
        assert part in told
    assert "annotation 1: the annotation id is listed twice" in told
    assert "annotation 50: car: the same box a second time" in told
    assert len(found.problems) == 5


def test_coco_missing_and_mismatched_images_are_left_out(tmp_path: Path) -> None:
    index = coco_index()
    index["images"][1]["width"] = 160
    path = write_coco(tmp_path, index)
    (tmp_path / "images" / "c3.jpg").unlink()
    found = read(DataConfig(path=path))
    assert [image.path.name for image in found.images] == ["a1.jpg"]
    told = "\n".join(map(str, found.problems))
    assert "labels are for 160x80 pixels, the image is 80x80" in told
    assert "c3.jpg: cannot be read (No such file or directory)" in told


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"images": [', "damaged JSON"),
        ("[]", "not a COCO index"),
        ('{"images": [], "annotations": []}', "not a COCO index"),
        ('{"images": [], "annotations": [], "categories": []}', "no usable image"),
        ("\x00\xff", "damaged JSON"),
    ],
)
def test_coco_damaged_index(tmp_path: Path, content: str, said: str) -> None:
    path = text(tmp_path / "x.json", content)
    with pytest.raises(AcclimateError, match=said) as caught:
        read(DataConfig(path=path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_coco_malformed_entries(tmp_path: Path) -> None:
    index = coco_index()
    index["images"] += [None, {"id": 50}, {"file_name": "x.jpg"}]
    index["categories"] += ["car", {"id": 4}]
    index["annotations"] += [None, 3, {}]
    found = read(DataConfig(path=write_coco(tmp_path, index)))
    assert len(found.problems) == 8
    assert boxes_by_name(found) == boxes_by_name(read(DataConfig(path=write_coco(tmp_path / "clean"))))


def test_coco_images_elsewhere(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    (tmp_path / "set" / "images").rename(moved)
    with pytest.raises(AcclimateError, match="`images`"):
        read(DataConfig(path=path))
    assert len(read(DataConfig(path=path, images=moved))) == 3
    with pytest.raises(AcclimateError, match="no such image folder"):
        read(DataConfig(path=path, images=tmp_path / "nowhere"))


def test_coco_folder_needs_a_choice(tmp_path: Path) -> None:
    write_coco(tmp_path)
    text(tmp_path / "annotations" / "instances_val2017.json", json.dumps(coco_index()))
    with pytest.raises(AcclimateError, match=r"annotations/instances_val2017.json, annotations/train.json"):
        read(DataConfig(path=tmp_path))
    assert read(DataConfig(path=tmp_path, split="train")).name == "train"
    assert read(DataConfig(path=tmp_path, split="val2017")).name == "instances_val2017"
    with pytest.raises(AcclimateError, match="`split` is for a folder"):
        read(DataConfig(path=tmp_path / "annotations" / "train.json", split="train"))


def test_coco_standard_layout(tmp_path: Path) -> None:
    for name, size, _ in TRUTH:
        picture(tmp_path / "val2017" / f"{name}.jpg", size)
    path = text(tmp_path / "annotations" / "instances_val2017.json", json.dumps(coco_index()))
    assert len(read(DataConfig(path=path))) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.1", "4 fields"),
        ("0 0.5 0.5 0.1 0.1 1.9", "6 fields"),
        ("0 0.5 nan 0.1 0.1", "not finite"),
        ("car 0.5 0.5 0.1 0.1", "not numbers"),
        ("7 0.5 0.5 0.1 0.1", "class 7"),
        ("1.5 0.5 0.5 0.1 0.1", "class 1.5"),
        ("nan 0.5 0.5 0.1 0.1", "class nan"),
        ("0 0.5 0.5 0 0.1", "empty box"),
        ("0 0.5 0.5 -0.1 0.1", "inverted"),
        ("0 250 120 40 40", "outside"),
    ],
)
def test_yolo_bad_lines(tmp_path: Path, line: str, said: str) -> None:
    root = write_yolo(tmp_path)
    file = root / "labels" / "train" / "a1.txt"
    file.write_text(file.read_text() + "\n\n" + line + "\n")
    found = read(DataConfig(path=root))
    only_problem(found, f"{file}:5", said)
    assert [len(image.annotations) for image in found.images] == [3, 2, 0]


def test_yolo_polygons_become_their_extent(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    text(root / "labels" / "train" / "c3.txt", "2 0.1 0.2 0.5 0.1 0.4 0.6\n0 0.1 0.2 nan 0.1 0.4 0.6")
    found = read(DataConfig(path=root))
    np.testing.assert_allclose(found.images[2].annotations.boxes, [[9, 5, 45, 30]], rtol=1e-6)
    only_problem(found, "c3.txt:2", "not finite")


def test_yolo_without_label_file(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "labels" / "train" / "b2.txt").unlink()
    found = read(DataConfig(path=root))
    only_problem(found, "b2.txt", "no label file")
    assert [len(image.annotations) for image in found.images] == [3, 0, 0]


def test_yolo_splits_lists_and_yaml_forms(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    picture(root / "images" / "test" / "t.png", (80, 80))
    text(root / "labels" / "test" / "t.txt", "0 0.5 0.5 0.5 0.5")
    assert len(read(DataConfig(path=root, split="test"))) == 1
    with pytest.raises(AcclimateError, match=r"no split 'val' \(there: train\)"):
        read(DataConfig(path=root, split="val"))
    text(root / "list.txt", "./images/train/a1.png\nimages/train/none.png\nimages/train/a1.png\n")
    text(root / "data.yaml", "train: [list.txt, ../images/test]\nnames: [car, person, bicycle]\n")
    found = read(DataConfig(path=root / "data.yaml"))
    assert [image.path.name for image in found.images] == ["a1.png", "t.png"]
    told = "\n".join(map(str, found.problems))
    assert "list.txt:2: no such image" in told
    assert "image a1.png is listed twice" in told
    text(root / "data.yaml", "train: images/gone\nnames: [car]\n")
    with pytest.raises(AcclimateError, match="images/gone does not exist"):
        read(DataConfig(path=root))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("names: [car", "damaged YAML"),
        ("train: images/train\n", "`names`"),
        ("- 1\n", "`names`"),
        ("names: 3\ntrain: images/train", "`names`"),
        ("names: {a: b}\ntrain: images/train", "`names`"),
    ],
)
def test_yolo_bad_yaml(tmp_path: Path, content: str, said: str) -> None:
    path = text(tmp_path / "data.yaml", content)
    with pytest.raises(AcclimateError, match=said) as caught:
        read(DataConfig(path=path))
    assert "\n" not in str(caught.value)


def test_voc_splits_difficult_and_dont_care(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    assert [image.path.stem for image in read(DataConfig(path=root, split="train")).images] == ["a1", "b2"]
    assert [image.path.stem for image in read(DataConfig(path=root, split="car_train")).images] == ["a1", "b2"]
    with pytest.raises(AcclimateError, match=r"no list val.txt \(there: car_train, train\)"):
        read(DataConfig(path=root, split="val"))
    objects: list[tuple[str, tuple[Any, ...]]] = [("car", (1, 2, 30, 40))]
    text(root / "Annotations/a1.xml", voc_xml("a1", (60, 100), objects, "<difficult>1</difficult>"))
    text(root / "Annotations/c3.xml", voc_xml("c3", (50, 90), [("DontCare", (1, 2, 30, 40))]))
    found = read(DataConfig(path=root))
    first, _, last = (image.annotations for image in found.images)
    assert "DontCare" not in found.classes
    assert (first.labels.tolist(), first.ignore.tolist()) == ([found.classes.index("car")], [True])
    assert (last.labels.tolist(), last.ignore.tolist()) == ([-1], [True])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<annotation><object>", "not readable XML"),
        ("", "not readable XML"),
        (voc_xml("a1", (60, 100), [("car", (1, 2, "x", 9))]), "no bndbox of four numbers"),
        (voc_xml("a1", (60, 100), [("car", ("nan", 2, 8, 9))]), "not finite"),
        (voc_xml("a1", (60, 100), [("car", (9, 2, 8, 9))]), "inverted"),
        (voc_xml("a1", (60, 100), [("", (1, 2, 8, 9))]), "no name"),
        (voc_xml("a1", (600, 1000), [("car", (1, 2, 8, 9))]), "labels are for 1000x600"),
    ],
)
def test_voc_bad_files(tmp_path: Path, content: str, said: str) -> None:
    root = write_voc(tmp_path)
    text(root / "Annotations" / "a1.xml", content)
    only_problem(read(DataConfig(path=root)), "a1.xml", said)


def test_voc_unstated_size_and_missing_parts(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    text(root / "Annotations" / "a1.xml", voc_xml("a1", (0, 0), [("car", (1, 2, 8, 9))]))
    (root / "JPEGImages" / "b2.jpg").unlink()
    found = read(DataConfig(path=root))
    assert [image.path.stem for image in found.images] == ["a1", "c3"]
    only_problem(found, "b2.xml", "b2.jpg: cannot be read")
    text(root / "ImageSets" / "Main" / "more.txt", "a1\nzz\n")
    only_problem(read(DataConfig(path=root, split="more")), "zz.xml", "no label file")


def test_sim10k_as_it_is_unpacked(tmp_path: Path) -> None:
    """Driving in the Matrix: three archives that unpack into VOC2012, one list, cars among other classes."""
    root, inner = tmp_path / "sim10k", tmp_path / "sim10k" / "VOC2012"
    frames: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
        "3384645": [("car", (10, 20, 60, 40)), ("motorbike", (70, 20, 80, 44)), ("person", (90, 10, 96, 30))],
        "3384821": [("person", (5, 5, 12, 30))],
    }
    for name, objects in frames.items():
        picture(inner / "JPEGImages" / f"{name}.jpg", (60, 100))
        text(inner / "Annotations" / f"{name}.xml", voc_xml(name, (60, 100), objects))
    text(inner / "ImageSets" / "Main" / "trainval10k.txt", "3384645\n3384821\n")
    for path in (root, inner):
        found = read(DataConfig(path=path, split="trainval10k", drop=("motorbike", "person")), ("car",))
        assert (found.format, found.classes, found.problems) == ("voc", ("car",), ())
        assert boxes_by_name(found) == [[("car", (10, 20, 60, 40))], []]
    text(root / "VOC2007" / "Annotations" / "a.xml", voc_xml("a", (60, 100), []))
    with pytest.raises(AcclimateError, match=r"several VOC sets \(VOC2007, VOC2012\)"):
        read(DataConfig(path=root))


def test_kitti_dont_care_and_bad_lines(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    file = root / "training" / "label_2" / "c3.txt"
    file.write_text("DontCare -1 -1 -10 5.0 6.0 20.0 30.0 -1 -1 -1 -1000 -1000 -1000 -10\nCar 0.0\ncar 0 0 0 9 9 3 3\n")
    found = read(DataConfig(path=root))
    last = found.images[2].annotations
    assert (last.labels.tolist(), last.ignore.tolist()) == ([-1], [True])
    np.testing.assert_allclose(last.boxes, [[5, 6, 20, 30]])
    told = "\n".join(map(str, found.problems))
    assert f"{file}:2: not a KITTI label" in told
    assert f"{file}:3: car: inverted box" in told
    text(root / "ImageSets" / "val.txt", "a1\nb9\n")
    split = read(DataConfig(path=root, split="val"))
    assert [image.path.stem for image in split.images] == ["a1"]
    only_problem(split, "b9.txt", "no label file")
    with pytest.raises(AcclimateError, match="neither a folder nor a list"):
        read(DataConfig(path=root, split="nope"))


def test_cityscapes_groups_are_ignored_and_other_labels_left(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    file = root / "gtFine/train/aachen/aachen_000002_000019_gtFine_polygons.json"
    square = [[1, 2], [11, 2], [11, 12]]
    objects = [
        {"label": "persongroup", "polygon": square},
        {"label": "license plate", "polygon": square},
        {"label": "car", "polygon": []},
        {"label": "rider"},
        {"label": "train", "polygon": square, "deleted": 1},
    ]
    text(file, json.dumps({"imgHeight": 50, "imgWidth": 90, "objects": objects}))
    found = read(DataConfig(path=root))
    last = found.images[2].annotations
    assert [found.classes[label] for label in last.labels] == ["person"]
    assert last.ignore.tolist() == [True]
    assert [str(p).rsplit(": ", 2)[1] for p in found.problems] == ["object 3", "object 4"]
    for content in ("{", "[]", '{"imgHeight": 50}', '{"imgHeight": Infinity, "imgWidth": 90, "objects": []}'):
        text(file, content)
        only_problem(read(DataConfig(path=root)), file.name, "image is left out")


def test_foggy_cityscapes_asks_for_a_level(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path, ("0.005", "0.01", "0.02"))
    with pytest.raises(AcclimateError, match=r"several fog levels \(0.005, 0.01, 0.02\)"):
        read(DataConfig(path=root))
    found = read(DataConfig(path=root, fog_level=0.02))
    assert len(found) == 3
    assert all(image.path.stem.endswith("_foggy_beta_0.02") for image in found.images)
    with pytest.raises(AcclimateError, match=r"fog_level 0.03 \(there: 0.005, 0.01, 0.02\)"):
        read(DataConfig(path=root, fog_level=0.03))
    one = write_cityscapes(tmp_path / "one", ("0.02",))
    assert boxes_by_name(read(DataConfig(path=one))) == boxes_by_name(found)
    write_cityscapes(root)
    assert read(DataConfig(path=root)).images[0].path.stem.endswith("_leftImg8bit")
    assert read(DataConfig(path=root, fog_level=0.01)).images[0].path.stem.endswith("_0.01")
    with pytest.raises(AcclimateError, match="splits there: train"):
        read(DataConfig(path=root, split="val"))
    with pytest.raises(AcclimateError, match="fog_level is for Foggy Cityscapes"):
        read(DataConfig(path=write_voc(tmp_path / "voc"), fog_level=0.02))


def test_nothing_usable_names_the_first_problem(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    for file in (root / "Annotations").glob("*.xml"):
        file.write_text("<")
    with pytest.raises(AcclimateError, match=r"no usable image \(3 problems, the first: .*a1.xml"):
        read(DataConfig(path=root))
    other = write_yolo(tmp_path / "yolo")
    for file in (other / "labels" / "train").glob("*.txt"):
        file.write_text("")
    with pytest.raises(AcclimateError, match="none of its 3 images has a usable box"):
        read(DataConfig(path=other))


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="no such file or folder"):
        read(DataConfig(path=tmp_path / "nowhere"))
    picture(tmp_path / "plain" / "a.jpg")
    assert detect(tmp_path / "plain") is None
    with pytest.raises(AcclimateError, match="no labels of a known format"):
        read(DataConfig(path=tmp_path / "plain"))
    for format_ in WRITERS:
        with pytest.raises(AcclimateError):
            read(DataConfig.model_validate({"path": tmp_path / "plain", "format": format_}))


def test_other_json_files_are_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    text(tmp_path / "camera.json", '{"images": 3}')
    assert detect(tmp_path) is None
    text(tmp_path / "labels.json", json.dumps(coco_index()))
    for name, size, _ in TRUTH:
        picture(tmp_path / f"{name}.jpg", size)
    assert detect(tmp_path) == "coco"
    assert len(read(DataConfig(path=tmp_path))) == 3


def test_image_size_reads_headers_like_opencv(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff"):
        path = picture(tmp_path / f"x{suffix}", (37, 53))
        decoded = cv2.imread(str(path))
        assert decoded is not None
        assert image_size(path) == decoded.shape[:2] == (37, 53)
    # An application segment of more than 64 kB pushes the frame header back.
    data = (tmp_path / "x.jpg").read_bytes()
    segment = b"\xff\xe1\xff\xff" + bytes(65533)
    (tmp_path / "long.jpg").write_bytes(data[:2] + segment * 2 + data[2:])
    assert image_size(tmp_path / "long.jpg") == (37, 53)
    for content in (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"hello"):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(AcclimateError, match=r"bad\.jpg"):
            image_size(tmp_path / "bad.jpg")


def test_a_set_is_known_by_what_is_in_it_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("here", "there", "other"):
        folder = tmp_path / name
        picture(folder / "images" / "a.jpg", (30, 40))
        box = [1, 2, 10, 12] if name != "other" else [1, 2, 10, 13]
        index = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "car"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        }
        (folder / "annotations.json").write_text(json.dumps(index))
    here, there, other = (read(DataConfig(path=tmp_path / name)) for name in ("here", "there", "other"))
    assert here.digest == there.digest != other.digest
    more = read(DataConfig(path=tmp_path / "there"), ["bus", "car"])
    assert more.classes == ("bus", "car")
    assert more.digest == here.digest


def test_unlabelled_folder_list_and_file(tmp_path: Path) -> None:
    root = tmp_path / "images"
    paths = [picture(root / name) for name in ("b.png", "a.jpg", "deep/er/c.JPG")]
    text(root / "notes.txt", "x")
    text(root / ".hidden" / "d.jpg", "x")
    picture(root / "gtFine" / "mask.png")
    (root / "empty.jpg").touch()
    found = unlabelled(root)
    assert found.paths == tuple(sorted(paths))
    assert [Path(problem.where).name for problem in found.problems] == ["empty.jpg"]
    listed = text(tmp_path / "list.txt", "images/b.png\n\nimages/a.jpg\nimages/none.jpg\nimages/b.png\n")
    from_list = unlabelled(listed)
    assert from_list.paths == (root / "b.png", root / "a.jpg")
    assert {problem.what.split(":")[0] for problem in from_list.problems} == {
        "no such image",
        "listed twice; taken once",
    }
    assert unlabelled(paths[0]).paths == (paths[0],)


def test_unlabelled_follows_links_once(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "a.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    assert [path.name for path in unlabelled(tmp_path / "set").paths] == ["a.jpg"]


def test_unlabelled_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "empty": "no image found",
        tmp_path / "nowhere": "no such file",
        text(tmp_path / "data.json", "{}"): "neither a folder",
        text(tmp_path / "list.txt", "gone.jpg"): "list.txt:1: no such image",
    }
    for path, said in cases.items():
        with pytest.raises(AcclimateError, match=said):
            unlabelled(path)


@pytest.mark.parametrize("format_", WRITERS)
def test_unlabelled_opens_no_file(tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[format_](tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert len(unlabelled(tmp_path)) == len(TRUTH)


@pytest.mark.data
@pytest.mark.parametrize(
    ("part", "images", "boxes", "duplicates"),
    [
        ({"path": "blood-cells/raabin"}, 350, 4795, 2),
        ({"path": "blood-cells/raabin", "split": "val"}, 150, 2049, 0),
        ({"path": "blood-cells/bccd"}, 308, 7452, 0),
        ({"path": "blood-cells/pbc", "split": "val"}, 146, 2715, 16),
        ({"path": "carla-weather/annotations/clear_train.json"}, 671, 1221, 0),
        ({"path": "carla-weather/annotations/clear_test.json"}, 209, 422, 0),
        ({"path": "carla-weather/annotations/glare_test.json"}, 60, 111, 0),
        ({"path": "thermal-uav/day", "split": "train"}, 734, None, 0),
        ({"path": "thermal-uav/day", "split": "test"}, 183, None, 0),
    ],
)
def test_real_sets(shared_data: Path, part: dict[str, str], images: int, boxes: int | None, duplicates: int) -> None:
    found = read(DataConfig.model_validate({**part, "path": shared_data / part["path"]}))
    assert len(found) == images
    assert len(found.problems) == duplicates
    assert all("same box a second time" in problem.what for problem in found.problems)
    if boxes is not None:
        assert sum(len(image.annotations) for image in found.images) == boxes - duplicates
    else:
        assert sum(image.annotations.ignore.sum() for image in found.images) > 0
        assert found.classes == ("Bicycle", "Car", "OtherVehicle", "Person")


def test_citypersons_has_whole_and_visible_boxes(tmp_path: Path) -> None:
    stem = "aachen_000000_000019"
    picture(tmp_path / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png", (40, 60))
    objects = [
        {"label": "pedestrian", "bbox": [10, 5, 10, 20], "bboxVis": [10, 5, 10, 8]},
        {"label": "rider", "bbox": [30, 5, 10, 20], "bboxVis": [30, 5, 10, 20]},
        {"label": "pedestrian", "bbox": [10, 5]},
    ]
    content = {"imgHeight": 40, "imgWidth": 60, "objects": objects}
    text(tmp_path / f"gtBboxCityPersons/train/aachen/{stem}_gtBboxCityPersons.json", json.dumps(content))
    assert detect(tmp_path) == "citypersons"
    found = read(DataConfig(path=tmp_path))
    only_problem(found, "object 3", "no label, bbox or bboxVis")
    own = found.images[0].annotations
    assert own.ignore.tolist() == [False, True]
    assert own.boxes.tolist() == [[10, 5, 20, 25], [30, 5, 40, 25]]
    assert own.visible is not None
    assert own.visible.tolist() == [[10, 5, 20, 13], [30, 5, 40, 25]]
    # They move with their boxes.
    moved = own.moved((-2.0, 1.0), (120.0, 3.0))
    assert moved.visible is not None
    assert moved.visible[0].tolist() == [80, 8, 100, 16]
    assert own[np.array([1])].visible.tolist() == [[30, 5, 40, 25]]  # type: ignore[union-attr]


def test_generated_scenes_know_whole_objects(tmp_path: Path) -> None:
    from acclimate.scenes.sets import generate

    generate(tmp_path / "set", 3, (96, 128), 0)
    seen, whole = (read(DataConfig(path=tmp_path / "set", full=full)) for full in (False, True))
    hidden = 0
    for one, other in zip(seen.images, whole.images, strict=True):
        a, b = one.annotations, other.annotations
        assert a.visible is None
        assert b.visible is not None
        np.testing.assert_allclose(b.visible, a.boxes, atol=1e-3)
        assert (b.boxes[:, :2] <= a.boxes[:, :2] + 1e-3).all()
        assert (b.boxes[:, 2:] >= a.boxes[:, 2:] - 1e-3).all()
        hidden += int((np.abs(b.boxes - a.boxes).max(axis=1) > 2).sum())
    assert hidden
