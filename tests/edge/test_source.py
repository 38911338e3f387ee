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
    temporary = file.with_name(f".{file.name}")
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


def test_what_a_source_is_by_what_is_there(tmp_path: Path) -> None:
    put_image(tmp_path / "a.png", 1)
    put_video(tmp_path / "v.avi", 2)
    (tmp_path / "v.avi").rename(tmp_path / "video.of.another.name")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "l.txt").write_text("a.png")
    (tmp_path / "device").symlink_to("/dev/null")
    kinds = {
        "a.png": "files", "video.of.another.name": "video", "folder.mp4": "folder", "l.txt": "files", "*.png": "files",
        "device": "camera", "later.mkv": "video", "later": "folder", "later.jpg": "files",
    }  # fmt: skip
    assert {name: kind_of(str(tmp_path / name)) for name in kinds} == kinds
    assert kind_of("/dev/video7") == kind_of("/dev/v4l/by-id/usb-none") == "camera"


def test_a_link_to_a_camera_is_its_number(tmp_path: Path) -> None:
    (tmp_path / "usb-camera").symlink_to("/dev/video3")
    assert sources._device("2") == 2
    assert sources._device("/dev/null") == "/dev/null"
    with pytest.raises(AcclimateError, match="no such device"):
        sources._device(str(tmp_path / "usb-camera"))


def test_pictures_and_videos_of_a_pattern_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_image(tmp_path / "b.png", 5)
    put_image(tmp_path / "a.png", 3)
    put_video(tmp_path / "c.avi", 3)
    (tmp_path / "d.png").write_bytes(b"no picture")
    (tmp_path / "e.mkv").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("a.png\nb.png\n")
    found = everything(source := Source(str(tmp_path / "*")))
    assert [Path(frame.file).name for frame in found] == ["a.png", "b.png", "c.avi", "c.avi", "c.avi"]
    assert [frame.time_s for frame in found][2:] == pytest.approx([0, 0.01, 0.02], abs=1e-3)
    assert source.problems == 2
    assert source.dropped == 0
    assert len(everything(Source(str(tmp_path / "a.png")))) == 1
    assert len(everything(Source(str(tmp_path / "notes.txt")))) == 2


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("name", ["text.mp4", "empty.avi", "notes.csv", "none*.png", "none.png", "pipe"])
def test_what_is_no_source_is_said_at_once(tmp_path: Path, name: str, once: bool) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "notes.csv").write_text("a,b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AcclimateError, match="--source takes a camera"):
        Source(str(tmp_path / name), once=once)


def test_a_missing_folder_says_what_a_source_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Source(str(tmp_path / "viedo")) as source:
        assert source.next(0.3) is None
    (first, *more) = [record.getMessage() for record in caplog.records]
    assert "No such file" in first
    assert "--source takes" in first
    assert not more, "and it is said once"


def test_a_cut_video_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = put_video(tmp_path / "v.avi", 24).read_bytes()
    (tmp_path / "v.avi").write_bytes(data[: len(data) * 8 // 10])
    assert 0 < len(everything(Source(str(tmp_path / "v.avi"), once=True))) < 24
    assert any("of 24 frames; is it cut?" in record.getMessage() for record in caplog.records)


# Clocks


class Clock:
    """`st_ctime` cannot be set, so what the folder says, and what time it is, are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.now = 1_000.0
        self.changed: dict[str, float] = {}
        self._folder = folder
        monkeypatch.setattr(sources.time, "time_ns", lambda: round(self.now * 1e9))
        monkeypatch.setattr(Source, "_listed", lambda _: {(round(at * 1e9), name) for name, at in self.changed.items()})

    def put(self, name: str, at: float | None = None) -> None:
        put_image(self._folder / f"{name}.png", 1)
        self.changed[f"{name}.png"] = self.now if at is None else at

    def read(self, source: Source) -> list[str]:
        """What is new; the source's thread does not run."""
        names = []
        for mark in source._new_images()[0]:
            source._mark = mark
            source._recent.append(mark)
            names.append(mark[1].removesuffix(".png"))
        return names

    def restarted(self, source: Source) -> Source:
        """A source that goes on after the last image, as `watch` does by its last line."""
        mark = max(source._recent, key=list(source._recent).index)
        return Source(str(self._folder), mark=mark, until=source._until if mark[0] < source._until else 0)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, tmp_path)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("seconds", [100, 1e9])
def test_a_clock_that_is_set_back_and_corrected_loses_and_repeats_nothing(
    clock: Clock, tmp_path: Path, seconds: float, restart: bool
) -> None:
    clock.now = 2e9
    source = Source(str(tmp_path))
    for name in "ab":
        clock.put(name)
        clock.now += 20
    assert clock.read(source) == ["a", "b"]
    clock.now -= seconds
    clock.put("c")
    clock.now += 1
    source = clock.restarted(source) if restart else source
    assert clock.read(source) == ["c"]
    assert clock.read(source) == []
    clock.now += 1
    clock.put("d")
    clock.now += 1
    assert clock.read(source) == ["d"]
    clock.now += seconds
    source = clock.restarted(source) if restart else source
    assert clock.read(source) == []
    clock.put("e")
    clock.now += 1
    assert clock.read(source) == ["e"]
    assert clock.read(source) == []


def test_images_from_the_future_are_read_once(clock: Clock, tmp_path: Path) -> None:
    """As on a device whose clock starts at 1970, or a share whose server is ahead."""
    clock.put("later", at=5e9)
    clock.put("old", at=10)
    source = Source(str(tmp_path))
    assert clock.read(source) == ["old", "later"]
    assert clock.read(source) == []
    clock.now += 100
    clock.put("new")
    clock.now += 1
    assert clock.read(source) == ["new"]
    restarted = clock.restarted(source)
    assert clock.read(restarted) == []
    clock.put("newer")
    clock.now += 1
    assert clock.read(restarted) == ["newer"]


def test_an_image_from_the_future_waits_until_it_is_whole(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SETTLED_S", 0.3)
    source = Source(str(tmp_path))
    clock.put("a", at=5e9)
    assert source._new_images() == ([], True)
    time.sleep(0.2)
    clock.put("a", at=5e9 + 1)
    time.sleep(0.2)
    assert source._new_images() == ([], True), "it was written meanwhile"
    time.sleep(0.35)
    assert clock.read(source) == ["a"]


def test_a_link_that_comes_later_to_an_old_file_is_read(tmp_path: Path) -> None:
    put_image(tmp_path / "old.png", 4)
    folder = tmp_path / "in"
    folder.mkdir()
    time.sleep(0.02)
    put_image(folder / "a.png", 1)
    with Source(str(folder)) as source:
        assert next_frame(source).file == "a.png"
        (folder / "link.png").symlink_to(tmp_path / "old.png")
        (folder / "broken.png").symlink_to(tmp_path / "nothing.png")
        assert next_frame(source).file == "link.png"


def test_a_folder_with_things_that_are_no_images_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\x86\xa0\0\1\x86\xa0\x08\2\0\0\0")
    (tmp_path / "._d.png").write_bytes(b"of a Mac")
    time.sleep(0.02)
    put_image(tmp_path / "last.png", 7)
    (tmp_path / "last.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    source = Source(str(tmp_path), once=True)
    assert [os.fsencode(frame.file) for frame in everything(source)] == [b"caf\xe9.png"]
    assert source.problems == 2


# The shared cases


def test_a_video_of_a_rate_that_varies_is_shown_at_its_times(shared_cases: Path) -> None:
    file = shared_cases / "edge" / "vfr-mkv" / "vfr.mkv"
    frames = everything(Source(str(file), once=True))
    assert len(frames) == 20
    assert frames[-1].time_s == pytest.approx(4.9)
    with Source(str(file)) as source:
        began = time.monotonic()
        for _ in range(12):
            next_frame(source)
        # Ten frames in 0.36 s, and the next half a second later; live frames may be dropped.
        assert time.monotonic() - began > 0.8


def test_videos_without_a_known_ending_and_without_a_decoder(shared_cases: Path) -> None:
    assert len(everything(Source(str(shared_cases / "edge" / "watch-not-a-folder" / "plain.flv"), once=True))) == 20
    for name in ("av1/av1.mkv", "watch-once-undecodable/zero.mp4"):
        with pytest.raises(AcclimateError, match=r"AV1.*ffmpeg|empty file"):
            Source(str(shared_cases / "edge" / name), once=True)
