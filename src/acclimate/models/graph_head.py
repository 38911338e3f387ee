"""A second stage that reasons over a graph: what a box is, it learns from the boxes around it and from another domain.

Xu et al. 2020 (Universal-RCNN). The rows of a classifier are what it knows of each class, its semantic pool. Within an
image every box takes in the semantics of the boxes that look most related, weighted by where they lie (section 3.2,
intra-domain reasoning). Across domains, the pool of a detector of other classes is carried over by the likeness of
classes (section 3.3, inter-domain transfer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.config import TwoStageConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import LossKind, load
from acclimate.models.roi_heads import Sample, Setting, SiblingHead, Truth, class_loss, predictors

NEIGHBOURS = 8
"""Boxes that each box takes in, itself among them; 32 in the paper, of 512 proposals."""
KERNELS = 4
"""Of the places of a neighbour; 25 in the paper."""


class GraphHead(SiblingHead):
    """See the module. The base classifier says what each box may be; a second one decides with what the graph adds."""

    loss_kinds: Mapping[str, LossKind] = {"roi_class": "class", "roi_box": "box", "base_class": "class"}

    other: Tensor

    def __init__(self, setting: Setting, others: int = 0, other_width: int = 0) -> None:
        """Build with random weights.

        Args:
            setting: what for.
            others: how many classes the pool of another detector has; 0 for none.
            other_width: width of that pool.
        """
        super().__init__(setting)
        hidden, classes = setting.hidden, setting.classes
        size = max(8, hidden // 4)
        self.relate = nn.Linear(hidden, size)
        self.first = nn.ModuleDict({"classify": predictors(hidden, classes)[0]})
        self.centres = nn.Parameter(torch.randn(KERNELS, 2) * 0.5)
        self.spreads = nn.Parameter(torch.zeros(KERNELS, 2))
        self.gather = nn.Linear(KERNELS * hidden, size)
        wide = hidden + size
        if others:
            self.register_buffer("other", torch.zeros(others, other_width))
            self.liken = nn.Linear(hidden, size, bias=False)
            self.liken_other = nn.Linear(other_width, size, bias=False)
            self.carry = nn.Linear(other_width, size)
            wide += size
        self.others = others
        self.classify, self.regress = predictors(wide, classes)

    @classmethod
    def arguments(cls, options: TwoStageConfig) -> dict[str, int | float | None]:
        if options.transfer is None:
            return {}
        rows, width = pool_of(options.transfer).shape
        return {"others": rows, "other_width": width}

    def begin(self, options: TwoStageConfig) -> None:
        if options.transfer is not None:
            with torch.no_grad():
                self.other.copy_(pool_of(options.transfer))

    def forward(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide, _ = self._enhanced(features, proposals)
        return self.classify(wide), self.regress(wide).unflatten(-1, (-1, 4)), proposals

    def losses(self, features: Sequence[Tensor], sample: Sample, truth: Sequence[Truth] = ()) -> dict[str, Tensor]:
        """The head's own, and the base classifier's, whose rows are what the graph hands on."""
        wide, base = self._enhanced(features, sample.boxes)
        outputs = self.classify(wide), self.regress(wide).unflatten(-1, (-1, 4)), sample.boxes
        losses = self.losses_of(outputs, sample, truth)
        return {**losses, "base_class": class_loss(base, sample.labels, self.criteria)}

    def _enhanced(self, features: Sequence[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, K, D + E, or + 2 E) with what the graph adds, and the base classifier's logits (B, K, C + 1)."""
        hidden = self.instances(features, proposals)
        base = self.first["classify"]
        assert isinstance(base, nn.Linear)
        logits = base(hidden)
        chances = logits.float().softmax(-1).to(hidden)
        # What a box may be, in the rows of the classifier: the soft mapping from the classes' pool to the boxes.
        pool = base.weight
        edges = adjacency(F.relu(self.relate(hidden)), proposals)
        known = self._spread(edges, chances @ pool, proposals)
        parts = [hidden, F.relu(self.gather(known))]
        if self.others:
            parts.append(F.relu(chances @ self.transferred(pool)))
        return torch.cat(parts, -1), logits

    def transferred(self, pool: Tensor) -> Tensor:
        """The other detector's pool for the classes (C + 1, D) of this one: (C + 1, E), by the likeness of classes."""
        like = self.liken(pool) @ self.liken_other(self.other).T
        carried: Tensor = (like / math.sqrt(self.liken.out_features)).softmax(-1) @ self.carry(self.other)
        return carried

    def _spread(self, edges: Tensor, known: Tensor, proposals: Tensor) -> Tensor:
        """(B, K, KERNELS * D): what the neighbours know (B, K, D), through a Gaussian kernel for each sort of place."""
        places = polar(proposals)
        apart = (places[:, :, :, None] - self.centres) * self.spreads.exp()
        kernels = torch.exp(-0.5 * apart.square().sum(-1)).to(known)
        return torch.cat([(edges * kernels[..., i]) @ known for i in range(KERNELS)], -1)


def pool_of(run: Path) -> Tensor:
    """The semantic pool (C, D) of a finished run's detector: what its last class layer knows of each class.

    Raises:
        AcclimateError: the run has no detector, or none whose last class layer has a vector a class.
    """
    detector = load(run)
    layers = dict(detector.named_modules())
    named = [name for name, rows in detector.class_rows().items() if name.endswith("classify") and rows.groups == 1]
    if not named:
        raise AcclimateError(f"model.two_stage.transfer: {run}: its detector has no class layer to carry over")
    weight = layers[named[0]].weight
    assert isinstance(weight, Tensor)
    first = detector.class_rows()[named[0]].background
    return weight.detach()[first : first + len(detector.spec.classes)].flatten(1)


def adjacency(vectors: Tensor, boxes: Tensor) -> Tensor:
    """Edges (B, K, K) between boxes (B, K, 4): a softmax of the products of vectors (B, K, E), of which each row keeps
    its NEIGHBOURS largest. Padding, which has no area, is nobody's neighbour."""
    likeness = (vectors @ vectors.transpose(1, 2)).float()
    sides = boxes[..., 2:] - boxes[..., :2]
    padding = (sides.amin(-1) <= 0)[:, None]
    likeness = likeness.masked_fill(padding, -1e4)
    least = likeness.topk(min(NEIGHBOURS, likeness.shape[-1]), -1).values[..., -1:]
    kept = (likeness >= least) & ~padding
    return (likeness.masked_fill(~kept, -1e4).softmax(-1) * kept).to(vectors)


def polar(boxes: Tensor) -> Tensor:
    """Where each box (B, K, 4) sees each other's centre: (B, K, K, 2), distance in sides of its own, and angle."""
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    apart = (centre[:, None] - centre[:, :, None]) / size.prod(-1).sqrt()[:, :, None, None]
    distance = (apart.square().sum(-1) + 1e-6).sqrt()
    # The sine in the angle's place: runtimes lack the arctangent of two arguments, and what it no longer tells apart is
    # left and right, which mean the same on a road.
    return torch.stack([torch.log1p(distance), apart[..., 1] / distance], -1)
