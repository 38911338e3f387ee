"""The table of adaptation methods: a field of `AdaptConfig`, and the class that does what it says.

A field that is None (or a weight of 0) is a method that is not there. `docs/extending.md` adds one, step by step.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acclimate.adapt.objective import GradientTransform, Term
from acclimate.adapt.slim import Slim
from acclimate.adapt.source_statistics import SourceStatistics
from acclimate.config import AdaptConfig, Config
from acclimate.errors import AcclimateError
from acclimate.models.backbones import Backbone

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

TERMS = {
    "supervised": "acclimate.adapt.supervised:Supervised",
    "labelled": "acclimate.adapt.labelled:Labelled",
    "teacher": "acclimate.adapt.teacher:Teacher",
    "adversarial": "acclimate.adapt.adversarial:Adversarial",
    "distillation": "acclimate.adapt.distillation:Distillation",
    "matching": "acclimate.adapt.source_free:Matching",
    "quantisation": "acclimate.adapt.quantisation:QuantisationAware",
}
"""Field of `AdaptConfig` -> the `Term` whose `create(options, detector, source)` makes it."""

TRANSFORMS = {"suppression": "acclimate.adapt.suppression:DomainSpecificSuppression"}
"""Field of `AdaptConfig` -> the class whose `create(options, detector)` makes a gradient transform."""


@dataclass(frozen=True, slots=True)
class Method:
    """An adaptation: losses, and what happens to their gradients."""

    terms: tuple[Term, ...]
    transforms: tuple[GradientTransform, ...]

    @property
    def names(self) -> list[str]:
        """Of the terms, one that wraps others before what it wraps."""
        return [part.name for term in self.terms for part in term.modules() if isinstance(part, Term)]


def method(config: AdaptConfig, detector: Detector, source: LabelledSet | SourceStatistics, seed: int = 0) -> Method:
    """Make what `config` describes, for `detector`, which may be changed by it (reparametrised layers).

    Args:
        config: the method.
        detector: the source run's, about to be adapted.
        source: the labelled source images, for what a method measures before it starts; or what is kept of them.
        seed: the run's, for what a method draws step by step.

    Raises:
        AcclimateError: no term is left, the method is not for this kind of detector, or it looks at source images
            and there are none.
    """
    if isinstance(source, SourceStatistics):
        _refuse_source(config)
    if config.statistics == "frozen":
        for part in detector.modules():
            if isinstance(part, Backbone):
                part.hold_norms()
    transforms = [
        made
        for field, where in TRANSFORMS.items()
        if (options := getattr(config, field)) and (made := _class(where).create(options, detector)) is not None
    ]
    terms = [
        _class(where).create(options, detector, source)
        for field, where in TERMS.items()
        if (options := getattr(config, field))
    ]
    if not terms:
        raise AcclimateError("adapt: every term is off; set adapt.supervised above 0 or keep adapt.teacher")
    if config.slim:
        if config.statistics == "domain":
            raise AcclimateError('adapt.statistics = "domain" is not for several widths; set it to "mixed" or "target"')
        terms = [Slim.create(config.slim, detector, terms, seed)]
    return Method(tuple(terms), tuple(transforms))


def without_source(config: Config) -> Config:
    """`config` for an adaptation that has no source image: without what a source image would be seen or used for."""
    alone = config.adapt.model_copy(update={"supervised": 0.0})
    views = {"style": 0.0, "fourier": 0.0, "weather": 0.0, "balance": "none"}
    return config.model_copy(
        update={"source": None, "adapt": alone, "augment": config.augment.model_copy(update=views)}
    )


def _refuse_source(config: AdaptConfig) -> None:
    for field, where in TERMS.items():
        if getattr(config, field) and any(view.startswith("source") for view in _class(where).views):
            raise AcclimateError(f"adapt.{field} looks at source images, and there are none; set it to none")
    if config.teacher is not None and config.teacher.mix > 0:
        raise AcclimateError("adapt.teacher.mix pastes into source images, and there are none; set it to 0")
    if config.teacher is not None and config.teacher.mining > 0:
        raise AcclimateError("adapt.teacher.mining pastes into source images, and there are none; set it to 0")
    if config.slim is not None:
        raise AcclimateError("adapt.slim trains on source images, and there are none; adapt a detector of one width")


def uses_target(config: Config) -> bool:
    """Whether the adaptation that `config` describes looks at target images at all."""
    views = [view for field, where in TERMS.items() if getattr(config.adapt, field) for view in _class(where).views]
    ensemble = config.adapt.slim is not None and config.adapt.slim.ensemble > 0
    views_of = config.augment
    styled = max(views_of.style, views_of.fourier, views_of.weather) > 0 or views_of.balance == "target"
    return styled or ensemble or any(view.startswith(("target", "labelled")) for view in views)


def source_only(config: Config) -> Config:
    """`config` without anything of the target: the source trained on for the same schedule, with the same views.

    It is the baseline that an adaptation must beat: what needs no target image, both have. A bank is trained on as one.
    """
    none = {"ensemble": 0.0, "third": False, "reaches_features": True}
    bank = config.adapt.slim and config.adapt.slim.model_copy(update=none)
    alone = AdaptConfig(supervised=config.adapt.supervised or 1.0, teacher=None, slim=bank)
    of_target: dict[str, Any] = {"style": 0.0, "fourier": 0.0, "weather": 0.0, "mask": 0.0}
    if config.augment.balance == "target":
        of_target["balance"] = "none"
    views = config.augment.model_copy(update=of_target)
    return config.model_copy(update={"adapt": alone, "augment": views, "labelled": None})


def _class(where: str) -> Any:
    module, name = where.split(":")
    return getattr(importlib.import_module(module), name)
