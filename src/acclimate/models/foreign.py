"""Detectors that others have trained: torchvision's, from a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d

from acclimate.errors import AcclimateError
from acclimate.models import checkpoint, fcos, retinanet, ssd, two_stage
from acclimate.models.detector import Detector

MODELS = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn",
)  # fmt: skip
"""torchvision's detectors that are carried over."""

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Whose published weights torchvision runs with an epsilon of 0 in the frozen normalisation."""


def from_file(
    file: Path, model: str = "", image_size: tuple[int, int] | None = None, classes: tuple[str, ...] | None = None
) -> Detector:
    """The detector in a torchvision `state_dict`, in eval mode, with the same detections.

    Args:
        file: written by `torch.save(model.state_dict(), file)`, or a safetensors file.
        model: one of `MODELS`; by default told by the tensors.
        image_size: (height, width) of the canvas; by default a square of the shorter side that torchvision scales to.
            An SSD's canvas is torchvision's.
        classes: their names, without the background; see `from_torchvision`. A RetinaNet and an FCOS have a column
            of scores for the background too, which may have a name where it was trained as a class.

    Raises:
        AcclimateError: the file is no such checkpoint, the model is none of `MODELS`, or the canvas does not fit.
    """
    state = checkpoint.tensors(file)
    if model and model not in MODELS:
        raise AcclimateError(f"--model {model}: choose one of {', '.join(MODELS)}")
    name = model or _recognised(state, file)
    try:
        made: Any = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=_count(state, name)
        )
        if not name.startswith("ssd"):
            _freeze_norms(made, state, 0.0 if name in _WITHOUT_EPSILON else 1e-5)
        made.load_state_dict(state)
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise AcclimateError(
            f"{file}: is no {name} of torchvision's as it builds it ({' '.join(lines[:2])[:200]}); name another "
            "--model, or build it in Python and use from_torchvision"
        ) from None
    if isinstance(made, SSD):
        width, height = made.transform.fixed_size
        if image_size is not None and tuple(image_size) != (height, width):
            raise AcclimateError(f"model.image_size: the canvas of {name} is {height} x {width}; leave it out")
        return ssd.from_torchvision(made, classes)
    if image_size is None:
        side = made.transform.min_size[0]
        image_size = (side, side)
    if any(side < 1 or side % 32 for side in image_size):
        raise AcclimateError(f"model.image_size: {image_size[0]} x {image_size[1]} is not a multiple of 32")
    if isinstance(made, RetinaNet):
        return retinanet.from_torchvision(made, image_size, classes)
    if isinstance(made, FCOS):
        return fcos.from_torchvision(made, image_size, classes)
    return two_stage.from_torchvision(made, image_size, classes)


def known_names(count: int) -> tuple[str, ...] | None:
    """The names of that many classes where torchvision's own weights have as many: COCO's."""
    names = two_stage.category_names(count)
    return None if names[0] == "class 1" else names


def _recognised(state: dict[str, Tensor], file: Path) -> str:
    """Which of `MODELS` has such tensors."""

    def has(*keys: str) -> bool:
        return any(key in state for key in keys)

    listed = ", ".join(MODELS)
    if any(key.startswith("roi_heads.keypoint") for key in state):
        raise AcclimateError(f"{file}: a Keypoint R-CNN, which is not carried over; these are: {listed}")
    if has("head.regression_head.bbox_ctrness.weight"):
        return "fcos_resnet50_fpn"
    if has("head.classification_head.cls_logits.weight"):
        return "retinanet_resnet50_fpn" + ("_v2" if has("head.classification_head.conv.0.1.weight") else "")
    if has("roi_heads.box_predictor.cls_score.weight"):
        if has("backbone.body.0.0.weight"):
            if "320" in file.stem:
                return "fasterrcnn_mobilenet_v3_large_320_fpn"
            if "mobilenet_v3_large_fpn" in file.stem:
                return "fasterrcnn_mobilenet_v3_large_fpn"
            raise AcclimateError(
                f"{file}: its tensors are those of fasterrcnn_mobilenet_v3_large_fpn and of "
                "fasterrcnn_mobilenet_v3_large_320_fpn; say which with --model"
            )
        first = "maskrcnn" if any(key.startswith("roi_heads.mask_predictor") for key in state) else "fasterrcnn"
        return f"{first}_resnet50_fpn" + ("_v2" if has("roi_heads.box_head.0.0.weight") else "")
    if has("head.classification_head.module_list.0.weight"):
        return "ssd300_vgg16"
    if has("head.classification_head.module_list.0.1.weight"):
        return "ssdlite320_mobilenet_v3_large"
    raise AcclimateError(f"{file}: none of torchvision's detectors that are carried over: {listed}")


def _count(state: dict[str, Tensor], name: str) -> int:
    """How many classes the checkpoint has, the background among them."""
    if "rcnn" in name:
        return len(state["roi_heads.box_predictor.cls_score.bias"])
    if name.startswith(("retinanet", "fcos")):
        return len(state["head.classification_head.cls_logits.bias"]) // (9 if name.startswith("retinanet") else 1)
    if name.startswith("ssdlite"):
        return len(state["head.classification_head.module_list.0.1.bias"]) // 6
    return len(state["head.classification_head.module_list.0.bias"]) // 4


def _freeze_norms(model: nn.Module, state: dict[str, Tensor], epsilon: float) -> None:
    """Put frozen normalisations where the checkpoint was trained with them, which keep no count of batches."""
    for name, module in list(model.named_modules()):
        inside = name.startswith("backbone.body.")
        if inside and isinstance(module, nn.BatchNorm2d) and f"{name}.num_batches_tracked" not in state:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FrozenBatchNorm2d(module.num_features, eps=epsilon))
