"""The data that travels between the parts. Importing this module needs numpy alone, so the device can.

Boxes are xyxy in pixels everywhere; images are RGB.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from acclimate.errors import AcclimateError

if TYPE_CHECKING:
    from torch import Tensor

Image = NDArray[np.uint8]
"""(H, W, 3), RGB, 0..255."""

Outline = tuple[NDArray[np.float32], ...]
"""The mask of one object: the union of polygons, each (M, 2), x and y in pixels; empty where it is not known."""

LARGEST_SIDE = 8192
"""Pixels of a canvas's longest side."""
LARGEST_CANVAS = 2**24
"""Pixels of the largest canvas; as float32 it takes 200 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: (N, 4) float32, xyxy pixels.
        labels: (N,) int64, indices into the detector's classes.
        scores: (N,) float32 in 0..1, sorted from high to low.

    Examples:
        >>> import numpy as np
        >>> from acclimate import Detections
        >>> boxes = np.float32([[10, 20, 30, 40], [0, 0, 5, 5]])
        >>> found = Detections(boxes, labels=np.array([0, 1]), scores=np.float32([0.75, 0.25]))
        >>> found.above(0.5).to_coco()
        [{'image_id': 0, 'category_id': 1, 'bbox': [10.0, 20.0, 20.0, 20.0], 'score': 0.75}]
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def empty(cls) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: NDArray[Any] | slice) -> Detections:
        return Detections(self.boxes[index], self.labels[index], self.scores[index])

    def above(self, threshold: float | NDArray[np.float32]) -> Detections:
        """The detections with a score of at least `threshold`, or of that of their class where it is an array (K,)."""
        return self[self.scores >= (threshold if isinstance(threshold, int | float) else threshold[self.labels])]

    def to_coco(self, image_id: int = 0, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results: `bbox` is x, y, width, height in pixels.

        `categories` are the ids of the classes, in their order; by default 1, 2, 3, ...
        """
        return [
            {
                "image_id": image_id,
                "category_id": int(label) + 1 if categories is None else categories[int(label)],
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "score": float(score),
            }
            for (x1, y1, x2, y2), label, score in zip(self.boxes, self.labels, self.scores, strict=True)
        ]

    def to_supervision(self, classes: Sequence[str] | None = None) -> Any:
        """`supervision.Detections`; with `classes`, their names are its data's `class_name`.

        Raises:
            AcclimateError: the package `supervision` is not installed.
        """
        data = {} if classes is None else {"class_name": np.array([classes[label] for label in self.labels], str)}
        return _supervision().Detections(
            xyxy=self.boxes.reshape(-1, 4).copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data=data,
        )

    @classmethod
    def from_supervision(cls, detections: Any) -> Detections:
        """From `supervision.Detections`: best first; without a confidence, the score is 1, without a class, 0."""
        count = len(detections.xyxy)
        scores = np.ones(count) if detections.confidence is None else np.asarray(detections.confidence)
        labels = np.zeros(count) if detections.class_id is None else np.asarray(detections.class_id)
        boxes = np.asarray(detections.xyxy, np.float32).reshape(-1, 4)
        found = cls(boxes, labels.astype(np.int64), scores.astype(np.float32))
        return found[np.argsort(-found.scores, kind="stable")]

    def _repr_html_(self) -> str:
        """A table for notebooks, of the best 20."""
        rows = "".join(
            f"<tr><td>{label}</td><td>{score:.2f}</td><td>{', '.join(f'{value:.0f}' for value in box)}</td></tr>"
            for box, label, score in zip(self.boxes[:20], self.labels, self.scores, strict=False)
        )
        more = f"<p>and {len(self) - 20} more</p>" if len(self) > 20 else ""
        heading = "<tr><th>label</th><th>score</th><th>x1, y1, x2, y2</th></tr>"
        return f"<p>{len(self)} detections</p><table>{heading}{rows}</table>{more}"


def _supervision() -> Any:
    try:
        return importlib.import_module("supervision")
    except ModuleNotFoundError:
        raise AcclimateError("to_supervision needs the package supervision: pip install supervision") from None


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """The labels of one image.

    Attributes:
        boxes: (N, 4) float32, xyxy pixels.
        labels: (N,) int64, indices into the data set's classes; -1 where `ignore` holds and the class is unknown.
        ignore: (N,) bool; a detection that matches such a box counts neither for nor against, and no loss is
            taken inside it (COCO's crowd, KITTI's DontCare, VOC's difficult).
        outlines: one for each box; None where nobody asked for masks.
        visible: (N, 4), the part of each box that nothing hides; None where the set does not say.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    outlines: tuple[Outline, ...] | None = None
    visible: NDArray[np.float32] | None = None

    @classmethod
    def empty(cls) -> Annotations:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[Any] | slice) -> Annotations:
        outlines = self.outlines
        if outlines is not None:
            outlines = tuple(outlines[row] for row in np.arange(len(self))[index])
        visible = None if self.visible is None else self.visible[index]
        return Annotations(self.boxes[index], self.labels[index], self.ignore[index], outlines, visible)

    def with_boxes(self, boxes: NDArray[np.float32]) -> Annotations:
        """The same objects with other boxes, (N, 4)."""
        return replace(self, boxes=boxes)

    def moved(self, scale: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)) -> Annotations:
        """Every x and y times its scale plus its shift; a negative scale mirrors, and boxes stay xyxy."""
        boxes = _moved(self.boxes, scale, shift)
        visible = None if self.visible is None else _moved(self.visible, scale, shift)
        outlines = self.outlines
        if outlines is not None:
            factor, offset = np.array(scale, np.float32), np.array(shift, np.float32)
            outlines = tuple(tuple(polygon * factor + offset for polygon in one) for one in outlines)
        return replace(self, boxes=boxes, outlines=outlines, visible=visible)


def _moved(boxes: NDArray[np.float32], scale: tuple[float, float], shift: tuple[float, float]) -> NDArray[np.float32]:
    moved = boxes * np.array([*scale, *scale], np.float32) + np.array([*shift, *shift], np.float32)
    for axis in (0, 1):
        if scale[axis] < 0:
            moved[:, [axis, axis + 2]] = moved[:, [axis + 2, axis]]
    return moved


@dataclass(frozen=True, slots=True)
class View:
    """How the images are looked at: one view of test-time augmentation."""

    scale: float = 1.0
    """Sides of the canvas, relative to the detector's own; other than 1 for a detector of convolutions alone."""
    flip: bool = False
    """Whether the images are mirrored, left to right; boxes are mirrored back."""


@dataclass(slots=True, eq=False)
class Batch:
    """Weak and strong views of the same images; both views of an image share one geometry.

    Attributes:
        weak: (B, 3, H, W) float32, RGB, 0..255 (normalisation is part of the detector).
        strong: the same shape and the same boxes, other pixels.
        targets: the boxes of each image on the network's canvas; None for target images, which have no labels.
        large: the weak view of target images with more pixels, (B, 3, S H, S W), where a teacher asks for it.
        labelled: beside target images, a few others that a person has labelled, where there are any.
        found: what a labeller has found in target images, on the network's canvas, where there is one.
    """

    weak: Tensor
    strong: Tensor
    targets: Sequence[Annotations] | None = None
    large: Tensor | None = None
    labelled: Batch | None = None
    found: Sequence[Detections] | None = None

    def to(self, device: Any) -> Batch:
        weak, strong = self.weak.to(device, non_blocking=True), self.strong.to(device, non_blocking=True)
        large = None if self.large is None else self.large.to(device, non_blocking=True)
        labelled = None if self.labelled is None else self.labelled.to(device)
        return Batch(weak, strong, self.targets, large, labelled, self.found)
