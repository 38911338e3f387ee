"""What differs between two runs is named, and an image that breaks on the way costs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate import stages
from acclimate.config import Config, DataConfig
from acclimate.data import formats
from acclimate.errors import OtherInputsError
from acclimate.inputs import FILE, Inputs, differences
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations


@pytest.fixture
def images(tmp_path: Path) -> formats.LabelledSet:
    rng = np.random.default_rng(0)
    made = []
    for number in range(3):
        path = tmp_path / "data" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (40, 50, 3), np.uint8))
        box = np.float32([[1, 2, 30, 20 + number]])
        annotations = Annotations(box, np.zeros(1, np.int64), np.zeros(1, np.bool_))
        made.append(formats.LabelledImage(path, 40, 50, annotations))
    return formats.LabelledSet("data", "coco", ("car", "bus"), tuple(made))


def inputs(images: formats.LabelledSet, **settings: object) -> Inputs:
    return Inputs({"train": {"steps": 4, "lr": 0.1, **settings}}, {"the source run": "a" * 64}, images)


def stored(one: Inputs) -> dict[str, object]:
    """As it comes back from the disk."""
    return json.loads(json.dumps(one.as_json()))  # type: ignore[no-any-return]


def test_nothing_differs_from_itself(images: formats.LabelledSet) -> None:
    one = inputs(images)
    assert differences(stored(one), one.as_json()) == ""
    assert one.damaged_since(stored(one)) == ()


def test_a_setting_is_named_with_both_values(images: formats.LabelledSet) -> None:
    before = stored(inputs(images, ssd={"ratios": [1, 2]}))
    now = inputs(images, steps=6, lr=0.2, ssd={"ratios": None}, warmup=3).as_json()
    told = "train.steps is 6 and was 4; train.lr is 0.2 and was 0.1; train.ssd.ratios is none and was 1, 2; and 1 more"
    assert differences(before, now) == told


def test_weights_and_classes_are_named(images: formats.LabelledSet) -> None:
    before = stored(inputs(images))
    now = replace(inputs(replace(images, classes=("bus", "car"))), weights={"the source run": "b" * 64}).as_json()
    told = "the weights of the source run are bbbbbbbb and were aaaaaaaa; "
    assert differences(before, now) == told + "the classes of the source are bus, car and were car, bus"


def test_files_are_named(images: formats.LabelledSet) -> None:
    before = stored(inputs(images))
    first, second, third = images.images
    size = first.path.stat().st_size
    first.path.write_bytes(first.path.read_bytes() + b"\0")
    moved = replace(second, annotations=second.annotations.with_boxes(second.annotations.boxes + 1))
    other = replace(third, path=third.path.with_name("new.png"))
    now = inputs(replace(images, images=(first, moved))).as_json()
    told = [
        f"{first.path} has {size + 1} bytes and had {size}",
        f"{second.path} has other labels: 1 boxes and had 1 boxes",
        f"{third.path} is no longer in the source",
    ]
    assert differences(before, now) == "; ".join(told)
    assert f"{other.path} is new in the source" in differences(
        before, inputs(replace(images, images=(*images.images, other))).as_json()
    )
    assert differences(before, inputs(replace(images, images=images.images[::-1])).as_json()).endswith("another order")


@pytest.mark.parametrize("cut", [0, 20, -3000])
def test_an_image_that_cannot_be_read_any_more_changes_nothing(images: formats.LabelledSet, cut: int) -> None:
    before = stored(inputs(images))
    path = images.images[1].path
    path.write_bytes(path.read_bytes()[:cut])
    # What a reader of the data set makes of it: it leaves out an image without a header.
    left = images if cut < 0 else replace(images, images=(images.images[0], images.images[2]))
    now = inputs(left)
    assert now.damaged_since(before) == (path,)
    placed = now.in_the_places_of(before)
    assert placed.source is not None
    assert placed.source.paths == images.paths, "what a step sees goes by the places"


def test_a_deleted_or_replaced_image_is_another_input(images: formats.LabelledSet) -> None:
    before = stored(inputs(images))
    path = images.images[1].path
    cv2.imwrite(str(path), np.zeros((40, 50, 3), np.uint8))
    assert inputs(images).damaged_since(before) == ()
    path.unlink()
    left = replace(images, images=(images.images[0], images.images[2]))
    assert inputs(left).damaged_since(before) == ()
    assert inputs(images, steps=5).damaged_since(before) == ()


def test_a_run_says_what_is_other_about_it(images: formats.LabelledSet, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", Manifest(verb="train", digest="one"))
    run.write(FILE, inputs(images).as_json())
    wanted = Manifest(verb="train", digest="two")
    with pytest.raises(OtherInputsError, match=r"holds another run .*: train\.steps is 9 and was 4; choose") as caught:
        stages.known(run.path, wanted, inputs(images, steps=9))
    assert (caught.value.digest, caught.value.wanted) == ("one", "two")


def test_a_run_of_an_earlier_version_says_it_by_its_configuration(images: formats.LabelledSet, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", Manifest(verb="train", digest="one"))
    config = Config(source=DataConfig(path=Path("x")))
    run.write("config.json", config.model_dump(mode="json"))
    now = Inputs(stages.plain(config.model_copy(update={"seed": 3}), "seed", "train"), {}, images)
    with pytest.raises(OtherInputsError, match="with other inputs: seed is 3 and was 0; choose another --out"):
        stages.known(run.path, Manifest(verb="train", digest="two"), now)
