"""Is the artifact as good as the detector it came from, and does it fit the budget? Measured on its own runtime."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.table import Table

from acclimate import __version__, machine
from acclimate.config import Budget
from acclimate.edge.artifact import Artifact, ArtifactManifest, MixedPrecision
from acclimate.edge.bench import Bench, bench_apart
from acclimate.edge.decode import decode
from acclimate.edge.engines import engine
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.remote.client import DeviceError
from acclimate.run import Evaluation, Run, read_json, write_text
from acclimate.structures import Detections

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)

Role = Literal["source", "target"]
PARITY_IMAGES = 32
PARITY_SCORE = 0.3
PARITY_IOU = 0.5
LAYERS_SHOWN = 10
BUSY = 0.8
"""Below this share of processor time in the latency, something else was running."""
LPIRC_IMAGES = 20_000
LPIRC_MINUTES = 10.0


class Check(BaseModel):
    """One limit and what was measured; `value` and `passed` are None where it could not be measured."""

    name: str
    limit: float
    value: float | None
    passed: bool | None


class Accuracy(BaseModel):
    """AP on one labelled set, 0..1; the eager model's is None where it was not to be had."""

    role: Role
    images: int
    digest: str = ""
    """Of the set's images and labels, wherever they lie; empty where an earlier version measured."""
    artifact_ap: float
    artifact_ap50: float
    eager_ap: float | None = None
    eager_ap50: float | None = None
    difference_ap: float | None = None
    difference_ap50: float | None = None
    """Artifact minus eager."""


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
    passed: bool
    """Every limit that was asked for holds, and so does the accuracy tolerance where it could be measured."""
    checks: tuple[Check, ...]
    budget: Budget
    inputs: str = ""
    """Digest of what was measured on (the sets, the threads), for "need it be measured again?"."""
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    parity: Parity | None = None
    latency: Bench
    other_threads: tuple[Bench, ...] = ()
    """On one and on all threads, where that was asked for and is not `latency` itself."""
    score: Score | None = None
    """None without a labelled set."""
    size_mb: float
    peak_memory_mb: float
    macs_m: float | None = None
    mixed: MixedPrecision | None = None
    """Of an INT8 artifact that was exported with a tolerance."""
    machine: dict[str, str]
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""
    version: str = __version__

    @property
    def benches(self) -> tuple[Bench, ...]:
        """Every measurement of latency, that of the budget first."""
        return (self.latency, *self.other_threads)

    @property
    def drop(self) -> float | None:
        """What the artifact loses of the eager model's AP50, on the worst set; None where that was not measured."""
        drops = [-a.difference_ap50 for a in self.accuracy.values() if a.difference_ap50 is not None]
        return max(drops, default=None)


class Device(Protocol):
    """Where the artifact that is verified runs: here, or on a device (`remote.client.Remote`)."""

    @property
    def machine(self) -> Mapping[str, str]:
        """Facts for a reader of the measurement."""

    @property
    def cores(self) -> int:
        """How many threads it can run at once."""

    def detect(self, path: Path) -> Detections:
        """What is in the image at `path`: boxes in its pixels, best first, down to the decoding threshold.

        Raises:
            AcclimateError: the image cannot be read; a `DeviceError` where the device is at fault.
        """

    def outputs(self, path: Path) -> tuple[list[NDArray[Any]], Detections]:
        """The network's raw outputs for the image at `path`, and what `detect` makes of them.

        Raises:
            AcclimateError: as in `detect`.
        """

    def bench(self, paths: Sequence[Path], threads: int, runs: int) -> Bench:
        """Latency and memory, in a process of its own; on noise where there are no paths.

        Raises:
            AcclimateError: the process failed.
        """


class _Here:
    """This machine."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._predictor = Predictor(artifact, threads)
        self.machine: Mapping[str, str] = {**machine.facts(), "runtime": engine(artifact.manifest.runtime).version()}

    @property
    def cores(self) -> int:
        return machine.usable_cores()

    def detect(self, path: Path) -> Detections:
        return self._predictor(read_image(path, self._predictor.manifest.reading))

    def outputs(self, path: Path) -> tuple[list[NDArray[Any]], Detections]:
        canvas, placed = self._predictor.prepare(read_image(path, self._predictor.manifest.reading))
        outputs = self._predictor.run(canvas)
        return outputs, self._predictor.finish(outputs, placed)

    def bench(self, paths: Sequence[Path], threads: int, runs: int) -> Bench:
        return bench_apart(self._predictor.artifact.folder, paths, threads, runs)


def verify(
    artifact: Path,
    sets: Sequence[tuple[LabelledSet, str, Role]],
    budget: Budget | None = None,
    *,
    images: Sequence[Path] = (),
    run: Run | None = None,
    runs: int = 200,
    inputs: str = "",
    device: Device | None = None,
    all_threads: bool = False,
    eager: MutableMapping[tuple[Path, str], Evaluation] | None = None,
    console: Console | None = None,
) -> Verification:
    """Measure an artifact: AP and parity against the eager model, latency, size, memory; then check the limits.

    Saves `verification.json` in the artifact's folder (under the name of the device where there is one, see `saved`)
    and, where it belongs to a run, one evaluation a set there. Without labelled sets, parity and latency are measured
    on `images`; without the run that the artifact came from, nothing is compared with the eager model.

    Args:
        artifact: its folder.
        sets: labelled test sets, each with a name and its domain.
        budget: the limits; None means the accuracy tolerance alone.
        images: image files for parity and latency where `sets` is empty.
        run: the run it came from; None means the one it lies in or names.
        runs: timed images.
        inputs: kept in the result.
        device: where it runs; None means here.
        all_threads: measure latency on one and on all threads too.
        eager: what the eager models reached, by run and name of the set; what is there is not measured again, and
            what is measured is put there.
        console: where progress goes.

    Raises:
        AcclimateError: the artifact is damaged, or a set has a class that it does not know.
    """
    loaded = Artifact.open(Path(artifact))
    manifest = loaded.manifest
    budget = budget or Budget()
    device = device or _Here(loaded, budget.threads)
    notes: list[str] = []
    run = run or _source_run(loaded)
    detector = _eager(run, loaded, notes)
    paths = [path for truth, _, role in sorted(sets, key=lambda one: one[2] != "target") for path in truth.paths]
    paths = paths or list(images)

    accuracy = {}
    for truth, name, role in sets:
        _say(console, f"verifying {manifest.name} on {name}: {len(truth.images)} images")
        accuracy[name] = _accuracy(
            device, manifest, detector, truth, name, role, run, notes, {} if eager is None else eager
        )
    parity = None
    if detector is not None and paths:
        _say(console, f"verifying {manifest.name}: parity with the eager model, latency")
        parity = _parity(device, manifest, detector, paths[:PARITY_IMAGES])
    if not paths:
        notes.append("no images were given: latency was measured on noise, and there is no parity")
    latency = device.bench(paths[:PARITY_IMAGES], budget.threads, runs)
    others: list[Bench] = []
    for threads in sorted({1, device.cores} - {budget.threads}) if all_threads else ():
        try:
            others.append(device.bench(paths[:PARITY_IMAGES], threads, runs))
        except AcclimateError as error:
            notes.append(f"latency on {threads} threads was not measured: {error}")

    if busy(latency):
        notes.append(
            f"the machine was busy: an image took {latency.median_ms:.1f} ms, of which {latency.cpu_ms:.1f} ms on the "
            "processor; measure the latency again when nothing else runs"
        )
    verification = Verification(
        artifact=manifest.name,
        runtime=manifest.runtime,
        precision=manifest.precision,
        digest=loaded.digest,
        passed=False,
        checks=(),
        budget=budget,
        inputs=inputs,
        accuracy=accuracy,
        parity=parity,
        latency=latency,
        other_threads=tuple(others),
        size_mb=loaded.size_mb,
        peak_memory_mb=latency.peak_memory_mb,
        macs_m=manifest.notes.macs_m,
        mixed=manifest.mixed,
        machine=dict(device.machine),
        notes=tuple(notes),
    )
    return judge(loaded.folder, verification, budget)


def saved(artifact: Path, machine: Mapping[str, str] | None = None) -> Path:
    """Where the verification of an artifact is: in its folder, or beside the package that it came in.

    Those of devices stand beside that of this machine, each under the host and the first digits of the fingerprint that
    `machine` names, as `Verification.machine` does; None is this machine.
    """
    artifact = Path(artifact)
    name = ".".join(["verification", *_where(machine or {}), "json"])
    return artifact.with_name(f"{artifact.stem}.{name}") if artifact.is_file() else artifact / name


def verifications(artifact: Path) -> list[Path]:
    """The files of an artifact's or a package's verifications that are there: this machine's first."""
    here = saved(artifact)
    return [*([here] if here.is_file() else []), *sorted(here.parent.glob(f"{glob.escape(here.stem)}.*.json"))]


def load(file: Path) -> Verification:
    """A verification that was saved.

    Raises:
        AcclimateError: it is missing or damaged.
    """
    try:
        return Verification.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AcclimateError(f"{file}: damaged ({where}: {first['msg']}); verify the artifact again") from None


def stored(folder: Path, machine: Mapping[str, str] | None = None) -> Verification | None:
    """The last verification of the artifact in `folder` on `machine` (see `saved`); None where there is none, or none
    that can be used."""
    try:
        return load(saved(folder, machine))
    except AcclimateError:
        return None


def _where(machine: Mapping[str, str]) -> list[str]:
    """What tells a device's files from those of this machine; empty for this machine."""
    if "fingerprint" not in machine:
        return []
    host = re.sub(r"[^A-Za-z0-9.]+", "-", machine.get("device", "").rpartition(":")[0]).strip("-.")
    return ["-".join(filter(None, [host, machine["fingerprint"][:8]]))]


def judge(folder: Path, verification: Verification, budget: Budget) -> Verification:
    """Hold what was measured against `budget`, and save the result in the artifact's folder."""
    judged = verification.model_copy(update={"budget": budget, "score": score(verification)})
    checks = tuple(_checks(judged))
    judged = judged.model_copy(update={"checks": checks, "passed": all(check.passed for check in checks)})
    write_text(saved(folder, judged.machine), judged.model_dump_json(indent=1) + "\n")
    return judged


def busy(latency: Bench) -> bool:
    """Whether something else ran while a latency on one thread was measured."""
    return latency.threads == 1 and latency.cpu_ms < BUSY * latency.median_ms


def score(verification: Verification) -> Score | None:
    """Accuracy for time and energy; None where accuracy was not measured."""
    v = verification
    name, accuracy = min(v.accuracy.items(), key=lambda item: item[1].role != "target", default=(None, None))
    if name is None or accuracy is None:
        return None
    minutes = LPIRC_IMAGES * v.latency.median_ms / 60e3
    energy = None if v.latency.energy_mj is None else LPIRC_IMAGES * v.latency.energy_mj / 3.6e6
    return Score(
        data=name,
        ap50=accuracy.artifact_ap50,
        minutes=minutes,
        in_time=minutes <= LPIRC_MINUTES,
        ap50_per_minute=accuracy.artifact_ap50 / minutes,
        energy_wh=energy,
        ap50_per_wh=accuracy.artifact_ap50 / energy if energy else None,
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One of several artifacts that were verified together.

    Attributes:
        path: of the artifact.
        verification: None where it could not be measured.
        problem: why not; empty where it could.
    """

    path: Path
    verification: Verification | None
    problem: str = ""


def print_compared(compared: Sequence[Compared], console: Console) -> None:
    """One row an artifact, its verdict first; below, why one was not measured, and each artifact's notes."""
    several = len({one.path.parent for one in compared}) > 1
    measured = [one.verification for one in compared if one.verification is not None]
    threads = sorted({bench.threads for v in measured for bench in v.benches})
    rows = [("artifact", *headings(threads))]
    for one in compared:
        v = one.verification
        found = cells(v, threads) if v is not None else ("not measured", *"-" * (len(rows[0]) - 2))
        rows.append((str(one.path) if several else one.path.name, *found))
    print_rows(rows, 1, console)
    for one in compared:
        notes = one.verification.notes if one.verification is not None else (one.problem,)
        for note in notes:
            console.print(f"note: {one.path.name}: {note}", markup=False, highlight=False, soft_wrap=True)
    if measured and all(v.latency.energy_mj is None for v in measured):
        console.print("note: energy is not told by this machine, or not to this user", highlight=False, soft_wrap=True)


def headings(threads: Sequence[int]) -> tuple[str, ...]:
    """What the cells of `cells` are, the verdict first."""
    latencies = [f"ms, {count} thread{'s' * (count > 1)} (p95)" for count in threads]
    return ("verdict", "AP50", "AP", "drop", *latencies, "mJ", "MB memory", "MB size", "AP50/min", "AP50/Wh")


def cells(verification: Verification, threads: Sequence[int]) -> tuple[str, ...]:
    """A verification as a row of a table, with the latencies on so many `threads`; a dash is what was not measured."""
    v, s = verification, verification.score
    broken = [check.name for check in v.checks if not check.passed]
    benches = {bench.threads: bench for bench in v.benches}
    found = [benches.get(count) for count in threads]
    return (
        f"broken: {', '.join(broken)}" if broken else "passed" if v.checks else "measured",
        _number(s.ap50 if s else None, ".3f"),
        _number(v.accuracy[s.data].artifact_ap if s else None, ".3f"),
        _number(v.drop, "+.4f"),
        *("-" if bench is None else f"{bench.median_ms:.2f} ({bench.p95_ms:.2f})" for bench in found),
        _number(v.latency.energy_mj, ".1f"),
        f"{v.peak_memory_mb:.0f}",
        f"{v.size_mb:.2f}",
        _number(s.ap50_per_minute if s else None, ".3f"),
        _number(s.ap50_per_wh if s else None, ".3f"),
    )


def print_rows(rows: Sequence[Sequence[str]], verdict: int, console: Console) -> None:
    """A table, its headings first; the column `verdict` says how a row is coloured."""
    # Not rich's table, which drops numbers where the terminal is narrow: here the lines wrap instead.
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        style = {"passed": "green", "measured": None, "verdict": "bold"}.get(row[verdict], "red")
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value + 0.0, form)


def print_verification(verification: Verification, console: Console) -> None:
    """The verdict first, then each limit, then what was measured."""
    v = verification
    verdict = "[bold green]PASSED[/]" if v.passed else "[bold red]FAILED[/]"
    if not v.checks:
        verdict = "[bold]MEASURED[/] (no limit to check)"
    console.print(f"{verdict}  {v.artifact} ({v.runtime}, {v.precision})", highlight=False)
    table = Table("limit", "allowed", "measured", "", box=None)
    for check in v.checks:
        value = "not measured" if check.value is None else f"{check.value + 0.0:.4g}"
        table.add_row(check.name, f"{check.limit:.4g}", value, "ok" if check.passed else "[red]broken[/]")
    if v.checks:
        console.print(table)
    if v.accuracy:
        table = Table("set", "images", "AP50", "eager", "difference", "AP", "eager", box=None)
        for name, a in v.accuracy.items():
            table.add_row(
                name,
                str(a.images),
                f"{a.artifact_ap50:.3f}",
                "-" if a.eager_ap50 is None else f"{a.eager_ap50:.3f}",
                "-" if a.difference_ap50 is None else f"{a.difference_ap50:+.4f}",
                f"{a.artifact_ap:.3f}",
                "-" if a.eager_ap is None else f"{a.eager_ap:.3f}",
            )
        console.print(table)
    b = v.latency
    parts = ", ".join(f"{name} {value:.2f}" for name, value in b.parts.items())
    threads = f"{b.threads} thread" + "s" * (b.threads > 1)
    lines = [
        f"latency {b.median_ms:.2f} ms median, {b.p95_ms:.2f} p95, {b.iqr_ms:.2f} between quartiles",
        f"  {threads}; {parts}",
        f"size {v.size_mb:.2f} MB, peak memory {v.peak_memory_mb:.0f} MB"
        + (f", {v.macs_m:.0f} M multiply-accumulates" if v.macs_m is not None else ""),
    ]
    lines[2:2] = [
        f"  {one.threads} thread{'s' * (one.threads > 1)}: {one.median_ms:.2f} ms median, {one.p95_ms:.2f} p95"
        for one in v.other_threads
    ]
    if b.energy_mj is not None:
        lines.append(f"energy {b.energy_mj:.1f} mJ an image, all that runs on the processor included")
    if v.score is not None:
        lines.append(_score_line(v.score))
    if v.parity is not None:
        lines += _parity_lines(v.parity)
    if v.mixed is not None:
        lines += _mixed_lines(v.mixed)
    lines += [f"note: {note}" for note in v.notes]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _score_line(s: Score) -> str:
    late = "" if s.in_time else f", too late for {LPIRC_MINUTES:.0f}"
    energy = "" if s.ap50_per_wh is None else f"; AP50 per watt-hour {s.ap50_per_wh:.3f} ({s.energy_wh:.3f} Wh)"
    return f"AP50 per minute {s.ap50_per_minute:.3f} ({LPIRC_IMAGES} images take {s.minutes:.1f} min{late}){energy}"


def _mixed_lines(mixed: MixedPrecision) -> Iterator[str]:
    """What the tolerance cost, then the layers in fp32 with the agreement where each alone is quantised."""
    yield (
        f"agreement with fp32 on {mixed.images} unlabelled images: {mixed.before:.3f} with all {mixed.layers} layers "
        f"in INT8, {mixed.after:.3f} with {len(mixed.in_float)} of them in fp32 ({mixed.tolerance:g} asked for)"
    )
    alone = {one.layer: one.agreement for one in mixed.alone}
    width = max(map(len, mixed.in_float[:LAYERS_SHOWN]), default=0)
    for layer in mixed.in_float[:LAYERS_SHOWN]:
        yield f"  {layer:<{width}}  {alone[layer]:.3f} where it alone is in INT8"
    if len(mixed.in_float) > LAYERS_SHOWN:
        yield f"  and {len(mixed.in_float) - LAYERS_SHOWN} less sensitive ones; artifact.json has them all"


def _parity_lines(parity: Parity) -> Iterator[str]:
    p = parity
    yield f"parity on {p.images} images: {p.matched} detections matched, {p.unmatched} without a partner" + (
        ""
        if p.score_max is None
        else f"; score differs by {p.score_mean:.2g} (mean), {p.score_max:.2g} (max), box by {p.box_px_mean:.2g} and "
        f"{p.box_px_max:.2g} px, IoU {p.iou_mean:.4f} (mean), {p.iou_min:.4f} (min)"
    )
    for pair in p.worst:
        if pair.eager_score is None or pair.artifact_score is None:
            who = "artifact" if pair.eager_score is None else "eager model"
            score = pair.artifact_score if pair.eager_score is None else pair.eager_score
            yield f"  {Path(pair.image).name}: {pair.name} {score:.2f} seen by the {who} alone"
        elif abs(pair.eager_score - pair.artifact_score) > 0.05 or (pair.iou or 0) < 0.9:
            yield (
                f"  {Path(pair.image).name}: {pair.name} {pair.eager_score:.2f} -> {pair.artifact_score:.2f}, "
                f"IoU {pair.iou:.2f}"
            )


def _source_run(artifact: Artifact) -> Run | None:
    """The run that the artifact's folder lies in, or else the one that its manifest names."""
    named = artifact.manifest.source_run
    for folder in [artifact.folder.resolve().parent.parent, *([Path(named)] if named else [])]:
        if (folder / "run.json").is_file():
            return Run.open(folder)
    return None


def _eager(run: Run | None, artifact: Artifact, notes: list[str]) -> Detector | None:
    if run is None:
        notes.append("the run that this artifact came from is not here: nothing was compared with the eager model")
        return None
    try:
        from acclimate.models import detector as detectors
    except ModuleNotFoundError as error:
        notes.append(f"{error.name} is not installed: nothing was compared with the eager model")
        return None
    detector = detectors.load(run.path)
    if (detector.spec.classes, detector.spec.image_size) != (artifact.manifest.classes, artifact.manifest.image_size):
        raise AcclimateError(
            f"{artifact.folder}: does not come from {run.path} (other classes or canvas); export it from that run again"
        )
    return detector


def _accuracy(
    device: Device,
    manifest: ArtifactManifest,
    detector: Detector | None,
    truth: LabelledSet,
    name: str,
    role: Role,
    run: Run | None,
    notes: list[str],
    known: MutableMapping[tuple[Path, str], Evaluation],
) -> Accuracy:
    from acclimate.evaluate import average_precision, evaluate_detector, relabel

    where, called = device.machine.get("device"), manifest.name
    found: list[Detections | None] = []
    for path in truth.paths:
        try:
            found.append(device.detect(path))
        except DeviceError:
            raise
        except AcclimateError as error:
            notes.append(f"{error} (left out of the accuracy)")
            found.append(None)
    renamed = relabel(found, manifest.classes, truth.classes, name)
    ours = average_precision(renamed, truth, data=name, role=role, model=f"{called} on {where}" if where else called)
    if run is not None:
        run.write(f"evaluations/{'.'.join([name, called, *_where(device.machine)])}.json", ours)
    accuracy = Accuracy(
        role=role, images=ours.images, digest=truth.digest, artifact_ap=ours.ap, artifact_ap50=ours.ap50
    )
    if detector is None or run is None:
        return accuracy
    eager = known.get((run.path, name))
    if eager is None:
        eager = known[run.path, name] = evaluate_detector(detector, truth, name, role, report=log.debug)
    return accuracy.model_copy(
        update={
            "eager_ap": eager.ap,
            "eager_ap50": eager.ap50,
            "difference_ap": ours.ap - eager.ap,
            "difference_ap50": ours.ap50 - eager.ap50,
        }
    )


def _parity(device: Device, manifest: ArtifactManifest, detector: Detector, paths: Sequence[Path]) -> Parity:
    from acclimate.models.predict import network

    reference = network(detector.eval())
    pairs: list[Pair] = []
    raw = dict.fromkeys(manifest.output_names, 0.0)
    images = 0
    for path in paths:
        try:
            image = read_image(path, manifest.reading)
        except AcclimateError:
            continue
        images += 1
        canvas, placed = letterbox(image, manifest.image_size, manifest.fill)
        theirs = reference(to_input(canvas))
        ours, found = device.outputs(path)
        for name, a, b in zip(manifest.output_names, theirs, ours, strict=True):
            raw[name] = max(raw[name], float(np.abs(a - b).max()))
        eager = placed.to_image(decode(theirs, detector.decode_options(), manifest.image_size)[0])
        pairs += _pairs(eager, found, str(path), manifest.classes)
    both = [pair for pair in pairs if pair.eager_score is not None and pair.artifact_score is not None]
    alone = [pair for pair in pairs if pair.eager_score is None or pair.artifact_score is None]
    scores = np.array([abs((pair.eager_score or 0) - (pair.artifact_score or 0)) for pair in both])
    ious, pixels = (np.array([getattr(pair, key) for pair in both]) for key in ("iou", "box_px"))
    worst = sorted(alone, key=lambda pair: -max(pair.eager_score or 0, pair.artifact_score or 0))
    worst += [both[index] for index in np.argsort(-scores)]
    parity = Parity(images=images, matched=len(both), unmatched=len(alone), raw_max=raw, worst=tuple(worst[:5]))
    if not both:
        return parity
    return parity.model_copy(
        update={
            "score_max": float(scores.max()),
            "score_p99": float(np.percentile(scores, 99)),
            "score_mean": float(scores.mean()),
            "iou_min": float(ious.min()),
            "iou_mean": float(ious.mean()),
            "box_px_max": float(pixels.max()),
            "box_px_p99": float(np.percentile(pixels, 99)),
            "box_px_mean": float(pixels.mean()),
        }
    )


def _pairs(eager: Detections, artifact: Detections, image: str, classes: Sequence[str]) -> Iterator[Pair]:
    """Each detection above `PARITY_SCORE` once, with the other model's detection of the same object."""
    overlap = _iou(eager.boxes, artifact.boxes)
    overlap = np.where(eager.labels[:, None] == artifact.labels[None], overlap, 0)
    partner = np.full(len(eager), -1)
    for row in range(len(eager)):
        free = np.where(np.isin(np.arange(len(artifact)), partner), 0, overlap[row])
        if len(free) and free.max() > PARITY_IOU:
            partner[row] = int(free.argmax())
    for row, column in enumerate(partner):
        score = float(eager.scores[row])
        if column < 0:
            if score >= PARITY_SCORE:
                yield Pair(
                    image=image,
                    name=classes[int(eager.labels[row])],
                    eager_score=score,
                    artifact_score=None,
                    iou=None,
                    box_px=None,
                )
        elif max(score, float(artifact.scores[column])) >= PARITY_SCORE:
            yield Pair(
                image=image,
                name=classes[int(eager.labels[row])],
                eager_score=score,
                artifact_score=float(artifact.scores[column]),
                iou=float(overlap[row, column]),
                box_px=float(np.abs(eager.boxes[row] - artifact.boxes[column]).max()),
            )
    for column in sorted(set(range(len(artifact))) - set(partner.tolist())):
        if artifact.scores[column] >= PARITY_SCORE:
            yield Pair(
                image=image,
                name=classes[int(artifact.labels[column])],
                eager_score=None,
                artifact_score=float(artifact.scores[column]),
                iou=None,
                box_px=None,
            )


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, M) from boxes (N, 4) and (M, 4)."""
    first, second = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    inter = sides.clip(min=0).prod(-1)
    areas = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1)
    overlap: NDArray[np.float64] = inter / np.maximum(areas - inter, 1e-9)
    return overlap


def _checks(v: Verification) -> Iterator[Check]:
    measured = {
        "latency_ms": v.latency.median_ms,
        "size_mb": v.size_mb,
        "memory_mb": v.peak_memory_mb,
        "macs_m": v.macs_m,
    }
    for name, value in measured.items():
        limit = getattr(v.budget, name)
        if limit is not None:
            yield Check(name=name, limit=limit, value=value, passed=None if value is None else value <= limit)
    # The last digit of a difference of two APs is noise, which must not break a limit that is just met.
    if v.drop is not None:
        limit = v.budget.max_ap50_drop
        yield Check(name="max_ap50_drop", limit=limit, value=v.drop, passed=v.drop <= limit + 1e-9)


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False)
