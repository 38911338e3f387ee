"""Options that one kind of detector alone looks at, a file each; none of them needs torch."""

from __future__ import annotations

from collections.abc import Mapping

from acclimate.config.methods import MethodOptions
from acclimate.config.options import Options


class KindOptions(Options):
    """Options of one kind of detector: the field of `ModelConfig` of its name, with `_` for `-`."""

    @property
    def has_masks(self) -> bool:
        """Whether what is built learns masks, and so needs the outlines of its objects."""
        return False

    @property
    def training(self) -> Mapping[str, MethodOptions]:
        """Methods that its source training goes by, beside the labels of the source, by name."""
        return {}
