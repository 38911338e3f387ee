"""The one way in which a detector is trained: inputs -> digest -> run -> fit -> keep.

A verb says what goes in (`Recipe`); `carry_out` does the rest in the same order for each: everything is read and looked
through before a folder is touched, a run of the same inputs is taken up where it stopped, and whatever happens leaves a
run folder that says how it stands.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from acclimate import stages, trackers
from acclimate.adapt.source_statistics import FILE as STATISTICS
from acclimate.adapt.source_statistics import SourceStatistics
from acclimate.config import Config, ScheduleConfig
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError, Interrupted
from acclimate.inputs import FILE, Inputs
from acclimate.run import Manifest, Notes, Run, SetNotes, digest, file_digest, locked

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from acclimate.adapt.methods import Method
    from acclimate.data.dataset import Loader
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.data.scored import Found
    from acclimate.models.detector import Detector, DetectorSpec

log = logging.getLogger(__name__)


def the_last(run: Run, average: Detector, console: Console | None) -> None:
    """Keep the averaged weights of the last step; see `Recipe.keep`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training is made of.

    Attributes:
        verb: the verb, as the manifest has it.
        role: what the run is for: "source", "oracle", "baseline" or "adapted".
        title: of the progress bar.
        config: the resolved configuration.
        schedule: the schedule that it trains for, one of those in `config`.
        inputs: all that determines the result; its target is None where no target image is looked at.
        identity: what the digest is of, in an order that never changes.
        detector: makes the detector that is trained; called once the seed is set, and only if there is something to do.
        method: makes the losses, and what happens to gradients, for it and the labelled images.
        warm: whether the averaged weights start afresh, as the detector's are not trained yet.
        start: what the detector starts from, for the manifest.
        parents: the runs that it is made from.
        origin: what is kept of the source, where its images are not there.
        facts: more for the manifest.
        keep: given the run, the averaged detector and the console, does what is left once it is trained.
    """

    verb: str
    role: str
    title: str
    config: Config
    schedule: ScheduleConfig
    inputs: Inputs
    identity: tuple[Any, ...]
    detector: Callable[[], Detector]
    method: Callable[[Detector, LabelledSet | SourceStatistics], Method]
    warm: bool
    start: Callable[[Detector], str]
    parents: tuple[str, ...] = ()
    origin: SourceStatistics | None = None
    facts: Notes = field(default_factory=Notes)
    keep: Callable[[Run, Detector, Console | None], None] = the_last

    @property
    def source(self) -> LabelledSet | SourceStatistics:
        """The labelled source images, or what is kept of them."""
        source = self.inputs.source or self.origin
        assert source is not None
        return source

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            verb=self.verb,
            digest=digest(*self.identity),
            parents=self.parents,
            seed=self.config.seed,
            notes=Notes(role=self.role),
        )


def carry_out(verb: str, out: str | Path, prepare: Callable[[], Recipe], console: Console | None) -> Run:
    """Do what the recipe says in the run folder `out`, which is this process's until it is done.

    Args:
        verb: for whoever finds the folder taken.
        out: the run folder.
        prepare: reads the inputs and looks them through.
        console: where progress goes.

    Raises:
        AcclimateError: as `prepare` does; or `out` holds something else, or another process writes there.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    out = Path(out)
    with locked(out, verb):
        return _carried_out(prepare(), out, console)


def _carried_out(recipe: Recipe, out: Path, console: Console | None) -> Run:
    import torch

    from acclimate.adapt.engine import Telling, accelerator, fit
    from acclimate.adapt.objective import Objective
    from acclimate.data.dataset import Loader, Process, TrainingSets, Views
    from acclimate.models import detector as models

    config, schedule, inputs = recipe.config, recipe.schedule, recipe.inputs
    acc = accelerator(schedule.precision)
    begun = stages.known(out, recipe.manifest, inputs)
    if begun is not None and stages.done(begun, console):
        return begun
    if begun is not None and begun.has(FILE):
        inputs = inputs.in_the_places_of(begun.read(FILE))
    torch.manual_seed(config.seed)
    detector = recipe.detector()
    method = recipe.method(detector, inputs.source or recipe.source)
    by_domain = inputs.target is not None and config.adapt.by_domain
    objective = Objective(detector, method.terms, schedule.ema, warm=recipe.warm, by_domain=by_domain)
    sets = TrainingSets(
        inputs.source,
        inputs.target,
        labelled=inputs.labelled,
        share=config.adapt.labelled_share,
        weights=_drawn(detector, inputs.source, inputs.target, config),
        found=_found(config, detector, inputs.target),
        reading=detector.spec.reading,
    )
    large = config.adapt.largest_view if inputs.target is not None else 1.0
    views = Views(detector.spec.image_size, config.augment, large)
    loader = Loader(sets, views, schedule, config.seed, Process(acc.process_index, acc.num_processes))
    run = stages.start(acc, out, recipe.manifest, recipe.inputs, begun, console)
    if acc.is_main_process and console is not None:
        _tell_problems(inputs, console)
    facts = _facts(recipe, detector, inputs) | Notes(method=tuple(method.names))
    with stages.running(run, acc, config, facts):
        sent = trackers.tracked(run, config.model_dump(mode="json", exclude_none=True))
        tracking = sent if acc.is_main_process else contextlib.nullcontext(lambda step, values: None)
        with tracking as track, _noting_left_out(run, loader, acc, console):
            telling = Telling(recipe.title, console, track)
            fit(run, objective, loader, schedule, acc, transforms=method.transforms, telling=telling)
        if acc.is_main_process:
            recipe.keep(run, objective.average, console)
            _keep_statistics(run, recipe.source, objective.average)
            models.save(objective.average, run.path)
    return run


def _keep_statistics(run: Run, source: LabelledSet | SourceStatistics, average: Detector) -> None:
    """Keep what an adaptation needs of the source once its images are gone."""
    from acclimate.adapt.source_free import measure_source

    try:
        kept = source if isinstance(source, SourceStatistics) else measure_source(average, source)
    except AcclimateError as error:
        # The training is whole all the same.
        log.warning("%s; so %s keeps nothing of its source, and cannot be adapted without it", error, run.path)
        return
    run.write(STATISTICS, kept)


def _facts(recipe: Recipe, detector: Detector, inputs: Inputs) -> Notes:
    """What the manifest says of a training: what it started from, the sets and the detector."""
    from acclimate.models import detector as models

    facts = (
        recipe.facts
        | _source_facts(recipe, inputs)
        | Notes(start=recipe.start(detector), parameters=models.parameters(detector), repeat=stages.repeat())
    )
    if inputs.target is None:
        return facts
    problems = tuple(str(problem) for problem in inputs.target.problems)
    told = SetNotes(images=len(inputs.target), problems=problems[:20], problem_count=len(problems))
    return facts | Notes(target=told)


def _source_facts(recipe: Recipe, inputs: Inputs) -> Notes:
    if inputs.source is not None:
        return Notes(source=stages.describe(inputs.source), class_boxes=stages.class_boxes(inputs.source))
    assert recipe.origin is not None
    return Notes(source=recipe.origin.describe(), class_boxes=recipe.origin.boxes, source_free=True)


def _tell_problems(inputs: Inputs, console: Console) -> None:
    for role, images in (("source", inputs.source), ("target", inputs.target), ("labelled", inputs.labelled)):
        if images is not None and images.problems:
            count = len(images.problems)
            told = f"{role}: {count} problem{'s' * (count > 1)}, the first: {images.problems[0]}"
            console.print(f"{told} (acclimate data lists them all)", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _noting_left_out(run: Run, loader: Loader, acc: Accelerator, console: Console | None) -> Iterator[None]:
    """Whatever ends the training, write into the manifest which images could not be read and took no part.

    They are the note `left_out`: for each role the problems that there were in this session or an earlier one.
    """
    together = False
    try:
        yield
        together = True
    except Interrupted:
        together = True
        raise
    finally:
        own = [loader.left_out]
        if together and acc.num_processes > 1:
            from accelerate.utils import gather_object

            own = gather_object(own)
        if acc.is_main_process:
            left_out: dict[str, dict[str, None]] = {
                role: dict.fromkeys(facts.problems) for role, facts in run.manifest.notes.left_out.items()
            }
            for found in own:
                for role, files in found.items():
                    lines = {f"{path}: {reason.partition(';')[0]}; left out": None for path, reason in files.items()}
                    left_out.setdefault(role, {}).update(lines)
            if left_out:
                # A full disk must not hide what ended the training.
                with contextlib.suppress(*(() if together else (AcclimateError,))):
                    told_of = {role: SetNotes(problems=tuple(lines)) for role, lines in left_out.items()}
                    run.note(Notes(left_out=told_of))
            for role, lines in left_out.items():
                if console is not None:
                    told = f"{len(lines)} {role} image{'s' * (len(lines) > 1)} could not be read and took no part"
                    console.print(f"{told} (the first: {next(iter(lines))})", markup=False, highlight=False)


def _drawn(
    detector: Detector, images: LabelledSet | None, target: UnlabelledSet | None, config: Config
) -> NDArray[np.float64] | None:
    """How often each source image is drawn, (N,), as `augment.balance` says; None for all alike."""
    from acclimate.data.balance import by_class, by_counts

    if images is None:
        return None
    boxes = [image.annotations for image in images.images]
    if config.augment.balance == "classes":
        return by_class(boxes, len(images.classes))
    if config.augment.balance == "none" or target is None:
        return None
    from acclimate.adapt.teacher import counted

    return by_counts(boxes, list(stages.class_boxes(images).values()), counted(detector, images, target, config.seed))


def _found(config: Config, detector: Detector, target: UnlabelledSet | None) -> dict[Path, Found] | None:
    """What a labeller has found in the target images, where the method learns from one."""
    file = config.adapt.found
    if file is None or target is None:
        return None
    from acclimate.data import scored

    return scored.read(file).of(target.paths, detector.spec.classes, file)


def specified(config: Config, classes: tuple[str, ...], reading: Reading = DEFAULT) -> DetectorSpec:
    """The specification that a configuration asks for, of a detector that can be built.

    Raises:
        AcclimateError: it cannot: an option does not fit, there is no such backbone, no such file of weights, or the
            run that it is to start from has another architecture.
    """
    import torch

    from acclimate.models import detector as models
    from acclimate.models import transfer

    spec = models.specify(config.model, classes, reading)
    # On this device tensors have a shape and no memory, so that a mistake is found before anything is moved or loaded.
    with torch.device("meta"):
        models.build(spec, "none")
    if isinstance(config.model.weights, Path) and not config.model.weights.is_file():
        raise AcclimateError(f"model.weights: {config.model.weights}: no such file")
    if config.model.start is not None:
        stages.finished(config.model.start)
        transfer.check(config.model, spec)
    return spec


def rehearse(recipe: Recipe) -> None:
    """Make what the recipe trains, on one image, to find what would stop it later.

    Raises:
        AcclimateError: the method is not for this detector, or an option does not fit.
    """
    import torch

    from acclimate.adapt.objective import Objective

    source = recipe.source
    state = torch.random.get_rng_state()
    detector = recipe.detector()
    if not isinstance(source, SourceStatistics):
        source = replace(source, images=source.images[:1])
    method = recipe.method(detector, source)
    Objective(detector, method.terms, recipe.schedule.ema, warm=recipe.warm)
    torch.random.set_rng_state(state)


def weights_of(run: Run) -> str:
    """SHA-256 of a run's weights."""
    return file_digest(run.path / "model.safetensors")


def started_from(config: Config) -> dict[str, str]:
    """The weights that a detector to be trained starts from, by what they are: of the run that `model.start` names,
    which must be finished, and of a checkpoint of `transformers`; empty where there are neither.

    Raises:
        AcclimateError: the run is not finished, or there is no such checkpoint.
    """
    start, checkpoint = config.model.start, config.model.transformers.checkpoint
    runs = [run for run in (start, config.model.two_stage.transfer) if run is not None]
    begun = {f"the run {run}": weights_of(stages.finished(run)) for run in runs}
    if config.model.kind == "transformers" and start is None and config.model.weights != "none":
        from acclimate.models.transformers import digest_of, folder_of

        begun[f"the checkpoint {checkpoint}"] = digest_of(folder_of(checkpoint))
    return begun


def taught_by(config: Config) -> dict[str, str]:
    """What the configuration's method learns from beside images, by what it is: the weights of runs, which must be
    finished, and a labeller's labels.

    Raises:
        AcclimateError: a run is not finished, or the file of labels is not there.
    """
    taught = {f"the run {path}": weights_of(stages.finished(path)) for path in config.adapt.runs}
    for what, file in config.adapt.files.items():
        if not file.is_file():
            raise AcclimateError(f"adapt: {what}: no such file")
        taught[what] = file_digest(file)
    return taught


def recalibrated(average: Detector, paths: tuple[Path, ...], seed: int) -> None:
    """Take BatchNorm's running statistics of a detector anew, from a draw of these images."""
    from acclimate.data.dataset import choose
    from acclimate.models.statistics import IMAGES, recalibrate

    recalibrate(average, choose(paths, IMAGES, seed))
