"""`ask` on a run whose detector is known: what it writes, that tools take it, and that it reads no label."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from pycocotools.coco import COCO

from acclimate import workflow
from acclimate.config import DataConfig
from acclimate.data import formats
from acclimate.data.formats import LabelledSet
from acclimate.errors import AcclimateError, OtherInputsError
from acclimate.models import detector as models
from acclimate.run import Manifest, Run, file_digest
from acclimate.workflow import asking
from coloured_squares import CLASSES, SquareDetector, write_scenes
from test_labels import target_with_labels
from tiny_job import make_data, settings

pytestmark = pytest.mark.usefixtures("squares_are_a_kind")


@pytest.fixture
def target(tmp_path: Path) -> LabelledSet:
    return write_scenes(tmp_path / "target", 6, scale=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = Run.create(tmp_path / "run", Manifest(verb="train", digest="d"))
    models.save(SquareDetector(), made.path)
    made.write("config.json", {"source": {"path": str(tmp_path / "gone")}})
    made.finish("done")
    return made.path


def test_the_frames_are_written_for_every_tool_with_the_boxes_found(
    tmp_path: Path, target: LabelledSet, run: Path
) -> None:
    question = workflow.ask(run, tmp_path / "target", tmp_path / "ask", frames=3, threshold=0.5)
    frames = question.asked.frames
    assert len({frame.path for frame in frames}) == len(frames) == 3
    truth = {str(image.path): image for image in target.images}
    for frame in frames:
        assert frame.sha256 == file_digest(Path(frame.path))
        boxes = sorted((tuple(map(round, one.box)), CLASSES.index(one.label)) for one in frame.boxes)
        a = truth[frame.path].annotations
        assert boxes == sorted(
            (tuple(map(round, box)), label) for box, label in zip(a.boxes.tolist(), a.labels, strict=True)
        )
    for name in ("coco", "yolo", "voc", "cvat"):
        read = formats.read(DataConfig(path=tmp_path / "ask" / name), CLASSES)
        assert formats.detect(tmp_path / "ask" / name) == name
        assert {file_digest(path) for path in read.paths} == {frame.sha256 for frame in frames}
        assert sum(len(image.annotations) for image in read.images) == sum(len(frame.boxes) for frame in frames)
    assert cv2.imread(str(tmp_path / "ask" / "sheet.jpg")) is not None
    told = (tmp_path / "ask" / "why.txt").read_text()
    assert all(f"{frame.file}: {frame.why}" in told for frame in frames)
    assert asking.read(tmp_path / "ask").asked == question.asked


def test_a_prediction_is_no_label_until_somebody_has_looked(tmp_path: Path, target: LabelledSet, run: Path) -> None:
    workflow.ask(run, tmp_path / "target", tmp_path / "ask", frames=2, threshold=0.5)
    folder = tmp_path / "ask" / "labelstudio"
    with pytest.raises(AcclimateError, match="no annotation; left out"):
        formats.read(DataConfig(path=folder))
    tasks = json.loads((folder / "tasks.json").read_text())
    # As Label Studio exports what was submitted: the annotation beside the prediction, the upload's name changed.
    for task in tasks:
        name = task["data"]["image"].rpartition("/")[2]
        (folder / "images" / name).rename(folder / "images" / f"0a1b2c3d-{name}")
        task["data"]["image"] = f"/data/upload/1/0a1b2c3d-{name}"
        task["annotations"] = [{"result": task["predictions"][0]["result"][:-1], "was_cancelled": False}]
    (folder / "export.json").write_text(json.dumps(tasks))
    (folder / "tasks.json").unlink()
    read = formats.read(DataConfig(path=folder), CLASSES)
    assert [len(image.annotations) for image in read.images] == [3, 3]


def test_asked_again_it_is_left_alone_and_other_questions_are_refused(
    tmp_path: Path, target: LabelledSet, run: Path
) -> None:
    out = tmp_path / "ask"
    first = workflow.ask(run, tmp_path / "target", out, frames=2)
    label = next((out / "yolo" / "labels" / "train").iterdir())
    label.write_text("0 0.5 0.5 0.2 0.2\n")
    assert workflow.ask(run, tmp_path / "target", out, frames=2).asked == first.asked
    assert label.read_text() == "0 0.5 0.5 0.2 0.2\n"
    with pytest.raises(OtherInputsError, match="--asked"):
        workflow.ask(run, tmp_path / "target", out, frames=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(AcclimateError, match="not empty"):
        workflow.ask(run, tmp_path / "target", tmp_path / "mine", frames=2)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"
    second = workflow.ask(run, tmp_path / "target", tmp_path / "more", frames=9, asked=[out])
    shown = {frame.sha256 for frame in first.asked.frames}
    assert {frame.sha256 for frame in second.asked.frames} == {file_digest(path) for path in target.paths} - shown
    with pytest.raises(AcclimateError, match="nothing is left to ask"):
        workflow.ask(run, tmp_path / "target", tmp_path / "none", asked=[tmp_path / "target"])


def test_a_copy_is_not_asked_a_second_time(tmp_path: Path, target: LabelledSet, run: Path) -> None:
    for path in target.paths:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    done = workflow.ask(run, tmp_path / "target", tmp_path / "ask", frames=12, way="random")
    assert len({frame.sha256 for frame in done.asked.frames}) == len(done.asked.frames) == 6
    assert done.asked.near_duplicates == 6


def test_a_review_has_every_frame_the_most_doubtful_first(tmp_path: Path, target: LabelledSet, run: Path) -> None:
    shutil.copy(target.paths[0], target.paths[0].with_name("copy.png"))
    done = workflow.ask(run, tmp_path / "target", tmp_path / "all", review=True)
    assert {frame.path for frame in done.asked.frames} == {str(path) for path in (tmp_path / "target").rglob("*.png")}
    doubts = [frame.scores["doubt"] for frame in done.asked.frames]
    assert doubts == sorted(doubts, reverse=True)
    for frame in done.asked.frames:
        away = [abs(box.score - 0.5) for box in frame.boxes]
        assert away == sorted(away)
    few = workflow.ask(run, tmp_path / "target", tmp_path / "few", review=True, frames=2)
    assert [frame.sha256 for frame in few.asked.frames] == [frame.sha256 for frame in done.asked.frames[:2]]
    with pytest.raises(AcclimateError, match="nothing to choose by --way random"):
        workflow.ask(run, tmp_path / "target", tmp_path / "no", review=True, way="random")


def test_pycocotools_takes_the_boxes_as_they_were_drawn(tmp_path: Path, target: LabelledSet, run: Path) -> None:
    done = workflow.ask(run, tmp_path / "target", tmp_path / "ask", frames=3, threshold=0.5)
    theirs = COCO(str(next((tmp_path / "ask" / "coco").rglob("*.json"))))
    names = {category["id"]: category["name"] for category in theirs.loadCats(theirs.getCatIds())}
    drawn = {frame.file: frame.boxes for frame in done.asked.frames}
    assert sorted(image["file_name"] for image in theirs.loadImgs(theirs.getImgIds())) == sorted(drawn)
    for image in theirs.loadImgs(theirs.getImgIds()):
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=[image["id"]]))
        boxes = [(*row["bbox"][:2], row["bbox"][0] + row["bbox"][2], row["bbox"][1] + row["bbox"][3]) for row in rows]
        own = drawn[image["file_name"]]
        assert [names[row["category_id"]] for row in rows] == [box.label for box in own]
        assert boxes == [pytest.approx(box.box, abs=1e-2) for box in own]


def test_label_studio_takes_the_tasks(tmp_path: Path, target: LabelledSet, run: Path) -> None:
    """By label-studio-sdk, which needs packages of other versions than ours, so it runs where it is installed."""
    python = os.environ.get("ACCLIMATE_LABEL_STUDIO")
    if not python:
        pytest.skip("set ACCLIMATE_LABEL_STUDIO to a Python that has label-studio-sdk")
    workflow.ask(run, tmp_path / "target", tmp_path / "ask", frames=3, threshold=0.5)
    code = """
import json, sys
from pathlib import Path
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
interface = LabelInterface((folder / "interface.xml").read_text())
interface.validate()
tasks = json.loads((folder / "tasks.json").read_text())
for task in tasks:
    assert not interface.validate_prediction(task["predictions"][0], return_errors=True), task
    task["annotations"] = [{"id": task["id"], **task.pop("predictions")[0]}]
(out / "annotated.json").write_text(json.dumps(tasks))
converter = Converter((folder / "interface.xml").read_text(), str(folder), download_resources=False)
images = str(out / "coco" / "images")
converter.convert_to_coco(str(out / "annotated.json"), str(out / "coco"), output_image_dir=images, is_dir=False)
"""
    done = subprocess.run(
        [python, "-c", code, str(tmp_path / "ask" / "labelstudio"), str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    shutil.copytree(tmp_path / "ask" / "labelstudio" / "images", tmp_path / "coco" / "images", dirs_exist_ok=True)
    ours = formats.read(DataConfig(path=tmp_path / "ask" / "coco"), CLASSES)
    theirs = formats.read(DataConfig(path=tmp_path / "coco"), CLASSES)
    assert len(theirs) == len(ours) == 3
    for one, other in zip(ours.images, theirs.images, strict=True):
        rows = [
            sorted(
                (*(round(side) for side in box), int(label))
                for box, label in zip(a.boxes.tolist(), a.labels, strict=True)
            )
            for a in (one.annotations, other.annotations)
        ]
        assert rows[0] == rows[1]


WATCHED = """
import json, sys
from pathlib import Path

root, opened = str(Path(sys.argv[1]).resolve()), set()

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, Path)):
        name = str(Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]).absolute())
        if name.startswith(root):
            opened.add(Path(name).suffix)

sys.addaudithook(watch)

from acclimate import load_config, workflow

config = load_config(sys.argv[2])
source = workflow.train(config, "source")
workflow.ask(source.path, config.target, "ask", frames=2, way="mining")
print(json.dumps(sorted(opened)))
"""


def test_no_label_of_the_target_is_opened(tmp_path: Path) -> None:
    make_data(tmp_path)
    target = target_with_labels(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(settings(tmp_path, tmp_path / "job")))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(target), str(tmp_path / "job.json")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [".jpg"]
