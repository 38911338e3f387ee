"""`data` does not say that all is well where labels lie that nobody placed, or images cannot be decoded."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from acclimate import workflow
from acclimate.config import DataConfig
from acclimate.data.inspect import decoded, load, sheet_place
from acclimate.data.sound import undecodable, unplaced
from acclimate.errors import AcclimateError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 255, (120, 160, 3), np.uint8)
    assert cv2.imwrite(str(path), noise)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels/a.txt", "0 0.5 0.5 0.1 0.1\n"),
        ("a.txt", "anything"),
        ("boxes.csv", "file,xmin,ymin,xmax,ymax\n"),
        ("export.json", '{"frames": [{"bbox": [1, 2, 3, 4]}]}'),
        ("gt/list.xml", "<x/>"),
        ("train.tfrecord", "x"),
        ("all.txt", "1 10 20 30 40 car\n"),
    ],
)
def test_files_that_look_like_labels_are_told(tmp_path: Path, name: str, content: str) -> None:
    picture(tmp_path / "images" / "a.jpg")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    told = [str(problem) for problem in load(tmp_path).problems]
    assert len(told) == 1
    assert told[0].startswith(f"{file}: 1 ")
    assert "no known format places them" in told[0]


@pytest.mark.parametrize(("name", "content"), [("README.txt", "Fog at noon."), ("camera.json", '{"fps": 5}')])
def test_other_files_are_not(tmp_path: Path, name: str, content: str) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / name).write_text(content)
    assert unplaced(tmp_path) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_every_image_is_decoded(tmp_path: Path, suffix: str) -> None:
    good, cut = picture(tmp_path / f"good{suffix}"), picture(tmp_path / f"cut{suffix}")
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    assert list(undecodable([good, cut])) == [cut]
    found = decoded(load(tmp_path))
    assert found.paths == (good,)
    assert [Path(problem.where) for problem in found.problems] == [cut]


def test_a_jpeg_is_judged_as_the_decoder_judges_it(tmp_path: Path) -> None:
    """Damage in the middle is found at an eighth of the size too; an end mark alone that is missing is none."""
    whole = picture(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[:-2])
    assert undecodable([tmp_path / "b.jpg"]) == {}
    middle = len(whole) // 2
    (tmp_path / "c.jpg").write_bytes(whole[:middle] + bytes(400) + whole[middle + 400 :])
    assert list(undecodable([tmp_path / "c.jpg"])) == [tmp_path / "c.jpg"]


def test_counts_are_without_what_cannot_be_decoded(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / "train" / f"{name}.jpg")
        file = tmp_path / "labels" / "train" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [car]\n")
    broken = tmp_path / "images" / "train" / "b.jpg"
    broken.write_bytes(broken.read_bytes()[:3000])
    console = Console(file=open("/dev/null", "w"))  # noqa: SIM115
    assert workflow.data(DataConfig(path=tmp_path), console=console).boxes == 1
    assert workflow.data(DataConfig(path=tmp_path), decode=False, console=console).boxes == 2


def test_the_contact_sheet_is_no_image_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    picture(folder / "a.jpg")
    assert sheet_place(folder) == Path("set-sheet.jpg")
    monkeypatch.chdir(folder)
    assert sheet_place(Path()) == tmp_path / "set-sheet.jpg"
    assert sheet_place(Path(), Path("../x.jpg")) == Path("../x.jpg")
    with pytest.raises(AcclimateError, match="would become an image of it"):
        sheet_place(Path(), Path("x.jpg"))
