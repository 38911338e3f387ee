"""YAML from anywhere: what a file may cost is bounded before anything is built from it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped, unused-ignore]

LARGEST = 16 * 2**20
"""Bytes of the largest file."""
DEEPEST = 64
"""Lists and tables in one another; the reader calls itself for each."""
MOST_VALUES = 1_000_000
"""With every alias counted as what it stands for: ten lines of ten aliases each stand for ten thousand million."""

_MERGE = "tag:yaml.org,2002:merge"


class _Text(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
    """Knows tables that are merged into others, and takes every scalar as the text that it is written as.

    A key that stands twice in one table is an error, as YAML has it: of two lists of class names either may be meant.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        "<": [(_MERGE, re.compile(r"^<<$"))],
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if lines[key.value] == line else f"lines {lines[key.value]} and {line}"
                raise ValueError(f"{key.value!r} stands twice in one table, in {where}")
            lines[key.value] = line
        return node


def load(data: bytes) -> Any:
    """What a YAML document says, every scalar as the text it is written as: `on`, `050` and `~` may be names.

    Raises:
        ValueError: it is no YAML, has a key twice in one table, or is larger, deeper or more than the bounds; in one
            line.
    """
    if len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST // 2**20} MiB")
    try:
        _check(data)
        return yaml.load(data, Loader=_Text)
    # Besides its own errors: an unhashable key, a number of too many digits, a date that is none.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, LookupError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check(data: bytes) -> None:
    """Go through the events, which are not nested, and count."""
    sizes: list[int] = [0]
    names: list[str | None] = [None]
    known: dict[str, int] = {}
    for event in yaml.parse(data, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            names.append(event.anchor)
            if len(sizes) > DEEPEST:
                raise ValueError(f"nested deeper than {DEEPEST} levels")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, name = sizes.pop(), names.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise ValueError(f"the alias {event.anchor!r} stands for nothing, or for what it is in")
            size, name = known[event.anchor], None
        elif isinstance(event, yaml.ScalarEvent):
            size, name = 1, event.anchor
        else:
            continue
        if name is not None:
            known[name] = size
        sizes[-1] += size
        if sizes[-1] > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
