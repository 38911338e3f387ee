"""What is said against a calibration: too few images, images of nothing, of another domain, and other detections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import coloured_squares as squares
from acclimate.edge.artifact import Artifact, Calibration
from acclimate.export import exporter
from acclimate.export.base import describe_calibration, shows_nothing
from acclimate.select import calibration as calibrations
from acclimate.select.calibration import judge

Draw = Callable[[int], np.ndarray]


def black(number: int) -> np.ndarray:
    return np.zeros((*squares.CANVAS, 3), np.uint8)


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*squares.CANVAS, 3), dtype=np.uint8)


def bright(number: int) -> np.ndarray:
    return (squares.scene(number)[0].astype(np.float32) * 0.2 + 200).astype(np.uint8)


def scene(number: int) -> np.ndarray:
    return squares.scene(number)[0]


def write(folder: Path, count: int, draw: Draw) -> list[Path]:
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03}.png"), draw(number)[..., ::-1])
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("artifact")
    paths = write(folder / "images", 16, scene)
    return exporter("onnx").export(squares.SquareDetector(), folder / "a", "int8", paths)


@pytest.mark.parametrize(
    ("draw", "nothing"),
    [
        (black, True),
        (noise, True),
        (lambda number: np.full((40, 60, 3), number, np.uint8), True),
        (lambda number: np.random.default_rng(number).integers(0, 256, (600, 800, 3), dtype=np.uint8), True),
        (scene, False),
        (bright, False),
        (lambda number: (scene(number) * 0.2 + noise(number) * 0.05).astype(np.uint8), False),
    ],
)
def test_an_image_of_nothing_is_told_from_one_that_is_dark_or_grainy(draw: Draw, nothing: bool) -> None:
    assert [shows_nothing(draw(number)) for number in range(5)] == [nothing] * 5


def test_the_digest_is_of_the_contents_alone(tmp_path: Path) -> None:
    paths = write(tmp_path / "a", 3, scene)
    before = describe_calibration(paths, [scene(n) for n in range(3)])
    elsewhere = write(tmp_path / "b", 3, scene)
    assert describe_calibration(elsewhere, []).digest == before.digest
    # Another picture of the same name and size.
    data = bytearray(paths[1].read_bytes())
    data[-20] ^= 1
    paths[1].write_bytes(bytes(data))
    assert describe_calibration(paths, []).digest != before.digest
    assert (before.images, before.empty) == (3, 0)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"images": 16}, []),
        ({"images": 15}, ["calibrated on 15 images; give 16 or more"]),
        ({"images": 1, "empty": 1}, ["calibrated on 1 images", "1 of 1 calibration images show nothing"]),
        ({"images": 32, "empty": 16, "foreign": 16}, []),
        ({"images": 32, "empty": 17, "foreign": 32}, ["17 of 32 calibration images show nothing"]),
        ({"images": 32, "foreign": 17}, ["17 of 32 calibration images look unlike the domain"]),
        ({"images": 32, "foreign": 0, "agreement": 0.85, "compared": 16}, []),
        ({"images": 32, "agreement": 0.849, "compared": 16}, ["agree with those of fp32 to 0.85 only, on 16 images"]),
    ],
)
def test_what_speaks_against_it(known: dict[str, float], said: list[str]) -> None:
    found = Calibration.model_validate({"digest": "", "source": "", **known}).doubts()
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_images_of_another_domain_are_counted(artifact: Artifact, tmp_path: Path) -> None:
    detector = squares.SquareDetector().eval()
    domain = write(tmp_path / "domain", 20, scene)
    other = write(tmp_path / "other", 16, bright)
    like = write(tmp_path / "like", 16, lambda number: scene(number + 100))
    found = [judge(artifact, detector, paths, domain, 0) for paths in (domain[:16], like, other)]
    assert [one is not None and one.foreign for one in found][::2] == [0, 16]
    assert found[1] is not None
    assert found[1].foreign is not None
    assert found[1].foreign <= 4
    assert all(one is not None and one.agreement is not None and one.agreement > 0.9 for one in found)
    nobody = judge(artifact, detector, other, (), 0)
    assert nobody is not None
    assert nobody.foreign is None, "there is nothing to compare with"


def test_a_network_that_finds_something_else_is_told(artifact: Artifact, tmp_path: Path) -> None:
    """It was quantised from another detector, as one calibrated on nothing might as well have been."""
    domain = write(tmp_path / "domain", 20, scene)
    detector = squares.SquareDetector().eval()
    for head in detector.classify:
        head.weight.data = head.weight.data.flip(0)
        head.bias.data = head.bias.data.flip(0)
    found = judge(artifact, detector, domain[:16], domain, 0)
    assert found is not None
    assert found.agreement is not None
    assert found.agreement < 0.5
    assert found.compared <= calibrations.IMAGES
    assert any("agree with those of fp32" in line for line in found.doubts())


def test_a_detector_that_shows_nothing_cannot_be_compared(artifact: Artifact, tmp_path: Path) -> None:
    paths = write(tmp_path / "dark", 16, black)
    found = judge(artifact, squares.SquareDetector().eval(), paths, (), 0)
    assert found is not None
    assert (found.agreement, found.compared) == (None, 0)


def test_what_was_seen_of_the_calibration_changes_no_digest(artifact: Artifact) -> None:
    calibration = artifact.manifest.calibration
    assert calibration is not None
    seen = calibration.model_copy(update={"foreign": 3, "agreement": 0.5, "compared": 4, "empty": 2})
    other = Artifact(artifact.folder, artifact.manifest.model_copy(update={"calibration": seen}))
    assert other.digest == artifact.digest
    moved = artifact.manifest.model_copy(update={"calibration": calibration.model_copy(update={"digest": "x"})})
    assert Artifact(artifact.folder, moved).digest != artifact.digest
