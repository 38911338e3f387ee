"""What every detector is: the protocol, its specification, saving and loading."""

from __future__ import annotations

import contextlib
import copy
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor, nn

from acclimate import machine
from acclimate.boxes.soft_nms import Suppression
from acclimate.config import KINDS
from acclimate.config.losses import LossConfig
from acclimate.edge.artifact import Decode
from acclimate.edge.decode import decode
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.named import class_of
from acclimate.run import read_json, write_bytes, write_text
from acclimate.structures import Annotations, Detections

if TYPE_CHECKING:
    from acclimate.config import ModelConfig

MODULES = {kind: f"{__package__}.{kind.replace('-', '_')}" for kind in KINDS}
"""What `DetectorSpec.kind` may be, and the module that the class of that kind is in."""

LossKind = Literal["class", "box", "quality", "objectness", "mask"]
"""What a loss teaches: which class, where the border is, how good a box is, whether there is anything, which pixels."""


class DetectorSpec(BaseModel):
    """Everything that determines a detector's graph; saved beside the weights as spec.json.

    A kind that needs more has a class derived from this one (`Detector.Spec`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = "dense"
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) of the canvas."""
    backbone: str
    strides: tuple[int, ...]
    channels: int
    depth: int
    norm: Literal["batch", "frozen", "group", "switchable", "moving"] = "batch"
    freeze: int = 0
    output_stride: int = 32
    """From which on the backbone's convolutions are dilated in place of being strided, pixels."""
    conv: str = "depthwise"
    """The spatial convolution of the pyramid and the head, `models.blocks.CONVOLUTIONS`."""
    shared_tower: bool = False
    """Whether one tower of the head serves classes and boxes."""
    drop_path: float = 0.0
    """The rate at which the deepest of timm's blocks drops itself in training."""
    context: str | None = None
    """What each level of the pyramid passes besides, `models.blocks.CONTEXTS`."""
    folded: bool = True
    """With `norm = "frozen"`: whether the normalisation is part of the convolutions' weights, as in every detector that
    was made before this could be told, and in what is cut from a slimmable one."""
    start: str = "random"
    """Where the backbone's first weights came from."""
    reading: Reading = DEFAULT
    """How the pictures that it is trained on, and is to run on, are read."""
    widths: tuple[float, ...] | None = None
    """For a slice of a slimmable detector: the ratio of the channels that each stage kept."""
    divisor: int = 8
    """Where channels are kept in part, their count is rounded to a multiple of it."""
    suppression: Suppression = "nms"
    """Of boxes that overlap a better one; of a kind with NMS."""
    losses: LossConfig = LossConfig()
    """What it trains by; no part of the graph."""

    @model_validator(mode="before")
    @classmethod
    def _of_other_kinds(cls, values: Any) -> Any:
        """Earlier versions wrote what other kinds need too, empty."""
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if key in cls.model_fields or value not in (None, [], ())}

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns masks, and so needs the outlines of its objects."""
        return False

    @property
    def anchored(self) -> tuple[Any, ...]:
        """What two detectors must have alike so that weights of one mean the same in the other, beyond their shapes."""
        return ()

    def as_options(self, config: ModelConfig) -> dict[str, Any]:
        """What it says of the options of its kind, as values of `config`."""
        return {}


PRESETS = {
    "nano": ("tf_efficientnet_lite0", 48, 1),
    "tiny": ("tf_efficientnet_lite1", 64, 2),
    "small": ("tf_efficientnet_lite2", 96, 3),
}
"""Size -> (backbone, pyramid channels, depth of the head). The ImageNet weights of these backbones are installed with
`train`, so that no preset starts from random weights."""


@dataclass(frozen=True, slots=True)
class ClassRows:
    """How the outputs of a layer belong to classes: (groups, background + classes + last, each), flattened in this
    order."""

    groups: int = 1
    background: int = 1
    """1 where the first of them is the background."""
    each: int = 1
    last: int = 0
    """How many behind those of the classes belong to none."""


class Detector(nn.Module, ABC):
    """A detector whose `forward` is exactly what is exported: tensors in, tensors out, static shapes, no NMS."""

    kind: ClassVar[str] = ""
    """What `DetectorSpec.kind` calls it."""
    Spec: ClassVar[type[DetectorSpec]] = DetectorSpec
    """What determines a detector of its kind."""

    spec: DetectorSpec
    trains_on_raw: ClassVar[bool] = True
    """Whether the losses are taken on what `head` returns. A two-stage detector samples its own boxes to train on, so
    a step need not run its head."""
    output_names: ClassVar[tuple[str, ...]] = ("logits", "distances")
    """Of `forward`'s outputs, as `edge.artifact.Decode` calls them."""
    any_size: ClassVar[bool] = False
    """Whether `forward` takes images of any size that is a multiple of the largest stride, as a detector of
    convolutions alone does; otherwise its boxes are made for `spec.image_size`."""
    bank: ClassVar[bool] = False
    """Whether it holds many detectors, one of which `search` cuts out (`select.search.Bank`)."""
    losses_known: ClassVar[tuple[str, ...]] = ()
    """What of `LossConfig.asked` its losses can be made of."""
    predictors: ClassVar[tuple[str, ...]] = ()
    """The submodules that `head` computes with, and nothing else does; none where it cannot be told."""
    student: ClassVar[str] = ""
    """The kind of the small detector that it teaches unless told otherwise; empty for its own."""
    imitates: ClassVar[bool] = False
    """Whether features near objects, beside the outputs, were measured to teach it best: what a teacher of its own
    kind, or of one derived from that, then does by default."""
    response: ClassVar[float] = 1.0
    """Weight of a teacher's outputs as soft targets, beside its own losses, unless told otherwise."""

    mean: Tensor
    std: Tensor

    @classmethod
    def specify(cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> DetectorSpec:
        """The specification that a configuration of this kind asks for; here, what is common to backbones of timm's.

        Raises:
            AcclimateError: the canvas is not a multiple of the largest stride, or there is no class.
        """
        unknown = [word for word in config.losses.asked() if word not in cls.losses_known]
        if unknown:
            raise AcclimateError(
                f"model.losses: {', '.join(unknown)} is not for a {config.kind} detector; "
                + (f"it knows {', '.join(cls.losses_known)}" if cls.losses_known else "it has losses of its own")
            )
        backbone, channels, depth = PRESETS[config.size]
        strides = config.strides or tuple(stride for stride in (8, 16, 32) if stride <= config.output_stride)
        height, width = config.image_size
        if min(height, width) < 1 or height % strides[-1] or width % strides[-1]:
            raise AcclimateError(
                f"model.image_size: {height} x {width} is not a multiple of the stride {strides[-1]}, or not above 0"
            )
        if list(strides) != sorted(set(strides)):
            raise AcclimateError(f"model.strides: {list(strides)} must rise")
        blocks = {"conv": (None, "depthwise"), "context": (None,), "shared_tower": (False,)}
        asked = [key for key, usual in blocks.items() if getattr(config, key) not in usual]
        if asked and not config.has_blocks:
            key = asked[0]
            raise AcclimateError(f"model.{key}: a {config.kind} detector has no such blocks; take model.kind=dense")
        if not classes:
            raise AcclimateError("source: the data set names no class, so there is nothing to detect")
        return DetectorSpec(
            kind=config.kind,
            classes=tuple(classes),
            image_size=(height, width),
            backbone=config.backbone or backbone,
            strides=strides,
            channels=config.channels or channels,
            depth=depth if config.depth is None else config.depth,
            norm=config.norm,
            freeze=config.freeze,
            output_stride=config.output_stride,
            drop_path=config.drop_path,
            conv=config.conv or ("ordinary" if config.has_blocks else "depthwise"),
            shared_tower=config.shared_tower,
            context=config.context,
            reading=reading,
            folded=config.norm != "frozen",
            suppression=config.suppression,
            losses=config.losses,
        )

    def plain(self) -> Detector:
        """A copy of what is exported of it: all of it, or of a bank the detector that it computes as now."""
        return copy.deepcopy(self)

    @property
    def loss_kinds(self) -> Mapping[str, LossKind]:
        """The kind of each loss that `losses` and `distillation` return, by its name; a method that weighs losses goes
        by it. A detector with others than these says so."""
        kinds: dict[str, LossKind] = {"class": "class", "box": "box"}
        return {**kinds, "repulsion": "box"} if self.spec.losses.repulsion else kinds

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid of (B, 3, H, W) images (RGB, 0..255): one (B, C, H_l, W_l) a level, from fine to coarse."""

    @abstractmethod
    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Raw outputs of the pyramid (B, C_l, H_l, W_l), one a level: (B, A, ...) each, of static shapes, as
        `output_names` says."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Raw outputs (B, A, ...) of images (B, 3, H, W), RGB, 0..255: exactly what is exported."""
        return self.head(self.features(images))

    def _normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Of each channel, for images in 0..1, as the backbone was trained. In the graph, not among the weights."""
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255.0 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    @abstractmethod
    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Named scalar losses against labelled boxes on the canvas.

        `raw` is the head's output where the step has it already, so that it is not computed twice.
        """

    @abstractmethod
    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Named scalar losses against another detector's raw outputs on the same geometry (soft targets).

        Args:
            features: (B, C_l, H_l, W_l), the pyramid of one view.
            soft: the other's raw outputs, (B, A, ...) each, of a detector of the same kind.
            threshold: score from which its boxes are learnt from.
            raw: as in `losses`.
        """

    @abstractmethod
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The `count` boxes of each image that most likely hold an object, (count, 4) on the canvas, without gradients.

        What instance-level critics look at: proposals of a two-stage detector, the best locations of a dense one.
        """

    def begin(self, config: ModelConfig) -> None:
        """What a new detector takes from elsewhere, beside the weights of its backbone, before it is trained."""

    def class_rows(self) -> dict[str, ClassRows]:
        """The layers whose outputs belong to classes, by name; every other layer knows nothing of them."""
        return {}

    @abstractmethod
    def decode_options(self) -> Decode:
        """How `forward`'s outputs become boxes; travels in the artifact."""

    @abstractmethod
    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Per-box features (total boxes, D) for boxes (N_i, 4) on the canvas, one tensor an image; with gradients."""

    def decode(self, raw: tuple[Tensor, ...], image_size: tuple[int, int] | None = None) -> list[Detections]:
        """Boxes on the canvas, one `Detections` an image, from raw outputs (B, A, ...), by the same numpy arithmetic
        that the device runs.

        `image_size` (height, width) is that of the images, where it is not the specification's (`any_size`).
        """
        outputs = [output.detach().float().cpu().numpy() for output in raw]
        return decode(outputs, self.decode_options(), image_size or self.spec.image_size)


def specify(config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> DetectorSpec:
    """The specification that a configuration asks for, of a detector for pictures that are read so.

    Raises:
        AcclimateError: the canvas is not a multiple of the largest stride, there is no class, or an option of its kind
            does not fit.
    """
    return family(config.kind).specify(config, classes, reading)


def family(kind: str) -> type[Detector]:
    """The detectors of a kind.

    Raises:
        AcclimateError: there is no such kind.
    """
    if kind not in MODULES:
        raise AcclimateError(f"spec: unknown kind of detector {kind!r} (known: {', '.join(MODULES)})")
    return cast(type[Detector], class_of(MODULES[kind], kind, "kind"))


def banks() -> list[str]:
    """The kinds that have widths or paths to choose among."""
    return [kind for kind in MODULES if family(kind).bank]


def build(spec: DetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> Detector:
    """A detector with fresh head weights, and the backbone started from `weights`.

    Raises:
        AcclimateError: an unknown kind or backbone, or weights that do not fit.
    """
    make: Callable[..., Detector] = family(spec.kind)
    return make(spec, weights)


def save(detector: Detector, folder: Path) -> None:
    """Write spec.json and model.safetensors into `folder`, atomically."""
    write_text(folder / "spec.json", detector.spec.model_dump_json(indent=1) + "\n")
    save_weights(detector, folder / "model.safetensors")


def save_weights(detector: Detector, file: Path) -> None:
    """Write the weights of `detector` alone, atomically."""
    state = {key: value.detach().contiguous().cpu() for key, value in detector.state_dict().items()}
    write_bytes(file, safetensors.torch.save(state))


def load(folder: Path, weights: Path | None = None) -> Detector:
    """The detector of a run folder, in eval mode on the CPU; `weights` picks another checkpoint of the run.

    Examples:
        >>> from pathlib import Path
        >>> import torch
        >>> from acclimate.models import detector as models
        >>> detector = models.load(Path("runs/adapted"))
        >>> scores, distances = detector(torch.zeros(1, 3, *detector.spec.image_size))
        >>> scores.shape[2] == len(detector.spec.classes)
        True

    Raises:
        AcclimateError: a file is missing, damaged, or from another architecture.
    """
    detector = build(specification(folder))
    load_weights(detector, weights or folder / "model.safetensors")
    return detector.eval()


def specification(folder: Path) -> DetectorSpec:
    """The specification of the detector in a run folder.

    Raises:
        AcclimateError: it is missing or damaged.
    """
    spec_file = folder / "spec.json"
    values = read_json(spec_file)
    kind = values.get("kind", "dense") if isinstance(values, dict) else "dense"
    try:
        return family(str(kind)).Spec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = f"{key}: {first['msg']}" if key else first["msg"]
        raise AcclimateError(f"{spec_file}: not a detector's specification ({reason})") from None


def load_weights(detector: Detector, file: Path) -> None:
    """Load a checkpoint written by `save_weights`.

    Raises:
        AcclimateError: it is missing, damaged or does not fit.
    """
    if not file.is_file():
        raise AcclimateError(f"{file}: no such weights; has the run finished?")
    try:
        detector.load_state_dict(safetensors.torch.load_file(file))
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        # The first line of torch's message says only that there are errors; the second is the first of them.
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise AcclimateError(f"{file}: cannot be loaded ({textwrap.shorten(reason, 240)})") from None


def parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


Own = TypeVar("Own", bound=nn.Module)


def accelerator() -> torch.device | None:
    """The accelerator that torch has here, of whatever maker; None where the processor does all."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def to_device(detector: Own) -> Own:
    """The detector on the accelerator, where there is one."""
    return detector.to(accelerator() or "cpu")


def device_name() -> str:
    """What networks run on here, as its maker calls it."""
    device = accelerator()
    if device is None:
        return machine.processor()
    named: Any = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(named()) if named is not None else device.type


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule gets its own mode back, as `keeping_modes` does it."""
    with keeping_modes(module), torch.inference_mode():
        module.eval()
        yield


@contextlib.contextmanager
def keeping_modes(module: nn.Module) -> Iterator[None]:
    """Every submodule leaves in the mode in which it came, training or evaluation, also when something fails."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
