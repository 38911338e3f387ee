"""User and password in the address of a stream: never in what is written or shown, and not only on the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from acclimate.errors import AcclimateError

VARIABLE = "ACCLIMATE_STREAM_PASSWORD"
"""Environment variable with the password of a stream whose address names a user alone; `secret` says what else may."""
FILE_VARIABLE = f"{VARIABLE}_FILE"
"""The same, with a file whose first line is the password."""

# With one slash, as a typing error has it, there may be a password behind it all the same.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{1,30}:/+"
_ADDRESS = re.compile(rf"({_SCHEME})((?:(?!{_SCHEME})\S)*)")
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST = re.compile(r"(\[[^\]]*\]|[\w.%-]*)(:\d{0,5})?")
_SURELY_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w-]+(\.[\w-]+)+)(:\d+)?([/?#]|$)")
_PARAMETER = re.compile(r"([?&;/])([^?&;/=#]+)=[^&;#]*")
_SECRET = re.compile(
    r"(?i)pas(s|$)|pwd|psw|token|secret|auth|key|use?r|sig|cred|session|jwt|login|^(amp;)?(p|pw|u|sid|code)$"
)
"""In names of parameters whose values are nobody's business."""


def masked(text: str) -> str:
    """`text` without user, password or secret parameter in any address that it holds; the rest of it stays."""
    return _ADDRESS.sub(lambda found: found[1] + _PARAMETER.sub(_hidden, _parted(found[2])[1]), text)


def _hidden(parameter: re.Match[str]) -> str:
    mark, name = parameter[1], parameter[2]
    return f"{mark}{name}=..." if _SECRET.search(unquote(name)) else parameter[0]


def _parted(address: str) -> tuple[str | None, str]:
    """User and password of an address without its scheme, None where it has neither; and the rest of it."""
    authority = _AUTHORITY.match(address)
    assert authority is not None
    user, at, host = authority[0].rpartition("@")
    if not _HOST.fullmatch(host) or (not at and ":" in host and _SURELY_HOST.match(address.rpartition("@")[2])):
        # A password with a slash or the like in it, which is none by the rules, yet is a secret.
        user, at, _ = address.rpartition("@")
    return (user, address[len(user) + 1 :]) if at else (None, address)


def with_password(address: str) -> str:
    """The address of a stream with the password that the environment holds, where it names a user and none.

    Raises:
        AcclimateError: the password's file cannot be read.
    """
    found = _ADDRESS.fullmatch(address)
    user, rest = _parted(found[2]) if found else (None, "")
    if found is None or not user or ":" in user or not (password := secret(VARIABLE)):
        return address
    return f"{found[1]}{user}:{quote(password, safe='')}@{rest}"


def secret(variable: str) -> str:
    """What a variable of the environment holds, or the first line of the file that VARIABLE_FILE names; else nothing.

    Raises:
        AcclimateError: the file cannot be read.
    """
    if value := os.environ.get(variable, ""):
        return value
    file = os.environ.get(f"{variable}_FILE", "")
    if not file:
        return ""
    try:
        return (Path(file).read_text().splitlines() or [""])[0]
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is no text"
        raise AcclimateError(f"{variable}_FILE: {file}: cannot be read ({said})") from None
