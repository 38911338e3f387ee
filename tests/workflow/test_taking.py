"""A detector from elsewhere becomes a source run, measured at once; docs/bring-your-own-detector.md goes on from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from acclimate import workflow
from acclimate.cli import main
from acclimate.config import DataConfig
from acclimate.errors import AcclimateError
from acclimate.models import detector as models
from acclimate.models.detector import build, save, specify
from acclimate.run import Manifest, Run
from tiny_job import config

THEIRS = ("person", "tree", "car", "truck", "sheep", "cow")
NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
SHORT = (
    "schedule.steps=2", "schedule.batch_size=1", "schedule.warmup=1", "schedule.checkpoint_every=1",
    "schedule.workers=0", "adapt.teacher.threshold=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Faster R-CNN of six classes with random weights."""
    torch.manual_seed(0)
    made: Any = torchvision.models.get_model(NAME, weights=None, weights_backbone=None, num_classes=7)
    file = tmp_path_factory.mktemp("theirs") / f"{NAME}-mine.pth"
    torch.save(made.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished source run with random weights, of six classes."""
    out = tmp_path_factory.mktemp("elsewhere") / "theirs"
    torch.manual_seed(0)
    made = Run.create(out, Manifest(verb="train", notes={"role": "source"}))
    settings = config(data, out)
    save(build(specify(settings.model, THEIRS)), out)
    made.write("config.json", settings.model_dump(mode="json"))
    made.finish("done", 1.0)
    return out


def classes_of(data: Path) -> list[str]:
    from acclimate.data import formats

    return list(formats.read(DataConfig(path=data / "clear-train")).classes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_torchvision_checkpoint_becomes_a_source_run(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    names = classes_of(data)
    theirs = [*reversed(names), *(f"other {i}" for i in range(6 - len(names)))]
    taken = workflow.take(
        checkpoint, tmp_path / "source", ("model.image_size=[64, 96]",), data=data / "clear-train", classes=theirs
    )
    assert (taken.manifest.verb, taken.manifest.status, taken.manifest.notes.role) == ("take", "done", "source")
    assert taken.evaluations()[0].data == "source_test"
    assert models.specification(taken.path).classes == tuple(theirs)


def test_a_run_from_elsewhere_keeps_the_classes_of_the_data(run: Path, data: Path, tmp_path: Path) -> None:
    names = classes_of(data)
    other = dict(zip(THEIRS[1:], names, strict=True))
    given = [f"{theirs}={ours}" for theirs, ours in other.items()]
    taken = workflow.take(run, tmp_path / "source", data=data / "clear-train", classes=given)
    assert taken.manifest.parents == (str(run),)
    assert taken.manifest.notes.classes == {ours: theirs for theirs, ours in other.items()}
    source, made = models.load(run), models.load(taken.path)
    for ours, theirs in ((ours, theirs) for theirs, ours in other.items()):
        mine, old = (
            one.classify.weight[one.spec.classes.index(name)] for one, name in ((made, ours), (source, theirs))
        )
        torch.testing.assert_close(mine, old)
    assert taken.has("evaluations/source_test.json")
    again = workflow.take(run, tmp_path / "source", data=data / "clear-train", classes=given)
    assert again.manifest.finished == taken.manifest.finished
    moved = shutil.copytree(taken.path, tmp_path / "moved")
    assert workflow.take(moved, tmp_path / "third").manifest.status == "done"


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["persn"], "did you mean 'person'"),
        (["person", "person=rider"], "its class 'person' stands twice"),
        (["person=x", "car=x"], "our class 'x' stands twice"),
    ],
)
def test_a_mapping_that_cannot_be_is_one_line(run: Path, tmp_path: Path, classes: list[str], said: str) -> None:
    with pytest.raises(AcclimateError, match=said) as told:
        workflow.take(run, tmp_path / "source", classes=classes)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "source" / "run.json").exists()


def test_the_model_of_a_run_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["take", str(run), "--out", str(tmp_path / "x"), "model.image_size=[32, 32]"]) == 2
    assert "its model stays what it is" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_starts_from_another_run(run: Path, data: Path, tmp_path: Path) -> None:
    settings = config(data, tmp_path)
    begun = settings.model_copy(update={"model": settings.model.model_copy(update={"start": run})})
    done = workflow.train(begun, tmp_path / "source")
    assert done.manifest.notes.start.startswith(f"the run {run}")
    assert done.read("inputs.json")["weights"]
    assert done.manifest.digest != workflow.train(settings, tmp_path / "plain").manifest.digest


def test_weights_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from acclimate.models.weights import installed

    assert main(["weights"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in installed())
    assert main(["weights", "lcnet_050", "--to", "nowhere"]) == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
