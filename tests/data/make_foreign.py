"""Exports of tools that are not ours, of one small set: what `test_foreign_exports.py` reads.

    python -m venv tools
    tools/bin/pip install datumaro==1.13.12 supervision==0.31.2 globox==2.9.0 label-studio-sdk==2.1.2
    tools/bin/pip install labelme2coco==0.2.6
    tools/bin/python tests/data/make_foreign.py tests/data/foreign.zip

Each export lies in a folder TOOL-FORMAT, as the tool wrote it; an empty file `FAILED` stands for one that the tool
could not write. The set: `a` and `b` in train, `c` in val, 160 x 120 pixels, with a red car at (20, 30, 60, 70) and a
blue person at (100, 20, 120, 80) in each, so that a reader's boxes can be checked by what is under them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("car", "person")
BOXES = ((20, 30, 60, 70), (100, 20, 120, 80))
COLOURS = ((230, 20, 20), (20, 20, 230))
SPLITS = {"train": ("a", "b"), "val": ("c",)}
DATUMARO = (
    "coco_instances", "voc_detection", "yolo", "yolo_ultralytics", "cvat", "label_me", "kitti_detection", "open_images",
    "datumaro", "mot_seq_gt", "coco", "voc",
)  # fmt: skip
GLOBOX = ("coco", "pascal_voc", "cvat", "labelme", "openimage", "yolo_v5", "yolo_darknet", "via_json")
LABEL_STUDIO = ("JSON", "JSON_MIN", "COCO", "YOLO", "VOC", "YOLO_OBB", "CSV", "TSV")
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="car"/><Label value="person"/></RectangleLabels></View>"""


def picture(path: Path) -> Path:
    """A picture of the set. Grey differs from one to the next, so that no two are the same file."""
    image = Image.new("RGB", (160, 120), (80 + ord(path.stem[0]) % 20,) * 3)
    draw = ImageDraw.Draw(image)
    for (left, top, right, bottom), colour in zip(BOXES, COLOURS, strict=True):
        draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def datumaro(kind: str, images: dict[str, list[Path]], out: Path) -> None:
    """By Datumaro (MIT)."""
    import datumaro as dm

    items = [
        dm.DatasetItem(
            id=path.stem,
            subset=split,
            media=dm.Image.from_file(path=str(path)),
            annotations=[
                dm.Bbox(left, top, right - left, bottom - top, label=label, id=label + 1, group=label + 1)
                for label, (left, top, right, bottom) in enumerate(BOXES)
            ],
        )
        for split, paths in images.items()
        for path in paths
    ]
    dm.Dataset.from_iterable(items, categories=list(CLASSES), media_type=dm.Image).export(
        str(out), kind, save_media=True
    )


def globox(kind: str, images: dict[str, list[Path]], out: Path) -> None:
    """By globox (MIT), of the images of train."""
    import globox as gb

    everything = gb.AnnotationSet()
    for path in images["train"]:
        boxes = [gb.BoundingBox(label=name, xmin=b[0], ymin=b[1], xmax=b[2], ymax=b[3]) for name, b in _named()]
        everything.add(gb.Annotation(image_id=path.name, image_size=(160, 120), boxes=boxes))
        shutil.copy(path, _made(out / "images") / path.name)
    names = {name: number for number, name in enumerate(CLASSES)}
    if kind == "coco":
        everything.save_coco(out / "annotations.json", auto_ids=True)
    elif kind == "cvat":
        everything.save_cvat(out / "annotations.xml")
    elif kind == "openimage":
        everything.save_openimage(out / "train-annotations-bbox.csv")
    elif kind == "via_json":
        everything.save_via_json(out / "via.json", image_folder=out / "images")
    elif kind == "yolo_v5":
        everything.save_yolo_v5(_made(out / "labels"), label_to_id=names)
        (out / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    elif kind == "yolo_darknet":
        everything.save_yolo_darknet(_made(out / "images"), label_to_id=names)
        (out / "obj.names").write_text("\n".join(CLASSES) + "\n")
    elif kind == "labelme":
        everything.save_labelme(_made(out / "images"))
    else:
        everything.save_pascal_voc(_made(out / "Annotations"))


def supervision(kind: str, images: dict[str, list[Path]], out: Path) -> None:
    """By supervision (MIT), of the images of train."""
    import supervision as sv

    detections = sv.Detections(xyxy=np.array(BOXES, float), class_id=np.arange(2))
    paths = [str(path) for path in images["train"]]
    found = sv.DetectionDataset(list(CLASSES), paths, dict.fromkeys(paths, detections))
    if kind == "coco":
        found.as_coco(str(out / "images"), str(out / "annotations.json"))
    elif kind == "yolo":
        found.as_yolo(str(out / "images"), str(out / "labels"), str(out / "data.yaml"))
    else:
        found.as_pascal_voc(str(out / "images"), str(out / "annotations"))


def label_studio(kind: str, images: dict[str, list[Path]], out: Path) -> None:
    """By Label Studio's converter (Apache 2.0), of images that were uploaded: eight signs stand before their names."""
    from label_studio_sdk.converter import Converter

    tasks = []
    for number, path in enumerate(images["train"], 1):
        name = f"1a2b3c4{number}-{path.name}"
        results = [
            {
                "id": f"r{label}", "from_name": "label", "to_name": "image", "type": "rectanglelabels",
                "original_width": 160, "original_height": 120, "image_rotation": 0,
                "value": {
                    "x": b[0] / 1.6, "y": b[1] / 1.2, "width": (b[2] - b[0]) / 1.6, "height": (b[3] - b[1]) / 1.2,
                    "rotation": 0, "rectanglelabels": [class_],
                },
            }
            for label, (class_, b) in enumerate(_named())
        ]  # fmt: skip
        annotation = {"id": number, "completed_by": 1, "result": results, "was_cancelled": False}
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [annotation]})
        shutil.copy(path, _made(out / "images") / name)
    source = _made(out / "source") / "tasks.json"
    source.write_text(json.dumps(tasks))
    converter = Converter(CONFIG, project_dir=None, upload_dir=str(out / "images"), download_resources=False)
    converter.convert(str(source), str(out), kind, is_dir=False)
    shutil.rmtree(out / "source")


def labelme2coco(kind: str, images: dict[str, list[Path]], out: Path) -> None:
    """By labelme2coco (MIT), from LabelMe's files of the images of train."""
    import labelme2coco as tool

    for path in images["train"]:
        shapes: list[dict[str, Any]] = [
            {"label": name, "points": [b[:2], b[2:]], "shape_type": "rectangle", "flags": {}} for name, b in _named()
        ]
        content = {"version": "5.0.1", "shapes": shapes, "imagePath": path.name, "imageHeight": 120, "imageWidth": 160}
        shutil.copy(path, _made(out / "images") / path.name)
        (out / "images" / f"{path.stem}.json").write_text(json.dumps({**content, "flags": {}, "imageData": None}))
    tool.convert(str(out / "images"), str(out))
    for file in (out / "images").glob("*.json"):
        file.unlink()


def _named() -> list[tuple[str, tuple[int, int, int, int]]]:
    return list(zip(CLASSES, BOXES, strict=True))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


TOOLS: dict[str, tuple[Callable[[str, dict[str, list[Path]], Path], None], tuple[str, ...]]] = {
    "datumaro": (datumaro, DATUMARO),
    "globox": (globox, GLOBOX),
    "supervision": (supervision, ("coco", "yolo", "pascal_voc")),
    "label_studio": (label_studio, LABEL_STUDIO),
    "labelme2coco": (labelme2coco, ("coco",)),
}


def main() -> None:
    """Write the archive whose path is given."""
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        images = {
            split: [picture(root / "pictures" / split / f"{name}.png") for name in names]
            for split, names in SPLITS.items()
        }
        for tool, (make, kinds) in TOOLS.items():
            for kind in kinds:
                out = _made(root / "exports" / f"{tool}-{kind}")
                try:
                    make(kind, images, out)
                except Exception:
                    traceback.print_exc()
                    (out / "FAILED").touch()
        # The temporary folder's name differs each time, and tools write it.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((root / "exports").rglob("*")):
                if file.is_file():
                    content = file.read_bytes().replace(str(root).encode(), b"/home/someone")
                    archive.writestr(zipfile.ZipInfo(str(file.relative_to(root / "exports"))), content)


if __name__ == "__main__":
    main()
