"""docs/benchmarks.md explains every column of every table that a benchmark wrote."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TABLES = sorted((REPOSITORY / "benchmarks").glob("*.csv"))


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.name)
def test_every_column_is_explained(table: Path) -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    explained = page.split(f"| column of `{table.name}` | |\n")[1].split("\n\n")[0]
    with open(table, newline="") as file:
        columns = next(csv.reader(file))
    first = "\n".join(line.split(" | ")[0] for line in explained.splitlines())
    assert sorted(re.findall(r"`(\w+)`", first)) == sorted(columns)


def test_the_result_tables_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    tables = importlib.import_module("tables")
    assert tables.page() == (REPOSITORY / "docs" / "benchmarks.md").read_text()
