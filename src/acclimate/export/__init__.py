"""Exporting, at the desk: a file for each exporter, which converts for the engine of its name of `edge.engines`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from acclimate.edge.engines import ENGINES
from acclimate.edge.engines.base import named
from acclimate.errors import AcclimateError
from acclimate.export.base import Exporter

EXPORTERS = {name: f"{__name__}.{name}" for name in ENGINES}
"""Every exporter, by the name of the engine that loads what it writes, and its module, which is called like it."""


def exporter(name: str) -> Exporter:
    """The exporter for the engine called `name`; what it needs may be missing.

    Raises:
        AcclimateError: there is none of that name.
    """
    return cast(Exporter, named(EXPORTERS, name))


def check(name: str, precisions: Sequence[str], key: str) -> None:
    """Refuse what cannot be exported here, before time is spent on what leads up to it.

    Raises:
        AcclimateError: there is no exporter `name`, its packages are missing, or it does not carry one of
            `precisions`, which came from the option `key`.
    """
    carried = exporter(name)
    if missing := carried.missing():
        raise AcclimateError(missing)
    for precision in precisions:
        if precision not in carried.precisions:
            known = " or ".join(carried.precisions)
            raise AcclimateError(f"{key}: {name} does not export {precision}; choose {known}")


def available() -> list[str]:
    """The runtimes that can be exported for here."""
    return [name for name in EXPORTERS if not exporter(name).missing()]
