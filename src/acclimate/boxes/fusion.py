"""Weighted boxes fusion: what several looks at one image found, as one set of boxes.

Solovyev et al. 2021, "Weighted boxes fusion: Ensembling boxes from different object detection models", section 2.2. NMS
keeps the best box of a cluster and drops the others; fusion takes the mean of all, so that looks correct one another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acclimate.boxes.iou import pairwise
from acclimate.structures import Detections

IOU = 0.55
"""Overlap from which a box joins a cluster, as in the paper."""


def fuse(looks: Sequence[Detections], iou: float = IOU) -> Detections:
    """Weighted boxes fusion of detections in one geometry.

    Boxes of all looks are taken from the best down. Each joins the cluster of its class whose fused box it overlaps
    most, where that is more than `iou`, or begins one. A cluster's box is the mean of its boxes, weighted by their
    scores; its score is their mean times min(T, N) / N, where it has T boxes of N looks.

    Args:
        looks: detections of the same image, one a look; a single one is left as it is.
        iou: the overlap.

    Returns:
        Fused detections, best first.
    """
    if len(looks) == 1:
        return looks[0]
    boxes = np.concatenate([one.boxes for one in looks]).astype(np.float64)
    labels = np.concatenate([one.labels for one in looks])
    scores = np.concatenate([one.scores for one in looks]).astype(np.float64)
    count = len(scores)
    # One row a cluster: its fused box, and the sums that the next box is added to.
    fused, weighted = np.zeros((count, 4)), np.zeros((count, 4))
    total, members, owner = np.zeros(count), np.zeros(count), np.full(count, -1)
    clusters = 0
    for row in np.argsort(-scores, kind="stable"):
        overlaps = np.where(owner[:clusters] == labels[row], pairwise(boxes[row : row + 1], fused[:clusters])[0], 0.0)
        best = int(overlaps.argmax()) if clusters else -1
        if best < 0 or overlaps[best] <= iou:
            best = clusters
            owner[best] = labels[row]
            clusters += 1
        weighted[best] += scores[row] * boxes[row]
        total[best] += scores[row]
        members[best] += 1
        fused[best] = weighted[best] / total[best]
    confidence = total[:clusters] / members[:clusters] * np.minimum(members[:clusters], len(looks)) / len(looks)
    order = np.argsort(-confidence, kind="stable")
    return Detections(
        fused[order].astype(np.float32), owner[order].astype(np.int64), confidence[order].astype(np.float32)
    )


def mirrored(found: Detections, width: float) -> Detections:
    """Detections on the left-right mirrored image of `width` pixels, put on the image itself."""
    boxes = found.boxes.copy()
    boxes[:, [0, 2]] = width - found.boxes[:, [2, 0]]
    return Detections(boxes, found.labels, found.scores)
