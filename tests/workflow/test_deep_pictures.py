"""Pictures of more than 8 bits from the set to the device: one range of values, measured once and recorded."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate import workflow
from acclimate.config import Config, DataConfig
from acclimate.data import formats
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.models.detector import specification
from acclimate.run import read_json
from tiny_job import config as tiny_config
from tiny_job import make_data


def radiometric(folder: Path, low: float, step: float) -> None:
    """Turn a set's pictures into 16-bit ones, in counts of a thermal camera, each with a dead pixel."""
    for file in sorted((folder / "images").iterdir()):
        grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        counts = (low + step * grey.astype(np.float64)).round().astype(np.uint16)
        counts[0, 0] = 65535
        file.unlink()
        # The index goes on naming the .jpg; what a file is, its content says.
        encoded, data = cv2.imencode(".png", counts)
        assert encoded
        file.write_bytes(data.tobytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    make_data(folder)
    radiometric(folder / "clear-train", 51000, 4)
    radiometric(folder / "fog-train", 51200, 3)
    radiometric(folder / "fog-test", 51200, 3)
    return folder


def configured(data: Path, out: Path) -> Config:
    config = tiny_config(data, out)
    assert config.source is not None
    return config.model_copy(update={"source": config.source.model_copy(update={"intensity": "set"})})


def test_one_range_from_the_set_to_the_device(data: Path, tmp_path: Path) -> None:
    config = configured(data, tmp_path)
    low, high = formats.read(config.source).reading.intensity
    values = np.concatenate(
        [cv2.imread(str(file), cv2.IMREAD_UNCHANGED).ravel() for file in (data / "clear-train" / "images").iterdir()]
    )
    np.testing.assert_allclose((low, high), np.percentile(values[values < 65535], (0.1, 99.9)), atol=12)

    source = workflow.train(config, tmp_path / "source")
    adapted = workflow.adapt(source.path, data / "fog-train" / "images", tmp_path / "adapted", ["schedule.steps=2"])
    artifact = workflow.export(
        adapted.path, precision="int8", calibration=data / "fog-train" / "images", images=4, choice="diverse"
    )
    assert specification(adapted.path).reading.intensity == (low, high)
    assert read_json(artifact / "artifact.json")["intensity"] == [low, high]

    # The device reads the file as the formula says, not by the picture's own percentiles.
    predictor = Predictor.load(artifact)
    file = sorted((data / "fog-test" / "images").iterdir())[0]
    counts = cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.float64)
    grey = np.rint(((counts - low) / (high - low) * 255).clip(0, 255)).astype(np.uint8)
    picture = read_image(file, predictor.manifest.reading)
    assert np.abs(picture[:, :, 0].astype(int) - grey).max() <= 1
    assert np.abs(read_image(file)[:, :, 0].astype(int) - grey).max() > 10
    by_file, by_pixels = predictor(file), predictor(picture)
    np.testing.assert_array_equal(by_file.boxes, by_pixels.boxes)
    result = workflow.evaluate(adapted.path, DataConfig(path=data / "fog-test", intensity=(0, 65535)))
    assert result.images == 4


def test_a_set_of_8_bits_has_no_range_to_measure(data: Path) -> None:
    with pytest.raises(AcclimateError, match="none of its pictures has more than 8 bits; remove the key"):
        formats.read(DataConfig(path=data / "clear-test", intensity="set"))
    assert formats.read(DataConfig(path=data / "clear-train")).reading.intensity is None
