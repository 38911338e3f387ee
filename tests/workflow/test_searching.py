from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from typer.testing import CliRunner

from acclimate import cli, workflow
from acclimate.config import Budget, Config, DataConfig, load_budgets
from acclimate.edge.artifact import Artifact
from acclimate.edge.bench import Bench
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models.slimmable import SlimmableDetector
from acclimate.run import Manifest, Run
from acclimate.scenes.render import CLASSES
from acclimate.scenes.sets import generate
from acclimate.select import budget as costs
from acclimate.select import record
from acclimate.select import search as searching
from acclimate.training import slim as slimming
from acclimate.verification.record import Verification, save, saved
from acclimate.workflow.searching import _told
from coloured_squares import write_scenes

MODEL = {
    "kind": "slimmable",
    "size": "nano",
    "backbone": "lcnet_050",
    "image_size": [64, 64],
    "weights": "none",
    "slimmable": {"choices": [0.5, 1.0]},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    write_scenes(folder, 3)
    return folder


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return made(tmp_path / "bank", MODEL)


def made(path: Path, model: dict[str, object], verb: str = "adapt", classes: Sequence[str] = ("red", "blue")) -> Path:
    """The finished run of a detector with random weights."""
    config = Config.model_validate({"model": model, "export": {"calibration_images": 2}})
    run = Run.create(path, Manifest(verb=verb, digest="1", notes={"role": "adapted"}))
    run.write("config.json", config)
    detectors.save(detectors.build(detectors.specify(config.model, list(classes))), path)
    run.finish("done")
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small table and few images; what an artifact needs is said, not measured: 10 ms for 1 million operations."""
    monkeypatch.setattr(costs, "FITTED", 4)
    monkeypatch.setattr(costs, "HELD_OUT", 1)
    monkeypatch.setattr(costs, "ROUNDS", 1)

    def verify(artifact: Artifact, material: object, budget: Budget, **options: object) -> Verification:
        macs = float(artifact.manifest.notes.macs_m)
        latency = Bench(
            threads=1, images=1, runs=1, median_ms=10 * macs, p95_ms=10 * macs, iqr_ms=0, cpu_ms=10 * macs, parts={},
            load_ms=1, peak_memory_mb=100, idle_memory_mb=50,
        )  # fmt: skip
        measured = Verification(
            artifact=artifact.manifest.name, runtime="onnx", precision="fp32", digest=artifact.digest,
            budget=budget, latency=latency, size_mb=artifact.size_mb, peak_memory_mb=100, macs_m=macs,
            machine={},
        )  # fmt: skip
        save(saved(artifact.folder), measured)
        return measured

    monkeypatch.setattr("acclimate.verification.measure.verify", verify)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_each_budget_becomes_a_run_with_an_artifact_that_holds_it(bank: Path, images: Path, tmp_path: Path) -> None:
    loaded = cast(SlimmableDetector, detectors.load(bank))
    stages, narrowest = len(loaded.stages), searching.Space.of(loaded).smallest
    full, least = (round(loaded.macs(width) / 1e6, 3) for width in (1.0, narrowest))
    budgets = {
        "all": Budget(macs_m=full),
        "half": Budget(macs_m=(full + least) / 2, memory_mb=200),
        "none": Budget(macs_m=least / 2),
    }
    options = {"runtime": "onnx", "precision": "fp32", "evaluations": 4}
    done = workflow.search(bank, images, budgets, tmp_path / "small", **options)  # type: ignore[arg-type]
    assert list(done.found) == ["all", "half"]
    whole = Run.open(tmp_path / "small" / "all")
    assert whole.read("search.json")["width"] == [1.0] * stages
    assert whole.read("search.json")["upem"] == 0

    half = Run.open(tmp_path / "small" / "half")
    assert half.done
    found = record.Found.model_validate(half.read("search.json"))
    assert found.measured.macs_m <= budgets["half"].macs_m  # type: ignore[operator]
    # No width that was judged and fits is nearer to the anchor.
    fitting = [one for one in found.candidates if not one.cost.over(budgets["half"])]
    assert found.upem == min(one.upem for one in fitting)
    spec = detectors.load(half.path).spec
    assert (spec.kind, spec.widths) == ("dense", found.width)
    (artifact,) = half.artifacts()
    assert (artifact / "verification.json").is_file()
    assert workflow.export(half.path, runtime="onnx", precision="fp32") == artifact

    assert list(done.missed) == ["none"]
    nearest = "/".join(f"{one:g}" for one in narrowest)
    assert done.missed["none"].startswith(f"none: no width meets macs_m={least / 2:g}; nearest measured: {nearest} (")
    assert not (tmp_path / "small" / "none").exists()
    # The smallest width was measured all the same, and the answer is whole without any run of it.
    assert f"(macs_m {least:.4g})" in done.missed["none"]


def test_a_width_that_was_found_is_adapted_like_any_detector(images: Path, tmp_path: Path) -> None:
    path = made(tmp_path / "width", {**MODEL, "kind": "dense"}, "search", CLASSES)
    generate(tmp_path / "source", 2, (64, 64), 0)
    schedule = {"steps": 1, "batch_size": 1, "warmup": 0, "checkpoint_every": 1, "workers": 0}
    more = {"source": {"path": tmp_path / "source"}, "schedule": schedule, "adapt": {"slim": {}}}
    run = Run.open(path)
    run.write("config.json", Config.model_validate({**run.read("config.json"), **more}))
    adapted = workflow.adapt(path, images, tmp_path / "again")
    assert adapted.done
    assert adapted.read("config.json")["adapt"]["slim"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_search_goes_on_from_what_was_judged_and_timed(
    bank: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = {"": Budget(latency_ms=1e5, size_mb=100)}
    options = {"runtime": "onnx", "precision": "fp32", "evaluations": 2}
    workflow.search(bank, images, budgets, tmp_path / "one", **options)  # type: ignore[arg-type]
    (table,) = (bank / "search").glob("onnx-fp32-1-*.json")
    assert len(costs.Table.model_validate_json(table.read_text()).fitted) == 4
    assert not (bank / "search" / "timed").exists()
    assert Run.open(tmp_path / "one").read("search.json")["latency_error"] is not None
    lines = (bank / "search" / "judged.jsonl").read_text()

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail("done a second time")

    monkeypatch.setattr(costs, "take", refuse)
    monkeypatch.setattr(searching, "Upem", refuse)
    workflow.search(bank, images, budgets, tmp_path / "two", **options)  # type: ignore[arg-type]
    assert (bank / "search" / "judged.jsonl").read_text() == lines
    monkeypatch.setattr(searching, "evolve", refuse)
    said = Console(record=True, width=200)
    again = workflow.search(bank, images, budgets, tmp_path / "two", console=said, **options)  # type: ignore[arg-type]
    assert list(again.found) == [""]
    assert "nothing to do" in said.export_text()


@pytest.mark.usefixtures("quick")
def test_hindsight_evaluates_widths_that_were_judged(bank: Path, images: Path, tmp_path: Path) -> None:
    from acclimate.scenes.sets import generate

    generate(tmp_path / "test", 2, (64, 64), 0, None)
    budget = {"": Budget(macs_m=1e6)}
    workflow.search(bank, images, budget, tmp_path / "s", runtime="onnx", precision="fp32", evaluations=3)
    names = ["car", "person"]
    config = DataConfig(path=tmp_path / "test", classes=dict(zip(names, ["red", "blue"], strict=True)), drop=_others())
    workflow.evaluate(bank, config, hindsight=True)
    known = record.Hindsight.model_validate(Run.open(bank).read("search/hindsight.json"))
    assert len(known.candidates) == len((bank / "search" / "judged.jsonl").read_text().splitlines()) >= 3


def _others() -> tuple[str, ...]:
    from acclimate.scenes.render import CLASSES

    return tuple(name for name in CLASSES if name not in {"car", "person"})


def test_a_detector_of_one_width_is_told_what_to_do(images: Path, tmp_path: Path) -> None:
    path = made(tmp_path / "plain", {**MODEL, "kind": "dense"})
    for verb in (
        lambda: workflow.slim(path, images, tmp_path / "x"),
        lambda: workflow.search(path, images, {"": Budget(macs_m=1)}, tmp_path / "x"),
    ):
        with pytest.raises(AcclimateError, match=r"is dense and has one width; train one with model\.kind=slimmable"):
            verb()


def test_slim_is_an_adaptation_of_all_widths(bank: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def recipe(parent: Run, config: Config) -> None:
        asked["config"] = config

    monkeypatch.setattr(slimming.adapting, "recipe", recipe)
    monkeypatch.setattr(slimming, "carry_out", lambda verb, out, prepare, console: prepare())
    workflow.slim(bank, images, "out", ["adapt.slim.models=3", "schedule.steps=5"])
    assert asked["config"].adapt.slim.models == 3
    assert asked["config"].schedule.steps == 5
    workflow.slim(bank, images, "out")
    assert asked["config"].adapt.slim is not None


MISSED = {"fast": "fast: no width meets latency_ms=1; nearest measured: 0.5 (9)"}
UNKNOWN = {"small": "small: latency could not be measured now: the machine was busy"}


@pytest.mark.parametrize(
    ("missed", "unknown", "status"), [({}, {}, 0), (MISSED, {}, 1), ({}, UNKNOWN, 3), (MISSED, UNKNOWN, 1)]
)
def test_the_verb_says_what_was_missed(
    bank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missed: dict[str, str],
    unknown: dict[str, str],
    status: int,
) -> None:
    answer = workflow.Search({"small": Run.open(bank)}, missed, unknown)
    monkeypatch.setattr(workflow, "search", lambda *a, **o: answer)
    (tmp_path / "b.toml").write_text("[fast]\nlatency_ms = 1\n[small]\nsize_mb = 2\n")
    arguments = ["search", str(bank), "--target", "x", "--budget", str(tmp_path / "b.toml"), "--out", "y"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == status
    assert f"run: {bank}" in done.output.replace("\n", "")
    for line in (*missed.values(), *unknown.values()):
        assert line in done.output.replace("\n", " ")


def test_budgets_are_read_one_or_by_name(tmp_path: Path) -> None:
    file = tmp_path / "budget.toml"
    file.write_text("latency_ms = 5\nthreads = 2\n")
    assert load_budgets(file) == {"": Budget(latency_ms=5, threads=2)}
    file.write_text("[fast]\nlatency_ms = 5\n[small]\nsize_mb = 2\n")
    assert load_budgets(file) == {"fast": Budget(latency_ms=5), "small": Budget(size_mb=2)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency = 5", "unknown key 'latency' .did you mean 'latency_ms'"),
        ("[fast]\nlatency_ms = -1", r"\[fast\]: latency_ms"),
        ("threads = 2", "no limit; set latency_ms"),
        ("", "no limit"),
        ("size_mb = 1\n[fast]\nlatency_ms = 1", "size_mb: limits stand in tables or without any"),
        ('["a/b"]\nsize_mb = 1', "'a/b': a budget's name becomes a folder's"),
        ("size_mb", "not valid TOML"),
    ],
)
def test_a_wrong_budget_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(AcclimateError, match=said):
        load_budgets(tmp_path / "b.toml")
    with pytest.raises(AcclimateError, match=r"nowhere\.toml: no such config file"):
        load_budgets(tmp_path / "nowhere.toml")


BUSY = {"latency_at_least": 3.0, "disturbed": "the machine was busy: an image took 18.0 ms, of which 6.0 ms on it"}


@pytest.mark.parametrize(
    ("more", "limit", "said"),
    [
        ({}, 5, "fast: no width meets latency_ms=5; nearest measured: 0.5 (latency_ms 18)"),
        (
            BUSY,
            5,
            f"fast: latency could not be measured now: {BUSY['disturbed']}; width 0.5 (latency_ms 18) comes first; "
            "search again when nothing else runs: what was judged is kept",
        ),
        # However busy the machine was, the processor alone took longer.
        (BUSY, 2, "fast: no width meets latency_ms=2; nearest measured: 0.5 (latency_ms 18)"),
    ],
)
def test_a_slow_measurement_on_a_busy_machine_is_not_over_budget(more: dict[str, Any], limit: float, said: str) -> None:
    predicted = costs.Cost(macs_m=1, latency_ms=1.5)
    candidates = [record.Candidate(width=(0.5,), upem=0.1, cost=predicted)]
    outcome = searching.settle(
        candidates, Budget(latency_ms=limit), lambda one: one.cost.model_copy(update={"latency_ms": 18.0, **more})
    )
    assert not outcome.met
    assert _told("fast", Budget(latency_ms=limit), outcome).startswith(said)
