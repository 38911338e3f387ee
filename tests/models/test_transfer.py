"""Weights carried between detectors: all layers, and of the class layers the rows whose classes have the same name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acclimate.config import ModelConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, build, save, specify
from acclimate.models.transfer import begin, check, with_classes

KINDS = {
    "dense": {"kind": "dense"},
    "ssd": {"kind": "ssd", "ssd": {"extra": 1}},
    "ssdlite": {"kind": "ssd", "ssd": {"extra": 1, "lite": True}},
    "fcos": {"kind": "fcos"},
    "retinanet": {"kind": "retinanet"},
    "two-stage": {"kind": "two-stage", "two_stage": {"proposals": 8, "hidden": 16, "masks": True}},
    "disentangled": {"kind": "two-stage", "two_stage": {"proposals": 8, "hidden": 16, "head": "disentangled"}},
}
OLD, NEW = ["car", "person", "rider"], ["dog", "person", "car"]


def config(_kind: str, /, **more: object) -> ModelConfig:
    small: dict[str, object] = {
        "backbone": "lcnet_050",
        "image_size": (64, 64),
        "channels": 16,
        "depth": 1,
        "weights": "none",
    }
    return ModelConfig.model_validate({**small, **KINDS[_kind], **more})


def made(kind: str, seed: int) -> Detector:
    torch.manual_seed(seed)
    detector = build(specify(config(kind), OLD)).eval()
    with torch.no_grad():
        # So that rows of different classes differ, and biases too.
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


def per_class(detector: Detector, raw: tuple[torch.Tensor, ...], name: str) -> list[torch.Tensor]:
    """What the raw outputs say of a class: its logits, and its offsets where each class has some."""
    row = detector.spec.classes.index(name) + (detector.spec.kind in {"ssd", "two-stage"})
    own = [raw[0][..., row]]
    return [*own, raw[1][..., row, :]] if detector.spec.kind == "two-stage" else [*own, raw[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_says_the_same_wherever_it_stands(kind: str) -> None:
    other = made(kind, 0)
    ours = with_classes(other, {"human": "person", "car": "car"})
    assert ours.spec.classes == ("human", "car")
    images = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = other(images), ours(images)
    for new, old in (("human", "person"), ("car", "car")):
        for left, right in zip(per_class(ours, after, new), per_class(other, before, old), strict=True):
            torch.testing.assert_close(left, right)
    assert not torch.allclose(per_class(other, before, "person")[0], per_class(other, before, "car")[0])


@pytest.mark.parametrize("kind", ["dense", "two-stage"])
def test_a_job_starts_from_a_run(kind: str, tmp_path: Path) -> None:
    other = made(kind, 0)
    save(other, tmp_path)
    wanted = config(kind, start=tmp_path)
    check(wanted, specify(wanted, NEW))
    torch.manual_seed(2)
    ours = begin(wanted, specify(wanted, NEW)).eval()
    assert ours.spec.start == f"the run {tmp_path}, with its classes person, car"
    images = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = other(images), ours(images)
    for name in ("person", "car"):
        torch.testing.assert_close(per_class(ours, after, name)[0], per_class(other, before, name)[0])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"channels": 32}, "channels is 16 there and 32 here"),
        ({"backbone": "lcnet_075"}, "backbone is lcnet_050 there and lcnet_075 here"),
        ({"kind": "ssd", "ssd": {"extra": 1}}, "kind is dense there and ssd here"),
        ({"norm": "group"}, "norm is batch there and group here"),
        ({"conv": "shuffle"}, "conv differs"),
    ],
)
def test_another_architecture_is_refused_before_anything_is_read(
    more: dict[str, object], said: str, tmp_path: Path
) -> None:
    save(made("dense", 0), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    wanted = config("dense", start=tmp_path, **more)
    with pytest.raises(AcclimateError, match=rf"model\.start: .*{said}") as told:
        check(wanted, specify(wanted, NEW))
    assert "\n" not in str(told.value)


def test_two_starts_are_refused() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        config("dense", start="runs/other", weights="weights.pth")
