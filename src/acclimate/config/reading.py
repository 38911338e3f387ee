"""Options from files and from `key=value`: read, merged, and validated with one clear line for what is wrong."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from acclimate.errors import AcclimateError

_Model = TypeVar("_Model", bound=BaseModel)


def read(path: str | Path) -> dict[str, Any]:
    """What a TOML or JSON file holds, before anything in it is looked at.

    Raises:
        AcclimateError: the file is missing, or neither.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            values = json.load(file, object_pairs_hook=_table) if path.suffix == ".json" else tomllib.load(file)
    except FileNotFoundError:
        raise AcclimateError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AcclimateError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise AcclimateError(f"{path}: not valid TOML: {error}") from None
    except json.JSONDecodeError as error:
        raise AcclimateError(f"{path}: not valid JSON: {error}") from None
    except (RecursionError, ValueError) as error:
        # A number of more digits than Python reads, or brackets in brackets.
        said = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise AcclimateError(f"{path}: cannot be read ({said})") from None
    if not isinstance(values, dict):
        raise AcclimateError(f"{path}: not a configuration; give a TOML file or the config.json of a run")
    return values


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of JSON, where a key may stand twice; TOML's reader refuses that itself."""
    table = dict(pairs)
    if len(table) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} stands twice in one table")
    return table


def overlay(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `more` in their place, section by section."""
    merged = dict(values)
    for key, value in more.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def merge(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each dotted `key=value` put in its place.

    Raises:
        AcclimateError: an override has no `=`.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key.strip():
            raise AcclimateError(f"{override!r}: an override is written key=value, for example train.steps=500")
        node = merged
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = dict(child) if isinstance(child, Mapping) else {}
            node = node[parent]
        node[leaf] = _value(text.strip())
    return merged


def parse(model: type[_Model], values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> _Model:
    """Validate values as a section of options.

    Args:
        model: the section.
        values: what was read, overrides included.
        where: the file or argument that the message names.
        overrides: `key=value`; a problem that lies in one of them is told of that one.

    Raises:
        AcclimateError: with one line that holds every problem found.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        given = {tuple(override.partition("=")[0].strip().split(".")): override for override in overrides}
        told: dict[str, list[str]] = {}
        for item in error.errors():
            place = tuple(str(part) for part in item["loc"])
            blamed = next((text for key, text in given.items() if place[: len(key)] == key), None)
            told.setdefault(where if blamed is None else f"{blamed!r}", []).append(_explain(model, dict(item)))
        raise AcclimateError("; ".join(f"{name}: {'; '.join(problems)}" for name, problems in told.items())) from None


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        # What a validator raises; pydantic says of what type it was.
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] in {"int_parsing", "float_parsing"}:
            message = f"{message.partition(', unable')[0]}, not {str(item['input'])[:20]}"
        return f"{key}: {message}" if key else message
    siblings = _fields(model, [str(part) for part in item["loc"][:-1]])
    close = difflib.get_close_matches(str(item["loc"][-1]), siblings, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(siblings))}"
    return f"unknown key {key!r} ({hint})"


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            break
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)
