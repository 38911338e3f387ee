"""Options of the kind "transformers" (`models/transformers.py`)."""

from __future__ import annotations

from acclimate.config.kinds import KindOptions


class TransformersConfig(KindOptions):
    """A detector of Hugging Face's `transformers` (`models/transformers.py`)."""

    checkpoint: str = ""
    """A checkpoint folder (config.json, model.safetensors, preprocessor_config.json), or a name on the hub."""
