"""Which files are images: of a folder, of a list, of a pattern; the same for every verb, at the desk and on the device.

Left out without a word, as nobody means them: hidden files and folders, what macOS and network drives leave behind
(`IGNORED_FOLDERS`), and pictures that are labels (`LABEL_FOLDERS`). Left out as a problem: what is called an image
and cannot be one, such as a broken link, a pipe or an empty file.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acclimate.edge.images import SUFFIXES
from acclimate.errors import AcclimateError

LABEL_FOLDERS = frozenset({"gtFine", "gtCoarse", "SegmentationClass", "SegmentationObject"})
"""Folders whose pictures are masks."""
IGNORED_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that zip on macOS, network drives and Windows leave behind; their pictures are no pictures, or copies."""
NOT_READ = frozenset(
    {
        ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".nef",
        ".arw", ".pbm", ".pnm", ".seq",
    }
)  # fmt: skip
"""Endings of pictures that nothing here decodes, in lower case: they are told, as one may take them for read."""
LONGEST_NAME_SHOWN = 80
"""Characters of a listed name that a message repeats."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The images that a path means, in order, each once, and what was left out: (where, what is wrong)."""

    paths: tuple[Path, ...]
    problems: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()
    """Those that were listed for it."""


def images_of(path: str | Path, without: Path | None = None) -> Listed:
    """The images of a folder with its sub-folders, of a .txt list, of a pattern such as `day*/*.jpg`, or one image.

    No image is opened. What is called an image but is empty, broken or no file is a problem.

    Args:
        path: what it is.
        without: a folder whose files do not count.

    Raises:
        AcclimateError: `path` is missing, is neither, cannot be listed, or holds no image.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        matches = matching(path) if is_pattern(path) else []
        if not matches:
            # A name that is too long, or a folder that may not be looked into, is said as it is.
            reason = getattr(error, "strerror", None) or "not a file name"
            what = "no such file or folder" if isinstance(error, FileNotFoundError) else reason
            raise AcclimateError(f"{shown(str(path))}: {what}") from None
        others = not_read([str(match) for match in matches if is_not_read(match.name)])
        listed = _usable([match for match in matches if is_image_name(match.name)], others)
    else:
        if stat.S_ISDIR(mode):
            listed = images_below(path, without)
        elif path.suffix.lower() in SUFFIXES:
            listed = _usable([path], [])
        elif path.suffix.lower() == ".txt":
            listed = images_listed(path, (path.parent,))
        else:
            raise AcclimateError(f"{path}: neither a folder, an image, nor a .txt list of images")
    if not listed.paths:
        first = f"; first problem: {': '.join(listed.problems[0])}" if listed.problems else ""
        raise AcclimateError(f"{path}: no image found (looked for {', '.join(sorted(SUFFIXES))}){first}")
    return listed


def images_below(folder: Path, without: Path | None = None) -> Listed:
    """The image files below `folder`, sorted; through links, each folder once."""
    found: list[Path] = []
    problems: list[tuple[str, str]] = []
    listed: list[str] = []
    entered: set[str] = set()
    left_out = without.resolve() if without is not None else None

    def unreadable(error: OSError) -> None:
        problems.append((str(error.filename), f"the folder cannot be listed ({error.strerror}); left out"))

    others: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(place)
        if real in entered or (left_out is not None and Path(real) == left_out):
            folders.clear()
            continue
        entered.add(real)
        listed.append(place)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_ENTERED]
        found += [Path(place, name) for name in files if is_image_name(name)]
        others += [str(Path(place, name)) for name in files if is_not_read(name)]
    problems += not_read(others)
    return replace(_usable(sorted(found), problems), folders=tuple(listed))


def images_listed(file: Path, bases: Sequence[Path]) -> Listed:
    """The images that a text file lists, one a line, relative to the first of `bases` in which they exist.

    The text may have a byte order mark, be UTF-16 as PowerShell writes it, end lines in any way, and name files in
    bytes that are no UTF-8. A line that begins with # is a comment unless there is a file of that name; a name in
    quotes and one with backslashes are taken where that is how the file is found.

    Raises:
        AcclimateError: the list cannot be read, or is no text.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    text = os.fsdecode(data.removeprefix(b"\xef\xbb\xbf"))
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        # What cannot be decoded has a zero where a text has none.
        text = data.decode("utf-16", errors="replace").replace("\ufffd", "\0")
    if "\0" in text:
        raise AcclimateError(f"{file}: not a text file; a list holds one image path a line")
    paths: list[Path] = []
    problems: list[tuple[str, str]] = []
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        name = line.strip()
        path = _found(name, bases) if name else None
        if path is not None:
            paths.append(path)
        elif name and not name.startswith("#"):
            problems.append((f"{file}:{number}", f"no such image: {shown(name)}; left out"))
    return _usable(paths, problems)


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return not name.startswith(".") and name.lower().endswith(_ENDINGS)


def is_not_read(name: str) -> bool:
    """Whether a file of this name is a picture of a kind that is not read."""
    return not name.startswith(".") and name.lower().endswith(_OTHER_ENDINGS)


def not_read(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is told of pictures of kinds that are not read: a problem for each ending."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(Path(name).suffix.lower(), []).append(name)
    return [
        (some[0], f"{len(some)} {kind} file{'s are' if len(some) > 1 else ' is'} not read; convert to PNG or JPEG")
        for kind, some in sorted(kinds.items())
    ]


def is_pattern(path: str | Path) -> bool:
    """Whether a path has what patterns are made of."""
    return glob.has_magic(str(path))


def matching(pattern: str | Path) -> list[Path]:
    """The files that a pattern such as `day*/*.jpg` means, sorted."""
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - absolute ones too


def shown(name: str) -> str:
    """A name as a message repeats it: not longer than one can read."""
    return name if len(name) <= LONGEST_NAME_SHOWN else f"{name[:LONGEST_NAME_SHOWN]}..."


_ENDINGS, _OTHER_ENDINGS = tuple(SUFFIXES), tuple(NOT_READ)
_NOT_ENTERED = LABEL_FOLDERS | IGNORED_FOLDERS


def _found(name: str, bases: Sequence[Path]) -> Path | None:
    unquoted = name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "'\"" else name
    for candidate in dict.fromkeys((name, unquoted, unquoted.replace("\\", "/"))):
        for base in bases:
            try:
                # What is no file is listed too, so that it is told what it is.
                os.lstat(base / candidate)
            except (OSError, ValueError):
                continue
            return base / candidate
    return None


def _usable(paths: Sequence[Path], problems: list[tuple[str, str]]) -> Listed:
    """Those of `paths` that can be images, each once; the others join the problems."""
    kept: dict[Path, None] = {}
    for path in paths:
        reason = ""
        try:
            status = path.stat()
        except OSError as error:
            reason = "a broken link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        else:
            if path in kept:
                reason = "listed twice; taken once"
            elif not stat.S_ISREG(status.st_mode):
                reason = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            elif not status.st_size:
                reason = "an empty file"
        if not reason:
            kept[path] = None
        else:
            problems.append((str(path), reason if "twice" in reason else f"{reason}; left out"))
    return Listed(tuple(kept), tuple(problems))
