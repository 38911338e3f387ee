"""Drop path against the rates that timm gives its blocks."""

from __future__ import annotations

import pytest
import torch
from timm.layers.drop import DropPath

from acclimate.adapt.drop_path import DropPathSchedule
from acclimate.adapt.objective import Step
from acclimate.models.backbones import Backbone


def test_rates_rise_with_depth_and_linearly_with_the_training() -> None:
    torch.manual_seed(0)
    made = Backbone("test_resnet", (8, 16, 32), "batch", 0, drop_path=0.4)
    parts = [part for part in made.modules() if isinstance(part, DropPath)]
    rates = [part.drop_prob for part in parts]
    assert len(parts) > 2
    assert rates == sorted(rates)
    term = DropPathSchedule(made)
    for progress in (0.0, 0.5, 1.0):
        step = Step(made, made, None, None, progress, ())  # type: ignore[arg-type]
        term.prepare(step)
        assert term(step) == {}
        assert [part.drop_prob for part in parts] == pytest.approx([rate * progress for rate in rates])
    assert not any(isinstance(part, DropPath) for part in Backbone("test_resnet", (8,), "batch", 0).modules())
