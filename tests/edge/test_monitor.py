from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.preprocessing import StandardScaler

from acclimate.data import weather
from acclimate.edge import monitor
from acclimate.edge.artifact import ArtifactManifest, Decode, Reference
from acclimate.edge.monitor import FEATURES, Adjustment, Monitor, answer, change_detector, doubt, learn, look
from acclimate.errors import AcclimateError
from acclimate.scenes.render import render
from acclimate.structures import Detections

K = len(FEATURES)


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Features that go together, with spreads above the floor."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((K, K)) + 2 * np.eye(K)
    return rng.standard_normal((count, K)) @ mixing + 3


def found(*scores: float) -> Detections:
    boxes = np.tile(np.float32([[1, 2, 3, 4]]), (len(scores), 1))
    return Detections(boxes, np.zeros(len(scores), np.int64), np.array(sorted(scores, reverse=True), np.float32))


def manifest(classes: tuple[str, ...] = ("car", "person")) -> ArtifactManifest:
    return ArtifactManifest(
        name="a", runtime="onnx", precision="fp32", classes=classes, image_size=(64, 64), decode=Decode()
    )


def test_what_is_seen_of_plain_images() -> None:
    at = FEATURES.index
    grey = look(np.full((60, 90, 3), 51, np.uint8))
    np.testing.assert_allclose(grey[: at("saturation")], [0.2] * 3 + [0] * 3 + [0.2] * 5, atol=1e-5)
    assert grey[at("saturation")] == 0
    assert math.isclose(grey[at("dark channel")], 0.2, abs_tol=1e-6)
    np.testing.assert_allclose(grey[[at("edges"), at("local contrast")]], -8, atol=0.01)
    red = look(np.tile(np.uint8([255, 0, 0]), (48, 64, 1)))
    np.testing.assert_allclose([red[0], red[at("saturation")], red[at("dark channel")]], [1, 1, 0], atol=1e-6)
    half = np.zeros((48, 64, 3), np.uint8)
    half[:, 32:] = 255
    split = look(half)
    np.testing.assert_allclose(split[3:6], 0.5, atol=1e-6)
    quantiles = [at(f"luma {percent}%") for percent in (5, 25, 75, 95)]
    np.testing.assert_allclose(split[quantiles], [0, 0, 1, 1], atol=1e-6)


def test_the_aspect_and_size_of_a_frame_change_little() -> None:
    image = render(3, (240, 320)).image
    np.testing.assert_allclose(look(image), look(image.repeat(2, axis=0).repeat(2, axis=1)), atol=0.02)


def test_what_is_seen_of_detections() -> None:
    np.testing.assert_allclose(answer(found(0.9, 0.5, 0.2, 0.05), 0.35), [math.log2(3), 2, 1.65 / 5], rtol=1e-6)
    np.testing.assert_array_equal(answer(Detections.empty(), 0.35), [0, 0, 0])


@pytest.mark.parametrize(
    ("scores", "expected"), [((), 0), ((0.4,), 1), ((1.0,), 0), ((0.7, 0.1), 0.5), ((0.99, 0.2), 0.5)]
)
def test_doubt_is_largest_at_the_threshold(scores: tuple[float, ...], expected: float) -> None:
    assert math.isclose(doubt(found(*scores), 0.4), expected, abs_tol=1e-6)


@given(count=st.integers(3, 60), seed=st.integers(0, 99))
def test_shrinkage_is_that_of_scikit_learn(count: int, seed: int) -> None:
    data = StandardScaler().fit_transform(rows(count, seed))
    size = data.shape[1]
    ours = monitor.oracle_shrinkage(data.T @ data / count, count)
    # scikit-learn leaves the terms with 2 / P out, as its documentation says.
    square, trace = float(((data.T @ data / count) ** 2).sum()), float(size)
    theirs = OAS().fit(data).shrinkage_
    numerator = (square + trace**2) / ((1 - 2 / size) * square + trace**2)
    denominator = (count + 1 - 2 / size) / (count + 1)
    if theirs < 1 and ours < 1:
        assert math.isclose(ours * numerator * denominator, theirs, rel_tol=1e-9)


def test_scores_of_the_domain_are_about_standard_normal() -> None:
    reference = learn(rows(128))
    watching = Monitor(reference)
    scores = np.array([watching.update(row).score for row in rows(2000, seed=1)])
    assert abs(scores.mean()) < 0.3
    assert 0.5 < scores.std() < 1.5
    far = [watching.update(row).score for row in rows(50, seed=2) + 8]
    assert min(far) > 3


def test_a_reference_survives_its_json() -> None:
    reference = learn(rows(40), [0.5, 1.25])
    again = Reference.model_validate_json(reference.model_dump_json())
    assert again == reference
    assert again.rates == (0.5, 1.25)


def test_what_never_varied_does_not_count_for_much() -> None:
    still = learn(np.full((50, K), 0.5))
    watching = Monitor(still)
    assert watching.update(np.full(K, 0.505)).score < 0
    assert watching.update(np.full(K, 0.9)).score > 3


def test_a_change_is_an_alarm_soon_and_ends_when_it_goes() -> None:
    watching = Monitor(learn(rows(128)), detector=change_detector())
    calm = [watching.update(row) for row in rows(1000, seed=1)]
    assert {reading.state for reading in calm} == {"ok"}
    foreign = [watching.update(row) for row in rows(90, seed=2) + 8]
    (at,) = [number for number, reading in enumerate(foreign) if reading.changed]
    assert at < 60
    assert foreign[-1].state == "alarm"
    assert watching.alarms == 1
    assert len(foreign[at].moved) == 5
    back = [watching.update(row) for row in rows(60, seed=3)]
    (over,) = [number for number, reading in enumerate(back) if reading.changed]
    assert over < 30
    assert back[-1].state == "ok"
    assert any(watching.update(row).changed for row in rows(90, seed=4) + 8), "and it may come again"


@pytest.mark.parametrize("name", ["page-hinkley", "adwin", "kswin"])
def test_a_stream_that_is_foreign_from_the_first_frame_is_a_change(name: str) -> None:
    threshold = {"page-hinkley": 60, "adwin": 0.002, "kswin": 1e-8}[name]
    watching = Monitor(learn(rows(128)), detector=change_detector(name, threshold))  # type: ignore[arg-type]
    for row in rows(100, seed=1) + 8:
        watching.update(row)
    assert watching.alarms == 1


def test_a_single_strange_frame_is_no_alarm() -> None:
    watching = Monitor(learn(rows(128)), detector=change_detector())
    for number, row in enumerate(rows(2000, seed=1)):
        watching.update(row + 1000 * (number % 50 == 0))
    assert watching.alarms == 0


@pytest.mark.slow
def test_a_long_quiet_stream_raises_none() -> None:
    watching = Monitor(learn(rows(128)), detector=change_detector())
    for row in rows(20_000, seed=1):
        watching.update(row)
    assert watching.alarms == 0


def test_frames_that_could_each_be_of_the_domain_are_an_alarm_as_a_group() -> None:
    reference = learn(rows(128))
    watching = Monitor(reference, detector=change_detector())
    assert {watching.update(row).state for row in rows(6000, seed=1)} == {"ok"}
    # Narrower than the domain, so that no frame is foreign, about a mean half a standard deviation away.
    shift = 0.5 * np.array(reference.spread) * np.sign(np.random.default_rng(5).standard_normal(K))
    night = 0.6 * (rows(6000, seed=2) - 3) + 3 + shift
    readings = [watching.update(row) for row in night]
    assert np.mean([reading.score for reading in readings]) < 0.5
    (at,) = [number for number, reading in enumerate(readings) if reading.changed]
    assert readings[at].group
    assert readings[at].state == readings[-1].state == "alarm"
    assert abs(readings[at].moved[0][1]) > 0.2
    back = [watching.update(row) for row in rows(6000, seed=3)]
    assert [reading.state for reading in back if reading.changed] == ["ok"]
    assert watching.alarms == 1


def test_a_mean_that_follows_the_frames_does_not_hide_a_group() -> None:
    reference = learn(rows(128))
    watching = Monitor(reference, detector=change_detector())
    moved = np.array(reference.mean) + 0.5 * np.array(reference.spread)
    watching.refresh(moved)
    for row in 0.6 * (rows(5000, seed=2) - 3) + moved:
        watching.update(row)
    assert watching.alarms == 1


def test_without_knowing_its_own_worth_a_reference_tells_of_single_frames_alone() -> None:
    """As in artifacts of before."""
    old = learn(rows(128)).model_copy(update={"independent": 0.0})
    assert Monitor(old, detector=change_detector()).population is None


def test_a_reference_can_be_learnt_from_the_first_frames() -> None:
    watching = Monitor(None, learn_frames=30, detector=change_detector(), classes=2)
    readings = [watching.update(row, np.array([1, 0])) for row in rows(30)]
    assert [reading.state for reading in readings] == ["learning"] * 29 + ["ok"]
    assert readings[-1].changed
    assert watching.reference is not None
    assert watching.reference.rates == (1, 0)
    assert watching.reference == learn(rows(30), [1, 0])
    assert watching.update(rows(1, seed=1)[0]).score is not None


def test_without_river_there_are_scores_and_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "river.drift", None)
    assert change_detector() is None
    watching = Monitor(learn(rows(128)), detector=change_detector())
    readings = [watching.update(row + 8) for row in rows(200)]
    assert {reading.state for reading in readings} == {"ok"}
    assert readings[-1].score > 3


def test_a_reference_of_another_version_is_refused() -> None:
    other = learn(rows(20)).model_copy(update={"features": ("something", *FEATURES[1:])})
    with pytest.raises(AcclimateError, match="another version"):
        Monitor(other)


@pytest.mark.parametrize("condition", ["fog", "night"])
def test_weather_moves_the_score_and_another_street_does_not(condition: str) -> None:
    scenes = [render(seed, (96, 128)) for seed in range(48)]

    def features(image: np.ndarray) -> np.ndarray:
        return np.concatenate([look(image), answer(found(0.9, 0.3), 0.35)])

    watching = Monitor(learn(np.array([features(scene.image) for scene in scenes[:36]])))
    calm = [watching.update(features(scene.image)).score for scene in scenes[36:]]
    changed = [
        watching.update(
            features(weather.apply(scene.image, condition, 1.0, np.random.default_rng(0), scene.depth))
        ).score
        for scene in scenes[36:]
    ]
    assert np.mean(calm) < 1.5
    assert np.mean(changed) > monitor.OUTSIDE
    assert np.median(changed) > np.max(calm)


def test_thresholds_follow_the_rate_of_boxes_inside_their_bounds() -> None:
    reference = learn(rows(20), [1.0, 1.0])
    adjustment = Adjustment(manifest(), reference)
    many = Detections(np.ones((6, 4), np.float32), np.zeros(6, np.int64), np.full(6, 0.9, np.float32))
    for _ in range(20):
        adjustment.update(many, rows(1)[0], "ok")
    assert adjustment.thresholds[0] > 0.35 > adjustment.thresholds[1]
    np.testing.assert_allclose(adjustment.thresholds, [0.35 + 20 * 5 * 2e-4, 0.35 - 20 * 2e-4])
    for _ in range(20_000):
        adjustment.update(many, rows(1)[0], "ok")
    np.testing.assert_allclose(adjustment.thresholds, [0.35 * 1.5, 0.35 / 1.5])


def test_the_mean_follows_slowly_not_far_and_not_during_an_alarm() -> None:
    reference = learn(rows(64))
    adjustment = Adjustment(manifest(), reference)
    centre, spread = np.array(reference.mean), np.array(reference.spread)
    adjustment.update(Detections.empty(), centre + 100 * spread, "alarm")
    np.testing.assert_array_equal(adjustment.mean, centre)
    adjustment.update(Detections.empty(), centre + spread, "ok")
    np.testing.assert_allclose(adjustment.mean, centre + spread / 5000)
    for _ in range(1000):
        adjustment.update(Detections.empty(), centre + 100 * spread, "ok")
    np.testing.assert_allclose(adjustment.mean, centre + spread)


def test_an_adjustment_is_taken_up_inside_the_bounds_or_not_at_all() -> None:
    huge, deep = json.dumps({"thresholds": {"car": 10**400}}), "[" * 5000
    reference = learn(rows(64), [1.0, 1.0])
    first = Adjustment(manifest(), reference)
    first.update(found(0.9, 0.8, 0.7), rows(1)[0], "ok")
    second = Adjustment(manifest(), reference)
    values = first.as_json()
    assert second.take_up(json.dumps(values))
    np.testing.assert_allclose(second.thresholds, first.thresholds, atol=1e-4)
    values["thresholds"]["car"] = 0.0001
    assert second.take_up(json.dumps(values))
    assert math.isclose(second.thresholds[0], 0.35 / 1.5)
    for damaged in (
        "",
        "[]",
        "{}",
        json.dumps(values).replace("0.0001", "NaN"),
        '{"thresholds": {"car": 1}}',
        huge,
        deep,
    ):
        before = second.thresholds.copy()
        assert not second.take_up(damaged)
        np.testing.assert_array_equal(second.thresholds, before)


def test_a_domain_that_is_only_somewhat_foreign_is_an_alarm_from_the_first_frame_on() -> None:
    """It must not become the mean that it is compared with."""
    watching = Monitor(learn(rows(128)).model_copy(update={"independent": 0.0}), detector=change_detector())
    readings = [watching.update(row) for row in 3 + (rows(1500, seed=2) - 3) * 1.65]
    assert 1.7 < np.mean([reading.score for reading in readings]) < monitor.OUTSIDE
    assert watching.alarms == 1
