"""The one way in which everything trains: what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acclimate import workflow
from acclimate.adapt import engine
from acclimate.adapt.objective import Objective
from acclimate.run import Run
from acclimate.scenes.sets import generate
from tiny_job import config


def test_a_run_keeps_the_average_and_not_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averages: list[dict[str, torch.Tensor]] = []

    def fit(run: Run, objective: Objective, *arguments: Any, **options: Any) -> None:
        """A training in which the student runs away from its average."""
        averages.append({name: value.clone() for name, value in objective.average.state_dict().items()})
        with torch.no_grad():
            for parameter in objective.detector.parameters():
                parameter.add_(1.0)

    monkeypatch.setattr(engine, "fit", fit)
    generate(tmp_path / "clear-train", 2, (96, 128), 0)
    run = workflow.train(config(tmp_path, tmp_path / "job"), tmp_path / "source")
    kept = load_file(run.path / "model.safetensors")
    assert all(torch.equal(value, averages[0][name]) for name, value in kept.items())
