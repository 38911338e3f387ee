"""The verb tune: options of an adaptation, searched without labels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from acclimate import stages
from acclimate.config import Config, RangeConfig, merge, parse
from acclimate.errors import AcclimateError, WritingError
from acclimate.installation import hint
from acclimate.run import Run, digest, locked, write_text, writing
from acclimate.training.adapt import adapt
from acclimate.training.train import train
from acclimate.workflow.evaluating import evaluate

if TYPE_CHECKING:
    import optuna

FOLDER = "tune"
"""Of a job: the trials' runs, the study, and tune.json."""
FORMAT = 1
ORACLE = (
    "scored by target labels (--oracle): a bound for comparison. These options may not be used where no labels are."
)


@dataclass(frozen=True)
class Trial:
    """One adaptation: what it set, its score, and its run; a trial that failed has no score."""

    options: Mapping[str, Any]
    score: float | None
    run: Path
    problem: str = ""


@dataclass(frozen=True)
class Tuned:
    """What `tune` leaves: `rule` is the score that decided, higher is better; `file` holds all trials as JSON."""

    file: Path
    rule: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """None where every trial failed."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)


def tune(config: Config, *, oracle: bool = False, console: Console | None = None) -> Tuned:
    """Search the options that `config.tune` names, over adaptations of the job's source run, with Optuna's TPE.

    A trial adapts the source run and is scored as its checkpoint is chosen: by the label-free score of `select.score`,
    on the same target images for all. The first trial is the job as it stands. A call that was stopped goes on: trials
    that are done are kept, and the one that was under way is taken up.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization" (TPE); Akiba et al. 2019 (Optuna).

    Args:
        config: a job with `[tune]`; its source run is trained where it is not there.
        oracle: score by AP50 on `target_test` instead, which needs target labels: how much the label-free score leaves.
        console: where progress goes.

    Raises:
        AcclimateError: the job has no [tune], lacks a source or target, or Optuna is not installed; or all trials fail.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    stages.one_process("tune")
    try:
        import optuna
    except ImportError:
        raise AcclimateError(f"tune needs optuna: {hint('tune')}") from None
    if config.tune is None:
        raise AcclimateError(
            'tune: the job names no range; add for example [tune.ranges] and below it "schedule.lr" = { low = 1e-4, '
            "high = 3e-3, log = true }"
        )
    if config.source is None or config.target is None:
        raise AcclimateError("tune: the job needs a [source] data set and `target`, a folder of unlabelled images")
    if oracle and config.target_test is None:
        raise AcclimateError("tune --oracle: needs labels of the target; name target_test in the job")
    for name in config.tune.ranges:
        _value(config, name)
    with locked(config.out / FOLDER, "tune"), writing(config.out / FOLDER):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return _tune(config, oracle, console)


def _tune(config: Config, oracle: bool, console: Console | None) -> Tuned:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState

    class Held(JournalFileOpenLock):
        """The lock of the folder is enough; one of the journal's own would outlive a process that is killed."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    assert config.tune is not None
    say = console.print if console is not None else lambda *_, **__: None
    if oracle:
        say(ORACLE, style="bold red", markup=False, highlight=False)
    source = stages.take_place(
        config.out / "source", lambda: train(config, config.out / "source", console=console), console
    )
    folder = config.out / FOLDER
    rule = "ap50 (oracle)" if oracle else "label-free"
    ranges = {name: one.model_dump() for name, one in config.tune.ranges.items()}
    name = digest(
        rule, ranges, source.manifest.digest, config.model_copy(update={"tune": None}).model_dump(mode="json")
    )
    folder.mkdir(parents=True, exist_ok=True)
    _cut(folder / "study.log")
    backend = JournalFileBackend(str(folder / "study.log"), Held(str(folder / "study.log")))
    study = optuna.create_study(
        study_name=name,
        storage=optuna.storages.JournalStorage(backend),
        direction="maximize",
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # It was under way when a process ended; its run goes on under the same options.
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs, skip_if_exists=False)
    if not study.trials:
        start = {name: _value(config, name) for name in config.tune.ranges}
        if all(_inside(config.tune.ranges[name], value) for name, value in start.items()):
            study.enqueue_trial(start)
    while (done := len(_finished(study))) < config.tune.trials:
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + done)
        asked = study.ask()
        options = {name: _drawn(asked, name, one, _value(config, name)) for name, one in config.tune.ranges.items()}
        run = folder / digest(options)
        asked.set_user_attr("run", str(run))
        say(f"trial {done + 1} of {config.tune.trials}: {_told(options)}", markup=False, highlight=False)
        try:
            score, rule_said = _score(config, source, options, run, oracle, console)
        except WritingError:
            raise
        except AcclimateError as error:
            asked.set_user_attr("problem", str(error))
            study.tell(asked, state=TrialState.FAIL)
            say(f"  failed: {error}", style="yellow", markup=False, highlight=False)
            continue
        asked.set_user_attr("rule", rule_said)
        study.tell(asked, score)
        say(f"  {rule_said} {score:.4f}", markup=False, highlight=False)
    return _kept(study, folder, rule, oracle, console)


def _cut(journal: Path) -> None:
    """Cut a last line that a full disk, or a kill, left short: what comes behind it could not be read."""
    if journal.exists():
        with open(journal, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that came to an end of their own, with a score or with a problem."""
    return [one for one in study.trials if one.value is not None or "problem" in one.user_attrs]


def _kept(study: optuna.Study, folder: Path, rule: str, oracle: bool, console: Console | None) -> Tuned:
    trials = tuple(
        Trial(dict(one.params), one.value, Path(one.user_attrs["run"]), one.user_attrs.get("problem", ""))
        for one in _finished(study)
    )
    file = folder / "tune.json"
    rules = {one.user_attrs["rule"] for one in study.trials if "rule" in one.user_attrs}
    tuned = Tuned(file, ", ".join(sorted(rules)) or rule, trials)
    best = tuned.best
    if best is None:
        raise AcclimateError(f"tune: every trial failed; the first said: {trials[0].problem}")
    write_text(file, _json(tuned, oracle))
    if console is not None:
        ranked = sorted((one for one in trials if one.score is not None), key=lambda one: -(one.score or 0.0))
        for one in ranked[:5]:
            console.print(f"{one.score:.4f}  {_told(one.options)}  {one.run}", markup=False, highlight=False)
        if oracle:
            console.print(ORACLE, style="bold red", markup=False, highlight=False)
        console.print(f"best: {_told(best.options)}", markup=False, highlight=False)
    return tuned


def _json(tuned: Tuned, oracle: bool) -> str:
    rows = [
        {"options": dict(one.options), "score": one.score, "run": str(one.run), "problem": one.problem}
        for one in tuned.trials
    ]
    best = tuned.best
    told = {
        "format": FORMAT,
        "rule": tuned.rule,
        "labels": oracle,
        "best": dict(best.options) if best is not None else None,
        "trials": rows,
    }
    return json.dumps(told, indent=1) + "\n"


def _score(
    config: Config, source: Run, options: Mapping[str, Any], out: Path, oracle: bool, console: Console | None
) -> tuple[float, str]:
    """What a trial reaches, and by which score."""
    overrides = [f"{name}={_toml(value)}" for name, value in options.items()]
    values = merge(config.model_dump(mode="json", exclude_unset=True), overrides)
    own = parse(Config, values, where="tune", overrides=overrides).model_copy(update={"tune": None})
    assert own.target is not None
    target = own.target
    run = stages.take_place(out, lambda: adapt(source.path, target, out, config=own, console=console), console)
    if oracle:
        assert own.target_test is not None
        return evaluate(run.path, own.target_test, console=console).ap50, "AP50 on target_test"
    selection = run.selection()
    chosen = (
        next((one for one in selection.candidates if one.step == selection.chosen_step), None) if selection else None
    )
    if selection is None or chosen is None or selection.rule not in chosen.scores:
        raise AcclimateError(f"{run.path}: has no label-free score; its method uses no target image")
    return chosen.scores[selection.rule], selection.rule


def _value(config: Config, name: str) -> Any:
    """What an option is set to in the job.

    Raises:
        AcclimateError: there is no such option, or the part of the method that it belongs to is off.
    """
    node: Any = config
    for part in name.split("."):
        if node is None or part not in type(node).model_fields:
            off = "is off in this job" if node is None else "is not an option"
            raise AcclimateError(f"tune.ranges: {name}: {name.rpartition('.')[0] if node is None else name} {off}")
        node = getattr(node, part)
    return node


def _inside(one: RangeConfig, value: Any) -> bool:
    if one.choices is not None:
        return value in one.choices
    assert one.low is not None
    assert one.high is not None
    return isinstance(value, int | float) and one.low <= value <= one.high


def _drawn(trial: optuna.Trial, name: str, one: RangeConfig, value: Any) -> Any:
    """What a trial sets an option to; a whole number where it is one in the job, as `value` says."""
    if one.choices is not None:
        return trial.suggest_categorical(name, list(one.choices))
    assert one.low is not None
    assert one.high is not None
    if isinstance(value, int) and not isinstance(value, bool):
        return trial.suggest_int(name, math.ceil(one.low), math.floor(one.high), log=one.log)
    return trial.suggest_float(name, one.low, one.high, log=one.log)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _told(options: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items()
    )
