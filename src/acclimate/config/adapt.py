"""Options of an adaptation: the list of its methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from acclimate.config.methods.adversarial import AdversarialConfig
from acclimate.config.methods.distillation import DistillationConfig
from acclimate.config.methods.labelled import LabelledConfig
from acclimate.config.methods.quantisation import QuantisationConfig
from acclimate.config.methods.slim import SlimConfig
from acclimate.config.methods.suppression import SuppressionConfig
from acclimate.config.methods.teacher import TeacherConfig
from acclimate.config.options import Added, Options


class AdaptConfig(Options):
    """An adaptation is a list of terms; a field that is None is a term that is not there."""

    supervised: float = Field(default=1.0, ge=0)
    """Weight of the detector's own losses on source images; 0 leaves the source out."""
    teacher: TeacherConfig | None = TeacherConfig()
    """The mean teacher, on unless it is `none`; see `[adapt.teacher]`."""
    statistics: Literal["mixed", "target", "domain", "frozen"] = "mixed"
    """What BatchNorm's running statistics describe after a method that sees target images: the mixture that was trained
    on, or the target alone, from which they are then taken anew at the end; `domain` also normalises each domain's
    images by their own statistics while training; `frozen` keeps the backbone's normalisation as the source training
    left it, which is where suppression acts."""
    adversarial: AdversarialConfig | None = None
    """Domain critics; see `[adapt.adversarial]`."""
    suppression: SuppressionConfig | None = None
    """Domain-Specific Suppression; see `[adapt.suppression]`."""
    distillation: DistillationConfig | None = None
    """A large, frozen detector that teaches; see `[adapt.distillation]`."""
    quantisation: QuantisationConfig | None = None
    """Fine-tuning for INT8. With it the supervised term and the teacher are off unless they are given."""
    labelled: Annotated[LabelledConfig | None, Added(None)] = None
    """How labelled target images take part; on with its defaults wherever there are some."""
    slim: SlimConfig | None = None
    """Of a slimmable detector: all the terms above, over a batch of its widths."""

    @property
    def runs(self) -> tuple[Path, ...]:
        """The finished runs that the method learns from."""
        return () if self.distillation is None else (self.distillation.teacher,)

    @model_validator(mode="before")
    @classmethod
    def _quantisation_alone(cls, values: Any) -> Any:
        """A detector that learns to be rounded learns nothing else unless it is told to."""
        if isinstance(values, dict) and values.get("quantisation") is not None:
            return {"supervised": 0.0, "teacher": None, **values}
        return values

    @model_validator(mode="after")
    def _something_to_learn_to_the_end(self) -> AdaptConfig:
        taught = self.distillation
        if taught is None or taught.gan is None or self.supervised or self.teacher or self.adversarial:
            return self
        if taught.gan.until < 1 and not (taught.response or taught.imitation or taught.channel):
            raise ValueError("nothing is learnt once critics end at distillation.gan.until; set it to 1, or supervised")
        return self
