"""Slimmable networks against the plain networks of timm and torch that their slices are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acclimate.config import ModelConfig, SlimmableConfig
from acclimate.edge.engines import engine
from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.export.onnx import Onnx
from acclimate.models.channels import follow, round_channels, sort
from acclimate.models.dense import DenseDetector
from acclimate.models.detector import build, load, parameters, save, specify
from acclimate.models.slimmable import (
    SlimmableBatchNorm2d,
    SlimmableConv2d,
    SlimmableDetector,
    SlimmableDetectorSpec,
    SlimmableLinear,
    macs,
)
from acclimate.models.statistics import recalibrate
from as_trained import trained

CHOICES = (0.25, 0.5, 0.75, 1.0)
BACKBONES = ("test_efficientnet", "test_resnet")
"""Inverted residuals with squeeze and excitation; basic blocks."""


def spec(backbone: str = "test_efficientnet", **changes: Any) -> SlimmableDetectorSpec:
    values: dict[str, Any] = {
        "kind": "slimmable", "classes": ("a", "b"), "image_size": (64, 64), "backbone": backbone,
        "strides": (8, 16, 32), "channels": 32, "depth": 1, "choices": CHOICES,
    }  # fmt: skip
    return SlimmableDetectorSpec(**{**values, **changes})


def bank(backbone: str = "test_efficientnet", **changes: Any) -> SlimmableDetector:
    torch.manual_seed(0)
    made = trained(SlimmableDetector(spec(backbone, **changes)))
    assert isinstance(made, SlimmableDetector)
    return made.eval()


BANKS = {name: bank(name) for name in BACKBONES}
IMAGES = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def equal(found: Any, wanted: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@given(
    st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 5]), st.integers(1, 2), st.booleans(), st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_a_convolution_is_the_one_of_its_leading_channels(
    reads: int, makes: int, kernel: int, stride: int, bias: bool, same: bool
) -> None:
    plain: nn.Conv2d
    if same:
        plain = Conv2dSame(16, 32, kernel, stride, bias=bias)
    else:
        plain = nn.Conv2d(16, 32, kernel, stride, kernel // 2, bias=bias)
    layer = SlimmableConv2d.of(plain)
    x = torch.randn(2, 16, 9, 8)
    assert torch.equal(layer(x), plain(x))
    layer.slim(8 * makes)
    x = x[:, : 4 * reads].contiguous()
    # Inputs that are 0 say what the others alone give.
    expected = plain(F.pad(x, (0, 0, 0, 0, 0, 16 - 4 * reads)))[:, : 8 * makes]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads", [8, 16])
def test_a_slice_keeps_the_memory_format(reads: int) -> None:
    layer = SlimmableConv2d(16, 16, 3, padding=1)
    x = torch.randn(2, reads, 5, 5)
    layer.slim(8)
    expected = layer(x)
    found = layer.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("groups", "makes"), [(16, 16), (16, 32), (4, 16), (2, 8)])
def test_a_grouped_convolution_keeps_its_leading_groups(groups: int, makes: int) -> None:
    plain = nn.Conv2d(16, makes, 3, groups=groups, bias=False)
    x = torch.randn(2, 8, 5, 5)
    expected = plain(torch.cat([x, torch.randn(2, 8, 5, 5)], 1))[:, : makes // 2]
    torch.testing.assert_close(SlimmableConv2d.of(plain)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_linear_layer_is_the_one_of_its_leading_features() -> None:
    layer = SlimmableLinear(12, 8)
    layer.slim(3)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x), x @ layer.weight[:3, :5].T + layer.bias[:3])


@given(st.integers(1, 400), st.floats(0.01, 1), st.sampled_from([1, 4, 8, 24]))
def test_channels_are_rounded_to_the_nearest_multiple(size: int, ratio: float, divisor: int) -> None:
    found = round_channels(size, ratio, divisor)
    assert 1 <= found <= size
    assert found == size or found % divisor == 0
    assert abs(found - size * ratio) <= max(divisor / 2, divisor - size * ratio) + 1e-6
    assert round_channels(size, 1.0, divisor) == size


@given(st.sampled_from(BACKBONES), st.lists(st.sampled_from(CHOICES), min_size=6, max_size=6))
@settings(max_examples=6, deadline=None)
def test_what_is_extracted_is_the_slice_to_the_last_bit(backbone: str, widths: list[float]) -> None:
    made = BANKS[backbone]
    made.set_width(widths)
    plain = made.extract()
    assert not any(isinstance(p, SlimmableConv2d | SlimmableBatchNorm2d | SlimmableLinear) for p in plain.modules())
    assert type(plain) is DenseDetector
    assert plain.spec.widths == tuple(widths)
    with torch.no_grad():
        assert equal(plain(IMAGES), made(IMAGES))
        assert equal(made.extract(1.0).features(IMAGES), _at(made, 1.0).features(IMAGES))


def _at(made: SlimmableDetector, width: float) -> SlimmableDetector:
    made.set_width(width)
    return made


def test_what_is_extracted_shares_no_memory() -> None:
    made = bank()
    plain = made.extract(0.5)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    for value in made.state_dict().values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "norm"), [(name, "batch") for name in (*BACKBONES, "lcnet_050")] + [("test_efficientnet", "frozen")]
)
def test_the_full_width_of_sorted_weights_is_the_plain_detector(tmp_path: Path, backbone: str, norm: str) -> None:
    file = tmp_path / "weights.pth"
    torch.save(trained(timm.create_model(backbone)).state_dict(), file)
    torch.manual_seed(0)
    plain = DenseDetector(spec(backbone, kind="dense", norm=norm), file).eval()
    torch.manual_seed(0)
    slim = build(spec(backbone, norm=norm), file).eval()
    assert isinstance(slim, SlimmableDetector)
    with torch.no_grad():
        for ours, theirs in zip(slim.features(IMAGES), plain.features(IMAGES), strict=True):
            assert theirs.std() > 0.05 * theirs.mean().abs()
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        moved = [a for a, b in zip(slim.backbone(IMAGES), plain.backbone(IMAGES), strict=True) if not a.allclose(b)]
    assert moved, "nothing was sorted"


class Grouped(nn.Module):
    """A residual group, a grouped convolution and a squeeze-and-excitation gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.squeeze, self.gate = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.second = nn.Conv2d(24, 24, 1)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        y = self.grouped(x)
        y = y * self.gate(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        z: Tensor = self.last((x + self.second(y)).mean((2, 3)))
        return z


def test_channels_are_sorted_by_importance_and_the_function_stays() -> None:
    torch.manual_seed(0)
    net = trained(Grouped()).eval()
    channels = follow(net, {"all": ""})
    # The grouped convolution and the sum put all but the squeezed channels into one space, of whole groups.
    space = channels.spaces[channels.layers["second"][1]]
    assert (space.size, space.unit, channels.layers["grouped"]) == (24, 6, channels.layers["second"])
    assert channels.spaces[channels.layers["last"][1]].stage is None
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    sort(net, channels)
    torch.testing.assert_close(net(x), before)
    read = sum(layer.weight.abs().transpose(0, 1).flatten(1).sum(1) for layer in (net.squeeze, net.second, net.last))
    assert (read.view(4, 6).sum(1).diff() <= 0).all()
    assert (net.gate.weight.abs().sum((0, 2, 3)).diff() <= 0).all()


def test_channels_that_nothing_reads_are_sorted_by_their_scale() -> None:
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    assert isinstance(net[1], nn.BatchNorm2d)
    wanted = sorted(net[1].weight.abs().tolist(), reverse=True)
    # What stands behind may have weights that say nothing yet.
    sort(net, follow(net, {"all": ""}), "1")
    assert net[1].weight.abs().tolist() == wanted


def test_channels_that_are_concatenated_or_in_groups_are_refused() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(x), self.layer(x)], 1)

    with pytest.raises(AcclimateError, match="cannot be narrowed at 'cat'"):
        follow(Joined(), {"all": ""})
    with pytest.raises(AcclimateError, match=r"cannot be narrowed at .*norm = 'batch' or 'frozen'"):
        SlimmableDetector(spec(norm="group"))


@pytest.mark.parametrize(
    ("width", "message"),
    [(0.3, "0.3 of stride2 is none of 0.25, 0.5"), ((1.0, 0.5), "2 are given for the 6 stages")],
)
def test_a_bad_width_is_an_error_that_names_it(width: Any, message: str) -> None:
    made = BANKS["test_efficientnet"]
    with pytest.raises(AcclimateError, match=message):
        made.set_width(width)
    with pytest.raises(AcclimateError, match=message):
        macs(made, width)
    with pytest.raises(AcclimateError, match="spec: widths must be 6, for stride2"):
        DenseDetector(spec(kind="dense", widths=(0.5,)))


def test_a_narrow_detector_of_pretrained_weights_is_the_slice(tmp_path: Path) -> None:
    file, widths = tmp_path / "weights.pth", (1.0, 0.25, 0.5, 0.75, 0.5, 0.5)
    torch.save(trained(timm.create_model("test_efficientnet")).state_dict(), file)
    torch.manual_seed(0)
    narrow = build(spec(kind="dense", widths=widths), file).eval()
    torch.manual_seed(0)
    made = build(spec(), file).eval()
    assert isinstance(made, SlimmableDetector)
    with torch.no_grad():
        assert equal(narrow.features(IMAGES), made.extract(widths).features(IMAGES))


@pytest.mark.slow
def test_what_a_bank_exports_is_the_slice_of_its_width(tmp_path: Path) -> None:
    made = bank("lcnet_050")
    made.set_width((0.5, 0.5, 0.75, 0.5, 0.25, 1.0))
    artifact = Onnx().export(made, tmp_path, "fp32", [])
    found = engine("onnx").load(artifact, 1)(IMAGES[:1].numpy())
    assert artifact.manifest.notes.macs_m == round(macs(made) / 1e6, 3)
    assert artifact.manifest.notes.parameters == parameters(made.extract())
    with torch.no_grad():
        for ours, theirs in zip(found, made(IMAGES[:1]), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-3)


def test_a_configuration_asks_for_a_bank() -> None:
    config = ModelConfig(
        kind="slimmable", backbone="lcnet_050", image_size=(64, 64), slimmable=SlimmableConfig(choices=(0.5, 1.0))
    )
    made = build(specify(config, ["a"]))
    assert isinstance(made, SlimmableDetector)
    assert made.choices == (0.5, 1.0)
    assert made.stages == ("stride2", "stride4", "stride8", "stride16", "stride32", "head")


def test_what_is_extracted_is_saved_and_loaded(tmp_path: Path) -> None:
    plain = BANKS["test_efficientnet"].extract((1.0, 0.25, 0.5, 0.75, 0.5, 0.25))
    save(plain, tmp_path)
    loaded = load(tmp_path)
    assert loaded.spec == plain.spec
    with torch.no_grad():
        assert equal(loaded(IMAGES), plain(IMAGES))


def test_a_bank_is_saved_and_loaded(tmp_path: Path) -> None:
    made = BANKS["test_efficientnet"]
    made.set_width(0.5)
    save(made, tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, SlimmableDetector)
    assert loaded.widths == (1.0,) * 6
    loaded.set_width(0.5)
    with torch.no_grad():
        assert equal(loaded(IMAGES), made(IMAGES))


def test_only_the_full_width_trains_the_running_statistics() -> None:
    made = bank().train()
    made.set_width((0.5, 1.0, 0.5, 1.0, 0.5, 1.0))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        narrow = made(IMAGES)
        assert equal(narrow, made.extract()(IMAGES))
        assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
        made.set_width(1.0)
        made(IMAGES)
    moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert moved == {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_a_narrow_pass_trains_the_leading_channels_alone() -> None:
    made = bank().train()
    made.set_width(0.25)
    sum(raw.square().mean() for raw in made(IMAGES)).backward()
    for name, (reads, makes) in made.channels.counts(made.widths, 8).items():
        layer = made.get_submodule(name)
        grad = layer.weight.grad
        assert grad is not None
        assert grad[makes:].abs().sum() == 0
        if grad.ndim > 1 and getattr(layer, "groups", 1) == 1:
            assert grad[:, reads:].abs().sum() == 0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 200, (64, 64, 3), np.uint8))
    return paths


def test_a_width_takes_statistics_of_its_own(files: list[Path]) -> None:
    made = bank()
    # A stage of all of its channels still sees what narrower ones give it.
    made.set_width((0.5, 0.5, 1.0, 0.5, 1.0, 0.25))
    stale, plain = made.extract(), made.extract()
    full = {name: value.clone() for name, value in made.state_dict().items()}
    recalibrate(made, files)
    recalibrate(plain, files)
    canvases = np.stack([letterbox(read_image(path), (64, 64))[0] for path in files])
    seen = torch.from_numpy(canvases).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        assert equal(made(seen), plain(seen))
        assert equal(made(seen), made.extract()(seen))
        assert not equal(made(seen), stale(seen))
        assert all(torch.equal(value, full[name]) for name, value in made.state_dict().items())
        copied = copy.deepcopy(made)
        made.set_width(made.widths)
        assert equal(made(seen), copied(seen))
        made.set_width(1.0)
        made.set_width(copied.widths)
        assert equal(made(seen), stale(seen))
        # Training makes them stale.
        copied.train()(seen)
        assert equal(copied.eval()(seen), stale(seen))


def test_recalibration_at_full_width_is_that_of_the_plain_detector(files: list[Path]) -> None:
    made = bank()
    plain = made.extract()
    recalibrate(made, files[:4])
    recalibrate(plain, files[:4])
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in plain.state_dict().items())


def test_frozen_statistics_are_folded_when_a_slice_is_extracted() -> None:
    made = bank(norm="frozen").train()
    before = {name: value.clone() for name, value in made.backbone.named_buffers()}
    made.set_width((0.5, 0.75, 0.5, 1.0, 0.5, 0.5))
    made.features(IMAGES)[0].mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in made.backbone.named_buffers())
    assert made.backbone.body.bn1.weight.grad is not None
    made.eval()
    plain = made.extract()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in plain.backbone.modules())
    with torch.no_grad():
        for ours, theirs in zip(plain.features(IMAGES), made.features(IMAGES), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_first_stages_stay_frozen() -> None:
    made = bank(freeze=2).train()
    fixed = {name for name, value in made.named_parameters() if not value.requires_grad}
    plain = made.extract(0.5)
    assert fixed
    assert fixed == {name for name, value in plain.named_parameters() if not value.requires_grad}
    assert not made.backbone.body.bn1.training
    made.set_width(0.5)
    before = made.backbone.body.bn1.running_mean.clone()
    made(IMAGES)
    assert torch.equal(made.backbone.body.bn1.running_mean, before)


def test_a_copy_has_a_width_of_its_own() -> None:
    made = BANKS["test_efficientnet"]
    made.set_width(1.0)
    average = copy.deepcopy(made)
    average.set_width(0.25)
    assert (made.widths, average.widths) == ((1.0,) * 6, (0.25,) * 6)
    with torch.no_grad():
        wide, narrow = made.features(IMAGES), average.features(IMAGES)
    assert [(a.shape[1], b.shape[1]) for a, b in zip(wide, narrow, strict=True)] == [(32, 8)] * 3


@pytest.mark.parametrize("width", [0.25, (1.0, 0.5, 0.25, 0.75, 0.5, 0.5), 1.0])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_macs_are_those_that_torch_counts_and_size_is_the_extracted_detectors(backbone: str, width: Any) -> None:
    made = BANKS[backbone]
    made.set_width(0.5)
    plain = made.extract(width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(IMAGES[:1])
    counted = counter.get_total_flops() // 2
    assert counted == macs(made, width) == macs(plain) == macs(plain.spec)
    assert made.size(width) == parameters(plain)
    assert made.widths == (0.5,) * 6
