from __future__ import annotations

import contextlib
import errno
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import watched
from rich.console import Console
from typer.testing import CliRunner

import acclimate
import coloured_squares as squares
from acclimate import cli, locks
from acclimate.data import formats
from acclimate.edge import source as sources
from acclimate.edge import station as stations
from acclimate.edge import watch as watching
from acclimate.edge.artifact import Artifact
from acclimate.edge.credentials import FILE_VARIABLE, VARIABLE, masked, with_password
from acclimate.edge.images import Reading, read_image
from acclimate.edge.source import Source
from acclimate.edge.watch import watch
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.installation import hint

PATIENCE_S = 60


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return watched.export(tmp_path_factory.mktemp("artifacts") / "known")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact without a reference."""
    return watched.export(tmp_path_factory.mktemp("artifacts") / "stranger", known=False)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(sources, "SETTLED_S", 0.0)
    monkeypatch.setattr(sources, "POLL_S", 0.01)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.01)


def test_a_folder_becomes_lines_that_predict_would_write(artifact: Path, tmp_path: Path) -> None:
    watched.put_images(tmp_path / "in", range(6))
    console = Console(file=io.StringIO(), width=200)
    summary = watch(artifact, str(tmp_path / "in"), tmp_path / "out", once=True, page=False, console=console)
    assert (summary.frames, summary.lines, summary.unwritten, summary.dropped) == (6, 6, 0, 0)
    found = watched.lines(tmp_path / "out")
    assert [line["frame"] for line in found] == list(range(6))
    assert [line["file"] for line in found] == [f"{number:06}.bmp" for number in range(6)]
    results = json.loads(acclimate.workflow.predict(artifact, tmp_path / "in", tmp_path / "predicted").read_text())
    assert [line["detections"] for line in found] == [image["detections"] for image in results["images"]]
    assert sum(len(line["detections"]) for line in found) > 10
    assert watched.events(tmp_path / "out") == ["started", "there", "stopped"]
    assert "6 frames in" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_second_call_goes_on_with_what_is_new(artifact: Path, tmp_path: Path) -> None:
    for numbers in (range(3), range(3, 5), range(0)):
        watched.put_images(tmp_path / "in", numbers)
        watch(artifact, str(tmp_path / "in"), tmp_path / "out", once=True, page=False)
    found = watched.lines(tmp_path / "out")
    assert [(line["frame"], line["file"]) for line in found] == [(n, f"{n:06}.bmp") for n in range(5)]


def test_fog_raises_an_alarm_with_its_frames_and_clear_weather_none(artifact: Path, tmp_path: Path) -> None:
    frames = [watched.frame(number, foggy=number >= 60) for number in range(130)]
    video = watched.put_video(tmp_path / "v.avi", frames)
    summary = watch(artifact, str(video), tmp_path / "out", once=True, page=False, keep=5)
    assert summary.alarms == 1
    (alarm,) = [line for line in watched.lines(tmp_path / "out", "events") if line["event"] == "alarm"]
    assert 60 <= alarm["frame"] < 120
    folder = tmp_path / "out" / alarm["folder"]
    assert json.loads((folder / "alarm.json").read_text())["frame"] == alarm["frame"]
    names = sorted(path.name for path in folder.glob("*.jpg"))
    assert names == [f"{when}-{n}.jpg" for when in ("after", "before") for n in range(1, 5)]
    drift = [line["drift"] for line in watched.lines(tmp_path / "out")]
    assert np.median(drift[:60]) < 2
    assert np.median(drift[60:]) > 3
    collected = formats.unlabelled(tmp_path / "out" / "collected").paths
    assert len(collected) == summary.collected == 5


def test_frames_outside_the_domain_are_worth_more_than_others(artifact: Path, tmp_path: Path) -> None:
    frames = [watched.frame(number, foggy=number >= 60) for number in range(90)]
    video = watched.put_video(tmp_path / "v.avi", frames)
    watch(artifact, str(video), tmp_path / "out", once=True, page=False, keep=12)
    spread = sorted(float(read_image(path).std()) for path in (tmp_path / "out" / "collected").iterdir())
    clear, fog = ([float(one.std()) for one in part] for part in (frames[:60], frames[60:]))
    assert max(fog) < 15 < min(clear)
    assert sum(one < 15 for one in spread) >= 5, "they look so alike that by their looks alone two are kept"


def test_alarm_folders_are_bounded(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stations, "ALARM_FOLDERS", 2)
    for number in range(4):
        (tmp_path / "out" / "alarms" / f"2020010{number}T000000Z").mkdir(parents=True)
    frames = [watched.frame(number, foggy=True) for number in range(80)]
    watch(artifact, str(watched.put_video(tmp_path / "v.avi", frames)), tmp_path / "out", once=True, page=False)
    names = sorted(path.name for path in (tmp_path / "out" / "alarms").iterdir())
    assert len(names) == 2
    assert names[0] == "20200103T000000Z"


def test_a_reference_is_learnt_kept_and_forgotten(stranger: Path, tmp_path: Path) -> None:
    frames = [watched.frame(number) for number in range(20)]
    video = str(watched.put_video(tmp_path / "v.avi", frames))

    def again(**options: bool) -> list[float | None]:
        watch(stranger, video, tmp_path / "out", once=True, page=False, learn=12, **options)
        return [line["drift"] for line in watched.lines(tmp_path / "out")[-20:]]

    assert [score is None for score in again()] == [True] * 12 + [False] * 8
    assert "learnt" in watched.events(tmp_path / "out")
    assert None not in again()
    assert again(reset=True).count(None) == 12
    values = json.loads((tmp_path / "out" / "reference.json").read_text())
    (tmp_path / "out" / "reference.json").write_text(json.dumps({**values, "artifact": "another"}))
    assert again().count(None) == 12
    (tmp_path / "out" / "reference.json").write_text("{")
    assert again().count(None) == 12


def test_adjustment_is_off_by_default_bounded_kept_and_undone(artifact: Path, tmp_path: Path) -> None:
    video = str(watched.put_video(tmp_path / "v.avi", [watched.frame(number) for number in range(15)]))
    out = tmp_path / "out"
    watch(artifact, video, out, once=True, page=False)
    assert not (out / "adjusted.json").exists()
    watch(artifact, video, out, once=True, page=False, adjust=True)
    values = json.loads((out / "adjusted.json").read_text())
    assert values["artifact"] == Artifact.open(artifact).digest
    values["thresholds"] = {"red": 0.999, "blue": 0.3}
    (out / "adjusted.json").write_text(json.dumps(values))
    watch(artifact, video, out, once=True, page=False, adjust=True)
    kept = json.loads((out / "adjusted.json").read_text())["thresholds"]
    assert 0.5 < kept["red"] <= 0.35 * 1.5, "taken up, inside the bounds"
    watch(artifact, video, out, once=True, page=False, adjust=True, reset=True)
    fresh = json.loads((out / "adjusted.json").read_text())["thresholds"]
    assert abs(fresh["red"] - 0.35) < 0.05


def test_a_full_disk_does_not_stop_detection(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    video = str(watched.put_video(tmp_path / "v.avi", [watched.frame(number) for number in range(30)]))
    real, calls = os.write, 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal calls
        if data.startswith(b'{"frame"'):
            calls += 1
            if 5 < calls <= 20:
                real(descriptor, data[:7])
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    def full(*_: object) -> None:
        raise AcclimateError("collected: the disk is full")

    monkeypatch.setattr("acclimate.edge.journal.os.write", write)
    monkeypatch.setattr("acclimate.edge.collect.write_bytes", full)
    summary = watch(artifact, video, tmp_path / "out", once=True, page=False)
    assert (summary.frames, summary.lines, summary.unwritten) == (30, 15, 15)
    numbers = [line["frame"] for line in watched.lines(tmp_path / "out")]
    assert numbers == [*range(5), *range(20, 30)]
    told = [record.getMessage() for record in caplog.records if "the disk is full" in record.getMessage()]
    assert len(told) == 2, "once for the lines, once for the rest"


def test_two_processes_do_not_write_into_one_folder(artifact: Path, tmp_path: Path) -> None:
    watched.put_images(tmp_path / "in", range(2))
    with ThreadPoolExecutor() as other:
        stack = contextlib.ExitStack()
        other.submit(stack.enter_context, locks.held(tmp_path, "watch")).result()
        with pytest.raises(AcclimateError, match=rf"acclimate watch \(process {os.getpid()} on .*\) writes there"):
            watch(artifact, str(tmp_path / "in"), tmp_path, once=True, page=False)
        other.submit(stack.close).result()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adjust": True, "threshold": 0.2}, "leave out --threshold"),
        ({"fps": 0.0}, "above 0"),
        ({"token": "short", "page": True}, "at least 12"),
        ({"bind": "203.0.113.1", "page": True}, "cannot be listened at"),
    ],
)
def test_options_that_do_not_go_together(artifact: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(AcclimateError, match=said):
        watch(artifact, str(tmp_path), tmp_path / "out", once=True, **{"page": False, **options})


def test_frames_are_evenly_spaced(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Clock:
        """Time that goes on by what is waited for, and by what a frame takes."""

        @staticmethod
        def monotonic() -> float:
            return now

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return False

    class Endless:
        ended = False

        def next(self, timeout: float) -> object:
            return object()

    monkeypatch.setattr(watching, "time", Clock)
    taken: list[float] = []
    station = types.SimpleNamespace(source=Endless())
    frames = watching._paced([station], 10, lambda: False, wait)  # type: ignore[list-item]
    for number, _ in zip(range(40), frames, strict=False):
        taken.append(now)
        now += 1.0 if number == 20 else 0.03
    gaps = np.diff(taken)
    np.testing.assert_allclose(gaps[:20], 0.1, atol=1e-6)
    assert gaps[20] >= 1.0
    np.testing.assert_allclose(gaps[21:], 0.1, atol=1e-6, err_msg="what was missed is made up for in a burst")


def test_without_river_it_says_so(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    watched.put_images(tmp_path / "in", range(2))
    watch(artifact, str(tmp_path / "in"), tmp_path / "out", once=True, page=False)
    assert any(hint("watch") in record.getMessage() for record in caplog.records)


def test_a_signal_ends_it_with_a_summary(artifact: Path, tmp_path: Path) -> None:
    watched.put_images(tmp_path / "in", range(3))
    out = tmp_path / "out"

    def ask() -> None:
        until(lambda: len(watched.lines(out)) == 3)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    summary = watch(artifact, str(tmp_path / "in"), out, page=False)
    asking.join()
    assert summary.frames == 3
    assert watched.events(out)[-1] == "stopped"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:secret@cam/a@b", "rtsp://cam/a@b"),
        ("rtsp://me:se/cr@et@cam/a", "rtsp://cam/a"),
        ("rtsp://me:se@cret:w/ord@[fe80::1]:554/a", "rtsp://[fe80::1]:554/a"),
        ("rtsp://me:12345/6@192.168.1.9:554/a", "rtsp://192.168.1.9:554/a"),
        ("rtsp://me%3Ase%63ret@cam", "rtsp://cam"),
        ("rtsp:/me:secret@cam/a", "rtsp:/cam/a"),
        ("rtsp://cam:554/a@b?w=1&password=secret&x=2", "rtsp://cam:554/a@b?w=1&password=...&x=2"),
        ("http://cam/v?loginuse=me&loginpas=secret&pass%77ord=secret&w=1",
         "http://cam/v?loginuse=...&loginpas=...&pass%77ord=...&w=1"),
        ("rtsp://cam/user=me&password=secret&channel=1", "rtsp://cam/user=...&password=...&channel=1"),
        ("rtsp://cam/user=me_password=secret_channel=1.sdp", "rtsp://cam/user=..."),
        ("http://cam/v?next=rtsp://me:secret@cam/b", "http://cam/v?next=rtsp://cam/b"),
        ("http://me:secret@cam/v.mjpg: gone; http://cam", "http://cam/v.mjpg: gone; http://cam"),
        ("http://[::1]:80/a/b.c?width=640", "http://[::1]:80/a/b.c?width=640"),
        ("a/folder", "a/folder"),
        ("C:/a@b", "C:/a@b"),
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_not_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_password_may_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_password("rtsp://me@cam/a") == "rtsp://me@cam/a"
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "password"))
    with pytest.raises(AcclimateError, match=r"ACCLIMATE_STREAM_PASSWORD_FILE: .*password: cannot be read"):
        with_password("rtsp://me@cam/a")
    (tmp_path / "password").write_text("p@ss/word\n")
    assert with_password("rtsp://me@cam/a") == "rtsp://me:p%40ss%2Fword@cam/a"
    monkeypatch.setenv(VARIABLE, "other")
    assert with_password("rtsp://me@cam/a") == "rtsp://me:other@cam/a"
    for as_it_is in ("rtsp://me:own@cam/a", "rtsp://cam/a@b", "a/folder", "0"):
        assert with_password(as_it_is) == as_it_is


def test_a_password_is_in_no_file_and_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is not there tells so, in the log and in the errors."""
    monkeypatch.setenv("OPENCV_FFMPEG_DEBUG", "0")
    with Source("http://me:verysecret@127.0.0.1:9/v.mjpg?token=verysecret") as source:
        source.next(1.5)
    assert "cannot be opened" in caplog.text
    assert "verysecret" not in caplog.text
    with pytest.raises(AcclimateError, match=r"rtsp://\.\.\.: an address has no spaces; write %20$"):
        Source("rtsp://me:very secret@127.0.0.1:9/v")


def test_from_the_command_line(artifact: Path, tmp_path: Path) -> None:
    watched.put_images(tmp_path / "in", range(3))
    arguments = ["watch", str(artifact), "--source", str(tmp_path / "in"), "--once", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, [*arguments, "--no-page"])
    assert done.exit_code == 0, done.output
    assert len(watched.lines(tmp_path / "out")) == 3
    assert cli.main([*arguments, "--adjust", "--threshold", "0.5"]) == 2


@pytest.mark.slow
def test_a_killed_process_loses_nothing_and_its_source_may_come_and_go(artifact: Path, tmp_path: Path) -> None:
    """A short version of benchmarks/soak.py."""
    folder, out = tmp_path / "in", tmp_path / "out"
    command = [sys.executable, "-m", "acclimate", "watch", str(artifact), "--source", str(folder), "--out", str(out)]
    command += ["--no-page", "--file-mb", "0.02", "--files", "1000"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def written() -> int:
        with_whole_lines = [*out.glob("detections.*.jsonl"), *out.glob("detections.jsonl")]
        return sum(file.read_bytes().count(b"\n") for file in with_whole_lines)

    watched.put_images(folder, range(100))
    process = start()
    until(lambda: written() >= 30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(out / "detections.jsonl", "ab") as file:
        file.write(b'{"frame":9999,"det')
    process = start()
    until(lambda: written() >= 100)
    folder.rename(tmp_path / "away")
    until(lambda: "gone" in watched.events(out))
    (tmp_path / "away").rename(folder)
    watched.put_images(folder, range(100, 150))
    until(lambda: written() >= 150)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    found = watched.lines(out)
    assert [line["frame"] for line in found] == list(range(150))
    assert [line["file"] for line in found] == [f"{number:06}.bmp" for number in range(150)]
    assert (out / "detections.torn").read_bytes() == b'{"frame":9999,"det'


@pytest.mark.parametrize("what", ["empty folder", "no image", "no such picture"])
def test_once_that_read_nothing_is_a_failure(artifact: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if what == "no image":
        (folder / "a.png").write_bytes(b"no image")
    source = str(folder / "none.png") if what == "no such picture" else str(folder)
    status = cli.main(
        ["watch", str(artifact), "--source", source, "--out", str(tmp_path / "out"), "--once", "--no-page"]
    )
    assert status == 2


def test_a_picture_and_a_pattern(artifact: Path, tmp_path: Path) -> None:
    watched.put_images(tmp_path / "in", range(3))
    watched.put_video(tmp_path / "in" / "v.avi", [watched.frame(number) for number in range(2)])
    summary = watch(artifact, str(tmp_path / "in" / "*"), tmp_path / "out", page=False)
    assert (summary.frames, summary.unreadable) == (5, 0)
    found = watched.lines(tmp_path / "out")
    assert [Path(line["file"]).name for line in found] == [*(f"{n:06}.bmp" for n in range(3)), "v.avi", "v.avi"]
    assert [line.get("time_s") for line in found] == [None, None, None, 0.0, pytest.approx(0.02, abs=1e-3)]
    assert watch(artifact, str(tmp_path / "in" / "000000.bmp"), tmp_path / "one", page=False).frames == 1


def test_what_is_no_image_is_passed_by(artifact: Path, tmp_path: Path) -> None:
    claim = b"\0\1\x86\xa0"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + claim * 2 + b"\x08\2\0\0\0")
    os.mkfifo(tmp_path / "in" / "b.png")
    time.sleep(0.02)
    watched.put_images(tmp_path / "in", range(2))
    (tmp_path / "in" / "000000.bmp").rename(tmp_path / "in" / os.fsdecode(b"caf\xe9.bmp"))
    for frames in (2, 0):
        time.sleep(0.02)
        summary = watch(artifact, str(tmp_path / "in"), tmp_path / "out", once=True, page=False)
        assert (summary.frames, summary.unreadable) == (frames, frames)


@pytest.mark.parametrize("numbers", ['"x", "changed_ns": "y"', '1e400, "changed_ns": 1e400', 'null, "changed_ns": [1]'])
def test_a_last_line_without_sound_numbers_is_none(artifact: Path, tmp_path: Path, numbers: str) -> None:
    watched.put_images(tmp_path / "in", range(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "detections.jsonl").write_text(f'{{"file": "000000.bmp", "frame": {numbers}}}\n')
    summary = watch(artifact, str(tmp_path / "in"), tmp_path / "out", once=True, page=False)
    assert summary.frames == 2
    assert [line["frame"] for line in watched.lines(tmp_path / "out")[1:]] == [0, 1]


@contextlib.contextmanager
def motion_jpeg(*connections: Sequence[tuple[int, int]]) -> Iterator[str]:
    """The address of a camera that sends pictures of these (height, width) over HTTP, and then breaks off."""
    waiting = list(connections)

    class Camera(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for size in waiting.pop(0) if waiting else []:
                    picture = cv2.imencode(".jpg", np.full((*size, 3), 90, np.uint8))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    time.sleep(0.02)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v.mjpg"
        finally:
            server.shutdown()


def test_a_camera_that_comes_back_with_another_size_says_so(artifact: Path, tmp_path: Path) -> None:
    """Within one connection OpenCV scales all pictures to the first one's size, and nothing tells."""
    out, small, large = tmp_path / "out", (96, 128), (192, 256)

    def ask() -> None:
        until(lambda: "size" in watched.events(out))
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    with motion_jpeg([small] * 20 + [large] * 20, [large] * 100) as address:
        asking.start()
        watch(artifact, address, out, page=False)
        asking.join()
    told = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    (size,) = [event for event in told if event["event"] == "size"]
    assert (size["height"], size["width"]) == large
    seen = {line["frame"]: (line["height"], line["width"]) for line in watched.lines(out)}
    assert all(shape == (small if frame < size["frame"] else large) for frame, shape in seen.items())


def test_a_stream_that_changes_its_size_says_so(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def frames(self: sources.Source) -> Iterator[sources.Frame]:
        for side in (64, 64, 96):
            yield sources.Frame(np.zeros((side, 128, 3), np.uint8), time.time())

    watched.put_video(tmp_path / "v.avi", [watched.frame(0)])
    monkeypatch.setattr(sources.Source, "_video", frames)
    watch(artifact, str(tmp_path / "v.avi"), tmp_path / "out", once=True, page=False)
    assert watched.events(tmp_path / "out").count("size") == 1
    assert any("frames have 128 x 96 pixels" in record.getMessage() for record in caplog.records)


def test_a_reading_of_the_artifact_holds_on_the_device(artifact: Path, tmp_path: Path) -> None:
    spec = squares.SPEC.model_copy(update={"reading": Reading(intensity=(0, 255), orientation="stored")})
    deep = exporter("onnx").export(squares.SquareDetector(spec), tmp_path / "deep", "fp32", []).folder
    assert Artifact.open(deep).manifest.reading == spec.reading
    (tmp_path / "in").mkdir()
    picture = watched.frame(0)[..., ::-1].astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "in" / "a.png"), picture)
    watched.put_images(tmp_path / "plain", range(1))
    for name, folder in {"in": deep, "plain": artifact}.items():
        watch(folder, str(tmp_path / name), tmp_path / f"{name}-out", once=True, page=False)
    (ours,), (theirs,) = watched.lines(tmp_path / "in-out"), watched.lines(tmp_path / "plain-out")
    assert ours["detections"] == theirs["detections"] != []
