"""No label of the target is read by training, adaptation, the choice of a checkpoint or calibration.

Another process does all of them on a target whose labels lie within reach in three formats, and notes every file below
the target's folder that it opens. The same watch then sees `evaluate` and `verify` read labels, so it does watch.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from acclimate.data.formats import UnlabelledSet, unlabelled
from tiny_job import make_data, settings

WATCHED = """
import json, sys
from pathlib import Path

root = str(Path(sys.argv[1]).resolve())
opened, phases = [], {}

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, Path)):
        name = str(Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]).absolute())
        if name.startswith(root):
            opened.append(name)

sys.addaudithook(watch)

from acclimate import load_config, workflow

def end(phase):
    phases[phase] = sorted(set(opened))
    opened.clear()

config = load_config(sys.argv[2])
source = workflow.train(config, "source")
end("train")
adapted = workflow.adapt(source.path, config.target, "adapted")
assert adapted.selection() is not None
end("adapt")
artifact = workflow.export(adapted.path, images=4)
end("export")
workflow.evaluate(adapted.path, config.oracle, hindsight=True)
end("evaluate")
workflow.verify(artifact, [(config.oracle, "target_test", "target")])
end("verify")
print(json.dumps(phases))
"""


def target_with_labels(data: Path) -> Path:
    """The fog set's folder: COCO json above the images, YOLO and VOC files beside them and where they usually lie."""
    folder = data / "fog-train"
    for image in sorted((folder / "images").glob("*.jpg")):
        yolo = "0 0.5 0.5 0.2 0.2\n"
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        voc = f"<annotation><object><name>car</name>{box}</object></annotation>"
        for place in (folder / "images", folder / "labels", folder / "Annotations"):
            place.mkdir(exist_ok=True)
        (folder / "images" / f"{image.stem}.txt").write_text(yolo)
        (folder / "labels" / f"{image.stem}.txt").write_text(yolo)
        (folder / "images" / f"{image.stem}.xml").write_text(voc)
        (folder / "Annotations" / f"{image.stem}.xml").write_text(voc)
    (folder / "data.yaml").write_text("names: [car]\n")
    return folder


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Verb -> the files below the target's folder that it opened."""
    folder = tmp_path_factory.mktemp("labels")
    make_data(folder)
    target = target_with_labels(folder)
    values = settings(folder, folder / "job")
    values["oracle"] = {"path": str(target / "annotations.json")}
    (folder / "job.json").write_text(json.dumps(values))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(target), str(folder / "job.json")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return {verb: [Path(name).relative_to(target.resolve()) for name in names] for verb, names in found.items()}


def labels(opened: list[Path]) -> list[Path]:
    return [path for path in opened if path.suffix != ".jpg"]


@pytest.mark.parametrize("verb", ["adapt", "export"])
def test_the_target_is_seen_and_its_labels_are_not(verb: str, phases: dict[str, list[Path]]) -> None:
    assert {path.suffix for path in phases[verb]} == {".jpg"}


def test_training_on_the_source_opens_nothing_of_the_target(phases: dict[str, list[Path]]) -> None:
    assert phases["train"] == []


def test_the_watch_sees_labels_being_read(phases: dict[str, list[Path]]) -> None:
    assert labels(phases["evaluate"]) == [Path("annotations.json")]


def test_labels_that_were_read_are_not_read_again(phases: dict[str, list[Path]]) -> None:
    assert labels(phases["verify"]) == []
    assert phases["verify"]


def test_an_unlabelled_set_has_no_place_for_labels(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not empty")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    found = unlabelled(tmp_path)
    assert {field.name for field in dataclasses.fields(UnlabelledSet)} == {"paths", "problems"}
    assert {name for name in dir(found) if not name.startswith("_")} == {"paths", "problems"}
    assert found.paths == (tmp_path / "a.jpg",)
    with pytest.raises((AttributeError, TypeError)):
        found.labels = ()  # type: ignore[attr-defined]
