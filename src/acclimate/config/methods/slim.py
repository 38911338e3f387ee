"""Options of the joint adaptation of widths (`adapt/slim.py`)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from acclimate.config.methods import MethodOptions


class SlimConfig(MethodOptions):
    """The widths of a slimmable detector, adapted together (`adapt/slim.py`)."""

    of_kind: ClassVar[str] = "slimmable"

    models: int = Field(default=4, ge=2, le=64)
    """Widths that a step adapts: the largest, the smallest, and others at random between."""
    each_stage: bool = True
    """Whether the random ones have a width for each stage, or one for all."""
    reduce: Literal["mean", "sum"] = "mean"
    """How the losses of a step's models are put together."""
    ensemble: float = Field(default=1.0, ge=0)
    """Weight of the models' averaged predictions as soft targets of each (SEED); 0 leaves them out."""
    confidence: Literal["uniform", "macs", "hinge"] = "uniform"
    """What a model counts for in the average: all the same (`uniform`), in proportion to its multiply-accumulates
    (`macs`), or the less the farther its predictions are from the largest model's (`hinge`)."""
    margin: float = Field(default=1.0, gt=0)
    """Only for `hinge`: the distance from which a model counts for nothing."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sharpening of averaged probabilities, away from one half; 1 leaves them as they are."""
    view: Literal["weak", "strong"] = "strong"
    """Which view of a target image is averaged; `weak` is computed for it alone."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Averaged score from which a location's averaged box is a target."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the run over which the ensemble's weight rises from 0."""
    third: bool = False
    """Whether the ensemble teaches a head of its own, which gets nothing else and is the one that is kept (OSTC)."""
    reaches_features: bool = True
    """Only for `third`: whether what the ensemble teaches trains the features too, or that head alone."""

    @property
    def until(self) -> float:
        return 1.0 if self.ensemble > 0 else 0.0

    def without_target(self) -> SlimConfig:
        """The bank is trained on as one; its ensemble predicts target images."""
        return self.model_copy(update={"ensemble": 0.0, "third": False, "reaches_features": True})

    @model_validator(mode="after")
    def _ensemble_teaches_the_third(self) -> SlimConfig:
        if self.third and self.ensemble == 0:
            raise ValueError("third is a head that the ensemble alone teaches; set ensemble above 0")
        if not self.third and not self.reaches_features:
            raise ValueError("reaches_features = false is an option of third = true")
        return self
