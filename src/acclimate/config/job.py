"""A whole job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from acclimate.config.adapt import AdaptConfig, finishing
from acclimate.config.data import AugmentConfig, DataConfig, ScenesConfig
from acclimate.config.delivery import Budget, ExportConfig
from acclimate.config.methods.labels import LabelsConfig
from acclimate.config.model import ModelConfig
from acclimate.config.options import Added, Options
from acclimate.config.reading import merge, parse, read
from acclimate.config.schedule import ScheduleConfig

ADAPTATION: dict[str, Any] = {"steps": 1000, "lr": 5e-4, "warmup": 50}
"""What the schedule of an adaptation has other defaults for than that of a training."""


class AskConfig(Options):
    """Frames of the target that `run` asks a person to label (`select/ask`)."""

    frames: int = Field(default=16, ge=1)
    """How many frames, at most."""
    way: str | None = None
    """How they are chosen; by default as `acclimate ask` does."""


class LabellerConfig(Options):
    """A larger detector that `run` trains on the source and asks to label the target, in the mean teacher's place."""

    backbone: str = "tf_efficientnet_lite2"
    """Its backbone; all else is as in `[model]`."""
    scale: float = Field(default=1.5, ge=1, le=4)
    """Sides of its input, in those of the detector's, rounded to whole strides."""
    flip: bool = True
    """Whether it looks at each image mirrored too."""
    agreement: bool = False
    """Whether a target must be what the mean teacher shows too, as `adapt.labels.agreement`."""


class RangeConfig(Options):
    """What `tune` may set an option to: from `low` to `high`, or one of `choices`."""

    low: float | None = None
    """Least value."""
    high: float | None = None
    """Greatest value."""
    log: bool = False
    """Draw it by its logarithm, as learning rates are."""
    choices: tuple[float | int | str | bool, ...] | None = Field(default=None, min_length=2)
    """Instead of a range."""

    @model_validator(mode="after")
    def _one_of_both(self) -> RangeConfig:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("give low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and not (self.low or 0) > 0:
            raise ValueError("log needs a low above 0")
        return self


class TuneConfig(Options):
    """Options that `tune` searches, scored without labels."""

    trials: int = Field(default=20, ge=1)
    """How many adaptations are tried."""
    ranges: dict[str, RangeConfig] = Field(min_length=1)
    """Dotted options of `adapt`, `schedule` or `augment`, each with what it may be: a table of `tune.ranges`."""

    @field_validator("ranges")
    @classmethod
    def _of_the_adaptation(cls, ranges: dict[str, RangeConfig]) -> dict[str, RangeConfig]:
        for name in ranges:
            if name.partition(".")[0] not in {"adapt", "schedule", "augment"} or "." not in name:
                raise ValueError(f"{name}: tune searches options of adapt, schedule or augment; the source run stays")
        return ranges


class Config(Options):
    """A whole job. `source` is needed to train; `target` (images only) to adapt; the `*_test` sets to verify.

    `oracle` is a labelled set of the target domain: it trains the oracle baseline, and nothing else ever reads it.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    out: Path = Path("runs")
    """Folder that `run` writes; the other verbs take `--out`."""
    scenes: ScenesConfig | None = None
    """Generates the data sets. A set that is named as well is not replaced."""
    source: DataConfig | None = None
    """Labelled images to train on."""
    target: Path | None = None
    """Unlabelled target images: a folder, or a `.txt` list with one path a line."""
    source_test: DataConfig | None = None
    """Labelled source images to measure on."""
    target_test: DataConfig | None = None
    """Labelled target images to measure on; nothing is chosen by them."""
    oracle: DataConfig | None = None
    """Labelled target images that train the oracle for comparison; nothing else reads them."""
    labelled: DataConfig | None = None
    """A few images of the target that a person has labelled; the adaptation learns from them."""
    ask: AskConfig | None = None
    """Frames of the target that `run` asks a person to label; it waits until they are."""
    model: ModelConfig = ModelConfig()
    """What is built."""
    augment: AugmentConfig = AugmentConfig()
    """Random views of the training images."""
    train: ScheduleConfig = ScheduleConfig()
    """Schedule of the source training."""
    adapt: AdaptConfig = AdaptConfig()
    """The method of the adaptation."""
    schedule: ScheduleConfig = ScheduleConfig(**ADAPTATION)
    """Schedule of the adaptation."""
    export: ExportConfig = ExportConfig()
    """Which artifacts are made."""
    budget: Budget | None = None
    """What the device allows; without it the accuracy tolerance alone must hold."""
    labeller: Annotated[LabellerConfig | None, Added(None)] = None
    """A larger detector to learn the target from; no verb but `run` reads it."""
    tune: Annotated[TuneConfig | None, Added(None)] = None
    """Options that `acclimate tune` searches; no other verb reads it."""

    def of_labeller(self) -> Config:
        """The training of the labeller, which is the detector's with another backbone and a larger input.

        Raises:
            AcclimateError: such a detector cannot be.
        """
        assert self.labeller is not None
        stride = max((32, *(self.model.strides or ())))
        sides = tuple(stride * round(self.labeller.scale * side / stride) for side in self.model.image_size)
        own: dict[str, Any] = {"backbone": self.labeller.backbone, "image_size": sides, "start": None}
        if isinstance(self.model.weights, Path):
            own["weights"] = "auto"
        if self.model.kind in ("slimmable", "supernet", "zoom"):
            own["kind"] = "dense"
        model = parse(ModelConfig, {**self.model.model_dump(exclude_unset=True), **own}, where="labeller")
        return self.model_copy(update={"model": model})

    def taught(self, labels: Path) -> Config:
        """This job with the labels of its labeller in the mean teacher's place."""
        assert self.labeller is not None
        term = LabelsConfig(file=labels, agreement=self.labeller.agreement)
        return self.model_copy(update={"adapt": self.adapt.model_copy(update={"teacher": None, "labels": term})})

    def source_only(self) -> Config:
        """This job without anything of the target: the source trained on for the same schedule, with the same views.

        It is the baseline that an adaptation must beat: what needs no target image, both have. A bank is trained on as
        one.
        """
        alone = {"adapt": self.adapt.without_target(), "augment": self.augment.without_target(), "labelled": None}
        return self.model_copy(update=alone)

    @model_validator(mode="before")
    @classmethod
    def _adapt_schedule_inherits(cls, values: Any) -> Any:
        """The adaptation's schedule starts from `train`'s loader settings, so that one place sets them."""
        if not isinstance(values, Mapping):
            return values
        train, given, adapt = values.get("train"), values.get("schedule"), values.get("adapt")
        if isinstance(train, ScheduleConfig):
            train = train.model_dump(exclude_unset=True)
        if given is not None and not isinstance(given, Mapping):
            return values
        inherited = {
            key: value
            for key, value in (train if isinstance(train, Mapping) else {}).items()
            if key in {"batch_size", "precision", "workers", "cache_mb"}
        }
        default = dict(ADAPTATION)
        for options in finishing(adapt.methods if isinstance(adapt, AdaptConfig) else adapt).values():
            default |= options.schedule
            # It keeps its last weights.
            default["checkpoint_every"] = (given or {}).get("steps", default["steps"])
        return {**values, "schedule": {**default, **inherited, **(given or {})}}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or the config.json of a run, and apply `key=value` overrides (dotted keys, TOML values; a bare
    word is a string).

    Relative paths in the file are relative to the working directory, as on the command line.

    Examples:
        >>> from acclimate.config import load
        >>> load("job.toml", ["train.steps=500"]).train.steps
        500

    Raises:
        AcclimateError: the file is missing or not TOML, a key is unknown, or a value does not fit.
    """
    return parse(Config, merge(read(path), overrides), where=str(path), overrides=overrides)
