"""Fine-tuning for INT8: against the closed formula, autograd, ONNX Runtime's own quantiser, and its INT8 artifacts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_training import ToyDetector, ToyLoader, stopped_and_resumed
from typer.testing import CliRunner

import coloured_squares as squares
from acclimate import workflow
from acclimate.adapt.methods import method
from acclimate.adapt.objective import Objective
from acclimate.adapt.quantisation import QuantisationAware, rounded_weight
from acclimate.cli import app
from acclimate.config import (
    AdaptConfig,
    Config,
    ModelConfig,
    QuantisationConfig,
    SsdConfig,
    SuppressionConfig,
    TwoStageConfig,
)
from acclimate.data.formats import LabelledSet
from acclimate.edge import engines
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter
from acclimate.export.onnx import Onnx, quantised_modules
from acclimate.models.detector import Detector, build, specify
from acclimate.models.predict import network
from acclimate.models.slimmable import SlimmableDetector
from acclimate.run import Run
from acclimate.structures import Batch
from tiny_job import config as tiny_config
from tiny_job import make_data

SOURCE = LabelledSet("none", "coco", ("car", "person"), ())


def detector(**changes: Any) -> Detector:
    values = {"backbone": "lcnet_050", "weights": "none", "image_size": (64, 64), "strides": (8, 16)}
    values |= {"ssd": SsdConfig(extra=1), "two_stage": TwoStageConfig(hidden=16, proposals=8)}
    torch.manual_seed(0)
    return build(specify(ModelConfig(**{**values, "channels": 16, "depth": 1, **changes}), SOURCE.classes))


def learning(student: Detector, rounded: list[str], **options: Any) -> tuple[Objective, QuantisationAware]:
    term = QuantisationAware(QuantisationConfig(**options), student, rounded)
    return Objective(student, [term], 0.9, warm=False).train(), term


def toy(**options: Any) -> tuple[Objective, QuantisationAware]:
    return learning(ToyDetector(), ["last"], **options)


def activations(found: QuantisationAware) -> dict[str, tuple[float, float]]:
    observers = (one.activation_post_process for one in found.ranges)
    return {name: (float(o.min_val), float(o.max_val)) for (name, _), o in zip(found.sites, observers, strict=True)}


@given(st.integers(0, 2**16), st.sampled_from([(4, 3, 3, 3), (6, 1, 5, 5), (5, 7)]), st.floats(1e-6, 1e3))
def test_a_rounded_weight_is_the_closed_formula(seed: int, shape: tuple[int, ...], scale: float) -> None:
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    found = rounded_weight(weight).double()
    for channel, own in zip(weight.double(), found, strict=True):
        step = float(channel.abs().max()) / 64
        # Half a step of float32's own rounding may send a tie to either side.
        assert (own - channel).abs().max() <= 0.5001 * step
        levels = own / step if step else own
        assert (levels - levels.round()).abs().max() < 1e-3
        assert levels.abs().max() <= 64.001
    exact = weight[1].double()
    step = exact.abs().max() / 64
    wanted = step * torch.clamp(torch.round(exact / step), -64, 64)
    assert torch.allclose(found[1], wanted, rtol=0, atol=float(step) * 1.001)
    assert (torch.isclose(found[1], wanted, rtol=1e-4, atol=float(step) * 1e-3)).double().mean() > 0.99


def test_gradients_go_straight_through() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    factors = torch.randn(4, 3, 3, 3)
    (rounded_weight(weight) * factors).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factors)


def test_folding_batchnorm_multiplies_the_rounded_weight() -> None:
    """Why a shared convolution needs no copy for each BatchNorm behind it."""
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.3, -2.0, 1.0, 7.5, -0.01, 4.0]).view(-1, 1, 1, 1)
    assert torch.allclose(rounded_weight(weight * factors), rounded_weight(weight) * factors, rtol=1e-5)


def test_weights_are_rounded_as_onnx_runtime_rounds_them(tmp_path: Path) -> None:
    plain = base.frozen_copy(detector(norm="frozen"))
    paths = squares.write_scenes(tmp_path / "scenes", 2).paths
    canvases = [letterbox(read_image(path), plain.spec.image_size)[0] for path in paths]
    Onnx().quantise(plain, canvases, tmp_path).write(tmp_path)
    made = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
    modules = [name for name in quantised_modules(plain) if f"{name}.weight_quantized" in made]
    assert len(modules) > 10
    for name in modules:
        weight = plain.get_submodule(name).weight
        scale = made[f"{name}.weight_scale"].reshape(-1, *[1] * (weight.ndim - 1))
        theirs = made[f"{name}.weight_quantized"].astype(np.float32) * scale
        # A tie may go to either side.
        assert np.isclose(rounded_weight(weight).numpy(), theirs, rtol=1e-5, atol=1e-9).mean() > 0.999, name


def test_the_detector_and_its_average_stay_plain() -> None:
    made, term = toy()
    names = set(ToyDetector().state_dict())
    assert set(made.detector.state_dict()) == set(made.average.state_dict()) == names
    images = ToyLoader(2).batch(0)[1].weak
    before = made.detector.eval()(images)[0]
    made.train()
    sum(made(*ToyLoader(2).batch(0), 0.0).values()).backward()
    assert torch.equal(made.detector.eval()(images)[0], before), "what was rounded is not left so"
    assert {name.split(".")[0] for name in term.state_dict()} == {"ranges"}
    assert all(parameter.grad is None for parameter in term._teacher.detector.parameters())
    grads = {name: parameter.grad for name, parameter in made.detector.named_parameters()}
    assert all(grad is not None for grad in grads.values())


def test_ranges_are_those_observed_and_then_stand() -> None:
    made, term = toy(observe=0.5)
    lows, highs = [0.0], [0.0]
    for step in range(4):
        source, target = ToyLoader(3).batch(step)
        assert target is not None
        level = ToyDetector().eval().features(target.weak)[0]
        if step < 2:
            lows.append(float(level.detach().min()))
            highs.append(float(level.detach().max()))
        made(source, target, step / 4)
        ((low, high),) = activations(term).values()
        assert high == pytest.approx(max(highs), rel=1e-5)
        assert low == pytest.approx(min(lows[1:]), abs=1e-6)
    scale = float(term.ranges[0].scale)
    assert scale == pytest.approx(max(highs) / 255, rel=1e-5)


def test_the_lesson_is_the_detector_as_it_was_on_the_same_pixels() -> None:
    made, term = toy(features=2.0)
    source, target = ToyLoader(3).batch(0)
    assert target is not None
    found = made(source, target, 0.0)
    reference = ToyDetector().eval()
    level = reference.features(target.weak)[0]
    wanted = reference.head([level])[0]
    one = term.ranges[0]
    step, zero = float(one.scale), float(one.zero_point)
    seen = step * (torch.clamp(torch.round(level / step) + zero, 0, 255) - zero)
    last = reference.last
    output = nn.functional.conv2d(seen, rounded_weight(last.weight), last.bias).flatten(2).transpose(1, 2)
    expected = (output - wanted).square().mean()
    assert float(found["quantisation/class"].detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    # The first layer is not rounded, and BatchNorm computes with its running statistics.
    assert float(found["quantisation/features"].detach()) == pytest.approx(0.0, abs=1e-9)
    assert float(expected.detach()) > 0


def test_running_statistics_stand_and_modes_come_back() -> None:
    made, _ = toy()
    before = copy.deepcopy(made.detector.norm.state_dict())
    made(*ToyLoader(2).batch(0), 0.0)
    assert made.detector.norm.training
    assert all(torch.equal(value, before[name]) for name, value in made.detector.norm.state_dict().items())


@pytest.mark.parametrize("step", [3, 8])
def test_a_run_goes_on_exactly(step: int, tmp_path: Path) -> None:
    def terms() -> list[Any]:
        return [QuantisationAware(QuantisationConfig(observe=0.6), ToyDetector(), ["last"])]

    (_, expected), (_, found) = stopped_and_resumed(tmp_path, terms, step)
    for own, wanted in zip(found.terms[0].state_dict().values(), expected.terms[0].state_dict().values(), strict=True):
        assert torch.equal(own, wanted)


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm": "frozen"}, {"kind": "ssd"}, {"kind": "two-stage"}, {"kind": "two-stage", "norm": "frozen"}, "slice"],
    ids=["dense", "frozen", "ssd", "two-stage", "two-stage frozen", "slimmable, extracted"],
)
def test_every_detector_learns_in_the_layers_that_its_graph_quantises(changes: Any) -> None:
    if changes == "slice":
        bank = detector(kind="slimmable")
        assert isinstance(bank, SlimmableDetector)
        student = bank.extract(0.5)
    else:
        student = detector(**changes)
    chosen = method(AdaptConfig(quantisation=QuantisationConfig()), student, SOURCE)
    assert chosen.names == ["quantisation"]
    (term,) = chosen.terms
    assert isinstance(term, QuantisationAware)
    assert term.rounded == {name for name, _ in term.sites} & term.rounded, "each is called with its own weight"
    layers = [name for name, part in student.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert layers[0] not in term.rounded
    assert not term.rounded & {"classify", "regress"}
    assert len(term.rounded) > 0.7 * len(layers)
    made = Objective(student, [term], 0.9, warm=False).train()
    images = 255 * torch.rand(2, 3, 64, 64)
    losses = made(Batch(images, images, []), Batch(images, images), 0.0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    silent = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


class Uneven(squares.SquareDetector):
    """What its middle layer reads shares one range with the brightness, which is so large that small values round to 0.

    Those of four channels do, whose mean the layer needs.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.stem.weight[7] = 700 / self.stem.weight[7].numel()
            self.stem.bias[3:7] = 0.3
            self.colour.weight[:, 7] = 0
            self.colour.weight[:2, 3:7] = 0.5
            self.colour.bias[:2] = -0.6

    def distillation(
        self, features: Sequence[Tensor], soft: tuple[Tensor, ...], threshold: float, raw: Any = None
    ) -> dict[str, Tensor]:
        return {"class": (raw[0] - soft[0]).square().mean()}


def test_int8_comes_closer_to_fp32(tmp_path: Path) -> None:
    """One range a tensor takes away the mean of small channels; a bias alone can learn to give it back."""
    student = Uneven()
    paths = squares.write_scenes(tmp_path / "scenes", 12).paths
    images = [to_input(letterbox(read_image(path), squares.CANVAS)[0]) for path in paths]
    reference = logits(network(base.frozen_copy(student)), images[8:])

    def error(name: str) -> float:
        """Of the INT8 artifact on images that it was neither trained nor calibrated on."""
        artifact = exporter("onnx").export(student, tmp_path / name, "int8", paths[:8])
        found = logits(engines.engine("onnx").load(artifact, 1), images[8:])
        return float(np.sqrt(np.square(found - reference).mean()))

    before = error("before")
    made, _ = learning(student, list(quantised_modules(base.frozen_copy(student))), features=0)
    optimizer = torch.optim.Adam([student.colour.bias], lr=0.01)
    seen = torch.cat([torch.from_numpy(image) for image in images[:8]])
    for step in range(40):
        sum(made(Batch(seen, seen, []), Batch(seen, seen), step / 40).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = error("after")
    assert after < 0.5 * before


def logits(run: base.Network, images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([run(image)[0].ravel() for image in images])


@pytest.mark.slow
def test_a_run_is_fine_tuned_from_the_command_line(tmp_path: Path) -> None:
    make_data(tmp_path)
    target = tmp_path / "fog-train" / "images"
    config = tiny_config(tmp_path, tmp_path / "runs")
    source = workflow.train(config, tmp_path / "source")
    adapted = workflow.adapt(source.path, target, tmp_path / "adapted", ["schedule.steps=2"])
    arguments = [
        "adapt", str(adapted.path), "--target", str(target), "--out", str(tmp_path / "rounded"),
        "adapt.quantisation={}", "schedule.steps=3", "schedule.workers=0", "schedule.log_every=1",
    ]  # fmt: skip
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    run = Run.open(tmp_path / "rounded")
    assert run.manifest.notes.method == ("quantisation",)
    kept = run.read("config.json")
    assert (kept["adapt"]["supervised"], kept["adapt"]["teacher"], kept["schedule"]["lr"]) == (0.0, None, 5e-5)
    assert kept["schedule"]["batch_size"] == config.train.batch_size
    assert {"quantisation/class", "quantisation/box", "quantisation/features"} <= set(run.metrics()[-1])
    weights, before = (safetensors.torch.load_file(r.path / "model.safetensors") for r in (run, adapted))
    assert weights.keys() == before.keys()
    assert any(not torch.equal(value, before[name]) for name, value in weights.items())
    # And back: how it was prepared for INT8 is no way to adapt it.
    again = workflow.adapt(run.path, target, tmp_path / "again", ["adapt.quantisation=none", "schedule.steps=1"])
    assert again.manifest.notes.method == ("supervised", "teacher")
    with pytest.raises(AcclimateError, match="fine-tunes a detector that is trained"):
        workflow.distil(source.path, "model.size=nano", tmp_path / "student", ["adapt.quantisation={}"])


def test_the_rest_of_the_lesson_is_off_and_the_schedule_short() -> None:
    config = Config.model_validate({"adapt": {"quantisation": {}}, "train": {"batch_size": 4}})
    assert (config.adapt.supervised, config.adapt.teacher) == (0.0, None)
    assert config.schedule.steps == config.schedule.checkpoint_every < Config().schedule.steps
    assert config.schedule.lr < Config().schedule.lr
    assert config.schedule.batch_size == 4
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again == config
    longer = Config.model_validate({"adapt": {"quantisation": {}}, "schedule": {"steps": 700}})
    assert longer.schedule.checkpoint_every == 700
    both = Config.model_validate({"adapt": {"quantisation": {}, "supervised": 1, "teacher": {}}})
    assert both.adapt.teacher is not None
    assert both.adapt.supervised == 1


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"kind": "slimmable"}, {}, "a bank of widths is not what is exported"),
        ({}, {"suppression": SuppressionConfig(form="reparametrised")}, "adapt.suppression has reparametrised"),
    ],
)
def test_what_cannot_be_rounded_is_told(changes: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(AcclimateError, match=said):
        method(AdaptConfig(quantisation=QuantisationConfig(), **options), detector(**changes), SOURCE)


def test_a_detector_without_such_a_layer_is_told() -> None:
    with pytest.raises(AcclimateError, match="INT8 quantises no layer"):
        QuantisationAware(QuantisationConfig(), ToyDetector(), [])
