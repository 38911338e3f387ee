"""What an artifact can run on: a file for each engine. Loading needs the engine's own package and nothing of training.

from acclimate.edge import engines

network = engines.engine(artifact.manifest.runtime).load(artifact, threads=1)
"""

from __future__ import annotations

import pkgutil
from typing import cast

from acclimate.edge.engines.base import Engine, Network, named

__all__ = ["ENGINES", "Engine", "Network", "available", "engine"]

ENGINES = {
    part.name: f"{__name__}.{part.name}" for part in pkgutil.iter_modules(__path__) if not part.name.startswith("base")
}
"""Every engine, by the name that `--runtime` and the manifest use, and its module: each file here is one."""


def engine(name: str) -> Engine:
    """The engine called `name`; it need not be installed.

    Raises:
        AcclimateError: there is none of that name.
    """
    return cast(Engine, named(ENGINES, name))


def available() -> list[str]:
    """The engines whose packages are installed here."""
    return [name for name in ENGINES if not engine(name).missing()]
