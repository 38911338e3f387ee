"""A checkpoint of `transformers` through all verbs: taken, adapted, labelled with, distilled, exported and verified."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import small_transformers as small
from acclimate import workflow
from acclimate.config import Budget, DataConfig
from acclimate.data import scored
from acclimate.edge.artifact import Artifact
from acclimate.errors import AcclimateError
from acclimate.models import detector as models
from acclimate.models import transformers
from tiny_job import LOOSE, config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = (
    "schedule.steps=2", "schedule.batch_size=2", "schedule.warmup=1", "schedule.checkpoint_every=1",
    "schedule.log_every=1", "schedule.workers=0", "adapt.teacher.threshold=0.5",
)  # fmt: skip
STUDENT = (
    "model.backbone=lcnet_050", "model.weights=none", "train.steps=2", "train.batch_size=2", "train.warmup=1",
    "train.checkpoint_every=1", "train.workers=0", "adapt.distillation.threshold=0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from acclimate.data import formats

    names = formats.read(DataConfig(path=data / "clear-train")).classes
    return small.write("rt_detr", tmp_path_factory.mktemp("theirs") / "rt-detr", [*reversed(names), "tree"])


@pytest.fixture(scope="module")
def taken(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "source"
    return workflow.take(checkpoint, out, ("model.image_size=[64, 96]",), data=data / "clear-train").path


def test_it_becomes_a_source_run_that_is_measured_at_once(taken: Path, checkpoint: Path, data: Path) -> None:
    from acclimate.data import formats
    from acclimate.run import Run

    run = Run.open(taken)
    assert (run.manifest.verb, run.manifest.notes.role) == ("take", "source")
    assert run.evaluations()[0].data == "source_test"
    spec = models.specification(taken)
    assert spec.classes == formats.read(DataConfig(path=data / "clear-train")).classes
    assert spec.image_size == (64, 96)
    whole, own = transformers.from_checkpoint(checkpoint, (64, 96)), models.load(taken)
    name = "model.model.enc_score_head"
    for place, title in enumerate(spec.classes):
        theirs = whole.get_submodule(name).weight[whole.spec.classes.index(title)]
        assert bool((own.get_submodule(name).weight[place] == theirs).all())
    # The same again is done already, and a run of it is taken like any other.
    assert workflow.take(checkpoint, taken, ("model.image_size=[64, 96]",), data=data / "clear-train").path == taken
    assert workflow.take(taken, taken.parent / "second").manifest.status == "done"


def test_it_is_adapted_exported_and_verified(taken: Path, data: Path, tmp_path: Path) -> None:
    target = data / "fog-train" / "images"
    adapted = workflow.adapt(taken, target, tmp_path / "adapted", SHORT)
    lines = adapted.metrics()
    assert {"supervised/class", "supervised/box", "teacher/class", "teacher/box"} <= set(lines[-1])
    artifact = workflow.export(adapted.path, runtime="openvino", precision="fp32")
    sets = [(DataConfig(path=data / "fog-test"), "target_test", "target")]
    verified = workflow.verify(artifact, sets, Budget(**LOOSE))  # type: ignore[arg-type]
    assert list(verified.accuracy) == ["target_test"]


def test_the_example_measures_teacher_and_student_in_int8(
    checkpoint: Path,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["transformer.py", str(checkpoint), str(tmp_path), "--small"])
    runpy.run_path(str(repository / "examples" / "transformer.py"), run_name="__main__")
    for name, kind in (("teacher", "queries"), ("student", "dense")):
        artifact = Artifact.open(tmp_path / name / "artifacts" / "onnx-int8")
        assert artifact.manifest.decode.kind == kind
        assert (artifact.folder / "verification.json").is_file()
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in table] == ["teacher", "student"]


def test_methods_of_adaptation_take_it(taken: Path, data: Path, tmp_path: Path) -> None:
    target = data / "fog-train" / "images"
    soft = workflow.adapt(taken, target, tmp_path / "soft", (*SHORT, "adapt.teacher.soft=1", "adapt.teacher.boxes=0"))
    assert {"teacher/soft_class", "teacher/soft_box"} <= set(soft.metrics()[-1])
    critics = workflow.adapt(
        taken, target, tmp_path / "critics",
        (*SHORT, "adapt.adversarial.kind=da-faster", "adapt.suppression={}", "schedule.optimizer=sgd"),
    )  # fmt: skip
    assert any(key.startswith("adversarial/") for key in critics.metrics()[-1])
    assert critics.metrics()[-1]["suppression"]


def test_it_teaches_a_convolutional_student(taken: Path, data: Path, tmp_path: Path) -> None:
    target = data / "fog-train" / "images"
    student = workflow.distil(taken, "nano", tmp_path / "student", STUDENT, target=target)
    spec = models.specification(student.path)
    assert (spec.kind, spec.strides, spec.channels) == ("dense", (8, 16, 32), 48)
    assert any(key.startswith("distillation/box_") for key in student.metrics()[-1])
    assert not any("imitation" in key for key in student.metrics()[-1])


def test_it_labels_images_for_a_small_detector(taken: Path, data: Path, tmp_path: Path) -> None:
    target, file = data / "fog-train" / "images", tmp_path / "labels.json"
    labels = workflow.label(target, taken, file, flip=True)
    assert set(labels.thresholds) == set(models.specification(taken).classes)
    assert scored.read(file).classes == labels.classes
    with pytest.raises(AcclimateError, match="made for one input size"):
        workflow.label(target, taken, file, scales=(1.5,))
    source = workflow.train(config(data, tmp_path), tmp_path / "small")
    given = ("adapt.teacher=none", f"adapt.labels.file={file}", "adapt.labels.threshold=0.3")
    taught = workflow.adapt(source.path, target, tmp_path / "taught", (*SHORT[:-1], *given))
    assert {"labels/class", "labels/box"} <= set(taught.metrics()[-1])
    # Other labels are other inputs.
    workflow.label(target, taken, file)
    with pytest.raises(AcclimateError, match="labels"):
        workflow.adapt(source.path, target, tmp_path / "taught", (*SHORT[:-1], *given))
    file.unlink()
    with pytest.raises(AcclimateError, match="no such file"):
        workflow.adapt(source.path, target, tmp_path / "other", (*SHORT[:-1], *given))


def test_training_starts_from_a_checkpoint(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    settings = config(data, tmp_path)
    values = settings.model_dump(mode="json") | {
        "model": {"kind": "transformers", "transformers": {"checkpoint": str(checkpoint)}}
    }
    run = workflow.train(type(settings).model_validate(values), tmp_path / "trained")
    assert run.manifest.notes.start.startswith(f"the checkpoint {checkpoint}, with its classes")
    assert models.specification(run.path).image_size == (small.SIDE, small.SIDE)
    assert run.read("config.json")["model"]["image_size"] == [small.SIDE, small.SIDE]
    again = workflow.train(type(settings).model_validate(values), tmp_path / "trained")
    assert again.manifest.finished == run.manifest.finished
