"""The sandwich rule, the ensemble and its confidence against formulas; a bank in the loop, killed and taken up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import box_iou
from toy_training import ToyDetector, ToyLoader, schedule

from acclimate.adapt.adversarial import Adversarial
from acclimate.adapt.engine import accelerator, checkpoint, fit
from acclimate.adapt.methods import Method, method, uses_target
from acclimate.adapt.objective import Objective, Step, Term, View
from acclimate.adapt.slim import (
    Slim,
    confidence,
    dense_distance,
    dense_ensemble,
    model_batch,
    sharpen,
)
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.teacher import Known, Teacher
from acclimate.config import (
    AdaptConfig,
    AdversarialConfig,
    AugmentConfig,
    Config,
    ModelConfig,
    SlimConfig,
    TeacherConfig,
)
from acclimate.data.formats import LabelledSet
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, build, load, save, specify
from acclimate.models.slimmable import Slimmable, SlimmableDetector, Widths
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations, Batch

CHOICES = (0.25, 0.5, 0.75, 1.0)
SOFT = TeacherConfig(boxes=0, soft=1, ramp=0)


class SlicedNorm(nn.BatchNorm2d):
    """BatchNorm of the first channels."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = self.running_mean[:n], self.running_var[:n]
        return F.batch_norm(x, mean, var, self.weight[:n], self.bias[:n], self.training, self.momentum or 0.0)


class ToyBank(Slimmable, ToyDetector):
    """Two sliced convolutions; raw outputs like a dense detector's, one class."""

    predictors = ("predict",)

    def __init__(self) -> None:
        ToyDetector.__init__(self)
        self.choices = CHOICES
        self.stages = ("first", "last")
        self.widths = (1.0, 1.0)
        self.norm = SlicedNorm(8)
        self.last = nn.Conv2d(8, 8, 1)
        self.predict = nn.Conv2d(8, 5, 1)
        self.log: list[tuple[Widths, int]] = []

    def set_width(self, width: float | Sequence[float]) -> None:
        self.widths = (width,) * 2 if isinstance(width, float) else tuple(width)

    def macs(self, width: float | Sequence[float]) -> float:
        one, other = (width,) * 2 if isinstance(width, float) else width
        return 27 * 8 * one + 64 * one * other + 40 * other

    def features(self, images: Tensor) -> list[Tensor]:
        self.log.append((self.widths, len(images)))
        one, other = (int(8 * width) for width in self.widths)
        assert self.first.bias is not None
        assert self.last.bias is not None
        x = torch.relu(self.norm(F.conv2d(images / 255, self.first.weight[:one], self.first.bias[:one], padding=1)))
        return [torch.relu(F.conv2d(x, self.last.weight[:other, :one], self.last.bias[:other]))]

    def head(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out = F.conv2d(features[0], self.predict.weight[:, : features[0].shape[1]], self.predict.bias)
        out = out.flatten(2).transpose(1, 2)
        return out[..., :1], out[..., 1:]

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Annotations], raw: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        logits, distances = self.head(features) if raw is None else raw
        wanted = torch.tensor([float(len(target)) for target in targets])
        return {"class": (logits.mean((1, 2)) - wanted).square().mean(), "box": distances.square().mean()}

    def distillation(
        self,
        features: Sequence[Tensor],
        soft: tuple[Tensor, ...],
        threshold: float,
        raw: tuple[Tensor, ...] | None = None,
    ) -> dict[str, Tensor]:
        logits, distances = self.head(features) if raw is None else raw
        return {"class": (logits - soft[0]).square().mean(), "box": (distances - soft[1]).square().mean()}


def bank(config: SlimConfig, *terms: Term, seed: int = 0) -> tuple[Objective, Slim]:
    detector = ToyBank()
    slim = Slim(config, terms or [Supervised()], detector.macs, seed)
    return Objective(detector, [slim], 0.9, warm=False).train(), slim


# The model batch.


@given(
    st.lists(st.sampled_from((0.125, 0.25, 0.5, 0.75, 1.0)), min_size=1, unique=True),
    st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6), st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_a_batch_holds_the_largest_and_the_smallest_and_no_model_twice(
    choices: list[float], stages: int, count: int, step: int, each: bool
) -> None:
    found = model_batch(choices, stages, count, 3, step, each)
    assert found[0] == (max(choices),) * stages
    assert found[-1] == (min(choices),) * stages
    assert len(set(found)) == len(found) == min(count, len(choices) ** (stages if each else 1))
    assert all(len(one) == stages and set(one) <= set(choices) for one in found)
    assert each or all(len(set(one)) == 1 for one in found)
    assert found == model_batch(choices[::-1], stages, count, 3, step, each), "seed and step decide, nothing else"


def test_draws_vary_with_step_and_seed_and_visit_every_width() -> None:
    drawn = [tuple(model_batch(CHOICES, 3, 4, seed, step)) for seed in (0, 1) for step in range(50)]
    assert len(set(drawn)) > 90
    for stage in range(3):
        assert {models[1][stage] for models in drawn} == set(CHOICES)


# Confidence, sharpening, the ensemble.


def test_confidences_by_hand() -> None:
    macs, distances = [6.0, 3.0, 1.0], [0.0, 0.25, 2.0]
    assert confidence("uniform", macs, distances, 1.0) == pytest.approx([1 / 3] * 3)
    assert confidence("macs", macs, distances, 1.0) == pytest.approx([0.6, 0.3, 0.1])
    assert confidence("hinge", macs, distances, 1.0) == pytest.approx([1 / 1.75, 0.75 / 1.75, 0.0])


def test_sharpening_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(sharpen(p, 0.5), expected)
    torch.testing.assert_close(sharpen(p, 1.0), p)


def random_raws(models: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(models)
    return [(3 * torch.randn(2, 7, 3), 2 * torch.randn(2, 7, 4)) for _ in range(models)]


def test_the_ensemble_averages_probabilities_and_sides() -> None:
    raws, weights = random_raws(3), [0.5, 0.3, 0.2]
    logits, distances = dense_ensemble(raws, weights, 1.0)
    p = sum(w * raw[0].sigmoid() for w, raw in zip(weights, raws, strict=True))
    sides = sum(w * F.softplus(raw[1]) for w, raw in zip(weights, raws, strict=True))
    torch.testing.assert_close(logits.sigmoid(), p)
    torch.testing.assert_close(F.softplus(distances), sides)
    sharp = dense_ensemble(raws, weights, 0.5)[0].sigmoid()
    torch.testing.assert_close(sharp, p**2 / (p**2 + (1 - p) ** 2), atol=1e-5, rtol=1e-4)
    alone = dense_ensemble(raws[:1], [1.0], 1.0)
    for found, raw in zip(alone, raws[0], strict=True):
        torch.testing.assert_close(found, raw, atol=1e-3, rtol=1e-3)


def test_distance_is_upem_s_terms_weighted_by_the_largest_model_s_scores() -> None:
    one, largest = random_raws(2)
    total = weight = 0.0
    points = np.stack(np.meshgrid(np.arange(7.0), [0.0]), -1).reshape(-1, 2)
    for image in range(2):
        for a, (x, y) in enumerate(points):
            boxes = []
            for raw in (one, largest):
                left, up, right, down = F.softplus(raw[1][image, a]).tolist()
                boxes.append(torch.tensor([[x - left, y - up, x + right, y + down]]))
            p, q = one[0][image, a].sigmoid(), largest[0][image, a].sigmoid()
            total += float(q.max() * ((p - q).norm() + 1 - box_iou(*boxes)[0, 0]))
            weight += float(q.max())
    assert dense_distance(one, largest) == pytest.approx(total / weight, rel=1e-4)
    assert dense_distance(one, one) == pytest.approx(0.0, abs=1e-5)


# The term.


class Restless(Term):
    """Draws random numbers, and has parameters and a memory of its own."""

    views: ClassVar[tuple[View, ...]] = ("source_strong",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("memory", torch.zeros(()))

    def forward(self, step: Step) -> dict[str, Tensor]:
        raw = step.raw("source_strong")[0]
        noise = torch.rand(len(raw), 1, 1)
        return {"restless/noise": 0.1 * (self.scale * raw * noise - self.memory).square().mean()}

    def after_step(self, detector: Detector) -> None:
        self.memory.mul_(0.9).add_(0.1 * float(next(detector.parameters()).detach().mean()))


class Again(Term):
    """Asks for views that other terms ask for too."""

    views: ClassVar[tuple[View, ...]] = ("source_strong", "target_strong")

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"again/loss": step.raw("source_strong")[0].mean() + step.average_raw("target_weak")[0].mean()}


def test_each_model_forwards_once_and_the_teacher_once_at_full_width() -> None:
    objective, _ = bank(SlimConfig(models=3), Supervised(), Teacher(SOFT, Known.fixed([0.3])), Again())
    objective(*ToyLoader(2).batch(0), 0.5)
    detector, average = objective.detector, objective.average
    assert isinstance(detector, ToyBank)
    assert isinstance(average, ToyBank)
    assert [images for _, images in detector.log] == [4, 4, 4]
    assert detector.log[0][0] == (1.0, 1.0)
    assert detector.log[-1][0] == (0.25, 0.25)
    assert average.log == [((1.0, 1.0), 2)]
    assert detector.widths == (1.0, 1.0), "what follows finds the largest model"


def test_losses_are_those_of_each_model_alone() -> None:
    source, target = ToyLoader(2).batch(0)
    for reduce, divide in (("mean", 3), ("sum", 1)):
        config = SlimConfig(models=3, reduce=reduce, ensemble=0)
        objective, _ = bank(config, Supervised(0.5), Teacher(SOFT, Known.fixed([0.3])))
        losses = objective(source, target, 0.5)
        alone: dict[str, Tensor] = {}
        for widths in model_batch(CHOICES, 2, 3, 0, 0):
            plain = Objective(ToyBank(), [Supervised(0.5), Teacher(SOFT, Known.fixed([0.3]))], 0.9, warm=False).train()
            plain.detector.set_width(widths)
            for name, loss in plain(source, target, 0.5).items():
                alone[name] = alone.get(name, torch.zeros(())) + loss / divide
        assert losses.keys() == alone.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, alone[name])


def test_the_ensemble_teaches_every_model_and_gets_no_gradient() -> None:
    source, target = ToyLoader(2).batch(0)
    config = SlimConfig(models=3, confidence="macs", temperature=0.5, ensemble=2.0, ramp=0.5)
    objective, _ = bank(config)
    losses = objective(source, target, 0.25)
    detector = ToyBank().train()
    batch = model_batch(CHOICES, 2, 3, 0, 0)
    raws = []
    for widths in batch:
        detector.set_width(widths)
        # As in the step: the views of one model pass it together.
        both = detector.head(detector.features(torch.cat([source.strong, target.strong])))
        raws.append(tuple(raw[2:] for raw in both))
    macs = [detector.macs(widths) for widths in batch]
    with torch.no_grad():
        soft = dense_ensemble(raws, [m / sum(macs) for m in macs], 0.5)
    for i, name in enumerate(("class", "box")):
        expected = 2.0 * 0.5 * sum((raw[i] - soft[i]).square().mean() for raw in raws) / 3
        torch.testing.assert_close(losses[f"slim/{name}"], expected)
    (losses["slim/class"] + losses["slim/box"]).backward()
    expected = sum((raw[i] - soft[i]).square().mean() for raw in raws for i in (0, 1)) / 3
    expected.backward()
    for found, other in zip(objective.detector.parameters(), detector.parameters(), strict=True):
        torch.testing.assert_close(found.grad, other.grad)


@pytest.mark.parametrize("kind", ["uniform", "macs", "hinge"])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_every_parameter_gets_a_gradient_in_every_step(kind: str, view: str) -> None:
    objective, slim = bank(SlimConfig(models=2, confidence=kind, view=view), Supervised(), Restless())
    for step in range(3):
        losses = objective(*ToyLoader(2).batch(step), 0.5)
        sum(losses.values()).backward()
        for name, parameter in [*objective.detector.named_parameters(), *slim.named_parameters()]:
            assert parameter.grad is not None, name
        objective.zero_grad()
        objective.after_step(step + 1)
    assert int(slim.done) == 3


def test_running_statistics_are_those_of_the_largest_model() -> None:
    source, target = ToyLoader(2).batch(0)
    objective, _ = bank(SlimConfig(models=4), Supervised())
    objective(source, target, 0.5)
    alone = ToyBank().train()
    alone.features(torch.cat([source.strong, target.strong]))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(objective.detector.get_buffer(f"norm.{name}"), alone.get_buffer(f"norm.{name}"))
    assert isinstance(objective.detector, ToyBank)
    assert isinstance(objective.detector.norm, SlicedNorm)
    assert objective.detector.norm.momentum == 0.1


# In the loop.


def train(path: Path, stop: int | None = None, third: bool = False, **changes: Any) -> tuple[Run, Objective]:
    """Train the bank into `path`, or go on there; everything but the run folder is new, as in another process."""
    torch.manual_seed(7)
    settings = schedule(**changes)
    detector = ToyBank()
    terms = [Supervised(), Teacher(TeacherConfig(boxes=0, soft=1), Known.fixed([0.3])), Restless()]
    slim = Slim.create(SlimConfig(models=3, third=third), detector, terms, 5)
    objective = Objective(detector, [slim], 0.9, warm=True)

    def at(step: int) -> None:
        if stop is not None and step == stop:
            raise KeyboardInterrupt

    run = Run.create(path, Manifest(verb="adapt"))
    fit(run, objective, ToyLoader(2, at), settings, accelerator("fp32"))
    return run, objective


@pytest.mark.parametrize("third", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_last_bit(third: bool, tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", third=third)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop=8, third=third)
    killed, _ = train(tmp_path / "killed", third=third)
    assert {k: v for line in killed.metrics() for k, v in line.items() if k != "images_per_s"} == {
        k: v for line in whole.metrics() for k, v in line.items() if k != "images_per_s"
    }
    found, expected = (safetensors.torch.load_file(checkpoint(run, 12)) for run in (killed, whole))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_two_processes_train_the_same_models_as_one(tmp_path: Path) -> None:
    """Both see the same images here, so they end where one process ends, if they draw the same widths."""
    alone, _ = train(tmp_path / "one", steps=5)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, __file__, str(tmp_path / "two")], capture_output=True, text=True, timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (safetensors.torch.load_file(checkpoint(run, 5)) for run in (Run.open(tmp_path / "two"), alone))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_bank_learns_at_every_width(tmp_path: Path) -> None:
    """The mean loss of the smallest and the largest model after training is below what it was."""
    source, _ = ToyLoader(8).batch(1000)
    _, objective = train(tmp_path / "run", steps=40, warmup=0)

    def loss(detector: ToyBank, width: float) -> float:
        detector.set_width(width)
        assert source.targets is not None
        with torch.no_grad():
            return float(sum(detector.losses(detector.features(source.strong), source.targets).values()))

    assert isinstance(objective.detector, ToyBank)
    for width in (0.25, 0.5, 1.0):
        assert loss(objective.detector.train(), width) < loss(ToyBank().train(), width)


def real(**options: Any) -> tuple[Detector, Method]:
    config = ModelConfig(
        kind="slimmable", backbone="lcnet_050", image_size=(64, 64), weights="none", channels=16, depth=1
    )
    torch.manual_seed(0)
    detector = build(specify(config, ["car", "person"]))
    adapt = AdaptConfig(teacher=TeacherConfig(soft=1, threshold=0.3), slim=SlimConfig(models=3, **options))
    return detector, method(adapt, detector, source=LabelledSet("none", "coco", ("car", "person"), ()), seed=1)


@pytest.mark.parametrize("kind", ["uniform", "macs", "hinge"])
def test_a_real_bank_adapts(kind: str) -> None:
    """Every parameter learns, in float32 and in bfloat16, and the losses have the terms' names."""
    detector, chosen = real(confidence=kind)
    assert chosen.names == ["slim", "supervised", "teacher"]
    objective = Objective(detector, chosen.terms, 0.9, warm=False).train()
    images = 255 * torch.rand(2, 3, 64, 64)
    box = Annotations(np.float32([[8, 8, 40, 40]]), np.array([0]), np.array([False]))
    source, target = Batch(images, images, [box, box]), Batch(images.flip(1), images.flip(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "uniform"):
        losses = objective(source, target, 0.5)
    parts = [f"{term}/{part}" for term in ("supervised", "teacher", "slim") for part in ("class", "box")]
    assert set(losses) == {*parts, "teacher/soft_class", "teacher/soft_box"}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    objective.after_step(1)


def step_of(objective: Objective) -> dict[str, Tensor]:
    """The losses of a step on random images with a box."""
    images = 255 * torch.rand(2, 3, 64, 64)
    box = Annotations(np.float32([[8, 8, 40, 40]]), np.array([0]), np.array([False]))
    losses: dict[str, Tensor] = objective(
        Batch(images, images, [box, box]), Batch(images.flip(1), images.flip(1)), progress=0.5
    )
    return losses


def reached(loss: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]) -> set[str]:
    """The names of the parameters that a loss has a gradient for, other than zero everywhere."""
    names, values = zip(*parameters, strict=True)
    found = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}


@pytest.mark.parametrize("reaches", [True, False])
def test_the_third_head_is_taught_by_the_ensemble_and_by_nothing_else(reaches: bool) -> None:
    detector, chosen = real(third=True, reaches_features=reaches, threshold=0)
    objective = Objective(detector, chosen.terms, 0.9, warm=False).train()
    (slim,) = chosen.terms
    assert isinstance(slim, Slim)
    assert slim.third is not None
    losses = step_of(objective)
    taught = losses["slim/class"] + losses["slim/box"]
    rest = sum((loss for name, loss in losses.items() if not name.startswith("slim/")), torch.zeros(()))
    own = {name for name, _ in detector.named_parameters() if name.split(".")[0] in detector.predictors}
    third = {name for name, _ in slim.third.named_parameters()}
    assert third == own, "it has the places of the detector's own head"
    assert reached(rest, slim.third.named_parameters()) == set()
    assert reached(taught, slim.third.named_parameters()) == third
    by_ensemble = reached(taught, detector.named_parameters())
    assert by_ensemble.isdisjoint(own), "the ensemble's members do not learn from it"
    assert bool(by_ensemble) == reaches
    scores = {name for name in own if name.startswith(("class_tower", "classify"))}
    assert scores <= reached(rest, detector.named_parameters())


def test_the_third_head_starts_as_the_detector_s_own() -> None:
    """Before any step the ensemble's losses of both heads are equal, at every width."""
    detector, chosen = real(third=True)
    (slim,) = chosen.terms
    assert isinstance(slim, Slim)
    assert isinstance(detector, SlimmableDetector)
    detector.eval()
    images = 255 * torch.rand(2, 3, 64, 64)
    batch = Batch(images, images)
    for width in (1.0, 0.5, 0.25):
        detector.set_width(width)
        one = Step(detector, detector, batch, batch, 0.0, ("target_strong",))
        soft = dense_ensemble([detector(images.flip(0))], [1.0], 1.0)
        found, expected = slim._taught(one, soft), one.distillation("target_strong", soft, slim.config.threshold)
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss)


def test_checkpoints_hold_the_third_head_and_every_width_deploys_it(tmp_path: Path) -> None:
    detector, chosen = real(third=True)
    objective = Objective(detector, chosen.terms, 0.0, warm=False).train()
    (slim,) = chosen.terms
    assert isinstance(slim, Slim)
    assert slim.third is not None
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    for step in range(2):
        sum(step_of(objective).values(), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step + 1)
    save(objective.average, tmp_path)
    bank = load(tmp_path)
    kept, own, third = bank.state_dict(), detector.state_dict(), slim.third.state_dict()
    for name, value in own.items():
        assert torch.equal(kept[name], third.get(name, value)), name
    norm = "class_tower.0.norms.0.running_mean"
    for name in ("class_tower.0.conv.weight", "regress.bias", norm):
        assert not torch.equal(third[name], own[name]), name
    assert isinstance(bank, SlimmableDetector)
    plain = bank.extract(0.5)
    found = plain.get_parameter("class_tower.0.conv.weight")
    assert torch.equal(found, third["class_tower.0.conv.weight"][: len(found), : found.shape[1]])


def test_options_of_a_third_head_that_nothing_teaches_are_refused() -> None:
    with pytest.raises(ValidationError, match="third is a head that the ensemble alone teaches"):
        SlimConfig(third=True, ensemble=0)
    with pytest.raises(ValidationError, match="reaches_features = false is an option of third"):
        SlimConfig(reaches_features=False)
    config = Config(adapt=AdaptConfig(slim=SlimConfig(third=True, reaches_features=False)))
    assert config.source_only().adapt.slim == SlimConfig(ensemble=0), "the baseline has no ensemble, so no third"


def test_the_baseline_is_a_bank_without_the_target() -> None:
    config = Config(adapt=AdaptConfig(slim=SlimConfig(models=3)), augment=AugmentConfig(style=0))
    assert uses_target(config)
    alone = config.source_only()
    assert alone.adapt.slim == SlimConfig(models=3, ensemble=0)
    assert not uses_target(alone)
    without = AdaptConfig(teacher=None, slim=SlimConfig())
    assert uses_target(config.model_copy(update={"adapt": without})), "the ensemble sees target images"


def test_critics_of_features_are_refused() -> None:
    detector = ToyBank()
    critics = Adversarial(AdversarialConfig(), [8], 8)
    with pytest.raises(AcclimateError, match=r"adapt\.adversarial: .* channels"):
        Slim.create(SlimConfig(), detector, [Supervised(), critics], 0)


def test_a_detector_of_one_width_is_refused() -> None:
    with pytest.raises(AcclimateError, match=r"adapt\.slim: a dense detector has one width"):
        Slim.create(SlimConfig(), ToyDetector(), [Supervised()], 0)


if __name__ == "__main__":
    train(Path(sys.argv[1]), steps=5)
