"""What a run was made from, kept beside it as inputs.json: which key or file differs, not only that something does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acclimate.edge.images import read_image
from acclimate.errors import AcclimateError
from acclimate.structures import Annotations

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet, UnlabelledSet

FILE = "inputs.json"
NAMED = 3
"""Differences that a message tells of in full."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that determines a result.

    Attributes:
        settings: the options that matter, section by section.
        weights: SHA-256 of the weights that it starts or learns from, by what they are.
        source: labelled images.
        target: images without labels.
        labelled: a few others of the target, with labels.
        validation: and those that choose the checkpoint.
    """

    settings: dict[str, Any]
    weights: dict[str, str] = field(default_factory=dict)
    source: LabelledSet | None = None
    target: UnlabelledSet | None = None
    labelled: LabelledSet | None = None
    validation: LabelledSet | None = None

    def as_json(self) -> dict[str, Any]:
        """What inputs.json holds; of each file its size in bytes (-1 where it is gone) and what is labelled in it."""
        sets: dict[str, Any] = {}
        sources = (("source", self.source), ("labelled", self.labelled), ("validation", self.validation))
        for name, labels in sources:
            if labels is not None:
                sets[name] = {
                    "classes": list(labels.classes),
                    "files": {str(one.path): [size_of(one.path), _labels(one.annotations)] for one in labels.images},
                }
        if self.target is not None:
            sets["target"] = {"files": {str(path): [size_of(path), ""] for path in self.target.paths}}
        return {"settings": self.settings, "weights": self.weights, "sets": sets}

    def damaged_since(self, before: Mapping[str, Any]) -> tuple[Path, ...]:
        """The files that cannot be read any more, where that alone tells these inputs from those `before`.

        A training leaves out such a file when it meets it on its way, so one that is taken up again may do so too.
        """
        now = self.as_json()
        known_sets = before.get("sets", {})
        if known_sets.keys() != now["sets"].keys() or any(_differences(_without_files(before), _without_files(now))):
            return ()
        damaged = []
        for name, known in known_sets.items():
            files = now["sets"][name]["files"]
            if files.keys() - known["files"].keys():
                return ()
            for text, told in known["files"].items():
                if files.get(text) == told:
                    continue
                path = Path(text)
                if not path.is_file() or _readable(path):
                    return ()
                damaged.append(path)
        return tuple(damaged)

    def in_the_places_of(self, before: Mapping[str, Any]) -> Inputs:
        """These inputs with every file at the place that it had `before`, those that cannot be read any more too.

        What a step of a training sees goes by the places; readers leave out what they cannot read.
        """
        from acclimate.data.formats import LabelledImage

        def placed(name: str, labels: LabelledSet | None) -> LabelledSet | None:
            if labels is None:
                return None
            there = {str(image.path): image for image in labels.images}
            empty = LabelledImage(Path(), 1, 1, Annotations.empty())
            files = before["sets"][name]["files"]
            images = tuple(there.get(text) or replace(empty, path=Path(text)) for text in files)
            return replace(labels, images=images)

        source, target = placed("source", self.source), self.target
        if target is not None:
            target = replace(target, paths=tuple(map(Path, before["sets"]["target"]["files"])))
        return replace(self, source=source, target=target, labelled=placed("labelled", self.labelled))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line about what differs between two inputs.json, with both values; empty where nothing does."""
    found = list(_differences(before, now))
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from _of_values(before.get("settings", {}), now["settings"], ())
    if "weights" not in before:
        return  # An earlier version kept the settings alone.
    for name in dict.fromkeys([*before["weights"], *now["weights"]]):
        old, new = before["weights"].get(name), now["weights"].get(name)
        if old != new:
            yield f"the weights of {name} are {_short(new)} and were {_short(old)}"
    for name in dict.fromkeys([*before["sets"], *now["sets"]]):
        old, new = before["sets"].get(name, {}), now["sets"].get(name, {})
        if old.get("classes") != new.get("classes"):
            yield f"the classes of the {name} are {_told(new.get('classes'))} and were {_told(old.get('classes'))}"
        yield from _of_files(name, old.get("files", {}), new.get("files", {}))


def _of_values(before: Any, now: Any, keys: tuple[str, ...]) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *before]):
            yield from _of_values(before.get(key), now.get(key), (*keys, key))
    elif before != now:
        yield f"{'.'.join(keys)} is {_told(now)} and was {_told(before)}"


def _of_files(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for path in dict.fromkeys([*before, *now]):
        old, new = before.get(path), now.get(path)
        if old == new:
            continue
        if old is None:
            yield f"{path} is new in the {name}"
        elif new is None:
            yield f"{path} is no longer in the {name}"
        elif old[0] != new[0]:
            yield f"{path} has {new[0]} bytes and had {old[0]}"
        else:
            yield f"{path} has other labels: {_count(new[1])} and had {_count(old[1])}"
    if list(before) != list(now) and before.keys() == now.keys():
        yield f"the {name} lists its files in another order"


def _without_files(values: Mapping[str, Any]) -> dict[str, Any]:
    sets = {name: {**one, "files": {}} for name, one in values.get("sets", {}).items()}
    return {**values, "sets": sets}


def _labels(annotations: Annotations) -> str:
    """How many boxes an image has, and a digest of them."""
    state = hashlib.sha256()
    for array in (annotations.boxes, annotations.labels, annotations.ignore):
        state.update(array.tobytes())
    if annotations.visible is not None:
        state.update(annotations.visible.tobytes())
    for outline in annotations.outlines or ():
        for polygon in outline:
            state.update(polygon.tobytes())
    return f"{len(annotations)} boxes {state.hexdigest()[:8]}"


def _count(labels: str) -> str:
    return labels.rpartition(" ")[0]


def _told(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "set" if isinstance(value, Mapping) else str(value)


def _short(digest: str | None) -> str:
    return "not there" if digest is None else digest[:8]


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except AcclimateError:
        return False
    return True
