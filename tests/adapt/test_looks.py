"""A second look with more pixels, mirrored, or both, lands where the first one does."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from acclimate.adapt.looks import check, fused, large_size, look_again, predict_twice
from acclimate.errors import AcclimateError
from acclimate.models.detector import DetectorSpec, build
from acclimate.structures import Detections
from coloured_squares import CANVAS, SPEC, SquareDetector, scene


class AnySize(SquareDetector):
    any_size = True


def tensor(*images: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def places(found: Detections) -> list[tuple[float, ...]]:
    shown = found.above(0.5)
    return sorted((*box.round(1).tolist(), int(label)) for box, label in zip(shown.boxes, shown.labels, strict=True))


@pytest.fixture(scope="module")
def detector() -> SquareDetector:
    return AnySize(SPEC).eval()


def test_a_mirrored_look_finds_the_same_boxes(detector: SquareDetector) -> None:
    pictures = [scene(seed)[0] for seed in (1, 2)]
    first = detector.decode(detector(tensor(*pictures)))
    second = look_again(detector, tensor(*pictures), CANVAS, flip=True)
    assert [places(one) for one in first] == [places(one) for one in second]
    assert [places(one) for one in fused(first, second)] == [places(one) for one in first]
    assert len(places(first[0])) == 4


def test_a_larger_look_is_put_on_the_canvas(detector: SquareDetector) -> None:
    # Squares of one cell on a canvas of one and a half times the size are two thirds of a cell on the canvas itself.
    large = np.full((144, 192, 3), 120, np.uint8)
    large[32:48, 64:80] = (255, 0, 0)
    (found,) = look_again(detector, tensor(large), CANVAS, flip=False)
    assert places(found) == [pytest.approx((64 / 1.5, 32 / 1.5, 80 / 1.5, 32, 0), abs=0.1)]
    (found,) = look_again(detector, tensor(large), CANVAS, flip=True)
    assert places(found) == [pytest.approx((64 / 1.5, 32 / 1.5, 80 / 1.5, 32, 0), abs=0.1)]


def test_a_size_that_is_no_multiple_of_the_stride_is_filled_up() -> None:
    torch.manual_seed(0)
    dense = build(
        DetectorSpec(
            classes=("a",), image_size=(64, 64), backbone="test_efficientnet", strides=(8, 16), channels=16, depth=0
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        dense.classify.bias.fill_(0.0)
    assert large_size((64, 64), 1.3) == (83, 83)
    for flip in (False, True):
        (found,) = look_again(dense, 255 * torch.rand(1, 3, 83, 83), (64, 64), flip)
        assert len(found)
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= 64


def test_files_are_looked_at_twice(detector: SquareDetector, tmp_path: Path) -> None:
    image, truth = scene(5, scale=2)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    found = predict_twice(detector, [tmp_path / "a.png"], 1.0, flip=True)
    wanted = sorted((*box.tolist(), int(label)) for box, label in zip(truth.boxes, truth.labels, strict=True))
    assert places(found[tmp_path / "a.png"]) == wanted


def test_boxes_that_are_made_for_one_size_are_refused() -> None:
    check(AnySize(SPEC), 1.5)
    check(SquareDetector(SPEC), 1.0)
    with pytest.raises(AcclimateError, match=r"teacher\.scale.*one input size"):
        check(SquareDetector(SPEC), 1.5)
