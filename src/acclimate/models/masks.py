"""The mask branch of a two-stage detector: which pixels of a box belong to its object.

He et al., Mask R-CNN, ICCV 2017. As in torchvision, so that its checkpoints load: 14 x 14 bins, four 3x3 convolutions,
a transposed one that doubles the resolution, and a map of 28 x 28 logits for every class (the background's is unused).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from acclimate.models.pooling import CANONICAL_SIDE, pool
from acclimate.structures import Outline

BINS = 14
CONVOLUTIONS = 4
SIDE = 2 * BINS
"""Cells a side of a mask, which spans its box."""
SAMPLES = 2
"""Samples a cell and axis of a rasterised outline."""


class MaskHead(nn.Module):
    """A fully convolutional head on the RoI features of the first pyramid."""

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        classes: int,
        norm: Literal["none", "batch"] = "none",
        canonical: float = CANONICAL_SIDE,
    ) -> None:
        """Build with random weights.

        Args:
            channels: of the pyramid's levels.
            strides: of the pyramid's levels, pixels.
            classes: how many, the background not counted.
            norm: of its convolutions.
            canonical: as in `pooling.levels`.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.canonical = canonical
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
        pooled = pool(features[: len(self.strides)], boxes, self.strides, BINS, self.canonical)[chosen]
        logits: Tensor = self.predict(F.relu(self.enlarge(self.convolutions(pooled))))
        return logits

    def loss(
        self,
        features: Sequence[Tensor],
        proposals: Tensor,
        labels: Tensor,
        objects: Tensor,
        outlines: Sequence[Sequence[Outline]],
    ) -> Tensor:
        """Mean binary cross entropy of the labelled class's mask (He et al., section 3), over the cells of all objects.

        An object whose outline is empty has no part in it; 0 where none has any.

        Args:
            features: with gradients.
            proposals: (B, K, 4).
            labels: (B, K), as in `RoiHead.losses`.
            objects: (B, K), which object of its image each proposal answers for.
            outlines: of each image's objects, on the canvas.
        """
        known = torch.zeros_like(labels, dtype=torch.bool)
        for image, row in (labels > 0).nonzero().tolist():
            own = outlines[image]
            known[image, row] = bool(own) and bool(own[int(objects[image, row])])
        if not known.any():
            # Distributed training waits for a gradient of every parameter.
            return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        # The objects of each image before its other boxes, which are then left off.
        order = known.float().topk(int(known.sum(1).max()), 1).indices
        chosen = known.gather(1, order)
        boxes = proposals.gather(1, order[..., None].expand(-1, -1, 4))
        logits = self(features, boxes, chosen).float()
        image, place = chosen.nonzero(as_tuple=True)
        which = objects.gather(1, order)[chosen].tolist()
        targets = [
            rasterise(outlines[i][one], box)
            for i, one, box in zip(image.tolist(), which, boxes[chosen].detach().float().cpu().numpy(), strict=True)
        ]
        label = labels.gather(1, order)[image, place]
        own_class = logits[torch.arange(len(logits), device=logits.device), label]
        wanted = torch.from_numpy(np.stack(targets)).to(own_class)
        return F.binary_cross_entropy_with_logits(own_class, wanted)


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
