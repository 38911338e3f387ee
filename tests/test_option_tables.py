"""The tables of options in the documentation are those of the options themselves, and every option is in one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field
from typer.main import get_command

from acclimate import cli
from acclimate.config import Config, parse
from acclimate.config.reading import merge

REPOSITORY = Path(__file__).resolve().parents[1]
PLACES = re.compile(r"<!-- options: ([\w. ]+) -->")


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    return importlib.import_module("options")


def test_no_table_is_stale(options: Any) -> None:
    stale = [page.name for page in options.pages() if options.page(page) != page.read_text()]
    assert stale == [], "make docs writes them anew"


def test_every_verb_has_its_table_on_its_page(options: Any) -> None:
    pages = {page.stem: PLACES.findall(page.read_text()) for page in options.VERBS.glob("*.md")}
    assert {name for name, places in pages.items() if places} == set(options.verbs())
    assert all(places in ([], [name]) for name, places in pages.items())


def test_every_section_of_a_job_has_one_table(options: Any) -> None:
    shown = [options.section(places.split()[0]) for places in PLACES.findall(options.CONFIGURATION.read_text())]
    sections: list[type[BaseModel]] = [Config]
    for section in sections:
        for field in section.model_fields.values():
            inner = options.below(field)
            if inner is not None and inner not in sections:
                sections.append(inner)
    assert sorted(section.__name__ for section in shown) == sorted(section.__name__ for section in sections)


def test_sections_with_one_table_have_the_same_options(options: Any) -> None:
    for places in PLACES.findall(options.CONFIGURATION.read_text()):
        assert len({options.section(name) for name in places.split()}) == 1


class Described(BaseModel):
    """Options as a section has them."""

    plain: Annotated[int, "another mark"] = Field(default=3, ge=1, le=8)
    """How many
    there are."""
    either: float | Literal["auto"] = "auto"
    """A number, or not."""
    several: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """Ratios."""


class Bare(BaseModel):
    """One that says nothing of its option."""

    silent: int = 0


def test_a_description_is_the_docstring_below_a_field(options: Any) -> None:
    assert options.descriptions(Described)["plain"].split() == ["How", "many", "there", "are."]
    with pytest.raises(ValueError, match="Bare: silent: no docstring"):
        options.descriptions(Bare)


def test_what_an_option_may_be_is_told_by_its_type_and_bounds(options: Any) -> None:
    said = {key: options._kind(field.annotation, field.metadata) for key, field in Described.model_fields.items()}
    assert said == {
        "plain": "whole number from 1 to 8",
        "either": 'number or `"auto"`',
        "several": "list of numbers above 0, up to 1",
    }


def test_the_study_notes_name_what_is_there() -> None:
    """At least forty techniques; every key of theirs is one and takes the value, every file and every flag is there."""
    rows = re.findall(r"^\| (?!technique)[^-].*\|$", (REPOSITORY / "docs" / "study-notes.md").read_text(), re.MULTILINE)
    assert len(rows) >= 40
    commands: Any = get_command(cli.app)
    for row in rows:
        cells = [re.findall(r"`([^`]+)`", cell) for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        values: dict[str, Any] = {}
        for text in cells[1]:
            words = text.removeprefix("acclimate ").split()
            if (verb := commands.commands.get(words[0])) is not None:
                known = {flag for parameter in verb.params for flag in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= known, text
            key, _, value = text.partition(" = ")
            if (section := key.partition(".")[0]) in Config.model_fields and key != section:
                options: Any = Config.model_fields[section].annotation
                for name in key.split(".")[1:]:
                    assert name in options.model_fields, text
                    options = options.model_fields[name].annotation
                    options = next((one for one in get_args(options) if hasattr(one, "model_fields")), options)
                values = merge(values, [f"{key}={value}"]) if value else values
        for section, given in values.items():
            parse(Config.model_fields[section].annotation, given, where=row)  # type: ignore[arg-type]
        for text in cells[2]:
            assert not text.endswith((".py", "/")) or (REPOSITORY / "src" / "acclimate" / text).exists(), text
