"""What a search, and a choice by labels, leave in run folders: one set of models for whoever writes and reads.

Needs no torch.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from acclimate.config import Budget
from acclimate.run import Evaluation
from acclimate.select.budget import Cost, Width


class Candidate(BaseModel):
    """One width that was judged: its distance to the anchor (smaller is better) and its predicted cost."""

    width: Width
    upem: float
    cost: Cost


class Try(BaseModel):
    """A candidate that was exported and measured."""

    width: Width
    upem: float
    predicted: Cost
    measured: Cost


class Found(BaseModel):
    """What a search found for one budget; written as search.json into the run that it made."""

    name: str
    bank: str
    budget: Budget
    runtime: str
    precision: str
    width: Width
    upem: float
    predicted: Cost
    measured: Cost
    tries: tuple[Try, ...]
    """In order; the last one is what was chosen."""
    candidates: tuple[Candidate, ...]
    """All widths that were judged."""
    latency_error: float | None = None
    """Of the latency table, on widths that it was not fitted on; relative."""


class Candidates(BaseModel):
    """What searches have judged of a bank; search/candidates.json in its run."""

    target: str
    """The unlabelled images that they were judged on."""
    candidates: tuple[Candidate, ...]


class Hindsight(BaseModel):
    """True accuracy of judged widths, from labels that played no part in the search."""

    data: str
    candidates: tuple[tuple[Candidate, float, float], ...]
    """Each with its AP and AP50, 0..1."""
    tau: dict[str, float] = Field(default_factory=dict)
    """Kendall's tau with AP50: of the order by UPEM, and of the trivial order by multiply-accumulates."""


VALIDATION = "validation.json"


class Validation(BaseModel):
    """What was measured on labelled frames that were held back to choose a checkpoint (`select/validation.py`).

    Attributes:
        start: of the weights before the adaptation; None where they are no candidate.
        chosen: of those that were chosen. As they are the best of several on these frames, it is a little too good.
    """

    start: Evaluation | None
    chosen: Evaluation
