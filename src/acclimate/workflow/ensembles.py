"""The verb evaluate, of an ensemble: several runs, several views of the images, or tiles of them, as one detector.

Its boxes come from all members and become one set by weighted boxes fusion, by NMS or by soft-NMS. An ensemble is a
measurement, and no artifact is made of it: it costs as much as its members together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast, get_args

import numpy as np
from rich.console import Console

from acclimate import stages
from acclimate.boxes.fusion import fuse
from acclimate.boxes.soft_nms import Suppression, decay, soft_nms
from acclimate.config import DataConfig
from acclimate.edge.artifact import Tiles
from acclimate.edge.tiles import tiles_of
from acclimate.errors import AcclimateError
from acclimate.run import Evaluation, Role, counted, locked
from acclimate.structures import Detections, View

Fusion = Literal["wbf", "nms", "soft-nms"]
IOU = 0.5
"""Overlap from which NMS and soft-NMS take two members' boxes for one object's."""
LEAST = 0.01
"""Score below which soft-NMS drops a box, as the detectors' own decoding does."""
LARGEST_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class Looks:
    """How the members of an ensemble look at the images, and how their boxes become one set."""

    fuse: Fusion = "wbf"
    views: tuple[View, ...] = (View(),)
    suppression: Suppression | None = None
    """Within each member; None leaves each detector's own."""
    tiles: Tiles | None = None
    """How each member cuts the images before it sees them."""

    @classmethod
    def of(cls, fuse: str, views: Sequence[str], suppression: str | None, tiles: str = "") -> Self:
        """From words: a view is `flip`, a scale such as `1.25`, or both with a comma between. The images as they are
        come first, always.

        Args:
            fuse: how boxes become one set.
            views: further ones.
            suppression: within each member; None leaves each detector's own.
            tiles: as `tiles_of` reads them; empty for none.

        Raises:
            AcclimateError: a word that means nothing.
        """
        for option, value, known in (
            ("--fuse", fuse, get_args(Fusion)),
            ("--suppression", suppression or "nms", get_args(Suppression)),
        ):
            if value not in known:
                raise AcclimateError(f"{option} {value}: is one of {', '.join(known)}")
        looked = dict.fromkeys([View(), *map(_view, views)])
        cut = tiles_of(tiles) if tiles else None
        return cls(cast(Fusion, fuse), tuple(looked), cast("Suppression | None", suppression), cut)

    def told(self, members: int) -> str:
        """What was done, as part of a file's name."""
        flips, scales = any(view.flip for view in self.views), {view.scale for view in self.views} - {1.0}
        parts = [self.fuse if members * len(self.views) > 1 else "", f"{members}-runs" if members > 1 else ""]
        parts += ["flip" if flips else "", *(f"{scale:g}x" for scale in sorted(scales)), self.suppression or ""]
        if self.tiles is not None:
            parts += ["tiles", "{}x{}".format(*self.tiles.size), f"{self.tiles.overlap:g}"]
        return "-".join(part for part in parts if part)


def evaluate_together(
    paths: Sequence[str | Path],
    data: DataConfig,
    name: str,
    role: Role,
    looks: Looks = Looks(),
    *,
    console: Console | None = None,
) -> Evaluation:
    """AP of several runs, several views, or tiles, as one detector; saved as ensembles/NAME-HOW.json of the first run.

    The runs' own evaluations stay what they are.

    Args:
        paths: finished runs; all of them know the set's classes.
        data: the labelled set.
        name: of the set, and so of the file.
        role: whose domain it is of.
        looks: the views, and how boxes become one set.
        console: where the result goes.

    Raises:
        AcclimateError: a run is not finished, the set cannot be used, or a view is not for one of the detectors.
    """
    from acclimate.data import formats
    from acclimate.data.labelled import refuse_tested
    from acclimate.evaluate import average_precision, predictions_of
    from acclimate.models import detector as models

    runs = [stages.finished(Path(path)) for path in paths]
    members: list[list[Detections | None]] = []
    truth = None
    for run in runs:
        detector = models.to_device(models.load(run.path))
        if looks.suppression is not None:
            detector.spec = detector.spec.model_copy(update={"suppression": looks.suppression})
        if truth is None:
            truth = formats.read(data, detector.spec.classes, reading=detector.spec.reading)
        refuse_tested(stages.labelled_frames(run), truth.paths, name)
        members += [predictions_of(detector, truth, name, view=view, tiles=looks.tiles) for view in looks.views]
    assert truth is not None
    together = [united(image, looks.fuse) for image in zip(*members, strict=True)]
    how = looks.told(len(runs))
    result = average_precision(together, truth, data=name, role=role, model=how)
    with locked(runs[0].path, "evaluate"):
        runs[0].write(f"ensembles/{name}-{how}.json", result)
    if console is not None:
        console.print(
            f"{how} on {name}: AP50 {result.ap50:.3f}, AP {result.ap:.3f}, {counted(result.images, result.unreadable)}",
            markup=False, highlight=False,
        )  # fmt: skip
    return result


def united(members: Sequence[Detections | None], way: Fusion) -> Detections | None:
    """What all members found in one image, as one set, best first; None where one of them could not read it."""
    looks = [found for found in members if found is not None]
    if len(looks) < len(members):
        return None
    if len(looks) == 1 or way == "wbf":
        return fuse(looks)
    boxes = np.concatenate([found.boxes for found in looks])
    labels = np.concatenate([found.labels for found in looks])
    scores = np.concatenate([found.scores for found in looks])
    factor = decay("nms" if way == "nms" else "soft-gaussian", IOU)
    kept, left = soft_nms(boxes, scores, labels, factor, 0.0 if way == "nms" else LEAST)
    return Detections(boxes[kept], labels[kept], left)


def _view(words: str) -> View:
    scale, flip = 1.0, False
    for word in words.split(","):
        if word.strip() == "flip":
            flip = True
            continue
        try:
            scale = float(word)
        except ValueError:
            scale = 0.0
        if not 0 < scale <= LARGEST_SCALE:
            raise AcclimateError(
                f"--view {words}: is flip, a scale of the canvas up to {LARGEST_SCALE:g}, or both as flip,1.25"
            )
    return View(scale, flip)
