"""The table of methods: what an option does to the detector before anything is trained."""

from __future__ import annotations

import copy

import torch
from torch import nn

from acclimate.adapt.methods import method
from acclimate.config import AdaptConfig, ModelConfig
from acclimate.data.formats import LabelledSet
from acclimate.models.detector import build, specify


def test_frozen_statistics_hold_the_backbones_norm_and_leave_a_weight_for_suppression() -> None:
    detector = build(specify(ModelConfig(backbone="test_resnet", image_size=(64, 64), weights="none"), ["a"]))
    before = copy.deepcopy(detector.backbone.state_dict())
    method(AdaptConfig(teacher=None, statistics="frozen"), detector, LabelledSet("x", "coco", ("a",), ()))
    detector.train()
    images = torch.rand(2, 3, 64, 64) * 255
    sum(level.square().mean() for level in detector.backbone(images)).backward()
    along = []
    for name, part in detector.backbone.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.weight.grad is None, name
            assert torch.equal(part.running_mean, before[f"{name}.running_mean"])
        if isinstance(part, nn.Conv2d) and part.weight.grad.any():
            cosine = (part.weight.grad * part.weight).sum() / part.weight.grad.norm() / part.weight.norm()
            along.append(float(cosine.detach().abs()))
    assert max(along) > 1e-3, "a BatchNorm that trains would leave nothing along any weight"
