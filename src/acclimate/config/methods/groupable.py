"""Options of groupable convolutions (`adapt/groupable.py`)."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from acclimate.config.methods import MethodOptions


class GroupableConfig(MethodOptions):
    """Convolutions whose channels fall into groups (`adapt/groupable.py`)."""

    finishing: ClassVar[bool] = True

    groups: int = Field(default=4, ge=2, le=64)
    """Of each pointwise convolution whose channels are multiples of it."""
    weight: float = Field(default=0.5, ge=0)
    """Of the part of the weights between groups, a mean over the layers."""
    settle: float = Field(default=0.5, ge=0, lt=1)
    """Part of the run over which the groups are learnt; from then on weights between them are 0."""
    every: int = Field(default=20, ge=1)
    """Steps after which channels are assigned to groups anew."""
    layers: tuple[str, ...] = Field(default=("backbone.*",), min_length=1)
    """Patterns of the names of the layers."""

    @property
    def until(self) -> float:
        return 0.0

    def without_target(self) -> Self | None:
        return self
