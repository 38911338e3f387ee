"""The verb take: a detector that somebody has trained elsewhere becomes a source run, without training. And weights."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from acclimate import stages
from acclimate.config import Config, DataConfig, merge, overlay, parse
from acclimate.errors import AcclimateError
from acclimate.inputs import FILE, Inputs
from acclimate.run import Evaluation, Manifest, Notes, Run, digest, file_digest, locked
from acclimate.workflow.evaluating import evaluate

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

TEST = "source_test"
"""What the evaluation on the source is called, as `evaluate --source` calls it."""

SUSPECT = 0.01
"""AP50 of a class below which its name is likely to be the wrong one."""

_OF_THE_DATA = ("source", "source_test", "target", "target_test", "oracle", "scenes", "budget", "out")
"""Sections of a run from elsewhere that are about its data and its machine."""


def take(
    checkpoint: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    classes: Sequence[str] = (),
    model: str = "",
    console: Console | None = None,
) -> Run:
    """Make a source run of a detector that exists: a torchvision `state_dict`, a checkpoint of Hugging Face's
    `transformers`, or an acclimate run from elsewhere.

    It is evaluated at once on `source_test`, or on `data` where there is none, so that a wrong mapping is seen.

    Args:
        checkpoint: the file, the run folder, the checkpoint folder, or a name on the hub.
        out: the run folder to write.
        overrides: `key=value` of the configuration that the run is to have, such as `source_test.path=FOLDER`.
        data: labelled source images, on which adaptations keep training; the run's `source.path`.
        classes: which of its classes are kept, in this order, as `theirs` or `theirs=ours`; where its classes have no
            names they are named so, all of them. By default those of `data`, or else all.
        model: torchvision's name of the architecture, where the tensors do not tell it.
        console: where the mapping and the accuracy go.

    Raises:
        AcclimateError: the checkpoint is none that is carried over, its classes are not those of the data, or `out`
            holds something else.
    """
    stages.one_process("take")
    with locked(Path(out), "take"):
        run, mapping, test = _taken(Path(checkpoint), Path(out), overrides, data, classes, model, console)
    if test is not None and not run.has(f"evaluations/{TEST}.json"):
        _say_suspects(evaluate(run.path, test, TEST, "source", console=console), mapping, console)
    return Run.open(run.path)


def _taken(
    checkpoint: Path,
    out: Path,
    overrides: Sequence[str],
    data: str | Path | None,
    classes: Sequence[str],
    model: str,
    console: Console | None,
) -> tuple[Run, dict[str, str], DataConfig | None]:
    """The run, what the checkpoint calls each of its classes, and the set to evaluate it on."""
    began = time.monotonic()
    config = _configured(checkpoint, data, overrides)
    from acclimate.adapt import source_statistics
    from acclimate.adapt.source_free import measure_source
    from acclimate.data import formats
    from acclimate.models import detector as models
    from acclimate.models.transfer import with_classes

    given = [(text.partition("=")[0].strip(), text.partition("=")[2].strip()) for text in classes]
    detector, weights = _detector(checkpoint, config, given, model)
    reading = detector.spec.reading if _is_run(checkpoint) else None
    images = formats.read(config.source, reading=reading) if config.source is not None else None
    mapping = _mapping(detector.spec.classes, given, images.classes if images is not None else None, checkpoint)
    if images is not None and config.source is not None:
        # Refuses what the detector cannot be adapted on later.
        images = formats.read(config.source, tuple(mapping), masks=detector.spec.has_masks, reading=reading)
        if reading is None:
            # Whoever trained a detector elsewhere has read pictures as this set's options say.
            detector.spec = detector.spec.model_copy(update={"reading": images.reading})
    detector = with_classes(detector, mapping)
    config = config.model_copy(update={"model": _as_configured(config, detector)})
    settings = {**stages.plain(config, "model"), "classes": mapping}
    inputs = Inputs(settings, {"the checkpoint": weights}, images)
    identity = digest("take", settings, weights, stages.labelled_digest(images) if images is not None else None)
    parents = (str(checkpoint),) if _is_run(checkpoint) else ()
    manifest = Manifest(verb="take", digest=identity, parents=parents, seed=config.seed, notes=Notes(role="source"))
    test = config.source_test or config.source
    begun = stages.known(out, manifest, inputs)
    if begun is not None and stages.done(begun, console):
        return begun, mapping, test
    run = begun or Run.create(out, manifest.model_copy(update={"command": stages.repeat()}))
    run.write(FILE, inputs.as_json())
    run.write("config.json", config.model_dump(mode="json"))
    models.save(detector, run.path)
    facts = Notes(
        start=f"taken from {checkpoint}",
        classes=mapping,
        parameters=models.parameters(detector),
        repeat=stages.repeat(),
    )
    if images is not None:
        facts |= Notes(source=stages.describe(images), class_boxes=stages.class_boxes(images))
        run.write(source_statistics.FILE, measure_source(models.to_device(detector), images))
    run.note(facts)
    run.finish("done", time.monotonic() - began)
    if console is not None:
        told = ", ".join(ours if ours == theirs else f"{theirs} as {ours}" for ours, theirs in mapping.items())
        console.print(f"{detector.spec.kind} detector, classes: {told}", markup=False, highlight=False)
    return run, mapping, test


def weights(
    names: Sequence[str] = (), to: str | Path | None = None, *, console: Console | None = None
) -> dict[str, Path]:
    """The files of the pretrained weights of backbones: of all that are on this machine, or of those in `names`, which
    are fetched where they are not; copied into the folder `to` where one is given.

    Raises:
        AcclimateError: weights cannot be had, or `to` cannot be written.
    """
    from acclimate.models import weights as pretrained

    if not names:
        if to is not None:
            raise AcclimateError("weights: name the backbones that --to is to hold, such as tf_efficientnet_lite0")
        kept = pretrained.kept()
        if console is not None:
            table = Table("backbone", "from", "file", box=None)
            for one in kept:
                table.add_row(one.backbone, one.origin, str(one.file))
            console.print(table if kept else "no pretrained weights on this machine", highlight=False)
        return {one.backbone: one.file for one in kept}
    found = {}
    for name in names:
        file, checksum = pretrained.fetch(name, Path(to) if to is not None else None)
        found[name] = file
        if console is not None:
            told = f"{name}: model.weights={file} (SHA-256 {checksum})"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
    return found


def _configured(checkpoint: Path, data: str | Path | None, overrides: Sequence[str]) -> Config:
    """What the run is to have: of a run its own sections but for what is about its data, where there are others."""
    values: dict[str, Any] = {}
    if _is_run(checkpoint):
        values = stages.configuration(stages.finished(checkpoint)).model_dump(mode="json")
        dropped = _OF_THE_DATA if data is not None else ("out", "target", "target_test", "oracle", "budget")
        values = {key: value for key, value in values.items() if key not in dropped}
        if any(text.strip().startswith("model.") for text in overrides):
            raise AcclimateError(f"{checkpoint}: its model stays what it is; leave out model.*")
    if data is not None:
        values = overlay(values, {"source": {"path": str(data)}})
    return parse(Config, merge(values, overrides), where="take")


def _detector(checkpoint: Path, config: Config, given: Sequence[tuple[str, str]], model: str) -> tuple[Detector, str]:
    """The checkpoint's detector with all of its classes, and the digest of its weights."""
    size = config.model.image_size if "image_size" in config.model.model_fields_set else None
    if checkpoint.is_dir() or _on_the_hub(checkpoint):
        if model:
            raise AcclimateError(f"--model {model}: is of a torchvision checkpoint, and {checkpoint} is a folder")
        if _is_run(checkpoint):
            from acclimate.models import detector as models

            stages.finished(checkpoint)
            return models.load(checkpoint), file_digest(checkpoint / "model.safetensors")
        from acclimate.models import transformers

        folder = transformers.folder_of(str(checkpoint))
        return transformers.from_checkpoint(str(checkpoint), size), transformers.digest_of(folder)
    from acclimate.models import foreign

    detector = foreign.from_file(checkpoint, model, size)
    if given and not any(ours for _, ours in given):
        names = tuple(theirs for theirs, _ in given)
        if foreign.known_names(len(detector.spec.classes)) is None:
            if detector.spec.kind in {"retinanet", "fcos"} and len(names) == len(detector.spec.classes) + 1:
                # Trained without a background: what torchvision keeps for it is a class too.
                return foreign.from_file(checkpoint, model, size, names), file_digest(checkpoint)
            if len(names) != len(detector.spec.classes):
                raise AcclimateError(
                    f"--classes: {checkpoint} has {len(detector.spec.classes)} classes without names, and "
                    f"{len(names)} are given; name all in its order"
                )
            detector.spec = detector.spec.model_copy(update={"classes": names})
    return detector, file_digest(checkpoint)


def _is_run(checkpoint: Path) -> bool:
    """Whether it is a run folder, not one of `transformers`, which has a config.json too."""
    if not checkpoint.is_dir():
        return False
    from acclimate.models.transformers import is_checkpoint

    return (checkpoint / "run.json").exists() or not is_checkpoint(checkpoint)


def _on_the_hub(checkpoint: Path) -> bool:
    """Whether it can only be a name there: an owner and a model, and no file."""
    return (
        not checkpoint.exists()
        and len(checkpoint.parts) == 2
        and not checkpoint.suffix
        and not checkpoint.is_absolute()
    )


def _mapping(
    known: Sequence[str], given: Sequence[tuple[str, str]], wanted: Sequence[str] | None, checkpoint: Path
) -> dict[str, str]:
    """Our classes, in order, and what the checkpoint calls each."""
    pairs = [(theirs, ours or theirs) for theirs, ours in given]
    if not pairs:
        pairs = [(name, name) for name in (known if wanted is None else wanted)]
    absent = [theirs for theirs, _ in pairs if theirs not in known]
    if absent:
        near = difflib.get_close_matches(absent[0], known, n=1)
        listed = (
            f"did you mean {near[0]!r}?"
            if near
            else f"it knows {', '.join(known[:12])}" + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        )
        raise AcclimateError(
            f"{checkpoint}: it has no class {', '.join(absent)} ({listed}); say which of its classes each is, as in "
            f'--classes person={absent[0]}, or leave it out of the data (source.drop=["{absent[0]}"])'
        )
    for names, whose in (([theirs for theirs, _ in pairs], "its"), ([ours for _, ours in pairs], "our")):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise AcclimateError(f"--classes: {whose} class {twice!r} stands twice; each goes with one")
    return {ours: theirs for theirs, ours in pairs}


def _as_configured(config: Config, detector: Detector) -> Any:
    """The section `model` of a detector that was not built from one, as far as it can say it."""
    spec = detector.spec
    if spec.start != "torchvision" and not spec.start.startswith("the checkpoint"):
        return config.model
    known: dict[str, Any] = {"kind": spec.kind, "image_size": spec.image_size, "weights": "none"}
    return config.model.model_copy(update={**known, **spec.as_options(config.model)})


def _say_suspects(evaluation: Evaluation, mapping: Mapping[str, str], console: Console | None) -> None:
    """Name classes that are hardly ever found: they may be called something else in the checkpoint."""
    for name, one in evaluation.classes.items():
        if console is not None and one.boxes and (one.ap50 or 0.0) < SUSPECT:
            console.print(
                f"{name}: AP50 {one.ap50 or 0.0:.3f} on {one.boxes} boxes; is it what the checkpoint calls "
                f"{mapping.get(name, name)!r}?",
                markup=False, highlight=False,
            )  # fmt: skip
