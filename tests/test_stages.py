"""What a run's digest is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest

from acclimate.config import Added, Config, Options, load
from acclimate.run import digest
from acclimate.stages import plain

EARLIER = Path(__file__).with_name("earlier_config.json")
"""The config.json of a run that an earlier version wrote, with every section that a digest can hold."""


@pytest.mark.parametrize(
    ("kind", "since", "expected"),
    [
        ("dense", ["model.conv=depthwise"], "51e257adcda2a02e"),
        ("two-stage", [], "61dc6973473cdc61"),
        ("ssd", [], "7a81dc780f249d9b"),
        ("slimmable", ["model.conv=depthwise"], "f027e7f8d5db3160"),
    ],
)
def test_digests_of_runs_that_were_made_before_stay(kind: str, since: list[str], expected: str) -> None:
    """An option that is added changes none of them: mark it `Annotated[..., Added(what was done before)]`. Where its
    default does something else, `since` says what was done."""
    config = load(EARLIER, [f"model.kind={kind}", *since])
    assert digest(plain(config, "seed", "model", "augment", "train", "adapt", "schedule")) == expected


class Inner(Options):
    old: int = 1
    new: Annotated[float, Added(0.5)] = 0.5


class Widened(Options):
    old: int = 1
    inner: Inner = Inner()
    choice: Annotated[Literal["a", "b"], Added("a")] = "b"
    section: Annotated[Inner | None, Added(None)] = None


class Job(Config):
    export: Widened = Widened()  # type: ignore[assignment]


def test_an_added_option_counts_unless_it_does_what_was_done_before() -> None:
    def counted(**values: object) -> object:
        return plain(Job(export=values), "export")["export"]

    assert counted(choice="a") == {"old": 1, "inner": {"old": 1}}
    assert counted() == {"old": 1, "inner": {"old": 1}, "choice": "b"}
    assert counted(choice="a", inner={"new": 1.0}) == {"old": 1, "inner": {"old": 1, "new": 1.0}}
    assert counted(choice="a", section={}) == {"old": 1, "inner": {"old": 1}, "section": {"old": 1}}
