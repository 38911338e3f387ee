"""Dead channels and the size of steps, in networks where both are known."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import train

from acclimate.adapt.health import AGAIN, Health
from acclimate.adapt.supervised import Supervised


class Saturated(nn.Module):
    """Two convolutions; ReLU6 lets nothing back through those channels of the first whose bias is far below 0."""

    def __init__(self, dead: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.first.bias[:dead] = -100.0
            self.first.bias[dead:] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.relu6(self.first(x)))


def step(module: nn.Module, health: Health, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    optimizer.zero_grad()
    module(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    health.watch()
    optimizer.step()
    return health.seen()


@pytest.mark.parametrize("dead", [0, 3, 8])
def test_dead_channels_are_counted(dead: int) -> None:
    torch.manual_seed(0)
    module = Saturated(dead)
    row = step(module, Health(module), torch.optim.SGD(module.parameters(), lr=0.1))
    assert row["health"]["first"]["dead"] == dead / 8
    # All channels of the input of the second are dead with the first's; its own outputs still have their biases.
    assert row["dead_channels"] == pytest.approx((dead + (2 if dead == 8 else 0)) / 10, abs=1e-4)


def test_the_ratio_is_that_of_the_step_to_the_weight() -> None:
    torch.manual_seed(0)
    module = Saturated(0)
    before = {name: layer.weight.detach().clone() for name, layer in module.named_children()}
    row = step(module, Health(module), torch.optim.SGD(module.parameters(), lr=0.1))
    for name, layer in module.named_children():
        expected = (layer.weight.detach() - before[name]).norm() / before[name].norm()
        assert row["health"][name]["update"] == pytest.approx(float(expected), rel=1e-3)


def test_layers_that_stay_silent_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    module = Saturated(8)
    health = Health(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING):
        for _ in range(AGAIN - 1):
            step(module, health, optimizer)
        assert not caplog.records
        for _ in range(3):
            step(module, health, optimizer)
    assert len(caplog.records) == 1
    assert "2 of 2 convolutions no longer learn (first, last)" in caplog.text
    assert "backbone_lr" in caplog.text


def test_what_was_not_asked_for_is_not_measured() -> None:
    module = Saturated(2)
    assert Health(module).seen() == {}


def test_every_logged_step_of_a_training_tells(tmp_path: Path) -> None:
    run, _ = train(tmp_path / "run", lambda: [Supervised()], log_every=3)
    for line in run.metrics():
        assert set(line["health"]) == {"first", "last"}
        assert 0 <= line["dead_channels"] <= 1
        assert line["update_ratio"] > 0
