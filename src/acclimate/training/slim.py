"""The verb slim: all widths of a slimmable detector are adapted together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from acclimate import stages
from acclimate.config import Config, SlimConfig, merge, parse
from acclimate.run import Run
from acclimate.training import adapt as adapting
from acclimate.training.recipe import Recipe, carry_out


def slim(
    source: str | Path,
    target: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    console: Console | None = None,
) -> Run:
    """Adapt all widths of a slimmable detector at once: `adapt` with the section `adapt.slim`.

    Arguments as of `training.adapt.adapt`.

    Raises:
        AcclimateError: the detector has one width alone, or as `adapt`.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """

    def prepare() -> Recipe:
        parent = stages.bank(Path(source), SlimConfig.of_kind)
        values = stages.configuration(parent).model_dump(mode="json")
        values["adapt"]["slim"] = values["adapt"]["slim"] or {}
        config = parse(Config, merge(values, overrides), where="the source run's config with overrides")
        return adapting.recipe(parent, config.model_copy(update={"target": Path(target)}))

    return carry_out("slim", out, prepare, console)
