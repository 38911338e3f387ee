"""torchvision's RetinaNet and FCOS as ours: the same detections and losses from the same weights, here and exported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from acclimate.config import ModelConfig
from acclimate.edge.decode import decode
from acclimate.edge.images import letterbox, read_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.models import detector as detectors
from acclimate.models import fcos, retinanet
from acclimate.models.towers import TowerDetector, column_names
from acclimate.models.transfer import with_classes
from acclimate.structures import Annotations, Detections

SIZE = (96, 160)
CLASSES = ["a", "b", "c", "d"]


def pyramid(coarse: int) -> nn.Module:
    """A ResNet-18 with torchvision's frozen normalisation; P6 is made of a map with so many channels."""
    extra = LastLevelP6P7(coarse, 256)
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=extra)


def small(name: str, columns: int = len(CLASSES)) -> RetinaNet | FCOS:
    if name == "fcos":
        return FCOS(pyramid(256), columns, topk_candidates=60)
    if name == "retinanet":
        return RetinaNet(pyramid(256), columns, topk_candidates=60)
    # As the second version: P6 of the backbone's map, group normalisation, GIoU.
    head = RetinaNetHead(256, 9, columns, norm_layer=functools.partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return RetinaNet(pyramid(512), columns, head=head, topk_candidates=60)


def named(name: str) -> RetinaNet | FCOS:
    model: RetinaNet | FCOS = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        num_classes=len(CLASSES),
        topk_candidates=100,
        # No limit that holds, as torchvision's counts boxes without any area too.
        detections_per_img=1000,
    )
    return model


def scenes() -> Tensor:
    """Two images (2, 3, H, W) in 0..1 with blobs of all sizes."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(2, 3, *SIZE)
    for cells in ((3, 5), (6, 10), (12, 20)):
        total += F.interpolate(torch.rand(2, 3, *cells, generator=generator), size=SIZE, mode="bicubic")
    return (total / 3).clamp(0, 1)


def lively(model: RetinaNet | FCOS, images: Tensor) -> RetinaNet | FCOS:
    """With normalisations that fit `images`, and scores, boxes and quality that differ as after training."""
    model.transform.min_size, model.transform.max_size = (min(images.shape[-2:]),), max(images.shape[-2:])
    generator = torch.Generator().manual_seed(2)
    classify, regress = model.head.classification_head, model.head.regression_head
    layers = [(classify.cls_logits, 1.5, -3.0), (regress.bbox_reg, 0.4, 0.0)]
    if isinstance(model, FCOS):
        layers = [(classify.cls_logits, 1.5, -3.0), (regress.bbox_reg, 0.8, 2.0), (regress.bbox_ctrness, 1.0, 1.0)]
    with torch.no_grad():
        for module in model.modules():
            # At random, deep residual networks magnify rounding a thousandfold; trained ones do not.
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.2)
            if isinstance(module, FrozenBatchNorm2d):
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
                module.weight.uniform_(0.3, 0.7, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.transform.image_mean, model.transform.image_std))
        features = list(model.backbone((images - mean) / std).values())
        model.eval()
        for part in (*classify.conv.modules(), *regress.conv.modules()):
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, generator=generator)
        for layer, spread, middle in layers:
            tower = classify.conv if layer is classify.cls_logits else regress.conv
            layer.weight.normal_(generator=generator)
            layer.bias.zero_()
            seen = torch.cat([layer(tower(level)).flatten() for level in features])
            layer.weight.mul_(spread / seen.std())
            layer.bias.fill_(middle)
    return model


def from_torchvision(
    model: RetinaNet | FCOS, size: tuple[int, int] = SIZE, classes: list[str] | None = CLASSES
) -> TowerDetector:
    if isinstance(model, FCOS):
        return fcos.from_torchvision(model, size, classes)
    return retinanet.from_torchvision(model, size, classes)


def new(kind: str) -> TowerDetector:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"kind": kind, "image_size": (64, 96), "backbone": "lcnet_050", "weights": "none", "channels": 16, "depth": 1}
    )
    built = detectors.build(detectors.specify(config, ["car", "person"]))
    assert isinstance(built, TowerDetector)
    return built


def detected(theirs: dict[str, Tensor]) -> Detections:
    """What torchvision reports, but for boxes without any area."""
    boxes, labels, scores = (theirs[key].numpy() for key in ("boxes", "labels", "scores"))
    some = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Detections(boxes[some], labels[some], scores[some])


def compare(expected: list[Detections], found: list[Detections], first: int = 0) -> None:
    """`first`: the label there of our first class."""
    for theirs, mine in zip(expected, found, strict=True):
        assert len(mine) == len(theirs) >= 20
        assert theirs.scores.max() > 0.4
        assert theirs.scores.max() - theirs.scores.min() > 0.1
        # Nearly equal scores may change places, so each detection is held against the nearest of its class.
        apart = np.abs(theirs.boxes[:, None] - mine.boxes[None]).max(-1)
        apart[theirs.labels[:, None] - first != mine.labels[None]] = np.inf
        partner = apart.argmin(1)
        assert len(set(partner)) == len(partner)
        assert apart.min(1).max() <= 0.1
        np.testing.assert_allclose(mine.scores[partner], theirs.scores, atol=1e-4)


class Made:
    """A model of torchvision's and ours of it, with what theirs detects on `scenes`."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.images = scenes()
        self.theirs = lively(small(name), self.images)
        self.ours = from_torchvision(self.theirs)
        with torch.inference_mode():
            self.expected = [detected(one) for one in self.theirs(list(self.images))]


@pytest.fixture(scope="module")
def made() -> Callable[[str], Made]:
    return functools.cache(Made)


NAMES = ["fcos", "retinanet", "retinanet-v2"]


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_those_of_torchvision(name: str, made: Callable[[str], Made]) -> None:
    one = made(name)
    with torch.inference_mode():
        compare(one.expected, one.ours.decode(one.ours(one.images * 255)))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_detections_on_real_images_are_those_of_torchvision(name: str, shared_data: Path) -> None:
    files = sorted((shared_data / "blood-cells" / "bccd" / "images" / "test").iterdir())[:2]
    canvases = np.stack([letterbox(read_image(file), (192, 256))[0] for file in files])
    images = torch.from_numpy(canvases).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    model = lively(named(name), images)
    ours = from_torchvision(model, (192, 256))
    with torch.inference_mode():
        compare([detected(one) for one in model(list(images))], ours.decode(ours(images * 255)))


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_torchvision(name: str, made: Callable[[str], Made]) -> None:
    """An image with objects of all sizes, two of them at one place, and one without."""
    one = made(name)
    boxes = np.float32([[4, 6, 30, 40], [10, 10, 150, 90], [60, 30, 92, 52], [64, 32, 88, 50], [100, 5, 104, 12]])
    labels = np.array([0, 2, 3, 1, 2])
    targets = [{"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}]
    targets.append({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)})
    expected = one.theirs.train()(list(one.images), targets)
    one.theirs.eval()
    listed = [
        Annotations(boxes, labels, np.zeros(5, bool)),
        Annotations(boxes[:0], labels[:0], np.zeros(0, bool)),
    ]
    found = one.ours.losses(one.ours.features(one.images * 255), listed)
    pairs = {"class": "classification", "box": "bbox_regression", "quality": "bbox_ctrness"}
    assert {pairs[key] for key in found} == set(expected)
    assert set(one.ours.loss_kinds) == set(found)
    for key, value in found.items():
        assert value.item() > 0.01
        assert value.item() == pytest.approx(expected[pairs[key]].item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES[:2])
def test_an_ignored_box_teaches_nothing(name: str, made: Callable[[str], Made]) -> None:
    """What is inside it counts neither as background nor as an object."""
    one = made(name)
    features = one.ours.features(one.images[:1] * 255)
    nothing = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    whole = Annotations(np.float32([[-400, -400, 600, 600]]), np.array([-1]), np.array([True]))
    background = one.ours.losses(features, [nothing])["class"]
    assert background.item() > 0.5
    assert all(value.item() == 0 for value in one.ours.losses(features, [whole]).values())


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_teacher_of_the_same_scores_asks_for_nothing_more(name: str, made: Callable[[str], Made]) -> None:
    """Its own outputs are where the losses against them are lowest; every layer of the head learns from another's."""
    one = made(name)
    with torch.no_grad():
        features = one.ours.features(one.images * 255)
        soft = one.ours.head(features)
        other = tuple(output.roll(7, 1) for output in soft)
    same = one.ours.distillation(features, soft, 0.3)
    apart = one.ours.distillation(features, other, 0.3)
    assert set(same) == set(one.ours.loss_kinds)
    assert same["class"].item() == pytest.approx(0, abs=1e-6)
    assert same["box"].item() == pytest.approx(0, abs=1e-5)
    assert all(apart[key].item() > same[key].item() for key in same)
    layers = [parameter for part in one.ours.predictors for parameter in one.ours.get_submodule(part).parameters()]
    gradients = torch.autograd.grad(sum(apart.values(), torch.zeros(())), layers)
    assert all(bool(gradient.any()) for gradient in gradients)


def exported(detector: TowerDetector, images: Tensor, folder: Path) -> list[Detections]:
    """What ONNX Runtime finds on images (B, 3, H, W) in 0..1."""
    artifact = exporter("onnx").export(detector, folder, "fp32")
    manifest, predictor = artifact.manifest, Predictor.load(folder)
    assert manifest.decode == detector.decode_options()
    outputs = [predictor.run(image[None].numpy() * 255) for image in images]
    return [decode(one, manifest.decode, manifest.image_size)[0] for one in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_detects_as_torchvision(name: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made(name)
    compare(one.expected, exported(one.ours, one.images, tmp_path / "onnx"))


@pytest.mark.parametrize("kind", ["fcos", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_what_is_exported_detects_the_same(kind: str, tmp_path: Path) -> None:
    detector = new(kind).eval()
    with torch.no_grad():
        for layer in (detector.classify, detector.regress):
            layer.weight.normal_(std=0.3)
        detector.classify.bias.fill_(-1)
        detector.regress.bias.fill_(0.5)
    images = torch.rand(2, 3, *detector.spec.image_size)
    with torch.inference_mode():
        compare(detector.decode(detector(images * 255)), exported(detector, images, tmp_path / "onnx"))


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_saved_run_folder_says_it_all(name: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made(name)
    detectors.save(one.ours, tmp_path)
    loaded = detectors.load(tmp_path)
    with torch.inference_mode():
        for mine, theirs in zip(one.ours(one.images * 255), loaded(one.images * 255), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", NAMES[:2])
def test_classes_are_picked_by_name(name: str, made: Callable[[str], Made]) -> None:
    one = made(name)
    some = with_classes(one.ours, {"other": "d", "b": "b"})
    with torch.inference_mode():
        all_of_them, ours = one.ours(one.images * 255)[0], some(one.images * 255)[0]
    torch.testing.assert_close(ours, all_of_them[..., [3, 1]])


@pytest.mark.parametrize("name", NAMES[1:2])
def test_the_first_column_is_the_background_unless_it_has_a_name(name: str, made: Callable[[str], Made]) -> None:
    one = made(name)
    without = from_torchvision(one.theirs, classes=["b", "c", "d"])
    with torch.inference_mode():
        torch.testing.assert_close(without(one.images * 255)[0], one.ours(one.images * 255)[0][..., 1:])


def test_columns_get_names() -> None:
    assert column_names(4, None) == ("class 1", "class 2", "class 3")
    assert column_names(91, None)[:2] == ("person", "bicycle")
    assert column_names(1, ["cell"]) == ("cell",)
    for names in (["a", "b"], [*CLASSES, "e"]):
        with pytest.raises(AcclimateError, match=f"3 classes, and {len(names)} names"):
            column_names(4, names)


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_a_new_one_is_built_from_options_and_trains(kind: str) -> None:
    made = new(kind)
    images = torch.rand(2, 3, 64, 96) * 255
    box = Annotations(np.float32([[20, 20, 80, 60]]), np.array([1]), np.array([False]))
    features = made.train().features(images)
    assert [level.shape[-1] for level in features] == [12, 6, 3, 2, 1]
    losses = made.losses(features, [box, box])
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert all(box.shape == (5, 4) for box in made.regions(features, 5))
    assert made.instances(features, [torch.tensor([[2.0, 2, 30, 30]])] * 2).shape == (2, 16)


def change(model: Any, **values: object) -> Any:
    for path, value in values.items():
        *parents, last = path.split("__")
        setattr(functools.reduce(getattr, parents, model), last, value)
    return model


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("fcos", {"center_sampling_radius": 2.0}, "places within 1.5"),
        ("fcos", {"backbone__fpn__extra_blocks": None}, "levels P6 and P7"),
        ("retinanet", {"transform__image_mean": [0.5] * 3}, "ImageNet's mean"),
        ("retinanet", {"proposal_matcher__high_threshold": 0.6}, "from an overlap of 0.5"),
        ("retinanet", {"head__regression_head___loss_type": "ciou"}, "not ciou"),
        ("retinanet", {"head__classification_head__conv": nn.Sequential(nn.SiLU())}, "towers of convolutions"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, values: dict[str, object], said: str) -> None:
    with torch.device("meta"):
        model = change(small(name), **values)
    with pytest.raises(AcclimateError, match=said):
        from_torchvision(model)
