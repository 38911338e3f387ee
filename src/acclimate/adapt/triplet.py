"""Triplets of instances: an object is nearer to those of its class than to those of another, across both domains.

Hermans, Beyer and Leibe 2017 ("In defense of the triplet loss", equations 5 and 6: batch-hard and batch-all) on the
features of boxes, labelled ones of the source and those of the target that the mean teacher is sure of. Beside it the
classes' prototypes, the running means of their features in each domain, are drawn to one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.adapt.objective import Step, Term, View
from acclimate.config import TripletConfig
from acclimate.models.detector import Detector, device_of, evaluating
from acclimate.structures import Annotations

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet

MOST = 16
"""Objects of an image that take part: the number of triplets grows with its cube."""
MOMENTUM = 0.9
"""Of the prototypes' running means."""


class Triplet(Term):
    """See the module. `prototypes` (2, C, D): source and target; those that were `seen` (2, C) mean something."""

    views: ClassVar[tuple[View, ...]] = ("source_strong", "target_strong")
    needs_target: ClassVar[bool] = False
    name: ClassVar[str] = "triplet"

    prototypes: Tensor
    seen: Tensor

    def __init__(self, config: TripletConfig, classes: int, size: int) -> None:
        """For so many classes and features of D = `size` numbers."""
        super().__init__()
        self.config = config
        self.register_buffer("prototypes", torch.zeros(2, classes, size))
        self.register_buffer("seen", torch.zeros(2, classes, dtype=torch.bool))

    @classmethod
    def create(cls, options: TripletConfig, detector: Detector, source: LabelledSet) -> Triplet:
        device = device_of(detector)
        height, width = detector.spec.image_size
        with evaluating(detector):
            features = detector.features(torch.zeros(1, 3, height, width, device=device))
            whole = torch.tensor([[0.0, 0.0, width, height]], device=device)
            size = detector.instances(features, [whole]).shape[1]
        return cls(options, len(detector.spec.classes), size)

    def forward(self, step: Step) -> dict[str, Tensor]:
        vectors, labels, domains = [], [], []
        for domain, view in enumerate(self.views):
            if view in step.views:
                objects = _of_source(step) if domain == 0 else self._of_target(step)
                features = step.features(view)
                boxes = [torch.as_tensor(one.boxes[:MOST], device=features[0].device) for one in objects]
                if sum(map(len, boxes)):
                    vectors.append(F.normalize(step.detector.instances(features, boxes).float(), dim=-1))
                    labels += [torch.as_tensor(one.labels[:MOST], device=features[0].device) for one in objects]
                    domains += [domain] * sum(map(len, boxes))
        # Without an object too, every view has a gradient.
        nothing = torch.stack([0.0 * step.features(view)[0].float().sum() for view in self.views if view in step.views])
        if not vectors:
            return {"triplet/margin": nothing.sum(), "triplet/prototypes": nothing.sum()}
        vector, label, domain_of = torch.cat(vectors), torch.cat(labels), torch.tensor(domains, device=labels[0].device)
        mined = batch_hard if self.config.mining == "batch-hard" else batch_all
        return {
            "triplet/margin": self.config.weight * mined(vector, label, self.config.margin) + nothing.sum(),
            "triplet/prototypes": self.config.prototypes * self._apart(vector, label, domain_of) + nothing.sum(),
        }

    def _of_target(self, step: Step) -> list[Annotations]:
        """What the mean teacher is sure of, in the geometry that both views of the target share."""
        found = step.average.decode(step.average_raw("target_weak"))
        sure = [one.above(self.config.sure) for one in found]
        return [Annotations(one.boxes, one.labels, one.scores < 0) for one in sure]

    def _apart(self, vector: Tensor, label: Tensor, domain_of: Tensor) -> Tensor:
        """The mean over classes of the squared distance of both domains' prototypes, with gradients through this
        step's part of them."""
        now = self.prototypes.clone()
        for domain in (0, 1):
            for one in sorted(set(label[domain_of == domain].tolist())):
                mean = vector[(domain_of == domain) & (label == one)].mean(0)
                known = bool(self.seen[domain, one])
                now[domain, one] = MOMENTUM * self.prototypes[domain, one] + (1 - MOMENTUM) * mean if known else mean
                self.seen[domain, one] = True
        self.prototypes = now.detach()
        both = self.seen.all(0)
        if not both.any():
            return 0.0 * vector.sum()
        return (now[0, both] - now[1, both]).square().sum(-1).mean()


def _of_source(step: Step) -> list[Annotations]:
    assert step.source is not None
    assert step.source.targets is not None
    return [one[~one.ignore] for one in step.source.targets]


def batch_hard(vectors: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The mean over anchors of relu(margin + farthest of the class - nearest of another), equation 5.

    Args:
        vectors: (N, D).
        labels: (N,).
        margin: how much nearer the own class has to be.

    Returns:
        A scalar; 0 where no anchor has both an object of its class beside it and one of another.
    """
    distance, same, other = _pairs(vectors, labels)
    farthest = torch.where(same, distance, -torch.inf).amax(1)
    nearest = torch.where(other, distance, torch.inf).amin(1)
    anchors = same.any(1) & other.any(1)
    if not anchors.any():
        return 0.0 * vectors.sum()
    return F.relu(margin + farthest[anchors] - nearest[anchors]).mean()


def batch_all(vectors: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The mean of relu(margin + d(a, p) - d(a, n)) over all triplets that are not 0, equation 6: a scalar, of vectors
    (N, D) and labels (N,) as in `batch_hard`."""
    distance, same, other = _pairs(vectors, labels)
    loss = F.relu(margin + distance[:, :, None] - distance[:, None, :])
    loss = loss * (same[:, :, None] & other[:, None, :])
    return loss.sum() / (loss > 0).sum().clamp(min=1)


def _pairs(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Euclidean distances (N, N), and which pairs are two objects of a class, or of two classes."""
    # The root has no slope at 0.
    squared = (vectors[:, None] - vectors[None]).square().sum(-1)
    equal = labels[:, None] == labels[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (squared + 1e-12).sqrt(), equal & ~itself, ~equal
