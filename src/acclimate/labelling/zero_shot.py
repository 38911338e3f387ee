"""Detectors of `transformers` that know no classes but words, as labellers: a prompt for each class.

Grounding DINO (Liu et al., ECCV 2024), MM Grounding DINO (Zhao et al. 2024), OWLv2 (Minderer et al., NeurIPS 2023),
OmDet-Turbo (Zhao et al. 2024) and SAM 3 (Carion et al. 2025), of which the boxes are taken. Their pre- and
post-processing are the library's own. Grounding DINO's matches words and
not classes: the score of a class is the best of its prompt's words, and every box has one of each class.
SAM 3 is asked for one class after the other, on features that are computed once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acclimate.data.scored import Found
from acclimate.edge.decode import nms
from acclimate.edge.images import DEFAULT, Reading, read_image
from acclimate.errors import AcclimateError
from acclimate.installation import hint
from acclimate.models import transformers as detectors
from acclimate.structures import Detections, Image

FAMILIES = {
    "grounding-dino": "Grounding DINO",
    "mm-grounding-dino": "MM Grounding DINO",
    "owlv2": "OWLv2",
    "omdet-turbo": "OmDet-Turbo",
    "sam3": "SAM 3",
}
"""`model_type` of the library's configurations -> the family."""
LOWEST = 0.05
"""A score below which nothing is written: thresholds are measured above it."""
NMS_IOU = 0.7
"""Of boxes of one class: these models repeat an object that two words or two queries meet."""
MOST = 300
"""Boxes of an image that are written, best first."""


class ZeroShot:
    """A checkpoint with its processor, ready to be asked about images."""

    def __init__(self, checkpoint: str, prompts: Mapping[str, str], device: torch.device | None = None) -> None:
        """Load it; `prompts` are by class, in the order of the labels.

        Raises:
            AcclimateError: `transformers` is not installed, or the checkpoint is of none of `FAMILIES`.
        """
        if importlib.util.find_spec("transformers") is None:
            raise AcclimateError(f"a zero-shot labeller needs the package transformers: {hint('transformers')}")
        library = importlib.import_module("transformers")
        folder = detectors.folder_of(checkpoint, ())
        family = detectors.family_of(folder)
        if family not in FAMILIES:
            raise AcclimateError(
                f"{checkpoint}: its model_type {family!r} is no zero-shot detector that is known: "
                f"{', '.join(FAMILIES.values())}"
            )
        self.classes = tuple(prompts)
        self._prompts = [prompts[name].strip().rstrip(".") for name in self.classes]
        self._family = family
        try:
            with detectors.quiet():
                self._processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
                kind = library.Sam3Model if family == "sam3" else library.AutoModelForZeroShotObjectDetection
                model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except Exception as error:  # the library and its readers raise many unrelated types
            raise AcclimateError(f"{checkpoint}: cannot be loaded ({detectors.reason(error)})") from None
        self._device = device or torch.device("cpu")
        self._model = model.eval().to(self._device)

    @torch.inference_mode()
    def detect(self, image: Image) -> Detections:
        """What it finds in an image (H, W, 3), RGB."""
        # The processors know channels first from channels last, but for images of three rows.
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        size = [image.shape[:2]]
        if self._family == "sam3":
            return _finished(*self._by_class(pixels, size), size[0])
        grounded = "grounding-dino" in self._family
        text: Any = " ".join(f"{prompt}." for prompt in self._prompts) if grounded else [self._prompts]
        inputs = self._processor(images=pixels, text=text, return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        if grounded:
            boxes, scores, labels = self._of_words(output, text, size[0])
        elif self._family == "owlv2":
            found = self._processor.post_process_grounded_object_detection(output, threshold=LOWEST, target_sizes=size)
            boxes, scores, labels = (found[0][key].cpu().numpy() for key in ("boxes", "scores", "labels"))
        else:
            found = self._processor.post_process_grounded_object_detection(
                output, text_labels=[list(map(str, range(len(self.classes))))], threshold=LOWEST,
                nms_threshold=NMS_IOU, target_sizes=size,
            )  # fmt: skip
            boxes, scores = (found[0][key].cpu().numpy() for key in ("boxes", "scores"))
            labels = np.array([int(text) for text in found[0]["text_labels"]], np.int64)
        return _finished(boxes, scores, labels, size[0])

    def _by_class(self, pixels: torch.Tensor, size: list[tuple[int, int]]) -> tuple[Any, Any, Any]:
        """Boxes, scores and labels of SAM 3, whose answer is about one prompt."""
        inputs = self._processor(images=pixels, return_tensors="pt").to(self._device)
        seen = self._model.get_vision_features(inputs.pixel_values)
        parts = []
        for label, prompt in enumerate(self._prompts):
            words = self._processor(text=prompt, return_tensors="pt").to(self._device)
            output = self._model(vision_embeds=seen, **words)
            (found,) = self._processor.post_process_object_detection(output, threshold=LOWEST, target_sizes=size)
            boxes, scores = (found[key].cpu().numpy() for key in ("boxes", "scores"))
            parts.append((boxes, scores, np.full(len(scores), label)))
        boxes, scores, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return boxes, scores, labels

    def _of_words(self, output: Any, text: str, size: tuple[int, int]) -> tuple[Any, Any, Any]:
        """Boxes, scores and labels of Grounding DINO: every box with its score of each class."""
        offsets = self._processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        probabilities = output.logits[0].sigmoid().cpu()
        columns, start = [], 0
        for prompt in self._prompts:
            end = start + len(prompt)
            words = [i for i, (a, b) in enumerate(offsets) if a < b and a >= start and b <= end]
            columns.append(probabilities[:, words].amax(1))
            start = end + len(". ")
        scores = torch.stack(columns, 1)
        where, labels = (scores >= LOWEST).nonzero(as_tuple=True)
        pixels = torch.tensor(size[::-1]).repeat(2)
        boxes = detectors.corners(output.pred_boxes[0].cpu())[where] * pixels
        return boxes.numpy(), scores[where, labels].numpy(), labels.numpy()


def _finished(boxes: Any, scores: Any, labels: Any, size: tuple[int, int]) -> Detections:
    """Cut at the border, best first, without repetitions."""
    height, width = size
    boxes = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), 0, np.array([width, height] * 2, np.float32))
    some = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.isfinite(scores)
    boxes, scores, labels = boxes[some], np.asarray(scores, np.float32)[some], np.asarray(labels, np.int64)[some]
    kept = nms(boxes, scores, labels, NMS_IOU)[:MOST]
    return Detections(boxes[kept], labels[kept], scores[kept])


def label(
    labeller: ZeroShot,
    paths: Sequence[Path],
    reading: Reading = DEFAULT,
    *,
    tick: Callable[[int, int], object] = lambda done, total: None,
    report: Callable[[str], object] = lambda problem: None,
) -> dict[Path, Found]:
    """What it finds in image files; a file that cannot be read is left out.

    Args:
        labeller: what looks.
        paths: the image files.
        reading: how files become pixels.
        tick: told (done, all) after each image.
        report: told of files that cannot be read.
    """
    found = {}
    for done, path in enumerate(paths, 1):
        try:
            image = read_image(path, reading)
        except AcclimateError as error:
            report(str(error))
            continue
        found[path] = Found((image.shape[1], image.shape[0]), labeller.detect(image))
        tick(done, len(paths))
    return found
