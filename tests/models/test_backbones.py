"""Backbones against timm's and torchvision's own models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from acclimate.config import ModelConfig
from acclimate.errors import AcclimateError
from acclimate.models.backbones import Backbone, _fold_batch_norm, load_weights
from acclimate.models.detector import build, specify
from acclimate.models.weights import PACKAGED

Norm = Literal["batch", "frozen", "group"]

SMALL = ("test_resnet", "test_efficientnet", "lcnet_050")
"""One with plain BatchNorm, one with BatchNorm and activation in one module, one with both."""


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> nn.Module:
    """The model with statistics and affine weights as training would leave them: none is 0 or 1."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                values.data.uniform_(low, low + 1, generator=generator)
            module.running_mean.data.normal_(generator=generator)
    return model


def weights_file(folder: Path, name: str) -> Path:
    file = folder / f"{name}.pth"
    torch.save(trained(timm.create_model(name)).state_dict(), file)
    return file


def backbone(
    name: str, norm: Norm = "batch", freeze: int = 0, weights: Path | None = None, fold: bool = True
) -> Backbone:
    made = Backbone(name, (4, 8, 16, 32), norm, freeze)
    load_weights(made, name, weights or "none")
    made.settle(fold)
    return made


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("strides", [(8, 16, 32), (4,), (2, 16)])
def test_levels_have_the_stated_strides_and_channels(name: str, strides: tuple[int, ...]) -> None:
    made = Backbone(name, strides, "batch", 0).eval()
    shapes = [tuple(level.shape) for level in made(images())]
    assert shapes == [(2, c, 64 // s, 96 // s) for c, s in zip(made.channels, strides, strict=True)]


@pytest.mark.parametrize("name", SMALL)
def test_stages_behind_the_last_level_are_not_there(name: str) -> None:
    made = Backbone(name, (4, 8), "batch", 0)
    assert made.training
    sum(level.square().mean() for level in made(images())).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_normalisation_is_what_the_weights_expect() -> None:
    config = timm.create_model("lcnet_050").pretrained_cfg
    made = Backbone("lcnet_050", (8,), "batch", 0)
    assert (made.mean, made.std) == (tuple(config["mean"]), tuple(config["std"]))


def test_an_unknown_model_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(AcclimateError, match=r"model\.backbone.*lcnet_49.*lcnet_0"):
        Backbone("lcnet_49", (8,), "batch", 0)


def test_a_model_without_a_pyramid_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: object) -> nn.Module:
        raise RuntimeError(f"features_only not implemented for {name}")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(AcclimateError, match=r"model\.backbone: 'test_resnet' has no feature pyramid"):
        Backbone("test_resnet", (8,), "batch", 0)


def test_a_stride_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(AcclimateError, match=r"model\.strides.*\[2, 4, 8, 16, 32\], not \[64\]"):
        Backbone("test_resnet", (8, 64), "batch", 0)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", SMALL)
def test_weights_by_name_give_timms_own_features(name: str, suffix: str, wrap: str | None, tmp_path: Path) -> None:
    if wrap and suffix == ".safetensors":
        pytest.skip("safetensors holds tensors alone, without a wrapper")
    state = trained(timm.create_model(name)).state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({wrap: state} if wrap else state, file)
    else:
        safetensors.torch.save_file(state, file)
    made = Backbone(name, (4, 8, 16, 32), "batch", 0)
    assert load_weights(made, name, file) == f"file {file.name}"
    full = timm.create_model(name)
    full.load_state_dict(state)
    _, expected = full.eval().forward_intermediates(images())
    found = made.eval()(images())
    assert len(expected) >= len(found)
    for level, other in zip(found, expected[-len(found) :], strict=True):
        torch.testing.assert_close(level, other)


def test_weights_by_order_give_torchvisions_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = trained(torchvision.models.mobilenet_v2()).eval()
    file = tmp_path / "mobilenet_v2.pth"
    torch.save(reference.state_dict(), file)
    made = backbone("mobilenetv2_100", weights=file).eval()
    with torch.no_grad():
        found = made(images())
        for level, end in zip(found, (4, 7, 14, 18), strict=True):
            torch.testing.assert_close(level, reference.features[:end](images()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_torchvisions_classifiers_give_their_own_maps_by_their_own_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = trained(torchvision.models.resnet18()).eval()
    file = tmp_path / "resnet18.pth"
    torch.save(reference.state_dict(), file)
    made = Backbone("torchvision/resnet18", (8, 16), "batch", 0)
    assert load_weights(made, "torchvision/resnet18", file) == "file resnet18.pth"
    made.settle(True)
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images()))))
    expected = reference.layer2(reference.layer1(x))
    for level, other in zip(made.eval()(images()), (expected, reference.layer3(expected)), strict=True):
        torch.testing.assert_close(level, other)
    # Nothing behind the last level is kept.
    assert not any("layer4" in name or "fc" in name for name, _ in made.named_parameters())


def test_torchvisions_maps_have_the_stated_strides_and_the_first_stages_freeze() -> None:
    made = Backbone("torchvision/squeezenet1_1", (4, 8, 16), "batch", 2).eval()
    made.settle(True)
    shapes = [tuple(level.shape) for level in made(images())]
    assert shapes == [(2, c, 64 // s, 96 // s) for c, s in zip(made.channels, (4, 8, 16), strict=True)]
    fixed = {name for name, p in made.named_parameters() if not p.requires_grad}
    assert fixed
    assert all(name.split(".")[3] in {"0", "3", "4"} for name in fixed), fixed


@torch.no_grad()
def test_a_dilated_backbone_sees_between_the_places_of_the_strided_one() -> None:
    """The trous algorithm: every other place of the dilated map is a place of the strided one."""
    torch.manual_seed(0)
    strided = Backbone("test_resnet", (8, 16, 32), "batch", 0)
    dilated = Backbone("test_resnet", (8, 16), "batch", 0, output_stride=16)
    trained(strided)
    dilated.load_state_dict(strided.state_dict())
    coarse, fine = strided.eval()(images())[2], dilated.eval()(images())[1]
    assert fine.shape[-1] == 2 * coarse.shape[-1]
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stride", "says"),
    [
        ("torchvision/resnet17", 32, r"torchvision has no classifier 'resnet17'; near: resnet"),
        ("torchvision/mobilenet_v3_small", 16, r"model\.output_stride: torchvision has no dilated"),
        ("shufflenet_v1_g3", 16, r"model\.output_stride: timm has no dilated"),
    ],
)
def test_what_is_not_there_is_told(name: str, stride: int, says: str) -> None:
    with torch.device("meta"), pytest.raises(AcclimateError, match=says):
        Backbone(name, (8, 16), "batch", 0, output_stride=stride)


@pytest.mark.parametrize(("name", "where"), [("res2net50_26w_4s", "split"), ("shufflenet_v1_g3", "view")])
def test_backbones_that_move_channels_are_not_slimmable_and_say_why(name: str, where: str) -> None:
    options = {"kind": "slimmable", "backbone": name, "image_size": (64, 64), "weights": "none"}
    with torch.device("meta"), pytest.raises(AcclimateError, match=f"cannot be narrowed at '{where}'; slimmable is"):
        build(specify(ModelConfig.model_validate(options), ["a"]))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"model\.weights.*gone\.pth: no such file"):
        backbone("test_resnet", weights=tmp_path / "gone.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", bytes(range(256)) * 8])
def test_a_file_that_is_no_checkpoint_is_an_error(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"notes{suffix}"
    file.write_bytes(content)
    with pytest.raises(AcclimateError, match=r"model\.weights.*notes.*not a state_dict"):
        backbone("test_resnet", weights=file)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3, "best": 0.5}, {"model": 7}, {}])
def test_a_checkpoint_without_tensors_is_an_error(content: object, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save(content, file)
    with pytest.raises(AcclimateError, match=r"model\.weights.*other\.pth"):
        backbone("test_resnet", weights=file)


def test_another_models_weights_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"model\.weights.*lcnet_050\.pth does not fit 'test_resnet'"):
        backbone("test_resnet", weights=weights_file(tmp_path, "lcnet_050"))


def test_a_tensor_of_another_shape_is_an_error_that_names_it(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    file = tmp_path / "changed.pth"
    torch.save(state, file)
    with pytest.raises(AcclimateError, match=r"changed\.pth does not fit 'test_resnet' at 'layer1\.0\.conv1\.weight'"):
        backbone("test_resnet", weights=file)


def test_where_no_weights_are_to_be_had_auto_is_an_error_that_names_the_ways_out(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    made = Backbone("test_resnet", (8,), "batch", 0)
    with pytest.raises(AcclimateError, match=r"model\.weights: no weights of test_resnet.*HF_HUB_OFFLINE") as told:
        load_weights(made, "test_resnet", "auto")
    for way_out in ("model.weights=none", "model.weights=FILE", "acclimate weights test_resnet --to"):
        assert way_out in str(told.value)
    assert "\n" not in str(told.value)
    assert caplog.text == capfd.readouterr().err == ""


def test_packaged_weights_are_found_and_fit() -> None:
    package, name = PACKAGED["tf_efficientnet_lite0"]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    file = Path(found.submodule_search_locations[0]) / name
    made = Backbone("tf_efficientnet_lite0", (8, 16, 32), "batch", 0)
    assert load_weights(made, "tf_efficientnet_lite0", "auto") == f"file {file.name}"
    state = torch.load(file, weights_only=True)
    torch.testing.assert_close(made.body.conv_stem.weight.data, next(iter(state.values())))
    assert any(made.body.bn1.running_mean != 0)


@pytest.mark.parametrize("name", SMALL)
def test_folded_batch_norm_computes_what_frozen_batch_norm_does(name: str, tmp_path: Path) -> None:
    file = weights_file(tmp_path, name)
    plain = backbone(name, weights=file).eval()
    folded = backbone(name, "frozen", weights=file).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for level, expected in zip(folded(images()), plain(images()), strict=True):
        error = (level - expected).abs().max() / expected.abs().max()
        assert error < 1e-4
    assert all(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_frozen_batch_norm_that_stays_a_layer_does_not_move(name: str, tmp_path: Path) -> None:
    file = weights_file(tmp_path, name)
    plain = backbone(name, weights=file).eval()
    kept = backbone(name, "frozen", weights=file, fold=False).train()
    for level, expected in zip(kept(images()), plain(images()), strict=True):
        torch.testing.assert_close(level, expected)
    sum(level.square().mean() for level in kept(images())).backward()
    for part in kept.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.weight.grad is None
            assert part.bias.grad is None
        if isinstance(part, nn.Conv2d):
            assert part.weight.grad is not None
    for key, value in kept.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


def test_a_batch_norm_that_follows_no_convolution_cannot_be_folded() -> None:
    with pytest.raises(AcclimateError, match=r"model\.norm.*norm = 'batch'"):
        _fold_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)))


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_stay_as_they_are_in_training(name: str, norm: Norm, tmp_path: Path) -> None:
    made = backbone(name, norm, freeze=2, weights=weights_file(tmp_path, name))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    before = [level.detach() for level in made.eval()(images())]
    made.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum(level.square().mean() for level in made(images(4))).backward()
        optimizer.step()
    torch.testing.assert_close(made(images())[0], before[0])
    after = made.eval()(images())
    torch.testing.assert_close(after[0], before[0])
    assert all(not torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
    fixed = [parameter for parameter in made.parameters() if not parameter.requires_grad]
    assert fixed
    assert all(parameter.grad is None for parameter in fixed)
    assert after[0].grad_fn is None


def test_without_freezing_every_parameter_gets_a_gradient() -> None:
    made = backbone("test_efficientnet").train()
    sum(level.square().mean() for level in made(images())).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_group_norm_leaves_images_independent_and_keeps_the_convolutions(name: str, tmp_path: Path) -> None:
    file = weights_file(tmp_path, name)
    made = backbone(name, "group", weights=file).train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in made.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in made.modules())
    alone, together = made(images()[:1]), made(images())
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(one, both[:1], rtol=1e-4, atol=1e-5)
    own = {tuple(m.weight.shape): m.weight for m in made.modules() if isinstance(m, nn.Conv2d)}
    saved = list(torch.load(file, weights_only=True).values())
    for shape, weight in own.items():
        assert any(tensor.shape == shape and torch.equal(tensor, weight) for tensor in saved)


def test_group_norm_keeps_the_activation_behind_it() -> None:
    made = backbone("test_efficientnet", "group").eval()
    reference = backbone("test_efficientnet").eval()

    def activations(module: nn.Module) -> int:
        return sum(isinstance(child, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish) for child in module.modules())

    assert activations(made) == activations(reference)
