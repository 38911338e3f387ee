"""One function a verb. Each reads run folders and writes one; nothing else passes between verbs.

Functions that train need the `train` extra; heavy imports wait until a verb runs.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from acclimate.config import Budget, Config, DataConfig, merge, parse
from acclimate.errors import AcclimateError
from acclimate.run import Evaluation, Manifest, Run, digest, file_digest, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    from acclimate.adapt.objective import GradientTransform, Objective, Term
    from acclimate.data.dataset import Loader
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.models.detector import Detector
    from acclimate.verify import Verification

log = logging.getLogger(__name__)

Role = Literal["source", "target"]


def train(
    config: Config, out: Path, *, role: Literal["source", "oracle"] = "source", console: Console | None = None
) -> Run:
    """Train a detector on the labelled source images of `config`, or go on with a run that was interrupted.

    With `role="oracle"` it trains on `config.oracle`, the labelled target images, for comparison alone. The run keeps
    the averaged weights of the last step: no labelled image chooses a checkpoint.

    Raises:
        AcclimateError: the configuration or the data cannot be used, or `out` holds something else.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    import torch

    from acclimate.adapt.engine import accelerator
    from acclimate.adapt.objective import Objective
    from acclimate.adapt.supervised import Supervised
    from acclimate.data import formats
    from acclimate.data.dataset import Loader
    from acclimate.models import detector as models

    data = config.source if role == "source" else config.oracle
    if data is None:
        raise AcclimateError(f"the config names no `{role}` data set to train on; add a [{role}] section with a path")
    images = formats.read(data)
    identity = digest("train", role, _plain(config, "seed", "model", "augment", "train"), _labelled_digest(images))
    acc = accelerator(config.train.precision)
    run = _start(acc, out, Manifest(verb="train", digest=identity, seed=config.seed, notes={"role": role}), console)
    if run.done:
        return run
    torch.manual_seed(config.seed)
    detector = models.build(models.specify(config.model, images.classes), config.model.weights)
    objective = Objective(detector, [Supervised()], config.train.ema, warm=True)
    loader = Loader(
        images, None, detector.spec.image_size, config.augment, config.train, config.seed,
        acc.process_index, acc.num_processes,
    )  # fmt: skip
    facts = {
        "start": detector.spec.start,
        "source": _describe(images),
        "class_boxes": _class_boxes(images),
        "parameters": models.parameters(detector),
        "repeat": _repeat(),
    }
    with _running(run, acc, config, facts):
        _fit(run, objective, loader, config.train, acc, console, title="train" if role == "source" else "oracle")
        if acc.is_main_process:
            models.save(objective.average, run.path)
    return run


def adapt(
    source: Path,
    target: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    config: Config | None = None,
    console: Console | None = None,
) -> Run:
    """Adapt the detector of the run `source` to the unlabelled images in `target`.

    The configuration is the source run's (or `config`), changed by the `key=value` of `overrides`; its `schedule` is
    the adaptation's. The
    checkpoint is chosen by a label-free score on target images (`select.score`); a method that uses no target image
    (the fair source-only baseline: further source training of the same length) keeps its last one. No label of the target is read: the
    target is an `UnlabelledSet`, which has none.

    Raises:
        AcclimateError: `source` is no finished run, `target` has no image, or an override does not fit.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    import torch

    from acclimate.adapt.engine import accelerator, checkpoints
    from acclimate.adapt.objective import Objective
    from acclimate.data import formats
    from acclimate.data.dataset import Loader
    from acclimate.models import detector as models
    from acclimate.select.score import choose_checkpoint

    parent = _finished(source)
    if config is None or overrides:
        values = parent.read("config.json") if config is None else config.model_dump(mode="json")
        config = parse(Config, merge(values, overrides), where="the source run's config with overrides")
    config = config.model_copy(update={"target": target})
    detector = models.load(parent.path)
    if config.source is None:
        raise AcclimateError(
            f"{source}: its configuration names no source data set, and adaptation keeps it in the mix"
        )
    images = formats.read(config.source, detector.spec.classes)
    unlabelled = formats.unlabelled(target)
    identity = digest(
        "adapt",
        _plain(config, "seed", "augment", "adapt", "schedule"),
        _labelled_digest(images),
        _unlabelled_digest(unlabelled),
        file_digest(parent.path / "model.safetensors"),
    )
    acc = accelerator(config.schedule.precision)
    manifest = Manifest(verb="adapt", digest=identity, parents=(str(source),), seed=config.seed)
    run = _start(acc, out, manifest, console)
    if run.done:
        return run
    torch.manual_seed(config.seed)
    method = terms(config)
    objective = Objective(detector, method, config.schedule.ema, warm=False)
    uses_target = config.augment.style > 0 or any(view.startswith("target") for view in objective.views)
    loader = Loader(
        images, unlabelled if uses_target else None, detector.spec.image_size, config.augment, config.schedule, config.seed,
        acc.process_index, acc.num_processes,
    )  # fmt: skip
    facts = {
        "start": f"the source run {source}",
        "source": _describe(images),
        "target": {"images": len(unlabelled), "problems": [str(p) for p in unlabelled.problems][:20]},
        "method": [term.name for term in method],
        "parameters": models.parameters(detector),
        "repeat": _repeat(),
    }
    with _running(run, acc, config, facts):
        _fit(run, objective, loader, config.schedule, acc, console, title="adapt")
        if acc.is_main_process:
            kept = objective.average
            if uses_target:
                if console is not None:
                    console.print("choosing the checkpoint without labels", style="dim")
                selection = choose_checkpoint(kept, checkpoints(run), unlabelled.paths, config.augment, config.seed)
                run.write("selection.json", selection)
            models.save(kept, run.path)
    return run


def terms(config: Config) -> list[Term]:
    """The adaptation method that `config.adapt` describes, as a list of terms.

    Raises:
        AcclimateError: no term is left.
    """
    from acclimate.adapt.supervised import Supervised
    from acclimate.adapt.teacher import Teacher

    method: list[Term] = []
    if config.adapt.supervised > 0:
        method.append(Supervised(config.adapt.supervised))
    if config.adapt.teacher is not None:
        method.append(Teacher(config.adapt.teacher))
    if not method:
        raise AcclimateError("adapt: every term is off; set adapt.supervised above 0 or keep adapt.teacher")
    return method


def evaluate(
    path: Path, data: DataConfig, name: str, role: Role, *, hindsight: bool = False, console: Console | None = None
) -> Evaluation:
    """AP of a run's eager detector on a labelled set; saved as evaluations/NAME.json of the run.

    With `hindsight` every checkpoint of the run is evaluated too, and selection.json learns how well each label-free
    score ranked them. This is the place, with `verify`, where target labels are read; nothing chooses by it.

    Raises:
        AcclimateError: the run is not finished or the set cannot be used.
    """
    from acclimate.adapt.engine import checkpoints
    from acclimate.data import formats
    from acclimate.evaluate import evaluate_detector
    from acclimate.models import detector as models
    from acclimate.select.score import rank

    run = _finished(path)
    detector = _to_device(models.load(run.path))
    truth = formats.read(data, detector.spec.classes)
    result = evaluate_detector(detector, truth, name, role)
    run.write(f"evaluations/{name}.json", result)
    selection = run.selection()
    if hindsight and selection is not None:
        scores = {}
        for step, file in checkpoints(run).items():
            models.load_weights(detector, file)
            scores[step] = evaluate_detector(detector, truth, name, role).ap50
        run.write("selection.json", rank(selection, scores))
    if console is not None:
        console.print(f"{run.path.name} on {name}: AP50 {result.ap50:.3f}, AP {result.ap:.3f} ({result.images} images)")
    return result


def export(
    path: Path,
    *,
    runtime: str = "onnx",
    precision: Literal["fp32", "fp16", "int8"] = "int8",
    calibration: Path | None = None,
    images: int = 128,
    console: Console | None = None,
) -> Path:
    """Export a finished run's detector as an artifact in its artifacts/ folder; the artifact's folder.

    INT8 is calibrated on `images` of the unlabelled images in `calibration`, by default the target images that the
    run was adapted to. An artifact that is already there from the same weights and options is kept.

    Raises:
        AcclimateError: the run is not finished, the runtime or precision is not to be had, or INT8 lacks images.
    """
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.edge.artifact import Artifact
    from acclimate.models import detector as models
    from acclimate.runtimes.base import find

    run = _finished(path)
    config = Config.model_validate(run.read("config.json"))
    chosen: tuple[Path, ...] = ()
    if precision == "int8":
        calibration = calibration or config.target
        if calibration is None:
            raise AcclimateError(f"{path}: INT8 needs images to calibrate on; give --calibration FOLDER_OF_IMAGES")
        chosen = choose(formats.unlabelled(calibration).paths, images, config.seed)
    folder = run.path / "artifacts" / f"{runtime}-{precision}"
    identity = digest(file_digest(run.path / "model.safetensors"), runtime, precision, [str(p) for p in chosen])
    if (folder / "artifact.json").is_file():
        kept = Artifact.open(folder)
        if kept.manifest.notes.get("identity") == identity:
            return folder
    if console is not None:
        console.print(f"exporting {runtime} {precision}" + (f", calibrated on {len(chosen)} images" if chosen else ""))
    detector = models.load(run.path)
    artifact = find(runtime).export(detector, folder, precision, chosen)
    notes = {**artifact.manifest.notes, "identity": identity}
    manifest = artifact.manifest.model_copy(update={"source_run": str(run.path), "notes": notes})
    write_text(folder / "artifact.json", manifest.model_dump_json(indent=1) + "\n")
    return folder


def verify(
    artifact: Path,
    data: Sequence[tuple[DataConfig, str, Role]] = (),
    budget: Budget | None = None,
    *,
    console: Console | None = None,
) -> Verification:
    """Measure an artifact on its own runtime: accuracy against the eager model, parity, latency, size, memory.

    Args:
        artifact: an artifact's folder.
        data: labelled sets, each with a name and its domain; none measures latency and size alone.
        budget: what must hold; None measures without a verdict.

    Raises:
        AcclimateError: the artifact is damaged, or a set cannot be used.
    """
    from acclimate import verify as verification
    from acclimate.data import formats
    from acclimate.edge.artifact import Artifact

    classes = Artifact.open(artifact).manifest.classes
    sets = [(formats.read(one, classes), name, role) for one, name, role in data]
    return verification.verify(artifact, sets, budget, console=console)


def report(runs: Sequence[Path], out: Path, *, budget: Budget | None = None) -> Path:
    """Write one self-contained HTML page about `runs`; returns the file.

    Raises:
        AcclimateError: a folder is no run, or `out` cannot be written.
    """
    from acclimate.report import page

    return page.write(runs, out, budget=budget)


def job(config: Config, *, console: Console | None = None) -> tuple[Path, bool]:
    """The whole chain from one configuration: scenes, train, adapt, oracle, export, verify, report.

    A stage whose inputs did not change since the last call is not repeated; one whose inputs did is run anew, and
    what was there before moves to `previous/`.

    Returns:
        The report's file, and whether every artifact met the budget (True where there is no budget).

    Raises:
        AcclimateError, Interrupted: as the stages do.
    """
    from acclimate.verify import print_verification

    config = _with_scenes(config, console)
    if config.source is None or config.target is None:
        raise AcclimateError("the config needs a [source] data set and `target`, a folder of unlabelled images")
    out = config.out
    tests = _tests(config)
    source = _stage(out / "source", lambda: train(config, out / "source", console=console))
    runs = [source]
    target = config.target
    adapted = _stage(
        out / "adapted", lambda: adapt(source.path, target, out / "adapted", config=config, console=console)
    )
    runs.append(adapted)
    if config.oracle is not None:
        runs.append(_stage(out / "oracle", lambda: train(config, out / "oracle", role="oracle", console=console)))
    for run in runs:
        for data, name, role in tests:
            _evaluate_once(run, data, name, role, hindsight=role == "target", console=console)
    verified = []
    for precision in config.export.precisions:
        folder = export(
            adapted.path,
            runtime=config.export.runtime,
            precision=precision,
            images=config.export.calibration_images,
            console=console,
        )
        verified.append(verify(folder, tests, config.budget, console=console))
        if console is not None:
            print_verification(verified[-1], console)
    _pictures(runs[:2], config)
    file = report([run.path for run in runs], out / "report.html", budget=config.budget)
    return file, all(one.passed for one in verified)


def _with_scenes(config: Config, console: Console | None) -> Config:
    """Generate the data that a [scenes] section asks for, and point the data sets there that are not named."""
    if config.scenes is None:
        return config
    from acclimate.data.scenes import generate

    scenes = config.scenes
    made = {}
    for domain, condition in (("clear", None), (scenes.condition, scenes.condition)):
        for split, count, offset in (("train", scenes.images, 0), ("test", scenes.test_images, 1)):
            seed = 10_000 * (2 * (condition is not None) + offset) + config.seed
            made[domain, split] = generate(
                scenes.out / f"{domain}-{split}", count, scenes.size, seed, condition, scenes.strength,
                progress=_counter(console, f"{domain} {split} scenes"),
            )  # fmt: skip
    target = scenes.condition

    def labelled(domain: str, split: str) -> DataConfig:
        return DataConfig(path=made[domain, split] / "annotations.json")

    return config.model_copy(
        update={
            "source": config.source or labelled("clear", "train"),
            "target": config.target or made[target, "train"] / "images",
            "source_test": config.source_test or labelled("clear", "test"),
            "target_test": config.target_test or labelled(target, "test"),
            "oracle": config.oracle or labelled(target, "train"),
        }
    )


def _counter(console: Console | None, title: str) -> Callable[[int, int], None]:
    def tick(done: int, total: int) -> None:
        if console is not None and done == total:
            console.print(f"{title}: {total}", highlight=False)

    return tick


def _stage(path: Path, run_it: Callable[[], Run]) -> Run:
    """Run a stage of a job; a run with other inputs that is in the way moves to previous/."""
    try:
        return run_it()
    except OtherRunError as error:
        aside = path.parent / "previous" / f"{path.name}-{error.digest}"
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{path.name}-{error.digest}-{number}")
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)
        log.info("%s: its inputs changed; the earlier run is kept in %s", path, aside)
        return run_it()


class OtherRunError(AcclimateError):
    """The output folder holds a run with other inputs."""

    def __init__(self, message: str, digest: str) -> None:
        super().__init__(message)
        self.digest = digest


def _tests(config: Config) -> list[tuple[DataConfig, str, Role]]:
    tests: list[tuple[DataConfig, str, Role]] = []
    if config.source_test is not None:
        tests.append((config.source_test, "source_test", "source"))
    if config.target_test is not None:
        tests.append((config.target_test, "target_test", "target"))
    return tests


def _evaluate_once(
    run: Run, data: DataConfig, name: str, role: Role, *, hindsight: bool, console: Console | None
) -> None:
    from acclimate.data import formats

    classes = run.read("spec.json")["classes"]
    identity = digest(_labelled_digest(formats.read(data, classes)))
    known = dict(Run.open(run.path).manifest.notes.get("evaluated", {}))
    if known.get(name) == identity and run.has(f"evaluations/{name}.json"):
        return
    evaluate(run.path, data, name, role, hindsight=hindsight, console=console)
    Run.open(run.path).note(evaluated={**known, name: identity})


def _pictures(runs: Sequence[Run], config: Config) -> None:
    """The same few target test images with each run's detections, for the report."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.evaluate import predict_eager
    from acclimate.models import detector as models
    from acclimate.report import pictures

    if config.target_test is not None:
        paths = formats.read(config.target_test).paths
    else:
        assert config.target is not None
        paths = formats.unlabelled(config.target).paths
    chosen = choose(paths, 6, config.seed)
    for run in runs:
        detector = _to_device(models.load(run.path))
        pictures.save(run, chosen, predict_eager(detector, chosen), detector.spec.classes)


def _fit(
    run: Run,
    objective: Objective,
    loader: Loader,
    schedule: Any,
    acc: Accelerator,
    console: Console | None,
    title: str,
    transforms: Sequence[GradientTransform] = (),
) -> None:
    from acclimate.adapt.engine import fit

    objective.to(acc.device)
    fit(run, objective, loader, schedule, acc, transforms=transforms, console=console, title=title)


def _start(acc: Accelerator, out: Path, manifest: Manifest, console: Console | None) -> Run:
    """Open or create the run folder, by the first process alone."""
    if acc.is_main_process:
        existing = out / "run.json"
        if existing.is_file():
            found = Run.open(out)
            if (found.manifest.verb, found.manifest.digest) != (manifest.verb, manifest.digest):
                raise OtherRunError(
                    f"{out}: holds another run ({found.manifest.verb}, {found.manifest.status}) with other inputs; "
                    "choose another --out, or delete the folder",
                    found.manifest.digest,
                )
            if console is not None:
                state = "nothing to do" if found.done else "going on where it stopped"
                console.print(f"{out}: {found.manifest.status}; {state}", highlight=False)
        Run.create(out, manifest.model_copy(update={"command": _repeat()}))
    acc.wait_for_everyone()
    return Run.open(out)


@contextlib.contextmanager
def _running(run: Run, acc: Accelerator, config: Config, facts: dict[str, Any]) -> Iterator[None]:
    """Keep the manifest true about how the run stands, however it ends."""
    from acclimate.adapt.engine import Interrupted, discard_state

    began = time.monotonic()
    if acc.is_main_process:
        run.write("config.json", config.model_dump(mode="json"))
        run.manifest = run.manifest.model_copy(update={"status": "running"})
        run.note(processes=acc.num_processes, device=str(acc.device), **facts)
    status: Literal["interrupted", "failed", "done"] = "failed"
    try:
        yield
        status = "done"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        acc.wait_for_everyone()
        if acc.is_main_process:
            with contextlib.suppress(AcclimateError):
                run.finish(status, time.monotonic() - began)
            if status == "done":
                discard_state(run)


def _finished(path: Path) -> Run:
    run = Run.open(path)
    if not run.done:
        raise AcclimateError(f"{path}: the run is {run.manifest.status}; finish it first by running its command again")
    return run


def _to_device(detector: Detector) -> Detector:
    import torch

    return detector.to("cuda" if torch.cuda.is_available() else "cpu")


def _plain(config: Config, *sections: str) -> dict[str, Any]:
    """The sections that determine a result; how it is loaded and logged does not."""
    values = config.model_dump(mode="json", include=set(sections))
    for section in values.values():
        if isinstance(section, dict):
            for key in ("workers", "cache_mb", "log_every"):
                section.pop(key, None)
    return values


def _labelled_digest(images: LabelledSet) -> str:
    import hashlib

    state = hashlib.sha256(repr(images.classes).encode())
    for image in images.images:
        state.update(f"{image.path}:{_size(image.path)}".encode())
        for array in (image.annotations.boxes, image.annotations.labels, image.annotations.ignore):
            state.update(array.tobytes())
    return state.hexdigest()[:16]


def _unlabelled_digest(images: UnlabelledSet) -> str:
    return digest([(str(path), _size(path)) for path in images.paths])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _describe(images: LabelledSet) -> dict[str, Any]:
    return {
        "name": images.name,
        "format": images.format,
        "images": len(images),
        "boxes": sum(int((~image.annotations.ignore).sum()) for image in images.images),
        "classes": list(images.classes),
        "problems": [str(problem) for problem in images.problems][:20],
        "problem_count": len(images.problems),
    }


def _class_boxes(images: LabelledSet) -> dict[str, int]:
    counts = dict.fromkeys(images.classes, 0)
    for image in images.images:
        for label in image.annotations.labels[~image.annotations.ignore]:
            counts[images.classes[int(label)]] += 1
    return counts


def _repeat() -> str:
    """The command line of this process, for the report's "how to repeat"."""
    name = Path(sys.argv[0]).name
    return shlex.join(["acclimate", *sys.argv[1:]]) if name in {"acclimate", "__main__.py", "cli.py"} else name


def read_config(path: Path) -> Config:
    """The resolved configuration of a run folder."""
    return parse(Config, read_json(path / "config.json"), where=str(path / "config.json"))
