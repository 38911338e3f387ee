"""Which layers go back to floating point: against exhaustive search, and on a network with one layer that breaks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import coloured_squares as squares
from acclimate.data.formats import LabelledSet
from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.export.base import Quantiser
from acclimate.export.onnx import Onnx
from acclimate.select.mixed import held_out, measure, mix


class Additive:
    """Each quantised layer costs its own share of the agreement, so the fewest layers can be had by trying all."""

    def __init__(self, costs: list[float]) -> None:
        self.costs = {f"layer {i}": cost for i, cost in enumerate(costs)}
        self.calls = 0

    def __call__(self, in_float) -> float:
        self.calls += 1
        return 1 - sum(cost for layer, cost in self.costs.items() if layer not in set(in_float))

    def fewest(self, tolerance: float) -> int | None:
        sizes = range(len(self.costs))
        holds = (k for k in sizes if any(self(chosen) >= tolerance for chosen in combinations(self.costs, k)))
        return next(holds, None)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_the_fewest_layers_with_which_the_tolerance_holds(percent: list[int], tolerance: float) -> None:
    costs = [one / 128 for one in percent]
    fewest = Additive(costs).fewest(tolerance)
    agrees = Additive(costs)
    if fewest is None:
        with pytest.raises(AcclimateError, match="with any layer quantised; fine-tune the run for INT8"):
            mix(list(agrees.costs), agrees, tolerance, 4)
        return
    found = mix(list(agrees.costs), agrees, tolerance, 4)
    assert len(found.in_float) == fewest
    assert found.after == agrees(found.in_float) >= tolerance
    assert found.before == agrees(())
    assert [one.agreement for one in found.alone] == sorted(one.agreement for one in found.alone)


def test_few_networks_are_made() -> None:
    agrees = Additive([0.01] * 64)
    told: list[tuple[int, int]] = []
    found = mix(list(agrees.costs), agrees, 0.9, 4, lambda done, total: told.append((done, total)))
    assert len(found.in_float) == 54
    assert agrees.calls <= 1 + 64 + 6
    assert told[-1] == (64, 64)


def test_nothing_is_scanned_where_the_tolerance_holds() -> None:
    agrees = Additive([0.001, 0.001])
    found = mix(list(agrees.costs), agrees, 0.9, 4)
    assert (found.in_float, found.alone, agrees.calls) == ((), (), 1)


class Torn(squares.SquareDetector):
    """One channel of `pool`, which nothing reads, is so large that 256 levels leave nothing of the others."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.pool.bias[7] = 5e4
            for head in self.classify:
                head.weight[:, 7] = 0.0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    return squares.write_scenes(tmp_path_factory.mktemp("scenes"), 6)


@pytest.fixture(scope="module")
def torn(scenes: LabelledSet, tmp_path_factory: pytest.TempPathFactory) -> Quantiser:
    canvases = [letterbox(read_image(path), squares.CANVAS)[0] for path in scenes.paths]
    onnx, detector = Onnx(), Torn().eval()
    manifest = onnx._manifest(Path("artifacts/torn"), detector, "int8", None)
    graph = onnx.quantise(detector, canvases, tmp_path_factory.mktemp("graph"))
    return Quantiser(graph, lambda folder: onnx._network(folder, manifest))


def test_the_layer_that_breaks_is_put_back(torn: Quantiser, scenes: LabelledSet) -> None:
    agrees = measure(torn, Torn().eval(), scenes.paths)
    assert agrees(torn.layers) == pytest.approx(1, abs=1e-4)
    found = mix(torn.layers, agrees, 0.95, 6)
    assert found.in_float == ("pool",)
    assert found.before < 0.1
    assert found.after > 0.95
    assert [one.layer for one in found.alone] == ["pool", "colour"]


def test_a_detector_that_shows_nothing_cannot_agree(torn: Quantiser, scenes: LabelledSet) -> None:
    silent = Torn().eval()
    with torch.no_grad():
        for head in silent.classify:
            head.bias.fill_(-50.0)
    with pytest.raises(AcclimateError, match=r"shows no box above 0\.25"):
        measure(torn, silent, scenes.paths)


def test_images_for_comparison_are_held_out_where_there_are_enough() -> None:
    paths = [Path(f"{i:03}.png") for i in range(40)]
    assert set(held_out(paths, paths[:20], 0)) == set(paths[20:])
    assert set(held_out(paths[:20], paths[:16], 0)) == set(paths[:20])
    assert len(held_out(paths, (), 0)) == 32
    assert held_out(paths, (), 0) == held_out(paths[::-1], (), 0)
