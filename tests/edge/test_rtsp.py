"""Real RTSP on the loopback, where GStreamer's server is installed (`rtsp_server.py` says what it needs)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from watched import events, export, lines

from acclimate.edge.source import Frame, Source

SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = Path("/usr/bin/python3")
LONGEST_S = 60.0


@contextlib.contextmanager
def serving(*options: str) -> Iterator[str]:
    """A server with a red picture, and the port it has."""
    with subprocess.Popen(
        [PYTHON, SERVER, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            port = process.stdout.readline().strip()
            if not port:
                pytest.skip(f"no RTSP server here: {process.stderr.read().strip().splitlines()[-1:]}")
            yield port
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _server_is_installed() -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON}: not on this machine")


def frames(source: Source, count: int) -> list[Frame]:
    """The next frames of a live source."""
    until = time.monotonic() + LONGEST_S
    taken: list[Frame] = []
    while len(taken) < count:
        assert time.monotonic() < until, source.trouble
        if (frame := source.next(1.0)) is not None:
            taken.append(frame)
    return taken


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_a_camera_is_seen_live(codec: str) -> None:
    with serving("--codec", codec) as port, Source(f"rtsp://127.0.0.1:{port}/camera") as source:
        first = frames(source, 1)[0]
        assert first.image.shape == (240, 320, 3)
        np.testing.assert_allclose(first.image.mean(axis=(0, 1)), (254, 0, 0), atol=20)
        # Whoever is slow gets the newest frame, and the others are counted.
        time.sleep(1.0)
        late = frames(source, 2)
        assert source.dropped >= 5
        assert late[-1].taken > first.taken
        assert source.trouble == ""


def test_a_camera_that_was_away_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    with serving("--codec", "mjpeg") as port:
        address = f"rtsp://127.0.0.1:{port}/camera"
        source = Source(address)
        source.__enter__()
        frames(source, 3)
    try:
        until = time.monotonic() + LONGEST_S
        while source.present:
            source.next(0.2)
            assert time.monotonic() < until, "nobody noticed that the server is gone"
        with serving("--codec", "mjpeg", "--port", port):
            frames(source, 3)
        assert source.reopened == 1
        assert "is back after" in caplog.text
    finally:
        source.__exit__(None, None, None)


def test_the_password_is_taken_from_the_environment_and_told_nowhere(tmp_path: Path) -> None:
    artifact, out = export(tmp_path / "artifact"), tmp_path / "out"
    with serving("--codec", "mjpeg", "--user", "me", "--password", "veryS3cret") as port:
        command = [
            sys.executable,
            "-m",
            "acclimate",
            "watch",
            artifact,
            "--source",
            f"rtsp://me@127.0.0.1:{port}/camera",
        ]
        environment = {**os.environ, "ACCLIMATE_STREAM_PASSWORD": "veryS3cret"}
        with subprocess.Popen(
            [*command, "--no-page", "--out", out], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            until = time.monotonic() + LONGEST_S
            while len(lines(out)) < 5:
                time.sleep(0.2)
                assert time.monotonic() < until
            process.terminate()
            told = process.communicate()[0]
        assert process.returncode == 0
    assert (lines(out)[0]["width"], lines(out)[0]["height"]) == (320, 240)
    assert {"started", "there", "stopped"} <= set(events(out))
    told += "".join(file.read_bytes().decode("latin-1") for file in out.rglob("*") if file.is_file())
    assert "S3cret" not in told


def test_a_wrong_password_is_told_without_it(caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving("--codec", "mjpeg", "--user", "me", "--password", "veryS3cret") as port,
        Source(f"rtsp://me:wr0ng@127.0.0.1:{port}/camera") as source,
    ):
        until = time.monotonic() + LONGEST_S
        while not source.trouble:
            assert source.next(0.2) is None
            assert time.monotonic() < until
    assert "cannot be opened" in source.trouble
    assert "cannot be opened" in caplog.text
    assert "wr0ng" not in caplog.text + source.trouble
