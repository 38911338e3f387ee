from __future__ import annotations

import io
import logging
import time
from pathlib import Path

import pytest
from rich.console import Console

from acclimate import progress
from acclimate.progress import Logged, Stage, counting, duration, in_threads, overview


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


STAGES = [
    Stage("scenes", "made", 0),
    Stage("source", "learnt", 100),
    Stage("adapted", "adapted", 300),
    Stage("report", "told", 100),
]


class Clock:
    """Takes the place of time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made)
    return made


def test_a_chain_says_what_each_stage_is_for_and_how_long_the_rest_takes(clock: Clock) -> None:
    text = io.StringIO()
    with overview(Console(file=text, width=200), STAGES) as chain:
        chain.enter("scenes")
        clock.now += 500
        chain.enter("source")
        # What was made says nothing of the pace of what is learnt.
        assert chain.left_s() is None
        with counting(None, "train") as tick:
            clock.now += 10
            tick(5, 10)
            # Half of 100 took 10 s; 450 are left.
            assert chain.left_s() == pytest.approx(90)
            clock.now += 10
            tick(10, 10)
        chain.enter("adapted")
        assert chain.left_s() == pytest.approx(80)
    assert text.getvalue().splitlines() == [
        "[1/4] scenes: made",
        "[2/4] source: learnt",
        "[3/4] adapted: adapted (about 80 s left)",
    ]


def test_a_stage_that_was_done_before_does_not_make_the_rest_look_short(clock: Clock) -> None:
    with overview(None, STAGES) as chain:
        chain.enter("source")
        clock.now += 0.2
        chain.enter("adapted")
        assert chain.left_s() is None
        clock.now += 30
        chain.count(0.5)
        assert chain.left_s() == pytest.approx(250 * 30 / 150)


def test_a_resumed_stage_tells_its_pace_from_this_call_alone(clock: Clock) -> None:
    with overview(None, STAGES) as chain:
        chain.enter("source")
        with counting(None, "train", start=80) as tick:
            clock.now += 10
            tick(90, 100)
            assert chain.left_s() == pytest.approx(450 * 10 / 50)


def test_on_a_terminal_one_display_has_the_chain_and_what_is_counted() -> None:
    text = io.StringIO()
    console = Console(file=text, width=160, force_terminal=True)
    with overview(console, STAGES) as chain:
        chain.enter("source")
        with counting(console, "train") as tick:
            tick(3, 10, "loss 0.5")
            chain.display.refresh()  # type: ignore[union-attr]
        chain.enter("adapted")
    assert "stage 2/4, source" in text.getvalue()
    assert "3/10" in text.getvalue()
    assert "stage 3/4, adapted" in text.getvalue()


def test_stages_go_on_and_never_back() -> None:
    with overview(None, STAGES) as chain:
        chain.enter("adapted")
        with pytest.raises(ValueError, match="no stage 'source' after number 3"):
            chain.enter("source")


@pytest.mark.parametrize(
    ("seconds", "told"), [(2, "5 s"), (43, "45 s"), (89, "90 s"), (120, "2 min"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_a_duration_is_as_exact_as_an_estimate_deserves(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_what_is_said_goes_into_a_log_with_its_time(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Logged(Console(file=shown, width=60), tmp_path / "out" / "run.log")
    with console.warnings():
        console.print("[b]a line", markup=False)
        assert not (tmp_path / "out").exists()
        console.begin()
        logging.getLogger("acclimate.somewhere").warning("take care of %s", "that")
    logging.getLogger("acclimate.somewhere").warning("not this")
    assert shown.getvalue() == "[b]a line\n"
    lines = (tmp_path / "out" / "run.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["[b]a line", "warning: take care of that"]
    time.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")


def test_a_log_on_a_terminal_has_lines_where_the_screen_has_bars(tmp_path: Path) -> None:
    console = Logged(Console(file=io.StringIO(), width=120, force_terminal=True), tmp_path / "run.log")
    console.begin()
    with counting(console, "train", lines=2) as tick:
        for done in range(1, 5):
            tick(done, 4)
    assert [line[20:] for line in (tmp_path / "run.log").read_text().splitlines()] == [
        "train: step 2/4",
        "train: step 4/4",
    ]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = io.StringIO()
    console = Logged(Console(file=shown), tmp_path / "file" / "run.log")
    console.begin()
    console.print("a line")
    assert shown.getvalue() == "a line\n"
