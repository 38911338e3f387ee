"""Options of the kind "slimmable" (`models/slimmable.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from acclimate.config.kinds import KindOptions
from acclimate.config.methods import MethodOptions
from acclimate.config.methods.slim import SlimConfig
from acclimate.config.options import Share


class SlimmableConfig(KindOptions):
    """The widths of a detector of kind `slimmable` (`models/slimmable.py`)."""

    choices: tuple[Share, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    """Ratios of channels that each of its stages may keep, rising to 1."""
    divisor: int = Field(default=8, ge=1, le=1024)
    """Channel counts are rounded to a multiple of it."""
    models: int = Field(default=4, ge=1, le=64)
    """Widths that a step of the source training runs: the largest, the smallest, and others at random between; 1 trains
    the full width alone."""

    @property
    def training(self) -> Mapping[str, MethodOptions]:
        """The sandwich rule, where a step runs several widths."""
        return {"slim": SlimConfig(models=self.models, ensemble=0)} if self.models > 1 else {}
