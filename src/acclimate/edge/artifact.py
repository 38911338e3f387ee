"""The artifact: a folder with a model file and `artifact.json`, which holds everything needed to run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acclimate.errors import AcclimateError
from acclimate.run import digest, file_digest, read_json

FORMAT = 1
"""The manifest format that this version writes, and the newest it reads."""


class Priors(BaseModel):
    """The default boxes of one level: boxes of all `sizes` at the centre of each of `rows` x `columns` cells."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    columns: int
    step: tuple[float, float]
    """From a centre to the next below it and to its right, in pixels; the first is half of it from the corner."""
    sizes: tuple[tuple[float, float], ...]
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
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "two-stage", "ssd"] = "dense"
    strides: tuple[int, ...] = ()
    priors: tuple[Priors, ...] = ()
    """Of `ssd` alone."""
    score_threshold: float = 0.01
    nms_iou: float = 0.6
    candidates: int = 400
    """Before NMS, the best (location, class) pairs that are looked at."""
    class_candidates: int | None = None
    """Of `ssd` alone: of these, the most of one class; None has no such limit."""
    max_detections: int = 100


FEWEST_IMAGES = 16
"""With fewer images the ranges of activations are a matter of chance."""
LEAST_AGREEMENT = 0.85
"""Below it INT8 has changed the detections: calibrated on the target it is 0.88 and more in
`benchmarks/quantisation.csv`, on noise down to 0.71."""


class Calibration(BaseModel):
    """What a quantised artifact was calibrated on, and what was seen of it; None is what was not looked at."""

    images: int
    digest: str
    """Of the contents of the images."""
    source: str
    empty: int = 0
    """Images that show nothing: one colour, or noise."""
    foreign: int | None = None
    """Images that look unlike the domain of the run: its target, or its source where it has none."""
    agreement: float | None = None
    """How the detections agree with those of fp32 on images of the domain, 0 to 1; None where fp32 shows no box."""
    compared: int = 0
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

    layers: int
    """How many there are with weights."""
    in_fp32: tuple[str, ...]
    """The engine's names of those that stay."""


class Notes(BaseModel):
    """Facts of an artifact that no engine needs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    macs_m: float | None = None
    """Multiply-accumulates of one image, millions: convolutions and matrix products."""
    parameters: int | None = None
    identity: str = ""
    """Digest of what it was exported from: weights, options, contents of the calibration images, `made_with`."""
    made_with: tuple[str, ...] = ()
    """Packages that exported it, with their versions."""


class Sensitivity(BaseModel):
    """How the detections agree with those of fp32 where one layer alone is quantised."""

    layer: str
    agreement: float


class MixedPrecision(BaseModel):
    """Which layers of an INT8 artifact stay in floating point so that it detects what fp32 does.

    Agreement is 0 to 1, on unlabelled images, see `select.score.agreement`.
    """

    tolerance: float
    """The agreement that was asked for."""
    images: int
    before: float
    """With every layer quantised."""
    after: float
    layers: int
    """How many there are to quantise."""
    in_float: tuple[str, ...]
    """Those put back to floating point, the most sensitive first."""
    alone: tuple[Sensitivity, ...] = ()
    """Every layer, the most sensitive first; empty where all could be quantised, which needs no scan."""


class Reference(BaseModel):
    """How frames of the domain that an artifact was made for look to it; `edge.monitor` makes and reads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    images: int
    features: tuple[str, ...]
    """Names of the P features of a frame."""
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    """Standard deviations, with a floor."""
    correlation: tuple[tuple[float, ...], ...]
    """(P, P), shrunk towards the identity."""
    log_distance: tuple[float, float]
    """Mean and standard deviation of the logarithm of the distance of images that were left out."""
    rates: tuple[float, ...] = ()
    """Mean number of boxes of each class an image, from `show_threshold` up."""
    independent: float = 0.0
    """How many independent images tell as much of the mean as these; 0 where that is not known."""


class ArtifactManifest(BaseModel):
    """Written as `artifact.json`.

    The graph's input is `input_name`: (1, 3, H, W) float32, RGB, 0..255; normalisation is part of the graph. An
    image is scaled to fit the canvas with its aspect kept (bilinear when enlarging, area when shrinking), put at
    the top left, and the rest is filled with `fill`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int = FORMAT
    name: str
    runtime: str
    precision: Literal["fp32", "fp16", "int8"]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) of the canvas."""
    fill: int = 114
    input_name: str = "images"
    output_names: tuple[str, ...] = ("logits", "distances")
    decode: Decode
    show_threshold: float = 0.35
    """Score from which `predict` reports a detection unless told otherwise."""
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
            raise AcclimateError(f"{folder}: not an artifact (it has no artifact.json); `acclimate export` makes one")
        values = read_json(file)
        if not isinstance(values, dict):
            raise AcclimateError(f"{file}: not an artifact's manifest; export the artifact again")
        version = values.get("format", FORMAT)
        if isinstance(version, int) and version > FORMAT:
            raise AcclimateError(
                f"{file}: format {version} was written by a newer acclimate ({values.get('version') or 'unknown'}); "
                f"this one reads up to format {FORMAT}: update acclimate on this machine"
            )
        try:
            manifest = ArtifactManifest.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise AcclimateError(f"{file}: {problems}; export the artifact again") from None
        if not manifest.files:
            raise AcclimateError(f"{file}: names no model file; export the artifact again")
        for name, expected in manifest.files.items():
            if Path(name).name != name:
                raise AcclimateError(f"{file}: {name!r} is not a plain file name; export the artifact again")
            if not (folder / name).is_file():
                raise AcclimateError(f"{folder / name}: is missing; copy the whole artifact folder again")
            if file_digest(folder / name) != expected:
                raise AcclimateError(
                    f"{folder / name}: is not the file that was exported (its SHA-256 differs); copy the artifact again"
                )
        return cls(folder, manifest)

    @property
    def size_mb(self) -> float:
        """The artifact's model files, in 10^6 bytes."""
        return sum((self.folder / name).stat().st_size for name in self.manifest.files) / 1e6

    @property
    def digest(self) -> str:
        """Short, and the same for two artifacts that give the same detections."""
        facts = self.manifest.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("name", "source_run", "notes", "reference", "half"), True),
                "calibration": {"empty", "foreign", "agreement", "compared"},
            },
            exclude_defaults=True,
        )
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
