"""The verb ask: which frames of the target a person should label, with the detector's boxes to start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from acclimate import stages
from acclimate.errors import AcclimateError, OtherInputsError
from acclimate.progress import counting
from acclimate.run import Run, digest, file_digest, locked, write_text, writing_folder
from acclimate.select.ask.question import FILE, Asked, AskedBox, AskedFrame, Question, labels_digest, read

if TYPE_CHECKING:
    from acclimate.data.compare import Look
    from acclimate.data.formats import LabelledSet, UnlabelledSet
    from acclimate.models.detector import Detector
    from acclimate.select.ask.seen import Choice, Seen

LOOKED_AT = 2000
"""Frames that the detector looks at, at most; evenly spread over more."""
FRAMES = 16
"""Frames that a person is asked to label unless told otherwise."""
REVIEW = "review"
"""The way of no choice."""
SHOWN = 0.25
"""Score from which a box is a pre-annotation: a box that is false is removed faster than one is drawn."""


def ask(
    run: str | Path,
    target: str | Path,
    out: str | Path,
    *,
    frames: int | None = None,
    way: str | None = None,
    asked: Sequence[str | Path] = (),
    threshold: float = SHOWN,
    seed: int | None = None,
    review: bool = False,
    console: Console | None = None,
) -> Question:
    """Choose frames of `target` for a person to label, and write them with the detector's boxes as pre-annotations.

    The folder `out` then holds the frames as a COCO, a YOLO and a Pascal VOC set, for CVAT and for Label Studio, a
    contact sheet, and why each was chosen (ask.json, why.txt). No label of the target is read. A folder that was
    written for the same question stays as it is: somebody may be at work in it.

    Args:
        run: a finished run.
        target: a folder of images, such as what `watch` has collected.
        out: a new or an empty folder.
        frames: how many, at most; 16, or with `review` all. Near-duplicates are never asked twice, so there may be
            fewer.
        way: one of `select.ask.WAYS`.
        asked: folders with frames that were asked before; neither they nor what looks like them is asked again.
        threshold: score from which a box is a pre-annotation.
        seed: of everything random; by default the run's.
        review: choose nothing: every frame is written, near-duplicates too, the one with the most doubtful boxes first.
        console: where progress goes.

    Raises:
        OtherInputsError: `out` holds the answer to another question.
        AcclimateError: there is no such way, nothing is left to ask, or `out` holds something else.
    """
    stages.one_process("ask")
    from acclimate.select import ask as asking

    if review and way is not None:
        raise AcclimateError(f"ask: --review takes every frame, so there is nothing to choose by --way {way}")
    way = REVIEW if review else way or asking.DEFAULT
    if not review:
        asking.check(way)
        frames = frames or FRAMES
    parent = stages.finished(Path(run))
    with locked(Path(out), "ask"):
        wanted = _Wanted(way, frames, threshold, parent.manifest.seed if seed is None else seed)
        return _ask(parent, Path(target), Path(out), wanted, asked, console)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a person is asked for.

    Attributes:
        way: how frames are chosen.
        frames: how many, at most; None is all.
        threshold: score from which a box is a pre-annotation.
        seed: of everything random.
    """

    way: str
    frames: int | None
    threshold: float
    seed: int


def _ask(
    parent: Run, target: Path, out: Path, wanted: _Wanted, asked: Sequence[str | Path], console: Console | None
) -> Question:
    from acclimate.data import formats
    from acclimate.select import ask as asking
    from acclimate.select.ask.review import ordered

    way, frames, threshold = wanted.way, wanted.frames, wanted.threshold
    unlabelled = formats.unlabelled(target)
    earlier = [path for folder in asked for path in formats.unlabelled(Path(folder)).paths]
    identity = digest(
        "ask", way, frames, threshold, wanted.seed, file_digest(parent.path / "model.safetensors"),
        stages.unlabelled_digest(unlabelled), [str(path) for path in earlier],
    )  # fmt: skip
    if (known := _known(out, identity, console)) is not None:
        return known
    seen, repeated = _seen(parent, unlabelled, earlier, wanted, console)
    choices = ordered(seen, threshold)[:frames] if way == REVIEW else asking.choose(way, seen, frames or FRAMES)
    if console is not None and frames is not None and len(choices) < frames:
        console.print(
            f"{len(choices)} frames and not {frames}: {repeated} of {target} show what another one shows, or one that "
            "was asked before",
            markup=False, highlight=False,
        )  # fmt: skip
    images = _pre_annotated(seen, choices, threshold)
    answer = Asked(
        run=str(parent.path),
        target=str(target),
        way=way,
        seed=wanted.seed,
        digest=identity,
        classes=images.classes,
        looked_at=len(seen.paths),
        near_duplicates=repeated,
        frames=_frames(seen, choices, images, threshold),
        written={},
    )
    return Question(out, _write(out, images, answer))


def _known(out: Path, identity: str, console: Console | None) -> Question | None:
    if not (out / FILE).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise AcclimateError(f"{out}: is there and not empty; choose another --out")
        return None
    known = read(out)
    if known.asked.digest != identity:
        raise OtherInputsError(
            f"{out}: holds frames that were asked of {known.asked.target} before; choose another --out, and name this "
            "folder with --asked so that they are not asked again",
            known.asked.digest,
            identity,
        )
    if console is not None:
        console.print(f"{out}: asked already; nothing to do", markup=False, highlight=False)
    return known


def _seen(
    parent: Run, unlabelled: UnlabelledSet, earlier: Sequence[Path], wanted: _Wanted, console: Console | None
) -> tuple[Seen, int]:
    """The frames that differ, as the run's detector sees them, and how many others there are."""
    from acclimate.data import formats
    from acclimate.data.compare import domain
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models
    from acclimate.select.ask.seen import distinct, look

    config = stages.configuration(parent)
    detector: Detector = models.to_device(models.load(parent.path))
    size = detector.spec.image_size
    paths = choose(unlabelled.paths, LOOKED_AT, wanted.seed)
    if console is not None and len(paths) < len(unlabelled):
        console.print(f"{len(paths)} of {len(unlabelled)} frames are looked at, evenly spread", highlight=False)
    with counting(console, "frames compared") as tick:
        looks = domain("target", "target", formats.UnlabelledSet(paths), size, tick).looks
    before: Mapping[Path, Look] = {}
    if earlier:
        before = domain("target", "asked before", formats.UnlabelledSet(tuple(earlier)), size).looks
    left, repeated = distinct(looks, before)
    if wanted.way == REVIEW:
        left, repeated = [path for path in looks if path not in before], 0
    if not left:
        raise AcclimateError(
            f"{paths[0].parent}: nothing is left to ask: each of its {len(looks)} frames shows what one shows that was "
            "asked before; collect others"
        )
    source: LabelledSet | None = None
    if wanted.way == "mining" and config.source is not None:
        source = formats.read(config.source, detector.spec.classes, reading=detector.spec.reading)
    with counting(console, "frames looked at") as tick:
        return look(detector, left, config.augment, wanted.seed, source, tick), repeated


def _pre_annotated(seen: Seen, choices: Sequence[Choice], threshold: float) -> LabelledSet:
    """The chosen frames, labelled by the detector."""
    import numpy as np

    from acclimate.data.formats import LabelledImage, LabelledSet
    from acclimate.select.ask.review import by_doubt
    from acclimate.structures import Annotations

    images = []
    for choice in choices:
        placed = seen.placed[choice.index]
        found = placed.to_image(by_doubt(seen.plain[choice.index].above(threshold)))
        boxes = Annotations(found.boxes, found.labels, np.zeros(len(found), bool))
        images.append(LabelledImage(seen.paths[choice.index], placed.height, placed.width, boxes))
    spec = seen.detector.spec
    return LabelledSet("asked", "coco", spec.classes, tuple(images), reading=spec.reading)


def _frames(seen: Seen, choices: Sequence[Choice], images: LabelledSet, threshold: float) -> tuple[AskedFrame, ...]:
    from acclimate.data.write import file_names
    from acclimate.select.ask.review import by_doubt

    frames = []
    for choice, image, name in zip(choices, images.images, file_names(images.images), strict=True):
        found = seen.placed[choice.index].to_image(by_doubt(seen.plain[choice.index].above(threshold)))
        boxes = [
            AskedBox(
                box=(float(left), float(top), float(right), float(bottom)),
                label=images.classes[label],
                score=float(score),
            )
            for (left, top, right, bottom), label, score in zip(found.boxes, found.labels, found.scores, strict=True)
        ]
        frames.append(
            AskedFrame(
                file=name,
                path=str(image.path),
                sha256=file_digest(image.path),
                why=choice.why,
                scores=dict(choice.scores),
                boxes=tuple(boxes),
            )
        )
    return tuple(frames)


def _write(out: Path, images: LabelledSet, answer: Asked) -> Asked:
    """The folder, whole or not at all."""
    from acclimate.data.inspect import contact_sheet
    from acclimate.data.write import FORMATS, write

    with writing_folder(out.absolute()) as fresh:
        for format_ in FORMATS:
            write(images, format_, fresh / format_, drafts=True)
        answer = answer.model_copy(update={"written": {one: labels_digest(fresh / one) for one in FORMATS}})
        contact_sheet(images, fresh / "sheet.jpg", len(images))
        write_text(fresh / "why.txt", _told(answer))
        write_text(fresh / FILE, answer.model_dump_json(indent=1) + "\n")
    return answer


def _told(answer: Asked) -> str:
    """Why each frame was chosen, as a text."""
    lines = [
        f"{len(answer.frames)} of {answer.looked_at} frames of {answer.target}, "
        + ("the most doubtful first." if answer.way == REVIEW else f"different ones, chosen by {answer.way}."),
        f"The boxes are those of {answer.run}, the most doubtful first: correct them, and add what is missing.",
        "",
    ]
    lines += [f"{frame.file}: {frame.why}; {len(frame.boxes)} boxes to correct" for frame in answer.frames]
    return "\n".join(lines) + "\n"
