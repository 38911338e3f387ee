"""Views of several images: where their pixels and boxes land, by hand."""

from __future__ import annotations

import numpy as np

from acclimate.data import compose
from acclimate.structures import Annotations


def square(x1: float, y1: float, x2: float, y2: float, label: int = 0) -> Annotations:
    outline = (np.float32([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]),)
    return Annotations(np.float32([[x1, y1, x2, y2]]), np.array([label]), np.zeros(1, bool), (outline,))


def filled(value: int, boxes: Annotations, bright: int = 250) -> compose.View:
    """A canvas of one grey with its objects bright."""
    canvas = np.full((40, 60, 3), value, np.uint8)
    for x1, y1, x2, y2 in boxes.boxes.astype(int):
        canvas[y1:y2, x1:x2] = bright
    return canvas, boxes


def test_a_mosaics_boxes_lie_on_their_objects() -> None:
    views = [filled(10 * (i + 1), square(24, 12, 36, 28, label=i)) for i in range(4)]
    canvas, boxes = compose.mosaic(views, (20, 30))
    # Each quadrant has half the canvas's sides, so each image is shrunk to half.
    np.testing.assert_allclose(boxes.boxes, [[12, 6, 18, 14], [42, 6, 48, 14], [12, 26, 18, 34], [42, 26, 48, 34]])
    assert boxes.labels.tolist() == [0, 1, 2, 3]
    assert [canvas[y, x, 0] for y, x in ((2, 2), (2, 57), (37, 2), (37, 57))] == [10, 20, 30, 40]
    for place in ((30, 15), (10, 45)):  # Off the middle, what does not fit is cut and the rest stays on its object.
        canvas, boxes = compose.mosaic(views, place)
        for x1, y1, x2, y2 in boxes.boxes:
            assert canvas[round((y1 + y2) / 2 - 0.5), round((x1 + x2) / 2 - 0.5), 0] > 200
    assert boxes.outlines is not None
    assert len(boxes.outlines) == len(boxes)


def test_mixup_has_the_share_of_both_and_all_boxes() -> None:
    canvas, boxes = compose.mixup(filled(100, square(0, 0, 5, 5)), filled(200, square(50, 30, 60, 40, 1)), 0.75)
    assert canvas[20, 30].tolist() == [125, 125, 125]
    assert boxes.labels.tolist() == [0, 1]


def test_a_pasted_object_covers_what_is_behind_it() -> None:
    onto = filled(50, compose.together([square(10, 10, 30, 30), square(40, 10, 50, 20)]), 120)
    other = filled(90, compose.together([square(20, 5, 55, 35, 1), square(0, 0, 5, 5, 1)]))
    canvas, boxes = compose.copy_paste(onto, other, np.array([True, False]))
    # Half of the first is left, the second one is behind the pasted one altogether, and the other stays where it was.
    assert boxes.labels.tolist() == [0, 1]
    np.testing.assert_allclose(boxes.boxes, [[10, 10, 20, 30], [20, 5, 55, 35]], atol=1)
    assert canvas[20, 12, 0] == 120
    assert canvas[20, 25, 0] == 250
    assert canvas[2, 2, 0] == 50
    same = compose.copy_paste(onto, other, np.zeros(2, bool))
    assert same is onto
