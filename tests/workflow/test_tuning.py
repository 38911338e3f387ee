"""The search over an adaptation's options: against a score whose best place is known, and once for real."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import tiny_job
from acclimate import workflow
from acclimate.cli import main
from acclimate.config import Config, load
from acclimate.errors import AcclimateError, WritingError
from acclimate.locks import HeldError
from acclimate.run import Manifest, Run, read_json, writing
from acclimate.workflow import tuning
from another_process import another_process

pytest.importorskip("optuna")

RANGES = {"schedule.lr": {"low": 1e-5, "high": 1e-1, "log": True}, "augment.balance": {"choices": ["none", "classes"]}}


def job(tmp_path: Path, **tune: Any) -> Config:
    settings = tiny_job.settings(tmp_path / "data", tmp_path / "out")
    settings["schedule"]["lr"] = 0.05
    return Config.model_validate({**settings, "tune": {"trials": 20, "ranges": RANGES, **tune}})


class Known:
    """Takes the place of an adaptation: best at a learning rate of 1e-3 with balanced classes."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.stop_at = self.full_at = -1

    def __call__(self, config: Config, source: Run, options: Mapping[str, Any], *_: Any) -> tuple[float, str]:
        self.seen.append(dict(options))
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        if len(self.seen) == self.full_at:
            with writing(source.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if options["schedule.lr"] > 0.09:
            raise AcclimateError("the loss is nan")
        return 1 - abs(math.log10(options["schedule.lr"]) + 3) / 4 + 0.5 * (
            options["augment.balance"] == "classes"
        ), "known"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Known:
    source = Run.create(tmp_path / "out" / "source", Manifest(verb="train", digest="source"))
    score = Known()
    monkeypatch.setattr(tuning, "_score", score)
    monkeypatch.setattr(tuning, "train", lambda *_, **__: source)
    return score


def test_another_process_that_searches_there_is_not_joined(known: Known, tmp_path: Path) -> None:
    folder = tmp_path / "out" / tuning.FOLDER
    with another_process(folder, "tune"), pytest.raises(HeldError, match="writes there"):
        workflow.tune(job(tmp_path))
    assert not known.seen


def test_it_finds_what_is_best(known: Known, tmp_path: Path) -> None:
    done = workflow.tune(job(tmp_path))
    assert known.seen[0] == {"schedule.lr": 0.05, "augment.balance": "none"}
    assert len(known.seen) == len(done.trials) == 20
    assert done.best is not None
    assert done.best.options["augment.balance"] == "classes"
    assert 2e-4 < done.best.options["schedule.lr"] < 5e-3
    told = read_json(done.file)
    assert told["labels"] is False
    assert told["best"] == dict(done.best.options)
    assert max(row["score"] for row in told["trials"] if row["score"] is not None) == done.best.score


def test_a_stopped_search_goes_on_where_it_was(known: Known, tmp_path: Path) -> None:
    known.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        workflow.tune(job(tmp_path))
    done = workflow.tune(job(tmp_path))
    # The trial that was under way is taken up under its own options, and so in its own folder.
    assert known.seen[7] == known.seen[6]
    assert len(done.trials) == 20
    assert len(known.seen) == 21
    again = workflow.tune(job(tmp_path))
    assert len(known.seen) == 21
    assert again.trials == done.trials
    longer = workflow.tune(job(tmp_path, trials=22))
    assert longer.trials[:20] == done.trials
    assert len(known.seen) == 23


def test_a_disk_that_is_full_ends_the_search_and_fails_no_trial(known: Known, tmp_path: Path) -> None:
    known.full_at = 3
    with pytest.raises(WritingError, match="the disk is full"):
        workflow.tune(job(tmp_path, trials=4))
    journal = tmp_path / "out" / tuning.FOLDER / "study.log"
    assert sorted(path.name for path in journal.parent.iterdir()) == ["study.log"]
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    done = workflow.tune(job(tmp_path, trials=4))
    assert known.seen[3] == known.seen[2]
    assert [trial.problem for trial in done.trials] == [""] * 4


def test_a_full_disk_under_the_journal_is_one_line(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages.journal import JournalFileBackend

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(WritingError, match=r"out/tune: the disk is full; free some space"):
        workflow.tune(job(tmp_path))


def test_a_trial_that_fails_is_told_and_the_others_go_on(known: Known, tmp_path: Path) -> None:
    ranges = {**RANGES, "schedule.lr": {"choices": [0.1, 0.001]}}
    done = workflow.tune(job(tmp_path, trials=6, ranges=ranges))
    failed = [trial for trial in done.trials if trial.score is None]
    assert failed
    assert all(trial.problem == "the loss is nan" for trial in failed)
    assert done.best is not None
    assert done.best.options["schedule.lr"] == 0.001


def test_an_option_that_is_a_whole_number_stays_one(known: Known, tmp_path: Path) -> None:
    workflow.tune(job(tmp_path, trials=4, ranges={**RANGES, "schedule.warmup": {"low": 0.5, "high": 40}}))
    assert {type(options["schedule.warmup"]) for options in known.seen} == {int}
    assert all(1 <= options["schedule.warmup"] <= 40 for options in known.seen)


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"ranges": {"train.lr": {"low": 1, "high": 2}}}, "the source run stays"),
        ({"ranges": {"schedule.lr": {"low": 2, "high": 1}}}, "is not below"),
        ({"ranges": {"schedule.lr": {"low": 0, "high": 1, "log": True}}}, "log needs a low above 0"),
        ({"ranges": {"schedule.lr": {"low": 1}}}, "give low and high, or choices"),
        ({"ranges": {}}, "ranges"),
    ],
)
def test_a_range_that_cannot_be_is_one_line(tune: dict[str, Any], said: str, tmp_path: Path, capsys: Any) -> None:
    settings = {**tiny_job.settings(tmp_path / "data", tmp_path / "out"), "tune": tune}
    (tmp_path / "job.toml").write_text(tomli_w.dumps(settings))
    assert main(["tune", str(tmp_path / "job.toml")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_an_option_that_is_not_there_is_named(known: Known, tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"schedule\.lrr is not an option"):
        workflow.tune(job(tmp_path, ranges={"schedule.lrr": {"low": 1, "high": 2}}))
    off = job(tmp_path, ranges={"adapt.teacher.threshold": {"low": 0.3, "high": 0.9}})
    off = off.model_copy(update={"adapt": off.adapt.model_copy(update={"teacher": None})})
    with pytest.raises(AcclimateError, match=r"adapt\.teacher is off"):
        workflow.tune(off)


@pytest.mark.slow
def test_for_real_the_label_free_score_decides_and_labels_only_where_asked(tmp_path: Path, capsys: Any) -> None:
    tiny_job.make_data(tmp_path / "data")
    ranges = {"schedule.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    settings = {**tiny_job.settings(tmp_path / "data", tmp_path / "out"), "tune": {"trials": 2, "ranges": ranges}}
    file = tmp_path / "job.toml"
    file.write_text(tomli_w.dumps(settings))
    assert main(["tune", str(file)]) == 0
    told = read_json(tmp_path / "out" / "tune" / "tune.json")
    for trial in told["trials"]:
        selection = Run.open(Path(trial["run"])).selection()
        assert selection is not None
        chosen = next(one for one in selection.candidates if one.step == selection.chosen_step)
        assert trial["score"] == pytest.approx(chosen.scores[selection.rule])
    assert told["trials"][0]["options"] == {"schedule.lr": load(file).schedule.lr}
    assert "target labels" not in capsys.readouterr().out
    assert main(["tune", str(file), "--oracle", "tune.trials=1"]) == 0
    assert "scored by target labels" in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "tune" / "tune.json")["labels"] is True
