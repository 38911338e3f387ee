"""One self-contained HTML page for the manager and the engineer, written from run folders.

`write` makes the page; `pictures.save` stores, during a run, what its picture section shows.
"""

from __future__ import annotations

from acclimate.report.page import write

__all__ = ["write"]
