"""Whatever verb writes into a folder, another process is kept out of it for as long as the verb runs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import coloured_squares as squares
from acclimate import cli
from acclimate.config import ModelConfig
from acclimate.edge.package import pack
from acclimate.export import exporter
from acclimate.models import detector as models
from acclimate.run import Manifest, Run
from another_process import another_process
from tiny_job import make_data

FOLDERS = {
    "adapt": ("adapt", "run", "--target", "fog-train/images", "--out", "out"),
    "agent": ("agent", "--home", "out", "--bind", "127.0.0.1:0"),
    "ask": ("ask", "run", "--target", "fog-train/images", "--out", "out"),
    "data": ("data", "clear-train", "out", "--to", "yolo"),
    "distil": ("distil", "run", "--student", "model.size=nano", "--out", "out"),
    "evaluate": ("evaluate", "run", "--data", "fog-test"),
    "export": ("export", "run", "--calibration", "fog-train/images"),
    "package": ("package", "site.zip", "--out", "out"),
    "predict": ("predict", "onnx-fp32", "fog-train/images", "--out", "out"),
    "run": ("run", "job.toml", "out=out"),
    "scenes": ("scenes", "out", "--images", "1"),
    "search": ("search", "bank", "--target", "fog-train/images", "--budget", "budget.toml", "--out", "out"),
    "slim": ("slim", "bank", "--target", "fog-train/images", "--out", "out"),
    "take": ("take", "run", "--out", "out", "--data", "clear-train"),
    "train": ("train", "job.toml", "--out", "out"),
    "verify": ("verify", "run/artifacts/onnx-fp32", "--data", "fog-test"),
    "watch": ("watch", "onnx-fp32", "--source", "fog-train/images", "--once", "--no-page", "--out", "out"),
}
"""Each verb that writes a folder, as a command in `place`; what it writes is `out`, or else the run."""
ELSEWHERE = {"benchmark", "tune", "weights"}
"""Runs of a benchmark wait for each other; tune and weights are in test_tuning.py and tests/models/test_weights.py."""
FILES = {"init", "label", "leaderboard", "report"}
"""Verbs that write single files, each whole or not at all."""
NOTHING = {"doctor"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets, an artifact, its package, and a run that is called finished."""
    folder = tmp_path_factory.mktemp("place")
    make_data(folder)
    detector = squares.SquareDetector()
    artifact = exporter("onnx").export(detector, folder / "onnx-fp32", "fp32", [])
    pack(artifact.folder, folder / "site.zip", ["numpy==2.0.0"])
    (folder / "job.toml").write_text(
        'source = { path = "clear-train" }\ntarget = "fog-train/images"\n'
        'model = { size = "nano", backbone = "lcnet_050", image_size = [64, 96], weights = "none" }\n'
    )
    (folder / "budget.toml").write_text("macs_m = 100\n")
    _finished(folder / "bank", "slimmable")
    run = _finished(folder / "run", "dense")
    (run.path / "artifacts").mkdir()
    artifact.folder.rename(run.path / "artifacts" / "onnx-fp32")
    (folder / "onnx-fp32").symlink_to(run.path / "artifacts" / "onnx-fp32")
    return folder


def _finished(path: Path, kind: str) -> Run:
    config = {"size": "nano", "backbone": "lcnet_050", "image_size": (64, 96), "weights": "none"}
    model = ModelConfig.model_validate({**config, "kind": kind})
    run = Run.create(path, Manifest(verb="train"))
    run.write("config.json", {})
    models.save(models.build(models.specify(model, ["car"]), "none"), run.path)
    run.finish("done")
    return run


@pytest.mark.parametrize("verb", FOLDERS)
def test_it_is_refused_in_one_line_where_another_writes(
    place: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = FOLDERS[verb]
    monkeypatch.chdir(place)
    written = Path("out") if "out" in command or "out=out" in command else Path("run")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with another_process(written, "elsewhere") as other:
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        after = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert f"acclimate elsewhere (process {other.pid} on {socket.gethostname()}" in " ".join(said.split())
    assert "writes there; wait until it has ended, or choose another folder" in " ".join(said.split())
    assert not written.exists() or written == Path("run")
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert {path.name for path in changed} <= {f".{written.name}.lock", place.name}


def test_no_verb_that_writes_is_forgotten() -> None:
    names = {command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert {*FOLDERS, *ELSEWHERE, *FILES, *NOTHING} == names
