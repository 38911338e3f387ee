"""Labelled frames of the target: a type of their own, matched to the target's files by content.

They come back from an annotation tool, often under another name, and are taken out of the unlabelled target. They never
meet a test set: what is in both is refused by content, and what nearly is, is told. They choose no checkpoint, but for
those that are held back for that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acclimate.config import DataConfig
from acclimate.data.compare import domain, near_duplicates
from acclimate.data.dataset import choose
from acclimate.data.formats import LabelledImage, LabelledSet, UnlabelledSet
from acclimate.data.formats.places import same_split
from acclimate.edge.listing import images_of
from acclimate.errors import AcclimateError
from acclimate.run import file_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFrames:
    """Frames of the target that a person has labelled, and the rest of the target.

    Attributes:
        images: the frames and their boxes; labels are indices into the detector's classes.
        contents: SHA-256 of the file of each frame, of those held back too.
        matched: how many are frames of the target folder.
        rest: the target without any of them.
        held: frames that nothing is learnt from, as they choose the checkpoint; None without any.
    """

    images: LabelledSet
    contents: tuple[str, ...]
    matched: int
    rest: UnlabelledSet
    held: LabelledSet | None = None

    @property
    def labelled(self) -> tuple[LabelledImage, ...]:
        """All of them, those held back last."""
        return (*self.images.images, *(self.held.images if self.held is not None else ()))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of these."""
        return tuple(image.path for image in self.labelled)

    def holding_back(self, count: int, seed: int) -> LabelledFrames:
        """With `count` of the frames held back, evenly spread, copies of them included; with none for 0.

        Raises:
            AcclimateError: none is left to learn from, or those held back have no box to measure on.
        """
        if count == 0:
            return self
        content = {path: file_digest(path) for path in self.images.paths}
        first = {content[path]: path for path in reversed(self.images.paths)}
        if count >= len(first):
            raise AcclimateError(
                f"{self.images.name}: {count} frames to validate on, of {len(first)} that are labelled, leave none to "
                "learn from; hold back fewer, or label more"
            )
        held = {content[path] for path in choose(tuple(first.values()), count, seed)}
        parts = [
            replace(self.images, images=tuple(one for one in self.images.images if (content[one.path] in held) == side))
            for side in (False, True)
        ]
        if all(image.annotations.ignore.all() for image in parts[1].images):
            raise AcclimateError(
                f"{self.images.name}: the {count} frames to validate on have no box (the first: {parts[1].paths[0]}); "
                "hold back more"
            )
        return replace(self, images=parts[0], held=parts[1])


def match(images: LabelledSet, target: UnlabelledSet) -> LabelledFrames:
    """Find labelled frames among the target's, by content; where a tool has written them anew, by what they show.

    Raises:
        AcclimateError: none of them is a frame of the target, or a frame is in the set twice with other boxes.
    """
    contents = tuple(file_digest(path) for path in images.paths)
    _refuse_contradictions(images, contents)
    files = among(target.paths, images.paths, contents)
    taken = set(files)
    known = set(files.values())
    strangers = [path for path, content in zip(images.paths, contents, strict=True) if content not in known]
    if strangers:
        left = UnlabelledSet(tuple(path for path in target.paths if path not in taken))
        pairs = _near(UnlabelledSet(tuple(strangers)), left) if len(left) else []
        again = {frame for _, frame in pairs}
        taken |= again
        found = {path for path, _ in pairs}
        if pairs:
            log.warning(
                "%s: %d frames are not the target's files, but show what some do (the first: %s and %s); so matched",
                images.name, len(pairs), *pairs[0],
            )  # fmt: skip
        strangers = [path for path in strangers if path not in found]
    if len(strangers) == len(images):
        raise AcclimateError(
            f"{images.name}: none of its {len(images)} images is a frame of the target (the first: {strangers[0]}); "
            "name the target that they were taken from"
        )
    if strangers:
        log.warning(
            "%s: %d images are no frames of the target folder (the first: %s); they are learnt from all the same",
            images.name, len(strangers), strangers[0],
        )  # fmt: skip
    rest = tuple(path for path in target.paths if path not in taken)
    if not rest:
        log.warning("%s: every frame of the target is labelled; the teacher looks at them too", images.name)
    return LabelledFrames(
        images, contents, len(images) - len(strangers), UnlabelledSet(rest or target.paths, target.problems)
    )


def among(paths: Iterable[Path], wanted: Sequence[Path], contents: Sequence[str]) -> dict[Path, str]:
    """Those of `paths` whose content is one of `contents`, which the files `wanted` have. Other sizes are not read."""
    sizes = {path.stat().st_size for path in wanted}
    known = set(contents)
    found = {}
    for path in paths:
        try:
            if path.stat().st_size in sizes and (content := file_digest(path)) in known:
                found[path] = content
        except OSError:
            continue
    return found


def refuse_tested(frames: Mapping[str, str], tested: Iterable[Path], test: str) -> None:
    """Refuse to measure on images that were learnt from with their labels.

    Args:
        frames: SHA-256 of the labelled frames, and where each was learnt from.
        tested: the images of the test set.
        test: its name.

    Raises:
        AcclimateError: an image is in both.
    """
    if not frames:
        return
    for path in tested:
        if path.is_file() and (content := file_digest(path)) in frames:
            raise AcclimateError(
                f"{test}: {path} is a labelled frame that was trained on ({frames[content]}); take it out of the test "
                "set, or out of the labelled one"
            )


def refuse_early(frames: LabelledFrames, test: DataConfig) -> None:
    """Hold labelled frames against the files of a test set, before anything is trained. No label of it is read.

    Which images below a folder are the test set's is in its labels, so those in the target's or the labelled set's
    own folders, or in another split's, are left to `evaluate` and `verify`, which read them.

    Raises:
        AcclimateError: an image is in both.
    """
    root = test.images or (test.path if test.path.is_dir() else test.path.parent)
    if not root.is_dir():
        return
    own = {path.resolve().parent for path in (*frames.paths, *frames.rest.paths)}
    try:
        listed = images_of(root).paths
    except AcclimateError:
        return
    tested = [
        path
        for path in listed
        if path.resolve().parent not in own
        and (test.split is None or any(same_split(test.split, part) for part in path.relative_to(root).parts))
    ]
    where = dict.fromkeys(frames.contents, frames.images.name)
    refuse_tested(where, among(tested, frames.paths, frames.contents), str(test.path))
    pairs = _near(UnlabelledSet(frames.paths), UnlabelledSet(tuple(tested))) if tested else []
    if pairs:
        log.warning(
            "%s: %d labelled frames show nearly what images of the test set %s show (the first: %s and %s); "
            "what is measured there is too good",
            frames.images.name, len(pairs), test.path, *pairs[0],
        )  # fmt: skip


def _near(ones: UnlabelledSet, others: UnlabelledSet) -> list[tuple[Path, Path]]:
    try:
        looks = [domain("target", "frames", one, (1, 1)).looks for one in (ones, others)]
    except AcclimateError:
        return []
    return near_duplicates(*looks)


def _refuse_contradictions(images: LabelledSet, contents: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for number, content in enumerate(contents):
        first = seen.setdefault(content, number)
        one, other = images.images[first], images.images[number]
        if first != number and (
            one.annotations.boxes.tolist() != other.annotations.boxes.tolist()
            or one.annotations.labels.tolist() != other.annotations.labels.tolist()
        ):
            raise AcclimateError(
                f"{images.name}: {one.path} and {other.path} are the same picture with other boxes; keep one of them"
            )
