"""A two-stage detector with masks through the whole chain: train, adapt, export, verify, on generated scenes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from acclimate import workflow
from acclimate.config import Budget, Config, DataConfig
from acclimate.models import detector as detectors
from acclimate.models.two_stage import TwoStageDetector
from acclimate.run import Run
from acclimate.structures import Detections
from tiny_job import LOOSE, make_data, settings


def with_polygons(index: Path) -> None:
    """Each box of a COCO index gets the diamond inside it as its polygon."""
    content = json.loads(index.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]
    index.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["sibling", "disentangled"])
def test_from_training_to_a_verified_artifact(head: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_data(data)
    with_polygons(data / "clear-train" / "annotations.json")
    values = settings(data, tmp_path / "job")
    values["model"] = {
        **values["model"],
        "kind": "two-stage",
        "two_stage": {"head": head, "masks": True, "proposals": 16, "hidden": 32},
    }
    config = Config.model_validate(values)
    source = workflow.train(config, tmp_path / "source")
    adapted = workflow.adapt(source.path, data / "fog-train" / "images", tmp_path / "adapted")
    for run in (source, adapted):
        assert Run.open(run.path).done
        logged = [row for row in run.metrics() if "supervised/roi_mask" in row]
        assert logged
        assert all(0 < row["supervised/roi_mask"] < 10 for row in logged)

    artifact = workflow.export(adapted.path, precision="int8", images=2)
    truth = (DataConfig(path=data / "fog-test"), "target_test", "target")
    verified = workflow.verify(artifact, [truth], Budget.model_validate(LOOSE))
    assert verified.passed
    assert set(verified.accuracy) == {"target_test"}

    said = io.StringIO()
    console = Console(file=said, width=200)
    workflow.predict(artifact, data / "fog-test" / "images", tmp_path / "found", console=console)
    assert said.getvalue().count("predict RUN --masks") == 1

    loaded = detectors.load(adapted.path)
    assert isinstance(loaded, TwoStageDetector)
    box = Detections(np.float32([[8, 8, 60, 50]]), np.array([0]), np.float32([0.9]))
    with torch.inference_mode():
        (masks,) = loaded.masks(loaded.features(torch.rand(1, 3, *loaded.spec.image_size) * 255), [box])
    assert masks.shape == (1, 28, 28)
    assert 0 <= masks.min() <= masks.max() <= 1
