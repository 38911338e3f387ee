"""What to do next, in one paragraph: each sentence follows from numbers on the page, and names the option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from acclimate.diagnosis import SHOWN
from acclimate.report import verdict
from acclimate.report.content import Content, RunPart
from acclimate.report.sections.outcomes import counts
from acclimate.report.sections.pair import Pair
from acclimate.verification.judge import not_learnt

MOST = 4
"""So many sentences make the paragraph."""
SMALL_SHARE = 0.3
"""With this share of objects below 8 px on the input, a larger input comes before all else."""
FALLING = 0.03
"""A loss that fell by this share over the last fifth of a training still falls."""
GAP = 0.05
"""Five points of AP50 to the oracle are worth asking for labels."""
WEAK = 0.3
"""An oracle below this AP50 says that detector, input or length hold it back, not the domain."""


@dataclass(frozen=True)
class Advice:
    """One thing to do, and the numbers that it follows from."""

    do: str
    because: str


def section(content: Content, both: Pair | None) -> list[Advice]:
    """At most `MOST`, the one that matters most first; empty where the numbers ask for nothing."""
    return [*_all(content, both)][:MOST]


def _all(content: Content, both: Pair | None) -> Iterator[Advice]:
    yield from _source_first(content)
    yield from _size(content, both)
    yield from _training(content)
    yield from _labels(content)
    yield from _threshold(both)
    yield from _export(content)


def _source_first(content: Content) -> Iterator[Advice]:
    source = content.eager("source")
    score = source.on(content.source) if source is not None else None
    learnt = not not_learnt(score.ap50 if score is not None else None)
    part = _part(content, "source")
    start = _section(part, "model").get("weights") if part is not None else None
    if start == "none":
        yield Advice("start from pretrained weights (model.weights)", "the backbone started from random numbers")
    if part is None or score is None:
        return
    fall = _fall(part)
    if not learnt or (fall is not None and fall > FALLING):
        numbers = f"the source run reaches {verdict.points(score.ap50)} points on its own domain"
        falling = f" and its loss still fell by {verdict.percent(fall)} over the last fifth" if fall else ""
        yield Advice(f"train the source longer than {part.steps or 'now'} steps (train.steps)", numbers + falling)


def _size(content: Content, both: Pair | None) -> Iterator[Advice]:
    if both is None:
        return
    diagnosis = both.after.diagnosis
    total = sum(one.boxes for one in diagnosis.sizes)
    tiny = diagnosis.sizes[0]
    if not total or tiny.boxes < SMALL_SHARE * total:
        return
    height, width = diagnosis.image_size
    largest = max((max(seen.height / height, seen.width / width) for seen in diagnosis.images), default=1.0)
    share = verdict.percent(tiny.boxes / total)
    because = f"{share} of the objects are below 8 px on it, where AP50 is {verdict.points(tiny.ap50)} points"
    if largest > 1.2:
        twice = f"[{2 * height}, {2 * width}]"
        yield Advice(f"take a larger input than {height} x {width}, such as model.image_size = {twice}", because)
    else:
        yield Advice("record larger images: the network's input is as large as they are", because)


def _training(content: Content) -> Iterator[Advice]:
    part = _part(content, "adapted")
    if part is None:
        return
    chosen = part.selection
    if chosen is not None and len(chosen.candidates) > 2:
        steps = [one.step for one in chosen.candidates]
        if chosen.chosen_step == max(steps):
            yield Advice(
                f"adapt for longer than {part.steps or max(steps)} steps (schedule.steps)",
                "the last checkpoint was chosen, so the label-free score was still rising",
            )
    adapted, base = content.eager("adapted"), content.source_only
    after, before = (one.on(content.target) if one is not None else None for one in (adapted, base))
    if after is not None and before is not None and after.ap50 - before.ap50 < -verdict.NO_CHANGE:
        yield Advice(
            "adapt with other settings, such as a smaller schedule.lr or a larger adapt.teacher.threshold",
            f"adaptation cost {verdict.points(before.ap50 - after.ap50)} points",
        )


def _labels(content: Content) -> Iterator[Advice]:
    adapted, oracle = content.eager("adapted"), content.eager("oracle")
    after = adapted.on(content.target) if adapted is not None else None
    best = oracle.on(content.target) if oracle is not None else None
    if after is None or best is None or adapted is None:
        return
    if best.ap50 < WEAK:
        yield Advice(
            "look at detector, input size and length of training before the method of adaptation",
            f"even with target labels it reaches {verdict.points(best.ap50)} points",
        )
    elif best.ap50 - after.ap50 >= GAP:
        yield Advice(
            f"ask for labels of a few frames (acclimate ask {adapted.run.path} --target FOLDER --out FOLDER)",
            f"{verdict.points(best.ap50 - after.ap50)} points to the oracle remain",
        )


def _threshold(both: Pair | None) -> Iterator[Advice]:
    if both is None:
        return
    diagnosis = both.after.diagnosis
    boxes = dict.fromkeys(diagnosis.classes, 0)
    for seen in diagnosis.images:
        for label in seen.truth_labels:
            boxes[diagnosis.classes[label]] += 1
    known = [(one.score, boxes[name]) for name, one in diagnosis.thresholds.items()]
    weight = sum(count for _, count in known)
    best = sum(score * count for score, count in known) / weight if weight else None
    outcome = counts(diagnosis)
    if best is not None and best < SHOWN - 0.1 and outcome["missed"] > outcome["right"]:
        yield Advice(
            "show boxes of lower scores (acclimate predict --suggested, or --threshold)",
            f"at {SHOWN:g} it misses {outcome['missed']} of {outcome['missed'] + outcome['right']} objects, "
            f"and F1 is highest near {best:.2f}",
        )
    elif best is not None and best > SHOWN + 0.1 and outcome["false"] > outcome["right"]:
        yield Advice(
            "show boxes of higher scores alone (acclimate predict --suggested, or --threshold)",
            f"at {SHOWN:g} {outcome['false']} boxes are false and {outcome['right']} right, and F1 is highest near "
            f"{best:.2f}",
        )


def _export(content: Content) -> Iterator[Advice]:
    headline = content.headline
    artifact = headline.artifact if headline is not None else None
    if artifact is None or artifact.verified is None or artifact.precision != "int8":
        return
    drop = artifact.verified.drop
    if drop is not None and drop > 0.02:
        yield Advice(
            "keep the sensitive layers in fp32 (acclimate export --tolerance 0.98)",
            f"INT8 costs {verdict.points(drop)} points",
        )


def _part(content: Content, kind: str) -> RunPart | None:
    return next((part for part in reversed(content.parts) if part.kind == kind), None)


def _section(part: RunPart, name: str) -> Mapping[str, Any]:
    found = part.config.get(name)
    return found if isinstance(found, Mapping) else {}


def _fall(part: RunPart) -> float | None:
    """By which share the loss fell from the fifth before the last one to the last; None where too little was logged."""
    losses = [float(line["loss"]) for line in part.metrics if isinstance(line.get("loss"), int | float)]
    fifth = len(losses) // 5
    if fifth < 2:
        return None
    before, last = sum(losses[-2 * fifth : -fifth]) / fifth, sum(losses[-fifth:]) / fifth
    return (before - last) / before if before > 0 else None
