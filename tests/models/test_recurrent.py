"""Recurrent cells against torch's and against the equations, and the smoother of scores on made tracks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.edge.smoothing import KINDS, Smoother, flicker
from acclimate.errors import AcclimateError
from acclimate.models.recurrent import GRUCell, LSTMCell, _Scores, train_smoother
from acclimate.structures import Detections
from craft import frames, wrong


def test_cells_are_torchs() -> None:
    torch.manual_seed(0)
    x, state = torch.randn(4, 3), (torch.randn(4, 5), torch.randn(4, 5))
    lstm, own = nn.LSTMCell(3, 5), LSTMCell(3, 5)
    own.load_state_dict(lstm.state_dict())
    for made, expected in zip(own(x, state), lstm(x, state), strict=True):
        torch.testing.assert_close(made, expected)
    gru, ours = nn.GRUCell(3, 5), GRUCell(3, 5)
    ours.load_state_dict(gru.state_dict())
    torch.testing.assert_close(ours(x, state)[0], gru(x, state[0]))


@pytest.mark.parametrize("coupled", [False, True])
def test_peepholes_and_coupled_gates_follow_the_equations(coupled: bool) -> None:
    torch.manual_seed(0)
    cell = LSTMCell(1, 1, peepholes=True, coupled=coupled)
    cell.peepholes.data = torch.tensor([[0.3], [-0.7], [1.1]])
    x, h, c = 0.4, -0.2, 0.9
    i, f, g, o = (
        cell.weight_ih[k, 0].item() * x + cell.weight_hh[k, 0].item() * h + (cell.bias_ih[k] + cell.bias_hh[k]).item()
        for k in range(4)
    )

    def sigmoid(value: float) -> float:
        return 1 / (1 + np.exp(-value))

    entering = sigmoid(i + 0.3 * c)
    after = (1 - entering if coupled else sigmoid(f - 0.7 * c)) * c + entering * np.tanh(g)
    expected = sigmoid(o + 1.1 * after) * np.tanh(after), after
    made = cell(torch.tensor([[x]]), (torch.tensor([[h]]), torch.tensor([[c]])))
    np.testing.assert_allclose([value.item() for value in made], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_computes_what_was_trained(kind: str) -> None:
    torch.manual_seed(0)
    network = _Scores(kind, 6)  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    smoother = Smoother(kind, {n.removeprefix("cell."): p.detach().numpy() for n, p in network.named_parameters()})  # type: ignore[arg-type]
    scores = np.array([0.9, 0.2, 0.6, 0.7], np.float32)
    rows = torch.tensor([[[np.log(s / (1 - s)), 1.0] for s in scores]], dtype=torch.float32)
    expected = network(rows).sigmoid()[0].detach().numpy()
    for score, value in zip(scores, expected, strict=True):
        made = smoother(Detections(np.float32([[0, 0, 9, 9]]), np.array([0]), np.array([score])))
        np.testing.assert_allclose(made.scores, [value], rtol=1e-4)


def test_a_trained_smoother_flickers_less_and_is_right_more_often(tmp_path: Path) -> None:
    smoother = train_smoother([frames(seed, 20) for seed in range(3)], steps=80, hidden=8)
    smoother.save(tmp_path / "smoother.npz")
    smoother = Smoother.load(tmp_path / "smoother.npz")
    plain = [found for found, _ in frames(9, 20)]
    smooth = [smoother(found) for found in plain]
    assert wrong(smooth) < 0.5 * wrong(plain)
    assert flicker(smooth) < 0.5 * flicker(plain)


def test_what_is_no_smoother_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.npz").write_bytes(b"no")
    for file in ("notes.npz", "gone.npz"):
        with pytest.raises(AcclimateError, match=file):
            Smoother.load(tmp_path / file)
