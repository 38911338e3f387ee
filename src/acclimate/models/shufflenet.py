"""ShuffleNet v1, which neither timm nor torchvision has, as a model of timm's: `shufflenet_v1_g3`, `..._g8`, ...

Zhang et al. 2018, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", table 1.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from acclimate.models.blocks import ShuffleUnit

STEM = 24
CHANNELS = {1: (144, 288, 576), 2: (200, 400, 800), 3: (240, 480, 960), 4: (272, 544, 1088), 8: (384, 768, 1536)}
"""Groups -> channels of the three stages."""
UNITS = (4, 8, 4)
"""Of the three stages."""


class ShuffleNet(nn.Module):
    """See the module; timm's `features_only` cuts its levels out."""

    def __init__(self, groups: int = 3, num_classes: int = 1000, in_chans: int = 3, output_stride: int = 32) -> None:
        """Build it without weights.

        Args:
            groups: of the pointwise convolutions.
            num_classes: of the classifier; 0 for none.
            in_chans: channels of an image.
            output_stride: 32; timm asks for others.

        Raises:
            NotImplementedError: an output stride other than 32.
        """
        super().__init__()
        if output_stride != 32:
            raise NotImplementedError("a unit that halves the map concatenates a pooled shortcut")
        self.num_classes = num_classes
        self.conv_stem = nn.Conv2d(in_chans, STEM, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.act1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], STEM
        self.feature_info = [
            {"num_chs": STEM, "reduction": 2, "module": "act1"},
            {"num_chs": STEM, "reduction": 4, "module": "maxpool"},
        ]
        for i, (outputs, units) in enumerate(zip(CHANNELS[groups], UNITS, strict=True)):
            # The stem has too few channels for groups (section 3.2).
            first = ShuffleUnit(inputs, outputs, groups, 2, first=1 if i == 0 else 0)
            stages.append(nn.Sequential(first, *(ShuffleUnit(outputs, outputs, groups) for _ in range(units - 1))))
            self.feature_info.append({"num_chs": outputs, "reduction": 8 * 2**i, "module": f"stages.{i}"})
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.num_features = inputs
        self.classifier = nn.Linear(inputs, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        x = self.stages(self.maxpool(self.act1(self.bn1(self.conv_stem(x)))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _shufflenet(name: str, groups: int, pretrained: bool, **options: Any) -> Any:
    return build_model_with_cfg(
        ShuffleNet, name, pretrained, feature_cfg={"flatten_sequential": True}, groups=groups, **options
    )


default_cfgs = {
    f"shufflenet_v1_g{groups}": {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7),
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "conv_stem",
        "classifier": "classifier", "architecture": f"shufflenet_v1_g{groups}",
    }
    for groups in CHANNELS
}  # fmt: skip
NAMES = tuple(default_cfgs)
"""Of the models, as timm knows them."""


@register_model
def shufflenet_v1_g1(pretrained: bool = False, **options: Any) -> Any:
    """ShuffleNet 1x of one group."""
    return _shufflenet("shufflenet_v1_g1", 1, pretrained, **options)


@register_model
def shufflenet_v1_g2(pretrained: bool = False, **options: Any) -> Any:
    """ShuffleNet 1x of two groups."""
    return _shufflenet("shufflenet_v1_g2", 2, pretrained, **options)


@register_model
def shufflenet_v1_g3(pretrained: bool = False, **options: Any) -> Any:
    """ShuffleNet 1x of three groups."""
    return _shufflenet("shufflenet_v1_g3", 3, pretrained, **options)


@register_model
def shufflenet_v1_g4(pretrained: bool = False, **options: Any) -> Any:
    """ShuffleNet 1x of four groups."""
    return _shufflenet("shufflenet_v1_g4", 4, pretrained, **options)


@register_model
def shufflenet_v1_g8(pretrained: bool = False, **options: Any) -> Any:
    """ShuffleNet 1x of eight groups."""
    return _shufflenet("shufflenet_v1_g8", 8, pretrained, **options)
