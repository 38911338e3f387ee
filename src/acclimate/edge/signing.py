"""Who packed a package: an Ed25519 signature (RFC 8032) over its list of files, and through that over every byte.

Keys are PEM files, as `openssl genpkey -algorithm ed25519 -out key.pem` makes one and
`openssl pkey -in key.pem -pubout -out key.pub` gives its public half. `cryptography` is imported when a key is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acclimate.errors import AcclimateError
from acclimate.installation import hint

LENGTH = 64
"""Bytes of a signature."""
_CONTEXT = b"acclimate package 1\0"
"""Stands before what is signed, so that a signature made for something else is none of a package."""
_MAKE = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub"


@dataclass(frozen=True, slots=True)
class Signed:
    """What a package must be: signed by the owner of a public key, and of a digest unless that is empty."""

    key: Path
    digest: str = ""


def sign(key: Path, data: bytes) -> bytes:
    """The signature of `data`.

    Args:
        key: PEM file of a private Ed25519 key without a passphrase.
        data: what is signed.

    Raises:
        AcclimateError: `key` is none, or cannot be read, or `cryptography` is not installed.
    """
    from_pem = _serialization().load_pem_private_key
    private = _loaded(key, lambda text: from_pem(text, password=None), "private")
    signature: bytes = private.sign(_CONTEXT + data)
    return signature


def signed_by(key: Path, signature: bytes, data: bytes) -> bool:
    """Whether the owner of a public key made the signature.

    Raises:
        AcclimateError: see `check_key`.
    """
    from cryptography.exceptions import InvalidSignature

    public = _loaded(key, _serialization().load_pem_public_key, "public")
    try:
        public.verify(signature, _CONTEXT + data)
    except InvalidSignature:
        return False
    return True


def check_key(key: Path) -> None:
    """Refuse what is no PEM file of a public Ed25519 key.

    Raises:
        AcclimateError: it is not, or cannot be read, or `cryptography` is not installed.
    """
    _loaded(key, _serialization().load_pem_public_key, "public")


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError:
        raise AcclimateError(f"signatures need cryptography: {hint('agent')}") from None
    return serialization


def _loaded(key: Path, load: Any, half: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        found = load(key.read_bytes())
    except OSError as error:
        raise AcclimateError(f"{key}: cannot be read ({error.strerror}); to make a key: {_MAKE}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AcclimateError(
            f"{key}: not the PEM file of a {half} key without a passphrase; to make one: {_MAKE}"
        ) from None
    if not isinstance(found, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        raise AcclimateError(f"{key}: not an Ed25519 key; to make one: {_MAKE}")
    return found
