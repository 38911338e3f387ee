"""Specification, saving and loading: what is read back is what was written, and damage is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from torch import nn

from acclimate import machine
from acclimate.config import ModelConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import (
    PRESETS,
    Detector,
    DetectorSpec,
    accelerator,
    build,
    device_name,
    device_of,
    load,
    load_weights,
    parameters,
    save,
    save_weights,
    specify,
    to_device,
)


def spec(**changes: Any) -> DetectorSpec:
    values: dict[str, Any] = {
        "classes": ("car", "person"), "image_size": (64, 96), "backbone": "test_efficientnet", "strides": (8, 16, 32),
        "channels": 16, "depth": 1,
    }  # fmt: skip
    return DetectorSpec(**{**values, **changes})


def trained(norm: Literal["batch", "frozen", "group"] = "batch", freeze: int = 0) -> Detector:
    """A detector whose statistics have moved."""
    torch.manual_seed(3)
    detector = build(spec(norm=norm, freeze=freeze))
    with torch.no_grad():
        detector.train()(255 * torch.rand(2, 3, 64, 96))
        for parameter in detector.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return detector.eval()


def images() -> torch.Tensor:
    return 255 * torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("changes", [{}, {"norm": "frozen", "freeze": 3, "start": "timm x"}, {"strides": (4,)}])
def test_a_specification_survives_json(changes: dict[str, Any]) -> None:
    made = spec(**changes)
    assert DetectorSpec.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("size", sorted(PRESETS))
def test_a_size_names_a_preset(size: Literal["nano", "tiny", "small"]) -> None:
    made = specify(ModelConfig(size=size), ["a"])
    assert (made.backbone, made.channels, made.depth) == PRESETS[size]
    assert made.strides == (8, 16, 32)


def test_what_is_given_overrides_the_preset() -> None:
    config = ModelConfig(backbone="lcnet_050", channels=24, depth=0, strides=(16, 32), norm="group", freeze=1)
    made = specify(config, ["a", "b"])
    assert (made.backbone, made.channels, made.depth, made.strides) == ("lcnet_050", 24, 0, (16, 32))
    assert (made.norm, made.freeze, made.classes) == ("group", 1, ("a", "b"))


@pytest.mark.parametrize("size", [(320, 330), (100, 320)])
def test_a_canvas_that_the_largest_stride_does_not_divide_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(AcclimateError, match=rf"model\.image_size: {size[0]} x {size[1]}.*32"):
        specify(ModelConfig(image_size=size), ["a"])


@pytest.mark.parametrize("strides", [(16, 8, 32), (8, 8, 32)])
def test_strides_must_rise(strides: tuple[int, ...]) -> None:
    with pytest.raises(AcclimateError, match=r"model\.strides.*must rise"):
        specify(ModelConfig(strides=strides), ["a"])


def test_a_set_without_classes_is_an_error() -> None:
    with pytest.raises(AcclimateError, match="names no class"):
        specify(ModelConfig(), [])


def test_an_unknown_kind_is_an_error_that_names_those_known() -> None:
    with pytest.raises(AcclimateError, match=r"'yolo' \(known: dense"):
        build(spec(kind="yolo"))


@pytest.mark.parametrize("freeze", [0, 2])
@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_what_is_loaded_computes_what_was_saved(
    norm: Literal["batch", "frozen", "group"], freeze: int, tmp_path: Path
) -> None:
    detector = trained(norm, freeze)
    save(detector, tmp_path)
    again = load(tmp_path)
    assert again.spec == detector.spec
    assert not again.training
    with torch.inference_mode():
        for found, expected in zip(again(images()), detector(images()), strict=True):
            assert torch.equal(found, expected)
    trainable = [name for name, parameter in again.named_parameters() if parameter.requires_grad]
    assert trainable == [name for name, parameter in detector.named_parameters() if parameter.requires_grad]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "spec.json"]


def test_channels_last_weights_are_saved_too(tmp_path: Path) -> None:
    detector = trained().to(memory_format=torch.channels_last)
    save(detector, tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert state.keys() == detector.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in detector.state_dict().items())


def test_another_checkpoint_of_the_run_can_be_picked(tmp_path: Path) -> None:
    detector = trained()
    save(detector, tmp_path)
    with torch.no_grad():
        next(iter(detector.parameters())).zero_()
    save_weights(detector, tmp_path / "checkpoints" / "step_000004.safetensors")
    again = load(tmp_path, tmp_path / "checkpoints" / "step_000004.safetensors")
    assert not next(iter(again.parameters())).any()
    assert next(iter(load(tmp_path).parameters())).any()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise", "folder"])
def test_damaged_weights_are_an_error_that_names_the_file(damage: str, tmp_path: Path) -> None:
    save(trained(), tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": content[::-1]}[damage])
    with pytest.raises(AcclimateError, match=r"model\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("changes", [{"channels": 24}, {"depth": 2}, {"classes": ("a",)}, {"backbone": "lcnet_050"}])
def test_weights_of_another_architecture_are_an_error_that_names_a_tensor(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    save_weights(trained(), tmp_path / "model.safetensors")
    other = build(spec(**changes))
    with pytest.raises(AcclimateError, match=r"model\.safetensors.*(weight|bias)") as caught:
        load_weights(other, tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"colour": "red"}, "colour"), ({"channels": "many"}, "channels"), ({"norm": "layer"}, "norm")],
)
def test_a_wrong_specification_is_an_error_that_names_the_key(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    save(trained(), tmp_path)
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(AcclimateError, match=rf"spec\.json.*{named}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_damaged_specification_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(AcclimateError, match=r"spec\.json"):
        load(tmp_path)


def test_parameters_are_counted() -> None:
    assert parameters(nn.Linear(3, 4)) == 16
    assert device_of(nn.Linear(3, 4)) == torch.device("cpu")


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "meta"])
def test_whatever_accelerator_there_is_is_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    assert accelerator() == torch.device(kind)
    moved: list[torch.device] = []
    monkeypatch.setattr(nn.Linear, "to", lambda self, device: moved.append(device) or self)
    layer = nn.Linear(1, 1)
    assert to_device(layer) is layer
    assert moved == [torch.device(kind)]


def test_without_an_accelerator_the_processor_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert accelerator() is None
    assert to_device(nn.Linear(1, 1)).weight.device == torch.device("cpu")
    assert device_name() == machine.processor()


def test_an_accelerator_goes_by_the_name_of_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    assert device_name() == "H200"
    # Metal's has no name.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert device_name() == "mps"
