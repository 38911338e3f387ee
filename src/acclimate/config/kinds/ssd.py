"""Options of the kind "ssd" (`models/ssd.py`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from acclimate.config.kinds import KindOptions
from acclimate.config.options import Factor


class SsdConfig(KindOptions):
    """The levels and default boxes of an SSD (`models/ssd.py`)."""

    lite: bool = False
    """SSDLite: predictors and added levels are depthwise separable."""
    extra: int = Field(default=3, ge=0, le=8)
    """Levels added behind the backbone's, each with half the rows and columns of the one before, as far as the canvas
    has cells."""
    scales: Annotated[tuple[Factor, ...], Field(max_length=32)] | None = None
    """Sides of the default boxes in sides of the canvas, one a level and one beyond the last; by default 0.15 at the
    second level to 0.9 at the last, and half of 0.15 at the first."""
    ratios: Annotated[tuple[Factor, ...], Field(max_length=16)] | None = None
    """Aspect ratios beside 1, each lying and standing, at every level; by default 2 and 3, and 2 alone at the first and
    the last two levels of a plain SSD."""
