"""The triplet loss against torch's over every triplet, and prototypes by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_teacher import batch, detector

from acclimate.adapt.objective import Objective
from acclimate.adapt.triplet import Triplet, batch_all, batch_hard
from acclimate.config import TripletConfig
from acclimate.data.formats import LabelledSet
from acclimate.structures import Annotations

NONE = LabelledSet("none", "none", ("a", "b"), (), ())


def test_both_minings_are_torchs_over_the_triplets_they_choose() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(9, 4, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
    every = [(a, p, n) for a, p, n in itertools.permutations(range(9), 3) if labels[a] == labels[p] != labels[n]]
    a, p, n = (torch.tensor(rows) for rows in zip(*every, strict=True))
    each = F.triplet_margin_loss(vectors[a], vectors[p], vectors[n], margin=0.3, eps=0, reduction="none")
    assert batch_all(vectors, labels, 0.3).item() == pytest.approx(each[each > 0].mean().item(), abs=1e-6)
    # An anchor's hardest triplet is the one that loses most; class 3 has no second object.
    hardest = torch.stack([each[a == anchor].max() for anchor in range(8)]).mean()
    assert batch_hard(vectors, labels, 0.3).item() == pytest.approx(hardest.item(), abs=1e-6)
    assert batch_hard(vectors[:3], labels[:3], 0.3).item() == 0


def test_prototypes_are_running_means_and_draw_domains_together() -> None:
    term = Triplet(TripletConfig(), 2, 2)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], requires_grad=True)
    apart = term._apart(vectors, torch.tensor([0, 0, 0]), torch.tensor([0, 0, 1]))
    assert apart.item() == pytest.approx((0.5 - 0.6) ** 2 + (0.5 - 0.8) ** 2)
    (slope,) = torch.autograd.grad(apart, vectors)
    assert slope[2].tolist() == pytest.approx([0.2, 0.6])
    term._apart(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([0]))
    assert term.prototypes[0, 0].tolist() == pytest.approx([0.9 * 0.5 + 0.1, 0.45])
    assert term.seen.tolist() == [[True, False], [True, False]]


def test_it_trains_what_makes_the_features() -> None:
    made = detector()
    term = Triplet.create(TripletConfig(mining="batch-all", sure=0.001), made, NONE)
    source, target = batch(1, labelled=True), batch(2)
    boxes = np.float32([[0, 0, 20, 20], [10, 10, 40, 40], [30, 5, 60, 30]])
    source.targets = [Annotations(boxes, np.array([0, 1, 0]), np.zeros(3, bool)) for _ in source.weak]
    losses = Objective(made, [term], 0.9, warm=False).train()(source, target, 1.0)
    assert set(losses) == {"triplet/margin", "triplet/prototypes"}
    assert float(losses["triplet/margin"]) > 0
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in made.backbone.parameters() if parameter.requires_grad)
