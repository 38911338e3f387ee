"""Options of quantisation-aware fine-tuning (`adapt/quantisation.py`)."""

from __future__ import annotations

from pydantic import Field

from acclimate.config.options import Options


class QuantisationConfig(Options):
    """Quantisation-aware fine-tuning (`adapt/quantisation.py`)."""

    observe: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the run over which the ranges of activations widen; then they stand."""
    features: float = Field(default=1.0, ge=0)
    """Weight of the difference from the fp32 detector's features, beside that from its outputs."""
