"""The verb label: images that nobody has labelled get scored boxes, for a small detector to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from acclimate import stages
from acclimate.config import DataConfig
from acclimate.errors import AcclimateError
from acclimate.progress import counting

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.data.scored import Found, ScoredLabels


@dataclass(frozen=True, slots=True)
class _Labeller:
    """Who is asked.

    Attributes:
        classes: in the order of the labels.
        ask: what it finds in images.
        source: what it has learnt from, where that is known and there.
        thresholds: the scores from which it is known to be sure.
    """

    classes: tuple[str, ...]
    ask: Callable[[Sequence[Path]], Mapping[Path, Found]]
    source: DataConfig | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)


def label(
    folder: str | Path,
    labeller: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] = (),
    source: DataConfig | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fuse_with: Sequence[str | Path] = (),
    console: Console | None = None,
) -> ScoredLabels:
    """Write what a labeller finds in the images of `folder` to the COCO file `out`, with scores.

    Args:
        folder: unlabelled images: a folder, a .txt list, or one image.
        labeller: the run folder of a detector; a zero-shot detector of `transformers` (a checkpoint folder or a name
            on the hub); or a file of labels that another tool has made.
        out: the file to write.
        classes: which of its classes are kept, in this order, as `theirs` or `theirs=ours`; of a zero-shot detector
            theirs is the prompt.
        source: labelled images on which the score is measured from which it is sure of each class. A run's own source
            where that is there; without one, no threshold is written.
        scales: of a run: factors on the sides of its input, a look each.
        flip: of a run: whether each is also looked at mirrored.
        fuse_with: further labellers, of the same kinds; boxes of all are fused (weighted boxes fusion).
        console: where progress and counts go.

    Raises:
        AcclimateError: a labeller is none of these, `folder` has no image, or `out` cannot be written.
    """
    from acclimate.data import formats, scored

    stages.one_process("label")
    target = formats.unlabelled(Path(folder))
    named = [labeller, *fuse_with]
    given = [(text.partition("=")[0].strip(), text.partition("=")[2].strip()) for text in classes]
    theirs = {ours or name: name for name, ours in given}
    asked = [_labeller(str(one), theirs, scales, flip, console) for one in named]
    names = asked[0].classes
    if any(set(one.classes) != set(names) for one in asked):
        listed = "; ".join(f"{name}: {', '.join(one.classes)}" for name, one in zip(named, asked, strict=True))
        raise AcclimateError(f"--fuse: the labellers have different classes ({listed}); name them alike with --classes")
    images = _together(asked, target.paths)
    measured = source or next((one.source for one in asked if one.source is not None), None)
    thresholds = asked[0].thresholds if len(asked) == 1 else {}
    if measured is not None:
        thresholds = _thresholds(asked, formats.read(measured, names))
    labels = scored.ScoredLabels(names, images, thresholds, ", ".join(map(str, named)))
    scored.write(labels, Path(out))
    if console is not None:
        _say(labels, console)
    return labels


def _labeller(
    name: str, theirs: Mapping[str, str], scales: Sequence[float], flip: bool, console: Console | None
) -> _Labeller:
    """Who `name` is; `theirs` says what it calls each of our classes, of all of them where it is empty."""
    path = Path(name)
    if path.is_file():
        return _file(path, theirs)
    if (path / "run.json").is_file():
        return _run(path, theirs, scales, flip, console)
    from acclimate.labelling import zero_shot

    if not theirs:
        raise AcclimateError(
            f"--with {name}: no run folder and no file; a zero-shot detector needs its prompts, as in "
            '--classes car,person or --classes "a person walking=person"'
        )
    made = zero_shot.ZeroShot(name, theirs)

    def ask(paths: Sequence[Path]) -> Mapping[Path, Found]:
        with counting(console, "labelled") as tick:
            return zero_shot.label(made, paths, tick=tick, report=_report(console))

    return _Labeller(made.classes, ask)


def _run(
    folder: Path, theirs: Mapping[str, str], scales: Sequence[float], flip: bool, console: Console | None
) -> _Labeller:
    from acclimate.labelling import run as running
    from acclimate.models import detector as models
    from acclimate.models.transfer import with_classes

    parent = stages.finished(folder)
    detector = models.load(folder)
    if theirs:
        detector = with_classes(detector, theirs)
    models.to_device(detector)
    running.check(detector, scales)

    def ask(paths: Sequence[Path]) -> Mapping[Path, Found]:
        with counting(console, "labelled") as tick:
            return running.label(detector, paths, scales, flip, tick=tick, report=_report(console))

    # The names of the source's classes are the run's own.
    own = None if theirs else stages.configuration(parent).source
    return _Labeller(detector.spec.classes, ask, own if own is not None and own.path.exists() else None)


def _file(file: Path, theirs: Mapping[str, str]) -> _Labeller:
    from acclimate.data import scored

    labels = scored.read(file)
    if absent := [name for name in theirs.values() if name not in labels.classes]:
        raise AcclimateError(f"{file}: it has no class {absent[0]!r}; its classes are {', '.join(labels.classes)}")
    names = theirs or {name: name for name in labels.classes}
    thresholds = {ours: labels.thresholds[name] for ours, name in names.items() if name in labels.thresholds}
    return _Labeller(tuple(names), lambda paths: labels.of(paths, tuple(names.values()), file), None, thresholds)


def _together(asked: Sequence[_Labeller], paths: Sequence[Path]) -> dict[Path, Found]:
    """What all of them find, fused, labels in the order of the first's; what one of them cannot read is left out."""
    from acclimate.boxes.fusion import fuse
    from acclimate.data.scored import Found
    from acclimate.structures import Detections

    classes, found = asked[0].classes, []
    for one in asked:
        place = np.array([classes.index(name) for name in one.classes], np.int64)
        looks = {}
        for path, look in one.ask(paths).items():
            seen = look.detections
            looks[path] = Found(look.size, Detections(seen.boxes, place[seen.labels], seen.scores))
        found.append(looks)
    shared = [path for path in paths if all(path in looks for looks in found)]
    return {path: Found(found[0][path].size, fuse([looks[path].detections for looks in found])) for path in shared}


def _thresholds(asked: Sequence[_Labeller], source: LabelledSet) -> dict[str, float]:
    """The score of each class from which they are sure together, on evenly spread images of a labelled set."""
    from acclimate.adapt.teacher import MEASURED, known_from

    images = source.images[:: max(1, len(source.images) // MEASURED)]
    found = _together(asked, [image.path for image in images])
    seen, truth = [], []
    for image in images:
        if image.path in found:
            width, height = found[image.path].size
            seen.append(found[image.path].detections)
            truth.append(image.annotations.moved((width / image.width, height / image.height)))
    known = known_from(seen, truth, len(source.classes))
    return {name: round(float(score), 5) for name, score in zip(source.classes, known.thresholds, strict=True)}


def _report(console: Console | None) -> Callable[[str], object]:
    if console is None:
        return lambda problem: None
    return lambda problem: console.print(f"left out: {problem}", markup=False, highlight=False)


def _say(labels: ScoredLabels, console: Console) -> None:
    """How many boxes there are of each class, and how many of them are sure."""
    table = Table("class", "boxes", "sure from", "sure", box=None)
    for place, name in enumerate(labels.classes):
        scores = [
            score for one in labels.images.values() for score in one.detections.scores[one.detections.labels == place]
        ]
        needed = labels.thresholds.get(name)
        told = "-" if needed is None else "never" if needed > 1 else f"{needed:.2f}"
        sure = "-" if needed is None else str(sum(score >= needed for score in scores))
        table.add_row(name, str(len(scores)), told, sure)
    console.print(table, highlight=False)
