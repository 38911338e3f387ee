"""The page's parts about right and wrong boxes, on runs whose outcomes are known by construction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from acclimate import diagnosis, report
from acclimate.cli import main
from acclimate.data.formats.raw import LabelledImage, LabelledSet
from acclimate.diagnosis import diagnose
from acclimate.errors import AcclimateError
from acclimate.report import series
from acclimate.report.content import gather
from acclimate.report.sections import advice, classwise, outcomes
from acclimate.report.sections.pair import compared, outcome, pair
from acclimate.report.summary import summary
from acclimate.run import Run, read_json
from acclimate.structures import Annotations, Detections

Job = Callable[..., tuple[list[Path], Path]]
MakeRun = Callable[..., Path]
Box = tuple[float, float, float, float]


def places(count: int) -> list[Box]:
    return [(20.0 * i, 10.0, 20.0 * i + 12, 24.0) for i in range(count)]


def found(boxes: list[Box], score: float = 0.9, label: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(count, label, np.int64),
        np.linspace(score, score - 0.1, count, dtype=np.float32),
    )


def pair_of_runs(
    make_run: MakeRun, tmp_path: Path, before: list[Detections], after: list[Detections], **sizes: tuple[int, int]
) -> list[Path]:
    """A baseline and an adapted run that see images with five true boxes each."""
    truth = []
    for i in range(len(before)):
        path = tmp_path / "target" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((100, 200, 3), 90 + i, np.uint8))
        boxes = np.array(places(5), np.float32)
        truth.append(LabelledImage(path, 100, 200, Annotations(boxes, np.zeros(5, np.int64), np.zeros(5, bool))))
    labelled = LabelledSet("set", "coco", ("car", "person"), tuple(truth))
    paths = [
        make_run("source", source_ap50=0.6, target_ap50=0.4),
        make_run("baseline", "adapt", target_ap50=0.4, notes={"role": "baseline"}, parents=("runs/source",)),
        make_run("adapted", "adapt", target_ap50=0.5, parents=("runs/source",)),
    ]
    for path, seen in zip(paths[1:], (before, after), strict=True):
        told = diagnose(
            seen, labelled, data="target_test", role="target", image_size=sizes.get("image_size", (100, 200))
        )
        diagnosis.save(Run.open(path), "target_test", told)
    return paths


def test_a_gain_is_right_boxes_won_less_false_boxes_added(make_run: MakeRun, tmp_path: Path) -> None:
    wrong = [(150.0, 60.0, 170.0, 80.0), (100.0, 60.0, 120.0, 80.0), (50.0, 60.0, 70.0, 80.0)]
    before = [found(places(2)), found(places(4)), found(places(3))]
    # Two won and three false ones: a loss, though five boxes more are shown.
    after = [found(places(4) + wrong), found(places(5)), found(places(3))]
    runs = pair_of_runs(make_run, tmp_path, before, after)
    content = gather(runs)
    both = pair(content)
    assert both is not None
    images = compared(both)
    assert [(one.right, one.wrong, one.gain) for one in images] == [(2, 3, -1), (1, 0, 1), (0, 0, 0)]
    outcomes.illustrate(content)
    drawn = outcomes.section(content, both)
    assert drawn is not None
    assert [(one["why"], one["name"]) for one in drawn["shown"]] == [
        ("largest gain", "1.png"), ("largest loss", "0.png"), ("median", "2.png"),
    ]  # fmt: skip
    loss = drawn["shown"][1]["views"]
    assert loss[1]["told"] == "4 right, 3 false, 1 missed (+2 right, +3 false)"
    kinds = [box["kind"] for box in loss[1]["boxes"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"true": 4, "missed": 1, "kept": 2, "won": 2, "false": 3}
    page = report.write(runs, tmp_path / "r.html").read_text()
    assert "4 right, 3 false, 1 missed (+2 right, +3 false)" in page
    assert "No pictures were stored" not in page
    assert [(row["right"], row["false"], row["missed"]) for row in drawn["totals"]] == [(9, 0, 6), (12, 3, 3)]


def test_a_low_score_is_not_shown_and_a_lost_box_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    runs = pair_of_runs(make_run, tmp_path, [found(places(3))], [found(places(2), 0.45)])
    both = pair(gather(runs))
    assert both is not None
    # 0.45 and 0.35: the second is on the limit.
    assert len(outcome(both.after.diagnosis.images[0]).found) == 2
    lower = pair_of_runs(make_run, tmp_path / "b", [found(places(3))], [found(places(2), 0.40)])
    again = pair(gather(lower))
    assert again is not None
    one = outcome(again.after.diagnosis.images[0])
    assert (len(one.found), one.false, one.missed) == (1, (), (1, 2, 3, 4))


def test_failures_are_the_surest_false_boxes_the_largest_misses_and_the_confusions(
    make_run: MakeRun, tmp_path: Path
) -> None:
    wrong = found([(150.0, 60.0, 170.0, 80.0)], 0.7)
    confused = found(places(1), 0.8, label=1)
    seen = Detections(
        *(np.concatenate([getattr(a, name) for a in (wrong, confused)]) for name in ("boxes", "labels", "scores"))
    )
    runs = pair_of_runs(make_run, tmp_path, [Detections.empty()], [seen])
    content = gather(runs)
    outcomes.illustrate(content)
    drawn = outcomes.section(content, pair(content))
    assert drawn is not None
    tiles = {one["title"]: [tile["told"] for tile in one["tiles"]] for one in drawn["galleries"]}
    assert tiles == {
        "Most confident false boxes": ["car 0.70"],
        "Largest misses": ["car", "car"],
        "Confusions": ["car taken for person 0.80"],
    }
    both = pair(content)
    assert both is not None
    assert outcomes.counts(both.after.diagnosis) == {"right": 0, "confused": 1, "false": 1, "missed": 5}


def test_without_the_images_the_page_says_so_and_the_rest_stands(make_run: MakeRun, tmp_path: Path) -> None:
    runs = pair_of_runs(make_run, tmp_path, [found(places(2))], [found(places(4))])
    for file in (tmp_path / "target").iterdir():
        file.unlink()
    outcomes.illustrate(gather(runs))
    page = report.write(runs, tmp_path / "r.html").read_text()
    assert "pictures are not stored with the run" in page
    assert 'id="classes"' in page


def test_runs_of_earlier_versions_have_no_such_part(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("source", source_ap50=0.6, target_ap50=0.4), make_run("adapted", "adapt", target_ap50=0.5)]
    page = report.write(runs, tmp_path / "r.html").read_text()
    assert 'id="classes"' not in page
    assert 'id="outcomes"' not in page


def test_a_damaged_diagnosis_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    runs = pair_of_runs(make_run, tmp_path, [found(places(2))], [found(places(4))])
    (runs[2] / "diagnoses" / "target_test.json").write_text('{"data": 1}')
    with pytest.raises(AcclimateError, match=r"target_test\.json: damaged"):
        report.write(runs, tmp_path / "r.html")


def test_small_objects_ask_for_a_larger_input(make_run: MakeRun, tmp_path: Path) -> None:
    after = [found(places(4))]
    small = pair_of_runs(make_run, tmp_path, after, after, image_size=(40, 80))
    content = gather(small)
    told = advice.section(content, pair(content))
    assert any("larger input than 40 x 80" in one.do and "100" in one.because for one in told)
    large = pair_of_runs(make_run, tmp_path / "b", after, after, image_size=(100, 200))
    content = gather(large)
    assert not any("input" in one.do for one in advice.section(content, pair(content)))


def test_what_to_do_next_follows_the_numbers(job: Job, tmp_path: Path) -> None:
    runs, oracle = job(0.52)
    content = gather(runs, oracle=oracle)
    assert any("acclimate ask" in one.do and "7.2 points" in one.because for one in advice.section(content, None))
    close, oracle = job(0.58)
    content = gather(close, oracle=oracle)
    assert not any("acclimate ask" in one.do for one in advice.section(content, None))
    assert "What to do next" in report.write(runs, tmp_path / "r.html", oracle=oracle).read_text()


def test_classes_come_with_direction_and_interval(make_run: MakeRun, tmp_path: Path) -> None:
    runs = pair_of_runs(make_run, tmp_path, [found(places(2))], [found(places(4))])
    content = gather(runs)
    both = pair(content)
    assert both is not None
    rows = {row["name"]: row for row in classwise.classes(content, both)}
    assert rows["car"]["direction"] == "\u25b2"
    assert rows["car"]["boxes"] == 5
    assert rows["car"]["best"].recall == pytest.approx(0.8)
    assert rows["person"]["best"] is None


def test_the_confusion_matrix_groups_rare_classes() -> None:
    names = tuple(f"c{i}" for i in range(20))
    boxes = np.array([(10.0, 10.0, 30.0, 30.0)], np.float32)
    images = tuple(
        LabelledImage(Path(f"{i}.jpg"), 100, 100, Annotations(boxes, np.array([i % 20]), np.zeros(1, bool)))
        for i in range(60)
    )
    told = diagnose(
        [Detections.empty()] * 60,
        LabelledSet("s", "coco", names, images),
        data="d",
        role="target",
        image_size=(100, 100),
    )
    matrix = classwise._matrix(told)
    assert len(matrix["columns"]) == classwise.MATRIX + 2
    assert matrix["columns"][-2:] == ["8 others", "missed"]
    assert sum(cell["count"] for row in matrix["rows"] for cell in row["cells"]) == 60
    assert [row["cells"][-1]["count"] for row in matrix["rows"]] == [3] * 12 + [24, 0]


def test_json_has_what_the_page_shows(make_run: MakeRun, tmp_path: Path) -> None:
    runs = pair_of_runs(make_run, tmp_path, [found(places(2))], [found(places(4))])
    file = tmp_path / "r.json"
    page = tmp_path / "r.html"
    assert main(["report", *map(str, runs), "--out", str(page), "--json", str(file)]) == 0
    assert page.is_file()
    told: dict[str, Any] = read_json(file)
    assert told == json.loads(json.dumps(summary(runs)))
    assert told["boxes"][1] == {"model": "Adapted", "right": 4, "false": 0, "missed": 1}
    assert told["confusion"]["matrix"][0] == [4, 0, 1]
    change = next(
        row["change"]["ap50"] for row in told["accuracy"] if row["kind"] == "adapted" and row["role"] == "target"
    )
    assert change["after"] - change["before"] == pytest.approx(0.1)
    assert change["interval"][0] < 0.1 < change["interval"][1]


def test_a_series_says_what_differs_and_what_came_of_it(make_run: MakeRun, tmp_path: Path, capsys: Any) -> None:
    jobs = []
    for name, ap50, steps in (("a", 0.40, 400), ("b", 0.46, 800), ("c", 0.41, 400)):
        make_run(f"{name}/source", source_ap50=0.6, target_ap50=0.35)
        make_run(f"{name}/adapted", "adapt", target_ap50=ap50, schedule=steps, parents=("source",))
        jobs.append(tmp_path / "runs" / name)
    rows = series.compare(jobs)
    assert [row.settings for row in rows] == [
        {"schedule.steps": "400"},
        {"schedule.steps": "800"},
        {"schedule.steps": "400"},
    ]
    assert rows[0].change is None
    assert rows[1].change is not None
    assert rows[1].change.difference == pytest.approx(0.06)
    assert rows[1].gain is not None
    assert rows[1].gain.difference == pytest.approx(0.11)
    page, file = tmp_path / "s.html", tmp_path / "s.json"
    assert main(["report", "--compare", *map(str, jobs), "--out", str(page), "--json", str(file)]) == 0
    assert "schedule.steps" in page.read_text()
    assert [job["target"]["ap50"] for job in read_json(file)["jobs"]] == [0.40, 0.46, 0.41]
    capsys.readouterr()
    assert main(["report", "--compare", str(jobs[0])]) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert main(["report", "--compare", str(jobs[0]), str(tmp_path)]) == 2
    assert "neither a run folder" in capsys.readouterr().err
