from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.data import formats
from acclimate.edge import collect
from acclimate.edge.collect import Collection
from acclimate.edge.images import read_image
from acclimate.edge.monitor import LOOK, look
from acclimate.errors import AcclimateError


def plain(value: float) -> np.ndarray:
    return np.full((48, 64, 3), round(255 * value), np.uint8)


def offer(collection: Collection, value: float, doubt: float = 0.0, taken: float = 0.0) -> Path | None:
    image = plain(value)
    return collection.offer(image, look(image), doubt, 1.7e9 + taken)


def greys(folder: Path) -> list[float]:
    return sorted(round(float(read_image(path).mean()) / 255, 2) for path in folder.iterdir())


def test_it_spreads_over_what_comes(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "c", 5)
    values = np.concatenate([np.full(200, 0.5), np.linspace(0.45, 0.55, 100), [0.0, 1.0, 0.25, 0.75], np.full(50, 0.5)])
    for number, value in enumerate(values):
        offer(collection, value, taken=number)
    kept = greys(tmp_path / "c")
    assert len(collection) == len(kept) == 5
    assert (kept[0], kept[-1]) == (0.0, 1.0)
    assert min(np.diff(kept)) > 0.15, "a random choice of five has hardly anything but 0.5"


def test_what_is_alike_is_written_once(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "c", 10)
    assert sum(offer(collection, 0.5, taken=number) is not None for number in range(50)) == 1


def test_of_two_alike_the_one_in_doubt_stays(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "c", 2)
    offer(collection, 0.0, doubt=0.9, taken=0)
    offer(collection, 0.1, doubt=0.1, taken=1)
    offer(collection, 1.0, doubt=0.0, taken=2)
    assert greys(tmp_path / "c") == [0.0, 1.0]


def test_the_folder_is_all_of_the_state(tmp_path: Path) -> None:
    first = Collection(tmp_path / "c", 4)
    for number, (value, doubt) in enumerate([(0.0, 0.25), (0.3, 0.5), (0.6, 0.0), (1.0, 1.0)]):
        offer(first, value, doubt, number)
    second = Collection(tmp_path / "c", 4)
    assert len(second) == 4
    np.testing.assert_allclose(second._distances, first._distances, rtol=0.02)
    assert offer(second, 0.31, taken=9) is None
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names[0] == "20231114T221320-000000-doubt025.jpg"


def test_it_is_a_target_folder(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "c", 3)
    for number in range(3):
        offer(collection, number / 2, taken=number)
    images = formats.unlabelled(tmp_path / "c")
    assert len(images.paths) == 3
    assert images.problems == ()


def test_the_pixels_are_those_of_the_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (60, 80, 3), np.uint8), (0, 0), 3)
    path = Collection(tmp_path / "c", 3).offer(image, look(image), 0.5, 0.0)
    assert path is not None
    assert np.abs(read_image(path).astype(int) - image).mean() < 1


def test_damaged_files_and_one_too_many(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    collection = Collection(folder, 3)
    for number in range(3):
        offer(collection, number / 2, taken=number)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff cut")
    cv2.imwrite(str(folder / "zz-mine.png"), plain(0.3))
    assert len(Collection(folder, 3)) == 3
    assert (folder / "zz-mine.png").exists(), "what is not ours is never removed"
    assert len(Collection(folder, 2)) == 2
    assert len(list(folder.glob("*-doubt*"))) == 2


def test_a_full_disk_leaves_the_set_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Collection(tmp_path / "c", 2)
    for number in range(2):
        offer(collection, number / 5, taken=number)

    def full(path: Path, data: bytes) -> Path:
        raise AcclimateError(f"{path}: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_bytes", full)
        with pytest.raises(AcclimateError):
            offer(collection, 1.0, taken=2)
    assert greys(tmp_path / "c") == [0.0, 0.2]
    assert offer(collection, 1.0, taken=3) is not None
    assert greys(tmp_path / "c") in ([0.0, 1.0], [0.2, 1.0])


def test_none_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    assert offer(Collection(tmp_path / "c", 0), 0.5) is None
    assert not (tmp_path / "c").exists()
    assert len(LOOK) == len(look(plain(0.5)))
