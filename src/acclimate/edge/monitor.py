"""Watching the domain: how far frames are from those that the artifact was made for, and an alarm when they stay so.

A frame is described by `FEATURES`, numbers of its pixels and of its detections. A `Reference` holds how they are spread
over images of the domain. The distance of a frame is the Mahalanobis distance, the *drift score* its logarithm in
standard deviations over images that were left out of the reference: about 0 in the domain, well above 2 outside. A
detector of river tells when the score has risen for good, and `population` when frames that could each be of the domain
are not, taken together.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import ArtifactManifest, Reference
from acclimate.edge.images import read_image
from acclimate.edge.population import Population, independent
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.run import parsed
from acclimate.structures import Detections, Image

log = logging.getLogger(__name__)

LOOK = (
    "red", "green", "blue", "red spread", "green spread", "blue spread", "luma 5%", "luma 25%", "luma 50%",
    "luma 75%", "luma 95%", "saturation", "dark channel", "edges", "local contrast",
)  # fmt: skip
"""Features of the pixels, on a thumbnail with values in 0..1: means and standard deviations of the channels, quantiles
of the luma (their differences are the Wasserstein distance of histograms), mean saturation, mean dark channel (He, Sun
and Tang 2009: high in fog), log2 of the mean gradient and of the mean contrast of 8 x 8 blocks."""

ANSWER = ("boxes", "faint boxes", "confidence")
"""Features of the detections: log2 of 1 + the number of boxes that are shown, and of those with a score of `FAINT` or
more; the mean of the `BEST` best scores."""

FEATURES = LOOK + ANSWER

THUMBNAIL = (48, 64)
"""(height, width) in pixels, whatever the aspect of the frame."""
FAINT = 0.1
BEST = 5
IMAGES = 128
FEWEST = 8
"""Images that make a reference: as many as an export takes, and at least."""

LEAST_SPREAD = 0.02
"""A feature that hardly varies counts as varying by this much, or any change of it would be an alarm."""
LEAST_DISTANCE, LEAST_LOG_SPREAD = 0.5, 0.25
"""Likewise: what counts at least as the usual distance, and as the spread of its logarithm."""
RIDGE = 0.05
"""Least weight of the identity in the correlation matrix: features that go together may part a little."""
FOLDS = 8

TOLERANCE = 1.0
"""A rise of the mean score by less is no change, in standard deviations over the domain."""
THRESHOLD = 150.0
"""Sum of what the scores exceed their mean and the tolerance by, at which Page-Hinkley's test tells a change."""
CLIP = (-2.0, 5.0)
"""One frame counts no more than this."""
WARM = {"page-hinkley": 3000, "adwin": 300, "kswin": 300}
"""Scores that a detector is told before those of the stream. Page-Hinkley's compares with the mean of all: with few, a
stream that is foreign from its first frame would become that mean before it is an alarm. The others have windows."""
WINDOW = 20
"""Frames whose mean score says where the stream is now."""
OUTSIDE = 2.0
"""Mean score of the window from which a change is an alarm; the alarm ends below half of it."""

Floats = NDArray[np.float64]


def look(image: Image, kept: NDArray[np.bool_] | None = None) -> Floats:
    """The features `LOOK` of an image (H, W, 3), or of the pixels of its thumbnail that are `kept`, `THUMBNAIL`."""
    if kept is not None:
        return _look_at(image, kept)
    small = cv2.resize(image, THUMBNAIL[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    high, low = small.max(axis=2), small.min(axis=2)
    dark = cv2.erode(low, np.ones((5, 5), np.uint8))
    gradient = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
    blocks = luma.reshape(THUMBNAIL[0] // 8, 8, THUMBNAIL[1] // 8, 8).std(axis=(1, 3))
    return np.array(
        [
            *small.mean(axis=(0, 1)),
            *small.std(axis=(0, 1)),
            *np.percentile(luma, (5, 25, 50, 75, 95)),
            np.mean((high - low) / np.maximum(high, 0.02)),
            dark.mean(),
            math.log2(float(gradient.mean()) + 1 / 256),
            math.log2(float(blocks.mean()) + 1 / 256),
        ]
    )


def _look_at(image: Image, kept: NDArray[np.bool_]) -> Floats:
    """`look`, of a part of the picture: no pixel outside of it has a say in any number."""
    if not kept.any():
        raise AcclimateError("--leave-out leaves nothing of the frame")
    small = cv2.resize(image, THUMBNAIL[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # What is left out gets the mean colour of the rest, and is then left out of what is near it as well.
    small[~kept] = small[kept].mean(axis=0)
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    high, low = small.max(axis=2), small.min(axis=2)
    dark = cv2.erode(np.where(kept, low, np.float32(1)), np.ones((5, 5), np.uint8))
    gradient = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
    inner = cv2.erode(kept.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    rows, columns = THUMBNAIL[0] // 8, THUMBNAIL[1] // 8
    whole = kept.reshape(rows, 8, columns, 8).all(axis=(1, 3))
    blocks = luma.reshape(rows, 8, columns, 8).std(axis=(1, 3))
    part = small[kept]
    return np.array(
        [
            *part.mean(axis=0),
            *part.std(axis=0),
            *np.percentile(luma[kept], (5, 25, 50, 75, 95)),
            np.mean((high - low)[kept] / np.maximum(high[kept], 0.02)),
            dark[kept].mean(),
            math.log2(float(gradient[inner].mean() if inner.any() else 0.0) + 1 / 256),
            math.log2(float(blocks[whole].mean() if whole.any() else 0.0) + 1 / 256),
        ]
    )


def answer(detections: Detections, shown: float) -> Floats:
    """The features `ANSWER`, (A,), of all detections of a frame, down to the decoding threshold; `shown` is the score
    from which they are shown."""
    scores = detections.scores
    best = np.sort(scores)[::-1][:BEST]
    return np.array(
        [
            math.log2(1 + int((scores >= shown).sum())),
            math.log2(1 + int((scores >= FAINT).sum())),
            float(best.sum()) / BEST,
        ]
    )


def doubt(detections: Detections, shown: float) -> float:
    """How undecided a detector is about a frame, 0..1: the largest over its detections of how near the score is to
    the one from which it would be shown."""
    if not len(detections):
        return 0.0
    scores = detections.scores.astype(np.float64)
    return float(np.where(scores < shown, scores / shown, (1 - scores) / (1 - min(shown, 0.99))).max().clip(0, 1))


def learn(rows: Floats, rates: Sequence[float] | Floats = ()) -> Reference:
    """The reference that feature rows (N, F) make, in the order in which they were seen.

    The correlation matrix is shrunk towards the identity (oracle approximating shrinkage: Chen, Wiesel, Eldar, Hero
    2010). Distances are those of blocks of rows to what the other rows make, as neighbours resemble each other.

    Args:
        rows: `FEATURES` of at least `FEWEST` frames; `LOOK` alone is enough for `unlike`.
        rates: mean number of shown boxes of each class a frame.
    """
    blocks = np.array_split(np.arange(len(rows)), min(FOLDS, len(rows)))
    logs = np.empty(len(rows))
    for block in blocks:
        shape = _shape(np.delete(rows, block, axis=0))
        logs[block] = [math.log(max(shape.distance(row), 1e-3)) for row in rows[block]]
    shape = _shape(rows)
    return Reference(
        images=len(rows),
        features=FEATURES[: rows.shape[1]],
        mean=_rounded(shape.mean),
        spread=_rounded(shape.spread),
        correlation=tuple(_rounded(row) for row in shape.correlation),
        log_distance=(
            round(max(float(np.mean(logs)), math.log(LEAST_DISTANCE)), 5),
            round(max(float(np.std(logs)), LEAST_LOG_SPREAD), 5),
        ),
        rates=_rounded(rates),
        independent=round(independent((rows - shape.mean) / shape.spread, shape.inverse), 1),
    )


def reference(predictor: Predictor, paths: Sequence[Path]) -> Reference | None:
    """What images of the domain look like to a loaded artifact; None where fewer than `FEWEST` can be read."""
    shown = predictor.manifest.show_threshold
    rows, counts = [], []
    for path in paths:
        try:
            image = read_image(path, predictor.manifest.reading)
        except AcclimateError as error:
            log.warning("left out of the reference: %s", error)
            continue
        detections = predictor(image)
        rows.append(np.concatenate([look(image), answer(detections, shown)]))
        counts.append(_counts(detections.above(shown), predictor.manifest))
    return learn(np.array(rows), np.mean(counts, axis=0)) if len(rows) >= FEWEST else None


def unlike(rows: Floats, domain: Floats) -> Floats:
    """Drift scores (N,) of frames against a domain, by the same features.

    Args:
        rows: (N, P), the first P of `FEATURES`.
        domain: (M, P), of at least `FEWEST` frames.
    """
    known = learn(domain)
    shape = _Shape(np.array(known.mean), np.array(known.spread), np.array(known.correlation), known.log_distance)
    return np.array([shape.score(row) for row in rows])


class Change(Protocol):
    """What a detector of river does."""

    drift_detected: bool

    def update(self, x: float) -> Any: ...


def change_detector(
    name: Literal["page-hinkley", "adwin", "kswin"] = "page-hinkley", threshold: float = THRESHOLD
) -> Callable[[], Change] | None:
    """Makes detectors of river for drift scores; None where river is not installed.

    Each has been told numbers of the standard normal distribution, which scores in the domain have, so that a stream
    that is foreign from its first frame is a change too. Page-Hinkley (Page 1954) has no forgetting: with it the sum of
    a long quiet stream wanders by more than any threshold. `threshold` is its lambda, and the significance of the other
    two.
    """
    try:
        drift = importlib.import_module("river.drift")
    except ImportError:
        return None
    make: dict[str, Callable[[], Any]] = {
        "page-hinkley": lambda: drift.PageHinkley(delta=TOLERANCE, threshold=threshold, alpha=1.0, mode="up"),
        "adwin": lambda: drift.ADWIN(delta=threshold, clock=8),
        "kswin": lambda: drift.KSWIN(alpha=threshold, window_size=200, stat_size=50, seed=0),
    }

    def warmed() -> Change:
        detector: Change = make[name]()
        for score in np.random.default_rng(0).standard_normal(WARM[name]).clip(*CLIP):
            detector.update(float(score))
        return detector

    return warmed


@dataclass(frozen=True, slots=True)
class Reading:
    """What the monitor says of one frame.

    Attributes:
        score: the drift score; None while the reference is being learnt.
        state: `learning`, `ok`, or `alarm`.
        changed: whether the state is another than before.
        moved: the features furthest from the reference, with their distance in standard deviations of a frame: of this
            frame, or of the mean of the last ones where `group`.
        group: whether an alarm is about the last frames taken together, not about each.
    """

    score: float | None
    state: Literal["learning", "ok", "alarm"]
    changed: bool = False
    moved: tuple[tuple[str, float], ...] = ()
    group: bool = False


class Monitor:
    """Reads frames' features and says when the domain has changed.

    Attributes:
        reference: what frames are compared with; None while it is being learnt.
        level: the mean score of the last frames.
        population: the last frames taken together; None where the reference does not say how much it knows.
        alarms: how many there were.
    """

    def __init__(
        self,
        reference: Reference | None,
        learn_frames: int = 200,
        detector: Callable[[], Change] | None = None,
        classes: int = 0,
    ) -> None:
        """Compare with a reference, or learn one first.

        Args:
            reference: what frames are compared with; None learns it.
            learn_frames: how many frames it is learnt from.
            detector: makes the detector of changes of the score; without one there are scores, and no alarm ever.
            classes: how many the artifact has, for a reference that is learnt.
        """
        self.reference: Reference | None = None
        self.population: Population | None = None
        self._shape: _Shape
        self._own: Floats
        self._detector_of = detector
        self._detector: Change | None = None
        self._learn = max(FEWEST, learn_frames)
        self._rows: list[Floats] = []
        self._counts: NDArray[np.float64] = np.zeros(classes)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._alarm = self._group = False
        self.alarms = 0
        if reference is not None:
            self._begin(reference)

    @property
    def level(self) -> float:
        return float(np.mean(self._recent)) if self._recent else 0.0

    @property
    def state(self) -> Literal["learning", "ok", "alarm"]:
        return "learning" if self.reference is None else "alarm" if self._alarm else "ok"

    @property
    def to_learn(self) -> int:
        """Frames that are still missing for a reference."""
        return 0 if self.reference is not None else self._learn - len(self._rows)

    def update(self, features: Floats, counts: NDArray[Any] | None = None) -> Reading:
        """Take up one frame.

        Args:
            features: (F,), `look` and `answer` of it, one after the other.
            counts: (C,) shown boxes of each class, for a reference that is being learnt.
        """
        if self.reference is None:
            self._rows.append(features)
            if counts is not None:
                self._counts = self._counts + counts
            if len(self._rows) < self._learn:
                return Reading(None, "learning")
            found = learn(np.array(self._rows), self._counts / len(self._rows))
            self._rows = []
            self._begin(found)
            return Reading(None, "ok", changed=True)
        score = self._shape.score(features)
        self._recent.append(min(max(score, CLIP[0]), CLIP[1]))
        before = self._alarm
        foreign = self._foreign(features, score)
        if self._alarm:
            if not foreign and len(self._recent) == WINDOW and self.level < OUTSIDE / 2:
                self._alarm = self._group = False
                self._restart()
        elif foreign:
            self._alarm = self._group = True
            self.alarms += 1
        elif self._detector is not None:
            self._detector.update(self._recent[-1])
            if self._detector.drift_detected:
                self._alarm = self.level > OUTSIDE
                self.alarms += self._alarm
                if not self._alarm:
                    self._restart()
        moved: tuple[tuple[str, float], ...] = ()
        if self._alarm and not before:
            group = self.population if self._group else None
            z = self._shape.standardised(features) if group is None else group.moved
            moved = tuple((FEATURES[i], round(float(z[i]), 2)) for i in np.argsort(-np.abs(z))[:5])
        return Reading(score, self.state, self._alarm != before, moved, self._group)

    def _foreign(self, features: Floats, score: float) -> bool:
        """Whether the last frames are foreign as a group. Those that are so one by one are left to the detector."""
        if self.population is None or self._detector_of is None:
            return False
        if self._alarm and not self._group:
            self.population.clear()
        elif score < OUTSIDE:
            # Not the mean that `refresh` sets: one that follows the frames follows them into another domain.
            return self.population.update(features, self._own, self._shape.spread, self._shape.inverse)
        return self.population.foreign

    def refresh(self, mean: Floats) -> None:
        """Compare with another mean (F,) from now on; see `Adjustment`."""
        self._shape = _Shape(mean, self._shape.spread, self._shape.correlation, self._shape.log_distance)

    def _begin(self, reference: Reference) -> None:
        if reference.features != FEATURES:
            raise AcclimateError("the reference was made by another version of acclimate; export the artifact again")
        self.reference = reference
        self._shape = _Shape(
            np.array(reference.mean),
            np.array(reference.spread),
            np.array(reference.correlation),
            reference.log_distance,
        )
        self._own = self._shape.mean
        if reference.independent:
            self.population = Population(reference.independent, math.exp(2 * reference.log_distance[0]))
        self._restart()

    def _restart(self) -> None:
        if self._detector_of is not None:
            self._detector = self._detector_of()


class Adjustment:
    """What a device changes about its artifact by itself: thresholds and the mean of the reference, inside bounds.

    The threshold of a class follows the rate of its boxes (the class distribution as the target, as LabelMatch does for
    pseudo labels: Chen et al. 2022): after each frame it rises by `STEP` for each box above the rate of the reference
    and falls likewise, within a factor of `REACH` of the artifact's own. The mean of the reference follows the frames
    that are no alarm with a time constant of `FRAMES` frames, and stays within `LEEWAY` standard deviations of the
    artifact's. Both are in one file; without the file all is as the artifact has it.

    Attributes:
        thresholds: (C,) of the classes.
    """

    STEP = 2e-4
    REACH = 1.5
    FRAMES = 5000
    LEEWAY = 1.0

    def __init__(self, manifest: ArtifactManifest, reference: Reference) -> None:
        self._own = manifest.show_threshold
        self._rates = np.array(reference.rates or [0.0] * len(manifest.classes))
        self._centre, self._spread = np.array(reference.mean), np.array(reference.spread)
        self._classes = manifest.classes
        self.thresholds = np.full(len(manifest.classes), self._own)
        self.mean = self._centre.copy()

    def update(self, detections: Detections, features: Floats, state: str) -> None:
        """Take up one frame: all its detections, its features (F,), and how the monitor found it."""
        found = np.bincount(
            detections.labels[detections.scores >= self.thresholds[detections.labels]], minlength=len(self._classes)
        )
        moved = self.thresholds + self.STEP * (found - self._rates)
        self.thresholds = moved.clip(self._own / self.REACH, min(0.95, self._own * self.REACH))
        if state == "ok":
            moved = self.mean + (features - self.mean) / self.FRAMES
            leeway = self.LEEWAY * self._spread
            self.mean = moved.clip(self._centre - leeway, self._centre + leeway)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "thresholds": dict(zip(self._classes, self.thresholds.round(4).tolist(), strict=True)),
            "mean": dict(zip(FEATURES, self.mean.round(5).tolist(), strict=True)),
        }

    def take_up(self, text: str) -> bool:
        """Go on from what `as_json` gave, inside the bounds; False where it is damaged or of another artifact."""
        try:
            values = parsed(text)
            thresholds = np.array([float(values["thresholds"][name]) for name in self._classes])
            mean = np.array([float(values["mean"][name]) for name in FEATURES])
        except (ValueError, KeyError, TypeError, OverflowError):
            return False
        if not (np.isfinite(thresholds).all() and np.isfinite(mean).all()):
            return False
        self.thresholds = thresholds.clip(self._own / self.REACH, min(0.95, self._own * self.REACH))
        leeway = self.LEEWAY * self._spread
        self.mean = mean.clip(self._centre - leeway, self._centre + leeway)
        return True


class _Shape:
    """A mean, spreads and correlations, and the distance of feature rows to them."""

    def __init__(
        self, mean: Floats, spread: Floats, correlation: Floats, log_distance: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self.mean, self.spread, self.correlation, self.log_distance = mean, spread, correlation, log_distance
        self.inverse: Floats = np.asarray(np.linalg.inv(correlation), np.float64)

    def standardised(self, row: Floats) -> Floats:
        return np.asarray((row - self.mean) / self.spread)

    def distance(self, row: Floats) -> float:
        """Mahalanobis, a feature: 1 is usual."""
        z = self.standardised(row)
        return math.sqrt(max(0.0, float(z @ self.inverse @ z)) / len(z))

    def score(self, row: Floats) -> float:
        middle, spread = self.log_distance
        return (math.log(max(self.distance(row), 1e-3)) - middle) / spread


def _shape(rows: Floats) -> _Shape:
    mean = rows.mean(axis=0)
    spread = np.maximum(rows.std(axis=0), LEAST_SPREAD)
    z = (rows - mean) / spread
    covariance = z.T @ z / len(rows)
    weight = max(oracle_shrinkage(covariance, len(rows)), RIDGE)
    # What the floor of the spread took from the diagonal comes back, so that no direction counts as without variance.
    np.fill_diagonal(covariance, 1.0)
    return _Shape(mean, spread, (1 - weight) * covariance + weight * np.eye(len(covariance)))


def oracle_shrinkage(covariance: Floats, count: int) -> float:
    """The weight of the identity in oracle approximating shrinkage (Chen, Wiesel, Eldar, Hero 2010, equation 23) of a
    covariance matrix (P, P) of `count` rows."""
    size = len(covariance)
    trace, square = float(np.trace(covariance)), float((covariance**2).sum())
    over = (1 - 2 / size) * square + trace**2
    under = (count + 1 - 2 / size) * (square - trace**2 / size)
    return 1.0 if under <= 0 else min(1.0, over / under)


def _counts(detections: Detections, manifest: ArtifactManifest) -> NDArray[np.int64]:
    return np.bincount(detections.labels, minlength=len(manifest.classes))


def _rounded(values: Sequence[float] | Floats) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
