"""torchvision's detectors as ours: the same detections from the same weights, on a canvas that neither scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models.masks import paste
from acclimate.models.two_stage import from_torchvision
from acclimate.structures import Annotations

SIZE = (96, 160)
CLASSES = 5


def small(classes: int = CLASSES) -> FasterRCNN:
    """A ResNet-18 with torchvision's frozen normalisation, its epsilon as in the published checkpoints."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    return FasterRCNN(backbone, classes, rpn_post_nms_top_n_test=60)


def small_with_masks() -> MaskRCNN:
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return MaskRCNN(backbone, CLASSES, rpn_post_nms_top_n_test=60, box_detections_per_img=6)


def named(name: str, proposals: int, detections: int = 100) -> Callable[[], FasterRCNN]:
    def make() -> FasterRCNN:
        model: FasterRCNN = getattr(detection, name)(
            weights=None,
            weights_backbone=None,
            num_classes=CLASSES,
            rpn_post_nms_top_n_test=proposals,
            box_detections_per_img=detections,
        )
        return model

    return make


def scenes() -> Tensor:
    """Two images (2, 3, H, W) in 0..1 with blobs of all sizes."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(2, 3, *SIZE)
    for cells in ((3, 5), (6, 10), (12, 20)):
        noise = torch.rand(2, 3, *cells, generator=generator)
        total += F.interpolate(noise, size=SIZE, mode="bicubic")
    return (total / 3).clamp(0, 1)


def lively(model: FasterRCNN, images: Tensor) -> FasterRCNN:
    """With normalisations that fit `images`, and scores and offsets that differ as after training."""
    model.transform.min_size, model.transform.max_size = (min(images.shape[-2:]),), max(images.shape[-2:])
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        elif isinstance(module, FrozenBatchNorm2d):
            for value, spread in ((module.running_mean, 0.1), (module.bias, 0.1)):
                value.normal_(std=spread, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.uniform_(0.3, 0.7, generator=generator)
    with torch.no_grad():
        for module in model.modules():
            # At random, deep residual networks magnify rounding a thousandfold; trained ones do not.
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.2)
        model.train()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.transform.image_mean, model.transform.image_std))
        model.backbone((images - mean) / std)
        model.eval()
        predictor = model.roi_heads.box_predictor
        layers = [
            (model.rpn.head.cls_logits, 2.0),
            (model.rpn.head.bbox_pred, 0.3),
            (predictor.cls_score, 1.0),
            (predictor.bbox_pred, 1.0),
        ]
        if model.roi_heads.has_mask():
            layers.append((model.roi_heads.mask_predictor.mask_fcn_logits, 2.0))
        for layer, spread in layers:
            layer.weight.normal_(generator=generator)
            seen: list[Tensor] = []
            handle = layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
            model(list(images))
            handle.remove()
            layer.weight.mul_(spread / torch.cat([one.flatten() for one in seen]).std())
    return model


def compare(model: FasterRCNN, images: Tensor) -> None:
    ours = from_torchvision(model, (images.shape[-2], images.shape[-1]))
    with torch.inference_mode():
        expected = model(list(images))
        features = ours.features(images * 255)
        found = ours.decode(ours.head(features))
        masks = ours.masks(features, found) if model.roi_heads.has_mask() else [None] * len(found)
    for theirs, mine, mask in zip(expected, found, masks, strict=True):
        assert len(mine) == len(theirs["scores"]) >= 5
        assert float(theirs["scores"].max() - theirs["scores"].min()) > 0.05
        # Nearly equal scores may change places, so each detection is held against the nearest of its class.
        apart = np.abs(theirs["boxes"].numpy()[:, None] - mine.boxes[None]).max(-1)
        apart[theirs["labels"].numpy()[:, None] - 1 != mine.labels[None]] = np.inf
        partner = apart.argmin(1)
        assert len(set(partner)) == len(partner)
        assert apart.min(1).max() <= 0.1
        np.testing.assert_allclose(mine.scores[partner], theirs["scores"].numpy(), atol=1e-4)
        if mask is not None:
            pasted = paste(mask, mine.boxes, ours.spec.image_size)
            assert mask.max() - mask.min() > 0.3
            np.testing.assert_allclose(pasted[partner], theirs["masks"][:, 0].numpy(), atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(small, id="resnet18"),
        pytest.param(named("fasterrcnn_mobilenet_v3_large_fpn", 60), id="mobilenet"),
        pytest.param(named("fasterrcnn_mobilenet_v3_large_320_fpn", 60), id="mobilenet-320"),
        pytest.param(named("fasterrcnn_resnet50_fpn", 60), id="resnet50", marks=pytest.mark.slow),
        pytest.param(named("fasterrcnn_resnet50_fpn_v2", 20), id="resnet50-v2", marks=pytest.mark.slow),
        pytest.param(small_with_masks, id="resnet18-masks"),
        pytest.param(named("maskrcnn_resnet50_fpn", 60, 10), id="resnet50-masks", marks=pytest.mark.slow),
        pytest.param(named("maskrcnn_resnet50_fpn_v2", 20, 10), id="resnet50-v2-masks", marks=pytest.mark.slow),
    ],
)
def test_detections_are_those_of_torchvision(make: Callable[[], FasterRCNN]) -> None:
    torch.manual_seed(0)
    images = scenes()
    compare(lively(make(), images), images)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"]
)
def test_detections_on_real_images_are_those_of_torchvision(name: str, shared_data: Path) -> None:
    files = sorted((shared_data / "blood-cells" / "bccd" / "images" / "test").iterdir())[:2]
    canvases = np.stack([letterbox(read_image(file), (192, 256))[0] for file in files])
    images = torch.from_numpy(canvases).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    compare(lively(named(name, 60)(), images), images)


def test_a_saved_run_folder_says_it_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = scenes()
    ours = from_torchvision(lively(small_with_masks(), images), SIZE, ["a", "b", "c", "d"])
    assert ours.spec.norm == "frozen"
    detectors.save(ours, tmp_path)
    loaded = detectors.load(tmp_path)
    with torch.inference_mode():
        for one, other in zip(ours(images * 255), loaded(images * 255), strict=True):
            assert torch.equal(one, other)
        features = ours.features(images * 255)
        found = ours.decode(ours.head(features))
        for one, other in zip(ours.masks(features, found), loaded.masks(features, found), strict=True):
            assert np.array_equal(one, other)


def test_it_trains_on() -> None:
    torch.manual_seed(0)
    images = scenes()
    ours = from_torchvision(lively(small(), images), SIZE).train()
    box = Annotations(np.float32([[20, 20, 80, 70]]), np.array([2]), np.array([False]))
    losses = ours.losses(ours.features(images * 255), [box, box])
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_cocos_names_are_known() -> None:
    spec = from_torchvision(small(91), SIZE).spec
    assert len(set(spec.classes)) == 90
    assert spec.classes[:2] == ("person", "bicycle")


def test_what_does_not_fit_is_refused() -> None:
    model = small()
    with pytest.raises(AcclimateError, match="4 classes, and 2 names"):
        from_torchvision(model, SIZE, ["a", "b"])
    masked = small_with_masks()
    masked.roi_heads.mask_head = nn.Sequential(*list(masked.roi_heads.mask_head)[:2])
    with pytest.raises(AcclimateError, match="mask branch of 4"):
        from_torchvision(masked, SIZE)
    model.transform.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(AcclimateError, match="mean"):
        from_torchvision(model, SIZE)
