"""The critics' part of the page: both sides' scores, and a warning where they have ceased to tell anything."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from acclimate import report
from acclimate.report.logged.distillation import Critic
from acclimate.run import Notes, Run

MakeRun = Callable[..., Path]
Scores = Callable[[int], tuple[float, float, float]]

ALIVE: Scores = lambda step: (-0.5, 0.5, 0.2)  # noqa: E731
FADED: Scores = lambda step: (-math.exp(-step / 5), math.exp(-step / 5), 0.2 * math.exp(-step / 5))  # noqa: E731
MET: Scores = lambda step: (-math.exp(-step / 5), math.exp(-step / 5), 0.3)  # noqa: E731
NEVER: Scores = lambda step: (1e-5, 2e-5, 1e-6)  # noqa: E731


def distilled(folder: Path, **critics: Scores) -> Path:
    """Make the run in `folder` one whose critics said this, by stride; the last lines are of the plain phase."""
    run = Run.open(folder)
    run.manifest = run.manifest.model_copy(update={"verb": "distil"})
    run.note(Notes(role="adapted", schedule="train"))
    (folder / "metrics.jsonl").unlink()
    (folder / "selection.json").unlink(missing_ok=True)
    for step in range(1, 31):
        said = {
            stride: dict(zip(("teacher", "student", "spread"), scores(step), strict=True))
            for stride, scores in critics.items()
        }
        run.log(step=step, loss=1.0, **({"critics": said} if step <= 25 else {}))
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))


def test_scores_of_both_sides_are_drawn_for_each_level(make_run: MakeRun, tmp_path: Path) -> None:
    run = distilled(make_run("small", "adapt"), **{"8": ALIVE, "16": ALIVE})
    page = report.write([run], tmp_path / "report.html")
    told = [label for label in re.findall(r'aria-label="([^"]*)"', page.read_text()) if "Critic at" in label]
    assert told == [
        f"Adapted: Critic at stride {stride}, scores of both sides over 25 logged steps, 1 apart at step 25"
        for stride in (8, 16)
    ]
    text = text_of(page)
    assert "Critics of features: Adapted" in text
    assert "Collapsed" not in text
    assert "no label-free scores" not in text, "a student keeps its last weights, so nothing is missing"


def test_a_collapsed_critic_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = distilled(make_run("small", "adapt"), **{"8": ALIVE, "16": FADED, "32": NEVER})
    text = text_of(report.write([run], tmp_path / "report.html"))
    assert "Collapsed: the critics at stride 16, 32 ended by giving both sides and every image the same score" in text
    assert text.count(": collapsed") == 2


def test_a_run_without_critics_has_no_such_part(make_run: MakeRun, tmp_path: Path) -> None:
    text = text_of(report.write([make_run("a", "adapt")], tmp_path / "report.html"))
    assert "Critics of features" not in text
    assert "Critics of the domain" not in text


def test_how_often_critics_of_the_domain_were_right_is_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("small", "adapt")
    run = Run.open(folder)
    (folder / "metrics.jsonl").unlink()
    for step, share in ((10, 0.9), (20, 0.7), (30, 0.55)):
        run.log(step=step, loss=1.0, domain_critics={"local": share, "global": 0.5})
    page = report.write([folder], tmp_path / "report.html")
    assert "Critics of the domain: Adapted" in text_of(page)
    told = [label for label in re.findall(r'aria-label="([^"]*)"', page.read_text()) if "share that" in label]
    assert told == [
        "Adapted: share that the critic local got right over 3 logged steps, 0.55 at step 30",
        "Adapted: share that the critic global got right over 3 logged steps, 0.5 at step 30",
    ]


@pytest.mark.parametrize(("scores", "collapsed"), [(ALIVE, False), (FADED, True), (MET, False), (NEVER, True)])
def test_sides_that_meet_are_no_collapse_while_images_differ(scores: Scores, collapsed: bool) -> None:
    rows = [(step, *scores(step)) for step in range(1, 26)]
    critic = Critic("8", [(s, t) for s, t, _, _ in rows], [(s, o) for s, _, o, _ in rows], [row[3] for row in rows])
    assert critic.collapsed is collapsed
