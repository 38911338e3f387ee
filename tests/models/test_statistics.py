"""Running statistics, taken anew from unlabelled images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, DetectorSpec, build
from acclimate.models.statistics import recalibrate, unheard


def detector(norm: str = "batch", freeze: int = 0) -> Detector:
    torch.manual_seed(0)
    return build(
        DetectorSpec(
            classes=("a",), image_size=(64, 64), backbone="test_efficientnet", strides=(8, 16), channels=16, depth=1,
            norm=norm, freeze=freeze,
        )
    )  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(100, 256, (48, 64, 3), np.uint8))
    return paths


def first_norm(made: Detector) -> nn.BatchNorm2d:
    return next(part for part in made.modules() if isinstance(part, nn.BatchNorm2d))


def test_the_statistics_are_those_of_the_images(images: list[Path]) -> None:
    made = detector()
    norm = first_norm(made)
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    made.train()
    recalibrate(made, images[:8])
    handle.remove()
    (activations,) = seen
    wanted = np.stack([letterbox(read_image(path), (64, 64))[0] for path in images[:8]])
    assert len(activations) == len(wanted)
    torch.testing.assert_close(norm.running_mean, activations.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, activations.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_weights_modes_and_momenta_stay(images: list[Path]) -> None:
    made = detector(freeze=1)
    before = {name: value.clone() for name, value in made.named_parameters()}
    made.train()
    modes = [part.training for part in made.modules()]
    momenta = [part.momentum for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    recalibrate(made, images)
    assert [part.training for part in made.modules()] == modes
    assert [part.momentum for part in made.modules() if isinstance(part, nn.BatchNorm2d)] == momenta
    assert all(torch.equal(value, before[name]) for name, value in made.named_parameters())


def test_frozen_statistics_stay(images: list[Path]) -> None:
    made = detector(freeze=1).train()
    frozen = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d) and not part.training]
    assert frozen
    before = [part.running_mean.clone() for part in frozen]
    recalibrate(made, images)
    assert all(torch.equal(part.running_mean, mean) for part, mean in zip(frozen, before, strict=True))


def test_without_batch_norm_nothing_is_read(tmp_path: Path) -> None:
    recalibrate(detector("group"), [tmp_path / "missing.png"])


def test_images_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"missing\.png"):
        recalibrate(detector(), [tmp_path / "missing.png"])


def test_what_is_unheard_is_normalised_by_its_own_batch_and_leaves_no_trace() -> None:
    made = detector().train()
    norm = first_norm(made)
    before = norm.running_mean.clone()
    pictures = 255 * torch.rand(2, 3, 64, 64)
    plain = made(pictures)
    assert not torch.equal(norm.running_mean, before)
    heard, momentum = norm.running_mean.clone(), norm.momentum
    with unheard(made):
        again = made(pictures)
    assert torch.equal(norm.running_mean, heard)
    assert norm.momentum == momentum
    torch.testing.assert_close(plain, again)
