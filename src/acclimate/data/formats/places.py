"""Where the files of a set are: images that an index names, label files, folders under any spelling.

Indices come from other machines: Windows separators, absolute paths of a notebook, names without a suffix, names
without their folders. One resolver finds what they mean, and never an image of another split, or of a set next door.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

from acclimate.data.formats import looked
from acclimate.data.formats.files import lines, text
from acclimate.data.formats.raw import Problem, Raw
from acclimate.edge import listing
from acclimate.edge.images import SUFFIXES

_SPLITS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
_SUFFIX_ORDER = tuple(
    s for suffix in (".jpg", ".png", *sorted(SUFFIXES - {".jpg", ".png"})) for s in (suffix, suffix.upper())
)


def splits_in(name: str) -> frozenset[str]:
    """The splits that a file's or folder's name speaks of: `instances_train2017` of train, `valid` of val."""
    words = re.findall(r"[a-z]+", name.casefold())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return frozenset(found | ({"train", "val"} if "trainval" in words else set()))


def same_split(one: str, other: str) -> bool:
    """Whether two names are the same split's: `val`, `valid` and `validation` are."""
    return one == other or (_SPLITS.get(one.casefold(), one) == _SPLITS.get(other.casefold(), other))


def hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen: dot files (macOS leaves `._a.xml`), and its archives' rests."""
    return name.startswith(".") or name in listing.IGNORED_FOLDERS


def is_dir(path: Path) -> bool:
    """Whether it is a folder; a name that the file system refuses is none."""
    return stat.S_ISDIR(looked.kind(path))


def is_file(path: Path) -> bool:
    """Whether it is a file; what cannot be a file name, such as one of 300 characters, is none."""
    return stat.S_ISREG(looked.kind(path))


def folder_in(folder: Path, *names: str) -> Path | None:
    """The first of the subfolders `names`, in any capitals."""
    there = {entry.name.casefold(): entry for entry in sorted(_entries(folder), reverse=True) if is_dir(entry)}
    return next((there[name.casefold()] for name in names if name.casefold() in there), None)


def folders_in(folder: Path) -> list[Path]:
    """The visible subfolders, sorted."""
    return sorted(entry for entry in _entries(folder) if not hidden(entry.name) and is_dir(entry))


def _entries(folder: Path) -> list[Path]:
    """All that lies in a folder; nothing where it cannot be listed."""
    looked.listed(folder)
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The visible files of a folder with one of the `suffixes` (in lower case), sorted; without its subfolders."""
    looked.listed(folder)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not hidden(entry.name)]
    except OSError:
        return []
    return sorted(Path(folder, name) for name in names if name.lower().endswith(suffixes))


def files_below(folder: Path, *suffixes: str) -> list[Path]:
    """Likewise with its subfolders, through links, each folder once."""
    found: list[Path] = []
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        looked.listed(place)
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if name not in listing.LABEL_FOLDERS and not hidden(name)]
        found += [Path(place, name) for name in files if name.lower().endswith(suffixes) and not hidden(name)]
    return sorted(found)


def images_in(folder: Path) -> list[Path]:
    """The visible image files of a folder, sorted; without its subfolders."""
    return files_in(folder, *SUFFIXES)


def images_below(folder: Path, raw: Raw | None = None) -> list[Path]:
    """Image files below `folder`, sorted; what only looks like one is a problem of `raw`."""
    found = listing.images_below(folder)
    for place in (str(folder), *found.folders):
        looked.listed(place)
    if raw is not None:
        raw.problems += [Problem(*problem) for problem in found.problems]
    return list(found.paths)


def listed(file: Path, bases: Sequence[Path], raw: Raw) -> list[Path]:
    """The images that a text file lists, a name a line, relative to the first of `bases` in which they exist; lists of
    other machines as in `Images`."""
    images = Images(bases)
    paths = []
    for number, name in lines(text(file, names=True) or ""):
        path = images.find(name)
        if path is not None:
            paths.append(path)
        elif not name.startswith("#"):
            raw.problem(f"{file}:{number}", f"no such image: {listing.shown(name)}; left out")
    return paths


class Alike:
    """Files by names that are written otherwise: in other capitals, with `%20`, or with accents in Unicode's other form
    (macOS stores them decomposed)."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}
        self._folders: dict[str, str | None] = {}

    def find(self, folder: str, name: str, suffixes: Sequence[str] = ("",)) -> str | None:
        """The only file of a folder that `name` and one of the `suffixes` may mean; so may the folder's name."""
        found = self._folder(folder)
        if found is None:
            return None
        folder, there = found, self._in(found)
        written = (name, urllib.parse.unquote(name))
        keys = (_plain(form) + suffix.casefold() for form in written for suffix in suffixes)
        return next((f"{folder}/{there[key]}" for key in keys if there.get(key)), None)

    def _folder(self, folder: str) -> str | None:
        if folder not in self._folders:
            found: str | None = folder
            if not is_dir(Path(folder)):
                above, _, own = folder.rpartition("/")
                base = self._folder(above) if above else None
                alike = [entry for entry in folders_in(Path(base)) if _plain(entry.name) == _plain(own)] if base else []
                found = str(alike[0]) if len(alike) == 1 else None
            self._folders[folder] = found
        return self._folders[folder]

    def _in(self, folder: str) -> dict[str, str]:
        """A folder's files by their plain names; an empty text where several have one."""
        if folder not in self._names:
            names = self._names[folder] = {}
            for file in files_in(Path(folder), ""):
                key = _plain(file.name)
                names[key] = "" if key in names else file.name
        return self._names[folder]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


class Images:
    """Finds the image that a label file or an index means by a name.

    In this order: the name in one of the folders `bases`, with either kind of separator; with an image's suffix added;
    its last parts in one of them, as many as possible, where it is a path of another machine; the only image of that
    name below one of the folders `below`; and the only one whose name is the same but for how it is written (`Alike`).
    Parts and folders below never lead into a folder of another split than `split`, or than the name itself says.

    Args:
        bases: the folders that names are relative to.
        below: folders whose subfolders are searched.
        split: a text that may name the split that is read: the split itself, the index's file name.
    """

    def __init__(self, bases: Iterable[Path], below: Iterable[Path] = (), split: str = "") -> None:
        self._bases = [str(base) for base in bases]
        self._below = list(below)
        self._roots = [*self._bases, *map(str, self._below)]
        self._splits = splits_in(split)
        self._listings: dict[str, frozenset[str]] = {}
        self._named: dict[str, list[str]] | None = None
        self._stems: dict[str, list[str]] = {}
        self._alike = Alike()

    def find(self, name: str) -> Path | None:
        """The image, or None."""
        found = self.locate(name)
        return None if found is None else Path(found)

    def locate(self, name: str) -> str | None:
        """The image as a text, for those who look for very many; or None."""
        for written in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            for base in self._bases:
                if self._exists(path := _joined(base, written)):
                    return _path(path)
        if "://" in name:
            name = name.partition("?")[0]
        parts = [part for part in re.split(r"[\\/]", name) if part not in {"", ".", ".."}]
        if not parts or "\0" in name:
            return None
        bare = not parts[-1].lower().endswith(tuple(SUFFIXES))
        if bare and (found := self._tail(parts, 0, suffixes=_SUFFIX_ORDER)):
            return found
        for start in range(1, len(parts)):
            if found := self._tail(parts, start, suffixes=_SUFFIX_ORDER if bare else ("",)):
                return found
        return self._only(parts, bare) or self._like(parts, _SUFFIX_ORDER if bare else ())

    def _like(self, parts: list[str], suffixes: Sequence[str]) -> str | None:
        for start in range(len(parts)):
            for base in self._bases:
                path = self._alike.find("/".join([base, *parts[start:-1]]), parts[-1], ("", *suffixes))
                image = path is not None and path.lower().endswith(tuple(SUFFIXES))
                if path and image and not (start and self._of_another_split(path, parts)):
                    return _path(path)
        folders = {path.rpartition("/")[0] for paths in (self._named or {}).values() for path in paths}
        found = {self._alike.find(folder, parts[-1], ("", *suffixes)) for folder in folders} - {None}
        there = [path for path in found if path and not self._of_another_split(path, parts)]
        return there[0] if len(there) == 1 else None

    def _tail(self, parts: list[str], start: int, suffixes: Sequence[str]) -> str | None:
        for base in self._bases:
            for suffix in suffixes:
                path = "/".join([base, *parts[start:]]) + suffix
                if self._exists(path) and not (start and self._of_another_split(path, parts)):
                    return _path(path)
        return None

    def _only(self, parts: list[str], bare: bool) -> str | None:
        """The only image of that name below; of several, the one whose folders agree longest with the name's."""
        if self._named is None:
            self._named = {}
            for folder in self._below:
                for path in images_below(folder):
                    self._named.setdefault(path.name, []).append(str(path))
                    self._stems.setdefault(path.stem, []).append(str(path))
        candidates = dict.fromkeys((self._stems if bare else self._named).get(parts[-1], ()))
        agreeing = sorted(
            ((_agreement(path, parts), path) for path in candidates if not self._of_another_split(path, parts)),
            reverse=True,
        )
        if not agreeing or (len(agreeing) > 1 and agreeing[0][0] == agreeing[1][0]):
            return None
        return agreeing[0][1]

    def _of_another_split(self, path: str, parts: list[str]) -> bool:
        own = frozenset().union(*(splits_in(part) for part in parts[:-1])) or self._splits
        root = max((root for root in self._roots if path.startswith(root)), key=len, default="")
        folders = re.split(r"[\\/]", path[len(root) :])[:-1]
        there = frozenset().union(*(splits_in(folder) for folder in folders))
        return bool(own and there and not own & there)

    def _exists(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        there = self._listings.get(folder)
        if there is None:
            looked.listed(f"{folder}/")
            try:
                with os.scandir(f"{folder}/") as entries:
                    there = frozenset(entry.name for entry in entries if not entry.is_dir())
            except (OSError, ValueError):
                there = frozenset()
            self._listings[folder] = there
        return name in there


def _joined(base: str, name: str) -> str:
    return name if name.startswith("/") else f"{base}/{name}"


def _path(path: str) -> str:
    # The same file under two names has to be one path.
    return os.path.normpath(path) if ".." in path else path


def _agreement(path: str, parts: list[str]) -> int:
    own = re.split(r"[\\/]", path)[:-1]
    count = 0
    for mine, theirs in zip(reversed(own), reversed(parts[:-1]), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def split_list(folders: Iterable[Path], split: str) -> list[str] | None:
    """The lines of a split's list, such as train.txt, in the first of the folders that has one; None where none has."""
    some = list(folders)
    named = [folder / f"{split}.txt" for folder in some]
    alike = [file for folder in some for file in files_in(folder, ".txt") if same_split(split, file.stem)]
    for file in (*named, *alike):
        if (content := text(file)) is not None:
            return [line for _, line in lines(content)]
    return None


def label_of(labels: Path, line: str, suffix: str) -> Path:
    """The label file that a line of a split's list means, below `labels`.

    It may name the image or the label, with or without its ending and its folders, in either kind of separator; names
    may hold spaces. A second column, of the lists of one class, says whether the class is in the image; in others it is
    the label file itself.
    """
    written = [line, re.sub(r"\s+(-1|0|1)$", "", line)]
    last = line.split()[-1]
    written += [last] if last.lower().endswith(suffix) else []
    tried: dict[str, list[Path]] = {}
    for name in written:
        parts = [part for part in re.split(r"[\\/]", name) if part not in {"", ".", ".."}] or ["-"]
        ended = parts[-1].lower().endswith((*SUFFIXES, suffix))
        owns = [parts[-1], *([parts[-1].rpartition(".")[0]] if ended else [])]
        tried[name] = [
            labels.joinpath(*parts[start:-1], f"{own}{suffix}") for own in owns for start in range(len(parts))
        ]
    # A name without a file is told as it is written, its column left off.
    there = (file for files in tried.values() for file in files if is_file(file))
    return next(there, tried[written[1]][0])


def tell_unlabelled(raw: Raw, folder: Path, labels: Iterable[Path]) -> None:
    """Images of a folder that none of `labels` speaks of are left out, and that is told, once."""
    spoken = {str(sample.path) for sample in raw.samples}
    stems = {file.stem for file in labels}
    left = [path for path in images_below(folder) if str(path) not in spoken and path.stem not in stems]
    if left:
        has = "1 image has" if len(left) == 1 else f"{len(left)} images have"
        raw.problem(folder, f"{has} no label file, left out (the first: {left[0].name})")
