"""Generated scenes: boxes against the object mask, depth against the ground plane, sizes against perspective."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

from acclimate.config import ScenesConfig
from acclimate.data import weather
from acclimate.edge.images import read_image
from acclimate.errors import AcclimateError, OtherInputsError
from acclimate.run import digest
from acclimate.scenes import render as scenes
from acclimate.scenes import sets
from acclimate.scenes.render import CLASSES, Camera, Scene

SMALL = (96, 128)


@pytest.fixture(scope="module")
def rendered() -> list[Scene]:
    return [scenes.render(seed) for seed in range(40)]


def ground_depth(camera: Camera, size: tuple[int, int], row: float) -> float:
    """Depth along the optical axis of the ground seen `row` pixels from the top."""
    slope = (row - size[0] / 2) / camera.focal_px(size[1])
    pitch = math.radians(camera.pitch_deg)
    return camera.height_m / (slope * math.cos(pitch) + math.sin(pitch))


def tight_box(scene: Scene, number: int) -> list[float]:
    ys, xs = np.nonzero(scene.instances == number + 1)
    return [xs.min() / 2, ys.min() / 2, (xs.max() + 1) / 2, (ys.max() + 1) / 2]


def object_depths(scene: Scene, number: int) -> np.ndarray:
    return scene.depth[scene.instances[1::2, 1::2] == number + 1]


def test_same_seed_same_scene_other_seed_other_scene(rendered: list[Scene]):
    again = scenes.render(7)
    np.testing.assert_array_equal(again.image, rendered[7].image)
    np.testing.assert_array_equal(again.annotations.boxes, rendered[7].annotations.boxes)
    np.testing.assert_array_equal(again.depth, rendered[7].depth)
    pixels = np.stack([scene.image for scene in rendered[:12]]).astype(float)
    differences = [np.abs(pixels[a] - pixels[b]).mean() for a in range(12) for b in range(a)]
    assert min(differences) > 15


def test_boxes_are_the_extents_of_visible_samples(rendered: list[Scene]):
    checked = 0
    for scene in rendered:
        assert set(np.unique(scene.instances)) <= set(range(len(scene.annotations) + 1))
        for number, box in enumerate(scene.annotations.boxes):
            assert box.tolist() == tight_box(scene, number)
            checked += 1
    assert checked > 150


def test_boxes_stay_exact_through_lens_distortion():
    camera = scenes.changed_camera(Camera(), 1.0)
    assert camera.distortion != 0
    for seed in range(4):
        scene = scenes.render(seed, camera=camera)
        for number, box in enumerate(scene.annotations.boxes):
            assert box.tolist() == tight_box(scene, number)


def test_every_class_appears_often_enough(rendered: list[Scene]):
    labels = np.concatenate([s.annotations.labels[~s.annotations.ignore] for s in rendered])
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert (counts >= 10).all(), dict(zip(CLASSES, counts, strict=True))
    per_image = [int((~s.annotations.ignore).sum()) for s in rendered]
    assert 3 <= np.median(per_image) <= 10


def test_objects_are_of_useful_size(rendered: list[Scene]):
    boxes = np.concatenate([s.annotations.boxes[~s.annotations.ignore] for s in rendered])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert sides.min() >= scenes.MIN_SIDE_PX
    assert np.mean((sides >= 12) & (sides <= 130)) > 0.8


def test_little_visible_or_tiny_objects_are_ignored(rendered: list[Scene]):
    for scene in rendered:
        boxes = scene.annotations.boxes
        tiny = (boxes[:, 2:] - boxes[:, :2]).max(1) < scenes.MIN_SIDE_PX
        np.testing.assert_array_equal(scene.annotations.ignore, (scene.visible < scenes.MIN_VISIBLE) | tiny)
    assert sum(int(s.annotations.ignore.sum()) for s in rendered) > 0


def test_pixel_height_times_depth_over_focal_length_is_the_metric_height(rendered: list[Scene]):
    """Of whole people: thin, upright, and so all at one depth."""
    checked = 0
    for scene in rendered:
        focal = scene.camera.focal_px(scene.image.shape[1])
        for number in np.flatnonzero((scene.visible > 0.999) & (scene.annotations.labels == CLASSES.index("person"))):
            x0, y0, x1, y1 = scene.annotations.boxes[number]
            depths = object_depths(scene, int(number))
            if x0 <= 0 or y0 <= 0 or x1 >= 320 or y1 >= 240 or len(depths) == 0:
                continue
            height = (y1 - y0) * float(np.median(depths)) / focal
            slack = 1.5 * float(np.median(depths)) / focal
            assert height == pytest.approx(scene.heights_m[number], rel=0.08, abs=slack)
            checked += 1
    assert checked > 20


def test_whole_objects_stand_on_the_ground_that_is_as_far_as_they_are(rendered: list[Scene]):
    checked = 0
    for scene in rendered:
        for number in np.flatnonzero(scene.visible > 0.999):
            label = CLASSES[scene.annotations.labels[number]]
            bottom = float(scene.annotations.boxes[number][3])
            depths = object_depths(scene, int(number))
            on_foot = label in ("bicycle", "car", "truck")
            if not on_foot or bottom >= 240 or len(depths) == 0:
                continue
            ground = ground_depth(scene.camera, (240, 320), bottom)
            assert ground == pytest.approx(float(depths.min()), rel=0.16, abs=0.6)
            checked += 1
    assert checked > 20


def test_an_objects_depth_is_one_place(rendered: list[Scene]):
    for scene in rendered:
        for number, label in enumerate(scene.annotations.labels):
            depths = object_depths(scene, number)
            if len(depths):
                assert np.isfinite(depths).all()
                assert depths.max() - depths.min() < (11 if CLASSES[label] == "truck" else 6)


def test_nothing_lies_below_the_ground_and_the_sky_is_infinite(rendered: list[Scene]):
    for scene in rendered:
        rows = np.arange(240) + 0.75
        ground = np.array([ground_depth(scene.camera, (240, 320), row) for row in rows])
        seen = ground > 0
        limit = np.where(seen & (ground < 300), ground, np.inf)
        assert (scene.depth[120:] <= limit[120:, None] * 1.03 + 0.3).all()
        assert (scene.depth > 0.3).all()
        bare = np.abs(scene.depth[200:] - ground[200:, None]) < 0.01 * ground[200:, None]
        assert bare.mean() > 0.2
    assert np.mean([np.isinf(scene.depth[:5]).mean() for scene in rendered]) > 0.2


def test_no_vehicle_shows_its_headlights_and_its_tail_lights_at_once(rendered: list[Scene]):
    seen = np.zeros(2, int)
    for scene in rendered:
        for number, label in enumerate(scene.annotations.labels):
            if CLASSES[label] not in ("car", "truck"):
                continue
            inside = (scene.instances == number + 1).reshape(240, 2, 320, 2).all((1, 3))
            red, green, blue = scene.emission[inside].T
            lit = np.array([(blue > 2).any(), ((red > 1) & (green < 0.5)).any()])
            assert not lit.all()
            seen += lit
    assert (seen > 5).all()


@given(
    seed=st.integers(0, 2**63),
    size=st.tuples(st.integers(64, 140), st.integers(64, 180)),
    fov=st.floats(35, 110),
    height=st.floats(0.8, 8),
    pitch=st.floats(-3, 35),
    distortion=st.floats(-0.2, 0.2),
)
@settings(max_examples=25, deadline=None)
def test_any_size_and_camera(
    seed: int, size: tuple[int, int], fov: float, height: float, pitch: float, distortion: float
):
    scene = scenes.render(seed, size, Camera(fov, height, pitch, distortion))
    assert scene.image.shape == (*size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.depth.shape == size
    assert scene.depth.dtype == np.float32
    assert scene.emission.shape == (*size, 3)
    assert (scene.emission >= 0).all()
    boxes = scene.annotations.boxes
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= size[1]).all()
    assert (boxes[:, 3] <= size[0]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(scene.heights_m) == len(scene.visible) == len(boxes)


def test_generated_set_is_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    calls: list[tuple[int, int]] = []
    index = sets.generate(tmp_path / "set", 5, SMALL, seed=3, progress=lambda n, of: calls.append((n, of)))
    assert calls == [(n, 5) for n in range(1, 6)]
    coco = COCO(str(index))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len(coco.getImgIds()) == 5
    for image_id in coco.getImgIds():
        entry = coco.loadImgs(image_id)[0]
        image = read_image(index.parent / "images" / entry["file_name"])
        assert image.shape == (entry["height"], entry["width"], 3)
        for box in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            x, y, w, h = box["bbox"]
            assert x >= 0
            assert y >= 0
            assert w > 0
            assert h > 0
            assert x + w <= SMALL[1]
            assert y + h <= SMALL[0]
            assert box["area"] == pytest.approx(w * h, abs=0.01)
            corners = np.concatenate(box["segmentation"]).reshape(-1, 2)
            np.testing.assert_allclose([*corners.min(0), *corners.max(0)], [x, y, x + w, y + h], atol=0.51)
    assert {path.name for path in index.parent.iterdir()} == {"images", "annotations.json"}


def test_outlines_cover_what_is_seen_of_an_object(rendered: list[Scene]):
    """Rasterised by COCO's own tools, at two samples a pixel."""
    overlaps = []
    for scene in rendered:
        for number in range(len(scene.annotations)):
            seen = binary_fill_holes(scene.instances == number + 1)
            polygons = [[2 * v for v in polygon] for polygon in sets.outlines(seen)]
            found = mask.decode(mask.merge(mask.frPyObjects(polygons, *seen.shape))).astype(bool)
            if seen.sum() >= 60:
                overlaps.append((found & seen).sum() / (found | seen).sum())
    assert len(overlaps) > 100
    assert np.mean(overlaps) > 0.95
    assert np.min(overlaps) > 0.7


def test_an_outline_goes_round_whole_samples():
    seen = np.zeros((8, 12), bool)
    seen[2:5, 3:9] = True
    seen[7, 0] = True
    found = [np.reshape(polygon, (-1, 2)) for polygon in sets.outlines(seen)]
    extents = sorted([*points.min(0).tolist(), *points.max(0).tolist()] for points in found)
    assert extents == [[0.0, 3.5, 0.5, 4.0], [1.5, 1.0, 4.5, 2.5]]
    assert all(len(points) == 4 for points in found)


def test_what_a_kill_at_the_end_left_goes_with_the_next_call(tmp_path: Path):
    index = sets.generate(tmp_path / "set", 1, SMALL, seed=3)
    (index.parent / "annotations.partial.jsonl").touch()
    (tmp_path / ".set.lock").touch()
    sets.generate(tmp_path / "set", 1, SMALL, seed=3)
    assert {path.name for path in index.parent.iterdir()} == {"images", "annotations.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_sets_of_other_seeds_share_no_scene(tmp_path: Path):
    first = sets.generate(tmp_path / "a", 2, SMALL, seed=1).parent / "images"
    second = sets.generate(tmp_path / "b", 2, SMALL, seed=2).parent / "images"
    contents = [path.read_bytes() for folder in (first, second) for path in sorted(folder.iterdir())]
    assert len(set(contents)) == 4


def test_a_condition_changes_pixels_and_not_boxes(tmp_path: Path):
    clear = json.loads(sets.generate(tmp_path / "clear", 2, SMALL, seed=1).read_text())
    fog = json.loads(sets.generate(tmp_path / "fog", 2, SMALL, seed=1, condition="fog").read_text())
    assert clear["annotations"] == fog["annotations"]
    assert clear["info"]["condition"] is None
    assert fog["info"]["condition"] == "fog"
    a, b = (read_image(tmp_path / name / "images" / "000000.jpg").astype(float) for name in ("clear", "fog"))
    assert b.std() < 0.8 * a.std()


@pytest.mark.parametrize("condition", weather.CONDITIONS)
def test_every_condition_can_be_generated(tmp_path: Path, condition: str):
    index = sets.generate(tmp_path / condition, 1, SMALL, condition=condition, strength=0.7)
    assert json.loads(index.read_text())["info"]["condition"] == condition


def test_an_interrupted_set_goes_on_and_ends_the_same(tmp_path: Path):
    whole = sets.generate(tmp_path / "whole", 4, SMALL, seed=9)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sets.generate(tmp_path / "cut", 4, SMALL, seed=9, progress=interrupt)
    log = tmp_path / "cut" / "annotations.partial.jsonl"
    log.write_text(log.read_text() + '{"file_name": "000002.j')
    calls: list[int] = []
    cut = sets.generate(tmp_path / "cut", 4, SMALL, seed=9, progress=lambda n, of: calls.append(n))
    assert calls == [3, 4]
    assert cut.read_bytes() == whole.read_bytes()
    for path in (whole.parent / "images").iterdir():
        assert (cut.parent / "images" / path.name).read_bytes() == path.read_bytes()
    assert not log.exists()


def test_a_finished_set_is_left_alone_and_a_hole_is_filled(tmp_path: Path):
    index = sets.generate(tmp_path / "set", 2, SMALL)
    image = tmp_path / "set" / "images" / "000001.jpg"
    stamps = [path.stat().st_mtime_ns for path in (index, image)]
    assert sets.generate(tmp_path / "set", 2, SMALL) == index
    assert [path.stat().st_mtime_ns for path in (index, image)] == stamps
    data = image.read_bytes()
    image.unlink()
    sets.generate(tmp_path / "set", 2, SMALL)
    assert image.read_bytes() == data


def test_what_else_is_in_the_folder_is_not_overwritten(tmp_path: Path):
    index = sets.generate(tmp_path / "set", 1, SMALL)
    before = index.read_bytes()
    with pytest.raises(OtherInputsError, match="another data set") as ours:
        sets.generate(tmp_path / "set", 1, SMALL, seed=5)
    assert index.read_bytes() == before
    assert ours.value.digest == digest(json.loads(before)["info"])
    index.write_text('{"info": {"description": "mine"}}')
    with pytest.raises(AcclimateError, match="another data set") as theirs:
        sets.generate(tmp_path / "set", 1, SMALL, seed=5)
    assert not isinstance(theirs.value, OtherInputsError)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(AcclimateError, match="not empty"):
        sets.generate(tmp_path / "other", 1, SMALL)


def test_an_unfinished_set_of_other_settings_is_named(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sets.generate(tmp_path / "set", 3, SMALL, progress=interrupt)
    with pytest.raises(OtherInputsError, match="unfinished"):
        sets.generate(tmp_path / "set", 3, SMALL, seed=1)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(AcclimateError, match="cannot be written"):
        sets.generate(tmp_path / "file" / "set", 1, SMALL)
    with pytest.raises(AcclimateError, match="hail"):
        sets.generate(tmp_path / "set", 1, SMALL, condition="hail")


def test_the_sets_of_a_job_and_of_a_suite_share_no_scene_and_are_the_same_wherever_they_are_asked_for():
    asked = ScenesConfig(out=Path("x"), images=3, test_images=2, condition="rain")
    assert list(sets.wanted(asked)) == [
        ("clear-train", None, 3, 0),
        ("clear-test", None, 2, 10_000),
        ("rain-train", "rain", 3, 20_000),
        ("rain-test", "rain", 2, 30_000),
    ]
    assert [seed for *_, seed in sets.wanted(asked, 7)] == [7, 10_007, 20_007, 30_007]


def test_a_narrow_view_is_the_middle_of_a_wide_one(tmp_path: Path) -> None:
    wide, narrow = Camera(), Camera(fov_deg=26)
    zoom = narrow.focal_px(320) / wide.focal_px(320)
    assert zoom == pytest.approx(math.tan(math.radians(26)) / math.tan(math.radians(13)))
    index = sets.generate(tmp_path / "narrow", 2, SMALL, field_of_view=26)
    assert json.loads(index.read_text())["info"]["field_of_view"] == 26
    with pytest.raises(OtherInputsError, match="holds another data set"):
        sets.generate(tmp_path / "narrow", 2, SMALL)
    # Sets that were made before the view could be chosen are of the default.
    assert "field_of_view" not in json.loads(sets.generate(tmp_path / "wide", 1, SMALL).read_text())["info"]


def test_objects_are_larger_in_a_narrow_view(tmp_path: Path) -> None:
    heights = []
    for view in (52.0, 30.0):
        index = sets.generate(tmp_path / str(view), 12, SMALL, field_of_view=view)
        heights.append(np.median([box["bbox"][3] for box in json.loads(index.read_text())["annotations"]]))
    assert heights[1] > 1.3 * heights[0]
