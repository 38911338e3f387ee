"""Optimisers, their groups and rates: against torch, timm and closed forms."""

from __future__ import annotations

import itertools
import math
import signal
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from toy_training import schedule, train

from acclimate.adapt.optimisers import LEAST, optimiser, parameter_groups, rate
from acclimate.adapt.supervised import Supervised
from acclimate.config import ModelConfig
from acclimate.errors import AcclimateError, Interrupted
from acclimate.models.detector import build, specify


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
        self.head = nn.Conv2d(4, 2, 1)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (3, 12), (5, 5), (20, 10)])
def test_the_learning_rate_warms_up_and_falls_as_a_cosine(warmup: int, steps: int) -> None:
    factor = rate(schedule(warmup=warmup, steps=steps))
    for step in range(steps + 3):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            way = min(1.0, (step - warmup) / max(1, steps - warmup))
            expected = 0.02 + 0.98 * math.cos(0.5 * math.pi * way) ** 2
        assert factor(step) == pytest.approx(expected)
    assert factor(steps) == pytest.approx(0.02 if warmup < steps else factor(steps))


def test_a_rate_that_falls_in_steps_is_torchs_multi_step() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(reference, [60, 90], gamma=0.1)
    factor = rate(schedule(warmup=0, steps=100, decay="step", decay_at=(0.6, 0.9)))
    for step in range(100):
        assert factor(step) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        steps.step()


def test_a_linear_rate_is_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=1.0)
    falling = torch.optim.lr_scheduler.LinearLR(reference, 1.0, LEAST, 100)
    factor = rate(schedule(warmup=0, steps=100, decay="linear"))
    for step in range(102):
        assert factor(step) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        falling.step()


def test_a_rate_that_starts_anew_is_torchs_cosine_with_warm_restarts() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=1.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(reference, T_0=10, T_mult=2, eta_min=LEAST)
    factor = rate(schedule(warmup=0, steps=70, decay="restarts", cycles=3, cycle_growth=2.0))
    for step in range(70):
        assert factor(step) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        falling.step()
    assert factor(70) == pytest.approx(LEAST)


def test_a_constant_rate_stays_after_its_warmup() -> None:
    factor = rate(schedule(warmup=4, steps=20, decay="constant"))
    assert [factor(step) for step in (0, 1, 2, 3, 4, 10, 19)] == [0.25, 0.5, 0.75, 1, 1, 1, 1]


@pytest.mark.parametrize("name", ["sgd", "adamw", "nadamw", "lamb"])
def test_a_step_is_that_of_the_reference_with_each_groups_rate(name: str) -> None:
    torch.manual_seed(0)
    ours, other = Parts(), Parts()
    other.load_state_dict(ours.state_dict())
    settings = schedule(optimizer=name, lr=0.1, weight_decay=0.01, backbone_lr=0.1)
    made = optimiser(ours, settings, ours.backbone)
    groups = [
        {"params": [p for p in part.parameters() if (p.ndim > 1) == decayed], "lr": lr, "weight_decay": decay}
        for part, lr in ((other.head, 0.1), (other.backbone, 0.01))
        for decayed, decay in ((True, 0.01), (False, 0.0))
    ]
    if name == "sgd":
        reference: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    elif name == "adamw":
        reference = torch.optim.AdamW(groups, lr=0.1)
    else:
        reference = timm.optim.create_optimizer_v2(groups, opt=name, lr=0.1, weight_decay=0.0)
    for _ in range(3):
        for module, steps in ((ours, made), (other, reference)):
            steps.zero_grad()
            x = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
            module.head(module.backbone(x)).square().mean().backward()
            steps.step()
    for (key, value), expected in zip(ours.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, msg=key)


def test_momentum_is_the_option() -> None:
    module = Parts()
    made = optimiser(module, schedule(optimizer="sgd", momentum=0.5), None)
    assert {group["momentum"] for group in made.param_groups} == {0.5}


def test_layer_decay_falls_towards_the_image() -> None:
    detector = build(specify(ModelConfig(backbone="test_efficientnet", image_size=(64, 64), weights="none"), ["a"]))
    settings = schedule(lr=1.0, backbone_lr=0.5, layer_decay=0.8)
    groups = parameter_groups(detector, settings, detector.backbone)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = {name: rates[id(p)] for name, p in detector.named_parameters() if p.requires_grad}
    body = {name.removeprefix("backbone."): lr for name, lr in names.items() if name.startswith("backbone.")}
    assert {lr for name, lr in names.items() if not name.startswith("backbone.")} == {1.0}
    blocks = [next(lr for name, lr in body.items() if f"blocks.{i}." in name) for i in range(4)]
    for earlier, later in itertools.pairwise(blocks):
        assert earlier == pytest.approx(0.8 * later)
    assert max(body.values()) == pytest.approx(0.5 * 0.8), "the last stage is one below the head"
    assert min(body.values()) == next(lr for name, lr in body.items() if "conv_stem" in name)
    assert sum(len(group["params"]) for group in groups) == len(names), "each parameter is in one group"


@pytest.mark.parametrize("name", ["adamm", "muoon", ""])
def test_an_unknown_optimiser_is_one_line_that_names_near_ones(name: str) -> None:
    with pytest.raises(AcclimateError, match=rf"optimizer: neither adamw nor sgd, and timm has no '{name}'"):
        optimiser(Parts(), schedule(optimizer=name))


def test_a_run_with_another_optimiser_goes_on_exactly(tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "decay": "step", "backbone_lr": 0.5}
    whole, trained = train(tmp_path / "whole", lambda: [Supervised()], **options)
    assert whole.metrics()[-1]["lr"] == pytest.approx(0.01 * 0.01)
    with pytest.raises(Interrupted):
        train(
            tmp_path / "run",
            lambda: [Supervised()],
            lambda now: signal.raise_signal(signal.SIGINT) if now == 7 else None,
            **options,
        )
    _, again = train(tmp_path / "run", lambda: [Supervised()], **options)
    for value, expected in zip(again.detector.parameters(), trained.detector.parameters(), strict=True):
        assert torch.equal(value, expected)
