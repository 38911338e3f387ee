"""One writer a folder: who is let in, who is told what, and what is left afterwards."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from acclimate import locks
from acclimate.errors import AcclimateError
from acclimate.locks import HeldError, held, holder
from another_process import another_process


def test_a_second_process_is_refused_and_told_who_writes_there(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "source"
    with another_process(folder) as other:
        with pytest.raises(HeldError) as caught, held(folder, "train"):
            pytest.fail("was let in")
        found = holder(folder)
    assert found is not None
    assert (found.what, found.pid, found.host) == ("train", other.pid, socket.gethostname())
    message = str(caught.value)
    assert re.fullmatch(
        rf"{re.escape(str(folder))}: acclimate train \(process {other.pid} on {socket.gethostname()}, since "
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\) writes there; wait until it has ended, or choose another folder",
        message,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_died_lets_go(tmp_path: Path, number: signal.Signals) -> None:
    with another_process(tmp_path / "r") as other:
        other.send_signal(number)
        other.wait()
    with held(tmp_path / "r", "train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_beside_the_folder_and_goes_with_it(tmp_path: Path) -> None:
    with held(tmp_path / "r", "train") as taken:
        assert taken
        assert [path.name for path in tmp_path.iterdir()] == [".r.lock"]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_for_the_lock_go_with_it(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b" / "r", "train"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a" / "b" / "r", "train"):
        (tmp_path / "a" / "b" / "r").mkdir()
    assert (tmp_path / "a" / "b" / "r").is_dir()


def test_a_folder_goes_by_where_it_is_not_by_how_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "r")
    with another_process(tmp_path / "r"):
        for name in (tmp_path / "link", tmp_path / "x" / ".." / "r"):
            with pytest.raises(HeldError), held(name, "train"):
                pytest.fail("was let in")


def test_the_same_thread_may_take_it_again_and_another_may_not(tmp_path: Path) -> None:
    def other() -> None:
        with held(tmp_path, "export"):
            pass

    with held(tmp_path, "run"), ThreadPoolExecutor() as pool:
        with held(tmp_path, "train") as taken:
            assert not taken
        with pytest.raises(HeldError, match="acclimate run"):
            pool.submit(other).result()
        assert holder(tmp_path) is not None
        assert holder(tmp_path).what == "run"  # type: ignore[union-attr]
    other()


def test_who_waits_gets_it_once_it_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    got = threading.Event()

    def wait() -> None:
        with held(folder, "benchmark", wait=True):
            got.set()

    with another_process(folder) as other, ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait)
        time.sleep(0.3)
        assert not got.is_set()
        other.kill()
        waiting.result(timeout=30)
    assert got.is_set()


def test_only_one_of_many_is_let_in_at_a_time(tmp_path: Path) -> None:
    """Each adds one to a number in a file, reading it long before it writes: a second writer would lose counts."""
    counter = tmp_path / "count"
    counter.write_text("0")
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from acclimate.locks import held
        file = Path({str(counter)!r})
        for _ in range(20):
            with held(Path({str(tmp_path / "r")!r}), "train", wait=True):
                count = int(file.read_text())
                time.sleep(0.002)
                file.write_text(str(count + 1))
    """)
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert counter.read_text() == "80"


def test_of_the_processes_of_torchrun_the_first_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with another_process(tmp_path / "r"), held(tmp_path / "r", "train") as taken:
        assert not taken


def test_where_nothing_can_be_written_beside_a_folder_the_lock_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    real = os.open

    def refused(path: Path, *arguments: int) -> int:
        if Path(path).parent == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments)

    monkeypatch.setattr(locks.os, "open", refused)
    with held(folder, "train"):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        assert holder(folder) is not None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EROFS, "cannot be written"), (errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot")],
)
def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.os, "open", refused)
    with pytest.raises(AcclimateError, match=said), held(tmp_path / "r", "train"):
        pytest.fail("was let in")


def test_a_file_system_without_locks_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refused)
    with held(tmp_path / "r", "train") as taken:
        assert taken
