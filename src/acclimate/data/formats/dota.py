"""DOTA: one text file an image in labelTxt, a line an object: four corners in pixels, the class, and whether it is
difficult. A box is the extent of the corners; difficult ones are ignored, as its development kit does."""

from __future__ import annotations

from pathlib import Path

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "DOTA's labelTxt"


def find(path: Path) -> bool:
    """A folder labelTxt (or labelTxt-v1.0 and the like; MMRotate's annfiles), in the folder or in that of a split."""
    return places.is_dir(path) and (
        _labels(path) is not None or any(_labels(inner) for inner in places.folders_in(path))
    )


def _labels(root: Path) -> Path | None:
    there = places.folders_in(root)
    return next((folder for folder in there if folder.name.casefold().startswith(("labeltxt", "annfiles"))), None)


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the label files say; see `formats.read`."""
    root = config.path
    splits = [folder for folder in places.folders_in(root) if _labels(folder) is not None]
    if _labels(root) is None or config.split is not None:
        wanted = [f for f in splits if config.split is None or places.same_split(config.split, f.name)]
        if len(wanted) != 1:
            there = ", ".join(folder.name for folder in splits) or "none"
            raise AcclimateError(f"{root}: {'several splits' if wanted else 'no such split'} ({there}); set `split`")
        root = wanted[0]
    labels = _labels(root) or root
    # The archives unpack into labelTxt-v1.0/labelTxt, or Train_Task2_gt.
    raw = Raw(f"{config.path.name}/{config.split}" if config.split else config.path.name)
    images = config.images or places.folder_in(root, "images") or root
    resolver = places.Images([images], [images], split=config.split or "")
    for file in places.files_below(labels, ".txt"):
        sample = raw.sample(resolver.find(file.stem) or images / f"{file.stem}.png", file)
        for number, line in files.lines(files.text(file) or ""):
            if line.split(":")[0].strip("'\" ") in {"imagesource", "gsd"}:
                continue
            words = line.replace(",", " ").split()
            corners, rest = files.numbers(words[:8]), words[8:]
            if corners is None or not rest or files.finite(rest[0]):
                raw.problem(f"{file}:{number}", f"not a DOTA label: {line[:60]!r}; left out")
                continue
            # A class may be of several words; what is no flag behind it belongs to it.
            ignore = files.flag(rest[-1]) if len(rest) > 1 else None
            name = " ".join(rest if ignore is None else rest[:-1])
            xs, ys = corners[::2], corners[1::2]
            raw.add(sample, name, (min(xs), min(ys), max(xs), max(ys)), number, bool(ignore))
    places.tell_unlabelled(raw, images, [])
    return raw
