"""What is shipped trains a network that lives: every preset and every example, for a hundred steps from ImageNet."""

from __future__ import annotations

from pathlib import Path

import pytest

from acclimate import workflow
from acclimate.config import Config, DataConfig, load, merge, parse
from acclimate.models.detector import PRESETS
from acclimate.models.weights import PACKAGED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
STEPS = 100
SMALL = (f"train.steps={STEPS}", "train.warmup=20", "train.batch_size=4", "train.log_every=10", "train.precision=fp32")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return workflow.scenes(tmp_path_factory.mktemp("scenes") / "clear", 24, (96, 128), 0)


def train(config: Config, scenes: DataConfig, out: Path, *changes: str) -> list[dict[str, object]]:
    values = config.model_copy(update={"source": scenes, "scenes": None}).model_dump(mode="json")
    run = workflow.train(parse(Config, merge(values, [*SMALL, "model.image_size=[96, 128]", *changes]), "test"), out)
    assert "random" not in run.manifest.notes.start, "it starts from installed weights"
    return run.metrics()


def alive(lines: list[dict[str, object]]) -> None:
    """No layer is without any gradient in each of the last logged steps, and few channels are."""
    last = lines[-3:]
    layers = last[-1]["health"]
    assert isinstance(layers, dict)
    dead = [name for name in layers if all(line["health"][name]["dead"] == 1 for line in last)]  # type: ignore[index]
    assert not dead
    assert min(float(line["dead_channels"]) for line in last) < 0.15  # type: ignore[arg-type]


@pytest.mark.parametrize("size", sorted(PRESETS))
def test_a_preset_trains_a_network_that_lives(size: str, scenes: DataConfig, tmp_path: Path) -> None:
    assert PRESETS[size][0] in PACKAGED
    alive(train(Config(), scenes, tmp_path / "run", f"model.size={size}"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_a_network_that_lives(example: Path, scenes: DataConfig, tmp_path: Path) -> None:
    alive(train(load(example), scenes, tmp_path / "run"))
