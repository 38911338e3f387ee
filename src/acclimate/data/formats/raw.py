"""What a reader hands over, and what becomes of it: images are sized, boxes checked, classes mapped, in one place.

A bad label never stops a reader: the item is left out and kept as a `Problem`. What stops it is a set of which nothing
usable remains, an index that cannot be parsed, or a class that nobody said what to do with.

Box conventions: pixel i covers [i, i + 1), so a box is its left, top, right and bottom edge.
"""

from __future__ import annotations

import difflib
import unicodedata
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acclimate.config import DataConfig
from acclimate.data import orientation
from acclimate.data.formats.looked import Headers
from acclimate.edge.headers import DEEP, Header, Orientation, read_header
from acclimate.edge.images import DEFAULT, Reading, intensity_of
from acclimate.errors import AcclimateError
from acclimate.run import digest
from acclimate.structures import Annotations, Outline

IGNORED_NAME = "DontCare"
"""KITTI's name for regions that were not labelled; other sets borrow it. Ignored in every format unless renamed."""

_ONE_PIXEL = 1.5
"""No set has all its boxes in the first pixel of their images."""
CLIP_TOLERANCE_PX = 2.0
"""A box that reaches further over the image's border is clipped and reported; a smaller overhang is rounding."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a data set that was left out, or read other than it is written.

    Attributes:
        where: the file, and the line or item in it.
        what: what is wrong and what was done.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """One image with its boxes, in pixels of the picture as it is read (`LabelledSet.reading`)."""

    path: Path
    height: int
    width: int
    annotations: Annotations


@dataclass(frozen=True, slots=True, eq=False)
class LabelledSet:
    """A labelled data set; labels are indices into `classes`."""

    name: str
    format: str
    classes: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    problems: tuple[Problem, ...] = ()
    reading: Reading = DEFAULT
    """How its pictures are read."""
    rotated: int = 0
    """How many files have an EXIF tag that turns them."""
    deep: tuple[Path, ...] = ()
    """The files that have more than 8 bits."""
    label_files: tuple[str, ...] = ()
    """The files, or items of files, that speak of its images."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(image.path for image in self.images)

    @property
    def digest(self) -> str:
        """Of the images' names and what is labelled in them: the same wherever the set lies and however it is read."""
        labelled = sorted(((image.path.name, image.annotations) for image in self.images), key=lambda one: one[0])
        return digest(
            [
                (name, found.boxes.tolist(), [self.classes[label] for label in found.labels], found.ignore.tolist())
                for name, found in labelled
            ]
        )


@dataclass(frozen=True, slots=True, eq=False)
class UnlabelledSet:
    """Images alone. It has no place for labels, so what receives it cannot read any."""

    paths: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def class_name(written: str) -> str:
    """A class's name without what nobody sees and no table tells apart: spaces of any kind and number are one, marks of
    no width go, and an accent is part of its letter."""
    shown = "".join(sign for sign in written if sign.isprintable() or sign.isspace())
    return " ".join(unicodedata.normalize("NFC", shown).split())


def image_size(path: Path, reading: Reading = DEFAULT) -> tuple[int, int]:
    """(height, width) in pixels of the picture that reading a file gives, from its header.

    Raises:
        AcclimateError: the file is missing, no image, or has more pixels than are read.
    """
    return read_header(path).size(reading.orientation)


@dataclass(slots=True)
class Sample:
    """An image that a label file speaks of."""

    path: Path
    where: str
    """The label file, or the item of the index."""
    size: tuple[int, int] | None = None
    """(height, width) that the labels claim; it decides in which frame they were drawn."""
    fractions: bool = False
    """Whether its boxes are in fractions of the image instead of pixels."""


@dataclass(slots=True)
class Raw:
    """What a reader found, as the files have it. Objects are kept in columns, as a set may have millions."""

    name: str
    classes: tuple[str, ...] | None = None
    """The classes that the index declares; None where the format has no such list."""
    locate: Callable[[str, int | str], str] = "{}:{}".format
    """From an image's `where` and an object's place in it to what a problem names."""
    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    outlined: bool = False
    """Whether outlines were read."""
    headers: Headers = field(default_factory=Headers)
    assembled: OrderedDict[tuple[Any, ...], LabelledSet] = field(default_factory=OrderedDict)
    """The last sets that were made of it, by what was asked of them."""
    _names: dict[str, int] = field(default_factory=dict)
    _owners: array[int] = field(default_factory=lambda: array("q"))
    _kinds: array[int] = field(default_factory=lambda: array("q"))
    _boxes: array[float] = field(default_factory=lambda: array("d"))
    _ignored: bytearray = field(default_factory=bytearray)
    _places: list[int | str] = field(default_factory=list)
    _outlines: dict[int, Outline] = field(default_factory=dict)
    visible: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    """The visible part of an object's box, xyxy pixels, by the object's number, where the set says it."""

    def problem(self, where: str | Path, what: str) -> None:
        self.problems.append(Problem(str(where), what))

    def declare(self, where: Path, names: Sequence[str]) -> None:
        """Take the classes that an index lists, in its order; one that it lists twice is one class, and told."""
        counts = Counter(map(class_name, names))
        self.classes = tuple(counts)
        for name, count in counts.items():
            if count > 1:
                self.problem(where, f"lists the class {name!r} {count} times; it is read as one")

    def sample(
        self, path: Path, where: str | Path, size: tuple[int, int] | None = None, fractions: bool = False
    ) -> int:
        """Add an image; returns its number, for `add`.

        Args:
            path: the image file.
            where: what a problem of it names.
            size: (height, width) as the index has it; None where it does not say.
            fractions: whether its boxes are fractions of the image.
        """
        self.samples.append(Sample(path, str(where), size, fractions))
        return len(self.samples) - 1

    def add(
        self,
        sample: int,
        name: str,
        box: Sequence[float],
        place: int | str,
        ignore: bool = False,
        outline: Outline = (),
    ) -> None:
        """Add an object of an image.

        Args:
            sample: the image's number.
            name: its class.
            box: xyxy, in pixels or in fractions.
            place: its line, number or id.
            ignore: whether it counts neither for nor against.
            outline: its mask, where masks were asked for.
        """
        if outline:
            self._outlines[len(self._owners)] = outline
        self._owners.append(sample)
        self._kinds.append(self._names.setdefault(name, len(self._names)))
        self._boxes.extend(box)
        self._ignored.append(ignore)
        self._places.append(place)

    @property
    def objects(self) -> int:
        """How many objects there are; the number of the next one."""
        return len(self._owners)

    def extend(
        self,
        samples: NDArray[np.int64],
        names: Sequence[str],
        kinds: NDArray[np.int64],
        boxes: NDArray[np.float64],
        places: list[int | str],
        ignore: NDArray[np.bool_],
        outlines: Mapping[int, Outline],
    ) -> None:
        """Add many objects at once, as columns.

        Args:
            samples: (N,) numbers of their images.
            names: the classes.
            kinds: (N,) indices into `names`.
            boxes: (N, 4) xyxy, in pixels or in fractions.
            places: N lines, numbers or ids.
            ignore: (N,) whether they count neither for nor against.
            outlines: masks by the object's index, where masks were asked for.
        """
        first = len(self._owners)
        own = np.array([self._names.setdefault(name, len(self._names)) for name in names], np.int64)
        self._owners.frombytes(samples.tobytes())
        self._kinds.frombytes((own[kinds] if len(kinds) else kinds).tobytes())
        self._boxes.frombytes(np.ascontiguousarray(boxes).tobytes())
        self._places = [*self._places, *places] if first else places
        self._ignored += ignore.tobytes()
        self._outlines.update({first + index: outline for index, outline in outlines.items() if outline})

    def flag(self, value: bool | None, where: str, name: str, written: Any) -> bool:
        """A flag that `files.flag` has read; a word that is neither yes nor no is told, and taken for no.

        Args:
            value: what `files.flag` made of it; None for a word that it does not know.
            where: what a problem names.
            name: the flag's.
            written: what stands in the file.
        """
        if value is None:
            self.problem(where, f"{name} is {str(written)[:40]!r}, neither yes nor no; taken for no")
        return bool(value)

    def whereabouts(self, index: int) -> str:
        """The file and place of an object."""
        return self.locate(self.samples[self._owners[index]].where, self._places[index])


@dataclass(slots=True)
class _Objects:
    """The columns of a `Raw` as arrays of N objects."""

    owners: NDArray[np.int64]
    kinds: NDArray[np.int64]
    boxes: NDArray[np.float64]
    ignore: NDArray[np.bool_]
    nameless: NDArray[np.bool_]
    """Whether its class has no name."""


@dataclass(slots=True)
class _Frame:
    """An image that is kept, and in which frame its boxes are written."""

    header: Header
    written: Orientation


def assemble(
    config: DataConfig,
    raw: Raw,
    format_: str,
    classes: Sequence[str] | None,
    masks: bool = False,
    reading: Reading | None = None,
) -> LabelledSet:
    """The set that a reader's findings make; see `formats.read`.

    Args:
        config: what is asked of the set.
        raw: what the files say.
        format_: the reader's name.
        classes: a detector's, which the set's have to be among; None takes the set's own.
        masks: whether outlines are needed.
        reading: how files become pixels; None reads them as the set's own options say.
    """
    if masks and not raw.outlined:
        raise AcclimateError(
            f"{config.path}: masks are read from COCO's polygons, and this is {format_}; convert it, or set "
            "model.two_stage.masks = false and leave augment.copy_paste at 0"
        )
    frames = _frames(raw, config.orientation)
    written = [class_name(name) for name in raw._names]
    names = list(dict.fromkeys(written))
    number = {name: index for index, name in enumerate(names)}
    kind_of = np.array([number[name] for name in written], np.int64)
    kinds = np.frombuffer(raw._kinds, np.int64)
    kinds = kind_of[kinds] if len(kinds) else kinds
    found = _Objects(
        np.frombuffer(raw._owners, np.int64),
        kinds,
        np.frombuffer(raw._boxes, np.float64).reshape(-1, 4).copy(),
        np.frombuffer(raw._ignored, np.bool_),
        kinds == number.get("", -1),
    )
    if found.nameless.any():
        where = raw.whereabouts(int(found.nameless.argmax()))
        raw.problem(where, f"its class has no name; left out ({found.nameless.sum()} boxes, the first here)")
    usable = _usable(raw, names, found, frames)
    counts = np.bincount(found.kinds[usable], minlength=len(names))
    mapping = _map_classes(config, raw, {name: int(n) for name, n in zip(names, counts, strict=True) if n}, classes)
    deep = [
        sample.path
        for sample, frame in zip(raw.samples, frames, strict=True)
        if frame is not None and frame.header.bits > DEEP
    ]
    reading = reading or _own_reading(config, deep)
    labelled = mapping.applied(names, found, usable)
    images = _images(raw, labelled, frames, masks, reading)
    if not any((~image.annotations.ignore).any() for image in images):
        count = len(raw.problems)
        first = f" ({count} problem{'s' * (count > 1)}, the first: {raw.problems[0]})" if count else ""
        what = f"none of its {len(images)} images has a usable box" if images else "no usable image"
        ignored = sum(len(image.annotations) for image in images)
        if ignored and not count:
            first = f" (all of its {ignored} boxes are ignored)"
        raise AcclimateError(f"{config.path}: {what}{first}")
    if masks and not any(any(image.annotations.outlines or ()) for image in images):
        raise AcclimateError(
            f"{config.path}: none of its objects has a polygon (`segmentation`), and masks are to be learnt; set "
            "model.two_stage.masks = false and leave augment.copy_paste at 0"
        )
    rotated = sum(frame is not None and frame.header.orientation != 1 for frame in frames)
    return LabelledSet(
        raw.name,
        format_,
        mapping.classes,
        tuple(images),
        tuple(raw.problems),
        reading,
        rotated,
        tuple(deep),
        tuple(sample.where for sample in raw.samples),
    )


def _own_reading(config: DataConfig, deep: Sequence[Path]) -> Reading:
    """How a set's options say that its pictures are read, and, where they ask for it, the pictures themselves."""
    if config.intensity != "set":
        return Reading(orientation=config.orientation, intensity=config.intensity)
    if not deep:
        raise AcclimateError(
            f"{config.path}: intensity is to be measured from the set, and none of its pictures has more than 8 bits; "
            "remove the key"
        )
    measured = intensity_of(deep)
    if measured is None:
        raise AcclimateError(f"{config.path}: none of its {len(deep)} pictures of more than 8 bits can be read")
    return Reading(orientation=config.orientation, intensity=measured)


def _frames(raw: Raw, asked: Orientation) -> list[_Frame | None]:
    """For each sample what its image's header says and how its boxes lie; None where the image is left out."""
    headers: list[Header | None] = []
    seen: set[str] = set()
    for sample in raw.samples:
        key = str(sample.path)
        header = None
        if key in seen:
            raw.problem(sample.where, f"image {sample.path.name} is listed twice; the first is taken")
        else:
            try:
                header = raw.headers.read(sample.path)
                seen.add(key)
            except AcclimateError as error:
                message = str(error).removeprefix(f"{sample.path}: ")
                raw.problem(sample.where, f"image {sample.path}: {message.split(';')[0]}; left out")
        headers.append(header)
    there = [(number, header) for number, header in enumerate(headers) if header is not None]
    sizes, kept = [raw.samples[n].size for n, _ in there], [header for _, header in there]
    written = orientation.frames(sizes, kept, asked)
    if count := orientation.undecided(sizes, kept):
        raw.problem(
            raw.samples[0].where,
            f"of images that are stored turned, some have their size as seen and some as stored; {count} square or "
            "upside-down ones follow the more, and may be read in the other; check their boxes",
        )
    frames: list[_Frame | None] = [None] * len(headers)
    for (number, header), frame in zip(there, written, strict=True):
        if frame is not None:
            frames[number] = _Frame(header, frame)
            continue
        sample = raw.samples[number]
        claimed = f"{sample.size[1]}x{sample.size[0]}" if sample.size else ""
        size = f"{header.width}x{header.height}"
        raw.problem(sample.where, f"labels are for {claimed} pixels, the image is {size}; left out")
    return frames


def _usable(raw: Raw, names: Sequence[str], found: _Objects, frames: Sequence[_Frame | None]) -> NDArray[np.int64]:
    """Indices of the objects whose boxes have an area inside an image that is kept.

    `found.boxes` become pixels of the image in the frame that they are written in, clipped to it.
    """
    if not len(found.owners):
        return np.zeros(0, np.int64)
    sizes = np.array([(0, 0) if frame is None else frame.header.size(frame.written) for frame in frames], np.float64)
    limits = sizes[found.owners][:, [1, 0, 1, 0]]
    kept = (limits[:, 0] > 0) & ~found.nameless
    fractions = np.array([sample.fractions for sample in raw.samples], np.bool_)[found.owners]
    boxes = found.boxes
    boxes[fractions] *= limits[fractions]
    written = boxes.copy()
    finite = np.all(np.isfinite(boxes), axis=1)
    with np.errstate(invalid="ignore"):
        flat = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)
        overhang = np.maximum(-boxes[:, :2].min(axis=1), (boxes[:, 2:] - limits[:, 2:]).max(axis=1))
        np.maximum(boxes, 0.0, out=boxes)
        np.minimum(boxes, limits, out=boxes)
        outside = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)
    if kept.any() and not fractions.any() and (np.abs(written[kept]) <= _ONE_PIXEL).all():
        raise AcclimateError(
            f"{raw.samples[found.owners[0]].where}: all boxes lie within one pixel, so they may be fractions of the "
            "image; this format has pixels"
        )
    sound = kept & finite & ~flat & ~outside
    again = np.zeros(len(sound), np.bool_)
    rows = np.flatnonzero(sound)
    again[rows[_repeated(found, rows)]] = True
    for index in np.flatnonzero(kept & (~sound | again | (overhang > CLIP_TOLERANCE_PX))):
        name, where, box = names[found.kinds[index]], raw.whereabouts(int(index)), written[index]
        shown = ", ".join(f"{value:.1f}" for value in box)
        if not finite[index]:
            raw.problem(where, f"{name}: the box is not finite; left out")
        elif flat[index]:
            kind = "inverted" if box[2] < box[0] or box[3] < box[1] else "empty"
            raw.problem(where, f"{name}: {kind} box ({shown}); left out")
        elif outside[index]:
            width, height = int(limits[index][0]), int(limits[index][1])
            hint = "; rows are fractions of the image, not pixels" if fractions[index] else ""
            raw.problem(where, f"{name}: box ({shown}) is outside the {width}x{height} image{hint}; left out")
        else:
            if overhang[index] > CLIP_TOLERANCE_PX:
                over = f"{overhang[index]:.1f} px over the image's border"
                raw.problem(where, f"{name}: box reaches {over}; clipped")
            if again[index]:
                raw.problem(where, f"{name}: the same box a second time; left out")
    return np.flatnonzero(sound & ~again)


def _repeated(found: _Objects, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of `rows` say what an earlier one says: the same image, class, flag and box."""

    def columns(some: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        # One by one: all of them at once would take as much memory as the set's boxes.
        for side in range(4):
            yield np.ascontiguousarray(found.boxes[some, side]).view(np.int64)
        yield found.owners[some]
        yield found.kinds[some]
        yield found.ignore[some].astype(np.int64)

    # A hash finds candidates; what decides is that the rows are equal.
    factors = np.random.default_rng(0).integers(1, 2**62, 7, np.int64) * 2 + 1
    hashes = np.zeros(len(rows), np.int64)
    with np.errstate(over="ignore"):
        for column, factor in zip(columns(rows), factors, strict=True):
            hashes += (column ^ (column >> 29)) * factor
    order = np.argsort(hashes, kind="stable")
    close = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    later, earlier = order[1:][close], order[:-1][close]
    same = np.ones(len(close), np.bool_)
    for one, other in zip(columns(rows[later]), columns(rows[earlier]), strict=True):
        same &= one == other
    return np.sort(later[same])


def _images(
    raw: Raw, labelled: _Labelled, frames: Sequence[_Frame | None], masks: bool, reading: Reading
) -> list[LabelledImage]:
    boxes = labelled.boxes
    bounds = np.searchsorted(labelled.owners, np.arange(len(raw.samples) + 1)).tolist()
    images = []
    for number, (sample, frame) in enumerate(zip(raw.samples, frames, strict=True)):
        if frame is None:
            continue
        own = slice(bounds[number], bounds[number + 1])
        outlines = tuple(raw._outlines.get(int(index), ()) for index in labelled.numbers[own]) if masks else None
        visible = _visible(raw, labelled.numbers[own], boxes[own])
        if frame.written != reading.orientation and frame.header.orientation != 1:
            for row in range(own.start, own.stop):
                outline = outlines[row - own.start] if outlines else ()
                left, top, right, bottom = boxes[row].tolist()
                box = (left, top, right, bottom)
                boxes[row], turned = orientation.moved(box, outline, frame.header, frame.written, reading.orientation)
                if visible is not None:
                    a, b, c, d = visible[row - own.start].tolist()
                    visible[row - own.start], _ = orientation.moved(
                        (a, b, c, d), (), frame.header, frame.written, reading.orientation
                    )
                if outlines:
                    outlines = (*outlines[: row - own.start], turned, *outlines[row - own.start + 1 :])
        annotations = Annotations(boxes[own], labelled.labels[own], labelled.ignore[own], outlines, visible)
        images.append(LabelledImage(sample.path, *frame.header.size(reading.orientation), annotations))
    return images


def _visible(raw: Raw, numbers: NDArray[np.int64], boxes: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The visible parts (N, 4) of an image's objects, inside their boxes; the whole box where one has none."""
    if not raw.visible:
        return None
    parts = np.array([raw.visible.get(int(n), tuple(box)) for n, box in zip(numbers, boxes, strict=True)], np.float32)
    parts = parts.reshape(-1, 4)
    return np.clip(parts, np.tile(boxes[:, :2], 2), np.tile(boxes[:, 2:], 2))


@dataclass(slots=True)
class _Labelled:
    """The N objects that are kept, image by image, in the set's classes; `numbers` are theirs in `Raw`."""

    numbers: NDArray[np.int64]
    owners: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]


@dataclass(slots=True)
class _Mapping:
    """What becomes of each class name in the files."""

    classes: tuple[str, ...]
    labels: dict[str, int]
    ignored: set[str]
    dropped: set[str]

    def applied(self, names: Sequence[str], found: _Objects, usable: NDArray[np.int64]) -> _Labelled:
        """The objects with the numbers `usable`, without those of classes that are dropped.

        Args:
            names: of the objects' kinds; none where a kind is the label itself.
            found: all objects.
            usable: the numbers of those whose boxes can be used.
        """
        if len(names):
            dropped = np.array([name in self.dropped for name in names], np.bool_)
            usable = usable[~dropped[found.kinds[usable]]]
        usable = usable[np.argsort(found.owners[usable], kind="stable")]
        labels, ignore = found.kinds[usable], found.ignore[usable]
        if len(names):
            ignore = ignore | np.array([name in self.ignored for name in names], np.bool_)[labels]
            labels = np.array([self.labels.get(name, -1) for name in names], np.int64)[labels]
        return _Labelled(usable, found.owners[usable], found.boxes[usable].astype(np.float32), labels, ignore)


def _map_classes(config: DataConfig, raw: Raw, counts: Mapping[str, int], classes: Sequence[str] | None) -> _Mapping:
    declared = [name for name in raw.classes or () if name]
    names = [*declared, *sorted(set(counts) - set(declared))]
    ignored, dropped, renamed = set(), set(), {}
    for name in names:
        ours = config.classes.get(name, name)
        if {name, ours} & set(config.drop):
            dropped.add(name)
        elif {name, ours} & set(config.ignore) or ours.casefold() == IGNORED_NAME.casefold():
            ignored.add(name)
        else:
            renamed[name] = ours
    for key in ("classes", "ignore", "drop"):
        for name in getattr(config, key):
            if name not in names and not (key != "classes" and name in config.classes.values()):
                raw.problem(config.path, f"{key} names {name!r}, which is no class of this set")
    if classes is None:
        own = tuple(dict.fromkeys(renamed.values()))
        alike: dict[str, str] = {}
        for name in own:
            if (first := alike.setdefault(name.casefold(), name)) != name:
                told = f"the classes {first!r} and {name!r} differ in capitals alone; to make them one: classes = "
                raw.problem(config.path, f'{told}{{ "{name}" = "{first}" }}')
        return _Mapping(own, {name: own.index(ours) for name, ours in renamed.items()}, ignored, dropped)

    known = {name: label for label, name in enumerate(classes)}
    if renamed and not set(renamed.values()) & set(known):
        raise AcclimateError(
            f"{config.path}: its classes ({', '.join(renamed)}) and the detector's ({', '.join(known)}) have no name "
            f'in common; rename them with a line such as classes = {{ "{next(iter(renamed))}" = "{classes[0]}" }}'
        )
    unknown = [name for name, ours in renamed.items() if ours not in known and counts.get(name)]
    if unknown:
        quoted = ", ".join(f'"{name}"' for name in unknown)
        what = "is no class" if len(unknown) == 1 else "are no classes"
        lines = ", ".join(f'"{name}" = "{_closest(renamed[name], known)}"' for name in unknown)
        raise AcclimateError(
            f"{config.path}: {quoted} {what} of the detector ({', '.join(known)}); under this data set write "
            f"classes = {{ {lines} }} to rename, ignore = [{quoted}] to leave such boxes out of account, or "
            f"drop = [{quoted}] to make them background"
        )
    labels = {name: known[ours] for name, ours in renamed.items() if ours in known}
    return _Mapping(tuple(classes), labels, ignored, dropped)


def _closest(name: str, known: dict[str, int]) -> str:
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.0)
    return folded[close[0]] if close else next(iter(known))
