"""torchvision's SSD and SSDLite as ours: the same detections from the same weights, on a canvas of their own size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead

from acclimate.edge.images import read_image
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models.ssd import EXTRACTORS, from_torchvision
from acclimate.structures import Annotations

CLASSES = 5
LITE, PLAIN = "ssdlite320_mobilenet_v3_large", "ssd300_vgg16"


def named(name: str, classes: int = CLASSES) -> SSD:
    torch.manual_seed(0)
    model: SSD = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes)
    return model


def scene(side: int) -> Tensor:
    """An image (3, H, W) in 0..1 with blobs of all sizes."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(1, 3, side, side)
    for cells in (3, 6, 12, 24):
        total += F.interpolate(torch.rand(1, 3, cells, cells, generator=generator), size=(side, side), mode="bicubic")
    return (total[0] / 4).clamp(0, 1)


def photographs(folder: Path, side: int) -> list[Tensor]:
    """Stretched: grey beside the image would make thousands of equal scores, among which rounding chooses."""
    file = min((folder / "blood-cells" / "bccd" / "images" / "test").iterdir())
    image = torch.from_numpy(read_image(file)).permute(2, 0, 1)[None].float() / 255
    return list(F.interpolate(image, size=(side, side), mode="bilinear"))


def lively(model: SSD, images: list[Tensor]) -> SSD:
    """With normalisations that fit `images`, and scores and offsets that differ as after training."""
    generator = torch.Generator().manual_seed(2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    with torch.no_grad():
        if norms:
            # Many that differ, as a level of one cell has no other spread: a small one would magnify rounding.
            looks = [turned.roll(shift, 0) for turned in (images[0], images[0].rot90(1, (1, 2))) for shift in range(3)]
            looks += [look.square() for look in looks] + [1 - look for look in looks]
            varied, _ = model.transform([*images, *looks])
            for norm in norms:
                norm.momentum = None
            model.train()
            model.head(list(model.backbone(varied.tensors).values()))
            model.eval()
        batch, _ = model.transform(images)
        features = list(model.backbone(batch.tensors).values())
        for head, columns, spread in (
            (model.head.classification_head, CLASSES, 2.0),
            (model.head.regression_head, 4, 1.0),
        ):
            for predictor, level in zip(head.module_list, features, strict=True):
                last = [module for module in predictor.modules() if isinstance(module, nn.Conv2d)][-1]
                last.weight.normal_(generator=generator)
                last.weight.mul_(spread / predictor(level).std())
                if columns == CLASSES:
                    # Background nearly everywhere, as an image has few objects for its default boxes.
                    last.bias.view(-1, CLASSES)[:, 0] += 6.0
    return model


def compare(model: SSD, images: list[Tensor], least: int = 20) -> None:
    ours = from_torchvision(model, [f"class {i}" for i in range(1, CLASSES)])
    batch = torch.stack(images)
    with torch.inference_mode():
        expected = model.eval()(images)
        found = ours.decode(ours(batch * 255))
    for theirs, mine in zip(expected, found, strict=True):
        scores, labels, boxes = (theirs[key].numpy() for key in ("scores", "labels", "boxes"))
        some = (boxes[:, 2:] > boxes[:, :2]).all(1)
        scores, labels, boxes = scores[some], labels[some], boxes[some]
        assert len(mine) == len(scores) >= least
        assert scores.max() > 0.3
        assert scores.max() - scores.min() > 0.1
        # Nearly equal scores may change places, so each detection is held against the nearest of its class.
        apart = np.abs(boxes[:, None] - mine.boxes[None]).max(-1)
        apart[labels[:, None] - 1 != mine.labels[None]] = np.inf
        partner = apart.argmin(1)
        assert len(set(partner)) == len(partner)
        assert apart.min(1).max() <= 0.1
        np.testing.assert_allclose(mine.scores[partner], scores, atol=1e-4)


@pytest.mark.parametrize("name", [LITE, pytest.param(PLAIN, marks=pytest.mark.slow)])
def test_detections_are_those_of_torchvision(name: str) -> None:
    model = named(name)
    images = [scene(model.transform.fixed_size[0])]
    compare(lively(model, images), images)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", [LITE, PLAIN])
def test_detections_on_real_images_are_those_of_torchvision(name: str, shared_data: Path) -> None:
    model = named(name)
    images = photographs(shared_data, model.transform.fixed_size[0])
    compare(lively(model, images), images)


@pytest.mark.parametrize("limit", [5, 40])
def test_each_class_has_its_own_limit_as_there(limit: int) -> None:
    model = named(LITE)
    images = [scene(320)]
    model = lively(model, images)
    model.topk_candidates = limit
    with torch.inference_mode():
        assert torch.bincount(model(images)[0]["labels"])[1:].max() <= limit
    compare(model, images, least=10)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_backbone_with_added_levels_is_known(name: str) -> None:
    """SSD512, and a MobileNet with its full tail, have no constructor of their own there."""
    with torch.device("meta"):
        backbone = EXTRACTORS[name][0]().eval()
        side = {"vgg16": 300, "vgg16_512": 512}.get(name, 320)
        levels = list(backbone(torch.zeros(1, 3, side, side)).values())
        generator = DefaultBoxGenerator([[2]] * len(levels))
        widths, each = [level.shape[1] for level in levels], generator.num_anchors_per_location()
        make = SSDHead if name.startswith("vgg") else partial(SSDLiteHead, norm_layer=nn.BatchNorm2d)
        model = SSD(backbone, generator, (side, side), CLASSES, head=make(widths, each, CLASSES))
        ours = from_torchvision(model, ["a", "b", "c", "d"])
    assert ours.spec.backbone == name
    assert [level.rows for level in ours.options.priors] == [level.shape[-1] for level in levels]
    assert levels[-1].shape[-1] == 1
    strides = [round(side / level.shape[-1]) for level in levels[:2]]
    assert strides == list(ours.spec.strides)


def test_a_saved_run_folder_says_it_all(tmp_path: Path) -> None:
    images = [scene(320)]
    ours = from_torchvision(lively(named(LITE), images), ["a", "b", "c", "d"])
    detectors.save(ours, tmp_path)
    loaded = detectors.load(tmp_path)
    with torch.inference_mode():
        for one, other in zip(ours(images[0][None] * 255), loaded(images[0][None] * 255), strict=True):
            assert torch.equal(one, other)


def test_a_backbone_that_nobody_knows_is_refused() -> None:
    spec = from_torchvision(named(LITE)).spec
    with pytest.raises(AcclimateError, match="'resnet18' is none of torchvision's backbones of SSD"):
        detectors.build(spec.model_copy(update={"backbone": "resnet18"}))


def test_it_trains_on() -> None:
    images = scene(320)[None] * 255
    ours = from_torchvision(named(LITE), ["a", "b", "c", "d"]).train()
    box = Annotations(np.float32([[20, 20, 80, 70]]), np.array([2]), np.array([False]))
    losses = ours.losses(ours.features(images.repeat(2, 1, 1, 1)), [box, box])
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_cocos_names_are_known() -> None:
    spec = from_torchvision(named(LITE, 91)).spec
    assert len(set(spec.classes)) == 90
    assert spec.classes[:2] == ("person", "bicycle")


def test_what_does_not_fit_is_refused() -> None:
    model = named(LITE)
    with pytest.raises(AcclimateError, match="4 classes, and 2 names"):
        from_torchvision(model, ["a", "b"])
    model.backbone = mobilenet_v3_large(weights=None)
    with pytest.raises(AcclimateError, match="the backbone is none of"):
        from_torchvision(model)
    model.box_coder.weights = (1.0, 1.0, 1.0, 1.0)
    with pytest.raises(AcclimateError, match="takes offsets in"):
        from_torchvision(model)
    with pytest.raises(AcclimateError, match="takes an SSD"):
        from_torchvision(nn.Identity())
