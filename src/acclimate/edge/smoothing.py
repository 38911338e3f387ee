"""Scores of detections smoothed over time: a recurrent cell for each track, in numpy.

A detector looks at one frame, so an object's score flickers about a threshold. Boxes are linked from frame to frame,
and an LSTM or GRU cell says of a track how likely it is an object, in frames too in which it was missed. Off unless it
is called; it is trained by `models.recurrent.train_smoother`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.tracks import Links, Track
from acclimate.errors import AcclimateError
from acclimate.structures import Detections

Kind = Literal["gru", "lstm", "lstm-peephole", "lstm-coupled", "lstm-peephole-coupled"]
KINDS: tuple[Kind, ...] = ("gru", "lstm", "lstm-peephole", "lstm-coupled", "lstm-peephole-coupled")
FEATURES = 2
"""Of a track in a frame: its score's logit, and whether it was seen."""
_LEAST = 1e-4
"""Of a score, so that its logit is finite."""

Array = NDArray[np.float32]


def features(track: Track) -> Array:
    """What the cell sees of a track in a frame, (FEATURES,); the last score counts on where it is missed."""
    score = min(max(track.score, _LEAST), 1 - _LEAST)
    return np.array([np.log(score / (1 - score)), float(track.missed == 0)], np.float32)


class Smoother:
    """Smoothed detections of one stream, frame by frame.

    Examples:
        >>> from acclimate.edge.smoothing import Smoother
        >>> smoother = Smoother.load("smoother.npz")  # doctest: +SKIP
        >>> smoothed = smoother(predictor(image))  # doctest: +SKIP
    """

    def __init__(self, kind: Kind, weights: Mapping[str, Array]) -> None:
        """Take up weights: those of the cell by torch's names, `peepholes` (3, H), `out.weight` and `out.bias`."""
        self.kind, self.weights = kind, {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self._hidden = self.weights["weight_hh"].shape[1]
        self._links = Links()

    def __call__(self, found: Detections) -> Detections:
        """The tracks of this frame with their smoothed scores; those missed in it with their last box.

        Args:
            found: all that the detector found in the frame, of any score.
        """
        tracks = self._links.step(found)
        if not tracks:
            return Detections.empty()
        for track in tracks:
            if not track.state.size:
                track.state = np.zeros((2, self._hidden), np.float32)
        x = np.stack([features(track) for track in tracks])
        h, c = self.cell(x, np.stack([t.state[0] for t in tracks]), np.stack([t.state[1] for t in tracks]))
        for track, *state in zip(tracks, h, c, strict=True):
            track.state = np.stack(state)
        scores = _sigmoid((h @ self.weights["out.weight"].T)[:, 0] + self.weights["out.bias"] + x[:, 0])
        order = np.argsort(-scores, kind="stable")
        boxes, labels = np.stack([track.box for track in tracks]), np.array([track.label for track in tracks])
        return Detections(boxes[order].astype(np.float32), labels[order], scores[order].astype(np.float32))

    def cell(self, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """The states (N, H) after inputs (N, FEATURES); a GRU's second one is its first."""
        w = self.weights
        a, b = x @ w["weight_ih"].T + w["bias_ih"], h @ w["weight_hh"].T + w["bias_hh"]
        if self.kind == "gru":
            (r, z, n), (rh, zh, nh) = np.split(a, 3, 1), np.split(b, 3, 1)
            keep = _sigmoid(z + zh)
            h = (1 - keep) * np.tanh(n + _sigmoid(r + rh) * nh) + keep * h
            return h, h
        i, f, g, o = np.split(a + b, 4, 1)
        peepholes = w.get("peepholes", np.zeros((3, self._hidden), np.float32))
        entering = _sigmoid(i + peepholes[0] * c)
        staying = 1 - entering if "coupled" in self.kind else _sigmoid(f + peepholes[1] * c)
        c = staying * c + entering * np.tanh(g)
        return _sigmoid(o + peepholes[2] * c) * np.tanh(c), c

    def save(self, file: str | Path) -> None:
        """Write it as one .npz file."""
        content = io.BytesIO()
        np.savez(content, kind=np.array(self.kind), **self.weights)  # type: ignore[arg-type]
        Path(file).write_bytes(content.getvalue())

    @classmethod
    def load(cls, file: str | Path) -> Smoother:
        """Read what `save` wrote.

        Raises:
            AcclimateError: it is not there, or is no such file.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                values = dict(content)
            kind = str(values.pop("kind"))
            if kind not in KINDS:
                raise ValueError(f"unknown kind {kind}")
            return cls(kind, values)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise AcclimateError(f"{file}: no smoother ({str(error).splitlines()[0]}); train one first") from None


def flicker(frames: list[Detections], threshold: float = 0.5) -> float:
    """How often tracks come and go: changes between shown and not shown, for each track and frame, 0..1."""
    links = Links()
    shown: dict[int, bool] = {}
    changes = pairs = 0
    for found in frames:
        for track in links.step(found):
            now = track.missed == 0 and track.score >= threshold
            if track.number in shown:
                pairs += 1
                changes += now != shown[track.number]
            shown[track.number] = now
    return changes / pairs if pairs else 0.0


def _sigmoid(x: Array) -> Array:
    result: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return result
