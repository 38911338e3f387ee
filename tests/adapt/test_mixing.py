"""Parts of target images in source images: which part, and whose boxes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from acclimate.adapt.mixing import confident_quarter, paste, random_part
from acclimate.structures import Annotations, Detections

SIZE = (60, 80)


def boxes(*rows: tuple[float, float, float, float, int, bool]) -> Annotations:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Annotations(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(bool))


def test_the_quarter_with_the_best_mean_score_is_taken() -> None:
    # The upper left has the single best score, but two bad ones beside it; the lower right is good throughout.
    found = Detections(
        np.array([[0, 0, 10, 10], [50, 40, 70, 55], [10, 10, 20, 20], [20, 5, 30, 15]], np.float32),
        np.zeros(4, np.int64),
        np.array([0.95, 0.8, 0.2, 0.1], np.float32),
    )
    assert confident_quarter(found, SIZE) == (40, 30, 80, 60)
    assert confident_quarter(found[np.array([0, 2])], SIZE) == (0, 0, 40, 30)
    assert confident_quarter(Detections.empty(), SIZE) == (0, 0, 40, 30)


@given(st.integers(0, 9999))
def test_a_random_part_is_a_tenth_to_a_half_of_the_image(seed: int) -> None:
    left, top, right, low = random_part(SIZE, torch.Generator().manual_seed(seed))
    assert 0 <= left < right <= 80
    assert 0 <= top < low <= 60
    assert 0.09 < (right - left) * (low - top) / (60 * 80) < 0.52


def test_pixels_and_boxes_of_both_domains() -> None:
    source, target = torch.zeros(1, 3, *SIZE), torch.ones(1, 3, *SIZE)
    labels = boxes(
        (2, 2, 12, 12, 0, False),  # outside of the part
        (44, 34, 60, 50, 1, False),  # covered
        (20, 35, 60, 45, 2, False),  # its right half is covered over its whole height: it ends at 40
        (38, 10, 60, 50, 3, False),  # its lower right is covered, and no box says what is left
        (36, 30, 78, 50, 4, False),  # a strip of a tenth is left
        (0, 0, 42, 32, 5, False),  # a corner of next to nothing is covered
    )
    found = boxes((50, 40, 70, 55, 6, False), (30, 40, 60, 50, 7, True), (0, 0, 20, 20, 8, False))
    mixed, (made,) = paste(source, [labels], target, [found], [(40, 30, 80, 60)])
    assert mixed[0, :, 30:, 40:].min() == 1
    assert mixed.sum() == 3 * 30 * 40
    assert source.sum() == 0
    rows = {
        int(label): (box.tolist(), bool(ignore))
        for box, label, ignore in zip(made.boxes, made.labels, made.ignore, strict=True)
    }
    assert rows == {
        0: ([2, 2, 12, 12], False),
        2: ([20, 35, 40, 45], False),
        3: ([38, 10, 60, 50], True),
        5: ([0, 0, 42, 32], False),
        6: ([50, 40, 70, 55], False),
        7: ([40, 40, 60, 50], True),
    }


def test_images_without_boxes_are_mixed_too() -> None:
    images = torch.rand(2, 3, *SIZE)
    nothing = [Annotations.empty()] * 2
    mixed, made = paste(images, nothing, 1 - images, nothing, [(0, 0, 40, 30), (0, 0, 80, 60)])
    assert [len(one) for one in made] == [0, 0]
    torch.testing.assert_close(mixed[1], 1 - images[1])
