"""The leaderboard, over verifications that are written here: what is ranked against what, and what is left out."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from acclimate import cli, workflow
from acclimate.config import Budget
from acclimate.edge.artifact import Artifact, ArtifactManifest, Decode
from acclimate.edge.bench import Bench
from acclimate.edge.package import pack
from acclimate.errors import AcclimateError
from acclimate.report import leaderboard
from acclimate.report.leaderboard import SORTS, Leaderboard, Row, gather
from acclimate.run import Manifest, Run, file_digest
from acclimate.verification.record import Accuracy, Verification, save, saved

HERE = {"processor": "Desk CPU", "cores": "4", "memory_gb": "15.6", "runtime": "onnxruntime 1.32.0"}
EDGE = {"processor": "Small core", "cores": "4", "device": "edge-7:7443", "fingerprint": "ab" * 32}


def bench(median_ms: float, threads: int = 1, energy_mj: float | None = None) -> Bench:
    return Bench(
        threads=threads, images=4, runs=9, median_ms=median_ms, p95_ms=median_ms + 1, iqr_ms=0.1, cpu_ms=median_ms,
        parts={}, load_ms=1, peak_memory_mb=100, idle_memory_mb=50, energy_mj=energy_mj,
    )  # fmt: skip


def artifact(folder: Path, runtime: str = "onnx", precision: Any = "int8") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text(str(folder))
    files = {"model.onnx": file_digest(folder / "model.onnx")}
    manifest = ArtifactManifest(
        name=folder.name, runtime=runtime, precision=precision, classes=("car",), image_size=(64, 64),
        decode=Decode(strides=(8,)),
        files=files,
    )  # fmt: skip
    (folder / "artifact.json").write_text(manifest.model_dump_json())
    return folder


def measure(
    folder: Path,
    ap50: float | None = 0.5,
    latency_ms: float = 10.0,
    *,
    machine: dict[str, str] = HERE,
    digest: str = "d" * 16,
    images: int = 100,
    threads: int = 1,
    others: tuple[Bench, ...] = (),
    size_mb: float = 2.0,
    energy_mj: float | None = None,
    budget: Budget | None = None,
) -> Verification:
    """What `verify` would leave for an artifact."""
    opened = Artifact.open(folder)
    accuracy = {}
    if ap50 is not None:
        found = Accuracy(
            role="target", images=images, digest=digest, artifact_ap=ap50 / 2, artifact_ap50=ap50, difference_ap50=0
        )
        accuracy = {"target_test": found}
    verification = Verification(
        artifact=folder.name, runtime=opened.manifest.runtime, precision=opened.manifest.precision,
        digest=opened.digest, budget=budget or Budget(), accuracy=accuracy,
        latency=bench(latency_ms, threads, energy_mj), other_threads=others, size_mb=size_mb, peak_memory_mb=100,
        machine=machine,
    )  # fmt: skip
    save(saved(folder, verification.machine), verification)
    return verification


def make_run(path: Path, *artifacts: str) -> Path:
    Run.create(path, Manifest(verb="adapt")).finish("done")
    for name in artifacts:
        artifact(path / "artifacts" / name, *name.split("-")[:2])
    return path


def shown(board: Leaderboard) -> str:
    console = Console(file=io.StringIO(), width=250)
    leaderboard.show(board, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_rows_of_several_runs_and_runtimes_are_ranked_in_one_table(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", "onnx-int8", "openvino-int8"), make_run(tmp_path / "two", "onnx-fp32")
    measure(one / "artifacts/onnx-int8", 0.5, 10, others=(bench(4, 4),), budget=Budget(size_mb=1))
    measure(one / "artifacts/openvino-int8", 0.4, 4, budget=Budget(size_mb=3))
    measure(two / "artifacts/onnx-fp32", 0.45, 12)
    board = gather([one, two])
    (group,) = board.groups
    assert (group.data, group.images, group.digest, group.threads) == ("target_test", 100, "d" * 16, 1)
    # 20,000 images take 10 / 3 minutes at 10 ms: 0.5 / 3.33, 0.4 / 1.33, 0.45 / 4.
    assert [row.path.name for row in group.rows] == ["openvino-int8", "onnx-int8", "onnx-fp32"]
    scores = [record["ap50_per_minute"] for record in leaderboard.records(board)]
    assert scores == pytest.approx([0.3, 0.15, 0.1125])
    assert [row.front for row in group.rows] == [True, True, False]
    text = shown(board)
    lines = [line.split() for line in text.splitlines()]
    assert lines[2][:6] == ["1", "*", str(one), "openvino", "int8", "passed"]
    assert lines[3][:7] == ["2", "*", str(one), "onnx", "int8", "failed:", "size_mb"]
    assert "4.00 (5.00)" in text.splitlines()[3]
    assert "* on the Pareto front" in text
    assert "do not compare" not in text


@pytest.mark.parametrize("key", list(SORTS))
def test_every_key_ranks_and_what_was_not_measured_comes_last(tmp_path: Path, key: str) -> None:
    low = make_run(tmp_path / "low", "onnx-int8") / "artifacts/onnx-int8"
    high = make_run(tmp_path / "high", "onnx-int8") / "artifacts/onnx-int8"
    measure(low, 0.2, 9, size_mb=1, energy_mj=9, others=(bench(3, 4),))
    measure(high, 0.6, 10, size_mb=5, energy_mj=10, others=(bench(5, 4),))
    (group,) = gather([tmp_path], key).groups
    better = [high, low] if key in {"score", "score-energy", "ap50", "ap"} else [low, high]
    if key == "memory":
        assert [row.rank for row in group.rows] == [1, 1]
        return
    assert [row.path for row in group.rows] == better
    assert [row.rank for row in group.rows] == [1, 2]
    if key in {"energy", "score-energy", "latency-all"}:
        measure(better[0], 0.6, 10)
        (group,) = gather([tmp_path], key).groups
        assert [row.path for row in group.rows] == better[::-1]


def test_other_images_machines_and_threads_have_tables_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *(f"onnx-int8-{letter}" for letter in "abcdef"))
    a, b, c, d, e, f = Run.open(run).artifacts()
    measure(a, 0.5, 10)
    measure(a, 0.5, 40, machine=EDGE)
    measure(b, 0.4, 20)
    measure(c, 0.9, 1, digest="e" * 16)
    measure(d, 0.9, 1, threads=4)
    measure(e, None, 1)
    measure(f, 0.9, 1, digest="")
    board = gather([run])
    assert len(board.groups) == 6
    assert [row.path for row in board.groups[0].rows] == [a, b]
    assert [row.front for row in board.groups[0].rows] == [True, False]
    assert {row.path: row.front for group in board.groups[1:] for row in group.rows} == {
        a: True, c: True, d: True, e: False, f: True,
    }  # fmt: skip
    text = shown(board)
    assert "rows of different tables do not compare" in text
    assert "target_test: 100 images (set dddddddd); edge-7:7443 (Small core, 4 cores); 1 thread" in text
    assert "target_test: 100 images (set eeeeeeee); Desk CPU, 4 cores; 1 thread" in text
    assert "target_test: 100 images (set dddddddd); Desk CPU, 4 cores; 4 threads" in text
    assert "target_test: 100 images (known by name and number alone); Desk CPU" in text
    assert "no labelled images; Desk CPU" in text
    assert f"{run} (onnx-int8-b)" in text


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=8))
def test_the_front_is_what_no_other_row_dominates(points: list[tuple[int, int]]) -> None:
    def row(number: int, ap50: int, latency: int) -> Row:
        verification = Verification(
            artifact="a", runtime="onnx", precision="int8", digest="", budget=Budget(),
            accuracy={"t": Accuracy(role="target", images=1, artifact_ap=0, artifact_ap50=ap50 / 4)},
            latency=bench(latency), size_mb=1, peak_memory_mb=1, machine=HERE,
        )  # fmt: skip
        return Row(Path(str(number)), None, verification)

    ranked = list(leaderboard._ranked([row(n, *point) for n, point in enumerate(points)], "ap50"))
    for found in ranked:
        ap50, latency = points[int(found.path.name)]
        dominated = any(a >= ap50 and m <= latency and (a, m) != (ap50, latency) for a, m in points)
        assert found.front == (not dominated)
    assert [one.rank for one in ranked] == sorted(one.rank for one in ranked)


def test_work_in_hand_has_no_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "site" / "run", "onnx-int8")
    measure(run / "artifacts/onnx-int8")
    shutil.copytree(run, tmp_path / "site" / ".run.k2j4h5g6.tmp")
    shutil.copytree(run / "artifacts/onnx-int8", run / "artifacts/.onnx-int8.k2j4h5g6.tmp")
    for path in (tmp_path / "site", run):
        (group,) = gather([path]).groups
        assert [row.path for row in group.rows] == [run / "artifacts/onnx-int8"]


def test_what_is_not_in_a_table_is_told_with_the_way_to_it(tmp_path: Path) -> None:
    good = make_run(tmp_path / "runs/good", "onnx-int8", "onnx-fp32", "ncnn-fp32", "litert-fp32", "openvino-fp32")
    measure(good / "artifacts/onnx-int8")
    measure(good / "artifacts/ncnn-fp32")
    measure(good / "artifacts/litert-fp32")
    measure(good / "artifacts/openvino-fp32")
    (good / "artifacts/ncnn-fp32/verification.json").write_text('{"artifact": "ncnn-fp32"')
    (good / "artifacts/litert-fp32/model.onnx").write_text("changed")
    shutil.copy(good / "artifacts/onnx-int8/verification.json", good / "artifacts/openvino-fp32/verification.json")
    bare = make_run(tmp_path / "runs/bare")
    damaged = make_run(tmp_path / "runs/damaged", "onnx-int8")
    (damaged / "run.json").write_text("{")
    make_run(tmp_path / "runs/previous/good-1", "onnx-int8")
    (tmp_path / "report.html").touch()
    (tmp_path / "empty").mkdir()
    board = gather([tmp_path / "runs", tmp_path / "report.html", tmp_path / "empty"])
    assert [row.path for group in board.groups for row in group.rows] == [good / "artifacts/onnx-int8"]
    assert board.unverified == (good / "artifacts/onnx-fp32",)
    assert board.bare == (bare,)
    assert board.strangers == (tmp_path / "report.html", tmp_path / "empty")
    text = shown(board)
    for line in (
        f"not verified: {good}/artifacts/onnx-fp32; acclimate verify PATH --data LABELLED_IMAGES measures one",
        f"without an artifact: {bare}; acclimate export RUN makes one",
        f"passed over: {tmp_path}/report.html, {tmp_path}/empty; neither a run",
        f"left out: {good}/artifacts/ncnn-fp32/verification.json: damaged JSON",
        f"left out: {good}/artifacts/litert-fp32/model.onnx: is not the file that was exported",
        f"left out: {good}/artifacts/openvino-fp32/verification.json: is of another artifact",
        f"left out: {damaged}/run.json: damaged",
    ):
        assert line in text
    assert len(text.splitlines()) == 4 + 8


def test_a_package_and_a_device_have_rows(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "onnx-int8")
    pack(folder, tmp_path / "site.zip", [])
    for machine in (HERE, EDGE):
        measure(folder, machine=machine)
        shutil.move(saved(folder, machine), saved(tmp_path / "site.zip", machine))
    board = gather([tmp_path / "site.zip", folder])
    assert [(row.path, row.run) for group in board.groups for row in group.rows] == [(tmp_path / "site.zip", None)] * 2
    assert board.unverified == (folder,)


def test_without_any_verification_it_says_how_to_make_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "onnx-int8")
    with pytest.raises(AcclimateError, match=r"no verification found.*acclimate verify .*run/artifacts/onnx-int8"):
        gather([run])
    with pytest.raises(AcclimateError, match="no such run, artifact or package"):
        gather([tmp_path / "gone"])
    with pytest.raises(AcclimateError, match="--sort speed: choose score, "):
        gather([run], "speed")


def test_files_hold_every_row_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("run"), "onnx-int8", "onnx-fp32", "ncnn-fp32")
    measure(run / "artifacts/onnx-int8", 0.5, 10, others=(bench(4, 4),))
    slow = measure(run / "artifacts/onnx-fp32", None, 20)
    disturbed = slow.model_copy(update={"latency": slow.latency.model_copy(update={"cpu_ms": 15.0})})
    save(saved(run / "artifacts/onnx-fp32"), disturbed)
    assert cli.main(["leaderboard", "run", "--sort", "latency", "--json", "b.json", "--csv", "b.csv"]) == 0
    told = capsys.readouterr().out
    assert "not verified: run/artifacts/ncnn-fp32" in told
    assert "measured while something else ran: run/artifacts/onnx-fp32; their latency is too long" in told
    written = json.loads(Path("b.json").read_text())
    assert written["unverified"] == ["run/artifacts/ncnn-fp32"]
    rows = list(csv.DictReader(io.StringIO(Path("b.csv").read_text())))
    assert [list(row) for row in rows] == [list(row) for row in written["rows"]]
    by_name = {Path(row["artifact"]).name: row for row in written["rows"]}
    int8, fp32 = by_name["onnx-int8"], by_name["onnx-fp32"]
    assert (int8["ap50"], int8["ap"], int8["latency_all_threads_ms"], int8["run"]) == (0.5, 0.25, 4, "run")
    assert (int8["busy"], fp32["busy"]) == (False, True)
    assert (fp32["ap50"], fp32["latency_1_thread_ms"], fp32["latency_all_threads_ms"]) == (None, 20, None)
    assert {row["artifact"]: row["ap50"] for row in rows}["run/artifacts/onnx-fp32"] == ""
    assert workflow.leaderboard(["run"]).unverified == (Path("run/artifacts/ncnn-fp32"),)
    assert cli.main(["leaderboard", "run", "--json", "b.json/x"]) == 2
    assert "cannot be written" in capsys.readouterr().err
