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
        needs = [shlex.quote(f"{one.name}{one.specifier}") for one in required(extra)]
        return f"pip install {' '.join(needs) or 'what its pyproject.toml names'}"
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


def required(extra: str = "") -> list[Requirement]:
    """What the installed acclimate states that it needs: its base, or what extras, with commas, add to it."""
    try:
        stated = [Requirement(text) for text in metadata.requires("acclimate") or ()]
    except metadata.PackageNotFoundError:
        return []

    def asked(requirement: Requirement, name: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": name})

    base = [one for one in stated if asked(one, "")]
    names = [name.strip() for name in extra.split(",")]
    return [one for one in stated if one not in base and any(asked(one, name) for name in names)] if extra else base
