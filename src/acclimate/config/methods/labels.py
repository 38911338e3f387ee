"""Options of a labeller's labels (`adapt/labels.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from acclimate.config.methods import MethodOptions


class LabelsConfig(MethodOptions):
    """What a labeller has found in the target images (`adapt/labels.py`)."""

    file: Path
    """The file that `acclimate label` writes, or a COCO index with scores of any other tool."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the losses on its boxes."""
    threshold: float | Literal["source"] | dict[str, float] = "source"
    """Score from which a box is a target: `source` takes those in the file, which were measured class by class on
    labelled source images; or one for all classes, or some by name."""
    doubt: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the threshold from which a box is at least ignored rather than taken for background, as
    `teacher.doubt`."""
    agreement: bool = False
    """Whether a target must be what the mean teacher shows too."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the run over which the weight rises from 0."""

    @property
    def files(self) -> Mapping[str, Path]:
        return {f"the labels {self.file}": self.file}

    @property
    def found(self) -> Path | None:
        return self.file

    @field_validator("threshold")
    @classmethod
    def _scores(cls, value: float | str | dict[str, float]) -> float | str | dict[str, float]:
        values = value.values() if isinstance(value, dict) else () if isinstance(value, str) else (value,)
        if any(not 0 <= one <= 1 for one in values):
            raise ValueError("threshold is a score in 0..1, 'source', or a table of scores by class")
        return value
