"""Second stages beside Faster R-CNN's and TSD's, against torchvision's box coding and closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_two_stage import IMAGES, SIZE, lively, make
from torchvision.models.detection._utils import BoxCoder

from acclimate.boxes import tensors
from acclimate.boxes.offsets import ROI_WEIGHTS
from acclimate.config import TwoStageConfig
from acclimate.edge.decode import decode
from acclimate.models import bi_box, cascade, graph_head
from acclimate.models import detector as detectors
from acclimate.models.bagged import BaggedHead
from acclimate.models.bi_box import BiBoxHead
from acclimate.models.cascade import CascadeHead
from acclimate.models.graph_head import GraphHead
from acclimate.models.masks import HybridMaskHead
from acclimate.models.roi_heads import Sample, Setting, SiblingHead, Truth
from acclimate.structures import Annotations

STRIDES, CHANNELS, CLASSES = (8, 16), 4, 2
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = [torch.randn(1, CHANNELS, 64 // stride, 64 // stride, generator=GENERATOR) for stride in STRIDES]
PROPOSALS = torch.tensor([[[4.0, 4, 36, 40], [20, 10, 60, 60], [2, 30, 30, 62], [40, 2, 62, 20], [0, 0, 0, 0]]])
BOXES = np.float32([[6, 2, 38, 44], [30, 20, 62, 62]])
TRUTH = [Truth(Annotations(BOXES, np.array([0, 1]), np.zeros(2, bool)), torch.device("cpu"))]


def built(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    head = kind(Setting(CHANNELS, STRIDES, CLASSES, 16), **options)
    for name, parameter in head.named_parameters():
        if parameter.ndim > 1 and any(part in name for part in ("classify", "regress", "move", "place")):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return head


def sampled() -> Sample:
    labels, which = TRUTH[0].match_proposals(PROPOSALS[0])
    return Sample(PROPOSALS, labels[None], TRUTH[0].boxes_of(which)[None], which[None])


def test_a_cascade_moves_its_boxes_as_torchvisions_coder_and_its_last_as_the_device_does() -> None:
    head = built(CascadeHead)
    boxes, chances = PROPOSALS, []
    for number, stage in enumerate(head.stages):
        logits, moves = stage(head.pool(FEATURES, boxes))
        chances.append(logits.softmax(-1))
        at, coder = boxes, BoxCoder(tuple(10.0 * weight * (number + 1) for weight in (1, 1, 0.5, 0.5)))
        boxes = coder.decode_single(moves[0], boxes[0]).view(1, -1, 4).clamp(0, 64)
    logits, offsets, anchors = head(FEATURES, PROPOSALS)
    torch.testing.assert_close(logits.softmax(-1), torch.stack(chances).mean(0))
    torch.testing.assert_close(anchors, at)
    for label in range(CLASSES + 1):
        decoded = tensors.clip(tensors.decode(offsets[:, :, label], anchors, ROI_WEIGHTS), (64, 64))
        torch.testing.assert_close(decoded, boxes)


def test_each_stage_of_a_cascade_is_stricter() -> None:
    # They overlap the first box by 0.55, 0.65 and 0.75.
    boxes = torch.tensor([[[6.0, 2, 38, 2 + 42 * part] for part in (0.55, 0.65, 0.75)]])
    used = torch.ones(1, 3, dtype=torch.bool)
    found = [cascade.relabelled(boxes, used, TRUTH, least).labels.tolist() for least in cascade.OVERLAPS]
    assert found == [[[1, 1, 1]], [[0, 1, 1]], [[0, 0, 1]]]
    sample = sampled()
    head = built(CascadeHead)
    losses = head.losses(FEATURES, sample, TRUTH)
    assert set(losses) == set(head.loss_kinds)
    # The first stage's class loss is torch's cross entropy of what is no padding.
    logits = head.stages[0](head.pool(FEATURES, PROPOSALS))[0]
    expected = F.cross_entropy(logits[0, :4], sample.labels[0, :4])
    assert losses["roi_class"].item() == pytest.approx(expected.item(), rel=1e-5)
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_bagging_is_the_mean_of_its_members() -> None:
    head = built(BaggedHead, members=2)
    logits, offsets, _ = head(FEATURES, PROPOSALS)
    members = [member(FEATURES, PROPOSALS) for member in head.members]
    torch.testing.assert_close(logits.softmax(-1), (members[0][0].softmax(-1) + members[1][0].softmax(-1)) / 2)
    torch.testing.assert_close(offsets, (members[0][1] + members[1][1]) / 2)
    sample = sampled()
    losses = [head.losses(FEATURES, sample, TRUTH) for _ in range(200)]
    # Over many bootstraps the losses are those of the members on all boxes.
    alone = [SiblingHead.losses(member, FEATURES, sample) for member in head.members]
    for name in ("roi_class", "roi_box"):
        mean = torch.stack([one[name] for one in losses]).mean().item()
        assert mean == pytest.approx(torch.stack([one[name] for one in alone]).mean().item(), rel=0.1)


def test_the_graph_keeps_the_nearest_in_likeness_and_no_padding() -> None:
    vectors = torch.randn(1, 5, 6, generator=GENERATOR)
    edges = graph_head.adjacency(vectors, PROPOSALS)
    likeness = (vectors @ vectors.transpose(1, 2))[..., :4]
    torch.testing.assert_close(edges[..., :4], likeness.softmax(-1))
    assert edges[..., 4].abs().max() == 0
    many = torch.randn(1, 20, 6, generator=GENERATOR)
    corner = torch.rand(1, 20, 2, generator=GENERATOR) * 30
    sparse = graph_head.adjacency(many, torch.cat([corner, corner + 10], -1))
    assert ((sparse > 0).sum(-1) == graph_head.NEIGHBOURS).all()
    torch.testing.assert_close(sparse.sum(-1), torch.ones(1, 20))
    # A box beside another of side 10, 20 px to the right and as high; one as far below it.
    places = graph_head.polar(torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]]]))
    assert places[0, 0, 1].tolist() == pytest.approx([math.log1p(2), 0], abs=1e-5)
    assert places[0, 0, 2].tolist() == pytest.approx([math.log1p(2), 1], abs=1e-5)


def test_the_pool_of_another_domain_comes_by_the_likeness_of_classes() -> None:
    head = built(GraphHead, others=3, other_width=5)
    with torch.no_grad():
        head.other.copy_(torch.randn(3, 5, generator=GENERATOR))
        # The likeness of a class of ours with the first of theirs outweighs all else.
        head.liken.weight.zero_()[0, 0] = 100.0
        head.liken_other.weight.zero_()
        head.liken_other.weight[0] = torch.linalg.pinv(head.other)[:, 0]
    pool = torch.zeros(CLASSES + 1, 16)
    pool[:, 0] = 1.0
    torch.testing.assert_close(head.transferred(pool), head.carry(head.other[:1]).expand(CLASSES + 1, -1))
    logits, offsets, boxes = head(FEATURES, PROPOSALS)
    assert logits.shape == (1, 5, CLASSES + 1)
    assert offsets.shape == (1, 5, CLASSES + 1, 4)
    assert boxes is PROPOSALS


def test_the_bi_box_heads_targets_by_hand() -> None:
    proposal = torch.tensor([[10.0, 10, 30, 50]])
    visible = torch.tensor([[10.0, 10, 30, 30]])
    place = bi_box.placement(visible, proposal)
    assert place.tolist() == [[0, -0.25, 1, 0.5]]
    # Background: the visible part is the proposal's centre.
    assert bi_box.placement(torch.tensor([[20.0, 30, 20, 30]]), proposal).tolist() == [[0, 0, 0, 0]]
    assert bi_box.share(proposal, torch.tensor([[20.0, 10, 40, 30]])).tolist() == [0.5]


def test_a_proposal_must_cover_the_visible_part_and_background_shrinks() -> None:
    boxes = Annotations(
        BOXES, np.array([0, 1]), np.zeros(2, bool), visible=np.float32([[6, 40, 38, 44], [30, 20, 62, 62]])
    )
    truth = [Truth(boxes, torch.device("cpu"))]
    sample = sampled()
    assert sample.labels.tolist() == [[1, 2, 0, 0, -1]]
    hidden = built(BiBoxHead)
    with torch.no_grad():
        for parameter in hidden.visible["place"].parameters():
            parameter.zero_()
    losses = hidden.losses(FEATURES, sample, truth)
    assert set(losses) == set(hidden.loss_kinds)
    # Of the first object only its foot is seen, which the first proposal does not reach: background to both branches.
    logits = hidden.classify(hidden.whole(hidden.pool(FEATURES, PROPOSALS).flatten(2)))
    expected = F.cross_entropy(logits[0, :4], torch.tensor([0, 2, 0, 0]))
    assert losses["roi_class"].item() == pytest.approx(expected.item(), rel=1e-5)
    # A branch that says "a point at the centre" is right about all background and wrong about the one object.
    wanted = bi_box.placement(truth[0].visible[1:], PROPOSALS[0, 1:2]).tolist()
    missed = F.smooth_l1_loss(torch.zeros(1, 4), torch.tensor(wanted), beta=1 / 9, reduction="sum").item() / 4
    assert losses["visible_box"].item() == pytest.approx(missed, rel=1e-5)
    fused, _, _ = hidden(FEATURES, PROPOSALS)
    part = hidden.visible["classify"](hidden.part(hidden.pool(FEATURES, PROPOSALS).flatten(2)))
    torch.testing.assert_close(fused, logits + part)


@pytest.mark.parametrize("head", ["cascade", "bagged", "graph", "bi-box"])
def test_each_head_is_a_detector(head: str, tmp_path: Path) -> None:
    options = {"masks": True, "mask_flow": True} if head == "cascade" else {}
    made = lively(make(head=head, **options))
    detectors.save(made, tmp_path)
    again = detectors.load(tmp_path)
    with torch.inference_mode():
        raw = [output.numpy() for output in made(IMAGES)]
        for one, other in zip(again(IMAGES), raw, strict=True):
            np.testing.assert_array_equal(one.numpy(), other)
    assert all(len(found) for found in decode(raw, made.decode_options(), SIZE))
    square = (np.float32([[10, 10], [50, 10], [50, 50], [10, 50]]),)
    target = Annotations(np.float32([[10, 10, 50, 50]]), np.array([1]), np.zeros(1, bool), (square,))
    losses = made.train().losses(made.features(IMAGES), [target, target])
    assert set(losses) == set(made.loss_kinds)
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in made.roi_head.parameters())
    if head == "cascade":
        assert isinstance(made.mask_head, HybridMaskHead)
        assert all(parameter.grad is not None for parameter in made.mask_head.parameters())
        with torch.inference_mode():
            made.eval()
            features = made.features(IMAGES)
            masks = made.masks(features, made.decode(made.head(features)))
        assert all(one.shape[1:] == (28, 28) for one in masks)
    if head == "graph":
        config = TwoStageConfig(head="graph", transfer=tmp_path)
        other = make(head="graph", transfer=tmp_path)
        assert isinstance(other.roi_head, GraphHead)
        other.roi_head.begin(config)
        torch.testing.assert_close(other.roi_head.other, made.roi_head.classify.weight[1:].detach())


def test_options_of_another_head_are_refused() -> None:
    with pytest.raises(ValidationError, match='mask_flow is for head = "cascade"'):
        TwoStageConfig(mask_flow=True)
    with pytest.raises(ValidationError, match='transfer is for head = "graph"'):
        TwoStageConfig(transfer=Path("runs/other"))
