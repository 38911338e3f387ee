"""Options of the detector that is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from acclimate.boxes.soft_nms import Suppression
from acclimate.config.kinds import KindOptions
from acclimate.config.kinds.slimmable import SlimmableConfig
from acclimate.config.kinds.ssd import SsdConfig
from acclimate.config.kinds.supernet import SupernetConfig
from acclimate.config.kinds.transformers import TransformersConfig
from acclimate.config.kinds.two_stage import TwoStageConfig
from acclimate.config.kinds.zoom import ZoomConfig
from acclimate.config.losses import LossConfig
from acclimate.config.options import Added, Canvas, Options, Stride

KINDS = ("dense", "two-stage", "ssd", "slimmable", "supernet", "transformers", "zoom", "fcos", "retinanet")
"""The kinds of detectors. What a kind is, is the class of that kind in `models/NAME.py`, with `_` for `-`; its options,
where it has any, are the field of that name of `ModelConfig`."""

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[KINDS]


class ModelConfig(Options):
    """What is built. `size` names a preset; every other field, where given, overrides it."""

    kind: Kind = "dense"
    """Which detector."""

    size: Literal["nano", "tiny", "small"] = "tiny"
    """A preset of backbone, channels and depth; the keys below override its parts."""
    image_size: Canvas = (320, 320)
    """Height and width of the network's canvas, pixels; each a multiple of the largest stride."""
    backbone: str | None = None
    """Any timm model with `features_only`, or a torchvision classifier as `torchvision/NAME`; by default the size's."""
    output_stride: Annotated[Literal[8, 16, 32], Added(32)] = 32
    """From which stride on the backbone's convolutions are dilated in place of being strided, so that its last map
    stays so large; 32 for none."""
    weights: Path | Literal["auto", "none"] = "auto"
    """Where the backbone starts: `auto` (an installed package, the hub's cache, or a download; an error where none is
    to be had), `none` (random, on purpose), or a file."""
    start: Annotated[Path | None, Added(None)] = None
    """A run whose detector is the start: all of its weights, and the class scores of those classes that have the same
    name. The options of `[model]` must be those that it was made with."""
    strides: Annotated[tuple[Stride, ...], Field(min_length=1, max_length=16)] | None = None
    """Strides of the pyramid's levels, pixels, rising; by default 8, 16, 32."""
    channels: int | None = Field(default=None, ge=8, le=4096)
    """Channels of the pyramid; by default the size's."""
    depth: int | None = Field(default=None, ge=0, le=8)
    """Convolution blocks in each tower of the head; by default the size's."""
    conv: Annotated[
        Literal["ordinary", "depthwise", "shuffle", "self-calibrated", "pyramid", "heterogeneous", "poly-scale"] | None,
        Added("depthwise"),
    ] = None
    """The spatial convolution of the pyramid and the head, for the kinds that are made of such blocks (`dense`, banks
    of it, `zoom`): an `ordinary` one over all channels, the default; `depthwise`, with a pointwise one behind it as
    behind all that follow; ShuffleNet's unit (`shuffle`), a self-calibrated one, PyConv (`pyramid`), HetConv
    (`heterogeneous`) or PSConv (`poly-scale`)."""
    shared_tower: Annotated[bool, Added(False)] = False
    """Whether the head has one tower for classes and boxes together, for `kind = "dense"`, rather than one for each."""
    context: Annotated[Literal["strip"] | None, Added(None)] = None
    """What each level of the pyramid passes besides, for `kind = "dense"`: `strip` gates it by its pooled rows and
    columns."""
    norm: Literal["batch", "frozen", "group", "switchable", "moving"] = "batch"
    """The normalisation: `batch` (trainable BatchNorm), `frozen` (in the backbone fixed statistics, scale and shift;
    folded into the convolutions when it is exported), `group` (GroupNorm), `switchable` (a learned mixture of batch,
    layer and instance normalisation) or `moving` (MABN, for batches of a few images)."""
    drop_path: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, lt=1)
    """The rate at which the deepest of timm's blocks drops itself in a training (stochastic depth); it rises linearly
    over the source training."""
    freeze: int = Field(default=0, ge=0, le=6)
    """How many of the backbone's first stages (the stem is the first) keep their weights."""
    suppression: Annotated[Suppression, Added("nms")] = "nms"
    """What becomes of a box that overlaps a better one of its class: it is dropped (`nms`), or loses score
    (`soft-linear`, `soft-gaussian`; Bodla et al. 2017). Not for `transformers`, which have no NMS."""
    losses: Annotated[LossConfig, Added(LossConfig())] = LossConfig()
    """What the losses are made of, in place of the kind's own."""
    two_stage: TwoStageConfig = TwoStageConfig()
    """The second stage; for `kind = "two-stage"` alone."""
    ssd: SsdConfig = SsdConfig()
    """Levels and default boxes; for `kind = "ssd"` alone."""
    slimmable: SlimmableConfig = SlimmableConfig()
    """The widths; for `kind = "slimmable"` alone."""
    supernet: SupernetConfig = SupernetConfig()
    """The places of blocks; for `kind = "supernet"` alone."""
    transformers: TransformersConfig = TransformersConfig()
    """Where the checkpoint is; for `kind = "transformers"` alone."""
    zoom: ZoomConfig = ZoomConfig()
    """How the large canvas is sampled; for `kind = "zoom"` alone."""

    @property
    def own(self) -> KindOptions | None:
        """The options of its own kind; None where it has none."""
        return self.of_kinds.get(self.kind.replace("-", "_"))

    @property
    def of_kinds(self) -> dict[str, KindOptions]:
        """The sections that one kind alone looks at, by name."""
        values = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in values if isinstance(value, KindOptions)}

    @property
    def has_blocks(self) -> bool:
        """Whether its pyramid and head are made of the blocks that `conv`, `shared_tower` and `context` choose."""
        return self.kind in ("dense", "slimmable", "supernet", "zoom")

    @property
    def has_masks(self) -> bool:
        """Whether what is built learns masks, and so needs the outlines of its objects."""
        own = self.own
        return own is not None and own.has_masks

    @model_validator(mode="after")
    def _one_start(self) -> ModelConfig:
        if self.start is not None and isinstance(self.weights, Path):
            raise ValueError("start and weights both name what to start from; leave one out")
        return self
