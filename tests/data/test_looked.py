"""What readers found is handed out again while all that they looked at stays as it is, and never after."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from acclimate.config import DataConfig
from acclimate.data import write
from acclimate.data.formats import LabelledImage, LabelledSet, looked, read
from acclimate.edge.images import Reading
from acclimate.structures import Annotations

READERS = Path(looked.__file__).parent
ASK = {"files.py", "places.py", "looked.py"}
"""Where the disk is asked."""

_opened: Counter[str] = Counter()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | Path):
        _opened[str(arguments[0])] += 1


sys.addaudithook(_watch)


@pytest.fixture
def opened() -> Counter[str]:
    """How often each file was opened since the test began."""
    _opened.clear()
    return _opened


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    looked._kept.clear()
    yield
    looked._kept.clear()


def labelled(folder: Path, count: int = 3) -> LabelledSet:
    images = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((60, 80, 3), 40 * number, np.uint8))
        box = np.float32([[5, 5, 20 + number, 30]])
        images.append(LabelledImage(path, 60, 80, Annotations(box, np.array([number % 2]), np.array([False]))))
    return LabelledSet("made", "coco", ("car", "person"), tuple(images))


def kitti(images: LabelledSet, out: Path) -> None:
    for part in ("image_2", "label_2"):
        (out / "training" / part).mkdir(parents=True)
    for image in images.images:
        shutil.copyfile(image.path, out / "training" / "image_2" / image.path.name)
        box = " ".join(map(str, image.annotations.boxes[0].tolist()))
        row = f"Car 0 0 0 {box} 1 1 1 1 1 1 0\n"
        (out / "training" / "label_2" / f"{image.path.stem}.txt").write_text(row)


WRITERS: dict[str, Callable[[LabelledSet, Path], object]] = {
    **{name: lambda images, out, name=name: write.write(images, name, out) for name in write.FORMATS},  # type: ignore[misc]
    "kitti": kitti,
}


@pytest.fixture(params=sorted(WRITERS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A set in each of several formats, old enough for its times to prove something."""
    out = tmp_path / "set"
    WRITERS[request.param](labelled(tmp_path / "images"), out)
    settled()
    return out


def settled() -> None:
    time.sleep(0.06)


def told(found: LabelledSet) -> tuple[object, ...]:
    images = [
        (i.path, i.height, i.width, i.annotations.boxes.tolist(), i.annotations.labels.tolist()) for i in found.images
    ]
    return found.name, found.format, found.classes, images, found.problems


def labels(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".jpg")


def test_a_second_reading_opens_no_file(folder: Path, opened: Counter[str]) -> None:
    first = read(DataConfig(path=folder))
    times = {name: count for name, count in opened.items() if name.startswith(str(folder))}
    assert {Path(name).suffix for name in times} >= {".jpg"}
    assert len(times) > len(first.images)
    assert max(times.values()) == 1
    opened.clear()
    again = read(DataConfig(path=folder))
    assert not [name for name in opened if name.startswith(str(folder))]
    assert again is first
    # Other classes, and another use of them, need no other reading.
    renamed = read(DataConfig(path=folder, drop=first.classes[1:]), first.classes[:1])
    assert not [name for name in opened if name.startswith(str(folder))]
    assert len(renamed.images) == len(first.images)
    assert read(DataConfig(path=folder)) is first
    assert read(DataConfig(path=folder), reading=Reading(orientation="stored")) is not first
    assert told(read(DataConfig(path=folder), first.classes)) == told(first)
    assert told(read(DataConfig(path=folder))) == told(first)


def edit_a_label(folder: Path) -> None:
    # In fractions, or in hundredths, where the numbers are not pixels.
    for before, after in (("30", "31"), ("25.0", "24.0"), ("18.75", "18.5"), ("0.", "0.0")):
        for file in labels(folder):
            if before in (text := file.read_text()):
                file.write_text(text.replace(before, after, 1))
                return


def edit_it_and_keep_size_and_time(folder: Path) -> None:
    for file in labels(folder):
        before = file.stat()
        text = file.read_text()
        file.write_text(text.replace("5", "6"))
        assert file.stat().st_size == before.st_size
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_an_image(folder: Path) -> None:
    next(folder.rglob("0.jpg")).unlink()


def make_an_image_larger(folder: Path) -> None:
    assert cv2.imwrite(str(next(folder.rglob("0.jpg"))), np.zeros((120, 160, 3), np.uint8))


def remove_a_label_file(folder: Path) -> None:
    files = [f for f in labels(folder) if f.stem == "0"]
    for file in files or labels(folder)[-1:]:
        file.unlink()


def add_labels_of_another_format(folder: Path) -> None:
    (folder / "gtFine").mkdir()


@pytest.mark.parametrize(
    "change",
    [
        edit_a_label,
        edit_it_and_keep_size_and_time,
        remove_an_image,
        make_an_image_larger,
        remove_a_label_file,
        add_labels_of_another_format,
    ],
)
def test_a_change_between_two_readings_is_seen(folder: Path, change: Callable[[Path], None]) -> None:
    def outcome() -> object:
        try:
            return told(read(DataConfig(path=folder)))
        except Exception as error:
            return type(error), str(error)

    before = outcome()
    assert outcome() == before
    change(folder)
    after = outcome()
    looked._kept.clear()
    assert after == outcome()
    assert after != before


def test_what_changed_a_moment_ago_is_not_kept(tmp_path: Path, opened: Counter[str]) -> None:
    write.write(labelled(tmp_path / "images"), "coco", tmp_path / "set")
    file = next(iter(labels(tmp_path / "set")))
    file.touch()
    read(DataConfig(path=tmp_path / "set"))
    opened.clear()
    read(DataConfig(path=tmp_path / "set"))
    assert opened[str(file)] == 1


def test_only_the_last_sets_are_kept(tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked, "SETS", 2)
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        write.write(labelled(tmp_path / "images"), "coco", folder)
    settled()
    for folder in folders:
        read(DataConfig(path=folder))
    opened.clear()
    for folder in reversed(folders):
        read(DataConfig(path=folder))
    again = {Path(name) for name in opened}
    assert labels(folders[0])[0] in again
    assert not {labels(folder)[0] for folder in folders[1:]} & again


def test_a_large_index_is_opened_twice(tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked, "_SMALL", 100)
    write.write(labelled(tmp_path / "images"), "coco", tmp_path / "set")
    settled()
    read(DataConfig(path=tmp_path / "set"))
    assert opened[str(labels(tmp_path / "set")[0])] == 2


def test_readers_ask_the_disk_in_one_place() -> None:
    """What they would ask past it would not be seen to change."""
    asking = {
        "open", "read_text", "read_bytes", "glob", "rglob", "iterdir", "is_file", "is_dir", "exists", "stat", "scandir",
        "walk", "listdir",
    }  # fmt: skip
    wrong = [
        f"{file.name}:{node.lineno} {ast.unparse(node)}"
        for file in sorted(READERS.glob("*.py"))
        if file.name not in ASK | {"__init__.py"}
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in asking
        and ast.unparse(node.value) not in {"places", "files", "looked"}
    ]
    assert wrong == []
