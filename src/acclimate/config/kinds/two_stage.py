"""Options of the kind "two-stage" (`models/two_stage.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from acclimate.config.kinds import KindOptions
from acclimate.config.options import Added, Factor


class TwoStageConfig(KindOptions):
    """The second stage of a Faster R-CNN (`models/two_stage.py`)."""

    head: Literal[
        "sibling", "disentangled", "disentangled-light", "separate-fcs", "separate-backbone", "cascade", "bagged",
        "graph", "bi-box",
    ] = "sibling"  # fmt: skip
    """`sibling` is Faster R-CNN's, `disentangled` is TSD, `disentangled-light` one that costs less on the device, and
    the `separate` ones are what its paper compares it with; `cascade` has three stages (Cascade R-CNN), `bagged`
    several heads on bootstraps, `graph` reasons over the boxes of an image (Universal-RCNN), `bi-box` also learns which
    part of an object is visible."""
    proposals: int = Field(default=64, ge=1, le=10_000)
    """Boxes an image that the second stage looks at, in training and on the device."""
    hidden: int = Field(default=256, ge=8, le=16_384)
    """Width of the second stage's fully connected layers (1024 in the papers)."""
    constraint: float | None = Field(default=None, gt=0, le=1)
    """Only for the `disentangled` ones: margin by which training holds the head to beat the sibling beside it (0.2 in
    the paper)."""
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
    mask_flow: Annotated[bool, Added(False)] = False
    """Only for `cascade` with masks: a mask branch for each stage, on the boxes that leave it, and what one has found
    flows into the next (Hybrid Task Cascade)."""
    members: Annotated[int, Added(3)] = Field(default=3, ge=2, le=16)
    """Only for `bagged`: how many heads there are."""
    visible_share: Annotated[float, Added(0.5)] = Field(default=0.5, ge=0, le=1)
    """Only for `bi-box`: the part of an object's visible box that a proposal has to cover to be an object."""
    shrink: Annotated[bool, Added(True)] = True
    """Only for `bi-box`: whether the visible part of background shrinks to a point; otherwise it is not learnt."""
    transfer: Annotated[Path | None, Added(None)] = None
    """Only for `graph`: a run whose classifier is carried over, by the likeness of its classes and ours."""

    @model_validator(mode="after")
    def _fit_the_head(self) -> TwoStageConfig:
        if self.mask_flow and not (self.masks and self.head == "cascade"):
            raise ValueError('mask_flow is for head = "cascade" with masks = true; set both, or leave it out')
        if self.transfer is not None and self.head != "graph":
            raise ValueError('transfer is for head = "graph"; set it, or leave transfer out')
        return self

    @property
    def has_masks(self) -> bool:
        return self.masks
