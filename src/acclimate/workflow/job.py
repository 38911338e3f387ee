"""The verb run: the whole chain from one configuration."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from acclimate import __version__, diagnosis, stages
from acclimate.config import Config, DataConfig
from acclimate.errors import AcclimateError, WaitingError
from acclimate.inputs import FILE as INPUTS
from acclimate.progress import Logged, Overview, Stage, overview
from acclimate.run import Role, Run, digest, locked
from acclimate.training import adapt as adapting
from acclimate.training import train as training
from acclimate.training.adapt import adapt
from acclimate.training.recipe import rehearse, specified
from acclimate.training.train import train
from acclimate.workflow.asking import ask
from acclimate.workflow.delivery import export, verify
from acclimate.workflow.evaluating import evaluate
from acclimate.workflow.labelling import label
from acclimate.workflow.showing import report, scenes

if TYPE_CHECKING:
    from acclimate.verification.record import Verification

FOLDERS = ("source", "baseline", "adapted", "oracle")
"""The runs of a job."""
LABELLER = "labeller"
"""The folder of the run that labels the target, where the job has one, and of its labels."""
ASKED = "ask"
"""The folder of its frames to label."""
NEXT_ASKED = "next"
"""And of those that would help most once it is adapted."""
LOG = "run.log"
"""What a job said, each line with its time, of every call."""
PICTURES = 6
"""Target images that the report shows before and after."""


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
        """An artifact meets the budget and the accuracy tolerance, and all of it was measured."""
        return any(one.passed for one in self.verifications)


def run(config: Config, *, console: Console | None = None) -> Job:
    """The whole chain from one configuration: scenes, train, baseline, adapt, oracle, evaluate, export, verify, report.

    A stage whose inputs did not change since the last call is not repeated; one whose inputs did is run anew, and
    what was there before moves to `previous/`.

    Raises:
        WaitingError: the config asks for labels ([ask]), and they are not there yet.
        AcclimateError, Interrupted: as the stages do.
    """
    stages.one_process("run")
    from acclimate import export as exporting

    console = Logged(console, config.out / LOG)
    exporting.check(config.export.runtime, config.export.precisions, "export.precisions")
    with contextlib.ExitStack() as stack:
        # Nobody else may write into any of its folders until the report is there.
        for name in ("", *FOLDERS, *([LABELLER] if config.labeller is not None else [])):
            stack.enter_context(locked(config.out / name, "run"))
        stack.enter_context(console.warnings())
        console.note(f"acclimate {__version__}: {' '.join(sys.argv)}")
        try:
            chain = stack.enter_context(overview(console, _stages(config)))
            job = _run(config, console, chain)
        except AcclimateError as error:
            console.note(f"error: {error}")
            raise
        console.note(f"report: {job.report}")
        return job


def _stages(config: Config) -> list[Stage]:
    """What `run` will do, in order, each with what it is for and its cost: images that are trained on, about."""
    first, second = (one.steps * one.batch_size for one in (config.train, config.schedule))
    trained, tested = ["source", "baseline", "adapted"], 2 * 60.0
    stages = []
    if config.scenes is not None:
        stages.append(Stage("scenes", "images and labels to learn from, generated", 0))
        tested = config.scenes.test_images
    stages += [
        Stage("checks", "every stage's inputs are read before the first one trains", 0),
        Stage("source", "a detector learns from the labelled source images", first),
    ]
    if config.ask is not None:
        stages.append(Stage("ask", "the frames that a person should label are chosen", 50))
    if config.labeller is not None:
        # Of about twice the multiply-accumulates at each place, of which there are the square of the scale.
        cost = 2 * config.labeller.scale**2 * first
        stages.append(
            Stage(LABELLER, "a larger detector learns from the source images, to label the target's for it", cost)
        )
    stages += [
        Stage(
            "baseline",
            "the source detector, trained on for as long as adaptation takes but without the target, to compare "
            "adaptation with",
            second,
        ),
        Stage(
            "adapted",
            "the source detector learns from unlabelled target images too: the one that is exported",
            3 * second,
        ),
    ]
    if config.oracle is not None or config.scenes is not None:
        oracle = (config.train.steps + config.schedule.steps) * config.train.batch_size
        what = "a detector that is trained with target labels: what one could hope for, for comparison alone"
        stages.append(Stage("oracle", what, oracle))
        trained.append("oracle")
    # Forwards alone take a third; of the target, each checkpoint is measured too.
    kept = max(1, config.schedule.steps // max(1, config.schedule.checkpoint_every))
    measured = 0.35 * tested * (2 * len(trained) + 2 * kept)
    stages.append(Stage("evaluate", "accuracy of each on labelled test images", measured))
    for precision in config.export.precisions:
        stages += [
            Stage(f"export {precision}", "the adapted detector becomes an artifact for the device", 100),
            Stage(
                f"verify {precision}", "the artifact is measured on its runtime, against the budget", 0.7 * tested + 100
            ),
        ]
    return [*stages, Stage("report", "one page about all of it", 20)]


def _run(config: Config, console: Logged, chain: Overview) -> Job:
    from acclimate.edge.artifact import Running, Tiles
    from acclimate.verification.show import print_verification

    _check_without_data(config)
    if config.scenes is not None:
        chain.enter("scenes")
    config = _with_scenes(config, console)
    target = config.target
    if config.source is None or target is None:
        raise AcclimateError("the config needs a [source] data set and `target`, a folder of unlabelled images")
    tests = _tests(config)
    longer = _oracle(config)
    place = config.labelled.path if config.labelled is not None else None
    config = _answered(config)
    # The adapted detector is trained for longer than the source run; a fair source-only detector is too.
    alone = config.source_only()
    chain.enter("checks")
    _check_early(config, alone, longer, tests)

    console.begin()
    out = config.out
    chain.enter("source")
    source = stages.take_place(out / "source", lambda: train(config, out / "source", console=console), console)
    if config.ask is not None and config.labelled is None:
        chain.enter("ask")
        _ask(config, source, target, place, console)
    if config.labeller is not None:
        chain.enter(LABELLER)
        config = config.taught(_labelled(config, target, tests, console))
    chain.enter("baseline")
    baseline = stages.take_place(
        out / "baseline", lambda: adapt(source.path, target, out / "baseline", config=alone, console=console), console
    )
    chain.enter("adapted")
    adapted = stages.take_place(
        out / "adapted",
        lambda: adapt(source.path, target, out / "adapted", asked=_asked(config), config=config, console=console),
        console,
    )
    if config.ask is not None:
        _ask_next(config, adapted, target, console)
    oracle = None
    if longer is not None:
        chain.enter("oracle")
        oracle = stages.take_place(
            out / "oracle", lambda: train(longer, out / "oracle", role="oracle", console=console), console
        )
    runs = [source, baseline, adapted, *([oracle] if oracle else [])]
    chain.enter("evaluate")
    for one in runs:
        for test, name, role in tests:
            _evaluate_once(one, test, name, role, console)
    verifications = []
    options = config.export
    running = Running(Tiles(size=options.tiles) if options.tiles else None, options.reduced, options.provider)
    for precision in config.export.precisions:
        chain.enter(f"export {precision}")
        folder = export(
            adapted.path,
            runtime=config.export.runtime,
            precision=precision,
            images=config.export.calibration_images,
            choice=config.export.calibration_choice,
            tolerance=config.export.tolerance if precision == "int8" else None,
            running=running,
            console=console,
        )
        chain.enter(f"verify {precision}")
        verifications.append(verify(folder, tests, config.budget, anew="nothing", console=console))
        print_verification(verifications[-1], console)
    chain.enter("report")
    _pictures(runs, config)
    file = report([one.path for one in runs], out / "report.html", budget=config.budget)
    return Job(file, source, baseline, adapted, oracle, tuple(verifications))


def _with_scenes(config: Config, console: Console | None) -> Config:
    """Generate the data that a [scenes] section asks for, and point the data sets there that are not named."""
    if config.scenes is None:
        return config
    from acclimate.scenes.sets import wanted

    asked = config.scenes
    clear, clear_test, changed, changed_test = (
        stages.take_place(
            asked.out / name,
            functools.partial(
                scenes,
                asked.out / name,
                images,
                asked.size,
                seed,
                condition,
                asked.strength,
                asked.field_of_view,
                console=console,
            ),
            console,
        )
        for name, condition, images, seed in wanted(asked, config.seed)
    )
    clear, clear_test, changed, changed_test = (
        one.model_copy(update={"full": asked.full}) for one in (clear, clear_test, changed, changed_test)
    )
    return config.model_copy(
        update={
            "source": config.source or clear,
            "target": config.target or changed.path.parent / "images",
            "source_test": config.source_test or clear_test,
            "target_test": config.target_test or changed_test,
            "oracle": config.oracle or changed,
        }
    )


def _labelled(
    config: Config, target: Path, tests: Sequence[tuple[DataConfig, str, Role]], console: Console | None
) -> Path:
    """What the labeller finds in the target's images: the file, in the folder of its run."""
    from acclimate.data import formats

    assert config.labeller is not None
    folder, flip = config.out / LABELLER, config.labeller.flip
    own = config.of_labeller()
    labeller = stages.take_place(folder, lambda: train(own, folder, console=console), console)
    for test, name, role in tests:
        _evaluate_once(labeller, test, name, role, console)
    # The folder is of these weights, the name of these images, so what is there is known to be of both.
    seen = digest([stages.unlabelled_digest(formats.unlabelled(target)), flip])
    file = folder / f"labels-{seen[:8]}.json"
    if not file.is_file():
        label(target, folder, file, flip=flip, console=console)
    return file


def _answered(config: Config) -> Config:
    """The configuration with the labels that a person was asked for; without any where they are not there yet.

    They are in the set `labelled`, or, where none is named, in the one folder of the question that somebody changed.

    Raises:
        AcclimateError: several were.
    """
    if config.ask is None:
        return config
    if config.labelled is not None:
        there = config.labelled if config.labelled.path.exists() else None
        return config.model_copy(update={"labelled": there})
    from acclimate.select.ask import question

    folder = config.out / ASKED
    if not (folder / question.FILE).is_file():
        return config
    touched = question.read(folder).touched()
    if len(touched) > 1:
        names = " and ".join(str(path) for path in touched)
        raise AcclimateError(f"{names}: both were annotated; say which with labelled.path={touched[0]}")
    return config.model_copy(update={"labelled": DataConfig(path=touched[0]) if touched else None})


def _ask(config: Config, source: Run, target: Path, place: Path | None, console: Console | None) -> None:
    """Ask for labels, and end.

    Raises:
        WaitingError: always; the same call goes on once they are there.
    """
    assert config.ask is not None
    wanted = config.ask
    folder = config.out / ASKED
    asked = stages.take_place(
        folder,
        lambda: ask(source.path, target, folder, frames=wanted.frames, way=wanted.way, console=console),
        console,
    ).asked
    where = "" if place is None else f", with the labels in {place}"
    raise WaitingError(f"waiting for {len(asked.frames)} frames; annotate {folder} and run again{where}")


def _asked(config: Config) -> Path | None:
    """The folder of the job's question, where there is one: labels may have come back to another place."""
    from acclimate.select.ask import question

    folder = config.out / ASKED
    return folder if config.ask is not None and (folder / question.FILE).is_file() else None


def _ask_next(config: Config, adapted: Run, target: Path, console: Console | None) -> None:
    """Choose the frames that would help most now, for the report and for whoever goes on labelling."""
    from acclimate.select.ask.question import NEXT, Next, NextFrame

    assert config.ask is not None
    wanted, folder = config.ask, config.out / NEXT_ASKED
    sets = adapted.read(INPUTS)["sets"]
    known = [Path(file) for name in ("labelled", "validation") for file in sets.get(name, {}).get("files", ())]
    try:
        asked = stages.take_place(
            folder,
            lambda: ask(
                adapted.path, target, folder,
                frames=wanted.frames, way=wanted.way, asked=known, console=console,
            ),
            console,
        ).asked  # fmt: skip
    except AcclimateError as error:
        # A job is not in vain because nothing is left to ask.
        if console is not None:
            console.print(f"no frames to label next: {error}", markup=False, highlight=False)
        return
    frames = tuple(NextFrame(path=frame.path, why=frame.why) for frame in asked.frames)
    adapted.write(NEXT, Next(folder=str(folder), frames=frames))


def _tests(config: Config) -> list[tuple[DataConfig, str, Role]]:
    tests: list[tuple[DataConfig, str, Role]] = []
    if config.source_test is not None:
        tests.append((config.source_test, "source_test", "source"))
    if config.target_test is not None:
        tests.append((config.target_test, "target_test", "target"))
    return tests


def _oracle(config: Config) -> Config | None:
    """The configuration of the oracle; None where no labelled target set is named."""
    if config.oracle is None:
        return None
    # The adapted detector has had both schedules' steps; a fair ceiling has them too.
    steps = config.train.steps + config.schedule.steps
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def _check_without_data(config: Config) -> None:
    """Find a mistake in the detector's options before scenes are generated, or earlier ones moved, for it.

    Raises:
        AcclimateError: the detector cannot be built.
    """
    if config.scenes is not None:
        from acclimate.scenes.render import CLASSES

        specified(config, CLASSES)


def _check_early(
    config: Config, alone: Config, longer: Config | None, tests: Sequence[tuple[DataConfig, str, Role]]
) -> None:
    """Find a mistake in what any stage needs before the first has trained for hours, and before anything is moved.

    Each stage's inputs are read, its detector and its losses are made, and the test sets' classes are held against the
    detector's. What is read of target labels here is forgotten at once.

    Raises:
        AcclimateError: as the stages would, later.
    """
    from acclimate.data import formats
    from acclimate.data.labelled import refuse_tested
    from acclimate.models import detector as models

    if config.labeller is not None:
        rehearse(training.recipe(config.of_labeller()))
    recipe = training.recipe(config)
    assert recipe.inputs.source is not None
    spec = models.specify(config.model, recipe.inputs.source.classes, recipe.inputs.source.reading)
    rehearse(recipe)
    for part in (alone, config):
        adaptation = adapting.prepared(part, config.out / "source", spec, lambda: models.build(spec), "")
        rehearse(adaptation)
    frames = adaptation.facts.labelled
    contents = frames.sha256 if frames is not None else ()
    if longer is not None:
        training.recipe(longer, "oracle")
    for test, name, _ in tests:
        try:
            truth = formats.read(test, spec.classes, reading=spec.reading)
            refuse_tested(dict.fromkeys(contents, "the labelled set"), truth.paths, str(test.path))
        except AcclimateError as error:
            raise AcclimateError(f"{name}: {error}") from None


def _evaluate_once(run: Run, data: DataConfig, name: str, role: Role, console: Console | None) -> None:
    from acclimate.data import formats

    truth = formats.read(data, run.read("spec.json")["classes"])
    known = Run.open(run.path).manifest.notes.evaluated.get(name)
    there = all(run.has(f"{folder}/{name}.json") for folder in ("evaluations", diagnosis.FOLDER))
    if known != digest(stages.labelled_digest(truth)) or not there:
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

        detector = models.to_device(models.load(run.path))
        found = find(detector, chosen)
        readable = [(path, one) for path, one in zip(chosen, found, strict=True) if one is not None]
        pictures.save(
            run, [path for path, _ in readable], [one for _, one in readable], detector.spec.classes,
            reading=detector.spec.reading,
        )  # fmt: skip
