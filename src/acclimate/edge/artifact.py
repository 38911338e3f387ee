"""The artifact: a folder with a model file and `artifact.json`, which holds everything needed to run it.

An artifact may come from anywhere, so nothing in it is believed: the manifest is covered by a checksum of its own, the
files by the manifest, every number has a range, and those that depend on each other are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from acclimate.boxes import locations
from acclimate.boxes.soft_nms import Suppression
from acclimate.edge.headers import Orientation
from acclimate.edge.images import Reading
from acclimate.errors import AcclimateError
from acclimate.run import digest, file_digest, listed, write_text
from acclimate.structures import LARGEST_CANVAS, LARGEST_SIDE

FORMAT = 2
"""The manifest format that this version writes, and the newest it reads. The first had no checksum of its own."""
LARGEST_MANIFEST = 4 * 2**20
"""Bytes of the largest artifact.json."""
MOST_LOCATIONS = 2**20
"""Locations, or default boxes, of all levels together."""

_PROBLEMS = 5
"""An error names no more problems of a manifest."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BESIDE = re.compile(r"\..*|artifact\.json|verification[^/]*\.json|Thumbs\.db|desktop\.ini")
"""Files that may lie in an artifact's folder without being of it: no runtime reads them."""

_NOT_DECIDING: dict[str, bool | set[str]] = {
    **dict.fromkeys(("name", "source_run", "notes", "reference", "half", "suggested", "format", "sha256"), True),
    "calibration": {"empty", "foreign", "agreement", "compared"},
}
"""Keys of the manifest that no detection depends on."""

Positive = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]


class Priors(BaseModel):
    """The default boxes of one level: boxes of all `sizes` at the centre of each of `rows` x `columns` cells."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rows: int = Field(ge=1, le=LARGEST_SIDE)
    columns: int = Field(ge=1, le=LARGEST_SIDE)
    step: tuple[Positive, Positive]
    """From a centre to the next below it and to its right, in pixels; the first is half of it from the corner."""
    sizes: tuple[tuple[Positive, Positive], ...] = Field(min_length=1, max_length=64)
    """(width, height) in pixels."""


class Decode(BaseModel):
    """How the graph's raw outputs become boxes.

    `dense`: outputs `logits` (1, A, C) and `distances` (1, A, 4), A locations in the order of `strides`, each level row
    by row; score = sigmoid(logit), side distance = stride * softplus(raw) in the order left, top, right, bottom from
    the location's centre ((x + 0.5) * stride, (y + 0.5) * stride).

    `two-stage`: outputs `logits` (1, K, C + 1), `offsets` (1, K, C + 1, 4) and `boxes` (1, K, 4); score = softmax over
    the classes, of which the first is the background and never reported. Each class moves a box of centre x, y and
    size w, h by its own offsets (a, b, c, d) to the centre x + w a / 10, y + h b / 10 and the size w exp(c / 5),
    h exp(d / 5), where no exponent is above log(1000 / 16). A box of no area is padding. `strides` has no meaning.

    `ssd`: outputs `logits` (1, A, C + 1) and `offsets` (1, A, 4), A default boxes in the order of `priors`, each level
    row by row, column by column, size by size; score as of `two-stage`, and the offsets move a default box as there,
    whatever the class. `strides` has no meaning.

    `queries`: outputs `logits` (1, Q, C) and `boxes` (1, Q, 4), a box a query: its centre x, y, width and height, as
    shares of the canvas's width and height; score = sigmoid(logit). The best `max_detections` (query, class) pairs are
    the detections: queries were trained not to repeat one another, so there is no NMS. `strides`, `nms_iou` and
    `candidates` have no meaning.

    `boxes`: outputs `logits` (1, A, C) and `boxes` (1, A, 4), xyxy pixels of the canvas; score = sigmoid(logit).
    `strides` has no meaning.

    `retinanet`: outputs `logits` (1, A, C) and `offsets` (1, A, 4), A default boxes as of `ssd`, but for the first
    centre of a level, which is the corner of the canvas; score = sigmoid(logit), and the offsets (a, b, c, d) move a
    default box to the centre x + w a, y + h b and the size w exp(c), h exp(d), with the limit of `two-stage`.

    `fcos`: outputs `logits` (1, A, C), `distances` (1, A, 4) and `quality` (1, A, 1), A default boxes as of
    `retinanet`; score = sqrt(sigmoid(logit) * sigmoid(quality)), and the distances are those of the box's left, top,
    right and bottom side from the centre of the default box, in its widths and heights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["dense", "two-stage", "ssd", "queries", "boxes", "retinanet", "fcos"] = "dense"
    strides: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(default=(), max_length=16)
    priors: tuple[Priors, ...] = Field(default=(), max_length=32)
    """Of `ssd`, `retinanet` and `fcos`."""
    score_threshold: Share = 0.01
    nms_iou: Share = 0.6
    candidates: int = Field(default=400, ge=1, le=100_000)
    """Before NMS, the best (location, class) pairs that are looked at."""
    class_candidates: int | None = Field(default=None, ge=1, le=100_000)
    """Of `ssd` alone: of these, the most of one class; None has no such limit."""
    level_candidates: int | None = Field(default=None, ge=1, le=100_000)
    """Of `retinanet` and `fcos`: of `candidates`, the most of one level; None has no such limit."""
    max_detections: int = Field(default=100, ge=1, le=10_000)
    suppression: Suppression = "nms"
    """What becomes of a box that overlaps a better one of its class by more than `nms_iou` (`boxes/soft_nms.py`)."""

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was added later is not written where it is not used, so that devices with an earlier version read what
        they can run."""
        values: dict[str, Any] = write(self)
        for name, unused in (("suppression", "nms"), ("level_candidates", None)):
            if name in values and values[name] == unused:
                del values[name]
        return values


FEWEST_IMAGES = 16
"""With fewer images the ranges of activations are a matter of chance."""
LEAST_AGREEMENT = 0.85
"""Below it INT8 has changed the detections: calibrated on the target it is 0.88 and more in
`benchmarks/quantisation.csv`, on noise down to 0.71."""


class Calibration(BaseModel):
    """What a quantised artifact was calibrated on, and what was seen of it; None is what was not looked at."""

    model_config = ConfigDict(allow_inf_nan=False)

    images: int = Field(ge=0)
    digest: str
    """Of the contents of the images."""
    source: str
    empty: int = Field(default=0, ge=0)
    """Images that show nothing: one colour, or noise."""
    foreign: int | None = Field(default=None, ge=0)
    """Images that look unlike the domain of the run: its target, or its source where it has none."""
    agreement: Share | None = None
    """How the detections agree with those of fp32 on images of the domain, 0 to 1; None where fp32 shows no box."""
    compared: int = Field(default=0, ge=0)
    """On how many images."""

    def doubts(self) -> list[str]:
        """What speaks against the calibration, a line each; empty where nothing does."""
        found = []
        if self.images < FEWEST_IMAGES:
            found.append(f"calibrated on {self.images} images; give {FEWEST_IMAGES} or more")
        if 2 * self.empty > self.images:
            found.append(f"{self.empty} of {self.images} calibration images show nothing (one colour, or noise)")
        elif self.foreign is not None and 2 * self.foreign > self.images:
            found.append(
                f"{self.foreign} of {self.images} calibration images look unlike the domain of the run; "
                "calibrate on images of the target"
            )
        if self.agreement is not None and self.agreement < LEAST_AGREEMENT:
            found.append(
                f"the detections of int8 agree with those of fp32 to {self.agreement:.2f} only, on {self.compared} "
                "images; calibrate on other images, or give --tolerance"
            )
        return found


class HalfPrecision(BaseModel):
    """Which layers of an fp16 artifact stay in fp32, as fp16 has no numbers as small, or as large, as their weights."""

    layers: int = Field(ge=0)
    """How many there are with weights."""
    in_fp32: tuple[str, ...]
    """The engine's names of those that stay."""


class Notes(BaseModel):
    """Facts of an artifact that no engine needs."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    macs_m: float | None = Field(default=None, ge=0)
    """Multiply-accumulates of one image, millions: convolutions and matrix products."""
    parameters: int | None = Field(default=None, ge=0)
    identity: str = ""
    """Digest of what it was exported from: weights, options, contents of the calibration images, `made_with`."""
    made_with: tuple[str, ...] = ()
    """Packages that exported it, with their versions."""
    eager_only: tuple[str, ...] = ()
    """What its run's detector finds in PyTorch and no artifact gives: "masks", or nothing."""


class Sensitivity(BaseModel):
    """How the detections agree with those of fp32 where one layer alone is quantised."""

    model_config = ConfigDict(allow_inf_nan=False)

    layer: str
    agreement: float


class MixedPrecision(BaseModel):
    """Which layers of an INT8 artifact stay in floating point so that it detects what fp32 does.

    Agreement is 0 to 1, on unlabelled images, see `select.score.agreement`.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    tolerance: float
    """The agreement that was asked for."""
    images: int = Field(ge=0)
    before: float
    """With every layer quantised."""
    after: float
    layers: int = Field(ge=0)
    """How many there are to quantise."""
    in_float: tuple[str, ...]
    """Those put back to floating point, the most sensitive first."""
    alone: tuple[Sensitivity, ...] = ()
    """Every layer, the most sensitive first; empty where all could be quantised, which needs no scan."""


class Reference(BaseModel):
    """How frames of the domain that an artifact was made for look to it; `edge.monitor` makes and reads it."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    images: int = Field(ge=0)
    features: tuple[str, ...]
    """Names of the P features of a frame."""
    mean: tuple[float, ...]
    spread: tuple[Annotated[float, Field(gt=0)], ...]
    """Standard deviations, with a floor."""
    correlation: tuple[tuple[float, ...], ...]
    """(P, P), shrunk towards the identity."""
    log_distance: tuple[float, float]
    """Mean and standard deviation of the logarithm of the distance of images that were left out."""
    rates: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Mean number of boxes of each class an image, from `show_threshold` up."""
    independent: float = Field(default=0.0, ge=0)
    """How many independent images tell as much of the mean as these; 0 where that is not known."""


class Tiles(BaseModel):
    """How a picture is cut so that small objects are found: the network sees tiles of it one by one, at a larger scale
    than the whole (slicing aided hyper inference: Akyon, Altinuc, Temizel 2022).

    Tiles are evenly spread, so that they cover the picture and neighbours overlap by `overlap` or more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: tuple[Annotated[int, Field(ge=32, le=LARGEST_SIDE)], Annotated[int, Field(ge=32, le=LARGEST_SIDE)]]
    """(height, width) in pixels of the picture."""
    overlap: float = Field(default=0.2, ge=0, le=0.8)
    """Share of a tile's side."""
    whole: bool = True
    """Whether the network sees the whole picture as well, for objects that are larger than a tile."""


Provider = Literal["cpu", "cuda", "tensorrt", "openvino", "qnn", "coreml"]
"""What of ONNX Runtime computes: its execution providers, by their names in small letters."""


@dataclass(frozen=True, slots=True)
class Running:
    """How an artifact is run where it is to be otherwise than its manifest says; None is as that says."""

    tiles: Tiles | None = None
    reduced: bool | None = None
    provider: Provider | None = None

    def of(self, manifest: ArtifactManifest) -> ArtifactManifest:
        """The manifest of an artifact that says so."""
        given = {name: getattr(self, name) for name in ("tiles", "reduced", "provider")}
        return manifest.model_copy(update={name: value for name, value in given.items() if value is not None})


class ArtifactManifest(BaseModel):
    """Written as `artifact.json`, by `write_manifest`.

    The graph's input is `input_name`: (1, 3, H, W) float32, RGB, 0..255; normalisation is part of the graph. An
    image is scaled to fit the canvas with its aspect kept (bilinear when enlarging, area when shrinking), put at
    the top left, and the rest is filled with `fill`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    format: Literal[1, 2] = 1
    """2 where `sha256` is there, which `write_manifest` fills in."""
    name: str = Field(max_length=255)
    runtime: str = Field(max_length=100)
    precision: Literal["fp32", "fp16", "int8"]
    classes: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(min_length=1, max_length=10_000)
    image_size: tuple[Annotated[int, Field(ge=1, le=LARGEST_SIDE)], Annotated[int, Field(ge=1, le=LARGEST_SIDE)]]
    """(height, width) of the canvas."""
    fill: int = Field(default=114, ge=0, le=255)
    orientation: Orientation = "apply"
    """Whether a picture is turned as its EXIF tag says before anything else, or taken as it is stored. Boxes are in
    pixels of the picture that this gives."""
    intensity: tuple[float, float] | None = None
    """What is black and white in pictures of more than 8 bits; None takes each picture's own percentiles."""
    input_name: str = Field(default="images", min_length=1, max_length=200)
    output_names: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ("logits", "distances")
    decode: Decode
    tiles: Tiles | None = None
    """How pictures are cut before the network sees them; None shows it the whole picture alone."""
    reduced: bool = False
    """Whether a JPEG file that is much larger than the canvas is decoded at a reduced scale."""
    provider: Provider = "cpu"
    """Of ONNX Runtime, what computes."""
    show_threshold: Share = 0.35
    """Score from which `predict` reports a detection unless told otherwise."""
    suggested: dict[str, Share] = Field(default_factory=dict)
    """Score from which to show each class: where F1 is highest on labelled images of the source. Empty, or without a
    class, where that was not measured."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name -> SHA-256; checked before loading."""
    calibration: Calibration | None = None
    mixed: MixedPrecision | None = None
    """Of INT8 with a tolerance alone."""
    half: HalfPrecision | None = None
    """Of fp16 alone, where layers had to stay in fp32."""
    reference: Reference | None = None
    """What `watch` compares frames with; None where there were too few images of the domain."""
    source_run: str = ""
    version: str = ""
    notes: Notes = Notes()
    sha256: str = ""
    """Of the rest of the file; see `write_manifest`."""

    @property
    def reading(self) -> Reading:
        """How the pictures that it runs on are read."""
        return Reading(orientation=self.orientation, intensity=self.intensity)


OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "dense": ("logits", "distances"),
    "two-stage": ("logits", "offsets", "boxes"),
    "ssd": ("logits", "offsets"),
    "queries": ("logits", "boxes"),
    "boxes": ("logits", "boxes"),
    "retinanet": ("logits", "offsets"),
    "fcos": ("logits", "distances", "quality"),
}
"""The outputs of each kind of `Decode`, in its order."""

WITH_PRIORS = ("ssd", "retinanet", "fcos")
"""The kinds of `Decode` whose boxes are relative to default ones."""


def _inside(folder: Path) -> list[Path]:
    """Artifacts of a run, or of the runs of a job, at `folder`; or of a folder of artifacts."""
    patterns = ("*/artifact.json", "artifacts/*/artifact.json", "*/artifacts/*/artifact.json")
    return [file.parent for pattern in patterns for file in listed(folder, pattern)]


def write_manifest(folder: Path, manifest: ArtifactManifest) -> ArtifactManifest:
    """Write `artifact.json` into an artifact's folder, with a checksum of all that it says; the manifest as written.

    Raises:
        AcclimateError: see `run.write_text`.
    """
    sealed = manifest.model_copy(update={"format": FORMAT})
    values = sealed.model_dump(mode="json")
    sealed = sealed.model_copy(update={"sha256": _checksum(values)})
    write_text(folder / "artifact.json", _text({**values, "sha256": sealed.sha256}))
    return sealed


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(_text(rest).encode()).hexdigest()


def refuse_newer(file: Path, values: Mapping[str, Any], known: int) -> None:
    """Refuse a manifest whose `format` is above what is `known` here.

    Raises:
        AcclimateError: it is.
    """
    version = values.get("format")
    if isinstance(version, int) and version > known:
        writer = str(values.get("version") or "unknown")[:40]
        raise AcclimateError(
            f"{file}: format {str(version)[:20]} was written by a newer acclimate ({writer}); "
            f"this one reads up to format {known}: update acclimate on this machine"
        )


def _read_manifest(file: Path) -> ArtifactManifest:
    """The manifest in `file`, if it is whole and means something."""
    values = _values(file)
    version = values.get("format")
    refuse_newer(file, values, FORMAT)
    # Without its number a manifest of the second format would pass for one of the first, which has no checksum.
    if type(version) is not int or (version == 1 and values.get("sha256")):
        raise AcclimateError(f"{file}: is not as it was exported (its format is damaged); copy the artifact again")
    try:
        manifest = ArtifactManifest.model_validate(values)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        more = f" and {len(found) - _PROBLEMS} more" if len(found) > _PROBLEMS else ""
        said = " ".join("; ".join(found[:_PROBLEMS]).split())
        raise AcclimateError(f"{file}: {said}{more}; export the artifact again") from None
    if version == FORMAT and manifest.sha256 != _checksum(values):
        raise AcclimateError(f"{file}: is not as it was exported (its SHA-256 differs); copy the artifact again")
    if problem := next(_contradictions(manifest), ""):
        raise AcclimateError(f"{file}: {problem}; export the artifact again")
    return manifest


def _values(file: Path) -> dict[str, Any]:
    """The file's JSON object; of the second format every byte is as `write_manifest` wrote it."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > LARGEST_MANIFEST:
        raise AcclimateError(f"{file}: is larger than any artifact's manifest; export the artifact again")
    try:
        values = json.loads(data.decode(), parse_constant=_no_constant)
    except ValueError as error:
        raise AcclimateError(f"{file}: damaged JSON ({error}); copy the artifact again") from None
    except RecursionError:
        raise AcclimateError(f"{file}: damaged JSON (nested too deep); copy the artifact again") from None
    if not isinstance(values, dict):
        raise AcclimateError(f"{file}: not an artifact's manifest; export the artifact again")
    # The same values may be written in several ways: 1e-05 and 1E-05 differ in one bit.
    if values.get("format") == FORMAT and _text(values).encode(errors="replace") != data:
        raise AcclimateError(f"{file}: is not as it was exported (its text differs); copy the artifact again")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _contradictions(manifest: ArtifactManifest) -> Iterator[str]:
    """What in a manifest cannot be so, where each value by itself is in its range."""
    height, width = manifest.image_size
    options = manifest.decode
    if height * width > LARGEST_CANVAS:
        yield f"image_size: {height} x {width} pixels are more than the {LARGEST_CANVAS} of the largest canvas"
    if len(set(manifest.classes)) < len(manifest.classes):
        yield "classes: one is named twice"
    if unprintable := [name for name in manifest.classes if not name.isprintable()]:
        yield f"classes: {unprintable[0]!r} holds characters that cannot be shown"
    if manifest.output_names != OUTPUTS[options.kind]:
        named = ", ".join(OUTPUTS[options.kind])
        yield f"output_names: those of {options.kind} are {named}, not {', '.join(manifest.output_names)[:100]}"
    if options.kind == "dense":
        if not options.strides or list(options.strides) != sorted(set(options.strides)):
            yield f"decode.strides: {list(options.strides)} do not rise from a first one"
        elif options.strides[-1] > max(height, width):
            yield f"decode.strides: {options.strides[-1]} is more than the canvas of {height} x {width} pixels"
        elif locations.count((height, width), options.strides) > MOST_LOCATIONS:
            yield f"decode.strides: {list(options.strides)} give a canvas of {height} x {width} too many locations"
    if (options.kind in WITH_PRIORS) != bool(options.priors):
        named = ", ".join(WITH_PRIORS)
        yield f"decode.priors: default boxes belong to {named}, and to these alone, not to {options.kind}"
    if options.kind == "fcos" and any(len(level.sizes) > 1 for level in options.priors):
        yield "decode.priors: fcos has one default box a cell"
    if sum(level.rows * level.columns * len(level.sizes) for level in options.priors) > MOST_LOCATIONS:
        yield f"decode.priors: are more than {MOST_LOCATIONS} default boxes"
    if options.class_candidates is not None and options.kind != "ssd":
        yield f"decode.class_candidates: belongs to ssd alone, not to {options.kind}"
    if options.level_candidates is not None and options.kind not in {"retinanet", "fcos"}:
        yield f"decode.level_candidates: belongs to retinanet and fcos, not to {options.kind}"
    if (reference := manifest.reference) is not None:
        count = len(reference.features)
        tables = (reference.mean, reference.spread, reference.correlation, *reference.correlation)
        if any(len(table) != count for table in tables):
            yield f"reference: its tables are not of its {count} features"
        if len(reference.rates) not in {0, len(manifest.classes)}:
            yield f"reference.rates: {len(reference.rates)} rates for {len(manifest.classes)} classes"
        if reference.log_distance[1] <= 0:
            yield "reference.log_distance: a standard deviation is above 0"
    if manifest.provider != "cpu" and manifest.runtime != "onnx":
        yield f"provider: {manifest.provider} belongs to onnx alone, not to {manifest.runtime}"
    if manifest.intensity is not None and manifest.intensity[0] >= manifest.intensity[1]:
        yield "intensity: black is below white"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk. `Artifact.open` checks it; whoever wrote it may construct it directly."""

    folder: Path
    manifest: ArtifactManifest

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """Read the manifest in `folder` and check every file against it.

        Raises:
            AcclimateError: it is no artifact, its manifest is damaged or from a newer version, or a file is missing
                or is not the one that was exported.
        """
        folder = Path(folder)
        file = folder / "artifact.json"
        if not file.is_file():
            inside = _inside(folder)
            if inside:
                few = ", ".join(map(str, inside[:4])) + ("" if len(inside) <= 4 else f" and {len(inside) - 4} more")
                lies = "an artifact lies inside: name it" if len(inside) == 1 else "artifacts lie inside: name one"
                raise AcclimateError(f"{folder}: not an artifact; {lies}, {few}")
            raise AcclimateError(f"{folder}: not an artifact (it has no artifact.json); `acclimate export` makes one")
        manifest = _read_manifest(file)
        if not manifest.files:
            raise AcclimateError(f"{file}: names no model file; export the artifact again")
        for name, expected in manifest.files.items():
            if Path(name).name != name or not name.isprintable() or len(name) > 255 or name == file.name:
                raise AcclimateError(f"{file}: {name[:100]!r} is not a plain file name; export the artifact again")
            if not _SHA256.fullmatch(expected):
                raise AcclimateError(f"{file}: files.{name}: is no SHA-256; export the artifact again")
            if not (folder / name).is_file():
                raise AcclimateError(f"{folder / name}: is missing; copy the whole artifact folder again")
            if file_digest(folder / name) != expected:
                raise AcclimateError(
                    f"{folder / name}: is not the file that was exported (its SHA-256 differs); copy the artifact again"
                )
        # A runtime may read a file beside its model without being told, as OpenVINO does weights.
        for path in sorted(folder.iterdir()):
            if path.name not in manifest.files and not path.is_dir() and not _BESIDE.fullmatch(path.name):
                raise AcclimateError(f"{path}: is not of the artifact that was exported; remove it")
        return cls(folder, manifest)

    @property
    def size_mb(self) -> float:
        """The artifact's model files, in 10^6 bytes."""
        return sum((self.folder / name).stat().st_size for name in self.manifest.files) / 1e6

    @property
    def digest(self) -> str:
        """Short, and the same for two artifacts that give the same detections."""
        facts = self.manifest.model_dump(mode="json", exclude=_NOT_DECIDING, exclude_defaults=True)
        return digest(facts)

    def file(self, suffix: str) -> Path:
        """The one model file whose name ends in `suffix`.

        Raises:
            AcclimateError: there is none.
        """
        name = next((name for name in self.manifest.files if name.endswith(suffix)), None)
        if name is None:
            raise AcclimateError(f"{self.folder}: has no *{suffix} file; export the artifact again")
        return self.folder / name
