"""Trackers, for real where they run on this machine alone: what they show is what the run folder has."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from acclimate import trackers
from acclimate.cli import main
from acclimate.errors import AcclimateError
from acclimate.run import Manifest, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "adapted", Manifest(verb="adapt", digest="d"))


def log_steps(run: Run, steps: range) -> None:
    with trackers.tracked(run, {"schedule": {"lr": 0.5}}) as track:
        for step in steps:
            values = {"loss": 1 / step, "health": {"layer": 1}, "on": True, "teacher/box": 2.0}
            run.log(step=step, **values)
            track(step, values)


def test_tensorboard_has_each_step_once_though_the_run_was_resumed(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers.asked(["tensorboard"]):
        log_steps(run, range(1, 6))
        # A killed process had logged steps that its saved state does not know.
        run.rewind(3)
        log_steps(run, range(4, 8))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "teacher/box"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(1 / step)) for step in range(1, 8)
    ]


def test_mlflow_goes_on_with_the_same_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with trackers.asked(["mlflow"]):
        log_steps(run, range(1, 4))
        log_steps(run, range(4, 6))
    client = MlflowClient(tracking_uri=(run.path.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "adapted"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"schedule.lr": "0.5"}
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")] == [
        (step, pytest.approx(1 / step)) for step in range(1, 6)
    ]


def test_a_training_that_fails_is_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with trackers.asked(["mlflow"]), pytest.raises(ZeroDivisionError):
        log_steps(run, range(2))
    client = MlflowClient(tracking_uri=(run.path.parent / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])  # type: ignore[union-attr]
    assert found.info.status == "FAILED"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Packages that write down how they are called, with what their documentation says they take."""
    told: list[Any] = []

    class Session:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append(("log", step, values))

        def finish(self, exit_code: int | None = None) -> None:
            told.append(("finish", exit_code))

    def init(**options: Any) -> Session:
        told.append(("init", options))
        return Session()

    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        session = Session()
        module.init, module.log, module.finish = init, session.log, session.finish  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return told


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_get_the_same_by_the_same_interface(name: str, run: Run, calls: list[Any]) -> None:
    with trackers.asked([name]):
        log_steps(run, range(1, 3))
        log_steps(run, range(3, 4))
    first, *logged, _, second, _, _ = calls
    assert first[1]["project"] == "acclimate"
    assert first[1]["config"] == {"schedule": {"lr": 0.5}}
    key = "id" if name == "wandb" else "name"
    assert first[1][key] == second[1][key]
    assert first[1]["resume"] == "allow"
    assert logged == [("log", 1, {"loss": 1.0, "teacher/box": 2.0}), ("log", 2, {"loss": 0.5, "teacher/box": 2.0})]
    assert [call[0] for call in calls] == ["init", "log", "log", "finish", "init", "log", "finish"]


def test_a_tracker_that_fails_stops_nothing(
    run: Run, calls: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(values: Any, step: int) -> None:
        raise OSError("no space left\non the server")

    monkeypatch.setattr(sys.modules["trackio"], "log", full)
    with caplog.at_level(logging.WARNING), trackers.asked(["trackio", "wandb"]):
        log_steps(run, range(1, 4))
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker trackio is left out: no space left; the numbers are in the run folder"
    ]
    assert sum(call[0] == "log" for call in calls) == 3


def test_without_being_asked_nothing_is_opened(run: Run, calls: list[Any]) -> None:
    log_steps(run, range(1, 3))
    assert calls == []
    assert not (run.path / "tensorboard").exists()


def test_an_unknown_or_missing_tracker_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    with pytest.raises(AcclimateError, match="choose tensorboard, mlflow, wandb, trackio"), trackers.asked(["neptune"]):
        pass
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(AcclimateError, match="pip install wandb"), trackers.asked(["wandb"]):
        pass
    (tmp_path / "job.toml").write_text("")
    assert main(["train", str(tmp_path / "job.toml"), "--out", str(tmp_path / "r"), "--track", "neptune"]) == 2
    assert "--track neptune: choose" in capsys.readouterr().err
