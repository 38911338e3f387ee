"""Boxes lie on their object whatever turned the file and whichever frame the labels are in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

from acclimate.config import DataConfig
from acclimate.data import formats, inspect
from acclimate.data.formats import LabelledSet
from acclimate.edge.images import Reading, read_image

BOX = (20, 30, 60, 70)
"""Of the red object on the displayed picture, xyxy."""
ORIENTATIONS = range(1, 9)
UNDO = {1: None, 2: Pillow.FLIP_LEFT_RIGHT, 3: Pillow.ROTATE_180, 4: Pillow.FLIP_TOP_BOTTOM, 5: Pillow.TRANSPOSE,
        6: Pillow.ROTATE_90, 7: Pillow.TRANSVERSE, 8: Pillow.ROTATE_270}  # fmt: skip
"""What Pillow does to a displayed picture so that EXIF's orientation shows it again."""


def photo(path: Path, orientation: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Store a displayed picture of `size` (height, width) turned; what is stored."""
    displayed = np.full((*size, 3), 90, np.uint8)
    displayed[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (220, 20, 20)
    picture = Pillow.fromarray(displayed)
    if UNDO[orientation] is not None:
        picture = picture.transpose(UNDO[orientation])
    exif = Pillow.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif, quality=95)
    return np.asarray(picture)


def stored_box(stored: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(stored[:, :, 0] > 200)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def yolo(root: Path, boxes: dict[str, tuple[tuple[float, ...], tuple[int, int]]]) -> DataConfig:
    (root / "data.yaml").write_text("names: [car]\ntrain: images\n")
    for name, ((x1, y1, x2, y2), (height, width)) in boxes.items():
        file = root / "labels" / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        file.write_text(f"0 {' '.join(map(str, values))}\n")
    return DataConfig(path=root / "data.yaml")


def coco(root: Path, boxes: dict[str, tuple[tuple[float, ...], tuple[int, int]]], suffix: str = ".jpg") -> DataConfig:
    images, annotations = [], []
    for number, (name, ((x1, y1, x2, y2), (height, width))) in enumerate(boxes.items()):
        images.append({"id": number, "file_name": f"images/{name}{suffix}", "height": height, "width": width})
        box = [float(value) for value in (x1, y1, x2 - x1, y2 - y1)]
        polygon = [float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "segmentation": [polygon]})
    index = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    (root / "index.json").write_text(json.dumps(index))
    return DataConfig(path=root / "index.json")


def on_the_object(found: LabelledSet, count: int) -> None:
    assert len(found) == count
    assert found.problems == ()
    for image in found.images:
        pixels = read_image(image.path, found.reading)
        assert pixels.shape[:2] == (image.height, image.width)
        rows, columns = np.nonzero(pixels[:, :, 0] > 170)
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(image.annotations.boxes, [expected], atol=1)


@pytest.mark.parametrize("read_as", ["apply", "stored"])
@pytest.mark.parametrize("size", [(120, 160), (140, 140)])
def test_yolo_on_displayed_photos(tmp_path: Path, size: tuple[int, int], read_as: str) -> None:
    for number in ORIENTATIONS:
        photo(tmp_path / "images" / f"p{number}.jpg", number, size)
    config = yolo(tmp_path, {f"p{number}": (BOX, size) for number in ORIENTATIONS})
    on_the_object(formats.read(config, reading=Reading(orientation=read_as)), 8)


@pytest.mark.parametrize("size", [(120, 160), (140, 140)])
def test_yolo_on_stored_photos(tmp_path: Path, size: tuple[int, int]) -> None:
    boxes = {}
    for number in ORIENTATIONS:
        stored = photo(tmp_path / "images" / f"p{number}.jpg", number, size)
        boxes[f"p{number}"] = (stored_box(stored), stored.shape[:2])
    config = yolo(tmp_path, boxes).model_copy(update={"orientation": "stored"})
    found = formats.read(config)
    assert found.reading.orientation == "stored"
    on_the_object(found, 8)
    # A detector that sees turned pictures gets turned boxes of the same labels.
    on_the_object(formats.read(config, reading=Reading()), 8)


@pytest.mark.parametrize("frame", ["displayed", "stored"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_coco_index_tells_its_frame_by_its_sizes(tmp_path: Path, frame: str, suffix: str) -> None:
    """Pictures that turn by 180 degrees, mirrored and square ones follow the others of their index."""
    boxes = {}
    for number in ORIENTATIONS:
        for name, size in {f"p{number}": (120, 160), f"s{number}": (140, 140)}.items():
            stored = photo(tmp_path / "images" / f"{name}{suffix}", number, size)
            boxes[name] = (BOX, size) if frame == "displayed" else (stored_box(stored), stored.shape[:2])
    config = coco(tmp_path, boxes, suffix)
    for orientation in ("apply", "stored"):
        on_the_object(formats.read(config.model_copy(update={"orientation": orientation})), 16)


def test_polygons_turn_with_their_boxes(tmp_path: Path) -> None:
    stored = photo(tmp_path / "images" / "p6.jpg", 6)
    config = coco(tmp_path, {"p6": (stored_box(stored), stored.shape[:2])})
    (image,) = formats.read(config, masks=True).images
    assert image.annotations.outlines is not None
    corners = np.concatenate(image.annotations.outlines[0])
    np.testing.assert_allclose([*corners.min(axis=0), *corners.max(axis=0)], image.annotations.boxes[0])


def test_a_size_of_neither_frame_is_a_problem(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "p6.jpg", 6)
    photo(tmp_path / "images" / "p1.jpg", 1)
    found = formats.read(coco(tmp_path, {"p6": (BOX, (121, 160)), "p1": (BOX, (120, 160))}))
    assert [image.path.name for image in found.images] == ["p1.jpg"]
    assert "labels are for 160x121 pixels" in str(found.problems[0])


def test_turned_files_are_counted(tmp_path: Path) -> None:
    for number in (1, 3, 6):
        photo(tmp_path / "images" / f"p{number}.jpg", number)
    config = yolo(tmp_path, {f"p{number}": (BOX, (120, 160)) for number in (1, 3, 6)})
    for data in (config, tmp_path / "images"):
        counted = inspect.summary(data)
        assert counted.rotated == 2
        assert counted.image_sizes == {(160, 120): 3}
        with (console := Console(width=200)).capture() as told:
            inspect.print_summary(counted, console)
        assert "2 files are stored turned" in told.get()


@pytest.mark.parametrize("case", ["exif6-yolo", "exif3-yolo"])
def test_cases(shared_cases: Path, case: str) -> None:
    found = formats.read(DataConfig(path=shared_cases / "data" / case))
    assert found.rotated == len(found) == 2
    for image in found.images:
        pixels = read_image(image.path).astype(int)
        red = (pixels[:, :, 0] - pixels[:, :, 1] > 60) & (pixels[:, :, 0] - pixels[:, :, 2] > 60)
        boxes = [box.astype(int) for box, label in zip(image.annotations.boxes, image.annotations.labels, strict=True)
                 if found.classes[label] == "car"]  # fmt: skip
        assert boxes
        for left, top, right, bottom in boxes:
            assert red[top:bottom, left:right].mean() > 0.9


def test_an_index_that_contradicts_itself_is_told(tmp_path: Path) -> None:
    """One picture has its size as seen, another as stored: a square one may be drawn either way."""
    sizes = {"seen": (120, 160), "stored": (160, 120), "square": (120, 120)}
    for name in sizes:
        photo(tmp_path / "images" / f"{name}.jpg", 6, (120, 120) if name == "square" else (120, 160))
    boxes = {name: (BOX if name != "stored" else (10, 10, 40, 40), size) for name, size in sizes.items()}
    (problem,) = formats.read(coco(tmp_path, boxes)).problems
    assert "1 square or upside-down ones follow the more" in problem.what
    del boxes["stored"]
    on_the_object(formats.read(coco(tmp_path, boxes)), 2)
