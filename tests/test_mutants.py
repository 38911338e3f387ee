"""The table of mutants fits the source, the tests and its page; `mutants.py` runs them."""

from __future__ import annotations

import ast

import pytest

import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda one: one.name)
def test_a_mutant_can_be_made_and_its_tests_are_there(mutant: mutants.Mutant) -> None:
    text = (mutants.REPOSITORY / "src" / "acclimate" / mutant.file).read_text()
    assert text.count(mutant.before) == 1
    ast.parse(text.replace(mutant.before, mutant.after))
    for test in mutant.tests:
        file, name = test.split("::")
        defined = ast.parse((mutants.REPOSITORY / "tests" / file).read_text())
        assert name in {node.name for node in ast.walk(defined) if isinstance(node, ast.FunctionDef)}


def test_the_page_lists_every_mutant_and_a_test_that_notices_it() -> None:
    rows = [line.split(" | ") for line in mutants.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    killers = {}
    for name, *_, noticed in rows:
        test, file = noticed.rstrip(" |").replace("`", "").split(" in tests/")
        killers[name.removeprefix("| ")] = f"{file}::{test}"
    assert [*killers] == [one.name for one in mutants.MUTANTS]
    assert all(killers[one.name] in one.tests for one in mutants.MUTANTS)
    assert mutants.PAGE.read_text() == mutants.page(killers)
