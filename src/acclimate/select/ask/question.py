"""The folder that `ask` writes: which frames, why, and with which boxes to start from; and whether someone has been
at work in it. Loads without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from acclimate.errors import AcclimateError
from acclimate.run import listed, read_as

FILE = "ask.json"
NEXT = "next.json"
"""In an adapted run: which frames a person should label next."""
LABELS = frozenset({".txt", ".json", ".xml", ".yaml"})


class AskedBox(BaseModel):
    """A pre-annotation: x1, y1, x2, y2 in pixels of the frame."""

    box: tuple[float, float, float, float]
    label: str
    score: float


class AskedFrame(BaseModel):
    """A frame that a person should label.

    `file` is its name in the folders of the formats, `path` where it was found, and `sha256` what it is.
    """

    file: str
    path: str
    sha256: str
    why: str
    scores: dict[str, float]
    boxes: tuple[AskedBox, ...]


class Asked(BaseModel):
    """What `ask` writes as ask.json."""

    model_config = ConfigDict(extra="ignore")

    run: str
    target: str
    way: str
    seed: int
    digest: str
    classes: tuple[str, ...]
    looked_at: int
    near_duplicates: int
    """Frames that were left out because another, or one that was asked before, shows the same."""
    frames: tuple[AskedFrame, ...]
    written: dict[str, str]
    """Format -> digest of its label files as they were written; another one tells that a person has been there."""


class NextFrame(BaseModel):
    """A frame that would help most now, and why."""

    path: str
    why: str


class Next(BaseModel):
    """What a job asks of its adapted detector, and writes into that run.

    Attributes:
        folder: where they are with boxes to correct.
        frames: the most wanted first.
    """

    folder: str
    frames: tuple[NextFrame, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A folder that `ask` has written, and what is in it."""

    path: Path
    asked: Asked

    def touched(self) -> list[Path]:
        """The formats' folders in which labels are not what they were."""
        return [
            folder
            for format_, before in self.asked.written.items()
            if (folder := self.path / format_).is_dir() and labels_digest(folder) != before
        ]


def read(folder: Path) -> Question:
    """A folder that `ask` has written.

    Raises:
        AcclimateError: it is none, or damaged.
    """
    return Question(folder, read_as(Asked, folder / FILE, "ask again, into another folder"))


def labels_digest(folder: Path) -> str:
    """Of the names and the content of the label files below a folder."""
    state = hashlib.sha256()
    for path in listed(folder, "**/*"):
        if path.suffix.lower() in LABELS and path.is_file():
            state.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()[:16]


def refuse_untouched(path: Path) -> None:
    """Refuse pre-annotations that nobody has looked at: they are what the detector believes already.

    Args:
        path: a labelled set, or its index.

    Raises:
        AcclimateError: it is a folder of `ask`'s, as it was written.
    """
    question = around(path)
    if question is None:
        return
    own = question.path / path.resolve().relative_to(question.path).parts[0]
    if own.name in question.asked.written and own not in question.touched():
        raise AcclimateError(
            f"{path}: holds the detector's own boxes, and nobody has changed one; correct them first, or, where "
            "all of them are right, copy the folder elsewhere"
        )


def around(path: Path) -> Question | None:
    """The folder of `ask`'s that a labelled set lies in; None where it lies elsewhere.

    Raises:
        AcclimateError: it is damaged.
    """
    folder = next((folder for folder in path.resolve().parents if (folder / FILE).is_file()), None)
    return None if folder is None else read(folder)
