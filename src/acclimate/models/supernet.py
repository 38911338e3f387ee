"""A single-path supernet of blocks: one set of weights for many backbones, of which `search` cuts the best out.

Guo et al. 2020 (single-path one-shot: in each training step one path, drawn uniformly), Chen et al. 2019 (DetNAS: the
same for a detector's backbone, searched by evolution, BatchNorm re-estimated for each path). DetNAS judges a path by
labels; here that is done without, by the distance to the path of the largest blocks (`select/search.py`), under a
device's budget. The blocks are those of ShuffleNet v2 (Ma et al. 2018) with kernels of 3, 5 and 7, and one of three
depthwise convolutions ("xception").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from acclimate.config import ModelConfig
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from acclimate.models.blocks import channel_shuffle
from acclimate.models.dense import DenseDetector
from acclimate.models.detector import Detector, DetectorSpec, device_of
from acclimate.models.slimmable import Widths, macs_by_layer

BLOCKS = ("shuffle3", "shuffle5", "shuffle7", "xception")
"""What a place of the backbone may hold, in the order of what they compute. In a path a block is its rank among them,
from above 0 to 1, as a width is."""
RANKS: Widths = tuple((i + 1) / len(BLOCKS) for i in range(len(BLOCKS)))
STRIDES = (4, 8, 16, 32)
"""Of the stages; the stem has the stride 2."""


class ShuffleBlock(nn.Module):
    """ShuffleNet v2's unit: half of the channels pass, the others are convolved; both are shuffled. One that halves the
    map convolves both."""

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[int], stride: int) -> None:
        """Build a block.

        Args:
            inputs: channels that come in; with stride 1 as many as go out.
            outputs: channels that go out, an even number.
            kernels: of the depthwise convolutions, each with a pointwise one before it and one behind the last.
            stride: 1, or 2 for a block that halves the map.
        """
        super().__init__()
        half = outputs // 2
        self.passed = half
        reads = inputs if stride > 1 else half
        self.beside: nn.Module | None = None
        if stride > 1:
            self.beside = nn.Sequential(*_depthwise(inputs, 3, stride), *_pointwise(inputs, half))
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            layers += _pointwise(reads if i == 0 else half, half)
            layers += _depthwise(half, kernel, stride if i == 0 else 1)
        self.main = nn.Sequential(*layers, *_pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        if self.beside is None:
            both = torch.cat([x[:, : self.passed], self.main(x[:, self.passed :])], 1)
        else:
            both = torch.cat([self.beside(x), self.main(x)], 1)
        return channel_shuffle(both, 2)


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _depthwise(channels: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def block(name: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    """One of `BLOCKS`.

    Args:
        name: of it.
        inputs: channels that come in.
        outputs: channels that go out.
        stride: 1, or 2 for a block that halves the map.
    """
    kernels = (3, 3, 3) if name == "xception" else (int(name.removeprefix("shuffle")),)
    return ShuffleBlock(inputs, outputs, kernels, stride)


class Choice(nn.Module):
    """All blocks of a place; it computes with the one that is `active`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: block(name, inputs, outputs, stride) for name in BLOCKS})
        self.active = BLOCKS[-1]

    def forward(self, x: Tensor) -> Tensor:
        """What the active block makes of (B, C, H, W)."""
        made: Tensor = self.blocks[self.active](x)
        return made


class SupernetDetectorSpec(DetectorSpec):
    """Of the kind "supernet"."""

    path: tuple[str, ...] | None = None
    """The block of each place; None for all of them."""
    stages: tuple[tuple[int, int], ...] = ((48, 1), (96, 2), (192, 4), (384, 2))
    """Channels and places of each stage."""


class SupernetBackbone(Backbone):
    """The stem and the places, as what a detector asks of a backbone."""

    def __init__(self, spec: SupernetDetectorSpec) -> None:
        """Build it without weights.

        Raises:
            AcclimateError: no stage has a wanted stride.
        """
        nn.Module.__init__(self)
        known = STRIDES[: len(spec.stages)]
        if missing := [stride for stride in spec.strides if stride not in known]:
            raise AcclimateError(f"model.strides: the supernet has levels of stride {list(known)}, not {missing}")
        self.norm, self._frozen, self._fixed_until = "batch", [], []
        self.strides = tuple(spec.strides)
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.body = _Places(spec, known.index(max(spec.strides)) + 1)
        self.channels = tuple(spec.stages[known.index(stride)][0] for stride in spec.strides)

    def places(self) -> dict[str, nn.Module]:
        """The place of each block, by name, from the image on."""
        body = self.body
        assert isinstance(body, _Places)
        return {
            f"stride{stride}.{i}": place
            for stride, stage in zip(STRIDES, body.stages, strict=False)
            for i, place in enumerate(stage.children())
        }


class _Places(nn.Module):
    def __init__(self, spec: SupernetDetectorSpec, depth: int) -> None:
        super().__init__()
        self.wanted = [STRIDES.index(stride) for stride in spec.strides]
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        path = iter(spec.path or ())
        stages, inputs = [], 16
        for outputs, count in spec.stages[:depth]:
            places: list[nn.Module] = []
            for i in range(count):
                stride = 2 if i == 0 else 1
                chosen = next(path, None)
                places.append(
                    Choice(inputs, outputs, stride) if chosen is None else block(chosen, inputs, outputs, stride)
                )
                inputs = outputs
            stages.append(nn.Sequential(*places))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return [levels[i] for i in self.wanted]


class SupernetDetector(DenseDetector):
    """The dense detector on a supernet. In training mode each forward pass of the backbone draws a path uniformly; in
    evaluation it computes along the current one, at first that of the largest blocks.

    One process trains it: the blocks beside the path get no gradient in a step.
    """

    kind: ClassVar[str] = "supernet"
    bank: ClassVar[bool] = True
    student: ClassVar[str] = "dense"
    imitates: ClassVar[bool] = False
    Spec: ClassVar[type[DetectorSpec]] = SupernetDetectorSpec
    spec: SupernetDetectorSpec

    def __init__(self, spec: SupernetDetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """See `DenseDetector`.

        Raises:
            AcclimateError: weights are asked for: there are none for these backbones.
        """
        if weights != "none":
            raise AcclimateError(
                "model.weights: a supernet has no pretrained weights; train it from random ones (model.weights=none)"
            )
        DenseDetector.__init__(self, spec, "none")
        self.path: Widths = (1.0,) * len(self.stages)
        self.drawn = self.path
        """The path of the last forward pass in training mode."""

    @classmethod
    def specify(cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> SupernetDetectorSpec:
        common = super().specify(config, classes, reading)
        for key, value, plain in (("norm", config.norm, "batch"), ("freeze", config.freeze, 0)):
            if value != plain:
                raise AcclimateError(f"model.{key}: a supernet's backbone is trained whole; set it to {plain}")
        if config.backbone is not None:
            raise AcclimateError("model.backbone: a supernet is a backbone of its own; leave it out")
        own = {"backbone": "supernet", "stages": config.supernet.stages}
        return SupernetDetectorSpec.model_validate({**common.model_dump(), **own})

    def make_backbone(self, spec: DetectorSpec) -> Backbone:
        assert isinstance(spec, SupernetDetectorSpec)
        return SupernetBackbone(spec)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the places that a block is chosen for."""
        assert isinstance(self.backbone, SupernetBackbone)
        return tuple(self.backbone.places()) if self.spec.path is None else ()

    def distinct(self) -> tuple[Widths, ...]:
        """The blocks that each place may have, as ranks."""
        return (RANKS,) * len(self.stages)

    def set_path(self, path: Sequence[float]) -> None:
        """Compute along a path, the rank of a block for each place, from now on.

        Raises:
            AcclimateError: it has no block for each place, or one that is not there.
        """
        names = self._named(path)
        assert isinstance(self.backbone, SupernetBackbone)
        for place, name in zip(self.backbone.places().values(), names, strict=True):
            assert isinstance(place, Choice)
            place.active = name
        self.path = tuple(path)

    def features(self, images: Tensor) -> list[Tensor]:
        if not self.training or self.spec.path is not None:
            return super().features(images)
        kept = self.path
        # torch's generator, whose state is part of a run's.
        self.drawn = tuple(RANKS[rank] for rank in torch.randint(len(BLOCKS), (len(kept),)).tolist())
        self.set_path(self.drawn)
        try:
            return super().features(images)
        finally:
            self.set_path(kept)

    def plain(self) -> Detector:
        return super().plain() if self.spec.path is not None else self.extract()

    def extract(self, width: Sequence[float] | None = None) -> Detector:
        """The detector of one path alone, the current one by default; it shares no memory.

        Raises:
            AcclimateError: as `set_path`.
        """
        names = self._named(self.path if width is None else width)
        plain = SupernetDetector(self.spec.model_copy(update={"path": names}))
        own, state = self.state_dict(), {}
        assert isinstance(plain.backbone, SupernetBackbone)
        chosen = dict(zip(self._prefixes(), names, strict=True))
        for key in plain.state_dict():
            prefix = next((one for one in chosen if key.startswith(one)), "")
            source = f"{prefix}blocks.{chosen[prefix]}.{key.removeprefix(prefix)}" if prefix else key
            state[key] = own[source]
        plain.load_state_dict(state)
        return plain.to(device_of(self)).train(self.training)

    def macs(self, width: Sequence[float]) -> int:
        """Multiply-accumulates of one image along a path: `models.slimmable.macs` of what `extract` gives."""
        base, added = self._macs
        return base + sum(costs[name] for costs, name in zip(added, self._named(width), strict=True))

    def size(self, width: Sequence[float]) -> int:
        """Parameters of what `extract` gives."""
        total = sum(parameter.numel() for parameter in self.parameters())
        for place, name in zip(self._choices(), self._named(width), strict=True):
            total -= sum(
                parameter.numel()
                for other, part in place.blocks.items()
                if other != name
                for parameter in part.parameters()
            )
        return total

    @cached_property
    def _macs(self) -> tuple[int, list[dict[str, int]]]:
        """Of everything but the blocks, and of each block of each place: a path's are a sum."""
        kept, base, added = self.path, 0, [dict.fromkeys(BLOCKS, 0) for _ in self.stages]
        places = list(self._prefixes())
        try:
            for name, rank in zip(BLOCKS, RANKS, strict=True):
                self.set_path((rank,) * len(self.stages))
                rest = 0
                for layer, count in macs_by_layer(self, self.spec.image_size).items():
                    place = next((i for i, prefix in enumerate(places) if layer.startswith(prefix)), None)
                    if place is None:
                        rest += count
                    else:
                        added[place][name] += count
                base = rest
        finally:
            self.set_path(kept)
        return base, added

    def _prefixes(self) -> list[str]:
        """Of the names of each place's parameters, in the order of the path."""
        stages = enumerate(self._places().stages)
        return [f"backbone.body.stages.{s}.{i}." for s, stage in stages for i, _ in enumerate(stage.children())]

    def _named(self, path: Sequence[float]) -> tuple[str, ...]:
        if len(path) != len(self.stages) or not all(rank in RANKS for rank in path):
            raise AcclimateError(
                f"path: {len(self.stages)} ranks of {', '.join(map(str, RANKS))} are wanted, not {tuple(path)}"
            )
        return tuple(BLOCKS[RANKS.index(rank)] for rank in path)

    def _places(self) -> _Places:
        body = self.backbone.body
        assert isinstance(body, _Places)
        return body

    def _choices(self) -> list[Choice]:
        assert isinstance(self.backbone, SupernetBackbone)
        return [place for place in self.backbone.places().values() if isinstance(place, Choice)]
