"""Critics against closed forms, their reversal against autograd, and the game they play on a toy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss
from toy_training import SIDE, ToyDetector, stopped_and_resumed

from acclimate.adapt import adversarial
from acclimate.adapt.adversarial import Adversarial, focal_loss, reverse, strength_at
from acclimate.adapt.objective import Objective, Step, Term
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.teacher import Known, Teacher
from acclimate.config import AdversarialConfig, ModelConfig, TeacherConfig, TwoStageConfig
from acclimate.data.augment import FILL
from acclimate.data.formats import LabelledSet
from acclimate.models.detector import Detector, DetectorSpec, build, specify
from acclimate.structures import Annotations, Batch

NOTHING = LabelledSet("none", "coco", ("a", "b"), ())
KINDS = ("da-faster", "swda")


def detector() -> Detector:
    torch.manual_seed(0)
    spec = DetectorSpec(
        classes=("a", "b"), image_size=(64, 96), backbone="test_efficientnet", strides=(8, 16), channels=16, depth=0,
        norm="group",
    )  # fmt: skip
    return build(spec)


def batch(seed: int, labelled: bool = False, padded: int = 0) -> Batch:
    """Noise, with the rightmost `padded` columns of the weak view outside the image."""
    generator = torch.Generator().manual_seed(seed)
    weak, strong = (255 * torch.rand(2, 3, 64, 96, generator=generator) for _ in range(2))
    weak[..., 96 - padded :] = FILL
    one = Annotations(np.array([[8, 8, 40, 48]], np.float32), np.array([1]), np.array([False]))
    return Batch(weak, strong, [one, one] if labelled else None)


def objective(*others: Term, **changes: Any) -> Objective:
    made = detector()
    torch.manual_seed(1)
    term = Adversarial.create(AdversarialConfig(**{"regions": 5, "weight": 1.0, **changes}), made, NOTHING)
    return Objective(made, [*others, term], 0.9, warm=False).train()


def step_of(made: Objective, progress: float = 1.0, padded: int = 0) -> Step:
    source, target = batch(1, labelled=True, padded=padded), batch(2, padded=padded)
    return Step(made.detector, made.average, source, target, progress, made.views)


def term_of(made: Objective) -> Adversarial:
    term = made.terms[-1]
    assert isinstance(term, Adversarial)
    return term


@pytest.mark.parametrize("kind", KINDS)
def test_how_hard_the_critics_push_is_told_against_everything_else(kind: str) -> None:
    """The ratio of gradient norms at the pyramid, from two backward passes of their own."""
    made = objective(Supervised(), kind=kind)
    step = step_of(made)
    # Both views are one batch, which the detector's head looks at as a whole.
    views, _ = step.shared("source_strong")
    assert all(len(level) == 4 for level in views)
    own = made.terms[0](step)
    critics = made.terms[1](step)
    norms = []
    for losses in (critics, own):
        found = torch.autograd.grad(sum(losses.values()), views, retain_graph=True, allow_unused=True)
        norms.append(torch.stack([g.norm() for g in found if g is not None]).norm().item())
    sum((*own.values(), *critics.values())).backward()
    seen = term_of(made).seen()
    assert seen["critics_gradient"] == pytest.approx(norms[0] / norms[1], rel=1e-3)
    assert seen["critics_gradient"] > 0


def test_without_another_loss_there_is_nothing_to_compare_with() -> None:
    made = objective()
    sum(made.terms[0](step_of(made)).values()).backward()
    assert "critics_gradient" not in term_of(made).seen()


@given(st.floats(0, 3))
def test_the_reversal_is_the_identity_and_turns_the_gradient(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    assert torch.equal(reverse(x, strength), x)
    (plain,) = torch.autograd.grad((x.square() * weight).sum(), x)
    (turned,) = torch.autograd.grad((reverse(x, strength).square() * weight).sum(), x)
    torch.testing.assert_close(turned, -strength * plain)


@given(st.floats(0, 1))
def test_the_schedule_is_its_formula(progress: float) -> None:
    assert strength_at(progress, "ramp") == pytest.approx(2 / (1 + np.exp(-10 * progress)) - 1)
    assert strength_at(progress, "constant") == 1.0


def test_the_ramp_starts_at_nothing_and_ends_at_one() -> None:
    assert strength_at(0.0, "ramp") == 0.0
    assert strength_at(1.0, "ramp") == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 5.0])
def test_the_focal_loss_is_torchvisions(gamma: float) -> None:
    logits = torch.linspace(-8, 8, 40, dtype=torch.float64)
    for domain in (torch.zeros_like(logits), torch.ones_like(logits)):
        expected = sigmoid_focal_loss(logits, domain, alpha=-1, gamma=gamma)
        torch.testing.assert_close(focal_loss(logits, domain, gamma), expected)


def test_da_faster_is_its_closed_form() -> None:
    made = objective(kind="da-faster")
    critics = term_of(made).critics
    losses = {name: float(loss.detach()) for name, loss in made.terms[0](step_of(made)).items()}
    image, instance, apart, right = [], [], [], []
    with torch.no_grad():
        for domain, one in ((0.0, batch(1)), (1.0, batch(2))):
            for i in range(2):
                levels = made.detector.features(one.strong[i : i + 1])
                maps = [critic(level) for critic, level in zip(critics.image, levels, strict=True)]
                chance = [(p if domain else 1 - p) for p in (m.sigmoid() for m in maps)]
                image.append(np.mean([float(-p.log().mean()) for p in chance]))
                boxes = made.detector.regions(levels, 5)
                each = critics.instance(made.detector.instances(levels, boxes))[:, 0].sigmoid()
                instance.append(float(-(each if domain else 1 - each).log().mean()))
                mean = np.mean([float(m.sigmoid().mean()) for m in maps])
                apart.append(float((mean - each).abs().mean()))
                each_map = np.mean([float(((m > 0) == bool(domain)).float().mean()) for m in maps])
                right.append((each_map, float(((each > 0.5) == bool(domain)).float().mean())))
    assert set(losses) == {"adversarial/image", "adversarial/instance", "adversarial/consistency"}
    assert losses["adversarial/image"] == pytest.approx(np.mean(image), rel=1e-4)
    assert losses["adversarial/instance"] == pytest.approx(np.mean(instance), rel=1e-4)
    assert losses["adversarial/consistency"] == pytest.approx(np.mean(apart), rel=1e-3)
    told = term_of(made).seen()["domain_critics"]
    assert [told["image"], told["instance"]] == pytest.approx(np.mean(right, axis=0), abs=1e-4)


def test_swda_is_its_closed_form() -> None:
    made = objective(kind="swda", gamma=5.0)
    critics = term_of(made).critics
    losses = {name: float(loss.detach()) for name, loss in made.terms[0](step_of(made)).items()}
    local, scene, right = [], [], []
    with torch.no_grad():
        for domain, one in ((0.0, batch(1)), (1.0, batch(2))):
            levels = made.detector.features(one.strong)
            found = critics.local(levels[0]).sigmoid()
            local.append(float(((1 - found) if domain else found).square().mean()))
            p = critics.judge(critics.scene(levels[-1]).mean((2, 3))).sigmoid()
            right += [((found > 0.5) == bool(domain)).float().mean(), ((p > 0.5) == bool(domain)).float().mean()]
            p = p if domain else 1 - p
            scene.append(float((-((1 - p) ** 5) * p.log()).mean()))
    assert set(losses) == {"adversarial/local", "adversarial/global"}
    assert losses["adversarial/local"] == pytest.approx(np.mean(local), rel=1e-4)
    assert losses["adversarial/global"] == pytest.approx(np.mean(scene), rel=1e-3)
    told = term_of(made).seen()["domain_critics"]
    assert told["local"] == pytest.approx(float(right[0] + right[2]) / 2, abs=1e-4)
    assert told["global"] == pytest.approx(float(right[1] + right[3]) / 2, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_gets_the_critics_gradient_reversed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same losses without a reversal; the consistency is not reversed."""
    made = objective(kind=kind)
    game = [name for name in term_of(made)(step_of(made)) if name != "adversarial/consistency"]

    def gradients(progress: float) -> tuple[list[Tensor], list[Tensor]]:
        losses = term_of(made)(step_of(made, progress))
        own, critics = list(made.detector.backbone.parameters()), list(term_of(made).parameters())
        found = torch.autograd.grad(sum(losses[name] for name in game), own + critics, allow_unused=True)
        return [g for g in found[: len(own)] if g is not None], list(found[len(own) :])

    half, critics = gradients(0.05)
    none, _ = gradients(0.0)
    monkeypatch.setattr(adversarial, "reverse", lambda x, strength: x)
    plain, expected = gradients(0.05)
    assert any(gradient.abs().max() > 0 for gradient in plain)
    for found, zero, wanted in zip(half, none, plain, strict=True):
        torch.testing.assert_close(found, -strength_at(0.05, "ramp") * wanted, rtol=1e-3, atol=1e-6)
        assert not zero.any()
    for gradient, wanted in zip(critics, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_the_consistency_draws_both_critics_and_the_features_together() -> None:
    made = objective(kind="da-faster")
    loss = term_of(made)(step_of(made, progress=0.0))["adversarial/consistency"]
    loss.backward()
    weights = [*term_of(made).parameters(), next(made.detector.backbone.parameters())]
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights[:-1] if weight.ndim > 1)
    assert weights[-1].grad is not None
    assert weights[-1].grad.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", ["all", "last"])
def test_every_parameter_gets_a_gradient_and_the_average_none(kind: str, levels: str) -> None:
    made = objective(Supervised(), kind=kind, levels=levels)
    sum(made(batch(1, labelled=True), batch(2), 0.5).values()).backward()
    trained = [*made.detector.parameters(), *term_of(made).parameters()]
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in trained)
    assert all(parameter.grad is None for parameter in made.average.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_two_stage_detectors_too(kind: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        kind="two-stage", image_size=(64, 96), backbone="test_efficientnet", strides=(8, 16), channels=16, norm="group",
        two_stage=TwoStageConfig(proposals=8, hidden=16),
    )  # fmt: skip
    made = build(specify(config, ["a", "b"]))
    term = Adversarial.create(AdversarialConfig(kind=kind, regions=6), made, NOTHING)
    both = Objective(made, [Supervised(), term], 0.9, warm=False).train()
    losses = both(batch(1, labelled=True), batch(2), 0.5)
    sum(losses.values()).backward()
    assert sum(name.startswith("adversarial/") for name in losses) == len(term_of(both)(step_of(both)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    gradients = {name: parameter.grad for name, parameter in both.named_parameters() if parameter.requires_grad}
    assert not [name for name, gradient in gradients.items() if gradient is None]


def test_the_level_option_takes_one_critic() -> None:
    assert len(term_of(objective(kind="da-faster")).critics.image) == 2
    assert len(term_of(objective(kind="da-faster", levels="last")).critics.image) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_the_weight(kind: str) -> None:
    one, half = (objective(kind=kind, weight=weight) for weight in (1.0, 0.5))
    found, expected = (term_of(made)(step_of(made)) for made in (half, one))
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(0.5 * value.item())


@pytest.mark.parametrize("kind", KINDS)
def test_critics_do_not_look_outside_the_image(kind: str) -> None:
    """A pyramid that differs there alone gives the same image-level losses."""
    made = objective(kind=kind)
    plain = made.detector.features

    def marked(mark: float) -> Callable[[Tensor], list[Tensor]]:
        return lambda images: [
            torch.cat([x[..., : x.shape[3] // 2], mark + x[..., x.shape[3] // 2 :]], 3) for x in plain(images)
        ]

    names = ["adversarial/image"] if kind == "da-faster" else ["adversarial/local", "adversarial/global"]
    found: dict[tuple[float, int], list[float]] = {}
    for padded in (48, 0):
        for mark in (0.0, 3.0):
            made.detector.features = marked(mark)
            losses = term_of(made)(step_of(made, padded=padded))
            found[mark, padded] = [losses[name].item() for name in names]
    assert found[3.0, 48] == pytest.approx(found[0.0, 48], rel=1e-6)
    assert found[3.0, 0] != pytest.approx(found[0.0, 0], rel=1e-6)


def test_an_image_that_is_all_canvas_says_nothing() -> None:
    for kind in KINDS:
        made = objective(kind=kind)
        losses = term_of(made)(step_of(made, padded=96))
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        if kind == "da-faster":
            assert losses["adversarial/image"].item() == 0


class FewRegions(ToyDetector):
    """A detector that proposes nothing in its first image, or boxes of no area."""

    def __init__(self, padded: bool) -> None:
        super().__init__(norm=False)
        self.padded = padded

    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        first, *others = super().regions(features, count, raw)
        return [0 * first if self.padded else first[:0], *others]


@pytest.mark.parametrize("padded", [False, True])
def test_an_image_without_regions_counts_as_nothing(padded: bool) -> None:
    toy = FewRegions(padded)
    term = Adversarial(AdversarialConfig(kind="da-faster", regions=3), [8], 8)
    views = [255 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    losses = term(Step(toy, toy, Batch(views[0], views[0]), Batch(views[1], views[1]), 1.0, Adversarial.views))
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        levels = [toy.features(view) for view in views]
        p = [term.critics.instance(level[0][1].mean((1, 2))).sigmoid() for level in levels]
    expected = -0.25 * ((1 - p[0]).log() + p[1].log())
    assert losses["adversarial/instance"].item() == pytest.approx(0.1 * expected.item(), rel=1e-4)


def test_no_view_is_forwarded_twice_beside_the_other_terms() -> None:
    toy = ToyDetector()
    terms = [Supervised(), Teacher(TeacherConfig(boxes=0, soft=1), Known.fixed([0.3]))]
    term = Adversarial(AdversarialConfig(kind="da-faster"), [8], 8)
    made = Objective(toy, [*terms, term], 0.9, warm=False).train()
    assert made.views == ("source_strong", "target_strong")
    images = 255 * torch.rand(2, 3, SIDE, SIDE)
    toy.passes.clear()
    made(Batch(images, images, [Annotations.empty()] * 2), Batch(images, images), 0.5)
    assert toy.passes == [4]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_taken_in_full_precision(kind: str) -> None:
    made = objective(Supervised(), kind=kind)
    full = made(batch(1, labelled=True), batch(2), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(batch(1, labelled=True), batch(2), 0.5)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=0.1, abs=0.01)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


class Direction(ToyDetector):
    """Its one feature is the images' colour along a direction that is learnt; it cannot vanish."""

    def __init__(self) -> None:
        super().__init__(norm=False)
        self.last = nn.Conv2d(1, 1, 1)
        self.direction = nn.Parameter(torch.tensor([1.0, 0.5, -0.5]))

    def features(self, images: Tensor) -> list[Tensor]:
        unit = self.direction / self.direction.norm()
        return [torch.einsum("bchw,c->bhw", images / 32 - 4, unit)[:, None]]


def domains(seed: int, count: int) -> tuple[Batch, Batch]:
    """Noise of the same strength in all channels; the source has more red, the target more blue."""
    images = 255 * torch.rand(2 * count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    images[:count, 0] += 150
    images[count:, 2] += 150
    return Batch(images[:count], images[:count]), Batch(images[count:], images[count:])


def play(kind: str, rates: tuple[float, float], progress: float) -> tuple[float, float]:
    """The game between direction and critics: how often the critic of locations is right in the end, and how often
    the best threshold on the feature would be."""
    torch.manual_seed(0)
    toy = Direction()
    term = Adversarial(AdversarialConfig(kind=kind, weight=1.0, hidden=8, gamma=0.0, regions=1), [1], 1)
    made = Objective(toy, [term], 0.9, warm=False)
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip((toy, term), rates, strict=True)]
    optimizer = torch.optim.SGD(groups)
    for step in range(80):
        optimizer.zero_grad()
        losses = made(*domains(step, 8), progress)
        # Unreversed, it is no part of the game.
        losses.pop("adversarial/consistency", None)
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        feature = toy.features(torch.cat([batch.weak for batch in domains(1000, 64)]))[0]
        critic = term.critics.image[0] if kind == "da-faster" else term.critics.local
        target = torch.arange(128).ge(64)[:, None, None, None].expand_as(feature)
        right = ((critic(feature) > 0) == target).float().mean()
        order = target.flatten()[feature.flatten().argsort()].float()
        share = (order.cumsum(0) + (1 - order).sum() - (1 - order).cumsum(0)) / len(order)
    return float(right), float(torch.maximum(share, 1 - share).max())


@pytest.mark.parametrize(("kind", "rates"), [("da-faster", (0.02, 0.2)), ("swda", (0.05, 0.3))])
def test_with_the_reversal_the_domains_look_alike_and_without_it_they_do_not(
    kind: str, rates: tuple[float, float]
) -> None:
    # At the start of the ramp the critics learn and the features are left alone.
    right, possible = play(kind, rates, progress=0.0)
    assert right > 0.85
    assert possible > 0.87
    right, possible = play(kind, rates, progress=1.0)
    assert abs(right - 0.5) < 0.1
    assert possible < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    def terms() -> list[Term]:
        return [Supervised(), Adversarial(AdversarialConfig(kind=kind, hidden=4, regions=2), [8], 8)]

    (_, expected), (run, made) = stopped_and_resumed(tmp_path, terms, 6)
    for name, value in expected.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name
    assert any(name.startswith("adversarial/") for name in run.metrics()[0])
    assert not any("critic" in name for name in made.average.state_dict())
