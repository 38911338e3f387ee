"""From files to batches: a cache of decoded images, and the loader that training reads.

What a step contains depends on the seed and the step alone, so a run that resumes at step s sees what an uninterrupted
run would have seen, and the processes of a distributed run share out exactly the batch of a single one.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from acclimate.config import AugmentConfig, ScheduleConfig
from acclimate.data import compose
from acclimate.data.augment import Statistics, fourier, geometry, masked, restyle, statistics, strong
from acclimate.data.balance import drawn
from acclimate.data.climate import CLIMATE_IMAGES, Climate, fitted
from acclimate.data.formats import LabelledSet, UnlabelledSet
from acclimate.data.scored import Found
from acclimate.edge.images import DEFAULT, Letterbox, Reading, letterbox, read_image
from acclimate.edge.monitor import look
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations, Batch, Detections, Image

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

POOL = 8
"""A diverse draw looks at so many times the images that it takes."""
_SOURCE, _TARGET, _SOURCE_ORDER, _TARGET_ORDER, _CLIMATE, _LABELLED, _LABELLED_ORDER = range(7)
"""Streams of random numbers, kept apart in the seeds."""


class ImageCache:
    """Decoded images, kept while they fit into `limit_mb`; safe to use from several threads.

    What does not fit is decoded anew each time: in an epoch every image is used once, so nothing kept is worth less
    than what would replace it. An image that cannot be read is reported once and remembered.
    """

    def __init__(self, limit_mb: float, reading: Reading = DEFAULT) -> None:
        self._reading = reading
        self._limit = limit_mb * 1e6
        self._used = 0
        self._items: dict[tuple[Any, ...], Any] = {}
        self._damaged: dict[Path, str] = {}
        self._lock = threading.Lock()

    @property
    def damaged(self) -> Mapping[Path, str]:
        """The files that could not be read so far, and why."""
        with self._lock:
            return dict(self._damaged)

    def get(self, path: Path, longest: int | None = None) -> Image | None:
        """The image at `path`, read-only, shrunk so that its longer side has at most `longest` pixels.

        Returns:
            (H, W, 3) RGB, or None where the file is damaged or missing; the first time this is logged.
        """
        found = self._look_up((path, longest), lambda image: (_shrunk(image, longest), None))
        return None if found is None else found[0]

    def canvas(self, path: Path, image_size: tuple[int, int]) -> tuple[Image, Letterbox] | None:
        """The image at `path` letterboxed onto a canvas (H, W, 3) of `image_size`, read-only; None where it is
        damaged."""
        return self._look_up((path, *image_size), lambda image: letterbox(image, image_size))

    def _look_up(self, key: tuple[Any, ...], make: Callable[[Image], tuple[Image, _T]]) -> tuple[Image, _T] | None:
        """What is kept under `key`, whose first part is the path, or made of the image there; None if it is damaged."""
        found: tuple[Image, _T] | None = self._items.get(key)
        if found is not None:
            return found
        image = self._read(key[0])
        if image is None:
            return None
        made = make(image)
        with self._lock:
            if key not in self._items and self._used + made[0].nbytes <= self._limit:
                self._items[key] = made
                self._used += made[0].nbytes
        return made

    def _read(self, path: Path) -> Image | None:
        if path in self._damaged:
            return None
        try:
            return read_image(path, self._reading)
        except AcclimateError as error:
            with self._lock:
                first = path not in self._damaged
                self._damaged[path] = str(error).removeprefix(f"{path}: ")
            if first:
                _log.warning("%s; it is left out", error)
            return None


def _shrunk(image: Image, longest: int | None) -> Image:
    if longest is None or max(image.shape[:2]) <= longest:
        return image
    scale = longest / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True)
class TrainingSets:
    """The images that a training learns from.

    Attributes:
        source: labelled images; its boxes become the targets. All sets are read as it is. None where there are none:
            then its batch is None, and the others are read as `reading` says.
        target: images without labels, or None to train on the source alone.
        labelled: target images that a person has labelled, where there are any, and
        share: how many of them come with each batch, as a part of its size; at least one in each process.
        weights: (N,), how often each source image is drawn, relative to the others; all alike where None.
        found: what a labeller has found in target images, by file; nothing in one that is not there.
        reading: see `source`.
    """

    source: LabelledSet | None
    target: UnlabelledSet | None = None
    labelled: LabelledSet | None = None
    share: float = 0.25
    weights: NDArray[np.float64] | None = None
    found: Mapping[Path, Found] | None = None
    reading: Reading = DEFAULT


@dataclass(frozen=True, slots=True)
class Views:
    """How images are shown.

    Attributes:
        image_size: (height, width) of the network's canvas.
        augment: the random views. `style` and `fourier` act where there is a target.
        large: above 1, target batches also have the weak view with so many times the pixels a side (`Batch.large`).
    """

    image_size: tuple[int, int]
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    large: float = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    """One of the processes of a training: it gets the `rank`-th of `world` contiguous parts of each batch."""

    rank: int = 0
    world: int = 1


ALONE = Process()


class Loader:
    """Batches of source and target images for training.

    The memory layout of the batches is channels_last, which costs nothing to make and is what the convolutions want.
    Creating a loader switches off OpenCV's own threads in this process: the loader's threads work on whole batches.

    Args:
        sets: what is learnt from.
        views: how it is shown.
        schedule: batch size (over all processes), threads and cache size.
        seed: of everything random.
        process: this one.

    Raises:
        AcclimateError: the batch size cannot be shared out evenly.
    """

    def __init__(
        self, sets: TrainingSets, views: Views, schedule: ScheduleConfig, seed: int, process: Process = ALONE
    ) -> None:
        if schedule.batch_size % process.world:
            raise AcclimateError(
                f"batch_size {schedule.batch_size} cannot be shared out evenly over {process.world} processes; "
                f"choose a multiple of {process.world}"
            )
        augment, source, target = views.augment, sets.source, sets.target
        self._sets = sets
        self._image_size = views.image_size
        self._augment = augment
        self._workers = schedule.workers
        self._seed = seed
        own = schedule.batch_size // process.world
        self._sizes = {_SOURCE: own, _TARGET: own, _LABELLED: max(1, round(sets.share * own))}
        self._process = process
        # A little more than the largest scale shows, so that nothing is enlarged that has pixels to give.
        self._longest = round(max(views.image_size) * max(1.0, augment.scale[1]))
        self._large = views.large if target is not None else 1.0
        self.cache = ImageCache(schedule.cache_mb, sets.reading if source is None else source.reading)
        self._order = lru_cache(maxsize=4)(self._permutation)
        self._styles: dict[int, Statistics] = {}
        cv2.setNumThreads(0)
        weather = source is not None and target is not None and augment.weather > 0
        self._climate = self._fitted_climate() if weather else None

    def batches(self, start: int = 0) -> Generator[tuple[Batch | None, Batch | None], None, None]:
        """Endless batches from step `start` on; the target's batch is None where there is no target.

        Closing the iterator (or dropping it) ends its threads.

        Raises:
            AcclimateError: more than half of a set's images cannot be read.
        """
        if self._workers == 0:
            step = start
            while True:
                yield self.batch(step)
                step += 1
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="loader")
        try:
            ahead: deque[Future[tuple[Batch | None, Batch | None]]] = deque()
            step = start
            while True:
                while len(ahead) <= self._workers + 1:
                    ahead.append(pool.submit(self.batch, step))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> tuple[Batch | None, Batch | None]:
        """The batch of one step, made in the calling thread."""
        source = self._load(step, _SOURCE) if self._sets.source is not None else None
        if self._sets.target is None:
            return source, None
        target = self._load(step, _TARGET)
        if self._sets.labelled is not None:
            target.labelled = self._load(step, _LABELLED)
        return source, target

    @property
    def left_out(self) -> dict[str, dict[Path, str]]:
        """The images that could not be read so far, and why, by what they were for; another took each one's place."""
        damaged = self.cache.damaged
        roles = {
            "source": self._sets.source.paths if self._sets.source is not None else (),
            "target": self._sets.target.paths if self._sets.target is not None else (),
            "labelled": self._sets.labelled.paths if self._sets.labelled is not None else (),
        }
        found = {role: {path: damaged[path] for path in paths if path in damaged} for role, paths in roles.items()}
        return {role: files for role, files in found.items() if files}

    def _load(self, step: int, stream: int) -> Batch:
        count = self._sizes[stream]
        weak = np.empty((count, *self._image_size, 3), np.float32)
        other = np.empty_like(weak)
        targets: list[Annotations] = []
        enlarged = []
        found: list[Detections] = []
        for slot, position in enumerate(range(self._process.rank * count, (self._process.rank + 1) * count)):
            rng = np.random.default_rng([self._seed, stream, step, position])
            path, image, annotations = self._sample(step, position, stream)
            if stream == _SOURCE and self._sets.target is not None:
                image = self._disguised(image, len(self._sets.target), rng)
            if stream == _TARGET and self._large > 1:
                enlarged.append(self._enlarged(image, copy.deepcopy(rng)))
            canvas, annotations = geometry(image, annotations, self._image_size, self._augment, rng)
            if stream != _TARGET:
                canvas, annotations = self._composed((canvas, annotations), stream, rng)
            weak[slot] = canvas
            view = strong(canvas, self._augment, rng)
            if stream == _TARGET and self._augment.mask > 0 and rng.random() < self._augment.mask:
                view = masked(view, self._augment.mask_block, self._augment.mask_ratio, rng)
            other[slot] = view
            targets.append(annotations)
            if stream == _TARGET and self._sets.found is not None:
                # What is in `labels` are rows of what was found, so that scores stay with their boxes.
                rows = annotations.labels
                seen = self._seen(path).detections
                found.append(Detections(annotations.boxes, seen.labels[rows], seen.scores[rows]))
        large = _tensor(np.stack(enlarged).astype(np.float32)) if enlarged else None
        boxes = None if stream == _TARGET else targets
        labelled = found if stream == _TARGET and self._sets.found is not None else None
        return Batch(_tensor(weak), _tensor(other), boxes, large, found=labelled)

    def _composed(
        self, view: tuple[Image, Annotations], stream: int, rng: np.random.Generator
    ) -> tuple[Image, Annotations]:
        """A labelled view with others of its set in it, as often as is asked. A chance of 0 draws nothing."""
        config = self._augment
        if config.mosaic > 0 and rng.random() < config.mosaic:
            others = [self._other(stream, rng) for _ in range(3)]
            low, high = compose.CENTRE
            row, column = (round(side * rng.uniform(low, high)) for side in self._image_size)
            view = compose.mosaic([view, *others], (row, column))
        if config.copy_paste > 0 and rng.random() < config.copy_paste:
            other = self._other(stream, rng)
            view = compose.copy_paste(view, other, rng.random(len(other[1])) < 0.5)
        if config.mixup > 0 and rng.random() < config.mixup:
            share = float(rng.beta(compose.MIXUP, compose.MIXUP))
            view = compose.mixup(view, self._other(stream, rng), share)
        return view

    def _other(self, stream: int, rng: np.random.Generator) -> tuple[Image, Annotations]:
        """Any view of any image of a labelled set."""
        index, image = self._readable(int(rng.integers(self._length(stream))), stream)
        item = self._with_labels(stream).images[index]
        boxes = item.annotations.moved((image.shape[1] / item.width, image.shape[0] / item.height))
        return geometry(image, boxes, self._image_size, self._augment, rng)

    def _seen(self, path: Path) -> Found:
        assert self._sets.found is not None
        return self._sets.found.get(path, Found((1, 1), Detections.empty()))

    def _enlarged(self, image: Image, rng: np.random.Generator) -> Image:
        """The view that `geometry` is about to draw, on a canvas of more pixels."""
        rows, columns = (round(self._large * side) for side in self._image_size)
        return geometry(image, Annotations.empty(), (rows, columns), self._augment, rng)[0]

    def _disguised(self, image: Image, targets: int, rng: np.random.Generator) -> Image:
        """A source image with the colours, or the low frequencies, of random target images, as often as is asked."""
        if rng.random() < self._augment.style:
            image = restyle(image, self._style(int(rng.integers(targets))), rng)
        # A chance of 0 draws nothing: the views of a job without it stay what they were.
        if self._augment.fourier > 0 and rng.random() < self._augment.fourier:
            _, target = self._readable(int(rng.integers(targets)), _TARGET)
            image = fourier(image, target, self._augment.fourier_beta)
        if self._climate is not None and rng.random() < self._augment.weather:
            image = self._climate.over(image, rng)
        return image

    def _fitted_climate(self) -> Climate | None:
        """The target's weather, from images of both domains that are evenly spread."""
        source, target = (
            [self._readable(place, stream)[1] for place in range(0, count, max(1, -(-count // CLIMATE_IMAGES)))]
            for stream, count in ((_SOURCE, self._length(_SOURCE)), (_TARGET, self._length(_TARGET)))
        )
        climate = fitted(source, target, np.random.default_rng([self._seed, _CLIMATE]))
        if climate is None:
            _log.warning(
                "augment.weather: no weather brings the source images nearer to the target's, so there is none"
            )
        else:
            _log.info("augment.weather: %s, strength %.2f", climate.condition, climate.strength)
        return climate

    def _sample(self, step: int, position: int, stream: int) -> tuple[Path, Image, Annotations]:
        """The image due at this place of the endless sequence of epochs, and its boxes in the image's pixels."""
        epoch, offset = divmod(step * self._sizes[stream] * self._process.world + position, self._length(stream))
        index = int(self._order(stream, epoch)[offset])
        index, image = self._readable(index, stream)
        path = self._path(index, stream)
        if stream == _TARGET:
            if self._sets.found is None:
                return path, image, Annotations.empty()
            seen = self._seen(path)
            count = len(seen.detections)
            boxes = Annotations(seen.detections.boxes, np.arange(count), np.zeros(count, bool))
            return path, image, boxes.moved((image.shape[1] / seen.size[0], image.shape[0] / seen.size[1]))
        item = self._with_labels(stream).images[index]
        sx, sy = image.shape[1] / item.width, image.shape[0] / item.height
        if sx == sy == 1.0:
            return path, image, item.annotations
        return path, image, item.annotations.moved((sx, sy))

    def _readable(self, index: int, stream: int) -> tuple[int, Image]:
        """The image at `index`, or the next one in the set that can be read."""
        count = self._length(stream)
        for attempt in range(count // 2 + 1):
            chosen = (index + attempt) % count
            longest = round(self._large * self._longest) if stream == _TARGET else self._longest
            image = self.cache.get(self._path(chosen, stream), longest)
            if image is not None:
                return chosen, image
            self._check(stream)
        raise AcclimateError(self._mostly_damaged(stream))

    def _check(self, stream: int) -> None:
        damaged = self.cache.damaged
        bad = sum(self._path(index, stream) in damaged for index in range(self._length(stream)))
        if 2 * bad > self._length(stream):
            raise AcclimateError(self._mostly_damaged(stream))

    def _mostly_damaged(self, stream: int) -> str:
        kind = {_SOURCE: "source", _TARGET: "target", _LABELLED: "labelled target"}[stream]
        first = next(iter(self.cache.damaged))
        return (
            f"{first}: this and more than half of the {self._length(stream)} {kind} images cannot be read; copy the "
            "data again"
        )

    def _style(self, index: int) -> Statistics:
        found = self._styles.get(index)
        if found is None:
            found = self._styles[index] = statistics(self._readable(index, _TARGET)[1])
        return found

    def _path(self, index: int, stream: int) -> Path:
        if stream != _TARGET:
            return self._with_labels(stream).images[index].path
        assert self._sets.target is not None
        return self._sets.target.paths[index]

    def _with_labels(self, stream: int) -> LabelledSet:
        labelled = self._sets.source if stream == _SOURCE else self._sets.labelled
        assert labelled is not None
        return labelled

    def _length(self, stream: int) -> int:
        if stream != _TARGET:
            return len(self._with_labels(stream))
        assert self._sets.target is not None
        return len(self._sets.target)

    def _permutation(self, stream: int, epoch: int) -> NDArray[np.int64]:
        order = {_SOURCE: _SOURCE_ORDER, _TARGET: _TARGET_ORDER, _LABELLED: _LABELLED_ORDER}[stream]
        rng = np.random.default_rng([self._seed, order, epoch])
        if stream == _SOURCE and self._sets.weights is not None:
            return drawn(self._sets.weights, rng)
        return rng.permutation(self._length(stream))


def _tensor(images: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def plain_images(
    paths: Sequence[Path],
    image_size: tuple[int, int],
    reading: Reading = DEFAULT,
    cache: ImageCache | None = None,
) -> Iterator[tuple[Path, Image, Letterbox]]:
    """Each image as the detector sees it on the device, not augmented: its path, the canvas (H, W, 3) that it is
    letterboxed onto, and how.

    A damaged image is logged and left out, so compare by path and not by position.

    Args:
        paths: the image files.
        image_size: (height, width) of the canvas, pixels.
        reading: how files become pixels.
        cache: where decoded images are kept.

    Raises:
        AcclimateError: more than half of the images cannot be read.
    """
    cache = cache or ImageCache(0, reading)
    bad = 0
    for path in paths:
        made = cache.canvas(path, image_size)
        if made is not None:
            yield path, *made
            continue
        bad += 1
        if 2 * bad > len(paths):
            raise AcclimateError(
                f"{path}: this and more than half of {len(paths)} images cannot be read; copy the data again"
            )


def choose(paths: Sequence[Path], count: int, seed: int) -> tuple[Path, ...]:
    """`count` of `paths`, evenly spread over their sorted order from a random start; all of them if there are fewer."""
    ordered = sorted(paths)
    if count >= len(ordered):
        return tuple(ordered)
    start = np.random.default_rng(seed).random()
    return tuple(ordered[int((i + start) * len(ordered) / count)] for i in range(count))


def part_of(labelled: LabelledSet, count: int, seed: int) -> LabelledSet:
    """The images of a set that `choose` takes, in the set's order, with their labels."""
    kept = set(choose(labelled.paths, count, seed))
    return replace(labelled, images=tuple(image for image in labelled.images if image.path in kept))


def draw(
    paths: Sequence[Path],
    count: int,
    seed: int,
    how: Literal["diverse", "even", "random"] = "even",
    reading: Reading = DEFAULT,
) -> tuple[Path, ...]:
    """`count` of `paths` to calibrate on; all of them if there are fewer.

    Args:
        paths: image files in any order.
        count: how many.
        seed: of the draw; the same gives the same.
        how: "even" as in `choose`, "random" without replacement, or "diverse": the images that look least alike
            (`farthest` on `edge.monitor.look`, in the standard deviations of the set), the most typical one first.
            At most `POOL` times `count` images, drawn evenly, are looked at; what cannot be read is not taken unless
            there is nothing else.
        reading: how they are read, to be looked at.
    """
    if how == "even" or count >= len(paths):
        return choose(paths, count, seed)
    if how == "random":
        ordered = sorted(paths)
        places = np.random.default_rng(seed).choice(len(ordered), count, replace=False)
        return tuple(ordered[place] for place in sorted(places))
    looks: dict[Path, NDArray[np.float64]] = {}
    for path in choose(paths, POOL * count, seed):
        try:
            looks[path] = look(read_image(path, reading))
        except AcclimateError as error:
            _log.warning("not calibrated on: %s", error)
    seen = list(looks)
    if len(seen) < count:
        return choose(seen or paths, count, seed)
    features = np.array(list(looks.values()))
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    return tuple(seen[place] for place in farthest(features, count))


def farthest(points: NDArray[np.float64], count: int) -> list[int]:
    """Indices of `count` of the (N, P) `points`, each the one that is furthest from those before it.

    Gonzalez 1985, "Clustering to minimize the maximum intercluster distance": no point is then further from the chosen
    ones than twice what the best choice of as many could do. The first is the nearest to the mean.
    """
    chosen = [int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())]
    away = np.full(len(points), np.inf)
    while len(chosen) < count:
        away = np.minimum(away, np.square(points - points[chosen[-1]]).sum(axis=1))
        away[chosen] = -1.0
        chosen.append(int(away.argmax()))
    return chosen
