"""Labelled frames of the target: found again by content, and kept out of test sets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.config import DataConfig, ScheduleConfig
from acclimate.data.dataset import Loader, Process, TrainingSets, Views
from acclimate.data.formats import LabelledImage, LabelledSet, UnlabelledSet, unlabelled
from acclimate.data.labelled import match, refuse_early, refuse_tested
from acclimate.errors import AcclimateError
from acclimate.run import file_digest
from acclimate.structures import Annotations

BOX = Annotations(np.float32([[4, 4, 20, 20]]), np.array([0]), np.array([False]))


def picture(path: Path, seed: int) -> Path:
    """A shape of its own for each seed, as large as any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (192, 160), interpolation=cv2.INTER_CUBIC))
    return path


def labelled(*paths: Path, annotations: Annotations = BOX) -> LabelledSet:
    return LabelledSet("site", "coco", ("car",), tuple(LabelledImage(path, 160, 192, annotations) for path in paths))


@pytest.fixture
def target(tmp_path: Path) -> UnlabelledSet:
    for seed in range(4):
        picture(tmp_path / "target" / f"{seed}.png", seed)
    return unlabelled(tmp_path / "target")


def test_frames_are_found_by_content_and_leave_the_target(tmp_path: Path, target: UnlabelledSet) -> None:
    copies = [tmp_path / "back" / f"upload-{name}" for name in ("1.png", "3.png")]
    for copy in copies:
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "target" / copy.name.removeprefix("upload-"), copy)
    frames = match(labelled(*copies), target)
    assert [path.name for path in frames.rest.paths] == ["0.png", "2.png"]
    assert frames.matched == 2
    assert frames.contents == tuple(map(file_digest, copies))


def test_a_frame_that_a_tool_has_written_anew_is_found_by_what_it_shows(
    tmp_path: Path, target: UnlabelledSet, caplog: pytest.LogCaptureFixture
) -> None:
    anew = tmp_path / "back.jpg"
    cv2.imwrite(str(anew), cv2.resize(cv2.imread(str(target.paths[2])), (640, 533)))
    frames = match(labelled(anew), target)
    assert [path.name for path in frames.rest.paths] == ["0.png", "1.png", "3.png"]
    assert "so matched" in caplog.text


def test_strangers_are_told_and_a_set_of_strangers_is_refused(
    tmp_path: Path, target: UnlabelledSet, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = picture(tmp_path / "other.png", 77)
    frames = match(labelled(target.paths[0], stranger), target)
    assert (frames.matched, len(frames.rest)) == (1, 3)
    assert f"1 images are no frames of the target folder (the first: {stranger})" in caplog.text
    with pytest.raises(AcclimateError, match="none of its 1 images is a frame of the target"):
        match(labelled(stranger), target)


def test_one_picture_with_two_labels_is_refused(tmp_path: Path, target: UnlabelledSet) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(target.paths[0], copy)
    both = labelled(target.paths[0], copy)
    assert match(both, target).matched == 2
    other = replace(both.images[1], annotations=BOX.moved((1, 1), (3, 0)))
    with pytest.raises(AcclimateError, match="same picture with other boxes"):
        match(replace(both, images=(both.images[0], other)), target)


def test_a_target_that_is_labelled_throughout_stays_for_the_teacher(target: UnlabelledSet) -> None:
    assert match(labelled(*target.paths), target).rest.paths == target.paths


def test_what_was_trained_on_is_no_test(tmp_path: Path, target: UnlabelledSet) -> None:
    frames = match(labelled(target.paths[0]), target)
    learnt = dict.fromkeys(frames.contents, "runs/adapted")
    other, copy = picture(tmp_path / "test" / "a.png", 9), tmp_path / "test" / "b.png"
    refuse_tested(learnt, [other], "target_test")
    shutil.copy(target.paths[0], copy)
    with pytest.raises(AcclimateError, match=r"b\.png is a labelled frame that was trained on \(runs/adapted\)"):
        refuse_tested(learnt, [other, copy], "target_test")
    with pytest.raises(AcclimateError, match="labelled frame"):
        refuse_early(frames, DataConfig(path=tmp_path / "test"))


def test_a_test_set_beside_the_target_is_told_apart_by_its_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, split in enumerate(("train", "train", "val")):
        picture(tmp_path / "site" / "images" / split / f"{number}.png", number)
    target = unlabelled(tmp_path / "site" / "images" / "train")
    frames = match(labelled(target.paths[0]), target)
    test = DataConfig(path=tmp_path / "site", split="val")
    refuse_early(frames, test)
    assert not caplog.text
    # Nearly the same picture is told, and the same one refused.
    near = cv2.resize(cv2.imread(str(target.paths[0])), (300, 250))
    cv2.imwrite(str(tmp_path / "site" / "images" / "val" / "near.jpg"), near)
    refuse_early(frames, test)
    assert "1 labelled frames show nearly what images of the test set" in caplog.text
    shutil.copy(target.paths[0], tmp_path / "site" / "images" / "val" / "same.png")
    with pytest.raises(AcclimateError, match=r"same\.png is a labelled frame"):
        refuse_early(frames, test)


@pytest.mark.parametrize(("world", "share", "count"), [(1, 0.25, 2), (2, 0.25, 2), (2, 0.5, 4), (1, 0.01, 1)])
def test_every_batch_has_its_share_of_labelled_frames(
    target: UnlabelledSet, world: int, share: float, count: int
) -> None:
    frames = match(labelled(*target.paths[:3]), target)
    source = labelled(*target.paths)
    views, schedule = Views((64, 64)), ScheduleConfig(steps=1, batch_size=8, workers=0)
    loaders = [
        Loader(TrainingSets(source, frames.rest, frames.images, share), views, schedule, 0, Process(rank, world))
        for rank in range(world)
    ]
    seen = []
    for step in range(3):
        for loader in loaders:
            batch, rest = loader.batch(step)
            assert rest is not None
            assert rest.targets is None
            assert rest.labelled is not None
            assert rest.labelled.targets is not None
            assert len(batch.weak) == len(rest.weak) == 8 // world
            assert len(rest.labelled.weak) == len(rest.labelled.targets) == count // world
            seen += [tuple(view.mean((1, 2)).round().tolist()) for view in rest.labelled.weak]
    assert len(set(seen)) > 1
    # Without them nothing else changes.
    plain = Loader(TrainingSets(source, frames.rest), views, schedule, 0)
    both = Loader(TrainingSets(source, frames.rest, frames.images), views, schedule, 0)
    for one, other in zip(plain.batch(5), both.batch(5), strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.strong.numpy(), other.strong.numpy())


def test_frames_held_back_are_not_learnt_from_nor_are_their_copies(tmp_path: Path, target: UnlabelledSet) -> None:
    copy = tmp_path / "target" / "0 again.png"
    shutil.copy(tmp_path / "target" / "0.png", copy)
    paths = (copy, *target.paths)
    whole = match(labelled(*paths), unlabelled(tmp_path / "target"))
    assert whole.holding_back(0, 0) is whole
    for seed in range(4):
        frames = whole.holding_back(2, seed)
        assert frames.held is not None
        learnt, held = ({file_digest(path) for path in one.paths} for one in (frames.images, frames.held))
        assert len(held) == len(learnt) == 2
        assert not held & learnt
        assert sorted((*frames.images.paths, *frames.held.paths)) == sorted(paths)
        assert frames.contents == whole.contents
        # What was held back stays out of test sets too.
        test = tmp_path / f"test-{seed}"
        test.mkdir()
        shutil.copy(frames.held.paths[0], test / "taken.png")
        with pytest.raises(AcclimateError, match="is a labelled frame"):
            refuse_early(frames, DataConfig(path=test))
    with pytest.raises(AcclimateError, match="4 frames to validate on, of 4 that are labelled, leave none"):
        whole.holding_back(4, 0)
    empty = match(labelled(*paths, annotations=Annotations.empty()), unlabelled(tmp_path / "target"))
    with pytest.raises(AcclimateError, match="have no box"):
        empty.holding_back(2, 0)
