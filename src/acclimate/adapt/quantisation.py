"""Quantisation-aware fine-tuning: a detector trains on in the arithmetic of INT8, towards what it was in fp32.

Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018
(arXiv 1712.05877): weights and activations are rounded in the forward pass, and the gradient goes straight through the
rounding (Bengio et al. 2013, arXiv 1308.3432). The lesson is the detector as it was before, in fp32, on the same pixels
of unlabelled target images: what differs is what rounding did, and nothing else is learnt. No label is read.

What is rounded is what the INT8 runtimes round (`export.onnx`, `export.openvino`): the layers that the exported
graph quantises, so neither the first nor the last ones,

    weights      w <- s clamp(round(w / s), -64, 64),        s = max |w| / 64 of each output channel
    activations  x <- s (clamp(round(x / s) + z, 0, 255) - z),  s = (high - low) / 255, z = round(-low / s), a tensor

with low <= 0 <= high the extremes that the detector had in fp32 on the target images so far, which is how a runtime
calibrates. BatchNorm computes with its running statistics, as it will once it is folded into the convolution before it.
Folding multiplies an output channel by a constant, which multiplies its s too: so the rounded weight is the same before
and after, and a convolution that several levels share, each with a BatchNorm of its own, needs no copy. What passes a
layer by (the shortcut of a residual sum) is not rounded here.

Nothing of the detector changes its place or its name: its layers are found by their weights when they are called. So
the average of the weights, every checkpoint and the run are a plain detector in fp32, to be exported as any other.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MinMaxObserver,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from acclimate.adapt.distillation import FrozenTeacher
from acclimate.adapt.objective import Step, Term, View
from acclimate.errors import AcclimateError
from acclimate.export.base import frozen_copy
from acclimate.export.onnx import quantised_modules
from acclimate.models.detector import Detector, evaluating, keeping_modes
from acclimate.select.score import SHOWN

if TYPE_CHECKING:
    from acclimate.config import QuantisationConfig
    from acclimate.data.formats import LabelledSet

log = logging.getLogger(__name__)

TINY = torch.finfo(torch.float32).tiny
LARGEST = 64
"""Of a rounded weight, either side of 0: seven bits, as `onnx` and `openvino` have them; `litert` and `executorch` have
eight, which rounds less."""
TRUSTED = 0.1
"""Score of the teacher from which a location's box counts; what is shown starts a little higher."""
DOUBT = 0.2
"""As `TeacherConfig.doubt`, of a two-stage detector's own detections."""

Site = tuple[str, tuple[int, ...]]
"""A layer's name, and the rows and columns of what it reads: a layer that is shared by levels has a range on each."""
Read = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A layer's name, what it reads, and its weight -> what to compute with instead."""


def rounded_weight(weight: Tensor) -> Tensor:
    """`weight` (O, ...), outputs first, on its 129 levels a channel; the gradient passes unchanged."""
    flat = weight.detach().flatten(1).float()
    scale = (flat.abs().amax(1) / LARGEST).clamp_min(TINY)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -LARGEST, LARGEST)


class QuantisationAware(Term):
    """See the module.

    Attributes:
        sites: where a range is kept, in the order of the network, and the place of each in `ranges`.
        ranges: activations' extremes, and the rounding by them.
        rounded: names of the layers whose weights are rounded too.
    """

    views: ClassVar[tuple[View, ...]] = ("target_weak",)
    name: ClassVar[str] = "quantisation"

    def __init__(self, config: QuantisationConfig, detector: Detector, rounded: Sequence[str]) -> None:
        """Take `detector` as it is for the teacher; see `create` for what it must be.

        Args:
            config: the options.
            detector: about to be trained.
            rounded: names of the layers that INT8 quantises.

        Raises:
            AcclimateError: none of these layers is called with its own weight.
        """
        super().__init__()
        self.config = config
        self.rounded = frozenset(rounded)
        classes = detector.spec.classes
        self._lesson: tuple[Sequence[Tensor], tuple[Tensor, ...]] = (), ()
        self._teacher = FrozenTeacher(copy.deepcopy(detector), classes, [SHOWN] * len(classes), DOUBT)
        self.sites = {site: place for place, site in enumerate(_sites(detector, self.rounded))}
        if missing := self.rounded - {name for name, _ in self.sites}:
            log.warning(
                "adapt.quantisation leaves %d layers as they are, which do not compute with a weight of their own: %s",
                len(missing), ", ".join(sorted(missing)[:3]),
            )  # fmt: skip
        self.ranges = nn.ModuleList(
            FakeQuantize(  # type: ignore[no-untyped-call]
                observer=MinMaxObserver, quant_min=0, quant_max=255,
                dtype=torch.quint8, qscheme=torch.per_tensor_affine,
            )
            for _ in self.sites
        )  # fmt: skip

    @classmethod
    def create(cls, options: QuantisationConfig, detector: Detector, source: LabelledSet) -> Self:
        """For the layers that the exported graph quantises.

        Raises:
            AcclimateError: the detector is a bank of widths, its layers are reparametrised, or none is quantised.
        """
        if detector.bank and detector.plain().spec != detector.spec:
            raise AcclimateError(
                "adapt.quantisation: a bank of widths is not what is exported; `acclimate search` makes a detector of "
                "one, which can be fine-tuned"
            )
        if any(parametrize.is_parametrized(part) for part in detector.modules()):
            raise AcclimateError(
                "adapt.quantisation: adapt.suppression has reparametrised the layers; use its form `gradient` or "
                "`update`, or fine-tune the run that comes out"
            )
        return cls(options, detector, quantised_modules(frozen_copy(detector)))

    def forward(self, step: Step) -> dict[str, Tensor]:
        view = self.views[0]
        features, raw = self._lesson
        losses = step.distillation(view, raw, TRUSTED)
        if not step.detector.trains_on_raw:
            # Soft targets of a second stage say nothing to the stage that proposes.
            losses |= step.losses(view, self._teacher.targets(raw))
        if self.config.features > 0:
            pairs = zip(step.features(view), features, strict=True)
            losses["features"] = self.config.features * torch.stack([_difference(s, t) for s, t in pairs]).mean()
        return {f"quantisation/{name}": loss for name, loss in losses.items()}

    @contextlib.contextmanager
    def arithmetic(self, step: Step) -> Iterator[None]:
        """What the student computes in: rounded, its BatchNorm as it will be folded.

        The teacher comes first, as the ranges are its own.
        """
        with contextlib.ExitStack() as watched:
            if step.progress < self.config.observe:
                self.ranges.apply(enable_observer)
                self.ranges.apply(disable_fake_quant)
                watched.enter_context(_Reading(self._teacher.detector, self._observe))
            features = self._teacher.features(step.images(self.views[0]))
            self._lesson = features, self._teacher.raw(features)
        self.ranges.apply(disable_observer)
        self.ranges.apply(enable_fake_quant)
        with keeping_modes(step.detector), _Reading(step.detector, self._round):
            for part in step.detector.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
            yield

    def _observe(self, name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if (place := self.sites.get((name, _size(x)))) is not None:
            self.ranges[place](x.float())
        return x, weight

    def _round(self, name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        place = self.sites.get((name, _size(x)))
        if place is None:
            return x, weight
        seen: Tensor = self.ranges[place](x.float())
        return seen, rounded_weight(weight) if name in self.rounded else weight


class _Reading(TorchFunctionMode):
    """Replaces what a detector's convolutions and linear layers read, and their weights, while it is entered."""

    def __init__(self, detector: Detector, read: Read) -> None:
        super().__init__()
        self._read = read
        self._names: Mapping[int, str] = {
            id(part.weight): name for name, part in detector.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (func is F.conv2d or func is F.linear) and len(args) > 1 and (name := self._names.get(id(args[1]))):
            args = (*self._read(name, args[0], args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _sites(detector: Detector, rounded: frozenset[str]) -> list[Site]:
    """Where `detector` reads what INT8 holds: the layers of `rounded`, and those behind them that stay in fp32.

    Raises:
        AcclimateError: nowhere.
    """
    found: dict[Site, None] = {}

    def note(name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if found or name in rounded:
            found[name, _size(x)] = None
        return x, weight

    # Extremes are those of the tensor before a layer's own padding; what it adds is 0, which every range has.
    image = next(iter(detector.parameters())).new_zeros(1, 3, *detector.spec.image_size)
    with evaluating(detector), _Reading(detector, note):
        detector(image)
    if not found:
        raise AcclimateError("adapt.quantisation: INT8 quantises no layer of this detector; leave it out")
    return list(found)


def _size(x: Tensor) -> tuple[int, ...]:
    """Rows and columns of a map (B, C, H, W); nothing of rows of features, whose count is not the network's."""
    return tuple(x.shape[2:]) if x.ndim == 4 else ()


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared difference of two maps as a share of the teacher's square."""
    size = teacher.float().square().mean().clamp_min(TINY)
    return (student.float() - teacher).square().mean() / size
