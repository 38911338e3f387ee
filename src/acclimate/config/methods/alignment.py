"""Options of the alignment to a frozen encoder (`adapt/alignment.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Stride


class AlignmentConfig(MethodOptions):
    """A frozen backbone to whose features the student's are drawn (`adapt/alignment.py`)."""

    encoder: str = "vit_small_patch14_dinov2.lvd142m"
    """timm's name of it: a plain vision transformer, or any with `features_only` and a level of stride 16."""
    weights: Path | Literal["auto", "none"] = "auto"
    """As `model.weights`."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the cosine distance."""
    stride: Stride | None = None
    """Stride of the level whose features are drawn to it, pixels; by default the one nearest to 16."""

    @property
    def files(self) -> Mapping[str, Path]:
        return {f"the encoder {self.weights}": self.weights} if isinstance(self.weights, Path) else {}
