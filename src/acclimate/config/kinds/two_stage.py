"""Options of the kind "two-stage" (`models/two_stage.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from acclimate.config.kinds import KindOptions
from acclimate.config.options import Added, Factor


class TwoStageConfig(KindOptions):
    """The second stage of a Faster R-CNN (`models/two_stage.py`)."""

    head: Literal["sibling", "disentangled", "separate-fcs", "separate-backbone"] = "sibling"
    """`sibling` is Faster R-CNN's, `disentangled` is TSD, and the `separate` ones are what its paper compares it
    with."""
    proposals: int = Field(default=64, ge=1, le=10_000)
    """Boxes an image that the second stage looks at, in training and on the device."""
    hidden: int = Field(default=256, ge=8, le=16_384)
    """Width of the second stage's fully connected layers (1024 in the papers)."""
    constraint: float | None = Field(default=None, gt=0, le=1)
    """Only for `disentangled`: margin by which training holds the head to beat the sibling beside it (0.2 in the
    paper)."""
    select: Literal["peaks", "nms"] = "peaks"
    """How proposals are chosen: `peaks` of the objectness map, which every runtime carries, or `nms`, in eager mode
    alone."""
    anchors: Annotated[tuple[Factor, ...], Field(min_length=1, max_length=64)] | None = None
    """Sides of the anchors in strides of their level; by default 4, and 2, 4, 8, 16 where there is one level."""
    canonical: Annotated[float | None, Added(None)] = Field(default=None, gt=0)
    """Side in pixels of the boxes that are pooled from the level of stride 16; twice as large, from stride 32. By
    default as much of the canvas as the paper's 224 are of an image of 800, and 112 at least: 7 cells for 7 bins."""
    masks: bool = False
    """Train a mask branch beside the head (Mask R-CNN); the source is then a COCO set with polygons."""

    @property
    def has_masks(self) -> bool:
        return self.masks
