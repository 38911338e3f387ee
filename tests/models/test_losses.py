"""What losses are made of, against torch, torchvision, closed forms and autograd; each kind of detector
uses it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from acclimate.config import ModelConfig
from acclimate.config.losses import LossConfig
from acclimate.errors import AcclimateError
from acclimate.models import detector as detectors
from acclimate.models import losses
from acclimate.structures import Annotations

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(40, 4, generator=GENERATOR), torch.randint(-1, 4, (40,), generator=GENERATOR)


def test_softmax_losses_are_torchs() -> None:
    smooth = losses.softmax_loss(LOGITS, LABELS, LossConfig(smoothing=0.1))
    used = LABELS >= 0
    chances = torch.full((40, 4), 0.1 / 4).scatter_add(1, LABELS.clamp(min=0)[:, None], torch.full((40, 1), 0.9))
    by_hand = -(chances * LOGITS.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(smooth, torch.where(used, by_hand, 0.0))
    # Of two classes, the softmax's focal loss is the sigmoid's of the difference of their logits.
    two, which = LOGITS[:, :2], LABELS.clamp(0, 1)
    ours = losses.softmax_loss(two, which, LossConfig(classes="focal", gamma=1.5))
    theirs = sigmoid_focal_loss(two[:, 1] - two[:, 0], which.float(), alpha=-1, gamma=1.5)
    torch.testing.assert_close(ours, theirs)


def test_sigmoid_losses_are_torchs() -> None:
    quality = torch.rand(40, 4, generator=GENERATOR) * (torch.rand(40, 4, generator=GENERATOR) > 0.7)
    hard = (quality > 0).float()
    entropy = losses.sigmoid_loss(LOGITS, quality, LossConfig(classes="cross-entropy", smoothing=0.2))
    torch.testing.assert_close(entropy, F.binary_cross_entropy_with_logits(LOGITS, 0.8 * hard + 0.1, reduction="none"))
    focal = losses.sigmoid_loss(LOGITS, quality, LossConfig(classes="focal"))
    torch.testing.assert_close(focal, sigmoid_focal_loss(LOGITS, hard, alpha=0.25, gamma=2))


def test_overlap_losses_are_torchvisions() -> None:
    corner = torch.rand(20, 2, generator=GENERATOR) * 20
    boxes, wanted = (torch.cat([corner, corner + 5 + 10 * torch.rand(20, 2, generator=GENERATOR)], 1) for _ in range(2))
    theirs = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
    for kind, loss in theirs.items():
        torch.testing.assert_close(losses.iou_loss(kind, boxes, wanted), loss(boxes, wanted))
    half = losses.iou_loss("iou", torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 5]]))
    assert half.item() == pytest.approx(0.5)


def test_smooth_ln_is_its_formula_and_its_two_parts_meet() -> None:
    x = torch.tensor([0.0, 0.2, 0.5, 0.5 + 1e-6, 0.9], dtype=torch.float64, requires_grad=True)
    value = losses.smooth_ln(x, 0.5)
    expected = [0, -math.log(0.8), math.log(2), math.log(2), 0.4 / 0.5 + math.log(2)]
    assert value.tolist() == pytest.approx(expected, abs=1e-5)
    (slope,) = torch.autograd.grad(value.sum(), x)
    # 1 / (1 - x) to the left, 1 / (1 - sigma) to the right.
    assert slope.tolist() == pytest.approx([1, 1.25, 2, 2, 2], rel=1e-5)
    assert losses.smooth_ln(x, 0.0) is x
    assert torch.isfinite(losses.smooth_ln(torch.ones(1), 1.0)).all()


def test_repulsion_by_hand_and_by_autograd() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [8, 0, 18, 10]], dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0, 12, 10], [9, 0, 19, 10]], dtype=torch.float64, requires_grad=True)
    value = losses.repulsion(boxes, torch.tensor([0, 1]), truth)
    # The first covers 4 of 10 columns of the second object, the second 1 of the first; they share 3 of 19.
    from_truth = (-math.log(0.6) - math.log(0.9)) / 2
    assert value.item() == pytest.approx(0.5 * (from_truth + 3 / 19))
    assert torch.autograd.gradcheck(lambda one: losses.repulsion(one, torch.tensor([0, 1]), truth), boxes)
    (slope,) = torch.autograd.grad(value, boxes)
    # Less is lost when the first box's right side goes left and the second one's left side goes right.
    assert slope[0, 2] > 0 > slope[1, 0]
    assert losses.repulsion(boxes, torch.tensor([0, 0]), truth[:1]).item() == 0


def test_mining_takes_the_hardest_and_ohem_one_of_those_that_overlap() -> None:
    loss = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]])
    objects = torch.tensor([[True, False, False, False, False]])
    assert losses.hardest(loss, ~objects, objects, 2.0).tolist() == [[False, True, False, True, False]]
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9.5], [20, 0, 30, 10], [40, 0, 50, 10]]])
    order, used = losses.hard_examples(
        boxes, torch.tensor([[1.0, 2, 3, 9]]), torch.tensor([[True, True, True, False]]), 3
    )
    assert order[used].tolist() == [2, 1]


KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "two-stage": {"two_stage": {"proposals": 16, "hidden": 16}},
    "ssd": {"ssd": {"extra": 1}},
}
WAYS: list[dict[str, Any]] = [
    {"classes": "focal"},
    {"classes": "cross-entropy", "smoothing": 0.1, "negatives": 2.0},
    {"boxes": "ciou"},
    {"boxes": "iou", "repulsion": 0.5},
    {"ohem": True},
]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 255
BOXES = Annotations(np.float32([[4, 4, 40, 44], [24, 8, 60, 50]]), np.array([0, 1]), np.zeros(2, bool))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_detector_trains_by_what_it_knows(kind: str) -> None:
    def made(**asked: Any) -> detectors.Detector:
        base = {"kind": kind, "backbone": "lcnet_050", "weights": "none", "channels": 16, "image_size": (64, 64)}
        config = ModelConfig.model_validate({**base, **KINDS[kind], "losses": asked})
        torch.manual_seed(0)
        return detectors.build(detectors.specify(config, ["car", "person"]))

    def lost(detector: detectors.Detector) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        found = detector.losses(detector.features(IMAGES), [BOXES, Annotations.empty()])
        assert set(found) == set(detector.loss_kinds)
        return found

    plain = lost(made())
    for way in WAYS:
        if "ohem" in way and kind != "two-stage":
            with pytest.raises(AcclimateError, match=rf"model.losses: ohem is not for a {kind} detector"):
                made(**way)
            continue
        detector = made(**way)
        found = lost(detector)
        total = torch.stack([*found.values()]).sum()
        total.backward()
        assert torch.isfinite(total)
        assert total.item() != pytest.approx(torch.stack([*plain.values()]).sum().item(), rel=1e-6)
