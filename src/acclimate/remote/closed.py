"""Runs a program that cannot read or change a folder, whatever is in the files that it is given.

    python -m acclimate.remote.closed HOME OPEN... -- PROGRAM ARGUMENT...

A model is code for its runtime. The process that runs one for the agent has no business with the agent's key and token,
so Linux takes them away first: a Landlock domain allows what lies beside HOME and the paths OPEN inside it, the latter
for reading alone, and it holds for the program and all that it starts. It needs no privilege, and also keeps the
process from looking into the memory of the agent. See landlock(7); its calls have no wrapper in the C library.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""Numbers of the system calls, the same on every architecture."""
_ASK_VERSION, _BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 1, 1 << 2, 1 << 3
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
"""Remove and make whatever can stand in a folder."""
_ALL = _WRITE_FILE | _READ_FILE | _READ_FOLDER | _CHANGE_FOLDER
"""What is handled of the first version of Landlock: all but execution, which gives nothing away."""


def supported() -> bool:
    """Whether this system can keep a process from a folder."""
    if not sys.platform.startswith("linux"):
        return False
    return _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION)) >= 1


def command(home: Path, open_paths: Sequence[Path], program: Sequence[str]) -> list[str]:
    """What runs `program` closed from `home`; the program as it is where the system cannot."""
    if not supported():
        return list(program)
    start = [sys.executable, "-m", "acclimate.remote.closed", str(home.absolute())]
    return [*start, *(str(path.absolute()) for path in open_paths), "--", *program]


def close(home: Path, open_paths: Sequence[Path]) -> None:
    """Take `home`, but for `open_paths`, from this process for good.

    Raises:
        OSError: the system cannot.
    """
    rules = _call(_CREATE, struct.pack("<Q", _ALL), ctypes.c_size_t(8), ctypes.c_uint32(0))
    _checked(rules)
    try:
        for path in _beside(home.resolve()):
            _allow(rules, path, _ALL)
        for path in open_paths:
            _allow(rules, path.resolve(), _READ_FILE | _READ_FOLDER)
        libc = ctypes.CDLL(None, use_errno=True)
        _checked(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _checked(_call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)))
    finally:
        os.close(rules)


def _beside(home: Path) -> Iterator[Path]:
    """All that is not on the way to `home`; together with the way and `home` it is the whole system."""
    for folder in home.parents:
        try:
            entries = list(folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            # A link is only another name for what is allowed, or not, where it lies.
            if not entry.is_symlink() and entry != home and entry not in home.parents:
                yield entry


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _WRITE_FILE | _READ_FILE
        rule = struct.pack("<Qi", rights, beneath)
        # What lies on a file system that knows no rules, such as a socket, stays closed.
        _call(_ADD, ctypes.c_int(rules), ctypes.c_int(_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(beneath)


def _call(*arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(*(ctypes.c_long(arguments[0]), *arguments[1:])))  # type: ignore[arg-type]


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    """The command line."""
    home, *rest = sys.argv[1:]
    end = rest.index("--")
    try:
        close(Path(home), [Path(path) for path in rest[:end]])
    except OSError as error:
        sys.exit(f"error: {home}: cannot be closed to the process that runs a model ({error.strerror})")
    program = rest[end + 1 :]
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
