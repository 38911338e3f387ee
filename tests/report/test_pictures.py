from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.errors import AcclimateError
from acclimate.report import pictures
from acclimate.run import Manifest, Run
from acclimate.structures import Detections


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Manifest(verb="adapt"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.zeros((600, 960, 3), np.uint8)
    pixels[100:300, 200:600] = (10, 20, 240)
    path = tmp_path / "a red block.png"
    cv2.imwrite(str(path), pixels)
    return path


def found(*scores: float) -> Detections:
    boxes = np.tile(np.array([[200, 100, 600, 300]], np.float32), (len(scores), 1))
    return Detections(boxes, np.zeros(len(scores), np.int64), np.array(scores, np.float32))


def test_boxes_stay_on_their_object_when_the_picture_shrinks(run: Run, image: Path) -> None:
    pictures.save(run, [image], [found(0.9)], ["block"])
    album = pictures.load(run)
    assert album is not None
    picture = album.pictures[0]
    assert (picture.width, picture.height) == (480, 300)
    small = cv2.imread(str(run.path / "pictures" / picture.image))
    ys, xs = np.nonzero(small[:, :, 2] > 120)
    inside = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    np.testing.assert_allclose(picture.detections.boxes[0], inside, atol=1.5)
    assert album.classes == ("block",)
    assert picture.source == str(image)


def test_a_small_picture_is_not_enlarged_and_faint_detections_go(run: Run, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.zeros((200, 320, 3), np.uint8))
    pictures.save(run, [small], [found(0.9, 0.04)], ["block"], model="onnx-int8")
    album = pictures.load(run, "onnx-int8")
    assert album is not None
    assert (album.pictures[0].width, album.pictures[0].height) == (320, 200)
    assert album.pictures[0].detections.scores == [pytest.approx(0.9, abs=1e-3)]
    assert pictures.load(run) is None


def test_the_data_uri_is_the_stored_jpeg(run: Run, image: Path) -> None:
    pictures.save(run, [image], [Detections.empty()], ["block"])
    album = pictures.load(run)
    assert album is not None
    uri = pictures.data_uri(run, album.pictures[0])
    assert uri is not None
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (300, 480, 3)


def test_a_picture_outside_the_run_is_not_shown(run: Run, image: Path) -> None:
    pictures.save(run, [image], [found(0.9)], ["block"])
    album = pictures.load(run)
    assert album is not None
    outside = album.pictures[0].model_copy(update={"image": str(image)})
    assert pictures.data_uri(run, outside) is None
    assert pictures.data_uri(run, album.pictures[0].model_copy(update={"image": "gone.jpg"})) is None


def test_bad_input_is_one_line(run: Run, image: Path, tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"gone\.png"):
        pictures.save(run, [tmp_path / "gone.png"], [found(0.9)], ["block"])
    with pytest.raises(ValueError, match="zip"):
        pictures.save(run, [image], [], ["block"])
    pictures.save(run, [image], [found(0.9)], ["block"])
    file = run.path / "pictures" / "eager.json"
    file.write_text(
        file.read_text().replace('"labels": [\n     0\n    ]', '"labels": []').replace('"labels":[0]', '"labels":[]')
    )
    with pytest.raises(AcclimateError, match=r"eager\.json.*differ in number"):
        pictures.load(run)
