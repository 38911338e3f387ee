"""What detections say to other tools."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from acclimate.errors import AcclimateError
from acclimate.structures import Detections

FOUND = Detections(np.float32([[10, 20, 40, 60], [0, 0, 5, 8.5]]), np.array([2, 0], np.int64), np.float32([0.9, 0.25]))


def test_coco_reads_them() -> None:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7}], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in (1, 5, 9)],
    }  # fmt: skip
    truth.createIndex()
    loaded = truth.loadRes(FOUND.to_coco(7, categories=[1, 5, 9])).loadAnns([1, 2])
    assert [one["bbox"] for one in loaded] == [[10, 20, 30, 40], [0, 0, 5, 8.5]]
    assert [one["category_id"] for one in loaded] == [9, 1]
    assert [one["area"] for one in loaded] == [1200, 42.5]
    assert [one["category_id"] for one in FOUND.to_coco()] == [3, 1]


@dataclass
class Theirs:
    """The fields of `supervision.Detections` that travel."""

    xyxy: Any
    confidence: Any = None
    class_id: Any = None
    data: dict[str, Any] = field(default_factory=dict)


def test_supervision_gets_its_fields_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=Theirs))  # type: ignore[arg-type]
    theirs = FOUND.to_supervision(["car", "bus", "dog"])
    assert theirs.data["class_name"].tolist() == ["dog", "car"]
    back = Detections.from_supervision(theirs)
    for name in ("boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(back, name), getattr(FOUND, name))
    assert len(Detections.from_supervision(Detections.empty().to_supervision(["car"]))) == 0
    turned = Theirs(theirs.xyxy[::-1], theirs.confidence[::-1], theirs.class_id[::-1])
    assert Detections.from_supervision(turned).scores.tolist() == [np.float32(0.9), 0.25], "best first"
    assert Detections.from_supervision(Theirs(theirs.xyxy)).scores.tolist() == [1, 1]


def test_without_supervision_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(AcclimateError, match="pip install supervision"):
        FOUND.to_supervision()


def test_a_notebook_shows_a_table() -> None:
    assert "2 detections" in FOUND._repr_html_()
    assert FOUND._repr_html_().count("<tr>") == 3
    many = Detections(np.zeros((25, 4), np.float32), np.zeros(25, np.int64), np.ones(25, np.float32))
    assert "and 5 more" in many._repr_html_()
