"""What of a network is written otherwise for the device than it is trained, and computes the same there."""

from __future__ import annotations

from typing import Any

from torch import nn


def deploy(module: nn.Module) -> None:
    """Put in the place of every part below `module` that has a form for the device that form (its `deployed()`).

    The module is in evaluation mode then; what it computes stays.
    """
    for name, child in module.named_children():
        made: Any = getattr(child, "deployed", None)
        if made is None:
            deploy(child)
        else:
            setattr(module, name, made())
