"""Options of quantisation-aware fine-tuning (`adapt/quantisation.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field

from acclimate.config.methods import MethodOptions


class QuantisationConfig(MethodOptions):
    """Quantisation-aware fine-tuning (`adapt/quantisation.py`)."""

    finishing: ClassVar[bool] = True
    schedule: ClassVar[Mapping[str, Any]] = MappingProxyType({"steps": 200, "lr": 5e-5, "warmup": 20, "ema": 0.98})
    """Short, and with small steps: the detector is trained already."""

    observe: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the run over which the ranges of activations widen; then they stand."""
    features: float = Field(default=1.0, ge=0)
    """Weight of the difference from the fp32 detector's features, beside that from its outputs."""
