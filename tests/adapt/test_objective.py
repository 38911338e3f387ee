"""A step forwards no view twice, and the average of the weights is what its formula says."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from toy_training import Restless, ToyDetector, ToyLoader

from acclimate.adapt.objective import Objective, Step, Term, View
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.teacher import Known, Teacher
from acclimate.config import TeacherConfig
from acclimate.models.detector import Detector

SOFT = TeacherConfig(boxes=0, soft=1)


class Asks(Term):
    """Asks again for what the other terms use too."""

    views: ClassVar[tuple[View, ...]] = ("target_strong", "source_strong")

    def forward(self, step: Step) -> dict[str, Tensor]:
        (one,), (other,) = step.raw("source_strong"), step.raw("target_strong")
        (soft,) = step.average_raw("target_weak")
        level = step.features("target_strong")[0]
        return {"asks/loss": (one.mean() - other.mean() + soft.mean()).square() + 0 * level.mean()}


def objective(*terms: Term, ema: float = 0.9, warm: bool = False) -> Objective:
    return Objective(ToyDetector(), terms or [Supervised()], ema, warm)


def test_no_view_is_forwarded_twice_however_many_terms_ask() -> None:
    made = objective(Supervised(), Teacher(SOFT, Known.fixed([0.3])), Asks(), Asks()).train()
    source, target = ToyLoader(4).batch(0)
    losses = made(source, target, 0.5)
    assert made.detector.passes == [8], "the views go through the detector once, as one batch"
    assert made.average.passes == [4]
    assert set(losses) == {"supervised/class", "teacher/soft_class", "asks/loss"}


def test_only_the_views_that_a_term_trains_on_are_forwarded() -> None:
    made = objective(Supervised()).train()
    made(*ToyLoader(4).batch(0), 0.5)
    assert made.detector.passes == [4]
    assert made.average.passes == []


def test_each_view_gets_its_own_part_of_the_joint_batch() -> None:
    made = objective(Supervised(), Teacher(SOFT, Known.fixed([0.3]))).eval()
    source, target = ToyLoader(3).batch(1)
    step = Step(made.detector, made.average, source, target, 0.0, made.views)
    for view, images in (("source_strong", source.strong), ("target_strong", target.strong)):
        torch.testing.assert_close(step.raw(view)[0], made.detector(images)[0])
        torch.testing.assert_close(step.features(view)[0], made.detector.features(images)[0])
        assert torch.equal(step.images(view), images)
    assert torch.equal(step.images("source_weak"), source.weak)
    torch.testing.assert_close(step.average_raw("source_weak")[0], made.average(source.weak)[0])


def test_the_average_gives_no_gradient_and_stays_in_eval_mode() -> None:
    made = objective(Supervised(), Asks()).train()
    assert made.detector.training
    assert not any(module.training for module in made.average.modules())
    sum(made(*ToyLoader(4).batch(0), 0.5).values()).backward()
    assert all(parameter.grad is None for parameter in made.average.parameters())
    assert all(parameter.grad is not None for parameter in made.detector.parameters())


def test_a_view_of_the_target_needs_target_images() -> None:
    made = objective(Supervised(), Teacher(SOFT, Known.fixed([0.3])))
    with pytest.raises(ValueError, match=r"no target images.*'target_"):
        made(ToyLoader(2).batch(0)[0], None, 0.0)


def test_an_objective_needs_a_view_to_train_on() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        Objective(ToyDetector(), [], 0.9, warm=False)


def test_terms_that_share_a_view_declare_it_once() -> None:
    assert objective(Asks(), Supervised(), Asks()).views == ("target_strong", "source_strong")


@pytest.mark.parametrize("warm", [True, False])
def test_the_average_moves_by_its_formula(warm: bool) -> None:
    made = objective(Supervised(), ema=0.8, warm=warm)
    expected = {name: value.clone() for name, value in made.average.state_dict().items()}
    assert any(not value.is_floating_point() for value in expected.values())
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 30):
        for value in made.detector.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(3)
        made.after_step(step)
        decay = min(0.8, (1 + step) / (10 + step)) if warm else 0.8
        for name, value in made.detector.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            )
    for name, value in made.average.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_frozen_weights_are_the_same_in_the_average_for_ever() -> None:
    detector = ToyDetector()
    detector.first.requires_grad_(False)
    made = Objective(detector, [Supervised()], 0.9, warm=False)
    start = made.average.first.weight.clone()
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for step in range(1, 4):
        optimizer.zero_grad()
        sum(made(*ToyLoader(4).batch(step), 0.0).values()).backward()
        optimizer.step()
        made.after_step(step)
    assert torch.equal(made.average.first.weight, start)
    assert not torch.equal(made.average.last.weight, detector.last.weight)


def test_the_average_is_a_copy_and_not_a_view() -> None:
    made = objective()
    own = {value.data_ptr() for value in made.detector.state_dict().values()}
    assert not own & {value.data_ptr() for value in made.average.state_dict().values()}


def test_terms_finish_after_the_average_with_the_detector_in_hand() -> None:
    seen: list[tuple[nn.Module, float]] = []

    class Watches(Supervised):
        def after_step(self, detector: Detector) -> None:
            seen.append((detector, float(made.average.state_dict()["last.bias"])))

    made = objective(Watches(), ema=0.5)
    with torch.no_grad():
        before = float(made.average.state_dict()["last.bias"])
        made.detector.last.bias.add_(2.0)
    made.after_step(1)
    assert seen == [(made.detector, pytest.approx(before + 1.0))]


def test_a_terms_state_is_part_of_the_objectives() -> None:
    state = objective(Supervised(), Restless()).state_dict()
    assert {"terms.1.memory", "terms.1.scale"} <= state.keys()


def test_supervised_weighs_the_detectors_own_losses() -> None:
    source, _ = ToyLoader(4).batch(0)
    made = objective(Supervised(), Supervised(3.0)).eval()
    step = Step(made.detector, made.average, source, None, 0.0, made.views)
    (expected,) = made.detector.losses(made.detector.features(source.strong), source.targets).values()
    assert expected > 0
    for term, weight in zip(made.terms, (1, 3), strict=True):
        losses = term(step)
        assert list(losses) == ["supervised/class"]
        torch.testing.assert_close(losses["supervised/class"], weight * expected)


class Provides(Term):
    """Makes a view of its own out of both domains, and asks for it."""

    views: ClassVar[tuple[View, ...]] = ("mixed",)

    def prepare(self, step: Step) -> None:
        step.provide(
            "mixed", step.images("source_weak") / 2 + step.images("target_weak") / 2, step.source.targets or ()
        )

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {f"provides/{name}": loss for name, loss in step.losses("mixed", step.targets("mixed")).items()}


def test_a_view_that_a_term_provides_goes_through_with_the_others() -> None:
    made = objective(Supervised(), Provides()).train()
    source, target = ToyLoader(4).batch(0)
    losses = made(source, target, 0.5)
    assert made.detector.passes == [8]
    assert set(losses) == {"supervised/class", "provides/class"}


def test_domains_apart_are_normalised_by_themselves_and_the_target_is_remembered() -> None:
    source, target = ToyLoader(4).batch(0)
    bright = type(target)(target.weak, target.strong + 500.0, target.targets)
    made = Objective(ToyDetector(), [Supervised(), Asks()], 0.9, warm=False, by_domain=True).train()
    other = ToyDetector().train()
    expected = {"source_strong": other(source.strong)[0]}
    other = ToyDetector().train()
    expected["target_strong"] = other(bright.strong)[0]
    step = Step(made.detector, made.average, source, bright, 0.5, made.views, by_domain=True)
    for view, raw in expected.items():
        torch.testing.assert_close(step.raw(view)[0], raw)
    assert made.detector.passes == [4, 4]
    norm = made.detector.norm
    torch.testing.assert_close(norm.running_mean, other.norm.running_mean)
    torch.testing.assert_close(norm.running_var, other.norm.running_var)
    # Without a target there is one domain, and its statistics are kept.
    alone = Objective(ToyDetector(), [Supervised()], 0.9, warm=False, by_domain=True).train()
    alone(source, None, 0.5)
    assert not torch.equal(alone.detector.norm.running_mean, ToyDetector().norm.running_mean)
