"""What is lost when things break: a table of trials, and how many tries each survives, in faults.csv.

    python benchmarks/faults.py                              # what has no row yet, or lost something, or too few tries
    python benchmarks/faults.py --part 0.25                  # a quarter of the tries
    python benchmarks/faults.py --trials kill-train
    python benchmarks/faults.py --summary

A trial is a function of a `Bench` that gives one line a try: empty where it was survived, else what was lost. The ones
here break what writes:

- `kill-VERB` kills the verb at a random file-system event (SIGKILL before a file is opened to be written, renamed or
  removed, or a folder made), then runs it again, undisturbed;
- `full-VERB` refuses every write from a random event on as a full disk does, then frees the disk and runs it again;
- `pair-VERB` starts the verb twice at the same time on one folder.

A try is survived where no traceback was printed, the verb ends as it does undisturbed, and the files that are there
then are those of an undisturbed run, the same weights, networks, pictures and labels bit for bit, without anything half
done beside them.

Trials of what comes from outside (packages, manifests, values, an agent) are in faults_foreign.py, in the same table. A
process that has loaded everything is forked for each call, so a try costs what the verb costs on a few small images;
what `_light` says is done once for all of them. A row is written when a trial ends, and the next call goes on after it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import cv2

import faults_foreign
import rows
from acclimate import __version__, cli, locks, machine
from acclimate.edge import bench as latencies
from acclimate.export import onnx as exporting
from acclimate.verification import measure

CSV = Path(__file__).with_suffix(".csv")
TRIES = {"kill": 20, "full": 6, "pair": 3}
"""How often each way of breaking is tried on each verb."""
SAME = (".safetensors", ".onnx", ".jpg", ".zip", ".txt", ".xml", ".yaml", ".toml")
SAME_NAMES = ("annotations.json", "detections.json", "instances_train.json", "ask.json", "spec.json", "selection.json")
"""Suffixes and names of files that an undisturbed run writes the same, bit for bit: no time stands in them."""
OWN_NAMES = ("device.toml",)
"""Names of files that have what is random in them."""
SIZE = (96, 128)
MODULES = "modules.txt"
"""Of the project: names of all modules that its job needed."""
PRELOADED = {"acclimate", "onnx", "onnxruntime", "onnxscript", "torch"}
"""Packages whose modules are loaded before processes are forked."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb as it is tried.

    Attributes:
        arguments: its command line, in the folder of the project.
        status: how it ends, undisturbed; None where that depends on the machine's speed.
        finished: what it says, with status 2, where its work is there already and is left alone.
        serves: the file that is there once it serves; it is then told to end.
    """

    arguments: tuple[str, ...]
    status: int | None = 0
    finished: str = ""
    serves: str = ""

    def started(self, events: Callable[[], None] = lambda: None) -> Callable[[], None]:
        """What the verb's process does first: it counts `events`, and is told to end once it serves."""

        def end() -> None:
            while not Path(self.serves).exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        def begin() -> None:
            if self.serves:
                Path(self.serves).unlink(missing_ok=True)
                threading.Thread(target=end, daemon=True).start()
            events()

        return begin


SHORT = ("train.steps=4", "train.batch_size=2", "train.warmup=1", "train.checkpoint_every=2", "train.workers=0")
INT8 = "job/adapted/artifacts/onnx-int8"
VERBS = {
    "scenes": Verb(("scenes", "more", "--images", "4", "--height", "96", "--width", "128")),
    "data": Verb(("data", "clear", "--sheet", "sheet.jpg")),
    "data --to": Verb(("data", "clear", "converted", "--to", "yolo"), finished="is there and not empty"),
    "init": Verb(("init", "clear", "fog/images", "--out", "proposed.toml"), finished="is there already"),
    "train": Verb(("train", "job.toml", "--out", "trained", "seed=1")),
    "label": Verb(("label", "fog/images", "--with", "job/source", "--out", "labels.json")),
    "weights": Verb(("weights", "tf_efficientnet_lite0", "--to", "fetched")),
    "take": Verb(("take", "job/source", "--out", "taken", "--data", "clear")),
    "adapt": Verb(("adapt", "job/source", "--target", "fog/images", "--out", "again", "seed=1")),
    "ask": Verb(("ask", "job/source", "--target", "fog/images", "--out", "asked", "--frames", "2")),
    "distil": Verb(("distil", "job/source", "--student", "job.toml", "--out", "small", *SHORT)),
    "slim": Verb(("slim", "bank", "--target", "fog/images", "--out", "slimmed", "seed=1")),
    "search": Verb(
        ("search", "bank", "--target", "fog/images", "--budget", "budget.toml", "--out", "found",
         "--precision", "fp32", "--evaluations", "2")
    ),
    "tune": Verb(("tune", "tune.toml")),
    "evaluate": Verb(("evaluate", "job/source", "--data", "fog")),
    "export": Verb(("export", "job/adapted", "--precision", "int8", "--images", "2", "--calibration", "clear/images")),
    "package": Verb(("package", INT8, "--out", "packed.zip")),
    "package of a package": Verb(("package", "site.zip", "--out", "unpacked"), finished="is there already"),
    "verify": Verb(("verify", INT8, "--data", "fog", "--again"), None),
    "verify of a package": Verb(("verify", "site.zip", "--data", "fog"), None),
    "predict": Verb(("predict", INT8, "fog/images", "--out", "seen")),
    "watch": Verb(("watch", INT8, "--source", "fog/images", "--once", "--no-page", "--out", "watched")),
    "agent": Verb(("agent", "--home", "home", "--bind", "127.0.0.1:0"), serves="home/device.toml"),
    "leaderboard": Verb(("leaderboard", "job", "--json", "board.json", "--csv", "board.csv")),
    "report": Verb(("report", "job/source", "job/adapted", "--out", "page.html")),
    "run": Verb(("run", "job.toml", "schedule.steps=3"), None),
    "benchmark": Verb(("benchmark", "suite.toml", "--out", "suite")),
}  # fmt: skip
"""The verbs that write; each on a project with a finished job, a bank, a package and two small sets."""

JOB = """
out = "job"
target = "fog/images"
source = { path = "clear" }
target_test = { path = "test" }
model = { size = "nano", backbone = "lcnet_050", image_size = [64, 96], weights = "none" }
train = { steps = 4, batch_size = 2, warmup = 1, checkpoint_every = 2, log_every = 1, workers = 0 }
schedule = { steps = 4, batch_size = 2, warmup = 1, checkpoint_every = 2, log_every = 1, workers = 0 }
export = { precisions = ["int8"], calibration_images = 2 }
budget = { latency_ms = 100000, max_ap50_drop = 1.0 }
"""
TUNE = f"""
{JOB}
[tune]
trials = 2

[tune.ranges]
"schedule.lr" = {{ low = 1e-4, high = 1e-3, log = true }}
"""
BUDGET = "macs_m = 100000\n"
SUITE = """
name = "one"
root = "."
reference = "source-only"
seeds = [0]
train = { steps = 4, batch_size = 2, warmup = 1, checkpoint_every = 2, workers = 0 }
schedule = { steps = 4, batch_size = 2, warmup = 1, checkpoint_every = 2, workers = 0 }
model = { size = "nano", backbone = "lcnet_050", image_size = [64, 96], weights = "none" }

[pairs."clear->fog"]
source = { path = "clear" }
target = { path = "fog" }
source_test = { path = "clear" }
target_test = { path = "test" }

[methods.source-only]
role = "source-only"
adapt = { teacher = "none" }
"""


@dataclass(slots=True)
class Bench:
    """What a trial works with.

    Attributes:
        folder: of its own.
        project: a folder with two small sets, a finished job, a bank, and what the verbs need beside; never written to.
        part: of the tries that `TRIES` says.
        seed: of what is random.
        undisturbed: what `_undisturbed` found out, by command.
    """

    folder: Path
    project: Path
    part: float = 1.0
    seed: int = 0
    undisturbed: dict[tuple[str, ...], tuple[Ended, int, dict[str, str]]] = field(default_factory=dict)
    _count: int = 0

    def times(self, kind: str) -> range:
        """One for each try."""
        return range(_tries(kind, self.part))

    def copy(self) -> Path:
        """A fresh copy of the project."""
        self._count += 1
        return Path(shutil.copytree(self.project, self.folder / f"copy-{self._count}", symlinks=True))

    def call(
        self,
        place: Path,
        arguments: Sequence[str],
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> Ended:
        """Run `acclimate ARGUMENTS` in a forked process in `place`; `before` is called in that process first, `after`
        when the verb has ended."""
        return self.finish(self.start(place, arguments, before, after))

    def start(
        self,
        place: Path,
        arguments: Sequence[str],
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> tuple[int, Path]:
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
            after()
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
            return f"traceback: {self.last}"
        return ""

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return (self.text.strip().splitlines() or ["nothing was said"])[-1]


Trial = Callable[[Bench], Iterator[str]]


def _tries(kind: str, part: float) -> int:
    return max(1, round(part * TRIES.get(kind, 1)))


def _light(graphs: Path) -> None:
    """Keep between calls what is long and writes nothing of a run: the conversion of a network, by its weights; and
    which package a module comes from. Latencies are measured on two images in the process of the verb."""
    write_graph = exporting.write_graph

    def kept(frozen: Any, file: Path) -> None:
        import torch

        state = hashlib.sha256(repr(frozen.spec).encode())
        for name, tensor in frozen.state_dict().items():
            state.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        graph = graphs / f"{state.hexdigest()}.onnx"
        if not graph.exists():
            made = graphs / f"{os.getpid()}.onnx"
            write_graph(frozen, made)
            made.rename(graph)
        shutil.copyfile(graph, file)

    graphs.mkdir()
    exporting.write_graph = kept
    measure.bench_apart = lambda folder, paths, threads, runs: latencies.bench(folder, paths, threads, 2, 1)
    metadata.packages_distributions = functools.cache(metadata.packages_distributions)
    metadata.packages_distributions()


def _make_project(bench: Bench, project: Path) -> None:
    from acclimate.scenes.sets import generate

    project.mkdir(parents=True)
    for seed, (name, condition) in enumerate((("clear", None), ("fog", "fog"), ("test", "fog"))):
        generate(project / name, 6, SIZE, seed, condition)
    for name, text in (("job.toml", JOB), ("tune.toml", TUNE), ("suite.toml", SUITE), ("budget.toml", BUDGET)):
        (project / name).write_text(text)
    bank = ("model.kind=slimmable", "model.slimmable.choices=[0.5,1.0]")
    modules = project / MODULES
    for arguments in (
        ("train", "job.toml", "--out", "bank", *bank),
        ("run", "job.toml"),
        ("package", INT8, "--out", "site.zip"),
    ):
        done = bench.call(project, arguments, after=lambda: modules.write_text("\n".join(sys.modules)))
        if done.status != 0:
            sys.exit(f"{' '.join(arguments)}: {done.text}")
        _load(modules)


def _load(modules: Path) -> None:
    """Load what was loaded where the project was made: it need not be in every process that is forked from now on."""
    for name in modules.read_text().splitlines():
        if name.partition(".")[0] in PRELOADED:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


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
    """How the verb ends, how many events it has, and what is there afterwards; found out once."""
    if verb.arguments in bench.undisturbed:
        return bench.undisturbed[verb.arguments]
    place = bench.copy()
    ours, theirs = os.pipe()
    done = bench.call(place, verb.arguments, verb.started(_events(lambda count: os.write(theirs, b"x") and None)))
    os.close(theirs)
    with open(ours, "rb") as told:
        count = len(told.read())
    left = _files(place)
    shutil.rmtree(place)
    if done.problem or (verb.status is not None and done.status != verb.status):
        sys.exit(f"{' '.join(verb.arguments)}: status {done.status}, undisturbed: {done.text}")
    bench.undisturbed[verb.arguments] = done, count, left
    return done, count, left


def _files(place: Path) -> dict[str, str]:
    """Every file below `place`, and a digest of those that are the same each time."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file():
            content = b""
            if (path.suffix in SAME or path.name in SAME_NAMES) and path.name not in OWN_NAMES:
                # Lists of images have whole paths.
                content = path.read_bytes().replace(str(place).encode(), b"")
            found[str(path.relative_to(place))] = hashlib.sha256(content).hexdigest()
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
    finished = verb.finished and again.status == 2 and verb.finished in again.text
    if not finished and (again.status not in {0, 1} or (verb.status is not None and again.status != wanted.status)):
        return f"status {again.status}, not {wanted.status}: {again.last}"
    return _differs(before, _files(place))


def _killed(at: int) -> Callable[[int], None]:
    """Before the event number `at` the process is no more."""

    def strike(now: int) -> None:
        if now == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def _refused(at: int) -> Callable[[int], None]:
    """From the event number `at` on the disk is full, which lets files be removed."""
    removing = {"unlink", "rmdir", "rmtree", "_rmtree_safe_fd", "_rmtree_safe_fd_step"}

    def strike(now: int) -> None:
        if now >= at and sys._getframe(2).f_code.co_name not in removing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return strike


def broken(kind: str, name: str, strikes: Callable[[int], Callable[[int], None]], endings: set[int]) -> Trial:
    """Break a verb at a random event, which must end it in one of `endings`; then run it again."""

    def trial(bench: Bench) -> Iterator[str]:
        verb = VERBS[name]
        wanted, count, left = _undisturbed(bench, verb)
        rng = random.Random(f"{bench.seed} {kind} {name}")
        for _ in bench.times(kind):
            at = rng.randint(1, count)
            place = bench.copy()
            ended = bench.call(place, verb.arguments, verb.started(_events(strikes(at))))
            problem = ended.problem
            if not problem and ended.status not in endings:
                problem = f"status {ended.status}: {ended.last}"
            problem = problem or _judged(verb, wanted, bench.call(place, verb.arguments, verb.started()), left, place)
            yield f"event {at} of {count}: {problem}" if problem else ""
            shutil.rmtree(place)

    return trial


def pair(name: str) -> Trial:
    """Start a verb twice on one folder; one does the work, the other is refused or finds it done."""

    def trial(bench: Bench) -> Iterator[str]:
        verb = VERBS[name]
        wanted, _, left = _undisturbed(bench, verb)
        rng = random.Random(f"{bench.seed} pair {name}")
        for _ in bench.times("pair"):
            place = bench.copy()
            first = bench.start(place, verb.arguments, verb.started())
            time.sleep(rng.random() * 0.5)
            second = bench.start(place, verb.arguments, verb.started())
            both = [bench.finish(one) for one in (first, second)]
            problem = next((one.problem for one in both if one.problem), "")
            refused = [one for one in both if one.status == 2]
            told = ("writes there", *([verb.finished] if verb.finished else []))
            unclear = [one for one in refused if not any(text in one.text for text in told)]
            if not problem and (len(refused) > 1 or unclear):
                problem = f"refused: {(unclear or refused)[0].last}"
            problem = problem or _differs(left, _files(place))
            problem = problem or _judged(verb, wanted, bench.call(place, verb.arguments, verb.started()), left, place)
            yield problem
            shutil.rmtree(place)

    return trial


ENDINGS = {0, 1, 2, 3}
"""How a verb may end on a full disk: it may have been done, or nothing that it needs was to be written."""
TRIALS: dict[tuple[str, str], Trial] = {
    **{("kill", name): broken("kill", name, _killed, {-signal.SIGKILL, 0, 1, 3}) for name in VERBS},
    **{("full", name): broken("full", name, _refused, ENDINGS) for name in VERBS},
    **{("pair", name): pair(name) for name in VERBS},
}
"""(kind, verb) -> trial."""
FOREIGN = ("foreign", "")
"""All that `faults_foreign` tries, which has rows of its own."""


def run(
    trials: Sequence[tuple[str, str]], part: float, seed: int, out: Path, jobs: int = 1, project: Path | None = None
) -> None:
    """Do the trials, those of a verb one after the other and `jobs` verbs at a time, and write a row for each."""
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # a forked process that resizes the pool waits for threads that it does not have
    verbs: dict[str, list[tuple[str, str]]] = {}
    for kind, name in trials:
        verbs.setdefault(name, []).append((kind, name))
    with tempfile.TemporaryDirectory(prefix="acclimate-faults-") as folder:
        project = project or Path(folder, "project")
        bench = Bench(Path(folder), project, part, seed)
        if any(trial != FOREIGN for trial in trials):
            _light(Path(folder, "graphs"))
            if not (project / "site.zip").exists():
                _make_project(bench, project)
            _load(project / MODULES)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
            for done in [pool.submit(_do, bench, several, out) for several in verbs.values()]:
                done.result()


def _do(bench: Bench, trials: Sequence[tuple[str, str]], out: Path) -> None:
    """Trials of one verb, with copies of the project in a folder of their own."""
    root = bench.folder
    bench = replace(bench, folder=Path(tempfile.mkdtemp(dir=root)), undisturbed={})
    for kind, name in trials:
        began = time.monotonic()
        if (kind, name) == FOREIGN:
            for one in faults_foreign.rows():
                _record(out, one.kind, one.what, one.tries, one.lost, "", bench.seed, time.monotonic() - began)
                began = time.monotonic()
            continue
        problems = list(TRIALS[kind, name](bench))
        lost = [problem for problem in problems if problem]
        first = lost[0].replace(str(root), "") if lost else ""
        _record(out, kind, name, len(problems), len(lost), first, bench.seed, time.monotonic() - began)
    shutil.rmtree(bench.folder)


def _record(out: Path, kind: str, what: str, tries: int, lost: int, first: str, seed: int, seconds: float) -> None:
    row = {
        "kind": kind,
        "what": what,
        "tries": tries,
        "survived": tries - lost,
        "lost": lost,
        "first": first,
        "seed": seed,
        "seconds": round(seconds),
        "version": __version__,
        "processor": machine.processor(),
    }
    with locks.held(out, "faults", wait=True):
        others = [one for one in rows.read(out) if (one["kind"], one["what"]) != (kind, what)]
        out.unlink(missing_ok=True)
        for one in [*others, row]:
            rows.append(out, one)
    print(json.dumps(row), flush=True)


def summary(file: Path = CSV) -> Iterator[str]:
    """Tries, and how many of them lost something, as tables in Markdown: of each verb, and of what is foreign."""
    cells = {(row["kind"], row["what"]): _cell(row) for row in rows.read(file)}
    yield "| verb | killed | disk full | two at once |"
    yield "|---|---|---|---|"
    for name in VERBS:
        told = [cells.get((kind, name), "") for kind in TRIES]
        if any(told):
            yield f"| {name} | {' | '.join(told)} |"
    yield "\n| what is foreign | tries |"
    yield "|---|---|"
    for kind, what in faults_foreign.KINDS:
        if (kind, what) in cells:
            yield f"| {kind} ({what}) | {cells[kind, what]} |"


def _cell(row: dict[str, str]) -> str:
    return row["tries"] if row["lost"] == "0" else f"{row['tries']}, {row['lost']} lost: {row['first']}"


def left_to_do(file: Path, part: float) -> list[tuple[str, str]]:
    """The trials that have no row, or lost something, or were tried less often than they are to be."""
    fine = {
        (row["kind"], row["what"])
        for row in rows.read(file)
        if row["lost"] == "0" and int(row["tries"]) >= _tries(row["kind"], part)
    }
    foreign = [FOREIGN] if not fine >= set(faults_foreign.KINDS) else []
    return [*(trial for trial in TRIALS if trial not in fine), *foreign]


def main() -> None:
    named = {"-".join(filter(None, trial)).replace(" ", "-"): trial for trial in (*TRIALS, FOREIGN)}
    parser = argparse.ArgumentParser(description="What is lost when things break.")
    parser.add_argument("--trials", nargs="+", choices=named, metavar="TRIAL", help="default: what is left to do")
    parser.add_argument("--part", type=float, default=1.0, help=f"of the tries {TRIES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="verbs that are tried at the same time")
    parser.add_argument("--project", type=Path, help="the project's folder; made where there is none, and kept")
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="print the table and do nothing")
    options = parser.parse_args()
    if not options.summary:
        wanted = [named[name] for name in options.trials] if options.trials else left_to_do(options.out, options.part)
        run(wanted, options.part, options.seed, options.out, options.jobs, options.project)
    print("\n".join(summary(options.out)))


if __name__ == "__main__":
    main()
