"""What a reader looks at, and what it found, kept for as long as all that stays as it is.

A job reads the same sets many times; in one process each label file is opened once, or twice where the format has to be
told first. Everything that decides what a reader finds is asked here: the files that it opens, the folders that it
lists, whether there is a file or folder of a name. Before what was found is handed out again, all of it is asked anew.

Files and folders are known by inode, size, and the times of their last change, of content and of inode, not by their
content: to tell by that, all of them would have to be opened again. The second time moves with every write and every
replacement, whatever a tool does to the first. What changed a moment before it was read is not kept, as the clocks of
file systems are coarse.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from acclimate.edge.headers import Header, read_header_of

SETS, ASSEMBLED = 8, 2
"""So many are kept, the last that were asked for; and of each so many forms, as a detector's classes make another."""
_MOMENT_NS, _COARSE_NS = 50_000_000, 2_100_000_000
"""Ages below which a time of change proves nothing: of a clock that ticks in milliseconds, and of one in seconds."""
_SMALL, _SMALL_FILES = 1 << 20, 512
"""Bytes of a file whose content is kept until the reader has ended, and how many."""

T = TypeVar("T")
Answer = tuple[int, ...] | int | None


@dataclass(slots=True)
class Looks:
    """What one reader asked of the disk."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    lasting: bool = True
    """Whether all was old enough for its times to prove something."""
    _contents: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _maps: dict[str, mmap.mmap] = field(default_factory=dict)

    def ask(self, question: str, path: str) -> Answer:
        """The answer to "stamp" or "kind" of a path, remembered."""
        key = (question, path)
        if key not in self.answers:
            answer = self.answers[key] = _answer(question, path)
            if question == "stamp" and isinstance(answer, tuple):
                self.lasting = self.lasting and _old(answer)
        return self.answers[key]

    def still(self) -> bool:
        """Whether every answer would be the same now."""
        return all(_answer(question, path) == answer for (question, path), answer in self.answers.items())

    def content(self, path: Path) -> bytes:
        """All of a file. Raises OSError."""
        name = str(path)
        if name in self._contents:
            return self._contents[name]
        self.ask("stamp", name)
        if name in self._maps:
            # Its pages would count for as long as what is read is parsed.
            self._maps.pop(name).close()
        read = path.read_bytes()
        if len(read) <= _SMALL:
            self._contents[name] = read
            if len(self._contents) > _SMALL_FILES:
                self._contents.popitem(last=False)
        return read

    def mapped(self, path: Path) -> bytes | mmap.mmap:
        """The same to search in; a large file is mapped and not read. Raises OSError."""
        name = str(path)
        if name not in self._maps:
            self.ask("stamp", name)
            if name in self._contents or path.stat().st_size <= _SMALL:
                return self.content(path)
            with path.open("rb") as opened:
                self._maps[name] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]

    def close(self) -> None:
        """Let go of all content; the answers stay."""
        for one in self._maps.values():
            one.close()
        self._maps.clear()
        self._contents.clear()


@dataclass(slots=True)
class Headers:
    """The headers of a set's images, each read once for as long as its file stays as it is."""

    _known: dict[str, Header] = field(default_factory=dict)
    _stamps: dict[str, bytes] = field(default_factory=dict)
    """As bytes, as there may be very many."""
    _same: dict[Header, Header] = field(default_factory=dict)
    """One object for all headers that say the same."""

    def read(self, path: Path) -> Header:
        """As `read_header` does."""
        name = str(path)
        known = self._stamps.get(name)
        if known is not None and (now := stamp(name)) is not None and _packed(now) == known:
            return self._known[name]
        header, status = read_header_of(name)
        header = self._same.setdefault(header, header)
        if _old(now := _stamp_of(status)):
            self._known[name], self._stamps[name] = header, _packed(now)
        return header

    def still(self, paths: Iterable[Path]) -> bool:
        """Whether the headers of all of `paths` were read, and no file has changed since."""
        stamps = self._stamps
        for path in paths:
            known, now = stamps.get(str(path)), stamp(path)
            if known is None or now is None or _packed(now) != known:
                return False
        return True


_FIVE = struct.Struct("<5Q").pack


def _packed(now: tuple[int, ...]) -> bytes:
    try:
        return _FIVE(*now)
    except struct.error:
        # Before 1970, or of a file system with longer numbers.
        return repr(now).encode()


_looks: ContextVar[Looks | None] = ContextVar("looks", default=None)
_kept: OrderedDict[tuple[str, ...], tuple[Looks, Any]] = OrderedDict()


@contextlib.contextmanager
def looking() -> Iterator[Looks]:
    """What is asked of the disk in here is remembered."""
    looks = Looks()
    token = _looks.set(looks)
    try:
        yield looks
    finally:
        _looks.reset(token)
        looks.close()


def current() -> Looks:
    """The reader's, or one that nobody keeps."""
    return _looks.get() or Looks()


def kind(path: str | Path) -> int:
    """The type of a file as in `stat.S_IFMT`, through links; 0 where there is none, or where it can be none's name."""
    answer = current().ask("kind", str(path))
    assert isinstance(answer, int)
    return answer


def listed(folder: str | Path) -> None:
    """Tell that a folder's names are read."""
    current().ask("stamp", str(folder))


def found(key: tuple[str, ...], read: Callable[[], T]) -> T:
    """What `read` returned for the key before, where all that it looked at is as it was; else what it returns now."""
    if key in _kept:
        looks, before = _kept.pop(key)
        if looks.still():
            _kept[key] = looks, before
            return cast(T, before)
    with looking() as looks:
        now = read()
    if looks.lasting:
        _kept[key] = looks, now
        if len(_kept) > SETS:
            _kept.popitem(last=False)
    return now


def stamp(path: str | Path) -> tuple[int, ...] | None:
    """What changes with a file or folder: device, inode, size, and the times of its content's and inode's change."""
    try:
        seen = os.stat(path)  # noqa: PTH116 - a path is not parsed anew for each of very many
    except (OSError, ValueError):
        return None
    return _stamp_of(seen)


def _stamp_of(seen: os.stat_result) -> tuple[int, ...]:
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _old(seen: tuple[int, ...]) -> bool:
    latest = max(seen[-2:])
    return time.time_ns() - latest > (_MOMENT_NS if latest % 1_000_000_000 else _COARSE_NS)


def _answer(question: str, path: str) -> Answer:
    if question == "stamp":
        return stamp(path)
    try:
        return stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 - likewise
    except (OSError, ValueError):
        return 0
