"""DSS against its formulas in float64, autograd, the facts about normalisation, and in anybody's training loop."""

from __future__ import annotations

import copy
import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.linalg import vector_norm as norm
from torch.nn import functional as F
from torch.nn.utils import parametrize
from toy_training import ToyDetector, train

from acclimate.adapt.objective import Objective, Term, UpdateTransform, Watcher
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.suppression import DomainSpecificSuppression, LayerWatch, UpdateSuppression
from acclimate.adapt.teacher import Known, Teacher
from acclimate.config import ModelConfig, SuppressionConfig, TeacherConfig, TwoStageConfig, parse
from acclimate.errors import AcclimateError
from acclimate.models.detector import build, specify
from acclimate.models.reparametrise import (
    Granularity,
    convolutions,
    fold,
    folded_state,
    reparametrise,
    rescale,
    trained_weight,
)

GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel")


def projected(gradient: Tensor, weight: Tensor, strength: float = 1.0, granularity: str = "tensor") -> Tensor:
    """g - strength <g, W> W / ||W||^2, written a second time: by a matrix that projects the flattened weight.

    What has no gradient is left alone."""
    if granularity == "channel":
        return torch.stack([projected(g, w, strength) for g, w in zip(gradient, weight, strict=True)])
    live = torch.where(gradient != 0, weight, 0).flatten()
    unit = live / live.norm().clamp(min=1e-30)
    matrix = torch.eye(len(unit), dtype=weight.dtype) - strength * torch.outer(unit, unit)
    return (matrix @ gradient.flatten()).reshape(weight.shape)


def chance(weight: Tensor) -> float:
    """Mean |cosine| of a weight and many random directions."""
    drawn = torch.randn(20_000, weight.numel(), generator=torch.Generator().manual_seed(0))
    return float(F.cosine_similarity(drawn, weight.flatten()[None], dim=1).abs().mean())


def network(*norms: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two convolutions, one of them depthwise, each followed by a norm (none as a rule), and a linear head.

    As everywhere, a norm takes the place of the bias; one over groups would not undo it.
    """
    first, second = norms or (nn.Identity(), nn.Identity())
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=not norms), first, nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=not norms), second, nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    ).to(dtype)  # fmt: skip


def batch(seed: int, dtype: torch.dtype = torch.float64, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, 3, 8, 8, generator=generator, dtype=dtype),
        torch.randint(0, 4, (size,), generator=generator),
    )


def loss(model: nn.Module, seed: int = 0) -> Tensor:
    images, labels = batch(seed, next(model.parameters()).dtype)
    return F.cross_entropy(model(images), labels)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in convolutions(model).items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, layer in convolutions(model).items():
        assert layer.weight.grad is not None
        found[name] = layer.weight.grad.clone()
    return found


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "momentum foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}


class ByHand:
    """The optimizers' own formulas, for one weight, given the gradient of each step."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        self.steps += 1
        if self.kind == "sgd":
            return weight - 0.1 * gradient
        if self.kind.startswith("momentum"):
            self.first = 0.9 * self.first + gradient
            return weight - 0.1 * self.first
        # Decoupled decay (Loshchilov and Hutter 2019): outside the projection.
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean, variance = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return weight * (1 - 0.01 * 0.1) - 0.01 * mean / (variance.sqrt() + 1e-8)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_update_is_the_formula(kind: str, strength: float, granularity: Granularity) -> None:
    torch.manual_seed(1)
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    DomainSpecificSuppression(model, strength, granularity).attach(optimizer)
    by_hand = {name: ByHand(kind) for name in weights(model)}
    for step in range(4):
        optimizer.zero_grad()
        loss(model, step).backward()
        before, raw, head = weights(model), gradients(model), copy.deepcopy(model[8].weight.grad)
        optimizer.step()
        for name, weight in before.items():
            expected = by_hand[name].step(weight, projected(raw[name], weight, strength, granularity))
            torch.testing.assert_close(weights(model)[name], expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(model[8].weight.grad, head), "only convolutions are touched"


@given(st.integers(0, 10_000), st.sampled_from(GRANULARITIES), st.sampled_from([torch.float32, torch.bfloat16]))
def test_full_strength_leaves_a_gradient_at_right_angles(seed: int, granularity: Granularity, dtype: Any) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(6, 4, 3, groups=2).to(dtype)
    gradient = torch.randn_like(layer.weight) + layer.weight.detach()
    layer.weight.grad = gradient.clone()
    DomainSpecificSuppression(layer, granularity=granularity)(layer)
    assert layer.weight.grad.dtype == dtype
    rest, weight = layer.weight.grad.double(), layer.weight.detach().double()
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    for g, w in zip(rest, weight, strict=True) if granularity == "channel" else [(rest, weight)]:
        assert abs(float((g * w).sum())) < tolerance * float(w.norm() * gradient.double().norm())
    assert float(rest.norm()) > 0.1


def test_a_step_of_sgd_leaves_the_weight_at_right_angles() -> None:
    torch.manual_seed(0)
    model = network()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DomainSpecificSuppression(model).attach(optimizer)
    loss(model).backward()
    optimizer.step()
    for name, weight in weights(model).items():
        step = weight - before[name]
        assert step.norm() > 1e-4
        assert abs(float((step * before[name]).sum())) < 1e-14


def test_a_weight_or_channel_of_zeros_is_left_alone() -> None:
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    for granularity in GRANULARITIES:
        gradient = torch.randn_like(layer.weight)
        layer.weight.grad = gradient.clone()
        DomainSpecificSuppression(layer, granularity=granularity)()
        assert torch.equal(layer.weight.grad[1], gradient[1])
        assert layer.weight.grad.isfinite().all()
    with torch.no_grad():
        layer.weight.zero_()
    layer.weight.grad = gradient.clone()
    DomainSpecificSuppression(layer)()
    assert torch.equal(layer.weight.grad, gradient)
    for granularity in GRANULARITIES:
        frozen_norm = reparametrise(copy.deepcopy(layer), granularity)
        frozen_norm(torch.rand(1, 3, 5, 5)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in frozen_norm.parameters())


# What normalisation does to the cosine of gradient and weight: the facts that decide whether DSS does anything.


def cosine(layer: nn.Conv2d) -> float:
    assert layer.weight.grad is not None
    return float(F.cosine_similarity(layer.weight.grad.flatten(), layer.weight.detach().flatten(), dim=0))


def normalisations(kind: str) -> list[nn.Module]:
    if kind == "none":
        return [nn.Identity(), nn.Identity()]
    if kind == "group":
        return [nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)]
    found = [nn.BatchNorm2d(8, eps=1e-12), nn.BatchNorm2d(8, eps=1e-12)]
    return [one.eval() for one in found] if kind == "frozen" else list(found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("kind", "acts"), [("none", True), ("frozen", True), ("train", False), ("group", False)])
def test_a_norm_that_undoes_the_scale_leaves_nothing_to_suppress(kind: str, acts: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model = network(*normalisations(kind), dtype=torch.float32)
    loss(model, seed).backward()
    found = [abs(cosine(layer)) for layer in (model[0], model[3])]
    if acts:
        assert max(found) > 1e-3
    else:
        assert max(found) < 5e-5


def test_channels_have_a_scale_of_their_own_before_a_norm_over_groups() -> None:
    torch.manual_seed(0)
    model = network(*normalisations("group"), dtype=torch.float32)
    loss(model).backward()
    before = gradients(model)
    DomainSpecificSuppression(model, granularity="tensor")()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name], rtol=1e-3, atol=1e-5)
    DomainSpecificSuppression(model, granularity="channel")()
    after = gradients(model)
    assert any((after[name] - gradient).norm() > 1e-2 * gradient.norm() for name, gradient in before.items())


@pytest.mark.parametrize(("kind", "warned"), [("none", False), ("frozen", False), ("train", True), ("group", True)])
def test_a_warning_says_once_where_it_does_nothing(kind: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = network(*normalisations(kind), dtype=torch.float32)
    suppress = DomainSpecificSuppression(model)
    with caplog.at_level(logging.WARNING):
        suppress()
        assert not caplog.records, "without a gradient there is nothing to say"
        for step in range(3):
            model.zero_grad()
            loss(model, step).backward()
            suppress()
    assert len(caplog.records) == warned
    if warned:
        assert "2 of 2 convolutions (0, ...)" in caplog.text
        assert "model.norm = frozen" in caplog.text


@pytest.mark.parametrize(("norm", "acts"), [("frozen", True), ("batch", False)])
def test_the_detector_is_one_that_it_acts_on_where_its_norm_is_frozen(norm: str, acts: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(backbone="lcnet_050", image_size=(64, 64), weights="none", norm=norm, channels=16, depth=1)
    detector = build(specify(config, ["a"])).train()
    found = DomainSpecificSuppression(detector.backbone).layers
    assert len(found) == len([m for m in detector.backbone.modules() if isinstance(m, nn.Conv2d)])
    for layer in found.values():
        # Random weights without a norm that is fitted to them let no signal through.
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.3)
    sum(level.square().mean() for level in detector.features(torch.rand(4, 3, 64, 64) * 255)).backward()
    cosines = [abs(cosine(layer)) for name, layer in found.items() if ".se." not in name]
    assert statistics.median(cosines) > 1e-3 if acts else max(cosines) < 1e-5


# In anybody's loop.


def test_accumulated_gradients_are_suppressed_once() -> None:
    torch.manual_seed(0)
    model = network()
    whole = copy.deepcopy(model)
    for parts, copied in ((2, model), (1, whole)):
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
        DomainSpecificSuppression(copied).attach(optimizer)
        images, labels = batch(3)
        for some, their in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(copied(some), their) / parts).backward()
        optimizer.step()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(model)[name], weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("unscale", [True, False])
def test_it_does_not_matter_whether_the_scaler_has_unscaled(unscale: bool) -> None:
    torch.manual_seed(0)
    model = network(dtype=torch.float32)
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for copied, scaled in ((model, True), (plain, False)):
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1, fused=scaled)
        DomainSpecificSuppression(copied).attach(optimizer)
        if not scaled:
            loss(copied).backward()
            optimizer.step()
            continue
        scaler.scale(loss(copied)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(model)[name], weight, rtol=1e-5, atol=1e-7)


def test_a_step_that_the_scaler_skips_changes_nothing() -> None:
    model = network(dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    DomainSpecificSuppression(model).attach(optimizer)
    scaler.scale(1e9 * loss(model)).backward()
    scaler.step(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_under_autocast_the_gradients_of_float32_weights_are_suppressed() -> None:
    torch.manual_seed(0)
    model = network(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(model)
    value.backward()
    expected = {name: projected(g, weights(model)[name]) for name, g in gradients(model).items()}
    DomainSpecificSuppression(model)()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_closure_is_suppressed_after_it_has_run() -> None:
    torch.manual_seed(0)
    model = network()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DomainSpecificSuppression(model).attach(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    returned = optimizer.step(closure)
    loss(twin).backward()
    torch.testing.assert_close(returned, loss(twin))
    for name, weight in weights(twin).items():
        expected = weight - 0.1 * projected(gradients(twin)[name], weight)
        torch.testing.assert_close(weights(model)[name], expected, rtol=1e-10, atol=1e-12)


def test_a_handle_takes_it_off_again() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DomainSpecificSuppression(model).attach(optimizer).remove()
    loss(model).backward()
    raw = gradients(model)
    optimizer.step()
    assert all(torch.equal(gradient, raw[name]) for name, gradient in gradients(model).items())


def test_layers_are_chosen_by_name_and_must_train() -> None:
    model = network()
    assert list(DomainSpecificSuppression(model, layers=("3",)).layers) == ["3"]
    assert list(DomainSpecificSuppression(model, layers=("[0-2]", "x*")).layers) == ["0"]
    with pytest.raises(AcclimateError, match=r"no convolution that trains is called stem\*; there are 0, 3, \.\.\."):
        DomainSpecificSuppression(model, layers=("stem*",))
    model[0].requires_grad_(False)
    assert list(DomainSpecificSuppression(model).layers) == ["3"]
    with pytest.raises(AcclimateError, match=r"no convolution that trains is called \*$"):
        DomainSpecificSuppression(nn.Linear(2, 2))


def test_a_layer_without_a_gradient_is_passed_over() -> None:
    model = network()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    DomainSpecificSuppression(model)()
    assert model[0].weight.grad is None
    torch.testing.assert_close(model[3].weight.grad, projected(torch.ones_like(model[3].weight), weights(model)["3"]))


DISTRIBUTED = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from acclimate.adapt.suppression import DomainSpecificSuppression
from acclimate.models.reparametrise import reparametrise

rank, size, form, out, meeting = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=size)
torch.manual_seed(0)
plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 4)).double()
first = plain[0].weight.detach().clone()
if form == "reparametrised":
    reparametrise(plain)
model = DistributedDataParallel(plain)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
if form == "gradient":
    DomainSpecificSuppression(plain).attach(optimizer)
for step in range(4):
    images, labels = torch.rand(8, 3, 8, 8).double(), torch.randint(0, 4, (8,))
    loss = nn.functional.cross_entropy(model(images.chunk(size)[rank]), labels.chunk(size)[rank])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert (plain[0].weight - first).norm() > 1e-3
if rank == 0:
    torch.save(plain.state_dict(), out)
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gradient", "reparametrised"])
def test_two_processes_train_what_one_does(form: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    states = []
    for size in (1, 2):
        out, meeting = tmp_path / f"{size}.pt", tmp_path / f"meeting{size}"
        started = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(size), form, str(out), str(meeting)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
            for rank in range(size)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * size
        states.append(torch.load(out, weights_only=True))
    one, two = states
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-8, atol=1e-10)


# What an optimizer makes of it: the fact that the form `update` is for.


def half_dead(seed: int, dead: int) -> nn.Sequential:
    """The network with `dead` of the first layer's channels behind a ReLU that passes nothing."""
    torch.manual_seed(seed)
    model = network()
    with torch.no_grad():
        model[0].bias[:dead] = -100.0
    return model


def naive(model: nn.Module) -> None:
    """The projection as it is written in the paper, dead entries and all."""
    for layer in convolutions(model).values():
        weight, gradient = layer.weight.detach(), layer.weight.grad
        assert gradient is not None
        gradient -= (gradient * weight).sum() / weight.square().sum() * weight


PLAIN_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": OPTIMIZERS["sgd"],
    "momentum": OPTIMIZERS["momentum"],
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
}


def moved_along(kind: str, form: str | None, dead: int, steps: int = 8) -> float:
    """Mean |cosine| of each step of the first layer with its weight, over seeds and steps of training."""
    found = []
    for seed in range(6):
        model = half_dead(seed, dead)
        optimizer = PLAIN_OPTIMIZERS[kind](model.parameters())
        if form in {"gradient", "update"}:
            made = UpdateSuppression if form == "update" else DomainSpecificSuppression
            made(model).attach(optimizer)
        for step in range(steps):
            optimizer.zero_grad()
            loss(model, 10 * seed + step).backward()
            if form == "naive":
                naive(model)
            before = model[0].weight.detach().clone()
            optimizer.step()
            moved = model[0].weight.detach() - before
            assert not dead or form == "naive" or kind == "adamw" or not moved[:dead].any()
            found.append(abs(float(F.cosine_similarity(moved.flatten(), before.flatten(), dim=0))))
    return statistics.mean(found)


@pytest.mark.parametrize("dead", [0, 5])
@pytest.mark.parametrize(
    ("kind", "form", "most"),
    [("sgd", "gradient", 1e-6), ("momentum", "gradient", 0.5), ("sgd", "update", 1e-6), ("momentum", "update", 1e-6),
     ("adamw", "update", 0.1)],
)  # fmt: skip
def test_a_step_loses_its_share_along_the_weight(kind: str, form: str, most: float, dead: int) -> None:
    without = moved_along(kind, None, dead)
    assert without > 0.02
    assert moved_along(kind, form, dead) < most * without


def test_the_gradients_projection_under_adam_does_the_opposite_where_channels_are_dead() -> None:
    """Why the form `update` exists; left alone, dead entries do not do that any more."""
    without, written = moved_along("adamw", None, 5), moved_along("adamw", "naive", 5)
    assert written > 2 * without
    assert moved_along("adamw", "gradient", 5) < 0.5 * written
    assert moved_along("momentum", "naive", 5) < 0.5 * moved_along("momentum", None, 5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("form", ["gradient", "update", "reparametrised", "reparametrised-rescale", "rescale"])
def test_dead_channels_are_left_alone_in_every_form(form: str, granularity: Granularity) -> None:
    model = half_dead(1, 5)
    options = SuppressionConfig(form=form, granularity=granularity)  # type: ignore[arg-type]
    made = DomainSpecificSuppression.create(options, model)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if isinstance(made, DomainSpecificSuppression):
        made.attach(optimizer)
    before = {name: trained_weight(layer).detach().clone() for name, layer in made.layers.items()}
    for step in range(3):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
    for name, weight in before.items():
        moved = trained_weight(model.get_submodule(name)).detach() - weight
        assert not moved[:5].any(), name
        assert moved[5:].flatten(1).any(1).all()


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_the_optimizer_did_is_projected(kind: str, granularity: Granularity, strength: float) -> None:
    """Each step against that of the optimizer alone, from the same state."""
    torch.manual_seed(1)
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    UpdateSuppression(model, strength, granularity).attach(optimizer)
    by_hand = {name: ByHand(kind) for name in weights(model)}
    for step in range(4):
        optimizer.zero_grad()
        loss(model, step).backward()
        before, raw = weights(model), gradients(model)
        optimizer.step()
        for name, weight in before.items():
            assert (raw[name] != 0).all()
            moved = by_hand[name].step(weight, raw[name]) - weight
            expected = weight + projected(moved, weight, strength, granularity)
            torch.testing.assert_close(weights(model)[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", [DomainSpecificSuppression, UpdateSuppression])
def test_the_step_without_suppression_is_the_optimizers_own(form: type[DomainSpecificSuppression]) -> None:
    """What is measured of it, against a copy of model and optimizer that is not suppressed; nothing else changes."""
    torch.manual_seed(0)
    runs = []
    for watched in (True, False):
        torch.manual_seed(0)
        model = network()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        suppress = form(model)
        attached = suppress.attach(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            loss(model, step).backward()
            before = weights(model)
            if step == 3 and watched:
                free = copy.deepcopy(model)
                other = OPTIMIZERS["adamw"](free.parameters())
                other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                for p, own in zip(free.parameters(), model.parameters(), strict=True):
                    p.grad = own.grad.clone() if own.grad is not None else None
                other.step()
            if watched:
                suppress.watch()
            optimizer.step()
            seen = suppress.seen()
            if step == 3 and watched:
                for name, values in seen["suppression"].items():
                    for key, own in (("update_cosine_without", free), ("update_cosine", model)):
                        moved = own.get_submodule(name).weight.detach() - before[name]
                        expected = float(F.cosine_similarity(moved.flatten(), before[name].flatten(), dim=0))
                        assert values[key] == pytest.approx(expected, rel=2e-3, abs=1e-9), key
        attached.remove()
        optimizer.step()
        runs.append(weights(model))
    for name, weight in runs[0].items():
        assert torch.equal(weight, runs[1][name])


@pytest.mark.parametrize(
    ("form", "kind", "warned"),
    [(DomainSpecificSuppression, "adamw", True), (DomainSpecificSuppression, "momentum", False),
     (UpdateSuppression, "adamw", False)],
)  # fmt: skip
def test_an_adaptive_optimizer_is_told_of_the_form_for_it(
    form: type[DomainSpecificSuppression], kind: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    form(model).attach(optimizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss(model).backward()
            optimizer.step()
    assert len(caplog.records) == warned
    if warned:
        assert "AdamW" in caplog.text
        assert "adapt.suppression.form = update" in caplog.text


def test_channel_cosines_are_measured_channel_by_channel() -> None:
    model = half_dead(0, 3)
    suppress = UpdateSuppression(model, granularity="channel")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    suppress.attach(optimizer)
    loss(model).backward()
    before, raw = weights(model), gradients(model)
    suppress.watch()
    optimizer.step()
    for name, values in suppress.seen()["suppression"].items():
        cosines = F.cosine_similarity(raw[name].flatten(1), before[name].flatten(1), dim=1)[3:].abs()
        assert values["cosine"] == pytest.approx(float(cosines.mean()), rel=2e-3)
        assert values["update_cosine_without"] == pytest.approx(float(cosines.mean()), rel=2e-3)
        assert values["update_cosine"] < 1e-9
        assert values["chance"] == pytest.approx(chance(before[name][0]), rel=0.03)


# The reparametrised form.


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rescaled", [False, True])
def test_reparametrising_and_folding_keep_the_function(granularity: Granularity, rescaled: bool) -> None:
    torch.manual_seed(0)
    model = network()
    plain = copy.deepcopy(model)
    images, _ = batch(0)
    changed = reparametrise(model, granularity, rescaled=rescaled)
    torch.testing.assert_close(changed(images), plain(images), rtol=1e-12, atol=1e-12)
    assert changed.state_dict().keys() != plain.state_dict().keys()
    torch.optim.SGD(changed.parameters(), lr=0.1).zero_grad()
    loss(changed).backward()
    torch.optim.SGD(changed.parameters(), lr=0.3).step()
    assert (changed(images) - plain(images)).norm() > 1e-3
    for name, layer in convolutions(changed).items():
        own, first = layer.weight.detach(), plain.get_submodule(name).weight.detach()
        dims = (1, 2, 3) if granularity == "channel" else (0, 1, 2, 3)
        torch.testing.assert_close(norm(own, dim=dims), norm(first, dim=dims))
    output, state = changed(images), folded_state(changed)
    folded = fold(changed)
    assert all(type(layer) is nn.Conv2d for layer in convolutions(folded).values())
    assert folded.state_dict().keys() == plain.state_dict().keys() == state.keys()
    plain.load_state_dict(state)
    for one in (folded, plain):
        torch.testing.assert_close(one(images), output, rtol=1e-12, atol=1e-12)
    assert reparametrise(reparametrise(model)) is model
    assert fold(model)[0].weight.is_leaf


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_gradient_of_the_reparametrised_weights_is_that_of_the_closed_form(granularity: Granularity) -> None:
    """dL/dV = (s / ||V||) P dL/dW, and both are autograd's: dL/dW that of the folded network."""
    torch.manual_seed(2)
    model = reparametrise(network(), granularity, rescaled=True)
    loss(model).backward()
    torch.optim.SGD(model.parameters(), lr=0.2).step()
    model.zero_grad()
    loss(model).backward()
    plain = fold(copy.deepcopy(model))
    plain.zero_grad()
    loss(plain).backward()
    dims = (1, 2, 3) if granularity == "channel" else (0, 1, 2, 3)
    for name in convolutions(model):
        raw = model.get_parameter(f"{name}.parametrizations.weight.original")
        weight, gradient = plain.get_submodule(name).weight, plain.get_submodule(name).weight.grad
        scale = norm(weight, dim=dims, keepdim=True) / norm(raw, dim=dims, keepdim=True)
        expected = scale * projected(gradient, weight.detach(), 1.0, granularity)
        torch.testing.assert_close(raw.grad, expected.detach(), rtol=1e-9, atol=1e-12)


def test_a_step_of_the_reparametrised_form_is_projection_and_rescaling() -> None:
    """One step of SGD of each form, seen from the weights that compute: P, f, and both with a return to the norm."""
    torch.manual_seed(3)
    start = network()
    start[0].weight.data *= 1.5
    loss(start).backward()
    raw, before = gradients(start), weights(start)
    product = torch.stack([weight.norm() for weight in before.values()]).prod()
    mean = product ** (1 / len(before))

    def after(change: Callable[[nn.Module], object]) -> dict[str, Tensor]:
        model = copy.deepcopy(start)
        model.zero_grad()
        change(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
        loss(model).backward()
        optimizer.step()
        return weights(fold(model))

    found = {
        "reparametrised": after(reparametrise),
        "reparametrised-rescale": after(lambda model: reparametrise(model, rescaled=True)),
        "rescale": after(rescale),
        "gradient": after(lambda model: None),
    }
    for name, weight in before.items():
        f = float((mean / weight.norm()) ** 2)
        assert abs(f - 1) > 0.05
        only = projected(raw[name], weight)
        along = {
            "gradient": weight - 0.4 * raw[name],
            "rescale": weight - 0.4 * f * raw[name],
            "reparametrised": weight - 0.4 * only,
            "reparametrised-rescale": weight - 0.4 * f * only,
        }
        for form, expected in along.items():
            if form.startswith("reparametrised"):
                expected = expected * (weight.norm() / expected.norm())
            torch.testing.assert_close(found[form][name], expected, rtol=1e-10, atol=1e-12)


def test_the_step_of_adam_is_rescaled_too() -> None:
    """Adam does not see how long a gradient is, so a gradient that is rescaled would change nothing there."""
    torch.manual_seed(3)
    start = network()
    product = torch.stack([weight.norm() for weight in weights(start).values()]).prod()
    steps = []
    for model in (copy.deepcopy(start), rescale(copy.deepcopy(start))):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-30)
        loss(model).backward()
        optimizer.step()
        moved = weights(fold(model))
        steps.append({name: moved[name] - weight for name, weight in weights(start).items()})
    for name, weight in weights(start).items():
        factor = product.sqrt() / weight.norm()
        torch.testing.assert_close(steps[1][name], factor * steps[0][name], rtol=1e-9, atol=1e-15)


# In our loop.


def toy_terms() -> list[Term]:
    return [Supervised(), Teacher(TeacherConfig(boxes=0, soft=1), Known.fixed([0.3]))]


@pytest.mark.parametrize("form", ["gradient", "update", "reparametrised", "reparametrised-rescale", "rescale"])
def test_each_form_is_made_from_its_options(form: str) -> None:
    detector = ToyDetector(norm=False)
    plain = set(detector.state_dict())
    made = DomainSpecificSuppression.create(SuppressionConfig(form=form), detector)  # type: ignore[arg-type]
    assert isinstance(made, Watcher)
    assert isinstance(made, UpdateTransform) == isinstance(made, DomainSpecificSuppression)
    assert isinstance(made, DomainSpecificSuppression) == (form in {"gradient", "update"})
    assert isinstance(made, UpdateSuppression) == (form == "update")
    assert (set(detector.state_dict()) == plain) == (form in {"gradient", "update"})
    objective = Objective(detector, toy_terms(), ema=0.5, warm=False)
    assert set(objective.average.state_dict()) == plain


def test_of_a_two_stage_detector_the_backbone_alone_is_suppressed() -> None:
    config = ModelConfig(
        kind="two-stage", image_size=(64, 96), backbone="lcnet_050", weights="none", channels=16,
        two_stage=TwoStageConfig(proposals=8, hidden=16, masks=True),
    )  # fmt: skip
    detector = build(specify(config, ["a", "b"]))
    suppression = DomainSpecificSuppression.create(SuppressionConfig(), detector)
    generator = torch.Generator().manual_seed(0)
    before = {}
    for name, parameter in detector.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) + parameter.detach()
        before[name] = parameter.grad.clone()
    suppression(detector)
    changed = {name for name, parameter in detector.named_parameters() if not torch.equal(parameter.grad, before[name])}
    assert changed
    assert changed <= {f"backbones.{name}.weight" for name in convolutions(detector.backbone)}


def test_options_that_say_nothing_are_refused() -> None:
    with pytest.raises(AcclimateError, match="strength is an option of form = gradient and update; rescale has none"):
        parse(SuppressionConfig, {"form": "rescale", "strength": 0.5}, "test")


def test_the_average_is_of_the_weights_that_compute() -> None:
    torch.manual_seed(0)
    detector = ToyDetector(norm=False)
    reparametrise(detector)
    objective = Objective(detector, toy_terms(), ema=0.75, warm=False)
    first = {name: value.clone() for name, value in objective.average.state_dict().items()}
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter))
    objective.after_step(1)
    now = fold(copy.deepcopy(detector)).state_dict()
    for name, value in objective.average.state_dict().items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * now[name])


class Loop:
    """`toy_training.train` with DSS: the transform needs the detector that the loop trains."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.options = SuppressionConfig(**options)
        self.transforms: list[LayerWatch] = []
        monkeypatch.setattr("toy_training.ToyDetector", self.detector)

    def detector(self, norm: bool) -> ToyDetector:
        made = ToyDetector(norm)
        self.transforms[:] = [DomainSpecificSuppression.create(self.options, made)]
        return made


@pytest.mark.parametrize("form", ["gradient", "update", "reparametrised-rescale"])
def test_a_run_keeps_plain_weights_and_measurements_and_goes_on_exactly(
    form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loop = Loop(monkeypatch, form=form)

    def go(path: Path, stop: bool = False) -> Any:
        def at(step: int) -> None:
            if stop and step == 6:
                raise RuntimeError("stop")

        return train(path, toy_terms, at, norm=False, transforms=loop.transforms)

    run, objective = go(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stop"):
        go(tmp_path / "parts", stop=True)
    again, _ = go(tmp_path / "parts")
    file = "checkpoints/step_000012.safetensors"
    saved, resumed = (safetensors.torch.load_file(one.path / file) for one in (run, again))
    ToyDetector(norm=False).load_state_dict(saved)
    for name, value in saved.items():
        assert torch.equal(resumed[name], value), name
        assert torch.equal(objective.average.state_dict()[name], value), name
    lines = run.metrics()
    assert [line["step"] for line in lines if "suppression" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["suppression"] for line in again.metrics()] == [line["suppression"] for line in lines]


def test_what_is_measured_is_what_happened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The update against weights taken before and after by hand, in a loop of one's own."""
    torch.manual_seed(0)
    model = network(dtype=torch.float32)
    suppress = DomainSpecificSuppression(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    suppress.attach(optimizer)
    assert suppress.seen() == {}
    for step in range(2):
        optimizer.zero_grad()
        loss(model, step).backward()
        before, raw = weights(model), gradients(model)
        suppress.watch()
        optimizer.step()
        seen = suppress.seen()["suppression"]
        assert list(seen) == ["0", "3"]
        for name, values in json.loads(json.dumps(seen)).items():
            weight, gradient = before[name], raw[name]
            expected = {
                "cosine": float(F.cosine_similarity(weight.flatten(), gradient.flatten(), dim=0)),
                "gradient": float(gradient.norm()),
                "suppressed": float(projected(gradient, weight).norm()),
                "update": 0.1 * float(projected(gradient, weight).norm()),
                "weight": float(weight.norm()),
                "chance": chance(weight),
            }
            assert values.pop("chance") == pytest.approx(expected.pop("chance"), rel=0.03)
            assert abs(values.pop("update_cosine")) < 1e-4
            without = -expected["cosine"]
            assert values.pop("update_cosine_without") == pytest.approx(without, rel=2e-3, abs=1e-4)
            assert values == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert suppress.seen() == {}, "only the step that was asked for"


def test_strength_0_measures_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = network()
    loss(model).backward()
    raw = gradients(model)
    suppress = DomainSpecificSuppression(model, strength=0)
    suppress.watch()
    suppress()
    assert all(torch.equal(gradient, raw[name]) for name, gradient in gradients(model).items())
    for values in suppress.seen()["suppression"].values():
        assert values["gradient"] == values["suppressed"] > 0
        assert values["update"] == 0
        assert parametrize.is_parametrized(model) is False
