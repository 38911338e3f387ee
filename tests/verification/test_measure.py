from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import FrameType, SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

import coloured_squares as squares
from acclimate import workflow
from acclimate.config import Budget
from acclimate.edge import bench
from acclimate.edge.artifact import Artifact, Calibration, MixedPrecision, Sensitivity, write_manifest
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter
from acclimate.models import detector as detectors
from acclimate.run import Manifest, Run
from acclimate.structures import Detections
from acclimate.verification import measure, record
from acclimate.verification.measure import EvaluationSet, Material, Scope, contents, source_only
from acclimate.verification.parity import pairs
from acclimate.verification.record import Verification, load, save, saved, stored, verifications
from acclimate.verification.show import Compared, cells, print_compared, print_verification

RUNS = 5


pytestmark = pytest.mark.usefixtures("squares_are_a_kind")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A finished run with an fp32 and an int8 artifact, and a labelled set."""
    return squares.exported(tmp_path_factory.mktemp("verify"), 6, "fp32", "int8")


def verify(folder: Path, sets, budget: Budget | None = None, *, images=(), eager=None, **scope) -> Verification:
    """`measure.verify` with few timed images, on sets that are (images, name, role)."""
    material = Material([EvaluationSet(*one) for one in sets], images)
    return measure.verify(Artifact.open(folder), material, budget, scope=Scope(**{"runs": RUNS, **scope}), eager=eager)


def copy(made, tmp_path: Path) -> tuple[Run, Path]:
    shutil.copytree(made[0].path, tmp_path / "run")
    return Run.open(tmp_path / "run"), tmp_path / "run" / "artifacts" / "onnx-fp32"


@pytest.fixture
def printed() -> Console:
    return Console(file=io.StringIO(), width=250)


def test_an_artifact_that_is_as_good_passes(made, printed: Console) -> None:
    run, scenes = made
    folder = run.path / "artifacts" / "onnx-fp32"
    budget = Budget(latency_ms=1e4, size_mb=10, memory_mb=1e4, macs_m=10)
    result = verify(folder, [(scenes, "squares_test", "target")], budget)
    assert result.passed
    assert {check.name for check in result.checks} == {"latency_ms", "size_mb", "memory_mb", "macs_m", "max_ap50_drop"}
    assert all(check.passed for check in result.checks)
    accuracy = result.accuracy["squares_test"]
    assert accuracy.artifact_ap == pytest.approx(1.0)
    assert accuracy.digest == scenes.digest
    assert accuracy.eager_ap == pytest.approx(1.0)
    assert accuracy.difference_ap50 == pytest.approx(0.0)
    parity = result.parity
    assert parity is not None
    assert (parity.images, parity.matched, parity.unmatched) == (6, 24, 0)
    assert parity.score_max is not None
    assert parity.score_max < 1e-4
    assert parity.iou_min == pytest.approx(1.0, abs=1e-4)
    assert parity.box_px_max is not None
    assert parity.box_px_max < 1e-2
    assert parity.raw_max.keys() == {"logits", "distances"}
    assert max(parity.raw_max.values()) < 1e-4
    assert result.size_mb == Artifact.open(folder).size_mb
    assert result.macs_m == Artifact.open(folder).manifest.notes.macs_m
    assert result.machine["runtime"].startswith("onnxruntime ")
    assert (result.latency.runs, result.latency.images) == (RUNS, RUNS)
    assert Verification.model_validate(json.loads((folder / "verification.json").read_text())) == result
    (evaluation,) = [e for e in run.evaluations() if e.model == "onnx-fp32"]
    assert (evaluation.data, evaluation.role, evaluation.ap) == ("squares_test", "target", accuracy.artifact_ap)
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("PASSED  onnx-fp32 (onnx, fp32)")


def test_int8_is_compared_with_the_eager_model(made) -> None:
    run, scenes = made
    result = verify(run.path / "artifacts" / "onnx-int8", [(scenes, "squares_test", "target")])
    assert result.passed
    assert [check.name for check in result.checks] == ["max_ap50_drop"]
    assert result.parity is not None
    assert result.parity.matched == 24
    assert 1e-6 < result.parity.raw_max["logits"] < 1


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSES_S", ())


@pytest.fixture
def no_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latency is said, not measured: it takes seconds, and some tests are about the rest."""

    def said(folder: Path, paths: list[Path], threads: int, runs: int) -> bench.Bench:
        return bench_of(10.0, threads=threads, runs=runs)

    monkeypatch.setattr("acclimate.verification.measure.bench_apart", said)


unhurried = pytest.mark.usefixtures("no_bench")


@pytest.mark.parametrize("limit", ["latency_ms", "size_mb", "memory_mb", "macs_m"])
def test_a_budget_that_cannot_be_met_fails(made, tmp_path: Path, limit: str, printed: Console) -> None:
    _, folder = copy(made, tmp_path)
    result = verify(folder, [], Budget.model_validate({limit: 1e-6, "max_ap50_drop": None}))
    assert result.verdict == "failed"
    (check,) = result.checks
    assert (check.name, check.limit, check.passed) == (limit, 1e-6, False)
    assert check.value is not None
    assert check.value > check.limit
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("FAILED")
    assert "broken" in text


def test_the_walk_through_verify_is_the_one_in_the_documentation(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = copy(made, tmp_path)
    done = SimpleNamespace(returncode=0, stdout=bench_of(1.0).model_dump_json())
    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=lambda *given, **options: done))
    package = f"{Path(measure.__file__).parents[1]}/"
    walk: dict[str, None] = {}

    def follow(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package):
            return
        given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        if any(isinstance(one, Artifact) or (isinstance(one, Path) and one == folder) for one in given):
            module = code.co_filename.removeprefix(package).removesuffix(".py").replace("/", ".")
            # What an artifact answers about itself is no station, nor is who guards a write below it.
            if module not in {"edge.artifact", "run"}:
                walk[f"{module}.{code.co_qualname}"] = None

    sys.setprofile(follow)
    try:
        workflow.verify(folder)
    finally:
        sys.setprofile(None)
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    told = [line.split()[0] for line in page.partition("```text walk\n")[2].partition("```")[0].splitlines()]
    assert list(walk) == told
    assert len(told) <= 12


@unhurried
def test_a_record_says_what_its_numbers_say_whatever_is_written_in_it(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    measured = verify(folder, [], Budget(size_mb=10, max_ap50_drop=None))
    assert stored(saved(folder)) == measured
    assert measured.passed
    strict = measured.model_copy(update={"budget": Budget(size_mb=1e-6)})
    assert strict.verdict == "failed"
    values = json.loads(strict.model_dump_json())
    assert (values["passed"], values["verdict"]) == (False, "failed")
    saved(folder).write_text(json.dumps({**values, "passed": True, "checks": [], "verdict": "passed"}))
    assert stored(saved(folder)) == strict
    (folder / "verification.json").write_text("{}")
    assert stored(saved(folder)) is None


def test_a_device_has_a_file_of_its_own_whatever_it_is_called(tmp_path: Path) -> None:
    there = {"device": "[fe80::1]:7443", "fingerprint": "0123456789ab" + "0" * 52}
    assert saved(tmp_path).name == saved(tmp_path, {"processor": "any"}).name == "verification.json"
    assert saved(tmp_path, there).name == "verification.fe80-1-01234567.json"
    (tmp_path / "a[b].zip").touch()
    assert saved(tmp_path / "a[b].zip", there).name == "a[b].verification.fe80-1-01234567.json"
    for machine in (there, None):
        saved(tmp_path / "a[b].zip", machine).touch()
    assert verifications(tmp_path / "a[b].zip") == [saved(tmp_path / "a[b].zip", one) for one in (None, there)]
    with pytest.raises(AcclimateError, match=r"a\[b\]\.verification\.json: damaged"):
        load(saved(tmp_path / "a[b].zip"))
    saved(tmp_path).write_text("{}")
    with pytest.raises(AcclimateError, match=r"verification.json: damaged \(artifact: Field required\); verify"):
        load(saved(tmp_path))


@unhurried
def test_a_limit_that_cannot_be_measured_does_not_pass(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    write_manifest(folder, Artifact.open(folder).manifest.model_copy(update={"notes": {}}))
    result = verify(folder, [], Budget(macs_m=100, max_ap50_drop=None))
    assert not result.passed
    assert result.verdict == "incomplete"
    assert (result.checks[0].value, result.checks[0].passed) == (None, None)


@unhurried
def test_a_loss_of_accuracy_fails(made, tmp_path: Path, printed: Console) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    worse = squares.SquareDetector()
    with torch.no_grad():
        worse.classify[1].weight[1] = 0  # no longer sees blue
    exporter("onnx").export(worse, folder, "fp32", [])
    result = verify(folder, [(scenes, "squares_test", "target")])
    accuracy = result.accuracy["squares_test"]
    assert not result.passed
    assert accuracy.artifact_ap50 == pytest.approx(0.5)
    assert accuracy.difference_ap50 == pytest.approx(-0.5)
    assert result.checks[-1].value == pytest.approx(0.5)
    assert result.parity is not None
    blue = sum(int((image.annotations.labels == 1).sum()) for image in scenes.images)
    assert result.parity.unmatched == blue
    assert result.parity.worst[0].name == "blue"
    assert result.parity.worst[0].artifact_score is None
    print_verification(result, printed)
    assert "seen by the eager model alone" in printed.file.getvalue()  # type: ignore[attr-defined]
    tolerant = verify(folder, [(scenes, "squares_test", "target")], Budget(max_ap50_drop=0.6))
    assert tolerant.passed


def test_without_the_run_nothing_is_compared(made, tmp_path: Path) -> None:
    run, scenes = made
    folder = tmp_path / "copied"
    shutil.copytree(run.path / "artifacts" / "onnx-fp32", folder)
    base.annotate(Artifact.open(folder), source_run=str(tmp_path / "gone"))
    result = verify(folder, [(scenes, "squares_test", "target")], Budget(size_mb=1))
    assert result.verdict == "incomplete"
    assert result.accuracy["squares_test"].artifact_ap == pytest.approx(1.0)
    assert result.accuracy["squares_test"].eager_ap is None
    assert result.parity is None
    assert {check.name: check.passed for check in result.checks} == {"size_mb": True, "max_ap50_drop": None}
    assert any("the run that this artifact came from is not here" in note for note in result.notes)


def test_without_labels_parity_and_latency_remain(made, tmp_path: Path) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    result = verify(folder, [], images=scenes.paths)
    assert result.verdict == "incomplete"
    assert result.accuracy == {}
    assert result.parity is not None
    assert result.parity.matched == 24
    nothing = verify(folder, [])
    assert nothing.parity is None
    assert any("measured on noise" in note for note in nothing.notes)


@unhurried
def test_bad_input(made, tmp_path: Path) -> None:
    _, scenes = made
    run, folder = copy(made, tmp_path)
    scenes = squares.write_scenes(tmp_path / "scenes", 3)
    scenes.paths[1].write_bytes(b"\x89PNG cut")
    result = verify(folder, [(scenes, "squares_test", "source")], Budget(size_mb=1))
    assert any("001.png" in note and "left out" in note for note in result.notes)
    assert result.accuracy["squares_test"].images == 2
    assert result.accuracy["squares_test"].artifact_ap == pytest.approx(1)
    assert result.accuracy["squares_test"].difference_ap == pytest.approx(0)

    other = detectors.DetectorSpec(**{**squares.SPEC.model_dump(), "classes": ("red", "green")})
    detectors.save(squares.SquareDetector(other), run.path)
    with pytest.raises(AcclimateError, match="does not come from"):
        verify(folder, [], images=scenes.paths)
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-100] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(AcclimateError, match="is not the file that was exported"):
        verify(folder, [])


def test_pairs_go_by_class_and_overlap() -> None:
    def detections(*rows: tuple[float, int, float]) -> Detections:
        boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
        return Detections(boxes, np.array([r[1] for r in rows], int), np.array([r[2] for r in rows], np.float32))

    eager = detections((0, 0, 0.9), (50, 0, 0.8), (100, 1, 0.5), (150, 0, 0.1))
    artifact = detections((100, 0, 0.7), (0, 0, 0.6), (51, 0, 0.25), (150, 0, 0.2), (200, 1, 0.05))
    found = list(pairs(eager, artifact, "x.png", ("a", "b")))
    seen = [
        (p.name, p.eager_score and round(p.eager_score, 2), p.artifact_score and round(p.artifact_score, 2))
        for p in found
    ]
    # Same class; a partner below the threshold counts; two weak detections do not.
    assert seen == [("a", 0.9, 0.6), ("a", 0.8, 0.25), ("b", 0.5, None), ("a", None, 0.7)]
    assert found[0].iou == pytest.approx(1.0)
    assert found[1].iou == pytest.approx(9 / 11)
    assert found[1].box_px == 1.0
    assert list(pairs(Detections.empty(), Detections.empty(), "x.png", ("a",))) == []


@unhurried
def test_what_speaks_against_the_calibration_stands_under_the_verdict(made, tmp_path: Path, printed: Console) -> None:
    _, folder = copy(made, tmp_path)
    known = Calibration(images=4, digest="", source="fog", empty=3, agreement=0.4, compared=8)
    base.annotate(Artifact.open(folder), calibration=known)
    result = verify(folder, [])
    assert result.calibration == known
    print_verification(result, printed)
    print_compared([Compared(folder, result)], printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert len(known.doubts()) == 3
    for doubt in known.doubts():
        assert f"doubt: {doubt}" in text
        assert f"note: {folder.name}: {doubt}" in text


@unhurried
def test_the_layers_that_a_tolerance_keeps_in_fp32_are_listed(made, tmp_path: Path, printed: Console) -> None:
    _, folder = copy(made, tmp_path)
    alone = [Sensitivity(layer=f"layer.{i}", agreement=0.5 + i / 100) for i in range(20)]
    mixed = MixedPrecision(
        tolerance=0.98, images=32, before=0.4, after=0.985, layers=20, in_float=[one.layer for one in alone[:12]],
        alone=alone,
    )  # fmt: skip
    base.annotate(Artifact.open(folder), mixed=mixed)
    result = verify(folder, [])
    assert result.mixed == mixed
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert "0.400 with all 20 layers in INT8, 0.985 with 12 of them in fp32 (0.98 asked for)" in text
    assert "layer.0  0.500 where it alone is in INT8" in text
    assert "layer.10" not in text
    assert "and 2 less sensitive ones" in text


@unhurried
def test_the_score_is_accuracy_over_the_time_and_energy_of_twenty_thousand_images(made, tmp_path: Path) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    sets = [(scenes, "there", "source"), (scenes, "here", "target")]
    measured = verify(folder, sets)
    # 9 ms are 3 minutes for 20,000 images, 18 mJ are 0.1 Wh.
    fast = measured.latency.model_copy(update={"median_ms": 9.0, "energy_mj": 18.0})
    accuracy = {**measured.accuracy, "here": measured.accuracy["here"].model_copy(update={"artifact_ap50": 0.6})}
    found = measured.model_copy(update={"latency": fast, "accuracy": accuracy}).score
    assert found is not None
    assert (found.data, found.in_time) == ("here", True)
    assert found.minutes == pytest.approx(3)
    assert found.ap50_per_minute == pytest.approx(0.2)
    assert found.energy_wh == pytest.approx(0.1)
    assert found.ap50_per_wh == pytest.approx(6)
    slow = measured.model_copy(update={"latency": fast.model_copy(update={"median_ms": 30.1, "energy_mj": None})}).score
    assert slow is not None
    assert (slow.in_time, slow.energy_wh, slow.ap50_per_wh) == (False, None, None)
    assert measured.model_copy(update={"accuracy": {}}).score is None


def test_latency_on_one_and_on_all_threads(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    monkeypatch.setattr("acclimate.verification.measure.Here.cores", 2)
    result = verify(folder, [], Budget(threads=1), images=scenes.paths, all_threads=True)
    assert (result.latency.threads, [one.threads for one in result.other_threads]) == (1, [2])
    assert stored(saved(folder)) == result
    measure = bench.bench_apart

    def two_at_most(folder: Path, paths: list[Path], threads: int, runs: int) -> bench.Bench:
        if threads > 2:
            raise AcclimateError("too many")
        return measure(folder, paths, threads, runs)

    monkeypatch.setattr("acclimate.verification.measure.Here.cores", 3)
    monkeypatch.setattr("acclimate.verification.measure.bench_apart", two_at_most)
    result = verify(folder, [], images=scenes.paths, all_threads=True)
    assert result.other_threads == ()
    assert "latency on 3 threads was not measured: too many" in result.notes


@unhurried
def test_what_the_eager_model_reached_is_measured_once(made, tmp_path: Path) -> None:
    _, scenes = made
    run, folder = copy(made, tmp_path)
    known: dict = {}
    first = verify(folder, [(scenes, "here", "target")], eager=known)
    ((key, found),) = known.items()
    assert key == (run.path, "here")
    known[key] = found.model_copy(update={"ap50": 0.25})
    second = verify(folder, [(scenes, "here", "target")], eager=known)
    assert first.accuracy["here"].eager_ap50 == pytest.approx(1)
    assert second.accuracy["here"].eager_ap50 == 0.25


@unhurried
def test_several_artifacts_are_one_table_that_loses_no_number(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    result = verify(folder, [], Budget(size_mb=1e-6))
    narrow = Console(file=io.StringIO(), width=60)
    print_compared([Compared(folder, result), Compared(tmp_path / "gone", None, "openvino is not here")], narrow)
    lines = narrow.file.getvalue().splitlines()  # type: ignore[attr-defined]
    row = next(line for line in lines if line.startswith(str(folder)))
    assert "failed: size_mb" in row
    assert f"{result.latency.median_ms:.2f} ({result.latency.p95_ms:.2f})" in row
    assert f"{result.size_mb:.2f}" in row
    assert any("gone" in line and "not measured" in line for line in lines)
    assert "note: gone: openvino is not here" in lines


def bench_of(median_ms: float, cpu_ms: float | None = None, **more: float) -> bench.Bench:
    values = {"threads": 1, "images": 3, "runs": 5, "p95_ms": median_ms, "iqr_ms": 0.0, "load_ms": 1.0} | more
    return bench.Bench.model_validate(
        {
            **values, "median_ms": median_ms, "cpu_ms": median_ms if cpu_ms is None else cpu_ms, "parts": {},
            "peak_memory_mb": 100.0, "idle_memory_mb": 50.0,
        }
    )  # fmt: skip


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> list[bench.Bench]:
    """Latencies that are "measured", one after the other; the last one again and again."""
    found: list[bench.Bench] = []

    def measured(*given: object) -> bench.Bench:
        return found.pop(0) if len(found) > 1 else found[0]

    monkeypatch.setattr("acclimate.verification.measure.bench_apart", measured)
    return found


def test_a_busy_machine_is_waited_for_and_then_said_to_be_busy(
    made, tmp_path: Path, benches: list[bench.Bench], monkeypatch: pytest.MonkeyPatch, printed: Console
) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    waited: list[float] = []
    monkeypatch.setattr(measure, "PAUSES_S", (2.0, 5.0))
    monkeypatch.setattr(measure.time, "sleep", waited.append)
    budget = Budget(latency_ms=20)
    benches[:] = [bench_of(36.5, 4.5), bench_of(12.0, 11.9), bench_of(99.0)]
    result = verify(folder, [(scenes, "here", "target")], budget)
    assert (result.verdict, result.latency.median_ms, waited) == ("passed", 12.0, [2.0])

    benches[:] = [bench_of(36.5, 4.5)]
    result = verify(folder, [(scenes, "here", "target")], budget, anew="latency")
    assert waited == [2.0, 2.0, 5.0], "tries are bounded"
    assert result.verdict == "incomplete"
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("latency could not be measured now: the machine was busy") < text.index("allowed")
    assert "an image took 36.5 ms, of which 4.5 ms on the processor" in text

    benches[:] = [bench_of(36.5)]
    result = verify(folder, [(scenes, "here", "target")], budget, anew="latency")
    assert (result.verdict, len(waited)) == ("failed", 3), "a machine that was not busy is not waited for"


@unhurried
def test_a_repeat_measures_the_latency_alone(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    first = verify(folder, [(scenes, "here", "target")], Budget(size_mb=10))
    assert first.verdict == "passed"

    def refuse(*given: object, **options: object) -> None:
        pytest.fail("it was measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measure._Measuring, "_accuracy_on", refuse)
        patch.setattr(measure.parities, "compare", refuse)
        patch.setattr(measure._Eager, "_load", refuse)
        for sets in ([(scenes, "here", "target")], []):
            again = verify(folder, sets, Budget(size_mb=1e-6), runs=RUNS + 1, anew="latency")
            assert (again.accuracy, again.parity) == (first.accuracy, first.parity)
            assert (again.verdict, again.latency.runs) == ("failed", RUNS + 1)
        patch.setattr("acclimate.verification.measure.bench_apart", refuse)
        kept = verify(folder, [], Budget(size_mb=10, latency_ms=1e5), anew="nothing")
        assert (kept.verdict, kept.latency) == ("passed", again.latency)

    # Other pixels under the same names and labels, another artifact, other weights: each is measured anew.
    changed = squares.write_scenes(tmp_path / "scenes", 6, scale=2)
    first = verify(folder, [(changed, "here", "target")], anew="latency")
    changed.paths[0].write_bytes(changed.paths[1].read_bytes())
    assert verify(folder, [(changed, "here", "target")], anew="latency").accuracy != first.accuracy
    exporter("onnx").export(squares.SquareDetector(), folder, "fp32", [])
    worse = squares.SquareDetector()
    with torch.no_grad():
        worse.classify[1].weight[1] = 0
    exporter("onnx").export(worse, folder, "fp32", [])
    assert verify(folder, [], anew="latency").accuracy == {}


@unhurried
def test_accuracy_of_another_set_stays_in_the_record(made, tmp_path: Path) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    other = squares.write_scenes(tmp_path / "other", 3)
    verify(folder, [(scenes, "here", "target")])
    both = verify(folder, [(other, "there", "source")], anew="latency")
    assert set(both.accuracy) == {"here", "there"}
    assert set(verify(folder, [(other, "there", "source")]).accuracy) == {"there"}


@unhurried
def test_nothing_detected_is_nothing_compared(made, tmp_path: Path, printed: Console) -> None:
    run, folder = copy(made, tmp_path)
    blind = squares.SquareDetector()
    with torch.no_grad():
        for head in blind.classify:
            head.bias.fill_(-30)
    detectors.save(blind, run.path)
    exporter("onnx").export(blind, folder, "fp32", [])
    result = verify(folder, [], images=made[1].paths)
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert "parity: nothing was compared: on 6 images" in text
    assert "0 detections matched" not in text


@unhurried
def test_a_loss_is_that_of_the_worst_set(made, tmp_path: Path) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    result = verify(folder, [(scenes, "a", "target"), (scenes, "b", "source")])
    accuracy = {
        name: one.model_copy(update={"difference_ap50": -lost})
        for (name, one), lost in zip(result.accuracy.items(), (0.3, 0.1), strict=True)
    }
    assert result.model_copy(update={"accuracy": accuracy}).drop == pytest.approx(0.3)
    assert result.model_copy(update={"accuracy": dict(reversed(accuracy.items()))}).drop == pytest.approx(0.3)


def job_of(made, root: Path, sees: tuple[bool, bool]) -> tuple[Path, Run]:
    """An adapted run that sees everything, with an fp32 artifact, its source run, and the baseline beside it, which
    sees red, blue or both."""
    source = Run.create(root / "source", Manifest(verb="train"))
    adapted = Run.create(root / "adapted", Manifest(verb="adapt", parents=(str(root / "source"),)))
    notes = {"role": "baseline"}
    baseline = Run.create(root / "baseline", Manifest(verb="adapt", parents=(str(root / "source"),), notes=notes))
    whole, less = squares.SquareDetector(), squares.SquareDetector()
    with torch.no_grad():
        for label, seen in enumerate(sees):
            less.classify[1].weight[label] *= seen
    for run, detector in ((source, less), (adapted, whole), (baseline, less)):
        detectors.save(detector, run.path)
        run.finish("done")
    folder = adapted.path / "artifacts" / "onnx-fp32"
    exporter("onnx").export(whole, folder, "fp32", [])
    return folder, baseline


@unhurried
def test_the_gain_is_against_the_baseline_beside_the_run(made, tmp_path: Path, printed: Console) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 12)
    folder, baseline = job_of(made, tmp_path, (True, False))
    sets = [(scenes, "here", "target")]
    without = verify(folder, sets)
    assert without.accuracy["here"].gain is None, "nobody asked, so the baseline was not measured"
    budget = Budget(min_ap50=0.9, min_gain_ap50=0.4, max_class_drop_ap50=0.01)
    result = verify(folder, sets, budget, anew="latency")
    assert result.verdict == "passed"
    accuracy = result.accuracy["here"]
    assert accuracy.source_only == str(baseline.path.resolve())
    assert accuracy.gain is not None
    assert accuracy.gain.ap50.difference == pytest.approx(0.5)
    assert accuracy.gain.ap50.clear
    assert accuracy.gain.classes["blue"].difference == pytest.approx(1.0)
    assert [check.value for check in result.checks] == pytest.approx([0.0, 1.0, 0.5, 0.0], abs=1e-6)
    print_verification(result, printed)
    said = printed.file.getvalue()  # type: ignore[attr-defined]
    assert "classes that changed against source-only: blue 0.0 -> 100.0 (+100.0)" in said
    strict = Budget(min_ap50=1.5e0 / 1.5, min_gain_ap50=0.6)
    assert [check.passed for check in result.against(strict)] == [True, True, False]
    assert cells(result.model_copy(update={"budget": strict}), ())[0] == "failed: min_gain_ap50"


@unhurried
def test_a_class_that_fell_breaks_its_limit_though_the_mean_gained(made, tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 12)
    folder, baseline = job_of(made, tmp_path, (True, True))
    worse = squares.SquareDetector()
    with torch.no_grad():
        worse.classify[1].weight[1] = 0
    exporter("onnx").export(worse, folder, "fp32", [])
    detectors.save(worse, folder.parent.parent)
    budget = Budget(min_gain_ap50=-1, max_class_drop_ap50=0.1)
    result = verify(folder, [(scenes, "here", "target")], budget)
    assert {check.name: check.passed for check in result.checks}["max_class_drop_ap50"] is False
    assert result.measured(1).class_drop_ap50 == pytest.approx(1.0)
    # Its own evaluation is taken where it is of the same images.
    baseline.write("evaluations/here.json", Run.open(folder.parent.parent).evaluations()[0].model_copy(
        update={"model": "eager"}
    ))  # fmt: skip
    again = verify(folder, [(scenes, "here", "target")], budget)
    assert again.measured(1).class_drop_ap50 == pytest.approx(0.0)


@unhurried
def test_limits_of_the_target_are_not_met_by_the_source(made, tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 3)
    folder, _ = job_of(made, tmp_path, (True, False))
    budget = Budget(min_ap50=0.1, min_gain_ap50=0.1, max_class_drop_ap50=0.1)
    result = verify(folder, [(scenes, "clear", "source")], budget)
    assert result.verdict == "incomplete"
    assert [check.passed for check in result.checks] == [True, None, None, None]
    assert "--data" in result.checks[1].reason


def test_what_source_only_is(made, tmp_path: Path) -> None:
    folder, baseline = job_of(made, tmp_path, (True, True))
    adapted = Run.open(folder.parent.parent)
    found = source_only(adapted)
    assert found is not None
    assert found.path == baseline.path.resolve()
    shutil.rmtree(baseline.path)
    found = source_only(adapted)
    assert found is not None
    assert found.path.name == "source"
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    found = source_only(Run.open(tmp_path.with_name("moved") / "adapted"))
    assert found is not None, "a job that was moved as a whole"
    assert source_only(found) is None, "it has seen no target"
    shutil.move(tmp_path.with_name("moved"), tmp_path)


@unhurried
def test_a_source_detector_that_has_not_learnt_is_said_first(made, tmp_path: Path, printed: Console) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 3)
    folder, _ = job_of(made, tmp_path, (True, True))
    result = verify(folder, [(scenes, "here", "target")])
    assert result.first == ""
    evaluation = Run.open(folder.parent.parent).evaluations()[0]
    low = evaluation.model_copy(update={"model": "eager", "role": "source", "ap50": 0.022})
    Run.open(tmp_path / "source").write("evaluations/source_test.json", low)
    result = verify(folder, [(scenes, "here", "target")])
    print_verification(result, printed)
    assert printed.file.getvalue().startswith(  # type: ignore[attr-defined]
        "the source detector has not learnt: AP50 2.2 on its own domain; train longer or start from pretrained weights"
    )


@unhurried
def test_what_cannot_be_stored_is_said_and_told_all_the_same(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = copy(made, tmp_path)

    def full(*given: object) -> None:
        raise AcclimateError("the disk is full")

    monkeypatch.setattr(record, "save", full)
    result = verify(folder, [], Budget(size_mb=10))
    assert result.notes[-1] == "this verification was not stored: the disk is full"


@unhurried
def test_a_file_of_an_earlier_version_is_read_and_judged(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    now = json.loads(verify(folder, [], Budget(size_mb=10)).model_dump_json())
    for added in ("reference", "source_ap50", "verdict", "score"):
        del now[added]
    del now["latency"]["waited_ms"]
    for added in ("min_ap50", "min_gain_ap50", "max_class_drop_ap50"):
        del now["budget"][added]
    old = {**now, "passed": True, "inputs": "abc", "checks": now["checks"][:1]}
    saved(folder).write_text(json.dumps(old))
    found = load(saved(folder))
    assert found.verdict == "incomplete", "it passed unmeasured then"
    save(saved(folder), found)
    assert load(saved(folder)) == found


def test_contents_are_of_bytes_and_not_of_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"pixels")
    one, two = (contents([tmp_path / name / "1.png"], "labels") for name in ("a", "b"))
    assert one == two
    assert one != contents([tmp_path / "a/1.png"], "others")
    (tmp_path / "b/1.png").write_bytes(b"pixelt")
    assert one != contents([tmp_path / "b/1.png"], "labels")


def test_weights_that_were_trained_over_are_compared_anew(made, tmp_path: Path) -> None:
    """The artifact is the same; what it is held against is not."""
    _, scenes = made
    run, folder = copy(made, tmp_path)
    first = verify(folder, [(scenes, "here", "target")])
    other = squares.SquareDetector()
    with torch.no_grad():
        other.classify[1].weight[1] = 0
    detectors.save(other, run.path)
    again = verify(folder, [(scenes, "here", "target")], anew="latency")
    assert first.parity is not None
    assert again.parity is not None
    assert again.digest == first.digest
    assert again.parity.matched < first.parity.matched
