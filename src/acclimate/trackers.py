"""Experiment trackers: a run's logged numbers, sent on as they are logged. Off unless they are asked for.

What a run folder holds is the record; a tracker is a copy for people who look elsewhere. One that fails is told of once
and left out, and the training goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.run import Run, digest

log = logging.getLogger(__name__)

PROJECT = "acclimate"
"""What the experiment, or the project, is called there."""
Track = Callable[[int, Mapping[str, Any]], None]
"""Takes a step and what was logged at it; what is no number is left out."""


class Tracker(Protocol):
    """One place to send numbers to. It is opened with the run and its configuration, again where a run goes on."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files in the run's own folder `tensorboard`: tensorboard --logdir runs."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps that a killed process logged after its last saved state are logged once more.
        last = max((int(line.get("step", 0)) for line in run.metrics()), default=0)
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=last + 1)
        if config and not last:
            self._writer.add_text("config", f"```\n{json.dumps(config, indent=1, default=str)}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `PROJECT` at $MLFLOW_TRACKING_URI, or in the folder mlruns beside the run's folder."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow asks before it writes files; here files are what was asked for.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.path.resolve().parent / "mlruns").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        known = run.path / "mlflow.json"
        if known.is_file():
            self._id = str(json.loads(known.read_text())["run_id"])
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(PROJECT)
        made = self._client.create_run(number, run_name=run.path.name, tags={"folder": str(run.path)})
        self._id = made.info.run_id
        run.write(known.name, {"run_id": self._id, "uri": uri})
        for key, value in _flat(config):
            self._client.log_param(self._id, key, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class WandB:
    """A run of the project `PROJECT` at Weights & Biases; $WANDB_MODE=offline keeps it here."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=PROJECT,
            name=run.path.name,
            id=_identity(run),
            resume="allow",
            config=dict(config),
            dir=str(run.path),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of the project `PROJECT` in Trackio's local database."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        name = f"{run.path.name}-{_identity(run)}"
        self._trackio.init(project=PROJECT, name=name, resume="allow", config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def finish(self, failed: bool) -> None:
        self._trackio.finish()


TRACKERS: Mapping[str, tuple[type[Tracker], str]] = {
    "tensorboard": (TensorBoard, "trackers"),
    "mlflow": (MLflow, "trackers"),
    "wandb": (WandB, ""),
    "trackio": (Trackio, ""),
}
"""Name, which is the package that it needs too -> class, and the extra that brings the package; empty without one."""

_ASKED: ContextVar[tuple[str, ...]] = ContextVar("asked", default=())


@contextlib.contextmanager
def asked(names: Sequence[str]) -> Iterator[None]:
    """What is trained and evaluated meanwhile is tracked by these.

    Raises:
        AcclimateError: there is no such tracker, or it is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise AcclimateError(f"--track {name}: choose {', '.join(TRACKERS)}")
        _, extra = TRACKERS[name]
        if importlib.util.find_spec(name) is None:
            way_out = hint(extra) if extra else f"pip install {name}"
            raise AcclimateError(f"--track {name}: the package {name} is not installed: {way_out}")
    token = _ASKED.set(tuple(dict.fromkeys(names)))
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextlib.contextmanager
def tracked(run: Run, config: Mapping[str, Any]) -> Iterator[Track]:
    """A callback that sends what a run logs to the trackers that were asked for; it does nothing without one.

    Args:
        run: whose folder the trackers may write into.
        config: its settings, sent once.
    """
    opened: dict[str, Tracker] = {}
    for name in _ASKED.get():
        tracker = _try(name, TRACKERS[name][0], run, config)
        if tracker is not None:
            opened[name] = tracker

    def track(step: int, values: Mapping[str, Any]) -> None:
        numbers = {key: float(value) for key, value in values.items() if _is_number(value)}
        for name, tracker in list(opened.items()):
            if _try(name, lambda tracker=tracker: tracker.log(step, numbers) or True) is None:
                del opened[name]

    failed = True
    try:
        yield track
        failed = False
    finally:
        for name, tracker in opened.items():
            _try(name, tracker.finish, failed)


def _try(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns; None where the tracker fails, which is told."""
    try:
        return call(*arguments)
    except Exception as error:  # trackers raise what their servers and files do, and none of it may stop a training
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("the tracker %s is left out: %s; the numbers are in the run folder", name, said[:200])
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _identity(run: Run) -> str:
    """The same for a run that goes on, another for another run."""
    return digest(str(Path(run.path).resolve()), run.manifest.digest, run.manifest.created)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{before}.{key}" if before else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value
