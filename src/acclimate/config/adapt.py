"""Options of an adaptation: the list of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from acclimate.config.methods import MethodOptions
from acclimate.config.methods.adversarial import AdversarialConfig
from acclimate.config.methods.alignment import AlignmentConfig
from acclimate.config.methods.distillation import DistillationConfig
from acclimate.config.methods.groupable import GroupableConfig
from acclimate.config.methods.labelled import LabelledConfig
from acclimate.config.methods.labels import LabelsConfig
from acclimate.config.methods.pruning import PruningConfig
from acclimate.config.methods.quantisation import QuantisationConfig
from acclimate.config.methods.slim import SlimConfig
from acclimate.config.methods.suppression import SuppressionConfig
from acclimate.config.methods.teacher import TeacherConfig
from acclimate.config.methods.triplet import TripletConfig
from acclimate.config.options import NONE, Added, Options, choices, said


class AdaptConfig(Options):
    """The one list of methods: a field that holds options, or a weight, is one; None, or 0, is one that is not there.

    What a method does is in `adapt/NAME.py`. They are made in this order, and the last of them may wrap the others.
    """

    supervised: float = Field(default=1.0, ge=0)
    """Weight of the detector's own losses on source images; 0 leaves the source out."""
    labelled: Annotated[LabelledConfig | None, Added(None)] = None
    """How labelled target images take part; on with its defaults where there are some."""
    teacher: TeacherConfig | None = TeacherConfig()
    """The mean teacher; `none` in an override switches it off."""
    labels: Annotated[LabelsConfig | None, Added(None)] = None
    """What a labeller has found in the target images."""
    alignment: Annotated[AlignmentConfig | None, Added(None)] = None
    """Features drawn to those of a frozen encoder."""
    triplet: Annotated[TripletConfig | None, Added(None)] = None
    """Objects of a class drawn together, and those of others apart, across both domains."""
    adversarial: AdversarialConfig | None = None
    """Domain critics."""
    suppression: SuppressionConfig | None = None
    """Domain-Specific Suppression."""
    distillation: DistillationConfig | None = None
    """A large, frozen detector that teaches."""
    matching: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0)
    """Weight of the distance of the target's features to the moments that the run keeps of its source's."""
    drop_path: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Part of the rates of `model.drop_path` that the end of the run has; they rise to it linearly."""
    prior: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0)
    """Weight of the entropy of an image's scores, so that they gather on few boxes."""
    pruning: Annotated[PruningConfig | None, Added(None)] = None
    """Filters of small L1 norm are cut out first. With it `supervised` is 0 and `teacher` off unless they are given,
    and one of them has to be."""
    groupable: Annotated[GroupableConfig | None, Added(None)] = None
    """Convolutions whose channels fall into groups, for the device; `supervised` and `teacher` as with `pruning`."""
    quantisation: QuantisationConfig | None = None
    """Fine-tuning for INT8, after the adaptation. With it `supervised` is 0 and `teacher` off unless they are given."""
    slim: SlimConfig | None = None
    """All the terms above, over a batch of the widths of a slimmable detector."""
    statistics: Literal["mixed", "target", "domain", "frozen"] = "mixed"
    """What BatchNorm's running statistics describe after a method that sees target images: the `mixed` batches that
    were trained on, or the `target` alone, from which they are then taken anew at the end; `domain` also normalises
    each domain's images by their own statistics while training; `frozen` keeps the backbone's normalisation as the
    source training left it, which is where suppression acts."""

    @property
    def methods(self) -> dict[str, MethodOptions | float]:
        """Those that are on, by name, in the order in which they are made: their options or their weight."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value for name, value in values.items() if isinstance(value, MethodOptions | float | int) and value
        }

    @property
    def finishing(self) -> tuple[str, ...]:
        """The methods that prepare a trained detector for its device; none in what is an adaptation."""
        return tuple(name for name, options in self._options().items() if options.finishing)

    @property
    def runs(self) -> tuple[Path, ...]:
        """The finished runs that the methods learn from."""
        return tuple(path for options in self._options().values() for path in options.runs)

    @property
    def files(self) -> dict[str, Path]:
        """The files that the methods learn from beside images and runs, by what they are."""
        return {what: file for options in self._options().values() for what, file in options.files.items()}

    @property
    def found(self) -> Path | None:
        """The file with what a labeller has found in the target images, where a method learns from one."""
        return next((options.found for options in self._options().values() if options.found is not None), None)

    @property
    def largest_view(self) -> float:
        """Sides of the largest target image that a method looks at, in sides of the canvas."""
        return max((options.largest_view for options in self._options().values()), default=1.0)

    @property
    def labelled_share(self) -> float:
        """How many labelled target images come with each batch, as a part of its size."""
        return max((options.labelled_share for options in self._options().values()), default=0.0)

    @property
    def by_domain(self) -> bool:
        """Whether each domain's images are normalised by their own statistics."""
        return self.statistics == "domain"

    @property
    def retakes_statistics(self) -> bool:
        """Whether BatchNorm's running statistics are taken anew from the target at the end."""
        return self.statistics in {"target", "domain"}

    def without_target(self) -> AdaptConfig:
        """What of this adaptation trains the source-only baseline: the source's labels, and what a method says of
        itself."""
        stays = {name: options.without_target() for name, options in self._options().items()}
        given = {name: options for name, options in stays.items() if options is not None}
        return AdaptConfig.model_validate({**nothing(), "supervised": self.supervised or 1.0, **given})

    def without(self, *names: str) -> AdaptConfig:
        """This adaptation without these methods."""
        off = nothing()
        return self.model_copy(update={name: off[name] for name in names})

    def for_kind(self, kind: str) -> AdaptConfig:
        """This adaptation without the methods that are for another kind of detector alone."""
        return self.without(*(name for name, one in self._options().items() if one.of_kind not in {"", kind}))

    def _options(self) -> dict[str, MethodOptions]:
        return {name: options for name, options in self.methods.items() if isinstance(options, MethodOptions)}

    @model_validator(mode="before")
    @classmethod
    def _switched_off(cls, values: Any) -> Any:
        """`none` switches a weight off too. And a detector that is prepared for its device learns nothing else unless
        it is told to."""
        if not isinstance(values, Mapping):
            return values
        off = nothing()
        given = {key: off[key] if key in off and value in NONE else value for key, value in values.items()}
        return {**off, **given} if finishing(values) else given

    @model_validator(mode="after")
    def _something_to_learn_to_the_end(self) -> AdaptConfig:
        until = dict.fromkeys(self.methods, 1.0)
        until |= {name: options.until for name, options in self._options().items()}
        name = max(until, key=lambda name: until[name], default="")
        if name and 0 < until[name] < 1:
            key = f"{name}.{self._options()[name].ends_by}"
            raise ValueError(f"nothing is learnt after {key} = {until[name]:g}; set it to 1, or supervised above 0")
        return self


def nothing() -> dict[str, float | None]:
    """Every method switched off, as values of `AdaptConfig`."""
    defaults = {name: field.default for name, field in AdaptConfig.model_fields.items()}
    methods = {name: value for name, value in defaults.items() if isinstance(value, MethodOptions | float | None)}
    return {name: 0.0 if isinstance(value, float) else None for name, value in methods.items()}


def finishing(values: Any) -> dict[str, type[MethodOptions]]:
    """The options of the methods that prepare a detector for its device, as far as a section [adapt] that is not
    validated yet asks for them."""
    if not isinstance(values, Mapping):
        return {}
    wanted: dict[str, type[MethodOptions]] = {}
    for name, field in AdaptConfig.model_fields.items():
        kinds = [one for one in choices(field.annotation) if isinstance(one, type) and issubclass(one, MethodOptions)]
        if kinds and kinds[0].finishing and said(field, values.get(name)) is not None:
            wanted[name] = kinds[0]
    return wanted
