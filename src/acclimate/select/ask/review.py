"""What a person made of the boxes that were drawn for them, and which of these to look at first.

Correcting a box is cheaper than drawing one. How many had to be corrected also says how far the detector can be
believed on frames that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from acclimate.boxes import match
from acclimate.data.formats import LabelledImage
from acclimate.run import file_digest
from acclimate.select.ask.question import Asked, AskedFrame
from acclimate.select.ask.seen import Choice, Seen
from acclimate.select.ask.uncertainty import bits
from acclimate.structures import Detections

LEAST = 0.5
"""IoU from which a box that came back is one that was drawn."""
AS_IT_WAS = 1.0
"""A box whose sides have all moved by no more pixels was kept: formats round."""
UNSURE = 0.5
"""Bits of doubt from which a box is counted as doubtful: scores from 0.11 to 0.89."""


class Corrections(BaseModel):
    """How many of the boxes of the frames that came back were kept, moved, renamed (another class), removed; and how
    many were added."""

    frames: int = 0
    kept: int = 0
    moved: int = 0
    renamed: int = 0
    added: int = 0
    removed: int = 0


def corrections(asked: Asked, images: Sequence[LabelledImage]) -> Corrections:
    """Compare what came back with what was drawn, frame by frame, by the best one-to-one matching of boxes.

    Args:
        asked: with its pre-annotations.
        images: as they came back, with labels into the classes of `asked`; those that were not asked are left out. They
            are known by content, or, as a tool may write pictures anew, by the end of their names.
    """
    by_content = {frame.sha256: frame for frame in asked.frames}
    total = Corrections()
    for image in images:
        named = (frame for frame in asked.frames if image.path.name.endswith(frame.file))
        frame = by_content.get(file_digest(image.path)) or next(named, None)
        if frame is not None:
            one = _of_frame(frame, image, asked.classes)
            total = Corrections(**{key: value + getattr(one, key) for key, value in total.model_dump().items()})
    return total


def _of_frame(frame: AskedFrame, image: LabelledImage, classes: Sequence[str]) -> Corrections:
    drawn = Detections(
        np.array([one.box for one in frame.boxes], np.float32).reshape(-1, 4),
        np.array([classes.index(one.label) if one.label in classes else -1 for one in frame.boxes], np.int64),
        np.array([one.score for one in frame.boxes], np.float32),
    )
    counted = ~image.annotations.ignore
    boxes, labels = image.annotations.boxes[counted], image.annotations.labels[counted]
    back = Detections(boxes, labels, np.ones(len(boxes), np.float32))
    rows, columns = _pairs(drawn, back)
    apart = np.abs(drawn.boxes[rows] - back.boxes[columns]).max(axis=1, initial=0.0)
    kept = int((apart <= AS_IT_WAS).sum())
    left, new = np.delete(np.arange(len(drawn)), rows), np.delete(np.arange(len(back)), columns)
    renamed = len(_pairs(_of_one_class(drawn[left]), _of_one_class(back[new]))[0])
    return Corrections(
        frames=1,
        kept=kept,
        moved=len(rows) - kept,
        renamed=renamed,
        added=len(new) - renamed,
        removed=len(left) - renamed,
    )


def _pairs(drawn: Detections, back: Detections) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    overlap, rows, columns = match.best(drawn, back)
    near = overlap >= LEAST
    return rows[near], columns[near]


def _of_one_class(found: Detections) -> Detections:
    return Detections(found.boxes, np.zeros_like(found.labels), found.scores)


def by_doubt(found: Detections) -> Detections:
    """The boxes of a frame, the most doubtful first: those whose score is nearest to one half."""
    return found[np.argsort(-bits(found.scores), kind="stable")]


def ordered(seen: Seen, threshold: float) -> list[Choice]:
    """Every frame, the one with the most doubt in its boxes first.

    Args:
        seen: the frames.
        threshold: score from which a box is drawn.
    """
    drawn = [bits(found.above(threshold).scores) for found in seen.plain]
    doubts = np.array([float(one.sum()) for one in drawn])
    return [
        Choice(
            int(index),
            f"{int((drawn[index] >= UNSURE).sum())} of its {len(drawn[index])} boxes are doubtful",
            {"doubt": float(doubts[index])},
        )
        for index in np.argsort(-doubts, kind="stable")
    ]
