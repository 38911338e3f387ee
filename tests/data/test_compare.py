"""Domains whose differences are made here are told apart, and a proposed job is one that can be run."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from acclimate import cli, workflow
from acclimate.config import DataConfig, load
from acclimate.data.compare import NEAR_BITS, look, near_duplicates
from acclimate.structures import Image


def scene(seed: int, level: float = 130, size: tuple[int, int] = (120, 160)) -> Image:
    """Smooth random shapes in colour around a grey level."""
    rng = np.random.default_rng(seed)
    small = rng.normal(level, 40, (6, 8, 3)).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def half(image: Image) -> Image:
    return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)


def save(path: Path, image: Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def labelled(root: Path, seeds: range, side: int = 40, level: float = 130, name: str = "car") -> Path:
    index: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": name}],
    }
    for seed in seeds:
        save(root / "images" / f"{seed}.png", scene(seed, level))
        index["images"].append({"id": seed, "file_name": f"{seed}.png", "width": 160, "height": 120})
        index["annotations"].append({"id": seed, "image_id": seed, "category_id": 1, "bbox": [10, 10, side, side]})
    (root / "labels.json").write_text(json.dumps(index))
    return root


def unlabelled(root: Path, seeds: range, level: float = 130) -> Path:
    for seed in seeds:
        save(root / f"{seed}.png", scene(seed, level))
    return root


def findings(*args: object, **options: object) -> str:
    return "\n".join(workflow.compare(*args, **options).findings)  # type: ignore[arg-type]


def test_alike_domains_give_nothing_to_say(tmp_path: Path) -> None:
    source = labelled(tmp_path / "s", range(60))
    target = unlabelled(tmp_path / "t", range(100, 120))
    assert findings(source, target, [labelled(tmp_path / "e", range(200, 210))]) == ""


def test_what_differs_is_said(tmp_path: Path) -> None:
    source = labelled(tmp_path / "s", range(12), side=3)
    target = unlabelled(tmp_path / "t", range(100, 112), level=50)
    test = labelled(tmp_path / "e", range(200, 210), name="lorry")
    said = findings(source, target, [test])
    # 3 px of 160 are 6 px of an input of 320.
    assert "100% of its boxes are below 8 px on an input of 320x320" in said
    assert "the target is darker than the source" in said
    assert "few boxes to learn from: car (12)" in said
    assert "lorry is no class of the source" in said
    assert "below 8 px" not in findings(source, target, image_size=(640, 640))


def test_images_in_two_sets_are_found(tmp_path: Path) -> None:
    source = labelled(tmp_path / "s", range(60))
    test = labelled(tmp_path / "e", range(200, 230))
    target = unlabelled(tmp_path / "t", range(100, 120))
    # The same picture, scaled and compressed; and a link to a file.
    save(target / "again.jpg", np.asarray(cv2.resize(scene(7), (200, 150)), np.uint8))
    (target / "linked.png").symlink_to(test / "images" / "201.png")
    said = findings(source, target, [test])
    assert f"{target}: 1 image is nearly the same as an image of {source} ({target / 'again.jpg'}" in said
    assert f"{test}: 1 image is the same file as an image of {target}" in said


def test_values_beyond_a_fixed_intensity_are_said(tmp_path: Path) -> None:
    source, target = labelled(tmp_path / "s", range(8)), tmp_path / "t"
    target.mkdir()
    for folder, low in ((source / "images", 51000), (target, 54000)):
        for number in range(8):
            deep = (low + 4 * scene(number)[:, :, 0].astype(int)).astype(np.uint16)
            assert cv2.imwrite(str(folder / f"{number}.png"), deep)
    assert "go beyond" not in findings(source, target)
    console = Console(record=True, width=300)
    workflow.compare(DataConfig(path=source, intensity="set"), target, console=console)
    said = console.export_text()
    assert "go beyond the intensity" in said
    assert "values above 8 bits" in said
    assert f"{source}: its values" not in said


def test_a_night_frame_among_day_images_is_an_outlier(tmp_path: Path) -> None:
    source = labelled(tmp_path / "s", range(60))
    target = unlabelled(tmp_path / "t", range(100, 130))
    save(target / "night.png", (scene(999) // 12).astype(np.uint8))
    said = findings(source, target)
    assert "unusually dark" in said
    assert "night.png" in said


def test_hashes_hold_under_scaling_and_tell_pictures_apart(tmp_path: Path) -> None:
    ones = {save(tmp_path / f"{seed}.png", scene(seed)): seed for seed in range(40)}
    looks = {path: look(path) for path in ones}
    bits = [one.hash for one in looks.values()]
    apart = [(a ^ b).bit_count() for i, a in enumerate(bits) for b in bits[:i]]
    assert min(apart) > NEAR_BITS
    smaller = {save(tmp_path / "small" / f"{seed}.jpg", half(scene(seed))): seed for seed in range(40)}
    pairs = near_duplicates({path: look(path) for path in smaller}, looks)
    assert [(smaller[one], ones[other]) for one, other in pairs] == [(seed, seed) for seed in range(40)]
    flat = save(tmp_path / "flat.png", np.full((50, 50, 3), 9, np.uint8))
    assert near_duplicates({flat: look(flat)}, {flat: look(flat)}) == []


def test_a_proposed_job_is_one(tmp_path: Path) -> None:
    source = DataConfig(path=labelled(tmp_path / "s", range(30), side=4), classes={"car": 'the "car"'})
    target = unlabelled(tmp_path / "t", range(100, 110))
    test = labelled(tmp_path / "e", range(200, 205))
    console = Console(file=open("/dev/null", "w"))  # noqa: SIM115
    file = workflow.init(source, target, DataConfig(path=test), tmp_path / "job.toml", console=console)
    config = load(file)
    assert config.source == source
    assert (config.target, config.budget) == (target, None)
    assert config.target_test is not None
    # 4 px of 160 are 8 px from 320 on, which is more than the image has.
    assert config.model.image_size == (128, 160)
    assert config.model.strides == (4, 8, 16)
    assert all(side % config.model.strides[-1] == 0 for side in config.model.image_size)
    assert (config.train.batch_size, config.train.steps, config.schedule.steps) == (8, 1000, 500)
    assert sum(line.startswith("#") for line in file.read_text().splitlines()) > 5


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labelled(tmp_path / "s", range(10))
    unlabelled(tmp_path / "t", range(100, 110))
    assert cli.main(["data", "s", "t", "s", "test.drop=[]", "--input", "256x320"]) == 0
    assert "input of the network: 256x320" in capsys.readouterr().out
    assert cli.main(["init", "s", "t", "--out", "j.toml"]) == 0
    assert cli.main(["init", "s", "t", "--out", "j.toml"]) == 2
    assert cli.main(["init", "t", "t", "--out", "k.toml"]) == 2
    assert cli.main(["data", "s", "t", "--input", "big"]) == 2
    assert cli.main(["data", "s", "--to", "yolo"]) == 2
    assert cli.main(["data", "s", "--to", "yolo", "y"]) == 0
    assert (tmp_path / "y" / "data.yaml").is_file()
