"""What a frozen teacher teaches: losses against formulas, both sides of the critics' game kept apart, resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import box_iou
from toy_training import ToyDetector, ToyLoader, stopped_and_resumed

from acclimate.adapt.distillation import (
    RATIOS,
    Distillation,
    FrozenTeacher,
    GanDistillation,
    Imitation,
    Lesson,
    Level,
    channel_loss,
    correspond,
    critic,
    critic_loss,
    gradient_penalty,
    matched,
    near_objects,
    take_head,
)
from acclimate.adapt.methods import method
from acclimate.adapt.objective import Objective, Step
from acclimate.adapt.supervised import Supervised
from acclimate.config import (
    AdaptConfig,
    ChannelConfig,
    DistillationConfig,
    GanConfig,
    ImitationConfig,
    ModelConfig,
    SlimConfig,
    SsdConfig,
    SuppressionConfig,
    TwoStageConfig,
)
from acclimate.data.formats import LabelledSet
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, build, save, specify
from acclimate.structures import Annotations, Batch

LEVEL = Level(0, 0, (8, 8), (8, 8), 1)
NARROW = Level(0, 0, (8, 8), (8, 5), 1)
MODES = ("hinge", "wasserstein-clip", "gradient-penalty")


def gan(mode: str = "hinge", level: Level = LEVEL, **options: Any) -> GanDistillation:
    torch.manual_seed(1)
    return GanDistillation(GanConfig(mode=mode, width=6, **options), [level])


class Given(Lesson):
    """A lesson of given maps."""

    def __init__(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Sequence[Annotations] | None = None
    ) -> None:
        self.view = "source_strong"
        self.student, self.teacher, self.labels = list(student), list(teacher), labels


def lesson(channels: tuple[int, int] = (8, 8), count: int = 3) -> Given:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(count, channels[0], 8, 8, generator=generator).requires_grad_(True)
    return Given([student], [torch.randn(count, channels[1], 8, 8, generator=generator) + 1])


def distillation(seed: int = 3, **options: Any) -> Distillation:
    """Of a toy by another toy; what draws its weights does not disturb the generator of the run."""
    with torch.random.fork_rng():
        teacher = ToyDetector()
        torch.manual_seed(seed)
        for parameter in teacher.parameters():
            nn.init.normal_(parameter, std=0.3)
        config = DistillationConfig(teacher=Path("none"), threshold=0.5, **options)
        return Distillation(config, FrozenTeacher(teacher, ("a",), [0.5], 0.2), [LEVEL], (8, 8), corresponds=True)


# Critics.


def test_critic_losses_are_their_formulas() -> None:
    teacher, student = torch.tensor([-1.5, -0.5, 0.2]), torch.tensor([0.3, 2.0])
    expected = (0 + 0.5 + 1.2) / 3 + (0.7 + 0) / 2
    assert float(critic_loss("hinge", teacher, student)) == pytest.approx(expected)
    for mode in ("wasserstein-clip", "gradient-penalty"):
        assert float(critic_loss(mode, teacher, student)) == pytest.approx(-0.6 - 1.15)


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_the_penalty_of_a_linear_critic_is_that_of_its_slope(seed: int) -> None:
    torch.manual_seed(seed)
    slope = torch.randn(2, 3, 3)
    found = gradient_penalty(lambda x: (x * slope).sum((1, 2, 3)), torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3))
    assert float(found) == pytest.approx((float(slope.norm()) - 1) ** 2, rel=1e-4)


def test_the_penalty_is_taken_between_the_two_sides() -> None:
    """Of D(x) = |x|^2 / 2 the slope is x itself: between 3 and 5, a norm of 3 to 5."""
    torch.manual_seed(0)
    one = torch.full((64, 1, 1, 1), 3.0)
    found = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, one, one + 2)
    assert 4 < float(found.detach()) < 16


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.booleans())
@settings(max_examples=25)
def test_a_critic_halves_any_map_down_to_one_number(height: int, width: int, count: int, normalised: bool) -> None:
    judge = critic(3, (height, width), 4, normalised=normalised)
    assert judge(torch.zeros(count, 3, height, width)).shape == (count,)
    halvings = sum(isinstance(part, nn.Conv2d) and part.stride == (2, 2) for part in judge)
    assert halvings == max(1, math.ceil(math.log2(max(height, width))))


def test_spectral_norms_are_one() -> None:
    found = gan()
    for _ in range(5):
        found([lesson()], 0.0)
    with torch.no_grad():
        # What is known of a norm follows weights that move, and settles once they rest.
        for _ in range(200):
            found.critics[0](lesson().teacher[0])
        for part in found.critics[0]:
            if isinstance(part, nn.Conv2d):
                assert float(torch.linalg.matrix_norm(part.weight.flatten(1), 2)) == pytest.approx(1, rel=0.02)


def test_clipped_weights_are_clipped_from_the_start() -> None:
    found = gan("wasserstein-clip", clip=0.02)
    for _ in range(3):
        largest = max(float(parameter.abs().max()) for parameter in found.critics.parameters())
        assert largest == pytest.approx(0.02)
        found([lesson()], 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_critics_step_by_adam_and_the_student_by_their_scores(mode: str) -> None:
    found, other = gan(mode), gan(mode)
    taught = lesson()
    (student,), (teacher,) = taught.student, taught.teacher
    torch.manual_seed(5)
    loss = found([taught], 0.0)

    judge = other.critics[0].requires_grad_(True)
    optimizer = torch.optim.Adam(judge.parameters(), 5e-4, (0.5, 0.999))
    torch.manual_seed(5)
    own = critic_loss(other.config.mode, judge(teacher), judge(student.detach()))
    if mode == "gradient-penalty":
        own = own + 10 * gradient_penalty(judge, teacher, student.detach())
    own.backward()
    optimizer.step()
    if mode == "wasserstein-clip":
        with torch.no_grad():
            for parameter in judge.parameters():
                parameter.clamp_(-0.03, 0.03)
    for parameter, expected in zip(found.critics.parameters(), judge.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)
    expected = judge(student).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    (wanted,) = torch.autograd.grad(expected, student)
    loss.backward()
    torch.testing.assert_close(student.grad, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_neither_side_leaves_gradients_on_the_other(mode: str) -> None:
    found, taught = gan(mode, NARROW), lesson((8, 5))
    loss = found([taught], 0.0)
    assert taught.student[0].grad is None
    assert all(parameter.grad is None for parameter in found.adapters.parameters())
    loss.backward()
    assert taught.student[0].grad is not None
    assert all(parameter.grad is not None for parameter in found.adapters.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in found.critics.parameters())
    assert not taught.teacher[0].requires_grad


def test_critics_do_not_train_where_the_student_is_only_looked_at() -> None:
    found = gan().eval()
    before = {name: value.clone() for name, value in found.state_dict().items() if isinstance(value, Tensor)}
    found([lesson()], 0.0)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in before.items())


def test_after_the_critics_phase_adapters_have_gradients_of_zero() -> None:
    found, taught = gan(level=NARROW, until=0.5), lesson((8, 5))
    assert found([taught], 0.49) != 0
    assert found.scores().keys() == {"1"}
    loss = found([taught], 0.5)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in found.adapters.parameters())
    assert found.scores() == {}
    assert float(gan(until=0.5)([taught], 0.9)) == 0


def test_scores_are_of_both_sides_and_their_spread() -> None:
    found = gan()
    found._scores = [(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0]))]
    assert found.scores() == {"1": {"teacher": 2.0, "student": 4.0, "spread": pytest.approx(math.sqrt(0.5))}}


@pytest.mark.parametrize("mode", MODES)
def test_features_become_the_teachers(mode: str) -> None:
    """A student of free maps: the two sides' distributions meet."""
    torch.manual_seed(0)
    teacher = 2 + 0.3 * torch.randn(8, 8, 4, 4)
    student = nn.Parameter(0.3 * torch.randn(8, 8, 4, 4))
    found = GanDistillation(GanConfig(mode=mode, width=16, lr=2e-3), [Level(0, 0, (4, 4), (8, 8), 2)])
    optimizer = torch.optim.Adam([student], lr=0.02, betas=(0.5, 0.999))
    before = float((student.detach().mean() - teacher.mean()).abs())
    for _ in range(150):
        optimizer.zero_grad()
        found([Given([student], [teacher])], 0.0).backward()
        optimizer.step()
    assert before == pytest.approx(2, abs=0.05)
    assert float((student.detach().mean() - teacher.mean()).abs()) < 0.35 * before


# Imitation and channels.


def boxes_within(side: float) -> st.SearchStrategy[list[float]]:
    corner, size = st.floats(0, side - 8), st.floats(2, side)
    return st.tuples(corner, corner, size, size).map(
        lambda v: [v[0], v[1], min(side, v[0] + v[2]), min(side, v[1] + v[3])]
    )


@given(st.lists(boxes_within(64), max_size=4), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([(4.0,), (2.0, 3.0)]))
@settings(max_examples=20)
def test_near_objects_is_what_counting_anchors_gives(
    boxes: list[list[float]], near: float, sides: tuple[float, ...]
) -> None:
    sizes = [(8, 8), (4, 4)]
    found = near_objects(torch.tensor(boxes).reshape(-1, 4), sizes, (64, 64), sides, near)
    expected = [np.zeros(size, bool) for size in sizes]
    places, anchors = [], []
    for level, (rows, columns) in enumerate(sizes):
        stride = 64 / rows
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for side in sides:
                    for ratio in RATIOS:
                        w, h = side * stride / math.sqrt(ratio), side * stride * math.sqrt(ratio)
                        places.append((level, row, column))
                        anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    for box in boxes:
        overlaps = box_iou(torch.tensor([box], dtype=torch.float64), torch.tensor(anchors, dtype=torch.float64))[0]
        best = float(overlaps.max())
        for (level, row, column), value in zip(places, overlaps.tolist(), strict=True):
            # Places that rounding decides are left to it.
            decided = abs(value - near * best) > 1e-5
            expected[level][row, column] |= value > near * best > 0 if decided else bool(found[level][row, column])
    for mask, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), wanted)


def annotations(*boxes: Sequence[float], ignore: bool = False) -> Annotations:
    return Annotations(np.float32(boxes).reshape(-1, 4), np.zeros(len(boxes), np.int64), np.full(len(boxes), ignore))


def test_imitation_is_the_distance_near_objects() -> None:
    taught = lesson()
    taught.labels = [annotations([0, 0, 4, 4]), annotations(), annotations([2, 2, 7, 7], ignore=True)]
    found = Imitation(ImitationConfig(), [LEVEL], (8, 8))([taught])
    mask = near_objects(torch.tensor([[0.0, 0, 4, 4]]), [(8, 8)], (8, 8), (4.0,), 0.5)[0]
    apart = (taught.student[0][0] - taught.teacher[0][0]).square().sum(0)[mask].sum()
    assert 0 < int(mask.sum()) < 64
    assert float(found.detach()) == pytest.approx(float(apart.detach() / (2 * mask.sum()) / 3), rel=1e-5)


@given(st.floats(0.5, 5), st.integers(0, 10**6))
@settings(max_examples=15)
def test_channel_loss_is_the_divergence_of_softmaxes(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    own, wanted = ((maps.flatten(2) / temperature).softmax(-1) for maps in (student, teacher))
    expected = temperature**2 * (wanted * (wanted / own).log()).sum() / 6
    assert float(channel_loss(student, teacher, temperature)) == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    shifted = teacher + torch.randn(2, 3, 1, 1, generator=generator)
    assert float(channel_loss(shifted, teacher, temperature)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["imitation", "channel", "response"])
def test_a_student_comes_to_say_what_its_teacher_says(kind: str) -> None:
    chosen: dict[str, Any] = {
        "imitation": {"imitation": ImitationConfig(weight=1, near=0), "response": 0},
        "channel": {"channel": ChannelConfig(weight=100), "response": 0},
        "response": {},
    }[kind]
    term = distillation(**chosen)
    made = Objective(ToyDetector(), [term], 0.9, warm=True).train()
    source, target = ToyLoader(6).batch(0)
    source.targets = [annotations([0, 0, 8, 8])] * 6

    def apart() -> float:
        with torch.no_grad():
            own, other = made.detector.eval(), term._teacher
            found, wanted = own.features(source.strong), other.features(source.weak)
            made.train()
            if kind == "response":
                return float((own.head(found)[0] - other.raw(wanted)[0]).square().mean())
            if kind == "channel":
                return float(channel_loss(found[0], wanted[0], 1.0))
            return float((term.imitation.adapters[0](found[0]) - wanted[0]).square().mean())

    # Strong and weak view are mirrored in the toy, so the teacher is asked about the strong one.
    source.weak = source.strong
    before = apart()
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        sum(made(source, None, 0.0).values()).backward()
        optimizer.step()
    assert apart() < 0.35 * before
    del target


# In the loop.


def test_views_follow_from_whether_there_is_a_target() -> None:
    term = distillation(gan=GanConfig(width=4), channel=ChannelConfig(), imitation=ImitationConfig())
    made = Objective(ToyDetector(), [Supervised(), term], 0.9, warm=True).train()
    source, target = ToyLoader(2).batch(0)
    named = {f"distillation/{name}" for name in ("gan", "imitation", "channel", "soft_class")}
    made.detector.passes.clear()
    assert made(source, None, 0.0).keys() == named | {"supervised/class"}
    assert made.detector.passes == [2]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FrozenTeacher, "targets", lambda self, raw: [annotations([0, 0, 4, 4])] * len(raw[0]))
        made.detector.passes.clear()
        assert made(source, target, 0.0).keys() == named | {"supervised/class"}
        assert made.detector.passes == [4]


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_response_is_the_teachers_in_its_view(view: str) -> None:
    term = distillation(view=view, response=2)
    made = Objective(ToyDetector(), [term], 0.9, warm=True).eval()
    source, target = ToyLoader(2).batch(0)
    assert target is not None
    expected = 0.0
    for batch in (source, target):
        (soft,) = term._teacher.detector(getattr(batch, view))
        expected += float((made.detector(batch.strong)[0] - soft).square().mean())
    found = made(source, target, 0.0)
    assert float(found["distillation/soft_class"].detach()) == pytest.approx(2 * expected, rel=1e-4)


def test_the_teacher_is_in_no_state_and_never_moves() -> None:
    term = distillation(gan=GanConfig(width=4))
    before = [parameter.clone() for parameter in term._teacher.detector.state_dict().values()]
    made = Objective(ToyDetector(), [term], 0.9, warm=True).train()
    sum(made(*ToyLoader(2).batch(0), 0.0).values()).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, term._teacher.detector.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in term._teacher.detector.parameters())
    assert {name.split(".")[0] for name in term.state_dict()} == {"gan"}
    assert set(made.average.state_dict()) == set(ToyDetector().state_dict())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [2, 6, 8])
def test_a_run_with_two_optimisers_goes_on_exactly(mode: str, step: int, tmp_path: Path) -> None:
    def terms() -> list[Any]:
        return [Supervised(), distillation(gan=GanConfig(mode=mode, width=4, until=0.6))]

    (whole, expected), (_, found) = stopped_and_resumed(tmp_path, terms, step)
    assert "critics" in whole.metrics()[0]
    assert "critics" not in whole.metrics()[-1]
    own, wanted = (made.terms[1].gan for made in (found, expected))
    for one, other in zip(own.critics.parameters(), wanted.critics.parameters(), strict=True):
        assert torch.equal(one, other)
    moments, others = (part.get_extra_state()["optimizer"]["state"] for part in (own, wanted))
    assert moments.keys() == others.keys() != set()
    assert all(torch.equal(moments[i][name], value) for i in others for name, value in others[i].items())


# Teacher and student.


def detector(**changes: Any) -> Detector:
    values = {"backbone": "test_efficientnet", "weights": "none", "image_size": (64, 64), "strides": (8, 16)}
    values["ssd"] = SsdConfig(extra=1)
    torch.manual_seed(0)
    config = ModelConfig(**{**values, "channels": 16, "depth": 1, **changes})
    return build(specify(config, ("car", "person")))


def source(*classes: str) -> LabelledSet:
    return LabelledSet("none", "coco", classes or ("car", "person"), ())


def test_levels_are_matched_by_the_size_of_their_maps() -> None:
    student, teacher = detector(), detector(strides=(4, 16), channels=24)
    assert matched(student, teacher) == [Level(1, 1, (4, 4), (16, 24), 16)]
    assert [level.stride for level in matched(student, student)] == [8, 16]
    two = detector(kind="two-stage", two_stage=TwoStageConfig(head="separate-backbone", hidden=16))
    assert [(level.student, level.teacher) for level in matched(two, two)] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [(level.student, level.teacher) for level in matched(two, student)] == [(0, 0), (1, 1)]


def test_outputs_correspond_on_one_grid_of_one_kind() -> None:
    two, ssd = detector(kind="two-stage", two_stage=TwoStageConfig(hidden=16)), detector(kind="ssd")
    assert correspond(ssd, detector(kind="ssd", backbone="lcnet_050"))
    assert not correspond(ssd, detector(kind="ssd", strides=(4, 8)))
    assert not correspond(ssd, two)
    assert correspond(detector(), detector(channels=24, depth=0))
    assert correspond(detector(), detector(kind="slimmable"))
    assert correspond(two, detector(kind="two-stage", two_stage=TwoStageConfig(hidden=8, proposals=8)))
    assert not correspond(detector(), detector(strides=(4, 8)))
    assert not correspond(detector(), two)


@pytest.mark.parametrize("kind", ["dense", "two-stage", "ssd"])
def test_a_student_takes_over_the_teachers_head_alone(kind: str) -> None:
    student, teacher = (detector(kind=kind, two_stage=TwoStageConfig(hidden=16)) for _ in range(2))
    for parameter in teacher.parameters():
        nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    take_head(student, teacher, Path("runs/teacher"))
    for name, value in student.state_dict().items():
        head = name.split(".")[0] in student.predictors
        assert torch.equal(value, (teacher.state_dict() if head else before)[name]), name
    with pytest.raises(AcclimateError, match=r"runs/teacher does not fit the student .*; use head=own, or give"):
        take_head(detector(strides=(4, 8, 16)), teacher, Path("runs/teacher"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"image_size": (96, 64)},
            r"its canvas is 96 x 64, the student's 64 x 64; give both the same model.image_size",
        ),
        ({"strides": (4, 32)}, r"no level of its pyramid has the stride .*\(4, 32 against 8, 16\)"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    save(detector(**changes), tmp_path)
    with pytest.raises(AcclimateError, match=said):
        Distillation.create(
            DistillationConfig(teacher=tmp_path, threshold=0.3, imitation=ImitationConfig()), detector(), source()
        )


def test_a_teacher_of_other_classes_is_refused_and_of_another_order_understood(tmp_path: Path) -> None:
    config = ModelConfig(backbone="test_efficientnet", weights="none", image_size=(64, 64), strides=(8, 16))
    options = DistillationConfig(teacher=tmp_path, threshold=0.0)
    save(build(specify(config, ("bus", "car"))), tmp_path)
    with pytest.raises(AcclimateError, match=r"it knows bus, car, the student car, person; .*source.classes renames"):
        Distillation.create(options, detector(), source())
    teacher = build(specify(config, ("person", "car"))).eval()
    save(teacher, tmp_path)
    term = Distillation.create(options, detector(), source())
    assert not term.corresponds
    images = 255 * torch.rand(2, 3, 64, 64)
    raw = teacher(images)
    for found, expected in zip(term._teacher.targets(raw), teacher.decode(raw), strict=True):
        assert len(expected)
        np.testing.assert_array_equal(found.labels, 1 - expected.labels)
    with pytest.raises(AcclimateError, match="classes are in another order"):
        Distillation.create(options.model_copy(update={"head": "teacher"}), detector(), source())


@pytest.mark.parametrize(
    ("student", "teacher", "named"),
    [
        ({}, {"channels": 24}, {"soft_class", "soft_box"}),
        ({}, {"kind": "two-stage"}, {"box_class", "box_box"}),
        ({"kind": "ssd"}, {"kind": "ssd", "backbone": "lcnet_050"}, {"soft_class", "soft_box"}),
        ({"kind": "ssd"}, {}, {"box_class", "box_box"}),
        ({"kind": "two-stage"}, {}, {"box_proposal_score", "box_proposal_box", "box_roi_class", "box_roi_box"}),
        (
            {"kind": "two-stage"},
            {"kind": "two-stage"},
            {
                "soft_roi_class",
                "soft_roi_box",
                "box_proposal_score",
                "box_proposal_box",
                "box_roi_class",
                "box_roi_box",
            },
        ),
    ],
)
def test_every_kind_learns_from_every_kind(
    student: dict[str, Any], teacher: dict[str, Any], named: set[str], tmp_path: Path
) -> None:
    small = {"two_stage": TwoStageConfig(hidden=16, proposals=8)}
    save(detector(**small, **teacher), tmp_path)
    options = DistillationConfig(
        teacher=tmp_path, threshold=0.01, gan=GanConfig(width=4), imitation=ImitationConfig(), channel=ChannelConfig()
    )
    own = detector(**small, **student)
    chosen = method(AdaptConfig(teacher=None, distillation=options), own, source())
    made = Objective(own, chosen.terms, 0.9, warm=True).train()
    images = 255 * torch.rand(2, 3, 64, 64)
    labelled = Batch(images, images.flip(1), [annotations([8, 8, 40, 40])] * 2)
    losses = made(labelled, Batch(images.flip(0), images), 0.0)
    found = {name.removeprefix("distillation/") for name in losses if name.startswith("distillation/")}
    assert found == named | {"gan", "imitation", "channel"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    unmoved = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert unmoved == []


@pytest.mark.parametrize(
    ("student", "teacher", "soft"),
    [("dense", "dense", 5.0), ("ssd", "ssd", 1.0), ("two-stage", "two-stage", 1.0), ("dense", "two-stage", None)],
)
def test_a_response_weighs_what_suits_the_students_head(
    student: str, teacher: str, soft: float | None, tmp_path: Path
) -> None:
    small = {"two_stage": TwoStageConfig(hidden=16, proposals=8)}
    save(detector(**small, kind=teacher), tmp_path)
    images = 255 * torch.rand(2, 3, 64, 64)
    labelled = Batch(images, images.flip(1), [annotations([8, 8, 40, 40])] * 2)
    losses = []
    for response in ("auto", 1.0):
        options = DistillationConfig(teacher=tmp_path, threshold=0.01, response=response)
        own = detector(**small, kind=student)
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(0.02)
        made = Objective(own, method(AdaptConfig(teacher=None, distillation=options), own, source()).terms, 0.9, True)
        torch.manual_seed(0)
        losses.append(made.eval()(labelled, Batch(images.flip(0), images), 0.0))
    names = [name for name in losses[0] if name.startswith("distillation/")]
    assert names
    assert any(float(losses[1][name]) > 0 for name in names)
    for name in names:
        factor = soft if "/soft_" in name else 1.0
        assert float(losses[0][name]) == pytest.approx(factor * float(losses[1][name]), rel=1e-4)


def test_critics_of_one_number_of_channels_are_not_for_a_bank(tmp_path: Path) -> None:
    bank = detector(kind="slimmable")
    save(detector(), tmp_path)
    for part in ({"gan": GanConfig()}, {"imitation": ImitationConfig()}, {"channel": ChannelConfig()}):
        options = DistillationConfig(teacher=tmp_path, threshold=0.3, **part)
        with pytest.raises(AcclimateError, match=r"adapt.distillation: .*widths differ"):
            method(AdaptConfig(teacher=None, distillation=options, slim=SlimConfig()), bank, source())


def test_a_teacher_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="teaches nothing"):
        DistillationConfig(teacher=Path("x"), response=0)
    with pytest.raises(ValidationError, match="response is a weight from 0 up or 'auto', not -1"):
        DistillationConfig(teacher=Path("x"), response=-1)
    with pytest.raises(ValidationError, match="threshold is a score"):
        DistillationConfig(teacher=Path("x"), threshold=1.5)
    with pytest.raises(ValidationError, match="width is a number of channels, up to 16384, or 'map'"):
        GanConfig(width=0)
    alone = DistillationConfig(teacher=Path("x"), response=0, gan=GanConfig())
    with pytest.raises(ValidationError, match=r"nothing is learnt after distillation\.gan\.until = 0\.7; set it to 1"):
        AdaptConfig(supervised=0, teacher=None, distillation=alone)
    with pytest.raises(ValidationError, match=r"distillation\.gan\.until"):
        AdaptConfig(supervised=0, teacher=None, distillation=alone, suppression=SuppressionConfig())
    assert AdaptConfig(teacher=None, distillation=alone).supervised > 0


@pytest.mark.parametrize(
    "beside",
    [
        {"quantisation": {}}, {"slim": {"ensemble": 1}}, {"labelled": {}}, {"adversarial": {}}, {"teacher": {}},
        {"supervised": 0.1},
    ],
    ids=lambda beside: next(iter(beside)),
)  # fmt: skip
def test_critics_that_end_are_no_fault_beside_what_is_learnt_to_the_end(beside: dict[str, Any]) -> None:
    critics = {"teacher": "x", "response": 0, "gan": {}}
    AdaptConfig.model_validate({"supervised": 0, "teacher": None, "distillation": critics, **beside})


def test_a_step_without_the_target_has_no_view_of_it() -> None:
    term = distillation()
    seen: list[tuple[str, ...]] = []
    made = Objective(ToyDetector(), [term], 0.9, warm=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Distillation, "forward", lambda self, step: seen.append(step.views) or {})
        batch, target = ToyLoader(2).batch(0)
        made(batch, None, 0.0)
        made(batch, target, 0.0)
    assert seen == [("source_strong",), ("source_strong", "target_strong")]
    assert Step(made.detector, made.average, batch, None, 0.0, ("source_weak",)).views == ("source_weak",)


def test_critics_train_in_full_precision_under_autocast() -> None:
    found, taught = gan(), lesson()
    with torch.autocast("cpu", torch.bfloat16):
        loss = found([Given([taught.student[0].bfloat16()], [taught.teacher[0].bfloat16()])], 0.0)
    assert loss.dtype == torch.float32
    assert F.relu(loss.detach()).isfinite()
