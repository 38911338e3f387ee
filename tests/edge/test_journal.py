from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.edge.journal import Journal


def lines(folder: Path, name: str = "a") -> list[dict]:
    """All lines of all files, oldest first."""
    files = [*sorted(folder.glob(f"{name}.*.jsonl")), folder / f"{name}.jsonl"]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_lines_go_on_in_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "a.jsonl"
    with Journal(file, 10_000, 4) as journal:
        assert journal.last is None
        for number in range(3):
            assert journal.write({"n": number})
    with Journal(file, 10_000, 4) as journal:
        assert journal.last == {"n": 2}
        journal.write({"n": 3})
    assert lines(tmp_path / "sub") == [{"n": number} for number in range(4)]


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl", 100, 3) as journal:
        for number in range(100):
            journal.write({"n": number})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(0 < file.stat().st_size <= 100 for file in files)
    kept = [line["n"] for line in lines(tmp_path)]
    assert kept == list(range(kept[0], 100)), "the newest ones, in order and without a gap"
    with Journal(tmp_path / "a.jsonl", 100, 3) as journal:
        assert journal.last == {"n": 99}


def test_the_last_line_is_found_when_the_newest_file_is_empty(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl", 20, 3) as journal:
        for number in range(5):
            journal.write({"n": number})
    (tmp_path / "a.jsonl").rename(tmp_path / "a.000009.jsonl")
    with Journal(tmp_path / "a.jsonl", 20, 3) as journal:
        assert journal.last == {"n": 4}


@given(whole=st.integers(0, 3), cut=st.integers(1, 11), end=st.sampled_from([b"", b"\0\0\0", b"\n", b"[1]\n", b"\0\n"]))
def test_a_torn_end_is_moved_aside_and_the_whole_lines_stay(
    tmp_path_factory: pytest.TempPathFactory, whole: int, cut: int, end: bytes
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    data = b"".join(b'{"n":%d}\n' % number for number in range(whole))
    torn = b'{"n":12345}'[:cut] + end
    (folder / "a.jsonl").write_bytes(data + torn)
    with Journal(folder / "a.jsonl", 1000, 3) as journal:
        complete = cut == 11 and end == b"\n"
        assert journal.last == ({"n": 12345} if complete else {"n": whole - 1} if whole else None)
        journal.write({"n": 99})
    expected = [*({"n": number} for number in range(whole)), *([{"n": 12345}] if complete else []), {"n": 99}]
    assert lines(folder) == expected
    if not complete:
        assert (folder / "a.torn").read_bytes() == torn


def test_a_full_disk_is_told_once_and_what_fits_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.write
    room = 40

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real(descriptor, data[:room])
        room -= count
        return count

    with Journal(tmp_path / "a.jsonl", 10_000, 4) as journal, caplog.at_level(logging.WARNING):
        monkeypatch.setattr(os, "write", write)
        written = [journal.write({"n": number}) for number in range(20)]
        # The bytes of the line that was cut are taken back.
        assert written == [True] * 5 + [False] * 15
        assert (journal.written, journal.unwritten) == (5, 15)
        assert lines(tmp_path) == [{"n": number} for number in range(5)]
        room = 1000
        assert journal.write({"n": 20})
    assert [line["n"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 20]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "the disk is full" in told[0]
    assert "15 lines were not written" in told[1]


def test_a_file_that_cannot_be_begun_leaves_the_old_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "a.jsonl", 30, 4) as journal:
        for number in range(3):
            journal.write({"n": number})
        with monkeypatch.context() as patch:

            def full(self: Journal) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(Journal, "_open", full)
            assert not journal.write({"n": 3})
        assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
        assert journal.write({"n": 4})
    assert [line["n"] for line in lines(tmp_path)] == [0, 1, 2, 4]


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from acclimate.edge.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 20000, 1000)\n"
        "first = journal.last['n'] + 1 if journal.last else 0\n"
        "for number in range(first, 10**9): journal.write({'n': number, 'text': 'x' * (number % 300)})\n"
    )
    file = tmp_path / "a.jsonl"
    for _ in range(2):
        before = file.stat().st_ino if file.exists() else None
        process = subprocess.Popen([sys.executable, "-c", program, str(file)])
        while not file.exists() or (before is not None and file.stat().st_ino == before):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Journal(file, 20_000, 1000):
        pass
    numbers = [line["n"] for line in lines(tmp_path)]
    assert len(numbers) > 10
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_a_file_that_another_program_rotates_is_begun_anew(tmp_path: Path, how: str) -> None:
    file, old = tmp_path / "a.jsonl", tmp_path / "a.jsonl.1"
    with Journal(file, 10_000, 4) as journal:
        journal.write({"n": 0})
        if how == "removed":
            file.unlink()
        else:
            file.rename(old)
        if how == "replaced":
            file.touch()
        journal.write({"n": 1})
        journal.write({"n": 2})
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [1, 2]
    if how != "removed":
        assert json.loads(old.read_text()) == {"n": 0}


def test_the_last_line_is_found_in_what_another_program_made_of_the_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl", 10_000, 4) as journal:
        journal.write({"n": 0})
    (tmp_path / "a.jsonl").rename(tmp_path / "a.jsonl-20260101")
    (tmp_path / "a.jsonl-20251231.gz").write_bytes(b"packed")
    with Journal(tmp_path / "a.jsonl", 10_000, 4) as journal:
        assert journal.last == {"n": 0}
