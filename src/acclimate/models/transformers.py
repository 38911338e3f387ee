"""Detectors of Hugging Face's `transformers`: its real-time families, from a checkpoint folder or a name on its hub.

RT-DETR (Zhao et al., CVPR 2024) and its second version (Lv et al. 2024), D-FINE (Peng et al., ICLR 2025), DEIMv2 (Huang
et al. 2025), LW-DETR (Chen et al. 2024), RF-DETR (Robinson et al. 2025). The networks, their losses with the Hungarian
matching and, where a family has them, its denoising queries are the library's own; here they get the shape that every
detector of this package has: a pyramid, a head on it, no NMS.

The pyramid is what the backbone gives, with the projection that some families count to it. So `detector.backbone` is
the part that is pretrained, and, where its BatchNorm is frozen, the part where DSS acts.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from acclimate.boxes import tensors as box_math
from acclimate.edge.artifact import Decode
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.models import pooling
from acclimate.models import weights as pretrained
from acclimate.models.dense import share_of_total, to_tensors
from acclimate.models.detector import ClassRows, Detector, DetectorSpec
from acclimate.models.losses import quality_focal_loss
from acclimate.models.transfer import carry
from acclimate.run import digest, file_digest
from acclimate.structures import Annotations

if TYPE_CHECKING:
    from acclimate.config import ModelConfig

INSIDE_IGNORED = 0.5
"""Share of a query's box inside an ignored region from which its score is left out of the losses."""
SAME = 0.5
"""Overlap with a labelled box from which it is in them all the same."""
SILENT = -20.0
"""The logit of a score that is left out: there all families' classification losses, and their gradients, are 0."""
L1_WEIGHT, GIOU_WEIGHT, CLASS_WEIGHT = 5.0, 2.0, 2.0
"""What boxes and scores count for where queries are matched, and in `distillation` (Zhu et al., Deformable DETR)."""

_CHECKS_OFF = "TRANSFORMERS_DISABLE_TORCH_CHECK"
_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")

_Levels = list[Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """How a family of the library's is taken apart.

    Attributes:
        title: as its authors call it.
        backbone: the name of that part in the library's model.
        extract: the pyramid that it gives for normalised images.
        packed: the pyramid as the rest of the library's model expects it from the backbone.
        layers_first: whether the outputs of all decoder layers have the layers before the batch.
    """

    title: str
    backbone: str
    extract: Callable[[Any, Tensor], _Levels]
    packed: Callable[[_Levels], Any]
    layers_first: bool


def _whole(level: Tensor) -> Tensor:
    """The mask of an image without padding: a canvas is an image like any other."""
    return torch.ones_like(level[:, 0], dtype=torch.bool)


def _family(title: str) -> Family:
    """Of a backbone whose projections belong to what follows; masks of it are never looked at."""
    return Family(
        title,
        "backbone",
        lambda backbone, pixels: list(backbone.model(pixels).feature_maps),
        lambda levels: [(level, None) for level in levels],
        layers_first=False,
    )


FAMILIES: Mapping[str, Family] = {
    "rt_detr": _family("RT-DETR"),
    "rt_detr_v2": _family("RT-DETR v2"),
    "d_fine": _family("D-FINE"),
    "deimv2": Family(
        "DEIMv2", "conv_encoder", lambda backbone, pixels: list(backbone(pixels)), list, layers_first=False
    ),
    "lw_detr": Family(
        "LW-DETR",
        "backbone",
        lambda backbone, pixels: list(backbone.projector(backbone.backbone(pixels).feature_maps)),
        lambda levels: [(level, _whole(level)) for level in levels],
        layers_first=True,
    ),
    "rf_detr": Family(
        "RF-DETR",
        "backbone",
        lambda backbone, pixels: [backbone.projector(backbone.backbone(pixels).feature_maps)],
        lambda levels: (levels[0], _whole(levels[0])),
        layers_first=True,
    ),
}
"""`model_type` of the library's configurations -> the family."""


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Stands for the pixels where the library asks for them: all that it looks at, once the backbone has been run."""

    levels: _Levels
    shape: tuple[int, int, int, int]

    @property
    def device(self) -> torch.device:
        return self.levels[0].device


class _Given(nn.Module):
    """Stands for the backbone in the library's model: what it would give is in what it gets."""

    def __init__(self, packed: Callable[[_Levels], Any]) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, canvas: _Canvas, mask: Tensor | None = None) -> Any:
        return self.packed(canvas.levels)


class _Again(nn.Module):
    """A module that is used in several places, in the second and later ones: its weights are saved once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._first = (module,)

    def forward(self, *inputs: Any) -> Any:
        return self._first[0](*inputs)


class TransformersSpec(BaseModel):
    """What determines a detector of `transformers`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, Any]
    """The library's own configuration, without the names of the classes."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the pixels in 0..1."""
    checkpoint: str = ""
    """The folder or hub name that its weights start from; not looked at once it is trained."""


class TransformersDetectorSpec(DetectorSpec):
    """Of the kind "transformers"."""

    transformers: TransformersSpec

    def as_options(self, config: ModelConfig) -> dict[str, Any]:
        return {"transformers": config.transformers.model_copy(update={"checkpoint": self.transformers.checkpoint})}


class TransformersDetector(Detector):
    """See the module. Raw outputs: logits (B, Q, C) and boxes (B, Q, 4), as `edge.artifact.Decode` says."""

    kind: ClassVar[str] = "transformers"
    # Its student is for where a transformer does not run.
    student: ClassVar[str] = "dense"
    Spec: ClassVar[type[DetectorSpec]] = TransformersDetectorSpec
    spec: TransformersDetectorSpec
    trains_on_raw: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...]] = ("logits", "boxes")

    def __init__(self, spec: TransformersDetectorSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """Build from a specification; `weights` other than "none" starts from its checkpoint.

        Of the checkpoint's scores those of the classes are taken that have the same name.

        Raises:
            AcclimateError: `transformers` is not installed, lacks the family, or the checkpoint cannot be had.
        """
        super().__init__()
        options = spec.transformers
        self._assemble(spec, _model(_configuration(options.config, spec.classes, spec.image_size)))
        if weights == "none":
            return
        if isinstance(weights, Path):
            raise AcclimateError(
                f"model.weights: {weights} would start a timm backbone; a detector of transformers starts from "
                "model.transformers.checkpoint, or from random weights with model.weights=none"
            )
        other = from_checkpoint(options.checkpoint, spec.image_size)
        known = [name for name in spec.classes if name in other.spec.classes]
        carry(other, self, {name: name for name in known})
        told = f"with its classes {', '.join(known)}" if known else "none of its classes"
        self.spec = spec.model_copy(update={"start": f"the checkpoint {options.checkpoint}, {told}"})

    @classmethod
    def specify(
        cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT
    ) -> TransformersDetectorSpec:
        """The specification that a configuration with `kind = "transformers"` asks for.

        Its canvas is `image_size` where that is given, and the checkpoint's own where it is not.

        Raises:
            AcclimateError: there is no such checkpoint, or the canvas does not fit it.
        """
        if not config.transformers.checkpoint:
            raise AcclimateError(
                'model.transformers.checkpoint: kind = "transformers" needs a checkpoint folder or a name on the hub'
            )
        if not classes:
            raise AcclimateError("source: the data set names no class, so there is nothing to detect")
        size = config.image_size if "image_size" in config.model_fields_set else None
        spec = _specified(config.transformers.checkpoint, size)
        return spec.model_copy(update={"classes": tuple(classes), "reading": reading})

    def _assemble(self, spec: TransformersDetectorSpec, model: Any) -> None:
        self.spec = spec
        self.family = FAMILIES[spec.transformers.config["model_type"]]
        self.queries = int(model.config.num_queries)
        self._normalise_by(spec.transformers.mean, spec.transformers.std)
        self.backbone = getattr(model.model, self.family.backbone)
        setattr(model.model, self.family.backbone, _Given(self.family.packed))
        # These names of the decoder's predictors are for the library's own loading and saving.
        for name in ("class_embed", "bbox_embed"):
            if hasattr(model.model.decoder, name) and hasattr(model, name):
                delattr(model, name)
        _save_once(model)
        model.loss_function = partial(_sparing, model.loss_function, self.family.layers_first)
        self.model = model
        # Of a pretraining that is over, in which patches were hidden; nothing computes with it.
        for name, parameter in self.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        return self.family.extract(self.backbone, self._normalised(images))

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        with _unchecked():
            output = self.model(self._canvas(features))
        # Some families train with several groups of queries, of which the first is the one that is kept.
        return output.logits[:, : self.queries], output.pred_boxes[:, : self.queries]

    def _canvas(self, features: Sequence[Tensor]) -> _Canvas:
        return _Canvas(list(features), (features[0].shape[0], 3, *self.spec.image_size))

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """The library's losses, summed by their kind; `raw` is not looked at, as training has queries of its own.

        The library knows no ignored boxes. A query whose box lies in one, and meets no labelled box, is taken out of
        the classification losses.
        """
        canvas = self._canvas(features)
        output = self.model(canvas, labels=[self._label(target, canvas.device) for target in targets])
        weighted = _weighted(output.loss_dict, self.model.config)
        of_class = [loss for name, loss in weighted.items() if name.startswith(_CLASS_LOSSES)]
        of_boxes = [loss for name, loss in weighted.items() if not name.startswith(_CLASS_LOSSES)]
        return {"class": torch.stack(of_class).sum(), "box": torch.stack(of_boxes).sum()}

    def _label(self, target: Annotations, device: torch.device) -> dict[str, Tensor]:
        """An image's boxes as the library wants them: centre and size, in shares of the canvas."""
        boxes, labels, ignore = to_tensors(target, device)
        some = (boxes[:, 2:] > boxes[:, :2]).all(-1)
        real = some & ~ignore
        size = boxes.new_tensor(self.spec.image_size[::-1]).repeat(2)
        shares = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], -1) / size
        return {"class_labels": labels[real], "boxes": shares[real], "ignored": shares[some & ignore]}

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Query by query: quality focal loss towards the teacher's probabilities, L1 and GIoU towards its boxes.

        Queries have no places that correspond, so each of the student's learns from that of the teacher's which a
        Hungarian matching gives it, by the difference of their probabilities, boxes and overlaps. Class terms use
        every pair (a low score of the teacher is evidence of background), box terms those whose teacher's score
        reaches `threshold`, weighted by it.
        """
        logits, boxes = (output.float() for output in (self.head(features) if raw is None else raw))
        with torch.no_grad():
            scores, wanted = soft[0].float().sigmoid(), soft[1].float()
            own, other = match(logits.sigmoid(), boxes, scores, wanted)
            image = torch.arange(len(logits), device=logits.device)[:, None]
            scores, wanted = scores[image, other], wanted[image, other]
            strength = scores.amax(-1)
            trusted = (strength >= threshold) & (wanted[..., 2:] > 0).all(-1)
            total = share_of_total((strength * trusted).sum())
        logits, boxes = logits[image, own], boxes[image, own]
        weight, box, teacher = strength[trusted], boxes[trusted], wanted[trusted]
        apart = L1_WEIGHT * (box - teacher).abs().sum(-1)
        apart = apart + GIOU_WEIGHT * generalized_box_iou_loss(corners(box), corners(teacher))
        return {
            "class": CLASS_WEIGHT * quality_focal_loss(logits, scores).sum() / total,
            "box": (apart * weight).sum() / total,
        }

    @torch.no_grad()
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The boxes of the queries with the best scores."""
        logits, boxes = self.head(features) if raw is None else raw
        best = logits.amax(-1).topk(min(count, logits.shape[1]), 1).indices[..., None].expand(-1, -1, 4)
        size = boxes.new_tensor(self.spec.image_size[::-1]).repeat(2)
        return list(box_math.clip(corners(boxes.gather(1, best)) * size, self.spec.image_size))

    def class_rows(self) -> dict[str, ClassRows]:
        rows = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and ("class_embed" in name or name.endswith("enc_score_head")):
                rows[f"model.{name}"] = ClassRows(background=0)
            elif name.endswith("denoising_class_embed"):
                rows[f"model.{name}"] = ClassRows(background=0, last=1)
        return rows

    def decode_options(self) -> Decode:
        return Decode(kind="queries", max_detections=self.queries)

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Average-pooled RoIAlign features of the levels side by side, as their widths may differ."""
        return pooling.side_by_side(list(zip(features, self.spec.strides, strict=True)), boxes)


def from_checkpoint(checkpoint: str | Path, image_size: tuple[int, int] | None = None) -> TransformersDetector:
    """The detector in a checkpoint folder, or of a name on the hub, in eval mode, with all of its classes.

    On a picture of the size of the canvas it detects what the library's model does with its own image processor and
    post-processing. The library stretches other pictures to that size; this detector's callers keep their aspect and
    fill the rest.

    Args:
        checkpoint: with config.json and model.safetensors; preprocessor_config.json where it is not for the family's
            defaults.
        image_size: (height, width) of the canvas; by default that of the checkpoint's image processor.

    Raises:
        AcclimateError: see `TransformersDetector`.
    """
    spec = _specified(str(checkpoint), image_size)
    folder = folder_of(str(checkpoint))
    library = _library()
    config = _configuration(spec.transformers.config, spec.classes, spec.image_size)
    try:
        with quiet():
            model, info = library.AutoModelForObjectDetection.from_pretrained(
                folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # the library and its readers raise many unrelated types
        raise AcclimateError(f"{checkpoint}: cannot be loaded ({reason(error)})") from None
    absent = sorted(info["missing_keys"]) or sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise AcclimateError(
            f"{checkpoint}: its weights lack {absent[0]}" + f" and {len(absent) - 1} more" * (len(absent) > 1)
        )
    detector = TransformersDetector.__new__(TransformersDetector)
    nn.Module.__init__(detector)
    detector._assemble(spec.model_copy(update={"start": f"the checkpoint {checkpoint}"}), model)
    return detector.eval()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of the library's checkpoints, of whatever model."""
    return (folder / "config.json").is_file() and "model_type" in _json(folder / "config.json")


def digest_of(folder: Path) -> str:
    """Of what determines a checkpoint's detector."""
    return digest([file_digest(folder / file) for file in _FILES if (folder / file).is_file()])


def match(scores: Tensor, boxes: Tensor, other_scores: Tensor, other_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one matching of two detectors' queries that costs least, image by image.

    Args:
        scores: (B, Q, C), probabilities of the first.
        boxes: (B, Q, 4) of the first, centre and size.
        other_scores: (B, P, C), probabilities of the second.
        other_boxes: (B, P, 4) of the second.

    Returns:
        (B, min(Q, P)) places in the first and in the second.
    """
    own, other = [], []
    for image in range(len(scores)):
        cost = CLASS_WEIGHT * torch.cdist(scores[image], other_scores[image], 1)
        cost = cost + L1_WEIGHT * torch.cdist(boxes[image], other_boxes[image], 1)
        cost = cost - GIOU_WEIGHT * generalized_box_iou(corners(boxes[image]), corners(other_boxes[image]))
        rows, columns = linear_sum_assignment(cost.nan_to_num(1e6).cpu().numpy())
        own.append(torch.as_tensor(rows, device=scores.device))
        other.append(torch.as_tensor(columns, device=scores.device))
    return torch.stack(own), torch.stack(other)


def corners(boxes: Tensor) -> Tensor:
    """xyxy of boxes (..., 4) given as centre and size."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


_CLASS_LOSSES = ("loss_vfl", "loss_ce", "loss_mal", "loss_focal", "loss_bce")


def _weighted(losses: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """What the library sums up to its loss: some families weigh each part before they name it, the others after."""
    if not hasattr(config, "class_loss_coefficient"):
        return {name: loss for name, loss in losses.items() if name.startswith("loss_")}
    weights = {
        "loss_ce": config.class_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    return {
        name: weight * loss
        for name, loss in losses.items()
        for kind, weight in weights.items()
        if name == kind or name.startswith(f"{kind}_")
    }


def _sparing(
    loss: Callable[..., Any],
    layers_first: bool,
    logits: Tensor,
    labels: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    boxes: Tensor,
    config: Any,
    logits_of_layers: Tensor | None = None,
    boxes_of_layers: Tensor | None = None,
    *encoder: Tensor,
    **named: Any,
) -> Any:
    """The library's `loss`, without the scores of queries in ignored regions."""
    regions = [corners(label["ignored"]) for label in labels]
    if any(len(region) for region in regions):
        truth = [corners(label["boxes"]) for label in labels]
        silence = partial(_silenced, regions=regions, truth=truth)
        logits = silence(logits, boxes)
        if logits_of_layers is not None and boxes_of_layers is not None:
            # Images first, then whatever there is of each.
            order = (1, 0, 2, 3) if layers_first else (0, 1, 2, 3)
            quiet = silence(logits_of_layers.permute(order), boxes_of_layers.permute(order))
            logits_of_layers = quiet.permute(order)
        if encoder:
            encoder = (silence(encoder[0], encoder[1]), *encoder[1:])
        if named.get("enc_topk_logits") is not None:
            named["enc_topk_logits"] = silence(named["enc_topk_logits"], named["enc_topk_bboxes"])
    return loss(logits, labels, device, boxes, config, logits_of_layers, boxes_of_layers, *encoder, **named)


def _silenced(logits: Tensor, boxes: Tensor, regions: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """`logits` (B, ..., C) of `boxes` (B, ..., 4), constant where a box lies in one of an image's `regions`."""
    spared = []
    for shares, ignored, labelled in zip(boxes.detach().float(), regions, truth, strict=True):
        flat = corners(shares).reshape(-1, 4)
        inside = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        if len(ignored):
            covered = box_math.intersection(flat, ignored).amax(1)
            inside = covered >= INSIDE_IGNORED * box_math.area(flat).clamp(min=1e-9)
        if len(labelled):
            inside &= box_math.pairwise(flat, labelled).amax(1) < SAME
        spared.append(inside.view(shares.shape[:-1]))
    return torch.where(torch.stack(spared)[..., None], logits.new_tensor(SILENT), logits)


def _save_once(model: nn.Module) -> None:
    """Leave each module in the first of its places, so that its weights have one name and are averaged once."""
    seen: set[int] = set()
    replaced: list[str] = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if any(name.startswith(f"{place}.") for place in replaced) or next(module.parameters(), None) is None:
            continue
        if id(module) in seen:
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)._modules[child] = _Again(module)
            replaced.append(name)
        seen.add(id(module))


def _specified(checkpoint: str, image_size: tuple[int, int] | None) -> TransformersDetectorSpec:
    """The specification of a checkpoint's detector with all of its classes."""
    folder = folder_of(checkpoint)
    values = _json(folder / "config.json")
    family = str(values.get("model_type"))
    if family not in FAMILIES:
        known = ", ".join(one.title for one in FAMILIES.values())
        raise AcclimateError(f"{checkpoint}: its model_type {family!r} is none of the families that are known: {known}")
    names = _classes(values, checkpoint)
    config = {key: value for key, value in values.items() if key not in {"id2label", "label2id", "_name_or_path"}}
    mean, std, own_size = _processing(folder, family)
    size = image_size or own_size
    if size is None:
        raise AcclimateError(
            f"{checkpoint}: its image processor names no fixed size; give one: model.image_size=[HEIGHT, WIDTH]"
        )
    options = TransformersSpec(config=config, mean=mean, std=std, checkpoint=checkpoint)
    configured = _configuration(config, names, size)
    spec = TransformersDetectorSpec(
        kind="transformers",
        classes=names,
        image_size=size,
        backbone=str(getattr(configured.backbone_config, "model_type", family)),
        strides=(1,),
        channels=configured.d_model,
        depth=configured.decoder_layers,
        transformers=options,
    )
    return spec.model_copy(update={"strides": _strides(spec, checkpoint)})


def _strides(spec: TransformersDetectorSpec, checkpoint: str) -> tuple[int, ...]:
    """Of the levels, by a detector with random weights.

    Raises:
        AcclimateError: the canvas does not fit the network.
    """
    height, width = spec.image_size
    try:
        with torch.random.fork_rng(devices=()), torch.inference_mode():
            levels = TransformersDetector(spec).eval().features(torch.zeros(1, 3, height, width))
        strides = [(height / level.shape[-2], width / level.shape[-1]) for level in levels]
        if any(down != across or down != int(down) for down, across in strides):
            raise ValueError("not a whole number of its cells")
    except (RuntimeError, ValueError, TypeError) as error:
        raise AcclimateError(
            f"model.image_size: {height} x {width} pixels do not fit {checkpoint} ({reason(error)}); its own size "
            "fits, and so do multiples of its stride"
        ) from None
    return tuple(int(down) for down, _ in strides)


def _classes(values: Mapping[str, Any], checkpoint: str) -> tuple[str, ...]:
    """The names of a configuration's classes in order; one that stands twice is told apart by its number."""
    listed = values.get("id2label") or {}
    if not listed:
        count = int(values.get("num_labels", 0) or 2)
        return tuple(f"class {i + 1}" for i in range(count))
    names = [str(listed.get(str(i), listed.get(i, f"class {i}"))) for i in range(max(map(int, listed)) + 1)]
    return tuple(name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names))


def _processing(folder: Path, family: str) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int] | None]:
    """Mean and deviation of pixels in 0..1, and the size (height, width), as the image processor has them."""
    file = folder / "preprocessor_config.json"
    plain: dict[str, Any] = {"do_normalize": family in {"lw_detr", "rf_detr"}}
    values = {**plain, **(_json(file) if file.is_file() else {})}
    # A factor other than 1/255 is as if mean and deviation were in other units.
    unit = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
    if values["do_normalize"]:
        mean = values.get("image_mean") or (0.485, 0.456, 0.406)
        std = values.get("image_std") or (0.229, 0.224, 0.225)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    size = values.get("size") or {}
    own = (int(size["height"]), int(size["width"])) if {"height", "width"} <= set(size) else None
    return tuple(float(one) / unit for one in mean), tuple(float(one) / unit for one in std), own


def _configuration(values: Mapping[str, Any], classes: Sequence[str], size: tuple[int, int]) -> Any:
    """The library's configuration for these classes and this canvas."""
    library = _library()
    given = copy.deepcopy({key: value for key, value in values.items() if key != "model_type"})
    names = dict(enumerate(classes))
    given |= {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    # Sizes for which the library makes constants beforehand: the canvas is the one size here.
    if "anchor_image_size" in given or values["model_type"] in {"rt_detr", "rt_detr_v2", "d_fine", "deimv2"}:
        given |= {"anchor_image_size": list(size), "eval_size": None}
    try:
        with quiet():
            return library.AutoConfig.for_model(values["model_type"], **given)
    except Exception as error:  # of the library's own checks
        raise AcclimateError(f"the checkpoint's config.json: {reason(error)}") from None


def _model(config: Any) -> Any:
    with quiet():
        return _library().AutoModelForObjectDetection.from_config(config, dtype=torch.float32)


def _library() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise AcclimateError(f"a detector of transformers needs the package transformers: {hint('transformers')}")
    return importlib.import_module("transformers")


def family_of(folder: Path) -> str:
    """The `model_type` of a checkpoint folder."""
    return str(_json(folder / "config.json").get("model_type"))


def folder_of(checkpoint: str, files: Sequence[str] = _FILES) -> Path:
    """The folder of a checkpoint, downloaded where it is a name on the hub: those of its `files`, or all.

    Raises:
        AcclimateError: it is neither.
    """
    path = Path(checkpoint)
    if path.is_dir() or path.exists() or checkpoint.startswith((".", "/")) or checkpoint.count("/") != 1:
        if not (path / "config.json").is_file():
            raise AcclimateError(f"{checkpoint}: no checkpoint folder (it has no config.json), nor a name on the hub")
        return path
    return pretrained.snapshot(checkpoint, tuple(files))


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise AcclimateError(f"{file}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise AcclimateError(f"{file}: not a table")
    return values


def reason(error: Exception) -> str:
    """What the library said, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Without the library's checks of its own shapes while a graph is exported: no runtime has an operator for them."""
    if not torch.compiler.is_exporting():
        yield
        return
    before = os.environ.get(_CHECKS_OFF)
    os.environ[_CHECKS_OFF] = "1"
    try:
        yield
    finally:
        del os.environ[_CHECKS_OFF]
        if before is not None:
            os.environ[_CHECKS_OFF] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's bars and remarks; what matters is in the error."""
    logger = _library().utils.logging
    level, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity(logging.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if bars:
            logger.enable_progress_bar()
