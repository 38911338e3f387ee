"""Options of the kind "zoom" (`models/zoom.py`)."""

from __future__ import annotations

from pydantic import Field

from acclimate.config.kinds import KindOptions


class ZoomConfig(KindOptions):
    """How a detector of kind `zoom` samples its large canvas (`models/zoom.py`)."""

    factor: int = Field(default=2, ge=1, le=8)
    """Sides of the canvas in sides of the picture that the dense detector inside looks at."""
    strength: float = Field(default=0.7, ge=0, lt=1)
    """How far the sampling may leave the even one: of all columns and rows 1 - `strength` stay evenly spread, the
    others go where the saliency is."""
    cells: int = Field(default=16, ge=2, le=256)
    """Columns, and rows, of the saliency."""
