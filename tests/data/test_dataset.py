"""What a step holds depends on the seed and the step alone: not on start, threads, cache or processes."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acclimate.config import AugmentConfig, DataConfig, ScheduleConfig
from acclimate.data.dataset import (
    ImageCache,
    Loader,
    Process,
    TrainingSets,
    Views,
    choose,
    draw,
    farthest,
    part_of,
    plain_images,
)
from acclimate.data.formats import LabelledImage, LabelledSet, UnlabelledSet, read, unlabelled
from acclimate.edge.images import letterbox, read_image
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations, Batch

SIZE = (64, 96)
PLAIN = AugmentConfig(flip=0, scale=(1, 1), translate=0, colour=0, grey=0, blur=0, noise=0, tone=0, cutout=0, style=0)


def picture(path: Path, value: int, size: tuple[int, int] = (80, 100)) -> Path:
    """A JPEG whose mean grey tells which one it is, with some texture."""
    texture = np.random.default_rng(value).integers(-4, 5, (*size, 3))
    assert cv2.imwrite(str(path), np.clip(value + texture, 0, 255).astype(np.uint8))
    return path


def labelled(folder: Path, count: int) -> LabelledSet:
    folder.mkdir(exist_ok=True)
    images = []
    for i in range(count):
        path = picture(folder / f"s{i:02d}.jpg", 20 + 8 * i)
        boxes = np.array([[10, 10, 40 + i, 50], [50, 20, 90, 70]], np.float32)
        images.append(LabelledImage(path, 80, 100, Annotations(boxes, np.array([0, 1]), np.array([False, i == 1]))))
    return LabelledSet("set", "coco", ("a", "b"), tuple(images))


def bare(folder: Path, count: int) -> UnlabelledSet:
    folder.mkdir(exist_ok=True)
    return UnlabelledSet(tuple(picture(folder / f"t{i:02d}.jpg", 15 + 10 * i, (70, 60)) for i in range(count)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    return labelled(tmp_path_factory.mktemp("data") / "source", 10)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> UnlabelledSet:
    return bare(tmp_path_factory.mktemp("data") / "target", 7)


def schedule(**values: int) -> ScheduleConfig:
    return ScheduleConfig.model_validate({"batch_size": 4, "workers": 0, **values})


def make(
    source: LabelledSet, target: UnlabelledSet | None, augment: AugmentConfig | None = None, **values: int
) -> Loader:
    rank, world, seed = (values.pop(key, default) for key, default in (("rank", 0), ("world", 1), ("seed", 0)))
    views = Views(SIZE, augment or AugmentConfig(invert=0.3))
    return Loader(TrainingSets(source, target), views, schedule(**values), seed, Process(rank, world))


def same(first: Batch | None, second: Batch | None) -> bool:
    if first is None or second is None:
        return first is second
    if not (torch.equal(first.weak, second.weak) and torch.equal(first.strong, second.strong)):
        return False
    if first.targets is None or second.targets is None:
        return first.targets is second.targets
    return all(
        np.array_equal(a.boxes, b.boxes) and np.array_equal(a.labels, b.labels) and np.array_equal(a.ignore, b.ignore)
        for a, b in zip(first.targets, second.targets, strict=True)
    )


def take(loader: Loader, count: int, start: int = 0) -> list[tuple[Batch, Batch | None]]:
    return list(itertools.islice(loader.batches(start), count))


def test_batches_are_what_the_detector_expects(source: LabelledSet, target: UnlabelledSet) -> None:
    first, second = take(make(source, target), 1)[0]
    assert second is not None
    for batch in (first, second):
        for view in (batch.weak, batch.strong):
            assert view.shape == (4, 3, *SIZE)
            assert view.dtype == torch.float32
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert 0 <= float(view.min()) < float(view.max()) <= 255
    assert second.targets is None
    assert first.targets is not None
    for item in first.targets:
        assert item.boxes.dtype == np.float32
        assert (item.boxes >= 0).all()
        assert (item.boxes <= [SIZE[1], SIZE[0]] * 2).all()
    alone = take(make(source, None), 1)[0]
    assert alone[1] is None


def test_plain_batches_are_letterboxed_files_in_epochs(source: LabelledSet) -> None:
    loader = make(source, None, PLAIN)
    means: list[float] = []
    for batch, _ in take(loader, 5):
        assert batch.targets is not None
        torch.testing.assert_close(batch.weak, batch.strong)
        for image, item in zip(batch.weak, batch.targets, strict=True):
            means.append(float(image[:, :60, :76].mean()))
            index = round((means[-1] - 20) / 8)
            canvas, placed = letterbox(read_image(source.images[index].path), SIZE)
            # The warp blends the last column with the fill, where the letterbox does not.
            difference = np.abs(image.permute(1, 2, 0).numpy() - canvas)
            assert difference[:62, :78].max() <= 4
            assert difference.mean() < 1
            expected = source.images[index].annotations
            # The cached image has whole pixels, 96x77 for 100x80; boxes and pixels are stretched alike.
            np.testing.assert_allclose(item.boxes, expected.boxes * placed.scale, atol=0.25)
            np.testing.assert_array_equal(item.ignore, expected.ignore)
    order = [round((mean - 20) / 8) for mean in means]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_resume_gives_what_an_uninterrupted_run_gives(source: LabelledSet, target: UnlabelledSet) -> None:
    whole = take(make(source, target), 8)
    resumed = take(make(source, target), 3, start=5)
    for expected, got in zip(whole[5:], resumed, strict=True):
        assert same(expected[0], got[0])
        assert same(expected[1], got[1])
    assert not same(whole[0][0], whole[5][0])
    assert not same(whole[0][0], take(make(source, target, seed=1), 1)[0][0])


def test_threads_and_cache_change_nothing(source: LabelledSet, target: UnlabelledSet) -> None:
    expected = take(make(source, target), 6)
    for values in ({"workers": 3}, {"cache_mb": 0}, {"workers": 2, "cache_mb": 1}):
        for one, other in zip(expected, take(make(source, target, **values), 6), strict=True):
            assert same(one[0], other[0])
            assert same(one[1], other[1])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_out_one_batch(source: LabelledSet, target: UnlabelledSet, world: int) -> None:
    whole = take(make(source, target), 3)
    parts = [take(make(source, target, rank=rank, world=world), 3) for rank in range(world)]
    for step, (first, second) in enumerate(whole):
        assert second is not None
        shares = [parts[rank][step] for rank in range(world)]
        together = Batch(
            torch.cat([s.weak for s, _ in shares]),
            torch.cat([s.strong for s, _ in shares]),
            [item for s, _ in shares for item in s.targets or ()],
        )
        assert same(first, together)
        assert torch.equal(second.weak, torch.cat([t.weak for _, t in shares if t is not None]))
        assert torch.equal(second.strong, torch.cat([t.strong for _, t in shares if t is not None]))


def test_a_batch_that_cannot_be_shared_out_is_an_error(source: LabelledSet) -> None:
    with pytest.raises(AcclimateError, match="batch_size 4 cannot be shared out evenly over 3 processes"):
        make(source, None, world=3)


def test_a_batch_larger_than_the_set(tmp_path: Path) -> None:
    batch, _ = take(make(labelled(tmp_path, 3), None, PLAIN, batch_size=8), 1)[0]
    counts = np.bincount([round((float(image[:, :60, :76].mean()) - 20) / 8) for image in batch.weak])
    assert sorted(counts) == [2, 3, 3]


def test_each_place_in_each_step_has_its_own_view(tmp_path: Path) -> None:
    loader = make(labelled(tmp_path / "s", 1), bare(tmp_path / "t", 1), batch_size=2)
    views = [(batch.weak[i], batch.strong[i]) for pair in take(loader, 2) for batch in pair if batch for i in (0, 1)]
    assert len(views) == 8
    for one, other in itertools.combinations(views, 2):
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])


def test_style_needs_a_target_and_touches_the_source_alone(source: LabelledSet, target: UnlabelledSet) -> None:
    styled = PLAIN.model_copy(update={"style": 1.0})
    plain, _ = take(make(source, None, PLAIN), 1)[0]
    without, _ = take(make(source, None, styled), 1)[0]
    assert same(plain, without)
    first, second = take(make(source, target, styled), 1)[0]
    _, plain_target = take(make(source, target, PLAIN), 1)[0]
    assert same(second, plain_target)
    assert not torch.equal(first.weak, plain.weak)
    torch.testing.assert_close(first.weak, first.strong)


def test_fourier_needs_a_target_and_touches_the_source_alone(source: LabelledSet, target: UnlabelledSet) -> None:
    mixed = PLAIN.model_copy(update={"fourier": 1.0, "fourier_beta": 0.05})
    plain, plain_target = take(make(source, target, PLAIN), 1)[0]
    without, _ = take(make(source, None, mixed), 1)[0]
    assert same(plain, without)
    unchanged = take(make(source, target, mixed.model_copy(update={"fourier_beta": 0.0})), 1)[0]
    assert same(plain, unchanged[0])
    first, second = take(make(source, target, mixed), 1)[0]
    assert same(second, plain_target)
    assert not torch.equal(first.weak, plain.weak)
    torch.testing.assert_close(first.weak, first.strong)
    assert first.targets is not None
    assert plain.targets is not None
    for item, other in zip(first.targets, plain.targets, strict=True):
        np.testing.assert_array_equal(item.boxes, other.boxes)
    again = take(make(source, target, mixed, workers=2), 1)[0]
    assert same(first, again[0])
    assert not same(first, take(make(source, target, mixed, seed=1), 1)[0][0])


def test_views_of_several_images_are_of_labelled_ones_alone(source: LabelledSet, target: UnlabelledSet) -> None:
    composed = PLAIN.model_copy(update={"mosaic": 1.0, "mixup": 1.0})
    plain, plain_target = take(make(source, target, PLAIN), 1)[0]
    first, second = take(make(source, target, composed), 1)[0]
    assert same(second, plain_target)
    assert not torch.equal(first.weak, plain.weak)
    assert first.targets is not None
    assert plain.targets is not None
    assert sum(map(len, first.targets)) > sum(map(len, plain.targets))
    assert same(first, take(make(source, target, composed, workers=2), 1)[0][0])


def test_a_mask_is_on_the_strong_view_of_the_target_alone(source: LabelledSet, target: UnlabelledSet) -> None:
    hides = PLAIN.model_copy(update={"mask": 1.0, "mask_block": 16})
    plain, plain_target = take(make(source, target, PLAIN), 1)[0]
    first, second = take(make(source, target, hides), 1)[0]
    assert same(first, plain)
    assert plain_target is not None
    assert second is not None
    assert torch.equal(second.weak, plain_target.weak)
    hidden = (second.strong == 114).all(1)
    assert 0.3 < hidden.float().mean() < 0.75
    assert torch.equal(second.strong.movedim(1, -1)[~hidden], second.weak.movedim(1, -1)[~hidden])


def test_weather_is_put_over_the_source_alone(tmp_path: Path, source: LabelledSet, target: UnlabelledSet) -> None:
    rng = np.random.default_rng(0)
    # A grey veil over everything, as fog has it: bright and without contrast.
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        cv2.imwrite(str(path), np.clip(rng.normal(175, 3, (60, 70, 3)), 0, 255).astype(np.uint8))
    foggy = UnlabelledSet(tuple(paths))
    under = PLAIN.model_copy(update={"weather": 1.0})
    plain, plain_target = take(make(source, foggy, PLAIN), 1)[0]
    first, second = take(make(source, foggy, under), 1)[0]
    assert same(second, plain_target)
    assert not torch.equal(first.weak, plain.weak)
    assert first.targets is not None
    assert plain.targets is not None
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(first.targets, plain.targets, strict=True))
    assert same(first, take(make(source, foggy, under, workers=2), 1)[0][0])
    assert same(plain, take(make(source, None, under), 1)[0][0])


def test_weather_that_does_not_bring_the_source_nearer_is_none(
    source: LabelledSet, caplog: pytest.LogCaptureFixture
) -> None:
    alike = UnlabelledSet(tuple(image.path for image in source.images))
    with caplog.at_level(logging.WARNING):
        first, _ = take(make(source, alike, PLAIN.model_copy(update={"weather": 1.0})), 1)[0]
    assert "augment.weather" in caplog.text
    assert same(first, take(make(source, alike, PLAIN), 1)[0][0])


def test_a_larger_view_of_the_target_has_the_weak_views_geometry(source: LabelledSet, target: UnlabelledSet) -> None:
    moved = AugmentConfig(scale=(0.6, 1.4), vertical_flip=0.5)
    plain = take(make(source, target, moved), 3)
    loader = Loader(TrainingSets(source, target), Views(SIZE, moved, 1.5), schedule(), 0)
    for (first, second), (enlarged, both) in zip(plain, take(loader, 3), strict=True):
        assert same(first, enlarged)
        assert second is not None
        assert both is not None
        assert torch.equal(second.strong, both.strong)
        assert both.large is not None
        assert both.large.shape == (4, 3, 96, 144)
        shrunk = torch.nn.functional.interpolate(both.large, SIZE, mode="bilinear", antialias=True)
        assert (shrunk - both.weak).abs().mean() < 4, "a shift of a pixel at the edges of the image would be more"
        assert both.to("cpu").large is not None
        assert enlarged.large is None


def test_weights_say_how_often_a_source_image_comes(source: LabelledSet, target: UnlabelledSet) -> None:
    weights = np.ones(len(source))
    weights[3] = 4.0
    sets, options = TrainingSets(source, target, weights=weights), schedule(batch_size=13)
    loader = Loader(sets, Views(SIZE, PLAIN), options, 0)
    batch = loader.batch(0)[0]
    means = batch.weak[:, :, 20:40, 20:40].mean((1, 2, 3)).numpy()
    wanted = 20 + 8 * 3
    # 4 of 13 shares of an epoch of ten images: three or four times.
    assert 3 <= (np.abs(means[:10] - wanted) < 3).sum() <= 4
    assert same(batch, Loader(sets, Views(SIZE, PLAIN), options, 0).batch(0)[0])


def test_a_damaged_target_is_left_out_of_fourier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = labelled(tmp_path / "s", 4), bare(tmp_path / "t", 5)
    sets[1].paths[1].write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        got = take(make(*sets, PLAIN.model_copy(update={"fourier": 1.0})), 6)
    assert len(got) == 6
    assert [Path(record.getMessage().split(":")[0]).name for record in caplog.records] == ["t01.jpg"]


def threads() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


def test_closing_ends_the_threads(source: LabelledSet, target: UnlabelledSet) -> None:
    batches = make(source, target, workers=2).batches()
    next(batches)
    assert threads() > 0
    batches.close()  # type: ignore[attr-defined]
    assert threads() == 0
    other = make(source, target, workers=2).batches()
    next(other)
    del other
    assert threads() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_told_once_and_replaced(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = labelled(tmp_path / "s", 6), bare(tmp_path / "t", 5)
    whole = source.images[2].path.read_bytes()
    source.images[2].path.write_bytes(whole[: len(whole) // 2])
    target.paths[1].write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        loader = make(source, target, workers=workers)
        got = take(loader, 6)
    told = [record.getMessage() for record in caplog.records]
    assert sorted(Path(line.split(":")[0]).name for line in told) == ["s02.jpg", "t01.jpg"]
    assert set(loader.cache.damaged) == {source.images[2].path, target.paths[1]}
    again = take(make(source, target), 6)
    assert all(same(a[0], b[0]) and same(a[1], b[1]) for a, b in zip(got, again, strict=True))
    plain = [batch for batch, _ in take(make(source, None, PLAIN), 3)]
    order = [round((float(image[:, :60, :76].mean()) - 20) / 8) for batch in plain for image in batch.weak]
    assert sorted(order) == [0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_mostly_damaged_sets_are_an_error(tmp_path: Path, workers: int) -> None:
    source = labelled(tmp_path, 6)
    for image in source.images[:4]:
        image.path.write_bytes(b"")
    with pytest.raises(AcclimateError, match=r"more than half of the 6 source images cannot be read"):
        take(make(source, None, workers=workers), 6)
    assert threads() == 0


def test_cache_keeps_what_fits_and_shrinks(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.jpg", 40 * i, (100, 200)) for i in range(4)]
    cache = ImageCache(limit_mb=0.13)
    for path in paths * 2:
        image = cache.get(path)
        assert image is not None
        np.testing.assert_array_equal(image, read_image(path))
    assert cache._used == 120_000
    assert cache.get(paths[0]) is cache.get(paths[0])
    assert cache.get(paths[3]) is not cache.get(paths[3])
    small = cache.get(paths[1], longest=50)
    assert small is not None
    assert small.shape == (25, 50, 3)
    np.testing.assert_array_equal(small, cv2.resize(read_image(paths[1]), (50, 25), interpolation=cv2.INTER_AREA))
    assert cache.get(tmp_path / "none.jpg") is None
    assert list(cache.damaged) == [tmp_path / "none.jpg"]


def test_large_images_are_shrunk_and_their_boxes_with_them(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    image = np.zeros((700, 1100, 3), np.uint8)
    image[200:400, 300:800] = 255
    cv2.imwrite(str(path), image)
    box = Annotations(np.array([[300, 200, 800, 400]], np.float32), np.array([0]), np.array([False]))
    found = LabelledSet("x", "coco", ("a",), (LabelledImage(path, 700, 1100, box),))
    loader = make(
        found, None, AugmentConfig(flip=0.5, colour=0, grey=0, blur=0, noise=0, tone=0, cutout=0), batch_size=8
    )
    batch, _ = loader.batch(0)
    assert loader.cache._used < 100_000
    assert batch.targets is not None
    for view, item in zip(batch.weak.numpy(), batch.targets, strict=True):
        rows, columns = np.nonzero(view[0] > 150)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(item.boxes[0], seen, atol=1.5)


def test_plain_images_are_letterboxed_and_skip_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [picture(tmp_path / f"{i}.jpg", 40 * i, (90, 120)) for i in range(5)]
    paths[2].write_bytes(b"broken")
    cache = ImageCache(limit_mb=10)
    for _ in range(2):
        got = list(plain_images(paths, SIZE, cache=cache))
        assert [path for path, *_ in got] == [paths[i] for i in (0, 1, 3, 4)]
        for path, canvas, placed in got:
            expected, letter = letterbox(read_image(path), SIZE)
            np.testing.assert_array_equal(canvas, expected)
            assert placed == letter
    assert sum("2.jpg" in record.getMessage() for record in caplog.records) == 1
    for path in paths[:3]:
        path.write_bytes(b"broken")
    with pytest.raises(AcclimateError, match="more than half of 5 images"):
        list(plain_images(paths, SIZE))


def test_choose_spreads_evenly_and_repeats() -> None:
    paths = [Path(f"{i:03d}.jpg") for i in range(100)]
    chosen = choose(paths[::-1], 10, seed=3)
    numbers = [int(path.stem) for path in chosen]
    assert set(np.diff(numbers)) == {10}
    assert chosen == choose(paths, 10, seed=3)
    assert len({choose(paths, 10, seed) for seed in range(20)}) > 3
    assert choose(paths[:4], 10, 0) == tuple(paths[:4])
    uneven = [int(path.stem) for path in choose(paths, 7, seed=1)]
    assert len(set(uneven)) == 7
    assert set(np.diff(uneven)) <= {14, 15}
    assert choose(paths, 0, 0) == ()


def test_a_part_of_a_set_is_what_choose_takes(tmp_path: Path) -> None:
    whole = labelled(tmp_path / "set", 9)
    part = part_of(whole, 4, seed=2)
    assert part.paths == choose(whole.paths, 4, seed=2)
    assert all(any(image is other for other in whole.images) for image in part.images)
    assert (part.classes, part.name) == (whole.classes, whole.name)
    assert part_of(whole, 9, 0).images == whole.images


@pytest.mark.data
def test_real_pair(shared_data: Path) -> None:
    source = read(DataConfig(path=shared_data / "thermal-uav" / "day", split="test"))
    target = unlabelled(shared_data / "thermal-uav" / "night" / "JPEGImages")
    loader = Loader(TrainingSets(source, target), Views((192, 256)), ScheduleConfig(batch_size=8, workers=1), seed=0)
    batches = loader.batches()
    for _ in range(3):
        first, second = next(batches)
        assert second is not None
        assert first.weak.shape == second.weak.shape == (8, 3, 192, 256)
        assert torch.isfinite(first.strong).all()
    batches.close()  # type: ignore[attr-defined]
    assert not loader.cache.damaged


def radius(points: np.ndarray, chosen: Sequence[int]) -> float:
    """How far the furthest of the points is from the nearest chosen one."""
    return float(np.linalg.norm(points[:, None] - points[list(chosen)][None], axis=2).min(axis=1).max())


@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 10_000))
def test_farthest_is_within_twice_the_best_choice(number: int, count: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(number, 2)).round(1)
    count = min(count, number)
    chosen = farthest(points, count)
    assert len(set(chosen)) == count
    best = min(radius(points, some) for some in itertools.combinations(range(number), count))
    assert radius(points, chosen) <= 2 * best + 1e-9
    assert chosen == farthest(points, number)[:count], "a shorter choice is the beginning of a longer one"


def test_a_diverse_draw_takes_the_odd_ones(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i:02d}.jpg", 100 + i % 3) for i in range(20)]
    odd = [picture(tmp_path / f"x{value}.jpg", value) for value in (5, 250)]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    everything = [*paths, *odd, tmp_path / "broken.jpg"]
    chosen = draw(everything, 4, 0, "diverse")
    assert set(odd) < set(chosen)
    assert tmp_path / "broken.jpg" not in chosen
    assert draw(everything[::-1], 4, 0, "diverse") == chosen
    assert not set(odd) <= set(draw(everything, 4, 0, "even"))
    assert draw(everything, 50, 0, "diverse") == tuple(sorted(everything))


def test_a_random_draw_is_that_of_its_seed(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:02d}.jpg" for i in range(30)]
    assert draw(paths, 5, 1, "random") == draw(paths[::-1], 5, 1, "random")
    assert draw(paths, 5, 1, "random") != draw(paths, 5, 2, "random")
    assert len(set(draw(paths, 5, 1, "random"))) == 5
    assert draw(paths, 5, 1) == choose(paths, 5, 1)
