"""What of a network is written otherwise for the device than it is trained, and computes the same there."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from acclimate.models.groupable import group
from acclimate.models.normalisations import unfrozen


def deploy(module: nn.Module) -> None:
    """Put in the place of every part below `module` that has a form for the device that form (its `deployed()`), a
    BatchNorm in that of a library's frozen one, and write convolutions whose channels fall into groups as grouped ones.

    The module is in evaluation mode then; what it computes stays.
    """
    _in_their_forms(module)
    group(module)


def _in_their_forms(module: nn.Module) -> None:
    for name, child in module.named_children():
        made: Any = getattr(child, "deployed", partial(unfrozen, child))()
        if made is None:
            _in_their_forms(child)
        else:
            setattr(module, name, made)
