"""docs/benchmarks/ has a page for every benchmark that wrote a table, and explains every column of it."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = sorted((REPOSITORY / "benchmarks").glob("*.csv"))
PAGES = sorted((REPOSITORY / "docs" / "benchmarks").glob("*.md"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("tables")


@pytest.mark.parametrize("rows", ROWS, ids=lambda path: path.name)
def test_every_column_is_explained_once(rows: Path) -> None:
    heading = f"| column of `{rows.name}` | |\n"
    explained = [part.split("\n\n")[0] for page in PAGES for part in page.read_text().split(heading)[1:]]
    assert len(explained) == 1
    with open(rows, newline="") as file:
        columns = next(csv.reader(file))
    first = "\n".join(line.split(" | ")[0] for line in explained[0].splitlines())
    assert sorted(re.findall(r"`(\w+)`", first)) == sorted(columns)


def test_the_result_tables_are_those_of_the_rows(tables: Any) -> None:
    stale = [name for name in tables.TABLES if tables.page(name) != (tables.PAGES / f"{name}.md").read_text()]
    assert stale == [], "python benchmarks/tables.py writes them anew"


def test_every_table_has_its_place_on_the_page_of_its_name(tables: Any) -> None:
    places = [(page.stem, name) for page in PAGES for name in re.findall(r"<!-- results: (\w+) -->", page.read_text())]
    assert sorted(places) == sorted((name, name) for name in tables.TABLES)


def test_the_page_of_conclusions_has_a_row_for_every_page() -> None:
    index = (REPOSITORY / "docs" / "benchmarks" / "index.md").read_text()
    linked = re.findall(r"^\|.*\]\(([\w.]+)\) \|$", index, flags=re.MULTILINE)
    assert sorted(linked) == [page.name for page in PAGES if page.name != "index.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_says_what_was_asked_before_it_shows_rows(page: Path) -> None:
    if page.name != "index.md":
        answer, _ = page.read_text().split("<!-- results: ")
        assert re.search(r"^\*\*[^*]+\?\*\*", answer, flags=re.MULTILINE)
