from __future__ import annotations

import json
from pathlib import Path

import pytest

from acclimate.edge.artifact import FORMAT, Artifact, ArtifactManifest, Decode
from acclimate.errors import AcclimateError
from acclimate.export.base import annotate
from acclimate.run import file_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"weights" * 1000)
    manifest = ArtifactManifest(
        name="a",
        runtime="onnx",
        precision="fp32",
        classes=("car",),
        image_size=(64, 64),
        decode=Decode(strides=(8,)),
        files={"model.onnx": file_digest(tmp_path / "model.onnx")},
        version="0.1.0",
    )
    (tmp_path / "artifact.json").write_text(manifest.model_dump_json())
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "artifact.json").read_text())
    values = {key: value for key, value in (values | changes).items() if value is not None}
    (folder / "artifact.json").write_text(json.dumps(values))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(AcclimateError, match=match) as caught:
        Artifact.open(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_is_whole_opens(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert artifact.manifest.classes == ("car",)
    assert artifact.size_mb == 0.007
    assert artifact.file(".onnx") == folder / "model.onnx"


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[500] ^= 1
    (folder / "model.onnx").write_bytes(data)
    refused(folder, "model.onnx: is not the file that was exported")


def test_a_missing_file_is_noticed(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    refused(folder, "model.onnx: is missing")


def test_a_newer_format_says_update(folder: Path) -> None:
    edit(folder, format=FORMAT + 1, version="9.0", decode={"kind": "unheard of"})
    refused(folder, rf"format {FORMAT + 1} was written by a newer acclimate \(9\.0\).*update acclimate")


def test_unknown_keys_of_the_same_format_are_no_problem(folder: Path) -> None:
    edit(folder, something_new=1)
    assert Artifact.open(folder).manifest.name == "a"


def test_missing_keys_are_named_all(folder: Path) -> None:
    edit(folder, classes=None, decode=None)
    refused(folder, "classes: Field required; decode: Field required; export the artifact again")


@pytest.mark.parametrize("text", ["{", "[]", '"artifact"'])
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    (folder / "artifact.json").write_text(text)
    refused(folder, "artifact.json: ")


def test_a_folder_without_manifest(folder: Path) -> None:
    refused(folder / "nowhere", "not an artifact")


def test_files_outside_the_folder_are_refused(folder: Path) -> None:
    edit(folder, files={"../model.onnx": "0"})
    refused(folder, "not a plain file name")
    edit(folder, files={})
    refused(folder, "names no model file")


def test_the_digest_is_of_what_decides_the_detections(folder: Path) -> None:
    before = Artifact.open(folder)
    noted = annotate(before, source_run="runs/x", seen="today")
    assert Artifact.open(folder) == noted
    assert noted.manifest.source_run == "runs/x"
    assert noted.digest == before.digest
    edit(folder, decode={"strides": [8], "nms_iou": 0.5})
    assert Artifact.open(folder).digest != before.digest
