from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.edge import source as sources
from acclimate.edge.source import Frame, Source, kind_of
from acclimate.errors import AcclimateError

PATIENCE_S = 20
"""What a test waits for at most, on a busy machine."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sources, "LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(sources, "SETTLED_S", 0.0)
    monkeypatch.setattr(sources, "POLL_S", 0.01)


def put_image(file: Path, value: int) -> None:
    """Write an image of one grey as programs that care do: whole, under another name, then renamed."""
    temporary = file.with_suffix(".part.png")
    assert cv2.imwrite(str(temporary), np.full((8, 8, 3), value, np.uint8))
    temporary.rename(file)


def put_video(file: Path, frames: int) -> Path:
    """Frame n has the grey 10 n."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 100, (16, 16))
    for number in range(frames):
        writer.write(np.full((16, 16, 3), 10 * number, np.uint8))
    writer.release()
    return file


def everything(source: Source) -> list[Frame]:
    found = []
    with source:
        until = time.monotonic() + PATIENCE_S
        while not source.ended and time.monotonic() < until:
            frame = source.next(0.1)
            if frame is not None:
                found.append(frame)
    assert source.ended
    return found


def next_frame(source: Source) -> Frame:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        frame = source.next(0.1)
        if frame is not None:
            return frame
    pytest.fail("no frame came")


def test_what_a_source_is() -> None:
    assert [kind_of(where) for where in ("0", "rtsp://user:pw@cam/1", "a/b.MP4", "a/b", "images.v2")] == [
        "camera", "stream", "video", "folder", "folder",
    ]  # fmt: skip


def test_a_folder_gives_each_image_once_in_the_order_of_coming(tmp_path: Path) -> None:
    for number, name in enumerate(("z.png", "a.png", "m.png")):
        put_image(tmp_path / name, number)
        time.sleep(0.01)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    frames = everything(Source(str(tmp_path), once=True))
    assert [frame.file for frame in frames] == ["z.png", "a.png", "m.png"]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 2]
    rest = everything(Source(str(tmp_path), once=True, mark=frames[0].mark))
    assert [frame.file for frame in rest] == ["a.png", "m.png"], "it goes on after a mark"


def test_new_images_are_picked_up_and_none_is_dropped(tmp_path: Path) -> None:
    with Source(str(tmp_path)) as source:
        for number in range(12):
            put_image(tmp_path / f"{number % 4}.png", number)
            if number % 4 == 3:
                assert [int(next_frame(source).image[0, 0, 0]) for _ in range(4)] == list(range(number - 3, number + 1))
    assert source.dropped == 0


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG cut")
    time.sleep(0.02)
    put_image(tmp_path / "b.png", 5)
    source = Source(str(tmp_path), once=True)
    assert [frame.file for frame in everything(source)] == ["b.png"]
    assert source.problems == 1


def test_a_folder_that_goes_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    with Source(str(folder)) as source:
        folder.mkdir()
        put_image(folder / "a.png", 1)
        assert next_frame(source).file == "a.png"
        assert source.present
        folder.rename(tmp_path / "away")
        until = time.monotonic() + PATIENCE_S
        while source.present and time.monotonic() < until:
            time.sleep(0.005)
        assert not source.present
        (tmp_path / "away").rename(folder)
        put_image(folder / "b.png", 2)
        assert next_frame(source).file == "b.png", "and a.png is not given again"
        assert source.reopened >= 1
    told = [record.getMessage() for record in caplog.records]
    assert any("trying again" in text for text in told)
    assert any("is back" in text for text in told)


def test_a_clock_that_is_set_back_does_not_hide_new_images(tmp_path: Path) -> None:
    future = (time.time_ns() + 10**15, "later.png")
    with Source(str(tmp_path), mark=future) as source:
        time.sleep(0.05)
        put_image(tmp_path / "new.png", 3)
        assert next_frame(source).file == "new.png"


def test_a_video_once_gives_every_frame(tmp_path: Path) -> None:
    frames = everything(Source(str(put_video(tmp_path / "v.avi", 12)), once=True))
    assert np.allclose([frame.image.mean() for frame in frames], np.arange(12) * 10, atol=3)


def test_a_live_source_gives_the_newest_frame_and_counts_the_others(tmp_path: Path) -> None:
    with Source(str(put_video(tmp_path / "v.avi", 12))) as source:
        until = time.monotonic() + PATIENCE_S
        while source.dropped < 5 and time.monotonic() < until:
            time.sleep(0.005)
        dropped = source.dropped
        assert dropped >= 5
        frame = next_frame(source)
        # At its end the video begins again, so only the number of frames is bounded below.
        assert frame.image.mean() > 40 or source.dropped > 11


def test_a_video_plays_again_and_one_that_comes_later_is_found(tmp_path: Path) -> None:
    file = tmp_path / "v.avi"
    with Source(str(file)) as source:
        assert source.next(0.05) is None
        put_video(tmp_path / "w.avi", 3).rename(file)
        for _ in range(10):
            next_frame(source)
        assert source.present


def test_a_source_that_is_closed_ends_its_thread(tmp_path: Path) -> None:
    put_image(tmp_path / "a.png", 1)
    put_image(tmp_path / "b.png", 1)
    before = threading.active_count()
    with Source(str(tmp_path)) as source:
        next_frame(source)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_error_of_the_program_reaches_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(os, "scandir", broken)
    with Source(str(tmp_path)) as source, pytest.raises(RuntimeError, match="a mistake"):
        next_frame(source)


@pytest.mark.parametrize(("where", "said"), [("0", "has no end"), ("rtsp://a/b", "has no end"), ("nowhere", "no such")])
def test_what_cannot_end_or_is_not_there(where: str, said: str) -> None:
    with pytest.raises(AcclimateError, match=said):
        Source(where, once=True)
