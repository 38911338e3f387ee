"""Adapting a bank of classifiers, where the method was published: SymNet's losses, SEED, and OSTC's three classifiers.

Zhang et al. 2019 (SymNets), Meng et al. 2022 (SlimDA). Two classifiers C_s and C_t look at the same features f. Their
logits side by side are z = [C_s f, C_t f] (B, 2K), and p = softmax(z) says class and domain at once: the first half of
p belongs to the source. The classifiers learn to tell the domains apart, the features learn that they cannot.

Here both happen in one backward pass: the classifiers' losses see features without their gradient, the features' losses
see classifiers without theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.adapt.adversarial import strength_at
from acclimate.adapt.slim import Confidence, confidence, sharpen
from acclimate.errors import AcclimateError
from acclimate.models.channels import Channels, cut, follow
from acclimate.models.detector import device_of
from acclimate.models.slimmable import Slimmable, Widths

HALVINGS: Widths = (0.125, 0.177, 0.25, 0.354, 0.5, 0.707, 1.0)
"""Widths whose squares halve: of the operations they leave about 1/64, 1/32, ... 1/2 and all."""


def classifier_loss(source: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """What C_s and C_t minimise: CE(C_s x_s, y) + CE(C_t x_s, y) - E_s log sum_{k<=K} p_k - E_t log sum_{k>K} p_k.

    Args:
        source: logits (B_s, 2K) of source images; the features that they are computed from are detached.
        labels: (B_s,) of the source images.
        target: logits (B_t, 2K) of target images, likewise.
    """
    own, other = source.chunk(2, 1)
    supervised = F.cross_entropy(own, labels) + F.cross_entropy(other, labels)
    return supervised - _halves(source)[0].mean() - _halves(target)[1].mean()


def category_confusion(source: Tensor, labels: Tensor) -> Tensor:
    """What features minimise on the source: -E_s log p_y - E_s log p_{y+K}, for logits (B, 2K) and labels (B,)."""
    classes = source.shape[1] // 2
    return F.cross_entropy(source, labels) + F.cross_entropy(source, labels + classes)


def domain_confusion(target: Tensor) -> Tensor:
    """What features minimise on the target: -E_t log sum_{k<=K} p_k - E_t log sum_{k>K} p_k, for logits (B, 2K)."""
    first, second = _halves(target)
    return -first.mean() - second.mean()


def entropy(target: Tensor) -> Tensor:
    """The mean entropy of q_k = p_k + p_{k+K} on the target, for logits (B, 2K)."""
    log_q = merged(target)
    return -(log_q.exp() * log_q).sum(1).mean()


def merged(logits: Tensor) -> Tensor:
    """log(p_k + p_{k+K}) (B, K) of logits (B, 2K): what both classifiers together say of the class."""
    return torch.logaddexp(*logits.log_softmax(1).chunk(2, 1))


def distillation(log_probabilities: Tensor, soft: Tensor) -> Tensor:
    """The cross entropy of (B, K) log-probabilities towards soft targets (B, K), a mean over images."""
    return -(soft * log_probabilities).sum(1).mean()


def _halves(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) each: the logarithms of the source's and the target's share of p."""
    first, second = logits.log_softmax(1).chunk(2, 1)
    return first.logsumexp(1), second.logsumexp(1)


class SlimmableNetwork(Protocol):
    """A network of many widths; features of a narrower one are the first of the full one's."""

    def set_width(self, width: float | Sequence[float]) -> None:
        """Compute with these widths from now on."""

    def features(self, images: Tensor) -> Tensor:
        """(B, D) of images (B, C, H, W); D is the current width's."""


@dataclass(frozen=True, slots=True)
class BankOptions:
    """What of SlimDA is on, and what its paper leaves open."""

    ensemble: float = 1.0
    """Weight of SEED; 0 is the slimmable baseline."""
    ramp: bool = True
    """Whether this weight rises as the domain confusion's does: at first the ensemble knows nothing."""
    third: bool = True
    """OSTC: the ensemble is distilled into a classifier C_a of its own, the one to deploy, rather than into C_s and
    C_t, whose other losses ask for something else."""
    reaches_features: bool = True
    """Whether the distillation trains the features too, or the classifier alone."""
    confidence: Confidence = "uniform"
    margin: float = 1.0
    """Of the hinge confidence: the mean ||q - q_largest||_2 from which a model counts for nothing."""
    temperature: float = 0.5
    """Of the sharpening."""


class Bank(nn.Module):
    """A slimmable network under the classifiers C_s, C_t and, with OSTC, C_a; each width uses their first inputs.

    What is deployed is C_a, or, without it, q: what C_s and C_t say together.
    """

    def __init__(self, network: nn.Module, dimension: int, classes: int, options: BankOptions) -> None:
        """Classifiers on a network's features.

        Args:
            network: a `SlimmableNetwork`.
            dimension: how many features it has at full width.
            classes: K, how many there are.
            options: what the paper leaves open.
        """
        super().__init__()
        self.network = network
        self.options = options
        self.source = nn.Linear(dimension, classes)
        self.target = nn.Linear(dimension, classes)
        self.deployed = nn.Linear(dimension, classes) if options.third else None

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K) of what is deployed, at the current width."""
        return self._told(self._network.features(images))

    def losses(
        self,
        source: Tensor,
        labels: Tensor,
        target: Tensor,
        batch: Sequence[Widths | float],
        progress: float,
        macs: Sequence[float] = (),
    ) -> dict[str, Tensor]:
        """Named scalar losses of one step, each a mean over the models; their sum is what is minimised.

        Domains pass the network one after the other, so batch statistics are a domain's own, as in SymNets. Afterwards
        the network has the first model's width.

        Args:
            source: images (B_s, C, H, W), with labels (B_s,).
            labels: class indices.
            target: unlabelled images (B_t, C, H, W).
            batch: widths of the step's models, the largest first (see `slim.model_batch`); one alone is plain SymNet.
            progress: 0..1 of the run; domain confusion and entropy rise with 2 / (1 + exp(-10 progress)) - 1.
            macs: of each model, for the confidence that counts them.

        Raises:
            ValueError: the confidence counts `macs`, and they are not given.
        """
        if self.options.confidence == "macs" and len(macs) != len(batch):
            raise ValueError(f"{len(macs)} macs of {len(batch)} models; their confidence counts them")
        ramp = strength_at(progress, "ramp")
        losses: dict[str, Tensor] = {}
        seen: list[Tensor] = []
        for widths in batch:
            self._network.set_width(widths)
            f_s, f_t = self._network.features(source), self._network.features(target)
            own = classifier_loss(self._pair(f_s.detach()), labels, self._pair(f_t.detach()))
            z_s, z_t = self._pair(f_s, trained=False), self._pair(f_t, trained=False)
            parts = {
                "classifier": own,
                "category": category_confusion(z_s, labels),
                "domain": ramp * domain_confusion(z_t),
                "entropy": ramp * entropy(z_t),
            }
            for name, loss in parts.items():
                losses[name] = losses.get(name, loss.new_zeros(())) + loss / len(batch)
            seen.append(f_t)
        if self.options.ensemble > 0:
            soft = self._ensemble(seen, macs)
            told = [self._told(f if self.options.reaches_features else f.detach()) for f in seen]
            weight = self.options.ensemble * (ramp if self.options.ramp else 1.0)
            losses["ensemble"] = weight * torch.stack([distillation(log, soft) for log in told]).mean()
        self._network.set_width(batch[0])
        return losses

    @property
    def _network(self) -> SlimmableNetwork:
        return self.network  # type: ignore[return-value]

    def _pair(self, features: Tensor, trained: bool = True) -> Tensor:
        """Logits (B, 2K) of C_s and C_t; without `trained` the classifiers get no gradient."""
        return torch.cat([_apply(head, features, trained) for head in (self.source, self.target)], 1)

    def _told(self, features: Tensor) -> Tensor:
        """Log-probabilities (B, K) of what is deployed, which is what the ensemble is distilled into."""
        if self.deployed is not None:
            return _apply(self.deployed, features).log_softmax(1)
        return merged(self._pair(features))

    @torch.no_grad()
    def _ensemble(self, features: Sequence[Tensor], macs: Sequence[float]) -> Tensor:
        """Sharpened soft targets (B, K): the models' q, by confidence."""
        options = self.options
        q = torch.stack([merged(self._pair(f)).exp() for f in features])
        distances = (q - q[0]).norm(dim=-1).mean(1).tolist()
        weights = confidence(options.confidence, macs or [1.0] * len(q), distances, options.margin)
        return sharpen(torch.einsum("m,mbk->bk", q.new_tensor(weights), q), options.temperature)


def _apply(head: nn.Linear, features: Tensor, trained: bool = True) -> Tensor:
    """A classifier on as many of its inputs as there are features."""
    weight, bias = (p if trained else p.detach() for p in (head.weight, head.bias))
    return F.linear(features, weight[:, : features.shape[1]], bias)


class Classifier(nn.Module):
    """A small image classifier of 28 to 64 pixels: a stem of stride 2, then three stages of halving resolution."""

    def __init__(
        self,
        kind: Literal["resnet", "mobilenet"],
        classes: int,
        image_size: tuple[int, int] = (32, 32),
        inputs: int = 3,
        size: int = 64,
        depth: int = 1,
        widths: Widths | None = None,
        divisor: int = 8,
    ) -> None:
        """Build with random weights.

        Args:
            kind: basic residual blocks (He et al. 2016), or inverted residuals (Sandler et al. 2018).
            classes: how many logits.
            image_size: (height, width) in pixels, which `macs` counts at.
            inputs: channels of the images.
            size: channels of the first stage; the others have two and four times as many.
            depth: blocks a stage.
            widths: the ratio of channels that each stage keeps, of a slice of a `SlimmableClassifier`.
            divisor: what kept channels are rounded to a multiple of.

        Raises:
            AcclimateError: `widths` are not as many as the stages.
        """
        super().__init__()
        self.options: dict[str, Any] = {
            "kind": kind, "classes": classes, "image_size": image_size, "inputs": inputs, "size": size,
            "depth": depth, "divisor": divisor,
        }  # fmt: skip
        self.inputs, self.image_size = inputs, image_size
        block = _Basic if kind == "resnet" else _Inverted
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, size // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(size // 2), nn.ReLU()
        )
        self.stage1 = _stage(block, size // 2, size, 1, depth)
        self.stage2 = _stage(block, size, 2 * size, 2, depth)
        self.stage3 = _stage(block, 2 * size, 4 * size, 2, depth)
        self.classify = nn.Linear(4 * size, classes)
        if widths is not None:
            channels = self.follow_channels()
            if len(widths) != len(channels.stages):
                raise AcclimateError(f"widths: {len(widths)} are given for the stages {', '.join(channels.stages)}")
            cut(self, channels.counts(widths, divisor))

    def features(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, D), averaged over the image."""
        levels: Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return levels.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> logits (B, classes)."""
        logits: Tensor = self.classify(self.features(x))
        return logits

    def follow_channels(self) -> Channels:
        """Which layers share their channels, in the stages stem, stage1, stage2 and stage3."""
        return follow(self, {name: name for name in ("stem", "stage1", "stage2", "stage3")})


class SlimmableClassifier(Slimmable, Classifier):
    """A classifier of many widths, on its own random weights; its smallest width has about 1/64 of the operations."""

    def __init__(
        self,
        kind: Literal["resnet", "mobilenet"],
        classes: int,
        image_size: tuple[int, int] = (32, 32),
        inputs: int = 3,
        size: int = 64,
        depth: int = 1,
        choices: Sequence[float] = HALVINGS,
        divisor: int = 4,
    ) -> None:
        """See `Classifier`.

        Raises:
            AcclimateError: `choices` do not rise to 1.
        """
        Classifier.__init__(self, kind, classes, image_size, inputs, size, depth, None, divisor)
        self.make_slimmable(self.follow_channels(), choices, divisor)

    def extract(self, width: float | Sequence[float] | None = None) -> Classifier:
        """The plain classifier of a width, the current one by default; it shares no memory with this one.

        Raises:
            AcclimateError: as `set_width`.
        """
        widths = self.widths if width is None else self.check_widths(width)
        plain = Classifier(**self.options, widths=widths)
        self.slice_into(plain, widths)
        return plain.to(device_of(self)).train(self.training)


def _stage(block: type[_Basic] | type[_Inverted], reads: int, makes: int, stride: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        *(block(reads if i == 0 else makes, makes, stride if i == 0 else 1) for i in range(depth)),
    )


def _unit(
    reads: int, makes: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    convolution = nn.Conv2d(reads, makes, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(makes), *([act] if act is not None else []))


class _Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016), which projects where the shape changes."""

    def __init__(self, reads: int, makes: int, stride: int) -> None:
        super().__init__()
        self.first = _unit(reads, makes, 3, stride, act=nn.ReLU())
        self.second = _unit(makes, makes, 3)
        same = reads == makes and stride == 1
        self.shortcut = nn.Identity() if same else _unit(reads, makes, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class _Inverted(nn.Module):
    """Pointwise, depthwise and linear pointwise convolution (Sandler et al. 2018), with a shortcut where it fits."""

    def __init__(self, reads: int, makes: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inner = expansion * reads
        self.layers = nn.Sequential(
            _unit(reads, inner, 1, act=nn.ReLU6()),
            _unit(inner, inner, 3, stride, inner, act=nn.ReLU6()),
            _unit(inner, makes, 1),
        )
        self.residual = reads == makes and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y
