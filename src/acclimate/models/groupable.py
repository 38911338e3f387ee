"""Convolutions whose channels fall into groups that do not see each other: found, and written as grouped ones.

Zhang et al. 2020, "Structured Sparsification with Joint Optimization of Group Convolution and Channel Shuffle": a
convolution is groupable where its inputs and outputs can be put in an order in which its weights are block-diagonal.
The order is found by coordinate descent, a linear assignment in each direction. `adapt/groupable.py` makes weights so;
here a convolution of such weights becomes a gather, a grouped convolution and a gather, which compute the same with one
part in G of the multiplications.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

Groups = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The group of each output and of each input."""
ROUNDS = 20
"""Of the coordinate descent, at most."""


def relevance(layer: nn.Conv2d) -> Tensor:
    """How much each output (rows) depends on each input (columns): the L1 norms of the kernels, (O, I)."""
    return layer.weight.abs().sum((2, 3))


def assign(matrix: NDArray[np.float64], groups: int, start: Groups | None = None) -> Groups:
    """Outputs and inputs in equal groups, so that as much of the relevance as possible is within groups.

    Given the groups of the inputs, the best ones of the outputs are a linear assignment, and the other way round;
    both in turn, until nothing improves. This ends in a local optimum.

    Args:
        matrix: (O, I) relevance, not negative.
        groups: how many; both sides are multiples of it.
        start: groups to improve on; by default the better of channels as they stand and of a greedy choice.
    """
    inputs = matrix.shape[1]
    if start is None:
        standing = np.arange(inputs) * groups // inputs
        starts = [_descend(matrix, groups, columns) for columns in (standing, _greedy(matrix, groups))]
        return max(starts, key=lambda found: kept(matrix, found))
    return _descend(matrix, groups, start[1])


def kept(matrix: NDArray[np.float64], found: Groups) -> float:
    """The part of the relevance (O, I) that is within groups, 0..1."""
    total = matrix.sum()
    return float(matrix[found[0][:, None] == found[1][None]].sum() / total) if total else 1.0


def _descend(matrix: NDArray[np.float64], groups: int, columns: NDArray[np.int64]) -> Groups:
    best, rows = -1.0, np.zeros(len(matrix), np.int64)
    for _ in range(ROUNDS):
        rows = _best(_by_group(matrix, columns, groups))
        columns = _best(_by_group(matrix.T, rows, groups))
        share = kept(matrix, (rows, columns))
        if share <= best + 1e-9:
            break
        best = share
    return rows, columns


def _by_group(matrix: NDArray[np.float64], columns: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
    """The relevance of each row to each group of columns, (O, G)."""
    return matrix @ np.eye(groups)[columns]


def _best(gain: NDArray[np.float64]) -> NDArray[np.int64]:
    """A group for each row, as many rows for each group, of the largest summed gain (N, G)."""
    each = len(gain) // gain.shape[1]
    _, place = linear_sum_assignment(gain.repeat(each, axis=1), maximize=True)
    found: NDArray[np.int64] = np.asarray(place // each, np.int64)
    return found


def _greedy(matrix: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """Groups of columns: each begins with the column that most is left of, and takes those most like it."""
    similar = matrix.T @ matrix
    left = list(range(len(similar)))
    found = np.zeros(len(similar), np.int64)
    for group in range(groups):
        seed = max(left, key=lambda one: similar[one, one])
        members = sorted(left, key=lambda one: (one != seed, -similar[seed, one]))[: len(similar) // groups]
        found[members] = group
        left = [one for one in left if one not in set(members)]
    return found


def groups_of(layer: nn.Conv2d) -> Groups | None:
    """The groups that a convolution's weights fall into; None where there are not at least two equal ones.

    Channels without any weight fill up the groups.
    """
    matrix = relevance(layer).detach().cpu().numpy() != 0
    if layer.groups > 1 or matrix.all() or not matrix.any():
        return None
    outputs, inputs = matrix.shape
    rows, columns = matrix.nonzero()
    size = outputs + inputs
    graph = coo_array((np.ones(len(rows)), (rows, outputs + columns)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    has = np.isin(label, label[rows])
    names, group = np.unique(label[has], return_inverse=True)
    count = len(names)
    if count < 2 or outputs % count or inputs % count:
        return None
    found = np.full(size, -1, np.int64)
    found[has] = group
    for side, each in ((found[:outputs], outputs // count), (found[outputs:], inputs // count)):
        free = np.bincount(side[side >= 0], minlength=count)
        if (free > each).any():
            return None
        side[side < 0] = np.repeat(np.arange(count), each - free)
    return found[:outputs], found[outputs:]


class GatheredConv2d(nn.Module):
    """A grouped convolution between two gathers: what a groupable convolution computes."""

    inputs: Tensor
    outputs: Tensor

    def __init__(self, layer: nn.Conv2d, found: Groups) -> None:
        """Of a convolution whose weights are 0 between groups."""
        super().__init__()
        rows, columns = (torch.from_numpy(np.argsort(side, kind="stable")) for side in found)
        groups = int(found[0].max()) + 1
        each = len(columns) // groups
        grouped = copy.deepcopy(layer)
        # The r-th output, in order, reads its group's inputs alone.
        blocks = layer.weight.detach()[rows].view(groups, -1, layer.in_channels, *layer.kernel_size)
        within = [block[:, columns[g * each : (g + 1) * each]] for g, block in enumerate(blocks)]
        grouped.weight = nn.Parameter(torch.cat(within), requires_grad=layer.weight.requires_grad)
        if layer.bias is not None:
            grouped.bias = nn.Parameter(layer.bias.detach()[rows], requires_grad=layer.bias.requires_grad)
        grouped.groups = groups
        self.conv = grouped
        self.register_buffer("inputs", columns)
        self.register_buffer("outputs", torch.argsort(rows))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        made: Tensor = self.conv(x.index_select(1, self.inputs))
        # Flat, as OpenVINO 2026.4 takes a gather behind a grouped convolution into its weights, wrongly.
        return made.flatten(2).index_select(1, self.outputs).view_as(made)


def group(module: nn.Module) -> None:
    """Write every convolution below `module` whose weights fall into groups as a grouped one, in place."""
    for name, child in module.named_children():
        found = groups_of(child) if isinstance(child, nn.Conv2d) else None
        if found is None:
            group(child)
        else:
            assert isinstance(child, nn.Conv2d)
            setattr(module, name, GatheredConv2d(child, found))
