"""What a reader of the reference is told: shapes wherever an array goes in or out, and each of many parameters."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "acclimate"
ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray|Floats|Ints|Image)\b")
AXIS = r"(?:\.\.\.|\w+'?(?: [-+*/] \w+)*)"
SHAPE = re.compile(rf"\((?=[^()]*(?:[A-Z\d]|\.\.\.)){AXIS},(?: {AXIS})?(?:, {AXIS})*\)|\bscalars?\b|\bshapes?\b")
"""Such as (B, C, H, W), (N,) or (..., 4), or a word for what has none or another's; (height, width) is none."""
MANY = 4
"""Parameters from which each is described."""


@dataclass(frozen=True)
class Callable:
    """A public function, or a method of a public class."""

    module: str
    owner: str
    node: ast.FunctionDef

    @property
    def name(self) -> str:
        return ".".join(filter(None, [self.module, self.owner, self.node.name]))

    @property
    def parameters(self) -> list[ast.arg]:
        given = self.node.args
        all_of_them = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        return [one for one in all_of_them if one is not None and one.arg not in {"self", "cls"}]

    @property
    def annotations(self) -> str:
        own = [one.annotation for one in self.parameters] + [self.node.returns]
        return " ".join(ast.unparse(annotation) for annotation in own if annotation is not None)

    def says(self) -> str:
        """Its docstring; of a method also those of what it overrides, and of `__init__` that of its class."""
        own = ast.get_docstring(self.node) or ""
        if not self.owner:
            return own
        owner = getattr(importlib.import_module(self.module), self.owner)
        bases = [base for base in owner.__mro__ if base.__module__.startswith("acclimate")]
        if self.node.name == "__init__":
            return f"{own}\n{owner.__doc__ or ''}"
        overridden = [vars(base).get(self.node.name) for base in bases]
        return "\n".join([own, *(inspect.getdoc(method) or "" for method in overridden if method is not None)])


@cache
def public(module: Path) -> tuple[Callable, ...]:
    return tuple(_public(module))


def _public(module: Path) -> Iterator[Callable]:
    name = ".".join(("acclimate", *module.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef) and _shown(node):
            yield Callable(name, "", node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and _shown(method):
                    yield Callable(name, node.name, method)


def _shown(node: ast.FunctionDef) -> bool:
    # The command line describes its options where they are declared; tests/test_option_tables.py looks at those.
    is_verb = any(ast.unparse(decorator).startswith("app.command") for decorator in node.decorator_list)
    return not is_verb and (not node.name.startswith("_") or node.name in {"__init__", "__call__"})


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.stem.startswith("_") or path.stem == "__init__"]


def missing_shapes(module: Path) -> list[str]:
    arrays = [one for one in public(module) if ARRAY.search(one.annotations)]
    return [one.name for one in arrays if not SHAPE.search(one.says())]


def missing_parameters(module: Path) -> list[str]:
    """Functions of many parameters, each with those that no `Args:` names."""
    missing = []
    for one in public(module):
        if len(one.parameters) >= MANY:
            described = _described(one)
            if left_out := [each.arg for each in one.parameters if each.arg not in described]:
                missing.append(f"{one.name}: {', '.join(left_out)}")
    return missing


def _described(one: Callable) -> set[str]:
    """The parameters that its `Args:` name, or those of a function that it refers to: "Arguments as of `car`."."""
    says = inspect.cleandoc(one.says())
    sections = re.findall(r"Args:\n(.*?)(?=\n\s*\n|\Z)", says, flags=re.DOTALL)
    described = {name for section in sections for name in re.findall(r"^ *(\w+): ", section, flags=re.MULTILINE)}
    for reference in re.findall(r"Arguments as of\s+`([\w.]+)`", says):
        found = [other for module in MODULES for other in public(module) if _is(reference, other, one.module)]
        assert len(found) == 1, f"{one.name}: {reference} is not one function"
        described |= _described(found[0])
    return described


def _is(reference: str, other: Callable, module: str) -> bool:
    return other.name in {f"{module}.{reference}", f"acclimate.{reference}"}


def test_shapes_stand_wherever_an_array_goes_in_or_out() -> None:
    assert [name for module in MODULES for name in missing_shapes(module)] == []


def test_each_of_many_parameters_is_described() -> None:
    assert [name for module in MODULES for name in missing_parameters(module)] == []


EXAMPLE = '''
from torch import Tensor

def area(boxes: Tensor) -> Tensor:
    """Of boxes (N, 4) -> (N,)."""

def bare(boxes: Tensor) -> Tensor:
    """Of boxes."""

def four(a: int, b: int, c: int, *, d: int) -> int:
    """The sum.

    Args:
        a: the first.
        b: the second.
        c: the third.
    """
'''


def test_what_is_left_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = tmp_path / "example.py"
    module.write_text(EXAMPLE)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert missing_shapes(module) == ["acclimate.example.bare"]
    assert missing_parameters(module) == ["acclimate.example.four: d"]
