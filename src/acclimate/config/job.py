"""A whole job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from acclimate.config.adapt import AdaptConfig
from acclimate.config.data import AugmentConfig, DataConfig, ScenesConfig
from acclimate.config.delivery import Budget, ExportConfig
from acclimate.config.model import ModelConfig
from acclimate.config.options import Options
from acclimate.config.reading import merge, parse, read
from acclimate.config.schedule import ScheduleConfig


class AskConfig(Options):
    """Frames of the target that `run` asks a person to label (`select/ask`)."""

    frames: int = Field(default=16, ge=1)
    """How many, at most."""
    way: str | None = None
    """How they are chosen; by default as `acclimate ask` does."""


class Config(Options):
    """A whole job. `source` is needed to train; `target` (images only) to adapt; the `*_test` sets to verify.

    `oracle` is a labelled set of the target domain: it trains the oracle baseline, and nothing else ever reads it.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of everything random."""
    out: Path = Path("runs")
    """Folder that `run` writes; the other verbs take `--out`."""
    scenes: ScenesConfig | None = None
    """Generates the data sets; see `[scenes]`. A set that is named as well is not replaced."""
    source: DataConfig | None = None
    """Labelled images to train on; see `[source]`."""
    target: Path | None = None
    """Unlabelled target images: a folder, or a `.txt` list with one path a line."""
    source_test: DataConfig | None = None
    """Labelled source images to measure on, a table like `[source]`."""
    target_test: DataConfig | None = None
    """Labelled target images to measure on, likewise; nothing is chosen by them."""
    oracle: DataConfig | None = None
    """Labelled target images, likewise; they train the oracle for comparison, and nothing else reads them."""
    labelled: DataConfig | None = None
    """A few images of the target that a person has labelled; the adaptation learns from them."""
    ask: AskConfig | None = None
    """Ask for them: `run` waits until they are labelled."""
    model: ModelConfig = ModelConfig()
    """See `[model]`."""
    augment: AugmentConfig = AugmentConfig()
    """See `[augment]`."""
    train: ScheduleConfig = ScheduleConfig()
    """Schedule of the source training; see `[train]` and `[schedule]`."""
    adapt: AdaptConfig = AdaptConfig()
    """See `[adapt]`."""
    schedule: ScheduleConfig = ScheduleConfig(steps=1000, lr=5e-4, warmup=50)
    """The schedule of the adaptation; `train` is the schedule of the source training."""
    export: ExportConfig = ExportConfig()
    """See `[export]`."""
    budget: Budget | None = None
    """See `[budget]`; without it the accuracy tolerance alone must hold."""

    @model_validator(mode="before")
    @classmethod
    def _adapt_schedule_inherits(cls, values: Any) -> Any:
        """The adaptation's schedule starts from `train`'s loader settings, so that one place sets them."""
        if not isinstance(values, dict):
            return values
        train, given = values.get("train"), values.get("schedule")
        if isinstance(train, ScheduleConfig):
            train = train.model_dump(exclude_unset=True)
        if given is not None and not isinstance(given, dict):
            return values
        inherited = {
            key: value
            for key, value in (train if isinstance(train, dict) else {}).items()
            if key in {"batch_size", "precision", "workers", "cache_mb"}
        }
        default: dict[str, Any] = {"steps": 1000, "lr": 5e-4, "warmup": 50}
        if quantises(values):
            # Short, and with small steps: the detector is trained already. It keeps its last weights.
            default = {"steps": 200, "lr": 5e-5, "warmup": 20, "ema": 0.98}
            default["checkpoint_every"] = (given or {}).get("steps", default["steps"])
        return {**values, "schedule": {**default, **inherited, **(given or {})}}


def quantises(values: Mapping[str, Any]) -> bool:
    """Whether a configuration, not looked at yet, asks for `adapt.quantisation`."""
    adapt = values.get("adapt")
    asked = adapt.get("quantisation") if isinstance(adapt, Mapping) else getattr(adapt, "quantisation", None)
    return asked is not None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or the config.json of a run, and apply `key=value` overrides (dotted keys, TOML values; a bare
    word is a string).

    Relative paths in the file are relative to the working directory, as on the command line.

    Raises:
        AcclimateError: the file is missing or not TOML, a key is unknown, or a value does not fit.
    """
    return parse(Config, merge(read(path), overrides), where=str(path))
