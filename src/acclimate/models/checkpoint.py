"""Reading the weights that other programs have saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from acclimate.errors import AcclimateError

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "ema")
"""Keys under which training scripts save the weights, beside their optimiser's state."""
PREFIXES = ("module.", "_orig_mod.")
"""That distributed training and a compiled model put before every name."""


def tensors(file: Path) -> dict[str, Tensor]:
    """Tensors by name, in their shapes, of a .safetensors file or a torch checkpoint, on the CPU; nothing in it is run.

    Raises:
        AcclimateError: there is no such file, or it holds no such table.
    """
    if not file.is_file():
        raise AcclimateError(f"{file}: no such file; give a state_dict that torch.save wrote, or a .safetensors file")
    way_out = "save one with torch.save(model.state_dict(), FILE)"
    try:
        state: Any
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many unrelated types for files that it did not write
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise AcclimateError(f"{file}: not a state_dict ({reason}); {way_out}") from None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise AcclimateError(f"{file}: not a state_dict (it holds no table of named tensors); {way_out}")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)
