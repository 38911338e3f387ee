"""A plain vision transformer as a backbone: the encoder frozen, behind it a simple feature pyramid.

Li et al. 2022 ("Exploring Plain Vision Transformer Backbones for Object Detection", ECCV, section 3): the last map of
the encoder, whose stride is that of its patches, is made larger by transposed convolutions and smaller by pooling.
Encoders that were trained without labels (DINOv2, Oquab et al. 2023; DINOv3, Simeoni et al. 2025) see much the same in
fog and in sunshine, so they are not trained here: a head on the source alone is what learns.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.errors import AcclimateError

STRIDE = 16
"""Of the encoder's map, in pixels of the canvas; where its patches have another side, it sees the canvas scaled so."""
STRIDES = (4, 8, 16, 32)
"""Of the levels that the pyramid can have."""


class PlainVisionTransformer(nn.Module):
    """See the module. The encoder stays in evaluation mode and gets no gradients.

    Attributes:
        encoder: timm's model.
        channels: of the levels.
    """

    def __init__(self, name: str, strides: tuple[int, ...]) -> None:
        """Build it without weights, for levels of these strides.

        Raises:
            AcclimateError: the pyramid has no such level.
        """
        super().__init__()
        absent = [stride for stride in strides if stride not in STRIDES]
        if absent:
            raise AcclimateError(
                f"model.strides: a pyramid on {name!r} has levels of stride {list(STRIDES)}, not {absent}"
            )
        encoder: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True).requires_grad_(False).eval()
        self.encoder: nn.Module = encoder
        width = int(encoder.num_features)
        self.levels = nn.ModuleList(_level(width, stride) for stride in strides)
        self.channels = tuple(width if stride >= STRIDE else width * stride // STRIDE for stride in strides)
        self._patch = int(encoder.patch_embed.patch_size[0])

    def forward(self, images: Tensor) -> list[Tensor]:
        """The levels (B, C_l, H_l, W_l) of normalised images (B, 3, H, W), from fine to coarse."""
        patches = self.patches(images)
        return [level(patches) for level in self.levels]

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """(B, C, H / 16, W / 16) of images (B, 3, H, W) as the encoder's weights expect them."""
        if self._patch != STRIDE:
            size = [side // STRIDE * self._patch for side in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        encoder: Any = self.encoder
        (last,) = encoder.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        patches: Tensor = last
        return patches

    def train(self, mode: bool = True) -> PlainVisionTransformer:
        super().train(mode)
        self.encoder.eval()
        return self


def _level(width: int, stride: int) -> nn.Module:
    if stride == STRIDE:
        return nn.Identity()
    if stride > STRIDE:
        return nn.MaxPool2d(stride // STRIDE)
    layers: list[nn.Module] = []
    at = STRIDE
    while at > stride:
        if layers:
            layers += [nn.GroupNorm(1, width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width, at = width // 2, at // 2
    return nn.Sequential(*layers)


def is_plain(reductions: list[int]) -> bool:
    """Whether timm's levels of a model, by their strides, are those of a transformer without a pyramid."""
    return len(reductions) > 1 and len(set(reductions)) == 1
