"""Small sets as people really have them: each case's EXPECT.md says what is right."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from acclimate import cli
from acclimate.config import DataConfig
from acclimate.data.formats import LabelledSet, detect, read
from acclimate.errors import AcclimateError

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "data"

CAR, PERSON = ("car", (20, 30, 60, 70)), ("person", (100, 20, 120, 80))
BOTH = [CAR, PERSON]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Path:
    path = CASES / request.param
    if not path.is_dir():
        pytest.skip(f"{path}: not on this machine")
    return path


def boxes(found: LabelledSet) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Class and rounded box by image; an ignored one has a minus before its class."""
    shown = {}
    for image in found.images:
        a = image.annotations
        rows = zip(a.boxes.round().astype(int).tolist(), a.labels, a.ignore, strict=True)
        shown[image.path.stem] = sorted(("-" * bool(ig) + found.classes[label], tuple(b)) for b, label, ig in rows)
    return shown


@pytest.mark.parametrize(
    ("case", "part", "options", "expected"),
    [
        pytest.param(name, part, options, expected, id=f"{name} {part} {options or ''}".strip())
        for name, part, options, expected in (
            ("coco-backslash", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("coco-images-in-subfolder", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("coco-iscrowd-string", "", {}, {"a0": [CAR], "a1": [PERSON]}),
            ("coco-mixed-backslash", "label", {}, {f"a{i}": [CAR] for i in range(4)}),
            ("coco-roboflow-phantom-class", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("coco-string-image-ids", "", {}, {"a0": [CAR], "a1": [CAR]}),
            ("cvat-yolo-1.1", "", {}, {"f0": BOTH, "f1": BOTH}),
            ("kitti-space-in-class", "", {"drop": ["Car"]}, {f"00000{i}": [("Traffic Light", CAR[1])] for i in (0, 1)}),
            ("kitti-tracking-columns", "", {}, {f"00000{i}": [("Car", CAR[1])] for i in (0, 1)}),
            ("labelme-json", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("labelstudio-yolo", "", {}, {"f0": BOTH, "f1": BOTH}),
            ("voc-applefile", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("voc-difficult-false", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("voc-difficult-unspecified", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("voc-filename-windows-path", "", {}, {"photo_0": BOTH, "photo_1": BOTH}),
            ("voc-filename-without-suffix", "", {}, {"photo_0": BOTH, "photo_1": BOTH}),
            ("voc-lowercase", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("voc-roboflow-root", "", {"split": "train"}, {"a0": BOTH, "a1": BOTH}),
            ("voc-roboflow-root", "", {"split": "val"}, {"a0": BOTH, "a1": BOTH}),
            ("voc-subfolders", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("voc-subfolders", "", {"split": "default"}, {"a0": BOTH, "a1": BOTH}),
            ("yaml-boolean-names", "", {}, {f"a{i}": [("off", PERSON[1]), ("on", CAR[1])] for i in (0, 1)}),
            ("yaml-octal-names", "", {}, {f"a{i}": [("050", CAR[1]), ("1.10", PERSON[1])] for i in (0, 1)}),
            ("yolo-colab-absolute", "", {}, {"a0": BOTH, "a1": BOTH}),
            ("yolo-images-in-parent-path", "images/mydata", {}, {"f0": BOTH, "f1": BOTH}),
            ("yolo-labels-beside-in-images", "", {}, dict.fromkeys(("f0", "f1", "g0", "g1"), BOTH)),
            ("yolo-pose-rows", "", {}, {"a0": BOTH, "a1": BOTH}),
        )
    ],
    indirect=["case"],
)
def test_a_case_is_read_as_it_is_meant(
    case: Path, part: str, options: dict[str, object], expected: dict[str, list[tuple[str, tuple[int, ...]]]]
) -> None:
    found = read(DataConfig.model_validate({"path": case / part, **options}))
    assert boxes(found) == expected
    assert found.problems == ()
    assert not any(name in found.classes for name in ("my-project-abc", "True", "0"))


@pytest.mark.parametrize("case", ["coco-long-file-name"], indirect=True)
def test_one_name_that_no_file_can_have_is_one_problem(case: Path) -> None:
    found = read(DataConfig(path=case))
    assert boxes(found) == {"a1": BOTH}
    assert len(found.problems) == 1
    assert "image 0" in str(found.problems[0])


@pytest.mark.parametrize("case", ["coco-two-ids-one-file"], indirect=True)
def test_an_image_under_two_ids_has_the_boxes_of_both(case: Path) -> None:
    found = read(DataConfig(path=case))
    assert boxes(found) == {"a0": BOTH, "a1": [CAR]}
    assert "the boxes of both are taken together" in str(found.problems[0])


@pytest.mark.parametrize("case", ["voc-misspelt-drop"], indirect=True)
def test_a_misspelt_class_is_told_where_the_format_lists_none(case: Path) -> None:
    found = read(DataConfig(path=case, drop=("persn",)))
    assert [problem.what for problem in found.problems] == ["drop names 'persn', which is no class of this set"]


@pytest.mark.parametrize("case", ["voc-roboflow-root"], indirect=True)
def test_splits_are_named_where_none_is_chosen(case: Path) -> None:
    with pytest.raises(AcclimateError, match=re.escape("several splits (train, valid); set `split`")):
        read(DataConfig(path=case))


@pytest.mark.parametrize("case", ["yolo-sibling-folder"], indirect=True)
def test_the_set_next_door_is_never_taken_in_silence(case: Path, tmp_path: Path) -> None:
    found = read(DataConfig(path=case / "ds"))
    assert boxes(found) == {"mine": BOTH}
    assert len(found.problems) == 1
    shutil.copytree(case, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "ds" / "train")
    alone = read(DataConfig(path=tmp_path / "set" / "ds"))
    assert "outside of the yaml's folder" in str(alone.problems[0])


@pytest.mark.parametrize(
    "case",
    [
        "coco-backslash", "cvat-yolo-1.1", "kitti-tracking-columns", "labelme-json", "labelstudio-yolo",
        "voc-lowercase", "voc-roboflow-root", "voc-subfolders",
    ],
    indirect=True,
)  # fmt: skip
def test_a_case_is_known_by_its_files(case: Path) -> None:
    assert detect(case) == case.name.split("-")[0].replace("cvat", "yolo").replace("labelstudio", "yolo")


@pytest.mark.parametrize("case", ["sheet-pollutes-folder"], indirect=True)
def test_the_contact_sheet_is_no_image_of_the_set(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(case, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    for _ in range(2):
        assert cli.main(["data", "."]) == 0
        assert "2 images" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["set-sheet.jpg"]


MADE_THERE = {"calibration-replaced": "workflow/test_one_artifact.py", "stream-password": "edge/test_shared_cases.py"}
"""Cases that are a script: the test does what it does, on files of its own."""


def test_every_case_has_a_test(shared_cases: Path) -> None:
    tests = Path(__file__).resolve().parents[1]
    texts = "\n".join(file.read_text() for file in tests.rglob("test_*.py") if file != Path(__file__))
    own = Path(__file__).read_text().partition("MADE_THERE")[0]
    cases = [folder.name for part in ("data", "edge") for folder in (shared_cases / part).iterdir()]
    assert [case for case in cases if case not in texts + own and case not in MADE_THERE] == []
    assert all((tests / file).is_file() for file in MADE_THERE.values())
