"""The run folder: what survives a kill, a full disk and a reader, and what a mistake is told."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate import locks
from acclimate import run as runs
from acclimate.errors import AcclimateError
from acclimate.run import Candidate, ClassAP, Evaluation, Manifest, Notes, Run, Selection


def new(path: Path, digest: str = "d") -> Run:
    return Run.create(path, Manifest(verb="train", digest=digest))


def test_a_run_is_found_again(tmp_path: Path) -> None:
    made = new(tmp_path / "a" / "b")
    made.note(Notes(parameters=3))
    made.note(Notes(start="scratch"))
    with locks.held(tmp_path / "a" / "b", "train"):
        found = Run.open(tmp_path / "a" / "b")
    assert found.manifest == made.manifest
    assert found.manifest.notes == Notes(parameters=3, start="scratch")
    assert found.read("run.json")["notes"] == {"parameters": 3, "start": "scratch"}, "what was not noted is not there"
    assert found.manifest.status == "running"
    assert not found.done
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.manifest.created)
    assert found.manifest.machine["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_run_that_nobody_works_on_is_not_running(tmp_path: Path) -> None:
    """A killed process leaves what it had written last, and lets go of the lock."""
    new(tmp_path / "r")
    program = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from acclimate.run import Run, locked
        path = Path({str(tmp_path / "r")!r})
        with locked(path, "train"):
            print(Run.open(path).manifest.status, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("running\n", -signal.SIGKILL)
    assert Run.open(tmp_path / "r").manifest.status == "interrupted"
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "running"


def test_the_same_inputs_take_up_the_same_run(tmp_path: Path) -> None:
    made = new(tmp_path / "r")
    made.finish("interrupted", seconds=2.0)
    again = new(tmp_path / "r")
    assert again.manifest.created == made.manifest.created
    again.finish("done", seconds=3.0)
    assert again.done
    assert Run.open(tmp_path / "r").manifest.seconds == 5.0


def test_other_inputs_do_not_overwrite_a_run(tmp_path: Path) -> None:
    new(tmp_path / "r", "one").finish("done")
    before = (tmp_path / "r" / "run.json").read_bytes()
    with pytest.raises(AcclimateError, match=r"holds another run \(train, done\).*--out"):
        new(tmp_path / "r", "two")
    assert (tmp_path / "r" / "run.json").read_bytes() == before


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(AcclimateError, match="is not empty and is not a run"):
        new(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_kill_before_the_first_manifest_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".run.json.123.tmp").write_text("{")
    assert new(tmp_path).manifest.status == "running"


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(AcclimateError, match="cannot be written"):
            new(path)


def test_opening_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="not a run folder"):
        Run.open(tmp_path / "none")
    for damaged in ("", "{", "[]", '{"verb": 3, "status": "resting"}'):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(AcclimateError, match=r"run\.json: damaged") as caught:
            Run.open(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AcclimateError, match=r"run\.json: damaged"):
        Run.open(tmp_path)


def test_a_later_versions_manifest_can_be_read(tmp_path: Path) -> None:
    made = new(tmp_path)
    made.finish("done")
    values = {**json.loads((tmp_path / "run.json").read_text()), "colour": "blue"}
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert Run.open(tmp_path).manifest == made.manifest


def test_metrics_are_read_in_order_without_the_line_a_kill_cut(tmp_path: Path) -> None:
    run = new(tmp_path)
    assert run.metrics() == []
    run.log(step=1, loss=0.5)
    run.log(step=2, loss=0.25)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert run.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_what_is_logged_after_a_cut_line_is_kept(tmp_path: Path) -> None:
    run = new(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    run.log(step=3)
    assert [line["step"] for line in run.metrics()] == [1, 3]


def test_a_cut_line_that_is_valid_json_is_no_line(tmp_path: Path) -> None:
    run = new(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n3\n')
    assert run.metrics() == [{"step": 1}]
    run.rewind(5)
    assert run.metrics() == [{"step": 1}]


@pytest.mark.parametrize("damage", [b"\xff\0", b"[" * 5000, b'{"step": ' + b"9" * 5000 + b"}", b"3"])
def test_a_line_that_is_no_object_is_left_out(tmp_path: Path, damage: bytes) -> None:
    run = new(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 2}\n')
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    (tmp_path / "deep.json").write_text("[" * 5000)
    with pytest.raises(AcclimateError, match=r"deep\.json: damaged JSON"):
        runs.read_json(tmp_path / "deep.json")


def test_rewinding_forgets_later_steps_once(tmp_path: Path) -> None:
    run = new(tmp_path)
    for step in (1, 2, 3, 4):
        run.log(step=step)
    run.rewind(2)
    run.rewind(2)
    run.log(step=3)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_not_a_number_is_logged_and_read(tmp_path: Path) -> None:
    run = new(tmp_path)
    run.log(step=1, loss=float("nan"))
    (line,) = run.metrics()
    assert line["loss"] != line["loss"]


def test_evaluations_selection_and_artifacts_are_found(tmp_path: Path) -> None:
    run = new(tmp_path)
    assert (run.evaluations(), run.selection(), run.artifacts()) == ([], None, [])
    evaluation = Evaluation(
        data="fog",
        role="target",
        images=2,
        ap=0.3,
        ap50=0.5,
        ap75=0.2,
        classes={"car": ClassAP(ap=None, ap50=None, boxes=0)},
    )
    selection = Selection(rule="stability", chosen_step=4, candidates=(Candidate(step=4, scores={"stability": 0.5}),))
    run.write("evaluations/target.json", evaluation)
    run.write("selection.json", selection)
    run.write("artifacts/onnx-int8/artifact.json", {})
    (tmp_path / "artifacts" / "unfinished").mkdir()
    run.write("artifacts/.onnx-int8.k2j4h5g6/artifact.json", {})
    run.write("evaluations/.target.json.tmp.json", {})
    assert run.evaluations() == [evaluation]
    assert run.selection() == selection
    assert run.artifacts() == [tmp_path / "artifacts" / "onnx-int8"]


@pytest.mark.parametrize("name", ["evaluations/target.json", "selection.json"])
def test_a_damaged_result_is_told(tmp_path: Path, name: str) -> None:
    run = new(tmp_path)
    for text in ("{", '{"rule": 3}', "[]"):
        runs.write_text(tmp_path / name, text)
        with pytest.raises(AcclimateError, match=f"{name}: damaged") as caught:
            run.selection() if name == "selection.json" else run.evaluations()
        assert "\n" not in str(caught.value)


def test_a_line_of_the_log_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    run = new(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\n{"step": 2}\n')
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_reading_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"spec\.json: no such file"):
        new(tmp_path).read("spec.json")
    (tmp_path / "spec.json").mkdir()
    with pytest.raises(AcclimateError, match=r"spec\.json"):
        new(tmp_path).read("spec.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = runs.write_text(tmp_path / "a.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AcclimateError, match="the disk is full"):
        runs.write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        runs.write_text(pipe, "page")
        assert os.read(reader, 100) == b"page"
    finally:
        os.close(reader)
    with pytest.raises(AcclimateError, match="cannot be written"), runs.writing_folder(pipe):
        pass
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_full_device_is_told_while_logging(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    run = new(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(AcclimateError, match="the disk is full"):
        run.log(step=1)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT, errno.ENAMETOOLONG])
def test_a_refused_write_is_one_clear_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(AcclimateError, match=re.escape(str(tmp_path))), runs.writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_folder_where_a_file_should_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=f"{re.escape(str(tmp_path))}: is a folder; name the file to write"):
        runs.write_text(tmp_path, "text")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told_and_another_missing_file_is_not(tmp_path: Path) -> None:
    out = tmp_path / "gone"
    for missing in (out, out.parent, out / "metrics.jsonl"):
        with pytest.raises(AcclimateError, match="cannot be written"), runs.writing(out):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(missing))
    with pytest.raises(FileNotFoundError, match="compiler"), runs.writing(out):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "compiler")


def test_an_error_that_is_not_the_users_passes_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), runs.writing(tmp_path):
        raise ValueError("mine")
    with pytest.raises(BrokenPipeError), runs.writing(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "pipe")


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """A process is killed while it writes again and again; whatever is there afterwards is one of the versions."""
    file = tmp_path / "state.json"
    program = textwrap.dedent(f"""
        from pathlib import Path
        from acclimate.run import write_text
        number = 0
        while True:
            write_text(Path({str(file)!r}), '{{"number": %d, "rest": "%s"}}' % (number, "x" * 200_000))
            number += 1
    """)
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        for _ in range(5):
            seen = file.exists() and runs.read_json(file)["number"]
            while not file.exists() or runs.read_json(file)["number"] == seen:
                assert process.poll() is None
                time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert len(runs.read_json(file)["rest"]) == 200_000


def test_the_digest_follows_the_values_not_the_order(tmp_path: Path) -> None:
    assert runs.digest({"a": 1, "b": [1, 2]}) == runs.digest({"b": [1, 2], "a": 1})
    assert runs.digest({"a": 1}) != runs.digest({"a": 2})
    assert runs.digest("a", "b") != runs.digest("ab")
    assert runs.digest(tmp_path) == runs.digest(str(tmp_path))


def test_the_digest_is_the_same_in_another_process() -> None:
    program = "from acclimate.run import digest; print(digest({'b': (1, 2.5), 'a': None}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == runs.digest({"a": None, "b": [1, 2.5]})


@given(st.binary(max_size=2000))
def test_bytes_come_back_with_their_digest(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = runs.write_bytes(tmp_path_factory.getbasetemp() / "digest" / "f.bin", data)
    assert file.read_bytes() == data
    assert runs.file_digest(file) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "left",
    [
        "artifacts/.onnx-int8.k2j4h5g6/model.onnx",
        "artifacts/.onnx-int8.old.k2j4h5g6/artifact.json",
        "artifacts/.onnx-int8.k2j4h5g6.tmp/model.onnx",
        "checkpoints/.step_000004.safetensors.77.tmp",
        ".run.json.77.tmp",
        ".run.json.tmp",
        "search/.table.json.tmp",
    ],
)
def test_what_a_killed_process_left_is_swept_out_by_the_next_that_writes(tmp_path: Path, left: str) -> None:
    run = new(tmp_path / "r")
    run.write("artifacts/onnx-int8/artifact.json", {})
    (tmp_path / "r" / ".ipynb_checkpoints").mkdir()
    runs.write_text(tmp_path / "r" / "inner" / "run.json", "{}")
    theirs = runs.write_text(tmp_path / "r" / "inner" / ".run.json.tmp", "of another run")
    before = {path for path in (tmp_path / "r").rglob("*") if path.is_file()}
    runs.write_text(tmp_path / "r" / left, "x" * 10)
    with runs.locked(tmp_path / "r", "train"):
        assert {path for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    assert not [path for path in (tmp_path / "r" / "artifacts").iterdir() if path.name.startswith(".")]
    assert (tmp_path / "r" / ".ipynb_checkpoints").is_dir()
    assert theirs.exists(), "it may be at work"


def test_what_was_to_become_the_folder_is_swept_out_beside_it(tmp_path: Path) -> None:
    for name in (".r.k2j4h5g6.tmp", ".r.old.tmp", ".other.k2j4h5g6.tmp", ".r.more.k2j4h5g6.tmp"):
        runs.write_text(tmp_path / name / "file", "x")
    (tmp_path / ".r.json.tmp").write_text("of r.json, which another process may be writing")
    with runs.locked(tmp_path / "r", "data"):
        assert (tmp_path / "r" / "file").read_text() == "x", "the old one is put back where no new one came"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".other.k2j4h5g6.tmp", ".r.json.tmp", ".r.more.k2j4h5g6.tmp", "r"]


def test_nothing_below_a_name_that_begins_with_a_dot_is_listed(tmp_path: Path) -> None:
    for name in ("a/run.json", ".b/run.json", "c/.d.k2j4h5g6.tmp/run.json", "c/e/run.json", ".run.json"):
        runs.write_text(tmp_path / name, "{}")
    assert runs.listed(tmp_path, "*") == [tmp_path / "a", tmp_path / "c"]
    assert runs.listed(tmp_path, "**/run.json") == [tmp_path / "a/run.json", tmp_path / "c/e/run.json"]
    assert runs.listed(tmp_path / ".b", "*") == [tmp_path / ".b/run.json"]
    assert runs.listed(tmp_path / "none", "*") == []


def test_an_artifact_that_was_moved_aside_for_another_that_never_came_is_put_back(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    run.write("artifacts/.onnx-int8.old.k2j4h5g6/artifact.json", {"name": "whole"})
    with runs.locked(tmp_path / "r", "export"):
        assert run.artifacts() == [tmp_path / "r" / "artifacts" / "onnx-int8"]


def test_a_folder_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A reader that looks again and again sees a whole folder of one kind or the other, and never none."""
    folder = tmp_path / "artifact"
    program = textwrap.dedent(f"""
        from pathlib import Path
        from acclimate.run import writing_folder
        for number in range(300):
            with writing_folder(Path({str(folder)!r})) as place:
                (place / f"{{number % 2}}").write_text("whole")
    """)
    with runs.writing_folder(folder) as place:
        (place / "1").write_text("whole")
    seen: set[str] = set()
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while process.poll() is None:
            descriptor = os.open(folder, os.O_RDONLY)
            names = os.listdir(descriptor)  # noqa: PTH208 - of what was opened, wherever it is now
            os.close(descriptor)
            assert names in (["0"], ["1"], []), "the old one is emptied once it is out of the way"
            seen |= set(names)
    assert process.returncode == 0
    assert seen == {"0", "1"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_filled_stays_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "old").write_text("")
    place = runs.writing_folder(tmp_path / "artifact")
    (place.__enter__() / "new").write_text("")
    assert not place.__exit__(ValueError, ValueError("mine"), None)
    assert [path.name for path in tmp_path.rglob("*")] == ["artifact", "old"]


def test_a_folder_is_replaced_where_the_system_cannot_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "exchange", lambda one, other: False)
    for name in ("old", "new"):
        with runs.writing_folder(tmp_path / "artifact") as place:
            (place / name).write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["artifact", "new"]


def test_files_that_two_processes_write_at_once_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from acclimate.run import write_text
        for number in range(200):
            write_text(Path({str(file)!r}), sys.argv[1] * 100_000)
    """)
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            text = file.read_text()
            assert (len(text), len(set(text))) == (100_000, 1)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_verb_that_is_asked_to_end_ends_as_after_ctrl_c(tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), runs.locked(tmp_path / "r", "train"):  # noqa: PT012 - it may take a moment
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) is signal.SIG_DFL
    assert locks.holder(tmp_path / "r") is None
