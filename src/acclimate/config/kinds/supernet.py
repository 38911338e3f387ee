"""Options of the kind "supernet" (`models/supernet.py`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from acclimate.config.kinds import KindOptions

Channels = Annotated[int, Field(ge=24, le=4096, multiple_of=2)]
Places = Annotated[int, Field(ge=1, le=32)]


class SupernetConfig(KindOptions):
    """The backbone of a detector of kind `supernet` (`models/supernet.py`)."""

    stages: Annotated[tuple[tuple[Channels, Places], ...], Field(min_length=1, max_length=4)] = (
        (48, 1),
        (96, 2),
        (192, 4),
        (384, 2),
    )
    """Channels of each stage, and how many places it has that a block is chosen for; the strides are 4, 8, 16, 32."""
