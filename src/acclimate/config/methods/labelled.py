"""Options of labelled target images (`adapt/labelled.py`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Added


class LabelledConfig(MethodOptions):
    """Target images that a person has labelled (`adapt/labelled.py`)."""

    share: float = Field(default=0.25, gt=0, le=1)
    """How many of them come with each batch, as a part of its size; at least one."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the mean loss over them, beside `supervised` of that over the source's images."""

    validation: Annotated[int, Added(0)] = Field(default=0, ge=0)
    """How many of them are held back to choose the checkpoint; nothing is learnt from these."""

    @property
    def labelled_share(self) -> float:
        return self.share
