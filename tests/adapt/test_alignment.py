"""Alignment to a frozen encoder: the cosine distance, what it trains and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_teacher import batch, detector

from acclimate.adapt.alignment import Alignment, distance
from acclimate.adapt.objective import Objective
from acclimate.config import AlignmentConfig
from acclimate.data.formats import LabelledSet
from acclimate.errors import AcclimateError
from acclimate.models.detector import DetectorSpec, build
from acclimate.models.plain_vit import PlainVisionTransformer

NONE = LabelledSet("none", "none", ("a", "b"), (), ())
VIT = "vit_tiny_patch16_224"


def test_the_distance_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(2, 5, 3, 4, generator=generator) for _ in range(2))
    dots = (own * other).sum(1) / (own.norm(dim=1) * other.norm(dim=1))
    torch.testing.assert_close(distance(own, other), (1 - dots).mean())
    assert float(distance(own, 3 * own)) == pytest.approx(0, abs=1e-6)
    assert float(distance(own, -own)) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("encoder", ["resnet10t", VIT])
def test_it_trains_the_features_and_nothing_of_the_encoder(encoder: str) -> None:
    made = detector()
    term = Alignment.create(AlignmentConfig(encoder=encoder, weights="none", weight=0.5), made, NONE)
    objective = Objective(made, [term], 0.9, warm=False).train()
    losses = objective(batch(1, labelled=True), batch(2), 1.0)
    (loss,) = losses.values()
    assert 0 < float(loss) < 1
    loss.backward()
    assert term.project.weight.grad is not None
    assert any(parameter.grad is not None for parameter in made.backbone.parameters())
    assert all(parameter.grad is None for parameter in term._encoder[0].parameters())
    # The encoder is in no checkpoint, and in no optimiser.
    assert {name for name, _ in term.named_parameters()} == {"project.weight", "project.bias"}
    assert set(term.state_dict()) == {"project.weight", "project.bias"}
    optimiser = torch.optim.SGD(objective.parameters(), 0.5)
    for _ in range(8):
        optimiser.zero_grad()
        now = sum(objective(batch(1, labelled=True), batch(2), 1.0).values(), torch.zeros(()))
        now.backward()
        optimiser.step()
    assert float(now) < float(loss)


def test_the_encoder_sees_the_weak_view_as_its_weights_want_it() -> None:
    term = Alignment.create(AlignmentConfig(encoder=VIT, weights="none"), detector(), NONE)
    (encoder,) = term._encoder
    images = batch(3).weak
    expected = encoder((images / 255 - 0.5) / 0.5)[0]
    torch.testing.assert_close(term._encoded(images), expected)
    assert expected.shape == (2, 192, 4, 4)


def test_a_stride_that_is_not_there_is_one_line() -> None:
    with pytest.raises(AcclimateError, match="the strides 8, 16, not 32"):
        Alignment.create(AlignmentConfig(encoder="resnet10t", weights="none", stride=32), detector(), NONE)


@pytest.mark.parametrize("name", [VIT, "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_a_frozen_transformer_stands_under_a_pyramid(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = DetectorSpec(
        classes=("a",), image_size=(64, 96), backbone=name, strides=(8, 16, 32), channels=16, depth=0, start="random"
    )
    made = build(spec).train()
    levels = made.features(torch.rand(2, 3, 64, 96) * 255)
    assert [tuple(level.shape[-2:]) for level in levels] == [(8, 12), (4, 6), (2, 3)]
    body = made.backbone.body
    assert isinstance(body, PlainVisionTransformer)
    assert not any(parameter.requires_grad for parameter in body.encoder.parameters())
    assert not body.encoder.training
    sum(level.sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in body.levels.parameters())
    # The map is the encoder's own last one: its tokens without the prefix, on the grid.
    images = torch.rand(1, 3, 64, 96)
    patch = body.encoder.patch_embed.patch_size[0]
    scaled = F.interpolate(images, (4 * patch, 6 * patch), mode="bilinear", antialias=True) if patch != 16 else images
    with torch.no_grad():
        tokens = body.encoder.forward_features(scaled)[:, body.encoder.num_prefix_tokens :]
        grid = tokens.transpose(1, 2).unflatten(2, (4, 6))
        torch.testing.assert_close(body.patches(images), grid, rtol=1e-4, atol=1e-4)


def test_weights_of_an_encoder_are_taken_from_a_file(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    theirs = timm.create_model(VIT)
    file = tmp_path / "vit.pth"
    torch.save(theirs.state_dict(), file)
    spec = DetectorSpec(classes=("a",), image_size=(64, 64), backbone=VIT, strides=(16,), channels=16, depth=0)
    made = build(spec, file)
    own = made.backbone.body.encoder.state_dict()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in own.items())
    assert made.spec.start == "file vit.pth"
