"""The verb train: a detector from labelled source images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from acclimate import stages
from acclimate.config import AdaptConfig, Config
from acclimate.errors import AcclimateError
from acclimate.inputs import Inputs
from acclimate.run import Run
from acclimate.training.recipe import Recipe, carry_out, specified, started_from

if TYPE_CHECKING:
    from acclimate.adapt.methods import Method
    from acclimate.adapt.source_statistics import SourceStatistics
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


def train(
    config: Config, out: str | Path, *, role: Literal["source", "oracle"] = "source", console: Console | None = None
) -> Run:
    """Train a detector on the labelled source images of `config`, or go on with a run that was interrupted.

    A slimmable detector trains at `model.slimmable.models` widths a step (the sandwich rule, see `adapt.slim`).
    The run keeps the averaged weights of the last step: no labelled image chooses a checkpoint.

    Args:
        config: the job; its `source` is trained on.
        out: the run folder to write.
        role: `oracle` trains on `config.oracle`, the labelled target images, for comparison alone.
        console: where progress goes.

    Raises:
        AcclimateError: the configuration or the data cannot be used, or `out` holds something else.
        Interrupted: on SIGINT or SIGTERM; the same call goes on.
    """
    return carry_out("train", out, lambda: recipe(config, role), console)


def recipe(config: Config, role: Literal["source", "oracle"] = "source") -> Recipe:
    """What `train` does with a configuration.

    Raises:
        AcclimateError: see `train`.
    """
    data = config.source if role == "source" else config.oracle
    if data is None:
        raise AcclimateError(f"the config names no `{role}` data set to train on; add a [{role}] section with a path")
    from acclimate.data import formats
    from acclimate.models import transfer

    images = formats.read(data, masks=config.model.has_masks or config.augment.needs_masks)
    spec = specified(config, images.classes, images.reading)
    # The canvas of a checkpoint is known once it has been read; where none was named, it is the run's.
    config = config.model_copy(update={"model": config.model.model_copy(update={"image_size": spec.image_size})})
    settings = stages.plain(config, "seed", "model", "augment", "train")
    started = started_from(config)
    return Recipe(
        verb="train",
        role=role,
        title="train" if role == "source" else "oracle",
        config=config,
        schedule=config.train,
        inputs=Inputs(settings, started, images),
        identity=("train", role, settings, stages.labelled_digest(images), *started.values()),
        detector=lambda: transfer.begin(config.model, spec),
        method=lambda detector, source: _method(config, detector, source),
        warm=True,
        start=lambda detector: detector.spec.start,
        keep=lambda run, average, console: _settle(config, images, average),
    )


def _settle(config: Config, images: LabelledSet, average: Detector) -> None:
    """Give switchable normalisation the plain average over batches that it is evaluated with."""
    from acclimate.data.dataset import choose
    from acclimate.models.normalisations import SwitchableNorm2d
    from acclimate.models.statistics import IMAGES, recalibrate

    if any(isinstance(part, SwitchableNorm2d) for part in average.modules()):
        recalibrate(average, choose(images.paths, IMAGES, config.seed))


def _method(config: Config, detector: Detector, source: LabelledSet | SourceStatistics) -> Method:
    from acclimate.adapt.methods import method

    own = config.model.own
    methods = {"teacher": None, "drop_path": float(config.model.drop_path > 0), **(own.training if own else {})}
    return method(AdaptConfig.model_validate(methods), detector, source, config.seed)
