"""Learned zoom: the warp's inverse, what is sampled where, and that it is a detector on the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from acclimate.config import ModelConfig
from acclimate.edge.decode import decode
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export.onnx import Onnx
from acclimate.models import detector as detectors
from acclimate.models import zoom
from acclimate.models.zoom import ZoomDetector
from acclimate.structures import Annotations

SIZE = (128, 192)
GENERATOR = torch.Generator().manual_seed(0)
UNEVEN = torch.rand(2, 8, generator=GENERATOR).softmax(-1)


@pytest.fixture(scope="module")
def made() -> ZoomDetector:
    config = ModelConfig.model_validate(
        {"kind": "zoom", "backbone": "lcnet_050", "weights": "none", "channels": 16, "depth": 1, "image_size": SIZE}
    )
    torch.manual_seed(0)
    detector = detectors.build(detectors.specify(config, ["car", "person"]))
    assert isinstance(detector, ZoomDetector)
    with torch.no_grad():
        detector.saliency[-1].weight.normal_(std=2.0)  # type: ignore[operator, union-attr]
        detector.inner.classify.weight.normal_(std=0.5)
    return detector.eval()


def test_the_way_back_is_the_inverse_and_even_shares_change_nothing() -> None:
    place = torch.linspace(0, 1, 41).expand(2, -1)
    torch.testing.assert_close(zoom.unwarp(zoom.warp(place, UNEVEN), UNEVEN), place, atol=1e-5, rtol=0)
    torch.testing.assert_close(zoom.warp(place, torch.full((2, 8), 1 / 8)), place)
    # By hand: the first half of the picture gets three quarters of the columns.
    shares = torch.tensor([[0.75, 0.25]])
    assert zoom.warp(torch.tensor([[0.25, 0.5, 0.75]]), shares)[0].tolist() == pytest.approx([0.375, 0.75, 0.875])
    # numpy's interpolation of the cumulative sum is the same curve.
    knots = np.concatenate([[0], np.cumsum(UNEVEN[0].numpy())])
    theirs = np.interp(place[0].numpy(), np.linspace(0, 1, 9), knots)
    np.testing.assert_allclose(zoom.warp(place, UNEVEN)[0], theirs, atol=1e-6)


def test_even_shares_sample_as_a_resize_and_uneven_ones_enlarge() -> None:
    images = torch.rand(1, 3, *SIZE, generator=GENERATOR)
    even = torch.full((1, 2, 1, 8), 1 / 8)
    ours = zoom.sample(images, even, (64, 96))
    theirs = F.interpolate(images, (64, 96), mode="bilinear", align_corners=False, antialias=False)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    # A bright stripe in the first quarter, which gets three quarters of the columns, is three times as wide.
    stripe = torch.zeros(1, 3, *SIZE)
    stripe[..., 16:32] = 1
    shares = torch.tensor([[[[0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3]], [[0.25] * 4]]])
    widths = [zoom.sample(stripe, one, (64, 96))[0, 0, 0].sum().item() for one in (even, shares)]
    assert widths == pytest.approx([8, 24], abs=0.5)


def test_boxes_go_to_the_sample_and_back(made: ZoomDetector) -> None:
    boxes = torch.tensor([[[10.0, 20, 60, 90], [100, 5, 190, 120]]])
    shares = made.features(torch.rand(1, 3, *SIZE, generator=GENERATOR) * 255)[-1].detach()
    assert shares.sum(-1).flatten().tolist() == pytest.approx([1, 1])
    assert shares.std() > 0.001
    inside = made._inside(boxes, shares)
    assert inside[..., 0::2].max() <= 96
    torch.testing.assert_close(made._outside(inside, shares), boxes, atol=1e-2, rtol=0)


def test_it_trains_where_it_looks(made: ZoomDetector) -> None:
    images = torch.rand(2, 3, *SIZE, generator=GENERATOR) * 255
    target = Annotations(np.float32([[40, 30, 110, 100]]), np.array([1]), np.zeros(1, bool))
    made.train()
    features = made.features(images)
    losses = made.losses(features, [target, Annotations.empty()])
    assert set(losses) == set(made.loss_kinds)
    sum(losses.values(), torch.zeros(())).backward()
    gradient = made.saliency[0].weight.grad  # type: ignore[union-attr]
    made.eval()
    assert isinstance(gradient, torch.Tensor)
    assert gradient.abs().sum() > 0
    assert made.instances(features, [torch.tensor([[40.0, 30, 110, 100]]), torch.zeros(0, 4)]).shape[0] == 1
    soft = made.head(features)
    assert set(made.distillation(features, soft, 0.0)) == {"class", "box"}
    assert made.regions(features, 5)[0].shape == (5, 4)


def test_the_device_finds_what_it_finds(made: ZoomDetector, tmp_path: Path) -> None:
    artifact = Onnx().export(made, tmp_path / "artifact", "fp32", [])
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    with torch.inference_mode():
        raw = made(torch.from_numpy(picture).permute(2, 0, 1)[None].float())
    expected = decode([output.numpy() for output in raw], made.decode_options(), SIZE)[0]
    found = Predictor(artifact)(picture)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    with pytest.raises(AcclimateError, match="which are not those of boxes"):
        decode([raw[0].numpy(), raw[1].numpy()[..., :3]], made.decode_options(), SIZE)


def test_a_canvas_that_the_factor_does_not_divide_is_refused() -> None:
    config = ModelConfig.model_validate({"kind": "zoom", "weights": "none", "image_size": (96, 192)})
    with pytest.raises(AcclimateError, match="96 x 192 is not a multiple of 64"):
        detectors.specify(config, ["car"])
