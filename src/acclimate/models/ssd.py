"""The one-stage detector with default boxes: SSD and SSDLite on any backbone.

Liu et al. 2016 (SSD: default boxes on maps of many scales, the multibox loss), Sandler et al. 2018 (MobileNetV2,
section 6.2: SSDLite, whose predictors and added levels are depthwise separable). The backbone's levels are followed by
added ones, each with half the rows and columns of the one before, down to a single cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, vgg16
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS
from acclimate.config import ModelConfig
from acclimate.edge.artifact import Decode, Priors
from acclimate.edge.decode import default_boxes
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.models import pooling
from acclimate.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, started
from acclimate.models.dense import share_of_total, to_tensors
from acclimate.models.detector import ClassRows, Detector, DetectorSpec
from acclimate.models.losses import hardest, iou_loss, repelled, softmax_loss
from acclimate.models.normalisations import normalisation
from acclimate.models.roi_heads import SMALLEST
from acclimate.models.two_stage import anchor_rows, category_names, copy_tensors
from acclimate.structures import Annotations

OBJECT = 0.5
"""Overlap from which a default box is an object."""
INSIDE_IGNORED = 0.5
"""Share of a default box's area inside an ignored region from which it is left out of the losses. One that would have
been the object's, had the region been one, is at least this much inside."""
NEGATIVES = 3
"""Boxes of background in the class loss for each that is an object."""
IOU_WEIGHT = 2.0
"""Of a box loss on overlaps, as a dense detector has it."""

_Norm = Callable[..., nn.Module] | None


SMALLEST_SCALE, LARGEST_SCALE = 0.15, 0.9
"""Of an SSD's default boxes from the second level to the last, in sides of the canvas (Liu et al. 2016, for COCO)."""


class SsdSpec(BaseModel):
    """What determines an SSD beyond its backbone and the width of its added levels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lite: bool = False
    priors: tuple[Priors, ...]
    """Of every level; those behind the strides' are added to the backbone's."""
    torchvision: bool = False
    """Whether the backbone, with the added levels, is one of `models.ssd.EXTRACTORS`."""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    """Of the pixels in 0..1; the backbone's own where None."""
    score_threshold: float = 0.01
    nms_iou: float = 0.45
    candidates: int = 400
    class_candidates: int | None = None
    max_detections: int = 100


class SsdDetectorSpec(DetectorSpec):
    """Of the kind "ssd"."""

    ssd: SsdSpec


class SSDDetector(Detector):
    """See the module. Raw outputs: logits (B, A, C + 1), class 0 the background, and offsets (B, A, 4) of the default
    boxes, as `edge.artifact.Decode` says. The levels of the pyramid have widths of their own."""

    kind: ClassVar[str] = "ssd"
    Spec: ClassVar[type[DetectorSpec]] = SsdDetectorSpec
    output_names: ClassVar[tuple[str, ...]] = ("logits", "offsets")
    predictors: ClassVar[tuple[str, ...]] = ("classify", "regress")
    losses_known = ("cross-entropy", "focal", "iou", "giou", "diou", "ciou", "smoothing", "negatives", "repulsion")

    priors: Tensor

    def __init__(self, spec: SsdDetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """Build from a specification; `weights` starts the backbone.

        Raises:
            AcclimateError: the backbone is unknown, lacks a level, or the weights do not fit.
        """
        super().__init__()
        self.options = options = spec.ssd
        self.spec = spec
        if options.torchvision:
            self.backbone: Backbone | _Extractor = _Extractor(spec.backbone)
            channels = [level.shape[1] for level in _probe(spec.backbone, spec.image_size)]
        else:
            self.backbone, start = started(spec, weights)
            self.spec = spec.model_copy(update={"start": start})
            channels = [*self.backbone.channels, *[spec.channels] * (len(options.priors) - len(spec.strides))]
        self._normalise_by(options.mean or self.backbone.mean, options.std or self.backbone.std)
        norms = [self._norm(level) for level in options.priors]
        self.extra = nn.ModuleList()
        if not options.torchvision:
            for i in range(len(spec.strides), len(channels)):
                self.extra.append(_added_level(channels[i - 1], channels[i], options.lite, norms[i - 1 : i + 1]))
        self.classify, self.regress = (
            nn.ModuleList(
                _predictor(width, len(level.sizes) * each, options.lite, norm)
                for width, level, norm in zip(channels, options.priors, norms, strict=True)
            )
            for each in (len(spec.classes) + 1, 4)
        )
        for part in (self.extra, self.classify, self.regress):
            _initialise(part, options.lite)
        self.register_buffer("priors", torch.from_numpy(default_boxes(options.priors)).clone(), persistent=False)

    def _norm(self, level: Priors) -> _Norm:
        """The normalisation of layers that give such a level; none for a single cell, which has no statistics."""
        if self.options.torchvision:
            return _TORCHVISION_NORM
        return None if level.rows * level.columns == 1 else partial(normalisation, self.spec.norm)

    @classmethod
    def specify(cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> SsdDetectorSpec:
        common = super().specify(config, classes, reading)
        return SsdDetectorSpec(**common.model_dump(), ssd=_specify(config, common.strides))

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.backbone(self._normalised(images))
        for layers in self.extra:
            levels.append(layers(levels[-1]))
        return levels

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, A, C + 1), class 0 the background, and offsets (B, A, 4), of all A default boxes."""
        logits, offsets = [], []
        for level, classify, regress in zip(features, self.classify, self.regress, strict=True):
            logits.append(anchor_rows(classify(level), len(self.spec.classes) + 1))
            offsets.append(anchor_rows(regress(level), 4))
        return torch.cat(logits, 1), torch.cat(offsets, 1)

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """The multibox loss (Liu et al., equation 1): cross entropy of the objects and of the hardest background, and
        smooth L1 of the objects' offsets, both divided by the number of default boxes that are objects.

        An image without objects gives as much background as one with a single box; in the paper it gives none.
        """
        logits, offsets = (output.float() for output in (self.head(features) if raw is None else raw))
        with torch.no_grad():
            found = [self._match(*to_tensors(target, logits.device)) for target in targets]
            labels, matched = (torch.stack(part) for part in zip(*found, strict=True))
            objects = labels > 0
            total = share_of_total(objects.sum().float())
            wanted = tensors.encode(matched[objects], self.priors.expand_as(matched)[objects], ROI_WEIGHTS)
        config = self.spec.losses
        loss = softmax_loss(logits.flatten(0, 1), labels.flatten(), config).view_as(labels)
        used = objects | hardest(loss.detach(), labels == 0, objects, config.negatives or NEGATIVES)
        if config.boxes == "default":
            box = F.smooth_l1_loss(offsets[objects], wanted, reduction="sum")
        else:
            own = tensors.decode(offsets[objects], self.priors.expand_as(matched)[objects], ROI_WEIGHTS)
            box = IOU_WEIGHT * iou_loss(config.boxes, own, matched[objects]).sum()
        losses = {"class": loss[used].sum() / total, "box": box / total}
        if config.repulsion:
            boxes = tensors.decode(offsets, self.priors, ROI_WEIGHTS)
            own_boxes = [(box[one], wanted[one]) for box, wanted, one in zip(boxes, matched, objects, strict=True)]
            counted = [to_tensors(target[~target.ignore], logits.device)[0] for target in targets]
            losses["repulsion"] = config.repulsion * repelled(own_boxes, counted)
        return losses

    def _match(self, boxes: Tensor, labels: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
        """What each default box answers for (Liu et al., section 2.2, matching strategy).

        Args:
            boxes: (M, 4) labelled boxes, with labels (M,) and ignore (M,).

        Returns:
            labels (A,): c + 1 an object of class c, 0 background, -1 neither; and the boxes (A, 4), where above 0.
        """
        real = (boxes[:, 2:] - boxes[:, :2] > SMALLEST).all(-1)
        ignored, boxes, labels = boxes[real & ignore], boxes[real & ~ignore], labels[real & ~ignore]
        assigned = torch.zeros(len(self.priors), dtype=torch.int64, device=boxes.device)
        matched = torch.zeros_like(self.priors)
        if len(boxes):
            overlap = tensors.pairwise(boxes, self.priors)
            best, which = overlap.max(0)
            # The best default box of each labelled one is its own, whatever the overlap; of several, the nearest's.
            first = torch.zeros_like(overlap).scatter_(1, overlap.argmax(1, keepdim=True), 1.0)
            most, claimant = (overlap * first).max(0)
            which = torch.where(most > 0, claimant, which)
            assigned = torch.where((best >= OBJECT) | (most > 0), labels[which] + 1, assigned)
            matched = boxes[which]
        if len(ignored):
            seen = tensors.clip(self.priors, self.spec.image_size)
            inside = tensors.intersection(ignored, seen).amax(0) >= INSIDE_IGNORED * tensors.area(seen)
            inside[tensors.pairwise(ignored, self.priors).argmax(1)] = True
            assigned = torch.where((assigned == 0) & inside, -1, assigned)
        return assigned, matched

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Default box by default box: divergence from the teacher's probabilities, smooth L1 towards its boxes.

        As in `losses`, class terms look at what the teacher is sure of (the score of its best class reaches
        `threshold`), and for each of these at the three others where both disagree most; box terms at the sure ones
        alone, weighted by the score.
        """
        logits, offsets = (output.float() for output in (self.head(features) if raw is None else raw))
        with torch.no_grad():
            probabilities = soft[0].float().softmax(-1)
            strength = probabilities[..., 1:].amax(-1)
            wanted = self._located(soft[1])
            trusted = (strength >= threshold) & ((wanted[..., 2:] - wanted[..., :2]).amin(-1) > SMALLEST)
            strength, priors = strength[trusted], self.priors.expand_as(wanted)[trusted]
            total = share_of_total(strength.sum())
            moves = tensors.encode(wanted[trusted], priors, ROI_WEIGHTS)
        divergence = F.kl_div(logits.log_softmax(-1), probabilities, reduction="none").sum(-1)
        used = trusted | hardest(divergence.detach(), ~trusted, trusted, NEGATIVES)
        box = F.smooth_l1_loss(offsets[trusted], moves, reduction="none").sum(-1) * strength
        return {"class": divergence[used].sum() / total, "box": box.sum() / total}

    def _located(self, offsets: Tensor) -> Tensor:
        """Boxes (B, A, 4) on the canvas, cut at its border, of raw offsets (B, A, 4)."""
        return tensors.clip(tensors.decode(offsets.float(), self.priors, ROI_WEIGHTS), self.spec.image_size)

    @torch.no_grad()
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The boxes of the default boxes that are most likely no background, without NMS."""
        logits, offsets = self.head(features) if raw is None else raw
        likely = -logits.float().log_softmax(-1)[..., 0]
        best = likely.topk(min(count, likely.shape[1]), 1).indices[..., None].expand(-1, -1, 4)
        return list(self._located(offsets).gather(1, best))

    def class_rows(self) -> dict[str, ClassRows]:
        last = ".1" if self.options.lite else ""
        return {
            f"classify.{i}{last}": ClassRows(groups=len(level.sizes)) for i, level in enumerate(self.options.priors)
        }

    def decode_options(self) -> Decode:
        options = self.options
        return Decode(
            kind="ssd",
            priors=options.priors,
            score_threshold=options.score_threshold,
            nms_iou=options.nms_iou,
            candidates=options.candidates,
            class_candidates=options.class_candidates,
            max_detections=options.max_detections,
            suppression=self.spec.suppression,
        )

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Average-pooled RoIAlign features of the backbone's levels side by side, as their widths differ."""
        return pooling.side_by_side(list(zip(features, self.spec.strides, strict=False)), boxes)


def _added_level(before: int, after: int, lite: bool, norms: Sequence[_Norm]) -> nn.Sequential:
    """A 1x1 convolution to half of the channels, then a 3x3 one of stride 2, depthwise separable in SSDLite.

    `norms` are those of the level before and of this one.
    """
    half = max(1, after // 2)
    first, norm = norms
    if not lite:
        return nn.Sequential(
            Conv2dNormActivation(before, half, 1, norm_layer=first),
            Conv2dNormActivation(half, after, 3, stride=2, norm_layer=norm),
        )
    return nn.Sequential(
        Conv2dNormActivation(before, half, 1, norm_layer=first, activation_layer=nn.ReLU6),
        Conv2dNormActivation(half, half, 3, stride=2, groups=half, norm_layer=norm, activation_layer=nn.ReLU6),
        Conv2dNormActivation(half, after, 1, norm_layer=norm, activation_layer=nn.ReLU6),
    )


def _predictor(before: int, after: int, lite: bool, norm: _Norm) -> nn.Module:
    """What a level's class scores, or its offsets, are computed by."""
    if not lite:
        return nn.Conv2d(before, after, 3, padding=1)
    depthwise = Conv2dNormActivation(before, before, 3, groups=before, norm_layer=norm, activation_layer=nn.ReLU6)
    return nn.Sequential(depthwise, nn.Conv2d(before, after, 1))


def _initialise(part: nn.Module, lite: bool) -> None:
    """Xavier for SSD, and a narrow normal for SSDLite, as published with each."""
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            if lite:
                nn.init.normal_(layer.weight, std=0.03)
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


_TORCHVISION_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)


def _vgg(highres: bool) -> nn.Module:
    extractor: nn.Module = SSDFeatureExtractorVGG(vgg16(weights=None).features, highres)
    return extractor


def _mobilenet(reduced_tail: bool) -> nn.Module:
    layers = mobilenet_v3_large(weights=None, norm_layer=_TORCHVISION_NORM, reduced_tail=reduced_tail).features
    last_strided = max(i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False))
    extractor: nn.Module = SSDLiteFeatureExtractorMobileNet(layers, last_strided, _TORCHVISION_NORM)
    return extractor


EXTRACTORS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg16": (partial(_vgg, highres=False), (8, 16)),
    "vgg16_512": (partial(_vgg, highres=True), (8, 16)),
    "mobilenet_v3_large_reduced": (partial(_mobilenet, reduced_tail=True), (16, 32)),
    "mobilenet_v3_large": (partial(_mobilenet, reduced_tail=False), (16, 32)),
}
"""torchvision's backbones of SSD with the levels that it adds to them, and the strides of the backbone's own levels."""


class _Extractor(nn.Module):
    """One of `EXTRACTORS`; its levels as a list."""

    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in EXTRACTORS:
            raise AcclimateError(f"spec: {name!r} is none of torchvision's backbones of SSD ({', '.join(EXTRACTORS)})")
        self.body = EXTRACTORS[name][0]()

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())


def _probe(name: str, image_size: tuple[int, int]) -> list[Tensor]:
    """The levels of one of `EXTRACTORS` as tensors without content, computed in no time."""
    with torch.device("meta"):
        return list(_Extractor(name).eval()(torch.zeros(1, 3, *image_size)))


def _specify(config: ModelConfig, strides: Sequence[int]) -> SsdSpec:
    """Default boxes as in Liu et al. 2016, section 2.2; on an oblong canvas they keep their aspect."""
    options = config.ssd
    height, width = config.image_size
    grids = [(height // stride, width // stride) for stride in strides]
    for added in range(options.extra):
        rows, columns = grids[-1]
        if rows == columns == 1:
            raise AcclimateError(
                f"model.ssd.extra: a canvas of {height} x {width} has room for {added} levels behind the stride "
                f"{strides[-1]}, not {options.extra}"
            )
        grids.append((-(-rows // 2), -(-columns // 2)))
    levels = len(grids)
    scales = options.scales or _default_scales(levels)
    if len(scales) != levels + 1:
        raise AcclimateError(f"model.ssd.scales: {levels} levels need {levels + 1} scales, not {len(scales)}")
    priors = []
    for i, (rows, columns) in enumerate(grids):
        scale = math.sqrt(height * width) * scales[i]
        between = scale * math.sqrt(scales[i + 1] / scales[i])
        sizes = [(scale, scale), (between, between)]
        few = not options.lite and (i == 0 or i >= levels - 2)
        for ratio in options.ratios if options.ratios is not None else (2.0,) if few else (2.0, 3.0):
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            sizes += [(long, short), (short, long)]
        priors.append(
            Priors(
                rows=rows,
                columns=columns,
                step=(height / rows, width / columns),
                sizes=tuple((min(w, width), min(h, height)) for w, h in sizes),
            )
        )
    return SsdSpec(lite=options.lite, priors=tuple(priors))


def _default_scales(levels: int) -> tuple[float, ...]:
    """Evenly spread from the second level to the last, and one step beyond; the first level has half of the second."""
    if levels == 1:
        return SMALLEST_SCALE, LARGEST_SCALE
    step = (LARGEST_SCALE - SMALLEST_SCALE) / max(1, levels - 2)
    return SMALLEST_SCALE / 2, *(SMALLEST_SCALE + i * step for i in range(levels))


def from_torchvision(model: SSD, classes: Sequence[str] | None = None) -> SSDDetector:
    """A torchvision SSD or SSDLite as a detector of this package, in eval mode, with the same detections.

    The canvas is the size that torchvision scales every image to, without keeping its aspect; this detector's callers
    keep it and fill the rest. On an image of that size both detect the same, up to rounding; what torchvision reports
    without any area is left out.

    Args:
        model: `ssd300_vgg16`, `ssdlite320_mobilenet_v3_large`, or a model built of the same parts; trained or not.
        classes: their names without the background; by default COCO's where there are as many, else numbers.

    Raises:
        AcclimateError: a part of the model is none that this detector has, or `classes` are too many or too few.
    """
    if not isinstance(model, SSD) or not isinstance(model.anchor_generator, DefaultBoxGenerator):
        raise AcclimateError("from_torchvision: takes an SSD of torchvision's with default boxes")
    if tuple(model.box_coder.weights) != ROI_WEIGHTS:
        raise AcclimateError(f"from_torchvision: takes offsets in {ROI_WEIGHTS}")
    backbone = _named(model.backbone)
    width, height = model.transform.fixed_size
    predictors = model.head.classification_head
    count = predictors.num_columns - 1
    names = tuple(classes) if classes is not None else category_names(count)
    if len(names) != count:
        raise AcclimateError(f"from_torchvision: the model has {count} classes, and {len(names)} names are given")
    red, green, blue = model.transform.image_mean
    spread = model.transform.image_std
    spec = SsdDetectorSpec(
        kind="ssd",
        classes=names,
        image_size=(height, width),
        backbone=backbone,
        strides=EXTRACTORS[backbone][1],
        channels=0,
        depth=0,
        start="torchvision",
        ssd=SsdSpec(
            lite=isinstance(model.head, SSDLiteHead),
            torchvision=True,
            priors=_priors(model.anchor_generator, _probe(backbone, (height, width)), (height, width)),
            mean=(red, green, blue),
            std=(spread[0], spread[1], spread[2]),
            score_threshold=model.score_thresh,
            nms_iou=model.nms_thresh,
            candidates=model.topk_candidates * count,
            class_candidates=model.topk_candidates,
            max_detections=model.detections_per_img,
        ),
    )
    detector = SSDDetector(spec)
    copy_tensors(detector.backbone, model.backbone)
    copy_tensors(detector.classify, model.head.classification_head)
    copy_tensors(detector.regress, model.head.regression_head)
    return detector.eval()


def _named(backbone: nn.Module) -> str:
    """Which of `EXTRACTORS` it is, by the shapes of its tensors."""
    shapes = [value.shape for value in backbone.state_dict().values()]
    for name, (make, _) in EXTRACTORS.items():
        with torch.device("meta"):
            known = make()
        if type(known) is type(backbone) and [value.shape for value in known.state_dict().values()] == shapes:
            return name
    raise AcclimateError(f"from_torchvision: the backbone is none of {', '.join(EXTRACTORS)}")


def _priors(generator: DefaultBoxGenerator, levels: Sequence[Tensor], size: tuple[int, int]) -> tuple[Priors, ...]:
    """What torchvision's generator makes of such levels."""
    height, width = size
    priors = []
    for i, (level, shares) in enumerate(zip(levels, generator._wh_pairs, strict=True)):
        rows, columns = level.shape[-2:]
        step = (height / rows, width / columns) if generator.steps is None else (generator.steps[i],) * 2
        kept = shares.clamp(min=0, max=1) if generator.clip else shares
        sizes = tuple((width * w, height * h) for w, h in kept.tolist())
        priors.append(Priors(rows=rows, columns=columns, step=step, sizes=sizes))
    return tuple(priors)
