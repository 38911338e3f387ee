"""Options of the detector that is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from acclimate.config.kinds.slimmable import SlimmableConfig
from acclimate.config.kinds.ssd import SsdConfig
from acclimate.config.kinds.two_stage import TwoStageConfig
from acclimate.config.options import Added, Canvas, Options, Stride


class ModelConfig(Options):
    """What is built. `size` names a preset; every other field, where given, overrides it."""

    kind: Literal["dense", "two-stage", "ssd", "slimmable"] = "dense"
    """`dense`, `two-stage`, `ssd` or `slimmable`."""

    size: Literal["nano", "tiny", "small"] = "tiny"
    """`nano`, `tiny` or `small`. Every key below overrides a part of it."""
    image_size: Canvas = (320, 320)
    """(height, width) of the network's canvas in pixels; each a multiple of the largest stride."""
    backbone: str | None = None
    """Any timm model with `features_only`."""
    weights: Path | Literal["auto", "none"] = "auto"
    """Backbone weights: a file, `auto` (an installed package's, the hub cache's or the hub's; an error where there are
    none), or `none`, which starts from random ones."""
    start: Annotated[Path | None, Added(None)] = None
    """A run whose detector is the start: of all weights, and of the class scores where classes have the same name."""
    strides: Annotated[tuple[Stride, ...], Field(min_length=1, max_length=16)] | None = None
    """Of the pyramid's levels, pixels, rising; by default 8, 16, 32."""
    channels: int | None = Field(default=None, ge=8, le=4096)
    """Of the pyramid; by default the size's."""
    depth: int | None = Field(default=None, ge=0, le=8)
    """Convolution blocks in each tower of the head; by default the size's."""
    norm: Literal["batch", "frozen", "group"] = "batch"
    """The backbone's normalisation: trainable BatchNorm, frozen BatchNorm, or GroupNorm."""
    freeze: int = Field(default=0, ge=0, le=6)
    """How many of the backbone's first stages (the stem is the first) keep their weights."""
    two_stage: TwoStageConfig = TwoStageConfig()
    """See `[model.two_stage]`; for `kind = "two-stage"` alone."""
    ssd: SsdConfig = SsdConfig()
    """See `[model.ssd]`; for `kind = "ssd"` alone."""
    slimmable: SlimmableConfig = SlimmableConfig()
    """See `[model.slimmable]`; for `kind = "slimmable"` alone."""

    @property
    def has_masks(self) -> bool:
        """Whether what is built learns masks, and so needs the outlines of its objects."""
        return self.kind == "two-stage" and self.two_stage.masks

    @model_validator(mode="after")
    def _one_start(self) -> ModelConfig:
        if self.start is not None and isinstance(self.weights, Path):
            raise ValueError("start and weights both name what to start from; leave one out")
        return self
