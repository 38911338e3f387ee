"""Suites, what they come to, their rows and tables, and that runs are done once, in order, and taken up again."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from scipy.stats import ttest_1samp

from acclimate.adapt.objective import Term
from acclimate.benchmark import runner, table
from acclimate.benchmark import suite as suites
from acclimate.benchmark.suite import Place, Suite, Task
from acclimate.cli import main
from acclimate.errors import AcclimateError
from acclimate.named import class_of
from acclimate.run import Run, read_json
from tiny_job import settings


def contents(**changes: Any) -> dict[str, Any]:
    """A suite on the tiny job's data, as TOML has it."""
    job = settings(Path(), Path())
    values: dict[str, Any] = {
        "reference": "source-only",
        "root": "data",
        "seeds": [0],
        "model": job["model"],
        "train": job["train"],
        "schedule": job["schedule"],
        "pairs": {
            "clear->fog": {
                "source": {"path": "clear-train"},
                "source_test": {"path": "clear-test"},
                "target": {"path": "fog-train"},
                "target_test": {"path": "fog-test"},
            }
        },
        "methods": {
            "source-only": {"role": "source-only"},
            "teacher": {"role": "adapted", "adapt": {"teacher": {}}},
            "oracle": {"role": "oracle"},
        },
    }
    return {**values, **changes}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps(contents(**changes)))
    return file


def planned(suite: Suite, place: Place) -> list[Task]:
    return suites.plan(suite, place, suite.pairs, suite.methods, suite.seeds)


# What a suite says


def test_the_suites_that_ship_hold_together_and_the_published_numbers() -> None:
    assert suites.shipped() == ["cityscapes-foggy", "craft", "heads", "kitti-cityscapes", "quick", "sim10k-cityscapes"]
    loaded = {name: suites.load(name) for name in suites.shipped()}
    foggy = loaded["cityscapes-foggy"].published["cityscapes->foggy"]
    assert (foggy["source-only"], foggy["da-faster"], foggy["HTCN"], foggy["DSS + UDA, COCO"]) == (18.8, 27.6, 39.8, 52)
    assert loaded["kitti-cityscapes"].published["kitti->cityscapes"]["source-only-dss"] == 41.6
    assert loaded["sim10k-cityscapes"].published["sim10k->cityscapes"]["ProgDA"] == 43.9
    for suite in loaded.values():
        tasks = planned(suite, Place.of(suite))
        assert len([task for task in tasks if task.method]) == len(suite.methods) * len(suite.pairs) * len(suite.seeds)


@pytest.mark.parametrize("name", [*suites.shipped(), "dss", "head", "methods", "options"])
def test_every_method_of_a_suite_has_something_to_train_by(name: str, repository: Path) -> None:
    """Pruning, grouping and statistics prepare a detector and teach it nothing."""
    suite = suites.load(name if name in suites.shipped() else repository / "benchmarks" / f"{name}.toml")
    for method, chosen in suite.methods.items():
        config = suites.configuration(suite, next(iter(suite.pairs)), method).adapt
        makers = [class_of(f"acclimate.adapt.{one}", one) for one in config.methods]
        taught = any(issubclass(maker, Term) and maker.views for maker in makers)
        assert taught or chosen.role == "oracle", method


def test_the_suite_of_the_repository_compares_what_its_comments_say(repository: Path) -> None:
    suite = suites.load(repository / "benchmarks" / "methods.toml")
    assert list(suite.pairs) == ["day->night", "raabin->bccd"]
    assert Place.of(suite).csv == repository / "benchmarks" / "methods.csv"
    for pair in suite.pairs:
        for method, chosen in suite.methods.items():
            config = suites.configuration(suite, pair, method)
            assert config.model.kind == "two-stage"
            assert config.model.norm == "frozen"
            assert config.augment.style == 0
            assert (config.adapt.suppression is not None) == ("dss" in method)
            assert (config.adapt.teacher is not None) == ("teacher" in method)
            assert (config.adapt.adversarial is not None) == (method.startswith(("da-faster", "swda")))
            assert (config.model.two_stage.head == "disentangled") == method.startswith("tsd")
            assert (config.model.two_stage.constraint is not None) == (method == "tsd-constraint")
            assert (chosen.role == "adapted") == (method.split("-dss")[0] in {"teacher", "da-faster", "swda"})


def test_nearer_sections_win_and_no_term_is_on_that_nobody_named() -> None:
    values = contents(augment={"style": 0.7, "flip": 0.1})
    values["pairs"]["clear->fog"]["augment"] = {"flip": 0.2}
    values["methods"]["teacher"]["augment"] = {"flip": 0.3}
    suite = Suite.model_validate({"name": "x", **values})
    plain, teacher = (suites.configuration(suite, "clear->fog", name) for name in ("source-only", "teacher"))
    assert (plain.augment.flip, plain.augment.style, plain.adapt.teacher) == (0.2, 0.0, None)
    assert (teacher.augment.flip, teacher.augment.style) == (0.3, 0.7)
    assert teacher.adapt.teacher is not None
    assert teacher.adapt.adversarial is None


def test_a_source_training_is_shared_unless_the_detector_is_another() -> None:
    values = contents(seeds=[0, 1])
    values["methods"]["wide"] = {"role": "source-only", "model": {"channels": 16}}
    values["methods"]["plain-views"] = {"role": "adapted", "augment": {"colour": 0.0}, "adapt": {"teacher": {}}}
    suite = Suite.model_validate({"name": "x", **values})
    tasks = planned(suite, Place.of(suite))
    starts = {task.method: task.start for task in tasks if task.method and task.seed == 0}
    assert starts["source-only"] == starts["teacher"] == starts["plain-views"] != starts["wide"]
    assert starts["oracle"] is None
    assert len([task for task in tasks if task.role == "source"]) == 4
    order = [task.run for task in tasks]
    assert all(order.index(task.start) < order.index(task.run) for task in tasks if task.start)


def test_a_task_travels_as_json() -> None:
    suite = Suite.model_validate({"name": "x", **contents()})
    for task in planned(suite, Place.of(suite)):
        assert task.config.model.weights == "none"
        assert Task.from_json(task.model_dump_json()) == task


def test_digests_tell_settings_apart_and_not_the_place_or_the_loading() -> None:
    def digests(root: str = "data", **changes: Any) -> dict[str, str]:
        suite = Suite.model_validate({"name": "x", **contents(**changes)})
        return {task.method: task.digest for task in planned(suite, Place.of(suite, root=root)) if task.method}

    same = digests()
    assert digests(root="elsewhere") == same
    assert digests(train={**contents()["train"], "workers": 3}) == same
    assert digests(augment={"flip": 0.5}) == same
    for changed in (
        digests(augment={"flip": 0.4}),
        digests(test_images=3),
        digests(train={**contents()["train"], "lr": 0.1}),
    ):
        assert all(changed[method] != same[method] for method in same)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "nobody"}, "reference names 'nobody'"),
        ({"reference": "oracle"}, "'oracle' is an oracle"),
        ({"pairs": {"a->b": {"source": {"path": "a"}}}}, "pairs.a->b: .*needs `source`, `target` and `target_test`"),
        ({"trian": {}}, "unknown key 'trian' .did you mean 'train'"),
        ({"schedule": {"stesp": 3}}, "tiny.toml: source-only on clear->fog: unknown key 'schedule.stesp'"),
        ({"published": {"x->y": {"HTCN": 1.0}}}, "published names 'x->y'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AcclimateError, match=said) as caught:
        suites.load(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))
    suite = suites.load("cityscapes-foggy")
    place = Place.of(suite, tmp_path / "out")
    clear, foggy = suites.missing(suite, suite.pairs, place)
    assert "https://www.cityscapes-dataset.com/downloads/" in clear
    assert str(tmp_path / "cityscapes" / "gtFine" / "train") in clear
    assert "Foggy Cityscapes" in foggy
    (tmp_path / "cityscapes/leftImg8bit_foggy/train").mkdir(parents=True)
    (tmp_path / "cityscapes/leftImg8bit_foggy/val").mkdir()
    assert suites.missing(suite, suite.pairs, place) == [clear]
    with pytest.raises(AcclimateError, match=r"1 part of its data not found .*Cityscapes"):
        runner.run(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fallback_is_taken_where_nothing_else_is_there(tmp_path: Path) -> None:
    suite = suites.load("quick")
    place = Place.of(suite, tmp_path / "out", root=tmp_path)
    chosen, absent = suites.available(suite, suite.pairs, place)
    assert chosen == ["clear->fog"]
    assert "TXL-PBC" in absent[0]
    for name in ("raabin", "bccd"):
        (tmp_path / "blood-cells" / name).mkdir(parents=True)
        (tmp_path / "blood-cells" / name / "data.yaml").touch()
    assert suites.available(suite, suite.pairs, place) == (["raabin->bccd"], [])


# Rows and tables


def row(pair: str, seed: int, method: str, ap50: float, checkpoint: str = "last", **more: str) -> dict[str, str]:
    values = {"pair": pair, "seed": str(seed), "method": method, "checkpoint": checkpoint, "target_ap50": f"{ap50}"}
    return {**dict.fromkeys(table.FIELDS, ""), **values, **more}


def test_many_writers_lose_no_row_and_write_one_header(tmp_path: Path) -> None:
    file = tmp_path / "rows" / "results.csv"

    def add(method: str) -> None:
        for seed in range(10):
            table.append(file, [row("a->b", seed, method, 0.5), row("a->b", seed, method, 0.6, "chosen")])

    threads = [threading.Thread(target=add, args=(f"m{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = table.read(file)
    assert len(found) == 4 * 10 * 2
    assert file.read_text().count("checkpoint") == 1
    assert [one["checkpoint"] for one in found[::2]] == ["last"] * 40
    assert list(file.parent.iterdir()) == [file]


def test_a_line_that_was_cut_short_is_left_out_and_other_tables_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    table.append(file, [row("a->b", 0, "x", 0.5)])
    with open(file, "a") as opened:
        opened.write("a->b,1,x,la")
    table.append(file, [row("a->b", 2, "x", 0.5)])
    assert [one["seed"] for one in table.read(file)] == ["0", "2"]
    file.write_text("name,value\n1,2\n")
    with pytest.raises(AcclimateError, match=r"results.csv: its columns are not those"):
        table.read(file)


def test_a_table_without_rows_says_so() -> None:
    assert list(table.tables(Suite.model_validate({"name": "x", **contents()}), [])) == ["No rows yet."]


def test_means_spreads_differences_and_the_gap() -> None:
    low, chosen, high = (0.20, 0.24, 0.22), (0.30, 0.20, 0.34), (0.50, 0.54, 0.52)
    last = (0.10, 0.26, 0.15)
    rows = []
    for seed in range(3):
        rows += [row("clear->fog", seed, "source-only", low[seed], source_ap50="0.6")]
        rows += [
            row("clear->fog", seed, "teacher", last[seed]),
            row("clear->fog", seed, "teacher", chosen[seed], "chosen"),
        ]
        rows += [row("clear->fog", seed, "oracle", high[seed])]
    # A seed that the reference lacks takes part in the mean and in no difference.
    rows += [row("clear->fog", 3, "teacher", 0.4, "chosen")]
    values = contents(published={"clear->fog": {"teacher": 41.5, "HTCN": 39.8}}, published_from="a paper")
    lines = list(table.tables(Suite.model_validate({"name": "x", **values}), rows))
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines if line.startswith("|")}
    assert cells["source-only"][1:3] == ["3", f"22.0 ± {100 * statistics.stdev(low):.1f}"]
    assert cells["source-only"][8] == "60.0 ± 0.0"
    _, seeds, ends, mean, hindsight, against, difference, gap, _, published = cells["teacher"]
    differences = [100 * (own - other) for own, other in zip(last, low, strict=True)]
    assert (seeds, hindsight, against, published) == ("4", "-", "source-only", "41.5")
    assert ends == f"17.0 ± {100 * statistics.stdev(last):.1f}"
    assert mean == f"31.0 ± {100 * statistics.stdev((*chosen, 0.4)):.1f}"
    # What is chosen among several checkpoints is not compared with what is not chosen.
    interval = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert difference == f"-5.0 ± {(interval.high - interval.low) / 2:.1f} (1 of 3)"
    assert gap == "20 %"
    assert cells["HTCN (published)"][-1] == "39.8"
    assert len(cells["HTCN (published)"]) == len(cells["teacher"])
    assert "Published: a paper" in lines


def test_a_method_may_be_compared_with_another_and_pairs_weigh_the_same() -> None:
    values = contents()
    values["pairs"]["clear->rain"] = values["pairs"]["clear->fog"]
    values["methods"]["more"] = {"role": "adapted", "against": "teacher", "adapt": {"teacher": {}}}
    rows = [row("clear->fog", seed, name, ap) for seed in (0, 1) for name, ap in (("teacher", 0.3), ("more", 0.4))]
    rows += [row("clear->rain", 0, "teacher", 0.3), row("clear->rain", 0, "more", 0.1)]
    lines = list(table.tables(Suite.model_validate({"name": "x", **values}), rows))
    assert "| more | 2 | teacher | -5.0 | 2 of 3 |" in lines


# Runs


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, runner.Result]:
    """(suite, out, result) of the tiny suite, run once."""
    folder = tmp_path_factory.mktemp("suite")
    file = written(folder, root=str(data), test_images=3)
    return file, folder / "out", runner.run(file, folder / "out")


def test_a_suite_leaves_rows_runs_and_a_table(done: tuple[Path, Path, runner.Result]) -> None:
    file, out, result = done
    assert result.failed == {}
    rows = table.read(result.csv)
    found = [(one["method"], one["checkpoint"]) for one in rows]
    adapted = [("teacher", name) for name in ("last", "chosen", "hindsight")]
    assert found == [("source-only", "last"), *adapted, ("oracle", "last")]
    assert {one["test_images"] for one in rows} == {"3"}
    assert {one["steps"] for one in rows} == {"8"}
    assert {one["source_ap50"] != "" for one in rows} == {True}
    assert {one["step"] for one in rows if one["checkpoint"] == "last"} == {"8"}
    assert "| teacher | 1 |" in result.table.read_text()
    assert runner.summary(file, out) in result.table.read_text()
    assert "  teacher (adapted): 1 of 1 seeds done" in list(runner.listing(file, out))


def test_an_adaptation_is_told_nothing_of_the_targets_labels(done: tuple[Path, Path, runner.Result]) -> None:
    _, out, _ = done
    for folder in (*out.glob("clear-fog-*-seed0"), *out.glob("*-source-*-seed0")):
        config = Run.open(folder).read("config.json")
        assert config["oracle"] is config["target_test"] is config["source_test"] is None
    (alone,) = out.glob("clear-fog-source-only-*-seed0")
    assert "clear-train" in Path(read_json(alone / "config.json")["target"]).read_text()
    images = (out / "images" / "clear-fog-target.txt").read_text().split()
    assert {Path(image).parent.parent.name for image in images} == {"fog-train"}
    assert {Path(image).suffix for image in images} == {".jpg"}


def test_what_is_there_is_not_made_again(
    done: tuple[Path, Path, runner.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out, result = done
    before = result.csv.read_bytes()

    def never(*arguments: Any) -> Run:
        raise AssertionError("a finished run was started")

    monkeypatch.setattr(runner, "_train", never)
    assert runner.run(file, out).failed == {}
    assert result.csv.read_bytes() == before


def test_other_settings_are_noticed_in_one_line(done: tuple[Path, Path, runner.Result], tmp_path: Path) -> None:
    file, out, _ = done
    changed = tmp_path / "changed.toml"
    changed.write_text(file.read_text().replace('role = "oracle"', 'role = "oracle"\ntrain = { lr = 0.01 }'))
    with pytest.raises(AcclimateError, match=r"results.csv: its rows of clear->fog, oracle, seed 0 come from other"):
        runner.run(changed, out)


def test_a_test_image_among_the_training_images_is_refused(data: Path, tmp_path: Path) -> None:
    values = contents(root=str(data))
    values["pairs"]["clear->fog"]["target_test"] = {"path": "fog-train"}
    suite = Suite.model_validate({"name": "x", **values})
    with pytest.raises(AcclimateError, match="6 test images of the target are among its training images"):
        runner.run(suite, tmp_path)


def test_a_source_only_method_that_looks_at_the_target_is_refused(data: Path, tmp_path: Path) -> None:
    values = contents(root=str(data))
    values["methods"]["source-only"]["adapt"] = {"teacher": {}}
    with pytest.raises(AcclimateError, match=r"methods.source-only: is source-only, and its \[adapt\]"):
        runner.run(Suite.model_validate({"name": "x", **values}), tmp_path)


class Fakes:
    """Instead of training: what was started, in order, and who fails or is interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[tuple[str, str, int]] = []
        self.trouble: dict[tuple[str, int], BaseException] = {}
        monkeypatch.setattr(runner, "_train", self.train)
        monkeypatch.setattr(runner, "_rows", self.rows)
        monkeypatch.setattr(runner, "_prepare", lambda *arguments: None)

    def train(self, task: Task, console: object) -> Path:
        self.started.append((task.role, task.method, task.seed))
        if (error := self.trouble.pop((task.method or "source", task.seed), None)) is not None:
            raise error
        return task.run

    def rows(self, task: Task, made: object) -> list[dict[str, str]]:
        return [row(task.pair, task.seed, task.method, 0.5, digest=task.digest)]


def test_a_run_that_fails_stops_nothing_but_what_needs_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = Fakes(monkeypatch)
    fakes.trouble = {("source", 1): AcclimateError("no room"), ("teacher", 0): ZeroDivisionError("by zero")}
    file = written(tmp_path, root=str(data), seeds=[0, 1])
    failed = runner.run(file, tmp_path / "out").failed
    assert [(role, seed) for role, _, seed in fakes.started] == [
        ("source", 0), ("source-only", 0), ("adapted", 0), ("oracle", 0), ("source", 1), ("oracle", 1),
    ]  # fmt: skip
    reasons = {label.split(", ", 1)[1]: reason for label, reason in failed.items()}
    assert reasons.pop("teacher, seed 0") == "ZeroDivisionError: by zero"
    assert all(reason.startswith("not run, as ") for label, reason in reasons.items() if "training" not in label)
    assert len(reasons) == 3
    fakes.started.clear()
    assert runner.run(file, tmp_path / "out").failed == {}
    assert [(role, seed) for role, _, seed in fakes.started] == [
        ("source", 0), ("adapted", 0), ("source", 1), ("source-only", 1), ("adapted", 1),
    ]  # fmt: skip


def test_an_interrupted_suite_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch)
    fakes.trouble = {("teacher", 0): KeyboardInterrupt()}
    file = written(tmp_path, root=str(data))
    with pytest.raises(KeyboardInterrupt):
        runner.run(file, tmp_path / "out")
    rows = tmp_path / "out" / "results.csv"
    assert [one["method"] for one in table.read(rows)] == ["source-only"]
    runner.run(file, tmp_path / "out")
    assert [one["method"] for one in table.read(rows)] == ["source-only", "teacher", "oracle"]


def test_a_part_of_a_suite_can_be_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch)
    file = written(tmp_path, root=str(data))
    runner.run(file, tmp_path / "out", methods=["oracle"], seeds=[7])
    assert fakes.started == [("oracle", "oracle", 7)]
    # The command line cuts at commas, within names too.
    assert runner._whole(["b", "a", "one", "two", "c"], {"a, one": 0, "a, one, two": 0}) == ["b", "a, one, two", "c"]
    assert runner._whole([1, 2], [2]) == [1, 2]
    with pytest.raises(AcclimateError, match="--methods: 'swda' is not in the suite; it has source-only, teacher"):
        runner.run(file, tmp_path / "out", methods=["swda"])


WORKER = """
import json, pathlib, sys, time
task = json.loads(sys.stdin.readline())
pathlib.Path(task["run"]).mkdir(parents=True)
if task["role"] == "oracle":
    print("words before"); print("error: no labels"); sys.exit(2)
if task["role"] == "adapted":
    time.sleep(60)
assert task["role"] == "source" or pathlib.Path(task["start"]).is_dir()
"""


def test_processes_keep_the_order_and_say_what_failed(tmp_path: Path) -> None:
    suite = Suite.model_validate({"name": "x", **contents()})
    tasks = [task for task in planned(suite, Place.of(suite, tmp_path)) if task.role != "adapted"]
    workers = runner._Processes(2, (sys.executable, "-c", WORKER))
    (said,) = runner._work(tasks, workers, None).items()
    assert said[0] == "clear->fog, oracle, seed 0"
    assert said[1].startswith("no labels (see ")
    assert {task.run.is_dir() for task in tasks} == {True}


def test_stopping_ends_the_processes(tmp_path: Path) -> None:
    suite = Suite.model_validate({"name": "x", **contents()})
    (task,) = (task for task in planned(suite, Place.of(suite, tmp_path)) if task.role == "adapted")
    workers = runner._Processes(2, (sys.executable, "-c", WORKER))
    workers.start(task)
    (process,) = (process for _, process, _ in workers._running.values())
    while not task.run.is_dir():
        time.sleep(0.02)
    began = time.monotonic()
    workers.stop()
    assert time.monotonic() - began < 30
    assert process.returncode not in {None, 0}


def test_a_worker_ends_when_the_process_that_started_it_is_gone() -> None:
    program = (
        "import sys, time, types\n"
        "sys.modules['torch'] = types.SimpleNamespace(set_num_threads=lambda count: None)\n"
        "from acclimate.benchmark import worker\n"
        "worker.attempt = lambda task, console: (print('at work', flush=True), time.sleep(60))\n"
        "sys.exit(worker.main())\n"
    )
    suite = Suite.model_validate({"name": "x", **contents()})
    task = planned(suite, Place.of(suite))[0]
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(task.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"at work\n"
    process.stdin.close()
    assert process.wait(30) == 130
    process.stdout.close()


def test_what_the_command_line_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "--list"]) == 0
    assert "kitti-cityscapes: KITTI -> Cityscapes" in capsys.readouterr().out
    for arguments, said in (
        ([], "name a suite"),
        (["nothing"], "nothing: no such suite; give a TOML file, or one of cityscapes-foggy"),
        (["quick", "--seeds", "0,x"], "--seeds 0,x: whole numbers"),
        (["kitti-cityscapes"], "2 parts of its data not found"),
    ):
        assert main(["benchmark", *arguments]) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1
    assert captured.out.count("is missing: get it from https://") == 2


@pytest.mark.slow
def test_processes_stop_at_once_go_on_and_give_the_same_rows(
    data: Path, tmp_path: Path, done: tuple[Path, Path, runner.Result]
) -> None:
    file = written(tmp_path, root=str(data), test_images=3)
    command = [sys.executable, "-m", "acclimate", "benchmark", str(file), "--out", "out", "--jobs", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr

    def numbers(rows: list[dict[str, str]]) -> list[list[str]]:
        same = [field for field in table.FIELDS if field not in {"minutes", "threads"}]
        return sorted([one[field] for field in same] for one in rows)

    assert numbers(table.read(tmp_path / "out" / "results.csv")) == numbers(table.read(done[2].csv))


@pytest.mark.slow
def test_a_suite_runs_on_ray(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    file = written(tmp_path, root=str(data), test_images=3)
    result = runner.run(file, tmp_path / "out", ray=True)
    assert result.failed == {}
    assert len(table.read(result.csv)) == 5
