"""The mean teacher: weak view to strong view, ramped, weighted, without a gradient into the average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acclimate.adapt.objective import Objective, Step
from acclimate.adapt.supervised import Supervised
from acclimate.adapt.teacher import NEVER, UNSURE, Known, Teacher, as_targets, known_from
from acclimate.boxes.fusion import fuse, mirrored
from acclimate.config import ModelConfig, SsdConfig, TeacherConfig, TwoStageConfig
from acclimate.models.detector import Detector, DetectorSpec, build, specify
from acclimate.structures import Annotations, Batch, Detections
from coloured_squares import SquareDetector, scene


def detector() -> Detector:
    torch.manual_seed(0)
    spec = DetectorSpec(
        classes=("a", "b"), image_size=(64, 64), backbone="test_efficientnet", strides=(8, 16), channels=16, depth=0,
        norm="group",
    )  # fmt: skip
    made = build(spec)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        # A fresh head gives every location the same low score; here there is something to teach.
        made.classify.bias.fill_(-1.0)
        made.classify.weight.mul_(10)
    return made


def batch(seed: int, labelled: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    weak, strong = (255 * torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2))
    one = Annotations(np.array([[8, 8, 40, 48]], np.float32), np.array([1]), np.array([False]))
    return Batch(weak, strong, [one, one] if labelled else None)


def step_of(made: Objective, target: Batch | None = None, progress: float = 1.0) -> Step:
    return Step(made.detector, made.average, batch(1, labelled=True), target or batch(2), progress, made.views)


def objective(thresholds: Sequence[float] = (0.1, 0.1), **changes: Any) -> Objective:
    made = Objective(detector(), [Teacher(TeacherConfig(**changes), Known.fixed(thresholds))], 0.9, warm=False)
    with torch.no_grad():
        for parameter in made.average.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made.train()


SOFT = {"boxes": 0.0, "soft": 1.0}


def test_soft_targets_are_the_averages_weak_view_for_the_detectors_strong_view() -> None:
    made, target = objective(**SOFT), batch(2)
    losses = made.terms[0](step_of(made, target))
    with torch.no_grad():
        expected = made.detector.distillation(made.detector.features(target.strong), made.average(target.weak), 0.1)
        other = made.detector.distillation(made.detector.features(target.weak), made.average(target.strong), 0.1)
    assert set(losses) == {f"teacher/soft_{name}" for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"teacher/soft_{name}"], value, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(value, other[name], rtol=1e-4)


def test_target_boxes_are_the_teachers_sure_detections_and_the_doubtful_are_ignored() -> None:
    made, target = objective(), batch(2)
    with torch.no_grad():
        found = made.average.decode(made.average(target.weak))
    # Thresholds between scores, another for each class, so that there are sure, doubtful and refused detections.
    sure = []
    for label in range(2):
        scores = np.sort(np.concatenate([one.scores[one.labels == label] for one in found]))
        assert len(scores) > 5
        sure.append(float((scores[-2] + scores[-3]) / 2))
    doubt = float(scores[:2].mean()) / min(sure[1], UNSURE)
    made.terms[0] = Teacher(TeacherConfig(doubt=doubt, regression=1.0), Known.fixed(sure))
    losses = made.terms[0](step_of(made, target))
    targets = []
    for one in found:
        needed = [sure[label] for label in one.labels]
        rows = [i for i, score in enumerate(one.scores) if score >= np.float32(doubt * min(needed[i], UNSURE))]
        ignore = np.array([one.scores[i] < needed[i] for i in rows], bool)
        targets.append(Annotations(one.boxes[rows], one.labels[rows], ignore))
    assert {bool(flag) for one in targets for flag in one.ignore} == {True, False}
    assert sum(map(len, targets)) < sum(map(len, found))
    expected = made.detector.losses(made.detector.features(target.strong), targets)
    assert set(losses) == {f"teacher/{name}" for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"teacher/{name}"], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [SOFT, {"doubt": 0.5}])
def test_the_average_gets_no_gradient(changes: dict[str, float]) -> None:
    made = objective(**changes)
    sum(made.terms[0](step_of(made)).values()).backward()
    assert all(parameter.grad is None for parameter in made.average.parameters())
    gradients = [parameter.grad for parameter in made.detector.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_agreeing_with_the_teacher_leaves_the_classes_alone() -> None:
    made = objective(**SOFT)
    made.average.load_state_dict(made.detector.state_dict())
    one = batch(2)
    losses = made.terms[0](step_of(made, Batch(one.weak, one.weak)))
    losses["teacher/soft_class"].backward(retain_graph=True)
    assert max(float(p.grad.abs().max()) for p in made.detector.parameters() if p.grad is not None) < 1e-4
    assert losses["teacher/soft_box"].item() == pytest.approx(0, abs=1e-5)


def test_a_teacher_that_sees_nothing_still_gives_a_finite_loss() -> None:
    made = objective((1.0, 1.0), doubt=1.0, soft=1.0)
    losses = made.terms[0](step_of(made))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["teacher/box"].item() == 0


@pytest.mark.parametrize(
    "kind", [{"soft": 1.0, "boxes": 0.0}, {"soft": 0.0, "boxes": 1.0}, {"soft": 2.0, "boxes": 0.5}]
)
@pytest.mark.parametrize(
    ("progress", "ramp", "factor"), [(0.0, 0.2, 0.0), (0.05, 0.2, 0.25), (0.5, 0.2, 1.0), (0.0, 0.0, 1.0)]
)
def test_the_weights_rise_over_the_ramp(progress: float, ramp: float, factor: float, kind: dict[str, float]) -> None:
    made = objective(ramp=ramp, **kind)
    full = made.terms[0](step_of(made, progress=1.0))
    found = made.terms[0](step_of(made, progress=progress))
    assert found.keys() == full.keys()
    for name, value in full.items():
        assert found[name].item() == pytest.approx(factor * value.item(), rel=1e-5)


def test_each_kind_of_target_has_its_weight() -> None:
    plain = objective(soft=1.0, boxes=1.0, regression=1.0)
    made = objective(soft=0.25, boxes=3.0, regression=1.0)
    made.load_state_dict(plain.state_dict())
    expected, found = plain.terms[0](step_of(plain)), made.terms[0](step_of(made))
    assert set(found) == {"teacher/class", "teacher/box", "teacher/soft_class", "teacher/soft_box"}
    for name, value in expected.items():
        factor = 0.25 if "soft" in name else 3.0
        assert value.item() > 0
        assert found[name].item() == pytest.approx(factor * value.item(), rel=1e-5)


def test_boxes_move_by_their_own_share() -> None:
    plain, made = objective(regression=1.0), objective(regression=0.25, boxes=2.0)
    made.load_state_dict(plain.state_dict())
    expected, found = plain.terms[0](step_of(plain)), made.terms[0](step_of(made))
    assert found["teacher/class"].item() == pytest.approx(2 * expected["teacher/class"].item(), rel=1e-5)
    assert found["teacher/box"].item() == pytest.approx(0.5 * expected["teacher/box"].item(), rel=1e-5)
    assert expected["teacher/box"].item() > 0


FAMILIES = {
    "dense": ({}, {"box"}, {"class"}),
    "ssd": ({"ssd": SsdConfig(extra=1)}, {"box"}, {"class"}),
    "fcos": ({}, {"box"}, {"class", "quality"}),
    "retinanet": ({}, {"box"}, {"class"}),
    "two-stage": (
        {"two_stage": TwoStageConfig(proposals=8, hidden=16, masks=True)},
        {"proposal_box", "roi_box"},
        {"proposal_score", "roi_class", "roi_mask"},
    ),
    "disentangled": (
        {"kind": "two-stage", "two_stage": TwoStageConfig(proposals=8, hidden=16, head="disentangled", constraint=0.2)},
        {"proposal_box", "roi_box", "sibling_box", "constraint_box"},
        {"proposal_score", "roi_class", "sibling_class", "constraint_class"},
    ),
}
"""Of each family of detectors: its options, the losses that move boxes, and the others."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_losses_that_move_boxes_are_known_by_their_kind(family: str) -> None:
    options, moving, others = FAMILIES[family]
    config = ModelConfig(
        **{"kind": family, **options}, image_size=(64, 64), backbone="test_efficientnet", strides=(8, 16), channels=16,
        norm="group", weights="none",
    )  # fmt: skip
    made = build(specify(config, ["a", "b"]))
    assert {name for name, kind in made.loss_kinds.items() if kind == "box"} == moving
    assert set(made.loss_kinds) == moving | others
    labelled = [Annotations(np.array([[8, 8, 40, 48]], np.float32), np.array([1]), np.array([False]))] * 2
    losses = []
    for regression in (1.0, 0.25):
        term = Teacher(TeacherConfig(regression=regression), Known.fixed([0.0, 0.0]))
        whole = Objective(made, [term], 0.9, warm=False).train()
        step = step_of(whole)
        # The same boxes and the same sample of proposals in both.
        step.notes["teacher"] = (
            [Detections(one.boxes, one.labels, np.ones(1, np.float32)) for one in labelled],
            (np.zeros(2, np.float32)),
        )
        torch.manual_seed(0)
        losses.append({name.removeprefix("teacher/"): float(loss.detach()) for name, loss in term(step).items()})
    assert set(losses[0]) == moving | others
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value * (0.25 if name in moving else 1.0), rel=1e-4), name
    assert all(losses[0][name] > 0 for name in moving - {"constraint_box"})


def test_a_teacher_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="teaches nothing"):
        TeacherConfig(boxes=0, soft=0)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "target"])
def test_a_threshold_is_a_score_or_the_sources(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold"):
        TeacherConfig(threshold=threshold)


def found_at(*rows: tuple[float, int, float]) -> Detections:
    """Boxes of 10 x 10 pixels: left edge, label, score; best first."""
    rows = tuple(sorted(rows, key=lambda row: -row[2]))
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([r[1] for r in rows], np.int64), np.array([r[2] for r in rows], np.float32))


def labelled_at(*rows: tuple[float, int, bool]) -> Annotations:
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    return Annotations(boxes, np.array([r[1] for r in rows], np.int64), np.array([r[2] for r in rows], bool))


def thresholds_from(found: Sequence[Detections], truth: Sequence[Annotations], classes: int) -> list[float]:
    return list(known_from(found, truth, classes).thresholds)


def test_source_thresholds_worked_by_hand() -> None:
    # Class 0 is right at 0.9 and 0.6, wrong at 0.7 and 0.3, of two boxes: F0.5 is 5/6, 1/2, 5/7, 5/9. The first wins.
    found = [found_at((0, 0, 0.9), (50, 0, 0.7), (20, 0, 0.6)), found_at((0, 0, 0.3), (0, 1, 0.4))]
    truth = [labelled_at((1, 0, False), (20, 0, False)), labelled_at((0, 1, False))]
    assert thresholds_from(found, truth, 2) == pytest.approx([0.9, 0.4])
    # With a third box, found at 0.8, it is 5/7, 10/11, 2/3, 15/19, 15/23: the second wins.
    found.append(found_at((70, 0, 0.8)))
    truth.append(labelled_at((70, 0, False)))
    assert thresholds_from(found, truth, 1) == pytest.approx([0.8])


def test_a_class_that_is_unsure_on_the_source_gives_no_box() -> None:
    unseen = [Detections.empty()], [labelled_at((0, 0, False))]
    assert thresholds_from(*unseen, 2) == [NEVER, NEVER]
    # One of three is right, whatever the threshold: precision stays below a half.
    found = [found_at((50, 0, 0.9), (90, 0, 0.8), (0, 0, 0.7))]
    assert thresholds_from(found, [labelled_at((0, 0, False))], 1) == [NEVER]
    # One of two is enough.
    assert thresholds_from([found[0][1:]], [labelled_at((0, 0, False))], 1) == pytest.approx([0.7])


def test_a_second_detection_of_one_box_is_wrong() -> None:
    found = [found_at((0, 0, 0.9), (1, 0, 0.8), (30, 0, 0.7))]
    truth = [labelled_at((0, 0, False), (70, 0, False), (110, 0, False))]
    assert thresholds_from(found, truth, 1) == pytest.approx([0.9])


def test_a_threshold_may_fall_as_far_as_two_of_three_are_right() -> None:
    # Right at 0.9 and 0.8; of what is below, 0.7 is wrong (2 of 3 are right), 0.6 too (2 of 4), 0.5 right (3 of 5).
    found = [found_at((0, 0, 0.9), (20, 0, 0.8), (90, 0, 0.7), (130, 0, 0.6), (40, 0, 0.5))]
    truth = [labelled_at((0, 0, False), (20, 0, False), (40, 0, False))]
    known = known_from(found, truth, 1)
    assert (known.thresholds, known.floors, known.rates) == (
        pytest.approx([0.8]), pytest.approx([0.7]), pytest.approx([2.0])
    )  # fmt: skip
    # Three of four are right at 0.2, but it does not fall below a half.
    found = [found_at((0, 0, 0.9), (20, 0, 0.8), (90, 0, 0.7)), found_at((40, 0, 0.2))]
    truth = [labelled_at((0, 0, False), (20, 0, False)), labelled_at((40, 0, False))]
    known = known_from(found, truth, 1)
    assert (known.thresholds, known.floors, known.rates) == (
        pytest.approx([0.8]), pytest.approx([0.4]), pytest.approx([1.0])
    )  # fmt: skip
    # A class that is right less often than that keeps its threshold, and one that is never sure stays so.
    half = known_from([found_at((50, 0, 0.8), (0, 0, 0.7))], [labelled_at((0, 0, False))], 1)
    assert half.floors == half.thresholds == pytest.approx([0.7])
    never = known_from([found_at((50, 0, 0.9))], [labelled_at((0, 0, False))], 1)
    assert never.floors == never.thresholds == [NEVER]


@given(st.integers(0, 9999), st.integers(1, 3))
def test_no_other_threshold_has_a_better_f_half(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [labelled_at(*((40.0 * i, 0, False) for i in range(rng.integers(0, 4)))) for _ in range(images)]
    # One detection near every place, right or wrong, so that matching is never in doubt.
    found = [
        found_at(
            *((40.0 * i + rng.choice([0, 2, 20]), 0, float(rng.uniform(0.01, 1))) for i in range(rng.integers(0, 5)))
        )
        for _ in range(images)
    ]
    total = sum(map(len, truth))

    def f_half(threshold: float) -> tuple[float, float]:
        kept = right = 0
        for detections, labelled in zip(found, truth, strict=True):
            for box, score in zip(detections.boxes, detections.scores, strict=True):
                if score >= np.float32(threshold):
                    kept += 1
                    overlaps = 10 - np.abs(labelled.boxes[:, 0] - box[0])
                    right += bool((overlaps / (20 - overlaps) >= 0.5).any())
        return 1.25 * right / max(kept + 0.25 * total, 1e-9), right / max(kept, 1)

    (chosen,) = thresholds_from(found, truth, 1)
    others = [float(score) for one in found for score in one.scores]
    best = max((f_half(other)[0] for other in others), default=0.0)
    if chosen == NEVER:
        assert best == 0.0 or all(f_half(other)[1] < 0.5 for other in others if f_half(other)[0] == best)
    else:
        assert f_half(chosen)[0] == pytest.approx(best)
        assert f_half(chosen)[1] >= 0.5


def test_the_teacher_beside_the_labels_sees_each_view_once() -> None:
    made = Objective(
        detector(), [Supervised(), Teacher(TeacherConfig(), Known.fixed([0.3, 0.3]))], 0.9, warm=False
    ).train()
    losses = made(batch(1, labelled=True), batch(2), 1.0)
    assert set(losses) == {"supervised/class", "supervised/box", "teacher/class", "teacher/box"}
    sum(losses.values()).backward()


def matched(thresholds: Sequence[float], rates: Sequence[float], floor: float = 0.0) -> Teacher:
    return Teacher(TeacherConfig(threshold="matched"), Known(thresholds, [floor] * len(thresholds), rates))


def test_a_threshold_falls_until_the_target_has_the_sources_rate() -> None:
    # Two images: class 0 is found at 0.55, 0.45, 0.35 and 0.25, so two an image need a threshold of 0.25.
    images = [found_at((0, 0, 0.555), (20, 0, 0.455)), found_at((0, 0, 0.355), (20, 0, 0.255))]
    assert matched([0.5], [0.5])._current(images) == pytest.approx([0.5])
    assert matched([0.5], [1.0])._current(images) == pytest.approx([0.45])
    assert matched([0.5], [1.5])._current(images) == pytest.approx([0.35])
    assert matched([0.5], [2.0])._current(images) == pytest.approx([0.25])
    # Not below its floor, however few there are; and never above the source's.
    assert matched([0.6], [9.0], floor=0.3)._current(images) == pytest.approx([0.3])
    assert matched([0.2], [0.5])._current(images) == pytest.approx([0.2])


def test_matching_remembers_earlier_images() -> None:
    teacher = matched([0.5], [0.96], floor=0.25)
    rich, poor = [found_at((0, 0, 0.455))], [Detections.empty()]
    assert teacher._current(rich) == pytest.approx([0.45])
    assert teacher._current(poor) == pytest.approx([0.25])
    for _ in range(300):
        found = teacher._current([found_at((0, 0, 0.455), (20, 0, 0.405))])
    assert found == pytest.approx([0.45])
    again = matched([0.5], [0.96], floor=0.25)
    again.load_state_dict(teacher.state_dict())
    assert again._current(poor) == pytest.approx(teacher._current(poor))


def test_the_sources_thresholds_stay_where_they_are_not_to_be_matched() -> None:
    teacher = Teacher(TeacherConfig(threshold="source"), Known([0.5], [0.25], [9.0]))
    assert teacher._current([found_at((0, 0, 0.455))]) == pytest.approx([0.5])


def test_a_class_that_is_never_sure_is_ignored_rather_than_unlearned() -> None:
    found = found_at((0, 0, 0.99), (20, 0, 0.21), (40, 0, 0.19), (60, 1, 0.6), (80, 1, 0.3), (100, 1, 0.1))
    targets = as_targets(found, np.array([NEVER, 0.5], np.float32), 0.4)
    assert sorted(zip(targets.boxes[:, 0].tolist(), targets.ignore.tolist(), strict=True)) == [
        (0, True), (20, True), (60, False), (80, True),
    ]  # fmt: skip


def test_an_adaptive_threshold_goes_with_the_teachers_confidence() -> None:
    def adaptive(**known: Any) -> Teacher:
        given = {"thresholds": [0.6], "floors": [0.4], "rates": [1.0], "means": [0.8], **known}
        return Teacher(TeacherConfig(threshold="adaptive"), Known(**given))

    # It starts at the source's mean score, 0.8, and a step moves it by a twentieth towards the target's.
    assert adaptive()._current([Detections.empty()]) == pytest.approx([0.6])
    assert adaptive()._current([found_at((0, 0, 0.7), (20, 0, 0.5))]) == pytest.approx(
        [0.6 * (0.95 + 0.05 * 0.6 / 0.8)]
    )
    teacher = adaptive()
    for _ in range(300):
        low = teacher._current([found_at((0, 0, 0.6), (20, 0, 0.1))])
    assert low == pytest.approx([0.6 * 0.6 / 0.8]), "what is below the floor is no confidence"
    for _ in range(300):
        floor = teacher._current([found_at((0, 0, 0.4))])
    assert floor == pytest.approx([0.4])
    for _ in range(300):
        high = teacher._current([found_at((0, 0, 0.99))])
    assert high == pytest.approx([0.6 * 0.99 / 0.8], rel=1e-4), "scores that self-training raises raise it too"
    again = adaptive()
    again.load_state_dict(teacher.state_dict())
    assert again._current([Detections.empty()]) == pytest.approx(high, rel=1e-4)
    assert adaptive(thresholds=[NEVER], means=[0.1])._current([found_at((0, 0, 0.9))]) == [NEVER]


def test_a_threshold_that_does_not_adapt_keeps_no_state_of_it() -> None:
    assert not {"means", "confidence"} & set(matched([0.5], [1.0]).state_dict())


def test_the_mean_score_is_of_what_reaches_the_floor() -> None:
    found = [found_at((0, 0, 0.9), (20, 0, 0.8), (90, 0, 0.7), (130, 0, 0.6), (40, 0, 0.5))]
    known = known_from(found, [labelled_at((0, 0, False), (20, 0, False), (40, 0, False))], 1)
    assert known.floors == pytest.approx([0.7])
    assert known.means == pytest.approx([0.8])


def test_two_looks_are_fused_into_target_boxes() -> None:
    made, target = objective(flip=True, regression=1.0), batch(2)
    with torch.no_grad():
        first = made.average.decode(made.average(target.weak))
        turned = made.average.decode(made.average(target.weak.flip(-1)))
    wanted = [
        as_targets(fuse([one, mirrored(other, 64)]), np.full(2, 0.1, np.float32), 0.2)
        for one, other in zip(first, turned, strict=True)
    ]
    losses = made.terms[0](step_of(made, target))
    expected = made.detector.losses(made.detector.features(target.strong), wanted)
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"teacher/{name}"], value, rtol=1e-4, atol=1e-6)
    one_look = objective(regression=1.0).terms[0](step_of(objective(), target))
    assert losses["teacher/class"].item() != pytest.approx(one_look["teacher/class"].item())


def test_a_larger_look_reads_the_larger_view() -> None:
    made, target = objective(scale=1.5), batch(2)
    target.large = 255 * torch.rand(2, 3, 96, 96)
    losses = made.terms[0](step_of(made, target))
    other = batch(2)
    other.large = target.large.flip(2)
    assert losses["teacher/class"].item() != pytest.approx(made.terms[0](step_of(made, other))["teacher/class"].item())


@pytest.mark.parametrize("part", ["confident", "random"])
def test_mixed_images_have_the_boxes_of_both_domains(part: str) -> None:
    made = objective(mix=0.5, mix_part=part)
    assert made.views == ("target_strong", "mixed")
    losses = made(batch(1, labelled=True), batch(2), 1.0)
    assert set(losses) == {"teacher/class", "teacher/box", "teacher/mix_class", "teacher/mix_box"}
    assert losses["teacher/mix_box"].item() > 0
    sum(losses.values()).backward()
    half, whole = objective(mix=0.5, boxes=0), objective(mix=1.0, boxes=0)
    whole.load_state_dict(half.state_dict())
    assert half.views == ("mixed",)
    given = batch(1, labelled=True), batch(2)
    assert half(*given, 1.0)["teacher/mix_class"].item() == pytest.approx(
        0.5 * whole(*given, 1.0)["teacher/mix_class"].item(), rel=1e-4
    )


def test_looks_of_soft_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="scale and flip"):
        TeacherConfig(boxes=0, soft=1, flip=True)


def test_what_is_found_again_in_source_images_is_a_target_whatever_its_score() -> None:
    detector = SquareDetector().eval()

    def images(seeds: Sequence[int], squares: int) -> torch.Tensor:
        pictures = np.stack([scene(seed, squares=squares)[0] for seed in seeds])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()

    grounds, target = images([10, 11], 0), images([0, 1], 4)
    step = Step(
        detector, detector, Batch(grounds, grounds, []), Batch(target, target), 1.0, ("target_strong",)
    )  # fmt: skip
    seen = detector.decode(detector(target))
    assert [len(one.above(0.5)) for one in seen] == [4, 4]
    # As a shift would have lowered their scores; in the second image the first box is called by the wrong class.
    labels = seen[1].labels.copy()
    labels[0] = 1 - labels[0]
    found = [
        Detections(seen[0].boxes, seen[0].labels, seen[0].scores * 0.5),
        Detections(seen[1].boxes, labels, seen[1].scores * 0.5),
    ]
    sure = {}
    for mining in (0, 2):
        teacher = Teacher(TeacherConfig(mining=mining), Known.fixed([0.9, 0.9]))
        step.notes = {"teacher": (found, np.float32([0.9, 0.9]))}
        sure[mining] = [~one.ignore for one in teacher._targets(step)]
    assert not any(one.any() for one in sure[0])
    assert sure[2][0][:4].all()
    assert not sure[2][1][0]
    assert sure[2][1][1:4].all()
    # A class that is never sure on the source stays out.
    never = as_targets(found[0], np.float32([NEVER, NEVER]), 0.0, np.ones(len(found[0]), bool))
    assert never.ignore.all()
