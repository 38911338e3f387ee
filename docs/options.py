"""Write the tables of options of docs/configuration.md and docs/verbs/ from the options themselves.

python docs/options.py

A table stands between `<!-- options: NAME -->` and `<!-- end -->`. In configuration.md a name is the section's, `job`
for the keys outside of any; two names share a table where their options are the same (`train schedule`). On the page of
a verb it is the verb's. What a row says is the option's own: the docstring below a field of `acclimate.config`, the
`help` of an option of `acclimate.cli`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, CommandInfo, ParameterInfo

from acclimate import cli, config

PAGES = Path(__file__).parent
CONFIGURATION = PAGES / "configuration.md"
VERBS = PAGES / "verbs"
PLACE = re.compile(r"(<!-- options: ([\w. ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def section(name: str) -> type[BaseModel]:
    """The options of a section, such as `adapt.teacher`; of the whole job for `job`."""
    model: type[BaseModel] = config.Config
    for key in [] if name == "job" else name.split("."):
        model = below(model.model_fields[key]) or model
    return model


def below(field: FieldInfo) -> type[BaseModel] | None:
    """The options that a field holds, where it is a section of its own."""
    for part in (field.annotation, *get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def settings(names: str) -> Iterator[str]:
    """The table of one section, or of several with the same options and other defaults."""
    first, *others = names.split()
    model = section(first)
    says = descriptions(model)
    yield "| key | default | may be | |"
    yield "|---|---|---|---|"
    for key, field in model.model_fields.items():
        defaults = [_default(first, key, field), *(_default(name, key, field) for name in others)]
        default = "; ".join(dict.fromkeys(defaults))
        yield f"| `{key}` | {default} | {_may_be(first, key, field)} | {_cell(says[key])} |"


def verb(name: str) -> Iterator[str]:
    """The table of a verb's arguments and options."""
    yield "| option | default | |"
    yield "|---|---|---|"
    function = next(command.callback for command in cli.app.registered_commands if _name(command) == name)
    for parameter, annotation in get_type_hints(function, include_extras=True).items():
        if annotation is not typer.Context and parameter != "return":
            kind, info = get_args(annotation)
            default = inspect.signature(function).parameters[parameter].default
            spelling = _spelling(parameter, kind, info)
            yield f"| {spelling} | {_of_verb(default, info)} | {_help(name, parameter, info)} |"


def verbs() -> list[str]:
    """The names of all verbs."""
    return [_name(command) for command in cli.app.registered_commands]


@cache
def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field.

    Raises:
        ValueError: a field has none.
    """
    says: dict[str, str] = {}
    for owner in reversed([base for base in model.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        for node, after in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                says[node.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    if bare := [key for key in model.model_fields if key not in says]:
        raise ValueError(f"{model.__name__}: {', '.join(bare)}: no docstring says what it is")
    return says


def page(path: Path) -> str:
    """A page with its tables made anew."""
    make = settings if path == CONFIGURATION else verb
    return PLACE.sub(lambda place: "\n".join([place[1], *make(place[2]), "", place[3]]), path.read_text())


def _default(name: str, key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if name in config.Config.model_fields and isinstance(own := getattr(config.Config(), name), section(name)):
        # A section whose default is other than that of its class, as the adaptation's schedule is.
        value = getattr(own, key)
    if isinstance(value, BaseModel):
        return "its defaults"
    return "-" if value is None else f"`{_written(value)}`"


def _written(value: Any) -> str:
    """As TOML has it, without zeros behind a number's point."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _may_be(name: str, key: str, field: FieldInfo) -> str:
    if below(field) is not None:
        path = key if name == "job" else f"{name}.{key}"
        anchor = re.sub(r"[^\w -]", "", _heading(path).lower()).replace(" ", "-")
        return f"[section](#{anchor})"
    return _kind(field.annotation, field.metadata)


def _heading(path: str) -> str:
    """The heading on the page that has the section."""
    for line in CONFIGURATION.read_text().splitlines():
        if line.startswith("## ") and f"[{path}]" in line:
            return line.removeprefix("## ")
    raise ValueError(f"{CONFIGURATION}: no heading has [{path}]")


def _kind(annotation: Any, marks: Sequence[Any] = (), plural: str = "") -> str:
    """What an annotation allows, in words; `plural` is "s" for what may be several."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0], [*parts[1:], *marks], plural)
    if origin in (Union, UnionType):
        return " or ".join(_kind(part, marks, plural) for part in parts if part is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in parts)
    if origin is tuple:
        return f"{'list of' if parts[-1] is Ellipsis else 'two'} {_kind(parts[0], plural='s')}"
    if origin is dict:
        return "table of names"
    words = {int: "whole number", float: "number", str: "name", Path: "path"}
    return "`true` or `false`" if annotation is bool else f"{words[annotation]}{plural}{_bounds(marks)}"


def _bounds(marks: Sequence[Any]) -> str:
    """Of numbers; other marks say nothing here."""
    limits = [inner for mark in marks for inner in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    words = ""
    for limit in limits:
        if isinstance(limit, Ge):
            words += f" from {limit.ge:.15g}"
        elif isinstance(limit, Gt):
            words += f" above {limit.gt:.15g}"
        elif isinstance(limit, Le):
            words += f"{',' if ' above ' in words else ''} up to {limit.le:.15g}"
        elif isinstance(limit, Lt):
            words += f"{',' if words else ''} below {limit.lt:.15g}"
    return words.replace(" up to ", " to ") if " from " in words else words


def _name(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.name or command.callback.__name__


def _spelling(parameter: str, kind: Any, info: ParameterInfo) -> str:
    if isinstance(info, ArgumentInfo):
        return f"`{info.metavar or parameter.upper()}`"
    own = f"--{parameter.replace('_', '-')}"
    # Inside Annotated the first spelling is where a default would be.
    given = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
    spellings = given or ([own, own.replace("--", "--no-", 1)] if kind is bool else [own])
    return ", ".join(f"`{spelling}`" for spelling in spellings)


def _of_verb(default: Any, info: ParameterInfo) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(info.show_default, str):
        return info.show_default
    if default is None or default == "":
        return "-"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _help(verb: str, parameter: str, info: ParameterInfo) -> str:
    if not info.help:
        raise ValueError(f"{verb}: {parameter}: no help says what it is")
    bounds = [f"from {_number(info.min)}"] if info.min is not None else []
    bounds += [f"to {_number(info.max)}"] if info.max is not None else []
    return _cell(f"{info.help} ({' '.join(bounds)})" if bounds else info.help)


def _number(value: float) -> str:
    """Whole numbers in full, with commas from a million on."""
    if value != int(value):
        return f"{value:g}"
    return f"{value:,.0f}" if value >= 1e6 else f"{value:.0f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").removesuffix(".")


def pages() -> list[Path]:
    """Every page that has such tables."""
    return [CONFIGURATION, *sorted(VERBS.glob("*.md"))]


if __name__ == "__main__":
    for path in pages():
        path.write_text(page(path))
