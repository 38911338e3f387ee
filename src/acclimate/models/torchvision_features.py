"""A torchvision classifier as a backbone: the last map of each stride, cut out of its graph.

`torchvision.models.feature_extraction` traces the classifier; what only computes the classes is dropped. Names of
weights stay torchvision's, so its checkpoints load by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from acclimate.errors import AcclimateError

PREFIX = "torchvision/"
"""Of the names of backbones that are torchvision's."""
_SIDE = 64
"""Of the probe whose maps tell the strides, pixels."""
_HEADS = ("classifier", "fc", "head", "heads", "avgpool", "dropout", "aux1", "aux2", "AuxLogits")
"""Children of a classifier that hold no map of features."""


class FeatureInfo:
    """What timm's extractors say of their levels: the module that each ends with, its stride and channels."""

    def __init__(self, info: list[dict[str, Any]]) -> None:
        self.info = info

    def reduction(self) -> list[int]:
        """The strides of the levels, pixels."""
        return [int(level["reduction"]) for level in self.info]

    def channels(self) -> list[int]:
        """The channels of the levels."""
        return [int(level["num_chs"]) for level in self.info]


class TorchvisionFeatures(nn.Module):
    """See the module.

    Attributes:
        trunk: what is left of the classifier, its parts by torchvision's names.
        feature_info: of the levels that it returns.
    """

    feature_info: FeatureInfo

    def __init__(self, name: str, strides: Sequence[int], output_stride: int = 32) -> None:
        """Build it without weights.

        Args:
            name: torchvision's, without the prefix.
            strides: of the levels that are wanted, rising, pixels.
            output_stride: from which on convolutions are dilated in place of being strided.

        Raises:
            AcclimateError: torchvision has no such classifier or no dilated version of it, its graph cannot be traced,
                or it has no map of a wanted stride.
        """
        super().__init__()
        model = _padded(classifier(name, output_stride))
        last: dict[int, tuple[str, int]] = {}
        for block, level in _maps(model, name).items():
            if level.ndim == 4 and level.shape[-1] > 1 and _SIDE % level.shape[-1] == 0:
                last[_SIDE // level.shape[-1]] = block, level.shape[1]
        if max(last, default=0) > output_stride:
            # Some of torchvision's models take the option and do nothing with it.
            raise AcclimateError(f"model.output_stride: torchvision has no dilated version of {name!r}; leave it out")
        if missing := [stride for stride in strides if stride not in last]:
            raise AcclimateError(f"model.strides: {PREFIX + name!r} has levels of stride {list(last)}, not {missing}")
        ends = [last[stride][0] for stride in strides]
        made = _extractor(model, ends, name)
        for node in made.eval_graph.nodes:
            if node.op == "output":
                node.args = (list(node.args[0].values()),)
        # One graph for both modes: what differs between them are layers (dropout, BatchNorm), which know their mode.
        self.trunk = fx.GraphModule(made, made.eval_graph)
        self.feature_info = FeatureInfo(
            [
                {"module": f"trunk.{end}", "reduction": stride, "num_chs": last[stride][1]}
                for stride, end in zip(strides, ends, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The levels (B, C_l, H_l, W_l) of normalised images (B, 3, H, W), from fine to coarse."""
        return list(self.trunk(x))


def classifier(name: str, output_stride: int = 32) -> nn.Module:
    """torchvision's classifier without weights.

    Raises:
        AcclimateError: there is none of this name, or none that is dilated.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = [one for one in known if one.startswith(name[:5])][:5]
        near = f"; near: {', '.join(close)}" if close else ""
        raise AcclimateError(f"model.backbone: torchvision has no classifier {name!r}{near}")
    options: dict[str, Any] = {}
    if output_stride != 32:
        options["replace_stride_with_dilation"] = [False, output_stride <= 8, output_stride <= 16]
    if name in {"googlenet", "inception_v3"}:
        options |= {"init_weights": False, "aux_logits": False}
    try:
        return _made(name, options)
    except (TypeError, NotImplementedError):
        raise AcclimateError(
            f"model.output_stride: torchvision has no dilated version of {name!r}; leave it out"
        ) from None


def _made(name: str, options: dict[str, Any]) -> nn.Module:
    where = torch.get_default_device()
    if where.type != "meta":
        plain: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return plain
    # RegNet computes its widths with tensors, which have no values there.
    with torch.device("cpu"):
        made: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return made.to(where)


def weights(name: str) -> dict[str, Tensor]:
    """torchvision's own checkpoint of a classifier, name -> weights (O, I, k, k) or (C,); downloaded where its cache
    has none.

    Raises:
        AcclimateError: it cannot be had.
    """
    try:
        found: Any = torchvision.models.get_model_weights(name).DEFAULT
        state: dict[str, Tensor] = found.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise AcclimateError(
            f"model.weights: no weights of {PREFIX + name} are to be had here ({type(error).__name__}); name a file "
            "(model.weights=FILE), or start from random weights on purpose (model.weights=none)"
        ) from None
    return state


def _padded(model: nn.Module) -> nn.Module:
    """The model with padding where a strided convolution has none (SqueezeNet's first): a map of stride s must have
    1 / s of the side, or levels do not fit each other."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.padding == (0, 0) and part.kernel_size[0] > part.stride[0] > 1:
            part.padding = tuple(side // 2 for side in part.kernel_size)
    return model


def _blocks(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the parts that run one after the other: children, and those of plain sequences of them."""
    for child, part in model.named_children():
        name = f"{prefix}{child}"
        if not prefix and child in _HEADS:
            continue
        if type(part) is nn.Sequential:
            yield from _blocks(part, f"{name}.")
        else:
            yield name


def _maps(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What each block returns, on a probe."""
    with torch.no_grad():
        made = _extractor(model, list(_blocks(model)), name).eval()
        found: dict[str, Tensor] = made(torch.zeros(1, 3, _SIDE, _SIDE))
    return {block: level for block, level in found.items() if isinstance(level, Tensor)}


def _extractor(model: nn.Module, blocks: Sequence[str], name: str) -> Any:
    try:
        return create_feature_extractor(model.eval(), list(blocks), suppress_diff_warning=True).train()
    except (fx.proxy.TraceError, ValueError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AcclimateError(f"model.backbone: {PREFIX + name!r} cannot be traced ({reason[:120]})") from None
