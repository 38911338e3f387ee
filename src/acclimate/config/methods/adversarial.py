"""Options of domain critics (`adapt/adversarial.py`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from acclimate.config.methods import MethodOptions


class AdversarialConfig(MethodOptions):
    """Domain critics behind a gradient reversal (`adapt/adversarial.py`)."""

    kind: Literal["da-faster", "swda"] = "swda"
    """`da-faster` (locations, objects, consistency) or `swda` (strong local, weak global)."""
    weight: float = Field(default=0.1, gt=0)
    """Weight of the critics' losses."""
    reversal: Literal["ramp", "constant"] = "ramp"
    """How the reversed gradient's strength goes over the run: `ramp`, from 0 to 1, or `constant`, 1 throughout."""
    hidden: int = Field(default=64, ge=1, le=16_384)
    """Width of the critics' hidden layers."""
    levels: Literal["all", "last"] = "all"
    """Only for `da-faster`: levels of the pyramid that have an image-level critic."""
    regions: int = Field(default=64, ge=1, le=10_000)
    """Only for `da-faster`: boxes an image that the instance-level critic looks at."""
    gamma: float = Field(default=5.0, ge=0)
    """Only for `swda`: exponent of the global critic's focal loss."""
