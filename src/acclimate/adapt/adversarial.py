"""Domain critics behind a gradient reversal: what they can tell apart, the detector learns not to show.

Ganin and Lempitsky 2015 (gradient reversal), Chen et al. 2018 (DA-Faster), Saito et al. 2019 (SWDA, strong-weak). A
critic tells target features from source features. The reversal turns the gradient that it sends into the detector, so
one optimiser trains both sides of the game in one step. No label is used, of either domain.

- `da-faster`: a critic of each location of the pyramid, a critic of each region that may hold an object, and the
  consistency of the two.
- `swda`: a strong critic of each location of the finest level, whose least-squares loss asks for full alignment where
  features are local, and a weak critic of the whole coarsest level, whose focal loss asks for little where the domains
  are easily told apart: scenes may differ in what they hold. The paper's context vectors, which the critics feed into
  the box head, are left out: the device would have to run the critics.

The canvas outside an image is no feature of a domain, but its share depends on how the images are shaped: critics do
not look at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.adapt.objective import Step, Term, View
from acclimate.config import AdversarialConfig
from acclimate.data.augment import FILL
from acclimate.models.detector import device_of, evaluating

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

_RAMP = 10.0


def reverse(x: Tensor, strength: float) -> Tensor:
    """`x`, of any shape, whose gradient is multiplied by `-strength` on its way back (Ganin and Lempitsky 2015, section
    3.1)."""
    reversed_: Tensor = _Reversal.apply(x, strength)
    return reversed_


def strength_at(progress: float, schedule: Literal["ramp", "constant"]) -> float:
    """The reversal's strength at `progress` (0..1) of the run; a ramp spares the detector a critic that knows nothing.

    The ramp is 2 / (1 + exp(-10 p)) - 1, from 0 to about 1 (Ganin and Lempitsky 2015, section 4).
    """
    return 1.0 if schedule == "constant" else 2.0 / (1.0 + math.exp(-_RAMP * progress)) - 1.0


def focal_loss(logits: Tensor, domain: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma times the cross entropy, p the true domain's probability, element by element (SWDA, section 3.1).

    Args:
        logits: of the target domain, of any shape, which is the result's too.
        domain: 0 for source, 1 for target; broadcast.
        gamma: 0 is the cross entropy; the larger, the less a critic counts that is right.
    """
    right = torch.where(domain > 0, logits, -logits)
    return -(1 - right.sigmoid()).pow(gamma) * F.logsigmoid(right)


class Adversarial(Term):
    """See the module. The critics are the term's own parameters, trained by the optimiser of the detector."""

    views: ClassVar[tuple[View, ...]] = ("source_strong", "target_strong")
    name: ClassVar[str] = "adversarial"

    def __init__(self, config: AdversarialConfig, channels: Sequence[int], instance: int) -> None:
        """For a pyramid of `channels` a level, and per-box features of size `instance` (`Detector.instances`)."""
        super().__init__()
        self.config = config
        made = _DAFaster(config, channels, instance) if config.kind == "da-faster" else _StrongWeak(config, channels)
        self.critics: _DAFaster | _StrongWeak = made
        self._felt = _Felt()

    @property
    def one_width(self) -> str:
        return "adversarial: a critic is made for one number of channels, and widths differ in it; set it to none"

    @classmethod
    def create(cls, options: AdversarialConfig, detector: Detector, source: LabelledSet) -> Adversarial:
        """Critics that fit the features of `detector`, which are measured on one empty image."""
        height, width = detector.spec.image_size
        device = device_of(detector)
        with evaluating(detector):
            levels = detector.features(torch.zeros(1, 3, height, width, device=device))
            whole = torch.tensor([[0.0, 0.0, width, height]], device=device)
            instance = detector.instances(levels, [whole]).shape[1]
        return cls(options, [level.shape[1] for level in levels], instance)

    def forward(self, step: Step) -> dict[str, Tensor]:
        strength = strength_at(step.progress, self.config.reversal)
        levels, domain = _both(step)
        self._felt.listen(step, levels)
        losses: dict[str, Tensor] = self.critics(step, levels, domain, strength)
        return {f"adversarial/{name}": self.config.weight * loss for name, loss in losses.items()}

    def watch(self) -> None:
        """Nothing to prepare: of every step the tensors are kept that `seen` reads, and nothing is computed of them."""

    def seen(self) -> dict[str, Any]:
        """What the critics did in this step.

        Returns:
            `domain_critics`, the share that each of them got right, each domain counting half: 0.5 is a guess; and
            `critics_gradient`, the norm of the gradient that they sent into the pyramid over that of all others, which
            tells whether the detector can have followed them.
        """
        with torch.no_grad():
            found: dict[str, Any] = {
                "domain_critics": {name: round(float(share), 4) for name, share in self.critics.right().items()}
            }
            ratio = self._felt.ratio()
        if ratio is not None and math.isfinite(ratio):
            found["critics_gradient"] = float(f"{ratio:.4g}")
        return found


class _Felt:
    """The gradients at the pyramid in one step: of the critics alone, and of everything."""

    def __init__(self) -> None:
        self._critics: dict[int, Tensor] = {}
        self._all: dict[tuple[int, int], Tensor] = {}
        self._places: list[slice] = []

    def listen(self, step: Step, levels: Sequence[Tensor]) -> None:
        """Keep the gradients that the backward pass brings to the views' features and to `levels`, which are the same
        for the critics alone."""
        self._critics, self._all, self._places = {}, {}, []
        for i, level in enumerate(levels):
            if level.requires_grad:
                level.register_hook(partial(self._critics.__setitem__, i))  # type: ignore[no-untyped-call]
        for v, view in enumerate(Adversarial.views):
            features, place = step.shared(view)
            self._places.append(place)
            for i, level in enumerate(features):
                if level.requires_grad:
                    level.register_hook(partial(self._all.__setitem__, (i, v)))  # type: ignore[no-untyped-call]

    def ratio(self) -> float | None:
        """Norm of the critics' gradient over that of the rest; None where there is no rest."""
        own, others = 0.0, 0.0
        for i, critics in self._critics.items():
            start = 0
            for v, place in enumerate(self._places):
                if (i, v) not in self._all:
                    return None
                whole = self._all[i, v][place]
                part = critics[start : start + len(whole)].float()
                start += len(whole)
                own += float(part.square().sum())
                others += float((whole.float() - part).square().sum())
        # What is left of a difference of equals is rounding.
        return math.sqrt(own / others) if others > 1e-10 * own else None


class _DAFaster(nn.Module):
    """Chen et al. 2018, section 4.2: image level, instance level, consistency.

    Sums are means here: over the locations or regions of an image, then its images. The consistency reaches the
    detector unreversed: there it asks that a region looks as foreign as its image, which is no game. The paper leaves
    this open, and its released code has no consistency.
    """

    def __init__(self, config: AdversarialConfig, channels: Sequence[int], instance: int) -> None:
        super().__init__()
        self._said: list[tuple[Tensor, Tensor]] = []
        self._of_boxes: tuple[Tensor, Tensor] | None = None
        self._domain: Tensor | None = None
        self.regions = config.regions
        self.first = 0 if config.levels == "all" else len(channels) - 1
        self.image = nn.ModuleList(_locations(c, config.hidden, 1) for c in channels[self.first :])
        self.instance = nn.Sequential(
            nn.Linear(instance, config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, 1),
        )  # fmt: skip

    def forward(self, step: Step, levels: Sequence[Tensor], domain: Tensor, strength: float) -> dict[str, Tensor]:
        masks = _shown(step, levels)
        # A detector that finds fewer regions than it is asked for pads them with boxes of no area.
        found = [region for view in Adversarial.views for region in step.regions(view, self.regions)]
        boxes = [region[(region[:, 2:] > region[:, :2]).all(1)] for region in found]
        instances = step.detector.instances(levels, boxes)
        owner = torch.repeat_interleave(torch.tensor([len(box) for box in boxes])).to(domain.device)

        parts, seen, said = [], [], []
        for critic, level, mask in zip(self.image, levels[self.first :], masks[self.first :], strict=True):
            logits = critic(reverse(level, strength)).float()
            wanted = domain[:, None, None, None].expand_as(logits)
            parts.append(_mean(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none"), mask))
            seen.append(_mean(critic(level).float().sigmoid(), mask))
            said.append((logits.detach(), mask))
        logits = self.instance(reverse(instances, strength)).float()[:, 0]
        each = F.binary_cross_entropy_with_logits(logits, domain[owner], reduction="none")
        apart = (torch.stack(seen).mean(0)[owner] - self.instance(instances).float()[:, 0].sigmoid()).abs()
        self._said, self._of_boxes, self._domain = said, (logits.detach(), owner), domain
        return {
            "image": _halves(torch.stack(parts).mean(0), domain),
            "instance": _halves(_by_image(each, owner, len(domain)), domain),
            "consistency": _halves(_by_image(apart, owner, len(domain)), domain),
        }

    def right(self) -> dict[str, Tensor]:
        """The share that each critic got right in the last step, each domain counting half."""
        if self._domain is None or self._of_boxes is None:
            return {}
        domain, (logits, owner) = self._domain, self._of_boxes
        shares = [_mean(_same(one, domain[:, None, None, None]), mask) for one, mask in self._said]
        return {
            "image": _halves(torch.stack(shares).mean(0), domain),
            "instance": _halves(_by_image(_same(logits, domain[owner]), owner, len(domain)), domain),
        }


class _StrongWeak(nn.Module):
    """Saito et al. 2019, sections 3.1 (weak global alignment) and 3.2 (strong local alignment)."""

    def __init__(self, config: AdversarialConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self._said: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.gamma = config.gamma
        self.local = _locations(channels[0], config.hidden, 2)
        self.scene = nn.Sequential(
            *(
                layer
                for given in (channels[-1], config.hidden, config.hidden)
                for layer in (nn.Conv2d(given, config.hidden, 3, stride=2, padding=1), nn.ReLU())
            )
        )
        self.judge = nn.Linear(config.hidden, 1)

    def forward(self, step: Step, levels: Sequence[Tensor], domain: Tensor, strength: float) -> dict[str, Tensor]:
        masks = _shown(step, levels)
        wanted = domain[:, None, None, None]
        found = self.local(reverse(levels[0], strength)).float().sigmoid()
        local = (found - wanted).square()
        # Outside the image a convolution over it sees zeros, as it does at the canvas's own border.
        scene = self.scene(masks[-1] * reverse(levels[-1], strength)).float()
        shown = F.adaptive_max_pool2d(masks[-1], (scene.shape[2], scene.shape[3]))
        pooled = (scene * shown).sum((2, 3)) / shown.sum((2, 3)).clamp(min=1)
        logits = self.judge(pooled).float()[:, 0]
        self._said = found.detach(), masks[0], logits.detach(), domain
        return {
            "local": _halves(_mean(local, masks[0]), domain),
            "global": _halves(focal_loss(logits, domain, self.gamma), domain),
        }

    def right(self) -> dict[str, Tensor]:
        """The share that each critic got right in the last step, each domain counting half."""
        if self._said is None:
            return {}
        found, mask, logits, domain = self._said
        return {
            "local": _halves(_mean(_same(found - 0.5, domain[:, None, None, None]), mask), domain),
            "global": _halves(_same(logits, domain), domain),
        }


def _same(logits: Tensor, domain: Tensor) -> Tensor:
    """1 where a logit of the target is on its domain's side, 0 where it is not."""
    return ((logits > 0) == (domain > 0)).float()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -ctx.strength * gradients[0], None


def _locations(channels: int, hidden: int, depth: int) -> nn.Sequential:
    """A critic of each location by itself: `depth` hidden 1x1 convolutions, then the logit of the target."""
    layers: list[nn.Module] = []
    for given in (channels, *[hidden] * (depth - 1)):
        layers += [nn.Conv2d(given, hidden, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1))


def _both(step: Step) -> tuple[list[Tensor], Tensor]:
    """The pyramid of source and target images as one batch, and each image's domain (B,): 0 source, 1 target."""
    source, target = (step.features(view) for view in Adversarial.views)
    domain = source[0].new_zeros(len(source[0]) + len(target[0]), dtype=torch.float32)
    domain[len(source[0]) :] = 1.0
    return [torch.cat(pair) for pair in zip(source, target, strict=True)], domain


def _shown(step: Step, levels: Sequence[Tensor]) -> list[Tensor]:
    """(B, 1, H_l, W_l) a level: 1 where a location is mostly image, 0 where it is mostly the canvas around it."""
    # Strong views change the canvas's grey too; weak views share their geometry and leave it exact.
    weak = torch.cat([step.images("source_weak"), step.images("target_weak")])
    image = (weak != FILL).any(1, keepdim=True).float()
    return [(F.adaptive_avg_pool2d(image, (level.shape[2], level.shape[3])) >= 0.5).float() for level in levels]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,): the mean of (B, 1, H, W) values where the mask is 1; 0 for an image without such a place."""
    return (values * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)


def _by_image(values: Tensor, owner: Tensor, images: int) -> Tensor:
    """(B,): the mean of each image's values (N,); 0 for an image that has none."""
    total = values.new_zeros(images).index_add(0, owner, values)
    return total / torch.bincount(owner, minlength=images).clamp(min=1)


def _halves(values: Tensor, domain: Tensor) -> Tensor:
    """The mean over images (B,) with each domain counting half, however many images it has."""
    target = domain.sum()
    return (values * torch.where(domain > 0, 0.5 / target, 0.5 / (len(domain) - target))).sum()
