"""The CSV files of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

import rows


def test_a_row_goes_below_the_names_that_are_there(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows.append(file, {"what": "one", "value": 1})
    rows.append(file, {"value": 2, "what": "two"})
    assert rows.read(file) == [{"what": "one", "value": "1"}, {"what": "two", "value": "2"}]
    with pytest.raises(ValueError, match=r"a\.csv has the columns what, value; the row has what, other"):
        rows.append(file, {"what": "three", "other": 3})
    assert len(rows.read(file)) == 2
