"""Learned zoom: a small branch decides where a large picture is looked at closely, and a dense detector looks there.

Recasens et al. 2018 (Learning to zoom: a saliency at low resolution decides where the large picture is sampled), with
each axis by itself as in Thavamani et al. 2021 (FOVEA), so that boxes stay boxes. Where they use kernels, an axis here
follows the cumulative sum of its saliency: column v of the sampled picture is the place u of the large one with
C(u) = v. That takes in the whole picture, keeps its order, and has an inverse in closed form, by which boxes go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.config import ModelConfig
from acclimate.edge.artifact import Decode
from acclimate.edge.images import DEFAULT, Reading
from acclimate.errors import AcclimateError
from acclimate.models.dense import DenseDetector
from acclimate.models.detector import ClassRows, Detector, DetectorSpec
from acclimate.structures import Annotations

CHANNELS = 16
"""Of the saliency branch."""


class ZoomSpec(DetectorSpec):
    """Of the kind "zoom". `image_size` is that of the large canvas."""

    factor: int
    strength: float
    cells: int

    def as_options(self, config: ModelConfig) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("factor", "strength", "cells")}
        return {"zoom": config.zoom.model_copy(update=own)}


class ZoomDetector(Detector):
    """See the module. Raw outputs: logits (B, A, C) and boxes (B, A, 4) on the large canvas, as `Decode` says.

    What `features` returns ends with the shares (B, 2, 1, cells) of the columns and of the rows, after the levels of
    the pyramid; a method that looks at whole levels is not for this kind.
    """

    kind: ClassVar[str] = "zoom"
    Spec: ClassVar[type[DetectorSpec]] = ZoomSpec
    trains_on_raw: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...]] = ("logits", "boxes")
    losses_known = DenseDetector.losses_known

    spec: ZoomSpec

    def __init__(self, spec: ZoomSpec, weights: Path | Literal["auto", "none"] = "none") -> None:
        """Build from a specification; `weights` starts the backbone.

        Raises:
            AcclimateError: the backbone is unknown, lacks a level, or the weights do not fit.
        """
        super().__init__()
        height, width = spec.image_size
        self.size = height // spec.factor, width // spec.factor
        common = {name: getattr(spec, name) for name in DetectorSpec.model_fields}
        inner = DetectorSpec(**{**common, "kind": "dense", "image_size": self.size})
        self.inner = DenseDetector(inner, weights)
        self.spec = spec.model_copy(update={"start": self.inner.spec.start})
        layers: list[nn.Module] = []
        for before in (3, CHANNELS, CHANNELS):
            layers += [nn.Conv2d(before, CHANNELS, 3, stride=2, padding=1), nn.ReLU()]
        self.saliency = nn.Sequential(*layers, nn.Conv2d(CHANNELS, 2, 1))
        # The first picture is sampled evenly.
        last = self.saliency[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.normal_(last.weight, std=0.01)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    @classmethod
    def specify(cls, config: ModelConfig, classes: Sequence[str], reading: Reading = DEFAULT) -> ZoomSpec:
        own, (height, width) = config.zoom, config.image_size
        stride = own.factor * max(config.strides or (8, 16, 32))
        if height % stride or width % stride:
            raise AcclimateError(
                f"model.image_size: {height} x {width} is not a multiple of {stride}, zoom.factor times the largest "
                "stride"
            )
        common = super().specify(config, classes, reading)
        return ZoomSpec(**common.model_dump(), factor=own.factor, strength=own.strength, cells=own.cells)

    @property
    def backbone(self) -> nn.Module:
        """What methods act on that leave heads alone."""
        return self.inner.backbone

    @property
    def loss_kinds(self) -> Any:
        return self.inner.loss_kinds

    def features(self, images: Tensor) -> list[Tensor]:
        small = F.avg_pool2d(images, self.spec.factor)
        shares = self._shares(small)
        return [*self.inner.features(sample(images, shares, self.size)), shares]

    def _shares(self, small: Tensor) -> Tensor:
        """(B, 2, 1, cells): how much of the sampled picture each column, and each row, of the large one gets; each sums
        to 1."""
        cells = self.spec.cells
        found = self.saliency(small / 255 - 0.5).float()
        # Means over strips are two matrices, which every runtime has, where an adaptive pooling asks for whole cells.
        height, width = found.shape[-2:]
        columns = found[:, 0].mean(1) @ strips(width, cells, found)
        rows = found[:, 1].mean(2) @ strips(height, cells, found)
        salient = torch.stack([columns, rows], 1).softmax(-1)
        return ((1 - self.spec.strength) / cells + self.spec.strength * salient)[:, :, None]

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, A, C) and boxes (B, A, 4), xyxy pixels on the large canvas, of all A locations."""
        logits, distances = self.inner.head(features[:-1])
        return logits, self._outside(self.inner.boxes(distances), features[-1])

    def _outside(self, boxes: Tensor, shares: Tensor) -> Tensor:
        """Boxes (B, N, 4) of the sampled picture on the large canvas; cut at its border."""
        return _mapped(boxes, shares, self.size, self.spec.image_size, unwarp)

    def _inside(self, boxes: Tensor, shares: Tensor) -> Tensor:
        """Boxes (B, N, 4) of the large canvas on the sampled picture."""
        return _mapped(boxes, shares, self.spec.image_size, self.size, warp)

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """The dense detector's, on the sampled picture: the saliency learns through the pixels that are sampled."""
        shares = features[-1].detach()
        placed = []
        for one, own in zip(targets, shares, strict=True):
            boxes = torch.as_tensor(one.boxes, device=own.device)[None]
            inside = self._inside(boxes, own[None])[0].cpu().numpy()
            placed.append(Annotations(inside, one.labels, one.ignore))
        losses = self.inner.losses(features[:-1], placed)
        # Distributed training waits for a gradient of every parameter, and so does one whose objects are nowhere.
        losses["box"] = losses["box"] + 0.0 * features[-1].sum()
        return losses

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        """The losses against what the teacher detects from `threshold` up: the two look at other samples of the
        picture, so their locations do not correspond."""
        found = [one.above(threshold) for one in self.decode(soft)]
        return self.losses(features, [Annotations(one.boxes, one.labels, one.scores < 0) for one in found])

    @torch.no_grad()
    def regions(self, features: Sequence[Tensor], count: int, raw: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """The locations with the best scores, as of the dense detector."""
        inside = torch.stack(self.inner.regions(features[:-1], count))
        return list(self._outside(inside, features[-1]))

    def instances(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """As of the dense detector, where the boxes lie on the sampled picture."""
        shares = features[-1].detach()
        placed = [self._inside(one[None], own[None])[0] for one, own in zip(boxes, shares, strict=True)]
        return self.inner.instances(features[:-1], placed)

    def class_rows(self) -> dict[str, ClassRows]:
        return {f"inner.{name}": rows for name, rows in self.inner.class_rows().items()}

    def decode_options(self) -> Decode:
        return Decode(kind="boxes", suppression=self.spec.suppression)


def strips(length: int, cells: int, like: Tensor) -> Tensor:
    """(L, N): the matrix that takes means of L = `length` elements over N = `cells` strips of equal width."""
    edges = torch.arange(length + 1, device=like.device, dtype=torch.float32) / length * cells
    begin, end = edges[:-1, None], edges[1:, None]
    cell = torch.arange(cells, device=like.device, dtype=torch.float32)
    shared = (torch.minimum(end, cell + 1) - torch.maximum(begin, cell)).clamp(min=0)
    return shared / shared.sum(0)


def warp(place: Tensor, shares: Tensor) -> Tensor:
    """Where places u (B, N) of the large picture, 0..1, lie in the sampled one: C(u), with shares (B, cells)."""
    cells = shares.shape[-1]
    passed = (place[..., None] * cells - torch.arange(cells, device=place.device)).clamp(0, 1)
    return (passed * shares[:, None]).sum(-1)


def unwarp(place: Tensor, shares: Tensor) -> Tensor:
    """Where places v (B, N) of the sampled picture, 0..1, lie in the large one: the inverse of `warp`.

    C is a line within a cell, so its inverse is a sum of ramps, without a search.
    """
    after = shares.cumsum(-1)
    passed = ((place[..., None] - (after - shares)[:, None]) / shares[:, None]).clamp(0, 1)
    return passed.mean(-1)


def sample(images: Tensor, shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) sampled to (B, 3, *size) by the shares (B, 2, 1, cells) of their columns and rows."""
    batch = len(images)
    axes = []
    for axis, length in enumerate((size[1], size[0])):
        centres = (torch.arange(length, device=images.device, dtype=torch.float32) + 0.5) / length
        axes.append(2 * unwarp(centres[None].expand(batch, -1), shares[:, axis, 0]) - 1)
    x, y = axes
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], -1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _mapped(boxes: Tensor, shares: Tensor, before: tuple[int, int], after: tuple[int, int], way: Any) -> Tensor:
    """Boxes (B, N, 4) of a picture of `before` (height, width) on one of `after`, each axis by `warp` or `unwarp`."""
    sides = []
    for axis in range(2):
        # x1, x2 and then y1, y2, as one row of places.
        place = torch.cat([boxes[..., axis], boxes[..., axis + 2]], 1).float() / before[1 - axis]
        first, second = (way(place.clamp(0, 1), shares[:, axis, 0]) * after[1 - axis]).chunk(2, 1)
        sides.append((first, second))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], -1)
