"""Recurrent cells, with peepholes and coupled gates where they are asked for, and the training of a smoother of scores.

Hochreiter and Schmidhuber 1997 (LSTM), Gers and Schmidhuber 2000 (peepholes), Cho et al. 2014 (GRU), Greff et al. 2017
(coupled input and forget gates). Weights stand in the order of torch's cells and have their names, so that those load.
What the device computes with is `edge/smoothing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.boxes import iou
from acclimate.edge.smoothing import FEATURES, Kind, Smoother, features
from acclimate.edge.tracks import Links
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations, Detections


class LSTMCell(nn.Module):
    """A step of an LSTM: `torch.nn.LSTMCell`, with options.

    With peepholes the input and forget gates see the cell's state before the step, the output gate the one after it.
    Coupled, the forget gate is one minus the input gate, and its weights have no effect.
    """

    def __init__(self, inputs: int, hidden: int, *, peepholes: bool = False, coupled: bool = False) -> None:
        """Build a cell.

        Args:
            inputs: I, numbers that come in.
            hidden: H, width of the states.
            peepholes: whether the gates see the cell's state.
            coupled: whether the forget gate is one minus the input gate.
        """
        super().__init__()
        self.hidden, self.coupled = hidden, coupled
        self.weight_ih, self.weight_hh = _matrix(4 * hidden, inputs, hidden), _matrix(4 * hidden, hidden, hidden)
        self.bias_ih, self.bias_hh = (_matrix(4 * hidden, 0, hidden) for _ in range(2))
        self.peepholes = nn.Parameter(torch.zeros(3, hidden)) if peepholes else None
        """(3, H): of the input, the forget and the output gate."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The hidden and the cell's state, (B, H) each, after inputs (B, I), from those before them."""
        h, c = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = gates.chunk(4, 1)
        if self.peepholes is not None:
            i, f = i + self.peepholes[0] * c, f + self.peepholes[1] * c
        entering = i.sigmoid()
        staying = 1 - entering if self.coupled else f.sigmoid()
        c = staying * c + entering * g.tanh()
        if self.peepholes is not None:
            o = o + self.peepholes[2] * c
        return o.sigmoid() * c.tanh(), c


class GRUCell(nn.Module):
    """A step of a GRU, as `torch.nn.GRUCell` has it: one gate says what stays and what enters."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_ih, self.weight_hh = _matrix(3 * hidden, inputs, hidden), _matrix(3 * hidden, hidden, hidden)
        self.bias_ih, self.bias_hh = (_matrix(3 * hidden, 0, hidden) for _ in range(2))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The hidden state (B, H) after inputs (B, I), twice, from that before them; as a pair, like an LSTM's."""
        h = state[0]
        a, b = F.linear(x, self.weight_ih, self.bias_ih), F.linear(h, self.weight_hh, self.bias_hh)
        (r, z, n), (rh, zh, nh) = a.chunk(3, 1), b.chunk(3, 1)
        keep = (z + zh).sigmoid()
        h = (1 - keep) * (n + (r + rh).sigmoid() * nh).tanh() + keep * h
        return h, h


def _matrix(rows: int, columns: int, hidden: int) -> nn.Parameter:
    values = torch.empty((rows, columns) if columns else (rows,))
    return nn.Parameter(nn.init.uniform_(values, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden)))


class _Scores(nn.Module):
    """A cell and a line from its state to the change of a score's logit."""

    def __init__(self, kind: Kind, hidden: int) -> None:
        super().__init__()
        self.cell: nn.Module = (
            GRUCell(FEATURES, hidden)
            if kind == "gru"
            else LSTMCell(FEATURES, hidden, peepholes="peephole" in kind, coupled="coupled" in kind)
        )
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, T) of sequences (B, T, FEATURES)."""
        state = (x.new_zeros(len(x), self.hidden), x.new_zeros(len(x), self.hidden))
        logits = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            logits.append(self.out(state[0])[:, 0] + step[:, 0])
        return torch.stack(logits, 1)


def train_smoother(
    sequences: Sequence[Sequence[tuple[Detections, Annotations]]],
    kind: Kind = "gru",
    *,
    hidden: int = 16,
    steps: int = 300,
    seed: int = 0,
) -> Smoother:
    """A smoother that has learnt, on labelled sequences of frames, which tracks are objects.

    Each frame's detections are linked as the device links them (`edge.smoothing.Links`). A track is right in a frame
    where a labelled box of its class overlaps it by half.

    Args:
        sequences: frames in their order, the detections of each and its labels, in the same pixels.
        kind: of the cell.
        hidden: its width.
        steps: of Adam, each over all tracks.
        seed: of the first weights.

    Raises:
        AcclimateError: no track is in any sequence.
    """
    rows, answers = [], []
    for frames in sequences:
        x, y = _tracks(frames)
        rows += x
        answers += y
    if not rows:
        raise AcclimateError("train_smoother: nothing was detected in any frame, so there is nothing to learn from")
    inputs = nn.utils.rnn.pad_sequence([torch.tensor(np.array(row)) for row in rows], batch_first=True)
    wanted = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in answers], batch_first=True, padding_value=-1.0)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    network = _Scores(kind, hidden)
    torch.random.set_rng_state(state)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    counted = wanted >= 0
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(network(inputs)[counted], wanted[counted])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    weights = {name.removeprefix("cell."): value.detach().numpy() for name, value in network.named_parameters()}
    return Smoother(kind, weights)


def _tracks(
    frames: Sequence[tuple[Detections, Annotations]],
) -> tuple[list[list[np.ndarray]], list[list[float]]]:
    """Of each track: its features (FEATURES,) frame by frame, and whether it was right."""
    links = Links()
    x: dict[int, list[np.ndarray]] = {}
    y: dict[int, list[float]] = {}
    for found, truth in frames:
        for track in links.step(found):
            own = truth.boxes[(truth.labels == track.label) & ~truth.ignore]
            right = len(own) > 0 and float(iou.pairwise(track.box[None], own).max()) >= 0.5
            x.setdefault(track.number, []).append(features(track))
            y.setdefault(track.number, []).append(float(right))
    return list(x.values()), list(y.values())
