"""What the desk has sent, by its SHA-256, within a bound on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from acclimate.edge.package import Expected, unpack
from acclimate.errors import AcclimateError
from acclimate.run import file_digest, writing

Kind = Literal["packages", "images"]
KINDS: tuple[Kind, ...] = ("packages", "images")
STALE_S = 3600.0
"""A broken upload that nobody went on with is dropped after this time."""
UNPACKING = 3
"""A package is there as it came, unpacked, and packed anew while it is looked through."""


class Store:
    """Files and unpacked packages in a folder of the agent's own.

    `incoming/` holds uploads under way, `packages/` and `images/` only what is whole: it is renamed into place. When
    the bound is reached, broken uploads go first and then what was not used for longest; what is in use stays.
    """

    def __init__(self, folder: Path, bound: int, expected: Expected = "") -> None:
        """Take `folder` over, and drop what an earlier agent left half done.

        Args:
            folder: of the store's own.
            bound: bytes that it may hold.
            expected: what each package must be; those of an earlier agent, which may have asked for less, go.
        """
        self.folder, self.bound, self._expected = folder, bound, expected
        self._incoming = folder / "incoming"
        self._used: Counter[Path] = Counter()
        self._reserved: dict[Path, int] = {}
        with writing(folder):
            shutil.rmtree(self._incoming, ignore_errors=True)
            if expected:
                shutil.rmtree(folder / "packages", ignore_errors=True)
            for name in ("incoming", *KINDS):
                (folder / name).mkdir(parents=True, exist_ok=True)

    def place(self, kind: Kind, digest: str) -> Path:
        """Where the whole thing is or will be: a file, or a package's folder."""
        return self.folder / kind / digest

    def has(self, kind: Kind, digest: str) -> bool:
        return self.place(kind, digest).exists()

    def received(self, kind: Kind, digest: str) -> int:
        """How many bytes of an upload are here."""
        part = self.part(kind, digest)
        return part.stat().st_size if part.is_file() else 0

    def part(self, kind: Kind, digest: str) -> Path:
        """The file that an upload is appended to."""
        return self._incoming / f"{kind}-{digest}.part"

    @contextlib.contextmanager
    def using(self, kind: Kind, digest: str) -> Iterator[Path]:
        """The place of something that must not go meanwhile; it counts as used now."""
        place = self.place(kind, digest)
        self._used[place] += 1
        try:
            with contextlib.suppress(FileNotFoundError):
                os.utime(place)
            yield place
        finally:
            self._used[place] -= 1
            if not self._used[place]:
                del self._used[place]

    def need(self, kind: Kind, size: int) -> int:
        """Bytes of disk that an upload of `size` bytes takes at most, while it is looked through."""
        return size * (UNPACKING if kind == "packages" else 1)

    @contextlib.contextmanager
    def reserve(self, kind: Kind, digest: str, size: int) -> Iterator[Path]:
        """The file to append an upload of `size` bytes in all to; what must go for it is removed.

        Raises:
            AcclimateError: it does not fit beside what is in use.
        """
        part = self.part(kind, digest)
        for path in self._incoming.iterdir():
            if (
                path.suffix == ".part"
                and path not in {part, *self._reserved}
                and path.stat().st_mtime < time.time() - STALE_S
            ):
                self._remove(path)
        excess = self._bytes() - self.received(kind, digest) + self.need(kind, size) - self.bound
        for path in self._oldest_first(part):
            if excess <= 0:
                break
            excess -= _size(path)
            self._remove(path)
        if excess > 0:
            raise AcclimateError(
                f"no room for {size / 1e6:.1f} MB: the agent keeps {self.bound / 1e6:.0f} MB and what is in use stays; "
                "start it with a larger --disk-mb"
            )
        self._reserved[part] = self.need(kind, size)
        try:
            yield part
        finally:
            del self._reserved[part]
            if not _size(part):
                part.unlink(missing_ok=True)

    def reserved(self, kind: Kind, digest: str) -> bool:
        """Whether an upload is under way."""
        return self.part(kind, digest) in self._reserved

    def finish(self, kind: Kind, digest: str) -> None:
        """Look a complete upload through and put it in its place; if it is not right, nothing of it stays.

        Raises:
            AcclimateError: it is not what its digest says, or no package.
        """
        part = self.part(kind, digest)
        what = kind.removesuffix("s")
        try:
            if file_digest(part) != digest:
                raise AcclimateError(f"the {what} did not arrive as it was sent (its SHA-256 differs); send it again")
            ready = part
            if kind == "packages":
                ready = part.with_suffix(".unpacked")
                try:
                    unpack(part, ready, self._expected)
                except AcclimateError as error:
                    said = str(error).replace(str(ready), f"the {what}").replace(str(part), f"the {what}")
                    raise AcclimateError(said) from None
            ready.replace(self.place(kind, digest))
        finally:
            part.unlink(missing_ok=True)
            shutil.rmtree(part.with_suffix(".unpacked"), ignore_errors=True)

    def forget(self, kind: Kind, digest: str) -> None:
        """Drop what has come of an upload."""
        self.part(kind, digest).unlink(missing_ok=True)

    def _bytes(self) -> int:
        """What is here, and what uploads under way may still take."""
        here = sum(_size(path) for name in ("incoming", *KINDS) for path in (self.folder / name).iterdir())
        return here + sum(max(0, size - _size(part)) for part, size in self._reserved.items())

    def _oldest_first(self, own: Path) -> list[Path]:
        parts = [path for path in self._incoming.iterdir() if path.suffix == ".part" and path != own]
        kept = [path for kind in KINDS for path in (self.folder / kind).iterdir() if not self._used[path]]
        return [path for path in parts if path not in self._reserved] + sorted(
            kept, key=lambda one: one.stat().st_mtime
        )

    def _remove(self, path: Path) -> None:
        """Nobody sees half of it go."""
        gone = self._incoming / f"{path.name}.gone"
        path.replace(gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file or of a folder's files; 0 where nothing is, or where it is just being put in its place."""
    try:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except FileNotFoundError:
        return 0
