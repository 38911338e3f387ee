"""The adaptation's options from the command's side: all of them together, two rounds, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_job
from acclimate import workflow
from acclimate.adapt.methods import uses_target
from acclimate.config import Config, TeacherConfig
from acclimate.errors import AcclimateError
from acclimate.run import Run

EVERYTHING = [
    "augment.weather=1", "augment.mask=1", "augment.balance=target", "adapt.statistics=domain",
    "adapt.teacher.scale=1.5", "adapt.teacher.flip=true", "adapt.teacher.mix=1", "adapt.teacher.threshold=adaptive",
    "adapt.teacher.regression=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs")
    return workflow.train(tiny_job.config(data, out), out / "source")


def test_all_options_together_and_a_second_round(source: Run, data: Path, tmp_path: Path) -> None:
    target = data / "fog-train" / "images"
    first = workflow.adapt(source.path, target, tmp_path / "first", EVERYTHING)
    assert {"teacher/class", "teacher/box", "teacher/mix_class"} <= set(first.metrics()[-1])
    selection = first.selection()
    assert selection is not None
    assert [candidate.step for candidate in selection.candidates] == [0, 2, 4]
    start = (source.path / "model.safetensors").read_bytes()
    assert (first.path / "checkpoints" / "step_000000.safetensors").read_bytes() == start
    # A second round starts from the first's weights, teaches itself anew and has its own choice.
    second = workflow.adapt(first.path, target, tmp_path / "second")
    assert second.manifest.parents == (str(first.path),)
    adapted = (first.path / "model.safetensors").read_bytes()
    assert (second.path / "checkpoints" / "step_000000.safetensors").read_bytes() == adapted
    assert second.read("config.json")["adapt"]["teacher"]["scale"] == 1.5
    assert second.selection() is not None


def test_options_that_read_the_target_are_no_part_of_the_baseline() -> None:
    config = Config.model_validate({"augment": {"style": 0, "weather": 0.5, "mask": 1, "balance": "target"}})
    alone = config.source_only()
    assert not uses_target(alone)
    assert (alone.augment.weather, alone.augment.mask, alone.augment.balance) == (0, 0, "none")
    assert Config.model_validate({"augment": {"balance": "classes"}}).source_only().augment.balance == "classes"
    for option in ({"weather": 0.5}, {"balance": "target"}):
        silent = Config.model_validate({"augment": {"style": 0, **option}, "adapt": {"teacher": None}})
        assert uses_target(silent)


def test_a_larger_look_is_refused_for_a_detector_of_one_size(data: Path, tmp_path: Path) -> None:
    settings = tiny_job.settings(data, tmp_path)
    settings["model"] |= {"kind": "ssd", "image_size": [64, 96], "ssd": {"extra": 0}}
    made = workflow.train(Config.model_validate(settings), tmp_path / "ssd")
    with pytest.raises(AcclimateError, match=r"adapt\.teacher\.scale: .*ssd.*one input size"):
        workflow.adapt(made.path, data / "fog-train" / "images", tmp_path / "larger", ["adapt.teacher.scale=1.5"])
    run = workflow.adapt(made.path, data / "fog-train" / "images", tmp_path / "turned", ["adapt.teacher.flip=true"])
    assert run.done


def test_defaults_are_off() -> None:
    teacher = TeacherConfig()
    assert (teacher.scale, teacher.flip, teacher.mix) == (1, False, 0)
