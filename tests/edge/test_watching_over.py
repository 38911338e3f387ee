"""What `watch` looks after besides drift: collapsed counts, regions, several sources, time lines, options in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import watched
from test_watch_page import STATUS, ask, port_of

from acclimate import cli
from acclimate.edge import counts, monitor, timeline
from acclimate.edge import station as stations
from acclimate.edge.counts import Counts
from acclimate.edge.page import Page, View
from acclimate.edge.regions import Regions, polygon
from acclimate.edge.timeline import Timeline
from acclimate.edge.watch import regions_of, sources_of, watch
from acclimate.errors import AcclimateError
from acclimate.structures import Detections


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return watched.export(tmp_path_factory.mktemp("artifacts") / "known")


def states(looked: Counts, found: list[int], fps: float = 5.0, began: float = 0.0) -> list[str]:
    seen = []
    for number, count in enumerate(found):
        looked.update(count, began + number / fps)
        seen.append(looked.state)
    return seen


def poisson(mean: float, frames: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).poisson(mean, frames).tolist()


def test_hardly_anything_on_a_full_motorway_is_never_usual_and_soon_an_alarm() -> None:
    """At any rate of boxes: the 64 frames of the window, and then as long as 100 boxes or a minute would take."""
    for rate, fps in ((3.0, 5.0), (12.0, 30.0), (0.5, 1.0)):
        looked = Counts(rate, 0.2, live=True)
        assert set(states(looked, poisson(rate, 3000), fps)) == {"usual"}
        seen = states(looked, [0] * 4000, fps, 3000 / fps)
        assert "usual" not in seen[counts.WINDOW :]
        alarm = seen.index("collapsed") / fps
        due = max(counts.LEAST_S, max(counts.LEAST_FRAMES, counts.LEAST_BOXES / rate) / fps)
        assert due - counts.WINDOW / fps <= alarm <= due + 1, (rate, alarm)
        assert looked.alarms == 1
        assert states(looked, poisson(rate, 200), fps, 7000 / fps)[-1] == "usual"


def test_from_the_first_frame_on_the_reference_is_what_is_usual() -> None:
    assert "collapsed" in states(Counts(3.0, 0.2), [0] * 200)
    assert set(states(Counts(None, 0.2), [0] * 2500)) == {"unknown"}, "of what nobody knows nothing is said"
    assert set(states(Counts(3.0, 0.0), [0] * 2500)) == {"unknown"}, "switched off"


def test_a_road_that_is_empty_at_times_is_learnt() -> None:
    """Lulls of half a minute are none of its business; one of an hour is told once, and not on the next night."""
    looked = Counts(2.0, 0.2, live=True)
    traffic = [*poisson(2.0, 600), *[0] * 150] * 8
    assert "collapsed" not in states(looked, traffic)
    night = [*[0] * 18000, *poisson(2.0, 2000)]
    first = states(looked, night, began=1e4)
    again = Counts(2.0, 0.2, live=True)
    assert again.take_up(json.dumps(looked.as_json()))
    second = states(again, night, began=1e5)
    assert "collapsed" in first
    assert "collapsed" not in second
    assert not looked.take_up('{"frames": -1}')
    assert not looked.take_up("[" * 5000)


def test_foreign_input_explains_what_is_not_found() -> None:
    looked = Counts(3.0, 0.2)
    states(looked, [0] * 300)
    assert looked.pause()
    assert states(looked, [0] * 60) == ["usual"] * 60


def test_the_state_of_a_stream_whose_detections_are_gone(artifact: Path, tmp_path: Path) -> None:
    """Drift is shown what it is used to, so nothing but counts can tell."""
    video = watched.put_video(tmp_path / "v.avi", [watched.frame(number) for number in range(240)])

    class Blind(stations.Regions):
        def outside(self, detections: Detections, size: tuple[int, int]) -> Detections:
            seen.append(detections)
            return detections[detections.scores < 0.3]

    summary = watch(artifact, str(video), tmp_path / "clear", once=True, page=False)
    assert summary.collapses == 0
    real, seen = stations.answer, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acclimate.edge.watch.Regions", Blind)
        patch.setattr(stations, "answer", lambda found, shown: real(seen[-1], shown))
        summary = watch(artifact, str(video), tmp_path / "blind", once=True, page=False)
    assert (summary.alarms, summary.collapses) == (0, 1)
    (told,) = [line for line in watched.lines(tmp_path / "blind", "events") if line["event"] == "collapsed"]
    assert told["now"] < 0.2 * told["usual"]
    assert counts.LEAST_FRAMES - 1 <= told["frame"] < 200


def test_no_pixel_of_a_region_has_a_say() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    region = Regions([polygon("0.1,0.1 0.5,0.15 0.4,0.6"), polygon("0.8,0.8 1,0.8 1,1 0.8,1")])
    inside = ~np.asarray(region.kept((240, 320)))
    other = one.copy()
    other[inside] = 255 - other[inside]
    assert not np.allclose(monitor.look(one), monitor.look(other), atol=1e-3)
    kept = region.kept(monitor.THUMBNAIL)
    np.testing.assert_array_equal(monitor.look(one, kept), monitor.look(other, kept))
    np.testing.assert_allclose(
        monitor.look(one, np.ones(monitor.THUMBNAIL, bool)), monitor.look(one), rtol=1e-5, atol=1e-6,
        err_msg="where all counts it is the same",
    )  # fmt: skip


def test_a_region_is_drawn_where_its_corners_are() -> None:
    """Against the area of the polygon by the shoelace formula, and OpenCV's own test of points."""
    region = Regions([polygon("0.25,0.25 0.75,0.25 0.75,0.5")])
    assert region.share == pytest.approx(0.5 * 0.5 * 0.25, abs=0.01)
    boxes = np.float32([[200, 60, 220, 80], [0, 0, 20, 20], [110, 100, 130, 110]])
    found = Detections(boxes, np.zeros(3, np.int64), np.float32([0.9, 0.8, 0.7]))
    assert region.outside(found, (240, 320)).scores.tolist() == pytest.approx([0.8, 0.7])
    for wrong in ("", "0,0 1,1", "0,0 1,1 0.5,0.5", "0,0 2,0 1,1", "a,b c,d e,f"):
        with pytest.raises(AcclimateError, match="three corners"):
            polygon(wrong)


def test_sources_and_regions_have_names() -> None:
    assert sources_of("rtsp://cam/a?b=c") == {"": "rtsp://cam/a?b=c"}
    assert sources_of(["gate=0", "yard=rtsp://cam/a?b=c"]) == {"gate": "0", "yard": "rtsp://cam/a?b=c"}
    for wrong in (["0", "1"], ["a=0", "a=1"], ["a="], []):
        with pytest.raises(AcclimateError, match="--source"):
            sources_of(wrong)
    found = regions_of(["0,0 1,0 1,0.1", "gate=0,0 0.1,0 0.1,1"], ["gate", "yard"])
    assert [len(found[name].polygons) for name in ("gate", "yard")] == [2, 1]
    with pytest.raises(AcclimateError, match="no source is called attic"):
        regions_of(["attic=0,0 1,0 1,1"], ["gate"])


def test_several_sources_and_their_regions_from_a_file(artifact: Path, tmp_path: Path) -> None:
    """Each source's lines are those that it would have alone; of the left half of the one nothing is told."""
    for name, numbers in {"gate": range(5), "yard": range(5, 12)}.items():
        watched.put_images(tmp_path / name, numbers)
        watch(artifact, str(tmp_path / name), tmp_path / "alone" / name, once=True, page=False)
    settings = tmp_path / "watch.toml"
    settings.write_text(
        f"artifact = {str(artifact)!r}\nonce = true\npage = false\nout = {str(tmp_path / 'out')!r}\n"
        f"source = ['gate={tmp_path / 'gate'}', 'yard={tmp_path / 'yard'}']\n"
        "leave-out = 'yard=0,0 0.5,0 0.5,1 0,1'\nfile-mb = 2\n"
    )
    assert cli.main(["watch", "--config", str(settings)]) == 0
    gate, yard = (watched.lines(tmp_path / "out" / name) for name in ("gate", "yard"))
    alone = [watched.lines(tmp_path / "alone" / name) for name in ("gate", "yard")]
    assert [line["detections"] for line in gate] == [line["detections"] for line in alone[0]]

    def right(line: dict) -> list:
        return [one for one in line["detections"] if one["box"][0] + one["box"][2] >= watched.SIZE[1]]

    assert [line["detections"] for line in yard] == [right(line) for line in alone[1]]
    assert sum(map(len, (line["detections"] for line in yard))) > 3
    assert all(line["drift"] is None for line in yard), "half a frame is compared with half frames, which are learnt"
    settings.write_text(settings.read_text() + "fsp = 5\n")
    assert cli.main(["watch", "--config", str(settings)]) == 2


def test_the_command_line_comes_before_the_file(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "watch.toml"
    settings.write_text(f"artifact = {str(artifact)!r}\nsource = 'nowhere.jpg'\nonce = true\npage = false\n")
    watched.put_images(tmp_path / "in", range(2))
    more = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert cli.main(["watch", "--config", str(settings), *more]) == 0
    settings.write_text("sorce = '0'\n")
    assert cli.main(["watch", "--config", str(settings), *more]) == 2
    assert "sorce: no such option of acclimate watch" in " ".join(capsys.readouterr().err.split())


def test_a_time_line_is_bounded_and_loses_no_frame() -> None:
    line = Timeline()
    rng = np.random.default_rng(0)
    moments = 1e9 + np.cumsum(rng.exponential(3.0, 20_000))
    boxes = rng.poisson(3, len(moments))
    for moment, count in zip(moments, boxes, strict=True):
        line.add(float(moment), 1.0, int(count), float(count))
    line.mark(float(moments[-1]), "alarm")
    past = line.as_json()
    assert timeline.POINTS / 2 - 2 <= len(past["whole"]) <= timeline.POINTS + 1
    assert len(past["recent"]) <= timeline.RECENT_S / timeline.STEP_S + 1
    times = np.array([point[0] for point in past["whole"]])
    step = np.diff(times).min()
    assert (np.diff(times) >= step - 0.11).all()
    # A histogram over the same steps, by numpy.
    edges = np.append(times - 0.05, moments[-1] + 1)
    mean = np.histogram(moments, edges, weights=boxes)[0] / np.histogram(moments, edges)[0]
    np.testing.assert_allclose([point[2] for point in past["whole"]], mean, atol=0.05)
    assert max(point[3] for point in past["whole"]) == boxes.max()
    assert [what for _, what in past["marks"]] == ["alarm"]
    clock_set_back = Timeline()
    for moment in (100.0, 50.0, 120.0):
        clock_set_back.add(moment, None, 1, 1.0)
    assert len(clock_set_back.as_json()["whole"]) == 2


def test_a_page_of_several_sources_answers_for_each() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    views = {
        name: View(("car",), lambda state=state: {**STATUS, "status": state}, history=lambda name=name: {"of": name})
        for name, state in {"gate": "ok", "yard": "gone"}.items()
    }
    views["gate"].latest = (1, image, Detections.empty())
    with Page(views, "127.0.0.1", 0, None) as page:
        port = port_of(page)
        first, second = ask(port, "/health"), ask(port, "/health?source=yard")
        assert (first[0], second[0]) == (200, 503)
        assert json.loads(first[2])["sources"] == {"gate": "ok", "yard": "gone"}
        assert json.loads(ask(port, "/history?source=yard")[2]) == {"of": "yard"}
        assert ask(port, "/frame.jpg?source=gate")[0] == 200
        assert ask(port, "/frame.jpg?source=yard")[0] == 404
        assert ask(port, "/health?source=attic")[0] == 404


def test_lines_are_the_same_where_stages_overlap(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.put_images(tmp_path / "in", range(12))
    found = []
    for cores in (1, 4):
        monkeypatch.setattr("acclimate.machine.usable_cores", lambda cores=cores: cores)
        watch(artifact, str(tmp_path / "in"), tmp_path / str(cores), once=True, page=False)
        lines = watched.lines(tmp_path / str(cores))
        found.append([{key: value for key, value in line.items() if key != "time"} for line in lines])
    assert found[0] == found[1]
    assert len(found[0]) == 12
