from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

import coloured_squares as squares
from acclimate.boxes.iou import pairwise
from acclimate.config import ExportConfig
from acclimate.edge import predict
from acclimate.edge.artifact import Provider, Running, Tiles
from acclimate.edge.bench import Bench
from acclimate.edge.draw import colour, draw, put_text
from acclimate.edge.images import Reading, read_image
from acclimate.edge.predict import Predictor, predict_folder
from acclimate.edge.video import Video, Writer
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.structures import Detections


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "onnx-fp32"
    return exporter("onnx").export(squares.SquareDetector(), folder, "fp32", []).folder


@pytest.fixture
def scenes(tmp_path: Path):
    return squares.write_scenes(tmp_path / "scenes", 5, scale=2)


def found(file: Path) -> dict[str, dict]:
    return {Path(entry["file"]).name: entry for entry in json.loads(file.read_text())["images"]}


def same_boxes(detections: list[dict], annotations) -> None:
    ours = sorted((d["box"], d["label"]) for d in detections)
    truth = sorted((box.tolist(), int(label)) for box, label in zip(annotations.boxes, annotations.labels, strict=True))
    assert [label for _, label in ours] == [label for _, label in truth]
    np.testing.assert_allclose([box for box, _ in ours], [box for box, _ in truth], atol=0.05)


@pytest.mark.parametrize("scale", [1, 2])
def test_predictor_answers_in_image_pixels(artifact: Path, scale: int) -> None:
    predictor = Predictor.load(artifact)
    image, truth = squares.scene(7, scale)
    detections = predictor(image)
    order = np.lexsort(detections.boxes.T)
    expected = np.lexsort(truth.boxes.T)
    np.testing.assert_allclose(detections.boxes[order], truth.boxes[expected], atol=0.01)
    np.testing.assert_array_equal(detections.labels[order], truth.labels[expected])
    assert (detections.scores > 0.99).all()


def test_whatever_holds_an_image_gives_the_same_detections(artifact: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(artifact)
    image, _ = squares.scene(7, 1)
    file = tmp_path / "scene.png"
    pillow = Pillow.fromarray(image)
    pillow.save(file)
    lying = pillow.transpose(Pillow.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    expected = predictor(image)
    assert len(expected)
    given = [file, str(file), image[:, ::-1][:, ::-1], pillow, pillow.convert("RGBA"), lying]
    for found in predictor(given):
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.labels, expected.labels)
    grey = image[..., 1]
    np.testing.assert_array_equal(predictor(grey).boxes, predictor(np.stack([grey] * 3, -1)).boxes)


def test_what_is_no_image_is_one_line(artifact: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(artifact)
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), 7, None):
        with pytest.raises(AcclimateError, match="an image is a file"):
            predictor(wrong)
    with pytest.raises(AcclimateError, match="more than 8 bits"):
        predictor(Pillow.new("I;16", (4, 4)))
    with pytest.raises(AcclimateError, match=r"gone\.png"):
        predictor([tmp_path / "gone.png"])


def test_overlapping_stages_change_nothing(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, results, pictures and the error of a file in between; of a video likewise."""
    squares.write_scenes(tmp_path / "scenes", 9, scale=2)
    (tmp_path / "scenes" / "0035.png").write_bytes(b"no picture")
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for number in range(12):
        writer.write(squares.scene(number, 1)[0][..., ::-1])
    writer.release()
    told = []
    for cores in (1, 4):
        monkeypatch.setattr("acclimate.machine.usable_cores", lambda cores=cores: cores)
        out = tmp_path / str(cores)
        folder = json.loads(predict_folder(artifact, tmp_path / "scenes", out).read_text())
        video = json.loads(predict_folder(artifact, film, out / "film").read_text())
        told.append((folder, video, [path.read_bytes() for path in sorted((out / "images").rglob("*.jpg"))]))
    assert told[0] == told[1]
    folder, video, pictures = told[0]
    assert (len(folder["images"]), len(folder["problems"]), len(video["frames"]), len(pictures)) == (9, 1, 12, 9)
    plain = json.loads(predict_folder(artifact, tmp_path / "scenes", tmp_path / "plain", pictures=False).read_text())
    assert not list((tmp_path / "plain").rglob("*.jpg"))
    without = [{key: value for key, value in entry.items() if key != "picture"} for entry in folder["images"]]
    assert plain["images"] == without


def test_how_it_runs_is_part_of_the_artifact(artifact: Path, tmp_path: Path) -> None:
    """Tiles find what is too small for the whole picture; a reduced JPEG gives boxes of the whole one."""
    image = np.zeros((480, 640, 3), np.uint8)
    small, truth = squares.scene(3, 1)
    image[192 : 192 + small.shape[0], 256 : 256 + small.shape[1]] = small
    tiled = Predictor.load(artifact, running=Running(tiles=Tiles(size=(96, 128), overlap=0.5)))
    shift = np.float32([256, 192, 256, 192])

    def near(found: Detections) -> int:
        overlaps = pairwise(truth.boxes + shift, found.above(0.5).boxes)
        return int((overlaps.max(axis=1, initial=0) > 0.8).sum())

    assert near(tiled(image)) == len(truth.boxes) > near(Predictor.load(artifact)(image))
    assert tiled.artifact.digest != Predictor.load(artifact).artifact.digest
    large, truth = squares.scene(3, 8)
    Pillow.fromarray(large[:-3, :-5]).save(tmp_path / "a.jpg", quality=95)
    reduced = Predictor.load(artifact, running=Running(reduced=True))
    pixels, full = reduced.read(tmp_path / "a.jpg")
    assert full == (large.shape[0] - 3, large.shape[1] - 5)
    assert pixels.shape[0] < full[0] / 4
    ours, whole = reduced(tmp_path / "a.jpg").above(0.5), Predictor.load(artifact)(tmp_path / "a.jpg").above(0.5)
    assert len(ours) == len(whole) > 0
    assert pairwise(ours.boxes, whole.boxes).max(axis=1).min() > 0.95
    with pytest.raises(AcclimateError, match=r"provider cuda: this ONNX Runtime has cpu"):
        Predictor.load(artifact, running=Running(provider="cuda"))
    assert get_args(Provider) == get_args(ExportConfig.model_fields["provider"].annotation)


def test_a_folder_becomes_json_and_pictures(artifact: Path, scenes, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    out = tmp_path / "out"
    file = predict_folder(artifact, tmp_path / "scenes", out, console=console)
    results = json.loads(file.read_text())
    assert results["format"] == 1
    assert results["complete"] is True
    assert results["classes"] == list(squares.CLASSES)
    assert results["threshold"] == 0.35
    assert results["artifact"]["name"] == "onnx-fp32"
    assert results["problems"] == []
    assert [entry["file"] for entry in results["images"]] == [str(path) for path in scenes.paths]
    for image, entry in zip(scenes.images, results["images"], strict=True):
        assert (entry["height"], entry["width"]) == (image.height, image.width)
        same_boxes(entry["detections"], image.annotations)
        assert all(d["name"] == squares.CLASSES[d["label"]] and 0.35 <= d["score"] <= 1 for d in entry["detections"])
        picture = read_image(out / entry["picture"])
        assert picture.shape == (image.height, image.width, 3)
        assert np.abs(picture.astype(int) - read_image(image.path)).max() > 100
    assert "5 images, 20 detections" in console.file.getvalue()  # type: ignore[attr-defined]


def test_one_image_a_list_and_subfolders(artifact: Path, scenes, tmp_path: Path) -> None:
    one = predict_folder(artifact, scenes.paths[0], tmp_path / "one")
    assert list(found(one)) == ["000.png"]
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\nscenes/001.png\n\nscenes/003.png\nscenes/001.png\n")
    assert list(found(predict_folder(artifact, listed, tmp_path / "listed"))) == ["001.png", "003.png"]
    for name in ("a", "b"):
        (tmp_path / "nested" / name).mkdir(parents=True)
        (tmp_path / "nested" / name / "x.png").write_bytes(scenes.paths[0].read_bytes())
    (tmp_path / "nested" / "a" / "x.bmp").write_bytes(scenes.paths[1].read_bytes())
    results = json.loads(predict_folder(artifact, tmp_path / "nested", tmp_path / "nested" / "out").read_text())
    pictures = [entry["picture"] for entry in results["images"]]
    assert pictures == ["images/a/x.jpg", "images/a/x_2.jpg", "images/b/x.jpg"]
    again = json.loads(predict_folder(artifact, tmp_path / "nested", tmp_path / "nested" / "out").read_text())
    assert again == results, "pictures of an earlier call are no input"


def test_the_threshold_is_the_lowest_score(artifact: Path, tmp_path: Path) -> None:
    image, _ = squares.scene(0)
    half = np.where(image == 255, 200, image).astype(np.uint8)  # paler squares: lower scores
    cv2.imwrite(str(tmp_path / "pale.png"), half[..., ::-1])
    low = found(predict_folder(artifact, tmp_path / "pale.png", tmp_path / "low", threshold=0.5))["pale.png"]
    high = found(predict_folder(artifact, tmp_path / "pale.png", tmp_path / "high", threshold=0.99))["pale.png"]
    assert len(low["detections"]) == 4
    assert high["detections"] == []


def test_unreadable_images_are_listed_and_the_rest_goes_on(artifact: Path, scenes, tmp_path: Path) -> None:
    (tmp_path / "scenes" / "002.png").write_bytes(b"\x89PNG cut")
    (tmp_path / "scenes" / "empty.jpg").write_bytes(b"")
    console = Console(file=io.StringIO(), width=300)
    results = json.loads(predict_folder(artifact, tmp_path / "scenes", tmp_path / "out", console=console).read_text())
    assert len(results["images"]) == 4
    assert [Path(p["file"]).name for p in results["problems"]] == ["002.png", "empty.jpg"]
    assert all(p["file"] in p["problem"] for p in results["problems"])
    assert results["complete"] is True
    assert "problem: " in console.file.getvalue()  # type: ignore[attr-defined]


def test_interrupted_and_resumed(artifact: Path, scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "out", []

    def counting(*given):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return draw(*given)

    monkeypatch.setattr(predict, "draw", counting)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(artifact, tmp_path / "scenes", out, console=console)
    partial = json.loads((out / "detections.json").read_text())
    assert partial["complete"] is False
    assert len(partial["images"]) == 2
    assert "interrupted after 2 of 5 images" in console.file.getvalue()  # type: ignore[attr-defined]
    with open(out / "detections.jsonl", "a") as progress:
        progress.write('{"file": "cut sho')

    seen[:] = [0] * 10
    results = json.loads(predict_folder(artifact, tmp_path / "scenes", out).read_text())
    assert len(seen) == 13, "the two that were done are not done again"
    assert results["complete"] is True
    assert results["images"][:2] == partial["images"]
    assert len(results["images"]) == 5

    seen[:] = [0] * 10
    (out / results["images"][4]["picture"]).unlink()
    scenes.paths[0].write_bytes(scenes.paths[1].read_bytes() + b" ")
    predict_folder(artifact, tmp_path / "scenes", out)
    assert len(seen) == 12, "a lost picture and a changed image are done again"
    seen[:] = [0] * 10
    predict_folder(artifact, tmp_path / "scenes", out, threshold=0.1)
    assert len(seen) == 15, "another threshold starts anew"


def test_bad_input_is_one_line(artifact: Path, scenes, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AcclimateError, match="no image found"):
        predict_folder(artifact, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(AcclimateError, match="no such file or folder"):
        predict_folder(artifact, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(AcclimateError, match=r"film\.mp4: not a video"):
        predict_folder(artifact, tmp_path / "film.mp4", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(AcclimateError, match="cannot be written"):
        predict_folder(artifact, scenes.paths[0], tmp_path / "file")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AcclimateError, match="not a text file"):
        predict_folder(artifact, tmp_path / "list.txt", tmp_path / "out")


def write_video(path: Path, frames: int = 8, fps: float = 10.0) -> list:
    truths = []
    height, width = squares.CANVAS
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (2 * width, 2 * height))
    assert writer.isOpened()
    for seed in range(frames):
        image, truth = squares.scene(seed, 2)
        writer.write(np.ascontiguousarray(image[..., ::-1]))
        truths.append(truth)
    writer.release()
    return truths


def test_a_video(artifact: Path, tmp_path: Path) -> None:
    truths = write_video(tmp_path / "film.avi")
    results = json.loads(predict_folder(artifact, tmp_path / "film.avi", tmp_path / "out", threshold=0.5).read_text())
    assert results["complete"] is True
    assert results["problems"] == []
    assert results["video"]["fps"] == pytest.approx(10)
    assert (results["video"]["height"], results["video"]["width"]) == (192, 256)
    assert [entry["frame"] for entry in results["frames"]] == list(range(8))
    assert [entry["time_s"] for entry in results["frames"]] == pytest.approx([i / 10 for i in range(8)], abs=1e-3)
    for entry, truth in zip(results["frames"], truths, strict=True):
        same_boxes(entry["detections"], truth)
    with Video(tmp_path / "out" / results["video"]["picture"]) as annotated:
        frames = [frame for _, frame in annotated]
    assert len(frames) == 8
    assert frames[0].shape == (192, 256, 3)


def test_a_video_that_is_interrupted_keeps_its_frames(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "film.avi")
    calls = []

    def interrupted(image, *_):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr(predict, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(artifact, tmp_path / "film.avi", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert results["complete"] is False
    assert len(results["frames"]) == 3


def test_a_cut_video_is_a_problem(artifact: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "film.avi", frames=20)
    data = (tmp_path / "film.avi").read_bytes()
    (tmp_path / "film.avi").write_bytes(data[: len(data) // 2])
    results = json.loads(predict_folder(artifact, tmp_path / "film.avi", tmp_path / "out").read_text())
    assert 0 < len(results["frames"]) < 20
    assert len(results["problems"]) == 1


def test_drawing_marks_the_box_in_its_class_colour_and_leaves_the_image() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    boxes = np.array([[100, 80, 180, 160], [0, 0, 40, 30]], np.float32)
    detections = Detections(boxes, np.array([1, 0]), np.array([0.9, 0.5], np.float32))
    drawn = draw(image, detections, ("a", "b"))
    assert (image == 128).all()
    assert tuple(drawn[120, 100]) == colour(1)
    assert tuple(drawn[20, 40]) == colour(0)
    assert (drawn[90:150, 110:170] == 128).all()
    assert (drawn[190:, 200:] == 128).all()
    assert len({colour(label) for label in range(40)}) == 40


def test_drawing_survives_boxes_at_the_border_and_tiny_images() -> None:
    boxes = np.array([[0, 0, 8, 8], [-5, -5, 20, 20]], np.float32)
    detections = Detections(boxes, np.array([0, 0]), np.array([0.9, 0.5], np.float32))
    assert draw(np.zeros((8, 8, 3), np.uint8), detections, ("a long name",)).shape == (8, 8, 3)


def run_bench(artifact: Path, paths: list[Path], *options: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'timm'): sys.modules[name] = None\n"
        "import runpy; sys.argv[0] = 'bench'\n"
        "runpy.run_module('acclimate.edge.bench', run_name='__main__', alter_sys=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(artifact), "--runs", "12", "--warmup", "2", *options],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_bench_measures_in_a_process_without_torch(artifact: Path, scenes, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    done = run_bench(artifact, [tmp_path / "broken.png", *scenes.paths])
    assert done.returncode == 0, done.stderr
    measured = Bench.model_validate_json(done.stdout)
    assert (measured.threads, measured.images, measured.runs) == (1, 5, 12)
    assert 0 < measured.median_ms <= measured.p95_ms
    assert measured.parts.keys() == {"prepare", "network", "finish"}
    assert 0 < sum(measured.parts.values()) < 2 * measured.p95_ms
    assert 20 < measured.idle_memory_mb <= measured.peak_memory_mb < 1000
    noise = Bench.model_validate_json(run_bench(artifact, []).stdout)
    assert noise.images == 0


def test_the_bench_says_what_is_wrong(tmp_path: Path) -> None:
    done = run_bench(tmp_path / "nowhere", [])
    assert done.returncode != 0
    assert "not an artifact" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_read_is_what_every_verb_reads(artifact: Path, scenes, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    names = [path.name for path in scenes.paths]
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / names[0]).write_bytes(scenes.paths[0].read_bytes())
    (folder / f"._{names[0]}").write_bytes(b"of a Mac")
    (folder / "broken.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    claim = b"\0\1\x86\xa0"
    (folder / "vast.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + claim * 2 + b"\x08\2\0\0\0")
    scenes.paths[-1].rename(folder / os.fsdecode(b"caf\xe9.png"))
    for _ in range(2):
        results = json.loads(predict_folder(artifact, folder, tmp_path / "out").read_text())
        found = sorted(Path(entry["file"]).name for entry in results["images"])
        assert found == sorted([*names[:-1], os.fsdecode(b"caf\xe9.png")])
        told = {Path(entry["file"]).name: entry["problem"] for entry in results["problems"]}
        assert sorted(told) == ["broken.png", "pipe.png", "vast.png"]
        assert "million" in told["vast.png"]
        assert all("\n" not in problem for problem in told.values())


def test_a_turned_photo_gives_boxes_on_what_is_seen(artifact: Path, scenes, tmp_path: Path) -> None:
    photo = Pillow.open(scenes.paths[0]).convert("RGB")
    exif = Pillow.Exif()
    exif[274] = 6
    photo.transpose(Pillow.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    results = json.loads(predict_folder(artifact, tmp_path / "turned.png", tmp_path / "out", threshold=0.5).read_text())
    (entry,) = results["images"]
    assert (entry["width"], entry["height"]) == photo.size
    same_boxes(entry["detections"], scenes.images[0].annotations)
    spec = squares.SPEC.model_copy(update={"reading": Reading(orientation="stored")})
    stored = exporter("onnx").export(squares.SquareDetector(spec), tmp_path / "stored", "fp32", []).folder
    results = json.loads(predict_folder(stored, tmp_path / "turned.png", tmp_path / "out2").read_text())
    assert (results["images"][0]["width"], results["images"][0]["height"]) == photo.size[::-1]


def turn(file: Path) -> None:
    """Make the first track of an MP4 one that is to be shown turned clockwise (ISO 14496-12, the track's matrix)."""
    data = bytearray(file.read_bytes())
    at = data.find(b"tkhd") + 44
    one = 1 << 16
    assert struct.unpack(">9i", data[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(data)


def test_a_turned_video_is_read_as_it_is_seen(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :16] = 255
    with Writer(tmp_path / "v.mp4", 10, (48, 64)) as writer:
        for number in range(5):
            writer.write(picture, number / 10)
    turn(tmp_path / "v.mp4")
    with Video(tmp_path / "v.mp4") as video:
        frames = [frame for _, frame in video]
        assert (video.height, video.width, len(frames)) == (64, 48, 5)
    assert frames[0][:12, -12:].mean() > 200, "the bright corner is at the upper right"
    with Video(tmp_path / "v.mp4", "stored") as video:
        assert (video.height, video.width) == (48, 64)


def test_an_annotated_video_keeps_the_times_of_its_frames(tmp_path: Path) -> None:
    times = [0, 0.04, 0.08, 0.12, 1.12, 2.12, 2.62]
    with Writer(tmp_path / "v.mp4", 5, (32, 32)) as writer:
        for number, time_s in enumerate(times):
            writer.write(np.full((32, 32, 3), 30 * number + 20, np.uint8), time_s)
    with Video(tmp_path / "v.mp4") as video:
        shown = [(time_s, round((frame.mean() - 20) / 30)) for time_s, frame in video]
    began = [next(time_s for time_s, number in shown if number == wanted) for wanted in range(len(times))]
    np.testing.assert_allclose(began, times, atol=0.05)


def test_frames_of_another_size_are_fitted_in(tmp_path: Path) -> None:
    with Writer(tmp_path / "v.mp4", 10, (32, 64)) as writer:
        writer.write(np.full((32, 64, 3), 200, np.uint8), 0.0)
        writer.write(np.full((64, 64, 3), 200, np.uint8), 0.1)
    with Video(tmp_path / "v.mp4") as video:
        assert [frame.shape for _, frame in video] == [(32, 64, 3)] * 2


def test_a_video_by_a_name_that_is_no_utf8(artifact: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "film.avi")
    film = (tmp_path / "film.avi").rename(tmp_path / os.fsdecode(b"caf\xe9.avi"))
    results = json.loads(predict_folder(artifact, film, tmp_path / "out").read_text())
    assert len(results["frames"]) == 8
    assert (tmp_path / "out" / results["video"]["picture"]).is_file()


def test_text_that_no_font_has_is_drawn_as_question_marks() -> None:
    canvas = np.zeros((40, 200, 3), np.uint8)
    put_text(canvas, os.fsdecode(b"caf\xe9\n"), (2, 20), 0.5, (255, 255, 255))
    expected = np.zeros_like(canvas)
    put_text(expected, "caf??", (2, 20), 0.5, (255, 255, 255))
    assert canvas.any()
    np.testing.assert_array_equal(canvas, expected)


def test_a_video_that_cannot_be_decoded_leaves_nothing_behind(
    artifact: Path, shared_cases: Path, tmp_path: Path
) -> None:
    with pytest.raises(AcclimateError, match=r"codec \(AV1.*convert it"):
        predict_folder(artifact, shared_cases / "edge" / "av1" / "av1.mkv", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_of_a_rate_that_varies(artifact: Path, shared_cases: Path, tmp_path: Path) -> None:
    for name in ("vfr.mkv", "vfr.mp4"):
        file = shared_cases / "edge" / "vfr-mkv" / name
        results = json.loads(predict_folder(artifact, file, tmp_path / name).read_text())
        assert results["problems"] == []
        assert len(results["frames"]) == 20
        with Video(tmp_path / name / results["video"]["picture"]) as video:
            assert [time_s for time_s, _ in video][-1] == pytest.approx(4.9, abs=0.6)
