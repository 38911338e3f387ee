"""What reading a large COCO set costs, as a ratio to what pycocotools needs to load the same file.

    python benchmarks/reading.py [--images 100000] [--boxes 500000]

The set is made anew: an index of `images` images and `boxes` boxes, whose files are links to one small JPEG. A reader
runs in a process of its own; measured are the processor time of its call, user and system, and the peak memory of the
process; then the same call once more, as the second verb of a job makes it. acclimate also opens every image to see its
size, which pycocotools does not. Writes benchmarks/reading.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

CSV = Path(__file__).with_suffix(".csv")
READERS = ("pycocotools", "acclimate")
_FOLDER = 1000
"""Images of a folder: file systems have a limit on links to one file, and folders of 100,000 files are rare."""


def make(root: Path, images: int, boxes: int) -> Path:
    """A COCO set with its annotations in random order."""
    rng = np.random.default_rng(0)
    picture = simplejpeg.encode_jpeg(rng.integers(0, 255, (120, 160, 3), np.uint8), colorspace="RGB")
    listed = []
    for number in range(images):
        folder = root / "images" / f"{number // _FOLDER:03d}"
        file = folder / f"{number:06d}.jpg"
        if number % _FOLDER == 0:
            folder.mkdir(parents=True)
            file.write_bytes(picture)
        else:
            os.link(folder / f"{number - number % _FOLDER:06d}.jpg", file)
        name = str(file.relative_to(root / "images"))
        listed.append({"id": number, "file_name": name, "height": 120, "width": 160})
    corners = rng.uniform(0, 100, (boxes, 2)).round(2)
    sides = rng.uniform(2, 20, (boxes, 2)).round(2)
    owners = rng.integers(0, images, boxes)
    annotations: list[dict[str, Any]] = [
        {
            "id": number,
            "image_id": int(owner),
            "category_id": int(number % 8) + 1,
            "bbox": [*corner, *side],
            "area": side[0] * side[1],
            "iscrowd": 0,
            "segmentation": [],
        }
        for number, (owner, corner, side) in enumerate(zip(owners, corners.tolist(), sides.tolist(), strict=True))
    ]
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(8)]
    index = root / "annotations" / "instances_train.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    return index


def measure(reader: str, index: Path) -> dict[str, float]:
    """Processor seconds and peak memory of one reader, in this process."""
    from acclimate.config import DataConfig

    if reader == "pycocotools":
        from pycocotools.coco import COCO
    else:
        from acclimate.data import formats
    began = time.process_time()
    if reader == "pycocotools":
        kept: Any = COCO(str(index))
    else:
        kept = formats.read(DataConfig(path=index))
    seconds = time.process_time() - began
    del kept
    # What getrusage says may still be the parent's.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    again = time.process_time()
    if reader == "pycocotools":
        COCO(str(index))
    else:
        formats.read(DataConfig(path=index))
    return {
        "cpu_s": seconds,
        "again_cpu_s": time.process_time() - again,
        "memory_mb": int(status["VmHWM"].split()[0]) * 1024 / 1e6,
    }


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=500_000)
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--reader", choices=READERS, help="measure one, of the index given, and print it")
    parser.add_argument("--index", type=Path)
    options = parser.parse_args()
    if options.reader:
        with contextlib.redirect_stdout(sys.stderr):
            measured = measure(options.reader, options.index)
        print(json.dumps(measured))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        index = make(Path(temporary), options.images, options.boxes)
        for reader in READERS:
            command = [sys.executable, __file__, "--reader", reader, "--index", str(index)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"reader": reader, "images": options.images, "boxes": options.boxes, **json.loads(said)})
        index_mb = index.stat().st_size / 1e6
    oracle = rows[0]["cpu_s"]
    for row in rows:
        row.update(index_mb=index_mb, ratio=row["cpu_s"] / oracle, machine=platform.machine())
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
            print(row)


if __name__ == "__main__":
    main()
