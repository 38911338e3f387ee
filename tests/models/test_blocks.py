"""Blocks against convolutions written out as one dense kernel, ShuffleNet against its paper's table, and the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.config import KINDS, ModelConfig
from acclimate.errors import AcclimateError
from acclimate.models import blocks
from acclimate.models.detector import build, specify
from acclimate.models.groupable import GatheredConv2d
from acclimate.models.normalisations import SwitchableNorm2d
from acclimate.models.shufflenet import CHANNELS
from acclimate.models.slimmable import macs

PUBLISHED_MACS_M = {1: 143, 2: 140, 3: 137, 4: 133, 8: 137}
"""Zhang et al. 2018, table 1: ShuffleNet 1x at 224 pixels, by groups."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense_kernel(layer: nn.Conv2d, side: int) -> Tensor:
    """A grouped or dilated convolution's weights as one kernel (O, I, side, side)."""
    whole = torch.zeros(layer.out_channels, layer.in_channels, side, side)
    makes, reads = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    (kernel, step), middle = (layer.kernel_size[0], layer.dilation[0]), side // 2
    places = [middle + (k - kernel // 2) * step for k in range(kernel)]
    for group in range(layer.groups):
        for a, row in enumerate(places):
            for b, column in enumerate(places):
                whole[group * makes : (group + 1) * makes, group * reads : (group + 1) * reads, row, column] = (
                    layer.weight[group * makes : (group + 1) * makes, :, a, b]
                )
    return whole


@torch.no_grad()
def test_poly_scale_convolution_is_a_dense_one_whose_dilation_cycles_over_the_channels() -> None:
    layer, x = blocks.PolyScaleConv2d(8), noise(2, 8, 12, 13)
    kernel = torch.zeros(8, 8, 9, 9)
    for shift, scale in enumerate(layer.scales):
        # The scale's inputs are turned by `shift` parts of two channels.
        kernel += dense_kernel(scale, 9).roll(2 * shift, 1)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, padding=4), rtol=1e-4, atol=1e-5)
    widest = (kernel != 0).nonzero()[:, 2].view(-1)
    assert widest.min() == 0
    assert sum(p.numel() for p in layer.parameters()) == 8 * 8 * 9


@torch.no_grad()
def test_pyramidal_and_heterogeneous_convolutions_are_dense_ones_with_zeros() -> None:
    x = noise(2, 16, 12, 13)
    pyramid = blocks.PyramidalConv2d(16)
    kernel = torch.cat([dense_kernel(level, 9) for level in pyramid.levels])
    torch.testing.assert_close(pyramid(x), F.conv2d(x, kernel, padding=4), rtol=1e-4, atol=1e-5)
    assert [(level.kernel_size[0], level.groups) for level in pyramid.levels] == [(3, 1), (5, 4), (7, 4), (9, 4)]
    mixed = blocks.HeterogeneousConv2d(16)
    kernel = dense_kernel(mixed.wide, 3) + dense_kernel(mixed.narrow, 3)
    torch.testing.assert_close(mixed(x), F.conv2d(x, kernel, padding=1), rtol=1e-4, atol=1e-5)
    # Each filter is wide in one part in four of its inputs.
    assert ((kernel != 0).sum((2, 3)) > 1).sum(1).tolist() == [4] * 16


@torch.no_grad()
def test_self_calibrated_convolution_and_strip_pooling_follow_their_equations() -> None:
    x = noise(2, 8, 16, 12)
    layer = blocks.SelfCalibratedConv2d(8)
    first, second = x.numpy()[:, :4], x[:, 4:]
    pooled = torch.from_numpy(first.reshape(2, 4, 4, 4, 3, 4).mean((3, 5)))
    around = F.conv2d(pooled, layer.around.weight, padding=1).numpy().repeat(4, 2).repeat(4, 3)
    gate = torch.from_numpy(1 / (1 + np.exp(-(first + around))))
    gated = F.conv2d(F.conv2d(x[:, :4], layer.gated.weight, padding=1) * gate, layer.last.weight, padding=1)
    expected = torch.cat([gated, F.conv2d(second, layer.plain.weight, padding=1)], 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)

    strip = blocks.StripPooling(8)
    rows = F.conv1d(x.mean(3), strip.rows.weight[..., 0], strip.rows.bias, padding=1)
    columns = F.conv1d(x.mean(2), strip.columns.weight[:, :, 0], strip.columns.bias, padding=1)
    both = F.relu(rows[..., None] + columns[:, :, None])
    gate = torch.sigmoid(
        torch.einsum("oc,bchw->bohw", strip.gate.weight[..., 0, 0], both) + strip.gate.bias[:, None, None]
    )
    torch.testing.assert_close(strip(x), x * gate, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_channel_shuffle_is_torchs() -> None:
    x = noise(2, 12, 3, 5)
    assert torch.equal(blocks.channel_shuffle(x, 3), F.channel_shuffle(x, 3))


@pytest.mark.parametrize("groups", list(CHANNELS))
def test_shufflenet_computes_as_much_as_its_paper_says(groups: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"shufflenet_v1_g{groups}")
    assert macs(model, image_size=(224, 224)) / 1e6 == pytest.approx(PUBLISHED_MACS_M[groups], rel=0.012)


def config(**options: Any) -> ModelConfig:
    values = {"backbone": "test_efficientnet", "image_size": (64, 64), "channels": 16, "depth": 1, "weights": "none"}
    return ModelConfig.model_validate({"conv": "depthwise", **values, **options})


@pytest.mark.parametrize(
    "options",
    [
        *({"conv": conv} for conv in (*blocks.CONVOLUTIONS, "ordinary") if conv != "depthwise"),
        {"context": "strip"},
        {"shared_tower": True},
        {"conv": "ordinary", "shared_tower": True},
    ],
    ids=str,
)
def test_every_layer_of_a_detector_with_such_blocks_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector, plain = (build(specify(config(**one), ["a", "b"])) for one in (options, {}))
    assert macs(detector) != macs(plain)
    sum(output.square().mean() for output in detector(noise(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in detector.parameters())


def test_blocks_and_the_like_are_exported(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    made = [make(16) for make in (*blocks.CONVOLUTIONS.values(), *blocks.CONTEXTS.values(), SwitchableNorm2d)]
    groups = np.tile(np.arange(4), 4), np.repeat(np.arange(4), 4)
    whole = nn.Sequential(*made, GatheredConv2d(nn.Conv2d(16, 16, 1), groups)).eval()
    x = noise(1, 16, 8, 12)
    program = torch.onnx.export(whole, (x,), dynamo=True, verbose=False, optimize=False)
    program.save(tmp_path / "blocks.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "blocks.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, whole(x).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_blocks_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(AcclimateError, match=r"model\.conv: a pyramid convolution .*model\.kind=slimmable"):
        specify(config(kind="slimmable", conv="pyramid"), ["a"])
    with pytest.raises(AcclimateError, match=r"model\.context: a ssd detector has no such blocks"):
        specify(config(kind="ssd", context="strip"), ["a"])
    with pytest.raises(AcclimateError, match=r"model\.shared_tower: a ssd detector has no such blocks"):
        specify(config(kind="ssd", shared_tower=True), ["a"])


def test_ordinary_convolutions_are_the_default_of_kinds_that_have_blocks() -> None:
    for kind in KINDS:
        if kind != "transformers":
            backbone = None if kind == "supernet" else "tf_efficientnet_lite0"
            made = specify(config(kind=kind, conv=None, backbone=backbone, image_size=(320, 320)), ["a"])
            assert made.conv == ("ordinary" if kind in ("dense", "slimmable", "supernet", "zoom") else "depthwise")
    zoomed = build(specify(config(kind="zoom", conv=None, image_size=(128, 128)), ["a"]))
    assert zoomed.inner.spec.conv == "ordinary"  # type: ignore[union-attr]


@pytest.mark.parametrize("shared", [False, True])
def test_ordinary_convolutions_are_counted_by_their_formula(shared: bool) -> None:
    """Of pyramid and head: a 3x3 convolution over 16 channels for each block, at each of 8x8 + 4x4 + 2x2 places."""
    places, block, predictions = 64 + 16 + 4, 9 * 16 * 16, 16 * (2 + 4)
    detector = build(specify(config(conv="ordinary", shared_tower=shared, depth=2), ["a", "b"]))
    less = build(specify(config(conv="ordinary", shared_tower=shared, depth=0), ["a", "b"]))
    assert macs(detector) - macs(less) == places * block * (2 if shared else 4)
    assert macs(less) - macs(build(specify(config(depth=0), ["a", "b"]))) == places * (block - 9 * 16 - 16 * 16)
    assert macs(less) > places * (block + predictions)


def test_one_tower_is_read_by_both_predictions() -> None:
    torch.manual_seed(0)
    detector = build(specify(config(shared_tower=True), ["a", "b"])).eval()
    levels = [noise(1, 16, 8 // 2**i, 8 // 2**i) for i in range(3)]
    logits, distances = detector.head(levels)
    level = detector.class_tower[0](levels[0], 0)
    torch.testing.assert_close(logits[:, :64], detector.classify(level).flatten(2).transpose(1, 2))
    torch.testing.assert_close(distances[:, :64], detector.regress(level).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("options", [{"conv": "ordinary"}, {"conv": "ordinary", "shared_tower": True}], ids=str)
def test_ordinary_convolutions_can_be_narrowed(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    spec = specify(config(kind="slimmable", backbone="tf_efficientnet_lite0", **options), ["a", "b"])
    bank = build(spec).eval()
    whole = macs(bank)
    bank.set_width(0.5)  # type: ignore[attr-defined]
    image = noise(1, 3, 64, 64)
    plain = bank.plain().eval()
    assert macs(plain) == macs(bank) < 0.5 * whole
    for own, cut in zip(bank(image), plain(image), strict=True):
        torch.testing.assert_close(own, cut, rtol=1e-3, atol=1e-3)
