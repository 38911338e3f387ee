"""Options from TOML and `key=value`: what is read, what is inherited, and what a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from acclimate import config
from acclimate.config import Budget, Config, ScheduleConfig
from acclimate.errors import AcclimateError


def written(folder: Path, text: str) -> Path:
    file = folder / "job.toml"
    file.write_text(text)
    return file


def test_a_file_is_read(tmp_path: Path) -> None:
    job = config.load(
        written(
            tmp_path,
            """
            seed = 3
            target = "site/images"
            [source]
            path = "clear"
            classes = { Car = "vehicle" }
            [train]
            steps = 500
            [export]
            precisions = ["int8"]
            """,
        )
    )
    assert job.seed == 3
    assert job.target == Path("site/images")
    assert job.source is not None
    assert job.source.classes == {"Car": "vehicle"}
    assert job.train.steps == 500
    assert job.export.precisions == ("int8",)
    assert job.budget is None


def test_overrides_win_and_create_what_is_not_there(tmp_path: Path) -> None:
    file = written(tmp_path, "[train]\nsteps = 500\nlr = 0.1\n")
    job = config.load(file, ["train.steps=7", "budget.latency_ms=10", "model.weights=none", "source.path=a b"])
    assert job.train.steps == 7
    assert job.train.lr == 0.1
    assert job.budget == Budget(latency_ms=10)
    assert job.source is not None
    assert job.source.path == Path("a b")


@pytest.mark.parametrize("word", ["none", "None"])
def test_weights_can_be_none_from_file_and_from_the_command_line(tmp_path: Path, word: str) -> None:
    assert config.load(written(tmp_path, '[model]\nweights = "none"\n')).model.weights == "none"
    assert config.load(written(tmp_path, ""), [f"model.weights={word}"]).model.weights == "none"


def test_none_switches_a_term_off(tmp_path: Path) -> None:
    file = written(tmp_path, "[adapt.teacher]\nthreshold = 0.5\n")
    assert config.load(file).adapt.teacher is not None
    assert config.load(file, ["adapt.teacher=none"]).adapt.teacher is None
    assert config.load(file, ["train.clip=None"]).train.clip is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-0.5", -0.5), ("true", True), ("[1, 2]", [1, 2]), ('"x y"', "x y"), ("x/y.z", "x/y.z"), ("", "")],
)
def test_an_override_is_a_toml_value_or_a_bare_string(text: str, value: Any) -> None:
    assert config.merge({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert config.merge({}, ["a=b=c"]) == {"a": "b=c"}


def test_a_value_cannot_smuggle_in_other_keys() -> None:
    assert config.merge({}, ["a=1\nb = 2"]) == {"a": "1\nb = 2"}


def test_merging_leaves_the_given_values_alone() -> None:
    values = {"a": {"b": {"c": 1}}}
    assert config.merge(values, ["a.b.c=2"]) == {"a": {"b": {"c": 2}}}
    assert values == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("[train]\nstep = 5\n", [], ["job.toml", "unknown key 'train.step'", "did you mean 'steps'"]),
        ("[adapt.teacher]\nzzz = 5\n", [], ["unknown key 'adapt.teacher.zzz'", "known keys:", "threshold"]),
        ("[budget]\nlatency = 5\n", [], ["unknown key 'budget.latency'", "latency_ms"]),
        ("[source]\npath = 'x'\nformats = 'coco'\n", [], ["unknown key 'source.formats'", "'format'"]),
        ("[train]\nsteps = 'many'\n", [], ["job.toml", "train.steps", "integer"]),
        ("[train]\nsteps = 0\n", [], ["train.steps", "greater than or equal to 1"]),
        ("[model]\nsize = 'huge'\n", [], ["model.size", "nano"]),
        ("[model]\nnorm = 'layer'\nsize = 'huge'\n", [], ["model.size", "model.norm"]),
        ("[source]\nformat = 'coco'\n", [], ["source.path"]),
        ("[adapt.slim]\nthird = true\nensemble = 0\n", [], ["job.toml: adapt.slim: third is a head"]),
        ("train = 3\n", [], ["train"]),
        ("schedule = 3\n[train]\nsteps = 4\n", [], ["schedule"]),
        ("train = [\n", [], ["job.toml", "not valid TOML"]),
        ("", ["train.steps"], ["'train.steps'", "key=value"]),
        ("", ["=3"], ["'=3'", "key=value"]),
        ("", ["train.setps=3"], ["unknown key 'train.setps'", "'steps'"]),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, text: str, overrides: list[str], said: list[str]) -> None:
    with pytest.raises(AcclimateError) as caught:
        config.load(written(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


def test_an_override_below_a_plain_value_is_told(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="seed"):
        config.load(written(tmp_path, "seed = 1\n"), ["seed.x=2"])


@pytest.mark.parametrize("steps", ["nan", "inf", "-1", "1.5"])
def test_numbers_that_are_no_count_are_refused(tmp_path: Path, steps: str) -> None:
    with pytest.raises(AcclimateError, match=r"train\.steps"):
        config.load(written(tmp_path, f"[train]\nsteps = {steps}\n"))


@pytest.mark.parametrize("key", ["train.lr", "train.weight_decay", "budget.latency_ms", "scenes.strength"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_must_be_finite(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(AcclimateError, match=key):
        config.load(written(tmp_path, "[scenes]\nout = 's'\n"), [f"{key}={value}"])


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"none\.toml: no such config file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(AcclimateError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'out = "caf\xe9"')
    with pytest.raises(AcclimateError, match=r"latin\.toml"):
        config.load(tmp_path / "latin.toml")


def test_the_adaptation_takes_the_loader_settings_of_the_training() -> None:
    job = config.parse(Config, {"train": {"batch_size": 4, "workers": 0, "steps": 9}}, where="here")
    assert (job.schedule.batch_size, job.schedule.workers) == (4, 0)
    assert (job.schedule.steps, job.schedule.lr, job.schedule.warmup) == (1000, 5e-4, 50)
    own = config.parse(Config, {"train": {"batch_size": 4}, "schedule": {"batch_size": 8}}, where="here")
    assert own.schedule.batch_size == 8


def test_the_adaptation_keeps_its_own_defaults_whatever_is_set() -> None:
    default = Config().schedule
    for values in ({}, {"train": {}}, {"schedule": {}}, {"train": {"lr": 0.1}}, {"schedule": {"ema": 0.9}}):
        schedule = config.parse(Config, values, where="here").schedule
        assert (schedule.steps, schedule.lr, schedule.warmup) == (default.steps, default.lr, default.warmup), values


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    values = {"train": {"batch_size": 4, "clip": None}, "adapt": {"teacher": None}, "target": "t", "budget": {}}
    job = config.parse(Config, values, where="here")
    assert config.parse(Config, json.loads(job.model_dump_json()), where="config.json") == job


def test_options_do_not_change_after_the_fact() -> None:
    job = Config()
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("latency_ms=10,size_mb=4", Budget(latency_ms=10, size_mb=4)),
        (" latency_ms = 10 , threads=2,", Budget(latency_ms=10, threads=2)),
        ("", Budget()),
    ],
)
def test_a_budget_is_read(text: str, budget: Budget) -> None:
    assert config.parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency=10", "did you mean 'latency_ms'"),
        ("latency_ms=-1", "latency_ms"),
        ("latency_ms=fast", "latency_ms"),
        ("10", "key=value"),
    ],
)
def test_a_wrong_budget_is_told(text: str, said: str) -> None:
    with pytest.raises(AcclimateError, match="--budget") as caught:
        config.parse_budget(text)
    assert said in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from(["steps", "batch_size", "warmup", "workers"]), st.integers(min_value=1, max_value=128)
    ),
    st.floats(min_value=1e-8, max_value=1.0),
)
def test_overrides_say_the_same_as_a_file(counts: dict[str, int], rate: float) -> None:
    values = {**counts, "lr": rate}
    file = config.parse(Config, json.loads(json.dumps({"train": values})), where="file")
    overrides = [f"train.{line}" for line in tomli_w.dumps(values).splitlines()]
    assert config.parse(Config, config.merge({}, overrides), where="line") == file
    assert file.train == ScheduleConfig.model_validate(values)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=-1"], "seed: "),
        (["seed=4294967296"], "seed: "),
        (["seed=" + "9" * 5000], "seed: "),
        (["augment.scale=[2,1]"], "augment.scale: the smaller factor comes first: [1, 2]"),
        (["augment.scale=[0,1]"], "augment.scale.0: "),
        (["augment.scale=[1,nan]"], "augment.scale.1: "),
        (["train.workers=100000"], "train.workers: "),
        (["train.batch_size=10000000"], "train.batch_size: "),
        (["train.steps=99999999999"], "steps: a number up to 1000000000"),
        (["model.image_size=[1000000,1000000]"], "model.image_size.0: "),
        (["model.image_size=[8192,8192]"], "model.image_size: 8192 x 8192 pixels are more than"),
        (["model.image_size=[0,64]"], "model.image_size.0: "),
        (["model.strides=[0]"], "model.strides.0: "),
        (["model.strides=[]"], "model.strides: "),
        (["model.channels=100000"], "model.channels: "),
        (["model.slimmable.choices=[2.0]"], "model.slimmable.choices.0: "),
        (["model.two_stage.anchors=[-1]"], "model.two_stage.anchors"),
        (["target=" + "a" * 5000], "target: a path whose names have up to 255 bytes; this one has 5000"),
        (["target=" + "a/" * 3000], "target: a path whose names"),
        (['target="a\\u0000b"'], "target: a path without a NUL character"),
        (["export.runtime=" + "a" * 5000], "runtime: a name of up to 255 characters"),
        (["source.path=x", "source.drop=" + str(["a"] * 20_000)], "drop: up to 10000 values"),
        (["budget.threads=99999"], "budget.threads: "),
        (["scenes.out=x", "scenes.size=[100000,10]"], "scenes.size.0: "),
        (["train.lr=" + "[" * 5000], "train.lr: "),
        (["train.steps=true"], "train.steps: Input should be a valid integer, not true"),
        (["train.workers=false"], "train.workers: Input should be a valid integer"),
        (["budget.latency_ms=true"], "budget.latency_ms: Input should be a valid number"),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_no_value_is_beyond_reason(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(AcclimateError) as caught:
        config.load(written(tmp_path, ""), overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_limit_is_given_once() -> None:
    with pytest.raises(AcclimateError, match="--budget: latency_ms: is given twice"):
        config.parse_budget("latency_ms=1,size_mb=4, latency_ms=2")


@pytest.mark.parametrize("name", ["job.toml", "job.json"])
def test_brackets_in_brackets_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(("x = " if name.endswith("toml") else "") + "[" * 100_000)
    with pytest.raises(AcclimateError) as caught:
        config.load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
