"""Options of Domain-Specific Suppression (`adapt/suppression.py`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from acclimate.config.methods import MethodOptions


class SuppressionConfig(MethodOptions):
    """Domain-Specific Suppression of the backbone's gradients (`adapt/suppression.py`)."""

    form: Literal["gradient", "update", "reparametrised", "reparametrised-rescale", "rescale"] = "gradient"
    """`gradient` projects the gradient, which is meant for SGD; `update` what any optimiser makes of it, so it is the
    one for AdamW; `reparametrised` trains weights of a fixed norm; `rescale` is the paper's length of the step without
    a projection, and `reparametrised-rescale` is both."""
    strength: float = Field(default=1.0, ge=0)
    """Share of the projection that `gradient` or `update` removes; 0 only measures."""
    granularity: Literal["tensor", "channel"] = "tensor"
    """One projection (or norm) a weight, `tensor`, or one for each of its output channels, `channel`."""
    layers: tuple[str, ...] = ("*",)
    """Which convolutions of the backbone, as patterns of their names, such as `body.blocks.[45].*`."""

    @property
    def until(self) -> float:
        return 0.0

    @model_validator(mode="after")
    def _strength_of_a_projection(self) -> SuppressionConfig:
        if self.form not in {"gradient", "update"} and self.strength != 1:
            raise ValueError(f"strength is an option of form = gradient and update; {self.form} has none")
        return self
