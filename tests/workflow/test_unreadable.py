"""Images that cannot be read: training takes others and says which, an evaluation counts neither them nor their boxes,
and the report repeats both."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from rich.console import Console

from acclimate import workflow
from acclimate.config import DataConfig
from acclimate.errors import Interrupted
from acclimate.run import Run, counted
from acclimate.verification.show import print_verification
from tiny_job import config as tiny_config
from tiny_job import make_data


def cut(folder: Path, place: int) -> Path:
    """Take the second half from an image of a folder; its header stays."""
    file = sorted(folder.iterdir())[place]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def told(page: Path) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_data(tmp_path / "data")
    return tmp_path / "data"


def test_what_was_left_out_is_in_the_runs_the_numbers_and_the_report(data: Path, tmp_path: Path) -> None:
    source = cut(data / "clear-train" / "images", 1)
    target = cut(data / "fog-train" / "images", 2)
    cut(data / "fog-test" / "images", 0)
    config = tiny_config(data, tmp_path / "job")
    console = Console(record=True, width=200)

    trained = workflow.train(config, tmp_path / "source", console=console)
    left_out = trained.manifest.notes.model_dump(mode="json")["left_out"]
    assert left_out == {"source": {"problems": [f"{source}: the JPEG is truncated; left out"]}}
    assert "1 source image could not be read and took no part" in console.export_text(clear=True)

    adapted = workflow.adapt(
        trained.path, data / "fog-train" / "images", tmp_path / "adapted", ["schedule.steps=4"], console=console
    )
    left_out = adapted.manifest.notes.model_dump(mode="json")["left_out"]
    assert left_out["target"] == {"problems": [f"{target}: the JPEG is truncated; left out"]}

    test = DataConfig(path=data / "fog-test")
    result = workflow.evaluate(adapted.path, test, console=console)
    assert (result.images, result.unreadable) == (3, 1)
    assert "3 images (1 more could not be read)" in console.export_text(clear=True)

    artifact = workflow.export(adapted.path, precision="fp32")
    verified = workflow.verify(artifact, [(test, "target_test", "target")])
    print_verification(verified, console)
    assert (verified.accuracy["target_test"].images, verified.accuracy["target_test"].unreadable) == (3, 1)
    assert "3 (+1 unreadable)" in console.export_text(clear=True)

    text = told(workflow.report([trained.path, adapted.path], tmp_path / "report.html"))
    assert f"Source-only: {source}: the JPEG is truncated; left out" in text
    assert f"Adapted: {target}: the JPEG is truncated; left out" in text
    assert "3 images (1 more could not be read)" in text


def test_a_resumed_training_keeps_what_it_left_out_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cut(data / "clear-train" / "images", 0)
    config = tiny_config(data, tmp_path / "job")
    from acclimate.adapt import engine

    agreed = engine._agreed
    monkeypatch.setattr(engine, "_agreed", lambda acc, losses, stop: (agreed(acc, losses, stop)[0], True))
    run = tmp_path / "source"
    # The first epoch, which is all images, ends before the third step.
    for _ in range(3):
        with pytest.raises(Interrupted):
            workflow.train(config, run)
    before = Run.open(run).manifest.notes.model_dump(mode="json")["left_out"]
    monkeypatch.undo()
    # It is readable again, with as many bytes: what the earlier sessions did without stays told.
    whole = simplejpeg.encode_jpeg(np.full((96, 128, 3), 90, np.uint8), quality=30, colorspace="RGB")
    first.write_bytes(whole.ljust(first.stat().st_size, b"\0"))
    assert workflow.train(config, run).manifest.notes.model_dump(mode="json")["left_out"] == before == {
        "source": {"problems": [f"{first}: the JPEG is truncated; left out"]}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "unreadable", "expected"),
    [(1, 0, "1 image"), (12, 0, "12 images"), (3, 1, "3 images (1 more could not be read)")],
)
def test_a_count_says_what_it_leaves_out(images: int, unreadable: int, expected: str) -> None:
    assert counted(images, unreadable) == expected
