"""The student's features drawn to those of a frozen encoder, on both domains.

Lavoie, Mahmoud and Waslander 2025 (DINO Teacher, CVPR): an encoder that was trained on a great deal of data gives the
same thing the same vector in either domain. The loss is the cosine distance, place by place, of the student's projected
features of the strong view to the encoder's of the weak one, which has the same geometry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.adapt.objective import Step, Term, View
from acclimate.config import AlignmentConfig
from acclimate.errors import AcclimateError
from acclimate.models.backbones import Backbone, load_weights
from acclimate.models.detector import Detector, device_of, evaluating

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet

STRIDE = 16
"""Of the encoder's features, pixels: a plain transformer's patches, or a level of another backbone."""


class Alignment(Term):
    """See the module. The projection trains with the detector and is left behind; the encoder is in no checkpoint."""

    views: ClassVar[tuple[View, ...]] = ("source_strong", "target_strong")
    needs_target: ClassVar[bool] = False
    name: ClassVar[str] = "alignment"

    def __init__(self, weight: float, encoder: Backbone, level: int, channels: int) -> None:
        """Draw a level of the student's pyramid to an encoder.

        Args:
            weight: of the loss.
            encoder: what is drawn to; frozen.
            level: which level of the pyramid.
            channels: how many that level has.
        """
        super().__init__()
        self.weight = weight
        self.level = level
        self.project = nn.Conv2d(channels, encoder.channels[0], 1)
        # No module of this one, so that a run that goes on loads it again.
        self._encoder = (encoder,)

    @classmethod
    def create(cls, options: AlignmentConfig, detector: Detector, source: LabelledSet) -> Alignment:
        """With the encoder that `options` name.

        Raises:
            AcclimateError: timm knows no such model, its weights cannot be had, or the pyramid has no such level.
        """
        encoder = Backbone(options.encoder, (STRIDE,), "batch", 0)
        load_weights(encoder, options.encoder, options.weights)
        encoder.requires_grad_(False).eval()
        with evaluating(detector):
            size = detector.spec.image_size
            levels = detector.features(torch.zeros(1, 3, *size, device=device_of(detector)))
        strides = [round(size[0] / level.shape[-2]) for level in levels]
        wanted = options.stride or min(strides, key=lambda stride: abs(stride - STRIDE))
        if wanted not in strides:
            raise AcclimateError(
                f"adapt.alignment.stride: the pyramid's levels have the strides {', '.join(map(str, strides))}, "
                f"not {wanted}"
            )
        level = strides.index(wanted)
        return cls(options.weight, encoder, level, levels[level].shape[1])

    def forward(self, step: Step) -> dict[str, Tensor]:
        distances = []
        for view in self.views:
            if view in step.views:
                weak: View = "source_weak" if view == "source_strong" else "target_weak"
                own = self.project(step.features(view)[self.level])
                distances.append(distance(own, self._encoded(step.images(weak))))
        return {"alignment/cosine": self.weight * torch.stack(distances).mean()}

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        (encoder,) = self._encoder
        if device_of(encoder) != images.device:
            encoder.to(images.device)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (encoder.mean, encoder.std))
        encoded: Tensor = encoder((images / 255 - mean) / std)[0]
        return encoded


def distance(own: Tensor, encoded: Tensor) -> Tensor:
    """1 - cosine of features (B, C, H, W) and the encoder's (B, C, h, w), a mean over the places of the former."""
    if own.shape[-2:] != encoded.shape[-2:]:
        encoded = F.interpolate(encoded.float(), size=own.shape[-2:], mode="bilinear", align_corners=False)
    return (1 - F.cosine_similarity(own.float(), encoded.float(), dim=1)).mean()
