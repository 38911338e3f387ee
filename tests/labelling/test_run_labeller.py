"""An acclimate run as a labeller: one look is the detector's own, several are fused in the image's pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acclimate.boxes.fusion import fuse, mirrored
from acclimate.config import ModelConfig
from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.labelling.run import label
from acclimate.models.detector import Detector, build, evaluating, specify
from acclimate.models.predict import predict
from acclimate.scenes.sets import generate
from acclimate.structures import Detections


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes") / "one"
    generate(folder, 3, (96, 150), 0)
    return sorted((folder / "images").iterdir())


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(size="nano", backbone="lcnet_050", image_size=(64, 96), weights="none")
    made = build(specify(config, ("a", "b")))
    with torch.no_grad():
        made.classify.weight.normal_(std=0.5)
        made.classify.bias.fill_(-2)
    return made.eval()


def look(detector: Detector, path: Path, size: tuple[int, int], turned: bool) -> Detections:
    """By hand: the detector on a canvas of this size."""
    canvas, placed = letterbox(read_image(path), size)
    pixels = torch.from_numpy(np.stack([canvas[:, ::-1] if turned else canvas]))
    with evaluating(detector):
        found = detector.decode(detector(pixels.permute(0, 3, 1, 2).float()), size)[0]
    return placed.to_image(mirrored(found, size[1]) if turned else found)


def test_one_look_is_what_the_detector_finds(detector: Detector, paths: list[Path]) -> None:
    found = label(detector, paths)
    for path, expected in zip(paths, predict(detector, paths, batch_size=1), strict=True):
        assert expected is not None
        assert len(expected) > 5
        assert found[path].size == (150, 96)
        np.testing.assert_allclose(found[path].detections.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(found[path].detections.scores, expected.scores, atol=1e-5)


def test_several_looks_are_fused(detector: Detector, paths: list[Path]) -> None:
    found = label(detector, paths[:1], (1.0, 1.5), flip=True)
    looks = [look(detector, paths[0], size, turned) for size in ((64, 96), (96, 160)) for turned in (False, True)]
    # 1.5 times 96 columns are 144, no whole number of 32: the nearest one is 160 or 128.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found[paths[0]].detections.scores, looks[0].scores)
    either = [
        fuse(looks),
        fuse([*looks[:2], *(look(detector, paths[0], (96, 128), turned) for turned in (False, True))]),
    ]
    scores = found[paths[0]].detections.scores
    assert any(len(one) == len(scores) and np.allclose(one.scores, scores, atol=1e-5) for one in either)


def test_what_cannot_be_read_is_reported_and_left_out(detector: Detector, paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    problems: list[str] = []
    found = label(detector, [paths[0], broken], report=problems.append)
    assert list(found) == [paths[0]]
    assert len(problems) == 1
    assert "broken.jpg" in problems[0]


def test_another_size_needs_a_detector_that_takes_one(paths: list[Path]) -> None:
    config = ModelConfig.model_validate(
        {"kind": "ssd", "backbone": "lcnet_050", "image_size": (64, 96), "weights": "none", "ssd": {"extra": 1}}
    )
    with pytest.raises(AcclimateError, match="made for one input size"):
        label(build(specify(config, ("a",))), paths, (1.5,))
