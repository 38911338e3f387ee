"""The two-stage, anchor-based detector: any backbone, a feature pyramid, proposals, and a head that looks at each.

Ren et al. 2015 (Faster R-CNN), Lin et al. 2017 (feature pyramid), He et al. 2017 (RoIAlign, and the mask branch). What
differs from them is the choice of proposals: the peaks of the objectness map, which has static shapes, where they use
NMS (`select`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d, batched_nms
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS, RPN_WEIGHTS
from acclimate.config import ModelConfig
from acclimate.edge.artifact import Decode
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, Trunk, started
from acclimate.models.detector import ClassRows, Detector, DetectorSpec, LossKind
from acclimate.models.losses import hard_examples, hardest
from acclimate.models.masks import BINS as MASK_BINS
from acclimate.models.masks import CONVOLUTIONS as MASK_CONVOLUTIONS
from acclimate.models.masks import HybridMaskHead, MaskHead
from acclimate.models.pooling import canonical_side
from acclimate.models.roi_heads import BINS, SMALLEST, RoiHead, Sample, Setting, Truth, box_loss
from acclimate.structures import Annotations, Detections

HEADS = {
    "sibling": "acclimate.models.roi_heads:SiblingHead",
    "disentangled": "acclimate.models.disentangled:DisentangledHead",
    "disentangled-light": "acclimate.models.disentangled:LightDisentangledHead",
    "separate-fcs": "acclimate.models.disentangled:SeparateLayersHead",
    "separate-backbone": "acclimate.models.disentangled:SeparateBackboneHead",
    "cascade": "acclimate.models.cascade:CascadeHead",
    "bagged": "acclimate.models.bagged:BaggedHead",
    "graph": "acclimate.models.graph_head:GraphHead",
    "bi-box": "acclimate.models.bi_box:BiBoxHead",
}
"""The second stages: what `TwoStageConfig.head` may be, and the `RoiHead` it names."""

ANCHOR_SAMPLES, ANCHOR_OBJECTS = 256, 0.5
ROI_OBJECTS = 0.25
"""Share of objects among the sampled anchors and proposals."""
CANDIDATES = 4
"""Proposals looked at in training, as a multiple of those sampled from them."""


class Pyramid(nn.Module):
    """1x1 laterals, nearest upsampling, a 3x3 convolution a level (Lin et al. 2017)."""

    def __init__(self, channels: Sequence[int], out: int, norm: Literal["none", "batch", "group"]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_convolution(c, out, 1, norm) for c in channels)
        self.smooth = nn.ModuleList(_convolution(out, out, 3, norm) for _ in channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid (B, C, H_l, W_l) of the backbone's levels (B, C_l, H_l, W_l)."""
        merged = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            height, width = merged[i - 1].shape[-2:]
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=(height, width), mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]


class ProposalNetwork(nn.Module):
    """Objectness and box offsets of every anchor, from convolutions that the levels share."""

    def __init__(self, channels: int, anchors: int, convolutions: int) -> None:
        super().__init__()
        self.tower = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convolutions))
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.offsets = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (*self.tower, self.objectness, self.offsets):
            assert isinstance(layer, nn.Conv2d)
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Objectness maps (B, A, H_l, W_l), and the offsets (B, N, 4) of all anchors: level, row, column, anchor."""
        objectness, offsets = [], []
        for level in levels:
            for layer in self.tower:
                level = F.relu(layer(level))
            objectness.append(self.objectness(level).float())
            offsets.append(anchor_rows(self.offsets(level).float(), 4))
        return objectness, torch.cat(offsets, 1)


class TwoStageSpec(BaseModel):
    """What determines a two-stage detector beyond its backbone and pyramid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: str = "sibling"
    hidden: int = 256
    head_layers: dict[str, int | float | None] = Field(default_factory=dict)
    """Further arguments of the head's class."""
    masks: bool = False
    """Whether a mask branch trains beside the head; it is no part of `forward`."""
    mask_flow: bool = False
    """Whether the mask branch has a stage for each of the head's, and what one has found flows into the next."""
    mask_norm: Literal["none", "batch"] = "none"
    """Of the mask branch's convolutions."""
    canonical: float = 224.0
    """Side in pixels of the boxes that are pooled from the level of stride 16, as in every detector that was made
    before this could be told."""
    proposals: int = 64
    """Boxes an image that `forward` looks at."""
    samples: int = 64
    """Boxes an image that the second stage trains on."""
    select: Literal["peaks", "nms"] = "peaks"
    """How proposals are chosen in eager mode; what is exported chooses by peaks."""
    pyramid_norm: Literal["none", "batch", "group"] = "none"
    extra_level: bool = False
    """Whether proposals also come from every second cell of the coarsest level."""
    anchors: tuple[tuple[float, ...], ...]
    """Sides in pixels, for each level that proposals come from."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height to width."""
    proposer_depth: int = 1
    """3x3 convolutions before the objectness."""
    pre_nms: int = 1000
    """Anchors a level that NMS looks at; with `select = "nms"` alone, as the two below."""
    proposal_iou: float = 0.7
    objectness_threshold: float = 0.0
    score_threshold: float = 0.01
    nms_iou: float = 0.5
    candidates: int = 400
    max_detections: int = 100
    modules: tuple[str, ...] = ()
    """Modules of torchvision's backbone that give the levels; empty for a backbone of timm's."""


class TwoStageDetectorSpec(DetectorSpec):
    """Of the kind "two-stage"."""

    two_stage: TwoStageSpec

    @property
    def has_masks(self) -> bool:
        return self.two_stage.masks

    @property
    def anchored(self) -> tuple[Any, ...]:
        return self.two_stage.anchors, self.two_stage.ratios

    def as_options(self, config: ModelConfig) -> dict[str, Any]:
        return {"two_stage": config.two_stage.model_copy(update={"masks": self.has_masks})}


class TwoStageDetector(Detector):
    """See the module. Raw outputs: logits (B, K, C + 1), offsets (B, K, C + 1, 4) and the boxes (B, K, 4) that the
    offsets are relative to, as `edge.artifact.Decode` says."""

    kind: ClassVar[str] = "two-stage"
    Spec: ClassVar[type[DetectorSpec]] = TwoStageDetectorSpec
    trains_on_raw: ClassVar[bool] = False
    losses_known = (
        "cross-entropy",
        "focal",
        "iou",
        "giou",
        "diou",
        "ciou",
        "smoothing",
        "negatives",
        "ohem",
        "repulsion",
    )
    output_names: ClassVar[tuple[str, ...]] = ("logits", "offsets", "boxes")
    predictors: ClassVar[tuple[str, ...]] = ("proposer", "roi_head")

    anchors: Tensor

    def __init__(self, spec: TwoStageDetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """Build from a specification; `weights` starts the backbone.

        Raises:
            AcclimateError: the backbone is unknown, lacks a level, or the weights do not fit.
        """
        super().__init__()
        self.options = options = spec.two_stage
        head = _head_class(options.head)
        self.backbones = nn.ModuleList()
        self.pyramids = nn.ModuleList()
        for _ in range(head.pyramids):
            backbone, start = started(spec, weights, options.modules)
            self.backbones.append(backbone)
            self.pyramids.append(Pyramid(backbone.channels, spec.channels, options.pyramid_norm))
        self.spec = spec.model_copy(update={"start": start})
        self._normalise_by(backbone.mean, backbone.std)
        self.proposer = ProposalNetwork(
            spec.channels, len(options.anchors[0]) * len(options.ratios), options.proposer_depth
        )
        setting = Setting(
            spec.channels, spec.strides, len(spec.classes), options.hidden, options.canonical, spec.losses
        )
        make: Callable[..., RoiHead] = head
        self.roi_head = make(setting, **options.head_layers)
        masks = HybridMaskHead if options.mask_flow else MaskHead
        self.mask_head = masks(setting, options.mask_norm) if options.masks else None
        self.register_buffer("anchors", _anchors(spec, options), persistent=False)

    @classmethod
    def specify(cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> TwoStageDetectorSpec:
        common = super().specify(config, classes, reading)
        options = config.two_stage
        if config.losses.repulsion and not _head_class(options.head).repels:
            raise AcclimateError(f"model.losses.repulsion is not for the head {options.head!r}; set it to 0")
        # One level has to answer for objects of all sizes.
        scales = options.anchors or ((4.0,) if len(common.strides) > 1 else (2.0, 4.0, 8.0, 16.0))
        own = TwoStageSpec(
            head=options.head,
            hidden=options.hidden,
            head_layers=_head_class(options.head).arguments(options),
            masks=options.masks,
            mask_flow=options.mask_flow,
            canonical=options.canonical or canonical_side(config.image_size),
            proposals=options.proposals,
            samples=options.proposals,
            select=options.select,
            pyramid_norm="group" if config.norm == "group" else "batch",
            anchors=tuple(tuple(scale * stride for scale in scales) for stride in common.strides),
        )
        return TwoStageDetectorSpec(**common.model_dump(), two_stage=own)

    def begin(self, config: ModelConfig) -> None:
        self.roi_head.begin(config.two_stage)

    @property
    def backbone(self) -> nn.ModuleList:
        """The backbones: one, or the two of a head that shares nothing. What methods act on that leave heads alone."""
        return self.backbones

    @property
    def loss_kinds(self) -> Mapping[str, LossKind]:
        kinds: dict[str, LossKind] = {"proposal_score": "objectness", "proposal_box": "box", **self.roi_head.loss_kinds}
        if self.spec.losses.repulsion:
            kinds["roi_repulsion"] = "box"
        return kinds if self.mask_head is None else {**kinds, "roi_mask": "mask"}

    def features(self, images: Tensor) -> list[Tensor]:
        images = self._normalised(images)
        levels: list[Tensor] = []
        for backbone, pyramid in zip(self.backbones, self.pyramids, strict=True):
            levels += pyramid(backbone(images))
        return levels

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Logits (B, K, C + 1), offsets (B, K, C + 1, 4) and boxes (B, K, 4) of the K best proposals."""
        proposals = self._select(*self._propose(features), self.options.proposals)
        logits, offsets, boxes = self.roi_head(features, proposals)
        return logits, offsets, boxes

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Proposals and head, each on a sample of boxes drawn with torch's generator (Ren et al. 2015, section 3.1.3).

        Labelled boxes are among the proposals. A box that lies mostly inside an ignored region is in no sample. Masks
        are learnt of the objects that have an outline; pseudo-labels, for one, have none.
        """
        objectness, offsets = self._propose(features)
        truth = [Truth(target, offsets.device) for target in targets]
        proposals = self._select(objectness, offsets, CANDIDATES * self.options.samples)
        losses = self._proposal_losses(torch.cat([anchor_rows(level, 1) for level in objectness], 1), offsets, truth)
        sample = self._sample(features, proposals, truth)
        losses.update(self.roi_head.losses(features, sample, truth))
        if self.mask_head is not None:
            outlines = [one.outlines for one in truth]
            samples = self.roi_head.refined(features, sample, truth)
            losses["roi_mask"] = self.mask_head.losses(features, samples, outlines)
        # Distributed training waits for a gradient of every parameter, and a second pyramid may have a level that no
        # box was pooled from.
        for level in features[len(self.spec.strides) :]:
            losses["roi_box"] = losses["roi_box"] + 0.0 * level[..., 0, 0].sum()
        return losses

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """The teacher's proposals through this head: cross entropy towards the teacher's probabilities, and smooth L1
        towards its boxes where the probability of its best class reaches `threshold`, weighted by it.

        As Kay et al. 2024 (ALDI) distil the second stage; both views share one geometry, so proposals correspond.
        """
        logits, offsets, boxes = (output.float() for output in soft)
        own_logits, own_offsets, own_boxes = self.roi_head(features, boxes)
        with torch.no_grad():
            probabilities = logits.softmax(-1)
            strength, best = probabilities[..., 1:].max(-1)
            # Padding says nothing.
            real = tensors.area(boxes) > 0
            trusted = torch.where((strength >= threshold) & real, best + 1, torch.where(real, 0, -1))
            at = best[..., None, None].expand(-1, -1, 1, 4) + 1
            wanted = tensors.decode(offsets.gather(2, at)[:, :, 0], boxes, ROI_WEIGHTS)
            wanted = tensors.clip(wanted, self.spec.image_size)
            trusted[(wanted[..., 2:] - wanted[..., :2]).amin(-1) <= SMALLEST] = -1
        cross_entropy = -(probabilities * own_logits.float().log_softmax(-1)).sum(-1)
        return {
            "roi_class": (cross_entropy * real).sum() / real.sum().clamp(min=1),
            "roi_box": box_loss(own_offsets, own_boxes, trusted, wanted, strength),
        }

    @torch.no_grad()
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The best proposals."""
        return list(self._select(*self._propose(features), count))

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The head's features before its last layers."""
        counts = [len(one) for one in boxes]
        padded = nn.utils.rnn.pad_sequence([one.float() for one in boxes], batch_first=True).to(features[0].device)
        found = self.roi_head.instances(features, padded)
        return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])

    @torch.no_grad()
    def masks(self, features: Sequence[Tensor], detections: Sequence[Detections]) -> list[NDArray[np.float32]]:
        """Which part of each box its object covers; eager mode alone, as what is exported gives boxes.

        Args:
            features: of the images that the detections were made from, as `features` returns them.
            detections: of each image, on the canvas.

        Returns:
            (N, 28, 28) probabilities for the N detections of each image, in their order; `models.masks.paste` puts them
            on the canvas.

        Raises:
            AcclimateError: the detector has no mask branch.
        """
        if self.mask_head is None:
            raise AcclimateError("this detector has no mask branch; train one with model.two_stage.masks = true")
        device = features[0].device
        counts = [len(one) for one in detections]
        boxes = nn.utils.rnn.pad_sequence([torch.from_numpy(one.boxes) for one in detections], batch_first=True)
        chosen = torch.arange(boxes.shape[1]) < torch.tensor(counts)[:, None]
        logits = self.mask_head(features, boxes.to(device), chosen.to(device)).float()
        labels = torch.from_numpy(np.concatenate([one.labels for one in detections])).to(device) + 1
        found = logits[torch.arange(len(labels), device=device), labels].sigmoid().cpu()
        return [one.numpy() for one in found.split(counts)]

    def class_rows(self) -> dict[str, ClassRows]:
        rows: dict[str, ClassRows] = {}
        if self.mask_head is not None:
            named = self.mask_head.named_modules(prefix="mask_head")
            rows = {name: ClassRows() for name, _ in named if name.endswith(".predict")}
        for name, _ in self.roi_head.named_modules(prefix="roi_head"):
            leaf = name.rpartition(".")[2]
            if leaf in {"classify", "regress"}:
                rows[name] = ClassRows(each=4 if leaf == "regress" else 1)
        return rows

    def decode_options(self) -> Decode:
        options = self.options
        return Decode(
            kind="two-stage",
            score_threshold=options.score_threshold,
            nms_iou=options.nms_iou,
            candidates=options.candidates,
            max_detections=options.max_detections,
            suppression=self.spec.suppression,
        )

    def _propose(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Objectness maps of the levels, and the offsets (B, N, 4) of all anchors."""
        levels = list(features[: len(self.spec.strides)])
        if self.options.extra_level:
            levels.append(levels[-1][..., ::2, ::2])
        objectness, offsets = self.proposer(levels)
        return objectness, offsets

    @torch.no_grad()
    def _select(self, objectness: Sequence[Tensor], offsets: Tensor, count: int) -> Tensor:
        """Proposals (B, count, 4), best first, padded by boxes of no area; without gradients."""
        if self.options.select == "nms" and not torch.compiler.is_exporting():
            return self._select_by_nms(objectness, offsets, count)
        # What is no peak of its own map comes after all that are.
        scores = [torch.where(level == F.max_pool2d(level, 3, 1, 1), level, level - 1e4) for level in objectness]
        flat = torch.cat([anchor_rows(level, 1)[..., 0] for level in scores], 1)
        best = flat.topk(min(count, flat.shape[1]), 1).indices
        chosen = offsets.gather(1, best[..., None].expand(-1, -1, 4))
        boxes = tensors.decode(chosen, self.anchors[best], RPN_WEIGHTS)
        boxes = tensors.clip(boxes, self.spec.image_size)
        return F.pad(boxes, (0, 0, 0, count - boxes.shape[1])) if boxes.shape[1] < count else boxes

    def _select_by_nms(self, objectness: Sequence[Tensor], offsets: Tensor, count: int) -> Tensor:
        """As torchvision: the best anchors of each level, NMS within each, the best of all."""
        scores, rows, owners = [], [], []
        start = 0
        for i, level in enumerate(objectness):
            flat = anchor_rows(level, 1)[..., 0]
            # Training looks at more, as torchvision does.
            most = self.options.pre_nms * (2 if self.training else 1)
            best = flat.topk(min(most, flat.shape[1]), 1)
            scores.append(best.values.sigmoid())
            rows.append(best.indices + start)
            owners.append(torch.full_like(best.indices[0], i))
            start += flat.shape[1]
        row, score, owner = torch.cat(rows, 1), torch.cat(scores, 1), torch.cat(owners)
        chosen = offsets.gather(1, row[..., None].expand(-1, -1, 4))
        boxes = tensors.decode(chosen, self.anchors[row], RPN_WEIGHTS)
        boxes = tensors.clip(boxes, self.spec.image_size)
        out = boxes.new_zeros(len(boxes), count, 4)
        for image, (box, value) in enumerate(zip(boxes, score, strict=True)):
            usable = ((box[:, 2:] - box[:, :2]).amin(-1) >= SMALLEST) & (value >= self.options.objectness_threshold)
            box, value, level_of = box[usable], value[usable], owner[usable]
            kept = batched_nms(box, value, level_of, self.options.proposal_iou)[:count]
            out[image, : len(kept)] = box[kept]
        return out

    def _proposal_losses(self, objectness: Tensor, offsets: Tensor, truth: Sequence[Truth]) -> dict[str, Tensor]:
        with torch.no_grad():
            found = [one.match_anchors(self.anchors) for one in truth]
            labels, matched = (torch.stack(part) for part in zip(*found, strict=True))
            if (ratio := self.spec.losses.negatives) is None:
                image, row, label = _drawn(labels, ANCHOR_SAMPLES, ANCHOR_OBJECTS)
            else:
                image, row, label = _mined(objectness[..., 0], labels, ratio)
            total = max(1, len(row))
            objects = label > 0
            own, at = image[objects], row[objects]
            wanted = tensors.encode(matched[own, at], self.anchors[at], RPN_WEIGHTS)
        box = F.smooth_l1_loss(offsets[own, at], wanted, beta=1 / 9, reduction="sum")
        score = F.binary_cross_entropy_with_logits(objectness[image, row, 0], objects.float(), reduction="sum")
        return {"proposal_score": score / total, "proposal_box": box / total}

    @torch.no_grad()
    def _sample(self, features: Sequence[Tensor], proposals: Tensor, truth: Sequence[Truth]) -> Sample:
        """S boxes an image of proposals (B, N, 4) and labelled boxes."""
        most = max(len(one.boxes) for one in truth)
        labelled = torch.stack([F.pad(one.boxes, (0, 0, 0, most - len(one.boxes))) for one in truth])
        boxes = torch.cat([labelled, proposals], 1)
        found = [one.match_proposals(box) for one, box in zip(truth, boxes, strict=True)]
        labels, objects = (torch.stack(part) for part in zip(*found, strict=True))
        matched = torch.stack([one.boxes_of(which) for one, which in zip(truth, objects, strict=True)])
        if self.spec.losses.ohem:
            loss = self.roi_head.each_loss(features, Sample(boxes, labels, matched, objects))
            order, used = hard_examples(boxes, loss, labels >= 0, self.options.samples)
        else:
            order, used = _sampled(labels, self.options.samples, ROI_OBJECTS)
        labels = torch.where(used, labels.gather(1, order), -1)
        rows = order[..., None].expand(-1, -1, 4)
        return Sample(boxes.gather(1, rows), labels, matched.gather(1, rows), objects.gather(1, order))


def _sampled(labels: Tensor, count: int, objects: float) -> tuple[Tensor, Tensor]:
    """A random sample of each row of labels (B, N): at most the share `objects` of objects, the rest background.

    Returns indices (B, S), S = min(count, N), and whether each was drawn (B, S); what was not is filling.
    """
    keys = torch.rand(labels.shape, device=labels.device)
    count = min(count, labels.shape[1])
    wanted = min(count, max(1, int(count * objects)))
    best = torch.where(labels > 0, keys, -1.0).topk(wanted, 1).indices
    taken = torch.zeros_like(labels, dtype=torch.bool).scatter_(1, best, True) & (labels > 0)
    keys = torch.where(taken, keys + 2, torch.where(labels == 0, keys, -1.0))
    drawn = keys.topk(count, 1)
    return drawn.indices, drawn.values >= 0


def _drawn(labels: Tensor, count: int, objects: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sample as image, row and label, each (S,)."""
    rows, used = _sampled(labels, count, objects)
    image, place = used.nonzero(as_tuple=True)
    row = rows[image, place]
    return image, row, labels[image, row]


def _mined(objectness: Tensor, labels: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `_drawn`: all objects up to half of a sample, and for each `ratio` of the background that looks most like one.

    Objectness and labels are (B, N).
    """
    order, used = _sampled(torch.where(labels > 0, labels, -1), ANCHOR_SAMPLES, ANCHOR_OBJECTS)
    objects = torch.zeros_like(labels, dtype=torch.bool).scatter(1, order, used)
    image, row = (objects | hardest(objectness, labels == 0, objects, ratio)).nonzero(as_tuple=True)
    return image, row, labels[image, row]


def anchor_rows(level: Tensor, size: int) -> Tensor:
    """Maps (B, A * size, H, W) as (B, H * W * A, size)."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, size)


def _anchors(spec: DetectorSpec, options: TwoStageSpec) -> Tensor:
    """(N, 4), xyxy pixels, in the order of `ProposalNetwork`; corners are rounded as torchvision rounds them."""
    height, width = spec.image_size
    grids = [(-(-height // stride), -(-width // stride)) for stride in spec.strides]
    if options.extra_level:
        grids.append(((grids[-1][0] + 1) // 2, (grids[-1][1] + 1) // 2))
    listed = []
    ratios = torch.tensor(options.ratios).sqrt()[:, None]
    for (rows, columns), sizes in zip(grids, options.anchors, strict=True):
        sides = torch.tensor(sizes)[None]
        half = torch.stack([(sides / ratios).flatten(), (sides * ratios).flatten()], 1) / 2
        corners = torch.cat([-half, half], 1).round()
        y, x = torch.meshgrid(
            torch.arange(rows) * (height // rows), torch.arange(columns) * (width // columns), indexing="ij"
        )
        at = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        listed.append((at + corners).reshape(-1, 4))
    return torch.cat(listed)


def _convolution(before: int, after: int, side: int, norm: Literal["none", "batch", "group"]) -> nn.Sequential:
    layer = nn.Conv2d(before, after, side, padding=side // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if norm == "none":
        return nn.Sequential(layer)
    return nn.Sequential(layer, nn.GroupNorm(8, after) if norm == "group" else nn.BatchNorm2d(after))


def _head_class(name: str) -> type[RoiHead]:
    head: type[RoiHead] = pkgutil.resolve_name(HEADS[name])
    return head


BACKBONES = (
    "resnet18", "resnet34", "resnet50", "mobilenet_v3_large", "resnet101", "resnet152", "mobilenet_v2",
    "mobilenet_v3_small", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2",
)  # fmt: skip
"""torchvision's classifiers that its detectors are built on; one that another begins with stands before it."""


def from_torchvision(
    model: FasterRCNN, image_size: tuple[int, int], classes: Sequence[str] | None = None
) -> TwoStageDetector:
    """A torchvision Faster or Mask R-CNN as a detector of this package, in eval mode, with the same detections.

    Masks too, by `TwoStageDetector.masks` and `models.masks.paste`. torchvision scales an image to its own size and
    pads it; this detector takes a canvas of `image_size` as it is. On a canvas that torchvision leaves alone (no
    scaling, each side a multiple of 32) both detect the same, up to rounding. Proposals are chosen by NMS, as there;
    `spec.two_stage.select` is "nms".

    Args:
        model: `fasterrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn_v2`, `fasterrcnn_mobilenet_v3_large_fpn` or its 320
            px version, `maskrcnn_resnet50_fpn` or its `_v2`, or a model built of the same parts; trained or not.
        image_size: (height, width) of the canvas, multiples of the largest stride.
        classes: their names without the background; by default COCO's where there are as many, else numbers.

    Raises:
        AcclimateError: a part of the model is none that this detector has, or `classes` are too many or too few.
    """
    backbone, rpn, heads = model.backbone, model.rpn, model.roi_heads
    known = isinstance(backbone, BackboneWithFPN) and isinstance(backbone.fpn.extra_blocks, LastLevelMaxPool)
    if not known or not isinstance(heads.box_predictor, FastRCNNPredictor):
        raise AcclimateError("from_torchvision: takes a FasterRCNN with a feature pyramid and its own predictor")
    if tuple(heads.box_coder.weights) != ROI_WEIGHTS or heads.box_roi_pool.output_size != (BINS, BINS):
        raise AcclimateError(f"from_torchvision: takes offsets in {ROI_WEIGHTS} and {BINS} x {BINS} bins")
    modules = tuple(backbone.body.return_layers)
    name = body_name(backbone.body)
    strides = Trunk(name, modules).strides
    anchors = rpn.anchor_generator
    if len(set(anchors.aspect_ratios)) > 1 or len({len(sizes) for sizes in anchors.sizes}) > 1:
        raise AcclimateError("from_torchvision: takes as many anchors of the same aspect ratios at every level")
    count = heads.box_predictor.cls_score.out_features - 1
    names = tuple(classes) if classes is not None else category_names(count)
    if len(names) != count:
        raise AcclimateError(f"from_torchvision: the model has {count} classes, and {len(names)} names are given")
    masks = bool(heads.has_mask())
    if masks:
        _check_masks(heads, backbone.out_channels)
    convolutions = sum(isinstance(layer, nn.Sequential) for layer in heads.box_head.children())
    layers = sum(isinstance(layer, nn.Linear) for layer in heads.box_head.children())
    spec = TwoStageDetectorSpec(
        kind="two-stage",
        classes=names,
        image_size=image_size,
        backbone=name,
        strides=tuple(strides[module] for module in modules),
        channels=backbone.out_channels,
        depth=0,
        start="torchvision",
        two_stage=TwoStageSpec(
            hidden=heads.box_predictor.cls_score.in_features,
            head_layers={"convolutions": convolutions, "layers": layers},
            masks=masks,
            mask_norm="batch" if masks and _has_norm(heads.mask_head) else "none",
            canonical=float(heads.box_roi_pool.canonical_scale),
            proposals=rpn._post_nms_top_n["testing"],
            samples=heads.fg_bg_sampler.batch_size_per_image,
            select="nms",
            pyramid_norm="batch" if len(backbone.fpn.inner_blocks[0]) > 1 else "none",
            extra_level=True,
            anchors=tuple(tuple(float(side) for side in sizes) for sizes in anchors.sizes),
            ratios=tuple(anchors.aspect_ratios[0]),
            proposer_depth=len(rpn.head.conv),
            pre_nms=rpn._pre_nms_top_n["testing"],
            proposal_iou=rpn.nms_thresh,
            objectness_threshold=rpn.score_thresh,
            score_threshold=heads.score_thresh,
            nms_iou=heads.nms_thresh,
            candidates=rpn._post_nms_top_n["testing"] * count,
            max_detections=heads.detections_per_img,
            modules=modules,
        ),
    )
    detector = TwoStageDetector(spec)
    if list(model.transform.image_mean) != [*IMAGENET_MEAN] or list(model.transform.image_std) != [*IMAGENET_STD]:
        raise AcclimateError("from_torchvision: takes images normalised by ImageNet's mean and standard deviation")
    trunk = detector.backbones[0]
    assert isinstance(trunk, Backbone)
    copy_tensors(trunk.body, backbone.body)
    # A frozen normalisation of torchvision's is one of ours.
    if any(isinstance(module, FrozenBatchNorm2d) for module in backbone.body.modules()):
        trunk.norm = "frozen"
        trunk.settle(fold=True)
        detector.spec = detector.spec.model_copy(update={"norm": "frozen"})
    copy_tensors(detector.pyramids[0], backbone.fpn)
    copy_tensors(detector.proposer, rpn.head)
    copy_tensors(detector.roi_head, heads.box_head, heads.box_predictor)
    if detector.mask_head is not None:
        copy_tensors(detector.mask_head, heads.mask_head, heads.mask_predictor)
    return detector.eval()


def _check_masks(heads: RoIHeads, channels: int) -> None:
    """Refuse a mask branch of torchvision's that `MaskHead` is not."""
    layers = [layer for layer in heads.mask_head.modules() if isinstance(layer, nn.Conv2d)]
    regular = all(layer.out_channels == channels and layer.dilation == (1, 1) for layer in layers)
    own = isinstance(heads.mask_predictor, MaskRCNNPredictor)
    if not regular or len(layers) != MASK_CONVOLUTIONS or not own or heads.mask_predictor[0].out_channels != channels:
        raise AcclimateError(
            f"from_torchvision: takes a mask branch of {MASK_CONVOLUTIONS} convolutions as wide as the pyramid"
        )
    if heads.mask_roi_pool.output_size != (MASK_BINS, MASK_BINS):
        raise AcclimateError(f"from_torchvision: takes a mask branch on {MASK_BINS} x {MASK_BINS} bins")


def _has_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def copy_tensors(module: nn.Module, *theirs: nn.Module) -> None:
    """Fill `module` with the tensors of torchvision's `theirs`, which stand in the same order."""
    pairs = [(part, name) for part in theirs for name in part.state_dict() if not name.endswith("num_batches_tracked")]
    keys = [key for key in module.state_dict() if not key.endswith("num_batches_tracked")]
    state = {key: part.state_dict()[name] for key, (part, name) in zip(keys, pairs, strict=True)}
    for key, (part, name) in zip(keys, pairs, strict=True):
        if key.endswith("running_var"):
            # Their normalisation may have another epsilon than ours, which is not part of a state; the scale takes it.
            prefix, path = key.removesuffix("running_var"), name.rpartition(".")[0]
            own, other = (
                state[key].double() + float(cast(float, norm.eps))
                for norm in (module.get_submodule(prefix[:-1]), part.get_submodule(path))
            )
            state[f"{prefix}weight"] = (state[f"{prefix}weight"].double() * (own / other).sqrt()).float()
    module.load_state_dict(state, strict=False)


def body_name(body: nn.Module) -> str:
    """torchvision's name of a backbone, by the shapes of its tensors."""
    shapes = {key: value.shape for key, value in body.state_dict().items()}
    for name in BACKBONES:
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        own = getattr(model, "features", model).state_dict()
        if all(key in own and own[key].shape == shape for key, shape in shapes.items()):
            return name
    raise AcclimateError(f"from_torchvision: the backbone is none of {', '.join(BACKBONES)}")


def category_names(count: int) -> tuple[str, ...]:
    """COCO's categories where there are as many; those that COCO left out are called by their number."""
    known = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    if count != len(known):
        known = ["N/A"] * count
    return tuple(f"class {i + 1}" if name == "N/A" else name for i, name in enumerate(known))
