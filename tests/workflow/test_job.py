from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from acclimate import load_config, locks, stages, workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import Config, DataConfig, LabellerConfig
from acclimate.data import scored
from acclimate.data.formats import looked, unlabelled
from acclimate.errors import AcclimateError, Interrupted
from acclimate.run import Run
from acclimate.structures import Annotations
from tiny_job import LOOSE, settings
from tiny_job import config as tiny_config

_opened: Counter[str] = Counter()
_headers: Counter[str] = Counter()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | Path):
        _opened[str(arguments[0])] += 1


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def job(data: Path, tmp_path_factory: pytest.TempPathFactory) -> workflow.Job:
    """A whole job, run once; tests that change something work on a copy."""
    _opened.clear()
    with pytest.MonkeyPatch.context() as patched:
        read = looked.read_header_of
        patched.setattr(looked, "read_header_of", lambda path: _headers.update([str(path)]) or read(path))
        return workflow.run(tiny_config(data, tmp_path_factory.mktemp("job")))


@pytest.fixture(scope="module")
def opened(job: workflow.Job) -> Counter[str]:
    """How often the job opened each file."""
    return Counter(_opened)


def test_a_job_opens_label_files_twice_at_most_and_reads_headers_once(
    opened: Counter[str], job: workflow.Job, data: Path
) -> None:
    labels = {folder.name: opened[str(folder / "annotations.json")] for folder in data.iterdir()}
    assert labels.keys() == {"clear-test", "clear-train", "fog-test", "fog-train"}
    assert all(1 <= times <= 2 for times in labels.values()), labels
    assert len(_headers) == 20
    assert set(_headers.values()) == {1}


@pytest.fixture
def copy(job: workflow.Job, data: Path, tmp_path: Path) -> Config:
    """The configuration of a copy of the finished job. A digest does not depend on where the runs are."""
    shutil.copytree(job.report.parent, tmp_path / "job")
    return tiny_config(data, tmp_path / "job")


def changed(config: Config, **sections: Any) -> Config:
    """`config` with some options of some sections replaced."""
    values = config.model_dump(mode="json")
    for name, options in sections.items():
        values[name] = {**values[name], **options} if isinstance(options, dict) else options
    return Config.model_validate(values)


@pytest.fixture
def nothing_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes time fails the test."""
    from acclimate.adapt import engine
    from acclimate.export.onnx import Onnx
    from acclimate.models import predict
    from acclimate.select import score
    from acclimate.verification import measure

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        pytest.fail("a stage was repeated")

    real = predict.predict

    def one_image(detector: Any, paths: Sequence[Path], *arguments: Any, **options: Any) -> Any:
        """Rehearsing a method may look at one image."""
        return real(detector, paths, *arguments, **options) if len(paths) == 1 else refuse()

    monkeypatch.setattr(predict, "predict", one_image)
    for place, name in (
        (engine, "fit"),
        (score, "choose_checkpoint"),
        (Onnx, "export"),
        (measure._Measuring, "_accuracy_on"),
        (measure, "bench_apart"),
        (measure.parities, "compare"),
    ):
        monkeypatch.setattr(place, name, refuse)


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was last written."""
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_job_leaves_runs_an_artifact_and_a_report(job: workflow.Job) -> None:
    assert job.report.read_text().startswith("<!")
    assert job.passed
    assert [one.precision for one in job.verifications] == ["int8"]
    assert set(job.verifications[0].accuracy) == {"source_test", "target_test"}
    assert job.oracle is not None
    for run in (job.source, job.baseline, job.adapted, job.oracle):
        assert Run.open(run.path).done
        names = {(one.data, one.role) for one in run.evaluations() if one.model == "eager"}
        assert names == {("source_test", "source"), ("target_test", "target")}
        assert not run.has("state")
    assert not (job.report.parent / "previous").exists()


def test_a_run_keeps_the_average_of_the_weights(job: workflow.Job) -> None:
    """Of a run that chooses no checkpoint the last, of one that does the chosen: both hold the average."""
    for run in (job.source, job.adapted):
        selection = run.selection()
        files = checkpoints(run)
        step = max(files) if selection is None else selection.chosen_step
        kept, written = (load_file(file) for file in (run.path / "model.safetensors", files[step]))
        assert kept.keys() == written.keys()
        assert all(torch.equal(kept[name], written[name]) for name in kept)
    assert job.adapted.selection() is not None


def test_the_oracle_is_marked_and_trained_on_the_target(job: workflow.Job, data: Path) -> None:
    assert job.oracle is not None
    notes = Run.open(job.oracle.path).manifest.notes
    assert notes.role == "oracle"
    assert notes.source.name == "annotations"
    assert job.source.manifest.digest != job.oracle.manifest.digest
    with pytest.raises(AcclimateError, match="no `oracle` data set"):
        workflow.train(changed(tiny_config(data, Path("x")), oracle=None), "x", role="oracle")


@pytest.mark.parametrize(("models", "narrowest"), [(1, None), (2, 0.25)])
def test_a_bank_trains_on_the_source_by_the_sandwich_rule(
    models: int, narrowest: float | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step runs the largest and the smallest width, unless the full width is to be trained alone."""
    from acclimate.models.slimmable import SlimmableDetector

    seen: list[float] = []
    forward = SlimmableDetector.features

    def features(self: SlimmableDetector, images: Any) -> Any:
        # While it is built, its graph is traced; at the end its features are measured.
        if "widths" in self.__dict__ and self.training:
            assert len(set(self.widths)) == 1
            seen.append(self.widths[0])
        return forward(self, images)

    monkeypatch.setattr(SlimmableDetector, "features", features)
    bank = {"kind": "slimmable", "slimmable": {"models": models}}
    run = workflow.train(changed(tiny_config(data, tmp_path), model=bank, train={"steps": 2}), tmp_path / "bank")
    assert seen == [1.0, *([narrowest] if narrowest else [])] * 2
    assert run.read("spec.json")["kind"] == "slimmable"
    assert {"supervised/class", "supervised/box"} <= set(run.metrics()[-1])


def test_the_sandwich_is_no_change_of_a_detector_of_one_width(data: Path) -> None:
    config = tiny_config(data, Path("x"))
    for kind, known in (("dense", True), ("two-stage", True), ("slimmable", False)):
        plain = [
            stages.plain(changed(config, model={"kind": kind, "slimmable": {"models": models}}), "model", "train")
            for models in (2, 3)
        ]
        assert (plain[0] == plain[1]) == known


@pytest.mark.parametrize("kind", ["dense", "two-stage", "ssd", "slimmable"])
def test_what_is_said_of_other_kinds_of_detector_is_no_change(kind: str, data: Path) -> None:
    config = tiny_config(data, Path("x"))
    sections = {
        "two-stage": {"two_stage": {"hidden": 99}},
        "ssd": {"ssd": {"extra": 2}},
        "slimmable": {"slimmable": {"divisor": 4}},
    }
    before = stages.plain(changed(config, model={"kind": kind}), "model")
    for other, section in sections.items():
        after = stages.plain(changed(config, model={"kind": kind, **section}), "model")
        assert (after != before) == (other == kind)


def test_the_baseline_trains_as_long_and_uses_nothing_of_the_target(job: workflow.Job) -> None:
    baseline, adapted = Run.open(job.baseline.path), Run.open(job.adapted.path)
    assert baseline.path.name == "baseline"
    assert [run.manifest.notes.role for run in (baseline, adapted)] == ["baseline", "adapted"]
    assert baseline.manifest.parents == adapted.manifest.parents == (str(job.source.path),)
    assert [line["step"] for line in baseline.metrics()] == [line["step"] for line in adapted.metrics()]
    assert baseline.manifest.notes.method == ("supervised",)
    assert baseline.manifest.notes.target is None
    assert baseline.selection() is None
    last = baseline.path / "checkpoints" / "step_000004.safetensors"
    assert (baseline.path / "model.safetensors").read_bytes() == last.read_bytes()
    assert "Source-only is the source run trained on for the same 4 steps as the adapted model" in (
        job.report.read_text()
    )


def test_the_baseline_of_any_method_is_the_source_alone() -> None:
    from acclimate.adapt.methods import uses_target

    plain = Config.model_validate({"adapt": {"teacher": None}, "augment": {"style": 0}})
    assert not uses_target(plain)
    for method, augment in (
        ({"teacher": {}}, {"style": 0}),
        ({"teacher": None}, {"style": 0.1}),
        ({"teacher": None}, {"style": 0, "fourier": 0.1}),
        ({"teacher": {}, "supervised": 0, "suppression": {}}, {"style": 0.5, "flip": 0.2}),
    ):
        config = Config.model_validate({"adapt": method, "augment": augment})
        assert uses_target(config)
        alone = config.source_only()
        assert not uses_target(alone)
        assert alone.adapt == plain.adapt
        assert alone.augment == config.augment.model_copy(update={"style": 0.0, "fourier": 0.0})
        assert alone.schedule == config.schedule


@pytest.mark.usefixtures("nothing_is_repeated")
def test_other_target_images_are_no_change_of_the_baseline(copy: Config, data: Path) -> None:
    other = data / "fog-test" / "images"
    workflow.adapt(copy.out / "source", other, copy.out / "baseline", config=copy.source_only())
    with pytest.raises(AcclimateError, match="holds another run"):
        workflow.adapt(copy.out / "source", other, copy.out / "adapted", config=copy)


def test_hindsight_ranks_the_checkpoints_and_changes_no_choice(job: workflow.Job) -> None:
    selection = job.adapted.selection()
    assert selection is not None
    assert [candidate.step for candidate in selection.candidates] == [0, 2, 4]
    assert all(candidate.hindsight_ap50 is not None for candidate in selection.candidates)
    again = Run.open(job.adapted.path).selection()
    assert again is not None
    assert again.chosen_step == selection.chosen_step
    kept = (job.adapted.path / "model.safetensors").read_bytes()
    checkpoint = job.adapted.path / "checkpoints" / f"step_{selection.chosen_step:06d}.safetensors"
    assert kept == (checkpoint if selection.chosen_step else job.source.path / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("nothing_is_repeated")
def test_an_unchanged_job_repeats_nothing(copy: Config) -> None:
    before = tree(copy.out)
    again = workflow.run(copy)
    after = tree(copy.out)
    assert {name for name in after if before.get(name) != after[name]} <= {
        "report.html",
        "run.log",
        "adapted/artifacts/onnx-int8/verification.json",
    }
    assert set(after) == set(before)
    assert again.passed


def test_a_labeller_teaches_the_detector(copy: Config, data: Path, tmp_path: Path) -> None:
    """Larger, of another backbone; what it found is what the detector learns from, and is found once."""
    asked = copy.model_copy(update={"labeller": LabellerConfig(backbone="lcnet_035", flip=False)})
    before = Run.open(copy.out / "source").manifest.created
    job = workflow.run(asked)
    assert Run.open(copy.out / "source").manifest.created == before
    folder = copy.out / "labeller"
    spec = Run.open(folder).read("spec.json")
    assert (spec["backbone"], spec["image_size"]) == ("lcnet_035", [96, 128])
    assert Run.open(folder).has("evaluations/target_test.json")
    (file,) = folder.glob("labels-*.json")
    found = scored.read(file)
    assert {path.resolve() for path in found.images} == set(unlabelled(data / "fog-train" / "images").paths)
    learnt = stages.configuration(job.adapted).adapt
    assert learnt.teacher is None
    assert learnt.labels is not None
    assert learnt.labels.file == file
    assert stages.configuration(job.baseline).adapt.labels is None

    kept = {name: time for name, time in tree(copy.out).items() if not name.startswith("adapted/artifacts")}
    workflow.run(asked)
    now = tree(copy.out)
    assert {name for name, time in kept.items() if now.get(name) != time} <= {"report.html", "run.log"}


def test_a_labeller_that_cannot_be_is_found_before_anything_trains(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "job").model_copy(update={"labeller": LabellerConfig(backbone="no_such")})
    with pytest.raises(AcclimateError, match="no_such"):
        workflow.run(config)
    assert not (tmp_path / "job" / "source" / "run.json").exists()


@pytest.mark.usefixtures("nothing_is_repeated")
def test_a_changed_budget_is_judged_without_measuring_again(copy: Config) -> None:
    judged = workflow.run(changed(copy, budget={**LOOSE, "size_mb": 0.001}))
    assert not judged.passed
    assert {check.name: check.passed for check in judged.verifications[0].checks}["size_mb"] is False
    assert workflow.run(copy).passed


def test_a_latency_that_broke_the_budget_is_measured_again(copy: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.verification import measure

    seen: list[int] = []
    known = workflow.run(copy).verifications[0]

    def again(folder: Path, paths: Any, threads: int, runs: int) -> Any:
        seen.append(threads)
        return known.latency.model_copy(update={"median_ms": 5.0, "cpu_ms": 5.0, "waited_ms": 0.0})

    monkeypatch.setattr(measure, "bench_apart", again)
    judged = workflow.run(changed(copy, budget={**LOOSE, "latency_ms": 1e-6})).verifications[0]
    assert seen == [1]
    assert (judged.verdict, judged.accuracy, judged.latency.median_ms) == ("failed", known.accuracy, 5.0)


@pytest.mark.usefixtures("nothing_is_repeated")
def test_how_data_are_loaded_is_no_change(copy: Config) -> None:
    loading = {"workers": 1, "cache_mb": 7, "log_every": 3}
    config = changed(copy, train=loading, schedule=loading)
    assert config.train.workers == 1
    workflow.run(config)


def test_a_changed_stage_is_run_anew_and_the_earlier_run_kept(copy: Config) -> None:
    source = tree(copy.out / "source")
    earlier = Run.open(copy.out / "adapted").manifest
    job = workflow.run(changed(copy, schedule={"steps": 2}, export={"precisions": ["fp32"]}, oracle=None))
    assert tree(copy.out / "source") == source
    assert Run.open(copy.out / "adapted").manifest.digest != earlier.digest
    moved = copy.out / "previous" / f"adapted-{earlier.digest}"
    assert Run.open(moved).manifest == earlier
    assert (moved / "artifacts" / "onnx-int8" / "artifact.json").is_file()
    assert [one.precision for one in job.verifications] == ["fp32"]
    assert job.oracle is None
    # The earlier command brings the earlier run back, and the one that took its place is kept in turn.
    later = Run.open(copy.out / "adapted").manifest
    workflow.run(copy)
    assert Run.open(copy.out / "adapted").manifest.created == earlier.created
    assert Run.open(copy.out / "previous" / f"adapted-{later.digest}").manifest.created == later.created
    assert not moved.exists()


@pytest.mark.usefixtures("nothing_is_repeated")
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"model": {"image_size": [100, 100]}}, "model.image_size: 100 x 100 is not a multiple"),
        ({"model": {"backbone": "lcnet_51"}}, "lcnet_51"),
        ({"model": {"weights": "none.safetensors"}}, "model.weights: none.safetensors: no such file"),
        ({"adapt": {"slim": {}}}, "adapt.slim: a dense detector has one width"),
        ({"adapt": {"suppression": {"layers": ["nothing"]}}}, "nothing"),
        ({"target_test": {"classes": {"car": "lorry"}}}, 'target_test: .*"car" is no class of the detector'),
        ({"source_test": {"classes": {"car": "lorry"}}}, 'source_test: .*"car" is no class of the detector'),
    ],
)
def test_a_mistake_moves_no_finished_run(mistake: dict[str, Any], said: str, copy: Config) -> None:
    before = tree(copy.out)
    # Its inputs are others too, so a stage that began would move what is in its way.
    wrong = {**mistake, "train": {"steps": 3}, "schedule": {"steps": 3}}
    with pytest.raises(AcclimateError, match=said):
        workflow.run(changed(copy, **wrong))
    assert tree(copy.out) == before


def test_a_second_process_is_told_who_is_at_work(copy: Config) -> None:
    def others() -> list[str]:
        verbs: list[Callable[[], object]] = [
            lambda: workflow.run(copy),
            lambda: workflow.train(copy, copy.out / "source"),
            lambda: workflow.adapt(copy.out / "source", str(copy.target), copy.out / "adapted"),
            lambda: workflow.evaluate(copy.out / "adapted", copy.target_test or DataConfig(path=Path())),
            lambda: workflow.export(copy.out / "adapted", precision="fp32"),
            lambda: workflow.verify(copy.out / "adapted" / "artifacts" / "onnx-int8"),
        ]
        told = []
        for verb in verbs:
            with pytest.raises(locks.HeldError) as caught:
                verb()
            told.append(str(caught.value))
        return told

    before = tree(copy.out)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as other:
        for name in ("source", "adapted"):
            stack.enter_context(locks.held(copy.out / name, "train"))
        told = other.submit(others).result()
    assert all(f"acclimate train (process {os.getpid()} on " in line for line in told), told
    assert tree(copy.out) == before


def test_an_image_that_breaks_on_the_way_costs_no_checkpoint(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "clear-train", tmp_path / "clear-train")
    config = changed(tiny_config(data, tmp_path / "job"), source={"path": str(tmp_path / "clear-train")})
    with pytest.raises(Interrupted):
        workflow.train(config, tmp_path / "run", console=_Interrupting("train: step 2"))
    begun = Run.open(tmp_path / "run").manifest
    image = sorted((tmp_path / "clear-train" / "images").glob("*.jpg"))[2]
    image.write_bytes(image.read_bytes()[:200])
    finished = workflow.train(config, tmp_path / "run")
    assert (finished.manifest.digest, finished.manifest.created) == (begun.digest, begun.created)
    assert [line["step"] for line in finished.metrics()] == [1, 2, 3, 4]
    first, second = finished.manifest.notes.sessions
    assert first.from_step == 0
    assert second.from_step in {2, 3}, "wherever it stood when it was asked to stop"
    assert workflow.train(config, tmp_path / "run").manifest.finished == finished.manifest.finished


def test_a_run_that_cannot_be_written_is_verified_all_the_same(
    copy: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root writes anywhere, so the refusal is the file system's in words alone."""
    adapted = copy.out / "adapted"
    before = tree(copy.out)
    real = os.open

    def refused(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and adapted in Path(os.fsdecode(path)).resolve().parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refused)
    assert copy.target_test is not None
    result = workflow.verify(
        adapted / "artifacts" / "onnx-int8", [(copy.target_test, "target_test", "target")], console=Console(width=500)
    )
    assert result.parity is not None, "it is compared with the eager model of the run"
    assert "what verify measures is told and not stored" in capsys.readouterr().out
    assert tree(copy.out) == before


def test_a_mistake_at_the_end_of_a_job_is_found_at_its_beginning(
    data: Path, tmp_path: Path, nothing_is_repeated: None
) -> None:
    config = tiny_config(data, tmp_path / "job")
    for mistake, said in (
        ({"export": {"runtime": "tflite"}}, "unknown runtime 'tflite'"),
        ({"export": {"precisions": ["fp32", "fp16"]}}, "export.precisions: onnx does not export fp16; choose fp32 or"),
        ({"export": {"runtime": "ncnn"}}, "export.precisions: ncnn does not export int8; choose fp32 or"),
        ({"target_test": {"path": str(tmp_path / "none")}}, "target_test"),
        ({"source_test": {"path": str(tmp_path / "none")}}, "none: no such file or folder"),
        ({"target": str(tmp_path)}, "no image found"),
    ):
        with pytest.raises(AcclimateError, match=said):
            workflow.run(changed(config, **mistake))
    assert not (tmp_path / "job").exists()


def test_several_processes_do_not_run_a_job_several_times(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AcclimateError, match="one process"):
        workflow.run(tiny_config(data, tmp_path))


def test_the_configuration_in_a_run_reproduces_it(job: workflow.Job, tmp_path: Path) -> None:
    config = load_config(job.source.path / "config.json")
    again = workflow.train(config, tmp_path / "again")
    assert again.manifest.digest == job.source.manifest.digest
    assert (again.path / "model.safetensors").read_bytes() == (job.source.path / "model.safetensors").read_bytes()


def test_a_configuration_of_another_version_still_opens(copy: Config, caplog: pytest.LogCaptureFixture) -> None:
    run = Run.open(copy.out / "source")
    values = run.read("config.json")
    values["train"]["loss_of_old"] = 1
    run.write("config.json", values)
    assert stages.configuration(run) == Config.model_validate(json.loads(json.dumps({
        **values, "train": {k: v for k, v in values["train"].items() if k != "loss_of_old"}
    })))  # fmt: skip
    assert "train.loss_of_old" in caplog.text


def test_another_run_is_never_overwritten(copy: Config, tmp_path: Path) -> None:
    before = tree(copy.out / "source")
    with pytest.raises(AcclimateError, match=r"holds another run .*choose another --out"):
        workflow.train(changed(copy, train={"steps": 3}), copy.out / "source")
    with pytest.raises(AcclimateError, match="holds another run"):
        workflow.adapt(copy.out / "source", str(copy.target), copy.out / "source")
    assert tree(copy.out / "source") == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(AcclimateError, match="not empty and is not a run"):
        workflow.train(copy, tmp_path / "notes")


class _Interrupting(Console):
    """Presses Ctrl-C when a line that starts with `at` is printed."""

    def __init__(self, at: str) -> None:
        super().__init__(quiet=True)
        self.at: str | None = at

    def print(self, *objects: Any, **options: Any) -> None:
        if self.at is not None and str(objects[0]).startswith(self.at):
            self.at = None
            signal.raise_signal(signal.SIGINT)


def test_training_goes_on_after_ctrl_c_to_the_same_weights(job: workflow.Job, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path)
    with pytest.raises(Interrupted, match="interrupted after step"):
        workflow.train(config, tmp_path / "source", console=_Interrupting("train: step 1/"))
    assert Run.open(tmp_path / "source").manifest.status == "interrupted"
    with pytest.raises(AcclimateError, match="not finished"):
        workflow.export(tmp_path / "source")
    run = workflow.train(config, tmp_path / "source")
    assert Run.open(run.path).done
    assert (run.path / "model.safetensors").read_bytes() == (job.source.path / "model.safetensors").read_bytes()
    steps = [line["step"] for line in run.metrics()]
    assert steps == [1, 2, 3, 4]


@contextlib.contextmanager
def failing(place: Any, name: str, error: BaseException) -> Iterator[None]:
    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise error

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(place, name, fail)
        yield


def test_adaptation_goes_on_after_ctrl_c_in_the_choice(job: workflow.Job, tmp_path: Path, data: Path) -> None:
    from acclimate.select import score

    target = data / "fog-train" / "images"
    with failing(score, "choose_checkpoint", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        workflow.adapt(job.source.path, target, tmp_path / "adapted")
    assert Run.open(tmp_path / "adapted").manifest.status == "interrupted"
    run = workflow.adapt(job.source.path, target, tmp_path / "adapted")
    assert (run.path / "model.safetensors").read_bytes() == (job.adapted.path / "model.safetensors").read_bytes()


def test_an_interrupted_export_leaves_nothing_and_can_be_repeated(copy: Config) -> None:
    from acclimate.export import onnx

    artifacts = copy.out / "adapted" / "artifacts"
    before = tree(artifacts)
    with failing(onnx, "write_graph", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        workflow.export(copy.out / "adapted", precision="fp32")
    assert tree(artifacts) == before
    folder = workflow.export(str(copy.out / "adapted"), precision="fp32")
    assert (folder / "model.onnx").is_file()
    assert workflow.export(copy.out / "adapted", precision="fp32") == folder


def test_a_tolerance_that_holds_at_once_is_recorded(copy: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.edge.artifact import Artifact
    from acclimate.select import mixed

    kept = Artifact.open(copy.out / "adapted" / "artifacts" / "onnx-int8").manifest
    asked = []

    def measure(quantiser, detector, images) -> mixed.Measure:
        asked.append((len(quantiser.layers), len(images)))
        return lambda in_float: 0.99

    monkeypatch.setattr(mixed, "measure", measure)
    folder = workflow.export(copy.out / "adapted", images=2, tolerance=0.98)
    found = Artifact.open(folder).manifest
    assert found.mixed is not None
    assert (found.mixed.before, found.mixed.after, found.mixed.in_float) == (0.99, 0.99, ())
    assert asked == [(found.mixed.layers, 6)], "all target images, as too few are held out"
    assert found.files == kept.files, "nothing stays in fp32, so the graph is that without a tolerance"
    assert found.notes.identity != kept.notes.identity
    assert workflow.export(copy.out / "adapted", images=2, tolerance=0.98) == folder
    assert len(asked) == 1


def test_other_pictures_under_the_same_names_make_another_artifact(
    copy: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import cv2

    from acclimate.edge.artifact import Artifact

    def calibrate(seed: int) -> Artifact:
        (tmp_path / "calibration").mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        for number in range(4):
            picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "calibration" / f"{number}.bmp"), picture)
        return Artifact.open(workflow.export(copy.out / "adapted", calibration=tmp_path / "calibration"))

    first, again, other = calibrate(0), calibrate(0), calibrate(1)
    assert again.manifest == first.manifest, "the same pictures are the same, whenever they were written"
    assert other.manifest.calibration != first.manifest.calibration
    assert other.manifest.files != first.manifest.files
    assert other.digest != first.digest
    assert "calibrated on 4 images; give 16 or more" in caplog.text
    assert "4 of 4 calibration images show nothing" in caplog.text
    assert any(made.startswith("onnxruntime ") for made in first.manifest.notes.made_with)


def test_a_tolerance_that_cannot_be_measured_leaves_the_earlier_artifact(copy: Config) -> None:
    """Four steps teach a detector nothing that it would show."""
    before = tree(copy.out / "adapted" / "artifacts")
    with pytest.raises(AcclimateError, match="the tolerance cannot be measured: the detector shows no box above"):
        workflow.export(copy.out / "adapted", images=2, tolerance=0.98)
    assert tree(copy.out / "adapted" / "artifacts") == before


def test_an_interrupted_verification_leaves_the_earlier_one(copy: Config) -> None:
    from acclimate.verification import measure

    folder = copy.out / "adapted" / "artifacts" / "onnx-int8"
    before = (folder / "verification.json").read_bytes()
    with failing(measure, "bench_apart", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        workflow.verify(folder)
    assert (folder / "verification.json").read_bytes() == before


@pytest.mark.usefixtures("nothing_is_repeated")
def test_a_tampered_artifact_is_refused_and_a_job_replaces_it(copy: Config) -> None:
    folder = copy.out / "adapted" / "artifacts" / "onnx-int8"
    with open(folder / "model.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(AcclimateError, match="SHA-256"):
        workflow.verify(folder)
    with pytest.raises(pytest.fail.Exception, match="repeated"):
        workflow.export(copy.out / "adapted", images=2)


@pytest.mark.parametrize("name", ["config.json", "spec.json", "model.safetensors"])
def test_a_run_that_lost_a_file_says_so(name: str, copy: Config, data: Path) -> None:
    (copy.out / "source" / name).unlink()
    for verb in (
        lambda: workflow.train(copy, copy.out / "source"),
        lambda: workflow.adapt(copy.out / "source", data / "fog-train" / "images", copy.out / "new"),
        lambda: workflow.export(copy.out / "source"),
    ):
        with pytest.raises(AcclimateError, match=rf"{name}: is missing from a finished run; delete"):
            verb()
    assert not (copy.out / "new").exists()


def test_a_full_disk_loses_nothing(data: Path, tmp_path: Path, job: workflow.Job) -> None:
    config = tiny_config(data, tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with failing(os, "fsync", full), pytest.raises(AcclimateError, match="the disk is full; free some space"):
        workflow.train(config, tmp_path / "source")
    run = workflow.train(config, tmp_path / "source")
    assert (run.path / "model.safetensors").read_bytes() == (job.source.path / "model.safetensors").read_bytes()


def test_what_a_kill_at_the_end_left_goes_with_the_next_call(data: Path, tmp_path: Path, job: workflow.Job) -> None:
    config = tiny_config(data, tmp_path)
    shutil.copytree(job.source.path, tmp_path / "source")
    (tmp_path / "source" / "state").mkdir()
    (tmp_path / "source" / "state" / "optimizer.bin").write_bytes(b"")
    workflow.train(config, tmp_path / "source")
    assert not (tmp_path / "source" / "state").exists()


def _nudged(annotations: Annotations) -> Annotations:
    return annotations.with_boxes(annotations.boxes + np.float32(0.5))


def _outlined(annotations: Annotations) -> Annotations:
    corners = np.float32([[0, 0], [9, 0], [9, 9]])
    return replace(annotations, outlines=tuple((corners,) for _ in range(len(annotations))))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, classes=(*s.classes[1:], s.classes[0])),
        lambda s: replace(s, images=s.images[1:]),
        lambda s: replace(
            s, images=(replace(s.images[0], annotations=_nudged(s.images[0].annotations)), *s.images[1:])
        ),
        lambda s: replace(
            s, images=(replace(s.images[0], annotations=_outlined(s.images[0].annotations)), *s.images[1:])
        ),
        lambda s: replace(s, images=(replace(s.images[0], path=s.images[0].path.with_name("b.jpg")), *s.images[1:])),
    ],
    ids=["classes", "an image less", "a box moved", "other outlines", "another file"],
)
def test_a_change_of_the_source_is_noticed(change: Callable[[Any], Any], data: Path) -> None:
    from acclimate.data import formats

    images = formats.read(DataConfig(path=data / "clear-train"))
    assert stages.labelled_digest(images) == stages.labelled_digest(formats.read(DataConfig(path=data / "clear-train")))
    assert stages.labelled_digest(images) != stages.labelled_digest(change(images))


def test_a_change_of_the_target_is_noticed(data: Path, tmp_path: Path) -> None:
    from acclimate.data import formats

    folder = tmp_path / "images"
    shutil.copytree(data / "fog-train" / "images", folder)
    seen = {stages.unlabelled_digest(formats.unlabelled(folder))}
    (folder / "notes.txt").write_text("no image")
    assert stages.unlabelled_digest(formats.unlabelled(folder)) in seen
    first = sorted(folder.glob("*.jpg"))[0]
    first.write_bytes(first.read_bytes() + b"\0")
    seen.add(stages.unlabelled_digest(formats.unlabelled(folder)))
    first.rename(folder / "renamed.jpg")
    seen.add(stages.unlabelled_digest(formats.unlabelled(folder)))
    (folder / "renamed.jpg").unlink()
    seen.add(stages.unlabelled_digest(formats.unlabelled(folder)))
    assert len(seen) == 4


def test_a_job_may_make_its_own_scenes(data: Path, tmp_path: Path, nothing_is_repeated: None) -> None:
    values = settings(data, tmp_path / "job")
    for key in ("source", "target", "source_test", "target_test", "oracle"):
        del values[key]
    values["scenes"] = {"out": str(tmp_path / "scenes"), "images": 2, "test_images": 1, "size": [96, 128]}
    with pytest.raises(pytest.fail.Exception, match="repeated"):
        workflow.run(Config.model_validate(values))
    parts = {f"{domain}-{split}" for domain in ("clear", "fog") for split in ("train", "test")}
    assert {path.name for path in (tmp_path / "scenes").iterdir()} == parts
    config = Config.model_validate((Run.open(tmp_path / "job" / "source")).read("config.json"))
    assert config.target == tmp_path / "scenes" / "fog-train" / "images"
    assert config.oracle == DataConfig(path=tmp_path / "scenes" / "fog-train" / "annotations.json")


def test_changed_scenes_move_the_earlier_set_aside(data: Path, tmp_path: Path, nothing_is_repeated: None) -> None:
    values = settings(data, tmp_path / "job")
    for key in ("source", "target", "source_test", "target_test", "oracle"):
        del values[key]
    made = tmp_path / "scenes"

    def generate(**scenes: Any) -> None:
        wanted = {"out": str(made), "images": 2, "test_images": 1, "size": [96, 128], **scenes}
        with pytest.raises(pytest.fail.Exception, match="repeated"):
            workflow.run(Config.model_validate({**values, "out": str(tmp_path / "job"), "scenes": wanted}))
        shutil.rmtree(tmp_path / "job")

    generate()
    before = tree(made)
    index = (made / "fog-train" / "annotations.json").read_bytes()
    generate(strength=0.5)
    moved = list((made / "previous").iterdir())
    assert sorted(folder.name.rpartition("-")[0] for folder in moved) == ["fog-test", "fog-train"]
    (earlier,) = (folder for folder in moved if folder.name.startswith("fog-train"))
    assert (earlier / "annotations.json").read_bytes() == index
    assert (made / "fog-train" / "annotations.json").read_bytes() != index
    now = tree(made)
    assert {name: stamp for name, stamp in before.items() if name.startswith("clear")}.items() <= now.items()
    (made / "fog-train" / "annotations.json").write_text('{"info": {"description": "years of work"}}')
    with pytest.raises(AcclimateError, match="fog-train: holds another data set"):
        generate(strength=0.7)
    assert "years of work" in (made / "fog-train" / "annotations.json").read_text()


@pytest.mark.slow
def test_the_loop_goes_round(tmp_path: Path, repository: Path) -> None:
    program = [sys.executable, str(repository / "examples" / "loop.py"), str(tmp_path), "--small"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    fog = Run.open(tmp_path / "fog")
    assert (fog.done, fog.manifest.parents) == (True, (str(tmp_path / "clear"),))
    assert fog.read("config.json")["target"] == str(tmp_path / "watched" / "collected")
    board = workflow.leaderboard([tmp_path])
    assert {row.run for group in board.groups for row in group.rows} == {tmp_path / "clear", tmp_path / "fog"}
    again = subprocess.run(program, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "fog: done; nothing to do" in again.stdout


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "examples" / "quickstart.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith("report.html")
    assert (tmp_path / "report.html").is_file()
