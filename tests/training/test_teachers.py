"""A teacher that its student outdoes is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import coloured_squares as squares
from acclimate import workflow
from acclimate.training import distil
from tiny_job import config


def half_blind() -> squares.SquareDetector:
    """Finds squares of the first class alone."""
    detector = squares.SquareDetector().eval()
    with torch.no_grad():
        for head in detector.classify:
            head.bias[1] = -30.0
    return detector


def test_a_teacher_that_finds_less_is_told(tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 8)
    whole = squares.SquareDetector().eval()
    told = distil.outdone(half_blind(), whole, scenes)
    assert told is not None
    assert "AP50 50 and 100, on 8 images" in told
    assert distil.outdone(whole, half_blind(), scenes) is None
    assert distil.outdone(whole, whole, scenes) is None


def test_a_source_without_a_box_tells_nothing(tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 2)
    empty = squares.LabelledSet(scenes.name, scenes.format, scenes.classes, (), ())
    assert distil.outdone(half_blind(), squares.SquareDetector().eval(), empty) is None


def test_the_verb_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from acclimate.scenes.sets import generate

    generate(tmp_path / "clear-train", 2, (96, 128), 0)
    run = workflow.train(config(tmp_path, tmp_path / "job"), tmp_path / "large")
    monkeypatch.setattr(distil, "outdone", lambda teacher, student, source: f"is {type(teacher).__name__}")
    with caplog.at_level(logging.WARNING):
        workflow.distil(run.path, "model.backbone=test_efficientnet", tmp_path / "small", ["model.weights=none"])
    assert f"{run.path}: the teacher is DenseDetector" in caplog.text
