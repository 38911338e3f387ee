"""A small, diverse set of frames that are worth sending home: the target folder of the next adaptation."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from acclimate.edge.artifact import Reference
from acclimate.edge.images import read_image
from acclimate.edge.listing import is_image_name
from acclimate.edge.monitor import LOOK, look
from acclimate.errors import AcclimateError
from acclimate.run import listed, write_bytes
from acclimate.structures import Image

log = logging.getLogger(__name__)

NEW = 0.1
"""A frame that is nearer than this to one in the set is the same again."""
GAIN = 1.1
"""A frame takes another's place where this makes the smallest distance in the set larger by this factor."""
STRANGE = 3.0
"""The doubt of a frame that is outside the domain, whatever the detector makes of it: such frames are what the next
adaptation needs, and in fog or at night they look more alike than those of the domain do."""
QUALITY = 95
"""Of the JPEG files: high, as they are to be learnt from."""
_DOUBT = re.compile(r".*-doubt(\d{3})")


@dataclass(slots=True, eq=False)
class _Kept:
    path: Path
    look: NDArray[np.float64]
    doubt: float


class Collection:
    """A plain folder of at most `limit` frames, as different as they come.

    The distance of two frames is that of their `monitor.LOOK` features in the reference's standard deviations (root of
    the mean square), times 1 to 2 as the detector is less or more in doubt about them, and up to 4 where they are
    outside the domain. While there is room, every frame that is `NEW` is kept. After that, where a frame is further
    from the set than the two nearest in it are from each other, that one of the two goes that the detector doubts less
    (the greedy rule of max-min dispersion). So changes become rare as the set spreads.

    The folder is all of the state: what is in it when the process begins counts, the doubt is in the files' names, and
    each file is written whole or not at all.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Take up what is in `folder`; it is made when the first frame is written. A `limit` of 0 keeps none."""
        self.folder, self.limit = folder, limit
        self._spread = np.ones(len(LOOK))
        self._kept: list[_Kept] = []
        self._distances = np.full((limit, limit), np.inf)
        for path in listed(folder, "*"):
            if not is_image_name(path.name):
                continue
            try:
                features = look(read_image(path))
            except AcclimateError as error:
                log.warning("%s", error)
                continue
            match = _DOUBT.fullmatch(path.stem)
            self._kept.append(_Kept(path, features, int(match[1]) / 100 if match else 0.0))
        for extra in self._kept[limit:]:
            # A kill between writing a frame and removing the one it replaces leaves one too many.
            if _DOUBT.fullmatch(extra.path.stem):
                extra.path.unlink(missing_ok=True)
            else:
                log.warning("%s: more than the %d frames that are kept; left alone", extra.path, limit)
        del self._kept[limit:]
        self._measure()

    def __len__(self) -> int:
        return len(self._kept)

    def scale(self, reference: Reference) -> None:
        """Measure distances in the standard deviations of `reference`."""
        self._spread = np.array(reference.spread[: len(LOOK)])
        self._measure()

    def offer(self, image: Image, features: NDArray[np.float64], doubt: float, taken: float) -> Path | None:
        """Keep a frame if it makes the set more diverse; its file, or None.

        Args:
            image: (H, W, 3) RGB, nothing drawn in it.
            features: `monitor.LOOK` of it.
            doubt: see `monitor.doubt`; `STRANGE` for a frame outside the domain.
            taken: seconds since the epoch; it becomes the file's name.

        Raises:
            AcclimateError, OSError: the folder cannot be written; the set stays as it was.
        """
        if not self.limit:
            return None
        away = self._away(features, doubt)
        gone, least = len(self._kept), NEW
        if gone == self.limit:
            pair = np.unravel_index(int(self._distances.argmin()), self._distances.shape)
            gone = min((int(one) for one in pair), key=lambda one: self._kept[one].doubt)
            least = max(NEW, GAIN * float(self._distances.min()))
            away[gone] = np.inf
        if away.min(initial=np.inf) <= least:
            return None
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(taken))
        name = f"{stamp}-{int(taken % 1 * 1e6):06}-doubt{round(100 * doubt):03}.jpg"
        path = self.folder / name
        write_bytes(path, simplejpeg.encode_jpeg(np.ascontiguousarray(image), QUALITY, "RGB", "444"))
        found = _Kept(path, features, doubt)
        if gone == len(self._kept):
            self._kept.append(found)
        else:
            with contextlib.suppress(OSError):
                self._kept[gone].path.unlink(missing_ok=True)
            self._kept[gone] = found
        away = self._away(features, doubt)
        away[gone] = np.inf
        self._distances[gone, : len(away)] = self._distances[: len(away), gone] = away
        return path

    def _away(self, features: NDArray[np.float64], doubt: float) -> NDArray[np.float64]:
        """Distances (N,) of a frame to the kept ones."""
        if not self._kept:
            return np.zeros(0)
        others = np.array([one.look for one in self._kept])
        doubts = np.array([one.doubt for one in self._kept])
        apart = np.sqrt((((others - features) / self._spread) ** 2).mean(axis=1))
        return np.asarray(apart * (1 + (doubts + doubt) / 2))

    def _measure(self) -> None:
        self._distances.fill(np.inf)
        for i, one in enumerate(self._kept):
            away = self._away(one.look, one.doubt)
            away[i] = np.inf
            self._distances[i, : len(away)] = away
