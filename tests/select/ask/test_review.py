"""What became of drawn boxes, told by a person's set, and the order in which to look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_ask import found, seen

from acclimate.data.formats import LabelledImage
from acclimate.run import file_digest
from acclimate.select.ask.question import Asked, AskedBox, AskedFrame
from acclimate.select.ask.review import by_doubt, corrections, ordered
from acclimate.structures import Annotations, Detections

DRAWN = ((0, 0, 40, 40), (100, 0, 140, 40), (200, 0, 240, 40), (300, 0, 340, 40), (302, 2, 342, 42))
"""The last two lie on each other: each is its own twin's."""


def asked(file: Path, *boxes: tuple[float, float, float, float]) -> Asked:
    drawn = tuple(AskedBox(box=box, label="car", score=0.5) for box in boxes)
    frame = AskedFrame(
        file=file.name, path=str(file), sha256=file_digest(file), why="", scores={}, boxes=drawn
    )  # fmt: skip
    return Asked(
        run="run", target="target", way="random", seed=0, digest="", classes=("car", "person"), looked_at=1,
        near_duplicates=0, frames=(frame,), written={},
    )  # fmt: skip


def back(file: Path, *rows: tuple[tuple[float, float, float, float], int]) -> LabelledImage:
    boxes = np.float32([box for box, _ in rows]).reshape(-1, 4)
    labels = np.array([label for _, label in rows], np.int64)
    return LabelledImage(file, 100, 400, Annotations(boxes, labels, np.zeros(len(rows), bool)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "frame.jpg"
    made.write_bytes(b"what a frame is known by")
    return made


def told(question: Asked, *images: LabelledImage) -> dict[str, int]:
    return {name: count for name, count in corrections(question, images).model_dump().items() if count}


def test_each_box_is_kept_moved_renamed_removed_or_added(file: Path) -> None:
    question = asked(file, *DRAWN)
    rounded = (0.4, 0, 40, 40.6)
    moved = (110, 0, 150, 40)
    came = back(file, (rounded, 0), (moved, 0), (DRAWN[2], 1), (DRAWN[4], 0), ((0, 60, 20, 80), 1))
    # Of the two on each other the first was removed: the other is its twin's, not moved from it.
    assert told(question, came) == {"frames": 1, "kept": 2, "moved": 1, "renamed": 1, "removed": 1, "added": 1}


def test_nothing_and_everything(file: Path) -> None:
    assert told(asked(file, *DRAWN), back(file, *((box, 0) for box in DRAWN))) == {"frames": 1, "kept": 5}
    assert told(asked(file, *DRAWN), back(file)) == {"frames": 1, "removed": 5}
    assert told(asked(file), back(file, (DRAWN[0], 0))) == {"frames": 1, "added": 1}
    assert told(asked(file)) == {}


def test_a_frame_that_was_written_anew_is_known_by_its_name_and_others_are_left_out(file: Path) -> None:
    anew, other = file.with_name("0a1b-frame.jpg"), file.with_name("other.jpg")
    for path in (anew, other):
        path.write_bytes(path.name.encode())
    assert told(asked(file, DRAWN[0]), back(anew, (DRAWN[0], 0)), back(other)) == {"frames": 1, "kept": 1}


def test_doubt_comes_first() -> None:
    boxes = by_doubt(found((0, 0, 0.95), (50, 0, 0.7), (100, 0, 0.45), (150, 0, 0.1)))
    assert boxes.scores.tolist() == pytest.approx([0.45, 0.7, 0.1, 0.95])
    frames = seen([found((0, 0, 0.98)), found((0, 0, 0.5), (50, 1, 0.6)), Detections.empty(), found((0, 0, 0.06))])
    choices = ordered(frames, 0.25)
    assert [choice.index for choice in choices] == [1, 0, 2, 3]
    assert choices[0].why == "2 of its 2 boxes are doubtful"
    assert choices[0].scores["doubt"] == pytest.approx(1 + -(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4)), rel=1e-5)
