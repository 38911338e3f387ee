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
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.adapt.adversarial import strength_at
from acclimate.adapt.slim import Confidence, confidence, sharpen
from acclimate.models.slimmable import Widths


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
