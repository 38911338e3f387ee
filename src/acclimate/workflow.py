"""One function a verb. Each reads run folders and writes one; nothing else passes between them.

    from acclimate import load_config, workflow

    source = workflow.train(load_config("job.toml"), "runs/source")
    adapted = workflow.adapt(source.path, "site/images", "runs/adapted")
    artifact = workflow.export(adapted.path)

Functions that train need the `train` extra; heavy imports wait until a verb runs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console

from acclimate import stages
from acclimate.config import AdaptConfig, Budget, Config, DataConfig, SlimConfig, merge, overlay, parse, quantises, read
from acclimate.errors import AcclimateError
from acclimate.run import Evaluation, Manifest, Run, digest, file_digest, write_text, writing

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.data.inspect import DataSummary
    from acclimate.edge.artifact import Artifact, MixedPrecision
    from acclimate.edge.package import Package
    from acclimate.edge.watch import Summary
    from acclimate.models.detector import Detector
    from acclimate.models.slimmable import SlimmableDetector
    from acclimate.remote.client import Remote
    from acclimate.remote.identity import Address
    from acclimate.report.leaderboard import Leaderboard
    from acclimate.select.budget import Cost, Table, Width
    from acclimate.select.search import Candidate, Outcome, Space, Survey
    from acclimate.verify import Compared, Verification

log = logging.getLogger(__name__)

Role = Literal["source", "target"]
Precision = Literal["fp32", "fp16", "int8"]
Draw = Literal["diverse", "even", "random"]
BUSY = 1.5
"""A measured latency that is so many times what the latency table says of it was taken on a busier machine."""
MANY = 0.25
"""Of the layers of INT8: with more of them in fp32, fine-tuning is worth its time."""
PICTURES = 6
"""Target images that the report shows before and after."""


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
    from acclimate.data.dataset import Loader
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
    detector = models.build(models.specify(config.model, images.classes), config.model.weights)
    terms: list[Term] = [Supervised()]
    if config.model.kind == "slimmable" and (count := config.model.slimmable.models) > 1:
        terms = [Slim.create(SlimConfig(models=count, ensemble=0), detector, terms, config.seed)]
    objective = Objective(detector, terms, config.train.ema, warm=True)
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
    taught = _taught_by(config)
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
    images = formats.read(config.source, detector.spec.classes, masks=detector.spec.has_masks)
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
    objective = Objective(detector, chosen.terms, config.schedule.ema, warm=False)
    loader = Loader(
        images, unlabelled if adapts else None, detector.spec.image_size, config.augment, config.schedule,
        config.seed, acc.process_index, acc.num_processes,
    )  # fmt: skip
    run = stages.start(acc, Path(out), manifest, console)
    facts = {
        "start": f"the source run {source}",
        "source": stages.describe(images),
        "method": chosen.names,
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
    the section `adapt`, of which `adapt.distillation` alone is on. The run keeps the averaged weights of the last step.

    Raises:
        AcclimateError: a run is not finished, an option does not fit, or the two detectors have different classes or
            canvases, or no stride in common.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    parent = stages.finished(Path(teacher))
    start, config = _student(parent, str(student), overrides)
    config = config.model_copy(update={"target": Path(target) if target is not None else None})
    taught = _taught_by(config)
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
    from acclimate.data.dataset import Loader, choose
    from acclimate.models import detector as models
    from acclimate.models.statistics import IMAGES, recalibrate

    unlabelled = formats.unlabelled(config.target) if config.target is not None else None
    classes = (start or parent).read("spec.json")["classes"]
    images = formats.read(config.source, classes, masks=config.model.has_masks)
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
        detector = models.build(models.specify(config.model, classes), config.model.weights)
    else:
        detector = models.load(start.path)
    chosen = method(config.adapt, detector, images, config.seed)
    blind = [term.name for term in chosen.terms if term.needs_target and any("target" in view for view in term.views)]
    if unlabelled is None and blind:
        raise AcclimateError(f"adapt.{blind[0]} learns from target images; give --target FOLDER, or set it to none")
    objective = Objective(detector, chosen.terms, schedule.ema, warm=start is None)
    loader = Loader(
        images, unlabelled, detector.spec.image_size, config.augment, schedule, config.seed,
        acc.process_index, acc.num_processes,
    )  # fmt: skip
    run = stages.start(acc, Path(out), manifest, console)
    facts = {
        "start": detector.spec.start if start is None else f"the run {start.path}",
        "teacher": str(parent.path),
        "schedule": section,
        "source": stages.describe(images),
        "method": chosen.names,
        "class_boxes": stages.class_boxes(images),
        "parameters": models.parameters(detector),
        "repeat": stages.repeat(),
    }
    if unlabelled is not None:
        facts["target"] = {"images": len(unlabelled), "problems": [str(p) for p in unlabelled.problems][:20]}
    with stages.running(run, acc, config, facts):
        fit(
            run, objective, loader, schedule, acc,
            transforms=chosen.transforms, console=console, title="distil",
        )  # fmt: skip
        if acc.is_main_process:
            if unlabelled is not None and config.adapt.statistics == "target":
                recalibrate(objective.average, choose(unlabelled.paths, IMAGES, config.seed))
            models.save(objective.average, run.path)
    return run


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
    config = parse(Config, merge(overlay(values, more), changes), where=where)
    if start is not None and config.model != stages.configuration(start).model:
        raise AcclimateError(f"{student}: the student is this run, so its model stays; leave out model.*")
    if config.adapt.distillation is None or config.adapt.distillation.teacher != teacher.path:
        raise AcclimateError("adapt.distillation: the teacher is the first argument of distil; leave it out here")
    return start, config


def _taught_by(config: Config) -> tuple[str, ...]:
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
    _slimmable(parent)
    values = stages.configuration(parent).model_dump(mode="json")
    values["adapt"]["slim"] = values["adapt"]["slim"] or {}
    config = parse(Config, merge(values, overrides), where="the source run's config with overrides")
    return adapt(source, target, out, config=config, console=console)


def _slimmable(run: Run) -> None:
    kind = run.read("spec.json").get("kind", "dense")
    if kind != "slimmable":
        raise AcclimateError(
            f"{run.path}: its detector is {kind} and has one width; train one with model.kind=slimmable and start there"
        )


@dataclass(frozen=True, slots=True)
class Search:
    """What `search` leaves: a run for each budget that is met, and one line for each that is not."""

    found: dict[str, Run]
    missed: dict[str, str]


def search(
    bank: str | Path,
    target: str | Path,
    budgets: Mapping[str, Budget],
    out: str | Path,
    *,
    runtime: str = "onnx",
    precision: Precision = "int8",
    evaluations: int | None = None,
    console: Console | None = None,
) -> Search:
    """Find the best width of a bank under each of `budgets`, without labels; each becomes a run with its artifact.

    Widths are judged by UPEM on the unlabelled images in `target`, found by a greedy and an evolutionary search
    (`select.search`), priced by a latency table (`select.budget`), and the best are exported and measured until one
    holds its budget. What was judged and timed is kept in the bank's run, so a search that was interrupted, or the next
    one, does not do it again.

    Args:
        bank: the finished run of a slimmable detector.
        target: unlabelled images.
        budgets: by name; the run of a budget is out/NAME, or `out` for the name "".
        out: where the runs go.
        runtime, precision: what is exported and measured.
        evaluations: widths that evolution judges for each budget; None means `select.search.EVALUATIONS`.
        console: where progress goes.

    Raises:
        AcclimateError: the bank has one width alone, `target` has no image, the precision cannot be exported, or
            `out` holds something else.
    """
    stages.one_process("search")
    bank, target, out = Path(bank), Path(target), Path(out)
    parent = stages.finished(bank)
    _slimmable(parent)
    from acclimate.runtimes import base

    base.check_export(runtime, [precision], "--precision")
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models
    from acclimate.models.slimmable import SlimmableDetector
    from acclimate.select import search as searching

    images = formats.unlabelled(target)
    config = stages.configuration(parent).model_copy(update={"target": target})
    weights = file_digest(bank / "model.safetensors")
    evaluations = searching.EVALUATIONS if evaluations is None else evaluations
    found: dict[str, Run] = {}
    waiting: dict[str, tuple[Budget, Manifest]] = {}
    for name, budget in budgets.items():
        identity = digest(
            "search", weights, stages.unlabelled_digest(images), budget.model_dump(mode="json"), runtime, precision,
            evaluations, config.seed,
        )  # fmt: skip
        notes = {"role": "adapted", "budget": name}
        manifest = Manifest(verb="search", digest=identity, parents=(str(bank),), seed=config.seed, notes=notes)
        known = stages.done_before(out / name, manifest, console)
        if known is None:
            waiting[name] = budget, manifest
        else:
            found[name] = known
    if not waiting:
        return Search(found, {})
    detector = cast(SlimmableDetector, _to_device(models.load(bank)))
    space = searching.Space.of(detector)
    paths = choose(images.paths, searching.IMAGES, config.seed)
    ledger = searching.Ledger(bank / "search" / "judged.jsonl", digest(weights, [str(path) for path in paths]))
    missed: dict[str, str] = {}
    for threads in sorted({budget.threads for budget, _ in waiting.values()}):
        group = {name: one for name, one in waiting.items() if one[0].threads == threads}
        survey = searching.Survey(detector, space, paths, paths, ledger, _every_tenth(console))
        if any(budget.latency_ms or budget.size_mb for budget, _ in group.values()):
            survey.table = _latency_table(parent, survey, space, paths, runtime, precision, threads, console)
        searching.greedy(space, survey.judge, [budget for budget, _ in group.values()])
        for name, (budget, _) in group.items():
            start = list(survey.judged.values())
            seed = (config.seed, *name.encode())
            searching.evolve(space, survey.judge, survey.cost, budget, start, evaluations, seed)
        judged = [survey.judge(width) for width, _ in list(ledger)]
        parent.write("search/candidates.json", searching.Candidates(target=str(target), candidates=tuple(judged)))
        for name, (budget, manifest) in group.items():
            run, line = _settle(
                out / name, name, parent, detector, images.paths, judged, survey.table, budget, manifest, config,
                runtime, precision, console,
            )  # fmt: skip
            if run is not None:
                found[name] = run
            else:
                missed[name] = line
    return Search({name: found[name] for name in budgets if name in found}, missed)


def _every_tenth(console: Console | None) -> Callable[[int], None]:
    def say(judged: int) -> None:
        if console is not None and judged % 10 == 0:
            console.print(f"{judged} widths judged", highlight=False)

    return say


def _latency_table(
    bank: Run,
    survey: Survey,
    space: Space,
    images: Sequence[Path],
    runtime: str,
    precision: Precision,
    threads: int,
    console: Console | None,
) -> Table:
    """The bank's table for this machine: the one that is kept in its run, or a new one."""
    from acclimate.runtimes import base
    from acclimate.select import budget as costs

    name = f"search/{costs.table_name(runtime, precision, threads)}"
    if bank.has(name):
        return parse(costs.Table, bank.read(name), where=str(bank.path / name))
    folder = bank.path / "search" / "timed"
    widths = costs.representative(space.choices, costs.FITTED + costs.HELD_OUT, bank.manifest.seed)

    def export(width: Width) -> tuple[Path, Cost]:
        # Weights and statistics change no latency; a few images calibrate well enough to time.
        artifact = base.runtime(runtime).export(
            survey.plain(width), folder / "-".join(f"{one:g}" for one in width), precision, images[:2]
        )
        return artifact.folder, survey.cost(width).model_copy(update={"size_mb": artifact.size_mb})

    try:
        with stages.counting(console, "widths exported for the latency table") as tick:
            table = costs.take(
                widths, costs.HELD_OUT, export, costs.readable(images, 8),
                runtime=runtime, precision=precision, threads=threads, progress=tick,
            )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bank.write(name, table)
    if console is not None and table.latency_error is not None:
        console.print(
            f"latency table: predictions are off by {table.latency_error:.1%} on {len(table.held_out)} other widths",
            highlight=False,
        )
    return table


def _settle(
    out: Path,
    name: str,
    bank: Run,
    detector: SlimmableDetector,
    images: Sequence[Path],
    judged: Sequence[Candidate],
    table: Table | None,
    budget: Budget,
    manifest: Manifest,
    config: Config,
    runtime: str,
    precision: Precision,
    console: Console | None,
) -> tuple[Run | None, str]:
    """The run of the best width whose verified artifact holds `budget`; else None, and which come nearest."""
    from acclimate import verify as verification
    from acclimate.data.dataset import choose, draw
    from acclimate.models import detector as models
    from acclimate.models.statistics import IMAGES, recalibrate
    from acclimate.select import search as searching

    began = time.monotonic()
    run = Run.create(out, manifest.model_copy(update={"command": stages.repeat()}))
    run.write("config.json", config.model_copy(update={"budget": budget}).model_dump(mode="json"))
    seen = choose(images, IMAGES, config.seed)
    calibration: Sequence[Path] = ()
    if precision == "int8":
        calibration = draw(images, config.export.calibration_images, config.seed, config.export.calibration_choice)

    def measure(candidate: Candidate) -> Cost:
        plain = detector.extract(candidate.width)
        recalibrate(plain, seen)
        models.save(plain, run.path)
        folder = _export(run, runtime, precision, calibration, console, domain=seen)
        result = verification.verify(folder, [], budget, images=seen, run=run)
        if not result.passed:
            # The machine may have been busy.
            again = verification.verify(folder, [], budget, images=seen, run=run)
            result = min(result, again, key=lambda one: one.latency.median_ms)
        verification.judge(folder, result, budget)
        measured = candidate.cost.model_copy(
            update={
                "latency_ms": result.latency.median_ms,
                "size_mb": result.size_mb,
                "memory_mb": result.peak_memory_mb,
            }
        )
        if console is not None:
            console.print(f"measured {_line(candidate.width, measured, budget)}", markup=False, highlight=False)
        return measured

    kept = False
    try:
        outcome = searching.settle(judged, budget, measure)
        if not outcome.met:
            return None, _nearest(name, budget, outcome)
        chosen = outcome.tries[-1]
        run.write(
            "search.json",
            searching.Found(
                name=name,
                bank=str(bank.path),
                budget=budget,
                runtime=runtime,
                precision=precision,
                width=chosen.width,
                upem=chosen.upem,
                predicted=chosen.predicted,
                measured=chosen.measured,
                tries=outcome.tries,
                candidates=tuple(judged),
                latency_error=None if table is None else table.latency_error,
            ),
        )
        run.note(
            width=list(chosen.width), upem=chosen.upem, start=f"the bank {bank.path}", target={"images": len(images)},
            parameters=chosen.predicted.parameters,
        )  # fmt: skip
        kept = True
        run.finish("done", time.monotonic() - began)
    finally:
        if not kept:
            # What is judged and timed is in the bank's run, so nothing is lost.
            shutil.rmtree(out, ignore_errors=True)
    return run, ""


def _nearest(name: str, budget: Budget, outcome: Outcome) -> str:
    """One line about a budget that nothing meets."""
    limits = ", ".join(f"{limit}={value:g}" for limit, value in budget.limits().items())
    tried = min(outcome.tries, key=lambda one: one.measured.excess(budget))
    line = f"{name + ': ' if name else ''}no width meets {limits}; nearest measured: "
    line += _line(tried.width, tried.measured, budget)
    measured, predicted = tried.measured.latency_ms, tried.predicted.latency_ms
    if "latency_ms" in tried.measured.over(budget) and measured and predicted and measured > BUSY * predicted:
        line += f", {measured / predicted:.1f} times as predicted: if the machine was busy, search again when it is not"
    others = [one for one in outcome.nearest if one.width != tried.width]
    if others:
        line += "; by prediction: " + ", ".join(_line(one.width, one.cost, budget) for one in others)
    return line


def _line(width: Width, cost: Cost, budget: Budget) -> str:
    """A width, and what it needs of the limits that are set."""
    needs = ", ".join(f"{limit} {getattr(cost, limit):.4g}" for limit in cost.shares(budget))
    return f"{'/'.join(f'{one:g}' for one in width)}" + (f" ({needs})" if needs else "")


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
    if hindsight and run.has("search/candidates.json"):
        _widths_in_hindsight(run, detector, truth, name, role, console)
    run.note(evaluated={**run.manifest.notes.get("evaluated", {}), name: digest(stages.labelled_digest(truth))})
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

    judged = parse(
        searching.Candidates, run.read("search/candidates.json"), where=str(run.path / "search/candidates.json")
    )
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


def export(
    path: str | Path,
    *,
    runtime: str = "onnx",
    precision: Precision = "int8",
    calibration: str | Path | None = None,
    images: int = 128,
    choice: Draw = "even",
    tolerance: float | None = None,
    console: Console | None = None,
) -> Path:
    """Export a finished run's detector as an artifact in its artifacts/ folder; the artifact's folder.

    INT8 is calibrated on `images` of the unlabelled images in `calibration`, by default the target images that the
    run was adapted to, drawn by `choice` (see `data.dataset.draw`). With a `tolerance` its most sensitive layers stay
    in fp32 until its detections agree so far with fp32's (see `select.mixed`). An artifact that is already there from
    the same weights and options is kept.

    Raises:
        AcclimateError: the run is not finished, the runtime or precision is not to be had, INT8 lacks images, or the
            tolerance does not hold with any layer in INT8.
    """
    from acclimate.runtimes import base

    path = Path(path)
    run = stages.finished(path)
    base.check_export(runtime, [precision], "--precision")
    if precision != "int8":
        if tolerance is not None:
            raise AcclimateError(f"--tolerance says which layers of int8 stay in floating point; {precision} has none")
        return _export(run, runtime, precision, (), console)
    from acclimate.data import formats
    from acclimate.data.dataset import choose, draw
    from acclimate.select.mixed import held_out

    config = stages.configuration(run)
    calibration = calibration or config.target
    if calibration is None:
        raise AcclimateError(f"{path}: INT8 needs images to calibrate on; give --calibration FOLDER_OF_IMAGES")
    paths = formats.unlabelled(Path(calibration)).paths
    chosen = draw(paths, images, config.seed, choice)
    return _export(
        run, runtime, precision, chosen, console,
        domain=choose(paths, images, config.seed),
        tolerance=tolerance,
        compared=held_out(paths, chosen, config.seed) if tolerance is not None else (),
    )  # fmt: skip


def _export(
    run: Run,
    runtime: str,
    precision: Precision,
    calibration: Sequence[Path],
    console: Console | None,
    *,
    domain: Sequence[Path] = (),
    tolerance: float | None = None,
    compared: Sequence[Path] = (),
) -> Path:
    """The artifact of a run's weights; kept where it is there already.

    Args:
        run: a finished run.
        runtime: what it runs on.
        precision: of weights and activations.
        calibration: images for INT8.
        console: where progress goes.
        domain: images as the artifact will see them, for its reference; the run's where there are none.
        tolerance: the agreement with fp32 on the images `compared` that INT8 must have; None asks for none.
        compared: see `tolerance`.
    """
    from acclimate.edge import monitor
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.predict import Predictor
    from acclimate.models import detector as models
    from acclimate.runtimes import base

    folder = run.path / "artifacts" / f"{runtime}-{precision}"
    asked = [] if tolerance is None else [tolerance, [str(path) for path in compared]]
    identity = digest(
        file_digest(run.path / "model.safetensors"), runtime, precision, [str(p) for p in calibration], *asked
    )
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
        images_said = f", calibrated on {len(calibration)} images" if calibration else ""
        console.print(f"exporting {runtime} {precision}{images_said}", highlight=False)
    mixed = None
    if tolerance is None:
        artifact = base.runtime(runtime).export(models.load(run.path), folder, precision, calibration)
    else:
        artifact, mixed = _mixed(run, runtime, folder, calibration, tolerance, compared, console)
    reference = monitor.reference(Predictor(artifact), domain or _of_the_domain(run))
    base.annotate(artifact, source_run=str(run.path), reference=reference, mixed=mixed, identity=identity)
    return folder


def _mixed(
    run: Run,
    runtime: str,
    folder: Path,
    calibration: Sequence[Path],
    tolerance: float,
    compared: Sequence[Path],
    console: Console | None,
) -> tuple[Artifact, MixedPrecision]:
    """Export INT8 with the layers in fp32 that the tolerance asks for; see `_export`."""
    from acclimate.models import detector as models
    from acclimate.runtimes import base
    from acclimate.select.mixed import measure, mix

    exporter = base.runtime(runtime)
    if not isinstance(exporter, base.Mixes):
        raise AcclimateError(f"{runtime} does not mix precisions; export without a tolerance")
    detector = base.frozen_copy(models.load(run.path))
    found: list[MixedPrecision] = []

    def choose(quantiser: base.Quantiser) -> Sequence[str]:
        with stages.counting(console, "layers quantised alone") as tick:
            agrees = measure(quantiser, detector, compared)
            found.append(mix(quantiser.layers, agrees, tolerance, len(compared), tick))
        return found[-1].in_float

    artifact = exporter.export_mixed(detector, folder, calibration, choose)
    if console is not None:
        one = found[-1]
        said = f"{one.before:.3f} -> {one.after:.3f}, {len(one.in_float)} of {one.layers} layers in fp32"
        console.print(f"agreement with fp32 {said}", highlight=False)
        if len(one.in_float) > MANY * one.layers:
            console.print(
                "to have more of them in INT8, try fine-tuning the run for it: "
                f"acclimate adapt {run.path} --target FOLDER --out RUN adapt.quantisation={{}}",
                markup=False, highlight=False,
            )  # fmt: skip
    return artifact, found[-1]


def _of_the_domain(run: Run) -> Sequence[Path]:
    """Images of the domain that a run's detector is for: its target, or what it was trained on."""
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.edge.monitor import IMAGES

    config = stages.configuration(run)
    try:
        if config.target is not None:
            return choose(formats.unlabelled(config.target).paths, IMAGES, config.seed)
        if config.source is not None:
            return choose([image.path for image in formats.read(config.source).images], IMAGES, config.seed)
    except AcclimateError as error:
        log.warning("the artifact gets no reference statistics: %s", error)
    return ()


def package(artifact: str | Path, out: str | Path, *, console: Console | None = None) -> Package:
    """Pack an artifact into the one file that goes to a device; see `edge.package`. Needs no torch.

    Args:
        artifact: an artifact's folder, or a package, which is packed anew.
        out: the file to write.
        console: where the summary goes.

    Raises:
        AcclimateError: the artifact is damaged, what it runs on is not installed, or `out` cannot be written.
    """
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.package import locked, opened, pack
    from acclimate.runtimes.base import distributions

    with opened(Path(artifact)) as folder:
        lock = locked(["acclimate", *distributions(Artifact.open(folder).manifest.runtime)])
        packed = pack(folder, Path(out), lock)
    if console is not None:
        size, count = Path(out).stat().st_size / 1e6, len(lock)
        console.print(f"packed {packed.manifest.artifact}: {size:.2f} MB, {count} packages locked", highlight=False)
        console.print(f"digest: {packed.digest}", highlight=False)
    return packed


def verify(
    artifact: str | Path,
    data: Sequence[tuple[DataConfig, str, Role]] = (),
    budget: Budget | None = None,
    *,
    again: bool = True,
    expected: str = "",
    device: Address | None = None,
    console: Console | None = None,
) -> Verification:
    """Measure an artifact on its own runtime: accuracy against the eager model, parity, latency, size, memory.

    Args:
        artifact: an artifact's folder, or a package.
        data: labelled sets, each with a name and its domain; none measures latency and size alone.
        budget: what must hold; None holds the accuracy tolerance alone.
        again: False takes what was measured before on the same inputs, and holds it against `budget`; a latency that
            broke the budget is measured again all the same, as the machine may have been busy.
        expected: the digest that the package must have; none means any.
        device: where to measure; `remote.identity.address` makes it of a device file. None means here.
        console: where progress goes.

    Raises:
        AcclimateError: the artifact is damaged, a set cannot be used, or the device fails.
    """
    return _verify_at(Path(artifact), data, budget, again=again, expected=expected, device=device, console=console)


def verify_all(
    paths: Sequence[str | Path],
    data: Sequence[tuple[DataConfig, str, Role]] = (),
    budget: Budget | None = None,
    *,
    device: Address | None = None,
    console: Console | None = None,
) -> list[Compared]:
    """Verify several artifacts, each as `verify` does, and with its latency on one and on all threads.

    What cannot be measured, because its runtime is not installed or a file is damaged, is told in its row, and the
    others are measured all the same.

    Args:
        paths: artifacts' folders, packages, and run folders, which stand for all artifacts in them.
        data: as in `verify`.
        budget: as in `verify`.
        device: as in `verify`.
        console: where progress goes.

    Raises:
        AcclimateError: a run has no artifact, no artifact could be measured, a set cannot be used, or the device
            fails.
    """
    from acclimate.remote.client import DeviceError
    from acclimate.verify import Compared

    artifacts = list(dict.fromkeys(found for path in paths for found in _artifacts(Path(path))))
    for one, _, _ in data:
        if not one.path.exists():
            raise AcclimateError(f"{one.path}: no such file or folder")
    eager: dict[tuple[Path, str], Evaluation] = {}
    compared = []
    for path in artifacts:
        try:
            result = _verify_at(path, data, budget, device=device, all_threads=True, eager=eager, console=console)
        except DeviceError:
            raise
        except AcclimateError as error:
            compared.append(Compared(path, None, str(error)))
        else:
            compared.append(Compared(path, result))
    if not any(one.verification for one in compared):
        raise AcclimateError(compared[0].problem)
    return compared


def _artifacts(path: Path) -> list[Path]:
    """The artifacts of a run folder; anything else is an artifact itself."""
    if not path.exists():
        raise AcclimateError(f"{path}: no such artifact, package or run")
    if not (path / "run.json").is_file():
        return [path]
    found = Run.open(path).artifacts()
    if not found:
        raise AcclimateError(f"{path}: has no artifact; make one with acclimate export {path}")
    return found


def _verify_at(
    artifact: Path,
    data: Sequence[tuple[DataConfig, str, Role]],
    budget: Budget | None,
    *,
    again: bool = True,
    expected: str = "",
    device: Address | None = None,
    all_threads: bool = False,
    eager: dict[tuple[Path, str], Evaluation] | None = None,
    console: Console | None,
) -> Verification:
    from acclimate.edge.package import opened
    from acclimate.verify import saved

    with opened(artifact, expected) as folder, contextlib.ExitStack() as stack:
        remote = None
        if device is not None:
            packed = artifact if artifact.is_file() else None
            remote = stack.enter_context(_on_device(device, folder, packed, (budget or Budget()).threads, console))
        result = _verify(folder, data, budget, again, remote, all_threads, eager, console)
        if artifact.is_file():
            with writing(artifact.parent):
                shutil.copyfile(saved(folder, result.machine), saved(artifact, result.machine))
    return result


@contextlib.contextmanager
def _on_device(
    device: Address, folder: Path, packed: Path | None, threads: int, console: Console | None
) -> Iterator[Remote]:
    """A device that has the artifact of `folder` installed; it is packed where `packed` does not hold it already."""
    from acclimate.edge.artifact import Artifact
    from acclimate.edge.package import locked, pack
    from acclimate.remote.client import Remote
    from acclimate.runtimes.base import distributions, why_not

    manifest = Artifact.open(folder).manifest
    remote = Remote(device)
    with contextlib.closing(remote), tempfile.TemporaryDirectory(prefix="acclimate-") as temporary:
        if packed is None:
            # The device has the runtime; the desk need not.
            carried = [] if why_not(manifest.runtime) else distributions(manifest.runtime)
            packed = Path(temporary) / "package.zip"
            pack(folder, packed, locked(["acclimate", *carried]))
        with stages.counting(console, f"bytes of {manifest.name} on {device.name}") as progress:
            unlike = remote.install(packed, len(manifest.output_names), threads, progress)
        if unlike and console is not None:
            console.print(f"{device.name} has other versions than here: {', '.join(unlike)}", highlight=False)
        yield remote


def _verify(
    folder: Path,
    data: Sequence[tuple[DataConfig, str, Role]],
    budget: Budget | None,
    again: bool,
    device: Remote | None,
    all_threads: bool,
    eager: dict[tuple[Path, str], Evaluation] | None,
    console: Console | None,
) -> Verification:
    from acclimate import verify as verification
    from acclimate.edge.artifact import Artifact

    loaded = Artifact.open(folder)
    sets = []
    if data:
        from acclimate.data import formats

        sets = [(formats.read(one, loaded.manifest.classes), name, role) for one, name, role in data]
    threads = (budget or Budget()).threads
    measured_on = [device.address.fingerprint] if device is not None else []
    inputs = digest(
        loaded.digest, threads, [(stages.labelled_digest(s), name, role) for s, name, role in sets], *measured_on
    )
    known = None if again else verification.stored(loaded.folder, device.machine if device is not None else None)
    if known is not None and (known.digest, known.inputs) == (loaded.digest, inputs):
        judged = verification.judge(loaded.folder, known, budget or Budget())
        if all(check.passed for check in judged.checks if check.name == "latency_ms"):
            return judged
    return verification.verify(
        loaded.folder, sets, budget, inputs=inputs, device=device, all_threads=all_threads, eager=eager, console=console
    )


def agent(
    home: str | Path,
    bind: str = "127.0.0.1",
    *,
    disk_mb: float = 1024,
    console: Console | None = None,
) -> None:
    """Measure artifacts on this machine for a desk that has its device file, until Ctrl-C or SIGTERM. Needs no torch.

    Args:
        home: a folder of the agent's own: its identity, `device.toml` for the desk, and what it is sent.
        bind: HOST[:PORT] to listen on; the default can be reached from this machine alone.
        disk_mb: how much the agent keeps there, 10^6 bytes.
        console: where the address is told; what the agent does goes to the log.

    Raises:
        AcclimateError: the `agent` extra is not installed, `home` cannot be written, or `bind` cannot be listened on.
    """
    try:
        from acclimate.remote.agent import Agent, Limits, run
    except ModuleNotFoundError as error:
        raise AcclimateError(f"the agent needs {error.name}: pip install 'acclimate[agent]'") from None
    from acclimate.remote.identity import split

    host, port = split(bind)
    home = Path(home)
    serving = Agent(home, Limits(disk_bytes=int(disk_mb * 1e6)))

    def ready(_: str, port: int) -> None:
        named = socket.gethostname() if host in {"0.0.0.0", "::"} else host
        file = serving.identity.write_device_file(home / "device.toml", named, port)
        if console is not None:
            console.print(f"listening on {host}:{port}, known as {named}", highlight=False)
            console.print(f"fingerprint: {serving.identity.fingerprint}", highlight=False)
            console.print(f"device file: {file} (whoever has it may use this agent)", highlight=False)

    run(serving, host, port, ready)
    if console is not None:
        console.print("stopped", highlight=False)


def predict(
    artifact: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    threads: int = 1,
    expected: str = "",
    console: Console | None = None,
) -> Path:
    """Detect with an artifact or a package in an image, a folder, a list or a video; the JSON file. Needs no torch.

    See `edge.predict.predict_folder` for what is in it; `edge.predict.Predictor` detects in one image at a time.
    Unless `expected` is empty, a package must have that digest.

    Raises:
        AcclimateError: the artifact cannot be used, there is no image, or `out` cannot be written.
    """
    from acclimate.edge.package import opened
    from acclimate.edge.predict import predict_folder

    with opened(Path(artifact), expected) as folder:
        return predict_folder(folder, Path(images), Path(out), threshold=threshold, threads=threads, console=console)


def watch(
    artifact: str | Path, source: str, out: str | Path, *, console: Console | None = None, **options: Any
) -> Summary:
    """Detect in what a camera, a stream, a video or a folder gives until asked to stop. Needs no torch.

    See `edge.watch.watch` for the options and for what is written.

    Raises:
        AcclimateError: the artifact cannot be used, `out` cannot be written, or options do not go together.
    """
    from acclimate.edge.watch import watch

    return watch(artifact, source, out, console=console, **options)


def report(runs: Sequence[str | Path], out: str | Path = "report.html", *, budget: Budget | None = None) -> Path:
    """Write one self-contained HTML page about `runs`; returns the file.

    Raises:
        AcclimateError: a folder is no run, or `out` cannot be written.
    """
    from acclimate.report import page

    return page.write([Path(run) for run in runs], Path(out), budget=budget)


def leaderboard(
    paths: Sequence[str | Path],
    *,
    sort: str = "score",
    as_json: str | Path | None = None,
    as_csv: str | Path | None = None,
    console: Console | None = None,
) -> Leaderboard:
    """One table over runs and runtimes, from what `verify` has stored; nothing is measured. Needs no torch.

    Args:
        paths: artifacts' folders, packages, run folders, and folders of those.
        sort: what ranks rows, one of `report.leaderboard.SORTS`.
        as_json: a file for the rows and what was left out.
        as_csv: a file for the rows.
        console: where the table goes.

    Raises:
        AcclimateError: there is no verification at all, a path does not exist, `sort` is unknown, or a file cannot be
            written.
    """
    from acclimate.report import leaderboard as boards

    board = boards.gather([Path(path) for path in paths], sort)
    if console is not None:
        boards.show(board, console)
    if as_json is not None:
        write_text(Path(as_json), boards.as_json(board))
    if as_csv is not None:
        write_text(Path(as_csv), boards.as_csv(board))
    return board


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
            choice=config.export.calibration_choice,
            tolerance=config.export.tolerance if precision == "int8" else None,
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
    _taught_by(config)
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
