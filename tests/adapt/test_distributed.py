"""Two processes under torchrun train what one process trains, and only one of them writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import safetensors.torch
import torch

from acclimate.cli import main
from acclimate.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO set of twelve pictures with up to two rectangles, and a configuration without BatchNorm."""
    folder = tmp_path_factory.mktemp("distributed")
    rng = np.random.default_rng(0)
    records: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    records["categories"] = [{"id": 1, "name": "light"}, {"id": 2, "name": "dark"}]
    (folder / "images").mkdir()
    for i in range(12):
        picture = rng.integers(90, 130, (64, 64, 3)).astype(np.uint8)
        for category, level in [(1, 230), (2, 20)][: 1 + i % 2]:
            x, y, width, height = (int(v) for v in (*rng.integers(0, 30, 2), *rng.integers(16, 32, 2)))
            cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), (level, level, 128), -1)
            records["annotations"].append(
                {
                    "id": len(records["annotations"]) + 1, "image_id": i, "category_id": category, "iscrowd": 0,
                    "bbox": [x, y, width, height], "area": width * height,
                }
            )  # fmt: skip
        assert cv2.imwrite(str(folder / "images" / f"{i}.png"), picture)
        records["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
    (folder / "annotations.json").write_text(json.dumps(records))
    file = folder / "config.toml"
    file.write_text(
        f"""
        [source]
        path = "{folder / "annotations.json"}"
        images = "{folder / "images"}"
        [model]
        image_size = [64, 64]
        backbone = "test_efficientnet"
        weights = "none"
        norm = "group"
        strides = [8, 16]
        channels = 16
        depth = 1
        [train]
        steps = {STEPS}
        batch_size = 4
        lr = 1e-3
        warmup = 0
        ema = 0.5
        precision = "fp32"
        checkpoint_every = 3
        log_every = 1
        workers = 0
        """
    )
    return file


def torchrun(*arguments: str) -> list[str]:
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*started, "-m", "acclimate", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def alone(*arguments: str) -> None:
    """A command in this process, which has torch loaded."""
    assert main(list(arguments)) == 0


def together(*arguments: str) -> None:
    """A command in two processes."""
    done = subprocess.run(torchrun(*arguments), env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def large(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher."""
    out = tmp_path_factory.mktemp("teacher") / "large"
    alone("train", str(config), "--out", str(out))
    return out


@pytest.mark.parametrize("options", [(), ("model.norm=batch", "train.optimizer=sgd", "train.clip=1")])
def test_two_processes_train_what_one_does(options: tuple[str, ...], config: Path, tmp_path: Path) -> None:
    """Also where BatchNorm trains, whose statistics are those of the whole batch."""
    for start, name in ((alone, "one"), (together, "two")):
        start("train", str(config), "--out", str(tmp_path / name), *options)
    one, two = (Run.open(tmp_path / name) for name in ("one", "two"))
    assert (one.manifest.notes.processes, two.manifest.notes.processes) == (1, 2)
    assert one.done
    assert two.done

    lines, expected = two.metrics(), one.metrics()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "each step is logged once"
    for line, other in zip(lines, expected, strict=True):
        for name in ("loss", "lr", "supervised/class", "supervised/box"):
            assert line[name] == pytest.approx(other[name], rel=1e-3)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)

    # Adam divides by the gradient's size, so a weight whose gradient is noise moves by noise: judge all together.
    for name in ("checkpoints/step_000003.safetensors", "model.safetensors"):
        found, reference = (safetensors.torch.load_file(run.path / name) for run in (two, one))
        first = safetensors.torch.load_file(one.path / "checkpoints" / "step_000003.safetensors")
        assert found.keys() == reference.keys()
        difference = torch.cat([(found[key] - value).flatten() for key, value in reference.items()])
        size = torch.cat([value.flatten() for value in reference.values()])
        assert difference.norm() < 1e-4 * size.norm()
        if name == "model.safetensors":
            moved = torch.cat([(first[key] - value).flatten() for key, value in reference.items()])
            assert difference.norm() < 0.05 * moved.norm()

    files = {path.relative_to(two.path) for path in two.path.rglob("*") if path.is_file()}
    assert files == {path.relative_to(one.path) for path in one.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["hinge", "wasserstein-clip"])
def test_two_processes_train_the_critics_that_one_does(mode: str, large: Path, tmp_path: Path) -> None:
    """Critics have an optimiser of their own, whose gradients distributed training does not average by itself."""
    options = [
        "model.backbone=test_efficientnet", "model.weights=none", "model.norm=group", "model.depth=1",
        *(f"adapt.distillation.gan.{option}" for option in (f"mode={mode}", "width=8", "lr=0.01", "until=0.7")),
        "adapt.distillation.imitation.weight=0.01",
    ]  # fmt: skip
    for start, name in ((alone, "one"), (together, "two")):
        start("distil", str(large), "--student", "model.channels=8", "--out", str(tmp_path / name), *options)
    runs = [Run.open(tmp_path / name) for name in ("one", "two")]
    expected, found = (run.metrics() for run in runs)
    assert len(found) == STEPS
    for line, other in zip(found, expected, strict=True):
        for name in ("loss", "distillation/gan", "distillation/imitation", "distillation/soft_class"):
            assert line[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name
    assert [line["distillation/gan"] != 0 for line in found] == [True] * 4 + [False], "the last step is plain"


def test_two_processes_stop_together(config: Path, tmp_path: Path) -> None:
    """One process alone gets the signal, and both end the same step and save the state."""
    out = tmp_path / "run"
    many = ("train.steps=400", "train.checkpoint_every=200")
    started = subprocess.Popen(
        torchrun("train", str(config), "--out", str(out), *many),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        log = out / "metrics.jsonl"
        while not (log.is_file() and log.stat().st_size) and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        psutil.Process(started.pid).children()[0].send_signal(signal.SIGINT)
        output, _ = started.communicate(timeout=300)
    finally:
        started.kill()
    stopped = Run.open(out)
    assert stopped.manifest.status == "interrupted", output[-3000:]
    step = json.loads((out / "state" / "step.json").read_text())["step"]
    assert 0 < step < 400
    assert stopped.metrics()[-1]["step"] == step
