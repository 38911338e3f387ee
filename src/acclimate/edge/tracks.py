"""Boxes of successive frames joined to tracks, by how they overlap.

A box goes on with the track of its class that it overlaps most, the surest boxes first, as in SORT (Bewley et al. 2016)
without its Kalman filter. With `follow` a track is looked for where its centre is by now at its last speed, and boxes
below the threshold keep a track alive but begin none, as in ByteTrack (Zhang et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from acclimate.boxes import iou
from acclimate.structures import Detections

OVERLAP = 0.3
"""The IoU from which a box goes on with a track of its class."""
PATIENCE = 3
"""Frames that a track goes on for unseen."""

Array = NDArray[np.float32]


@dataclass(slots=True)
class Track:
    """Boxes of one object, as far as can be told.

    Attributes:
        number: of the track, in the order in which they began.
        label: index into the detector's classes.
        box: (4,), the last one seen, xyxy pixels.
        score: of the last box seen.
        missed: frames since then.
        speed: (2,), of its centre, pixels a frame.
        state: (2, H), of a cell that smooths its score.
    """

    number: int
    label: int
    box: Array
    score: float
    missed: int = 0
    speed: Array | None = None
    state: Array = field(default_factory=lambda: np.zeros((2, 0), np.float32))

    def expected(self) -> Array:
        """(4,), where it is by now at its last speed."""
        if self.speed is None:
            return self.box
        moved: Array = self.box + np.tile(self.speed, 2) * self.missed
        return moved

    def see(self, box: Array, score: float) -> None:
        """Go on with a box."""
        moved: Array = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / np.float32(2 * self.missed)
        # One box's jitter is not a change of speed.
        self.speed = moved if self.speed is None else np.float32(0.5) * (self.speed + moved)
        self.box, self.score, self.missed = box, score, 0


class Links:
    """The tracks of one stream of frames.

    Attributes:
        tracks: those seen lately.
        begun: how many there have been, and so the next one's number.
        numbers: of the track of each box of the last frame, -1 for one that is of none.
    """

    def __init__(self, *, begun: int = 0, patience: int = PATIENCE, follow: bool = False) -> None:
        """Begin with no track.

        Args:
            begun: how many there were before, in an earlier process.
            patience: frames that a track goes on for unseen.
            follow: look for a track where it is by now at its last speed, rather than where it was seen.
        """
        self.tracks: list[Track] = []
        self.begun = begun
        self.numbers: list[int] = []
        self._patience, self._follow = patience, follow

    def step(self, found: Detections, sure: NDArray[np.bool_] | None = None) -> list[Track]:
        """Go on by a frame: the tracks that are seen in it or were lately, best detections linked first.

        Args:
            found: boxes of the frame, best first.
            sure: (N,), which of them may begin a track, and are linked before the others; None is all.
        """
        for track in self.tracks:
            track.missed += 1
        free = list(self.tracks)
        begins = np.ones(len(found), bool) if sure is None else sure
        self.numbers = [-1] * len(found)
        for place in np.argsort(~begins, kind="stable"):
            box, label, score = found.boxes[place], int(found.labels[place]), float(found.scores[place])
            own = [track for track in free if track.label == label]
            places = [track.expected() if self._follow else track.box for track in own]
            overlaps = iou.pairwise(box[None], np.stack(places))[0] if own else np.zeros(1)
            if own and overlaps.max() >= OVERLAP:
                track = own[int(overlaps.argmax())]
                free = [one for one in free if one is not track]
                track.see(box, score)
            elif begins[place]:
                track = Track(self.begun, label, box, score)
                self.tracks.append(track)
                self.begun += 1
            else:
                continue
            self.numbers[place] = track.number
        self.tracks = [track for track in self.tracks if track.missed <= self._patience]
        return self.tracks
