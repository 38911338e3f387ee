"""Inputs that once failed, through the verbs of the device: each behaves as its EXPECT.md says.

The cases lie beside the repository; what they are about is also tested on files that are made here, in the tests of the
parts. The two that are about exports are in tests/workflow/test_one_artifact.py and tests/export/test_ncnn.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import pytest
import watched

from acclimate import cli
from acclimate.edge import watch as watching

CUT = "watch-once-undecodable/trunc.avi"
NO_VIDEO = {
    "av1/av1.mkv": ("AV1", "ffmpeg"),
    "watch-once-undecodable/zero.mp4": ("empty file",),
}
"""Cases that cannot be decoded at all, and what is said."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return watched.export(tmp_path_factory.mktemp("artifacts") / "squares")


@pytest.fixture
def cases(shared_cases: Path) -> Path:
    return shared_cases / "edge"


def run(verb: Sequence[str], artifact: Path, source: Path, out: Path) -> int:
    """`predict` of a source, or `watch` of it until it ends."""
    if verb[0] == "predict":
        return cli.main(["predict", str(artifact), str(source), "--out", str(out)])
    return cli.main(["watch", str(artifact), "--source", str(source), "--once", "--no-page", "--out", str(out)])


@pytest.mark.parametrize("verb", [("predict",), ("watch",)])
@pytest.mark.parametrize("case", NO_VIDEO)
def test_what_cannot_be_decoded_is_one_line_and_leaves_no_video(
    cases: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: Sequence[str], case: str
) -> None:
    assert run(verb, artifact, cases / case, tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert case in said
    for part in NO_VIDEO[case]:
        assert part in said
    assert not list((tmp_path / "out").glob("*.mp4"))


@pytest.mark.parametrize("verb", [("predict",), ("watch",)])
def test_a_video_that_is_cut_is_read_as_far_as_it_goes_and_told(
    cases: Path,
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    verb: Sequence[str],
) -> None:
    assert run(verb, artifact, cases / CUT, tmp_path / "out") == 0
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err + caplog.text).split())
    assert "is it cut?" in said
    frames = (
        json.loads((tmp_path / "out" / "detections.json").read_text())["frames"]
        if verb[0] == "predict"
        else watched.lines(tmp_path / "out")
    )
    assert len(frames) == 6


@pytest.mark.parametrize("verb", [("predict",), ("watch",)])
@pytest.mark.parametrize("case", ["vfr-mkv/vfr.mkv", "vfr-mkv/vfr.mp4", "watch-not-a-folder/plain.flv"])
def test_a_video_of_any_rate_and_ending_is_read_whole(
    cases: Path,
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    verb: Sequence[str],
    case: str,
) -> None:
    assert run(verb, artifact, cases / case, tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert "is it cut?" not in captured.out + captured.err + caplog.text
    if verb[0] == "predict":
        results = json.loads((tmp_path / "out" / "detections.json").read_text())
        assert (len(results["frames"]), results["problems"]) == (20, [])
    else:
        assert len(watched.lines(tmp_path / "out")) == 20


@pytest.mark.parametrize("source", ["/dev/video0", "nothing.3gp", "notes.txt"])
def test_what_is_no_source_is_told_in_one_line(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    (tmp_path / "notes.txt").write_text("no picture\n")
    place = Path(source) if source.startswith("/") else tmp_path / source
    if place.exists() and place.suffix != ".txt":
        pytest.skip("this machine has a camera")
    assert run(("watch",), artifact, place, tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1


@contextlib.contextmanager
def stream(picture: bytes) -> Iterator[int]:
    """A camera that sends JPEG pictures over HTTP; its port."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    head = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
                    self.wfile.write(head + picture + b"\r\n")
                    time.sleep(0.05)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_password_of_a_stream_that_is_watched_is_in_no_file_and_no_line(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop = threading.Event()
    monkeypatch.setattr(watching, "stop_signal", lambda: contextlib.nullcontext(stop))
    done, data = cv2.imencode(".jpg", watched.frame(3)[..., ::-1])
    assert done
    out = tmp_path / "out"

    def end() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and len(watched.lines(out)) < 3:
            time.sleep(0.05)
        stop.set()

    with caplog.at_level(logging.DEBUG), stream(data.tobytes()) as port:
        ending = threading.Thread(target=end)
        ending.start()
        watching.watch(artifact, f"http://user:verysecret@127.0.0.1:{port}/v.mjpg", out, page=False)
        ending.join()
    assert len(watched.lines(out)) >= 3
    captured = capsys.readouterr()
    assert "verysecret" not in captured.out + captured.err + caplog.text
    written = [path for path in out.rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert b"verysecret" not in path.read_bytes()
        assert "verysecret" not in path.name
