"""LiteRT: parity with the detector, names, threads, and what is said where its converter is missing."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

import coloured_squares as squares
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter, litert

if missing := engines.engine("litert").missing():
    pytest.skip(missing, allow_module_level=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if missing := exporter("litert").missing():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("artifacts") / "litert-fp32"
    return exporter("litert").export(squares.SquareDetector(), folder, "fp32", [])


@pytest.mark.slow
def test_it_is_the_detector_on_images(artifact: Artifact, tmp_path: Path) -> None:
    squares.check_parity(artifact, tmp_path / "scenes")


@pytest.mark.slow
def test_int8_finds_what_fp32_finds_and_layers_can_stay_in_float(artifact: Artifact, tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 6).images
    layers: list[tuple[str, ...]] = []
    differences: list[float] = []
    canvas = to_input(letterbox(read_image(scenes[0].path), squares.CANVAS)[0])
    reference = engines.engine("litert").load(artifact, 1)(canvas)

    def choose(graph: base.Quantiser) -> Collection[str]:
        layers.append(tuple(graph.layers))
        # Both before either is run: they must not share a file.
        for trial in [graph.network(kept) for kept in ((), graph.layers)]:
            found = trial(canvas)
            differences.append(max(float(np.abs(a - b).max()) for a, b in zip(found, reference, strict=True)))
        return graph.layers[:1]

    made = exporter("litert").export(
        squares.SquareDetector(), tmp_path / "a", "int8", [scene.path for scene in scenes], choose
    )
    assert made.manifest.precision == "int8"
    assert made.manifest.calibration is not None
    assert made.manifest.calibration.images == len(scenes)
    assert len(set(layers[0])) == len(layers[0]) > 1
    # All in fp32 is the fp32 graph; none is not.
    assert differences[1] < 1e-5 < differences[0]


def test_a_missing_converter_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(litert.CONVERTER_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(AcclimateError, match=r"python is not there, .* `make litert` .* ACCLIMATE_LITERT_PYTHON"):
        exporter("litert").export(squares.SquareDetector(), tmp_path / "a", "fp32", [])
    assert not list(tmp_path.iterdir())


def test_a_converter_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without litert-torch, such as the one that runs."""
    monkeypatch.setenv(litert.CONVERTER_VARIABLE, sys.executable)
    with pytest.raises(AcclimateError, match=r"does not carry this detector \(.*litert_torch.*\)") as caught:
        exporter("litert").export(squares.SquareDetector(), tmp_path / "a", "fp32", [])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match="litert does not export fp16"):
        exporter("litert").export(squares.SquareDetector(), tmp_path / "a", "fp16", [])
