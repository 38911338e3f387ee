"""The verb `distil`: a large run teaches a small one, whose folder every other verb takes; and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console

from acclimate import stages, workflow
from acclimate.cli import main
from acclimate.config import Config, load
from acclimate.errors import AcclimateError, Interrupted
from acclimate.models import detector as models
from acclimate.report.content import gather
from acclimate.run import Run
from tiny_job import make_data, settings

STUDENT = "model.backbone=test_efficientnet"
SMALL = ("model.weights=none", "model.channels=16", "model.depth=1")
TARGET = Path("data/fog-train/images")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, and a source run, `large`."""
    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "data")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        values = settings(Path("data"), Path("job"))
        values["model"] = {**values["model"], "channels": 16, "depth": 1}
        workflow.train(Config.model_validate(values), "large")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def spec(file: Path, **sections: Any) -> Path:
    file.write_text(tomli_w.dumps(sections))
    return file


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a `distil` that must exit with 2."""
    capsys.readouterr()
    status = main(["distil", *arguments])
    said = capsys.readouterr().err
    assert status == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


def test_a_student_is_a_run_like_any_other(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["distil", "large", "--student", STUDENT, "--target", str(TARGET), "--out", "small", *SMALL]
    assert main(arguments) == 0
    small, large = Run.open(Path("small")), Run.open(Path("large"))
    own, teacher = (models.load(run.path).spec for run in (small, large))
    assert (own.backbone, teacher.backbone) == ("test_efficientnet", "lcnet_050")
    assert (own.image_size, own.strides, own.classes) == (teacher.image_size, teacher.strides, teacher.classes)
    assert small.manifest.notes.role == "adapted"
    assert small.manifest.notes.method == ("supervised", "distillation")
    assert small.metrics()[-1]["step"] == load("large/config.json").train.steps
    assert {"distillation/soft_class", "supervised/class"} <= small.metrics()[-1].keys()
    config = stages.configuration(small)
    assert config.target == TARGET
    assert config.adapt.teacher is None
    assert "distillation/imitation" in small.metrics()[-1]

    capsys.readouterr()
    assert main(arguments) == 0
    assert "small: done; nothing to do" in capsys.readouterr().out

    page = gather([Path("large"), Path("small")])
    assert [part.kind for part in page.parts] == ["source", "adapted"]
    assert page.parts[1].steps == config.train.steps


@pytest.mark.slow
def test_the_next_verbs_take_a_student(project: Path) -> None:
    workflow.distil("large", STUDENT, "small", SMALL, target=TARGET)
    artifact = workflow.export("small", precision="int8", images=2)
    assert workflow.verify(artifact).latency.median_ms > 0
    adapted = workflow.adapt("small", TARGET, "site")
    assert adapted.manifest.notes.method == ("supervised", "teacher"), "a student's own teacher is left out"


def test_without_a_target_the_source_alone_is_learnt_from(project: Path) -> None:
    run = workflow.distil("large", STUDENT, "small", SMALL)
    assert run.manifest.notes.role == "source"
    assert stages.configuration(run).target is None
    assert [part.kind for part in gather([Path("large"), Path("small")]).parts] == ["source", "source"]


def test_a_file_says_what_differs(project: Path) -> None:
    file = spec(
        Path("student.toml"),
        model={"backbone": "test_efficientnet", "weights": "none", "channels": 16},
        train={"steps": 2},
        adapt={"distillation": {"response": 0.0, "channel": {"weight": 3.0}}},
    )
    run = workflow.distil("large", file, "small", ["adapt.distillation.channel.temperature=2"])
    config = stages.configuration(run)
    assert config.train.steps == run.metrics()[-1]["step"] == 2
    assert config.train.batch_size == load("large/config.json").train.batch_size, "the rest is the teacher's"
    assert config.adapt.distillation is not None
    assert config.adapt.distillation.channel is not None
    assert (config.adapt.distillation.channel.weight, config.adapt.distillation.channel.temperature) == (3, 2)
    assert {name for name in run.metrics()[-1] if name.startswith("distillation")} == {"distillation/channel"}


def test_what_is_learnt_is_what_is_named_or_what_was_measured_to_teach_best(project: Path) -> None:
    def learnt(*overrides: str) -> set[str]:
        steps = ("train.steps=1", "train.warmup=0", "train.checkpoint_every=1")
        run = workflow.distil(
            "large", STUDENT, f"small-{len(list(project.glob('small-*')))}", [*SMALL, *steps, *overrides]
        )
        names = [name for name in run.metrics()[-1] if name.startswith("distillation/")]
        return {name.removeprefix("distillation/").split("_")[0] for name in names}

    assert learnt() == {"imitation", "soft"}
    assert learnt("adapt.distillation.response=2") == {"soft"}
    assert learnt("adapt.distillation.channel={}") == {"soft", "channel"}
    assert learnt("model.kind=ssd", "model.ssd.extra=1") == {"box"}


def test_a_run_may_be_the_student(project: Path) -> None:
    first = workflow.distil("large", STUDENT, "first", SMALL)
    run = workflow.distil("large", "first", "second", ["schedule.steps=2", "schedule.lr=1e-9"], target=TARGET)
    assert run.metrics()[-1]["step"] == 2
    assert run.manifest.parents == ("large", "first")
    own, start = (models.load(one.path).state_dict() for one in (run, first))
    assert all(own[name].sub(value).abs().max() < 1e-4 for name, value in start.items() if name.endswith("weight"))
    with pytest.raises(AcclimateError, match=r"first: the student is this run, so its model stays"):
        workflow.distil("large", "first", "third", ["model.channels=32"])


class _Interrupting(Console):
    """Presses Ctrl-C once when the second step is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.pressed = False

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.pressed and "step 2/" in str(objects[0]):
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_student_goes_on_to_the_same_weights(project: Path) -> None:
    critics = (*SMALL, "adapt.distillation.gan.width=8", "adapt.distillation.gan.until=1")
    whole = workflow.distil("large", STUDENT, "whole", critics, target=TARGET)
    with pytest.raises(Interrupted):
        workflow.distil("large", STUDENT, "small", critics, target=TARGET, console=_Interrupting())
    assert Run.open(Path("small")).manifest.status == "interrupted"
    again = workflow.distil("large", STUDENT, "small", critics, target=TARGET)
    assert (again.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    for line, other in zip(again.metrics(), whole.metrics(), strict=True):
        assert {**line, "images_per_s": 0} == {**other, "images_per_s": 0}
    assert not (again.path / "state").exists()


def test_a_changed_teacher_is_noticed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow.distil("large", STUDENT, "small", SMALL)
    teacher = models.load(Path("large"))
    next(iter(teacher.parameters())).data.add_(0.5)
    models.save(teacher, Path("large"))
    with pytest.raises(AcclimateError, match=r"holds another run .* with other inputs"):
        workflow.distil("large", STUDENT, "small", SMALL)
    overrides = ["adapt.distillation.teacher=large", "adapt.teacher=none"]
    workflow.adapt("small", TARGET, "site", overrides)
    next(iter(teacher.parameters())).data.add_(0.5)
    models.save(teacher, Path("large"))
    with pytest.raises(AcclimateError, match=r"holds another run .* with other inputs"):
        workflow.adapt("small", TARGET, "site", overrides)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--student", STUDENT], "nowhere: not a run folder"),
        (["large", "--student", "none.toml"], "none.toml: no such config file"),
        (["large", "--student", "data"], "data: not a run folder"),
        (["large", "--student", "model.backbnoe=x"], "unknown key 'model.backbnoe' (did you mean 'backbone'?)"),
        (["large", "--student", "broken.toml"], "broken.toml: not valid TOML"),
        (["large", "--student", STUDENT, "adapt.distillation.teacher=other"], "the first argument of distil"),
        (["large", "--student", STUDENT, "adapt.distillation=none"], "the first argument of distil"),
        (["large", "--student", STUDENT, "adapt.distillation.response=0"], "the teacher teaches nothing"),
        (["large", "--student", STUDENT, "adapt.distillation.gan.mode=vanilla"], "adapt.distillation.gan.mode"),
        (["large", "--student", STUDENT, *SMALL, "model.image_size=[96, 96]"], "its canvas is 64 x 96, the student's"),
        (["large", "--student", STUDENT, *SMALL, "model.strides=[4]"], "no level of its pyramid has the stride"),
        (["large", "--student", STUDENT, *SMALL, "model.channels=24", "adapt.distillation.head=teacher"], "head=own"),
        (["large", "--student", STUDENT, *SMALL, "adapt.teacher.boxes=1"], "adapt.teacher learns from target images"),
        (["large", "--student", STUDENT, "--target", "nothing"], "nothing: no such file or folder"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    arguments: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.toml").write_text("[model\n")
    assert said in refused(capsys, *arguments, "--out", "small")
    assert not Path("small").exists()


def test_other_classes_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("large", "other")
    values = json.loads(Path("other/spec.json").read_text())
    names = {name: f"a {name}" for name in values["classes"]}
    Path("other/spec.json").write_text(json.dumps({**values, "classes": list(names.values())}))
    said = refused(capsys, "other", "--student", "large", "--out", "small")
    assert "other: it knows a " in said
    assert "source.classes renames them" in said


def test_an_unfinished_teacher_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(Path("large/run.json").read_text())
    Path("large/run.json").write_text(json.dumps({**values, "status": "interrupted"}))
    assert "large: the run is not finished" in refused(capsys, "large", "--student", STUDENT, "--out", "small")
    Path("large/run.json").write_text(json.dumps(values))
    with pytest.raises(AcclimateError, match="gone: not a run folder"):
        workflow.adapt("large", TARGET, "site", ["adapt.distillation.teacher=gone"])
