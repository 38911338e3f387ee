"""Options of the triplet loss on instances (`adapt/triplet.py`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Share


class TripletConfig(MethodOptions):
    """Objects of a class near one another in the features, whichever domain they are of (`adapt/triplet.py`)."""

    weight: float = Field(default=0.1, gt=0)
    """Weight of the triplet loss."""
    mining: Literal["batch-hard", "batch-all"] = "batch-hard"
    """Which triplets count: of each object the farthest of its class and the nearest of another, or all that are not
    far enough apart yet."""
    margin: float = Field(default=0.3, gt=0, le=2)
    """How much nearer the own class has to be; features have length 1."""
    prototypes: float = Field(default=0.1, ge=0)
    """Weight of the distance of each class's mean on the source to that on the target."""
    sure: Share = 0.7
    """Score from which what the mean teacher finds on the target is an object."""
