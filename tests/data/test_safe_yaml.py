"""What a YAML file may cost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from acclimate.config import DataConfig
from acclimate.data import safe_yaml
from acclimate.data.formats import read
from acclimate.errors import AcclimateError

BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)), "names: *a11"]
)


def test_aliases_in_use_are_read() -> None:
    text = b"base: &base {nc: 2}\nmore: {<<: *base, names: [a, b]}\nagain: *base"
    assert safe_yaml.load(text)["more"] == {"nc": "2", "names": ["a", "b"]}


def test_what_is_merged_into_a_table_may_name_its_keys_again() -> None:
    text = b"base: &base {nc: 2}\nmore: &more {<<: *base, nc: 3}\nlast: {<<: *more, nc: 4}\nother: {<<: *more}"
    found = safe_yaml.load(text)
    assert [found[name]["nc"] for name in ("more", "last", "other")] == ["3", "4", "3"]


def test_scalars_stay_what_is_written() -> None:
    assert safe_yaml.load(b"names: [on, 050, ~, 2001-99-99, 1e3]")["names"] == ["on", "050", "~", "2001-99-99", "1e3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "its aliases stand for more than"),
        ("names: &a [*a]", "stands for nothing, or for what it is in"),
        ("names: *b", "stands for nothing"),
        ("[" * 5000, "nested deeper than 64 levels"),
        ("{a: " * 5000, "nested deeper than 64 levels"),
        ("names: [a", "expected"),
        ("? [a]\n: b", "unhashable"),
        ("names: [a, b]\nnc: 2\nnames: [b, a]", "'names' stands twice in one table, in lines 1 and 3"),
        ("names: {0: a, 1: b, 0: c}", "'0' stands twice in one table, in line 1$"),
        ("? {a: b}\n: c", "unhashable"),
    ],
    ids=lambda value: value[:20],
)
def test_what_costs_too_much_or_is_none_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=said) as caught:
        safe_yaml.load(text.encode())
    assert "\n" not in str(caught.value)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(AcclimateError, match=r"data\.yaml: damaged YAML") as told:
        read(DataConfig(path=tmp_path / "data.yaml"))
    assert "\n" not in str(told.value)
    assert time.monotonic() - began < 20


def test_a_file_of_any_size_is_not_read() -> None:
    with pytest.raises(ValueError, match="larger than 16 MiB"):
        safe_yaml.load(b" " * (safe_yaml.LARGEST + 1))
