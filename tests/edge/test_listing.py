"""What counts as an image is one rule, whoever asks."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.data import formats
from acclimate.edge.listing import images_below, images_of
from acclimate.errors import AcclimateError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path.with_name("x.png")), np.zeros((4, 4, 3), np.uint8))
    path.with_name("x.png").rename(path)
    return path


def names(path: Path) -> list[str]:
    return [found.name for found in images_of(path).paths]


def test_a_folder_with_all_that_lies_about(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("b.PNG", "sub/a.jpg", "elsewhere/../c.bmp"):
        picture(folder / name)
    for name in (".hidden.jpg", "._b.jpg", ".thumbs/a.jpg", "__MACOSX/sub/._a.jpg", "__MACOSX/b.jpg", "@eaDir/b.jpg",
                 "gtFine/a.png"):  # fmt: skip
        picture(folder / name)
    picture(tmp_path / "far" / "d.jpg")
    (folder / "link").symlink_to(tmp_path / "far")
    (folder / "again").symlink_to(tmp_path / "far")
    (folder / "round").symlink_to(folder)
    (folder / "notes.txt").write_text("none")
    (folder / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    listed = images_of(folder)
    assert [path.name for path in listed.paths] == ["d.jpg", "b.PNG", "c.bmp", "a.jpg"]
    assert {Path(where).name: what for where, what in listed.problems} == {
        "broken.jpg": "a broken link; left out",
        "pipe.jpg": "not a regular file; left out",
        "empty.jpg": "an empty file; left out",
    }
    found = formats.unlabelled(folder)
    assert found.paths == listed.paths
    assert [(problem.where, problem.what) for problem in found.problems] == list(listed.problems)


def test_pictures_that_are_not_read_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    for name in ("IMG_2.HEIC", "sub/IMG_1.heic", "b.gif", ".hidden.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    expected = ["1 .gif file is not read; convert to PNG or JPEG", "2 .heic files are not read; convert to PNG or JPEG"]
    for where in (tmp_path, f"{tmp_path}/**/*"):
        listed = images_of(where)
        assert [path.name for path in listed.paths] == ["a.jpg"]
        assert [what for _, what in listed.problems] == expected
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(AcclimateError, match=r"no image found .*1 \.gif file is not read"):
        images_of(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    closed = picture(tmp_path / "closed" / "b.jpg").parent
    closed.chmod(0)
    try:
        listed = images_of(tmp_path)
    finally:
        closed.chmod(0o755)
    assert [path.name for path in listed.paths] == ["a.jpg"]
    assert "cannot be listed" in listed.problems[0][1]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    picture(tmp_path / name)
    assert names(tmp_path) == [name]
    (tmp_path / "l.txt").write_bytes(b"caf\xe9.jpg\n")
    assert names(tmp_path / "l.txt") == [name]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfa.jpg\r\n\r\n#hash.jpg\r\nsub/b.jpg\r\n",
        b"# what is to be read\na.jpg\n#hash.jpg\n  sub/b.jpg  ",
        b"a.jpg\r#hash.jpg\rsub\\b.jpg\r",
        b'"a.jpg"\n\'#hash.jpg\'\n"sub\\b.jpg"\n',
        "\ufeffa.jpg\r\n#hash.jpg\r\nsub\\b.jpg\r\n".encode("utf-16-le"),
    ],
    ids=["mark", "comment", "old", "quotes", "powershell"],
)
def test_lists_as_programs_write_them(tmp_path: Path, text: bytes) -> None:
    for name in ("a.jpg", "#hash.jpg", "sub/b.jpg"):
        picture(tmp_path / name)
    (tmp_path / "l.txt").write_bytes(text)
    listed = images_of(tmp_path / "l.txt")
    assert [path.name for path in listed.paths] == ["a.jpg", "#hash.jpg", "b.jpg"]
    assert not listed.problems


def test_what_a_list_names_wrongly_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "l.txt").write_text(f"a.jpg\n{'x' * 5000}.jpg\nnone.jpg\n./a.jpg\na.jpg\n.\n")
    listed = images_of(tmp_path / "l.txt")
    assert [path.name for path in listed.paths] == ["a.jpg"]
    told = [f"{Path(where).name}: {what}" for where, what in listed.problems]
    assert len(told) == 5
    assert all(len(line) < 150 for line in told)
    assert told[0].startswith("l.txt:2: no such image: xxx")
    assert "l.txt:3: no such image: none.jpg; left out" in told
    assert sum("listed twice; taken once" in line for line in told) == 2
    assert "a folder; left out" in told[-1]
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    with pytest.raises(AcclimateError, match="not a text file"):
        images_of(tmp_path / "binary.txt")


def test_patterns_and_names_that_look_like_some(tmp_path: Path) -> None:
    for name in ("a1.jpg", "a2.jpg", "b[1].jpg", "c.mp4"):
        picture(tmp_path / name)
    assert names(tmp_path / "a*.jpg") == ["a1.jpg", "a2.jpg"]
    assert names(tmp_path / "b[1].jpg") == ["b[1].jpg"]
    with pytest.raises(AcclimateError, match="no such file"):
        images_of(tmp_path / "z*.jpg")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000 + ".jpg", "nul\0.jpg"])
def test_what_cannot_be_a_file_name_is_one_line(name: str) -> None:
    with pytest.raises(AcclimateError) as told:
        images_of(Path(name))
    assert len(str(told.value)) < 200


def test_the_pictures_of_an_earlier_call_are_not_images_of_the_set(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "out" / "images" / "a.jpg")
    assert len(images_below(tmp_path).paths) == 2
    assert len(images_below(tmp_path, tmp_path / "out" / "images").paths) == 1


@pytest.mark.parametrize(
    ("case", "images", "problems"), [("image-list-bom-hash", 3, 0), ("image-list-long-line", 1, 1)]
)
def test_list_cases(shared_cases: Path, case: str, images: int, problems: int) -> None:
    listed = images_of(shared_cases / "data" / case / "l.txt")
    assert (len(listed.paths), len(listed.problems)) == (images, problems)
