"""The loop: exact resume, the order in a step, and closed forms of its schedule, decay and accumulation."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
import toy_training
from torch import Tensor, nn
from toy_training import Restless, ToyDetector, ToyLoader, schedule, train

from acclimate import run as runs
from acclimate.adapt import engine
from acclimate.adapt.engine import accelerator, checkpoint, checkpoints, fit
from acclimate.adapt.objective import Objective, Step, Term, View
from acclimate.adapt.optimisers import parameter_groups, rate
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.teacher import Known, Teacher
from acclimate.config import TeacherConfig
from acclimate.data.dataset import Loader, TrainingSets, Views
from acclimate.data.formats import LabelledImage, LabelledSet, UnlabelledSet
from acclimate.errors import AcclimateError, Interrupted
from acclimate.models.detector import DetectorSpec, build
from acclimate.run import Manifest, Run
from acclimate.structures import Annotations


def terms() -> list[Term]:
    return [Supervised(), Teacher(TeacherConfig(boxes=0, soft=1), Known.fixed([0.3])), Restless()]


def restless() -> list[Term]:
    return [Supervised(), Restless()]


def at(step: int, do: Callable[[], None]) -> Callable[[int], None]:
    return lambda now: do() if now == step else None


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def logged(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in run.metrics()]


def weights(run: Run) -> dict[int, dict[str, Tensor]]:
    return {step: safetensors.torch.load_file(file) for step, file in checkpoints(run).items()}


def assert_same(found: Run, expected: Run) -> None:
    """Every logged number and every bit of every checkpoint."""
    assert logged(found) == logged(expected)
    own, other = weights(found), weights(expected)
    assert own.keys() == other.keys()
    for step, state in other.items():
        assert own[step].keys() == state.keys()
        for name, value in state.items():
            assert torch.equal(own[step][name], value), f"{name} at step {step}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("whole") / "run", terms)[0]


def test_a_run_leaves_its_metrics_and_checkpoints(uninterrupted: Run) -> None:
    assert [line["step"] for line in uninterrupted.metrics()] == [2, 4, 6, 8, 10, 12]
    assert list(checkpoints(uninterrupted)) == [5, 10, 12]
    first = uninterrupted.metrics()[0]
    parts = sum(first[name] for name in ("supervised/class", "teacher/soft_class", "restless/noise"))
    assert first["loss"] == pytest.approx(parts)
    assert first.keys() >= {"lr", "gradient_norm", "images_per_s"}
    assert (uninterrupted.path / "state" / "step.json").is_file()
    runs.discard_state(uninterrupted)
    assert sorted(path.name for path in uninterrupted.path.iterdir()) == ["checkpoints", "metrics.jsonl", "run.json"]


def test_the_same_run_twice_is_the_same_to_the_bit(uninterrupted: Run, tmp_path: Path) -> None:
    assert_same(train(tmp_path / "run", terms)[0], uninterrupted)


@pytest.mark.parametrize("ask", [interrupt, terminate])
@pytest.mark.parametrize("step", [0, 4, 6, 10])
def test_an_interrupted_run_goes_on_exactly(
    step: int, ask: Callable[[], None], uninterrupted: Run, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"after step {step + 1}; run the same command again") as caught:
        train(tmp_path / "run", terms, at(step, ask))
    assert caught.value.step == step + 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert_same(train(tmp_path / "run", terms)[0], uninterrupted)


def test_a_run_interrupted_at_every_step_goes_on_exactly(uninterrupted: Run, tmp_path: Path) -> None:
    for step in range(11):
        with pytest.raises(Interrupted):
            train(tmp_path / "run", terms, at(step, interrupt))
    assert_same(train(tmp_path / "run", terms)[0], uninterrupted)


def test_a_signal_in_the_last_step_ends_the_run_as_usual(uninterrupted: Run, tmp_path: Path) -> None:
    assert_same(train(tmp_path / "run", terms, at(11, interrupt))[0], uninterrupted)


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "AGAIN_S", -1.0)

    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "run", terms, at(3, twice))
    assert not isinstance(caught.value, Interrupted)
    monkeypatch.setattr(runs, "AGAIN_S", 60.0)
    with pytest.raises(Interrupted):
        train(tmp_path / "other", terms, at(3, twice))


def test_an_error_in_a_step_resumes_from_the_last_state(uninterrupted: Run, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        train(tmp_path / "run", terms, at(8, fail))
    run = Run.open(tmp_path / "run")
    assert run.metrics()[-1]["step"] == 8
    assert json.loads((run.path / "state" / "step.json").read_text())["step"] == 5
    assert_same(train(tmp_path / "run", terms)[0], uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8])
def test_a_killed_run_goes_on_exactly(step: int, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, toy_training.__file__, str(tmp_path / "killed"), str(step)], capture_output=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert Run.open(tmp_path / "killed").metrics()[-1]["step"] == step - step % 2
    whole, _ = train(tmp_path / "whole", restless)
    assert_same(train(tmp_path / "killed", restless)[0], whole)


def test_a_half_written_state_is_not_read(uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", terms, at(6, interrupt))
    half = tmp_path / "run" / "state.new"
    half.mkdir()
    (half / "pytorch_model.bin").write_bytes(b"half a file")
    assert_same(train(tmp_path / "run", terms)[0], uninterrupted)
    assert not half.exists()


class Killed(BaseException):
    """Ends the process's work where it stands, past every handler for errors."""


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("moment", range(6))
def test_a_kill_at_any_moment_of_the_swap_leaves_a_state(
    moment: int, existing: bool, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`existing`: whether there is a state to replace; where not, an earlier kill has left only state.old."""
    if existing is False:
        with pytest.raises(Interrupted):
            train(tmp_path / "run", terms, at(2, interrupt))
        (tmp_path / "run" / "state").rename(tmp_path / "run" / "state.old")
    calls = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += saving
            if saving and calls == moment + 1:
                raise Killed
            return real(*args, **kwargs)

        return call

    saving = False
    real_save = engine._save_state

    def save(run: Run, acc: Any, step: int, window: dict[str, float]) -> None:
        nonlocal saving
        saving = step == (10 if existing else 5)
        real_save(run, acc, step, window)
        saving = False

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_save_state", save)
        patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
        patch.setattr(Path, "rename", deadly(Path.rename))
        patch.setattr(engine, "write_text", deadly(engine.write_text))
        try:
            train(tmp_path / "run", terms)
        except Killed:
            left = [name for name in ("state", "state.old") if (tmp_path / "run" / name / "step.json").is_file()]
            assert left, "no complete state is left"
        else:
            assert calls <= moment, "a moment went untried"
    assert_same(train(tmp_path / "run", terms)[0], uninterrupted)


def test_a_finished_run_trains_no_further(uninterrupted: Run, tmp_path: Path) -> None:
    run, _ = train(tmp_path / "run", terms)
    seen: list[int] = []
    train(tmp_path / "run", terms, seen.append)
    assert seen == []
    assert_same(run, uninterrupted)


class Diverges(Term):
    views: ClassVar[tuple[View, ...]] = ("source_strong",)

    def __init__(self, value: float, step: float) -> None:
        super().__init__()
        self.value, self.step = value, step

    def forward(self, step: Step) -> dict[str, Tensor]:
        loss = step.raw("source_strong")[0].mean()
        return {"diverges/loss": loss * (self.value if step.progress >= self.step else 1.0)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_way_out(value: float, tmp_path: Path) -> None:
    with pytest.raises(
        AcclimateError, match=r"the loss is (nan|inf|-inf) at step 7; lower the learning rate \(now 0\.01"
    ):
        train(tmp_path / "run", lambda: [Diverges(value, 0.5)])
    assert list(checkpoints(Run.open(tmp_path / "run"))) == [5]
    assert all(math.isfinite(line["loss"]) for line in Run.open(tmp_path / "run").metrics())
    for state in weights(Run.open(tmp_path / "run")).values():
        assert all(torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point())


def test_the_order_in_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[str] = []

    class Watches(Supervised):
        def forward(self, step: Step) -> dict[str, Tensor]:
            order.append("terms")
            return super().forward(step)

        def after_step(self, detector: nn.Module) -> None:
            order.append("after_step")

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            order.append(name)
            return real(*args, **kwargs)

        return call

    acc = accelerator("fp32")
    monkeypatch.setattr(acc, "backward", noting("backward", acc.backward))
    monkeypatch.setattr(acc, "unscale_gradients", noting("unscale", acc.unscale_gradients))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", noting("clip", nn.utils.clip_grad_norm_))
    monkeypatch.setattr(torch.optim.AdamW, "step", noting("step", torch.optim.AdamW.step))
    objective = Objective(ToyDetector(), [Watches()], 0.9, warm=True)
    given: list[nn.Module] = []

    def one(module: nn.Module) -> None:
        assert all(parameter.grad is not None for parameter in module.parameters())
        given.append(module)
        order.append("one")

    fit(
        Run.create(tmp_path / "run", Manifest(verb="train")),
        objective,
        ToyLoader(4),
        schedule(steps=2, accumulate=2),
        acc,
        transforms=[one, lambda module: order.append("two")],
    )
    micro = ["terms", "backward"]
    assert order == [*micro, *micro, "unscale", "one", "two", "clip", "step", "after_step"] * 2
    assert given == [objective.detector] * 2


def test_a_transform_edits_what_the_optimiser_sees(tmp_path: Path) -> None:
    """Without gradients AdamW only decays: weights by lr times decay, biases and norms not at all."""

    def erase(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.grad.zero_()

    start = ToyDetector().state_dict()
    _, made = train(
        tmp_path / "run", lambda: [Supervised()], transforms=[erase], steps=1, warmup=0, lr=0.01, weight_decay=0.5
    )
    for name, parameter in made.detector.named_parameters():
        factor = 1 - 0.01 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.data, factor * start[name])


def test_only_weights_of_more_than_one_dimension_are_decayed() -> None:
    detector = ToyDetector()
    detector.first.weight.requires_grad_(False)
    objective = Objective(detector, [Supervised(), Restless()], 0.9, warm=True)
    decayed, plain = parameter_groups(objective, schedule(weight_decay=0.3))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(detector.last.weight)]
    assert len(plain["params"]) == 5, "two biases, the norm's two, and the term's scale"


def test_gradients_are_clipped_to_the_norm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    norms: list[float] = []

    def step(self: torch.optim.Optimizer, closure: None = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run, _ = train(tmp_path / "free", lambda: [Supervised(100.0)], clip=None, log_every=1, steps=3)
    free = [line["gradient_norm"] for line in run.metrics()]
    assert norms == pytest.approx(free, rel=1e-4)
    norms.clear()
    run, _ = train(tmp_path / "clipped", lambda: [Supervised(100.0)], clip=0.5, log_every=1, steps=3)
    assert [line["gradient_norm"] for line in run.metrics()] == pytest.approx(free, rel=1e-4)
    assert norms == pytest.approx([0.5] * 3, rel=1e-3)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_batches_are_one_large_batch(accumulate: int, tmp_path: Path) -> None:
    """The same images in both, a loss that is a mean over images, and no BatchNorm."""

    def plain() -> list[Term]:
        return [Supervised()]

    whole, one = train(tmp_path / "whole", plain, norm=False, batch_size=8, log_every=1)
    parts, other = train(
        tmp_path / "parts", plain, norm=False, batch_size=8 // accumulate, accumulate=accumulate, log_every=1
    )
    for name, value in one.detector.state_dict().items():
        torch.testing.assert_close(other.detector.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    for line, expected in zip(parts.metrics(), whole.metrics(), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_an_interrupted_run_with_accumulation_goes_on_exactly(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", terms, accumulate=2)
    with pytest.raises(Interrupted) as caught:
        train(tmp_path / "run", terms, at(6, interrupt), accumulate=2)
    assert caught.value.step == 4
    assert_same(train(tmp_path / "run", terms, accumulate=2)[0], whole)


def test_the_logged_learning_rate_is_the_one_the_step_used(tmp_path: Path) -> None:
    used: list[float] = []

    def note(module: nn.Module) -> None:
        used.append(optimizers[-1].param_groups[0]["lr"])

    optimizers: list[torch.optim.Optimizer] = []
    real = torch.optim.AdamW.__init__

    def keep(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        optimizers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "__init__", keep)
        run, _ = train(tmp_path / "run", lambda: [Supervised()], transforms=[note], log_every=1)
    factor = rate(schedule())
    assert used == pytest.approx([0.01 * factor(step) for step in range(12)])
    assert [line["lr"] for line in run.metrics()] == pytest.approx(used)


def test_logged_values_are_means_since_the_last_line(tmp_path: Path) -> None:
    every, _ = train(tmp_path / "every", terms, log_every=1)
    some, _ = train(tmp_path / "some", terms, log_every=5)
    losses = [line["loss"] for line in every.metrics()]
    assert [line["step"] for line in some.metrics()] == [5, 10, 12]
    for line, part in zip(some.metrics(), (losses[:5], losses[5:10], losses[10:]), strict=True):
        assert line["loss"] == pytest.approx(sum(part) / len(part))


def test_checkpoints_hold_the_average(tmp_path: Path) -> None:
    run, made = train(tmp_path / "run", terms)
    saved = safetensors.torch.load_file(checkpoint(run, 12))
    for name, value in made.average.state_dict().items():
        assert torch.equal(saved[name], value)
    assert not torch.equal(made.average.last.weight, made.detector.last.weight)


def test_the_loaders_threads_end_with_the_run(tmp_path: Path) -> None:
    loader = ToyLoader(4)
    objective = Objective(ToyDetector(), restless(), 0.9, warm=True)
    run = Run.create(tmp_path / "run", Manifest(verb="train"))
    fit(run, objective, loader, schedule(steps=2), accelerator("fp32"))
    assert loader.closed


def test_a_full_disk_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.Accelerator.save_state", full)
    with pytest.raises(AcclimateError, match="the disk is full"):
        train(tmp_path / "run", terms)


def real_sets(folder: Path) -> tuple[LabelledSet, UnlabelledSet]:
    """Six pictures with a rectangle each, and four without labels."""
    rng = np.random.default_rng(0)
    labelled, bare = [], []
    for i in range(10):
        picture = rng.integers(60, 120, (64, 80, 3)).astype(np.uint8)
        x, y = (int(v) for v in rng.integers(2, 30, 2))
        cv2.rectangle(picture, (x, y), (x + 28, y + 24), (30, 40, 230), -1)
        path = folder / f"{i}.png"
        assert cv2.imwrite(str(path), picture)
        boxes = np.array([[x, y, x + 29, y + 25]], np.float32)
        if i < 6:
            labelled.append(
                LabelledImage(path, 64, 80, Annotations(boxes, np.zeros(1, np.int64), np.zeros(1, np.bool_)))
            )
        else:
            bare.append(path)
    return LabelledSet("drawn", "coco", ("thing",), tuple(labelled)), UnlabelledSet(tuple(bare))


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_real_detector_with_threads_and_random_views_goes_on_exactly(norm: str, tmp_path: Path) -> None:
    source, target = real_sets(tmp_path)
    settings = schedule(steps=6, checkpoint_every=4, batch_size=2, workers=2)
    spec = DetectorSpec.model_validate(
        {
            "classes": ("thing",), "image_size": (64, 64), "backbone": "test_efficientnet", "strides": (8, 16),
            "channels": 16, "depth": 1, "norm": norm, "freeze": 1,
        }
    )  # fmt: skip

    def go(path: Path, stop: int | None = None) -> Run:
        torch.manual_seed(3)
        objective = Objective(
            build(spec), [Supervised(), Teacher(TeacherConfig(soft=0.5), Known.fixed([0.05]))], 0.9, warm=True
        )
        loader = Loader(TrainingSets(source, target), Views((64, 64)), settings, seed=5)
        run = Run.create(path, Manifest(verb="train"))
        steps = 0

        def count(module: nn.Module) -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                interrupt()

        transforms: Sequence[Callable[[nn.Module], None]] = [count]
        fit(run, objective, loader, settings, accelerator("fp32"), transforms=transforms)
        return run

    whole = go(tmp_path / "whole")
    for stop in (1, 4):
        with pytest.raises(Interrupted):
            go(tmp_path / "run", stop)
    assert_same(go(tmp_path / "run"), whole)


@pytest.mark.parametrize(("free", "error"), [(1000, AcclimateError), (10**12, RuntimeError)])
def test_torchs_failed_write_is_a_full_disk_only_where_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, error: type[Exception]
) -> None:
    class Writer:
        is_main_process = True

        def wait_for_everyone(self) -> None:
            pass

        def save_state(self, folder: str, safe_serialization: bool) -> None:
            Path(folder).mkdir()
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1640128 vs 1640020")

    run = Run.create(tmp_path / "run", Manifest(verb="train", digest="full"))
    (run.path / "state").mkdir()
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(error, match="disk is full" if error is AcclimateError else "unexpected pos"):
        engine._save_state(run, Writer(), 3, {})  # type: ignore[arg-type]
    assert (run.path / "state").is_dir()
    assert not (run.path / "state.new").exists()
