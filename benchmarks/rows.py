"""The rows that the benchmarks write and read: CSV files that grow row by row, so that a benchmark can be stopped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append one row in one system call, so that processes may share the file; a new file gets the names first.

    Raises:
        ValueError: the file has other columns.
    """
    text = io.StringIO()
    columns = list(row)
    if file.exists():
        with open(file, newline="") as there:
            columns = next(csv.reader(there))
    if set(columns) != set(row):
        raise ValueError(f"{file.name} has the columns {', '.join(columns)}; the row has {', '.join(row)}")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not file.exists():
        writer.writeheader()
    writer.writerow(row)
    with open(file, "a") as out:
        out.write(text.getvalue())


def read(file: Path) -> list[dict[str, str]]:
    """All rows; none where there is no file yet."""
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def table(found: Iterable[Mapping[str, str]], columns: Mapping[str, str]) -> Iterator[str]:
    """A Markdown table of some columns, under other names."""
    yield f"| {' | '.join(columns.values())} |"
    yield "|" + "---|" * len(columns)
    for row in found:
        yield f"| {' | '.join(row[column] for column in columns)} |"
