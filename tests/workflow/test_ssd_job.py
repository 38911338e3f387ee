"""An SSD through the whole chain: train, adapt with a soft teacher and critics, export, verify, on generated scenes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import acclimate
from acclimate import workflow
from acclimate.config import Budget, Config, DataConfig
from acclimate.edge.images import read_image
from acclimate.run import Run
from tiny_job import LOOSE, make_data, settings


@pytest.mark.slow
@pytest.mark.parametrize("lite", [False, True])
def test_from_training_to_a_verified_artifact(lite: bool, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_data(data)
    values = settings(data, tmp_path / "job")
    values["model"] = {**values["model"], "kind": "ssd", "channels": 16, "ssd": {"lite": lite, "extra": 2}}
    values["adapt"] = {"teacher": {"soft": 1.0}, "adversarial": {"kind": "da-faster", "regions": 8}}
    config = Config.model_validate(values)
    source = workflow.train(config, tmp_path / "source")
    adapted = workflow.adapt(source.path, data / "fog-train" / "images", tmp_path / "adapted")
    logged = Run.open(adapted.path).metrics()[-1]
    for name in ("supervised/class", "teacher/soft_class", "adversarial/instance"):
        assert math.isfinite(logged[name])
        assert logged[name] > 0

    artifact = workflow.export(adapted.path, precision="int8", images=2)
    truth = (DataConfig(path=data / "fog-test"), "target_test", "target")
    assert workflow.verify(artifact, [truth], Budget.model_validate(LOOSE)).passed
    predictor = acclimate.Predictor.load(artifact)
    assert predictor.artifact.manifest.decode.kind == "ssd"
    files = sorted((data / "fog-test" / "images").iterdir())
    assert sum(len(predictor(read_image(file))) for file in files) > 0
