"""`adapt` from a run and a target folder alone: the source images are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from acclimate import cli, workflow
from acclimate.adapt import source_statistics
from acclimate.adapt.teacher import measure
from acclimate.config import DataConfig
from acclimate.data import formats
from acclimate.errors import AcclimateError
from acclimate.models import detector as models
from acclimate.run import Run
from tiny_job import config, make_data


@pytest.fixture(scope="module")
def without_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source run, and with target images alone."""
    folder = tmp_path_factory.mktemp("source-free")
    make_data(folder)
    run = workflow.train(config(folder, folder / "job"), folder / "source")
    labelled = formats.read(DataConfig(path=folder / "clear-train"))
    known = measure(models.load(run.path), labelled)
    kept = source_statistics.kept(run)
    assert (kept.thresholds, kept.floors, kept.rates, kept.means) == tuple(map(tuple, known))
    assert kept.images == 6
    assert kept.boxes == run.manifest.notes.class_boxes
    assert [len(level.mean) for level in kept.levels] == [len(level.variance) for level in kept.levels]
    for split in ("train", "test"):
        shutil.rmtree(folder / f"clear-{split}")
    return folder


def adapted(folder: Path, out: Path, *overrides: str, source: str = "source", labelled: Path | None = None) -> Run:
    return workflow.adapt(
        folder / source, folder / "fog-train" / "images", out, overrides,
        labelled=None if labelled is None else DataConfig(path=labelled),
    )  # fmt: skip


def test_it_is_said_how_to_go_on_without_the_images(without_source: Path, tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"clear-train: the source images are not there; .*source=none"):
        adapted(without_source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_and_a_target_are_enough(without_source: Path, tmp_path: Path) -> None:
    arguments = ["adapt", str(without_source / "source"), "--target", str(without_source / "fog-train" / "images")]
    assert cli.main([*arguments, "--out", str(tmp_path / "out"), "source=none", "adapt.matching=0.1"]) == 0
    run = Run.open(tmp_path / "out")
    assert run.manifest.notes.method == ("teacher", "matching")
    assert run.manifest.notes.source_free
    first = Run.open(without_source / "source").manifest.notes
    assert run.manifest.notes.class_boxes == first.class_boxes
    assert run.manifest.notes.source.images == first.source.images
    assert all(line["matching/distance"] > 0 for line in run.metrics())
    assert not any(name.startswith("supervised") for line in run.metrics() for name in line)
    selection = run.selection()
    assert selection is not None
    assert 0 in {candidate.step for candidate in selection.candidates}
    # What it was adapted to has no labels: the next adaptation has what the first run kept.
    assert source_statistics.kept(run) == source_statistics.kept(Run.open(without_source / "source"))
    again = adapted(without_source, tmp_path / "again", source=str(run.path))
    assert again.done


def test_with_labelled_frames_and_no_teacher(without_source: Path, tmp_path: Path) -> None:
    run = adapted(without_source, tmp_path / "out", "source=none", "adapt.teacher=none",
                  labelled=without_source / "fog-train")  # fmt: skip
    assert run.manifest.notes.method == ("labelled",)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("adapt.adversarial={}", "adapt.adversarial looks at source images"),
        ("adapt.teacher.mix=1", "adapt.teacher.mix needs source images"),
        ("adapt.teacher.mining=2", "adapt.teacher.mining needs source images"),
        ("adapt.teacher.flip=true", "adapt.teacher.threshold"),
        ("adapt.teacher=none", "every term is off"),
    ],
)
def test_what_needs_the_images_is_refused(without_source: Path, tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(AcclimateError, match=named):
        adapted(without_source, tmp_path / "out", "source=none", override)


def test_a_run_of_an_earlier_version_says_what_it_lacks(without_source: Path, tmp_path: Path) -> None:
    shutil.copytree(without_source / "source", tmp_path / "old")
    file = tmp_path / "old" / source_statistics.FILE
    values = json.loads(file.read_text())
    file.unlink()
    with pytest.raises(AcclimateError, match="keeps nothing of its source"):
        adapted(without_source, tmp_path / "out", "source=none", source=str(tmp_path / "old"))
    del values["thresholds"]
    file.write_text(json.dumps(values))
    with pytest.raises(AcclimateError, match=r"source_statistics\.json: damaged \(thresholds: Field required\)"):
        adapted(without_source, tmp_path / "out", "source=none", source=str(tmp_path / "old"))
