"""Tables whose lines are files: a thing called NAME is the class of that name in the file NAME."""

from __future__ import annotations

import importlib
from typing import Any


def class_of(module: str, name: str, attribute: str = "name") -> Any:
    """The class in a module whose own `attribute` is `name`: the first, where another derives from it.

    Raises:
        ModuleNotFoundError: there is no such module.
        LookupError: the module has no such class.
    """
    for part in vars(importlib.import_module(module)).values():
        if isinstance(part, type) and getattr(part, attribute, None) == name:
            return part
    raise LookupError(f"{module} has no class whose {attribute} is {name!r}")
