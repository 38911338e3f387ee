"""What of a network is written otherwise for the device than it is trained, and computes the same there."""

from __future__ import annotations

from typing import Any

from torch import nn

from acclimate.models.groupable import group


def deploy(module: nn.Module) -> None:
    """Put in the place of every part below `module` that has a form for the device that form (its `deployed()`), and
    write convolutions whose channels fall into groups as grouped ones.

    The module is in evaluation mode then; what it computes stays.
    """
    _in_their_forms(module)
    group(module)


def _in_their_forms(module: nn.Module) -> None:
    for name, child in module.named_children():
        made: Any = getattr(child, "deployed", None)
        if made is None:
            _in_their_forms(child)
        else:
            setattr(module, name, made())
