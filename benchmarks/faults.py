"""What is lost when things break: a table of trials, and how many tries each survives, in faults.csv.

    python benchmarks/faults.py                              # every trial, 20 tries each
    python benchmarks/faults.py --trials kill-train --tries 3
    python benchmarks/faults.py --summary

A trial is a function of a `Bench` that gives one line a try: empty where it was survived, else what was lost. The ones
here break what writes:

- `kill-VERB` kills the verb at a random file-system event (SIGKILL before a file is opened to be written, renamed or
  removed, or a folder made), then runs it again, undisturbed;
- `full-VERB` refuses every write from a random event on as a full disk does, then frees the disk and runs it again;
- `pair-VERB` starts the verb twice at the same time on one folder.

A try is survived where no traceback was printed, the verb ends as it does undisturbed, and the files that are there
then are those of an undisturbed run, the same weights and networks bit for bit, without anything half done beside them.

Trials of what comes from outside (packages, manifests, values, an agent) are in faults_foreign.py, in the same table. A
process that has loaded everything is forked for each call, so a try costs what the verb costs on a few small images.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import faults_foreign
import rows
from acclimate import __version__, cli, machine

CSV = Path(__file__).with_suffix(".csv")
TRIES = 20
KEPT = (".safetensors", ".onnx", ".jpg", ".zip")
"""Files that an undisturbed run writes the same, bit for bit."""
SIZE = (96, 128)


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb as it is tried.

    Attributes:
        arguments: its command line, in the folder of the project.
        status: how it ends, undisturbed; None where that depends on the machine's speed.
    """

    arguments: tuple[str, ...]
    status: int | None = 0


SHORT = ("train.steps=4", "train.batch_size=2", "train.warmup=1", "train.checkpoint_every=2", "train.workers=0")
VERBS = {
    "scenes": Verb(("scenes", "more", "--images", "4", "--height", "96", "--width", "128")),
    "train": Verb(("train", "job.toml", "--out", "trained", "seed=1")),
    "adapt": Verb(("adapt", "job/source", "--target", "fog/images", "--out", "again", "seed=1")),
    "distil": Verb(("distil", "job/source", "--student", "model.size=nano", "--out", "small", *SHORT)),
    "slim": Verb(("slim", "bank", "--target", "fog/images", "--out", "slimmed", "seed=1")),
    "search": Verb(
        ("search", "bank", "--target", "fog/images", "--budget", "budget.toml", "--out", "found",
         "--precision", "fp32", "--evaluations", "2")
    ),
    "evaluate": Verb(("evaluate", "job/source", "--data", "fog")),
    "export": Verb(("export", "job/adapted", "--precision", "int8", "--images", "2", "--calibration", "clear/images")),
    "package": Verb(("package", "job/adapted/artifacts/onnx-int8", "--out", "site.zip")),
    "verify": Verb(("verify", "job/adapted/artifacts/onnx-int8", "--data", "fog"), None),
    "predict": Verb(("predict", "job/adapted/artifacts/onnx-int8", "fog/images", "--out", "seen")),
    "report": Verb(("report", "job/source", "job/adapted", "--out", "page.html")),
    "run": Verb(("run", "job.toml", "schedule.steps=3"), None),
}  # fmt: skip
"""The verbs that write; each on a project with a finished job, a bank and two small sets."""

JOB = """
out = "job"
target = "fog/images"
source = { path = "clear" }
target_test = { path = "fog" }
model = { size = "nano", backbone = "lcnet_050", image_size = [64, 96], weights = "none" }
train = { steps = 4, batch_size = 2, warmup = 1, checkpoint_every = 2, log_every = 1, workers = 0 }
schedule = { steps = 4, batch_size = 2, warmup = 1, checkpoint_every = 2, log_every = 1, workers = 0 }
export = { precisions = ["int8"], calibration_images = 2 }
budget = { latency_ms = 100000, max_ap50_drop = 1.0 }
"""


@dataclass(slots=True)
class Bench:
    """What a trial works with.

    Attributes:
        folder: of its own.
        tries: how many times it tries.
        seed: of what is random.
    """

    folder: Path
    tries: int = TRIES
    seed: int = 0
    _project: Path | None = field(default=None)
    _count: int = 0

    @property
    def project(self) -> Path:
        """A folder with two small sets, a finished job, a bank, and what the verbs need beside; never written to."""
        if self._project is None:
            self._project = self.folder / "project"
            _make_project(self, self._project)
        return self._project

    def copy(self) -> Path:
        """A fresh copy of the project."""
        self._count += 1
        return Path(shutil.copytree(self.project, self.folder / f"copy-{self._count}", symlinks=True))

    def call(self, place: Path, arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> Ended:
        """Run `acclimate ARGUMENTS` in a forked process in `place`; `before` is called in that process first."""
        return self.finish(self.start(place, arguments, before))

    def start(self, place: Path, arguments: Sequence[str], before: Callable[[], None]) -> tuple[int, Path]:
        """Begin what `finish` waits for."""
        self._count += 1
        told = self.folder / f"told-{self._count}"
        pid = os.fork()
        if pid:
            return pid, told
        status = 99
        try:
            os.chdir(place)
            with open(told, "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.argv = ["acclimate", *arguments]
            before()
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def finish(self, started: tuple[int, Path]) -> Ended:
        """Wait for a call to end."""
        pid, told = started
        _, code = os.waitpid(pid, 0)
        text = told.read_text(errors="replace")
        told.unlink()
        return Ended(os.waitstatus_to_exitcode(code), text)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended: its exit status (minus the signal's number where one ended it) and all that it printed."""

    status: int
    text: str

    @property
    def problem(self) -> str:
        """The traceback's last line, or the first line of an unexpected end."""
        if "Traceback (most recent call last)" in self.text:
            return f"traceback: {self.text.strip().splitlines()[-1]}"
        return ""


Trial = Callable[[Bench], Iterator[str]]


def _make_project(bench: Bench, project: Path) -> None:
    from acclimate.scenes.sets import generate

    project.mkdir()
    for seed, (name, condition) in enumerate((("clear", None), ("fog", "fog"))):
        generate(project / name, 6, SIZE, seed, condition)
    (project / "job.toml").write_text(JOB)
    (project / "budget.toml").write_text("macs_m = 100000\nsize_mb = 1000\n")
    bank = ("model.kind=slimmable", "model.slimmable.choices=[0.5,1.0]")
    for arguments in (("run", "job.toml"), ("train", "job.toml", "--out", "bank", *bank)):
        done = bench.call(project, arguments)
        if done.status != 0:
            sys.exit(f"{' '.join(arguments)}: {done.text}")


def _events(then: Callable[[int], None]) -> Callable[[], None]:
    """Count the events that change a file system in this process, and call `then` with the number before each."""

    def install() -> None:
        count = 0
        busy = threading.RLock()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open":
                name, _, flags = arguments
                changes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
                if not changes or not isinstance(name, str | bytes | Path) or str(name).startswith("/dev"):
                    return
            elif event not in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}:
                return
            with busy:
                count += 1
                then(count)

        sys.addaudithook(hook)

    return install


def _undisturbed(bench: Bench, verb: Verb) -> tuple[Ended, int, dict[str, str]]:
    """How the verb ends, how many events it has, and what is there afterwards."""
    place = bench.copy()
    ours, theirs = os.pipe()
    done = bench.call(place, verb.arguments, _events(lambda count: os.write(theirs, b"x") and None))
    os.close(theirs)
    with open(ours, "rb") as told:
        count = len(told.read())
    left = _files(place)
    shutil.rmtree(place)
    if done.problem or (verb.status is not None and done.status != verb.status):
        sys.exit(f"{' '.join(verb.arguments)}: status {done.status}, undisturbed: {done.text}")
    return done, count, left


def _files(place: Path) -> dict[str, str]:
    """Every file below `place`, and a digest of those that are the same each time."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file():
            same = path.suffix in KEPT
            found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest() if same else ""
    return found


def _differs(before: dict[str, str], after: dict[str, str]) -> str:
    """What is other than after an undisturbed run; empty where nothing is."""
    for name in before.keys() - after.keys():
        return f"lost {name}"
    for name in sorted(after.keys() - before.keys()):
        return f"left {name}"
    return next((f"other content: {name}" for name, digest in before.items() if after[name] != digest), "")


def _judged(verb: Verb, wanted: Ended, again: Ended, before: dict[str, str], place: Path) -> str:
    """What a second, undisturbed call shows was lost."""
    if again.problem:
        return again.problem
    if (verb.status is not None and again.status != wanted.status) or again.status not in {0, 1}:
        return f"status {again.status}, not {wanted.status}: {again.text.strip().splitlines()[-1:]}"
    return _differs(before, _files(place))


def kill(name: str) -> Trial:
    """Kill a verb, and run it again."""

    def die(now: int, at: int) -> None:
        if now == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return _interrupted(name, name, die)


def full(name: str) -> Trial:
    """Fill the disk while a verb runs; free it, and run the verb again."""
    removing = {"unlink", "rmdir", "rmtree", "_rmtree_safe_fd", "_rmtree_safe_fd_step"}

    def refuse(now: int, at: int) -> None:
        # A full disk lets files be removed.
        frame = sys._getframe(3)
        if now >= at and frame.f_code.co_name not in removing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return _interrupted(name, f"full {name}", refuse, {0, 1, 2})


def _interrupted(
    name: str, draw: str, strike: Callable[[int, int], None], ends: Collection[int] | None = None
) -> Trial:
    """Let something happen from one of a verb's events on, and run it again.

    Args:
        name: the verb's.
        draw: what the events are drawn by.
        strike: called with the number of each event, and the one that was drawn.
        ends: statuses with which the verb may end then; None for any.
    """

    def trial(bench: Bench) -> Iterator[str]:
        verb = VERBS[name]
        wanted, count, left = _undisturbed(bench, verb)
        rng = random.Random(f"{bench.seed} {draw}")
        for _ in range(bench.tries):
            at = rng.randint(1, count)
            place = bench.copy()
            ended = bench.call(place, verb.arguments, _events(lambda now, at=at: strike(now, at)))  # type: ignore[misc]
            problem = ended.problem
            if not problem and ends is not None and ended.status not in ends:
                problem = f"status {ended.status} on a full disk"
            problem = problem or _judged(verb, wanted, bench.call(place, verb.arguments), left, place)
            yield f"event {at} of {count}: {problem}" if problem else ""
            shutil.rmtree(place)

    return trial


def pair(name: str) -> Trial:
    """Start a verb twice on one folder; one does the work, the other is refused or finds it done."""

    def trial(bench: Bench) -> Iterator[str]:
        verb = VERBS[name]
        wanted, _, left = _undisturbed(bench, verb)
        rng = random.Random(f"{bench.seed} pair {name}")
        for _ in range(bench.tries):
            place = bench.copy()
            first = bench.start(place, verb.arguments, lambda: None)
            time.sleep(rng.random() * 0.5)
            second = bench.start(place, verb.arguments, lambda: None)
            both = [bench.finish(one) for one in (first, second)]
            problem = next((one.problem for one in both if one.problem), "")
            refused = [one for one in both if one.status == 2]
            if not problem and (len(refused) > 1 or any("writes there" not in one.text for one in refused)):
                problem = f"refused: {refused[0].text.strip()}"
            problem = problem or _differs(left, _files(place))
            problem = problem or _judged(verb, wanted, bench.call(place, verb.arguments), left, place)
            yield problem
            shutil.rmtree(place)

    return trial


TRIALS: dict[str, Trial] = {
    **{f"kill-{name}": kill(name) for name in VERBS},
    **{f"full-{name}": full(name) for name in VERBS},
    **{f"pair-{name}": pair(name) for name in VERBS},
}
"""Name -> trial."""
FOREIGN = "foreign"
"""All that `faults_foreign` tries, which has rows of its own."""


def run(names: Sequence[str], tries: int, seed: int, out: Path) -> None:
    """Do the trials, each in the same project, and append a row for each."""
    import torch

    import acclimate.workflow

    # What a forked process need not load again.
    assert acclimate.workflow
    for module in ("adapt.engine", "adapt.methods", "models.dense", "models.slimmable", "select.score", "evaluate"):
        importlib.import_module(f"acclimate.{module}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="acclimate-faults-") as folder:
        bench = Bench(Path(folder), tries, seed)
        for name in names:
            began = time.monotonic()
            if name == FOREIGN:
                for one in faults_foreign.rows():
                    _record(out, one.name, one.tries, one.lost, "", seed, time.monotonic() - began)
                    began = time.monotonic()
                continue
            problems = list(TRIALS[name](bench))
            lost = [problem for problem in problems if problem]
            first = lost[0].replace(folder, "") if lost else ""
            _record(out, name, len(problems), len(lost), first, seed, time.monotonic() - began)


def _record(out: Path, name: str, tries: int, lost: int, first: str, seed: int, seconds: float) -> None:
    row = {
        "trial": name,
        "tries": tries,
        "survived": tries - lost,
        "lost": lost,
        "first": first,
        "seed": seed,
        "seconds": round(seconds),
        "version": __version__,
        "processor": machine.processor(),
    }
    rows.append(out, row)
    print(json.dumps(row), flush=True)


def summary(file: Path) -> Iterator[str]:
    """The last row of each trial, as a table in Markdown."""
    last = {row["trial"]: row for row in rows.read(file)}
    yield "| trial | tries | survived | lost |"
    yield "|---|---|---|---|"
    for name, row in last.items():
        told = f"{row['lost']}: {row['first']}" if row["lost"] != "0" else "0"
        yield f"| {name} | {row['tries']} | {row['survived']} | {told} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="What is lost when things break.")
    parser.add_argument("--trials", nargs="+", default=[*TRIALS, FOREIGN], choices=[*TRIALS, FOREIGN], metavar="TRIAL")
    parser.add_argument("--tries", type=int, default=TRIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="print the table and do nothing")
    options = parser.parse_args()
    if not options.summary:
        run(options.trials, options.tries, options.seed, options.out)
    print("\n".join(summary(options.out)))


if __name__ == "__main__":
    main()
