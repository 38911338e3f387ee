"""Counts against a set whose content is known, and a contact sheet whose pixels are looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from acclimate.config import DataConfig
from acclimate.data.formats import LabelledSet, UnlabelledSet
from acclimate.data.inspect import contact_sheet, load, print_summary, summary
from acclimate.errors import AcclimateError


def write_set(root: Path) -> Path:
    """Six white images, three sizes; boxes of 20x20, 50x50 and 100x100, one ignored, the last two images empty."""
    sizes = [(120, 160), (120, 160), (120, 160), (200, 160), (200, 160), (140, 150)]
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes):
        root.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"{number}.jpg"), np.full((height, width, 3), 255, np.uint8))
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
    for image, category, side, crowd in ((0, 1, 20, 0), (0, 2, 50, 0), (1, 1, 100, 0), (2, 1, 20, 0), (3, 2, 60, 1)):
        item = {"id": len(annotations), "image_id": image, "category_id": category, "bbox": [10, 10, side, side]}
        annotations.append({**item, "iscrowd": crowd})
    annotations.append({"id": 99, "image_id": 4, "category_id": 7, "bbox": [0, 0, 5, 5]})
    categories = [{"id": 1, "name": "[red] cell"}, {"id": 2, "name": "cell"}]
    path = root / "index.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def printed(path: Path | DataConfig, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(summary(path), console)
    return console.export_text()


def test_summary_counts(tmp_path: Path) -> None:
    found = summary(write_set(tmp_path))
    assert (found.format, found.images, found.empty, found.boxes, found.ignored) == ("coco", 6, 2, 4, 1)
    assert dict(found.classes) == {"[red] cell": 3, "cell": 1}
    assert dict(found.box_sizes) == {"small": 2, "medium": 1, "large": 1}
    assert list(found.image_sizes.items()) == [((160, 120), 3), ((160, 200), 2), ((150, 140), 1)]
    assert len(found.problems) == 1
    assert summary(DataConfig(path=tmp_path)).classes == found.classes
    renamed = summary(DataConfig(path=tmp_path, classes={"cell": "x"}, drop=("[red] cell",)))
    assert dict(renamed.classes) == {"x": 1}


def test_print_summary_says_it_in_words(tmp_path: Path) -> None:
    text = printed(write_set(tmp_path))
    for part in (
        "coco labels, 6 images",
        "160x120 (3), 160x200 (2), 150x140 (1)",
        "[red] cell      3  75.0%",
        "4 boxes: 2 small, 1 medium, 1 large",
        "1 more ignored; 2 images without a box",
        "1 problem",
        "annotation 99: category id 7 is not in the index; left out",
    ):
        assert part in text


def test_folder_summary(tmp_path: Path) -> None:
    write_set(tmp_path).unlink()
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    found = summary(tmp_path)
    assert (found.format, found.images, found.empty, found.boxes) == ("folder", 6, None, 0)
    assert [Path(problem.where).name for problem in found.problems] == ["bad.jpg"]
    text = printed(tmp_path)
    assert "images without labels, 6 images" in text
    assert "not a readable image" in text
    for path in tmp_path.glob("[0-9].jpg"):
        path.unlink()
    with pytest.raises(AcclimateError, match="none of its 1 images can be read"):
        summary(tmp_path)
    with pytest.raises(AcclimateError, match="no such file or folder"):
        summary(tmp_path / "nowhere")


def test_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    path = write_set(tmp_path)
    index = json.loads(path.read_text())
    index["annotations"] += [{"image_id": 0, "category_id": 50 + i, "bbox": [0, 0, 5, 5]} for i in range(30)]
    path.write_text(json.dumps(index))
    text = printed(path)
    assert "31 problems" in text
    assert "and 21 more" in text


def test_contact_sheet_draws_the_boxes(tmp_path: Path) -> None:
    found = load(write_set(tmp_path / "set"))
    assert isinstance(found, LabelledSet)
    out = contact_sheet(found, tmp_path / "new" / "sheet.jpg", count=4)
    assert [file.name for file in out.parent.iterdir()] == ["sheet.jpg"]
    sheet = cv2.imread(str(out))
    assert sheet is not None
    coloured = np.ptp(sheet.astype(int), axis=2) > 60
    rows, columns = np.nonzero(coloured)
    # The first tile begins 4 px in and shows its image at twice its size: the larger box is at 20..120.
    first = coloured[:240, :320]
    assert first[4 + 20 : 4 + 121, 4 + 120].mean() > 0.9
    assert first[4 + 120, 4 + 20 : 4 + 121].mean() > 0.9
    assert len(rows)
    assert len(columns)
    assert out.read_bytes() == contact_sheet(found, tmp_path / "again.jpg", count=4).read_bytes()
    single = cv2.imread(str(contact_sheet(found, tmp_path / "one.jpg", count=1)))
    assert single is not None
    assert single.shape[1] < sheet.shape[1]


def test_contact_sheet_of_a_folder_skips_damage(tmp_path: Path) -> None:
    write_set(tmp_path / "set").unlink()
    (tmp_path / "set" / "0.jpg").write_bytes(b"x")
    found = load(tmp_path / "set")
    assert isinstance(found, UnlabelledSet)
    assert contact_sheet(found, tmp_path / "sheet.jpg").stat().st_size > 1000
    for path in (tmp_path / "set").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(AcclimateError, match="not a readable image"):
        contact_sheet(found, tmp_path / "sheet.jpg")


def test_inspecting_needs_no_torch() -> None:
    code = "import sys, acclimate.data.inspect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
