"""At random: what every other way has to beat."""

from __future__ import annotations

import numpy as np

from acclimate.select.ask.seen import Choice, Seen


def choose(seen: Seen, count: int) -> list[Choice]:
    """See `ask.choose`."""
    drawn = np.random.default_rng(seen.seed).choice(len(seen.paths), count, replace=False)
    return [Choice(int(index), "drawn at random", {}) for index in drawn]
