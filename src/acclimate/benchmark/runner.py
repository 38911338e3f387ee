"""Doing what a suite asks for: here, in processes of this machine, or on a Ray cluster.

A run that ends appends its rows at once; rows that are there are not made again. Interrupted runs go on where they
stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from acclimate import stages, workflow
from acclimate.benchmark import table
from acclimate.benchmark.suite import Place, Suite, Task, available, image_list, load, plan, sets
from acclimate.config import DataConfig
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.run import Evaluation, Run, locked, write_text
from acclimate.terminal import Terminal

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

FEW = 50
"""A class with fewer boxes than this in the source cannot be learned there; `shared` columns leave it out."""

PATIENCE_S = 300.0
"""An interrupted process may need this long to end its step and save; then it is killed, which is safe too."""


@dataclass(frozen=True)
class Result:
    """What `run` leaves.

    Attributes:
        csv: the rows.
        table: the same as Markdown, with means, spreads and differences.
        failed: what a run that failed said, by the run's label.
    """

    csv: Path
    table: Path
    failed: dict[str, str]


def run(
    suite: str | Path | Suite,
    out: str | Path | None = None,
    *,
    jobs: int = 1,
    ray: bool = False,
    pairs: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    root: str | Path | None = None,
    console: Console | None = None,
) -> Result:
    """Run a suite, or the named part of it, as far as its rows are not there yet, and write its table.

    Args:
        suite: its file, the name of one that comes with the package, or one that was loaded.
        out: folder of the runs; by default runs/NAME.
        jobs: processes, with one torch thread each; 1 runs in this process.
        ray: run on the Ray cluster that RAY_ADDRESS names, or on this machine under Ray, instead of in `jobs`
            processes; its machines must share the file system.
        pairs: a part of the suite's; empty is all.
        methods: likewise.
        seeds: instead of the suite's; empty is those.
        root: folder of the data; by default the environment's ACCLIMATE_DATA, or the suite's.
        console: where progress and the table go.

    A run that fails does not stop the others; it is in the result. Interrupting leaves runs that the same call takes
    up.

    Raises:
        AcclimateError: the suite, the data or the CSV cannot be used.
    """
    stages.one_process("benchmark")
    suite = suite if isinstance(suite, Suite) else load(suite)
    place = Place.of(suite, out, root)
    say = _speaker(console)
    chosen, absent = available(suite, _some("pairs", suite.pairs, pairs), place)
    if absent and (not chosen or not any(pair.fallback for pair in suite.pairs.values())):
        for message in absent:
            say(message)
        listed = "" if console is not None else f": {' | '.join(absent)}"
        raise AcclimateError(
            f"{suite.name}: {len(absent)} part{'s' * (len(absent) > 1)} of its data not found below {place.root}; set "
            f"ACCLIMATE_DATA or --root where the data is elsewhere{listed}"
        )
    for message in absent:
        say(f"left out: {message}")
    wanted = plan(
        suite, place, chosen, _some("methods", suite.methods, methods), _some("seeds", suite.seeds, seeds, free=True)
    )
    tasks = _undone(wanted, place.csv)
    failed: dict[str, str] = {}
    if tasks:
        _check_roles(tasks)
        for pair in dict.fromkeys(task.pair for task in tasks):
            _prepare(suite, place, pair, console)
        workers: _Workers = _Ray() if ray else _Processes(jobs) if jobs > 1 else _Here(console)
        failed = _work(tasks, workers, console)
    file = place.csv.with_suffix(".md")
    text = "\n".join(table.tables(suite, table.read(place.csv))) + "\n"
    write_text(file, text)
    say(text)
    return Result(place.csv, file, failed)


def summary(suite: str | Path | Suite, out: str | Path | None = None) -> str:
    """The table of the rows that are there, as Markdown.

    Raises:
        AcclimateError: the suite or the CSV cannot be used.
    """
    suite = suite if isinstance(suite, Suite) else load(suite)
    return "\n".join(table.tables(suite, table.read(Place.of(suite, out).csv)))


def listing(
    suite: str | Path | Suite, out: str | Path | None = None, *, root: str | Path | None = None
) -> Iterator[str]:
    """What a suite compares, how far it is, and what data it lacks; a line each.

    Raises:
        AcclimateError: the suite or the CSV cannot be used.
    """
    suite = suite if isinstance(suite, Suite) else load(suite)
    place = Place.of(suite, out, root)
    if suite.title:
        yield suite.title
    done = {(row["pair"], row["method"], row["seed"]) for row in table.read(place.csv)}
    for pair in suite.pairs:
        yield f"pair {pair}"
        for name, method in suite.methods.items():
            seeds = [str(seed) for seed in suite.seeds if (pair, name, str(seed)) in done]
            yield f"  {name} ({method.role}): {len(seeds)} of {len(suite.seeds)} seeds done"
    chosen, absent = available(suite, suite.pairs, place)
    yield f"data below {place.root}: {', '.join(chosen) or 'nothing'} can run"
    yield from absent


def perform(task: Task, console: Console | None = None) -> None:
    """Do one run, or take it up where it stopped, measure it, and append its rows.

    Raises:
        AcclimateError, Interrupted: as the verbs do.
    """
    # Several calls may share a folder.
    with locked(task.run, "benchmark", wait=True):
        if task.method and not _undone([task], task.csv):
            return
        made = stages.take_place(task.run, lambda: _train(task, console), console)
        if task.method:
            table.append(task.csv, _rows(task, made))


def _train(task: Task, console: Console | None) -> Run:
    config = task.config
    if task.role == "source":
        return workflow.train(config, task.run, console=console)
    if task.role == "oracle":
        longer = config.train.model_copy(update={"steps": config.train.steps + config.schedule.steps})
        config = config.model_copy(update={"train": longer})
        return workflow.train(config, task.run, role="oracle", console=console)
    assert task.start is not None
    assert config.target is not None
    # What the adaptation is not told, it cannot read.
    blind = config.model_copy(update={"oracle": None, "source_test": None, "target_test": None})
    return workflow.adapt(task.start, config.target, task.run, config=blind, console=console)


def _rows(task: Task, made: Run) -> list[dict[str, Any]]:
    """One row, or three where a checkpoint was chosen: the last, the chosen one and the best in hindsight."""
    from acclimate.adapt.engine import checkpoints
    from acclimate.models import detector as models
    from acclimate.select.score import rank

    detector = models.to_device(models.load(made.path))
    selection = made.selection()
    files = checkpoints(made)
    steps = {"last": max(files)}
    if selection is not None:
        hindsight = {}
        for step, file in files.items():
            models.load_weights(detector, file)
            hindsight[step] = _evaluation(task, detector, "target").ap50
        selection = rank(selection, hindsight)
        made.write("selection.json", selection)
        steps |= {"chosen": selection.chosen_step, "hindsight": max(hindsight, key=lambda step: hindsight[step])}
    facts = _facts(task, made, detector)
    measured = {}
    for step in sorted(set(steps.values())):
        models.load_weights(detector, files[step])
        measured[step] = _measures(task, detector)
    # The oracle's training is the length of both.
    before = 0 if task.role == "oracle" else task.config.train.steps
    taus = selection.rank_correlation if selection is not None else {}
    return [
        {
            **facts,
            **measured[step],
            "checkpoint": name,
            "step": before + step,
            "tau_stability": f"{taus['stability']:.3f}" if "stability" in taus else "",
            "tau_agreement": f"{taus['agreement']:.3f}" if "agreement" in taus else "",
            "tau_consensus": f"{taus['consensus']:.3f}" if "consensus" in taus else "",
        }
        for name, step in steps.items()
    ]


def _measures(task: Task, detector: Detector) -> dict[str, Any]:
    from acclimate.data import formats

    assert task.config.source is not None
    images = formats.read(task.config.source)
    counts = stages.class_boxes(images)
    target = _evaluation(task, detector, "target")
    # An oracle knows the target's classes; where these are others, it has no score on the source.
    same = set(detector.spec.classes) == set(images.classes)
    source = _evaluation(task, detector, "source") if same and task.config.source_test is not None else None
    learnable = [c.ap50 for name, c in target.classes.items() if counts.get(name, 0) >= FEW and c.ap50 is not None]
    return {
        "target_ap50": f"{target.ap50:.4f}",
        "target_ap": f"{target.ap:.4f}",
        "source_ap50": f"{source.ap50:.4f}" if source is not None else "",
        "source_ap": f"{source.ap:.4f}" if source is not None else "",
        "target_ap50_shared": f"{statistics.mean(learnable):.4f}" if learnable else "",
        "classes": " ".join(f"{name}={c.ap50:.3f}" for name, c in target.classes.items() if c.ap50 is not None),
        "test_images": target.images,
    }


def _evaluation(task: Task, detector: Detector, role: workflow.Role) -> Evaluation:
    """AP on a domain's test images. Here, and nowhere else in a suite, target test labels are read."""
    from acclimate.data import formats
    from acclimate.data.dataset import part_of
    from acclimate.evaluate import evaluate_detector

    data = task.config.target_test if role == "target" else task.config.source_test
    assert data is not None
    truth = formats.read(data, detector.spec.classes, reading=detector.spec.reading)
    if task.test_images is not None:
        truth = part_of(truth, task.test_images, 0)
    return evaluate_detector(detector, truth, f"{role}_test", role)


def _facts(task: Task, made: Run, detector: Detector) -> dict[str, Any]:
    import torch

    from acclimate.models import detector as models

    config = task.config
    return {
        "pair": task.pair,
        "seed": task.seed,
        "method": task.method,
        "start": detector.spec.start,
        "image_size": "x".join(map(str, config.model.image_size)),
        "steps": config.train.steps + config.schedule.steps,
        "batch": config.train.batch_size,
        "minutes": f"{made.manifest.seconds / 60:.1f}",
        "processor": models.device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "role": task.role,
        "digest": task.digest,
    }


def _undone(tasks: Sequence[Task], file: Path) -> list[Task]:
    """Those whose rows are not in the CSV, and the source trainings that these start from.

    Raises:
        AcclimateError: a row that is there comes from other settings.
    """
    digests = {(row["pair"], row["method"], row["seed"]): row["digest"] for row in table.read(file)}
    left, starts = set(), set()
    for task in tasks:
        found = digests.get((task.pair, task.method, str(task.seed)))
        if task.method and found is None:
            left.add(task.label)
            starts.add(task.start)
        elif task.method and found != task.digest:
            raise AcclimateError(
                f"{file}: its rows of {task.label} come from other settings (digest {found}, now {task.digest}); "
                "delete these rows to run it anew, or choose another --out"
            )
    return [task for task in tasks if task.label in left or (not task.method and task.run in starts)]


def _check_roles(tasks: Sequence[Task]) -> None:
    from acclimate.adapt.methods import uses_target

    for task in tasks:
        if task.role == "source-only" and uses_target(task.config):
            raise AcclimateError(
                f"methods.{task.method}: is source-only, and its [adapt] or [augment] looks at the target; make its "
                "role adapted"
            )


def _prepare(suite: Suite, place: Place, pair: str, console: Console | None) -> None:
    """Generate a pair's scenes, list its images, and see that no test image is among those that are trained on."""
    from acclimate.data import formats

    scenes = suite.pairs[pair].scenes
    if scenes is not None:
        from acclimate.scenes.sets import wanted

        for name, condition, images, seed in wanted(scenes):
            folder = place.out / scenes.out / name
            workflow.scenes(
                folder, images, scenes.size, seed, condition, scenes.strength, scenes.field_of_view, console=console
            )
    domains = sets(suite.pairs[pair], place)
    for domain, data in (("source", domains.source), ("target", domains.target)):
        paths = formats.read(data).paths
        if domain == "target":
            shared = {path.resolve() for path in paths} & _paths(domains.target_test)
            if shared:
                raise AcclimateError(
                    f"{suite.name}: {pair}: {len(shared)} test images of the target are among its training images, "
                    f"such as {min(shared)}; name another `split` or set in target_test"
                )
        listed = "".join(f"{path.resolve()}\n" for path in paths)
        write_text(image_list(place, pair, "source" if domain == "source" else "target"), listed)


def _paths(data: DataConfig) -> set[Path]:
    from acclimate.data import formats

    return {path.resolve() for path in formats.read(data).paths}


def _some(what: str, known: Any, wanted: Sequence[Any], free: bool = False) -> list[Any]:
    """The wanted ones in the suite's order; all where nothing is named. Seeds are free: any will do."""
    wanted = _whole(wanted, known)
    unknown = [one for one in wanted if one not in known]
    if unknown and not free:
        raise AcclimateError(f"--{what}: {unknown[0]!r} is not in the suite; it has {', '.join(known)}")
    return [one for one in known if one in wanted or not wanted] + (unknown if free else [])


def _whole(parts: Sequence[Any], known: Any) -> list[Any]:
    """Names that were cut at their commas, as on the command line, put together again."""
    found: list[Any] = []
    rest = list(parts)
    while rest:
        lengths = (length for length in range(len(rest), 1, -1) if ", ".join(map(str, rest[:length])) in known)
        length = next(lengths, 0)
        found.append(", ".join(map(str, rest[:length])) if length else rest[0])
        rest = rest[length or 1 :]
    return found


def _speaker(console: Console | None) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False) if console is not None else None


class _Workers(Protocol):
    """What does tasks. `start` begins one, `ended` waits a moment and gives those that ended with what went wrong."""

    slots: int

    def start(self, task: Task) -> None: ...

    def ended(self) -> list[tuple[Task, str | None]]: ...

    def stop(self) -> None: ...


def attempt(task: Task, console: Console | None) -> str | None:
    """`perform`, with what went wrong as a line; so that one run that fails does not end the others."""
    try:
        perform(task, console)
    except AcclimateError as error:
        return str(error)
    except Exception as error:
        if console is not None:
            console.print_exception()
        return f"{type(error).__name__}: {error}"
    return None


class _Here:
    """One after the other in this process."""

    slots = 1

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._ended: list[tuple[Task, str | None]] = []

    def start(self, task: Task) -> None:
        self._ended.append((task, attempt(task, self._console)))

    def ended(self) -> list[tuple[Task, str | None]]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """There is nothing else to stop."""


@dataclass
class _Processes:
    """Processes of this machine, with one torch thread each. What they print goes to RUN.log beside the run."""

    slots: int
    command: tuple[str, ...] = (sys.executable, "-m", "acclimate.benchmark.worker")
    _running: dict[int, tuple[Task, subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=dict)

    def start(self, task: Task) -> None:
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        task.run.parent.mkdir(parents=True, exist_ok=True)
        log = open(log_file(task), "ab")  # noqa: SIM115 - closed when the process has ended
        # A session of its own: Ctrl-C reaches this process alone, which then asks each of them once.
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **single},
            start_new_session=True,
        )  # fmt: skip
        self._running[process.pid] = (task, process, log)
        assert process.stdin is not None
        # The pipe stays open: that it closes tells the worker that this process is gone.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(task.model_dump_json().encode() + b"\n")
            process.stdin.flush()

    def ended(self) -> list[tuple[Task, str | None]]:
        done = [pid for pid, (_, process, _) in self._running.items() if process.poll() is not None]
        if not done:
            time.sleep(0.2)
        ended = []
        for pid in done:
            task, process, log = self._running.pop(pid)
            self._close(process, log)
            ended.append((task, self._reason(task, process.returncode)))
        return ended

    def stop(self) -> None:
        for _, process, _ in self._running.values():
            process.send_signal(signal.SIGINT)
        until = time.monotonic() + PATIENCE_S
        try:
            for _, process, _ in self._running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        finally:
            for _, process, log in self._running.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
                self._close(process, log)
            self._running.clear()

    def _close(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        log.close()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    def _reason(self, task: Task, status: int) -> str | None:
        if status == 0:
            return None
        lines = log_file(task).read_text(errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("error: ") if lines else ""
        return f"{last if status == 2 and last else f'ended with status {status}'} (see {log_file(task)})"


class _Ray:
    """A Ray cluster, or Ray on this machine. All its machines must see the data and the runs under the same paths."""

    def __init__(self) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise AcclimateError(f"--ray needs the fleet extra (ray is missing): {hint('fleet')}") from None
        self._ray = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call, unused-ignore]
        gpus = int(resources.get("GPU", 0))
        self.slots = gpus or max(1, int(resources.get("CPU", 1)))
        self._perform = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(_on_ray)
        self._running: dict[Any, Task] = {}

    def start(self, task: Task) -> None:
        absolute: dict[str, Any] = {"run": task.run.absolute(), "csv": task.csv.absolute()}
        if task.start is not None:
            absolute["start"] = task.start.absolute()
        if task.config.target is not None:
            absolute["config"] = task.config.model_copy(update={"target": task.config.target.absolute()})
        self._running[self._perform.remote(task.model_copy(update=absolute).model_dump_json())] = task

    def ended(self) -> list[tuple[Task, str | None]]:
        done, _ = self._ray.wait(list(self._running), timeout=1.0)
        ended: list[tuple[Task, str | None]] = []
        for reference in done:
            task = self._running.pop(reference)
            try:
                ended.append((task, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                ended.append((task, str(error).strip().splitlines()[-1]))
        return ended

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference)
        self._ray.wait(list(self._running), num_returns=max(1, len(self._running)), timeout=PATIENCE_S)
        self._running.clear()


def _on_ray(text: str) -> str | None:
    import torch

    torch.set_num_threads(1)
    task = Task.from_json(text)
    task.run.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file(task), "a") as log:
        return attempt(task, Terminal(file=log, width=120))


def log_file(task: Task) -> Path:
    """Where a process writes what its task says."""
    return task.run.with_name(f"{task.run.name}.log")


def _work(tasks: Sequence[Task], workers: _Workers, console: Console | None) -> dict[str, str]:
    """Do all tasks, a source training before what starts from it; what went wrong, by label."""
    waiting, running = list(tasks), list[Task]()
    failed: dict[Path, str] = {}
    wrong: dict[str, str] = {}
    with _board(console, len(tasks), live=workers.slots > 1) as board:

        def end(task: Task, error: str | None) -> None:
            if error is not None:
                wrong[task.label] = error
                failed[task.run] = error
            board.ended(task, error)

        try:
            while waiting or running:
                unfinished = {task.run for task in [*waiting, *running] if not task.method}
                for task in list(waiting):
                    if task.start in failed:
                        waiting.remove(task)
                        end(task, f"not run, as {task.start} failed")
                    elif task.start not in unfinished and len(running) < workers.slots:
                        waiting.remove(task)
                        running.append(task)
                        board.started(task)
                        workers.start(task)
                        if workers.slots == 1:
                            break
                for task, error in workers.ended() if running else []:
                    running.remove(task)
                    end(task, error)
                board.tick(running)
        except BaseException:
            board.say("stopping; the runs under way save what they have")
            workers.stop()
            raise
    return wrong


class _Board:
    """Progress: a line for each task that starts or ends, and bars below them on a terminal."""

    def __init__(self, total: int, say: Callable[[str], None], bars: Progress | None) -> None:
        self._total, self._done = total, 0
        self.say, self._bars = say, bars
        self._all = bars.add_task("all runs", total=total, note="") if bars is not None else None
        self._rows: dict[str, Any] = {}
        self._began: dict[str, float] = {}

    def started(self, task: Task) -> None:
        self._began[task.label] = time.monotonic()
        if self._bars is None:
            self.say(f"{task.label} ...")
        else:
            self._rows[task.label] = self._bars.add_task(task.label, total=_steps(task), note="")

    def ended(self, task: Task, error: str | None) -> None:
        self._done += 1
        result = f"failed: {error}" if error is not None else _result(task)
        if task.label in self._began:
            result += f" ({(time.monotonic() - self._began[task.label]) / 60:.1f} min)"
        self.say(f"[{self._done}/{self._total}] {task.label}: {result}")
        if self._bars is not None and self._all is not None:
            if task.label in self._rows:
                self._bars.remove_task(self._rows.pop(task.label))
            self._bars.advance(self._all)

    def tick(self, running: Sequence[Task]) -> None:
        if self._bars is not None:
            for task in running:
                self._bars.update(self._rows[task.label], completed=_step(task))


@contextlib.contextmanager
def _board(console: Console | None, total: int, live: bool) -> Iterator[_Board]:
    say = _speaker(console)
    if console is None or not live or not console.is_terminal:
        yield _Board(total, say, None)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bars:
        yield _Board(total, say, bars)


def _steps(task: Task) -> int:
    train, schedule = task.config.train.steps, task.config.schedule.steps
    return {"source": train, "oracle": train + schedule}.get(task.role, schedule)


def _step(task: Task) -> int:
    """How far a run is that another process does: the last step in its log."""
    try:
        found = Run.open(task.run).metrics()
    except (AcclimateError, OSError):
        return 0
    return int(found[-1].get("step", 0)) if found else 0


def _result(task: Task) -> str:
    own = [r for r in table.read(task.csv) if (r["digest"], r["seed"]) == (task.digest, str(task.seed))]
    kept = {row["checkpoint"]: row for row in own if (row["pair"], row["method"]) == (task.pair, task.method)}
    row = kept.get("chosen") or kept.get("last")
    return f"target AP50 {100 * float(row['target_ap50']):.1f}" if row else "done"
