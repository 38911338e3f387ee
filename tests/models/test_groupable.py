"""Groupable convolutions: the assignment against all there are, the grouped convolution against its origin."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.models import groupable
from acclimate.models.deploy import deploy


def halves(count: int) -> list[np.ndarray]:
    chosen = (set(one) for one in itertools.combinations(range(count), count // 2))
    return [np.array([int(i in one) for i in range(count)]) for one in chosen]


@pytest.mark.parametrize("seed", range(3))
def test_coordinate_descent_comes_near_the_best_of_all_assignments(seed: int) -> None:
    matrix = np.random.default_rng(seed).random((6, 6)) ** 3
    best = max(groupable.kept(matrix, pair) for pair in itertools.product(halves(6), halves(6)))
    found = groupable.assign(matrix, 2)
    assert all(np.bincount(side).tolist() == [3, 3] for side in found)
    assert groupable.kept(matrix, found) >= 0.97 * best


def test_blocks_that_were_shuffled_are_found_again() -> None:
    rng = np.random.default_rng(0)
    matrix = np.kron(np.eye(4), rng.uniform(0.5, 1, (8, 6))) + 0.05 * rng.random((32, 24))
    shuffled = matrix[rng.permutation(32)][:, rng.permutation(24)]
    standing = matrix[np.kron(np.eye(4), np.ones((8, 6))) > 0].sum() / matrix.sum()
    assert groupable.kept(shuffled, groupable.assign(shuffled, 4)) == pytest.approx(standing)


@pytest.mark.parametrize("dead", [False, True])
def test_a_convolution_of_such_weights_becomes_a_grouped_one_that_computes_the_same(dead: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 1)
    groups = np.tile(np.arange(4), 3), np.repeat(np.arange(4), 2)
    with torch.no_grad():
        layer.weight *= torch.from_numpy(np.equal.outer(*groups))[:, :, None, None]
        if dead:
            layer.weight[5] = 0
            layer.weight[:, 2] = 0
    network, x = nn.Sequential(layer, nn.ReLU()).eval(), torch.randn(2, 8, 4, 4)
    expected = network(x)
    deploy(network)
    made = network[0]
    assert isinstance(made, groupable.GatheredConv2d)
    assert made.conv.groups == 4
    assert made.conv.weight.numel() * 4 == layer.weight.numel()
    torch.testing.assert_close(network(x), expected)


def test_other_convolutions_stay() -> None:
    uneven = nn.Conv2d(6, 6, 1)
    with torch.no_grad():
        uneven.weight[:2, 2:] = 0
        uneven.weight[2:, :2] = 0
    for layer in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2), uneven):
        assert groupable.groups_of(layer) is None


def test_openvino_computes_it(tmp_path: Path) -> None:
    """Whose converter takes a gather behind a grouped convolution into the weights as if they had no groups."""
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    layer, groups = nn.Conv2d(16, 16, 1), (np.tile(np.arange(2), 8), np.repeat(np.arange(2), 8))
    with torch.no_grad():
        layer.weight *= torch.from_numpy(np.equal.outer(*groups))[:, :, None, None]
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    deploy(network)
    x, file = torch.rand(1, 3, 8, 8), tmp_path / "model.onnx"
    torch.onnx.export(network, (x,), str(file), dynamo=True, external_data=False, verbose=False)
    computed = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
    np.testing.assert_allclose(computed, network(x).detach().numpy(), atol=1e-5)
