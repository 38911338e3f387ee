"""A job that takes seconds: generated scenes, a nano detector, a few steps. What it learns is nothing; that it runs is
the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acclimate.config import Config

LOOSE = {"latency_ms": 1e5, "size_mb": 1e3, "max_ap50_drop": 1.0}
"""A budget that any detector keeps."""


def make_data(folder: Path) -> None:
    """folder/{clear,fog}-{train,test}, each with annotations.json and images/."""
    from acclimate.scenes.sets import generate

    parts = [(None, "train", 6), (None, "test", 4), ("fog", "train", 6), ("fog", "test", 4)]
    for seed, (condition, split, count) in enumerate(parts):
        generate(folder / f"{condition or 'clear'}-{split}", count, (96, 128), seed, condition)


def settings(data: Path, out: Path) -> dict[str, Any]:
    """The job's configuration as a TOML file would hold it."""
    schedule = {"steps": 4, "batch_size": 2, "warmup": 1, "checkpoint_every": 2, "log_every": 1, "workers": 0}
    return {
        "out": str(out),
        "source": {"path": str(data / "clear-train")},
        "target": str(data / "fog-train" / "images"),
        "source_test": {"path": str(data / "clear-test")},
        "target_test": {"path": str(data / "fog-test")},
        "oracle": {"path": str(data / "fog-train")},
        "model": {"size": "nano", "backbone": "lcnet_050", "image_size": [64, 96], "weights": "none"},
        "train": schedule,
        "schedule": schedule,
        "export": {"precisions": ["int8"], "calibration_images": 2},
        "budget": dict(LOOSE),
    }


def config(data: Path, out: Path) -> Config:
    return Config.model_validate(settings(data, out))
