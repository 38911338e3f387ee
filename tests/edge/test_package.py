"""A package is whole or it is refused, in one line, before anything in it is used."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

import coloured_squares as squares
from acclimate import workflow
from acclimate.edge import package
from acclimate.edge.artifact import Artifact, ArtifactManifest, Decode
from acclimate.edge.package import FILES, FORMAT, Package, differences, locked, opened, pack, unpack
from acclimate.edge.predict import Predictor, predict_folder
from acclimate.edge.signing import Signed
from acclimate.edge.watch import watch
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.run import file_digest
from acclimate.verification import record

LOCK = ["numpy==2.0.0", "onnxruntime==1.0.0"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "onnx-fp32"
    return exporter("onnx").export(squares.SquareDetector(), folder, "fp32", []).folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a few bytes that no runtime would load."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(range(256)))
    manifest = ArtifactManifest(
        name="small",
        runtime="onnx",
        precision="fp32",
        classes=("car",),
        image_size=(64, 64),
        decode=Decode(strides=(8,)),
        files={"model.onnx": file_digest(folder / "model.onnx")},
    )
    (folder / "artifact.json").write_text(manifest.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def packed(small: Path) -> Path:
    pack(small, small.parent / "small.zip", LOCK)
    return small.parent / "small.zip"


def refused(file: Path, folder: Path, match: str, expected: package.Expected = "") -> None:
    with pytest.raises(AcclimateError, match=match) as caught:
        unpack(file, folder, expected)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert not folder.exists()


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def forge(target: Path, contents: dict[str, bytes], relist: bool = False, **marks: int) -> Path:
    """A zip file that is like a package to the letter, but for what `contents` and `marks` of its entries say."""
    if relist:
        listed = json.loads(contents["package.json"])
        rest = {name: data for name, data in contents.items() if name != "package.json"}
        listed["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in rest.items()}
        contents = {"package.json": json.dumps(listed).encode(), **rest}
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            for mark, value in marks.items():
                setattr(entry, mark, value)
            archive.writestr(entry, data)
    return target


def test_the_file_is_the_zip_format_and_nothing_else(small: Path, packed: Path) -> None:
    contents = members(packed)
    expected, directory = b"", b""
    for name, data in contents.items():
        # PKWARE's APPNOTE 6.3.4, 4.3.7 and 4.3.12: version 2.0, no flag, stored, 1980-01-01.
        common = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
        central = struct.pack("<4s2B", b"PK\x01\x02", 20, 3) + common
        directory += central + struct.pack("<3H2I", 0, 0, 0, 0o100644 << 16, len(expected)) + name.encode()
        expected += b"PK\x03\x04" + common + name.encode() + data
    count, start = len(contents), len(expected)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    assert packed.read_bytes() == expected + directory + end


def test_the_same_input_gives_the_same_bytes(small: Path, packed: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(small, tmp_path / "elsewhere")
    (copied / "verification.json").write_text("{}")
    pack(copied, tmp_path / "again.zip", LOCK)
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert pack(small, tmp_path / "other.zip", LOCK[:1]).digest != pack(small, tmp_path / "third.zip", LOCK).digest


def test_what_was_packed_comes_out(small: Path, packed: Path, tmp_path: Path) -> None:
    found = unpack(packed, tmp_path / "out")
    assert found.manifest.artifact == "small"
    assert found.digest == hashlib.sha256(members(packed)["package.json"]).hexdigest()
    assert (tmp_path / "out" / "artifact" / "model.onnx").read_bytes() == bytes(range(256))
    assert (tmp_path / "out" / "requirements.txt").read_text() == "numpy==2.0.0\nonnxruntime==1.0.0\n"
    assert Artifact.open(tmp_path / "out" / "artifact").digest == Artifact.open(small).digest
    assert not any(path.is_symlink() or path.stat().st_mode & stat.S_IXUSR for path in tmp_path.rglob("*.*"))


def test_another_package_than_expected_is_refused(packed: Path, tmp_path: Path) -> None:
    digest = unpack(packed, tmp_path / "any").digest
    assert unpack(packed, tmp_path / "right", digest.upper()).digest == digest
    refused(packed, tmp_path / "wrong", "is another package: its digest is", "0" * 64)


@given(data=st.data(), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused(packed: Path, tmp_path_factory: pytest.TempPathFactory, data, flip: int) -> None:
    changed = bytearray(packed.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= flip
    folder = tmp_path_factory.mktemp("changed")
    (folder / "site.zip").write_bytes(changed)
    refused(folder / "site.zip", folder / "out", "package")


def test_a_changed_byte_of_any_header_is_refused(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        entries = archive.infolist()
        places = set(range(archive.start_dir, len(whole)))
    for entry in entries:
        places |= set(range(entry.header_offset, entry.header_offset + 30 + len(entry.filename)))
    for place in sorted(places):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "site.zip").write_bytes(changed)
        refused(tmp_path / "site.zip", tmp_path / "out", "package")


@given(cut=st.integers(0, 2000), junk=st.binary(max_size=100))
def test_a_cut_or_longer_file_is_refused(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    whole = packed.read_bytes()
    folder = tmp_path_factory.mktemp("cut")
    for data in (whole[: min(cut, len(whole) - 1)] + junk, whole[cut:] + b"x" + junk, b"x" + junk + whole, junk):
        (folder / "site.zip").write_bytes(data)
        refused(folder / "site.zip", folder / "out", "package")


def test_a_missing_or_added_file_is_named(packed: Path, tmp_path: Path) -> None:
    contents = members(packed)
    without = {name: data for name, data in contents.items() if not name.endswith("model.onnx")}
    refused(forge(tmp_path / "a.zip", without), tmp_path / "out", r"artifact/model.onnx is missing; copy the package")
    added = {**contents, "artifact/more.bin": b"1"}
    refused(forge(tmp_path / "b.zip", added), tmp_path / "out", r"artifact/more.bin was added")
    changed = {**contents, "artifact/model.onnx": b"1" * 256}
    refused(forge(tmp_path / "c.zip", changed), tmp_path / "out", r"model.onnx is not what was packed \(its SHA-256")
    unlisted = {name: data for name, data in contents.items() if name != "package.json"}
    refused(forge(tmp_path / "d.zip", unlisted), tmp_path / "out", "it has no package.json")
    lockless = {name: data for name, data in contents.items() if name != "requirements.txt"}
    refused(forge(tmp_path / "e.zip", lockless, relist=True), tmp_path / "out", "requirements.txt is missing")
    bare = {name: data for name, data in contents.items() if not name.startswith("artifact/")}
    refused(forge(tmp_path / "f.zip", bare, relist=True), tmp_path / "out", "f.zip: artifact: not an artifact")
    more = {**contents, "artifact/more.bin": b"1"}
    refused(forge(tmp_path / "g.zip", more, relist=True), tmp_path / "out", "g.zip: more.bin: is not of the artifact")
    for beside in ("contextlib.py", "setup.py"):
        file = forge(tmp_path / "h.zip", {**contents, beside: b"print('mine')"}, relist=True)
        refused(file, tmp_path / "out", f"holds '{beside}', as no package does")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runtime": "ncnn"}, "holds another artifact than it says"),
        ({"artifact": "other"}, "holds another artifact than it says"),
        ({"artifact": "x" * 5000}, "package.json is damaged"),
        ({"format": True}, "package.json is damaged"),
        ({"format": 0}, "package.json is damaged"),
        ({"format": 1.0}, "package.json is damaged"),
        ({"format": 10**300, "version": "9" * 5000}, "was written by a newer acclimate"),
    ],
)
def test_a_list_that_means_nothing_is_refused(packed: Path, tmp_path: Path, changes: dict, said: str) -> None:
    contents = members(packed)
    listed = json.dumps(json.loads(contents["package.json"]) | changes).encode()
    file = forge(tmp_path / "site.zip", contents | {"package.json": listed})
    refused(file, tmp_path / "out", f"{said}.{{,200}}$")


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "artifact/../../evil", "artifact/deep/evil", "artifact\\evil", "ä", ".hidden", ""]
)
def test_a_name_that_leads_elsewhere_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    evil = forge(tmp_path / "in" / "site.zip", {**members(packed), name: b"x"}, relist=True)
    before = sorted(tmp_path.rglob("*"))
    refused(evil, tmp_path / "in" / "out", "holds .*, as no package does")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_compression_and_doubles_are_refused(packed: Path, tmp_path: Path) -> None:
    contents = members(packed)
    link = forge(tmp_path / "link.zip", contents, external_attr=(stat.S_IFLNK | 0o777) << 16)
    refused(link, tmp_path / "out", "is not as it was packed")
    bomb = {**contents, "artifact/zeros.bin": bytes(10**7)}
    squeezed = forge(tmp_path / "bomb.zip", bomb, relist=True, compress_type=zipfile.ZIP_DEFLATED)
    refused(squeezed, tmp_path / "out", "as no package does")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "link.zip", "a") as archive:
        archive.writestr("artifact/model.onnx", b"second")
    refused(tmp_path / "link.zip", tmp_path / "out", "holds a file twice")


def test_what_would_unpack_to_more_than_any_package_is_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {**members(packed), **{f"artifact/{number}": b"" for number in range(FILES)}}
    refused(forge(tmp_path / "many.zip", many, relist=True), tmp_path / "out", "more files than any package")
    # All entries lie over one large file: each is stored, and together they are larger than the whole.
    large = {**members(packed), **{f"artifact/{number}": bytes(10**5) for number in range(40)}}
    data = forge(tmp_path / "large.zip", large, relist=True).read_bytes()
    monkeypatch.setattr(package, "LARGEST", 10**6)
    monkeypatch.setattr(package, "LARGEST_LIST", 10**5)
    refused(tmp_path / "large.zip", tmp_path / "out", "no package is larger than 1 MB")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        starts = {entry.filename: entry.header_offset for entry in archive.infolist()}
        directory = bytearray(data[archive.start_dir :])
    first = starts["artifact/0"]
    for name, start in starts.items():
        if name.startswith("artifact/") and name[-1].isdigit():
            place = directory.index(struct.pack("<I", start) + name.encode())
            directory[place : place + 4] = struct.pack("<I", first)
    body = data[: first + 10**5 + 100]
    count, length = len(starts), len(directory) - 22
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, length, len(body), 0)
    (tmp_path / "overlap.zip").write_bytes(body + directory[:-22] + end)
    refused(tmp_path / "overlap.zip", tmp_path / "out", "unpacks to more than any package")


def test_a_newer_format_says_update(packed: Path, tmp_path: Path) -> None:
    contents = members(packed)
    newer = json.dumps({"format": FORMAT + 1, "version": "9.0", "shape": "unheard of"}).encode()
    forged = forge(tmp_path / "site.zip", {**contents, "package.json": newer})
    refused(forged, tmp_path / "out", rf"format {FORMAT + 1} was written by a newer acclimate \(9.0\).*: update")
    for damaged in (b"{", b"[]", b"\xff", b'{"format": "one"}'):
        forged = forge(tmp_path / "site.zip", {**contents, "package.json": damaged})
        refused(forged, tmp_path / "out", "package.json is damaged")


def test_bad_paths(small: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "none.zip", tmp_path / "out", "cannot be read")
    with pytest.raises(AcclimateError, match="is a folder; name the file"):
        pack(small, tmp_path, LOCK)
    with pytest.raises(AcclimateError, match=r"not an artifact"):
        pack(tmp_path, tmp_path / "site.zip", LOCK)
    (tmp_path / "there").mkdir()
    with pytest.raises(AcclimateError, match="there: is there already"):
        unpack(packed, tmp_path / "there")
    monkeypatch.setattr(package, "LARGEST", 100)
    with pytest.raises(AcclimateError, match="a package holds at most"):
        pack(small, tmp_path / "site.zip", LOCK)
    assert not (tmp_path / "site.zip").exists()


def test_opened_is_the_folder_itself_or_a_package_for_a_while(small: Path, packed: Path, tmp_path: Path) -> None:
    with opened(small) as folder:
        assert folder == small
    with opened(packed) as folder:
        assert Artifact.open(folder).manifest.name == "small"
    assert not folder.exists()
    with pytest.raises(AcclimateError, match="only a package has a digest"), opened(small, "0" * 64):
        pass


def test_other_versions_are_told(packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), opened(packed):
        pass
    assert f"numpy {metadata.version('numpy')} instead of 2.0.0" in caplog.text
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"numpy=={metadata.version('numpy')}\nno-such-package==1\n\nnonsense\n")
    assert differences(lock) == []


def test_the_lock_holds_all_that_is_needed_and_no_more() -> None:
    lock = locked(["acclimate"])
    names = [line.split("==")[0] for line in lock]
    assert names == sorted(set(names))
    assert {"acclimate", "numpy", "onnxruntime", "pydantic-core"} <= set(names)
    assert "torch" not in names
    for line in lock:
        pin = Requirement(line)
        assert pin.url is None
        assert str(pin.specifier) == f"=={metadata.version(pin.name)}"
    # Whatever an installed package of the lock needs here is in the lock too, and meets its range.
    pinned = {pin.name: pin for pin in map(Requirement, lock)}
    for name in names:
        for needed in map(Requirement, metadata.requires(name) or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                (version,) = pinned[needed.name.lower().replace("_", "-")].specifier
                assert needed.specifier.contains(version.version, True)
    assert {"torch"} <= {line.split("==")[0] for line in locked(["acclimate[train]"])}
    with pytest.raises(AcclimateError, match="no-such-package is not installed"):
        locked(["no-such-package"])


def test_a_package_detects_as_its_artifact_does(artifact: Path, tmp_path: Path) -> None:
    squares.write_scenes(tmp_path / "scenes", 2)
    packed = workflow.package(artifact, tmp_path / "site.zip")
    assert isinstance(packed, Package)
    file = predict_folder(artifact, tmp_path / "scenes", tmp_path / "here")
    here = json.loads(file.read_text())
    done = subprocess.run(
        [sys.executable, "site.zip", "predict", "scenes", "--out", "there", "--digest", packed.digest],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = json.loads((tmp_path / "there" / "detections.json").read_text())
    assert here["images"][0]["detections"]
    assert [one["detections"] for one in there["images"]] == [one["detections"] for one in here["images"]]
    assert there["artifact"] == here["artifact"]
    file, source = str(tmp_path / "site.zip"), str(tmp_path / "scenes")
    summary = watch(file, source, tmp_path / "out", once=True, page=False, expected=packed.digest)
    assert summary.frames == 2
    with pytest.raises(AcclimateError, match="is another package"):
        watch(file, source, tmp_path / "other", once=True, page=False, expected="0" * 64)
    assert not (tmp_path / "other").exists()
    image = squares.scene(3)[0]
    assert Predictor.load(tmp_path / "site.zip")(image).boxes.tolist() == Predictor.load(artifact)(image).boxes.tolist()


def test_a_package_without_acclimate_says_what_to_install(packed: Path, tmp_path: Path) -> None:
    way_out = f"acclimate package {packed} --out site then looks it through"
    for arguments, said in ((["-S"], way_out), ([], "usage: python")):
        done = subprocess.run(
            [sys.executable, *arguments, str(packed)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_verification_of_a_package_lies_beside_it(artifact: Path, tmp_path: Path) -> None:
    workflow.package(artifact, tmp_path / "site.zip")
    result = workflow.verify(tmp_path / "site.zip")
    assert result.artifact == "onnx-fp32"
    written = json.loads((tmp_path / "site.verification.json").read_text())
    assert written["latency"]["median_ms"] == result.latency.median_ms
    assert not (artifact / "verification.json").exists()


@pytest.mark.parametrize("full", ["temporary files", "package"])
def test_a_full_disk_loses_no_verification_of_a_package(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    workflow.package(artifact, tmp_path / "site.zip")
    save = record.save

    def limited(file: Path, verification: record.Verification) -> Path:
        if (file.parent == tmp_path) == (full == "package"):
            raise AcclimateError(f"{file.parent}: the disk is full")
        return save(file, verification)

    monkeypatch.setattr(record, "save", limited)
    result = workflow.verify(tmp_path / "site.zip")
    assert result.latency is not None
    written = tmp_path / "site.verification.json"
    told = [note for note in result.notes if "not stored" in note]
    if full == "package":
        assert told == [f"this verification was not stored: {tmp_path}: the disk is full"]
        assert not written.exists()
    else:
        assert not told
        assert record.load(written) == result


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A private key, its public half, and the public half of another, as OpenSSL makes them."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        key = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(folder / f"{name}.pem")]
        subprocess.run(key, check=True, capture_output=True)
        public = ["openssl", "pkey", "-in", str(folder / f"{name}.pem"), "-pubout", "-out", str(folder / f"{name}.pub")]
        subprocess.run(public, check=True, capture_output=True)
    return folder / "mine.pem", folder / "mine.pub", folder / "other.pub"


def test_a_signed_package(small: Path, packed: Path, keys: tuple[Path, Path, Path], tmp_path: Path) -> None:
    private, public, other = keys
    signed = tmp_path / "signed.zip"
    made = pack(small, signed, LOCK, private)
    assert made.signed
    assert unpack(signed, tmp_path / "any") == made
    assert unpack(signed, tmp_path / "mine", Signed(public)) == made
    assert unpack(signed, tmp_path / "both", Signed(public, made.digest)) == made
    refused(signed, tmp_path / "out", "is not signed by the owner of", Signed(other))
    refused(signed, tmp_path / "out", "is another package", Signed(public, "0" * 64))
    refused(packed, tmp_path / "out", "is not signed, and a signature is asked for", Signed(public))
    with pytest.raises(AcclimateError, match="only a package can be signed"), opened(small, Signed(public)):
        pytest.fail("a folder was taken for a signed package")
    # RFC 8032 by OpenSSL rather than by what signed: the file is what it says.
    contents = members(signed)
    (tmp_path / "signature").write_bytes(contents["package.sig"])
    (tmp_path / "message").write_bytes(b"acclimate package 1\0" + contents["package.json"])
    check = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public), "-in", "message"]
    done = subprocess.run([*check, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_signature_cannot_be_taken_away_or_moved(
    small: Path, packed: Path, keys: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    signed = tmp_path / "signed.zip"
    pack(small, signed, LOCK, keys[0])
    contents = members(signed)
    signature = contents.pop("package.sig")
    refused(forge(tmp_path / "a.zip", contents), tmp_path / "out", "its signature was taken away or added")
    with_one = members(packed) | {"package.sig": signature}
    refused(forge(tmp_path / "b.zip", with_one), tmp_path / "out", "its signature was taken away or added")
    refused(forge(tmp_path / "b.zip", with_one), tmp_path / "out", "is not signed by", Signed(keys[1]))
    short = contents | {"package.sig": signature[:-1]}
    refused(forge(tmp_path / "c.zip", short), tmp_path / "out", "package.sig is damaged")


def test_nothing_that_other_tools_obey_is_foreign(packed: Path, tmp_path: Path) -> None:
    contents = members(packed)
    for name, data, said in (
        ("__main__.py", b"print('mine')", "its __main__.py is not acclimate's"),
        ("requirements.txt", b"--index-url http://evil\nnumpy==2.0", "'--index-url http://evil' is not NAME==VERSION"),
        ("requirements.txt", b"numpy==2.0 ; evil", "is not NAME==VERSION"),
        ("requirements.txt", b"evil @ http://evil/a.whl", "is not NAME==VERSION"),
    ):
        file = forge(tmp_path / "forged.zip", contents | {name: data}, relist=True)
        refused(file, tmp_path / "out", said)


def test_keys_that_are_none(small: Path, keys: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    rsa = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(tmp_path / "rsa")]
    subprocess.run(rsa, check=True, capture_output=True)
    for key, said in (
        (tmp_path / "absent", "cannot be read"),
        (tmp_path / "text", "not the PEM file of a private key"),
        (keys[1], "not the PEM file of a private key"),
        (tmp_path / "rsa", "not an Ed25519 key"),
    ):
        with pytest.raises(AcclimateError, match=said) as caught:
            pack(small, tmp_path / "x.zip", LOCK, key)
        assert "openssl genpkey -algorithm ed25519" in str(caught.value)
        assert not (tmp_path / "x.zip").exists()


def test_packages_made_before_are_taken(packed: Path, tmp_path: Path) -> None:
    """The program that packages of earlier versions hold; it told how to install what nobody had looked through."""
    lines = members(packed)["__main__.py"].decode().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if "way_out =" in line)
    lines[place : place + 2] = [
        '    unpack = f"python -m zipfile -e {package} site && python -m pip install -r site/requirements.txt"\n',
        '    sys.exit(f"error: {missing.name} is not installed here: {unpack}")\n',
    ]
    file = forge(tmp_path / "before.zip", members(packed) | {"__main__.py": "".join(lines).encode()}, relist=True)
    assert unpack(file, tmp_path / "out").manifest.artifact == "small"
