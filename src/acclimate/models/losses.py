"""What losses of detectors are made of, element by element, whatever the kind of detector.

Lin et al. 2017 (focal loss), Li et al. 2020 (quality focal loss), Szegedy et al. 2016 (label smoothing), Liu et al.
2016 (hard negative mining), Shrivastava et al. 2016 (online hard example mining), Rezatofighi et al. 2019 (GIoU), Zheng
et al. 2020 (DIoU, CIoU), Wang et al. 2018 (repulsion loss). `config.LossConfig` names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    nms,
    sigmoid_focal_loss,
)

from acclimate.boxes import tensors
from acclimate.config.losses import LossConfig

ALPHA = 0.25
"""Of the sigmoid's focal loss: weight of an object, where background has 1 - ALPHA."""
SAME = 0.7
"""Overlap from which online hard example mining takes two proposals for one, and the one with less loss goes."""
REP_GT, REP_BOX = 1.0, 0.0
"""Where smooth-ln turns into a line, of the repulsion from objects and from boxes: the best of the paper's table 3."""
REP_SHARE = 0.5
"""Weight of each of the two repulsions, as in the paper."""


def quality_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """|y - p|^2 times the cross entropy of p towards the soft target y, element by element, in their shape (GFL,
    equation 2)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).pow(2) * cross_entropy


def sigmoid_loss(logits: Tensor, quality: Tensor, config: LossConfig) -> Tensor:
    """The class loss of independent classes, element by element.

    Args:
        logits: (..., C).
        quality: (..., C), how good a box is where it is an object of the class, 0 elsewhere; only `quality-focal`
            looks at more than whether it is above 0.
        config: what is asked for.
    """
    target = quality if config.classes in {"default", "quality-focal"} else (quality > 0).to(logits)
    if config.smoothing:
        # Each class is a choice between two.
        target = target * (1 - config.smoothing) + config.smoothing / 2
    if config.classes == "cross-entropy":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if config.classes == "focal":
        focal: Tensor = sigmoid_focal_loss(logits, target, alpha=ALPHA, gamma=config.gamma)
        return focal
    return quality_focal_loss(logits, target)


def softmax_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """The class loss of classes of which one holds, the background among them: (N,) of logits (N, C + 1), labels (N,).

    A label of -1 has a loss of 0. Focal is (1 - p)^gamma times the cross entropy, p the label's probability.
    """
    loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none", label_smoothing=config.smoothing)
    if config.classes != "focal":
        return loss
    chance = logits.softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    return (1 - chance).pow(config.gamma) * loss


def iou_loss(kind: str, boxes: Tensor, wanted: Tensor) -> Tensor:
    """(N,): 1 - IoU of boxes (N, 4) and those wanted, xyxy pixels, with the penalty of its kind."""
    if kind == "iou":
        return 1 - tensors.paired(boxes, wanted)
    losses = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
    loss: Tensor = losses[kind](boxes, wanted)
    return loss


def hardest(loss: Tensor, among: Tensor, objects: Tensor, ratio: float) -> Tensor:
    """(B, A): of each image the places of background with the highest loss, so many for each of its objects.

    Hard negative mining of Liu et al., section 2.2; an image without objects gives as much as one with one.

    Args:
        loss: (B, A).
        among: (B, A) bool, what may be taken.
        objects: (B, A) bool.
        ratio: how many for each object.
    """
    counts = (ratio * objects.sum(1, keepdim=True).clamp(min=1)).ceil().long()
    order = torch.where(among, loss, -torch.inf).topk(min(int(counts.max()), loss.shape[1]), 1).indices
    taken = torch.arange(order.shape[1], device=loss.device) < counts
    return torch.zeros_like(among).scatter(1, order, taken) & among


def hard_examples(boxes: Tensor, loss: Tensor, usable: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The boxes of each image with the highest loss, of those that overlap by more than SAME the one with most.

    Online hard example mining: Shrivastava et al. 2016, section 4.1.

    Args:
        boxes: (B, N, 4).
        loss: (B, N).
        usable: (B, N) bool, what may be taken.
        count: how many S, at most.

    Returns:
        Indices (B, S), and whether each was taken (B, S); what was not is filling.
    """
    count = min(count, boxes.shape[1])
    order = boxes.new_zeros((len(boxes), count), dtype=torch.int64)
    used = torch.zeros_like(order, dtype=torch.bool)
    for image, (box, value, able) in enumerate(zip(boxes, loss, usable, strict=True)):
        rows = able.nonzero()[:, 0]
        kept = rows[nms(box[rows].float(), value[rows].float(), SAME)[:count]]
        order[image, : len(kept)], used[image, : len(kept)] = kept, True
    return order, used


def smooth_ln(overlap: Tensor, sigma: float) -> Tensor:
    """-ln(1 - x) of overlaps x (N,) up to sigma, from there on the line that continues it (Wang et al., equation 6).

    With sigma 0 it is a line throughout.
    """
    if sigma == 0:
        return overlap
    limit = min(sigma, 1 - 1e-6)
    line = (overlap - limit) / (1 - limit) - torch.log(overlap.new_tensor(1 - limit))
    return torch.where(overlap <= limit, -torch.log1p(-torch.where(overlap <= limit, overlap, 0.0)), line)


def repulsion(boxes: Tensor, owners: Tensor, truth: Tensor) -> Tensor:
    """The repulsion loss of one image, without its attraction, which is the detector's own box loss.

    RepGT (equation 4): how much of the object that a box overlaps most, its own left out, it covers (IoG); a mean over
    the boxes. RepBox (equation 7): the IoU of boxes of different objects, a mean over the pairs that overlap.

    Args:
        boxes: (P, 4) predicted boxes of objects, xyxy pixels, with gradients.
        owners: (P,), which object each is of.
        truth: (M, 4) labelled boxes.
    """
    if not len(boxes) or len(truth) < 2:
        return 0.0 * boxes.sum()
    rows = torch.arange(len(boxes), device=boxes.device)
    with torch.no_grad():
        overlap = tensors.pairwise(boxes, truth)
        overlap[rows, owners] = -1.0
        nearest = truth[overlap.argmax(1)]
    sides = torch.minimum(boxes[:, 2:], nearest[:, 2:]) - torch.maximum(boxes[:, :2], nearest[:, :2])
    covered = sides.clamp(min=0).prod(-1) / tensors.area(nearest).clamp(min=1e-9)
    from_truth = smooth_ln(covered, REP_GT).mean()
    between = tensors.pairwise(boxes, boxes)
    apart = (owners[:, None] != owners[None]) & (between > 0)
    from_boxes = (smooth_ln(between, REP_BOX) * apart).sum() / apart.sum().clamp(min=1)
    return REP_SHARE * (from_truth + from_boxes)


def repelled(found: Sequence[tuple[Tensor, Tensor]], truth: Sequence[Tensor]) -> Tensor:
    """`repulsion`, a mean over images: predicted boxes (P, 4) with the labelled box (P, 4) of each, and all labelled
    boxes (M, 4)."""
    losses = []
    for (boxes, matched), labelled in zip(found, truth, strict=True):
        same = (matched[:, None] == labelled[None]).all(-1)
        losses.append(repulsion(boxes, same.float().argmax(1) if len(labelled) else same.sum(1), labelled))
    return torch.stack(losses).mean()
