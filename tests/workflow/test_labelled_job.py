"""A whole job that asks for labels: it waits, goes on when they are there, and keeps them out of tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from acclimate import cli, workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import Config, DataConfig
from acclimate.data import formats
from acclimate.errors import AcclimateError, WaitingError
from acclimate.evaluate import evaluate_detector
from acclimate.models import detector as models
from acclimate.run import Run, file_digest
from acclimate.select.record import Validation
from acclimate.workflow import job
from test_labels import target_with_labels
from tiny_job import make_data, settings


def asking(folder: Path) -> dict[str, object]:
    values = settings(folder, folder / "job")
    values["ask"] = {"frames": 2, "way": "random"}
    return values


def annotate(folder: Path) -> None:
    """What a person does: other boxes in the YOLO files."""
    for file in sorted((folder / "labels" / "train").iterdir()):
        file.write_text("0 0.5 0.5 0.3 0.4\n")


@pytest.fixture(scope="module")
def waited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder after its first call, which waits."""
    folder = tmp_path_factory.mktemp("asked")
    make_data(folder)
    (folder / "job.json").write_text(json.dumps(asking(folder)))
    assert cli.main(["run", str(folder / "job.json")]) == 4
    return folder


def test_a_job_that_asks_waits_and_says_for_what(waited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_digest(waited / "job" / "ask" / "ask.json")
    assert cli.main(["run", str(waited / "job.json")]) == 4
    assert f"waiting for 2 frames; annotate {waited / 'job' / 'ask'} and run again" in capsys.readouterr().err
    assert file_digest(waited / "job" / "ask" / "ask.json") == before
    assert not (waited / "job" / "adapted").exists()
    config = Config.model_validate({**asking(waited), "labelled": {"path": str(waited / "not-yet")}})
    with pytest.raises(WaitingError, match=r"with the labels in .*not-yet"):
        workflow.run(config)


def test_boxes_that_nobody_looked_at_are_no_labels(waited: Path, tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="the detector's own boxes"):
        workflow.adapt(
            waited / "job" / "source", waited / "fog-train" / "images", tmp_path / "out",
            labelled=DataConfig(path=waited / "job" / "ask" / "yolo"),
        )  # fmt: skip


def test_it_goes_on_when_the_labels_are_there(waited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(waited / "job", tmp_path / "job")
    values = {**asking(waited), "out": str(tmp_path / "job")}
    annotate(tmp_path / "job" / "ask" / "yolo")
    monkeypatch.setattr(job, "export", _no_export)
    with pytest.raises(_EnoughError):
        workflow.run(Config.model_validate(values))
    adapted = Run.open(tmp_path / "job" / "adapted")
    told = adapted.manifest.notes.labelled
    asked = json.loads((tmp_path / "job" / "ask" / "ask.json").read_text())
    assert (told.images, told.boxes, told.matched) == (2, 2, 2)
    assert sorted(told.sha256) == sorted(frame["sha256"] for frame in asked["frames"])
    assert adapted.manifest.notes.target.images == 4
    # Each box that came back, and each that was drawn, has become something.
    became = told.corrections
    assert became["frames"] == 2
    both = became["kept"] + became["moved"] + became["renamed"]
    assert both + became["added"] == 2
    assert both + became["removed"] == sum(len(frame["boxes"]) for frame in asked["frames"])
    # What would help most now is none of what was labelled.
    wanted = {frame["path"] for frame in adapted.read("next.json")["frames"]}
    assert wanted
    assert not wanted & {frame["path"] for frame in asked["frames"]}
    assert "labelled" in adapted.manifest.notes.method
    assert all(line["labelled/class"] > 0 for line in adapted.metrics() if "supervised/class" in line)
    # The baseline has nothing of the target, so none of its labels.
    assert Run.open(tmp_path / "job" / "baseline").manifest.notes.labelled is None
    # Whoever measures on what was learnt from is told so.
    with pytest.raises(AcclimateError, match="is a labelled frame that was trained on"):
        workflow.evaluate(adapted.path, DataConfig(path=waited / "fog-train"))
    # And before anything is trained, where the job names such a test.
    values["target_test"] = {"path": str(waited / "fog-train")}
    with pytest.raises(AcclimateError, match="is a labelled frame"):
        workflow.run(Config.model_validate(values))


class _EnoughError(Exception):
    pass


def _no_export(*arguments: object, **options: object) -> Path:
    raise _EnoughError


WATCHED = """
import json, sys
from pathlib import Path

root, opened = str(Path(sys.argv[1]).resolve()), set()

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, Path)):
        name = str(Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]).absolute())
        if name.startswith(root):
            opened.add(str(Path(name).relative_to(root)))

sys.addaudithook(watch)

from acclimate import workflow
from acclimate.config import DataConfig

source, target, labelled = (Path(one) for one in sys.argv[2:5])
workflow.adapt(source, target, "adapted", ["adapt.labelled.validation=1"], labelled=DataConfig(path=labelled))
print(json.dumps(sorted(opened)))
"""


def test_of_the_target_the_labelled_frames_labels_alone_are_opened(waited: Path, tmp_path: Path) -> None:
    shutil.copytree(waited / "fog-train", tmp_path / "fog-train")
    shutil.copytree(waited / "job" / "ask" / "yolo", tmp_path / "labelled")
    annotate(tmp_path / "labelled")
    target = target_with_labels(tmp_path)
    command = [
        sys.executable, "-c", WATCHED, str(tmp_path), str(waited / "job" / "source"), str(target / "images"),
        str(tmp_path / "labelled"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    opened = [Path(name) for name in json.loads(done.stdout.splitlines()[-1])]
    of_target = {path.suffix for path in opened if path.parts[0] == "fog-train"}
    assert of_target == {".jpg"}
    assert ".txt" in {path.suffix for path in opened if path.parts[0] == "labelled"}


def test_frames_held_back_choose_the_checkpoint(waited: Path, tmp_path: Path) -> None:
    arguments = ["adapt", str(waited / "job" / "source"), "--target", str(waited / "fog-train" / "images")]
    arguments += ["--labelled", str(waited / "fog-train"), "--validate", "3", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    run = Run.open(tmp_path / "out")
    told = run.manifest.notes.labelled
    assert (told.images, told.validation.images, len(told.sha256)) == (3, 3, 6)
    selection, validation = run.selection(), Validation.model_validate(run.read("validation.json"))
    assert selection is not None
    assert (selection.rule, selection.validated_on) == ("validated_ap", 3)
    # The same measured here, on the frames that the run has not learnt from.
    learnt = set(run.read("inputs.json")["sets"]["labelled"]["files"])
    truth = formats.read(DataConfig(path=waited / "fog-train"), models.specification(run.path).classes)
    held = replace(truth, images=tuple(image for image in truth.images if str(image.path) not in learnt))
    assert len(held) == 3
    wanted = {
        step: evaluate_detector(models.load(run.path, file), held, "held", "target").ap
        for step, file in checkpoints(run).items()
    }
    assert sorted(wanted) == [0, 2, 4]
    assert {one.step: one.scores["validated_ap"] for one in selection.candidates} == pytest.approx(wanted)
    assert selection.chosen_step == max(wanted, key=lambda step: (wanted[step], step))
    assert validation.start is not None
    assert (validation.start.ap, validation.chosen.ap) == pytest.approx((wanted[0], wanted[selection.chosen_step]))
    with pytest.raises(AcclimateError, match="name them with --labelled"):
        workflow.adapt(
            waited / "job" / "source", waited / "fog-train" / "images", tmp_path / "none",
            ["adapt.labelled.validation=1"],
        )  # fmt: skip
