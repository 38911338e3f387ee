"""Options of filter pruning (`adapt/pruning.py`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Share


class PruningConfig(MethodOptions):
    """Filters of small L1 norm are cut out before the training (`adapt/pruning.py`)."""

    finishing: ClassVar[bool] = True

    keep: Share | Annotated[tuple[Share, ...], Field(min_length=1, max_length=16)] = 0.5
    """The part of the channels that stays; one number, or one for each stage of the backbone and one for the head."""

    @property
    def until(self) -> float:
        return 0.0

    def without_target(self) -> Self | None:
        return self
