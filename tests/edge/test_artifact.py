from __future__ import annotations

import json
from pathlib import Path

import pytest

from acclimate.edge.artifact import FORMAT, Artifact, ArtifactManifest, Decode, Notes, Priors, Reference, write_manifest
from acclimate.errors import AcclimateError
from acclimate.export.base import annotate
from acclimate.run import file_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As the first format was written, without a checksum of the manifest itself."""
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
    edit(folder, files={"../model.onnx": "0" * 64})
    refused(folder, "not a plain file name")
    edit(folder, files={})
    refused(folder, "names no model file")


def test_the_digest_is_of_what_decides_the_detections(folder: Path) -> None:
    before = Artifact.open(folder)
    noted = annotate(before, source_run="runs/x", identity="today")
    assert Artifact.open(folder) == noted
    assert noted.manifest.source_run == "runs/x"
    assert noted.digest == before.digest
    changed = before.manifest.model_copy(update={"decode": Decode(strides=(8,), nms_iou=0.5)})
    write_manifest(folder, changed)
    assert Artifact.open(folder).digest != before.digest


def test_no_bit_of_a_sealed_manifest_can_change(folder: Path) -> None:
    """Every bit of every byte, one at a time."""
    manifest = Artifact.open(folder).manifest.model_copy(
        update={"classes": ("voiture", "v\u00e9lo"), "notes": Notes(macs_m=1e-05)}
    )
    sealed = write_manifest(folder, manifest)
    assert Artifact.open(folder).manifest == sealed
    file = folder / "artifact.json"
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(AcclimateError):
            Artifact.open(folder)


REFERENCE = Reference(
    images=9, features=("a", "b"), mean=(0, 0), spread=(1, 1), correlation=((1, 0), (0, 1)), log_distance=(0, 1)
).model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": []}, "classes: "),
        ({"classes": ["car", "car"]}, "classes: one is named twice"),
        ({"classes": ["car\n"]}, "characters that cannot be shown"),
        ({"image_size": [40000, 40000]}, "image_size.0: "),
        ({"image_size": [8192, 8192]}, "more than the 16777216 of the largest canvas"),
        ({"image_size": [0, 64]}, "image_size.0: "),
        ({"fill": 256}, "fill: "),
        ({"show_threshold": float("nan")}, "NaN is no number"),
        ({"show_threshold": 1.5}, "show_threshold: "),
        ({"output_names": ["distances", "logits"]}, "output_names: those of dense are logits, distances"),
        ({"decode": {"strides": []}}, "decode.strides: "),
        ({"decode": {"strides": [0]}}, "decode.strides.0: "),
        ({"decode": {"strides": [16, 8]}}, "decode.strides: .* do not rise"),
        ({"decode": {"strides": [8, 128]}}, "decode.strides: 128 is more than the canvas"),
        ({"decode": {"strides": [1]}, "image_size": [2048, 2048]}, "too many locations"),
        ({"decode": {"strides": [8], "nms_iou": -1}}, "decode.nms_iou: "),
        ({"decode": {"strides": [8], "candidates": 10**9}}, "decode.candidates: "),
        ({"decode": {"strides": [8], "class_candidates": 5}}, "decode.class_candidates: belongs to ssd"),
        ({"decode": {"kind": "ssd"}, "output_names": ["logits", "offsets"]}, "decode.priors: "),
        ({"decode": {"kind": "retinanet"}, "output_names": ["logits", "offsets"]}, "decode.priors: "),
        ({"decode": {"strides": [8], "level_candidates": 9}}, "decode.level_candidates: "),
        ({"reference": {**REFERENCE, "mean": [0]}}, "reference: its tables are not of its 2 features"),
        ({"reference": {**REFERENCE, "rates": [1, 2, 3]}}, "reference.rates: 3 rates for 1 classes"),
        ({"reference": {**REFERENCE, "log_distance": [0, 0]}}, "reference.log_distance: "),
        ({"reference": {**REFERENCE, "spread": [1, 0]}}, "reference.spread.1: "),
        ({"notes": {"macs_m": "many"}}, "notes.macs_m: Input should be a valid number"),
        ({"files": {"model.onnx": "abc"}}, "files.model.onnx: is no SHA-256"),
        ({"files": {"artifact.json": "0" * 64}}, "not a plain file name"),
        ({"format": None}, "its format is damaged"),
        ({"format": "1"}, "its format is damaged"),
        ({"format": True}, "its format is damaged"),
        ({"format": FORMAT}, "is not as it was exported"),
        ({"sha256": "0" * 64}, "its format is damaged"),
    ],
    ids=str,
)
def test_what_cannot_be_so_is_refused(folder: Path, changes: dict[str, object], said: str) -> None:
    edit(folder, **changes)
    refused(folder, said)


def test_default_boxes_are_counted(folder: Path) -> None:
    level = Priors(rows=8192, columns=8192, step=(8, 8), sizes=((1, 1),)).model_dump(mode="json")
    edit(folder, decode={"kind": "ssd", "priors": [level]}, output_names=["logits", "offsets"])
    refused(folder, "more than 1048576 default boxes")


def test_deep_and_large_files_are_refused(folder: Path) -> None:
    (folder / "artifact.json").write_text("[" * 200_000)
    refused(folder, "nested too deep|damaged JSON")
    (folder / "artifact.json").write_text(" " * 2**23)
    refused(folder, "is larger than any artifact's manifest")
    (folder / "artifact.json").write_bytes(b'{"name": "\xff"}')
    refused(folder, "damaged JSON")


def test_a_file_that_was_added_is_refused(folder: Path) -> None:
    (folder / "verification-00.json").write_text("{}")
    (folder / ".DS_Store").write_text("")
    Artifact.open(folder)
    (folder / "model.bin").write_text("weights that a runtime would read")
    refused(folder, "model.bin: is not of the artifact that was exported")
