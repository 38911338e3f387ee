"""A detector with weights set by hand that finds coloured squares exactly, and images of such squares.

It stands for a trained network where what surrounds the network is tested: it exports in a second, has what exporters
and quantisers trip over (normalisation, BatchNorm, a layer in the middle, two levels), and its truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from acclimate.data.formats import LabelledImage, LabelledSet
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact, Decode
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.export import exporter
from acclimate.export.base import Precision
from acclimate.models import detector as detectors
from acclimate.models.detector import Detector, DetectorSpec
from acclimate.models.predict import network
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations

RUNTIME = "onnx"
CLASSES = ("red", "blue")
CANVAS = (96, 128)
CELL = 16

SPEC = DetectorSpec(
    kind="squares", classes=CLASSES, image_size=CANVAS, backbone="none", strides=(8, CELL), channels=8, depth=1
)


class SquareDetector(Detector):
    """Finds squares of one cell (16 x 16 pixels of the canvas, aligned to the grid) of pure red or blue."""

    kind = "squares"

    def __init__(self, spec: DetectorSpec = SPEC, weights: Path | str = "none") -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("scale", torch.tensor(255.0), persistent=False)
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.norm = nn.BatchNorm2d(8)
        self.colour = nn.Conv2d(8, 8, 1)
        self.pool = nn.Conv2d(8, 8, 2, stride=2, groups=8)
        self.classify = nn.ModuleList(nn.Conv2d(8, len(spec.classes), 1) for _ in spec.strides)
        self.regress = nn.Conv2d(8, 4, 1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            self.stem.weight[:3] = 0
            for channel in range(3):
                self.stem.weight[channel, channel] = 1 / 64
            self.stem.bias[:3] = 0
            # BatchNorm that does something, and that the layer before it undoes.
            self.norm.weight.fill_(2.0)
            self.norm.running_var.fill_(4.0 - self.norm.eps)
            self.norm.running_mean.fill_(0.25)
            self.norm.bias.fill_(0.25)
            red, green, blue = range(3)
            self.colour.weight[:2] = 0
            self.colour.bias[:2] = 0
            for out, own, others in ((0, red, (green, blue)), (1, blue, (red, green))):
                self.colour.weight[out, own] = 1
                for other in others:
                    self.colour.weight[out, other] = -1
            self.pool.weight.fill_(0.25)
            self.pool.bias.zero_()
            for level, head in enumerate(self.classify):
                head.weight[:, :2] = 12 * torch.eye(2).view(2, 2, 1, 1)
                head.bias.fill_(-30.0 if level == 0 else -6.0)
            self.regress.weight.zero_()
            self.regress.bias.fill_(math.log(math.expm1(0.5)))

    def features(self, images: Tensor) -> list[Tensor]:
        x = torch.relu(self.norm(self.stem(images / self.scale)))
        fine = torch.relu(self.colour(x))
        return [fine, torch.relu(self.pool(fine))]

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logits = [head(level).flatten(2) for head, level in zip(self.classify, features, strict=True)]
        distances = [self.regress(level).flatten(2) for level in features]
        return torch.cat(logits, 2).transpose(1, 2), torch.cat(distances, 2).transpose(1, 2)

    def decode_options(self) -> Decode:
        return Decode(strides=self.spec.strides)

    def losses(self, *arguments: object, **options: object) -> dict[str, Tensor]:
        raise NotImplementedError("it is not trained")

    distillation = losses

    regions = losses

    def instances(self, *arguments: object) -> Tensor:
        raise NotImplementedError("it is not trained")


def scene(seed: int, scale: int = 1, squares: int = 4) -> tuple[np.ndarray, Annotations]:
    """An RGB image of the canvas's aspect with coloured squares on grey noise, and their boxes."""
    rng = np.random.default_rng(seed)
    height, width = CANVAS
    image = np.repeat(rng.integers(90, 160, (height, width, 1), np.uint8), 3, axis=2)
    cells = rng.choice((height // CELL) * (width // CELL), squares, replace=False)
    boxes, labels = [], []
    for cell in cells:
        row, column = divmod(int(cell), width // CELL)
        label = int(rng.integers(0, 2))
        y, x = row * CELL, column * CELL
        image[y : y + CELL, x : x + CELL] = ((255, 0, 0), (0, 0, 255))[label]
        boxes.append([x, y, x + CELL, y + CELL])
        labels.append(label)
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    found = np.array(boxes, np.float32).reshape(-1, 4) * scale
    return image, Annotations(found, np.array(labels, np.int64), np.zeros(len(labels), bool))


def write_scenes(folder: Path, count: int, scale: int = 1) -> LabelledSet:
    """`count` scenes as PNG files, and their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for seed in range(count):
        image, annotations = scene(seed, scale)
        path = folder / f"{seed:03}.png"
        cv2.imwrite(str(path), image[..., ::-1])
        images.append(LabelledImage(path, *image.shape[:2], annotations))
    return LabelledSet(folder.name, "coco", CLASSES, tuple(images))


def exported(root: Path, images: int, *precisions: Precision) -> tuple[Run, LabelledSet]:
    """A finished run of the detector with an artifact in each of `precisions`, and a labelled set."""
    scenes = write_scenes(root / "scenes", images, scale=2)
    run = Run.create(root / "run", Manifest(verb="train"))
    detector = SquareDetector()
    detectors.save(detector, run.path)
    run.finish("done")
    for precision in precisions:
        exporter(RUNTIME).export(detector, run.path / "artifacts" / f"{RUNTIME}-{precision}", precision, scenes.paths)
    return run, scenes


def check_parity(artifact: Artifact, folder: Path) -> None:
    """An fp32 artifact has the detector's outputs on images, and finds the squares; scenes are written to `folder`."""
    reference, run = network(SquareDetector().eval()), engines.engine(artifact.manifest.runtime).load(artifact, 1)
    predictor = Predictor(artifact)
    for labelled in write_scenes(folder, 6).images:
        image = read_image(labelled.path)
        canvas = to_input(letterbox(image, CANVAS)[0])
        for ours, theirs in zip(run(canvas), reference(canvas), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
        found = predictor(image).above(0.5)
        order, expected = (np.lexsort(boxes.T) for boxes in (found.boxes, labelled.annotations.boxes))
        np.testing.assert_allclose(found.boxes[order], labelled.annotations.boxes[expected], atol=0.1)
        np.testing.assert_array_equal(found.labels[order], labelled.annotations.labels[expected])
