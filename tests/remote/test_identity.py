from __future__ import annotations

import datetime
import hashlib
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from acclimate.errors import AcclimateError
from acclimate.remote.identity import PORT, TOKEN_VARIABLE, Address, Identity, address, split

FINGERPRINT = "0123456789abcdef" * 4


def test_an_identity_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    made = Identity.open(tmp_path / "home")
    assert Identity.open(tmp_path / "home") == made
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    assert made.fingerprint == hashlib.sha256(der).hexdigest()
    assert certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3650)
    certificate.verify_directly_issued_by(certificate)
    assert len(made.token) >= 40
    file = made.write_device_file(tmp_path / "home" / "device.toml", "edge.local", 7443)
    for secret in (made.key, tmp_path / "home" / "token", file):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert Identity.open(tmp_path / "other") != made
    assert address(str(file)) == Address("edge.local", 7443, made.fingerprint, made.token)


def test_a_damaged_identity_is_not_replaced_silently(tmp_path: Path) -> None:
    made = Identity.open(tmp_path)
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(AcclimateError, match="token: is too short to be safe"):
        Identity.open(tmp_path)
    (tmp_path / "token").write_text(made.token)
    made.certificate.write_text("x")
    with pytest.raises(AcclimateError, match=r"damaged .*delete agent\.crt, agent\.key and token"):
        Identity.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edge", ("edge", PORT)),
        ("10.0.0.2:80", ("10.0.0.2", 80)),
        ("[::1]:80", ("::1", 80)),
        ("[fe80::1]", ("fe80::1", PORT)),
    ],
)
def test_hosts_and_ports(text: str, expected: tuple[str, int]) -> None:
    assert split(text) == expected


@pytest.mark.parametrize("text", ["", ":80", "host:port", "host:99999", "user@host", "host/path", "[::1", "a b:c"])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(AcclimateError, match=r"neither a file nor HOST\[:PORT\]"):
        split(text)


def test_an_address_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(AcclimateError, match="give --fingerprint"):
        address("edge")
    with pytest.raises(AcclimateError, match="set ACCLIMATE_TOKEN to the agent's token"):
        address("edge", FINGERPRINT)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    expected = Address("edge", 80, FINGERPRINT, "secret")
    spelt = ":".join(FINGERPRINT[i : i + 2] for i in range(0, 64, 2)).upper()
    for fingerprint in (FINGERPRINT, spelt, f"sha256:{FINGERPRINT}"):
        assert address("edge:80", fingerprint) == expected
    assert expected.name == "edge:80"
    assert Address("::1", 80, "", "").name == "[::1]:80"


def test_a_device_file_and_what_is_said_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "device.toml"
    file.write_text(f'host = "edge"\nport = 80\nfingerprint = "{FINGERPRINT}"\ntoken = "kept"\n')
    assert address(str(file)) == Address("edge", 80, FINGERPRINT, "kept")
    assert address(str(file), "f" * 64).fingerprint == "f" * 64
    monkeypatch.setenv(TOKEN_VARIABLE, "other")
    assert address(str(file)).token == "other"
    for text, match in (
        ("{", "not a device file"),
        ("port = 80", "names no host and port"),
        ('host = "edge"\nport = "80"', "names no host and port"),
        ('host = "edge"\nport = 80\nfingerprint = "abc"', "give --fingerprint"),
        ("\xff", "not a device file"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(AcclimateError, match=match):
            address(str(file))
