"""How this copy of acclimate was installed, and so what brings an extra of it: true wherever the copy came from.

acclimate is on no registry that anybody promised to keep, so no hint names it as if it were: whoever took the name
there would own the advice.
"""

from __future__ import annotations

import json
import shlex
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement


def hint(extra: str = "") -> str:
    """The command that installs `extra` beside what is here, or what the base package needs where it is empty.

    Args:
        extra: one extra, or several with commas.
    """
    where = _origin()
    named = f"[{extra}]" if extra else ""
    if where is None:
        return f"pip install {' '.join(shlex.quote(text) for text in _needs(extra)) or 'what its pyproject.toml names'}"
    place, editable = where
    if "://" in place:
        return f"pip install {shlex.quote(f'acclimate{named} @ {place}')}"
    return f"pip install {'-e ' if editable else ''}{shlex.quote(place + named)}"


@cache
def _origin() -> tuple[str, bool] | None:
    """A folder, or the address of an archive or repository, and whether it is installed in place; None if not known."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file() and (root / "src").is_dir():
        return str(root), True
    try:
        # PEP 610: written by the installer where a copy came from neither an index nor a list of files.
        told = json.loads(metadata.distribution("acclimate").read_text("direct_url.json") or "null")
        address = str(told["url"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    parts = urlsplit(address)
    if parts.scheme == "file":
        place = unquote(parts.path)
        return (place, bool(told.get("dir_info", {}).get("editable"))) if Path(place).exists() else None
    if (repository := told.get("vcs_info")) is not None:
        return f"{repository.get('vcs', 'git')}+{address}@{repository.get('commit_id', '')}".rstrip("@"), False
    return address, False


def _needs(extra: str) -> list[str]:
    """The packages themselves, where nothing is known but the metadata of what is installed."""
    try:
        stated = [Requirement(text) for text in metadata.requires("acclimate") or ()]
    except metadata.PackageNotFoundError:
        return []
    wanted = {name.strip() for name in extra.split(",")}
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in stated
        if (requirement.marker is None and not extra)
        or (requirement.marker is not None and any(requirement.marker.evaluate({"extra": name}) for name in wanted))
    ]
