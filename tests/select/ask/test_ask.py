"""Each way of asking on frames whose answer is known, and what they look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from acclimate.config import AugmentConfig
from acclimate.data.compare import look as seen_by_eye
from acclimate.edge.images import Letterbox
from acclimate.errors import AcclimateError
from acclimate.select import ask
from acclimate.select.ask import combined, disagreement, diversity, mining, uncertainty
from acclimate.select.ask.seen import Seen, class_weights, distinct, look, ranks
from acclimate.structures import Detections
from coloured_squares import CANVAS, SquareDetector, scene, write_scenes

BOX = [10.0, 10.0, 40.0, 40.0]


def found(*rows: tuple[float, int, float]) -> Detections:
    """(left, label, score) each, a box 30 pixels wide."""
    boxes = np.float32([[left, 10, left + 30, 40] for left, _, _ in rows]).reshape(-1, 4)
    return Detections(boxes, np.array([row[1] for row in rows], np.int64), np.float32([row[2] for row in rows]))


def seen(plain: list[Detections], changed: list[Detections] | None = None, features: object = None) -> Seen:
    count = len(plain)
    values = np.arange(count, dtype=float)[:, None] if features is None else np.array(features, float)
    return Seen(
        SquareDetector().eval(),
        tuple(Path(f"{number}.png") for number in range(count)),
        (Letterbox(1.0, *CANVAS),) * count,
        tuple(plain),
        tuple(changed if changed is not None else plain),
        values,
        np.ones(2),
        seed=0,
    )


def order(way: str, frames: Seen, count: int = 2) -> list[int]:
    return [choice.index for choice in ask.choose(way, frames, count)]


def test_uncertainty_asks_for_scores_near_a_half_before_sure_ones() -> None:
    assert order("uncertainty", seen([found((0, 0, 0.98)), found((0, 0, 0.5)), found()])) == [1, 0]


def test_entropy_and_margin_are_their_closed_forms() -> None:
    frames = seen(
        [found((0, 0, 0.5)), found((0, 0, 0.9)), found((0, 0, 0.6), (0, 1, 0.5)), found((0, 0, 0.6), (60, 1, 0.5))]
    )
    bits = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1)
    np.testing.assert_allclose(uncertainty.entropy(frames)[:2], [1.0, bits], atol=1e-6)
    # Of two classes at one place the other is the rival; apart from each other, nothing being there is.
    np.testing.assert_allclose(uncertainty.margin(frames), [1.0, 0.2, 0.9 + 0.9, 0.8 + 1.0], atol=1e-6)


def test_disagreement_asks_for_what_one_view_shows_alone() -> None:
    plain = [found((0, 0, 0.9)), found((0, 0, 0.9)), found((0, 0, 0.9))]
    changed = [found((0, 0, 0.9)), found(), found((0, 1, 0.9))]
    frames = seen(plain, changed)
    np.testing.assert_allclose(disagreement.unmatched(frames), [0.0, 0.9, 1.8], atol=1e-6)
    assert order("disagreement", frames) == [2, 1]


def test_a_rare_class_weighs_more_than_a_common_one() -> None:
    plain = [found((0, 0, 0.6), (40, 0, 0.6), (80, 0, 0.6))] * 8 + [found((0, 1, 0.6), (40, 1, 0.6), (80, 1, 0.6))]
    weights = class_weights(plain, 2)
    assert weights[1] > 1 > weights[0]
    assert weights.mean() == pytest.approx(1)
    frames = seen(plain)
    rare = Seen(frames.detector, frames.paths, frames.placed, frames.plain, frames.changed, frames.features, weights, 0)
    (first, *_) = ask.choose("uncertainty", rare, 1)
    assert first.index == 8
    assert "may show blue, rare here" in first.why


def test_diversity_asks_for_the_ends_of_a_row_before_its_middle() -> None:
    frames = seen([found()] * 5, features=[[0.0], [1.0], [2.1], [3.0], [4.0]])
    assert order("diversity", frames, 3) == [2, 0, 4]


def test_combined_asks_each_kind_of_frame_for_its_most_doubtful_one() -> None:
    sure, unsure = found((0, 0, 0.99)), found((0, 0, 0.5))
    frames = seen([sure, unsure, sure, sure, sure, unsure], features=[[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    assert sorted(order("combined", frames)) == [1, 5]
    # Were doubt alone to choose, it would take the same scene twice.
    crowd = seen([unsure, unsure, unsure, sure], features=[[0.0], [0.1], [0.2], [9.0]])
    assert 3 in order("combined", crowd)
    assert 3 not in order("uncertainty", crowd)


@pytest.mark.parametrize("way", [way for way in ask.WAYS if way != "mining"])
def test_every_way_gives_as_many_different_frames_as_there_are(way: str) -> None:
    # Alike in everything, so that only a tie can be broken.
    frames = seen([found((0, 0, 0.5))] * 4, features=np.zeros((4, 3)))
    assert sorted(order(way, frames, 9)) == [0, 1, 2, 3]


def test_mining_believes_what_is_found_again_in_other_images(tmp_path: Path) -> None:
    source = write_scenes(tmp_path / "source", 3, scale=1)
    frames = write_scenes(tmp_path / "frames", 2, scale=1)
    detector = SquareDetector().eval()
    made = look(detector, frames.paths, AugmentConfig(), 0, source)
    regions, shares = mining.validated(made)
    # Squares are found wherever they are; pasting does not change them.
    assert all((share == 1).all() for share in shares)
    assert all(len(one) for one in regions)
    # Called by the wrong class, none of them is.
    swapped = [Detections(one.boxes, 1 - one.labels, one.scores) for one in made.plain]
    doubted = Seen(
        detector,
        made.paths,
        made.placed,
        (made.plain[0], swapped[1]),
        made.changed,
        made.features,
        made.weights,
        0,
        source,
    )
    (first, second) = ask.choose("mining", doubted, 2)
    assert (first.index, second.index) == (1, 0)
    assert second.scores["inconsistency"] == 0
    with pytest.raises(AcclimateError, match="labelled source images"):
        ask.choose("mining", seen([found()]), 1)


def test_what_is_looked_at_is_what_the_detector_finds(tmp_path: Path) -> None:
    frames = write_scenes(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    calm = AugmentConfig(colour=0, grey=0, blur=0, noise=0, tone=0, cutout=0)
    made = look(SquareDetector(), [*frames.paths, tmp_path / "broken.png"], calm, 0)
    assert made.paths == frames.paths
    for one, other, image in zip(made.plain, made.changed, frames.images, strict=True):
        sure = one.above(0.5)
        assert sorted(map(tuple, sure.boxes.round())) == sorted(map(tuple, image.annotations.boxes))
        np.testing.assert_allclose(one.boxes, other.boxes)
    assert made.features.shape == (3, 16)


def test_of_near_duplicates_one_is_left_and_of_those_asked_before_none(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        image, _ = scene(number, scale=4)
        # A shape of its own, beside noise that is the same everywhere.
        image = cv2.GaussianBlur(np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8), (3, 3), 0)
        image = cv2.resize(image, (320, 240), interpolation=cv2.INTER_CUBIC)
        names.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(names[-1]), image)
        cv2.imwrite(
            str(tmp_path / f"{number}-again.jpg"), cv2.resize(image, (200, 150)), [cv2.IMWRITE_JPEG_QUALITY, 60]
        )
    looks = {path: seen_by_eye(path) for path in sorted(tmp_path.iterdir())}
    left, repeated = distinct(looks, {})
    assert (len(left), repeated) == (3, 3)
    assert {path.name[0] for path in left} == {"0", "1", "2"}
    left, repeated = distinct(looks, {names[1]: looks[names[1]]})
    assert {path.name[0] for path in left} == {"0", "2"}


def test_ranks_go_from_nothing_to_one_and_equals_share() -> None:
    np.testing.assert_allclose(ranks(np.array([3.0, 1.0, 3.0, 9.0])), [0.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(ranks(np.array([5.0])), [0.0])


def test_an_unknown_way_is_told_with_those_that_there_are() -> None:
    with pytest.raises(AcclimateError, match="no way 'best'; choose combined, uncertainty"):
        ask.check("best")


def test_k_centre_clusters_hold_each_point_with_its_nearest_centre() -> None:
    clusters = combined.nearest(diversity.standardised(np.array([[0.0], [0.2], [5.0], [5.1]])), 2)
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
