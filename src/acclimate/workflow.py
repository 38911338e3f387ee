"""One function a verb. Each reads run folders and writes one; nothing else passes between them.

    from acclimate import load_config, workflow

    source = workflow.train(load_config("job.toml"), "runs/source")
    adapted = workflow.adapt(source.path, "site/images", "runs/adapted")
    artifact = workflow.export(adapted.path)

Functions that train need the `train` extra; heavy imports wait until a verb runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from acclimate import stages
from acclimate.config import Budget, Config, DataConfig, merge, parse
from acclimate.errors import AcclimateError
from acclimate.run import Evaluation, Manifest, Run, digest, file_digest

if TYPE_CHECKING:
    from acclimate.data.inspect import DataSummary
    from acclimate.models.detector import Detector
    from acclimate.verify import Verification

Role = Literal["source", "target"]
Precision = Literal["fp32", "fp16", "int8"]
PICTURES = 6
"""Target images that the report shows before and after."""


def train(
    config: Config, out: str | Path, *, role: Literal["source", "oracle"] = "source", console: Console | None = None
) -> Run:
    """Train a detector on the labelled source images of `config`, or go on with a run that was interrupted.

    With `role="oracle"` it trains on `config.oracle`, the labelled target images, for comparison alone. The run keeps
    the averaged weights of the last step: no labelled image chooses a checkpoint.

    Raises:
        AcclimateError: the configuration or the data cannot be used, or `out` holds something else.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    data = config.source if role == "source" else config.oracle
    if data is None:
        raise AcclimateError(f"the config names no `{role}` data set to train on; add a [{role}] section with a path")
    import torch

    from acclimate.adapt.engine import accelerator, fit
    from acclimate.adapt.objective import Objective
    from acclimate.adapt.supervised import Supervised
    from acclimate.data import formats
    from acclimate.data.dataset import Loader
    from acclimate.models import detector as models

    images = formats.read(data)
    identity = digest(
        "train", role, stages.plain(config, "seed", "model", "augment", "train"), stages.labelled_digest(images)
    )
    acc = accelerator(config.train.precision)
    manifest = Manifest(verb="train", digest=identity, seed=config.seed, notes={"role": role})
    if (known := stages.done_before(Path(out), manifest, console)) is not None:
        return known
    torch.manual_seed(config.seed)
    detector = models.build(models.specify(config.model, images.classes), config.model.weights)
    objective = Objective(detector, [Supervised()], config.train.ema, warm=True)
    loader = Loader(
        images, None, detector.spec.image_size, config.augment, config.train, config.seed,
        acc.process_index, acc.num_processes,
    )  # fmt: skip
    run = stages.start(acc, Path(out), manifest, console)
    facts = {
        "start": detector.spec.start,
        "source": stages.describe(images),
        "class_boxes": stages.class_boxes(images),
        "parameters": models.parameters(detector),
        "repeat": stages.repeat(),
    }
    with stages.running(run, acc, config, facts):
        title = "train" if role == "source" else "oracle"
        fit(run, objective, loader, config.train, acc, console=console, title=title)
        if acc.is_main_process:
            models.save(objective.average, run.path)
    return run


def adapt(
    source: str | Path,
    target: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    config: Config | None = None,
    console: Console | None = None,
) -> Run:
    """Adapt the detector of the run `source` to the unlabelled images in `target`.

    The configuration is the source run's (or `config`), changed by the `key=value` of `overrides`; its `schedule` is
    the adaptation's. The checkpoint is chosen by a label-free score on target images (`select.score`). No label of the
    target is read: the target is an `UnlabelledSet`, which has none.

    A method that uses no target image is the fair source-only baseline, further source training of the same length:
    it keeps its last checkpoint, and its manifest has the role "baseline" instead of "adapted".

    Raises:
        AcclimateError: `source` is no finished run, `target` has no image, or an override does not fit.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    source, target = Path(source), Path(target)
    parent = stages.finished(source)
    if config is None:
        config = stages.configuration(parent)
    if overrides:
        merged = merge(config.model_dump(mode="json"), overrides)
        config = parse(Config, merged, where="the source run's config with overrides")
    config = config.model_copy(update={"target": target})
    if config.source is None:
        raise AcclimateError(
            f"{source}: its configuration names no source data set, and adaptation keeps it in the mix"
        )
    import torch

    from acclimate.adapt.engine import accelerator, checkpoints, fit
    from acclimate.adapt.methods import method, uses_target
    from acclimate.adapt.objective import Objective
    from acclimate.data import formats
    from acclimate.data.dataset import Loader, choose
    from acclimate.models import detector as models
    from acclimate.models.statistics import IMAGES, recalibrate
    from acclimate.select.score import choose_checkpoint

    unlabelled = formats.unlabelled(target)
    detector = models.load(parent.path)
    images = formats.read(config.source, detector.spec.classes)
    adapts = uses_target(config)
    identity = digest(
        "adapt",
        stages.plain(config, "seed", "augment", "adapt", "schedule"),
        stages.labelled_digest(images),
        stages.unlabelled_digest(unlabelled) if adapts else None,
        file_digest(parent.path / "model.safetensors"),
    )
    acc = accelerator(config.schedule.precision)
    role = "adapted" if adapts else "baseline"
    manifest = Manifest(verb="adapt", digest=identity, parents=(str(source),), seed=config.seed, notes={"role": role})
    if (known := stages.done_before(Path(out), manifest, console)) is not None:
        return known
    torch.manual_seed(config.seed)
    chosen = method(config.adapt, detector, images)
    objective = Objective(detector, chosen.terms, config.schedule.ema, warm=False)
    loader = Loader(
        images, unlabelled if adapts else None, detector.spec.image_size, config.augment, config.schedule,
        config.seed, acc.process_index, acc.num_processes,
    )  # fmt: skip
    run = stages.start(acc, Path(out), manifest, console)
    facts = {
        "start": f"the source run {source}",
        "source": stages.describe(images),
        "method": [term.name for term in chosen.terms],
        "parameters": models.parameters(detector),
        "repeat": stages.repeat(),
    }
    if adapts:
        facts["target"] = {"images": len(unlabelled), "problems": [str(p) for p in unlabelled.problems][:20]}
    with stages.running(run, acc, config, facts):
        fit(
            run, objective, loader, config.schedule, acc,
            transforms=chosen.transforms, console=console, title="adapt" if adapts else "baseline",
        )  # fmt: skip
        if acc.is_main_process:
            kept = objective.average
            if adapts and config.adapt.statistics == "target":
                seen = choose(unlabelled.paths, IMAGES, config.seed)
                for file in checkpoints(run).values():
                    models.load_weights(kept, file)
                    recalibrate(kept, seen)
                    models.save_weights(kept, file)
            if adapts:
                with stages.counting(console, "checkpoints scored without labels") as tick:
                    selection = choose_checkpoint(
                        kept, checkpoints(run), unlabelled.paths, config.augment, config.seed, progress=tick
                    )
                run.write("selection.json", selection)
                if console is not None:
                    console.print(f"chosen: step {selection.chosen_step}, by {selection.rule}", highlight=False)
            models.save(kept, run.path)
    return run


def evaluate(
    path: str | Path,
    data: DataConfig,
    name: str = "target_test",
    role: Role = "target",
    *,
    hindsight: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """AP of a run's eager detector on a labelled set; saved as evaluations/NAME.json of the run.

    With `hindsight` every checkpoint of the run is evaluated too, and selection.json learns how well each label-free
    score ranked them. This is the place, with `verify`, where target labels are read; nothing chooses by it.

    Raises:
        AcclimateError: the run is not finished or the set cannot be used.
    """
    run = stages.finished(Path(path))
    from acclimate.adapt.engine import checkpoints
    from acclimate.data import formats
    from acclimate.evaluate import evaluate_detector
    from acclimate.models import detector as models
    from acclimate.select.score import rank

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
    run.note(evaluated={**run.manifest.notes.get("evaluated", {}), name: digest(stages.labelled_digest(truth))})
    if console is not None:
        console.print(
            f"{run.path.name} on {name}: AP50 {result.ap50:.3f}, AP {result.ap:.3f} ({result.images} images)",
            markup=False, highlight=False,
        )  # fmt: skip
    return result


def export(
    path: str | Path,
    *,
    runtime: str = "onnx",
    precision: Precision = "int8",
    calibration: str | Path | None = None,
    images: int = 128,
    console: Console | None = None,
) -> Path:
    """Export a finished run's detector as an artifact in its artifacts/ folder; the artifact's folder.

    INT8 is calibrated on `images` of the unlabelled images in `calibration`, by default the target images that the
    run was adapted to. An artifact that is already there from the same weights and options is kept.

    Raises:
        AcclimateError: the run is not finished, the runtime or precision is not to be had, or INT8 lacks images.
    """
    from acclimate.edge.artifact import Artifact
    from acclimate.runtimes import base

    path = Path(path)
    run = stages.finished(path)
    base.check_export(runtime, [precision], "--precision")
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models

    config = stages.configuration(run)
    chosen: tuple[Path, ...] = ()
    if precision == "int8":
        calibration = calibration or config.target
        if calibration is None:
            raise AcclimateError(f"{path}: INT8 needs images to calibrate on; give --calibration FOLDER_OF_IMAGES")
        chosen = choose(formats.unlabelled(Path(calibration)).paths, images, config.seed)
    folder = run.path / "artifacts" / f"{runtime}-{precision}"
    identity = digest(file_digest(run.path / "model.safetensors"), runtime, precision, [str(p) for p in chosen])
    if (folder / "artifact.json").is_file():
        try:
            kept = Artifact.open(folder)
        except AcclimateError as error:
            if console is not None:
                console.print(f"exporting anew: {error}", markup=False, highlight=False)
        else:
            if kept.manifest.notes.get("identity") == identity:
                return folder
    if console is not None:
        images_said = f", calibrated on {len(chosen)} images" if chosen else ""
        console.print(f"exporting {runtime} {precision}{images_said}", highlight=False)
    artifact = base.runtime(runtime).export(models.load(run.path), folder, precision, chosen)
    base.annotate(artifact, source_run=str(run.path), identity=identity)
    return folder


def verify(
    artifact: str | Path,
    data: Sequence[tuple[DataConfig, str, Role]] = (),
    budget: Budget | None = None,
    *,
    again: bool = True,
    console: Console | None = None,
) -> Verification:
    """Measure an artifact on its own runtime: accuracy against the eager model, parity, latency, size, memory.

    Args:
        artifact: an artifact's folder.
        data: labelled sets, each with a name and its domain; none measures latency and size alone.
        budget: what must hold; None holds the accuracy tolerance alone.
        again: False takes what was measured before on the same inputs, and holds it against `budget`; a latency that
            broke the budget is measured again all the same, as the machine may have been busy.
        console: where progress goes.

    Raises:
        AcclimateError: the artifact is damaged, or a set cannot be used.
    """
    from acclimate import verify as verification
    from acclimate.edge.artifact import Artifact

    loaded = Artifact.open(Path(artifact))
    sets = []
    if data:
        from acclimate.data import formats

        sets = [(formats.read(one, loaded.manifest.classes), name, role) for one, name, role in data]
    threads = (budget or Budget()).threads
    inputs = digest(loaded.digest, threads, [(stages.labelled_digest(s), name, role) for s, name, role in sets])
    known = None if again else verification.stored(loaded.folder)
    if known is not None and (known.digest, known.inputs) == (loaded.digest, inputs):
        judged = verification.judge(loaded.folder, known, budget or Budget())
        if all(check.passed for check in judged.checks if check.name == "latency_ms"):
            return judged
    return verification.verify(loaded.folder, sets, budget, inputs=inputs, console=console)


def predict(
    artifact: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    threads: int = 1,
    console: Console | None = None,
) -> Path:
    """Detect with an artifact in an image, a folder, a .txt list or a video; the path of the JSON file. Needs no torch.

    See `edge.predict.predict_folder` for what is in it; `edge.predict.Predictor` detects in one image at a time.

    Raises:
        AcclimateError: the artifact cannot be used, there is no image, or `out` cannot be written.
    """
    from acclimate.edge.predict import predict_folder

    return predict_folder(
        Path(artifact), Path(images), Path(out), threshold=threshold, threads=threads, console=console
    )


def report(runs: Sequence[str | Path], out: str | Path = "report.html", *, budget: Budget | None = None) -> Path:
    """Write one self-contained HTML page about `runs`; returns the file.

    Raises:
        AcclimateError: a folder is no run, or `out` cannot be written.
    """
    from acclimate.report import page

    return page.write([Path(run) for run in runs], Path(out), budget=budget)


def data(
    source: str | Path | DataConfig, sheet: str | Path | None = None, *, console: Console | None = None
) -> DataSummary:
    """What is in a data set: format, classes, counts, sizes, problems; with `sheet`, a contact sheet goes to that file.

    Raises:
        AcclimateError: it cannot be read, or nothing in it is usable.
    """
    from acclimate.data import inspect

    images = inspect.load(source if isinstance(source, DataConfig) else Path(source))
    summary = inspect.summary(images)
    if console is not None:
        inspect.print_summary(summary, console)
    if sheet is not None:
        inspect.contact_sheet(images, Path(sheet))
    return summary


def scenes(
    out: str | Path,
    images: int = 300,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    condition: str | None = None,
    strength: float = 1.0,
    *,
    console: Console | None = None,
) -> DataConfig:
    """Generate street scenes of (height, width) `size` with exact boxes; the data set, ready to train on.

    Raises:
        AcclimateError: `out` holds something else or cannot be written, or the condition does not exist.
    """
    from acclimate.data.scenes import generate

    with stages.counting(console, f"{Path(out).name} scenes") as tick:
        return DataConfig(path=generate(Path(out), images, size, seed, condition, strength, progress=tick))


@dataclass(frozen=True, slots=True)
class Job:
    """What `run` leaves.

    Attributes:
        report: the HTML page.
        source: the run that the next two start from.
        baseline: source-only, trained on for the adaptation's schedule without anything of the target.
        adapted: the run that the artifacts are exported from.
        oracle: trained on target labels; None where the config names no labelled target set.
        verifications: one for each exported artifact, in the order of `export.precisions`.
    """

    report: Path
    source: Run
    baseline: Run
    adapted: Run
    oracle: Run | None
    verifications: tuple[Verification, ...]

    @property
    def passed(self) -> bool:
        """An artifact meets the budget and the accuracy tolerance."""
        return any(one.passed for one in self.verifications)


def run(config: Config, *, console: Console | None = None) -> Job:
    """The whole chain from one configuration: scenes, train, baseline, adapt, oracle, evaluate, export, verify, report.

    A stage whose inputs did not change since the last call is not repeated; one whose inputs did is run anew, and
    what was there before moves to `previous/`.

    Raises:
        AcclimateError, Interrupted: as the stages do.
    """
    stages.one_process("run")
    from acclimate.runtimes import base

    base.check_export(config.export.runtime, config.export.precisions, "export.precisions")
    config = _with_scenes(config, console)
    target = config.target
    if config.source is None or target is None:
        raise AcclimateError("the config needs a [source] data set and `target`, a folder of unlabelled images")
    tests = _tests(config)
    _check_early(config, tests)
    from acclimate.adapt.methods import source_only

    out = config.out
    source = stages.take_place(out / "source", lambda: train(config, out / "source", console=console), console)
    # The adapted detector is trained for longer than the source run; a fair source-only detector is too.
    alone = source_only(config)
    baseline = stages.take_place(
        out / "baseline", lambda: adapt(source.path, target, out / "baseline", config=alone, console=console), console
    )
    adapted = stages.take_place(
        out / "adapted", lambda: adapt(source.path, target, out / "adapted", config=config, console=console), console
    )
    oracle = None
    if config.oracle is not None:
        # The adapted detector has had both schedules' steps; a fair ceiling has them too.
        steps = config.train.steps + config.schedule.steps
        longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
        oracle = stages.take_place(
            out / "oracle", lambda: train(longer, out / "oracle", role="oracle", console=console), console
        )
    runs = [source, baseline, adapted, *([oracle] if oracle else [])]
    for one in runs:
        for test, name, role in tests:
            _evaluate_once(one, test, name, role, console)
    verifications = []
    for precision in config.export.precisions:
        folder = export(
            adapted.path,
            runtime=config.export.runtime,
            precision=precision,
            images=config.export.calibration_images,
            console=console,
        )
        verifications.append(verify(folder, tests, config.budget, again=False, console=console))
        if console is not None:
            from acclimate.verify import print_verification

            print_verification(verifications[-1], console)
    _pictures(runs, config)
    file = report([one.path for one in runs], out / "report.html", budget=config.budget)
    return Job(file, source, baseline, adapted, oracle, tuple(verifications))


def _with_scenes(config: Config, console: Console | None) -> Config:
    """Generate the data that a [scenes] section asks for, and point the data sets there that are not named."""
    if config.scenes is None:
        return config
    wanted = config.scenes
    made = {}
    for domain, condition in (("clear", None), (wanted.condition, wanted.condition)):
        for split, count, offset in (("train", wanted.images, 0), ("test", wanted.test_images, 1)):
            seed = 10_000 * (2 * (condition is not None) + offset) + config.seed
            folder = wanted.out / f"{domain}-{split}"
            made[domain, split] = stages.take_place(
                folder,
                functools.partial(
                    scenes, folder, count, wanted.size, seed, condition, wanted.strength, console=console
                ),
                console,
            )
    target = wanted.condition
    return config.model_copy(
        update={
            "source": config.source or made["clear", "train"],
            "target": config.target or made[target, "train"].path.parent / "images",
            "source_test": config.source_test or made["clear", "test"],
            "target_test": config.target_test or made[target, "test"],
            "oracle": config.oracle or made[target, "train"],
        }
    )


def _tests(config: Config) -> list[tuple[DataConfig, str, Role]]:
    tests: list[tuple[DataConfig, str, Role]] = []
    if config.source_test is not None:
        tests.append((config.source_test, "source_test", "source"))
    if config.target_test is not None:
        tests.append((config.target_test, "target_test", "target"))
    return tests


def _check_early(config: Config, tests: Sequence[tuple[DataConfig, str, Role]]) -> None:
    """Find a mistake in what the last stages need before the first has trained for hours; opens no target label."""
    from acclimate.data import formats

    assert config.source is not None
    assert config.target is not None
    classes = formats.read(config.source).classes
    formats.unlabelled(config.target)
    for test, _, role in tests:
        if role == "source":
            formats.read(test, classes)
        elif not test.path.exists():
            raise AcclimateError(f"{test.path}: no such file or folder (target_test)")
    if config.oracle is not None and not config.oracle.path.exists():
        raise AcclimateError(f"{config.oracle.path}: no such file or folder (oracle)")


def _evaluate_once(run: Run, data: DataConfig, name: str, role: Role, console: Console | None) -> None:
    from acclimate.data import formats

    truth = formats.read(data, run.read("spec.json")["classes"])
    known = Run.open(run.path).manifest.notes.get("evaluated", {}).get(name)
    if known != digest(stages.labelled_digest(truth)) or not run.has(f"evaluations/{name}.json"):
        evaluate(run.path, data, name, role, hindsight=role == "target", console=console)


def _pictures(runs: Sequence[Run], config: Config) -> None:
    """The same few target test images with each run's detections, for the report; those that are there stay."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models
    from acclimate.report import pictures

    if config.target_test is not None:
        paths = formats.read(config.target_test).paths
    else:
        assert config.target is not None
        paths = formats.unlabelled(config.target).paths
    chosen = choose(paths, PICTURES, config.seed)
    for run in runs:
        album = pictures.load(run)
        if album is not None and [picture.source for picture in album.pictures] == [str(path) for path in chosen]:
            continue
        from acclimate.models.predict import predict as find

        detector = _to_device(models.load(run.path))
        pictures.save(run, chosen, find(detector, chosen), detector.spec.classes)


def _to_device(detector: Detector) -> Detector:
    import torch

    return detector.to("cuda" if torch.cuda.is_available() else "cpu")
