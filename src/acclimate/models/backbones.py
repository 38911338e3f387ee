"""Backbones from timm and torchvision, their normalisation chosen, their first stages frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from acclimate.errors import AcclimateError
from acclimate.models import checkpoint, normalisations, shufflenet, torchvision_features
from acclimate.models import weights as pretrained
from acclimate.models.plain_vit import PlainVisionTransformer, is_plain
from acclimate.models.torchvision_features import PREFIX, TorchvisionFeatures

if TYPE_CHECKING:
    from acclimate.models.detector import DetectorSpec

OWN_MODELS = shufflenet.NAMES
"""What is registered with timm beside its own models."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A feature extractor of timm's or torchvision's that keeps its frozen parts frozen in training mode.

    Attributes:
        strides: of the returned levels, from fine to coarse.
        channels: of the returned levels.
        mean, std: of the input in 0..1, as the pretrained weights expect it.
    """

    def __init__(
        self,
        name: str,
        strides: tuple[int, ...],
        norm: str,
        freeze: int,
        modules: tuple[str, ...] = (),
        output_stride: int = 32,
        drop_path: float = 0.0,
    ) -> None:
        """Build the backbone without weights; see `load_weights`.

        Args:
            name: timm's, or torchvision's with its prefix (`torchvision/NAME`) or where there are `modules`.
            strides: of the levels that are wanted, rising, pixels.
            norm: the normalisation; see `ModelConfig.norm`.
            freeze: how many of its first stages keep their weights.
            modules: children of torchvision's model whose outputs are the levels.
            output_stride: from which on convolutions are dilated in place of being strided.
            drop_path: the rate at which timm's deepest block drops itself.

        Raises:
            AcclimateError: there is no model `name`, it has no feature pyramid, no dilated version, or no level of a
                wanted stride.
        """
        super().__init__()
        self.norm = norm
        self._frozen: list[nn.Module] = []
        self.strides = tuple(strides)
        if modules:
            trunk = Trunk(name, modules)
            self.body: nn.Module = trunk
            self.channels: tuple[int, ...] = trunk.channels
            self.mean: tuple[float, ...] = IMAGENET_MEAN
            self.std: tuple[float, ...] = IMAGENET_STD
            self._fixed_until = [child for child, stride in trunk.strides.items() if freeze and stride <= 2**freeze]
            return
        if name.startswith(PREFIX):
            body: Any = TorchvisionFeatures(name.removeprefix(PREFIX), strides, output_stride)
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        else:
            options = {"output_stride": output_stride} if output_stride != 32 else {}
            body = _extractor(name, self.strides, options | ({"drop_path_rate": drop_path} if drop_path else {}))
        self.body = body
        plain = isinstance(body, PlainVisionTransformer)
        self.channels = tuple(body.channels if plain else body.feature_info.channels())
        info = [] if plain else getattr(body.feature_info, "info", [])
        self._fixed_until = [entry["module"] for entry in info if freeze and entry["reduction"] <= 2**freeze]
        if not name.startswith(PREFIX):
            # After the body, as it draws random numbers too: the weights that a seed gives stay the same.
            self._pixels(name)
        if norm in normalisations.REPLACED and not plain:
            normalisations.replace(self.body, norm)
            if norm == "moving":
                normalisations.centre(self.body)

    def _pixels(self, name: str) -> None:
        """Take over the mean and deviation of pixels that timm's weights expect."""
        config = getattr(timm.create_model(name), "pretrained_cfg", {})
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))

    def settle(self, fold: bool, affine: bool = False) -> None:
        """Freeze what the options say; called once the weights are in.

        Without `fold`, frozen BatchNorm stays a layer with fixed statistics, as methods that look at a weight (DSS) and
        what is narrowed later need it; `affine` lets its scale and shift train.
        """
        for module in _first_stages(self.body, self._fixed_until):
            module.requires_grad_(False)
        if self.norm == "frozen" and fold:
            _fold_batch_norm(self.body)
        # Folding puts other modules in their places.
        self._frozen = _first_stages(self.body, self._fixed_until)
        if self.norm == "frozen" and not fold:
            self._hold_norms(affine)
        self.train(self.training)

    def hold_norms(self) -> None:
        """Freeze BatchNorm as it is now: its statistics, scale and shift."""
        self._hold_norms(affine=False)
        self.train(self.training)

    def _hold_norms(self, affine: bool) -> None:
        norms = [part for part in self.body.modules() if isinstance(part, nn.BatchNorm2d)]
        self._frozen += norms
        for norm in norms if not affine else ():
            norm.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The levels (B, C_l, H_l, W_l) of normalised images (B, 3, H, W), from fine to coarse."""
        return list(self.body(images))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class Trunk(nn.Module):
    """The children of a torchvision classifier (or of its `features`) up to the last of `levels`, one after the other.

    Attributes:
        channels: of the levels.
        strides: of every child.
    """

    def __init__(self, name: str, levels: tuple[str, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.channels: tuple[int, ...] = ()
        self.strides: dict[str, int] = {}
        model = torchvision.models.get_model(name, weights=None)
        x, side = torch.zeros(1, 3, 64, 64), 64
        with torch.no_grad():
            for child, module in getattr(model, "features", model).named_children():
                self.add_module(child, module)
                x = module.eval()(x)
                self.strides[child] = side // x.shape[-1]
                if child in levels:
                    self.channels += (x.shape[1],)
                if child == levels[-1]:
                    break
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """The levels (B, C_l, H_l, W_l) of normalised images (B, 3, H, W), from fine to coarse."""
        found = []
        for name, child in self.named_children():
            x = child(x)
            if name in self.levels:
                found.append(x)
        return found


def _extractor(name: str, strides: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    """timm's extractor of the levels of these strides; of several levels of one stride the last where dilation makes
    them.

    Raises:
        AcclimateError: as `Backbone`.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise AcclimateError(f"model.backbone: timm has no model {name!r}" + (f"; near: {close}" if close else ""))
    try:
        probe: Any = timm.create_model(name, features_only=True)
        reductions = list(probe.feature_info.reduction())
    except (RuntimeError, AttributeError, TypeError):
        raise AcclimateError(f"model.backbone: {name!r} has no feature pyramid (features_only)") from None
    dilated = "output_stride" in options
    if options:
        try:
            probe = timm.create_model(name, features_only=True, **options)
            reductions = list(probe.feature_info.reduction())
        except (RuntimeError, AttributeError, TypeError, NotImplementedError, AssertionError):
            lacks = "output_stride: timm has no dilated version" if dilated else "drop_path: timm has no such version"
            raise AcclimateError(f"model.{lacks} of {name!r}; leave it out") from None
    if is_plain(reductions):
        return PlainVisionTransformer(name, strides)
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise AcclimateError(f"model.strides: {name!r} has levels of stride {reductions}, not {missing}")
    last = len(reductions) - 1
    indices = tuple(
        last - reductions[::-1].index(stride) if dilated else reductions.index(stride) for stride in strides
    )
    body: nn.Module = timm.create_model(name, features_only=True, out_indices=indices, **options)
    if max(indices) < last:
        _drop_unused(body)
    return body


def _drop_unused(body: nn.Module) -> None:
    """Drop the stages behind the last wanted level, which some of timm's extractors keep and compute."""
    with torch.enable_grad():
        sum(level.sum() for level in body.eval()(torch.zeros(1, 3, 64, 64))).backward()
    used = {id(parameter) for parameter in body.parameters() if parameter.grad is not None}
    body.zero_grad(set_to_none=True)
    for name, module in list(body.named_modules())[:0:-1]:
        parameters = [id(parameter) for parameter in module.parameters()]
        if parameters and used.isdisjoint(parameters):
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, nn.Identity())
    body.train()


def _first_stages(body: nn.Module, ends: list[str]) -> list[nn.Module]:
    """The modules up to and with those named `ends`, in the order of construction, without what reaches further."""
    named = list(body.named_modules())
    prefixes = {form for name in ends for form in (name, name.replace(".", "_"))}
    last = max((i for i, (name, _) in enumerate(named) if any(_within(name, p) for p in prefixes)), default=-1)
    later = {id(module) for _, module in named[last + 1 :]}
    return [module for _, module in named[: last + 1] if not any(id(part) in later for part in module.modules())]


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _fold_batch_norm(body: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it, which computes the same as a frozen BatchNorm.

    One operator instead of two: a training step on a CPU takes about two thirds of the time.
    """
    producers: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def produced(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        producers[id(output)] = (module, output)

    def consumed(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) not in producers:
            raise AcclimateError("model.norm: this backbone normalises before its convolutions; use norm = 'batch'")
        pairs.append((producers[id(inputs[0])][0], module))

    handles = [m.register_forward_hook(produced) for m in body.modules() if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(consumed) for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    training = body.training
    try:
        with torch.no_grad():
            body.eval()(torch.zeros(1, 3, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in body.named_modules()}
    for conv, norm in pairs:
        folded = fuse_conv_bn_eval(conv, norm)
        folded.requires_grad_(conv.weight.requires_grad)
        after = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        for old, new in ((conv, folded), (norm, nn.Sequential(*after))):
            parent, _, child = names[old].rpartition(".")
            setattr(body.get_submodule(parent), child, new)
    body.train(training)


def started(
    spec: DetectorSpec, weights: Path | Literal["auto", "none"], modules: tuple[str, ...] = ()
) -> tuple[Backbone, str]:
    """The backbone that a specification asks for, and where its weights came from: what the specification says where
    `weights` is "none", as they are still to be loaded.

    Raises:
        AcclimateError: it is unknown, lacks a level, or the weights do not fit.
    """
    backbone = Backbone(
        spec.backbone, spec.strides, spec.norm, spec.freeze, modules, spec.output_stride, spec.drop_path
    )
    start = load_weights(backbone, spec.backbone, weights) if weights != "none" else spec.start
    backbone.settle(spec.folded)
    return backbone, start


def load_weights(backbone: Backbone, name: str, weights: Path | Literal["auto", "none"]) -> str:
    """Fill the backbone and say from where.

    A file may be .safetensors or a torch checkpoint; its keys must be timm's, or its tensors stand in timm's order
    with timm's shapes (as in weights published under other names).

    Raises:
        AcclimateError: the file is missing, unreadable, or fits the backbone neither by name nor by order; or `auto`
            finds no weights (`models.weights`).
    """
    if weights == "none":
        return "random"
    if weights == "auto":
        return _automatic(backbone, name)
    path = Path(weights)
    try:
        state = checkpoint.tensors(path)
    except AcclimateError as error:
        raise AcclimateError(f"model.weights: {error}") from None
    _fill(backbone, name, state, str(path))
    return f"file {path.name}"


def _automatic(backbone: Backbone, name: str) -> str:
    if name.startswith(PREFIX):
        _fill(backbone, name, torchvision_features.weights(name.removeprefix(PREFIX)), name)
        return f"{name} default"
    found = pretrained.obtain(name)
    if found.origin.startswith("package "):
        return load_weights(backbone, name, found.file)
    # timm knows how the names in some of its files differ from those in its models.
    with pretrained.silenced():
        full = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(found.file)})
    _fill(backbone, name, full.state_dict(), name)
    return f"timm {found.origin.removeprefix('hub').strip() or 'default'}"


def _fill(backbone: Backbone, name: str, state: dict[str, Tensor], where: str) -> None:
    ours = name.startswith(PREFIX)
    model = torchvision_features.classifier(name.removeprefix(PREFIX)) if ours else timm.create_model(name)
    full = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    # The pyramid behind a plain transformer is trained from nothing.
    body = backbone.body
    if isinstance(body, PlainVisionTransformer | TorchvisionFeatures):
        body = body.encoder if isinstance(body, PlainVisionTransformer) else body.trunk
    own = body.state_dict()
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    if not all(_key(key, state) for key in wanted):
        fits = len(state) == len(full) and all(
            a.shape == b.shape for a, b in zip(state.values(), full.values(), strict=True)
        )
        if not fits:
            raise AcclimateError(f"model.weights: {where} does not fit {name!r}, neither by names nor by order")
        state = dict(zip(full, state.values(), strict=True))
    matched = {key: state[source] for key in wanted if (source := _key(key, state))}
    shapes = [key for key in matched if matched[key].shape != own[key].shape]
    absent = [key for key in wanted if key not in matched]
    if shapes or (absent and backbone.norm not in normalisations.REPLACED):
        raise AcclimateError(f"model.weights: {where} does not fit {name!r} at {(shapes + absent)[0]!r}")
    body.load_state_dict(matched, strict=False)


def _key(key: str, state: dict[str, Tensor]) -> str | None:
    """The name in a plain timm checkpoint of a key of the feature extractor.

    The extractor may flatten the first dots of a name; a norm that was swapped for a GroupNorm and its activation is
    the first of a pair.
    """
    head, _, tail = key.partition(".")
    dotted = f"{head.replace('_', '.')}.{tail}"
    forms = (key, dotted, *(".".join(form.rsplit(".0.", 1)) for form in (key, dotted)))
    return next((form for form in forms if form in state), None)
