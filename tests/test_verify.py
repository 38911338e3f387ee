from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from rich.console import Console

import coloured_squares as squares
from acclimate.config import Budget
from acclimate.edge import bench
from acclimate.edge.artifact import Artifact, MixedPrecision, Sensitivity, write_manifest
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter
from acclimate.models import detector as detectors
from acclimate.run import Manifest, Run
from acclimate.structures import Detections
from acclimate.verify import (
    Compared,
    Verification,
    _iou,
    _pairs,
    judge,
    load,
    print_compared,
    print_verification,
    saved,
    score,
    stored,
    verifications,
    verify,
)

RUNS = 5


@pytest.fixture(autouse=True)
def _squares_are_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detectors.KINDS, "squares", "coloured_squares:SquareDetector")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A finished run with an fp32 and an int8 artifact, and a labelled set."""
    root = tmp_path_factory.mktemp("verify")
    scenes = squares.write_scenes(root / "scenes", 6, scale=2)
    run = Run.create(root / "run", Manifest(verb="train"))
    detector = squares.SquareDetector()
    detectors.save(detector, run.path)
    run.finish("done")
    for precision in ("fp32", "int8"):
        folder = run.path / "artifacts" / f"onnx-{precision}"
        exporter("onnx").export(detector, folder, precision, scenes.paths)
    return run, scenes


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
    result = verify(folder, [(scenes, "squares_test", "target")], budget, runs=RUNS)
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
    result = verify(run.path / "artifacts" / "onnx-int8", [(scenes, "squares_test", "target")], runs=RUNS)
    assert result.passed
    assert [check.name for check in result.checks] == ["max_ap50_drop"]
    assert result.parity is not None
    assert result.parity.matched == 24
    assert 1e-6 < result.parity.raw_max["logits"] < 1


@pytest.mark.parametrize("limit", ["latency_ms", "size_mb", "memory_mb", "macs_m"])
def test_a_budget_that_cannot_be_met_fails(made, tmp_path: Path, limit: str, printed: Console) -> None:
    _, folder = copy(made, tmp_path)
    result = verify(folder, [], Budget.model_validate({limit: 1e-6}), runs=RUNS)
    assert not result.passed
    (check,) = result.checks
    assert (check.name, check.limit, check.passed) == (limit, 1e-6, False)
    assert check.value is not None
    assert check.value > check.limit
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("FAILED")
    assert "broken" in text


def test_judging_again_measures_nothing(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    (folder / "verification.json").unlink(missing_ok=True)
    assert stored(folder) is None
    measured = verify(folder, [], Budget(size_mb=10), runs=RUNS, inputs="these")
    assert stored(folder) == measured
    strict = judge(folder, measured, Budget(size_mb=1e-6))
    assert (measured.passed, strict.passed) == (True, False)
    assert (strict.latency, strict.inputs) == (measured.latency, "these")
    assert stored(folder) == strict
    (folder / "verification.json").write_text("{}")
    assert stored(folder) is None


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


def test_a_limit_that_cannot_be_measured_does_not_pass(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    write_manifest(folder, Artifact.open(folder).manifest.model_copy(update={"notes": {}}))
    result = verify(folder, [], Budget(macs_m=100), runs=RUNS)
    assert not result.passed
    assert (result.checks[0].value, result.checks[0].passed) == (None, None)


def test_a_loss_of_accuracy_fails(made, tmp_path: Path, printed: Console) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    worse = squares.SquareDetector()
    with torch.no_grad():
        worse.classify[1].weight[1] = 0  # no longer sees blue
    exporter("onnx").export(worse, folder, "fp32", [])
    result = verify(folder, [(scenes, "squares_test", "target")], runs=RUNS)
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
    tolerant = verify(folder, [(scenes, "squares_test", "target")], Budget(max_ap50_drop=0.6), runs=RUNS)
    assert tolerant.passed


def test_without_the_run_nothing_is_compared(made, tmp_path: Path) -> None:
    run, scenes = made
    folder = tmp_path / "copied"
    shutil.copytree(run.path / "artifacts" / "onnx-fp32", folder)
    base.annotate(Artifact.open(folder), source_run=str(tmp_path / "gone"))
    result = verify(folder, [(scenes, "squares_test", "target")], Budget(size_mb=1), runs=RUNS)
    assert result.passed
    assert result.accuracy["squares_test"].artifact_ap == pytest.approx(1.0)
    assert result.accuracy["squares_test"].eager_ap is None
    assert result.parity is None
    assert [check.name for check in result.checks] == ["size_mb"]
    assert any("the run that this artifact came from is not here" in note for note in result.notes)


def test_without_labels_parity_and_latency_remain(made, tmp_path: Path) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    result = verify(folder, [], images=scenes.paths, runs=RUNS)
    assert result.passed
    assert result.accuracy == {}
    assert result.parity is not None
    assert result.parity.matched == 24
    nothing = verify(folder, [], runs=RUNS)
    assert nothing.parity is None
    assert any("measured on noise" in note for note in nothing.notes)


def test_bad_input(made, tmp_path: Path) -> None:
    _, scenes = made
    run, folder = copy(made, tmp_path)
    scenes = squares.write_scenes(tmp_path / "scenes", 3)
    scenes.paths[1].write_bytes(b"\x89PNG cut")
    result = verify(folder, [(scenes, "squares_test", "source")], Budget(size_mb=1), runs=RUNS)
    assert any("001.png" in note and "left out" in note for note in result.notes)
    assert result.accuracy["squares_test"].images == 2
    assert result.accuracy["squares_test"].artifact_ap == pytest.approx(1)
    assert result.accuracy["squares_test"].difference_ap == pytest.approx(0)

    other = detectors.DetectorSpec(**{**squares.SPEC.model_dump(), "classes": ("red", "green")})
    detectors.save(squares.SquareDetector(other), run.path)
    with pytest.raises(AcclimateError, match="does not come from"):
        verify(folder, [], runs=RUNS)
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-100] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(AcclimateError, match="is not the file that was exported"):
        verify(folder, [], runs=RUNS)


def test_iou_equals_torchvision() -> None:
    rng = np.random.default_rng(0)
    boxes = [np.sort(rng.uniform(0, 50, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32) for n in (7, 9)]
    expected = torchvision.ops.box_iou(*(torch.tensor(one) for one in boxes)).numpy()
    np.testing.assert_allclose(_iou(*boxes), expected, atol=1e-6)
    assert _iou(boxes[0], np.zeros((0, 4), np.float32)).shape == (7, 0)


def test_pairs_go_by_class_and_overlap() -> None:
    def detections(*rows: tuple[float, int, float]) -> Detections:
        boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
        return Detections(boxes, np.array([r[1] for r in rows], int), np.array([r[2] for r in rows], np.float32))

    eager = detections((0, 0, 0.9), (50, 0, 0.8), (100, 1, 0.5), (150, 0, 0.1))
    artifact = detections((100, 0, 0.7), (0, 0, 0.6), (51, 0, 0.25), (150, 0, 0.2), (200, 1, 0.05))
    pairs = list(_pairs(eager, artifact, "x.png", ("a", "b")))
    seen = [
        (p.name, p.eager_score and round(p.eager_score, 2), p.artifact_score and round(p.artifact_score, 2))
        for p in pairs
    ]
    # Same class; a partner below the threshold counts; two weak detections do not.
    assert seen == [("a", 0.9, 0.6), ("a", 0.8, 0.25), ("b", 0.5, None), ("a", None, 0.7)]
    assert pairs[0].iou == pytest.approx(1.0)
    assert pairs[1].iou == pytest.approx(9 / 11)
    assert pairs[1].box_px == 1.0
    assert list(_pairs(Detections.empty(), Detections.empty(), "x.png", ("a",))) == []


def test_the_layers_that_a_tolerance_keeps_in_fp32_are_listed(made, tmp_path: Path, printed: Console) -> None:
    _, folder = copy(made, tmp_path)
    alone = [Sensitivity(layer=f"layer.{i}", agreement=0.5 + i / 100) for i in range(20)]
    mixed = MixedPrecision(
        tolerance=0.98, images=32, before=0.4, after=0.985, layers=20, in_float=[one.layer for one in alone[:12]],
        alone=alone,
    )  # fmt: skip
    base.annotate(Artifact.open(folder), mixed=mixed)
    result = verify(folder, [], runs=RUNS)
    assert result.mixed == mixed
    print_verification(result, printed)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    assert "0.400 with all 20 layers in INT8, 0.985 with 12 of them in fp32 (0.98 asked for)" in text
    assert "layer.0  0.500 where it alone is in INT8" in text
    assert "layer.10" not in text
    assert "and 2 less sensitive ones" in text


def test_the_score_is_accuracy_over_the_time_and_energy_of_twenty_thousand_images(made, tmp_path: Path) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    sets = [(scenes, "there", "source"), (scenes, "here", "target")]
    measured = verify(folder, sets, runs=RUNS)
    # 9 ms are 3 minutes for 20,000 images, 18 mJ are 0.1 Wh.
    fast = measured.latency.model_copy(update={"median_ms": 9.0, "energy_mj": 18.0})
    accuracy = {**measured.accuracy, "here": measured.accuracy["here"].model_copy(update={"artifact_ap50": 0.6})}
    found = score(measured.model_copy(update={"latency": fast, "accuracy": accuracy}))
    assert found is not None
    assert (found.data, found.in_time) == ("here", True)
    assert found.minutes == pytest.approx(3)
    assert found.ap50_per_minute == pytest.approx(0.2)
    assert found.energy_wh == pytest.approx(0.1)
    assert found.ap50_per_wh == pytest.approx(6)
    slow = score(
        measured.model_copy(update={"latency": fast.model_copy(update={"median_ms": 30.1, "energy_mj": None})})
    )
    assert slow is not None
    assert (slow.in_time, slow.energy_wh, slow.ap50_per_wh) == (False, None, None)
    assert score(measured.model_copy(update={"accuracy": {}})) is None


def test_latency_on_one_and_on_all_threads(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, scenes = made
    _, folder = copy(made, tmp_path)
    monkeypatch.setattr("acclimate.verify._Here.cores", 3)
    result = verify(folder, [], Budget(threads=2), images=scenes.paths, runs=RUNS, all_threads=True)
    assert (result.latency.threads, [one.threads for one in result.other_threads]) == (2, [1, 3])
    assert stored(folder) == result
    measure = bench.bench_apart

    def two_at_most(folder: Path, paths: list[Path], threads: int, runs: int) -> bench.Bench:
        if threads > 2:
            raise AcclimateError("too many")
        return measure(folder, paths, threads, runs)

    monkeypatch.setattr("acclimate.verify.bench_apart", two_at_most)
    result = verify(folder, [], images=scenes.paths, runs=RUNS, all_threads=True)
    assert result.other_threads == ()
    assert "latency on 3 threads was not measured: too many" in result.notes


def test_what_the_eager_model_reached_is_measured_once(made, tmp_path: Path) -> None:
    _, scenes = made
    run, folder = copy(made, tmp_path)
    known: dict = {}
    first = verify(folder, [(scenes, "here", "target")], runs=RUNS, eager=known)
    ((key, found),) = known.items()
    assert key == (run.path, "here")
    known[key] = found.model_copy(update={"ap50": 0.25})
    second = verify(folder, [(scenes, "here", "target")], runs=RUNS, eager=known)
    assert first.accuracy["here"].eager_ap50 == pytest.approx(1)
    assert second.accuracy["here"].eager_ap50 == 0.25


def test_several_artifacts_are_one_table_that_loses_no_number(made, tmp_path: Path) -> None:
    _, folder = copy(made, tmp_path)
    result = verify(folder, [], Budget(size_mb=1e-6), runs=RUNS)
    narrow = Console(file=io.StringIO(), width=60)
    print_compared([Compared(folder, result), Compared(tmp_path / "gone", None, "openvino is not here")], narrow)
    lines = narrow.file.getvalue().splitlines()  # type: ignore[attr-defined]
    row = next(line for line in lines if line.startswith(str(folder)))
    assert "broken: size_mb" in row
    assert f"{result.latency.median_ms:.2f} ({result.latency.p95_ms:.2f})" in row
    assert f"{result.size_mb:.2f}" in row
    assert any("gone" in line and "not measured" in line for line in lines)
    assert "note: gone: openvino is not here" in lines
