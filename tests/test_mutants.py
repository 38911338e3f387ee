"""The table of mutants fits the source and the tests; `mutants.py` runs them."""

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
