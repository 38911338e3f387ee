"""BatchNorm's running statistics, taken anew from unlabelled images.

Li et al. 2016, "Revisiting Batch Normalization for Practical Domain Adaptation" (AdaBN): the statistics are what a
network knows about its domain without any label. Layers that are folded or frozen have none to adapt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from acclimate.data.dataset import plain_images
from acclimate.models.detector import Detector, DetectorSpec, device_of, keeping_modes

IMAGES = 96
"""How many images statistics are taken from: a layer sees thousands of locations in each."""
_BATCH = 8


def recalibrate(detector: Detector, images: Sequence[Path]) -> None:
    """Re-estimate the running statistics of every BatchNorm that trains as the mean over `images`; weights stay.

    Nothing happens to a detector without such layers.

    Args:
        detector: keeps its modes and its place; images are seen as on the device, letterboxed and not augmented.
        images: unlabelled, all of them are used.

    Raises:
        AcclimateError: more than half of the images cannot be read.
    """
    with keeping_modes(detector):
        layers = _layers(detector.train())
        momenta = [layer.momentum for layer in layers]
        detector.eval()
        try:
            for layer in layers:
                layer.train()
                layer.reset_running_stats()
                layer.momentum = None
            if layers:
                device = device_of(detector)
                with torch.no_grad():
                    for batch in _batches(images, detector.spec):
                        detector(batch.to(device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


@contextlib.contextmanager
def unheard(module: nn.Module) -> Iterator[None]:
    """Batches are normalised as ever, and the running statistics of BatchNorm stay what they are."""
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _layers(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats]


def _batches(images: Sequence[Path], spec: DetectorSpec) -> Iterator[torch.Tensor]:
    canvases = []
    for _, canvas, _ in plain_images(images, spec.image_size, spec.reading):
        canvases.append(canvas)
        if len(canvases) == _BATCH:
            yield _tensor(canvases)
            canvases = []
    if canvases:
        yield _tensor(canvases)


def _tensor(canvases: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float()
