"""The command line: what it says, how it exits, and what it makes of bad input, verb by verb."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import cv2
import numpy as np
import pytest
import simplejpeg
import tomli_w

from acclimate import cli
from acclimate.cli import main
from acclimate.run import Run
from tiny_job import make_data, settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, job.toml, and a source run with an INT8 artifact."""
    from acclimate import load_config, workflow

    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "data")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        (folder / "job.toml").write_text(tomli_w.dumps(settings(Path("data"), Path("job"))))
        run = workflow.train(load_config("job.toml", ["train.steps=2"]), "source")
        workflow.export(run.path, calibration="data/fog-train/images", images=2)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


ARTIFACT = "source/artifacts/onnx-int8"
TARGET = "data/fog-train/images"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    status = main(arguments)
    said = capsys.readouterr().err
    assert status == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


def accepted(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    status = main(arguments)
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    return said.out


# Options, configurations and overrides: nothing is read or written before they are right.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument"),
        (["train", "job.toml"], "Missing option '--out'"),
        (["train", "job.toml", "--out", "x", "--rule", "y"], "No such option"),
        (["train", "none.toml", "--out", "x"], "none.toml: no such config file"),
        (["train", "typo.toml", "--out", "x"], "typo.toml: unknown key 'train.stepz' (did you mean 'steps'?)"),
        (["train", "type.toml", "--out", "x"], "type.toml: train.steps: Input should be a valid integer"),
        (["train", "cut.toml", "--out", "x"], "cut.toml: not valid TOML"),
        (["train", "binary.toml", "--out", "x"], "binary.toml: cannot be read"),
        (["train", "empty.toml", "--out", "x"], "[source]"),
        (["train", "list.json", "--out", "x"], "list.json: not a configuration"),
        (["train", "cut.json", "--out", "x"], "cut.json: not valid JSON"),
        (["train", "twice.json", "--out", "x"], "twice.json: cannot be read ('seed' stands twice in one table)"),
        (["train", "job.toml", "--out", "x", "train.steps"], "'train.steps': an override is written key=value"),
        (["train", "job.toml", "--out", "x", "train.lr=nan"], "train.lr"),
        (["train", "job.toml", "--out", "x", "--role", "teacher"], "--role teacher: choose source or oracle"),
        (["adapt", "source", "--target", TARGET, "--out", "x", "schedule.step=3"], "schedule.step"),
        (["export", "source", "--runtime", "tflite"], "unknown runtime 'tflite' (known: "),
        (["export", "source", "--precision", "int4"], "--precision int4: choose fp32, fp16 or int8"),
        (["export", "source", "--choice", "best"], "--choice best: choose diverse, even or random"),
        (["export", "source", "--tolerance", "98"], "'--tolerance': Input should be less than or equal to 1"),
        (["export", "source", "--tolerance", "1"], "--tolerance: 1 is not between 0 and 1"),
        (["export", "source", "--precision", "fp32", "--tolerance", "0.9"], "--tolerance says which layers of int8"),
        (["verify", ARTIFACT, "--budget", "latency=3"], "did you mean 'latency_ms'?"),
        (["verify", ARTIFACT, "--budget", "latency_ms=fast"], "latency_ms"),
        (["verify", ARTIFACT, "--budget", "latency_ms"], "'latency_ms': a limit is written key=value"),
        (["export", "source", "--precision", "fp16"], "--precision: onnx does not export fp16; choose fp32 or int8"),
        (["verify", ARTIFACT, "split=test"], "'split=test'"),
        (["evaluate", "source", "--data", "data/fog-test", "source.split=val"], "'source.split=val': an option of the"),
        (["evaluate", "source", "--data", "data/fog-test", "data.spilt=val"], "did you mean 'split'?"),
        (["evaluate", "source"], "--data"),
        (["predict", ARTIFACT, TARGET, "--out", "x", "--threshold", "2"], "'--threshold'"),
        (["watch", ARTIFACT, "--source", TARGET, "--out", "x", "--digest", "0"], "only a package has a digest"),
        (["scenes", "x", "--condition", "snow"], "condition 'snow' does not exist"),
        (["scenes", "x", "--images", "0"], "'--images'"),
        (["run", "job.toml", "export.runtime=tflite"], "unknown runtime 'tflite'"),
        (["run", "job.toml", "export.precisions=[]"], "export.precisions"),
        (["run", "empty.toml"], "[source]"),
        (["data", "data/fog-test", "spilt=test"], "did you mean 'split'?"),
        (["report"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_told_in_one_line(
    arguments: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "typo.toml": b"[train]\nstepz = 3\n",
        "type.toml": b"[train]\nsteps = 'many'\n",
        "cut.toml": b"[train\n",
        "binary.toml": b"\xff\xfe\x00",
        "empty.toml": b"",
        "list.json": b"[]",
        "cut.json": b"{",
        "twice.json": b'{"seed": 1, "train": {}, "seed": 2}',
    }
    for name, content in files.items():
        (project / name).write_bytes(content)
    assert said in refused(capsys, *arguments)
    assert not (project / "x").exists()


def test_an_error_shows_no_password_and_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "rtsp://me:secret@cam/\x1b[2J\udc80"]) == 2
    assert capsys.readouterr().err == "error: rtsp:/cam/\\x1b[2J\\udc80: no such file or folder\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: the disk is full (No space left on device); ",
        ),
        (
            OSError(errno.EDQUOT, "Quota exceeded", "runs/a"),
            "error: runs/a: the disk is full (Quota exceeded); ",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "let TMPDIR name a folder",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "runs/a"),
            "runs/a: cannot be used (Read-only file system)",
        ),
        (OSError(errno.EIO, "Input/output error", "runs/a"), "runs/a: cannot be used (Input/output error)"),
    ],
)
def test_a_place_that_fails_anywhere_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, said: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert cli.main(["verify", "artifact"]) == 2
    assert said in capsys.readouterr().err


def test_an_error_that_is_no_matter_of_a_place_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "lost")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(FileNotFoundError, match="lost"):
        cli.main(["verify", "artifact"])


def test_a_missing_path_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "empty").mkdir()
    for arguments, said in (
        (["train", "job.toml", "--out", "x", "source.path=nowhere"], "nowhere: no such file or folder"),
        (["train", "job.toml", "--out", "x", "source.path=empty"], "empty: no labels of a known format"),
        (["train", "job.toml", "--out", "x", "model.weights=w.pth"], "w.pth: no such file"),
        (["adapt", "nowhere", "--target", TARGET, "--out", "x"], "nowhere: not a run folder"),
        (["adapt", "source", "--target", "nowhere", "--out", "x"], "nowhere: no such file or folder"),
        (["adapt", "source", "--target", "empty", "--out", "x"], "empty: no image found"),
        (["export", "source", "--calibration", "empty"], "empty: no image found"),
        (["verify", "empty"], "empty: not an artifact"),
        (["verify", ARTIFACT, "--data", "nowhere"], "nowhere: no such file or folder"),
        (["predict", ARTIFACT, "empty", "--out", "x"], "empty: no image found"),
        (["predict", ARTIFACT, "nowhere", "--out", "x"], "nowhere: no such file or folder"),
        (["report", "empty"], "empty: not a run folder"),
        (["evaluate", "empty", "--data", "data/fog-test"], "empty: not a run folder"),
        (["data", "empty"], "empty: no image found"),
        (["data", "nowhere"], "nowhere: no such file or folder"),
        (["run", "job.toml", "target=empty"], "empty: no image found"),
    ):
        assert said in refused(capsys, *arguments)
        assert not any((project / "x").glob("*")), arguments


def test_a_folder_that_cannot_be_written_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The tests may run as root, whom permissions do not bind; nobody writes below a file.
    (project / "file").write_text("x")
    for arguments in (
        ["train", "job.toml", "--out", "file/run"],
        ["adapt", "source", "--target", TARGET, "--out", "file/run"],
        ["predict", ARTIFACT, TARGET, "--out", "file/found"],
        ["report", "source", "--out", "file/report.html"],
        ["data", "data/fog-test", "--sheet", "file/sheet.jpg"],
        ["scenes", "file/scenes", "--images", "1"],
        ["run", "job.toml", "out=file/job"],
    ):
        said = refused(capsys, *arguments)
        assert "file" in said
        assert "choose another folder" in said
    assert (project / "file").read_text() == "x"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_folder_that_cannot_be_made_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train", "job.toml", "--out", "/proc/x"],
        ["adapt", "source", "--target", TARGET, "--out", "/proc/x"],
        ["predict", ARTIFACT, TARGET, "--out", "/proc/x/found"],
        ["watch", ARTIFACT, "--source", TARGET, "--once", "--no-page", "--out", "/proc/x"],
        ["package", ARTIFACT, "--out", "/proc/x/site.zip"],
        ["agent", "--home", "/proc/x"],
        ["scenes", "/proc/x", "--images", "1"],
        ["run", "job.toml", "out=/proc/x"],
    ):
        assert "/proc/x" in (said := refused(capsys, *arguments))
        assert "cannot be written (No such file or directory); choose another folder" in said


def test_a_path_that_may_not_be_looked_at_is_told_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a" * 300
    for arguments in (["train", "job.toml", "--out", name], ["scenes", name, "--images", "1"], ["verify", name]):
        assert "File name too long" in refused(capsys, *arguments)


def test_a_folder_with_something_else_is_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not empty and is not a run" in refused(capsys, "train", "job.toml", "--out", "data")
    assert "holds another run" in refused(capsys, "train", "job.toml", "--out", "source", "train.steps=9")
    assert "holds another run" in refused(capsys, "adapt", "source", "--target", TARGET, "--out", "source")
    assert "holds another data set" in refused(capsys, "scenes", "data/fog-test")
    (project / "source/artifacts/onnx-fp32").mkdir()
    (project / "source/artifacts/onnx-fp32/mine.txt").write_text("x")
    assert "is not an artifact" in refused(capsys, "export", "source", "--precision", "fp32")


# Damaged runs and artifacts.


def _damage(file: str, content: bytes) -> Callable[[], None]:
    return lambda: [Path(file).write_bytes(content)].clear()


def _status(value: str) -> Callable[[], None]:
    def change() -> None:
        run = Run.open(Path("source"))
        run.manifest = run.manifest.model_copy(update={"status": value})
        run.save()

    return change


def _without_target() -> None:
    run = Run.open(Path("source"))
    run.write("config.json", {**run.read("config.json"), "target": None})


@pytest.mark.parametrize(
    ("damage", "arguments", "said"),
    [
        (_damage("source/run.json", b"{"), ["adapt", "source", "--target", TARGET, "--out", "x"], "run.json: damaged"),
        (_damage("source/run.json", b"{"), ["train", "job.toml", "--out", "source"], "run.json: damaged"),
        (_damage("source/run.json", b"{"), ["report", "source"], "run.json: damaged"),
        (_damage("source/config.json", b"[]"), ["adapt", "source", "--target", TARGET, "--out", "x"], "config.json"),
        (_damage("source/spec.json", b"{}"), ["export", "source", "--calibration", TARGET], "spec.json"),
        (_damage("source/model.safetensors", b"a"), ["export", "source", "--precision", "fp32"], "model.safetensors"),
        (_status("interrupted"), ["export", "source"], "source: the run is not finished (interrupted)"),
        (_status("running"), ["evaluate", "source", "--data", "data/fog-test"], "is not finished (interrupted)"),
        (_without_target, ["export", "source"], "source: INT8 needs images to calibrate on; give --calibration"),
        (_damage(f"{ARTIFACT}/model.onnx", b"a"), ["verify", ARTIFACT], "model.onnx: is not the file that was"),
        (_damage(f"{ARTIFACT}/model.onnx", b"a"), ["predict", ARTIFACT, TARGET, "--out", "x"], "model.onnx"),
        (_damage(f"{ARTIFACT}/artifact.json", b"{"), ["verify", ARTIFACT], "artifact.json: damaged JSON"),
        (_damage(f"{ARTIFACT}/artifact.json", b'{"format": 99}'), ["verify", ARTIFACT], "newer acclimate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_damage_is_told_in_one_line(
    damage: Callable[[], None], arguments: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage()
    assert said in refused(capsys, *arguments)
    assert not (project / "x").exists()


# Images and labels.


def _images_of_all_kinds(folder: Path) -> None:
    """An image of each mode, and three that cannot be read."""
    folder.mkdir(parents=True)
    colour = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    grey = colour[:, :, 0]
    cv2.imwrite(str(folder / "colour.png"), colour)
    cv2.imwrite(str(folder / "grey.png"), grey)
    cv2.imwrite(str(folder / "sixteen.png"), grey.astype(np.uint16) * 11)
    cv2.imwrite(str(folder / "alpha.png"), np.dstack([colour, grey]))
    (folder / "palette.bmp").write_bytes(_palette_bmp(grey // 16))
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(colour))
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").touch()


def _palette_bmp(indices: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """An 8-bit palette image, which OpenCV reads and does not write."""
    height, width = indices.shape
    palette = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(256))
    offset = 14 + 40 + len(palette)
    pixels = np.ascontiguousarray(np.pad(indices[::-1], ((0, 0), (0, -width % 4)))).tobytes()
    numbers = [(offset + len(pixels), 4), (0, 4), (offset, 4), (40, 4), (width, 4), (height, 4), (1, 2), (8, 2)]
    numbers += [(0, 4), (len(pixels), 4), (2835, 4), (2835, 4), (256, 4), (0, 4)]
    return b"BM" + b"".join(value.to_bytes(size, "little") for value, size in numbers) + palette + pixels


def test_predict_reads_every_mode_and_reports_what_it_cannot(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _images_of_all_kinds(project / "mixed")
    said = accepted(capsys, "predict", ARTIFACT, "mixed", "--out", "found")
    found = json.loads((project / "found" / "detections.json").read_text())
    assert {Path(image["file"]).name for image in found["images"]} == {
        "colour.png", "grey.png", "sixteen.png", "alpha.png", "palette.bmp",
    }  # fmt: skip
    assert {Path(problem["file"]).name for problem in found["problems"]} == {"cut.jpg", "text.jpg", "empty.jpg"}
    assert "truncated" in said
    assert "found/detections.json" in said


def test_adapt_and_export_take_what_they_can_read(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _images_of_all_kinds(project / "mixed")
    accepted(capsys, "adapt", "source", "--target", "mixed", "--out", "adapted", "schedule.steps=2")
    target = Run.open(project / "adapted").manifest.notes.target
    assert target.images == 7
    assert "empty.jpg" in target.problems[0]
    said = accepted(capsys, "export", "adapted")
    assert said.splitlines()[-1] == "artifact: adapted/artifacts/onnx-int8"
    manifest = json.loads((project / "adapted/artifacts/onnx-int8/artifact.json").read_text())
    assert manifest["calibration"]["images"] == 5


def test_a_target_of_which_nothing_can_be_read_stops_adaptation(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bad").mkdir()
    for number in range(3):
        (project / "bad" / f"{number}.jpg").write_text("no image")
    assert "target images cannot be read" in refused(capsys, "adapt", "source", "--target", "bad", "--out", "x")
    assert "none of 3 could be read" in refused(capsys, "export", "source", "--calibration", "bad")


def _edit_index(change: Callable[[dict[str, Any]], None]) -> None:
    file = Path("data/clear-train/annotations.json")
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


def _break_labels(index: dict[str, Any]) -> None:
    first, second, third = index["annotations"][:3]
    first["bbox"] = [float("nan"), 0, 10, 10]
    second["bbox"] = [10, 10, -5, 5]
    third["category_id"] = 99
    index["annotations"].append(dict(index["annotations"][3]))
    index["images"].append(dict(index["images"][0]))
    index["images"].append({**index["images"][1], "id": 1000, "file_name": "missing.jpg"})


def test_bad_labels_are_left_out_and_reported(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_index(_break_labels)
    said = accepted(capsys, "data", "data/clear-train", "--sheet", "sheet.jpg")
    for problem in ("not finite", "inverted", "category id 99", "annotation id is listed twice", "missing.jpg"):
        assert problem in said
    assert said.splitlines()[-1] == "contact sheet: sheet.jpg"
    said = accepted(capsys, "train", "job.toml", "--out", "x", "train.steps=1")
    assert said.splitlines()[-1] == "run: x"
    source = Run.open(project / "x").manifest.notes.source
    assert source.images == 6
    assert source.problem_count >= 5


def test_a_truncated_or_missing_source_image_does_not_stop_training(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((project / "data/clear-train/images").glob("*.jpg"))[:2]
    first.write_bytes(first.read_bytes()[:500])
    second.unlink()
    accepted(capsys, "train", "job.toml", "--out", "x", "train.steps=3")
    source = Run.open(project / "x").manifest.notes.source
    assert any(second.name in problem for problem in source.problems)


def test_labels_without_a_usable_box_stop_training(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit_index(lambda index: index["annotations"].clear())
    assert "none of its 6 images has a usable box" in refused(capsys, "train", "job.toml", "--out", "x")
    shutil.rmtree(project / "data/clear-train")
    images = project / "yolo" / "images" / "train"
    shutil.copytree(project / TARGET, images)
    (project / "yolo/data.yaml").write_text("names: [car]\n")
    for image in images.iterdir():
        label = project / "yolo" / "labels" / "train" / f"{image.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.touch()
    assert "none of its 6 images has a usable box" in refused(
        capsys, "train", "job.toml", "--out", "x", "source.path=yolo"
    )


def test_an_unknown_class_is_named_with_its_ways_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rename(index: dict[str, Any]) -> None:
        used = index["annotations"][0]["category_id"]
        next(c for c in index["categories"] if c["id"] == used)["name"] = "tram"

    _edit_index(rename)
    for arguments in (
        ["verify", ARTIFACT, "--source", "data/clear-train"],
        ["evaluate", "source", "--source", "data/clear-train"],
        ["adapt", "source", "--target", TARGET, "--out", "x"],
    ):
        said = refused(capsys, *arguments)
        assert '"tram"' in said
        assert "drop = [" in said
    accepted(capsys, "evaluate", "source", 'drop=["tram"]', "--source", "data/clear-train")


def test_each_of_two_data_sets_has_options_of_its_own(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from acclimate import workflow
    from acclimate.config import DataConfig

    seen: dict[str, DataConfig] = {}
    monkeypatch.setattr(workflow, "evaluate", lambda path, one, name, role, **options: seen.update({role: one}))
    options = ['ignore=["tram"]', "data.split=test", "split=val", "data.classes.bus=truck"]
    accepted(capsys, "evaluate", "source", *options, "--data", "data/fog-test", "--source", "data/clear-test")
    common = {"ignore": ("tram",)}
    assert seen["target"] == DataConfig(path=Path("data/fog-test"), split="test", classes={"bus": "truck"}, **common)
    assert seen["source"] == DataConfig(path=Path("data/clear-test"), split="val", **common)


# Exit statuses, and what a verb says when it is done.


def test_a_budget_out_of_reach_exits_with_1_and_says_by_how_much(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = "latency_ms=1e-6,size_mb=0.001,max_ap50_drop=1"
    status = main(["verify", ARTIFACT, "--data", "data/fog-test", "--budget", limits])
    said = capsys.readouterr()
    assert status == 1
    assert "FAILED" in said.out
    assert said.err.startswith("budget missed; onnx-int8: latency_ms is ")
    assert ", allowed 1e-06, size_mb is " in said.err
    assert said.err.count("\n") == 1
    assert json.loads((project / ARTIFACT / "verification.json").read_text())["passed"] is False


def test_a_run_stands_for_its_artifacts_and_fails_when_none_of_them_holds(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ARTIFACT, "source/artifacts/damaged")
    Path("source/artifacts/damaged/model.onnx").write_bytes(b"")
    said = accepted(capsys, "verify", "source", "--budget", "size_mb=100,max_ap50_drop=none")
    verdicts = {line.split()[0]: line for line in said.splitlines() if line.startswith(("damaged", "onnx-int8"))}
    assert "not measured" in verdicts["damaged"]
    assert "passed" in verdicts["onnx-int8"]
    assert "note: damaged: " in said
    assert main(["verify", ARTIFACT, "source/artifacts/damaged", "--budget", "size_mb=0.001"]) == 1
    assert capsys.readouterr().err.startswith("budget missed; onnx-int8: size_mb is ")
    assert "gone: no such artifact" in refused(capsys, "verify", ARTIFACT, "gone")
    assert "--digest" in refused(capsys, "verify", "source", "--digest", "abc")
    shutil.rmtree("source/artifacts")
    assert "source: has no artifact" in refused(capsys, "verify", "source")


def test_a_budget_that_holds_exits_with_0(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = accepted(capsys, "verify", ARTIFACT, "--budget", "latency_ms=1e5,size_mb=100,max_ap50_drop=none")
    assert "PASSED" in said
    assert said.splitlines()[-1] == f"verification: {ARTIFACT}/verification.json"


def test_a_limit_that_was_not_measured_exits_with_3_and_says_how_to_measure_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", ARTIFACT, "--budget", "latency_ms=1e5,size_mb=100"]) == 3
    said = capsys.readouterr()
    assert "INCOMPLETE" in said.out
    assert said.err.startswith("incomplete; onnx-int8: max_ap50_drop: it was not compared with the model before export")
    assert "--data" in said.err
    assert said.err.count("\n") == 1


def test_verify_without_data_takes_the_sets_that_the_run_was_evaluated_on(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("data/clear-test", "data/other")
    accepted(capsys, "evaluate", "source", "--source", "data/other")
    assert main(["verify", ARTIFACT, "--budget", "max_ap50_drop=1"]) == 0
    written = json.loads((project / ARTIFACT / "verification.json").read_text())
    assert {name: one["role"] for name, one in written["accuracy"].items()} == {"source_test": "source"}
    assert written["parity"]["images"] > 0
    shutil.rmtree("data/other")
    said = accepted(capsys, "verify", ARTIFACT, "--budget", "max_ap50_drop=1")
    assert "note: source_test, which the run was evaluated on, was not measured: data/other: no such file" in said
    again = json.loads((project / ARTIFACT / "verification.json").read_text())
    assert again["accuracy"] == written["accuracy"], "what was measured of the artifact stays"


def test_run_says_where_the_report_is_last(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from acclimate import workflow
    from acclimate.edge.artifact import Artifact
    from acclimate.verification import measure

    known = measure.verify(Artifact.open(project / ARTIFACT), measure.Material(), scope=measure.Scope(runs=5))
    run = Run.open(Path("source"))

    def job(config: Any, **options: Any) -> workflow.Job:
        judged = known.model_copy(update={"budget": config.budget})
        return workflow.Job(Path("job/report.html"), run, run, run, None, (judged, judged))

    monkeypatch.setattr(workflow, "run", job)
    said = accepted(capsys, "run", "job.toml", "budget.max_ap50_drop=none")
    assert said.splitlines()[-1] == "report: job/report.html"
    assert main(["run", "job.toml"]) == 3
    assert capsys.readouterr().err.startswith("incomplete; nearest is onnx-int8: max_ap50_drop: it was not compared")
    assert main(["run", "job.toml", "budget.size_mb=0.001"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "report: job/report.html"
    assert said.err.startswith("budget missed; nearest is onnx-int8: size_mb is ")


def test_report_and_scenes_name_their_result(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(capsys, "evaluate", "source", "--data", "data/fog-test", "--source", "data/clear-test")
    assert {one.data for one in Run.open(Path("source")).evaluations()} == {"source_test", "target_test"}
    assert accepted(capsys, "report", "source").splitlines()[-1] == "report: report.html"
    said = accepted(capsys, "scenes", "new", "--images", "2", "--height", "64", "--width", "64")
    assert said.splitlines() == ["new scenes: 2", "data set: new/annotations.json"]


@pytest.mark.parametrize(
    ("arguments", "place", "name"),
    [
        (["train", "job.toml", "--out", "x"], "acclimate.adapt.engine", "fit"),
        (["adapt", "source", "--target", TARGET, "--out", "x"], "acclimate.adapt.engine", "fit"),
        (["export", "source", "--precision", "fp32"], "acclimate.export.onnx", "write_graph"),
        (["verify", ARTIFACT], "acclimate.verification.measure", "bench_apart"),
        (["predict", ARTIFACT, TARGET, "--out", "x"], "acclimate.edge.predict", "draw"),
        (["scenes", "x", "--images", "2"], "acclimate.scenes.sets", "_write_scene"),
        (["run", "job.toml"], "acclimate.adapt.engine", "fit"),
        (["data", "data/fog-test"], "acclimate.data.inspect", "contact_sheet"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    arguments: list[str],
    place: str,
    name: str,
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*given: Any, **options: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{place}.{name}", stop)
    assert main(arguments) == 130
    said = capsys.readouterr().err
    assert "run the same command again" in said
    assert "Traceback" not in said


def test_predict_and_scenes_go_on_after_ctrl_c(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import acclimate.edge.predict
    import acclimate.scenes.sets

    def third_time(function: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(100))

        def counted(*given: Any, **options: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return function(*given, **options)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(acclimate.edge.predict, "draw", third_time(acclimate.edge.predict.draw))
        assert main(["predict", ARTIFACT, TARGET, "--out", "found"]) == 130
        patched.setattr(acclimate.scenes.sets, "_write_scene", third_time(acclimate.scenes.sets._write_scene))
        assert main(["scenes", "new", "--images", "4", "--height", "64", "--width", "64"]) == 130
    kept = sorted((project / "new/images").iterdir())[0].stat().st_mtime_ns
    assert "2 of 6 images are done already" in accepted(capsys, "predict", ARTIFACT, TARGET, "--out", "found")
    assert json.loads((project / "found/detections.json").read_text())["complete"] is True
    accepted(capsys, "scenes", "new", "--images", "4", "--height", "64", "--width", "64")
    assert sorted((project / "new/images").iterdir())[0].stat().st_mtime_ns == kept


def test_a_full_disk_is_told_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in project.rglob("*") if file.is_file()}

    def full(*given: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for arguments in (
        ["train", "job.toml", "--out", "x"],
        ["predict", ARTIFACT, TARGET, "--out", "y"],
        ["report", "source"],
        ["data", "data/fog-test"],
        ["export", "source", "--precision", "fp32"],
    ):
        assert "the disk is full" in refused(capsys, *arguments)
    # What was measured is told even where it cannot be kept.
    capsys.readouterr()
    assert main(["verify", ARTIFACT]) in {0, 3}
    assert "the disk is full" in " ".join(capsys.readouterr().out.split())
    assert {file: file.read_bytes() for file in before} == before


# A process of its own.


def test_the_module_is_the_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, acclimate; assert 'numpy' not in sys.modules; from acclimate.cli import main;"
        "status = main(['--version']); status = status or main(['--help']);"
        "sys.exit(status or sorted({'torch', 'cv2', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "data", "train", "adapt", "evaluate", "export", "verify", "predict", "report", "doctor"):
        assert verb in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "acclimate", "train", "none.toml", "--out", "x"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.toml: no such config file\n"


def test_predict_does_not_load_torch(project: Path) -> None:
    code = (
        "import sys; from acclimate.cli import main;"
        f"status = main(['predict', {ARTIFACT!r}, {TARGET!r}, '--out', 'found']);"
        "sys.exit(status or sorted({'torch', 'timm', 'onnx', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_stops_training_where_it_can_go_on(stop: signal.Signals, project: Path) -> None:
    command = [sys.executable, "-m", "acclimate", "train", "job.toml", "--out", "x"]
    command += ["train.steps=150", "train.checkpoint_every=150"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = project / "x" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(stop)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "interrupted after step" in said
    assert Run.open(project / "x").manifest.status == "interrupted"
    assert main([*command[3:]]) == 0
    assert Run.open(project / "x").metrics()[-1]["step"] == 150


@pytest.mark.slow
def test_a_job_that_was_killed_while_it_adapted_goes_on(project: Path) -> None:
    job = ["run", "job.toml", "schedule.steps=24", "schedule.checkpoint_every=3", "export.precisions=['fp32']"]
    process = subprocess.Popen([sys.executable, "-m", "acclimate", *job], stdout=subprocess.DEVNULL)
    while not (project / "job/adapted/state/step.json").exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    adapted = Run.open(project / "job" / "adapted")
    assert adapted.manifest.status == "interrupted"
    assert not adapted.has("model.safetensors")
    began = adapted.manifest.created
    whole = {file: file.stat().st_mtime_ns for file in project.glob("job/*/model.safetensors")}
    assert {file.parent.name for file in whole} == {"source", "baseline"}
    assert main(job) == 0
    assert {file: file.stat().st_mtime_ns for file in whole} == whole
    adapted = Run.open(project / "job" / "adapted")
    assert (adapted.manifest.status, adapted.manifest.created) == ("done", began)
    assert [line["step"] for line in adapted.metrics()] == list(range(1, 25))
    assert not (project / "job" / "previous").exists()
    assert (project / "job" / "report.html").is_file()


@pytest.mark.slow
def test_torchrun_trains_with_two_processes_and_speaks_once(project: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "acclimate", "train", "job.toml", "--out", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("run: x") == 1
    assert Run.open(project / "x").manifest.notes.processes == 2


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command that succeeds prints as JSON; people's text is on stderr."""
    capsys.readouterr()
    status = main(arguments)
    said = capsys.readouterr()
    assert status in {0, 1, 3}, said.err
    return json.loads(said.out)


def test_json_of_each_verb_is_all_that_standard_output_has(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "data", "data/clear-train", "--json", "-")
    assert told["images"] == 6
    assert sum(told["image_sizes"].values()) == 6
    compared = printed(capsys, "data", "data/clear-train", TARGET, "data/fog-test", "--json", "-")
    assert [domain["role"] for domain in compared["domains"]] == ["source", "target", "test"]
    (evaluated,) = printed(capsys, "evaluate", "source", "--data", "data/fog-test", "--json", "-")["evaluations"]
    assert evaluated["role"] == "target"
    assert "resamples" not in evaluated
    (verified,) = printed(capsys, "verify", ARTIFACT, "--data", "data/fog-test", "--json", "-")["verifications"]
    assert verified["accuracy"]["target_test"]["images"] == 4
    found = printed(capsys, "predict", ARTIFACT, TARGET, "--json", "-")
    assert found["complete"]
    assert {"ok"} < {check["state"] for check in printed(capsys, "doctor", "--json", "-")["checks"]}
    assert main(["doctor", "--json", "doctor.json"]) == 0
    assert json.loads((project / "doctor.json").read_text())["checks"]


def test_predict_without_out_takes_the_next_number(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        accepted(capsys, "predict", ARTIFACT, TARGET)
        assert (project / "runs" / "predict" / str(number) / "detections.json").is_file()
    shutil.rmtree(project / "runs" / "predict" / "1")
    accepted(capsys, "predict", ARTIFACT, TARGET)
    assert (project / "runs" / "predict" / "3").is_dir()


@pytest.mark.parametrize("verb", ["predict", "package"])
def test_an_artifact_that_lies_inside_is_named(verb: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [TARGET] if verb == "predict" else ["--out", "x.zip"]
    assert f"an artifact lies inside: name it, {ARTIFACT}" in refused(capsys, verb, "source", *more)
    shutil.move("source", "job/source")
    assert f"name it, job/{ARTIFACT}" in refused(capsys, verb, "job", *more)
    assert "a run lies inside: name it, job/source" in refused(capsys, "evaluate", "job", "--data", "data/fog-test")


def test_a_bad_override_is_blamed_and_not_the_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "job.toml", "--out", "x", "train.stepz=5", "train.batch_size=0")
    assert "'train.stepz=5': unknown key 'train.stepz'" in said
    assert "'train.batch_size=0': train.batch_size" in said
    assert "job.toml" not in said
    text = (project / "job.toml").read_text()
    (project / "job.toml").write_text(text.replace("[train]", "[train]\nstepz = 5"))
    said = refused(capsys, "train", "job.toml", "--out", "x", "train.batch_size=0")
    assert "job.toml: unknown key 'train.stepz'" in said
    assert "'train.batch_size=0': train.batch_size" in said


def test_the_score_of_the_challenge_is_shown_where_it_is_asked_for(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", ARTIFACT, "--data", "data/fog-test"]
    for score in (False, True):
        capsys.readouterr()
        main([*arguments, *["--score"] * score])
        assert ("AP50 per minute" in capsys.readouterr().out) == score


def test_suggested_thresholds_come_from_the_source_and_are_taken(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from acclimate.edge.artifact import Artifact, write_manifest

    assert "suggests no thresholds" in refused(capsys, "predict", ARTIFACT, TARGET, "--suggested")
    manifest = Artifact.open(Path(ARTIFACT)).manifest
    before = Artifact.open(Path(ARTIFACT)).digest
    low, high = manifest.classes[0], manifest.classes[1]
    write_manifest(Path(ARTIFACT), manifest.model_copy(update={"suggested": {low: 0.0, high: 0.999}}))
    # They decide what is shown, not what is detected: what was verified still holds.
    assert Artifact.open(Path(ARTIFACT)).digest == before
    told = printed(capsys, "predict", ARTIFACT, TARGET, "--suggested", "--threshold", "0.5", "--json", "-")
    assert told["threshold"] == {low: 0.0, high: 0.999, **dict.fromkeys(manifest.classes[2:], 0.5)}
    shown = [detection for image in told["images"] for detection in image["detections"]]
    assert all(one["score"] >= told["threshold"][one["name"]] for one in shown)
    everything = printed(capsys, "predict", ARTIFACT, TARGET, "--threshold", "0", "--json", "-")
    every = [detection for image in everything["images"] for detection in image["detections"]]
    assert len(shown) == sum(one["score"] >= told["threshold"][one["name"]] for one in every)


def test_the_shell_is_taught_the_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        **os.environ,
        "_ACCLIMATE_COMPLETE": "complete_bash",
        "COMP_WORDS": "acclimate ver",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "import sys; from acclimate.cli import main; sys.exit(main())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["verify"]


def test_every_number_of_the_command_line_has_bounds() -> None:
    """Without an upper one `nan` passes, and a slip of the finger has no end."""
    unbounded = []
    for command in cli.app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if {int, float} & {kind, *get_args(kind)} and any(None in (mark.min, mark.max) for mark in marks):
                unbounded.append(f"{command.callback.__name__} {name}")
    assert not unbounded
