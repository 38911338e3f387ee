"""The record of a verification: what was measured of an artifact, and where the file of it lies.

What follows from the measurements (checks, verdict, score) is never read from a file: it is asked of the judge anew, so
that a record cannot say another thing than its numbers.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, computed_field

from acclimate import __version__
from acclimate.config import Budget
from acclimate.edge.artifact import Calibration, MixedPrecision
from acclimate.edge.bench import Bench
from acclimate.errors import AcclimateError
from acclimate.evaluate import Comparison, Interval
from acclimate.run import listed, read_as, write_text
from acclimate.verification.judge import (
    MUCH,
    Check,
    Measured,
    Verdict,
    at_least,
    disturbance,
    judge,
    not_learnt,
    verdict,
)

Role = Literal["source", "target"]
PARITY_SCORE = 0.3
LPIRC_IMAGES = 20_000
LPIRC_MINUTES = 10.0


class Accuracy(BaseModel):
    """AP on one labelled set, 0..1; the eager model's is None where it was not to be had."""

    role: Role
    images: int
    """Those that count."""
    unreadable: int = 0
    """Images that could not be read; their boxes count nowhere."""
    digest: str = ""
    """Of the set's image names and labels, wherever they lie; empty where an earlier version measured."""
    content: str = ""
    """Of the pixels too: with the same, nothing need be measured again."""
    artifact_ap: float
    artifact_ap50: float
    eager_ap: float | None = None
    eager_ap50: float | None = None
    difference_ap: float | None = None
    difference_ap50: float | None = None
    """Artifact minus eager."""
    ap_interval: Interval | None = None
    ap50_interval: Interval | None = None
    """Of the artifact's, 95 %; None where it cannot be told."""
    export: Comparison | None = None
    """From the eager model to the artifact."""
    gain: Comparison | None = None
    """From the source-only detector to the artifact."""
    source_only: str = ""
    """The run of that detector."""
    notes: tuple[str, ...] = ()
    """Images that could not be read, and the like."""


class Pair(BaseModel):
    """The same object as the eager model and the artifact see it; None where one does not see it."""

    image: str
    name: str
    eager_score: float | None
    artifact_score: float | None
    iou: float | None
    box_px: float | None
    """Largest difference of a side's position, in pixels of the image."""


class Parity(BaseModel):
    """Artifact against eager model on real images, detection by detection, above a score of `score`.

    A detection's partner is of the same class with an IoU above 0.5, whatever its score.
    """

    images: int
    content: str = ""
    """Of the images; empty where an earlier version measured."""
    score: float = PARITY_SCORE
    matched: int
    unmatched: int
    score_max: float | None = None
    score_p99: float | None = None
    score_mean: float | None = None
    iou_min: float | None = None
    iou_mean: float | None = None
    box_px_max: float | None = None
    box_px_p99: float | None = None
    box_px_mean: float | None = None
    raw_max: dict[str, float] = Field(default_factory=dict)
    """Largest absolute difference of each raw output, over all locations."""
    worst: tuple[Pair, ...] = ()
    """The largest differences, unmatched detections first."""

    @property
    def compared(self) -> bool:
        """Whether either model saw anything to compare."""
        return self.matched + self.unmatched > 0


class Score(BaseModel):
    """Accuracy for the time and for the energy that it takes.

    The Low-Power Image Recognition Challenge divides mAP (at an IoU of 0.5) by the energy in watt-hours, for 20,000
    images within ten minutes (onsite track of 2019; Alyamkin et al., Low-Power Computer Vision: Status, Challenges,
    Opportunities, 2019). Here AP50 stands for mAP, and 20,000 times the median latency and the mean energy of one
    image for its images; `in_time` says whether they would be done in ten minutes.
    """

    data: str
    """The set: the target's where it was measured, else the source's."""
    ap50: float
    minutes: float
    in_time: bool
    ap50_per_minute: float
    energy_wh: float | None = None
    ap50_per_wh: float | None = None
    """None where the machine does not tell its energy."""


class Verification(BaseModel):
    """Written as `verification.json` into the artifact's folder; see `saved`."""

    artifact: str
    runtime: str
    precision: str
    digest: str
    budget: Budget
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    parity: Parity | None = None
    reference: str = ""
    """SHA-256 of the eager model's weights that it was compared with; empty where there were none."""
    source_ap50: float | None = None
    """What the source detector reaches on its own domain, as its run was evaluated; None where it was not."""
    latency: Bench
    other_threads: tuple[Bench, ...] = ()
    """On one and on all threads, where that was asked for and is not `latency` itself."""
    size_mb: float
    peak_memory_mb: float
    macs_m: float | None = None
    mixed: MixedPrecision | None = None
    """Of an INT8 artifact that was exported with a tolerance."""
    calibration: Calibration | None = None
    """Of a quantised artifact."""
    machine: dict[str, str]
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""
    version: str = __version__

    @computed_field  # type: ignore[prop-decorator]
    @property
    def checks(self) -> tuple[Check, ...]:
        """Every limit of the budget, held against what was measured."""
        return self.against(self.budget)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        return verdict(self.checks)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Every limit in force was measured, and holds."""
        return self.verdict in {"passed", "measured"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def score(self) -> Score | None:
        """Accuracy for time and energy; None where accuracy was not measured."""
        name, accuracy = min(self.accuracy.items(), key=lambda item: item[1].role != "target", default=(None, None))
        if name is None or accuracy is None or self.latency.median_ms <= 0:
            return None
        minutes = LPIRC_IMAGES * self.latency.median_ms / 60e3
        energy = None if self.latency.energy_mj is None else LPIRC_IMAGES * self.latency.energy_mj / 3.6e6
        return Score(
            data=name,
            ap50=accuracy.artifact_ap50,
            minutes=minutes,
            in_time=minutes <= LPIRC_MINUTES,
            ap50_per_minute=accuracy.artifact_ap50 / minutes,
            energy_wh=energy,
            ap50_per_wh=accuracy.artifact_ap50 / energy if energy else None,
        )

    def against(self, budget: Budget) -> tuple[Check, ...]:
        """The checks of another budget; nothing is measured."""
        return judge(self.measured(budget.threads), budget)

    def measured(self, threads: int) -> Measured:
        """What limits are held against, with the latency on so many threads."""
        bench = next((bench for bench in self.benches if bench.threads == threads), None)
        target = [accuracy for accuracy in self.accuracy.values() if accuracy.role == "target"]
        gains = [accuracy.gain for accuracy in target if accuracy.gain is not None]
        known = target if len(gains) == len(target) else []
        drops = [-change.difference for gain in gains for change in gain.classes.values()]
        other = f"it was measured on {self.latency.threads} thread{'s' * (self.latency.threads > 1)}, not on {threads}"
        return Measured(
            latency_ms=bench.median_ms if bench else None,
            size_mb=self.size_mb,
            memory_mb=self.peak_memory_mb,
            macs_m=self.macs_m,
            ap50_drop=self.drop,
            ap50=min((accuracy.artifact_ap50 for accuracy in target), default=None),
            gain_ap50=min((gain.ap50.difference for gain in gains), default=None) if known else None,
            class_drop_ap50=max(drops, default=None) if known else None,
            latency_at_least=at_least(bench) if bench else None,
            disturbed=disturbance(bench) if bench else "",
            reasons=() if bench else (("latency_ms", f"{other}; verify it with that budget"),),
        )

    @property
    def benches(self) -> tuple[Bench, ...]:
        """Every measurement of latency, that of the budget first."""
        return (self.latency, *self.other_threads)

    @property
    def drop(self) -> float | None:
        """What the artifact loses of the eager model's AP50, on the worst set; None where that was not measured."""
        drops = [-a.difference_ap50 for a in self.accuracy.values() if a.difference_ap50 is not None]
        return max(drops, default=None)

    @property
    def drop_interval(self) -> Interval | None:
        """Of `drop`, 95 %; None where it cannot be told."""
        worst = [a for a in self.accuracy.values() if a.difference_ap50 is not None and -a.difference_ap50 == self.drop]
        found = worst[0].export.ap50.interval if worst and worst[0].export is not None else None
        return (-found[1], -found[0]) if found is not None else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against how the artifact was calibrated, a line each."""
        return tuple(self.calibration.doubts()) if self.calibration is not None else ()

    @property
    def first(self) -> str:
        """What is to be said before anything else; empty where there is nothing."""
        return not_learnt(self.source_ap50)

    def changed(self) -> Iterator[str]:
        """Classes whose AP50 differs from source-only's by more than chance, or has fallen far, the largest loss
        first."""
        for accuracy in self.accuracy.values():
            if accuracy.role == "target" and accuracy.gain is not None:
                changes = sorted(accuracy.gain.classes.items(), key=lambda item: item[1].difference)
                for name, change in changes:
                    if change.clear or change.difference <= -MUCH:
                        chance = "" if change.clear else ", which chance may have done"
                        told = f"{name} {100 * change.before:.1f} -> {100 * change.after:.1f}"
                        yield f"{told} ({100 * change.difference:+.1f}{chance})"


_NOT_STORED = "this verification was not stored"


def save(file: Path, verification: Verification) -> Path:
    """Write a verification, to the file that `saved` names.

    Raises:
        AcclimateError: it cannot be written.
    """
    return write_text(file, verification.model_dump_json(indent=1) + "\n")


def kept(file: Path, verification: Verification) -> Verification:
    """Write a verification; where it cannot be written it says so itself, as what was measured is to be told."""
    notes = tuple(note for note in verification.notes if not note.startswith(_NOT_STORED))
    verification = verification.model_copy(update={"notes": notes})
    try:
        save(file, verification)
    except AcclimateError as error:
        return verification.model_copy(update={"notes": (*notes, f"{_NOT_STORED}: {error}")})
    return verification


def saved(artifact: Path, machine: Mapping[str, str] | None = None) -> Path:
    """Where the verification of an artifact is: in its folder, or beside the package that it came in.

    Those of devices stand beside that of this machine, each under the host and the first digits of the fingerprint that
    `machine` names, as `Verification.machine` does; None is this machine.
    """
    artifact = Path(artifact)
    name = ".".join(["verification", *where(machine or {}), "json"])
    return artifact.with_name(f"{artifact.stem}.{name}") if artifact.is_file() else artifact / name


def verifications(artifact: Path) -> list[Path]:
    """The files of an artifact's or a package's verifications that are there: this machine's first."""
    here = saved(artifact)
    return [*([here] if here.is_file() else []), *listed(here.parent, f"{glob.escape(here.stem)}.*.json")]


def load(file: Path) -> Verification:
    """A verification that was saved, by this or an earlier version.

    Raises:
        AcclimateError: it is missing or damaged.
    """
    return read_as(Verification, file, "verify the artifact again")


def stored(file: Path) -> Verification | None:
    """The verification in a file that `saved` names; None where there is none, or none that can be used."""
    try:
        return load(file)
    except AcclimateError:
        return None


def where(machine: Mapping[str, str]) -> list[str]:
    """What tells a device's files from those of this machine; empty for this machine."""
    if "fingerprint" not in machine:
        return []
    host = re.sub(r"[^A-Za-z0-9.]+", "-", machine.get("device", "").rpartition(":")[0]).strip("-.")
    return ["-".join(filter(None, [host, machine["fingerprint"][:8]]))]
