"""Options that one kind of detector alone looks at, a file each; none of them needs torch."""

from __future__ import annotations

from acclimate.config.options import Options


class KindOptions(Options):
    """Options of one kind of detector: the field of `ModelConfig` of its name, with `_` for `-`."""

    @property
    def has_masks(self) -> bool:
        """Whether what is built learns masks, and so needs the outlines of its objects."""
        return False
