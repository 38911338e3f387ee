"""Tracks: against objects whose way is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import watched
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.edge.tracks import Links
from acclimate.edge.watch import watch
from acclimate.structures import Detections


def found(*boxes: tuple[float, float, int, float]) -> Detections:
    """Boxes of 20 x 20 pixels by their left, top, label and score."""
    made = np.float32([[x, y, x + 20, y + 20] for x, y, _, _ in boxes]).reshape(-1, 4)
    return Detections(made, np.array([box[2] for box in boxes], int), np.float32([box[3] for box in boxes]))


def test_a_moving_object_that_is_missed_for_a_while_keeps_its_number_where_it_is_followed() -> None:
    """Four pixels a frame, unseen for ten: it is 44 from where it was, and its box is 20 wide."""
    for follow, expected in ((True, [0]), (False, [0, 1])):
        links, numbers = Links(patience=15, follow=follow), set()
        for frame in range(30):
            links.step(found() if 10 <= frame < 20 else found((4.0 * frame, 50.0, 0, 0.9)))
            numbers |= set(links.numbers)
        assert sorted(numbers) == expected
        assert links.begun == len(expected)


def test_a_track_ends_after_its_patience() -> None:
    links = Links(patience=3)
    for unseen in (3, 4):
        links.step(found((0.0, 0.0, 0, 0.9)))
        before = links.begun
        for _ in range(unseen):
            links.step(found())
        links.step(found((0.0, 0.0, 0, 0.9)))
        assert links.begun == before + (unseen > 3)


def test_objects_of_other_classes_cross_and_doubtful_boxes_begin_nothing() -> None:
    links = Links(follow=True)
    for frame in range(21):
        x = 5.0 * frame
        # One fades in the middle; what is doubtful and of no track is of none.
        sure = not 8 <= frame < 14
        seen = found((x, 0.0, 0, 0.9 if sure else 0.1), (100 - x, 0.0, 1, 0.8), (300.0, 0.0, 0, 0.1))
        links.step(seen, np.array([sure, True, False]))
        assert links.numbers == [0, 1, -1]
    assert links.begun == 2


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_objects_that_keep_apart_keep_their_numbers(objects: int, seed: int) -> None:
    """In whatever order they are found, each a little beside its way."""
    rng = np.random.default_rng(seed)
    links, speed = Links(follow=True), rng.uniform(-3, 3, objects)
    numbers: list[dict[int, int]] = []
    for frame in range(20):
        order = rng.permutation(objects)
        places = [(200 + speed[one] * frame + rng.uniform(-1, 1), 60.0 * one, 0, 0.9) for one in order]
        links.step(found(*places))
        numbers.append(dict(zip(order.tolist(), links.numbers, strict=True)))
    assert links.begun == objects
    assert all(frame == numbers[0] for frame in numbers)


def test_watch_numbers_its_tracks_over_restarts(tmp_path: Path) -> None:
    artifact = watched.export(tmp_path / "known")
    for folder, frames in (("one", 6), ("two", 4)):
        watched.put_images(tmp_path / folder, [3] * frames)
        for number in range(1, frames):
            shutil.copy(tmp_path / folder / "000003.bmp", tmp_path / folder / f"{number + 3:06}.bmp")
    # Between them one that does not track: it hands on where numbers go on.
    for folder, track in (("one", True), ("one", False), ("two", True)):
        summary = watch(artifact, str(tmp_path / folder / "*.bmp"), tmp_path / "out", page=False, track=track)
    lines = watched.lines(tmp_path / "out")
    untracked, lines = lines[6:12], lines[:6] + lines[12:]
    numbers = [sorted(one["track"] for one in line["detections"]) for line in lines]
    squares = len(numbers[0])
    assert squares >= 2
    assert numbers == [list(range(squares))] * 6 + [list(range(squares, 2 * squares))] * 4
    assert [line["tracks"] for line in lines] == [squares] * 6 + [2 * squares] * 4
    assert summary.tracks == 2 * squares
    assert [line["tracks"] for line in untracked] == [squares] * 6
    assert all("track" not in one for line in untracked for one in line["detections"])
    plain = watch(artifact, str(tmp_path / "one" / "*.bmp"), tmp_path / "plain", page=False)
    assert plain.tracks == 0
    lines = watched.lines(tmp_path / "plain")
    assert all("tracks" not in line and all("track" not in one for one in line["detections"]) for line in lines)
