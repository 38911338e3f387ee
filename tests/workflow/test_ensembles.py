"""Several runs or views as one detector: by hand, and by what an ensemble of equals must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_job
from acclimate import workflow
from acclimate.cli import main
from acclimate.config import DataConfig, ModelConfig
from acclimate.edge.artifact import Tiles
from acclimate.errors import AcclimateError
from acclimate.models import detector as models
from acclimate.models.predict import predict
from acclimate.run import Manifest, Run
from acclimate.structures import Detections, View
from acclimate.workflow.ensembles import Looks, united

CLASSES = ["car", "truck", "person", "bicycle", "cyclist", "traffic sign"]
"""Those of the generated scenes, and one that they do not have."""


def one(score: float, left: float = 0.0) -> Detections:
    return Detections(np.float32([[left, 0, left + 10, 10]]), np.zeros(1, np.int64), np.float32([score]))


@pytest.fixture(scope="module")
def runs(data: Path) -> list[Path]:
    """Two runs whose detectors differ."""
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = ModelConfig.model_validate(tiny_job.settings(data, data)["model"])
        detector = models.build(models.specify(config, CLASSES))
        with torch.no_grad():
            detector.classify.weight.normal_(std=0.5)  # type: ignore[union-attr]
        run = Run.create(data / f"run{seed}", Manifest(verb="train"))
        models.save(detector, run.path)
        run.write("config.json", tiny_job.config(data, data))
        run.finish("done")
        folders.append(run.path)
    return folders


def test_three_ways_to_unite_by_hand() -> None:
    looks = [one(0.9), one(0.6, 2.5)]
    fused, hard, soft = (united(looks, way) for way in ("wbf", "nms", "soft-nms"))
    assert fused is not None
    assert hard is not None
    assert soft is not None
    np.testing.assert_allclose(fused.boxes, [[1, 0, 11, 10]], rtol=1e-6)
    assert fused.scores.tolist() == pytest.approx([0.75])
    assert hard.scores.tolist() == pytest.approx([0.9])
    # They share 7.5 of 12.5.
    assert soft.scores.tolist() == pytest.approx([0.9, 0.6 * np.exp(-(0.6**2) / 0.5)])
    assert united([one(0.9), None], "wbf") is None


def test_a_mirrored_view_is_the_mirrored_images_own(data: Path, runs: list[Path], tmp_path: Path) -> None:
    import cv2

    detector = models.load(runs[0])
    path = data / "fog-test" / "images"
    file = sorted(path.iterdir())[0]
    image = cv2.imread(str(file))
    cv2.imwrite(str(tmp_path / "mirrored.png"), image[:, ::-1])
    cv2.imwrite(str(tmp_path / "plain.png"), image)
    seen, (plain,) = (
        predict(detector, [tmp_path / "plain.png"], view=View(flip=True)),
        predict(detector, [tmp_path / "mirrored.png"]),
    )
    assert seen[0] is not None
    assert plain is not None
    assert len(plain) > 3
    width = image.shape[1]
    np.testing.assert_allclose(seen[0].boxes[:, 0], width - plain.boxes[:, 2], atol=1e-3)
    np.testing.assert_allclose(seen[0].scores, plain.scores)
    larger = predict(detector, [tmp_path / "plain.png"], view=View(scale=1.5))
    assert larger[0] is not None
    assert larger[0].boxes.max() <= width


def test_the_verb_measures_runs_and_views_together(data: Path, runs: list[Path], tmp_path: Path) -> None:
    first, second = map(str, runs)
    test = ["--data", str(data / "fog-test")]
    options = ["--fuse", "nms", "--view", "flip,1.25", "--json", str(tmp_path / "told.json")]
    assert main(["evaluate", first, second, *test, *options]) == 0
    (result,) = json.loads((tmp_path / "told.json").read_text())["evaluations"]
    assert result["model"] == "nms-2-runs-flip-1.25x"
    assert (runs[0] / "ensembles" / "target_test-nms-2-runs-flip-1.25x.json").is_file()
    # A run with itself is itself, but for what weighted boxes fusion makes of boxes that NMS had left together.
    config = DataConfig(path=data / "fog-test")
    alone = workflow.evaluate(runs[0], config)
    twice = workflow.evaluate_together([runs[0], runs[0]], config, "target_test", "target", Looks(fuse="nms"))
    soft = workflow.evaluate_together(runs[:1], config, "target_test", "target", Looks(suppression="soft-gaussian"))
    assert twice.ap50 == pytest.approx(alone.ap50, abs=0.02)
    assert soft.model == "soft-gaussian"


def test_the_verb_cuts_images_into_tiles(data: Path, runs: list[Path]) -> None:
    test = ["--data", str(data / "fog-test"), "--tiles", "48x64+0.25"]
    assert main(["evaluate", str(runs[0]), *test]) == 0
    stored = json.loads((runs[0] / "ensembles" / "target_test-tiles-48x64-0.25.json").read_text())
    config = DataConfig(path=data / "fog-test")
    larger = workflow.evaluate_together(runs[:1], config, "x", "target", Looks(tiles=Tiles(size=(4000, 4000))))
    alone = workflow.evaluate(runs[0], config)
    assert larger.ap50 == pytest.approx(alone.ap50)
    assert stored["ap50"] != alone.ap50
    assert main(["evaluate", str(runs[0]), *test, "--masks"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("wbf", (), None, "big"), "--tiles big"),
        (("wbg", (), None), "--fuse wbg"),
        (("wbf", ("up",), None), "--view up"),
        (("wbf", (), "hard"), "--suppression hard"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: tuple[Any, ...], said: str) -> None:
    with pytest.raises(AcclimateError, match=said):
        Looks.of(*words)
