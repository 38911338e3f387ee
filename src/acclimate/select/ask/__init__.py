"""Which unlabelled frames a person should label: ways to choose them, without a label of the target.

A way is a file here and its line in `WAYS`. The file says

    choose(seen, count) -> list[Choice]    `count` of the frames, the most wanted first, and why each

What all of them look at is made once (`seen.look`), of frames that differ: of near-duplicates one is left
(`seen.distinct`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from acclimate.errors import AcclimateError

if TYPE_CHECKING:
    from acclimate.select.ask.seen import Choice, Seen

WAYS = {
    "combined": "acclimate.select.ask.combined",
    "uncertainty": "acclimate.select.ask.uncertainty",
    "disagreement": "acclimate.select.ask.disagreement",
    "diversity": "acclimate.select.ask.diversity",
    "mining": "acclimate.select.ask.mining",
    "random": "acclimate.select.ask.random",
}
"""Name -> module; the first is the default."""
DEFAULT = next(iter(WAYS))


class _Way(Protocol):
    @staticmethod
    def choose(seen: Seen, count: int) -> list[Choice]: ...


def choose(way: str, seen: Seen, count: int) -> list[Choice]:
    """`count` frames, or all that there are, the most wanted first.

    Raises:
        AcclimateError: there is no such way, or it needs the source images and there are none.
    """
    check(way)
    module = cast(_Way, importlib.import_module(WAYS[way]))
    return module.choose(seen, min(count, len(seen.paths)))


def check(way: str) -> None:
    """Refuse a way that there is not.

    Raises:
        AcclimateError: it is unknown.
    """
    if way not in WAYS:
        raise AcclimateError(f"ask: there is no way {way!r}; choose {', '.join(WAYS)}")
