"""What RetinaNet and FCOS share: a pyramid with two added levels, and a tower each for classes and boxes.

Lin et al. 2017 (RetinaNet: towers of 3x3 convolutions that all levels share, focal loss), Lin et al. 2017 (feature
pyramid). The levels behind the backbone's have half the rows and columns of the one before. Geometry, arithmetic and
losses are torchvision's, so that its checkpoints go on as they are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d, generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from acclimate.boxes import tensors
from acclimate.config import ModelConfig
from acclimate.edge.artifact import Decode, Priors
from acclimate.edge.decode import default_boxes
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.models import pooling
from acclimate.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Trunk, started
from acclimate.models.dense import share_of_total
from acclimate.models.detector import ClassRows, Detector, DetectorSpec
from acclimate.models.losses import quality_focal_loss
from acclimate.models.two_stage import Pyramid, anchor_rows, body_name, category_names, copy_tensors

PRIOR = 0.01
"""Score of every class at the start (Lin et al., section 4.1)."""
GROUP = 8
"""Channels that the towers normalise together, as published for 256 of them (Wu and He 2018)."""
BACKGROUND, IGNORED = -1, -2
"""What a place answers for that is no object: background, or nothing at all."""


class TowerSpec(BaseModel):
    """What determines such a detector beyond its backbone, the width of its pyramid and the depth of its towers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priors: tuple[Priors, ...]
    """Of every level, the two added ones among them."""
    modules: tuple[str, ...] = ()
    """Modules of torchvision's backbone that give the levels; empty for a backbone of timm's."""
    added_to: Literal["pyramid", "backbone"] = "pyramid"
    """Whose coarsest level the added ones are made of."""
    tower_groups: int = 0
    """Of the group normalisation behind the towers' convolutions; 0 for none."""
    tower_bias: bool = True
    """Of the towers' convolutions."""
    box_loss: Literal["l1", "giou"] = "giou"
    """On offsets, or on boxes."""
    score_threshold: float = 0.01
    nms_iou: float = 0.6
    level_candidates: int = 1000
    max_detections: int = 100


class TowerDetectorSpec(DetectorSpec):
    """Of the kinds "fcos" and "retinanet"."""

    towers: TowerSpec

    @property
    def anchored(self) -> tuple[Any, ...]:
        return tuple(level.sizes for level in self.towers.priors)


class AddedPyramid(Pyramid):
    """A feature pyramid with two levels behind those of the backbone, by 3x3 convolutions of stride 2."""

    def __init__(self, channels: Sequence[int], out: int, added_to: Literal["pyramid", "backbone"]) -> None:
        super().__init__(channels, out, "none")
        self.of_backbone = added_to == "backbone"
        self.first = nn.Conv2d(channels[-1] if self.of_backbone else out, out, 3, 2, 1)
        self.second = nn.Conv2d(out, out, 3, 2, 1)
        for layer in (self.first, self.second):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid (B, C, H_l, W_l) of the backbone's levels (B, C_l, H_l, W_l)."""
        found = super().forward(levels)
        first = self.first(levels[-1] if self.of_backbone else found[-1])
        return [*found, first, self.second(F.relu(first))]


class TowerDetector(Detector):
    """See the module. A subclass says what its box tower's outputs are, and what they mean."""

    Spec: ClassVar[type[DetectorSpec]] = TowerDetectorSpec
    predictors: ClassVar[tuple[str, ...]] = ("class_tower", "classify", "box_tower", "regress")
    # Towers of 3x3 convolutions are not for a small device.
    student: ClassVar[str] = "dense"

    priors: Tensor

    def __init__(self, spec: TowerDetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """Build from a specification; `weights` starts the backbone.

        Raises:
            AcclimateError: the backbone is unknown, lacks a level, or the weights do not fit.
        """
        super().__init__()
        self.options = options = spec.towers
        self.backbone, start = started(spec, weights, options.modules)
        self.spec = spec.model_copy(update={"start": start})
        self._normalise_by(self.backbone.mean, self.backbone.std)
        channels, each = spec.channels, len(options.priors[0].sizes)
        self.pyramid = AddedPyramid(self.backbone.channels, channels, options.added_to)
        self.class_tower, self.box_tower = (_tower(channels, spec.depth, options) for _ in range(2))
        self.classify = predictor(channels, each * len(spec.classes))
        self.regress = predictor(channels, each * 4)
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, -math.log((1 - PRIOR) / PRIOR))
        self.register_buffer("priors", torch.from_numpy(default_boxes(options.priors, 0.0)).clone(), persistent=False)

    @classmethod
    @abstractmethod
    def own_spec(cls, common: DetectorSpec) -> TowerSpec:
        """What a configuration's detector is beyond its backbone, as published."""

    @classmethod
    def specify(cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> TowerDetectorSpec:
        common = super().specify(config, classes, reading)
        return TowerDetectorSpec(**common.model_dump(), towers=cls.own_spec(common))

    @property
    def strides(self) -> tuple[int, ...]:
        """Of all levels, pixels."""
        return with_added(self.spec.strides)

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.pyramid(self.backbone(self._normalised(images)))
        return levels

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Logits (B, A, C), and what the box tower says (B, A, ...), of all A default boxes."""
        levels = [
            (anchor_rows(self.classify(self.class_tower(level)), len(self.spec.classes)), *self.located(level))
            for level in features
        ]
        return tuple(torch.cat(part, 1) for part in zip(*levels, strict=True))

    @abstractmethod
    def located(self, level: Tensor) -> tuple[Tensor, ...]:
        """What the box tower says of one level (B, C, H, W): (B, A_l, ...) each."""

    @abstractmethod
    def boxes(self, raw: Sequence[Tensor]) -> Tensor:
        """Boxes (B, A, 4), xyxy pixels, of raw outputs; they may reach over the border."""

    @abstractmethod
    def scores(self, raw: Sequence[Tensor]) -> Tensor:
        """Scores (B, A, C) of raw outputs, 0..1."""

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Default box by default box: quality focal loss towards the teacher's probabilities, GIoU towards its boxes.

        Class terms use every default box; box terms only those whose score at the teacher reaches `threshold`,
        weighted by it.
        """
        own = self.head(features) if raw is None else raw
        strength, trusted, total = self._trusted(soft, threshold)
        box = generalized_box_iou_loss(self.boxes(own)[trusted], self.boxes(soft)[trusted].detach()) * strength[trusted]
        probabilities = soft[0].detach().float().sigmoid()
        return {"class": quality_focal_loss(own[0].float(), probabilities).sum() / total, "box": box.sum() / total}

    @torch.no_grad()
    def _trusted(self, soft: tuple[Tensor, ...], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's best score (B, A) of each default box, which reach the threshold, and their sum over all."""
        strength = self.scores(soft).amax(-1)
        trusted = strength >= threshold
        return strength, trusted, share_of_total((strength * trusted).sum())

    @torch.no_grad()
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The default boxes with the best scores, where the outputs move them to, without NMS."""
        own = self.head(features) if raw is None else raw
        best = self.scores(own).amax(-1)
        where = best.topk(min(count, best.shape[1]), 1).indices[..., None].expand(-1, -1, 4)
        return list(tensors.clip(self.boxes(own).gather(1, where), self.spec.image_size))

    def class_rows(self) -> dict[str, ClassRows]:
        return {"classify": ClassRows(groups=len(self.options.priors[0].sizes), background=0)}

    def decode_options(self) -> Decode:
        options = self.options
        kind: Any = self.kind
        return Decode(
            kind=kind,
            priors=options.priors,
            score_threshold=options.score_threshold,
            nms_iou=options.nms_iou,
            candidates=options.level_candidates * len(options.priors),
            level_candidates=options.level_candidates,
            max_detections=options.max_detections,
            suppression=self.spec.suppression,
        )

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Average-pooled RoIAlign features; the level is the one whose stride is nearest to a quarter of the side."""
        return pooling.by_side(features, self.strides, boxes)


def with_added(strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of the backbone's levels, and of the two that are added."""
    return (*strides, 2 * strides[-1], 4 * strides[-1])


def groups(channels: int) -> int:
    """How many groups of about `GROUP` channels there are."""
    return math.gcd(channels, max(1, channels // GROUP))


def level_priors(
    image_size: tuple[int, int], strides: Sequence[int], sizes: Sequence[Sequence[tuple[float, float]]]
) -> tuple[Priors, ...]:
    """Default boxes of all levels, on a grid as torchvision lays it: whole pixels apart, from the corner.

    Args:
        image_size: (height, width) of the canvas.
        strides: of the backbone's levels.
        sizes: (width, height) in pixels of the default boxes of each level, the added ones among them.
    """
    height, width = image_size
    grids = [(height // stride, width // stride) for stride in strides]
    while len(grids) < len(sizes):
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    return tuple(
        Priors(rows=rows, columns=columns, step=(height // rows, width // columns), sizes=tuple(each))
        for (rows, columns), each in zip(grids, sizes, strict=True)
    )


def cells_of(generator: AnchorGenerator) -> list[list[tuple[float, float]]]:
    """(width, height) in pixels of the default boxes that torchvision puts at every cell, level by level."""
    return [[(float(a[2] - a[0]), float(a[3] - a[1])) for a in level] for level in generator.cell_anchors]


def _tower(channels: int, depth: int, options: TowerSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(predictor(channels, channels, bias=options.tower_bias))
        if options.tower_groups:
            layers.append(nn.GroupNorm(options.tower_groups, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def predictor(channels: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that starts as published."""
    layer = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


Own = TypeVar("Own", bound=TowerDetector)


def carried(
    family: type[Own],
    model: RetinaNet | FCOS,
    image_size: tuple[int, int],
    classes: Sequence[str] | None,
    **options: Any,
) -> Own:
    """A torchvision detector as one of ours, in eval mode: all but what stands behind its towers.

    Args:
        family: the class of ours.
        model: torchvision's.
        image_size: (height, width) of the canvas, multiples of the largest stride of the backbone's levels.
        classes: their names, see `column_names`.
        options: fields of `TowerSpec` that are not read off `model`.

    Raises:
        AcclimateError: a part of the model is none that this detector has, or `classes` are too many or too few.
    """
    backbone, generator = model.backbone, model.anchor_generator
    if not isinstance(backbone, BackboneWithFPN) or not isinstance(backbone.fpn.extra_blocks, LastLevelP6P7):
        raise AcclimateError("from_torchvision: takes a feature pyramid with the levels P6 and P7")
    if list(model.transform.image_mean) != [*IMAGENET_MEAN] or list(model.transform.image_std) != [*IMAGENET_STD]:
        raise AcclimateError("from_torchvision: takes images normalised by ImageNet's mean and standard deviation")
    modules = tuple(backbone.body.return_layers)
    name = body_name(backbone.body)
    every = Trunk(name, modules).strides
    strides = tuple(every[module] for module in modules)
    cells = cells_of(generator)
    if len(cells) != len(modules) + 2 or len({len(level) for level in cells}) > 1:
        raise AcclimateError("from_torchvision: takes as many default boxes at every level, and a set for each level")
    classifier = model.head.classification_head
    columns = classifier.num_classes
    names = column_names(columns, classes)
    layers = [part for part in classifier.conv.modules() if not isinstance(part, nn.Sequential)]
    tower = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    known = all(isinstance(layer, nn.Conv2d | nn.ReLU | nn.GroupNorm) for layer in layers)
    if not tower or not known or len(norms) not in {0, len(tower)}:
        raise AcclimateError("from_torchvision: takes towers of convolutions, with group normalisation or without")
    spec = TowerDetectorSpec(
        kind=family.kind,
        classes=names,
        image_size=image_size,
        backbone=name,
        strides=strides,
        channels=backbone.out_channels,
        depth=len(tower),
        start="torchvision",
        towers=TowerSpec(
            priors=level_priors(image_size, strides, cells),
            modules=modules,
            added_to="pyramid" if backbone.fpn.extra_blocks.use_P5 else "backbone",
            tower_groups=norms[0].num_groups if norms else 0,
            tower_bias=tower[0].bias is not None,
            score_threshold=model.score_thresh,
            nms_iou=model.nms_thresh,
            level_candidates=model.topk_candidates,
            max_detections=model.detections_per_img,
            **options,
        ),
    )
    detector = family(spec)
    copy_tensors(detector.backbone.body, backbone.body)
    # A frozen normalisation of torchvision's is one of ours.
    if any(isinstance(module, FrozenBatchNorm2d) for module in backbone.body.modules()):
        detector.backbone.norm = "frozen"
        detector.backbone.settle(fold=True)
        detector.spec = detector.spec.model_copy(update={"norm": "frozen"})
    copy_tensors(detector.pyramid, backbone.fpn)
    copy_tensors(detector.class_tower, classifier.conv)
    copy_tensors(detector.box_tower, model.head.regression_head.conv)
    copy_tensors(detector.regress, model.head.regression_head.bbox_reg)
    first = columns - len(names)
    with torch.no_grad():
        for own, theirs in zip(detector.classify.parameters(), classifier.cls_logits.parameters(), strict=True):
            own.copy_(theirs.unflatten(0, (-1, columns))[:, first:].flatten(0, 1))
    return detector.eval()


def column_names(columns: int, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes of a model with so many columns of scores.

    torchvision counts the background among the classes, though these detectors have no score for it: the first column
    learns nothing, and is left out. Where `classes` name all columns, it is the first of them.

    Raises:
        AcclimateError: `classes` are too many or too few.
    """
    count = max(1, columns - 1)
    names = tuple(classes) if classes is not None else category_names(count)
    if len(names) not in {count, columns}:
        raise AcclimateError(f"from_torchvision: the model has {count} classes, and {len(names)} names are given")
    return names
