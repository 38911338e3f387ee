"""User and password in the address of a stream: never in what is written or shown, and not only on the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from acclimate.errors import AcclimateError

VARIABLE = "ACCLIMATE_STREAM_PASSWORD"
"""Environment variable with the password of a stream whose address names a user alone."""
FILE_VARIABLE = "ACCLIMATE_STREAM_PASSWORD_FILE"
"""The same, with a file whose first line is the password."""

_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)"
    # The second: a password with a slash in it, which is none by the rules, yet is a secret.
    r"(?P<user>[^/?#\s]*@|[^/?#\s@:]*:(?!\d*(?:[/?#\s]|$))\S*@)?"
    r"(?P<rest>\S*)"
)
_SECRET = re.compile(r"(?i)([?&;](?:[\w-]*(?:pass|pwd|token|secret|auth|key|user|sig)[\w-]*)=)[^&;#\s]*")


def masked(text: str) -> str:
    """`text` without user, password or secret parameter in any address that it holds; the rest of it stays."""
    return _ADDRESS.sub(lambda found: found["scheme"] + _SECRET.sub(r"\1...", found["rest"]), text)


def with_password(address: str) -> str:
    """The address of a stream with the password that the environment holds, where it names a user and none.

    Raises:
        AcclimateError: the password's file cannot be read.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or found["user"] is None or ":" in found["user"]:
        return address
    password = os.environ.get(VARIABLE, "")
    if not password and (file := os.environ.get(FILE_VARIABLE, "")):
        try:
            password = (Path(file).read_text().splitlines() or [""])[0]
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or "it is no text"
            raise AcclimateError(f"{FILE_VARIABLE}: {file}: cannot be read ({said})") from None
    if not password:
        return address
    return f"{found['scheme']}{found['user'][:-1]}:{quote(password, safe='')}@{found['rest']}"
