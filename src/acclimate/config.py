"""Every option of every verb: pydantic models, read from TOML and `key=value`.

An unknown key or a wrong value is an error that names the key, the file and what would be right.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from acclimate.errors import AcclimateError
from acclimate.structures import LARGEST_CANVAS, LARGEST_SIDE

LARGEST_NUMBER = 10**9
"""No option is a larger number."""
LONGEST_NAME = 255
"""Bytes of the longest name of a file or folder, on every common file system; characters of any other name."""
LONGEST_PATH = 4000
MOST_NAMES = 10_000
"""Of a list or table of options."""
MOST_WORKERS = 128
"""Loader threads of a process; each holds a batch."""
MOST_THREADS = 1024

FORMATS = (
    "cityscapes", "kitti", "dota", "supervisely", "openimages", "wider", "cvat", "labelstudio", "yolo", "voc",
    "labelme", "coco",
)  # fmt: skip
"""Formats of labelled sets, each a file of `data/formats`; the first one that knows a folder reads it."""

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[("auto", *FORMATS)]


class Prose:
    """Marks an option that holds sentences for a reader, in place of a name: `note: Annotated[str, Prose()]`."""


class Options(BaseModel):
    """Base of all options: immutable, and an unknown key, a NaN or an infinity is an error.

    So is what no option can mean, whatever its name: a number, name, path or list that is larger than any in use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _within_reason(self) -> Self:
        for name, field in type(self).model_fields.items():
            prose = any(isinstance(mark, Prose) for mark in field.metadata)
            if name != "seed" and not prose and (problem := _unreasonable(getattr(self, name))):
                raise ValueError(f"{name}: {problem}")
        return self


def _unreasonable(value: Any) -> str:
    """What is wrong with a value of any option; empty where nothing is."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > LARGEST_NUMBER:
        return f"a number up to {LARGEST_NUMBER}, not {value:.3g}"
    if isinstance(value, Path):
        longest = max((len(os.fsencode(part)) for part in value.parts), default=0)
        if longest > LONGEST_NAME or len(str(value)) > LONGEST_PATH:
            return f"a path whose names have up to {LONGEST_NAME} bytes; this one has {longest}"
        return "a path without a NUL character" if "\0" in str(value) else ""
    if isinstance(value, str):
        if len(value) > LONGEST_NAME:
            return f"a name of up to {LONGEST_NAME} characters, not {len(value)}"
        return "" if value.isprintable() else "a name without characters that cannot be shown"
    if isinstance(value, dict | tuple):
        if len(value) > MOST_NAMES:
            return f"up to {MOST_NAMES} values, not {len(value)}"
        values = (*value, *value.values()) if isinstance(value, dict) else value
        return next(filter(None, map(_unreasonable, values)), "")
    return ""


Share = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=100)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Stride = Annotated[int, Field(ge=1, le=1024)]


def _check_canvas(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > LARGEST_CANVAS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are more than the {LARGEST_CANVAS} of the largest canvas")
    return size


Canvas = Annotated[tuple[Side, Side], AfterValidator(_check_canvas)]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Added:
    """Marks an option that came after runs had been digested: `name: Annotated[int, Added(0)] = 0`.

    Where the option has the value `before`, which is what was done when there was no such option, it is left out of
    the digest of a run, so a run made by an earlier version stays the same run. `before` never changes, the default
    may.
    """

    before: Any


class DataConfig(Options):
    """A labelled data set.

    `path` is a data set's folder or index file (COCO json, data.yaml); `images` the image folder where it is not
    beside the index. `classes` renames classes ("their name" = "our name"), `ignore` names classes whose boxes
    count neither for nor against, `drop` names classes whose boxes are background.

    `orientation` and `intensity` say how its pictures are read (`edge.images.Reading`); a detector keeps those of the
    set that it was trained on, and its artifact takes them along. The intensity `set` is measured from the set's
    pictures of more than 8 bits. Where an index gives the pictures' sizes, these tell
    whether boxes lie on pictures as they are seen or as they are stored.
    """

    path: Path
    format: Format = "auto"
    split: str | None = None
    images: Path | None = None
    fog_level: float | None = Field(default=None, ge=0)
    classes: dict[str, str] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    orientation: Annotated[Literal["apply", "stored"], Added("apply")] = "apply"
    intensity: Annotated[tuple[float, float] | Literal["set"] | None, Added(None)] = None

    @field_validator("intensity")
    @classmethod
    def _rising_intensity(
        cls, value: tuple[float, float] | Literal["set"] | None
    ) -> tuple[float, float] | Literal["set"] | None:
        if isinstance(value, tuple) and not value[0] < value[1]:
            raise ValueError("give the value that becomes black, then the larger one that becomes white")
        return value


class TwoStageConfig(Options):
    """The second stage of a Faster R-CNN (`models/two_stage.py`)."""

    head: Literal["sibling", "disentangled", "separate-fcs", "separate-backbone"] = "sibling"
    """`disentangled` is TSD; the `separate` ones are what its paper compares it with."""
    proposals: int = Field(default=64, ge=1, le=10_000)
    """Boxes an image that the second stage looks at, in training and on the device."""
    hidden: int = Field(default=256, ge=8, le=16_384)
    """Width of the second stage's fully connected layers (1024 in the papers)."""
    constraint: float | None = Field(default=None, gt=0, le=1)
    """`disentangled`: margin by which training holds the head to beat the sibling beside it (0.2 in the paper)."""
    select: Literal["peaks", "nms"] = "peaks"
    """How proposals are chosen: peaks of the objectness map, which every runtime carries, or NMS, in eager mode."""
    anchors: Annotated[tuple[Factor, ...], Field(min_length=1, max_length=64)] | None = None
    """Sides of the anchors in strides of their level; by default 4, and 2, 4, 8, 16 where there is one level."""
    canonical: Annotated[float | None, Added(None)] = Field(default=None, gt=0)
    """Side in pixels of the boxes that are pooled from the level of stride 16; twice as large, from stride 32. By
    default as much of the canvas as the paper's 224 are of an image of 800, and 112 at least: 7 cells for 7 bins."""
    masks: bool = False
    """Train a mask branch beside the head (Mask R-CNN); the source is then a COCO set with polygons."""


class SsdConfig(Options):
    """The levels and default boxes of an SSD (`models/ssd.py`)."""

    lite: bool = False
    """SSDLite: predictors and added levels are depthwise separable."""
    extra: int = Field(default=3, ge=0, le=8)
    """Levels added behind the backbone's, each with half the rows and columns of the one before."""
    scales: Annotated[tuple[Factor, ...], Field(max_length=32)] | None = None
    """Sides of the default boxes in sides of the canvas, one a level and one beyond the last; by default 0.15 at the
    second level to 0.9 at the last, and half of 0.15 at the first."""
    ratios: Annotated[tuple[Factor, ...], Field(max_length=16)] | None = None
    """Aspect ratios beside 1, each lying and standing, at every level; by default 2 and 3, and 2 alone at the first and
    the last two levels of a plain SSD."""


class SlimmableConfig(Options):
    """The widths of a detector of kind `slimmable` (`models/slimmable.py`)."""

    choices: tuple[Share, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    """Ratios of channels that each of its stages may keep, rising to 1."""
    divisor: int = Field(default=8, ge=1, le=1024)
    """Channel counts are rounded to a multiple of it."""
    models: int = Field(default=4, ge=1, le=64)
    """Widths that a step of the source training runs: the largest, the smallest, and others at random between; 1 trains
    the full width alone."""


class ModelConfig(Options):
    """What is built. `size` names a preset; every other field, where given, overrides it."""

    kind: Literal["dense", "two-stage", "ssd", "slimmable"] = "dense"

    size: Literal["nano", "tiny", "small"] = "tiny"
    image_size: Canvas = (320, 320)
    """(height, width) of the network's canvas in pixels; each a multiple of the largest stride."""
    backbone: str | None = None
    """Any timm model with `features_only`."""
    weights: Path | Literal["auto", "none"] = "auto"
    """Backbone weights: a file, `auto` (an installed package's, the hub cache's or the hub's; an error where there are
    none), or `none`, which starts from random ones."""
    start: Annotated[Path | None, Added(None)] = None
    """A run whose detector is the start: of all weights, and of the class scores where classes have the same name."""
    strides: Annotated[tuple[Stride, ...], Field(min_length=1, max_length=16)] | None = None
    channels: int | None = Field(default=None, ge=8, le=4096)
    depth: int | None = Field(default=None, ge=0, le=8)
    norm: Literal["batch", "frozen", "group"] = "batch"
    """The backbone's normalisation: trainable BatchNorm, frozen BatchNorm, or GroupNorm."""
    freeze: int = Field(default=0, ge=0, le=6)
    """How many of the backbone's first stages (the stem is the first) keep their weights."""
    two_stage: TwoStageConfig = TwoStageConfig()
    ssd: SsdConfig = SsdConfig()
    slimmable: SlimmableConfig = SlimmableConfig()

    @property
    def has_masks(self) -> bool:
        """Whether what is built learns masks, and so needs the outlines of its objects."""
        return self.kind == "two-stage" and self.two_stage.masks

    @model_validator(mode="after")
    def _one_start(self) -> ModelConfig:
        if self.start is not None and isinstance(self.weights, Path):
            raise ValueError("start and weights both name what to start from; leave one out")
        return self

    @field_validator("weights", mode="before")
    @classmethod
    def _no_weights(cls, value: Any) -> Any:
        """On the command line a bare `none` is the absent value everywhere; here it is a choice."""
        return "none" if value is None else value


class AugmentConfig(Options):
    """Random views. Probabilities are per image; `tone` and `invert` bend the grey curve; `style`, `fourier`, `weather`
    and `mask` need a target."""

    flip: float = Field(default=0.5, ge=0, le=1)
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    scale: tuple[Factor, Factor] = (0.6, 1.4)
    """The smallest and the largest factor by which an image is made larger or smaller."""
    translate: float = Field(default=0.1, ge=0, le=0.5)
    colour: float = Field(default=0.8, ge=0, le=1)
    grey: float = Field(default=0.1, ge=0, le=1)
    blur: float = Field(default=0.2, ge=0, le=1)
    noise: float = Field(default=0.2, ge=0, le=1)
    tone: float = Field(default=0.3, ge=0, le=1)
    invert: float = Field(default=0.0, ge=0, le=1)
    cutout: float = Field(default=0.3, ge=0, le=1)
    style: float = Field(default=0.5, ge=0, le=1)
    """Adaptation only: chance that a source image takes on the colour statistics of a random target image."""
    fourier: float = Field(default=0.0, ge=0, le=1)
    """Adaptation only: chance that a source image takes on the low frequencies of a random target image (FDA)."""
    fourier_beta: float = Field(default=0.02, ge=0, le=0.5)
    """Largest frequency that `fourier` swaps, in cycles an image as a fraction of its height and width."""
    weather: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Adaptation only: chance that a source image is put under the weather of the target (`data/climate.py`)."""
    mask: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Adaptation only: chance that the strong view of a target image is masked block by block (MIC)."""
    mask_block: Annotated[int, Added(32)] = Field(default=32, ge=1, le=LARGEST_SIDE)
    """Side of the blocks in pixels."""
    mask_ratio: Annotated[float, Added(0.5)] = Field(default=0.5, gt=0, lt=1)
    """Share of the blocks that are hidden."""
    balance: Annotated[Literal["none", "classes", "target"], Added("none")] = "none"
    """How often a source image is drawn: all alike, more often with classes that few images show, or (adaptation only)
    so that classes come up as often as the detector finds them on the target (`data/balance.py`)."""

    @field_validator("scale")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"the smaller factor comes first: [{value[1]:g}, {value[0]:g}]")
        return value


class ScheduleConfig(Options):
    """How long and how fast. Steps count optimiser steps; a batch is the global one, over all processes."""

    steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=16, ge=1, le=65_536)
    lr: float = Field(default=1e-3, gt=0)
    optimizer: Annotated[str, Added("adamw")] = "adamw"
    """`adamw`, `sgd` (with momentum), or any other that timm's factory knows."""
    momentum: Annotated[float, Added(0.9)] = Field(default=0.9, ge=0, lt=1)
    """Of `sgd`, and of timm's optimisers that have one."""
    backbone_lr: Annotated[float, Added(1.0)] = Field(default=1.0, gt=0)
    """The backbone's learning rate as a multiple of `lr`."""
    layer_decay: Annotated[float | None, Added(None)] = Field(default=None, gt=0, le=1)
    """Factor by which the learning rate falls from one stage of the backbone to the one before it."""
    decay: Annotated[Literal["cosine", "step", "constant"], Added("cosine")] = "cosine"
    """How the learning rate goes after `warmup`."""
    decay_at: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Added((0.67, 0.89))] = (0.67, 0.89)
    """`step`: parts of the run after which the learning rate is a tenth of what it was."""
    weight_decay: float = Field(default=0.02, ge=0)
    warmup: int = Field(default=100, ge=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    clip: float | None = Field(default=10.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: int = Field(default=1, ge=1, le=65_536)
    checkpoint_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=10, ge=1)
    workers: int = Field(default=2, ge=0, le=MOST_WORKERS)
    """Loader threads per process; 0 loads in the training thread."""
    cache_mb: int = Field(default=2048, ge=0)
    """Decoded images are kept in memory up to this size."""


class TeacherConfig(Options):
    """The mean teacher (`adapt/teacher.py`): its view of a weak target image teaches the strong view."""

    boxes: float = Field(default=1.0, ge=0)
    """Weight of the teacher's detections as target boxes."""
    regression: float = Field(default=1.0, ge=0)
    """Of these, the share of the losses that move boxes."""
    soft: float = Field(default=0.0, ge=0)
    """Weight of the teacher's outputs as soft targets, location by location."""
    threshold: float | Literal["source", "matched", "adaptive"] = Field(default="source")
    """Score from which a detection of the teacher is a target. `source` measures it on labelled source images, class
    by class, once before the adaptation; `matched` starts there and lowers it, at most to a half and only as far as two
    of three are right on the source, until the teacher gives as many boxes an image on the target as on the source;
    `adaptive` starts there too and moves it as the teacher's mean score on the target goes, no lower than that."""
    doubt: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the threshold from which a detection is at least ignored rather than taken for background. 0 ignores
    whatever the teacher shows at all: what it is not sure of is more often an object that the shift has made faint than
    nothing, and background is learnt on the source."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the run over which the weights rise from 0."""
    scale: Annotated[float, Added(1.0)] = Field(default=1.0, ge=1, le=4)
    """Above 1, the teacher also looks at the image with so many times the pixels a side, and what it finds at both
    sizes is fused (`adapt/fusion.py`)."""
    flip: Annotated[bool, Added(False)] = False
    """Whether it also looks at the mirrored image; with `scale`, the larger one is the mirrored one."""
    mix: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0)
    """Weight of the losses on source images with a part of a target image pasted in, and its boxes
    (`adapt/mixing.py`)."""
    mix_part: Annotated[Literal["confident", "random"], Added("confident")] = "confident"
    """Which part: the quarter where the teacher is surest (ConfMix), or a random rectangle (CutMix)."""

    @model_validator(mode="after")
    def _some_target(self) -> TeacherConfig:
        if self.boxes == self.soft == self.mix == 0:
            raise ValueError(
                "boxes, soft and mix are all 0, so the teacher teaches nothing; set `teacher` to none instead"
            )
        if not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a score in 0..1, 'source', 'matched' or 'adaptive', not {self.threshold}")
        if (self.scale > 1 or self.flip) and self.boxes == self.mix == 0:
            raise ValueError("scale and flip are of boxes, which are fused; soft targets have one look alone")
        return self


class AdversarialConfig(Options):
    """Domain critics behind a gradient reversal (`adapt/adversarial.py`)."""

    kind: Literal["da-faster", "swda"] = "swda"
    weight: float = Field(default=0.1, gt=0)
    """Weight of the critics' losses."""
    reversal: Literal["ramp", "constant"] = "ramp"
    """How the reversed gradient's strength goes over the run: from 0 to 1, or 1 throughout."""
    hidden: int = Field(default=64, ge=1, le=16_384)
    """Width of the critics' hidden layers."""
    levels: Literal["all", "last"] = "all"
    """`da-faster`: levels of the pyramid with an image-level critic."""
    regions: int = Field(default=64, ge=1, le=10_000)
    """`da-faster`: boxes an image that the instance-level critic looks at."""
    gamma: float = Field(default=5.0, ge=0)
    """`swda`: exponent of the global critic's focal loss."""


class SuppressionConfig(Options):
    """Domain-Specific Suppression of the backbone's gradients (`adapt/suppression.py`)."""

    form: Literal["gradient", "update", "reparametrised", "reparametrised-rescale", "rescale"] = "gradient"
    """`gradient` projects the gradient, which is meant for SGD, `update` what any optimiser makes of it;
    `reparametrised` trains weights of a fixed norm. `rescale` is the step size of
    the paper's reparametrised form without its projection, for the ablation; `reparametrised-rescale` is both."""
    strength: float = Field(default=1.0, ge=0)
    """Share of the projection that `gradient` or `update` removes; 0 only measures."""
    granularity: Literal["tensor", "channel"] = "tensor"
    """One projection (or norm) a weight, or one for each of its output channels."""
    layers: tuple[str, ...] = ("*",)
    """Which convolutions of the backbone, as patterns of their names."""

    @model_validator(mode="after")
    def _strength_of_a_projection(self) -> SuppressionConfig:
        if self.form not in {"gradient", "update"} and self.strength != 1:
            raise ValueError(f"strength is an option of form = gradient and update; {self.form} has none")
        return self


class GanConfig(Options):
    """Critics that tell the teacher's features from the student's (`adapt/distillation.py`)."""

    weight: float = Field(default=0.001, gt=0)
    """Of the loss of a student that is found out. Clipped critics have the steepest slopes and want a tenth of it."""
    mode: Literal["hinge", "wasserstein-clip", "gradient-penalty"] = "hinge"
    """What critics minimise and what keeps them smooth: a hinge and spectral norms, clipped weights (as published), or
    a penalty on their gradient."""
    until: float = Field(default=0.7, gt=0, le=1)
    """Fraction of the run after which the student trains on without critics."""
    width: int | Literal["map"] = 512
    """Channels of the critics' convolutions; `map` takes as many as the teacher's map has."""
    lr: float = Field(default=5e-4, gt=0)
    """Of the critics' own optimiser, Adam."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    critic_steps: int = Field(default=1, ge=1, le=1000)
    """Of the critics, for each of the student's."""
    clip: float = Field(default=0.03, gt=0)
    """`wasserstein-clip`: the largest weight."""
    penalty: float = Field(default=10.0, gt=0)
    """`gradient-penalty`: its weight."""

    @model_validator(mode="after")
    def _some_width(self) -> GanConfig:
        if isinstance(self.width, int) and not 1 <= self.width <= 16_384:
            raise ValueError(f"width is a number of channels, up to 16384, or 'map', not {self.width}")
        return self


class ImitationConfig(Options):
    """The teacher's features near objects (`adapt/distillation.py`)."""

    weight: float = Field(default=1.0, gt=0)
    near: float = Field(default=0.5, ge=0, lt=1)
    """Share of an object's largest overlap with any anchor from which a place is near it."""
    anchors: tuple[Factor, ...] = Field(default=(4.0,), min_length=1, max_length=64)
    """Sides of these anchors, in strides of their level."""


class ChannelConfig(Options):
    """Where each channel is active (`adapt/distillation.py`)."""

    weight: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    """The higher, the more places count."""


class DistillationConfig(Options):
    """A larger, frozen detector teaches the one that is trained (`adapt/distillation.py`)."""

    LESSONS: ClassVar = frozenset({"response", "gan", "imitation", "channel"})
    """What can be learnt from a teacher; where none is named, `distil` chooses."""

    teacher: Path
    """Its run folder; `acclimate distil` fills it in."""
    response: float | Literal["auto"] = "auto"
    """Weight of its outputs as soft targets, or of its detections as boxes where the outputs do not correspond; `auto`
    is 1, and for soft targets of dense heads 5."""
    gan: GanConfig | None = None
    imitation: ImitationConfig | None = None
    channel: ChannelConfig | None = None
    view: Literal["weak", "strong"] = "weak"
    """Which view the teacher sees; the student sees the strong one."""
    head: Literal["own", "teacher"] = "own"
    """Whether the student's head starts as it is or from the teacher's trained one."""
    threshold: float | Literal["source"] = "source"
    """Score from which a detection of the teacher is an object; `source` measures it as `teacher.threshold` does."""
    doubt: float = Field(default=0.2, ge=0, le=1)
    """Fraction of it from which a detection is at least ignored rather than taken for background."""

    @model_validator(mode="after")
    def _something_to_teach(self) -> DistillationConfig:
        if not isinstance(self.response, str) and self.response < 0:
            raise ValueError(f"response is a weight from 0 up or 'auto', not {self.response}")
        if not (self.response or self.gan or self.imitation or self.channel):
            raise ValueError("response is 0 and gan, imitation and channel are off, so the teacher teaches nothing")
        if not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a score in 0..1 or 'source', not {self.threshold}")
        return self


class SlimConfig(Options):
    """The widths of a slimmable detector, adapted together (`adapt/slim.py`)."""

    models: int = Field(default=4, ge=2, le=64)
    """Models a step: the largest, the smallest, and others at random between."""
    each_stage: bool = True
    """Whether the random ones have a width for each stage, or one for all."""
    reduce: Literal["mean", "sum"] = "mean"
    """How the losses of a step's models are put together."""
    ensemble: float = Field(default=1.0, ge=0)
    """Weight of the models' averaged predictions as soft targets of each (SEED); 0 leaves them out."""
    confidence: Literal["uniform", "macs", "hinge"] = "uniform"
    """What a model counts for in the average: all the same, in proportion to its multiply-accumulates, or the less the
    farther its predictions are from the largest model's."""
    margin: float = Field(default=1.0, gt=0)
    """`hinge`: the distance from which a model counts for nothing."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sharpening of averaged probabilities, away from one half; 1 leaves them as they are."""
    view: Literal["weak", "strong"] = "strong"
    """Of the target images, what is averaged; the strong view is computed anyway."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Averaged score from which a location's averaged box is a target."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the run over which the ensemble's weight rises from 0."""
    third: bool = False
    """Whether the ensemble teaches a head of its own, which gets nothing else and is the one that is kept (OSTC)."""
    reaches_features: bool = True
    """`third`: whether what the ensemble teaches trains the features too, or that head alone."""

    @model_validator(mode="after")
    def _ensemble_teaches_the_third(self) -> SlimConfig:
        if self.third and self.ensemble == 0:
            raise ValueError("third is a head that the ensemble alone teaches; set ensemble above 0")
        if not self.third and not self.reaches_features:
            raise ValueError("reaches_features = false is an option of third = true")
        return self


class QuantisationConfig(Options):
    """Quantisation-aware fine-tuning (`adapt/quantisation.py`)."""

    observe: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the run over which the ranges of activations widen; then they stand."""
    features: float = Field(default=1.0, ge=0)
    """Weight of the difference from the fp32 detector's features, beside that from its outputs."""


class LabelledConfig(Options):
    """Target images that a person has labelled (`adapt/labelled.py`)."""

    share: float = Field(default=0.25, gt=0, le=1)
    """How many of them come with each batch, as a part of its size: at least one."""
    weight: float = Field(default=1.0, gt=0)
    """Of the mean loss over them, beside `supervised` of that over the source's."""


class AskConfig(Options):
    """Frames of the target that `run` asks a person to label (`select/ask`)."""

    frames: int = Field(default=16, ge=1)
    way: str | None = None
    """How they are chosen; by default as `acclimate ask` does."""


class AdaptConfig(Options):
    """An adaptation is a list of terms; a field that is None is a term that is not there."""

    supervised: float = Field(default=1.0, ge=0)
    teacher: TeacherConfig | None = TeacherConfig()
    statistics: Literal["mixed", "target", "domain", "frozen"] = "mixed"
    """What BatchNorm's running statistics describe after a method that sees target images: the mixture that was trained
    on, or the target alone, from which they are then taken anew at the end; `domain` also normalises each domain's
    images by their own statistics while training; `frozen` keeps the backbone's normalisation as the source training
    left it, which is where suppression acts."""
    adversarial: AdversarialConfig | None = None
    suppression: SuppressionConfig | None = None
    distillation: DistillationConfig | None = None
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


class ExportConfig(Options):
    """Which artifacts are made, from which calibration images, and how near INT8 has to be to fp32."""

    runtime: str = "onnx"
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(default=("fp32", "int8"), min_length=1)
    calibration_images: int = Field(default=128, ge=1, le=1_000_000)
    calibration_choice: Literal["diverse", "even", "random"] = "even"
    tolerance: float | None = Field(default=None, gt=0, lt=1)
    """Agreement of INT8's detections with fp32's, see `select.mixed`; layers stay in fp32 until it holds."""


class Budget(Options):
    """What the device allows; None means no limit. Latency is one image's median, pre- and post-processing included."""

    latency_ms: float | None = Field(default=None, gt=0)
    size_mb: float | None = Field(default=None, gt=0)
    memory_mb: float | None = Field(default=None, gt=0)
    macs_m: float | None = Field(default=None, gt=0)
    threads: int = Field(default=1, ge=1, le=MOST_THREADS)
    max_ap50_drop: float | None = Field(default=0.01, ge=0, le=1)
    """Accuracy tolerance: how much AP50 the artifact may lose against the eager model, on any labelled set."""
    min_ap50: Annotated[float | None, Added(None)] = Field(default=None, ge=0, le=1)
    """AP50 that the artifact must reach on the target's labelled set."""
    min_gain_ap50: Annotated[float | None, Added(None)] = Field(default=None, ge=-1, le=1)
    """How much more that must be than the AP50 of the source-only detector."""
    max_class_drop_ap50: Annotated[float | None, Added(None)] = Field(default=None, ge=0, le=1)
    """How much AP50 any class may lose there against the source-only detector."""

    def limits(self) -> dict[str, float]:
        """The limits on cost that are set."""
        values = {name: getattr(self, name) for name in ("latency_ms", "size_mb", "memory_mb", "macs_m")}
        return {name: value for name, value in values.items() if value is not None}


class ScenesConfig(Options):
    """Generated data sets, for the demo and for tests: one clear set and one under each named condition."""

    out: Path
    images: int = Field(default=300, ge=1, le=1_000_000)
    test_images: int = Field(default=100, ge=1, le=1_000_000)
    size: Canvas = (240, 320)
    condition: Literal["fog", "rain", "night", "camera"] = "fog"
    strength: float = Field(default=1.0, gt=0, le=100)


class Config(Options):
    """A whole job. `source` is needed to train; `target` (images only) to adapt; the `*_test` sets to verify.

    `oracle` is a labelled set of the target domain: it trains the oracle baseline, and nothing else ever reads it.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    out: Path = Path("runs")
    scenes: ScenesConfig | None = None
    source: DataConfig | None = None
    target: Path | None = None
    source_test: DataConfig | None = None
    target_test: DataConfig | None = None
    oracle: DataConfig | None = None
    labelled: DataConfig | None = None
    """A few images of the target that a person has labelled; the adaptation learns from them."""
    ask: AskConfig | None = None
    """Ask for them: `run` waits until they are labelled."""
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    train: ScheduleConfig = ScheduleConfig()
    adapt: AdaptConfig = AdaptConfig()
    schedule: ScheduleConfig = ScheduleConfig(steps=1000, lr=5e-4, warmup=50)
    """The schedule of the adaptation; `train` is the schedule of the source training."""
    export: ExportConfig = ExportConfig()
    budget: Budget | None = None

    @model_validator(mode="before")
    @classmethod
    def _adapt_schedule_inherits(cls, values: Any) -> Any:
        """The adaptation's schedule starts from `train`'s loader settings, so that one place sets them."""
        if not isinstance(values, dict):
            return values
        train, given = values.get("train"), values.get("schedule")
        if isinstance(train, ScheduleConfig):
            train = train.model_dump(exclude_unset=True)
        if given is not None and not isinstance(given, dict):
            return values
        inherited = {
            key: value
            for key, value in (train if isinstance(train, dict) else {}).items()
            if key in {"batch_size", "precision", "workers", "cache_mb"}
        }
        default: dict[str, Any] = {"steps": 1000, "lr": 5e-4, "warmup": 50}
        if quantises(values):
            # Short, and with small steps: the detector is trained already. It keeps its last weights.
            default = {"steps": 200, "lr": 5e-5, "warmup": 20, "ema": 0.98}
            default["checkpoint_every"] = (given or {}).get("steps", default["steps"])
        return {**values, "schedule": {**default, **inherited, **(given or {})}}


def quantises(values: Mapping[str, Any]) -> bool:
    """Whether a configuration, not looked at yet, asks for `adapt.quantisation`."""
    adapt = values.get("adapt")
    asked = adapt.get("quantisation") if isinstance(adapt, Mapping) else getattr(adapt, "quantisation", None)
    return asked is not None


_Model = TypeVar("_Model", bound=BaseModel)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or the config.json of a run, and apply `key=value` overrides (dotted keys, TOML values; a bare
    word is a string).

    Relative paths in the file are relative to the working directory, as on the command line.

    Raises:
        AcclimateError: the file is missing or not TOML, a key is unknown, or a value does not fit.
    """
    return parse(Config, merge(read(path), overrides), where=str(path))


def read(path: str | Path) -> dict[str, Any]:
    """What a TOML or JSON file holds, before anything in it is looked at.

    Raises:
        AcclimateError: the file is missing, or neither.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            values = json.load(file) if path.suffix == ".json" else tomllib.load(file)
    except FileNotFoundError:
        raise AcclimateError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AcclimateError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise AcclimateError(f"{path}: not valid TOML: {error}") from None
    except json.JSONDecodeError as error:
        raise AcclimateError(f"{path}: not valid JSON: {error}") from None
    except (RecursionError, ValueError) as error:
        # A number of more digits than Python reads, or brackets in brackets.
        said = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise AcclimateError(f"{path}: cannot be read ({said})") from None
    if not isinstance(values, dict):
        raise AcclimateError(f"{path}: not a configuration; give a TOML file or the config.json of a run")
    return values


def overlay(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `more` in their place, section by section."""
    merged = dict(values)
    for key, value in more.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def merge(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each dotted `key=value` put in its place.

    Raises:
        AcclimateError: an override has no `=`.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key.strip():
            raise AcclimateError(f"{override!r}: an override is written key=value, for example train.steps=500")
        node = merged
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = dict(child) if isinstance(child, Mapping) else {}
            node = node[parent]
        node[leaf] = _value(text.strip())
    return merged


def parse(model: type[_Model], values: Mapping[str, Any], where: str) -> _Model:
    """Validate `values` as `model`; `where` is the file or argument that the message names.

    Raises:
        AcclimateError: with one line that holds every problem found.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise AcclimateError(f"{where}: " + "; ".join(_explain(model, dict(item)) for item in error.errors())) from None


def parse_budget(text: str) -> Budget:
    """Read `latency_ms=10,size_mb=4`.

    Raises:
        AcclimateError: an unknown limit or a value that is not a positive number.
    """
    limits = [item.strip() for item in text.split(",") if item.strip()]
    for limit in limits:
        if "=" not in limit:
            raise AcclimateError(f"--budget: {limit!r}: a limit is written key=value, for example latency_ms=10")
    keys = [limit.partition("=")[0].strip() for limit in limits]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise AcclimateError(f"--budget: {twice[0]}: is given twice; leave one out")
    return parse(Budget, merge({}, limits), where="--budget")


def load_budgets(path: str | Path) -> dict[str, Budget]:
    """The budgets of a TOML file: one, named "", where its keys are limits; else one for each table, by its name.

    Raises:
        AcclimateError: the file is missing, is not TOML, sets no limit, or a limit is unknown or not positive.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise AcclimateError(f"{path}: cannot be read ({error.strerror}); give a TOML file with limits") from None
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else error
        raise AcclimateError(f"{path}: not valid TOML: {said}") from None
    named = {key: value for key, value in values.items() if isinstance(value, dict)}
    if named and len(named) < len(values):
        loose = next(key for key in values if key not in named)
        raise AcclimateError(f"{path}: {loose}: limits stand in tables or without any, not both")
    budgets = {}
    for name, limits in (named or {"": values}).items():
        where = f"{path}: [{name}]" if name else str(path)
        budgets[name] = parse(Budget, limits, where=where)
        if not budgets[name].limits():
            raise AcclimateError(f"{where}: no limit; set latency_ms, size_mb, memory_mb or macs_m")
        if len(os.fsencode(name)) > LONGEST_NAME - 30:
            raise AcclimateError(f"{path}: a budget's name becomes a folder's; {name[:30]}... is too long for that")
        if Path(name).name != name:
            raise AcclimateError(f"{path}: {name!r}: a budget's name becomes a folder's, so it has no slash")
    return budgets


def _value(text: str) -> Any:
    if text in {"none", "None"}:
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        # What a validator raises; pydantic says of what type it was.
        message = str(item["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    siblings = _fields(model, [str(part) for part in item["loc"][:-1]])
    close = difflib.get_close_matches(str(item["loc"][-1]), siblings, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(siblings))}"
    return f"unknown key {key!r} ({hint})"


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            break
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)
