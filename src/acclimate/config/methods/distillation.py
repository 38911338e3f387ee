"""Options of distillation (`adapt/distillation.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Factor, Options


class GanConfig(Options):
    """Critics that tell the teacher's features from the student's (`adapt/distillation.py`)."""

    weight: float = Field(default=0.001, gt=0)
    """Weight of the loss of a student that is found out; clipped critics have the steepest slopes and want a tenth of
    it."""
    mode: Literal["hinge", "wasserstein-clip", "gradient-penalty"] = "hinge"
    """What critics minimise and what keeps them smooth: a `hinge` and spectral norms, clipped weights as published
    (`wasserstein-clip`), or a penalty on their gradient (`gradient-penalty`)."""
    until: float = Field(default=0.7, gt=0, le=1)
    """Fraction of the run after which the student trains on without critics."""
    width: int | Literal["map"] = 512
    """Channels of the critics' convolutions; `map` takes as many as the teacher's map has."""
    lr: float = Field(default=5e-4, gt=0)
    """Learning rate of the critics' own optimiser, Adam."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Decay of the first moment in that optimiser."""
    critic_steps: int = Field(default=1, ge=1, le=1000)
    """Steps of the critics for each of the student's."""
    clip: float = Field(default=0.03, gt=0)
    """Only for `wasserstein-clip`: the largest weight."""
    penalty: float = Field(default=10.0, gt=0)
    """Only for `gradient-penalty`: its weight."""

    @model_validator(mode="after")
    def _some_width(self) -> GanConfig:
        if isinstance(self.width, int) and not 1 <= self.width <= 16_384:
            raise ValueError(f"width is a number of channels, up to 16384, or 'map', not {self.width}")
        return self


class ImitationConfig(Options):
    """The teacher's features near objects (`adapt/distillation.py`)."""

    weight: float = Field(default=1.0, gt=0)
    """Weight of the difference of the features."""
    near: float = Field(default=0.5, ge=0, lt=1)
    """Share of an object's largest overlap with any anchor from which a place is near it."""
    anchors: tuple[Factor, ...] = Field(default=(4.0,), min_length=1, max_length=64)
    """Sides of these anchors, in strides of their level."""


class ChannelConfig(Options):
    """Where each channel is active (`adapt/distillation.py`)."""

    weight: float = Field(default=1.0, gt=0)
    """Weight of the difference of the activations."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the softmax over a map's places; the higher, the more places count."""


class DistillationConfig(MethodOptions):
    """A larger, frozen detector teaches the one that is trained (`adapt/distillation.py`)."""

    teacher: Path
    """Its run folder; `acclimate distil` fills it in."""
    response: float | Literal["auto"] = "auto"
    """Weight of its outputs as soft targets, or of its detections as boxes where the outputs do not correspond; `auto`
    is 1, and for soft targets of dense heads 5."""
    gan: GanConfig | None = None
    """Critics of its features; see `[adapt.distillation.gan]`."""
    imitation: ImitationConfig | None = None
    """Its features near objects; see `[adapt.distillation.imitation]`."""
    channel: ChannelConfig | None = None
    """Where its channels are active; see `[adapt.distillation.channel]`."""
    view: Literal["weak", "strong"] = "weak"
    """Which view of an image the teacher sees; the student sees the strong one."""
    head: Literal["own", "teacher"] = "own"
    """Whether the student's head starts as its own or from the teacher's trained one, where that fits."""
    threshold: float | Literal["source"] = "source"
    """Score from which a detection of the teacher is an object; `source` measures it as `teacher.threshold` does."""
    doubt: float = Field(default=0.2, ge=0, le=1)
    """Fraction of it from which a detection is at least ignored rather than taken for background."""

    @property
    def names_a_lesson(self) -> bool:
        """Whether it says what is learnt from the teacher; where it does not, `distil` chooses."""
        return bool(self.model_fields_set & {"response", "gan", "imitation", "channel"})

    @property
    def runs(self) -> tuple[Path, ...]:
        return (self.teacher,)

    @property
    def until(self) -> float:
        ends = self.gan is not None and not (self.response or self.imitation or self.channel)
        return self.gan.until if ends and self.gan is not None else 1.0

    @property
    def ends_by(self) -> str:
        return "gan.until"

    @model_validator(mode="after")
    def _something_to_teach(self) -> DistillationConfig:
        if not isinstance(self.response, str) and self.response < 0:
            raise ValueError(f"response is a weight from 0 up or 'auto', not {self.response}")
        if not (self.response or self.gan or self.imitation or self.channel):
            raise ValueError("response is 0 and gan, imitation and channel are off, so the teacher teaches nothing")
        if not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a score in 0..1 or 'source', not {self.threshold}")
        return self
