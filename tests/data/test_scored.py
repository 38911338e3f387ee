"""Scored labels: written, read by COCO's own tools, matched to images, and refused where they are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from acclimate.config import DataConfig, ScheduleConfig
from acclimate.data import formats, scored
from acclimate.data.dataset import Loader, TrainingSets, Views
from acclimate.data.scored import Found, ScoredLabels
from acclimate.errors import AcclimateError
from acclimate.scenes.sets import generate
from acclimate.structures import Detections


def found(*rows: tuple[float, float, float, float, int, float], size: tuple[int, int] = (128, 96)) -> Found:
    table = np.array(sorted(rows, key=lambda row: -row[5]), np.float64).reshape(-1, 6)
    return Found(
        size, Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(np.float32))
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "fog"
    generate(folder, 4, (96, 128), 0)
    return folder


def images(scenes: Path) -> list[Path]:
    return sorted((scenes / "images").iterdir())


def labels_of(scenes: Path) -> ScoredLabels:
    first, second, *_ = images(scenes)
    return ScoredLabels(
        ("car", "person"),
        {first: found((10, 20, 50, 60, 1, 0.9), (0, 0, 30, 30, 0, 0.2)), second: found()},
        {"car": 0.4, "person": 2.0},
        "runs/large",
    )


def test_what_is_written_is_read(scenes: Path, tmp_path: Path) -> None:
    labels = labels_of(scenes)
    scored.write(labels, tmp_path / "labels.json")
    again = scored.read(tmp_path / "labels.json")
    assert (again.classes, again.labeller, dict(again.thresholds)) == (labels.classes, "runs/large", labels.thresholds)
    known = again.of(images(scenes), ("person", "bus"), tmp_path / "labels.json")
    assert list(known) == images(scenes)[:2]
    only = known[images(scenes)[0]].detections
    assert (only.labels.tolist(), only.scores.tolist()) == ([0], pytest.approx([0.9]))
    np.testing.assert_allclose(only.boxes, [[10, 20, 50, 60]])


def test_cocos_own_reader_and_ours_take_it(scenes: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    file = scenes / "labels.json"
    scored.write(labels_of(scenes), file)
    theirs = COCO(str(file))
    assert sorted(round(one["score"], 3) for one in theirs.loadAnns(theirs.getAnnIds())) == [0.2, 0.9]
    elsewhere = tmp_path / "labels.json"
    scored.write(labels_of(scenes), elsewhere)
    for place in (file, elsewhere):
        read = formats.read(DataConfig(path=place))
        assert [len(image.annotations) for image in read.images] == [2, 0]
        assert read.classes == ("car", "person")
        assert not [problem for problem in read.problems if "image" in str(problem)]
    file.unlink()


def test_images_that_have_moved_are_known_by_their_names(scenes: Path, tmp_path: Path) -> None:
    scored.write(labels_of(scenes), tmp_path / "labels.json")
    moved = [tmp_path / "elsewhere" / path.name for path in images(scenes)]
    known = scored.read(tmp_path / "labels.json").of(moved, ("car",), tmp_path / "labels.json")
    assert list(known) == moved[:2]


def test_another_tools_file_is_read(tmp_path: Path) -> None:
    index = {
        "images": [{"id": "a", "file_name": "x.jpg", "width": 10, "height": 20}],
        "categories": [{"id": 7, "name": "car"}],
        "annotations": [
            {"image_id": "a", "category_id": 7, "bbox": [1, 2, 3, 4]},
            {"image_id": "a", "category_id": 7, "bbox": [1, 2, 0, 4], "score": 0.5},
        ],
    }
    (tmp_path / "theirs.json").write_text(json.dumps(index))
    read = scored.read(tmp_path / "theirs.json")
    assert read.thresholds == {}
    (one,) = read.images.values()
    assert (one.size, one.detections.scores.tolist()) == ((10, 20), [1.0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "COCO results alone"),
        ("{}", "not a COCO index with scores"),
        ('{"images": [{"id": 1}], "categories": [], "annotations": []}', "not a COCO index with scores"),
        ("{", "damaged JSON"),
    ],
)
def test_what_is_none_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(AcclimateError, match=said) as told:
        scored.read(tmp_path / "labels.json")
    assert "\n" not in str(told.value)


def test_labels_of_other_images_or_classes_are_one_line(scenes: Path, tmp_path: Path) -> None:
    labels, file = labels_of(scenes), tmp_path / "labels.json"
    with pytest.raises(AcclimateError, match="has none of the target images"):
        labels.of([tmp_path / "other.jpg"], ("car",), file)
    with pytest.raises(AcclimateError, match="its classes are car, person"):
        labels.of(images(scenes), ("ball",), file)


def test_boxes_move_with_the_views_and_keep_their_scores(scenes: Path) -> None:
    """The labelled source image and the same image with the same boxes as found: one geometry for one seed."""
    truth = formats.read(DataConfig(path=scenes))
    known = {}
    for image in truth.images:
        boxes = image.annotations
        scores = np.linspace(0.9, 0.1, len(boxes), dtype=np.float32)
        known[image.path] = Found((image.width, image.height), Detections(boxes.boxes, boxes.labels, scores))
    target = formats.unlabelled(scenes / "images")
    schedule = ScheduleConfig(batch_size=4, workers=0)
    loader = Loader(TrainingSets(truth, target, found=known), Views((64, 96)), schedule, 0)
    plain = Loader(TrainingSets(truth, target), Views((64, 96)), schedule, 0)
    for step in range(3):
        batch = loader.batch(step)[1]
        assert batch is not None
        assert batch.found is not None
        bare = plain.batch(step)[1]
        assert bare is not None
        assert bare.found is None
        # Labels change nothing of what is seen.
        assert bool((batch.strong == bare.strong).all())
        seen = np.concatenate([one.scores for one in batch.found])
        assert len(seen) > 4
        assert set(seen.tolist()) <= {float(s) for one in known.values() for s in one.detections.scores}
        for one in batch.found:
            assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
            assert (one.boxes >= 0).all()
            assert (one.boxes <= np.array([96, 64, 96, 64])).all()
