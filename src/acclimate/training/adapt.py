"""The verb adapt: a trained detector meets unlabelled target images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from acclimate import stages
from acclimate.adapt.source_statistics import kept
from acclimate.config import AdaptConfig, Config, DataConfig, LabelledConfig, finishing, merge, parse
from acclimate.errors import AcclimateError
from acclimate.inputs import Inputs
from acclimate.progress import counting
from acclimate.run import Notes, Run, write_bytes
from acclimate.training.recipe import Recipe, carry_out, recalibrated, taught_by, the_last, weights_of

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.data.labelled import LabelledFrames
    from acclimate.models.detector import Detector, DetectorSpec


def adapt(
    source: str | Path,
    target: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    labelled: DataConfig | None = None,
    asked: str | Path | None = None,
    config: Config | None = None,
    console: Console | None = None,
) -> Run:
    """Adapt the detector of a run to unlabelled images of the target.

    The checkpoint is chosen by a label-free score on target images (`select.score`).

    A method that uses no target image is the fair source-only baseline, further source training of the same length:
    it keeps its last checkpoint, and its manifest has the role "baseline" instead of "adapted".

    Args:
        source: a finished run.
        target: a folder of images, or a .txt list of paths. No label of it is read: it becomes an `UnlabelledSet`,
            which has none.
        out: the run folder to write.
        overrides: `key=value`, changes of the configuration.
        labelled: a few target images that came back from an annotation tool. They are a type of their own
            (`data.labelled`): taken out of the unlabelled target, refused where they meet the test set, and never
            looked at to choose the checkpoint, but for `adapt.labelled.validation` of them, which do nothing else.
        asked: the folder of `ask` that they were labelled in, so that it is told what became of the boxes drawn there;
            not needed where they lie in it.
        config: takes the place of the source run's; its `schedule` is the adaptation's.
        console: where progress goes.

    Raises:
        AcclimateError: `source` is no finished run, `target` has no image, or an override does not fit.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """

    def prepare() -> Recipe:
        parent = stages.finished(Path(source))
        update: dict[str, Any] = {"target": Path(target)}
        if labelled is not None:
            update["labelled"] = labelled
        question = None if asked is None else Path(asked)
        return recipe(parent, _configured(parent, config, overrides).model_copy(update=update), question)

    return carry_out("adapt", out, prepare, console)


def recipe(parent: Run, config: Config, asked: Path | None = None) -> Recipe:
    """What `adapt` does with the detector of a finished run and a configuration that names a target.

    Raises:
        AcclimateError: see `adapt`.
    """
    from acclimate.models import detector as models

    return prepared(
        config, parent.path, models.specification(parent.path), lambda: models.load(parent.path), weights_of(parent),
        asked,
    )  # fmt: skip


def prepared(
    config: Config,
    parent: Path,
    spec: DetectorSpec,
    detector: Callable[[], Detector],
    weights: str,
    asked: Path | None = None,
) -> Recipe:
    """What `adapt` does with a detector, whether it is trained already or not yet.

    Args:
        config: names the source and the target.
        parent: the run folder that the detector is or will be in.
        spec: the detector's.
        detector: makes it.
        weights: SHA-256 of its weights.
        asked: the folder of `ask` that the labelled frames of the configuration come from, if any.

    Raises:
        AcclimateError: see `adapt`.
    """
    from acclimate.adapt.methods import method, uses_target
    from acclimate.data import formats

    config = _with_labels(config)
    if config.source is None:
        alone = {"adapt": config.adapt.without("supervised"), "augment": config.augment.without_source()}
        config = config.model_copy(update=alone)
    if config.target is None:
        raise AcclimateError(f"{parent}: adapting needs a target; name a folder of images")
    adapts = uses_target(config)
    target = formats.unlabelled(config.target)
    frames = _labelled(config, spec, target)
    if frames is not None:
        target = frames.rest
    held = None if frames is None else frames.held
    origin = None
    if (images := _source(config, spec)) is None:
        origin = kept(Run.open(parent))
        source, rates = "source-free", origin.boxes_per_image()
    else:
        source = stages.labelled_digest(images)
        rates = [boxes / len(images) for boxes in stages.class_boxes(images).values()]
    annotated = () if frames is None else (frames.images, *((frames.held,) if frames.held is not None else ()))
    settings = stages.plain(config, "seed", "augment", "adapt", "schedule")
    taught = taught_by(config)
    return Recipe(
        verb="adapt",
        role="adapted" if adapts else "baseline",
        title="adapt" if adapts else "baseline",
        config=config,
        schedule=config.schedule,
        inputs=Inputs(settings, {"the source run": weights, **taught}, images, target if adapts else None,
            *((frames.images, frames.held) if frames is not None else ())),
        identity=(
            "adapt", settings, source, stages.unlabelled_digest(target) if adapts else None,
            weights, *taught.values(), *(stages.labelled_digest(one) for one in annotated),
        ),
        detector=detector,
        method=lambda made, source: method(config.adapt, made, source, config.seed),
        warm=False,
        start=lambda _: f"the source run {parent}",
        parents=(str(parent),),
        origin=origin,
        facts=_facts(frames, config.labelled, asked),
        keep=_Choice(config, parent, rates, target.paths, held).keep if adapts else the_last,
    )  # fmt: skip


def _source(config: Config, spec: DetectorSpec) -> LabelledSet | None:
    """The labelled source images; None where the configuration names none.

    Raises:
        AcclimateError: it names some that are not there, or cannot be used.
    """
    if config.source is None:
        return None
    from acclimate.data import formats

    if not config.source.path.exists():
        raise AcclimateError(
            f"{config.source.path}: the source images are not there; bring them back, name where they are "
            "(source.path=FOLDER), or adapt without them: source=none"
        )
    return formats.read(
        config.source, spec.classes, masks=spec.has_masks or config.augment.needs_masks, reading=spec.reading
    )


def _with_labels(config: Config) -> Config:
    """The configuration with the term that learns from labelled frames where there are some.

    Raises:
        AcclimateError: that term is asked for, and there are none.
    """
    if config.labelled is None:
        if config.adapt.labelled is not None:
            raise AcclimateError("adapt.labelled learns from labelled target images; name them with --labelled SET")
        return config
    if config.adapt.labelled is not None or config.adapt.finishing:
        return config
    return config.model_copy(update={"adapt": config.adapt.model_copy(update={"labelled": LabelledConfig()})})


def _labelled(config: Config, spec: DetectorSpec, target: UnlabelledSet) -> LabelledFrames | None:
    """The labelled frames of the target, matched to it and held against the test set's files."""
    if config.labelled is None or config.adapt.labelled is None:
        return None
    from acclimate.data import formats
    from acclimate.data.labelled import match, refuse_early
    from acclimate.select.ask.question import refuse_untouched

    refuse_untouched(config.labelled.path)
    images = formats.read(
        config.labelled, spec.classes, masks=spec.has_masks or config.augment.needs_masks, reading=spec.reading
    )
    frames = match(images, target).holding_back(config.adapt.labelled.validation, config.seed)
    if config.target_test is not None:
        refuse_early(frames, config.target_test)
    return frames


def _facts(frames: LabelledFrames | None, labelled: DataConfig | None, asked: Path | None) -> Notes:
    """What the manifest says of labelled frames: their contents, so that no test set ever holds them, and what a person
    made of the boxes that were drawn for them."""
    if frames is None or labelled is None:
        return Notes()
    from acclimate.select.ask import question, review

    told: dict[str, Any] = {"matched": frames.matched, "sha256": tuple(frames.contents)}
    if frames.held is not None:
        told["validation"] = stages.describe(frames.held)
    where = question.read(asked) if asked is not None else question.around(labelled.path)
    if where is not None:
        told["corrections"] = review.corrections(where.asked, frames.labelled).model_dump()
    return Notes(labelled=stages.describe(frames.images).model_copy(update=told))


def _configured(parent: Run, config: Config | None, overrides: Sequence[str]) -> Config:
    if config is None:
        config = stages.configuration(parent)
        if parent.manifest.verb == "distil":
            # How a run was taught is no way to adapt it: that starts from the default method.
            config = config.model_copy(update={"adapt": AdaptConfig()})
        elif parent.manifest.verb == "search":
            # It was cut from a bank, and has one width.
            from acclimate.models import detector as models

            kind = models.specification(parent.path).kind
            config = config.model_copy(update={"adapt": config.adapt.for_kind(kind)})
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    merged = merge(values, overrides)
    if finishing(merged["adapt"]) != finishing(values["adapt"]):
        # Nor is how it was adapted a way to prepare it for its device, or the other way round.
        merged = merge({key: value for key, value in values.items() if key not in {"adapt", "schedule"}}, overrides)
    return parse(Config, merged, where="the source run's config with overrides")


@dataclass(frozen=True, slots=True)
class _Choice:
    """How an adaptation's checkpoint is chosen: without labels, unless some frames were held back for it.

    Attributes:
        config: the adaptation's.
        parent: the run folder that it starts from.
        rates: labelled boxes of each class an image of the source.
        target: image files, whose statistics BatchNorm describes where that is asked for.
        held: labelled frames that were held back; None where there are none.
    """

    config: Config
    parent: Path
    rates: Sequence[float]
    target: tuple[Path, ...]
    held: LabelledSet | None

    def keep(self, run: Run, average: Detector, console: Console | None) -> None:
        """Leave the best checkpoint in `average`, and write into the run how it was chosen; see `Recipe.keep`."""
        from acclimate.adapt.engine import checkpoint, checkpoints
        from acclimate.models import detector as models
        from acclimate.select.record import VALIDATION
        from acclimate.select.score import choose_checkpoint
        from acclimate.select.validation import choose_validated

        if self.config.adapt.retakes_statistics:
            for file in checkpoints(run).values():
                models.load_weights(average, file)
                recalibrated(average, self.target, self.config.seed)
                models.save_weights(average, file)
        if not self.config.adapt.finishing:
            # What it was before is a candidate too: an adaptation that harms is not kept.
            write_bytes(checkpoint(run, 0), (self.parent / "model.safetensors").read_bytes())
        with counting(console, "checkpoints scored without labels") as tick:
            selection = choose_checkpoint(
                average, checkpoints(run), self.target, self.config.augment, self.config.seed, self.rates, progress=tick
            )
        if self.held is not None:
            with counting(console, "checkpoints measured on the frames held back") as tick:
                selection, validation = choose_validated(average, checkpoints(run), self.held, selection, tick)
            run.write(VALIDATION, validation)
        run.write("selection.json", selection)
        if console is not None:
            step = selection.chosen_step
            note = "" if step else ": the start, as no checkpoint of the adaptation is better by it"
            console.print(f"chosen: step {step}, by {selection.rule}{note}", highlight=False)
