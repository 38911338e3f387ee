import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.progress import Progress
from rich.table import Table

from acclimate import cli
from acclimate.terminal import Terminal, printable

WICKED = "\x1b]0;mine\x07\x1b[2J\u202egnp"
SHOWN = "\\x1b]0;mine\\x07\\x1b[2J\\u202egnp"


def test_what_a_terminal_obeys_is_shown_as_its_escape() -> None:
    assert printable("a\x1b[31m\tb\nc\x9b\udc80é") == "a\\x1b[31m\tb\nc\\x9b\\udc80é"


def test_names_in_lines_tables_and_titles_are_only_shown() -> None:
    shown = io.StringIO()
    console = Terminal(file=shown, width=120)
    table = Table(title=WICKED)
    table.add_column(WICKED)
    table.add_row(WICKED)
    console.print(table)
    console.print("line", WICKED, markup=False)
    console.rule(WICKED)
    console.log(WICKED)
    text = shown.getvalue()
    assert text.count(SHOWN) == 6
    assert not set(text) & {"\x1b", "\x07", "\u202e"}


def test_what_the_console_draws_itself_moves_and_has_colours() -> None:
    shown = io.StringIO()
    console = Terminal(file=shown, width=80, force_terminal=True, color_system="standard")
    console.print("[red]red[/]")
    with Progress(console=console) as progress:
        progress.update(progress.add_task(WICKED, total=2), advance=1, refresh=True)
    text = shown.getvalue()
    assert "\x1b[31mred\x1b[0m" in text
    assert "\x1b[2K" in text
    assert "\x1b[2J" not in text


def test_a_picture_with_a_wicked_name_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = tmp_path / "set" / f"a{WICKED}.png"
    name.parent.mkdir()
    cv2.imwrite(str(name), np.full((64, 64, 3), 90, np.uint8))
    name.with_name("broken\x1b[2J.png").write_bytes(b"no picture")
    cli.main(["data", "set"])
    told = "".join(capfd.readouterr())
    assert "\x1b" not in told
    assert "\\x1b[2J" in told
