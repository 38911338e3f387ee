"""L1 filter pruning: the detector is cut once, before the first step; the terms beside it fine-tune what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from acclimate.config.methods.pruning import PruningConfig
from acclimate.models.pruning import prune

if TYPE_CHECKING:
    from acclimate.models.detector import Detector


class Pruning:
    """See the module; nothing is left of it once the detector is cut."""

    name: ClassVar[str] = "pruning"

    @classmethod
    def create(cls, options: PruningConfig, detector: Detector) -> None:
        """Cut `detector`.

        Raises:
            AcclimateError: see `models.pruning.prune`.
        """
        prune(detector, options.keep)
