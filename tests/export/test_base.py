"""What every exporter inherits: how pictures are read goes with the detector to its calibration and to the device."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image as Pillow

import coloured_squares as squares
from acclimate.edge.artifact import ArtifactManifest
from acclimate.edge.engines import Network
from acclimate.edge.images import Reading, letterbox, read_image
from acclimate.export.base import Exporter, Graph
from acclimate.models.detector import Detector
from acclimate.structures import Image


class Written:
    """A graph that is a file of its own name."""

    layers = ("only",)

    def write(self, folder: Path, in_float: Collection[str] = ()) -> None:
        (folder / "model.onnx").write_bytes(b"graph")


class Recording(Exporter):
    """Keeps what it is given to calibrate on."""

    name: ClassVar[str] = "onnx"
    precisions = ("int8",)
    why_no_other = "it records"
    packages = ()

    def convert(self, frozen: Detector, folder: Path, precision: str) -> None:
        raise NotImplementedError

    def quantise(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> Graph:
        self.canvases = canvases
        return Written()

    def _network(self, folder: Path, manifest: ArtifactManifest) -> Network:
        return lambda images: [np.zeros((1, 1), np.float32)]


@pytest.mark.parametrize("reading", [Reading(), Reading(orientation="stored"), Reading(intensity=(10.0, 60.0))])
def test_pictures_are_read_alike_in_calibration_and_on_the_device(reading: Reading, tmp_path: Path) -> None:
    picture = Pillow.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) % 100)
    tag = Pillow.Exif()
    tag[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=tag)
    detector = squares.SquareDetector(squares.SPEC.model_copy(update={"reading": reading}))
    exporter = Recording()
    artifact = exporter.export(detector, tmp_path / "artifact", "int8", [tmp_path / "turned.png"])
    assert artifact.manifest.reading == reading
    (canvas,) = exporter.canvases
    expected = letterbox(read_image(tmp_path / "turned.png", reading), squares.CANVAS)[0]
    np.testing.assert_array_equal(canvas, expected)
    others = {Reading(), Reading(orientation="stored"), Reading(intensity=(10.0, 60.0))} - {reading}
    for other in others:
        assert (canvas != letterbox(read_image(tmp_path / "turned.png", other), squares.CANVAS)[0]).any()
