"""Tiles cover a picture, and what is found in them is put together: against counting pixels, and a picture whose
objects are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from acclimate.edge.artifact import Tiles
from acclimate.edge.images import Letterbox
from acclimate.edge.tiles import Piece, tiles_of, together, windows
from acclimate.errors import AcclimateError
from acclimate.structures import Detections

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(480, 640), (500, 333), (101, 1000), (64, 64), (700, 1200)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_picture_and_overlap_as_asked(size: tuple[int, int], overlap: float) -> None:
    tiles = Tiles(size=(128, 160), overlap=overlap, whole=False)
    covered = np.zeros(size, int)
    found = windows(*size, tiles)
    for left, top, right, bottom in found:
        assert (bottom - top, right - left) == (min(128, size[0]), min(160, size[1]))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    for sides, least in ((1, 128), (0, 160)):
        starts = sorted({window[sides] for window in found})
        assert all(after - before <= least * (1 - overlap) + 1 for before, after in itertools.pairwise(starts))
    assert windows(*size, Tiles(size=(128, 160), overlap=overlap))[0] == (0, 0, size[1], size[0])


def pieces_of(size: tuple[int, int], tiles: Tiles) -> list[Piece]:
    canvas = np.zeros((1, 3, 8, 8), np.float32)
    return [Piece(canvas, Letterbox(1.0, *size), window, size) for window in windows(*size, tiles)]


def seen(pieces: list[Piece], boxes: np.ndarray, scale: float) -> list[Detections]:
    """What a perfect detector finds in each piece: what is in it of every box, unless it is less than a third; boxes
    that are small beside the piece are not seen. A cut one may have the highest score."""
    found = []
    for piece in pieces:
        left, top, right, bottom = piece.window
        inside = boxes.copy()
        inside[:, 0::2] = inside[:, 0::2].clip(left, right) - left
        inside[:, 1::2] = inside[:, 1::2].clip(top, bottom) - top
        sides, whole = inside[:, 2:] - inside[:, :2], boxes[:, 2:] - boxes[:, :2]
        part = sides.clip(0).prod(1) / whole.prod(1)
        kept = (part > 1 / 3) & (sides.max(1) > scale * (right - left))
        scores = np.where(part < 0.999, 0.99, 0.8).astype(np.float32)[kept]
        found.append(Detections(inside[kept].astype(np.float32), np.zeros(kept.sum(), np.int64), scores))
    return found


def test_each_object_is_found_once_and_whole() -> None:
    """Small ones in tiles alone, cut at every border; large ones in the whole picture."""
    size, tiles = (480, 640), Tiles(size=(160, 160), overlap=0.25)
    corners = np.array([(x, y) for x in range(20, 600, 60) for y in range(20, 440, 60)], float)
    small = np.concatenate([corners, corners + RNG.uniform(18, 38, corners.shape)], axis=1)
    large = np.array([[60.0, 40, 420, 300], [300, 200, 630, 470]])
    boxes = np.concatenate([small, large]).round(1)
    pieces = pieces_of(size, tiles)
    merged = together(pieces, seen(pieces, boxes, 0.1), 0.5, 1000)
    order = np.lexsort(merged.boxes.T)
    expected = boxes[np.lexsort(boxes.astype(np.float32).T)]
    np.testing.assert_allclose(merged.boxes[order], expected, atol=1e-3)
    assert (np.diff(merged.scores) <= 0).all()
    assert len(together(pieces, seen(pieces, boxes, 0.1), 0.5, 7)) == 7


def test_without_tiles_nothing_changes_and_classes_do_not_mix() -> None:
    (piece,) = pieces_of((100, 100), Tiles(size=(128, 128)))
    found = Detections(np.float32([[0, 0, 10, 10]] * 2), np.array([0, 0]), np.float32([0.9, 0.8]))
    assert together([piece], [found], 0.5, 100) is found
    pieces = pieces_of((100, 200), Tiles(size=(100, 120), whole=False))
    left = Detections(np.float32([[90, 10, 110, 40]]), np.array([0]), np.float32([0.9]))
    right = Detections(np.float32([[10, 10, 30, 40]]), np.array([1]), np.float32([0.8]))
    assert len(together(pieces, [left, right], 0.5, 100)) == 2


def test_what_tiles_are_written_as() -> None:
    assert tiles_of("480x640") == Tiles(size=(480, 640))
    assert tiles_of("480x640+0.3") == Tiles(size=(480, 640), overlap=0.3)
    for wrong in ("480", "480x", "8x8", "480x640+2", "480x640+", "axb"):
        with pytest.raises(AcclimateError, match="--tiles"):
            tiles_of(wrong)
    with pytest.raises(AcclimateError, match="choose larger ones"):
        windows(4000, 4000, Tiles(size=(64, 64)))
