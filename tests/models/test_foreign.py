"""Checkpoints of torchvision's: told by their tensors, taken with the same detections, refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from acclimate.errors import AcclimateError
from acclimate.models import fcos, foreign, retinanet, ssd, two_stage
from acclimate.models.detector import Detector

LITE = "ssdlite320_mobilenet_v3_large"


def state_of(name: str, classes: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return dict(model.state_dict())


@pytest.mark.parametrize("name", foreign.MODELS)
def test_a_model_is_told_by_its_tensors(name: str) -> None:
    assert foreign._recognised(state_of(name, 4), Path(f"{name}-1234.pth")) == name
    assert foreign._count(state_of(name, 4), name) == 4


def equal(left: Detector, right: Detector) -> None:
    """`test_from_torchvision` and `test_ssd_from_torchvision` hold what is converted against torchvision's."""
    assert left.spec == right.spec
    theirs = right.state_dict()
    for key, value in left.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)


def test_a_checkpoint_of_a_training_script_is_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = torchvision.models.get_model(LITE, weights=None, weights_backbone=None, num_classes=3).eval()
    wrapped = {"epoch": 3, "model": {f"module.{key}": value for key, value in model.state_dict().items()}}
    torch.save(wrapped, tmp_path / "last.pth")
    equal(
        foreign.from_file(tmp_path / "last.pth", classes=("car", "person")),
        ssd.from_torchvision(model, ("car", "person")),
    )


@pytest.mark.slow
def test_a_checkpoint_with_frozen_normalisations_is_the_model(tmp_path: Path) -> None:
    """As those that torchvision publishes, which count no batches."""
    torch.manual_seed(0)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3).eval()
    foreign._freeze_norms(model, {}, 1e-5)
    for module in model.backbone.body.modules():
        assert not isinstance(module, torch.nn.BatchNorm2d)
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.bias.normal_()
    torch.save(model.state_dict(), tmp_path / f"{name}-907ea3f9.pth")
    ours = foreign.from_file(tmp_path / f"{name}-907ea3f9.pth")
    assert (ours.spec.norm, ours.spec.image_size) == ("frozen", (320, 320))
    equal(ours, two_stage.from_torchvision(model, (320, 320)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"), [("retinanet_resnet50_fpn", retinanet), ("fcos_resnet50_fpn", fcos)], ids=["retinanet", "fcos"]
)
def test_a_checkpoint_of_a_pyramid_with_towers_is_the_model(name: str, family: Any, tmp_path: Path) -> None:
    """As published: frozen normalisations, and of RetinaNet the towers' layers by their earlier names."""
    torch.manual_seed(0)
    model: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    foreign._freeze_norms(model, {}, 0.0 if name.startswith("retinanet") else 1e-5)
    for module in model.backbone.body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(1e-4, 1e-3)
    state = model.state_dict()
    if name.startswith("retinanet"):
        state = {re.sub(r"conv\.(\d)\.0\.", lambda m: f"conv.{2 * int(m[1])}.", key): v for key, v in state.items()}
        assert "head.regression_head.conv.6.bias" in state
    torch.save(dict(state), tmp_path / "theirs.pth")
    size = (64, 96)
    for names in (None, ("a", "b", "c"), ("a", "b", "c", "d")):
        equal(
            foreign.from_file(tmp_path / "theirs.pth", image_size=size, classes=names),
            family.from_torchvision(model, size, names),
        )


def refused(make: Callable[[Path], object], tmp_path: Path, **options: Any) -> str:
    file = tmp_path / "checkpoint.pth"
    torch.save(make(tmp_path), file)
    with pytest.raises(AcclimateError) as told:
        foreign.from_file(file, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (
            lambda _: {"head.classification_head.cls_logits.weight": torch.zeros(1)},
            {},
            r"is no retinanet_resnet50_fpn of torchvision's",
        ),
        (
            lambda _: {"head.regression_head.bbox_ctrness.weight": torch.zeros(1)},
            {},
            r"is no fcos_resnet50_fpn of torchvision's",
        ),
        (
            lambda _: {"head.classification_head.cls_logits.weight": torch.zeros(1)},
            {"model": "fcos_resnet50_fpn"},
            r"is no fcos_resnet50_fpn of torchvision's",
        ),
        (lambda _: {"roi_heads.keypoint_head.0.weight": torch.zeros(1)}, {}, "Keypoint"),
        (lambda _: {"fc.weight": torch.zeros(1)}, {}, "none of torchvision's detectors"),
        (lambda _: {"epoch": 1}, {}, "no table of named tensors"),
        (lambda _: {"fc.weight": torch.zeros(1)}, {"model": "yolo"}, "--model yolo: choose one of"),
        (lambda _: {"fc.weight": torch.zeros(1)}, {"model": LITE}, f"is no {LITE}"),
        (
            lambda _: {
                "roi_heads.box_predictor.cls_score.weight": torch.zeros(1),
                "backbone.body.0.0.weight": torch.zeros(1),
            },
            {},
            "say which with --model",
        ),
    ],
)
def test_what_is_not_carried_over_is_refused(
    make: Callable[[Path], object], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert re.search(said, refused(make, tmp_path, **options))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(AcclimateError, match=r"notes\.pth: not a state_dict"):
        foreign.from_file(tmp_path / "notes.pth")
    with pytest.raises(AcclimateError, match=r"gone\.pth: no such file"):
        foreign.from_file(tmp_path / "gone.pth")
