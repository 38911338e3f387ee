"""From the options of an adaptation to what trains: the terms, and what happens to their gradients.

`AdaptConfig` is the list of methods. What the method NAME does is the class of that name (its attribute `name`) in the
file NAME beside this one: a `Term`, a `Wrapper` of terms, or else a gradient transform. `docs/extending.md` adds one,
step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acclimate.adapt.objective import GradientTransform, Term, Wrapper
from acclimate.adapt.source_statistics import SourceStatistics
from acclimate.config import AdaptConfig, Config
from acclimate.config.methods import MethodOptions
from acclimate.errors import AcclimateError
from acclimate.models.backbones import Backbone
from acclimate.named import class_of

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


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
    makers = {name: (_class(name), options) for name, options in config.methods.items()}
    # First, as a transform may change the layers that terms look at.
    transforms = [maker.create(options, detector) for maker, options in makers.values() if not issubclass(maker, Term)]
    terms: list[Term] = []
    for name, (maker, options) in makers.items():
        if issubclass(maker, Wrapper) and terms:
            if config.by_domain:
                raise AcclimateError(
                    f'adapt.statistics = "domain" is not for adapt.{name}; set it to "mixed" or "target"'
                )
            terms = [maker.create(options, detector, terms, seed)]
        elif not issubclass(maker, Wrapper) and issubclass(maker, Term):
            terms.append(maker.create(options, detector, source))
    if not any(term.views for term in terms):
        raise AcclimateError("adapt: every term is off; set adapt.supervised above 0 or keep adapt.teacher")
    return Method(tuple(terms), tuple(one for one in transforms if one is not None))


def _refuse_source(config: AdaptConfig) -> None:
    for name, options in config.methods.items():
        maker = _class(name)
        if issubclass(maker, Term) and any(view.startswith("source") for view in maker.views):
            raise AcclimateError(f"adapt.{name} looks at source images, and there are none; set it to none")
        if isinstance(options, MethodOptions) and options.needs_source:
            option = f"adapt.{name}.{options.needs_source}"
            raise AcclimateError(f"{option} needs source images, and there are none; leave it out")


def uses_target(config: Config) -> bool:
    """Whether the adaptation that `config` describes looks at target images at all."""
    makers = ((_class(name), options) for name, options in config.adapt.methods.items())
    return config.augment.looks_at_target or any(
        issubclass(maker, Term) and maker.uses_target(options) for maker, options in makers
    )


def _class(name: str) -> Any:
    """What the method called `name` is made of."""
    return class_of(f"{__package__}.{name}", name)
