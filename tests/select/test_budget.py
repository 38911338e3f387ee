from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from acclimate.config import Budget
from acclimate.export import exporter
from acclimate.export.base import complexity, frozen_copy
from acclimate.select import budget as costs
from acclimate.select.budget import Cost, Sample, Table, Width, fit, representative, take
from coloured_squares import SquareDetector, scene

HERE = costs.Platform("onnx", "fp32", 1)

SHARES = (2.0, 0.05, 0.7, 0.0, 1.9)
"""Milliseconds: the constant, per million multiply-accumulates, and of three stages."""


def sample(width: Width, noise: float = 1.0) -> Sample:
    """A detector whose latency is exactly a sum of shares; its multiply-accumulates are not linear in the widths."""
    macs = 40 * width[0] * width[1] + 90 * width[1] * width[2] + 5
    parameters = int(1e6 * (width[0] * width[1] + width[2]))
    latency = float(np.dot(SHARES, [1.0, macs, *width])) * noise
    return Sample(
        width=width,
        macs_m=macs,
        parameters=parameters,
        size_mb=0.3 + 1.1 * parameters / 1e6,
        latency_ms=latency,
    )


def test_the_prediction_finds_the_shares_of_an_additive_latency() -> None:
    widths = representative([(0.25, 0.5, 0.75, 1.0)] * 3, 16, seed=0)
    table = fit([sample(width) for width in widths[:12]], [sample(width) for width in widths[12:]], HERE)
    assert table.latency_shares == pytest.approx(SHARES, abs=1e-6)
    assert table.size_shares == pytest.approx((0.3, 1.1))
    assert table.latency_error == pytest.approx(0, abs=1e-9)
    one = sample((0.25, 1.0, 0.75))
    predicted = table.predict(one.width, one.macs_m, one.parameters)
    assert predicted.latency_ms == pytest.approx(one.latency_ms)
    assert predicted.size_mb == pytest.approx(one.size_mb)


def test_the_error_is_that_of_the_widths_held_out() -> None:
    widths = representative([(0.25, 0.5, 0.75, 1.0)] * 3, 16, seed=0)
    slower = [sample(widths[12], 1.25), sample(widths[13], 1.0)]
    table = fit([sample(width) for width in widths[:12]], slower, HERE)
    # 1 / 1.25 is a fifth too little, and the other one is right.
    assert table.latency_error == pytest.approx(0.1)
    assert table.latency_error_max == pytest.approx(0.2)
    assert fit([sample(width) for width in widths], [], HERE).latency_error is None


def test_more_channels_never_make_a_prediction_faster() -> None:
    rng = np.random.default_rng(0)
    widths = representative([(0.25, 0.5, 1.0)] * 3, 12, seed=1)
    table = fit([sample(width, float(rng.uniform(0.5, 2))) for width in widths], [], HERE)
    assert min(table.latency_shares) >= 0
    assert min(table.size_shares) >= 0


def test_representative_widths_are_different_and_start_with_the_uniform_ones() -> None:
    found = representative([(0.25, 0.5, 1.0)] * 4, 9, seed=3)
    assert found[:3] == [(1.0,) * 4, (0.5,) * 4, (0.25,) * 4]
    assert len(set(found)) == 9
    assert {choice for width in found for choice in width} == {0.25, 0.5, 1.0}
    assert found == representative([(0.25, 0.5, 1.0)] * 4, 9, seed=3)
    assert representative([(0.5, 1.0), (0.25, 0.5, 1.0), (1.0,)], 3, 0)[::2] == [(1.0, 1.0, 1.0), (0.5, 0.25, 1.0)]
    assert sorted(representative([(0.5, 1.0)] * 2, 50, seed=0)) == [(0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)]


def test_a_cost_is_held_against_the_limits_that_are_set_and_known() -> None:
    cost = Cost(macs_m=90, latency_ms=12, size_mb=1)
    limits = Budget(latency_ms=10, macs_m=100, memory_mb=50)
    assert cost.shares(limits) == pytest.approx({"latency_ms": 1.2, "macs_m": 0.9})
    assert list(cost.over(limits)) == ["latency_ms"]
    assert cost.excess(limits) == pytest.approx(1.2)
    # A limit that is just met holds.
    assert not Cost(macs_m=100).over(Budget(macs_m=100))
    assert Cost(macs_m=100).excess(Budget()) == 0


def test_a_table_is_taken_from_artifacts_that_are_timed_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three artifacts that take known times, by a clock of the test's own."""
    order: list[str] = []
    slow, clock = {"a": 0.001, "b": 0.004, "c": 0.008}, [0.0]
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    real = costs.Predictor

    class Slowed(real):  # type: ignore[misc, valid-type]
        def run(self, images):  # type: ignore[no-untyped-def]
            clock[0] += slow[self.artifact.folder.name]
            order.append(self.artifact.folder.name)
            return super().run(images)

    monkeypatch.setattr(costs, "Predictor", Slowed)
    names: dict[Width, str] = {(1.0,): "c", (0.5,): "b", (0.25,): "a"}

    def export(width: Width) -> tuple[Path, Cost]:
        detector = SquareDetector()
        artifact = exporter("onnx").export(detector, tmp_path / names[width], "fp32", ())
        counted = complexity(frozen_copy(detector))
        return artifact.folder, Cost(
            macs_m=(counted.macs_m or 0.0) * width[0], parameters=counted.parameters or 0, size_mb=artifact.size_mb
        )

    told: list[tuple[int, int]] = []
    table = take(
        list(names), 1, export, [scene(0)[0]], HERE, rounds=2,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
    # Each artifact is tried once as it is loaded.
    assert order[:3] == ["c", "b", "a"]
    assert order[3:] == [name for names in ("abc", "cba") for name in names for _ in range(costs.TURN + 1)]
    assert (len(table.fitted), len(table.held_out)) == (2, 1)
    assert [one.latency_ms for one in (*table.fitted, *table.held_out)] == pytest.approx([8, 4, 1])
    assert table.machine["processor"]
    assert math.isfinite(table.latency_error or math.nan)
    again = Table.model_validate_json(table.model_dump_json())
    assert again == table
