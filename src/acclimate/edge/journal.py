"""A log of JSON lines that outlives kills, power cuts and full disks, in a bounded number of files."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from acclimate.run import parsed, writing

log = logging.getLogger(__name__)

SYNC_S = 10.0
"""A power cut loses at most so much: the file is brought to the disk so often."""
_TAIL = 1 << 20
"""Where the last line is looked for; none is longer."""
_PACKED = frozenset({".gz", ".xz", ".zst", ".bz2"})


class Journal:
    """Appends JSON lines to `NAME.jsonl`; use it in a `with` statement.

    Each line is written by one call, and what a call wrote of a line that did not fit on the disk is taken back, so a
    reader sees whole lines whatever happens. A line that a power cut left torn is moved to `NAME.torn` when the journal
    is opened again. A file that has reached its size becomes `NAME.000001.jsonl` and so on; beyond the number of files
    the oldest goes. Where another program renames or removes the file, as log rotation does, a new one is begun. A full
    disk is said once, lines that cannot be written are counted, and writing goes on as soon as there is space.

    Attributes:
        written: lines of this process.
        unwritten: lines of this process that could not be written.
        last: the last whole line of an earlier process; None where there is none.
    """

    def __init__(self, path: Path, file_bytes: int, files: int) -> None:
        """Open or take up the journal at `path`, which ends in .jsonl.

        Raises:
            AcclimateError: the folder cannot be written.
        """
        self.path, self._file_bytes, self._files = path, file_bytes, files
        self.written = 0
        self.unwritten = 0
        self._full = False
        self._missed = 0
        self._synced = time.monotonic()
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
            self.last = self._repair()
            if self.last is None and (earlier := self._earlier()) is not None:
                self.last = _last_line(earlier.read_bytes()[-_TAIL:])[0]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)

    def write(self, line: dict[str, Any]) -> bool:
        """Append one line; whether it is on the disk."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            self._follow()
            if self._size() and self._size() + len(data) > self._file_bytes:
                self._rotate()
            self._append(data)
        except OSError as error:
            self._fail(error)
            return False
        self.written += 1
        if self._full:
            log.warning("%s: writes again; %d lines were not written", self.path, self._missed)
            self._full, self._missed = False, 0
        if time.monotonic() - self._synced > SYNC_S:
            self._synced = time.monotonic()
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)
        return True

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def _follow(self) -> None:
        """Open the file anew where another program has renamed or removed it, as log rotation does."""
        try:
            there = self.path.stat()
            ours = os.fstat(self._descriptor)
            moved = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            moved = True
        if moved:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = self._open()
            os.close(self._descriptor)
            self._descriptor = descriptor

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _append(self, data: bytes) -> None:
        start = self._size()
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._descriptor, start)
            raise

    def _fail(self, error: OSError) -> None:
        self.unwritten += 1
        self._missed += 1
        if not self._full:
            self._full = True
            reason = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror or str(error)
            log.error(
                "%s: %s; what cannot be written is counted, and writing goes on when there is space", self.path, reason
            )

    def _parts(self) -> list[tuple[int, Path]]:
        """The files that are full, oldest first, each with its number."""
        pattern = re.compile(re.escape(self.path.stem) + r"\.(\d+)\.jsonl")
        found = [(pattern.fullmatch(path.name), path) for path in self.path.parent.glob(f"{self.path.stem}.*.jsonl")]
        return sorted((int(match[1]), path) for match, path in found if match)

    def _earlier(self) -> Path | None:
        """The file before this one: our own last, or what another program made of it (`NAME.jsonl.1`) if newer."""
        ours = [path for _, path in self._parts()[-1:]]
        theirs = [path for path in self.path.parent.glob(f"{self.path.name}[.-]*") if path.suffix not in _PACKED]
        return max(ours + theirs, key=lambda path: path.stat().st_mtime_ns, default=None)

    def _rotate(self) -> None:
        parts = self._parts()
        number = parts[-1][0] + 1 if parts else 1
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        target = self.path.with_name(f"{self.path.stem}.{number:06}.jsonl")
        self.path.rename(target)
        try:
            descriptor = self._open()
        except OSError:
            target.rename(self.path)
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        for _, path in [*parts, (number, target)][: -(self._files - 1) or None]:
            path.unlink(missing_ok=True)

    def _repair(self) -> dict[str, Any] | None:
        """Move a torn end aside; the last whole line."""
        size = self._size()
        start = max(0, size - _TAIL)
        last, whole = _last_line(os.pread(self._descriptor, size - start, start))
        if start + whole < size:
            torn = os.pread(self._descriptor, size - start - whole, start + whole)
            # Truncating needs no space, keeping what is torn does: a full disk must not keep the process from starting.
            with contextlib.suppress(OSError):
                self.path.with_suffix(".torn").write_bytes(torn)
            os.ftruncate(self._descriptor, start + whole)
            log.warning("%s: the last line was torn; it is in %s", self.path, self.path.with_suffix(".torn").name)
        return last


def _last_line(tail: bytes) -> tuple[dict[str, Any] | None, int]:
    """The last whole line of a journal's end, and the number of bytes up to the end of it."""
    end = len(tail)
    while end:
        before = tail.rfind(b"\n", 0, end - 1) + 1
        if tail[end - 1 : end] == b"\n":
            with contextlib.suppress(ValueError):
                value = parsed(tail[before:end])
                if isinstance(value, dict):
                    return value, end
        end = before
    return None, 0
