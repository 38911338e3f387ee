"""Before and after, scored box by box; and a gallery of what the last model gets wrong.

`illustrate` stores the pictures that the section will show in the run folder, while the data set is there; the section
itself reads run folders alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acclimate.diagnosis import SHOWN, Box, Diagnosis, Seen
from acclimate.errors import AcclimateError
from acclimate.report import pictures
from acclimate.report.content import Content
from acclimate.report.sections.pair import Compared, Pair, View, compared, outcome, pair
from acclimate.run import Run

log = logging.getLogger(__name__)

Kind = Literal["kept", "won", "lost", "false", "missed", "found", "true"]
OF_EACH = 2
"""So many pictures of the largest gains, of the largest losses, and around the median."""
TILES = 6
"""So many of the most confident false boxes, of the largest misses, and of the confusions."""
ENLARGED = 4
"""So many small objects of a picture are enlarged."""
SMALL_PX = 32
"""On the stored picture, an object of a shorter side is small."""


@dataclass(frozen=True)
class Tile:
    """A region of an image with one box in the middle."""

    seen: Seen
    region: tuple[int, int, int, int]
    kind: Kind
    told: str
    box: Box
    others: tuple[tuple[Kind, Box], ...] = ()


def section(content: Content, both: Pair | None) -> dict[str, Any] | None:
    """What the template draws; None without a diagnosis."""
    if both is None:
        return None
    run = both.after.run
    shown = [drawn for one, why in _chosen(both) if (drawn := _picture(both, run, one, why)) is not None]
    galleries = [
        {"title": title, "hint": hint, "tiles": [drawn for tile in tiles if (drawn := _drawn(run, tile)) is not None]}
        for title, hint, tiles in _failures(both.after)
    ]
    return {
        "domain": both.domain,
        "threshold": SHOWN,
        "labels": [view.label for view in both.views],
        "totals": totals(both),
        "shown": shown,
        "galleries": [gallery for gallery in galleries if gallery["tiles"]],
    }


def totals(both: Pair) -> list[dict[str, Any]]:
    """Of each model, over all images: boxes that are right, false and missed; and of the pair what changed."""
    rows: list[dict[str, Any]] = []
    for view in both.views:
        outcomes = [outcome(seen) for seen in view.diagnosis.images]
        rows.append(
            {
                "model": view.label,
                "right": sum(len(one.found) for one in outcomes),
                "false": sum(len(one.false) for one in outcomes),
                "missed": sum(len(one.missed) for one in outcomes),
            }
        )
    return rows


def illustrate(content: Content) -> None:
    """Store the pictures of what `section` will show in the last run's folder; those that are there stay.

    An image that is gone, or a folder that cannot be written, leaves the page without that picture.

    Raises:
        AcclimateError: a diagnosis is damaged.
    """
    both = pair(content)
    if both is None:
        return
    run, reading = both.after.run, both.after.diagnosis.reading
    for one, _ in _chosen(both):
        if pictures.uri_of(run, one.after.path) is None:
            _try(pictures.keep, run, Path(one.after.path), reading)
    tiles = [tile for _, _, tiles in _failures(both.after) for tile in tiles]
    tiles += [tile for one, _ in _chosen(both) for tile in _enlarged(both, one)]
    for tile in tiles:
        if pictures.crop_uri(run, tile.seen.path, tile.region) is None:
            _try(pictures.keep_crop, run, Path(tile.seen.path), tile.region, reading)


def _try(store: Callable[..., Any], *arguments: Any) -> None:
    try:
        store(*arguments)
    except AcclimateError as error:
        log.info("the report goes without a picture: %s", error)


def _chosen(both: Pair) -> list[tuple[Compared, str]]:
    """The pictures with the largest gains and losses and those around the median, each with why it is there."""
    images = compared(both)
    ranked = sorted(images, key=lambda one: -one.gain)
    # Of those that gain as much as the median, the ones that show most.
    middle = [one for one in ranked if one.gain == ranked[len(ranked) // 2].gain]
    middle.sort(key=lambda one: -len(outcome(one.before).found) - len(outcome(one.after).found))
    groups = (
        ("largest gain", [one for one in ranked[:OF_EACH] if one.gain > 0]),
        ("largest loss", [one for one in ranked[::-1][:OF_EACH] if one.gain < 0]),
        ("median", middle[:OF_EACH]),
    )
    taken: dict[str, tuple[Compared, str]] = {}
    for why, group in groups:
        for one in group:
            taken.setdefault(one.after.path, (one, why))
    return list(taken.values())


def _picture(both: Pair, run: Run, one: Compared, why: str) -> dict[str, Any] | None:
    uri = pictures.uri_of(run, one.after.path)
    if uri is None:
        return None
    assert both.before is not None
    width, height = pictures.stored_size(one.after.width, one.after.height)
    scale = width / one.after.width
    views = []
    classes = both.after.diagnosis.classes
    for view, seen, other in ((both.before, one.before, one.after), (both.after, one.after, one.before)):
        own, theirs = outcome(seen), outcome(other)
        changed: Kind = "lost" if seen is one.before else "won"
        boxes: list[tuple[Kind, Box, str]] = [
            ("missed" if place in own.missed else "true", true, classes[seen.truth_labels[place]])
            for place, true in enumerate(seen.truth)
        ]
        boxes += [
            ("false", seen.boxes[place], f"false: {classes[seen.labels[place]]} {seen.scores[place]:.2f}")
            for place in own.false
        ]
        for true, place in own.found.items():
            kind: Kind = "kept" if true in theirs.found else changed
            boxes.append((kind, seen.boxes[place], f"{kind}: {classes[seen.labels[place]]} {seen.scores[place]:.2f}"))
        counts = f"{len(own.found)} right, {len(own.false)} false, {len(own.missed)} missed"
        if seen is one.after:
            counts += f" ({_signed(one.right)} right, {_signed(one.wrong)} false)"
        label = f"{'Before' if seen is one.before else 'After'}: {view.label.lower()}"
        views.append({"label": label, "told": counts, "boxes": [_placed(box, scale) for box in boxes]})
    tiles = [drawn for tile in _enlarged(both, one) if (drawn := _drawn(run, tile)) is not None]
    name = Path(one.after.path).name
    return {"name": name, "why": why, "uri": uri, "size": (width, height), "views": views, "tiles": tiles}


def _signed(count: int) -> str:
    return f"{count:+d}".replace("-", "\u2212") if count else "\u00b10"


def _placed(box: tuple[Kind, Box, str], scale: float) -> dict[str, Any]:
    kind, (x1, y1, x2, y2), told = box
    return {
        "kind": kind,
        "told": told,
        "x": round(x1 * scale, 1),
        "y": round(y1 * scale, 1),
        "width": round(max(0.0, x2 - x1) * scale, 1),
        "height": round(max(0.0, y2 - y1) * scale, 1),
    }


def _enlarged(both: Pair, one: Compared) -> list[Tile]:
    """Small objects of a picture, those that were won or lost first."""
    width, _ = pictures.stored_size(one.after.width, one.after.height)
    scale = width / one.after.width
    before, after = outcome(one.before), outcome(one.after)
    classes = both.after.diagnosis.classes
    tiles = []
    for place, box in enumerate(one.after.truth):
        if min(box[2] - box[0], box[3] - box[1]) * scale >= SMALL_PX:
            continue
        was, now = place in before.found, place in after.found
        kind: Kind = "kept" if was and now else "won" if now else "lost" if was else "missed"
        shown = one.after.boxes[after.found[place]] if now else one.before.boxes[before.found[place]] if was else box
        told = f"{classes[one.after.truth_labels[place]]}: {kind}"
        others: tuple[tuple[Kind, Box], ...] = (("true", box),) if now or was else ()
        tiles.append(Tile(one.after, _region(box, one.after), kind, told, shown, others))
    order = {"won": 0, "lost": 0, "missed": 1, "kept": 2}
    return sorted(tiles, key=lambda tile: order[tile.kind])[:ENLARGED]


def _failures(view: View) -> Iterator[tuple[str, str, list[Tile]]]:
    """Titles, what they mean, and the tiles of each kind of failure."""
    images, classes = view.diagnosis.images, view.diagnosis.classes
    false = [(seen, place) for seen in images for place in outcome(seen).false if seen.confuses[place] < 0]
    false.sort(key=lambda one: -one[0].scores[one[1]])
    yield (
        "Most confident false boxes",
        "No object is labelled there, or the box fits none by half. Some may be objects that nobody labelled.",
        [_false_tile(seen, place, classes) for seen, place in _spread(false)],
    )
    missed = [(seen, place) for seen in images for place in outcome(seen).missed]
    missed.sort(key=lambda one: -_area(one[0].truth[one[1]]))
    yield (
        "Largest misses",
        "Objects that no shown box fits by half, the largest first.",
        [
            Tile(seen, _region(seen.truth[place], seen), "missed", classes[seen.truth_labels[place]], seen.truth[place])
            for seen, place in _spread(missed)
        ],
    )
    confused = [(seen, place) for seen in images for place in outcome(seen).false if seen.confuses[place] >= 0]
    confused.sort(key=lambda one: -one[0].scores[one[1]])
    tiles = []
    for seen, place in _spread(confused):
        true = seen.confuses[place]
        names = f"{classes[seen.truth_labels[true]]} taken for {classes[seen.labels[place]]} {seen.scores[place]:.2f}"
        tiles.append(
            Tile(
                seen, _region(seen.boxes[place], seen), "false", names, seen.boxes[place], (("true", seen.truth[true]),)
            )
        )
    yield "Confusions", "The place is right and the class is not.", tiles


def _spread(candidates: Sequence[tuple[Seen, int]]) -> list[tuple[Seen, int]]:
    """The first ones, at most two of an image: one bad image shall not fill the gallery."""
    taken: list[tuple[Seen, int]] = []
    for seen, place in candidates:
        if len(taken) < TILES and sum(other is seen for other, _ in taken) < 2:
            taken.append((seen, place))
    return taken


def _false_tile(seen: Seen, place: int, classes: Sequence[str]) -> Tile:
    box = seen.boxes[place]
    region = _region(box, seen)
    near: tuple[tuple[Kind, Box], ...] = tuple(("true", true) for true in seen.truth if _touches(true, region))
    return Tile(seen, region, "false", f"{classes[seen.labels[place]]} {seen.scores[place]:.2f}", box, near)


def _touches(box: Box, region: tuple[int, int, int, int]) -> bool:
    return box[0] < region[2] and box[2] > region[0] and box[1] < region[3] and box[3] > region[1]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _region(box: Box, seen: Seen) -> tuple[int, int, int, int]:
    """A square around a box with room at its sides, in whole pixels, inside the image where that is large enough."""
    side = min(math.ceil(max(2.0 * max(box[2] - box[0], box[3] - box[1]), 40.0)), max(seen.width, seen.height))
    corners = []
    for low, high, length in ((box[0], box[2], seen.width), (box[1], box[3], seen.height)):
        start = round((low + high - side) / 2)
        corners.append(max(0, min(start, length - side)))
    x, y = corners
    return x, y, min(x + side, seen.width), min(y + side, seen.height)


def _drawn(run: Run, tile: Tile) -> dict[str, Any] | None:
    uri = pictures.crop_uri(run, tile.seen.path, tile.region)
    if uri is None:
        return None
    x1, y1, x2, y2 = tile.region
    boxes = [*tile.others, (tile.kind, tile.box)]
    return {
        "uri": uri,
        "view": f"{x1} {y1} {x2 - x1} {y2 - y1}",
        "at": (x1, y1, x2 - x1, y2 - y1),
        "told": tile.told,
        "name": Path(tile.seen.path).name,
        "boxes": [_placed((kind, box, tile.told), 1.0) for kind, box in boxes],
    }


def counts(diagnosis: Diagnosis) -> dict[str, int]:
    """How many shown boxes of a model are right, confused with another class, and false; and what is missed."""
    outcomes = [(seen, outcome(seen)) for seen in diagnosis.images]
    confused = sum(seen.confuses[place] >= 0 for seen, one in outcomes for place in one.false)
    return {
        "right": sum(len(one.found) for _, one in outcomes),
        "confused": confused,
        "false": sum(len(one.false) for _, one in outcomes) - confused,
        "missed": sum(len(one.missed) for _, one in outcomes),
    }
