"""Options of data: the sets of images, how they are changed, and generated ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from acclimate.config.options import Added, Canvas, Factor, Options
from acclimate.structures import LARGEST_SIDE

FORMATS = (
    "cityscapes", "citypersons", "kitti", "dota", "supervisely", "openimages", "wider", "cvat", "labelstudio", "yolo",
    "voc", "labelme", "coco",
)  # fmt: skip
"""Formats of labelled sets, each a file of `data/formats`; the first one that knows a folder reads it."""

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[("auto", *FORMATS)]


class DataConfig(Options):
    """A labelled data set.

    `orientation` and `intensity` say how its pictures are read (`edge.images.Reading`); a detector keeps those of the
    set that it was trained on, and its artifact takes them along. Where an index gives the pictures' sizes, these tell
    whether boxes lie on pictures as they are seen or as they are stored.
    """

    path: Path
    """The set's folder, or its index file (COCO json, `data.yaml`)."""
    format: Format = "auto"
    """The set's format; `auto` recognises it by its files."""
    split: str | None = None
    """Part of the set, such as `train` or `val`, where it has several."""
    images: Path | None = None
    """Image folder, where it is not beside the labels."""
    fog_level: float | None = Field(default=None, ge=0)
    """Beta of Foggy Cityscapes, such as 0.02."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Renames classes, `"their name" = "our name"`."""
    ignore: tuple[str, ...] = ()
    """Classes whose boxes count neither for nor against."""
    drop: tuple[str, ...] = ()
    """Classes whose boxes are background."""
    full: Annotated[bool, Added(False)] = False
    """For a COCO set whose objects have a `full_bbox` too, as generated scenes do: that is the box, and `bbox` the part
    of it that is visible."""
    orientation: Annotated[Literal["apply", "stored"], Added("apply")] = "apply"
    """Whether an EXIF tag turns a picture, as viewers do (`apply`), or its pixels are taken as they are (`stored`)."""
    intensity: Annotated[tuple[float, float] | Literal["set"] | None, Added(None)] = None
    """Of pictures of more than 8 bits: `[black, white]` in their own units, or `set`, which measures them from the set;
    by default each picture's own percentiles."""

    @field_validator("intensity")
    @classmethod
    def _rising_intensity(
        cls, value: tuple[float, float] | Literal["set"] | None
    ) -> tuple[float, float] | Literal["set"] | None:
        if isinstance(value, tuple) and not value[0] < value[1]:
            raise ValueError("give the value that becomes black, then the larger one that becomes white")
        return value


class AugmentConfig(Options):
    """Random views. Probabilities are per image; `tone` and `invert` bend the grey curve; `style`, `fourier`, `weather`
    and `mask` need a target."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of a left-right flip."""
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Chance of an upside-down flip; for views from above and through microscopes."""
    scale: tuple[Factor, Factor] = (0.6, 1.4)
    """Smallest and largest scale, relative to the whole image on the canvas."""
    translate: float = Field(default=0.1, ge=0, le=0.5)
    """Largest shift, as a fraction of the image."""
    colour: float = Field(default=0.8, ge=0, le=1)
    """Chance of changed brightness, contrast, saturation, hue and white balance."""
    grey: float = Field(default=0.1, ge=0, le=1)
    """Chance of a grey image."""
    blur: float = Field(default=0.2, ge=0, le=1)
    """Chance of a Gaussian blur."""
    noise: float = Field(default=0.2, ge=0, le=1)
    """Chance of sensor-like noise."""
    tone: float = Field(default=0.3, ge=0, le=1)
    """Chance of a random monotone tone curve."""
    invert: float = Field(default=0.0, ge=0, le=1)
    """Chance of an inverted grey scale; for thermal cameras."""
    cutout: float = Field(default=0.3, ge=0, le=1)
    """Chance of one to five erased rectangles."""
    style: float = Field(default=0.5, ge=0, le=1)
    """Adaptation only: chance that a source image takes on the colour statistics of a random target image."""
    fourier: float = Field(default=0.0, ge=0, le=1)
    """Adaptation only: chance that a source image takes on the low frequencies of a random target image (FDA)."""
    fourier_beta: float = Field(default=0.02, ge=0, le=0.5)
    """Largest frequency that `fourier` swaps, in cycles an image as a fraction of its height and width."""
    weather: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Adaptation only: chance that a source image is put under the weather of the target (`data/climate.py`)."""
    mask: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Adaptation only: chance that the strong view of a target image is masked block by block (MIC)."""
    mask_block: Annotated[int, Added(32)] = Field(default=32, ge=1, le=LARGEST_SIDE)
    """Side of the blocks in pixels."""
    mask_ratio: Annotated[float, Added(0.5)] = Field(default=0.5, gt=0, lt=1)
    """Share of the blocks that are hidden."""
    mosaic: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Chance that a labelled image is a mosaic of four (`data/compose.py`)."""
    mixup: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Chance that a labelled image is blended with another, and has the boxes of both."""
    copy_paste: Annotated[float, Added(0.0)] = Field(default=0.0, ge=0, le=1)
    """Chance that objects of another image are put on a labelled one, cut out by their outlines; the source is then a
    COCO set with polygons."""
    balance: Annotated[Literal["none", "classes", "target"], Added("none")] = "none"
    """How often a source image is drawn: all alike (`none`), more often with `classes` that few images show, or, while
    adapting, so that classes come up as often as the detector finds them on the `target`."""

    @property
    def needs_masks(self) -> bool:
        """Whether a view is made by the outlines of objects."""
        return self.copy_paste > 0

    @property
    def looks_at_target(self) -> bool:
        """Whether a source image is changed by what the target looks like."""
        return max(self.style, self.fourier, self.weather) > 0 or self.balance == "target"

    def without_target(self) -> AugmentConfig:
        """These views without anything of the target."""
        balance = "none" if self.balance == "target" else self.balance
        return self.model_copy(update={"style": 0.0, "fourier": 0.0, "weather": 0.0, "mask": 0.0, "balance": balance})

    def without_source(self) -> AugmentConfig:
        """These views without what is done to source images alone, where there are none."""
        return self.model_copy(update={"style": 0.0, "fourier": 0.0, "weather": 0.0, "balance": "none"})

    @field_validator("scale")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"the smaller factor comes first: [{value[1]:g}, {value[0]:g}]")
        return value


FIELD_OF_VIEW = 52.0
"""Of the camera that sees generated scenes: horizontal, degrees."""


class ScenesConfig(Options):
    """Generated data sets, for the demo and for tests: one clear set and one under each named condition."""

    out: Path
    """Folder of the data sets: `clear-train`, `clear-test`, and `CONDITION-train`, `CONDITION-test`."""
    images: int = Field(default=300, ge=1, le=1_000_000)
    """Images of each training set."""
    test_images: int = Field(default=100, ge=1, le=1_000_000)
    """Images of each test set."""
    size: Canvas = (240, 320)
    """Height and width of an image, pixels."""
    condition: Literal["fog", "rain", "night", "camera"] = "fog"
    """What the target is."""
    strength: float = Field(default=1.0, gt=0, le=100)
    """Strength of the condition; 1 is strong."""
    field_of_view: Annotated[float, Added(FIELD_OF_VIEW)] = Field(default=FIELD_OF_VIEW, ge=10, le=110)
    """View of the camera, horizontal, degrees; a narrow one shows fewer and larger objects."""
    full: Annotated[bool, Added(False)] = False
    """Whether boxes are those of whole objects, with the visible part beside, as far as nothing but the image's border
    cuts them."""
