"""The label-free scores against hand-worked cases, and the choice of a checkpoint made with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import acclimate.select.score as score_module
from acclimate.config import AugmentConfig
from acclimate.models.detector import Detector, DetectorSpec, build, load_weights, save_weights
from acclimate.run import Candidate, Selection
from acclimate.select.score import (
    IMAGES,
    KEPT,
    PLAUSIBLE,
    RULE,
    SHOWN,
    SURE,
    agreement,
    choose_checkpoint,
    consensus,
    kept,
    latest_as_good,
    look,
    plausible,
    rank,
    ranked_by_image,
    score,
    stability,
)
from acclimate.structures import Annotations, Detections

SIZE = (64, 64)


def detections(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    """Rows of x1, y1, x2, y2, label, score."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    table = table[np.argsort(-table[:, 5], kind="stable")]
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(np.float32))


A = (0, 0, 10, 10, 0, 0.9)
B = (20, 20, 40, 40, 1, 0.6)


@st.composite
def images(draw: st.DrawFn) -> Detections:
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    count = draw(st.integers(0, 6))
    corners = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 40, (count, 2))], 1)
    table = np.concatenate([boxes, rng.integers(0, 2, (count, 1)), rng.uniform(0.01, 1, (count, 1))], 1)
    return detections(*(tuple(row) for row in table))


pairs = st.lists(st.tuples(images(), images()), min_size=1, max_size=3)


@pytest.mark.parametrize("measure", [stability, agreement])
def test_identical_detections_score_one(measure) -> None:  # type: ignore[no-untyped-def]
    same = [detections(A, B), detections(B)]
    assert measure(same, same) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", [stability, agreement, consensus])
def test_a_detector_that_shows_nothing_scores_zero(measure) -> None:  # type: ignore[no-untyped-def]
    faint = detections((0, 0, 10, 10, 0, SHOWN - 0.01))
    for nothing in (Detections.empty(), faint):
        assert measure([nothing], [nothing]) == 0
        assert measure([nothing], [detections(A)]) == 0
        assert measure([detections(A)], [Detections.empty()]) == 0
    assert measure([], []) == 0


@pytest.mark.parametrize("measure", [stability, agreement, consensus])
def test_boxes_of_other_classes_or_places_do_not_match(measure) -> None:  # type: ignore[no-untyped-def]
    assert measure([detections(A)], [detections((0, 0, 10, 10, 1, 0.9))]) == 0
    assert measure([detections(A)], [detections((10, 0, 20, 10, 0, 0.9))]) == 0


def test_stability_worked_by_hand() -> None:
    # The first box moves by half its width: IoU 50 / 150. The second is gone. The third image shows none.
    plain = [detections(A, B), detections((0, 0, 20, 20, 0, 0.5)), Detections.empty()]
    dropped = [detections((5, 0, 15, 10, 0, 0.4)), detections((0, 0, 20, 10, 0, 0.3)), detections(A)]
    assert stability(plain, dropped) == pytest.approx((50 / 150 + 0 + 200 / 400) / 3)


def test_a_box_that_grows_faint_under_dropout_still_counts_down_to_half() -> None:
    plain = [detections(A)]
    assert stability(plain, [detections((0, 0, 10, 10, 0, SHOWN / 2 + 0.01))]) == pytest.approx(1.0)
    assert stability(plain, [detections((0, 0, 10, 10, 0, SHOWN / 2 - 0.01))]) == 0


def test_agreement_worked_by_hand() -> None:
    # Matched: IoU 1/3 times the smaller score 0.4. All scores: 0.9 + 0.6 against 0.4.
    weak, strong = [detections(A, B)], [detections((5, 0, 15, 10, 0, 0.4))]
    assert agreement(weak, strong) == pytest.approx(2 * (0.4 / 3) / (0.9 + 0.6 + 0.4))
    # The same boxes, less sure: Dice of the scores.
    assert agreement([detections(A)], [detections((0, 0, 10, 10, 0, 0.5))]) == pytest.approx(2 * 0.5 / 1.4)


def test_consensus_counts_what_both_views_find() -> None:
    weak, strong = [detections(A, B), Detections.empty()], [detections((5, 0, 15, 10, 0, 0.4)), detections(A)]
    assert consensus(weak, strong) == pytest.approx((0.4 / 3) / 2)
    assert consensus([detections(A, B)], [detections(A, B)]) == pytest.approx(0.9 + 0.6)
    # Finding more counts for it, as long as the other view finds it too.
    fewer, more = [detections(A)], [detections(A, B)]
    assert agreement(fewer, fewer) == pytest.approx(agreement(more, more))
    assert consensus(fewer, fewer) < consensus(more, more) == pytest.approx(1.5)
    assert consensus(more, fewer) == pytest.approx(consensus(fewer, fewer))


def test_plausible_worked_by_hand() -> None:
    # Class 0: both views find one of 0.5 IoU and 1.5 boxes are shown on average; class 1: nothing at all.
    weak = [detections((0, 0, 10, 10, 0, 0.9), (30, 30, 40, 40, 0, 0.8))]
    changed = [detections((0, 0, 10, 5, 0, 0.9))]
    assert plausible(weak, changed, [1.5, 0], [1.5, 0]) == pytest.approx(2 * 0.5 / 3)
    # Two opinions that hold 1.5 between them say the same; with at most one object, half a box is false.
    assert plausible(weak, changed, [3.0, 0], [1.0, 0]) == pytest.approx(2 * 0.5 / 3)
    assert plausible(weak, changed, [1.0, 0], [0.5, 0]) == pytest.approx(2 * 0.5 / 2.5)
    # At least four objects: what is missing counts.
    assert plausible(weak, changed, [4.0, 0], [6.0, 0]) == pytest.approx(2 * 0.5 / 5.5)
    # Class 1 should be there and is not. It counts by the square root of its rate.
    assert plausible(weak, changed, [1.5, 0.1], [1.5, 0.4]) == pytest.approx(
        (2 * 0.5 / 3) * 1.5**0.5 / (1.5**0.5 + 0.4**0.5)
    )
    assert plausible(weak, changed, [0, 0], [0, 0]) == 0
    assert plausible([], [], [1.0], [1.0]) == 0


def test_false_boxes_that_both_views_find_raise_consensus_and_lower_plausible() -> None:
    true = [(0, 0, 10, 10, 0, 0.9), (20, 0, 30, 10, 0, 0.9)]
    false = [(0, 20.0 * i, 10, 20.0 * i + 10, 0, 0.8) for i in range(1, 5)]
    honest, fooled = [detections(*true)], [detections(*true, *false)]
    assert consensus(fooled, fooled) > consensus(honest, honest)
    assert agreement(fooled, fooled) == agreement(honest, honest)
    assert plausible(fooled, fooled, [2.0], [1.5]) < plausible(honest, honest, [2.0], [1.5]) == pytest.approx(1.0)


@given(pairs, st.lists(st.floats(0, 9), min_size=2, max_size=2), st.lists(st.floats(0, 9), min_size=2, max_size=2))
def test_plausible_is_a_share_and_its_opinions_are_alike(
    found: list[tuple[Detections, Detections]], one: list[float], other: list[float]
) -> None:
    first, second = zip(*found, strict=True)
    value = plausible(first, second, one, other)
    assert 0 <= value <= 1 + 1e-9
    assert value == pytest.approx(plausible(second, first, other, one))


def test_kept_counts_what_the_start_was_sure_of() -> None:
    start = [detections((0, 0, 10, 10, 0, 0.9), (20, 0, 30, 10, 1, SURE), (50, 0, 60, 10, 0, SURE - 0.01))]
    assert kept(start, start) == 1
    assert kept(start, [detections((0, 0, 10, 6, 0, SHOWN))]) == 0.5
    assert kept(start, [detections((0, 0, 10, 4, 0, 0.9), (20, 0, 30, 10, 0, 0.9))]) == 0, (
        "an IoU of 0.4; a wrong class"
    )
    assert kept([Detections.empty()], [detections(A)]) == 1


def candidate(step: int, rule: float, share: float = 1.0, likely: float = 1.0) -> Candidate:
    return Candidate(step=step, scores={RULE: rule, "kept": share, "plausible": likely})


def test_what_lost_the_start_or_ran_away_is_not_chosen() -> None:
    listed = [
        candidate(0, 0.3, likely=0.5), candidate(10, 0.4, KEPT, PLAUSIBLE * 0.5), candidate(20, 0.9, KEPT - 0.01),
        candidate(30, 0.9, likely=PLAUSIBLE * 0.5 - 0.01),
    ]  # fmt: skip
    assert latest_as_good(listed, [np.full(5, one.scores[RULE]) for one in listed]) == 10


def test_of_checkpoints_that_the_score_cannot_tell_apart_the_latest_is_chosen() -> None:
    values = np.random.default_rng(0).normal([0.60, 0.55, 0.58, 0.40], 0.1, (40, 4))
    differences = values[:, [values.mean(0).argmax()]] - values
    as_good = np.flatnonzero(differences.mean(0) <= differences.std(0, ddof=1) / math.sqrt(40))
    listed = [candidate(i, v) for i, v in enumerate(values.mean(0))]
    assert latest_as_good(listed, list(values.T)) == as_good.max() < 3


def test_few_images_do_not_excuse_a_collapse() -> None:
    unsure = np.array([[0.9, 0.1], [0.4, 0.7], [0.1, 0.7]])
    listed = [candidate(i, v) for i, v in enumerate(unsure.mean(1))]
    assert np.ptp(unsure.mean(1)) < 0.16
    assert latest_as_good(listed, list(unsure)) == 1


def test_boxes_of_the_highest_scores_are_compared_whatever_the_level_of_the_scores() -> None:
    weak = [detections((0, 0, 10, 10, 0, 0.9), (30, 30, 40, 40, 0, 0.3)), detections((0, 0, 10, 20, 0, 0.8))]
    changed = [detections((0, 0, 10, 10, 0, 0.7)), detections((0, 0, 10, 10, 0, 0.6), (30, 0, 40, 40, 0, 0.5))]
    # Two labelled boxes an image on the source, so one is looked at: 0.9 and 0.8 here, 0.7 and 0.6 there.
    assert ranked_by_image(weak, changed, [2.0]).tolist() == pytest.approx([1.0, 0.5])
    fainter = [Detections(one.boxes, one.labels, one.scores / 10) for one in changed]
    assert ranked_by_image(weak, fainter, [2.0]).tolist() == pytest.approx([1.0, 0.5])
    # More boxes are no better, but worse where they are surer than the true ones.
    many = [
        Detections(
            np.concatenate([one.boxes, [[50.0 + i, 0, 60 + i, 9]]]).astype(np.float32),
            np.append(one.labels, 0), np.append(one.scores, np.float32(score)),
        )
        for i, (one, score) in enumerate(zip(changed, (0.2, 0.95), strict=True))
    ]  # fmt: skip
    assert ranked_by_image(weak, many, [2.0]).tolist() == pytest.approx([1.0, 0.0])
    # A class of which a view shows none counts as missed, by the square root of its rate.
    assert ranked_by_image(weak, changed, [2.0, 8.0]).mean() == pytest.approx(0.75 / (1 + 2))
    assert ranked_by_image([], [], [1.0]).tolist() == []


def test_matching_is_the_best_one_to_one_and_not_greedy() -> None:
    # Greedy by score would give the first box the second's perfect partner (10 x 8), of which it overlaps more.
    plain = [detections((0, 0, 10, 10, 0, 0.9), (0, 0, 10, 8, 0, 0.8))]
    other = [detections((0, 0, 10, 8, 0, 0.9), (0, 0, 10, 13, 0, 0.8))]
    assert stability(plain, other) == pytest.approx((10 / 13 + 1) / 2)


@given(pairs)
def test_scores_are_between_zero_and_one(found: list[tuple[Detections, Detections]]) -> None:
    first, second = zip(*found, strict=True)
    for value in (stability(first, second), agreement(first, second)):
        assert 0 <= value <= 1 + 1e-6


@given(pairs)
def test_agreement_is_symmetric(found: list[tuple[Detections, Detections]]) -> None:
    first, second = zip(*found, strict=True)
    assert agreement(first, second) == pytest.approx(agreement(second, first), abs=1e-6)


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_images_and_boxes_does_not_matter(found, random) -> None:  # type: ignore[no-untyped-def]
    first, second = zip(*found, strict=True)
    mixed = []
    for pair in found:
        shuffled = []
        for one in pair:
            order = list(range(len(one)))
            random.shuffle(order)
            shuffled.append(one[np.array(order, np.int64)])
        mixed.append(tuple(shuffled))
    random.shuffle(mixed)
    left, right = zip(*mixed, strict=True)
    assert stability(left, right) == pytest.approx(stability(first, second), abs=1e-6)
    assert agreement(left, right) == pytest.approx(agreement(first, second), abs=1e-6)


def selection(*scores: dict[str, float]) -> Selection:
    candidates = tuple(Candidate(step=10 * (i + 1), scores=one) for i, one in enumerate(scores))
    return Selection(rule="agreement", chosen_step=10, candidates=candidates)


def test_rank_correlation_worked_by_hand() -> None:
    # Of the six pairs, `up` orders all as AP50 does, `down` none, and `mixed` five: (5 - 1) / 6.
    made = selection(
        {"up": 0.1, "down": 0.9, "mixed": 0.1, "flat": 0.5},
        {"up": 0.2, "down": 0.8, "mixed": 0.3, "flat": 0.5},
        {"up": 0.3, "down": 0.7, "mixed": 0.2, "flat": 0.5},
        {"up": 0.4, "down": 0.6, "mixed": 0.4, "flat": 0.5},
    )
    ranked = rank(made, {10: 0.50, 20: 0.55, 30: 0.60, 40: 0.61})
    assert ranked.rank_correlation == pytest.approx({"up": 1.0, "down": -1.0, "mixed": 4 / 6})
    assert [candidate.hindsight_ap50 for candidate in ranked.candidates] == [0.50, 0.55, 0.60, 0.61]
    assert (ranked.rule, ranked.chosen_step) == (made.rule, made.chosen_step)
    assert made.candidates[0].hindsight_ap50 is None


def test_candidates_without_a_measurement_stay_out_of_the_correlation() -> None:
    made = selection({"up": 0.1}, {"up": 0.9}, {"up": 0.2})
    ranked = rank(made, {10: 0.3, 30: 0.4})
    assert ranked.rank_correlation == {"up": 1.0}
    assert ranked.candidates[1].hindsight_ap50 is None
    assert rank(made, {20: 0.3}).rank_correlation == {}
    assert rank(made, {}).rank_correlation == {}


def detector() -> Detector:
    torch.manual_seed(0)
    return build(
        DetectorSpec(
            classes=("thing",), image_size=SIZE, backbone="test_efficientnet", strides=(8, 16), channels=16, depth=1,
            norm="group",
        )
    )  # fmt: skip


def pictures(folder: Path, count: int) -> tuple[list[Path], list[np.ndarray], list[Annotations]]:  # type: ignore[type-arg]
    """Grey pictures with one bright rectangle each, the size of the canvas."""
    rng = np.random.default_rng(0)
    paths, canvases, targets = [], [], []
    for i in range(count):
        canvas = rng.integers(80, 110, (*SIZE, 3)).astype(np.uint8)
        x, y = (int(v) for v in rng.integers(2, 30, 2))
        cv2.rectangle(canvas, (x, y), (x + 27, y + 27), (235, 225, 40), -1)
        paths.append(folder / f"{i:02d}.png")
        assert cv2.imwrite(str(paths[-1]), canvas[..., ::-1])
        canvases.append(canvas)
        box = np.array([[x, y, x + 28, y + 28]], np.float32)
        targets.append(Annotations(box, np.zeros(1, np.int64), np.zeros(1, np.bool_)))
    return paths, canvases, targets


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[np.ndarray]]:  # type: ignore[type-arg]
    """Weights that find the rectangles, and the pictures."""
    folder = tmp_path_factory.mktemp("score")
    paths, canvases, targets = pictures(folder, 4)
    images = torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float()
    model = detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.losses(model.features(images), targets).values()).backward()
        optimizer.step()
    save_weights(model, folder / "weights" / "trained.safetensors")
    return folder / "weights" / "trained.safetensors", paths, canvases


def test_scores_of_a_detector(trained) -> None:  # type: ignore[no-untyped-def]
    weights, _, canvases = trained
    model = detector()
    load_weights(model, weights)
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    looks = look(model, canvases, canvases, seed=3)
    found = score(looks, looks, [1.0])
    assert found["agreement"] == pytest.approx(1.0, abs=1e-5), "two views of the same pixels"
    assert 0 < found["stability"] <= 1
    assert found["kept"] == 1
    assert found["plausible"] > 0.5
    again = look(model, canvases, canvases, seed=3)
    assert score(again, again, [1.0]) == found
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_trained_checkpoint_is_chosen_and_left_in_the_detector(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    weights, paths, _ = trained
    random = tmp_path / "random.safetensors"
    save_weights(detector(), random)
    ticks: list[tuple[int, int]] = []
    for checkpoints, best in (({100: weights, 200: random}, 100), ({100: random, 200: weights}, 200)):
        model = detector()
        chosen = choose_checkpoint(
            model, checkpoints, paths[:4], AugmentConfig(), 1, [1.0], progress=lambda *now: ticks.append(now)
        )
        assert chosen.chosen_step == best
        assert chosen.rule == RULE
        assert [candidate.step for candidate in chosen.candidates] == [100, 200]
        reference = detector()
        load_weights(reference, weights)
        assert all(torch.equal(value, reference.state_dict()[name]) for name, value in model.state_dict().items())
    assert ticks == [(1, 2), (2, 2)] * 2


def test_between_equals_the_later_checkpoint_is_chosen(trained) -> None:  # type: ignore[no-untyped-def]
    weights, paths, _ = trained
    assert choose_checkpoint(detector(), {5: weights, 9: weights}, paths, AugmentConfig(), 0, [1.0]).chosen_step == 9


def test_many_checkpoints_look_at_fewer_images(trained, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    weights, paths, _ = trained
    asked: list[int] = []
    choose = score_module.choose

    def counting(listed: Sequence[Path], count: int, seed: int) -> tuple[Path, ...]:
        asked.append(count)
        return choose(listed, count, seed)

    monkeypatch.setattr(score_module, "choose", counting)
    for many in (1, 16, 60):
        choose_checkpoint(detector(), dict.fromkeys(range(many), weights), paths[:1], AugmentConfig(), 0, [1.0])
    assert asked == [IMAGES, 30, 16]
