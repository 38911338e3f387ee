"""SymNet's losses, SEED and OSTC against numbers by hand, and what each loss may reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import classification as c
from acclimate.errors import AcclimateError
from acclimate.models.slimmable import Slimmable, macs
from as_trained import trained

K = 2
# One image, two classes: the exponentials of the logits are 1, 2, 3, 4, so p = (0.1, 0.2, 0.3, 0.4).
Z = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()[None]


def test_classifier_loss_by_hand() -> None:
    # CE(C_s, 1) = -log 2/3; CE(C_t, 1) = -log 4/7; domains: -log 0.3 of the source image, -log 0.7 of the target's.
    found = c.classifier_loss(Z, torch.tensor([1]), Z)
    assert float(found) == pytest.approx(-math.log(2 / 3) - math.log(4 / 7) - math.log(0.3) - math.log(0.7))


def test_confusions_and_entropy_by_hand() -> None:
    assert float(c.category_confusion(Z, torch.tensor([0]))) == pytest.approx(-math.log(0.1) - math.log(0.3))
    assert float(c.domain_confusion(Z)) == pytest.approx(-math.log(0.3) - math.log(0.7))
    assert float(c.entropy(Z)) == pytest.approx(-0.4 * math.log(0.4) - 0.6 * math.log(0.6))
    torch.testing.assert_close(c.merged(Z).exp(), torch.tensor([[0.4, 0.6]], dtype=torch.float64))


def test_distillation_by_hand() -> None:
    soft = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    expected = -0.25 * math.log(0.4) - 0.75 * math.log(0.6)
    assert float(c.distillation(c.merged(Z), soft)) == pytest.approx(expected)


def naive(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def test_losses_are_means_over_images_with_the_gradients_of_their_formulas() -> None:
    torch.manual_seed(0)
    source, target = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    y, rows = torch.tensor([0, 2, 1, 2]), torch.arange(4)
    p, q = naive(source), naive(target)
    own, other = naive(source[:, :3]), naive(source[:, 3:])
    both = q[:, :3] + q[:, 3:]
    pairs = [
        (
            c.classifier_loss(source, y, target),
            -(own[rows, y].log() + other[rows, y].log() + p[:, :3].sum(1).log()).mean() - q[:, 3:].sum(1).log().mean(),
        ),
        (c.category_confusion(source, y), -(p[rows, y].log() + p[rows, y + 3].log()).mean()),
        (c.domain_confusion(target), -(q[:, :3].sum(1).log() + q[:, 3:].sum(1).log()).mean()),
        (c.entropy(target), -(both * both.log()).sum(1).mean()),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad(loss, (source, target), retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in (found, expected)
        ]
        torch.testing.assert_close(*gradients)


def test_extreme_logits_stay_finite() -> None:
    far = torch.tensor([[500.0, -500.0, -500.0, 300.0]], requires_grad=True)
    loss = c.domain_confusion(far) + c.entropy(far) + c.category_confusion(far, torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


# The bank.


class Network(nn.Module):
    """One linear layer; a width keeps its first outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.width = 1.0

    def set_width(self, width: float | Sequence[float]) -> None:
        self.width = width if isinstance(width, float) else width[0]

    def features(self, images: Tensor) -> Tensor:
        full: Tensor = self.layer(images.flatten(1)).tanh()
        return full[:, : int(8 * self.width)]


def bank(**options: Any) -> c.Bank:
    torch.manual_seed(0)
    return c.Bank(Network(), 8, K, c.BankOptions(**options)).double()


def data() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 1, 2, 2).double(), torch.tensor([0, 1, 0, 1, 1, 0]), torch.randn(5, 1, 2, 2).double()


def logits(made: c.Bank, images: Tensor, width: float) -> Tensor:
    """[C_s f, C_t f], written a second time."""
    n = int(8 * width)
    f = made.network.layer(images.flatten(1)).tanh()[:, :n]
    return torch.cat([f @ head.weight[:, :n].T + head.bias for head in (made.source, made.target)], 1)


def test_each_loss_is_the_mean_over_the_models() -> None:
    made, (x, y, t), widths, progress = bank(ensemble=0.0, third=False), data(), [1.0, 0.5, 0.25], 0.3
    losses = made.losses(x, y, t, widths, progress)
    pairs = [(logits(made, x, width), logits(made, t, width)) for width in widths]
    ramp = 2 / (1 + math.exp(-3.0)) - 1
    expected = {
        "classifier": sum(c.classifier_loss(s, y, u) for s, u in pairs) / 3,
        "category": sum(c.category_confusion(s, y) for s, _ in pairs) / 3,
        "domain": ramp * sum(c.domain_confusion(u) for _, u in pairs) / 3,
        "entropy": ramp * sum(c.entropy(u) for _, u in pairs) / 3,
    }
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize("reaches", [True, False])
@pytest.mark.parametrize("third", [True, False])
def test_each_loss_trains_what_it_is_for(third: bool, reaches: bool) -> None:
    made, (x, y, t) = bank(third=third, reaches_features=reaches), data()
    losses = made.losses(x, y, t, [1.0, 0.5], 0.5)
    pair = {"source.weight", "source.bias", "target.weight", "target.bias"}
    deployed = {"deployed.weight", "deployed.bias"} if third else pair
    network = {"network.layer.weight", "network.layer.bias"}
    wanted = {"classifier": pair, "category": network, "domain": network, "entropy": network}
    wanted["ensemble"] = deployed | network if reaches else deployed
    names, parameters = zip(*made.named_parameters(), strict=True)
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        reached = {n for n, g in zip(names, gradients, strict=True) if g is not None and g.abs().sum() > 0}
        assert reached == wanted[name], name


@pytest.mark.parametrize(
    ("kind", "weights"), [("uniform", [0.5, 0.5]), ("macs", [0.75, 0.25]), ("hinge", None)], ids=str
)
def test_the_ensemble_is_distilled_into_the_third_classifier(kind: str, weights: list[float] | None) -> None:
    ramp = kind == "uniform"
    made, (x, y, t) = bank(confidence=kind, temperature=0.5, margin=0.8, ensemble=2.0, ramp=ramp), data()
    found = made.losses(x, y, t, [1.0, 0.5], 0.5, macs=[3.0, 1.0])["ensemble"]
    p = [naive(logits(made, t, width)) for width in (1.0, 0.5)]
    q = [one[:, :K] + one[:, K:] for one in p]
    if weights is None:
        away = float((q[1] - q[0]).detach().square().sum(1).sqrt().mean())
        assert 0 < away < 0.8
        weights = [0.8 / (1.6 - away), (0.8 - away) / (1.6 - away)]
    mean = weights[0] * q[0] + weights[1] * q[1]
    soft = (mean**2 / (mean**2).sum(1, keepdim=True)).detach()
    expected = torch.zeros((), dtype=torch.float64)
    for width in (1.0, 0.5):
        n = int(8 * width)
        f = made.network.layer(t.flatten(1)).tanh()[:, :n]
        assert made.deployed is not None
        told = naive(f @ made.deployed.weight[:, :n].T + made.deployed.bias)
        expected = expected - 2.0 * (soft * told.log()).sum(1).mean() / 2
    torch.testing.assert_close(found, expected * (2 / (1 + math.exp(-5)) - 1 if ramp else 1))


def test_what_is_deployed() -> None:
    x, _, _ = data()
    with_third, without = bank(), bank(third=False)
    with_third.network.set_width(0.5)
    f = with_third.network.features(x)
    assert with_third.deployed is not None
    told = naive(f @ with_third.deployed.weight[:, :4].T + with_third.deployed.bias)
    torch.testing.assert_close(with_third(x).exp(), told)
    p = naive(logits(without, x, 1.0))
    torch.testing.assert_close(without(x).exp(), p[:, :K] + p[:, K:])


def test_confidence_by_macs_needs_them() -> None:
    x, y, t = data()
    with pytest.raises(ValueError, match="0 macs of 2 models"):
        bank(confidence="macs").losses(x, y, t, [1.0, 0.5], 0.5)


@pytest.mark.slow
def test_a_shift_is_undone_at_every_width() -> None:
    """Two classes apart along one axis; the target is moved so that one of them touches the source's boundary.

    A class that lies on the boundary goes to either side, as in any adversarial alignment without labels.
    """
    right, alone_right = torch.zeros(3), 0.0
    widths = [1.0, 0.5, 0.25]
    for seed in range(3):
        torch.manual_seed(seed)
        y = torch.arange(100) % 2
        x = torch.randn(100, 4).double()
        x[:, 0] = 0.3 * x[:, 0] + 4 * y - 2
        t = x + torch.tensor([1.6, 0, 0, 0]).double()
        x, t = x.view(-1, 1, 2, 2), t.view(-1, 1, 2, 2)
        made = bank()
        optimizer = torch.optim.Adam(made.parameters(), 0.02)
        for step in range(150):
            optimizer.zero_grad()
            sum(made.losses(x, y, t, widths, step / 150).values()).backward()
            optimizer.step()
        alone = nn.Linear(4, 2).double()
        optimizer = torch.optim.Adam(alone.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(alone(x.flatten(1)), y).backward()
            optimizer.step()
        alone_right += float((alone(t.flatten(1)).argmax(1) == y).double().mean()) / 3
        for i, width in enumerate(widths):
            made.network.set_width(width)
            right[i] += float((made(t).argmax(1) == y).double().mean()) / 3
    assert alone_right < 0.97
    assert min(right) > 0.98


KINDS: tuple[Literal["resnet", "mobilenet"], ...] = ("resnet", "mobilenet")
CLASSIFIERS = {kind: trained(c.SlimmableClassifier(kind, 5, (28, 28), 1, 32, depth=2)).eval() for kind in KINDS}


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=6, deadline=None)
def test_an_extracted_classifier_is_the_slice_to_the_last_bit(kind: str, data: st.DataObject) -> None:
    made = CLASSIFIERS[kind]
    assert isinstance(made, c.SlimmableClassifier)
    made.set_width([data.draw(st.sampled_from(made.choices)) for _ in made.stages])
    x = torch.randn(2, 1, 28, 28)
    plain = made.extract()
    assert type(plain) is c.Classifier
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = plain(x[:1])
    assert torch.equal(logits, made(x[:1]))
    assert torch.equal(plain.features(x), made.features(x))
    assert counter.get_total_flops() == 2 * macs(made) == 2 * macs(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_the_widths_of_a_classifier_halve_what_it_computes(kind: Literal["resnet", "mobilenet"]) -> None:
    made = c.SlimmableClassifier(kind, 10)
    shares = [macs(made) / macs(made, width) for width in reversed(made.choices)]
    assert all(abs(math.log2(share) - i) < 0.4 for i, share in enumerate(shares)), shares


def test_a_classifier_trains_at_every_width() -> None:
    torch.manual_seed(0)
    made = c.SlimmableClassifier("mobilenet", 2, (28, 28), 1, 32)
    assert isinstance(made, Slimmable)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 1, 28, 28) * 0.1 + labels[:, None, None, None]
    optimiser = torch.optim.AdamW(made.parameters(), 1e-2)
    losses: dict[float, list[float]] = {0.125: [], 1.0: []}
    for _ in range(8):
        for width, seen in losses.items():
            made.set_width(width)
            loss = F.cross_entropy(made(images), labels)
            loss.backward()
            seen.append(loss.item())
        optimiser.step()
        optimiser.zero_grad()
    assert all(seen[-1] < 0.5 * seen[0] for seen in losses.values())


def test_choices_must_rise() -> None:
    with pytest.raises(AcclimateError, match=r"choices: \[0\.5, 0\.25, 1\.0\] must rise"):
        c.SlimmableClassifier("resnet", 2, choices=(0.5, 0.25, 1.0))
