"""From a run to its device: what an artifact may be verified on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from acclimate.config import DataConfig
from acclimate.data.formats import LabelledImage, LabelledSet
from acclimate.data.write import write
from acclimate.edge.images import Reading
from acclimate.errors import AcclimateError
from acclimate.run import Manifest, Run, file_digest
from acclimate.structures import Annotations
from acclimate.workflow import delivery


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A labelled set of two pictures."""
    images = []
    for number in range(2):
        path = tmp_path / "made" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(path), np.full((40, 60, 3), 90 * number, np.uint8))
        box = np.array([[4, 4, 30, 30]], np.float32)
        images.append(LabelledImage(path, 40, 60, Annotations(box, np.array([0]), np.array([False]))))
    write(LabelledSet("frames", "coco", ("car",), tuple(images)), "coco", tmp_path / "frames")
    return tmp_path / "frames"


@pytest.mark.parametrize("learnt_by", ["adapted", "source"])
def test_frames_that_were_learnt_are_no_test_of_an_artifact(learnt_by: str, frames: Path, tmp_path: Path) -> None:
    notes = {"labelled": {"sha256": [file_digest(frames / "images" / "1.png")]}}
    source = Run.create(tmp_path / "source", Manifest(verb="train", notes=notes if learnt_by == "source" else {}))
    parents = (str(source.path),)
    run = Run.create(
        tmp_path / "adapted", Manifest(verb="adapt", parents=parents, notes=notes if learnt_by == "adapted" else {})
    )
    manifest: Any = SimpleNamespace(classes=("car",), reading=Reading())
    with pytest.raises(AcclimateError, match=r"1\.png is a labelled frame that was trained on"):
        delivery._material(manifest, run, [(DataConfig(path=frames), "target_test", "target")])
    (frames / "images" / "1.png").write_bytes((frames / "images" / "0.png").read_bytes() + b" ")
    material = delivery._material(manifest, run, [(DataConfig(path=frames), "target_test", "target")])
    assert [test.name for test in material.sets] == ["target_test"]
    assert not material.notes
