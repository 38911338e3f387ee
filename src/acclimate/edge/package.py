"""The package: one file that takes an artifact to a device, and is looked through before anything in it is used.

It is a zip file without compression that holds, in this order,

    package.json        what it is, and the SHA-256 of every other file (`PackageManifest`)
    __main__.py         `python site.zip VERB ...` means `acclimate VERB site.zip ...`, with the acclimate of the device
    requirements.txt    exact versions of acclimate and of all that the artifact's runtime needs, for pip
    artifact/           the artifact's folder
    package.sig         who packed it, where it is signed: 64 bytes over package.json (`edge.signing`)

Without compression its bytes depend on nothing but what is in it, and it cannot unpack to more than its own size; the
weights of a detector would shrink by a sixth at most. A package is accepted when packing its files anew gives the same
bytes: that leaves no place for a link, a path out of the folder, a file that the list does not have, or a changed byte.
The SHA-256 of package.json is the package's *digest*. Who compares it with the one that `acclimate package` printed
knows that it is the same package.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import logging
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import IO, Annotated

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field

from acclimate import __version__
from acclimate.edge.artifact import Artifact, refuse_newer
from acclimate.edge.signing import LENGTH, Signed, check_key, sign, signed_by
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.run import file_digest, parsed, write_bytes, writing_folder

log = logging.getLogger(__name__)

FORMAT = 2
"""The newest package format that this version reads. It writes 2 where a package is signed, and 1 where it is not."""
LARGEST = 512 * 2**20
"""Bytes of the largest package that is written or read."""
FILES = 64
"""A package holds no more files than this."""
LARGEST_LIST = 2**20
"""Bytes of the largest package.json."""

_LIST, _MAIN, _LOCK, _ARTIFACT = "package.json", "__main__.py", "requirements.txt", "artifact/"
_SIGNATURE = "package.sig"
_LOCKED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}==[A-Za-z0-9][A-Za-z0-9.+!_-]{0,99}")
"""A line of requirements.txt: a name and a version, so that it sends `pip` nowhere."""
_NAME = re.compile(r"(artifact/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_END = struct.Struct("<4s4H2LH")
_ZIP64 = b"PK\x06\x07"

_PROGRAM = '''\
"""python site.zip VERB ARGUMENTS: the same as acclimate VERB site.zip ARGUMENTS, with the acclimate installed here."""

import sys

package = sys.path.pop(0)
try:
    from acclimate.cli import main
except ModuleNotFoundError as missing:
    way_out = f"install acclimate from where you trust; acclimate package {package} --out site then looks it through"
    sys.exit(f"error: {missing.name} is not installed here: {way_out}")
if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
    sys.exit(f"usage: python {package} VERB ...; for example: python {package} predict images --out found")
sys.exit(main([sys.argv[1], package, *sys.argv[2:]]))
'''

_EARLIER_PROGRAMS = frozenset({"3399ce6d69fa624d2ba18d01b2c2454f2b97aa0b743082707abb0b58ba3bebe2"})
"""SHA-256 of the programs of packages that earlier versions wrote; any other is refused, as `python` would obey it."""

Expected = str | Signed
"""What a package must be: its digest, empty for any, or by whom it is signed."""


class PackageManifest(BaseModel):
    """Written as `package.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Annotated[int, Field(ge=1, strict=True)] = 1
    artifact: str = Field(max_length=255)
    """Name of the artifact inside."""
    runtime: str = Field(max_length=100)
    precision: str = Field(max_length=100)
    files: dict[str, str]
    """Path in the package -> SHA-256, in the package's order."""
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was written, or was looked through and found whole."""

    manifest: PackageManifest
    digest: str
    """SHA-256 of package.json, hexadecimal."""
    signed: bool = False
    """Whether it carries a signature; it was compared with a key only where that was asked for."""


def pack(artifact: Path, out: Path, requirements: Sequence[str], key: Path | None = None) -> Package:
    """Write the package of an artifact; the same input gives the same bytes.

    Args:
        artifact: its folder.
        out: the file to write; one that is there is replaced.
        requirements: lines of requirements.txt; see `locked`.
        key: a private key to sign it with.

    Raises:
        AcclimateError: the artifact is damaged or larger than any package, `key` is none, or `out` cannot be written.
    """
    opened_artifact = Artifact.open(artifact)
    folder, out = opened_artifact.folder, Path(out)
    names = ["artifact.json", *sorted(opened_artifact.manifest.files)]
    size = sum((folder / name).stat().st_size for name in names)
    if size > LARGEST:
        raise AcclimateError(f"{folder}: is {size / 1e6:.0f} MB, and a package holds at most {LARGEST / 1e6:.0f} MB")
    contents = {_MAIN: _PROGRAM.encode(), _LOCK: "".join(f"{line}\n" for line in requirements).encode()}
    contents |= {_ARTIFACT + name: (folder / name).read_bytes() for name in names}
    for name in contents:
        if not _NAME.fullmatch(name):
            raise AcclimateError(f"{folder / Path(name).name}: a package holds no file of such a name; rename it")
    manifest = PackageManifest(
        format=1 if key is None else FORMAT,
        artifact=opened_artifact.manifest.name,
        runtime=opened_artifact.manifest.runtime,
        precision=opened_artifact.manifest.precision,
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    )
    listed = (manifest.model_dump_json(indent=1) + "\n").encode()
    if key is not None:
        contents[_SIGNATURE] = sign(key, listed)
    buffer = BytesIO()
    _write(buffer, {_LIST: BytesIO(listed), **{name: BytesIO(data) for name, data in contents.items()}})
    if out.is_dir():
        raise AcclimateError(f"{out}: is a folder; name the file to write, such as {out / 'site.zip'}")
    write_bytes(out, buffer.getvalue())
    return Package(manifest, hashlib.sha256(listed).hexdigest(), key is not None)


def unpack(file: Path, folder: Path, expected: Expected = "") -> Package:
    """Look a package through and put its files into `folder`, all of them or none.

    Args:
        file: the package.
        folder: does not exist yet; afterwards it holds what the package does, the artifact in `artifact/`.
        expected: the digest that it must have, empty for any, or by whom it must be signed.

    Raises:
        AcclimateError: it is no package, damaged, changed, too large, from a newer version, not the expected one, not
            signed as it must be, or `folder` cannot be written.
    """
    file, folder = Path(file), Path(folder)
    if folder.exists():
        raise AcclimateError(f"{folder}: is there already; choose another --out")
    with writing_folder(folder) as fresh:
        with _reading(file), open(file, "rb") as stream:
            _check_end(file, stream)
            with zipfile.ZipFile(stream) as archive:
                package = _extract(file, archive, fresh, expected)
            with tempfile.TemporaryFile(dir=folder.parent) as again, contextlib.ExitStack() as stack:
                names = [_LIST, *package.manifest.files, *([_SIGNATURE] if package.signed else [])]
                _write(again, {name: stack.enter_context(open(fresh / name, "rb")) for name in names})
                if not _same(stream, again):
                    raise AcclimateError(f"{file}: is not as it was packed; copy the package again")
        _check_lines(file, fresh)
        _check_artifact(file, fresh, package.manifest)
    return package


@contextlib.contextmanager
def opened(path: Path, expected: Expected = "") -> Iterator[Path]:
    """The artifact's folder, whether `path` is that folder or a package, which is unpacked for as long as needed.

    Args:
        path: an artifact's folder or a package.
        expected: see `unpack`.

    Raises:
        AcclimateError: see `unpack`; or `expected` is given for a folder, which has neither digest nor signature.
    """
    path = Path(path)
    if not path.is_file():
        if isinstance(expected, Signed):
            raise AcclimateError(f"{path}: only a package can be signed; make one with `acclimate package --sign`")
        if expected:
            raise AcclimateError(f"{path}: only a package has a digest to compare with; leave --digest out")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="acclimate-") as temporary:
        folder = Path(temporary) / "package"
        unpack(path, folder, expected)
        if unlike := differences(folder / _LOCK):
            log.warning("%s: was packed with other versions than are installed here: %s", path, ", ".join(unlike))
        yield folder / _ARTIFACT


def locked(packages: Sequence[str]) -> list[str]:
    """`name==version` of installed packages and of all that they need, sorted; no registry is named.

    Args:
        packages: distributions, as `pip` names them.

    Raises:
        AcclimateError: one of them is not installed.
    """
    versions: dict[str, str] = {}
    waiting = [Requirement(name) for name in packages]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise AcclimateError(
                f"{name} is not installed, so its version cannot be locked: {_install(name)}"
            ) from None
        stated = [Requirement(text) for text in metadata.requires(name) or ()]
        for extra in extras or {""}:
            waiting += [one for one in stated if one.marker is None or one.marker.evaluate({"extra": extra})]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _install(name: str) -> str:
    return hint() if name == "acclimate" else f"pip install {name}"


def differences(lock: Path) -> list[str]:
    """What is installed here in another version than `lock` says: "numpy 2.0 instead of 2.1"."""
    found = []
    for line in lock.read_text().splitlines():
        name, _, version = line.partition("==")
        with contextlib.suppress(metadata.PackageNotFoundError, ValueError):
            if (here := metadata.version(name)) != version:
                found.append(f"{name} {here} instead of {version}")
    return found


def _write(target: IO[bytes], contents: Mapping[str, IO[bytes]]) -> None:
    """The zip file of `contents`, in their order; of the machine and the day nothing goes into it."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, stream in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            with archive.open(entry, "w") as member:
                shutil.copyfileobj(stream, member)


def _check_end(file: Path, stream: IO[bytes]) -> None:
    """Refuse, from the last bytes alone, what is no zip file or would cost memory to list."""
    size = stream.seek(0, 2)
    if size > LARGEST + LARGEST_LIST:
        raise AcclimateError(f"{file}: is {size / 1e6:.0f} MB, and no package is larger than {LARGEST / 1e6:.0f} MB")
    stream.seek(max(0, size - _END.size - 20))
    tail = stream.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\x05\x06"):
        raise AcclimateError(f"{file}: not a package, or cut short; `acclimate package` makes one")
    count, length = _END.unpack(end)[4:6]
    if count > FILES or length > FILES * 256 or tail.startswith(_ZIP64):
        raise AcclimateError(f"{file}: holds more files than any package; `acclimate package` makes one")
    stream.seek(0)


def _check_expected(file: Path, listed: bytes, signature: bytes | None, expected: Expected) -> None:
    """Refuse another package than the expected one, by its list, before anything else in it is looked at."""
    wanted, digest = expected if isinstance(expected, str) else expected.digest, hashlib.sha256(listed).hexdigest()
    if wanted and not hmac.compare_digest(digest.encode(), wanted.lower().encode()):
        raise AcclimateError(f"{file}: is another package: its digest is {digest}, not {wanted}")
    if isinstance(expected, str):
        return
    if signature is None:
        check_key(expected.key)
        raise AcclimateError(f"{file}: is not signed, and a signature is asked for; pack it with --sign")
    if not signed_by(expected.key, signature, listed):
        raise AcclimateError(f"{file}: is not signed by the owner of {expected.key}; do not use it")


def _check_lines(file: Path, folder: Path) -> None:
    """Refuse a program or a list of versions that is not of our making: somebody else's tools would obey them."""
    if (folder / _MAIN).read_bytes() != _PROGRAM.encode() and file_digest(folder / _MAIN) not in _EARLIER_PROGRAMS:
        raise AcclimateError(f"{file}: its {_MAIN} is not acclimate's; `acclimate package` makes a package anew")
    lines = (folder / _LOCK).read_bytes().decode("ascii", "replace").splitlines()
    if wrong := [line for line in lines if not _LOCKED.fullmatch(line)]:
        raise AcclimateError(f"{file}: {_LOCK}: {wrong[0][:100]!r} is not NAME==VERSION; do not install from it")


def _check_artifact(file: Path, folder: Path, listed: PackageManifest) -> None:
    """Refuse a package whose artifact is damaged, or is another than it says."""
    inside = folder / _ARTIFACT
    try:
        artifact = Artifact.open(inside).manifest
    except AcclimateError as error:
        # The folder is there for a moment only; what is at fault is the package.
        said = str(error).replace(f"{inside}/", "").replace(str(inside), _ARTIFACT.rstrip("/"))
        raise AcclimateError(f"{file}: {said}") from None
    if (artifact.name, artifact.runtime, artifact.precision) != (listed.artifact, listed.runtime, listed.precision):
        raise AcclimateError(f"{file}: holds another artifact than it says; `acclimate package` makes a package anew")


def _extract(file: Path, archive: zipfile.ZipFile, folder: Path, expected: Expected) -> Package:
    """Write the files that the list names, each with the digest that it names; nothing is written outside `folder`."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise AcclimateError(f"{file}: holds a file twice; copy the package again")
    first = entries.pop(_LIST, None)
    if first is None or first.file_size > LARGEST_LIST:
        raise AcclimateError(f"{file}: not a package (it has no {_LIST}); `acclimate package` makes one")
    for name, entry in {_LIST: first, **entries}.items():
        if not _NAME.fullmatch(name) or entry.compress_type != zipfile.ZIP_STORED:
            raise AcclimateError(f"{file}: holds {name[:100]!r}, as no package does; `acclimate package` makes one")
    # Without compression, files that are larger together than the whole lie over one another.
    if sum(entry.file_size for entry in (first, *entries.values())) > LARGEST + LARGEST_LIST:
        raise AcclimateError(f"{file}: unpacks to more than any package; `acclimate package` makes one")
    listed = archive.read(first)
    signature = None
    if (last := entries.pop(_SIGNATURE, None)) is not None:
        if last.file_size != LENGTH:
            raise AcclimateError(f"{file}: its {_SIGNATURE} is damaged; copy the package again")
        signature = archive.read(last)
    _check_expected(file, listed, signature, expected)
    manifest = _manifest(file, listed)
    if (manifest.format == FORMAT) != (signature is not None):
        raise AcclimateError(f"{file}: its signature was taken away or added; copy the package again")
    for name in [*manifest.files, *entries]:
        if name not in entries:
            raise AcclimateError(f"{file}: {name} is missing; copy the package again")
        if name not in manifest.files:
            raise AcclimateError(f"{file}: {name} was added to what was packed; copy the package again")
    (folder / _ARTIFACT).mkdir()
    (folder / _LIST).write_bytes(listed)
    if signature is not None:
        (folder / _SIGNATURE).write_bytes(signature)
    for name, expected in manifest.files.items():
        with archive.open(entries[name]) as member, open(folder / name, "wb") as target:
            shutil.copyfileobj(member, target)
        if file_digest(folder / name) != expected:
            raise AcclimateError(f"{file}: {name} is not what was packed (its SHA-256 differs); copy the package again")
    return Package(manifest, hashlib.sha256(listed).hexdigest(), signature is not None)


def _manifest(file: Path, listed: bytes) -> PackageManifest:
    try:
        values = parsed(listed)
        if isinstance(values, dict):
            refuse_newer(file, values, FORMAT)
        manifest = PackageManifest.model_validate(values)
    except ValueError:
        raise AcclimateError(f"{file}: its {_LIST} is damaged; copy the package again") from None
    for name in (_LOCK, _MAIN):
        if name not in manifest.files:
            raise AcclimateError(f"{file}: {name} is missing; `acclimate package` makes a package with it")
    for name in manifest.files:
        # Beside the program, Python would take a file for a module of that name, whoever asks for one.
        if name not in {_LOCK, _MAIN} and not name.startswith(_ARTIFACT):
            raise AcclimateError(f"{file}: holds {name!r}, as no package does; `acclimate package` makes one")
    return manifest


def _same(first: IO[bytes], second: IO[bytes]) -> bool:
    """Whether two files hold the same bytes, read from the start."""
    first.seek(0)
    second.seek(0)
    while True:
        one, other = first.read(2**20), second.read(2**20)
        if one != other:
            return False
        if not one:
            return True


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what `zipfile` makes of a damaged file into one clear line."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    except OSError as error:
        # An offset that leads before the start of the file.
        if error.errno != errno.EINVAL:
            raise
        raise AcclimateError(f"{file}: is a damaged package; copy it again") from None
    # A damaged zip file ends in any of these, from the module and from what it uses.
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:
        raise AcclimateError(f"{file}: is a damaged package ({error}); copy it again") from None
