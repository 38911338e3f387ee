from __future__ import annotations

import io

import pytest
from rich.console import Console

from acclimate.progress import counting, in_threads


def told(lines: int, total: int, note: str = "") -> list[str]:
    text = io.StringIO()
    with counting(Console(file=text, width=120), "[b] train", lines=lines) as tick:
        for done in range(1, total + 1):
            tick(done, total, note)
    return text.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_the_end_is_told() -> None:
    assert told(1, 7) == ["[b] train: 7"]


@pytest.mark.parametrize(("total", "lines"), [(100, 10), (25, 13), (3, 3)])
def test_or_a_line_at_every_tenth_of_the_way(total: int, lines: int) -> None:
    found = told(10, total, "loss 0.5")
    assert len(found) == lines
    assert found[-1] == f"[b] train: step {total}/{total}, loss 0.5"


def test_a_terminal_gets_a_bar() -> None:
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True)
    with counting(console, "train", start=2) as tick:
        tick(4, 4, "loss 0.5")
    assert "4/4" in text.getvalue()
    assert "loss 0.5" in text.getvalue()


def test_without_a_console_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with counting(None, "train") as tick:
        tick(1, 1)
    assert capsys.readouterr() == ("", "")


def test_where_no_line_is_wanted_a_terminal_alone_is_told() -> None:
    assert told(0, 7) == []
    text = io.StringIO()
    with counting(Console(file=text, width=120, force_terminal=True), "images", lines=0) as tick:
        tick(3, 7)
    assert "3/7" in text.getvalue()


@pytest.mark.parametrize(("count", "ticks"), [(0, []), (5, [5]), (64, [32, 64]), (70, [32, 64, 70])])
def test_work_in_threads_keeps_its_order(count: int, ticks: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    done = list(in_threads(lambda number: number**2, range(count), lambda *at: seen.append(at)))
    assert done == [(number, number**2) for number in range(count)]
    assert seen == [(at, count) for at in ticks]
