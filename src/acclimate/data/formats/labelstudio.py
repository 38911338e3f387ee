"""Label Studio: a JSON list of tasks, each an image with annotations in percent of its size.

Annotations alone are labels: predictions are a model's, and a task that nobody has annotated is left out.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acclimate.config import DataConfig
from acclimate.data.formats import files, places
from acclimate.data.formats.raw import Raw
from acclimate.errors import AcclimateError

FILES = "Label Studio's tasks.json"

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""


def find(path: Path) -> bool:
    """A JSON file of tasks, or a folder with one beside its images."""
    return _index(path) is not None


def _index(path: Path) -> Path | None:
    candidates = [path] if places.is_file(path) else places.files_in(path, ".json") if places.is_dir(path) else []
    words = (b'"data"', b'"annotations"'), (b'"data"', b'"predictions"'), (b'"original_width"',)
    for file in candidates:
        # COCO's index has no "data"; what is a list and what an object is seen when it is read.
        if file.suffix.lower() == ".json" and any(files.mentions(file, *some, b"rectanglelabels") for some in words):
            return file
    return None


def read(config: DataConfig, masks: bool = False) -> Raw:
    """What the file says; see `formats.read`."""
    file = _index(config.path)
    if file is None:
        raise AcclimateError(f"{config.path}: no JSON file with Label Studio's tasks")
    tasks = files.json_of(file)
    if not isinstance(tasks, list):
        raise AcclimateError(f"{file}: not a list of Label Studio's tasks; export JSON")
    raw = Raw(config.path.stem, locate=lambda where, place: f"{where}: result {place}")
    root = config.images or file.parent
    resolver = places.Images([root, root / "images"], [root], split=config.split or "")
    for number, task in enumerate(tasks, 1):
        _task(_whole(task) if isinstance(task, dict) else {}, f"{file}: task {number}", raw, resolver, root)
    return raw


def _whole(task: dict[str, Any]) -> dict[str, Any]:
    """A task of JSON-MIN, whose results lie beside its data, as JSON has it."""
    if "annotations" in task or "predictions" in task or isinstance(task.get("data"), dict):
        return task
    results = [
        {**one, "value": one, "type": "rectanglelabels" if "rectanglelabels" in one else "result"}
        for value in task.values()
        if isinstance(value, list)
        for one in value
        if isinstance(one, dict) and "original_width" in one
    ]
    # An image may lie under any key: its value is the text that ends as a file's name does.
    texts = [value for value in task.values() if isinstance(value, str)]
    images = [value for value in texts if re.search(r"\.\w{2,5}(\?|$)", value)] or texts
    return {"data": {"image": images[0]} if images else {}, "annotations": [{"result": results}] if results else []}


def _task(task: dict[str, Any], where: str, raw: Raw, resolver: places.Images, root: Path) -> None:
    address = next((value for value in _dict(task.get("data")).values() if isinstance(value, str)), "")
    annotations = [_dict(one) for one in _list(task.get("annotations")) if not _dict(one).get("was_cancelled")]
    if not address or not annotations:
        raw.problem(where, "no annotation; left out" if address else "no image; left out")
        return
    # Where several people have annotated, the last one counts.
    results = [_dict(one) for one in _list(annotations[-1].get("result"))]
    size = next(
        (
            size
            for one in results
            if (size := files.size(one.get("original_height"), one.get("original_width"))) is not None
        ),
        None,
    )
    found = next((path for name in _names(address) if (path := resolver.find(name)) is not None), None)
    sample = raw.sample(found or root / next(_names(address)), where, size, fractions=True)
    for place, one in enumerate(results, 1):
        value = _dict(one.get("value"))
        at = raw.locate(where, place)
        names = _list(value.get("rectanglelabels"))
        if not names or not isinstance(names[0], str):
            raw.problem(at, f"a {one.get('type', 'result')} is no rectangle with a label; left out")
            continue
        box = files.numbers([str(value.get(key)) for key in ("x", "y", "width", "height")])
        if box is None:
            raw.problem(at, f"{names[0]}: no box of four numbers; left out")
            continue
        if value.get("rotation"):
            raw.problem(at, f"{names[0]}: a turned box; read as if it were upright")
        left, top, width, height = (part / 100 for part in box)
        raw.add(sample, names[0], [left, top, left + width, top + height], place)


def _names(address: str) -> Iterator[str]:
    """What the image may be called here: below a document root, or as it was before it was uploaded."""
    parsed = urllib.parse.urlparse(address)
    path = urllib.parse.parse_qs(parsed.query).get("d", [urllib.parse.unquote(parsed.path)])[0]
    base = path.rpartition("/")[2]
    yield path.lstrip("/")
    yield base
    if _UPLOADED.match(base):
        yield _UPLOADED.sub("", base, count=1)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
