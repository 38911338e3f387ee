"""Detect with an artifact: one image at a time from Python, or whole folders and videos into JSON and pictures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, overload

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rich.console import Console

from acclimate import machine
from acclimate.edge import pipeline, video
from acclimate.edge.artifact import OUTPUTS, Artifact, ArtifactManifest, Running
from acclimate.edge.decode import decode
from acclimate.edge.draw import draw
from acclimate.edge.engines import Network, engine
from acclimate.edge.images import Letterbox, Reading, letterbox, read_image, read_reduced, to_input, turned
from acclimate.edge.listing import images_of, is_image_name
from acclimate.edge.package import Expected, opened
from acclimate.edge.tiles import Piece, cut, together
from acclimate.errors import AcclimateError
from acclimate.progress import counting
from acclimate.run import json_lines, locked, write_text, writing
from acclimate.structures import Detections, Image


class PilImage(Protocol):
    """What is asked of a PIL image; the package itself is not needed."""

    mode: str

    def getexif(self) -> Any: ...

    def convert(self, mode: str) -> Any: ...


Picture: TypeAlias = str | Path | NDArray[Any] | PilImage
"""What a `Predictor` takes for an image."""

_ORIENTATION = 0x0112
"""EXIF's tag of it."""

Lowest: TypeAlias = float | dict[str, float]
"""The lowest score that is reported: of all, or of each class in the artifact's order."""


class Mask(NamedTuple):
    """Which pixels of a picture belong to an object.

    Attributes:
        pixels: (H, W) bool.
        run_lengths: the same as COCO writes it, `size` and `counts`.
    """

    pixels: NDArray[np.bool_]
    run_lengths: dict[str, Any]


RESULTS = "detections.json"
AS_IT_SAYS = Running()
PROGRESS = "detections.jsonl"


class Predictor:
    """An artifact ready to run: image in, detections out.

    Examples:
        >>> from pathlib import Path
        >>> from acclimate import Predictor
        >>> predictor = Predictor.load(Path("runs/adapted/artifacts/onnx-int8"))
        >>> found = predictor("scenes/fog-test/images/000000.jpg").above(0.35)
        >>> names = [predictor.manifest.classes[label] for label in found.labels]
        >>> found.boxes.shape == (len(names), 4)
        True
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        """Load `artifact` on `threads` threads, and try it on an empty canvas.

        Raises:
            AcclimateError: its runtime is not installed or does not accept the model file, or what the network gives
                is not what the manifest says.
        """
        cores = machine.usable_cores()
        if not 1 <= threads <= cores:
            raise AcclimateError(f"threads: {threads}, but this machine has {cores} cores; choose 1 to {cores}")
        self.artifact, self.threads = artifact, threads
        self.manifest = artifact.manifest
        self._network = self._loaded()
        self._try_out()

    def _loaded(self) -> Network:
        return engine(self.manifest.runtime).load(self.artifact, self.threads)

    def _try_out(self) -> None:
        """Refuse a network that does not fit its manifest now rather than at the first image."""
        manifest, where = self.manifest, self.artifact.folder
        outputs = self.run(np.full((1, 3, *manifest.image_size), manifest.fill, np.float32))
        shapes = ", ".join(str(tuple(np.shape(output))) for output in outputs)
        if len(outputs) != len(OUTPUTS[manifest.decode.kind]) or any(output.dtype.kind != "f" for output in outputs):
            raise AcclimateError(f"{where}: the network's outputs {shapes} are not those of {manifest.decode.kind}")
        channels = len(manifest.classes) + (manifest.decode.kind in {"two-stage", "ssd"})
        if outputs[0].ndim != 3 or outputs[0].shape[0] != 1 or outputs[0].shape[2] != channels:
            raise AcclimateError(
                f"{where}: the network's outputs {shapes} are not for {len(manifest.classes)} classes; "
                "export the artifact again"
            )
        try:
            decode(outputs, manifest.decode, manifest.image_size)
        except AcclimateError as error:
            raise AcclimateError(f"{where}: {error}") from None

    @classmethod
    def load(
        cls, folder: Path, threads: int = 1, expected: Expected = "", *, running: Running = AS_IT_SAYS
    ) -> Predictor:
        """Check the artifact in `folder`, or in the package of that name, and load it.

        Args:
            folder: the artifact's, or the package.
            threads: of the runtime.
            expected: what a package must be.
            running: what is to be otherwise than the artifact says.

        Raises:
            AcclimateError: see `Artifact.open`, `edge.package.unpack` and the class.
        """
        with opened(Path(folder), expected) as found:
            artifact = Artifact.open(found)
            return cls(Artifact(artifact.folder, running.of(artifact.manifest)), threads)

    @overload
    def __call__(self, image: Picture) -> Detections: ...

    @overload
    def __call__(self, image: list[Picture] | tuple[Picture, ...]) -> list[Detections]: ...

    def __call__(self, image: Picture | list[Picture] | tuple[Picture, ...]) -> Detections | list[Detections]:
        """What is in an image: boxes in its pixels, best first, down to the decoding threshold; of a list, one each.

        An image is a file, read as the artifact says, an array (H, W, 3) or (H, W) of uint8, RGB or grey, or a PIL
        image, whose EXIF turn is applied unless the artifact takes stored pixels.

        Raises:
            AcclimateError: it is none of these, or its file cannot be read.
        """
        if isinstance(image, list | tuple):
            return [self(one) for one in image]
        if isinstance(image, str | Path):
            pieces = self.pieces(*self.read(image))
        else:
            pieces = self.pieces(_pixels(image, self.manifest.reading))
        return self.gather(pieces, self.answers(pieces))

    def read(self, path: str | Path) -> tuple[Image, tuple[int, int]]:
        """The picture (H, W, 3) in a file, as the artifact says, and (height, width) of the whole one: a JPEG may be
        decoded at a reduced scale.

        Raises:
            AcclimateError: it cannot be read.
        """
        if self.manifest.reduced and self.manifest.tiles is None:
            return read_reduced(path, self.manifest.image_size, self.manifest.reading)
        image = read_image(path, self.manifest.reading)
        return image, (image.shape[0], image.shape[1])

    def pieces(self, image: Image, full: tuple[int, int] | None = None) -> list[Piece]:
        """What the network sees of a picture (H, W, 3): all of it, or the tiles that it is cut into.

        `full` is (height, width) of the whole picture, where `image` is of a reduced scale.

        Raises:
            AcclimateError: they are too many.
        """
        if full is not None and full != image.shape[:2]:
            canvas, placed = self.prepare(image, full)
            return [Piece(canvas, placed, (0, 0, full[1], full[0]), full)]
        return cut(image, self.manifest.tiles, self.prepare)

    def answers(self, pieces: Sequence[Piece]) -> list[list[NDArray[Any]]]:
        """The network's raw outputs, (1, ...) each, for every piece; see `run`."""
        return [self.run(piece.canvas) for piece in pieces]

    def gather(self, pieces: Sequence[Piece], answers: Sequence[Sequence[NDArray[Any]]]) -> Detections:
        """Detections in the picture's pixels, from the raw outputs (1, ...) of its pieces."""
        found = [self.finish(outputs, piece.placed) for piece, outputs in zip(pieces, answers, strict=True)]
        return together(pieces, found, self.manifest.decode.nms_iou, self.manifest.decode.max_detections)

    def masks(self, pieces: Sequence[Piece], found: Detections) -> list[Mask]:
        """The mask of each detection in a picture's pixels; none at all where only boxes are known, as to an artifact.

        Args:
            pieces: of the picture that it was found in.
            found: in the picture's pixels.
        """
        return []

    def prepare(self, image: Image, full: tuple[int, int] | None = None) -> tuple[NDArray[np.float32], Letterbox]:
        """The network's input (1, 3, H, W) for an image, and how to go back; `full` as of `pieces`."""
        canvas, placed = letterbox(image, self.manifest.image_size, self.manifest.fill, full)
        return to_input(canvas), placed

    def run(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The network's raw outputs, (1, ...) each in the manifest's order, for a canvas (1, 3, H, W) of 0..255.

        Raises:
            AcclimateError: the runtime fails on the artifact.
        """
        try:
            return [np.asarray(output) for output in self._network(images)]
        except AcclimateError:
            raise
        except Exception as error:  # runtimes raise many unrelated types, all about this artifact
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AcclimateError(
                f"{self.artifact.folder}: {self.manifest.runtime} cannot run it ({said[:300]}); export it again"
            ) from None

    def finish(self, outputs: Sequence[NDArray[Any]], placed: Letterbox) -> Detections:
        """Detections in the image's pixels, from raw outputs (1, ...)."""
        return placed.to_image(decode(outputs, self.manifest.decode, self.manifest.image_size)[0])


def _pixels(image: NDArray[Any] | PilImage, reading: Reading) -> Image:
    """(H, W, 3) RGB uint8."""
    if not isinstance(image, np.ndarray) and hasattr(image, "getexif"):
        # What PIL holds is as stored; the tag tells how it is to be seen.
        if image.mode.startswith(("I", "F")):
            raise AcclimateError(f"a PIL image of mode {image.mode!r} has more than 8 bits; give its file instead")
        turn = image.getexif().get(_ORIENTATION, 1) if reading.orientation == "apply" else 1
        pixels = np.asarray(image.convert("RGB"))
        return cast(Image, np.ascontiguousarray(turned(pixels, turn if turn in range(1, 9) else 1)))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise AcclimateError(
            f"an image is a file, a PIL image, or an array (H, W, 3) or (H, W) of uint8, not "
            f"{pixels.dtype} of shape {pixels.shape}"
        )
    return np.ascontiguousarray(np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels)


def predict_folder(
    artifact: Path | Predictor,
    source: Path,
    out: Path,
    *,
    threshold: float | None = None,
    suggested: bool = False,
    pictures: bool = True,
    console: Console | None = None,
) -> Path:
    """Detect in images or a video; write `out/detections.json` and annotated pictures (or an annotated video).

    detections.json holds `format` (1), `artifact` (name, runtime, precision, digest), `classes`, `threshold`,
    `source`, `complete` (false after an interruption), `problems` (a list of `file` and `problem`), and

    - for images `images`: a list of `file`, `width`, `height`, `picture` (relative to `out`), `detections`;
    - for a video `video` (`file`, `width`, `height`, `fps`, `picture`) and `frames`: a list of `frame`, `time_s`,
      `detections`.

    A detection is `box` (xyxy pixels of the original image), `label`, `name` and `score`, and where the predictor gives
    masks `mask` (`size` and `counts`, COCO's run lengths). An image that cannot be read
    becomes a problem and the rest goes on. Interrupted, it keeps what is done (`detections.jsonl`, a line an image);
    called again with the same artifact and threshold it goes on there. A video starts anew.

    Files are read, the network runs and results are written in threads of their own, where there is a core for it; the
    order and the results are the same.

    Args:
        artifact: an artifact's folder, or a package; or what was loaded of it.
        source: an image, a folder (with its subfolders), a .txt list (a path a line, relative to the list), a pattern,
            or a video. What counts as an image is the same for every verb; see `edge.listing`.
        out: the folder to write.
        threshold: lowest score that is reported; None means the artifact's own.
        suggested: take the score of each class that the artifact suggests, and `threshold` for a class without one;
            `threshold` in detections.json is then a score for each class.
        pictures: write annotated pictures, or the annotated video; without, there is no `picture`.
        console: where progress and the summary go.

    Returns:
        The path of detections.json.

    Raises:
        AcclimateError: the artifact cannot be used, `source` has no image, or `out` cannot be written.
    """
    predictor = artifact if isinstance(artifact, Predictor) else Predictor.load(artifact)
    source, out = Path(source), Path(out)
    lowest = _lowest(predictor.manifest, threshold, suggested)
    with locked(out, "predict"):
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        if _is_video(source):
            return _predict_video(predictor, source, out, lowest, pictures, console)
        return _predict_images(predictor, source, out, lowest, pictures, console)


def _lowest(manifest: ArtifactManifest, threshold: float | None, suggested: bool) -> Lowest:
    one = manifest.show_threshold if threshold is None else threshold
    if not suggested:
        return one
    if not manifest.suggested:
        raise AcclimateError(
            f"{manifest.name}: suggests no thresholds; evaluate its run on labelled images of the source (acclimate "
            "evaluate RUN --source SET) and export it again, or give --threshold"
        )
    return {name: manifest.suggested.get(name, one) for name in manifest.classes}


def _by_class(lowest: Lowest) -> float | NDArray[np.float32]:
    return np.array(list(lowest.values()), np.float32) if isinstance(lowest, dict) else lowest


def _predict_images(
    predictor: Predictor, source: Path, out: Path, lowest: Lowest, drawn: bool, console: Console | None
) -> Path:
    listed = images_of(source, without=out / "images")
    paths = listed.paths
    header = _header(predictor, source, lowest)
    pictures: Mapping[Path, str] = _picture_names(paths, source) if drawn else {}
    done = _resume(out / PROGRESS, header)
    kept = {
        key: entry
        for key, entry in done.items()
        if "problem" not in entry
        and entry.get("stamp") == _stamp(Path(key))
        and (not drawn or ("picture" in entry and (out / entry["picture"]).is_file()))
    }
    lines = [json.dumps(header), *(json.dumps(entry) for entry in kept.values())]
    write_text(out / PROGRESS, "".join(line + "\n" for line in lines))
    if kept and console is not None:
        console.print(f"{len(kept)} of {len(paths)} images are done already")
    complete = False
    try:
        coming = pipeline.in_stages(
            (path for path in paths if str(path) not in kept),
            [partial(_read, predictor), partial(_compute, predictor)],
            lambda job: _result(predictor, job, out, pictures, lowest),
            pipeline.ahead(predictor.threads),
        )
        with writing(out), open(out / PROGRESS, "a") as progress, contextlib.closing(coming):
            for entry in _shown(coming, console, len(paths) - len(kept)):
                kept[entry["file"]] = entry
                progress.write(json.dumps(entry) + "\n")
                progress.flush()
        complete = True
    finally:
        entries = [kept[str(path)] for path in paths if str(path) in kept]
        good = [{k: v for k, v in entry.items() if k != "stamp"} for entry in entries if "problem" not in entry]
        problems = [{"file": where, "problem": f"{where}: {what}"} for where, what in listed.problems]
        problems = sorted([*problems, *(e for e in entries if "problem" in e)], key=lambda entry: str(entry["file"]))
        results = {**header, "complete": complete, "images": good, "problems": problems}
        file = write_text(out / RESULTS, json.dumps(results, indent=1) + "\n")
        _summarise(console, file, good, "images", problems, complete, len(paths))
    return file


@dataclass(slots=True)
class _Job:
    """A picture on its way through the stages."""

    path: Path
    problem: str = ""
    image: Image | None = None
    full: tuple[int, int] = (0, 0)
    pieces: list[Piece] = field(default_factory=list)
    answers: list[list[NDArray[Any]]] = field(default_factory=list)


def _read(predictor: Predictor, path: Path) -> _Job:
    try:
        image, full = predictor.read(path)
        return _Job(path, "", image, full, predictor.pieces(image, full))
    except AcclimateError as error:
        return _Job(path, str(error))


def _compute(predictor: Predictor, job: _Job) -> _Job:
    job.answers = predictor.answers(job.pieces)
    return job


def _result(predictor: Predictor, job: _Job, out: Path, pictures: Mapping[Path, str], lowest: Lowest) -> dict[str, Any]:
    """The entry of a picture; its annotated one is written, where `pictures` has a name for it."""
    if job.image is None:
        return {"file": str(job.path), "problem": job.problem}
    (height, width), classes = job.full, predictor.manifest.classes
    detections = predictor.gather(job.pieces, job.answers).above(_by_class(lowest))
    masks = predictor.masks(job.pieces, detections)
    entry: dict[str, Any] = {"file": str(job.path), "stamp": _stamp(job.path), "width": width, "height": height}
    if picture := pictures.get(job.path, ""):
        scale = np.array([job.image.shape[1] / width, job.image.shape[0] / height] * 2, np.float32)
        shown = Detections(detections.boxes * scale, detections.labels, detections.scores)
        target = out / picture
        target.parent.mkdir(parents=True, exist_ok=True)
        annotated = draw(job.image, shown, classes, _sized(masks, job.image))
        target.write_bytes(simplejpeg.encode_jpeg(annotated, quality=90, colorspace="RGB"))
        entry["picture"] = picture
    return entry | {"detections": as_json(detections, classes, masks)}


def _sized(masks: Sequence[Mask], image: Image) -> list[NDArray[Any]]:
    """The pixels of masks of a picture, as large as `image`, which may be of a reduced scale."""
    height, width = image.shape[:2]
    return [
        one.pixels
        if one.pixels.shape == (height, width)
        else cv2.resize(one.pixels.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        for one in masks
    ]


def _predict_video(
    predictor: Predictor, source: Path, out: Path, lowest: Lowest, drawn: bool, console: Console | None
) -> Path:
    frames: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    complete = False
    name = f"{source.stem.encode(errors='backslashreplace').decode()}.mp4".replace("\\", "_")
    if drawn and (out / name).exists() and (out / name).samefile(source):
        raise AcclimateError(f"{out / name}: is the source itself; choose another --out")
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(video.Video(source, predictor.manifest.orientation))
        header = _header(predictor, source, lowest)
        facts: dict[str, Any] = {"width": reader.width, "height": reader.height, "fps": reader.fps}
        header["video"] = {"file": str(source), **facts, **({"picture": name} if drawn else {})}
        classes = predictor.manifest.classes
        try:
            size = (reader.height, reader.width)
            sizes = {size}
            writer = stack.enter_context(video.Writer(out / name, reader.fps, size)) if drawn else None
            coming = pipeline.in_stages(
                reader,
                [
                    lambda read: (*read, predictor.pieces(read[1])),
                    lambda job: (*job, predictor.answers(job[2])),
                ],
                lambda job: (*job[:3], predictor.gather(job[2], job[3]).above(_by_class(lowest))),
                pipeline.ahead(predictor.threads),
            )
            with contextlib.closing(coming):
                for time_s, frame, pieces, detections in _shown(coming, console, reader.frames):
                    masks = predictor.masks(pieces, detections)
                    if (height_width := frame.shape[:2]) not in sizes:
                        sizes.add(height_width)
                        told = f"{height_width[1]} x {height_width[0]}"
                        told = f"{source}: from frame {len(frames)} on frames have {told} pixels"
                        problems.append({"file": str(source), "problem": told})
                    if writer is not None:
                        writer.write(draw(frame, detections, classes, _sized(masks, frame)), time_s)
                    found = as_json(detections, classes, masks)
                    frames.append({"frame": len(frames), "time_s": round(time_s, 4), "detections": found})
            if missing := reader.missing():
                problems.append({"file": str(source), "problem": f"{source}: {missing}"})
            complete = True
        finally:
            results = {**header, "complete": complete, "frames": frames, "problems": problems}
            file = write_text(out / RESULTS, json.dumps(results) + "\n")
            _summarise(console, file, frames, "frames", problems, complete, reader.frames)
    return file


def _header(predictor: Predictor, source: Path, lowest: Lowest) -> dict[str, Any]:
    manifest = predictor.manifest
    return {
        "format": 1,
        "artifact": {
            "name": manifest.name,
            "runtime": manifest.runtime,
            "precision": manifest.precision,
            "digest": predictor.artifact.digest,
        },
        "classes": list(manifest.classes),
        "threshold": lowest,
        "source": str(source),
    }


def as_json(detections: Detections, classes: Sequence[str], masks: Sequence[Mask] = ()) -> list[dict[str, Any]]:
    """Detections as all JSON of the device has them: `box` (xyxy pixels), `label`, `name` and `score`; and `mask`,
    where there are `masks`."""
    listed: list[dict[str, Any]] = [
        {
            "box": [round(float(value), 2) for value in box],
            "label": int(label),
            "name": classes[int(label)],
            "score": round(float(score), 4),
        }
        for box, label, score in zip(detections.boxes, detections.labels, detections.scores, strict=True)
    ]
    return [one | {"mask": mask.run_lengths} for one, mask in zip(listed, masks, strict=True)] if masks else listed


def _is_video(source: Path) -> bool:
    """Whether `source` is to be read as a video: any file but a picture, a list, or what is no file."""
    if not source.is_file():
        return False
    return not is_image_name(source.name) and source.suffix.lower() != ".txt"


def _picture_names(paths: Sequence[Path], source: Path) -> dict[Path, str]:
    """images/NAME.jpg for each path, with the folders below `source`; a name taken twice gets a number."""
    base = source if source.is_dir() else source.parent
    taken: set[str] = set()
    names = {}
    for path in paths:
        inside = path.is_relative_to(base) and ".." not in path.relative_to(base).parts
        stem = (path.relative_to(base) if inside else Path(path.name)).with_suffix("").as_posix()
        name, number = f"images/{stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"images/{stem}_{number}.jpg"
        taken.add(name)
        names[path] = name
    return names


def _resume(file: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries that an earlier call with the same header left, by file; a line cut short is left out."""
    lines = json_lines(file)
    if next(lines, None) != header:
        return {}
    return {entry["file"]: entry for entry in lines if isinstance(entry.get("file"), str)}


def _stamp(path: Path) -> list[int]:
    """Changes when the file does."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _shown(items: Iterable[Any], console: Console | None, total: int | None = None) -> Iterator[Any]:
    with counting(console, "detecting", lines=0) as tick:
        for done, item in enumerate(items, 1):
            yield item
            tick(done, max(done, total or 0))


def _summarise(
    console: Console | None,
    file: Path,
    done: Sequence[dict[str, Any]],
    unit: str,
    problems: Sequence[dict[str, str]],
    complete: bool,
    total: int,
) -> None:
    if console is None:
        return
    found = sum(len(entry["detections"]) for entry in done)
    console.print(f"{len(done)} {unit}, {found} detections: {file}", highlight=False)
    for problem in problems[:10]:
        console.print(f"problem: {problem['problem']}", markup=False, highlight=False)
    if len(problems) > 10:
        console.print(f"... and {len(problems) - 10} more problems, all in {file.name}")
    if not complete:
        console.print(f"interrupted after {len(done)} of {total} {unit}; what is done is kept", highlight=False)
