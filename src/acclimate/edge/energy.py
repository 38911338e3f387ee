"""The energy that this machine's processors have used, where Linux tells it (powercap, RAPL counters)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Meter:
    """The energy counters of the processor packages.

    They count everything that runs on the packages, other programs too. Linux since 5.10 lets none but root read them.

    Attributes:
        zones: the folder of each package.
        ranges: where each counter wraps, in microjoules.
    """

    zones: tuple[Path, ...]
    ranges: tuple[int, ...]

    @classmethod
    def of_machine(cls, powercap: Path = POWERCAP) -> Self | None:
        """The counters of this machine; None where there is none, or one that may not be read."""
        # `intel-rapl:0` is a package (AMD's too), `intel-rapl:0:1` a part of it, and `psys` counts packages twice.
        try:
            zones = [
                zone
                for zone in sorted(powercap.glob("intel-rapl:*"))
                if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
            ]
            ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
            found = cls(tuple(zones), tuple(ranges))
            return found if zones and all(value >= 0 for value in found.read()) else None
        except (OSError, ValueError):
            return None

    def read(self) -> tuple[int, ...]:
        """Each counter, in microjoules.

        Raises:
            OSError: a counter cannot be read any more.
        """
        return tuple(int((zone / "energy_uj").read_text()) for zone in self.zones)

    def between_mj(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Millijoules from one reading to another, during which no counter has wrapped more than once."""
        used = zip(before, after, self.ranges, strict=True)
        return sum((end - begin) % (limit + 1) for begin, end, limit in used) / 1e3
