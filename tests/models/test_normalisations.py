"""Normalisations against torch's, autograd and their closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from transformers.models.rt_detr.modeling_rt_detr import RTDetrFrozenBatchNorm2d

from acclimate.models.backbones import Backbone
from acclimate.models.deploy import deploy
from acclimate.models.normalisations import MOST, MovingAverageBatchNorm2d, SwitchableNorm2d, centre, normalisation


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("place", "name"), [(0, "instance"), (1, "layer"), (2, "batch")])
def test_switchable_normalisation_with_one_weight_is_torchs(place: int, name: str) -> None:
    layer, x = SwitchableNorm2d(6), 1 + 2 * noise(3, 6, 4, 5)
    for weight in (layer.mean_weight, layer.var_weight):
        weight.data = torch.full((3,), -100.0)
        weight.data[place] = 100.0
    expected = {
        "instance": F.instance_norm(x),
        "layer": F.layer_norm(x, x.shape[1:]),
        "batch": F.batch_norm(x, None, None, training=True),
    }[name]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_switchable_normalisation_is_evaluated_with_the_average_over_batches() -> None:
    layer, reference = SwitchableNorm2d(4, momentum=None), nn.BatchNorm2d(4, momentum=None)
    batches = [noise(5, 4, 6, 6, seed=i) * (i + 1) for i in range(3)]
    for batch in batches:
        layer(batch)
        reference(batch)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    # torch's is the unbiased variance.
    torch.testing.assert_close(layer.running_var, reference.running_var * 179 / 180)
    layer.eval()
    alone, together = layer(batches[0][:1]), layer(batches[0])
    torch.testing.assert_close(alone, together[:1])


def closed(x: Tensor, layer: MovingAverageBatchNorm2d) -> Tensor:
    """Scaled by the batch's own second moment, for autograd."""
    z = x * torch.rsqrt(x.square().mean((0, 2, 3), keepdim=True) + layer.eps)
    return z * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def test_mabn_with_the_batchs_own_statistics_is_what_autograd_says() -> None:
    torch.manual_seed(0)
    layer = MovingAverageBatchNorm2d(3)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    x, target = noise(4, 3, 5, 5).requires_grad_(), noise(4, 3, 5, 5, seed=1)
    gradients = []
    for made in (layer(x), closed(x, layer)):
        gradients.append(torch.autograd.grad((made - target).square().mean(), [x, layer.weight, layer.bias]))
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-7)


def test_mabns_averages_serve_in_both_directions_once_they_are_full() -> None:
    layer = MovingAverageBatchNorm2d(2, momentum=0.25, buffer=2)
    batches = [noise(2, 2, 3, 3, seed=i) for i in range(3)]
    ways = [noise(2, 2, 3, 3, seed=10 + i) for i in range(3)]
    squares = [batch.square().mean((0, 2, 3)) for batch in batches]
    products: list[Tensor] = []
    for batch, way in zip(batches, ways, strict=True):
        x = batch.clone().requires_grad_()
        made = layer(x)
        made.backward(way)
    long = (squares[0] + squares[1]) / 2
    short = (squares[1] + squares[2]) / 2
    deviation = (short + layer.eps).sqrt().view(1, 2, 1, 1)
    ratio = (deviation.flatten() / (long + layer.eps).sqrt()).clamp(1 / MOST, MOST).view(1, 2, 1, 1)
    z = batches[2] / deviation
    torch.testing.assert_close(made, z * ratio)
    # Of the batch before, when the averages were not full: its own second moment, no ratio.
    before = batches[1] * torch.rsqrt(squares[1] + layer.eps).view(1, 2, 1, 1)
    products = [(before * ways[1]).mean((0, 2, 3)), (z * ratio * ways[2]).mean((0, 2, 3))]
    average = (sum(products) / 2).view(1, 2, 1, 1)
    torch.testing.assert_close(x.grad, (ways[2] * ratio - z * average) / deviation)
    torch.testing.assert_close(layer.running_square, 0.75 * long + 0.25 * squares[2])


def test_mabn_folds_to_batch_norm_behind_a_plain_convolution() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), normalisation("moving", 5))
    centre(network)
    weight = network[0].weight
    x = noise(2, 3, 8, 8)
    expected = F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True))
    torch.testing.assert_close(network[0](x), expected)
    for _ in range(3):
        network(x)
    network.eval()
    plain = copy.deepcopy(network)
    deploy(plain)
    assert [type(part) for part in plain] == [nn.Conv2d, nn.BatchNorm2d]
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(network[0].weight, weight)


@pytest.mark.parametrize("frozen", [partial(FrozenBatchNorm2d, eps=1e-3), RTDetrFrozenBatchNorm2d])
def test_frozen_normalisations_of_libraries_fold(frozen: Callable[[int], nn.Module]) -> None:
    """As they stand their product and their sum stay in the graph, where INT8 rounds between them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), frozen(5), nn.ReLU()).eval()
    for name, value in network[1].named_buffers():
        value.copy_(torch.rand(5) * (1e-3 if name == "running_var" else 1))
    x = noise(2, 3, 8, 8)
    expected = network(x)
    deploy(network)
    assert [type(part) for part in network] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("norm", ["switchable", "moving"])
def test_a_backbone_with_it_learns_and_computes_the_same_for_the_device(norm: str) -> None:
    torch.manual_seed(0)
    made = Backbone("test_efficientnet", (8, 16), norm, 0).train()
    assert not any(type(part) is nn.BatchNorm2d for part in made.modules())
    x = noise(2, 3, 32, 32)
    for _ in range(2):
        sum(level.square().mean() for level in made(x)).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())
    made.eval()
    expected = [level.detach() for level in made(x)]
    deploy(made)
    for level, other in zip(made(x), expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-3, atol=1e-4)
