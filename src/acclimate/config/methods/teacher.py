"""Options of the mean teacher (`adapt/teacher.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Added


class TeacherConfig(MethodOptions):
    """The mean teacher (`adapt/teacher.py`): its view of a weak target image teaches the strong view."""

    boxes: float = Field(default=1.0, ge=0)
    """Weight of the teacher's detections as target boxes."""
    regression: float = Field(default=1.0, ge=0)
    """Share of that weight for the losses that move boxes; 0 leaves boxes to the source."""
    soft: float = Field(default=0.0, ge=0)
    """Weight of the teacher's outputs as soft targets, location by location."""
    threshold: float | Literal["source", "matched", "adaptive"] = Field(default="source")
    """Score from which a detection of the teacher is a target. `source` measures it on labelled source images, class
    by class, once before the adaptation; `matched` starts there and lowers it, at most to a half and only as far as two
    of three are right on the source, until the teacher gives as many boxes an image on the target as on the source;
    `adaptive` starts there too and moves it as the teacher's mean score on the target goes, no lower than that."""
    doubt: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the threshold from which a detection is at least ignored rather than taken for background. 0 ignores
    whatever the teacher shows at all: what it is not sure of is more often an object that the shift has made faint than
    nothing, and background is learnt on the source."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the run over which the weights rise from 0."""
    scale: Annotated[float, Added(1.0)] = Field(default=1.0, ge=1, le=4)
    """Above 1, the teacher also looks at the image with so many times the pixels a side, and what it finds at both
    sizes is fused (`boxes/fusion.py`)."""
    flip: Annotated[bool, Added(False)] = False
    """Whether it also looks at the mirrored image; with `scale`, the larger one is mirrored."""
    mix: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0)
    """Weight of the losses on source images with a part of a target image pasted in, and its boxes
    (`adapt/mixing.py`)."""
    mix_part: Annotated[Literal["confident", "random"], Added("confident")] = "confident"
    """Which part is pasted: the `confident` quarter, where the teacher is surest (ConfMix), or a `random` rectangle
    (CutMix)."""

    mining: Annotated[int, Added(0)] = Field(default=0, ge=0, le=64)
    """Source images of the batch that what the teacher finds is pasted into; what is found again in most of them is a
    target, whatever its score (self-supervised sample mining). Each costs a pass of the teacher. 0 is off."""

    @property
    def needs_source(self) -> str:
        return next((name for name in ("mix", "mining") if getattr(self, name)), "")

    @property
    def largest_view(self) -> float:
        return self.scale

    @model_validator(mode="after")
    def _some_target(self) -> TeacherConfig:
        if self.boxes == self.soft == self.mix == 0:
            raise ValueError(
                "boxes, soft and mix are all 0, so the teacher teaches nothing; set `teacher` to none instead"
            )
        if not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a score in 0..1, 'source', 'matched' or 'adaptive', not {self.threshold}")
        if (self.scale > 1 or self.flip) and self.boxes == self.mix == 0:
            raise ValueError("scale and flip are of boxes, which are fused; soft targets have one look alone")
        return self
