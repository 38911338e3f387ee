"""One writer a folder: the lock that a verb holds for its life, and who holds it.

The lock of a folder is a file beside it, `.NAME.lock`, or `.lock` in it where nothing can be written beside it. It is
held by `flock`, which ends with the process, however that ends; the file says who holds it, and goes when it is let
go. On a system without `flock` (Windows) nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from acclimate.errors import AcclimateError

try:
    import fcntl
except ImportError:  # Windows
    _CAN_LOCK = False
else:
    _CAN_LOCK = True

PATIENCE_S = 0.5
"""A lock may be held for a moment by who only asks after it."""

_UNABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""What file systems without locks answer."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes into a folder."""

    what: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        return f"acclimate {self.what} (process {self.pid} on {self.host}, since {self.since})"


class HeldError(AcclimateError):
    """Another process, or another thread, writes into the folder."""


@dataclass(slots=True)
class _Own:
    """A lock of this process; the thread that took it may take it again."""

    holder: Holder
    thread: int
    times: int = 1


_own: dict[Path, _Own] = {}
_own_guard = threading.Lock()


@contextlib.contextmanager
def held(folder: Path, what: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of `folder`, which need not exist; gives whether this call took it, or had it already.

    Of several processes of torchrun, which work on one run together, the first one takes it.

    Args:
        folder: what is going to be written.
        what: the verb, for whoever is refused.
        wait: wait until it is free rather than refuse.

    Raises:
        HeldError: somebody else has it; the line names the verb, the process and its machine.
        AcclimateError: nothing can be written at `folder` or beside it.
    """
    folder = Path(folder).resolve()
    if os.environ.get("RANK", "0") != "0":
        yield False
        return
    me = threading.get_ident()
    while True:
        with _own_guard:
            mine = _own.get(folder)
            if mine is None or mine.thread == me:
                break
        if not wait:
            raise HeldError(_refusal(folder, mine.holder))
        time.sleep(0.05)
    if mine is not None:
        mine.times += 1
        try:
            yield False
        finally:
            mine.times -= 1
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    own = Holder(what, os.getpid(), socket.gethostname(), stamp)
    missing = [parent for parent in folder.parents if not parent.exists()]
    place, descriptor = _taken(folder, own, wait)
    with _own_guard:
        _own[folder] = _Own(own, me)
    try:
        yield True
    finally:
        with _own_guard:
            del _own[folder]
        if descriptor is not None:
            with contextlib.suppress(OSError):
                place.unlink()
            os.close(descriptor)
        # What was made for the lock alone goes with it.
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


def holder(folder: Path) -> Holder | None:
    """Who holds the lock of `folder` now, this process included; None where nobody does."""
    folder = Path(folder).resolve()
    with _own_guard:
        if folder in _own:
            return _own[folder].holder
    for place in _places(folder):
        try:
            descriptor = os.open(place, os.O_RDONLY)
        except OSError:
            continue
        try:
            if not lock(descriptor, shared=True):
                return _read(descriptor)
        finally:
            os.close(descriptor)
    return None


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """`flock` an open file; False where somebody else has it, True where the file system has no locks."""
    if not _CAN_LOCK:
        return True
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        return error.errno in _UNABLE
    return True


def same_file(descriptor: int, path: Path) -> bool:
    """Whether the file that is open is still the one at `path`: it may have been renamed or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _places(folder: Path) -> tuple[Path, ...]:
    """Where the lock may be: beside the folder, as that may be moved or deleted, or in it."""
    return (*([folder.with_name(f".{folder.name}.lock")] if folder.name else []), folder / ".lock")


def _taken(folder: Path, own: Holder, wait: bool) -> tuple[Path, int | None]:
    """The file that is locked, and its descriptor; None where the system has no locks."""
    if not _CAN_LOCK:
        return folder, None
    until = time.monotonic() + PATIENCE_S
    while True:
        place, descriptor = _opened(folder)
        if lock(descriptor, wait=wait):
            # Whoever had it before may have removed the file between our two calls.
            if same_file(descriptor, place):
                with contextlib.suppress(OSError):
                    # A full disk refuses the words; the lock holds all the same.
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, (json.dumps(asdict(own)) + "\n").encode(), 0)
                return place, descriptor
            os.close(descriptor)
            continue
        other = _read(descriptor)
        os.close(descriptor)
        if time.monotonic() > until:
            raise HeldError(_refusal(folder, other))
        time.sleep(0.02)


def _opened(folder: Path, _tried: bool = False) -> tuple[Path, int]:
    problem: OSError | None = None
    for place in _places(folder):
        try:
            if place.parent != folder:
                place.parent.mkdir(parents=True, exist_ok=True)
            return place, os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError as error:
            # Another process made the folders above, and has just removed them again.
            if place.parent != folder and not _tried:
                return _opened(folder, True)
            problem = problem or error
        except OSError as error:
            problem = problem or error
    assert problem is not None
    if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise AcclimateError(f"{folder}: the disk is full; free some space and run the same command again")
    raise AcclimateError(f"{folder}: cannot be written ({problem.strerror}); choose another folder")


def _read(descriptor: int) -> Holder:
    try:
        values = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(str(values["what"]), int(values["pid"]), str(values["host"]), str(values["since"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Holder("", 0, "", "")


def _refusal(folder: Path, other: Holder) -> str:
    return f"{folder}: {other} writes there; wait until it has ended, or choose another folder"
