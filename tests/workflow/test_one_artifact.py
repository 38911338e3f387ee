"""An artifact belongs to what it was made from, by content: weights, and the pictures that calibrated INT8."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import coloured_squares as squares
from acclimate import workflow
from acclimate.edge.artifact import Artifact, Running, Tiles
from acclimate.edge.engines import onnx
from acclimate.errors import AcclimateError
from acclimate.models import detector as models
from acclimate.run import Manifest, Run, file_digest

SIZE = (144, 192, 3)


def put(folder: Path, noise: bool) -> None:
    """Eight pictures of the same names, whatever is in them."""
    folder.mkdir(exist_ok=True)
    for number in range(8):
        rng = np.random.default_rng(number)
        picture = rng.integers(0, 255, SIZE, np.uint8) if noise else np.zeros(SIZE, np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)


@pytest.mark.usefixtures("squares_are_a_kind")
def test_other_pictures_under_the_same_names_make_another_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.create(tmp_path / "run", Manifest(verb="train"))
    run.write("config.json", {})
    run.write("spec.json", squares.SPEC)
    (run.path / "model.safetensors").write_bytes(b"the weights of the squares")
    run.finish("done")
    monkeypatch.setattr(models, "load", lambda *_: squares.SquareDetector())

    def exported() -> tuple[str, int]:
        folder = workflow.export(run.path, calibration=tmp_path / "images")
        return file_digest(folder / "model.onnx"), (folder / "model.onnx").stat().st_mtime_ns

    put(tmp_path / "images", noise=True)
    first = exported()
    put(tmp_path / "images", noise=True)
    assert exported() == first, "written anew, and the same: the artifact is kept"
    put(tmp_path / "images", noise=False)
    assert exported()[0] != first[0]
    assert "8 of 8 calibration images show nothing" in caplog.text
    how_it_runs_is_written_into_it(run, tmp_path / "images", monkeypatch)


def how_it_runs_is_written_into_it(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And taken out again, with the same graph; another provider is another artifact."""
    plain = workflow.export(run.path, calibration=images)
    graph = file_digest(plain / "model.onnx")
    tiles = Tiles(size=(72, 96))
    assert workflow.export(run.path, calibration=images, running=Running(tiles=tiles, reduced=True)) == plain
    manifest = Artifact.open(plain).manifest
    assert (manifest.tiles, manifest.reduced, manifest.provider) == (tiles, True, "cpu")
    with pytest.raises(AcclimateError, match="provider cuda: this ONNX Runtime has cpu"):
        workflow.export(run.path, calibration=images, running=Running(provider="cuda"))
    assert not (plain.parent / "onnx-cuda-int8").exists()
    monkeypatch.setattr(onnx, "PROVIDERS", {**onnx.PROVIDERS, "cuda": onnx.PROVIDERS["cpu"]})
    other = Artifact.open(workflow.export(run.path, calibration=images, running=Running(provider="cuda")))
    assert (other.folder.name, other.manifest.name, other.manifest.provider) == ("onnx-cuda-int8",) * 2 + ("cuda",)
    again = Artifact.open(workflow.export(run.path, calibration=images))
    assert (again.folder, again.manifest.tiles, again.manifest.reduced) == (plain, None, False)
    assert file_digest(plain / "model.onnx") == graph == file_digest(other.folder / "model.onnx")
