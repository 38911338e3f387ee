"""The search's part of the page, from the files that a search and its hindsight write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from acclimate import report
from acclimate.config import Budget
from acclimate.errors import AcclimateError
from acclimate.run import Notes, Run
from acclimate.select.budget import Cost
from acclimate.select.record import Candidate, Found, Try
from acclimate.select.search import hindsight

MakeRun = Callable[..., Path]
CANDIDATES = [
    Candidate(width=(1.0, 1.0), upem=0.0, cost=Cost(macs_m=200, latency_ms=9, size_mb=3)),
    Candidate(width=(1.0, 0.5), upem=0.25, cost=Cost(macs_m=120, latency_ms=6, size_mb=2)),
    Candidate(width=(0.5, 1.0), upem=0.5, cost=Cost(macs_m=130, latency_ms=6.5, size_mb=2)),
    Candidate(width=(0.5, 0.5), upem=0.75, cost=Cost(macs_m=60, latency_ms=3, size_mb=1)),
]


def found(folder: Path) -> Path:
    """Make the run in `folder` one that a search wrote for the budget "fast"."""
    chosen = CANDIDATES[1]
    measured = chosen.cost.model_copy(update={"latency_ms": 6.5, "memory_mb": 90.0})
    one = Try(width=chosen.width, upem=chosen.upem, predicted=chosen.cost, measured=measured)
    run = Run.open(folder)
    run.manifest = run.manifest.model_copy(update={"verb": "search"})
    run.note(Notes(role="adapted"))
    run.write(
        "search.json",
        Found(
            name="fast", bank="runs/bank", budget=Budget(latency_ms=7, size_mb=4), runtime="onnx", precision="int8",
            width=chosen.width, upem=chosen.upem, predicted=chosen.cost, measured=measured, tries=(one, one),
            candidates=tuple(CANDIDATES), latency_error=0.04,
        ),
    )  # fmt: skip
    (folder / "selection.json").unlink(missing_ok=True)
    return folder


def labels(page: str) -> list[str]:
    return [label for label in re.findall(r'aria-label="([^"]*)"', page) if "UPEM" in label or "hindsight" in label]


def test_where_a_budget_landed_and_what_else_was_judged(make_run: MakeRun, tmp_path: Path) -> None:
    page = report.write([found(make_run("fast", "adapt"))], tmp_path / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "The search under each budget" in text
    assert "fast 1 / 0.5 0.25 latency_ms: 6.5 of 7 (predicted 6); size_mb: 2 of 4 (predicted 2) 2 " in text
    assert any("3 of 4 that were judged" in label for label in labels(page)), "one width is beaten in both"
    assert "no label-free scores" not in text


def test_hindsight_of_the_bank_is_drawn_three_ways(make_run: MakeRun, tmp_path: Path) -> None:
    bank = make_run("bank", "adapt")
    known = [(one, 0.3 * (1 - one.upem), 0.6 * (1 - one.upem)) for one in CANDIDATES]
    Run.open(bank).write("search/hindsight.json", hindsight("target_test", known))
    page = report.write([bank, found(make_run("fast", "adapt", target_ap50=0.4))], tmp_path / "report.html").read_text()
    drawn = [label for label in labels(page) if "hindsight" in label and "AP50 in points over" in label]
    assert len(drawn) == 3
    # The run of the budget was evaluated too, so it is among them.
    assert all(label.endswith("5 widths, known only in hindsight") for label in drawn)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "UPEM 1; multiply-accumulates alone 0.67" in text


def test_without_a_search_the_page_has_no_such_part(make_run: MakeRun, tmp_path: Path) -> None:
    page = report.write([make_run("adapted", "adapt")], tmp_path / "report.html").read_text()
    assert 'id="search"' not in page
    assert "#search" not in page


def test_a_damaged_search_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    folder = found(make_run("fast", "adapt"))
    Run.open(folder).write("search.json", {"name": "fast"})
    with pytest.raises(AcclimateError, match=r"search\.json: damaged \(bank: Field required\)"):
        report.write([folder], tmp_path / "report.html")
