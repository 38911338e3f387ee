"""What an adaptation needs of the labelled source, kept in the run that was trained on it.

Where the source images cannot leave their owner, or are gone, a run and a folder of target images are enough: see
`adapt.source_free`, which measures this.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from acclimate.errors import AcclimateError
from acclimate.run import Run, SetNotes, read_as

FILE = "source_statistics.json"


class Level(BaseModel):
    """One level of the pyramid: mean and variance of each channel, (C,), over the places of the images."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]


class SourceStatistics(BaseModel):
    """What a run keeps of its source. No picture can be made of it again: it holds counts, thresholds and moments.

    Attributes:
        classes: of the source, in the detector's order.
        images: how many there were.
        boxes: how many of each class, ignored ones left out.
        thresholds: score of each class from which a detection is sure, with
        floors, rates, means: of each class, as `adapt.teacher.Known` has them.
        levels: the features' moments, level by level.
    """

    model_config = ConfigDict(extra="ignore")

    classes: tuple[str, ...]
    images: int
    boxes: dict[str, int]
    thresholds: tuple[float, ...]
    floors: tuple[float, ...]
    rates: tuple[float, ...]
    means: tuple[float, ...]
    levels: tuple[Level, ...]

    def boxes_per_image(self) -> list[float]:
        """Of each class."""
        return [count / max(1, self.images) for count in self.boxes.values()]

    def describe(self) -> SetNotes:
        """The source that is not there, for the manifest."""
        boxes = sum(self.boxes.values())
        return SetNotes(name="not there", format="none", images=self.images, boxes=boxes, classes=self.classes)


def kept(run: Run) -> SourceStatistics:
    """What a finished run has kept of its source.

    Raises:
        AcclimateError: nothing, as it is older than this file; or the file is damaged.
    """
    file = run.path / FILE
    if not file.is_file():
        raise AcclimateError(
            f"{run.path}: keeps nothing of its source ({FILE} is not there), so it cannot be adapted without the "
            "source images; train it again where they are, with this version"
        )
    return read_as(SourceStatistics, file, f"train {run.path} again")
