"""The page says whether a training silenced its network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from acclimate import report
from acclimate.run import Run

MakeRun = Callable[..., Path]


def logged(folder: Path, dead: float, silent: bool) -> Path:
    run = Run.open(folder)
    (folder / "metrics.jsonl").unlink()
    for step in range(1, 31):
        layers = {
            "backbone.body.stem": {"dead": 0.0, "update": 1e-4},
            "backbone.body.deep": {"dead": 1.0 if silent or step % 2 else dead, "update": 1e-5},
        }
        run.log(step=step, loss=1.0, dead_channels=dead, update_ratio=1e-4, health=layers)
    return folder


@pytest.mark.parametrize(("dead", "silent"), [(0.04, False), (0.41, True)])
def test_a_network_that_was_silenced_is_said_in_words(
    dead: float, silent: bool, make_run: MakeRun, tmp_path: Path
) -> None:
    page = report.write([logged(make_run("source", "train"), dead, silent)], tmp_path / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("\u00a0", " ")
    assert f"{100 * dead:.0f} % of its channels are dead" in text
    assert ("has silenced much of the network" in text) is silent
    assert ("no longer learn at all: backbone.body.deep" in text) is silent, "one quiet batch is not the end"


def test_a_run_that_did_not_log_it_has_no_such_part(make_run: MakeRun, tmp_path: Path) -> None:
    assert "Is the network alive" not in report.write([make_run("source", "train")], tmp_path / "page.html").read_text()
