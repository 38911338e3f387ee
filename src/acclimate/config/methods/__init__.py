"""Options of the methods of adaptation, a file each, and what each says of itself; none of them needs torch.

The one list of methods is `AdaptConfig`: a field that holds options, or a weight, is a method of the field's name, and
what it does is in the file `adapt/NAME.py`. Nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from acclimate.config.options import Options


class MethodOptions(Options):
    """Options of one method, and what a job has to know of it before anything is made.

    What is said here is right for a method that learns from the first step to the last and starts from nothing; one of
    another kind says so.
    """

    finishing: ClassVar[bool] = False
    """Whether it prepares a trained detector for its device and is no adaptation: methods that are on by default are
    then off unless they are given, the run keeps its last weights, and its start is no candidate."""
    schedule: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What it has other defaults for in the adaptation's schedule."""
    of_kind: ClassVar[str] = ""
    """The one kind of detector that it is for; empty for all."""

    @property
    def until(self) -> float:
        """Part of the run up to which it teaches something; 0 where it only changes what others teach."""
        return 1.0

    @property
    def ends_by(self) -> str:
        """The option below its own that `until` comes from, where that is not 1 by nature."""
        return ""

    @property
    def runs(self) -> tuple[Path, ...]:
        """The finished runs that it learns from."""
        return ()

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that it learns from beside images and runs, by what they are."""
        return {}

    @property
    def found(self) -> Path | None:
        """The file with what a labeller has found in the target images, where it learns from one."""
        return None

    @property
    def largest_view(self) -> float:
        """Sides of the largest target image that it looks at, in sides of the canvas."""
        return 1.0

    @property
    def labelled_share(self) -> float:
        """How many labelled target images it wants with each batch, as a part of its size."""
        return 0.0

    @property
    def needs_source(self) -> str:
        """The option below its own for which source images have to be there; empty where a run and a target will do."""
        return ""

    def without_target(self) -> Self | None:
        """What of it trains the source-only baseline, which sees no target; None for nothing."""
        return None
