"""AP of masks against pycocotools, and masks in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_two_stage import lively, make

from acclimate import workflow
from acclimate.data.formats import LabelledImage, LabelledSet
from acclimate.edge import video
from acclimate.edge.artifact import Running, Tiles
from acclimate.edge.draw import draw
from acclimate.edge.images import read_image
from acclimate.errors import AcclimateError
from acclimate.evaluate import mask_average_precision
from acclimate.export.base import complexity, frozen_copy
from acclimate.models import detector as detectors
from acclimate.models.predict import predict_masks
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations, Detections


def test_mask_ap_is_pycocotools(tmp_path: Path) -> None:
    """Of an untrained branch, on squares that it cannot know, and of the labelled outlines themselves."""
    detector = lively(make(masks=True))
    rng = np.random.default_rng(0)
    images = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (60, 120, 3), np.uint8))
        corner = np.float32([10 + 10 * number, 8])
        square = corner + np.float32([[0, 0], [40, 0], [40, 30], [0, 30]])
        own = Annotations(
            np.float32([[*square[0], *square[2]]]), np.array([number % 2]), np.zeros(1, bool), ((square,),)
        )
        images.append(LabelledImage(path, 60, 120, own))
    truth = LabelledSet("squares", "coco", detector.spec.classes, tuple(images), ())
    found = predict_masks(detector, truth.paths)
    assert all(one is not None and len(one[0]) == len(one[1]) > 0 for one in found)
    perfect = [
        (Detections(own.boxes, own.labels, np.ones(1, np.float32)), [encoded(own.outlines[0], 60, 120)])
        for own in (image.annotations for image in images)
        if own.outlines is not None
    ]
    assert mask_average_precision(perfect, truth) == pytest.approx((1, 1))
    mixed = [perfect[0], *found[1:]]
    ours = mask_average_precision(mixed, truth)
    assert 0 < ours[0] < 1
    theirs = COCO()
    theirs.dataset = {
        "images": [{"id": i, "height": 60, "width": 120} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(truth.classes)],
        "annotations": [
            {
                "id": i + 1, "image_id": i, "category_id": int(image.annotations.labels[0]), "iscrowd": 0,
                "area": 1200.0,
                "segmentation": [image.annotations.outlines[0][0].ravel().tolist()], "bbox": [0, 0, 1, 1],
            }
            for i, image in enumerate(images)
            if image.annotations.outlines is not None
        ],
    }  # fmt: skip
    theirs.createIndex()
    rows = [
        {"image_id": i, "category_id": int(label), "score": float(score), "segmentation": mask}
        for i, one in enumerate(mixed)
        if one is not None
        for label, score, mask in zip(one[0].labels, one[0].scores, one[1], strict=True)
    ]
    evaluation = COCOeval(theirs, theirs.loadRes(rows), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert ours == pytest.approx(tuple(evaluation.stats[:2]), abs=1e-6)
    picture = draw(np.zeros((60, 120, 3), np.uint8), perfect[0][0], truth.classes, [coco_mask.decode(perfect[0][1][0])])
    assert picture[25, 30].any()
    assert not picture[55, 110].any()


def encoded(outline: tuple[np.ndarray, ...], height: int, width: int) -> dict[str, object]:  # type: ignore[type-arg]
    return coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in outline], height, width))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose detector has masks, though nothing was trained."""
    made = Run.create(tmp_path / "run", Manifest(verb="train"))
    detectors.save(lively(make(masks=True)), made.path)
    made.write("config.json", {})
    made.finish("done")
    return made.path


def test_predict_draws_the_masks_of_a_run(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Not of the canvas's shape, so that a border is around the picture.
    picture = tmp_path / "pictures" / "0.png"
    picture.parent.mkdir()
    cv2.imwrite(str(picture), rng.integers(0, 255, (60, 120, 3), np.uint8))
    film = video.Writer(tmp_path / "film.mp4", 5.0, (60, 120))
    with film:
        film.write(rng.integers(0, 255, (60, 120, 3), np.uint8), 0.0)
    found = json.loads(workflow.predict(run, picture.parent, tmp_path / "out", threshold=0.3, masks=True).read_text())
    (expected,) = predict_masks(detectors.load(run), [picture])  # type: ignore[arg-type]
    assert expected is not None
    (image,) = found["images"]
    shown = [one for one, score in zip(expected[1], expected[0].scores, strict=True) if score >= 0.3]
    assert [one["mask"] for one in image["detections"]] == shown
    assert len(shown) > 0
    assert found["artifact"]["runtime"] == "torch"
    for one in image["detections"]:
        pixels = coco_mask.decode(one["mask"])
        assert pixels.shape == (60, 120)
        rows, columns = pixels.nonzero()
        x1, y1, x2, y2 = one["box"]
        inside = (columns >= x1 - 2) & (columns <= x2 + 2) & (rows >= y1 - 2) & (rows <= y2 + 2)
        assert inside.all()
    # Boxes alone are drawn otherwise.
    plain = draw(read_image(picture), expected[0].above(0.3), ("car", "person", "dog"))
    drawn = read_image(tmp_path / "out" / image["picture"])
    assert np.abs(drawn.astype(int) - plain).mean() > 3
    frames = json.loads(workflow.predict(run, tmp_path / "film.mp4", tmp_path / "film", masks=True).read_text())
    assert all("mask" in one for frame in frames["frames"] for one in frame["detections"])


def test_what_has_no_masks_says_so(run: Path, tmp_path: Path) -> None:
    picture, out = tmp_path / "0.png", tmp_path / "out"
    cv2.imwrite(str(picture), np.zeros((60, 120, 3), np.uint8))
    assert complexity(frozen_copy(detectors.load(run))).eager_only == ("masks",)
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "artifact.json").write_text("{}")
    with pytest.raises(AcclimateError, match="an artifact gives no masks; name the run"):
        workflow.predict(tmp_path / "artifact", picture, out, masks=True)
    tiled = Running(tiles=Tiles(size=(32, 32)))
    with pytest.raises(AcclimateError, match="leave out --tiles and --provider"):
        workflow.predict(run, picture, out, masks=True, running=tiled)
    detectors.save(lively(make()), run)
    assert complexity(frozen_copy(detectors.load(run))).eager_only == ()
    with pytest.raises(AcclimateError, match=r"its detector has no masks; train one with model\.two_stage\.masks"):
        workflow.predict(run, picture, out, masks=True)
