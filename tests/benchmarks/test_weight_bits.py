"""Weights of INT8 in the bits that the benchmark asks for, whatever the exporters do by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import coloured_squares as squares
import weight_bits


@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 127)])
def test_both_forms_are_what_they_say(tmp_path: Path, bits: int, largest: int) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 4)
    artifact = weight_bits.export(bits, "onnx", squares.SquareDetector(), tmp_path / "artifact", scenes.paths)
    weights = [
        onnx.numpy_helper.to_array(value).astype(int)
        for value in onnx.load(artifact.file(".onnx")).graph.initializer
        if value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 4
    ]
    assert max(np.abs(one).max() for one in weights) == largest
