"""The verb distil: a small detector learns from a large one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from acclimate import stages
from acclimate.config import Config, ImitationConfig, merge, overlay, parse, read
from acclimate.errors import AcclimateError
from acclimate.inputs import Inputs
from acclimate.run import Notes, Run
from acclimate.training.recipe import Recipe, carry_out, recalibrated, specified, started_from, taught_by, weights_of

if TYPE_CHECKING:
    from acclimate.adapt.methods import Method
    from acclimate.adapt.source_statistics import SourceStatistics
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.models.detector import Detector


log = logging.getLogger(__name__)

COMPARED = 100
"""Source images on which a teacher and its student are compared."""
MARGIN = 2.0
"""Points of AP50 by which a student is better before it is said."""
SIZES = ("nano", "tiny", "small")
"""Of a student that is named by its size alone."""


def distil(
    teacher: str | Path,
    student: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    target: str | Path | None = None,
    console: Console | None = None,
) -> Run:
    """Train a small detector that learns from a large one, on its source and on unlabelled images of the target.

    A student of its own model has the teacher's kind, canvas, strides and classes unless told otherwise (of a teacher
    of `transformers` it is a dense detector with strides of its own), starts from its backbone's weights and trains for
    the schedule `train`; one that is a run trains on for `schedule`. Everything else is the teacher's configuration,
    but for the section `adapt`, of which `adapt.distillation` alone is on. Where that names none of its parts, the
    student learns the teacher's outputs, and a dense one of a dense teacher its features near objects too. The run
    keeps the averaged weights of the last step, and a teacher that knows the source less well than its student is told.

    Args:
        teacher: the finished run of the large detector.
        student: the run of a detector to start from, the name of a size (`nano`, `tiny`, `small`), a TOML file with a
            [model] section (and others where they are to differ), or one `key=value`.
        out: the run folder to write.
        overrides: `key=value`, changes of the configuration.
        target: a folder of unlabelled images, or a .txt list of paths; None learns on the source alone.
        console: where progress goes.

    Raises:
        AcclimateError: a run is not finished, an option does not fit, or the two detectors have different classes or
            canvases, or no stride in common.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """

    def prepare() -> Recipe:
        parent = stages.finished(Path(teacher))
        start, config = _student(parent, str(student), overrides)
        images = Path(target) if target is not None else None
        return recipe(parent, start, config.model_copy(update={"target": images}))

    return carry_out("distil", out, prepare, console)


def recipe(parent: Run, start: Run | None, config: Config) -> Recipe:
    """What `distil` does with a teacher's run, the run that the student starts from, if any, and its configuration.

    Raises:
        AcclimateError: see `distil`.
    """
    for name in config.adapt.finishing:
        raise AcclimateError(
            f"adapt.{name} fine-tunes a detector that is trained; leave it out here, and then `acclimate adapt` the "
            "student with it"
        )
    if config.source is None:
        raise AcclimateError(f"{parent.path}: its configuration names no source data set; name one: source.path=FOLDER")
    from acclimate.data import formats
    from acclimate.models import detector as models
    from acclimate.models import transfer

    target = formats.unlabelled(config.target) if config.target is not None else None
    known = models.specification((start or parent).path)
    classes = known.classes
    images = formats.read(
        config.source, classes, masks=config.model.has_masks or config.augment.needs_masks, reading=known.reading
    )
    section = "train" if start is None else "schedule"
    settings = stages.plain(config, "seed", "model", "augment", "adapt", section)
    taught = taught_by(config)
    started = started_from(config) if start is None else {}
    begun = weights_of(start) if start is not None else None
    spec = specified(config, classes, images.reading) if start is None else models.specification(start.path)
    return Recipe(
        verb="distil",
        role="source" if target is None else "adapted",
        title="distil",
        config=config,
        schedule=config.train if start is None else config.schedule,
        inputs=Inputs(settings, {**taught, **started, **({"the student": begun} if begun else {})}, images, target),
        identity=(
            "distil", settings, stages.labelled_digest(images),
            stages.unlabelled_digest(target) if target is not None else None, *taught.values(), begun,
            *started.values(),
        ),
        detector=lambda: transfer.begin(config.model, spec) if start is None else models.load(start.path),
        method=lambda detector, source: _method(config, detector, source),
        warm=start is None,
        start=lambda detector: detector.spec.start if start is None else f"the run {start.path}",
        parents=tuple(str(run.path) for run in (parent, start) if run is not None),
        facts=Notes(teacher=str(parent.path), schedule=section),
        keep=lambda run, average, console: _keep(config, parent, images, target, average),
    )  # fmt: skip


def _method(config: Config, detector: Detector, source: LabelledSet | SourceStatistics) -> Method:
    from acclimate.adapt.methods import method

    chosen = method(config.adapt, detector, source, config.seed)
    blind = [term.name for term in chosen.terms if term.needs_target and any("target" in view for view in term.views)]
    if config.target is None and blind:
        raise AcclimateError(f"adapt.{blind[0]} learns from target images; give --target FOLDER, or set it to none")
    return chosen


def _keep(config: Config, teacher: Run, source: LabelledSet, target: UnlabelledSet | None, average: Detector) -> None:
    from acclimate.models import detector as models

    if target is not None and config.adapt.retakes_statistics:
        recalibrated(average, target.paths, config.seed)
    told = outdone(models.load(teacher.path).to(next(average.parameters()).device), average, source)
    if told is not None:
        log.warning("%s: the teacher %s", teacher.path, told)


def outdone(teacher: Detector, student: Detector, source: LabelledSet) -> str | None:
    """What is to be said of a teacher that its student outdoes by the source's labels: what it does not find is
    background to the student on the target too, where no label says otherwise. None where it does not.

    Args:
        teacher: on its device.
        student: on its device.
        source: labelled images, of which some are looked at.
    """
    from acclimate.data.dataset import part_of
    from acclimate.evaluate import evaluate_detector

    truth = part_of(source, COMPARED, 0)
    try:
        found, own = (
            100 * evaluate_detector(detector, truth, source.name, "source").ap50 for detector in (teacher, student)
        )
    except AcclimateError:
        return None
    if own - found <= MARGIN:
        return None
    return (
        f"finds less than its student by the source's own labels (AP50 {found:.0f} and {own:.0f}, on "
        f"{len(truth.paths)} images), so it holds it back on the target: "
        "train it longer, take another, or leave it out (acclimate adapt)"
    )


def _student(teacher: Run, student: str, overrides: Sequence[str]) -> tuple[Run | None, Config]:
    """The run that a student starts from, if any, and the configuration of its training."""
    from acclimate.models import detector as models

    settings = stages.configuration(teacher)
    values = settings.model_dump(mode="json")
    spec = models.specification(teacher.path)
    start: Run | None = None
    more: dict[str, Any] = {}
    changes = list(overrides)
    path = Path(student)
    if path.is_dir():
        start = stages.finished(path)
        values["model"] = stages.configuration(start).model.model_dump(mode="json")
    else:
        teaches = models.family(spec.kind)
        kind = teaches.student or teaches.kind
        # Of another family, its levels are those that are usual there.
        strides = spec.strides if issubclass(teaches, models.family(kind)) else None
        sections = {name: values["model"][name] for name in settings.model.of_kinds}
        values["model"] = {"kind": kind, "image_size": spec.image_size, "strides": strides, **sections}
        if student in SIZES and not path.exists():
            changes.insert(0, f"model.size={student}")
        elif "=" in student and not path.exists():
            changes.insert(0, student)
        else:
            more = read(path)
    values["adapt"] = {"teacher": None, "distillation": {"teacher": str(teacher.path)}}
    where = f"{student} and the teacher's config" if more or start else "the teacher's config with overrides"
    config = parse(Config, merge(overlay(values, more), changes), where=where)
    taught = config.adapt.distillation
    learns = models.family(config.model.kind)
    imitates = learns.imitates and issubclass(models.family(spec.kind), learns)
    if imitates and taught is not None and not taught.names_a_lesson:
        # It taught best, on the heads that it was measured on.
        taught = taught.model_copy(update={"imitation": ImitationConfig()})
        config = config.model_copy(update={"adapt": config.adapt.model_copy(update={"distillation": taught})})
    if start is not None and config.model != stages.configuration(start).model:
        raise AcclimateError(f"{student}: the student is this run, so its model stays; leave out model.*")
    if config.adapt.distillation is None or config.adapt.distillation.teacher != teacher.path:
        raise AcclimateError("adapt.distillation: the teacher is the first argument of distil; leave it out here")
    return start, config
