"""Who a device is, and who may use it: a certificate that the desk pins, and a token that the agent asks for.

There is no authority to vouch for a device on a site's network, so the certificate is self-signed and the desk compares
its SHA-256, the *fingerprint*, before it sends anything. The token travels inside that connection alone. Both are made
at the agent's first start and stay. The device file has all that the desk needs, and is as secret as the token.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
import ssl
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.run import write_text, writing

PORT = 7443
TOKEN_VARIABLE = "ACCLIMATE_TOKEN"
"""Environment variable from which the desk takes the token where there is no device file; never the command line."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_VALID = datetime.timedelta(days=36500)


@dataclass(frozen=True, slots=True)
class Address:
    """Where an agent is, how to know it, and what to show it."""

    host: str
    port: int
    fingerprint: str
    """SHA-256 of the certificate (DER), 64 hexadecimal digits."""
    token: str

    @property
    def name(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What an agent keeps in its folder."""

    certificate: Path
    key: Path
    token: str
    fingerprint: str

    @classmethod
    def open(cls, home: Path) -> Identity:
        """Read the identity in `home`, or make one there.

        Raises:
            AcclimateError: `cryptography` is not installed, `home` cannot be written, or what is there is damaged.
        """
        certificate, key, token = (home / name for name in ("agent.crt", "agent.key", "token"))
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            home.chmod(0o700)
            if not (certificate.is_file() and key.is_file()):
                _make_certificate(certificate, key)
            if not token.is_file():
                _write_secret(token, secrets.token_urlsafe(32) + "\n")
        try:
            data = ssl.PEM_cert_to_DER_cert(certificate.read_text())
            kept = token.read_text().strip()
        except (OSError, ValueError) as error:
            raise AcclimateError(f"{home}: damaged ({error}); delete agent.crt, agent.key and token there") from None
        if len(kept) < 16:
            raise AcclimateError(f"{token}: is too short to be safe; delete it, and the agent makes another one")
        return cls(certificate, key, kept, hashlib.sha256(data).hexdigest())

    def write_device_file(self, file: Path, host: str, port: int) -> Path:
        """Write what the desk needs to `file`, readable for its owner alone."""
        text = f'host = "{host}"\nport = {port}\nfingerprint = "{self.fingerprint}"\ntoken = "{self.token}"\n'
        return _write_secret(file, text)


def address(device: str, fingerprint: str = "") -> Address:
    """The agent that `device` means: a device file, or HOST[:PORT] with `fingerprint` and the token in the environment.

    Raises:
        AcclimateError: the file is damaged, the address is none, or the fingerprint or the token is missing.
    """
    values: dict[str, object] = {}
    if Path(device).is_file():
        try:
            values = tomllib.loads(Path(device).read_text())
        except (OSError, ValueError) as error:
            raise AcclimateError(f"{device}: not a device file ({error}); copy it from the agent again") from None
    else:
        values = dict(zip(("host", "port"), split(device), strict=True))
    if fingerprint:
        values["fingerprint"] = fingerprint
    if os.environ.get(TOKEN_VARIABLE):
        values["token"] = os.environ[TOKEN_VARIABLE]
    found, port, token = values.get("host"), values.get("port", PORT), values.get("token")
    pinned = str(values.get("fingerprint", "")).lower().removeprefix("sha256:").replace(":", "")
    if not isinstance(found, str) or not found or not isinstance(port, int) or not 0 < port < 65536:
        raise AcclimateError(f"{device}: names no host and port; copy the device file from the agent again")
    if not _FINGERPRINT.fullmatch(pinned):
        raise AcclimateError(f"{device}: give --fingerprint, the 64 hexadecimal digits that the agent printed")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise AcclimateError(
            f"{device}: set {TOKEN_VARIABLE} to the agent's token, or give its device file to --device"
        )
    return Address(found, port, pinned, token)


def split(text: str) -> tuple[str, int]:
    """Host and port of HOST[:PORT], an IPv6 address in brackets.

    Raises:
        AcclimateError: it is neither.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.netloc != text or "@" in text:
        raise AcclimateError(f"{text}: neither a file nor HOST[:PORT], such as 192.168.1.20:{PORT}")
    return host, PORT if port is None else port


def _make_certificate(certificate: Path, key: Path) -> None:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError:
        raise AcclimateError(f"the agent needs cryptography: {hint('agent')}") from None
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "acclimate agent")])
    # Nothing reads the dates: the desk knows the certificate itself, and a device's clock may start in 1970.
    start = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    secret = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_secret(key, secret.decode())
    write_text(certificate, signed.public_bytes(encoding).decode())


def _write_secret(path: Path, text: str) -> Path:
    """Write a file that nobody else may read, not even while it is written."""
    before = os.umask(0o077)
    try:
        return write_text(path, text)
    finally:
        os.umask(before)
