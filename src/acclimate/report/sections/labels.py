"""A few labels: where this job stands, what ten more frames may bring, and which to send next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from acclimate.errors import AcclimateError
from acclimate.evaluate import Interval, ap50_draws, ap50_interval, interval
from acclimate.report.content import Content, RunPart
from acclimate.run import Evaluation, read_as
from acclimate.select.ask.question import NEXT, Next
from acclimate.select.record import VALIDATION, Validation

_Model = TypeVar("_Model", bound=BaseModel)

MORE = 10
"""Frames ahead that the forecast looks."""
LEAST_ERROR = 1e-3
"""An error of nothing has no logarithm."""


@dataclass(frozen=True)
class Point:
    """What a detector that learnt from so many labelled frames reaches: AP50, 0..1."""

    frames: int
    label: str
    evaluation: Evaluation

    @property
    def ap50(self) -> float:
        return self.evaluation.ap50

    @property
    def interval(self) -> Interval | None:
        return ap50_interval(self.evaluation)


def section(content: Content) -> dict[str, Any] | None:
    """What the template draws; None where no run has learnt from labelled frames."""
    learnt = [part for part in content.parts if _frames(part)]
    if not learnt:
        return None
    from acclimate.report import plot

    last = max(learnt, key=_frames)
    points, where = _measured(content), content.target.name if content.target is not None else ""
    held = None
    if len(points) < 2 and (validation := _stored(last, Validation, VALIDATION)) is not None:
        held = validation.chosen.images
        points = [Point(_frames(last), last.label, validation.chosen)]
        points += [Point(0, "before", validation.start)] if validation.start is not None else []
        points.sort(key=lambda point: point.frames)
        where = f"{held} labelled frames that were held back"
    ahead = forecast(points)
    curve = [(float(point.frames), 100 * point.ap50) for point in points]
    lines = [plot.Line("AP50", curve, "a", marks=True)]
    if ahead is not None:
        lines += [
            plot.Line(name, [curve[-1], (curve[-1][0] + MORE, 100 * end)], "e", dashed=True)
            for name, end in zip(("lowest", "highest"), ahead, strict=True)
        ]
    return {
        "where": where,
        "held": held,
        "points": points,
        "plot": plot.lines(lines, label=f"AP50 by labelled frames, on {where}", x_name="labelled frames")
        if len(points) > 1
        else None,
        "forecast": ahead,
        "more": MORE,
        "corrections": last.run.manifest.notes.labelled.corrections if last.run.manifest.notes.labelled else None,
        "next": _stored(last, Next, NEXT),
        "run": str(last.run.path),
    }


def forecast(points: Sequence[Point], more: int = MORE) -> Interval | None:
    """AP50 with `more` labelled frames: the middle 95 % of what the draws of test images say, 0..1.

    The assumption is a power law: the error, 1 - AP50, is a * (1 + frames)^b with the a and b that fit best, in each
    draw by itself. None with fewer than two numbers of frames, or where the draws are not of the same images.
    """
    if len({point.frames for point in points}) < 2 or len({point.evaluation.digest for point in points}) > 1:
        return None
    draws = [ap50_draws(point.evaluation) for point in points]
    known = [one for one in draws if one is not None]
    if len(known) < len(points):
        return None
    frames = np.array([point.frames for point in points], np.float64)
    found = interval(1 - extrapolated(frames, 1 - np.stack(known), float(frames.max()) + more))
    return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def extrapolated(frames: NDArray[np.float64], errors: NDArray[np.float64], wanted: float) -> NDArray[np.float64]:
    """The power law through errors (P, R) at numbers of frames (P,), by least squares of their logarithms, at another
    number of frames: (R,)."""
    usable = np.isfinite(errors).all(axis=0)
    slope, start = np.polyfit(np.log1p(frames), np.log(np.maximum(errors[:, usable], LEAST_ERROR)), 1)
    result = np.full(errors.shape[1], np.nan)
    result[usable] = np.exp(start + slope * np.log1p(wanted))
    return result


def _measured(content: Content) -> list[Point]:
    """One for each number of labelled frames, of the runs that were evaluated on the target; 0 is source-only where no
    run was adapted without labels."""
    base, domain = content.source_only, content.target
    found: dict[int, Point] = {}
    for subject in [*([base] if base is not None else []), *content.of("adapted")]:
        score = subject.on(domain)
        if score is not None and score.evaluation is not None:
            told = subject.run.manifest.notes.labelled
            count = told.images or 0 if told is not None else 0
            found[count] = Point(count, subject.label, score.evaluation)
    return [found[count] for count in sorted(found)]


def _frames(part: RunPart) -> int:
    labelled = part.run.manifest.notes.labelled
    return labelled.images or 0 if labelled is not None else 0


def _stored(part: RunPart, model: type[_Model], name: str) -> _Model | None:
    """What a file of the run holds; None where it is not there or cannot be used."""
    try:
        return read_as(model, part.run.path / name)
    except AcclimateError:
        return None
