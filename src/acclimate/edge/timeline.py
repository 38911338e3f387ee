"""What a live page draws over time: drift, detections and latency, in so many points however long it goes on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

POINTS = 240
RECENT_S, STEP_S = 600.0, 2.5
"""The last minutes are kept in steps of so long."""
MARKS = 50


@dataclass(slots=True)
class _Step:
    """Sums over the frames of one step of time."""

    at: float
    frames: int = 0
    scored: int = 0
    drift: float = 0.0
    boxes: int = 0
    latency_ms: float = 0.0

    def join(self, other: _Step) -> None:
        self.frames += other.frames
        self.scored += other.scored
        self.drift += other.drift
        self.boxes += other.boxes
        self.latency_ms = max(self.latency_ms, other.latency_ms)

    def as_json(self) -> list[float | None]:
        drift = round(self.drift / self.scored, 3) if self.scored else None
        return [round(self.at, 1), drift, round(self.boxes / self.frames, 2), round(self.latency_ms, 2)]


class Timeline:
    """The whole run in at most `POINTS` steps, which double in length whenever there are more, and the last minutes.

    Drift and boxes are means over a step, the latency is the largest. Safe to be read in another thread.
    """

    def __init__(self) -> None:
        """Begin with no frame."""
        self._lock = threading.Lock()
        self._began: float | None = None
        self._length = 1.0
        self._whole: list[_Step] = []
        self._recent: list[_Step] = []
        self._marks: list[tuple[float, str]] = []

    def add(self, moment: float, drift: float | None, boxes: int, latency_ms: float) -> None:
        """Take up one frame.

        Args:
            moment: when, in seconds since the epoch; one before the last frame's counts as that.
            drift: its drift score; None while there is none.
            boxes: how many were shown.
            latency_ms: from reading it to its line.
        """
        with self._lock:
            self._began = moment if self._began is None else self._began
            frame = _Step(0.0, 1, drift is not None, drift or 0.0, boxes, latency_ms)
            self._put(self._recent, moment, STEP_S, frame)
            while self._recent[0].at < self._recent[-1].at - RECENT_S:
                self._recent.pop(0)
            self._put(self._whole, moment, self._length, frame)
            while self._whole[-1].at - self._whole[0].at >= POINTS * self._length:
                self._length *= 2
                steps, self._whole = self._whole, []
                for step in steps:
                    self._put(self._whole, step.at, self._length, step)

    def mark(self, moment: float, what: str) -> None:
        """Remember that something happened, such as an alarm; of many the last ones."""
        with self._lock:
            self._marks = [*self._marks, (round(moment, 1), what)][-MARKS:]

    def as_json(self) -> dict[str, Any]:
        """`recent` and `whole`: lists of `[seconds since the epoch, drift, boxes a frame, latency in ms]`, and `marks`:
        pairs of a time and a word."""
        with self._lock:
            return {
                "recent": [step.as_json() for step in self._recent],
                "whole": [step.as_json() for step in self._whole],
                "marks": list(self._marks),
            }

    def _put(self, steps: list[_Step], moment: float, length: float, what: _Step) -> None:
        began = self._began or 0.0
        at = began + max(0.0, moment - began) // length * length
        if not steps or at > steps[-1].at:
            steps.append(_Step(at))
        steps[-1].join(what)
