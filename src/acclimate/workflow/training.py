"""The verbs that train: train, adapt, distil, slim; and evaluate, which tells how well that went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console

from acclimate import stages
from acclimate.config import (
    AdaptConfig,
    Config,
    DataConfig,
    ScheduleConfig,
    SlimConfig,
    merge,
    overlay,
    parse,
    quantises,
    read,
)
from acclimate.errors import AcclimateError
from acclimate.run import Evaluation, Manifest, Run, digest, file_digest, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from acclimate.data.dataset import Loader
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.models.detector import Detector
    from acclimate.models.slimmable import SlimmableDetector

Role = Literal["source", "target"]
LESSONS = {"response", "gan", "imitation", "channel"}
"""What can be learnt from a teacher; where none is named, `distil` chooses."""


def train(
    config: Config, out: str | Path, *, role: Literal["source", "oracle"] = "source", console: Console | None = None
) -> Run:
    """Train a detector on the labelled source images of `config`, or go on with a run that was interrupted.

    A slimmable detector trains at `model.slimmable.models` widths a step (the sandwich rule, see `adapt.slim`).
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
    from acclimate.adapt.objective import Objective, Term
    from acclimate.adapt.slim import Slim
    from acclimate.adapt.supervised import Supervised
    from acclimate.data import formats
    from acclimate.models import detector as models

    images = formats.read(data, masks=config.model.has_masks)
    identity = digest(
        "train", role, stages.plain(config, "seed", "model", "augment", "train"), stages.labelled_digest(images)
    )
    acc = accelerator(config.train.precision)
    manifest = Manifest(verb="train", digest=identity, seed=config.seed, notes={"role": role})
    if (known := stages.done_before(Path(out), manifest, console)) is not None:
        return known
    torch.manual_seed(config.seed)
    detector = models.build(models.specify(config.model, images.classes, images.reading), config.model.weights)
    terms: list[Term] = [Supervised()]
    if config.model.kind == "slimmable" and (count := config.model.slimmable.models) > 1:
        terms = [Slim.create(SlimConfig(models=count, ensemble=0), detector, terms, config.seed)]
    objective = Objective(detector, terms, config.train.ema, warm=True)
    loader = _loader(acc, detector, images, None, config, config.train)
    run = stages.start(acc, Path(out), manifest, console)
    facts = _facts(detector.spec.start, detector, images)
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
        if parent.manifest.verb == "distil":
            # How a run was taught is no way to adapt it: that starts from the default method.
            config = config.model_copy(update={"adapt": AdaptConfig()})
        elif parent.manifest.verb == "search":
            # It was cut from a bank, and has one width.
            config = config.model_copy(update={"adapt": config.adapt.model_copy(update={"slim": None})})
    if overrides:
        values = config.model_dump(mode="json")
        merged = merge(values, overrides)
        if quantises(merged) != quantises(values):
            # Nor is how it was adapted a way to prepare it for INT8, or the other way round.
            merged = merge({key: value for key, value in values.items() if key not in {"adapt", "schedule"}}, overrides)
        config = parse(Config, merged, where="the source run's config with overrides")
    config = config.model_copy(update={"target": target})
    taught = taught_by(config)
    if config.source is None:
        raise AcclimateError(
            f"{source}: its configuration names no source data set, and adaptation keeps it in the mix"
        )
    import torch

    from acclimate.adapt.engine import accelerator, checkpoint, checkpoints, fit
    from acclimate.adapt.methods import method, uses_target
    from acclimate.adapt.objective import Objective
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models
    from acclimate.models.statistics import IMAGES, recalibrate
    from acclimate.select.score import choose_checkpoint

    unlabelled = formats.unlabelled(target)
    detector = models.load(parent.path)
    images = formats.read(
        config.source, detector.spec.classes, masks=detector.spec.has_masks, reading=detector.spec.reading
    )
    adapts = uses_target(config)
    identity = digest(
        "adapt",
        stages.plain(config, "seed", "augment", "adapt", "schedule"),
        stages.labelled_digest(images),
        stages.unlabelled_digest(unlabelled) if adapts else None,
        file_digest(parent.path / "model.safetensors"),
        *taught,
    )
    acc = accelerator(config.schedule.precision)
    role = "adapted" if adapts else "baseline"
    manifest = Manifest(verb="adapt", digest=identity, parents=(str(source),), seed=config.seed, notes={"role": role})
    if (known := stages.done_before(Path(out), manifest, console)) is not None:
        return known
    torch.manual_seed(config.seed)
    chosen = method(config.adapt, detector, images, config.seed)
    by_domain = adapts and config.adapt.statistics == "domain"
    objective = Objective(detector, chosen.terms, config.schedule.ema, warm=False, by_domain=by_domain)
    seen = unlabelled if adapts else None
    loader = _loader(acc, detector, images, seen, config, config.schedule)
    run = stages.start(acc, Path(out), manifest, console)
    facts = _facts(f"the source run {source}", detector, images, seen, method=chosen.names)
    with stages.running(run, acc, config, facts):
        fit(
            run, objective, loader, config.schedule, acc,
            transforms=chosen.transforms, console=console, title="adapt" if adapts else "baseline",
        )  # fmt: skip
        if acc.is_main_process:
            kept = objective.average
            if adapts and config.adapt.statistics in {"target", "domain"}:
                normalised_by = choose(unlabelled.paths, IMAGES, config.seed)
                for file in checkpoints(run).values():
                    models.load_weights(kept, file)
                    recalibrate(kept, normalised_by)
                    models.save_weights(kept, file)
            if adapts:
                if config.adapt.quantisation is None:
                    # What it was before is a candidate too: an adaptation that harms is not kept.
                    write_bytes(checkpoint(run, 0), (parent.path / "model.safetensors").read_bytes())
                rates = [boxes / len(images) for boxes in stages.class_boxes(images).values()]
                with stages.counting(console, "checkpoints scored without labels") as tick:
                    selection = choose_checkpoint(
                        kept, checkpoints(run), unlabelled.paths, config.augment, config.seed, rates, progress=tick
                    )
                run.write("selection.json", selection)
                if console is not None:
                    step = selection.chosen_step
                    note = "" if step else ": the start, as no checkpoint of the adaptation is better by it"
                    console.print(f"chosen: step {step}, by {selection.rule}{note}", highlight=False)
            models.save(kept, run.path)
    return run


def distil(
    teacher: str | Path,
    student: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    target: str | Path | None = None,
    console: Console | None = None,
) -> Run:
    """Train a small detector that learns from the run `teacher`, on its source and the unlabelled images in `target`.

    `student` is the run of a detector to start from, a TOML file with a [model] section (and others where they are to
    differ), or one `key=value`. A student of its own model has the teacher's kind, canvas, strides and classes unless
    told otherwise, starts from its backbone's weights and trains for the schedule `train`; one that is a run trains on
    for `schedule`. Everything else is the teacher's configuration, changed by the `key=value` of `overrides`, but for
    the section `adapt`, of which `adapt.distillation` alone is on. Where that names none of its parts, the student
    learns the teacher's outputs, and a dense one of a dense teacher its features near objects too. The run keeps the
    averaged weights of the last step.

    Raises:
        AcclimateError: a run is not finished, an option does not fit, or the two detectors have different classes or
            canvases, or no stride in common.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    parent = stages.finished(Path(teacher))
    start, config = _student(parent, str(student), overrides)
    config = config.model_copy(update={"target": Path(target) if target is not None else None})
    taught = taught_by(config)
    if config.adapt.quantisation is not None:
        raise AcclimateError(
            "adapt.quantisation fine-tunes a detector that is trained; leave it out here, and then "
            "`acclimate adapt` the student with it"
        )
    if config.source is None:
        raise AcclimateError(f"{teacher}: its configuration names no source data set; name one: source.path=FOLDER")
    import torch

    from acclimate.adapt.engine import accelerator, fit
    from acclimate.adapt.methods import method
    from acclimate.adapt.objective import Objective
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models
    from acclimate.models.statistics import IMAGES, recalibrate

    unlabelled = formats.unlabelled(config.target) if config.target is not None else None
    known_spec = models.specification((start or parent).path)
    classes = known_spec.classes
    images = formats.read(config.source, classes, masks=config.model.has_masks, reading=known_spec.reading)
    section = "train" if start is None else "schedule"
    schedule = config.train if start is None else config.schedule
    identity = digest(
        "distil",
        stages.plain(config, "seed", "model", "augment", "adapt", section),
        stages.labelled_digest(images),
        stages.unlabelled_digest(unlabelled) if unlabelled is not None else None,
        *taught,
        file_digest(start.path / "model.safetensors") if start is not None else None,
    )
    acc = accelerator(schedule.precision)
    parents = tuple(str(run.path) for run in (parent, start) if run is not None)
    notes = {"role": "source" if unlabelled is None else "adapted"}
    manifest = Manifest(verb="distil", digest=identity, parents=parents, seed=config.seed, notes=notes)
    if (known := stages.done_before(Path(out), manifest, console)) is not None:
        return known
    torch.manual_seed(config.seed)
    if start is None:
        detector = models.build(models.specify(config.model, classes, images.reading), config.model.weights)
    else:
        detector = models.load(start.path)
    chosen = method(config.adapt, detector, images, config.seed)
    blind = [term.name for term in chosen.terms if term.needs_target and any("target" in view for view in term.views)]
    if unlabelled is None and blind:
        raise AcclimateError(f"adapt.{blind[0]} learns from target images; give --target FOLDER, or set it to none")
    by_domain = unlabelled is not None and config.adapt.statistics == "domain"
    objective = Objective(detector, chosen.terms, schedule.ema, warm=start is None, by_domain=by_domain)
    loader = _loader(acc, detector, images, unlabelled, config, schedule)
    run = stages.start(acc, Path(out), manifest, console)
    begun = detector.spec.start if start is None else f"the run {start.path}"
    facts = _facts(begun, detector, images, unlabelled, method=chosen.names, teacher=str(parent.path), schedule=section)
    with stages.running(run, acc, config, facts):
        fit(
            run, objective, loader, schedule, acc,
            transforms=chosen.transforms, console=console, title="distil",
        )  # fmt: skip
        if acc.is_main_process:
            if unlabelled is not None and config.adapt.statistics in {"target", "domain"}:
                recalibrate(objective.average, choose(unlabelled.paths, IMAGES, config.seed))
            models.save(objective.average, run.path)
    return run


def _loader(
    acc: Accelerator,
    detector: Detector,
    images: LabelledSet,
    target: UnlabelledSet | None,
    config: Config,
    schedule: ScheduleConfig,
) -> Loader:
    """This process's share of the images, on the detector's canvas."""
    from acclimate.data.dataset import Loader

    teacher = config.adapt.teacher if target is not None else None
    return Loader(
        images, target, detector.spec.image_size, config.augment, schedule, config.seed,
        acc.process_index, acc.num_processes,
        large=teacher.scale if teacher is not None else 1.0,
        weights=_weights(detector, images, target, config),
    )  # fmt: skip


def _weights(
    detector: Detector, images: LabelledSet, target: UnlabelledSet | None, config: Config
) -> NDArray[np.float64] | None:
    """How often each source image is drawn, as `augment.balance` says; None for all alike."""
    from acclimate.data.balance import by_class, by_counts

    boxes = [image.annotations for image in images.images]
    if config.augment.balance == "classes":
        return by_class(boxes, len(images.classes))
    if config.augment.balance == "none" or target is None:
        return None
    from acclimate.adapt.teacher import counted

    return by_counts(boxes, list(stages.class_boxes(images).values()), counted(detector, images, target, config.seed))


def _facts(
    start: str, detector: Detector, images: LabelledSet, target: UnlabelledSet | None = None, **more: Any
) -> dict[str, Any]:
    """What the manifest says of a training: what it started from, the sets and the detector, and `more`."""
    from acclimate.models import detector as models

    facts = {
        "start": start,
        **more,
        "source": stages.describe(images),
        "class_boxes": stages.class_boxes(images),
        "parameters": models.parameters(detector),
        "repeat": stages.repeat(),
    }
    if target is not None:
        facts["target"] = {"images": len(target), "problems": [str(problem) for problem in target.problems][:20]}
    return facts


def _student(teacher: Run, student: str, overrides: Sequence[str]) -> tuple[Run | None, Config]:
    """The run that a student starts from, if any, and the configuration of its training."""
    values = stages.configuration(teacher).model_dump(mode="json")
    spec = teacher.read("spec.json")
    start: Run | None = None
    more: dict[str, Any] = {}
    changes = list(overrides)
    path = Path(student)
    if path.is_dir():
        start = stages.finished(path)
        values["model"] = stages.configuration(start).model.model_dump(mode="json")
    else:
        # A bank's student is a plain detector.
        kind = "dense" if spec.get("kind", "dense") == "slimmable" else spec.get("kind", "dense")
        sections = {name: values["model"][name] for name in ("two_stage", "ssd")}
        values["model"] = {"kind": kind, "image_size": spec["image_size"], "strides": spec["strides"], **sections}
        if "=" in student and not path.exists():
            changes.insert(0, student)
        else:
            more = read(path)
    values["adapt"] = {"teacher": None, "distillation": {"teacher": str(teacher.path)}}
    where = f"{student} and the teacher's config" if more or start else "the teacher's config with overrides"
    merged = merge(overlay(values, more), changes)
    config = parse(Config, merged, where=where)
    named = config.adapt.distillation.model_fields_set if config.adapt.distillation is not None else LESSONS
    dense = config.model.kind == "dense" and spec.get("kind", "dense") in {"dense", "slimmable"}
    if dense and not LESSONS & named:
        # It taught best, on the heads that it was measured on.
        config = parse(Config, merge(merged, ["adapt.distillation.imitation={}"]), where=where)
    if start is not None and config.model != stages.configuration(start).model:
        raise AcclimateError(f"{student}: the student is this run, so its model stays; leave out model.*")
    if config.adapt.distillation is None or config.adapt.distillation.teacher != teacher.path:
        raise AcclimateError("adapt.distillation: the teacher is the first argument of distil; leave it out here")
    return start, config


def taught_by(config: Config) -> tuple[str, ...]:
    """The digest of the weights of the configuration's teacher, if it has one, which must be a finished run."""
    if config.adapt.distillation is None:
        return ()
    return (file_digest(stages.finished(config.adapt.distillation.teacher).path / "model.safetensors"),)


def slim(
    source: str | Path,
    target: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    console: Console | None = None,
) -> Run:
    """Adapt all widths of the slimmable detector of the run `source` at once: `adapt` with the section `adapt.slim`.

    Raises:
        AcclimateError: the detector has one width alone, or as `adapt`.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    parent = stages.finished(Path(source))
    check_slimmable(parent)
    values = stages.configuration(parent).model_dump(mode="json")
    values["adapt"]["slim"] = values["adapt"]["slim"] or {}
    config = parse(Config, merge(values, overrides), where="the source run's config with overrides")
    return adapt(source, target, out, config=config, console=console)


def check_slimmable(run: Run) -> None:
    """Refuse a run whose detector is no bank.

    Raises:
        AcclimateError: it has one width.
    """
    kind = run.read("spec.json").get("kind", "dense")
    if kind != "slimmable":
        raise AcclimateError(
            f"{run.path}: its detector is {kind} and has one width; train one with model.kind=slimmable and start there"
        )


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

    detector = stages.to_device(models.load(run.path))
    truth = formats.read(data, detector.spec.classes, reading=detector.spec.reading)
    result = evaluate_detector(detector, truth, name, role)
    run.write(f"evaluations/{name}.json", result)
    selection = run.selection()
    if hindsight and selection is not None:
        scores = {}
        for step, file in checkpoints(run).items():
            models.load_weights(detector, file)
            scores[step] = evaluate_detector(detector, truth, name, role).ap50
        run.write("selection.json", rank(selection, scores))
    if hindsight and run.has("search/candidates.json"):
        _widths_in_hindsight(run, detector, truth, name, role, console)
    sets = {**run.manifest.notes.get("evaluated_on", {}), name: {**data.model_dump(mode="json"), "role": role}}
    evaluated = {**run.manifest.notes.get("evaluated", {}), name: digest(stages.labelled_digest(truth))}
    run.note(evaluated=evaluated, evaluated_on=sets)
    if console is not None:
        console.print(
            f"{run.path.name} on {name}: AP50 {result.ap50:.3f}, AP {result.ap:.3f} ({result.images} images)",
            markup=False, highlight=False,
        )  # fmt: skip
    return result


def _widths_in_hindsight(
    run: Run, detector: Detector, truth: LabelledSet, name: str, role: Role, console: Console | None
) -> None:
    """AP of widths that a search judged, and how well UPEM ordered them, into search/hindsight.json of the bank."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.evaluate import evaluate_detector
    from acclimate.models.statistics import IMAGES, recalibrate
    from acclimate.select import search as searching
    from acclimate.select.record import Candidates

    judged = parse(Candidates, run.read("search/candidates.json"), where=str(run.path / "search/candidates.json"))
    config = stages.configuration(run)
    seen = choose(formats.unlabelled(Path(judged.target)).paths, IMAGES, config.seed)
    known = []
    chosen = searching.spread(judged.candidates, searching.EVALUATIONS)
    with stages.counting(console, "widths evaluated in hindsight") as tick:
        for done, candidate in enumerate(chosen, 1):
            plain = cast("SlimmableDetector", detector).extract(candidate.width)
            recalibrate(plain, seen)
            measured = evaluate_detector(plain, truth, name, role)
            known.append((candidate, measured.ap, measured.ap50))
            tick(done, len(chosen))
    result = searching.hindsight(name, known)
    run.write("search/hindsight.json", result)
    if console is not None and result.tau:
        told = ", ".join(f"{order} {tau:.2f}" for order, tau in result.tau.items())
        console.print(f"Kendall's tau with AP50 over {len(known)} widths: {told}", highlight=False)
