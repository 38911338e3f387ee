"""Pointwise convolutions made block-diagonal, up to the order of their channels, so that they export as grouped ones.

Zhang et al. 2020, "Structured Sparsification with Joint Optimization of Group Convolution and Channel Shuffle": the
weights between groups are drawn to 0, and which channels make a group is assigned anew as training goes
(`models/groupable.py`). Here every layer has the same number of groups; the paper's nested costs, which let each layer
find its own, are left out, as a device gains little from groups of a few channels. From `settle` on weights between
groups are 0 and the rest is fine-tuned by whatever terms are beside it.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.adapt.objective import Step, Term
from acclimate.config.methods.groupable import GroupableConfig
from acclimate.errors import AcclimateError
from acclimate.models.groupable import assign, kept, relevance

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector


class Groupable(Term):
    """See the module. The masks of its layers are part of the run's state."""

    name: ClassVar[str] = "groupable"

    done: Tensor
    settled: Tensor

    def __init__(self, options: GroupableConfig, detector: Detector) -> None:
        """Assign the groups of the detector as it is.

        Raises:
            AcclimateError: no pointwise convolution is called so and has channels that fall into so many groups.
        """
        super().__init__()
        self.options = options
        # In a tuple, as these are the detector's parameters and no others.
        self._layers = tuple(_layers(detector, options))
        if not self._layers:
            raise AcclimateError(
                f"adapt.groupable: no pointwise convolution of {' or '.join(options.layers)} has channels that are "
                f"multiples of {options.groups}"
            )
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        for i, (_, layer) in enumerate(self._layers):
            mask = layer.weight.new_zeros(layer.weight.shape[:2])
            self.register_buffer(f"mask{i}", mask)
        self._assign()

    @classmethod
    def create(cls, options: GroupableConfig, detector: Detector, source: LabelledSet) -> Groupable:
        return cls(options, detector)

    def prepare(self, step: Step) -> None:
        # Before anything is computed with the weights that change.
        if not self.settled and step.progress >= self.options.settle:
            self._settle(step.average)

    def forward(self, step: Step) -> dict[str, Tensor]:
        if self.settled:
            return {}
        parts = []
        for mask, (_, layer) in zip(self._masks(), self._layers, strict=True):
            matrix = relevance(layer)
            parts.append((matrix * (1 - mask)).sum() / matrix.detach().sum().clamp_min(1e-12))
        return {"groupable/between": self.options.weight * torch.stack(parts).mean()}

    def after_step(self, detector: Detector) -> None:
        self.done += 1
        if self.settled:
            with torch.no_grad():
                for mask, (_, layer) in zip(self._masks(), self._layers, strict=True):
                    layer.weight.mul_(mask[:, :, None, None])
        elif int(self.done) % self.options.every == 0:
            self._assign()

    def deployed(self) -> dict[str, Tensor]:
        """The layers' weights without those between groups: an optimiser with momentum moves these on."""
        if not self.settled:
            return {}
        pairs = zip(self._masks(), self._layers, strict=True)
        return {f"{name}.weight": layer.weight.detach() * mask[:, :, None, None] for mask, (name, layer) in pairs}

    @torch.no_grad()
    def _settle(self, average: Detector) -> None:
        self._assign()
        self.settled.fill_(True)
        for mask, (name, layer) in zip(self._masks(), self._layers, strict=True):
            for weight in (layer.weight, average.get_parameter(f"{name}.weight")):
                weight.mul_(mask[:, :, None, None])

    @torch.no_grad()
    def _assign(self) -> None:
        for mask, (_, layer) in zip(self._masks(), self._layers, strict=True):
            matrix = relevance(layer).double().cpu().numpy()
            found = assign(matrix, self.options.groups)
            before = float((matrix * mask.cpu().numpy()).sum() / max(matrix.sum(), 1e-12))
            if kept(matrix, found) > before:
                mask.copy_(torch.from_numpy(np.equal.outer(*found)))

    def _masks(self) -> list[Tensor]:
        return [self.get_buffer(f"mask{i}") for i in range(len(self._layers))]


def _layers(detector: nn.Module, options: GroupableConfig) -> list[tuple[str, nn.Conv2d]]:
    return [
        (name, part)
        for name, part in detector.named_modules()
        if isinstance(part, nn.Conv2d)
        and part.groups == 1
        and part.kernel_size == (1, 1)
        and part.in_channels % options.groups == part.out_channels % options.groups == 0
        and part.weight.requires_grad
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in options.layers)
    ]
