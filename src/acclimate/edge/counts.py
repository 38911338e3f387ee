"""Whether detections have collapsed though the input looks as it always does.

A lens that is smeared a little, a camera that was turned, an artifact that a disk damaged: pictures can stay in their
domain while hardly anything is found in them. What is found is compared with what is usual: the rate of the artifact's
reference at first, then that of the run itself. Roads are empty at times, so what matters is how long it lasts, beside
the longest lull that there has been and that ended by itself.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

from acclimate.run import parsed

WINDOW = 64
"""Frames whose mean count says how much is found now."""
LEAST_FRAMES = 128
LEAST_BOXES = 100.0
"""A lull is no alarm before the usual rate would have given so many boxes."""
LEAST_S = 60.0
"""Nor, of a live source, before it has lasted for so long: at 30 frames a second 200 frames are seven seconds."""
LONGER = 2.0
"""Multiple of the longest lull so far that is none any more."""
AFTER_ALARM = 0.6
"""What a lull that was an alarm counts as of its length, once it has ended: `LONGER` times that is a little more than
it lasted, so that a night that is as empty as the last one is no second alarm."""
OWN = 2000
"""Frames from which the run's own rate is what is usual."""
MEMORY = 50_000
"""Frames that the own rate is a mean of, about."""

State = Literal["unknown", "usual", "low", "collapsed"]


class Counts:
    """How many boxes are found, frame by frame, beside what is usual.

    Attributes:
        state: `unknown` while nothing is known of what is usual; `low` when much less is found; `collapsed` when that
            has lasted too long to be a lull.
        alarms: how often it has become `collapsed`.
    """

    def __init__(self, rate: float | None, share: float, live: bool = False) -> None:
        """Begin with no frame.

        Args:
            rate: boxes a frame that are usual; None or 0 where that is not known.
            share: of the usual rate below which little is found; 0 looks at nothing.
            live: the source's frames come by the clock.
        """
        self._rate, self._share, self._live = rate or 0.0, share, live
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._frames, self._own = 0, 0.0
        self._longest = (0.0, 0.0)
        self._lull: tuple[int, float] | None = None
        self._last = 0.0
        self.state: State = "unknown"
        self.alarms = 0

    @property
    def usual(self) -> float | None:
        """Boxes a frame; None where that is not known."""
        return (self._own if self._frames >= OWN else self._rate) or None

    @property
    def now(self) -> float | None:
        """Boxes a frame of the last ones; None before the first."""
        return sum(count for _, count in self._recent) / len(self._recent) if self._recent else None

    def update(self, count: int, moment: float) -> bool:
        """Take up one frame with `count` boxes, seen at `moment` (seconds); whether an alarm began or ended."""
        before = self.state
        self._last = moment
        self._recent.append((moment, count))
        usual, now = self.usual, self.now
        low = usual is not None and now is not None and len(self._recent) == WINDOW and now < self._share * usual
        if low:
            frames, began = self._lull or (WINDOW - 1, self._recent[0][0])
            self._lull = (frames + 1, began)
            if self.state != "collapsed":
                self.state = "collapsed" if self._too_long(frames + 1, moment - began, usual or 1.0) else "low"
                self.alarms += self.state == "collapsed"
        else:
            self._end_lull(moment)
            self.state = "unknown" if usual is None or not self._share else "usual"
            self._frames += 1
            self._own += (count - self._own) / min(self._frames, MEMORY)
        return (before == "collapsed") != (self.state == "collapsed")

    def pause(self) -> bool:
        """The input is not as usual, which explains whatever is found; whether an alarm ended by that."""
        was = self.state == "collapsed"
        self._recent.clear()
        self._lull = None
        self.state = "unknown"
        return was

    def _too_long(self, frames: int, seconds: float, usual: float) -> bool:
        longest_frames, longest_s = self._longest
        enough = frames >= max(LEAST_FRAMES, LEAST_BOXES / usual, LONGER * longest_frames)
        return enough and (not self._live or seconds >= max(LEAST_S, LONGER * longest_s))

    def _end_lull(self, moment: float) -> None:
        if self._lull is None:
            return
        frames, began = self._lull
        weight = AFTER_ALARM if self.state == "collapsed" else 1.0
        lasted = (weight * frames, weight * (moment - began))
        self._longest = (max(self._longest[0], lasted[0]), max(self._longest[1], lasted[1]))
        self._lull = None

    def as_json(self) -> dict[str, Any]:
        return {
            "frames": self._frames,
            "rate": round(self._own, 5),
            "longest_lull": {"frames": round(self._longest[0]), "seconds": round(self._longest[1], 1)},
        }

    def take_up(self, text: str) -> bool:
        """Go on from what `as_json` gave; False where it is damaged."""
        try:
            values = parsed(text)
            frames, own = int(values["frames"]), float(values["rate"])
            longest = (float(values["longest_lull"]["frames"]), float(values["longest_lull"]["seconds"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            return False
        if not (frames >= 0 and 0 <= own < 1e6 and all(0 <= value < 1e12 for value in longest)):
            return False
        self._frames, self._own, self._longest = frames, own, longest
        return True
