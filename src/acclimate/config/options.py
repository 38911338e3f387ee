"""What every section of options is: a closed, immutable model whose values are within reason.

An unknown key or a wrong value is an error that names the key and what would be right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from acclimate.structures import LARGEST_CANVAS, LARGEST_SIDE

LARGEST_NUMBER = 10**9
"""No option is a larger number."""
LONGEST_NAME = 255
"""Bytes of the longest name of a file or folder, on every common file system; characters of any other name."""
LONGEST_PATH = 4000
MOST_NAMES = 10_000
"""Of a list or table of options."""
MOST_WORKERS = 128
"""Loader threads of a process; each holds a batch."""
MOST_THREADS = 1024
NONE = ("none", "None")
"""The word that takes an option away."""


class Prose:
    """Marks an option that holds sentences for a reader, in place of a name: `note: Annotated[str, Prose()]`."""


class Options(BaseModel):
    """Base of all options: immutable, and an unknown key, a NaN or an infinity is an error.

    So is what no option can mean, whatever its name: a number, name, path or list that is larger than any in use.
    The line below an option is its description, `model_fields[name].description`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, values: Any) -> Any:
        """The word none, or false, takes an option away that may be absent: the one way to write that in TOML and as
        `key=value`, which have no null. An option that has the word among its choices keeps it."""
        if not isinstance(values, Mapping):
            return values
        return {key: said(cls.model_fields.get(key), value) for key, value in values.items()}

    @model_validator(mode="after")
    def _within_reason(self) -> Self:
        for name, field in type(self).model_fields.items():
            prose = any(isinstance(mark, Prose) for mark in field.metadata)
            if name != "seed" and not prose and (problem := _unreasonable(getattr(self, name))):
                raise ValueError(f"{name}: {problem}")
        return self


def said(field: FieldInfo | None, value: Any) -> Any:
    """What a value means for an option: None where it takes the option away."""
    if field is None or not (isinstance(value, bool) or (isinstance(value, str) and value in NONE)):
        return value
    allowed = set(choices(field.annotation))
    if isinstance(value, bool):
        if value is False and type(None) in allowed and bool not in allowed:
            return None
        # As a word it is refused where a number is asked for; as it is, it would be 1 or 0.
        return str(value).lower() if bool not in allowed and allowed & {int, float} else value
    return "none" if "none" in allowed else None if type(None) in allowed else value


def choices(annotation: Any) -> Iterator[Any]:
    """The types and the literal values that an annotation allows, one by one."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in {Union, UnionType}:
        for part in get_args(annotation):
            yield from choices(part)
    elif get_origin(annotation) is Annotated:
        yield from choices(get_args(annotation)[0])
    else:
        yield get_origin(annotation) or annotation


def _unreasonable(value: Any) -> str:
    """What is wrong with a value of any option; empty where nothing is."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > LARGEST_NUMBER:
        return f"a number up to {LARGEST_NUMBER}, not {value:.3g}"
    if isinstance(value, Path):
        longest = max((len(os.fsencode(part)) for part in value.parts), default=0)
        if longest > LONGEST_NAME or len(str(value)) > LONGEST_PATH:
            return f"a path whose names have up to {LONGEST_NAME} bytes; this one has {longest}"
        return "a path without a NUL character" if "\0" in str(value) else ""
    if isinstance(value, str):
        if len(value) > LONGEST_NAME:
            return f"a name of up to {LONGEST_NAME} characters, not {len(value)}"
        return "" if value.isprintable() else "a name without characters that cannot be shown"
    if isinstance(value, dict | tuple):
        if len(value) > MOST_NAMES:
            return f"up to {MOST_NAMES} values, not {len(value)}"
        values = (*value, *value.values()) if isinstance(value, dict) else value
        return next(filter(None, map(_unreasonable, values)), "")
    return ""


Share = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=100)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Stride = Annotated[int, Field(ge=1, le=1024)]


def _check_canvas(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > LARGEST_CANVAS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are more than the {LARGEST_CANVAS} of the largest canvas")
    return size


Canvas = Annotated[tuple[Side, Side], AfterValidator(_check_canvas)]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Added:
    """Marks an option that came after runs had been digested: `name: Annotated[int, Added(0)] = 0`.

    Where the option has the value `before`, which is what was done when there was no such option, it is left out of
    the digest of a run, so a run made by an earlier version stays the same run. `before` never changes, the default
    may.
    """

    before: Any
