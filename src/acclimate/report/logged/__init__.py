"""Sections of the page on what methods and trainings logged, a file each: it reads that, and draws it by its template.

A section NAME is the module NAME here, whose `drawn(content)` gives what NAME.html beside it shows, one thing after the
other; nothing where no run logged it. So a method that logs something of its own brings its section with it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acclimate.report.content import Content


def sections(content: Content) -> list[dict[str, Any]]:
    """The template of each section that has something to show, by name, and what that is."""
    parts = (part.name for part in pkgutil.iter_modules(__path__))
    drawn = ((name, importlib.import_module(f"{__name__}.{name}").drawn(content)) for name in sorted(parts))
    return [{"template": f"logged/{name}.html", "shown": shown} for name, shown in drawn if shown]
