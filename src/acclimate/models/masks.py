"""The mask branch of a two-stage detector: which pixels of a box belong to its object.

He et al., Mask R-CNN, ICCV 2017. As in torchvision, so that its checkpoints load: 14 x 14 bins, four 3x3 convolutions,
a transposed one that doubles the resolution, and a map of 28 x 28 logits for every class (the background's is unused).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from acclimate.models.pooling import pool
from acclimate.models.roi_heads import Sample, Setting
from acclimate.structures import Outline

BINS = 14
CONVOLUTIONS = 4
SIDE = 2 * BINS
"""Cells a side of a mask, which spans its box."""
STAGES = 3
"""Of a hybrid branch, as many as the cascade has."""
SAMPLES = 2
"""Samples a cell and axis of a rasterised outline."""


class MaskHead(nn.Module):
    """A fully convolutional head on the RoI features of the first pyramid."""

    def __init__(self, setting: Setting, norm: Literal["none", "batch"] = "none") -> None:
        """Build with random weights.

        Args:
            setting: of the head beside it.
            norm: of its convolutions.
        """
        super().__init__()
        channels, classes = setting.channels, setting.classes
        self.strides = setting.strides
        self.canonical = setting.canonical
        layers: list[nn.Module] = []
        for _ in range(CONVOLUTIONS):
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU())
        self.convolutions = nn.Sequential(*layers)
        self.enlarge = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.predict = nn.Conv2d(channels, classes + 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor], boxes: Tensor, chosen: Tensor) -> Tensor:
        """Logits of the chosen boxes.

        Args:
            features: (B, C, H_l, W_l) a level, from fine to coarse; those of a second pyramid are not looked at.
            boxes: (B, K, 4) xyxy pixels.
            chosen: (B, K) bool.

        Returns:
            (N, C + 1, SIDE, SIDE) of the N chosen boxes, image by image.
        """
        return self.read(self.convolutions(self.pooled(features, boxes, chosen)))

    def pooled(self, features: Sequence[Tensor], boxes: Tensor, chosen: Tensor) -> Tensor:
        """RoI features (N, C, BINS, BINS) of the chosen boxes."""
        return pool(features[: len(self.strides)], boxes, self.strides, BINS, self.canonical)[chosen]

    def read(self, found: Tensor) -> Tensor:
        """Logits (N, C + 1, SIDE, SIDE) of what the convolutions have found (N, C, BINS, BINS)."""
        logits: Tensor = self.predict(F.relu(self.enlarge(found)))
        return logits

    def losses(
        self, features: Sequence[Tensor], samples: Sequence[Sample], outlines: Sequence[Sequence[Outline]]
    ) -> Tensor:
        """Mean binary cross entropy of the labelled class's mask (He et al., section 3), over the cells of all objects.

        An object whose outline is empty has no part in it; 0 where none has any.

        Args:
            features: (B, C, H_l, W_l) a level, with gradients.
            samples: what is learnt of; of a head's stages the first alone, as more of its boxes are objects than of
                the later ones, which are stricter.
            outlines: of each image's objects, on the canvas.
        """
        found = learnt_of(samples[0], outlines)
        if found is None:
            # Distributed training waits for a gradient of every parameter.
            return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        return cross_entropy(self(features, found.boxes, found.chosen).float(), found)


class HybridMaskHead(nn.Module):
    """A mask branch for each stage of a cascade, on the boxes that leave it, and the way from one to the next.

    Chen et al. 2019 (Hybrid Task Cascade), sections 3.1 and 3.2: interleaved execution and mask information flow; what
    a branch's convolutions have found comes through a 1x1 convolution to the features of the next one. Their semantic
    branch, which learns a class for every pixel, is left out.
    """

    def __init__(self, setting: Setting, norm: Literal["none", "batch"] = "none") -> None:
        """Build with random weights. Arguments as of `MaskHead.__init__`."""
        super().__init__()
        channels = setting.channels
        self.stages = nn.ModuleList(MaskHead(setting, norm) for _ in range(STAGES))
        self.flow = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(STAGES - 1))

    def forward(self, features: Sequence[Tensor], boxes: Tensor, chosen: Tensor) -> Tensor:
        """Logits (N, C + 1, SIDE, SIDE) as of `MaskHead.forward`: of the mean of the stages' probabilities, all on the
        same boxes."""
        chances = [self.stage(number, features, boxes, chosen).float().sigmoid() for number in range(STAGES)]
        return torch.stack(chances).mean(0).logit(eps=1e-6)

    def stage(self, number: int, features: Sequence[Tensor], boxes: Tensor, chosen: Tensor) -> Tensor:
        """Logits (N, C + 1, SIDE, SIDE) of one stage.

        Args:
            number: of the stage, from 0.
            features: as of `MaskHead.forward`.
            boxes: (B, K, 4) xyxy pixels.
            chosen: (B, K) bool.
        """
        heads = [head for head in self.stages if isinstance(head, MaskHead)]
        pooled = heads[0].pooled(features, boxes, chosen)
        found = heads[0].convolutions(pooled)
        for before, head in zip(self.flow[:number], heads[1 : number + 1], strict=True):
            found = head.convolutions(pooled + before(found))
        return heads[number].read(found)

    def losses(
        self, features: Sequence[Tensor], samples: Sequence[Sample], outlines: Sequence[Sequence[Outline]]
    ) -> Tensor:
        """The sum of the stages' losses, a scalar, each of the boxes that leave its stage (`RoiHead.refined`)."""
        total = []
        for number, sample in enumerate(samples):
            found = learnt_of(sample, outlines)
            if found is None:
                # Distributed training waits for a gradient of every parameter.
                total.append(0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum())
                continue
            logits = self.stage(number, features, found.boxes, found.chosen).float()
            total.append(cross_entropy(logits, found))
        return torch.stack(total).sum()


class Learnt(NamedTuple):
    """The objects among some boxes whose outline is known: boxes (B, K, 4), which of them (B, K), their labels (N,),
    and what their masks should be (N, SIDE, SIDE)."""

    boxes: Tensor
    chosen: Tensor
    labels: Tensor
    wanted: Tensor


def learnt_of(sample: Sample, outlines: Sequence[Sequence[Outline]]) -> Learnt | None:
    """What a mask branch learns of sampled boxes and each image's outlines; None where none is known."""
    proposals, labels, _, objects = sample
    known = torch.zeros_like(labels, dtype=torch.bool)
    for image, row in (labels > 0).nonzero().tolist():
        own = outlines[image]
        known[image, row] = bool(own) and bool(own[int(objects[image, row])])
    if not known.any():
        return None
    # The objects of each image before its other boxes, which are then left off.
    order = known.float().topk(int(known.sum(1).max()), 1).indices
    chosen = known.gather(1, order)
    boxes = proposals.gather(1, order[..., None].expand(-1, -1, 4))
    image, _ = chosen.nonzero(as_tuple=True)
    which = objects.gather(1, order)[chosen].tolist()
    targets = [
        rasterise(outlines[i][one], box)
        for i, one, box in zip(image.tolist(), which, boxes[chosen].detach().float().cpu().numpy(), strict=True)
    ]
    return Learnt(boxes, chosen, labels.gather(1, order)[chosen], torch.from_numpy(np.stack(targets)).to(boxes.device))


def cross_entropy(logits: Tensor, found: Learnt) -> Tensor:
    """Mean binary cross entropy of the labelled class's mask, of logits (N, C + 1, SIDE, SIDE)."""
    own_class = logits[torch.arange(len(logits), device=logits.device), found.labels]
    return F.binary_cross_entropy_with_logits(own_class, found.wanted.to(own_class))


def rasterise(outline: Outline, box: NDArray[np.float32], size: int = SIDE) -> NDArray[np.float32]:
    """The share of each cell of a box that an outline covers, by SAMPLES x SAMPLES samples.

    Polygons are filled by the even-odd rule, and together they cover what any of them does, as in COCO.

    Args:
        outline: polygons in pixels.
        box: (4,) xyxy pixels; a side below 1 pixel counts as 1, as in RoIAlign.
        size: cells a side.

    Returns:
        (size, size) in 0..1.
    """
    side = size * SAMPLES
    scale = side / np.maximum(box[2:] - box[:2], 1.0)
    centres = np.arange(side) + 0.5
    covered = np.zeros((side, side), np.bool_)
    for polygon in outline:
        x, y = ((polygon - box[:2]) * scale).T
        next_x, next_y = np.roll(x, -1), np.roll(y, -1)
        # Along each row of samples the polygon is entered and left where an edge crosses the row.
        row, edge = np.nonzero((y <= centres[:, None]) != (next_y <= centres[:, None]))
        part = (centres[row] - y[edge]) / (next_y - y)[edge]
        at = x[edge] + part * (next_x - x)[edge]
        column = np.clip(np.ceil(at - 0.5), 0, side).astype(np.int64)
        crossings = np.bincount(row * (side + 1) + column, minlength=side * (side + 1)).reshape(side, side + 1)
        covered |= (crossings.cumsum(1)[:, :side] % 2).astype(np.bool_)
    return np.asarray(covered.reshape(size, SAMPLES, size, SAMPLES).mean((1, 3)), np.float32)


def paste(masks: NDArray[np.float32], boxes: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
    """Masks on the image: bilinear, from a border of zeros, in boxes rounded to pixels, as torchvision does it.

    Args:
        masks: (N, SIDE, SIDE) probabilities.
        boxes: (N, 4) xyxy pixels.
        image_size: (height, width).

    Returns:
        (N, height, width) probabilities; 0 outside the box. An object is where it is at least 0.5.
    """
    height, width = image_size
    canvas = np.zeros((len(masks), height, width), np.float32)
    growth = (masks.shape[-1] + 2) / masks.shape[-1]
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    grown = np.concatenate([centre - half * growth, centre + half * growth], 1).astype(np.int64)
    padded = F.pad(torch.from_numpy(masks), (1, 1, 1, 1))
    for sheet, mask, (left, top, right, bottom) in zip(canvas, padded, grown.tolist(), strict=True):
        wide, high = max(right - left + 1, 1), max(bottom - top + 1, 1)
        enlarged = F.interpolate(mask[None, None], (high, wide), mode="bilinear", align_corners=False)[0, 0].numpy()
        rows, columns = slice(max(top, 0), min(bottom + 1, height)), slice(max(left, 0), min(right + 1, width))
        sheet[rows, columns] = enlarged[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return canvas
