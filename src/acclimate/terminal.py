"""A console on which what is foreign can do nothing: a name of a file or class may hold what a terminal obeys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_LAYOUT = "\n\t"
"""What is not printable, and yet meant."""


def printable(text: str) -> str:
    r"""`text` with each character that cannot be shown as its escape, as in \x1b; lines and tabs stay."""
    return "".join(sign if sign.isprintable() or sign in _LAYOUT else ascii(sign)[1:-1] for sign in text)


class Terminal(Console):
    """A console that prints text as `printable` has it. What it draws itself, as a bar that moves, is as ever."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Text:
        """Text of a string, which is as wide as it is shown."""
        return super().render_str(printable(text), *arguments, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a thing, those of its parts too."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text=printable(segment.text))
