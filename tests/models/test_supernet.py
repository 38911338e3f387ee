"""The supernet against the detectors of its single paths."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from acclimate.config import ModelConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import build, parameters, specify
from acclimate.models.slimmable import macs
from acclimate.models.supernet import BLOCKS, RANKS, SupernetDetector
from acclimate.select.search import Space


def supernet(**options: Any) -> SupernetDetector:
    torch.manual_seed(0)
    values = {"kind": "supernet", "weights": "none", "image_size": (64, 64), "channels": 16, "depth": 1}
    places = {"supernet": {"stages": [[24, 1], [32, 2], [48, 1]]}, "strides": [8, 16]}
    made = build(specify(ModelConfig.model_validate({**values, **places, **options}), ["a", "b"]))
    assert isinstance(made, SupernetDetector)
    return made


def images() -> Tensor:
    return 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


PATH = (0.25, 1.0, 0.5, 0.75)


@torch.no_grad()
def test_what_is_extracted_is_the_path_and_costs_what_the_supernet_says() -> None:
    bank = supernet().eval()
    for path in (PATH, (1.0,) * 4):
        bank.set_path(path)
        plain = bank.extract()
        assert not any("blocks" in name for name, _ in plain.named_parameters())
        for made, expected in zip(plain(images()), bank(images()), strict=True):
            torch.testing.assert_close(made, expected)
        assert bank.macs(path) == macs(plain)
        assert bank.size(path) == parameters(plain)
    again = build(plain.spec)
    again.load_state_dict(plain.state_dict())
    # The blocks stand in the order of what they compute, so that a narrower path is a cheaper one.
    costs = [bank.macs((rank,) * 4) for rank in RANKS]
    assert costs == sorted(set(costs))


def test_training_draws_paths_uniformly_and_evaluation_keeps_to_the_largest() -> None:
    bank = supernet()
    seen = []
    bank.train()
    for _ in range(150):
        with torch.no_grad():
            bank.features(images()[:1, :, :32, :32].repeat(2, 1, 1, 1))
        seen.append(bank.drawn)
    for place in zip(*seen, strict=True):
        counts = [place.count(rank) for rank in RANKS]
        assert all(20 <= count <= 58 for count in counts), counts  # 37.5 expected, 3.7 standard deviations
    assert len(set(seen)) > 100
    bank.eval()
    assert bank.path == (1.0,) * 4


def test_only_the_blocks_of_the_path_get_a_gradient() -> None:
    bank = supernet().train()
    sum(output.square().mean() for output in bank(images())).backward()
    learnt = {name.split(".")[6] for name, p in bank.named_parameters() if "blocks" in name and p.grad is not None}
    assert learnt == {BLOCKS[RANKS.index(rank)] for rank in bank.drawn}


def test_the_search_knows_its_paths_and_what_is_no_path_is_told() -> None:
    bank = supernet()
    space = Space.of(bank)
    assert len(list(itertools.product(*space.choices))) == len(BLOCKS) ** 4
    with pytest.raises(AcclimateError, match=r"4 ranks of 0\.25"):
        bank.set_path((0.3, 1, 1, 1))
    with pytest.raises(AcclimateError, match=r"model\.norm"):
        supernet(norm="frozen")
    with pytest.raises(AcclimateError, match=r"model\.strides.*\[4, 8, 16\], not \[32\]"):
        supernet(strides=[8, 32])
