"""Measuring an artifact: here, or on a device; anew, or the part of it that is not known yet.

Accuracy and parity belong to the artifact and to the images: what was measured of them once is kept for as long as the
artifact, the eager model, the images and the engine are the same, whatever budget is asked for next. Latency belongs to
the moment.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray
from rich.console import Console

from acclimate import machine
from acclimate.config import Budget
from acclimate.edge.artifact import Artifact, ArtifactManifest
from acclimate.edge.bench import Bench, bench_apart
from acclimate.edge.engines import engine
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.evaluate import ap50_interval, ap_interval, compare
from acclimate.remote.client import DeviceError
from acclimate.run import Evaluation, Run, file_digest, listed
from acclimate.structures import Detections
from acclimate.verification import parity as parities
from acclimate.verification.judge import disturbance, within
from acclimate.verification.record import Accuracy, Parity, Role, Verification, kept, saved, stored, where

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet
    from acclimate.models.detector import Detector

log = logging.getLogger(__name__)

Anew = Literal["all", "latency", "nothing"]
"""What is measured though it is known: everything; the latency, which belongs to the moment; or nothing that holds."""
PAUSES_S = (2.0, 5.0, 10.0)
"""So long is waited before a latency that a busy machine has spoilt is measured again."""


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
        """The network's raw outputs (1, ...) for the image at `path`, and what `detect` makes of them.

        Raises:
            AcclimateError: as in `detect`.
        """

    def bench(self, paths: Sequence[Path], threads: int, runs: int) -> Bench:
        """Latency and memory, in a process of its own; on noise where there are no paths.

        Raises:
            AcclimateError: the process failed.
        """


class Here:
    """This machine."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._predictor = Predictor(artifact, threads)
        self.machine: Mapping[str, str] = {**machine.facts(), "runtime": engine(artifact.manifest.runtime).version()}

    @property
    def cores(self) -> int:
        return machine.usable_cores()

    def detect(self, path: Path) -> Detections:
        return self._predictor(path)

    def outputs(self, path: Path) -> tuple[list[NDArray[Any]], Detections]:
        """The raw outputs (1, ...) and the detections; see `Device`."""
        canvas, placed = self._predictor.prepare(read_image(path, self._predictor.manifest.reading))
        outputs = self._predictor.run(canvas)
        return outputs, self._predictor.finish(outputs, placed)

    def bench(self, paths: Sequence[Path], threads: int, runs: int) -> Bench:
        return bench_apart(self._predictor.artifact.folder, paths, threads, runs)


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Labelled images that a model is measured on.

    Attributes:
        truth: the images and their labels.
        name: as reports show it.
        role: which domain they are of.
    """

    truth: LabelledSet
    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Material:
    """What an artifact is measured on.

    Attributes:
        sets: labelled test sets.
        images: image files for parity and latency where there are no sets.
        notes: why other sets are not among them, for the record.
    """

    sets: Sequence[EvaluationSet] = ()
    images: Sequence[Path] = ()
    notes: Sequence[str] = ()

    @property
    def paths(self) -> list[Path]:
        """The images of parity and latency, those of the target first."""
        ordered = sorted(self.sets, key=lambda one: one.role != "target")
        return ([path for one in ordered for path in one.truth.paths] or list(self.images))[: parities.PARITY_IMAGES]


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is measured.

    Attributes:
        anew: what is measured although the record has it.
        all_threads: whether latency is measured on one and on all threads too.
        runs: timed images.
    """

    anew: Anew = "all"
    all_threads: bool = False
    runs: int = 200


@dataclass
class _Eager:
    """The model before export, loaded when it is needed first.

    Attributes:
        run: the run that the artifact came from; None where it is not here.
        weights: SHA-256 of its weights; empty without them.
        known: evaluations that need not be repeated, by run and name of the set; those that are made are added.
        notes: why nothing can be compared.
    """

    run: Run | None
    artifact: Artifact
    known: MutableMapping[tuple[Path, str], Evaluation]
    weights: str = ""
    notes: list[str] = field(default_factory=list)
    _detector: Detector | None = None

    def __post_init__(self) -> None:
        if self.run is not None and self.run.has("model.safetensors"):
            self.weights = file_digest(self.run.path / "model.safetensors")

    @property
    def detector(self) -> Detector | None:
        """None where there is none, which the notes say.

        Raises:
            AcclimateError: the run's detector is not what the artifact came from.
        """
        if self._detector is None and not self.notes:
            self._detector = self._load()
        return self._detector

    def _load(self) -> Detector | None:
        if self.run is None:
            self.notes.append(
                "the run that this artifact came from is not here: nothing was compared with the eager model"
            )
            return None
        try:
            from acclimate.models import detector as detectors
        except ModuleNotFoundError as error:
            self.notes.append(f"{error.name} is not installed: nothing was compared with the eager model")
            return None
        detector, manifest = detectors.load(self.run.path), self.artifact.manifest
        if (detector.spec.classes, detector.spec.image_size) != (manifest.classes, manifest.image_size):
            raise AcclimateError(
                f"{self.artifact.folder}: does not come from {self.run.path} (other classes or canvas); export it from "
                "that run again"
            )
        return detector

    def evaluate(self, test: EvaluationSet) -> Evaluation | None:
        """What the eager model reaches on a set; None without one."""
        detector = self.detector
        if detector is None or self.run is None:
            return None
        key = (self.run.path, test.name)
        if key not in self.known:
            self.known[key] = _evaluated(detector, test)
        return self.known[key]

    @property
    def has_source_only(self) -> bool:
        return self.run is not None and source_only(self.run) is not None

    def source_only(self, test: EvaluationSet, measure: bool) -> tuple[Evaluation, str] | None:
        """What the source-only detector reaches on a set, and its run's folder; None where there is none.

        What its run was evaluated with is taken where it was the same set, else it is measured if `measure` says so.
        """
        run = source_only(self.run) if self.run is not None else None
        if run is None:
            return None
        key = (run.path, test.name)
        if key not in self.known:
            written = [one for one in run.evaluations() if (one.model, one.digest) == ("eager", test.truth.digest)]
            if written:
                self.known[key] = written[0]
            elif measure:
                from acclimate.models import detector as detectors

                self.known[key] = _evaluated(detectors.load(run.path), test)
        found = self.known.get(key)
        return (found, str(run.path)) if found is not None else None


EVERYTHING = Scope()
"""Nothing that is known is taken."""


def verify(
    artifact: Artifact,
    material: Material,
    budget: Budget | None = None,
    *,
    scope: Scope = EVERYTHING,
    device: Device | None = None,
    eager: MutableMapping[tuple[Path, str], Evaluation] | None = None,
    console: Console | None = None,
) -> Verification:
    """Measure an artifact: AP and parity against the eager model, latency, size, memory; then check the limits.

    Saves `verification.json` in the artifact's folder (under the name of the device where there is one, see
    `record.saved`) and, where it belongs to a run, one evaluation a set there. Without the run that the artifact came
    from, the one that it lies in or names, nothing is compared with the eager model. What was measured before of other
    sets stays in the record.

    Args:
        artifact: what is measured.
        material: what it is measured on.
        budget: the limits; None means the accuracy tolerance alone.
        scope: how much is measured.
        device: where it runs; None means here.
        eager: what eager models reached, by run and name of the set; what is there is not measured again, and what is
            measured is put there.
        console: where progress goes.

    Raises:
        AcclimateError: the artifact cannot be run, or a set has a class that it does not know.
    """
    budget = budget or Budget()
    device = device or Here(artifact, budget.threads)
    reference = _Eager(source_run(artifact), artifact, {} if eager is None else eager)
    file, digest = saved(artifact.folder, device.machine), artifact.digest
    record = stored(file) if scope.anew != "all" else None
    if record is not None and not _holds(record, digest, device.machine, reference.weights):
        record = None
    measuring = _Measuring(artifact.manifest, device, reference, record, budget, scope, console)
    accuracy, paths = measuring.accuracy(material.sets), material.paths
    parity, latency = measuring.parity(paths), measuring.latency(paths)
    others, unmeasured = measuring.other_threads(paths)
    said = [*reference.notes, *(note for one in accuracy.values() for note in one.notes), *material.notes]
    if not paths and parity is None:
        said.append("no images were given: latency was measured on noise, and there is no parity")
    said += unmeasured
    if busy := disturbance(latency):
        said.append(f"{busy}; measure the latency again when nothing else runs")
    manifest = artifact.manifest
    verification = Verification(
        artifact=manifest.name,
        runtime=manifest.runtime,
        precision=manifest.precision,
        digest=digest,
        budget=budget,
        accuracy=accuracy,
        parity=parity,
        reference=reference.weights or (record.reference if record is not None else ""),
        source_ap50=_on_own_domain(reference.run),
        latency=latency,
        other_threads=tuple(others),
        size_mb=artifact.size_mb,
        peak_memory_mb=latency.peak_memory_mb,
        macs_m=manifest.notes.macs_m,
        mixed=manifest.mixed,
        calibration=manifest.calibration,
        machine=dict(device.machine),
        notes=tuple(dict.fromkeys(said)),
    )
    return kept(file, verification)


def _evaluated(detector: Detector, test: EvaluationSet) -> Evaluation:
    from acclimate.evaluate import evaluate_detector

    return evaluate_detector(detector, test.truth, test.name, test.role, report=log.debug)


def _holds(record: Verification, digest: str, machine: Mapping[str, str], weights: str) -> bool:
    """Whether a record's accuracy and parity still hold: of this artifact, engine, processor and eager model."""
    same = all(record.machine.get(key) == machine.get(key) for key in ("runtime", "processor"))
    return record.digest == digest and same and (not weights or record.reference == weights)


def contents(paths: Sequence[Path], *facts: str) -> str:
    """A digest of the bytes of files, and of what is said of them."""
    state = hashlib.blake2b("\n".join(facts).encode(), digest_size=16)
    for path in sorted(paths, key=lambda one: one.name):
        try:
            with open(path, "rb") as file:
                state.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError:
            state.update(b"unreadable")
    return state.hexdigest()


@dataclass(frozen=True)
class _Measuring:
    """An artifact where it runs, beside the eager model that it came from.

    Attributes:
        manifest: the artifact's.
        device: where it runs.
        reference: the eager model.
        record: an earlier verification whose accuracy and parity still hold; None where there is none.
        budget: the limits.
        scope: how much is measured.
        console: where progress goes.
    """

    manifest: ArtifactManifest
    device: Device
    reference: _Eager
    record: Verification | None
    budget: Budget
    scope: Scope
    console: Console | None

    @property
    def _gains(self) -> bool:
        """Whether the budget asks what the adaptation has gained."""
        return self.budget.min_gain_ap50 is not None or self.budget.max_class_drop_ap50 is not None

    def accuracy(self, sets: Sequence[EvaluationSet]) -> dict[str, Accuracy]:
        """By the name of the set: those of the record, and those of `sets`, measured where the record lacks them."""
        accuracy = dict(self.record.accuracy) if self.record is not None else {}
        for one in sets:
            content = contents(one.truth.paths, one.truth.digest)
            kept = accuracy.get(one.name)
            asked = self._gains and one.role == "target"
            lacks = asked and kept is not None and kept.gain is None and self.reference.has_source_only
            if kept is not None and (kept.content, kept.role) == (content, one.role) and not lacks:
                continue
            self._say(f"verifying {self.manifest.name} on {one.name}: {len(one.truth.images)} images")
            accuracy[one.name] = self._accuracy_on(one, content)
        return accuracy

    def _accuracy_on(self, test: EvaluationSet, content: str) -> Accuracy:
        from acclimate import diagnosis
        from acclimate.evaluate import average_precision, relabel

        truth, name, role = test.truth, test.name, test.role
        on, called = self.device.machine.get("device"), self.manifest.name
        detections, notes = self._detected(truth.paths)
        renamed = relabel(detections, self.manifest.classes, truth.classes, name)
        ours = average_precision(renamed, truth, data=name, role=role, model=f"{called} on {on}" if on else called)
        if self.reference.run is not None:
            try:
                stem = ".".join([name, called, *where(self.device.machine)])
                size = self.manifest.image_size
                seen = diagnosis.diagnose(renamed, truth, data=name, role=role, model=ours.model, image_size=size)
                diagnosis.save(self.reference.run, stem, seen)
                self.reference.run.write(f"evaluations/{stem}.json", ours)
            except AcclimateError as error:
                notes.append(f"the evaluation was not stored: {error}")
        accuracy = Accuracy(
            role=role,
            images=ours.images,
            unreadable=ours.unreadable,
            digest=truth.digest,
            content=content,
            artifact_ap=ours.ap,
            artifact_ap50=ours.ap50,
            ap_interval=ap_interval(ours),
            ap50_interval=ap50_interval(ours),
            notes=tuple(notes),
        )
        eager = self.reference.evaluate(test)
        if eager is not None:
            accuracy = accuracy.model_copy(
                update={
                    "eager_ap": eager.ap,
                    "eager_ap50": eager.ap50,
                    "difference_ap": ours.ap - eager.ap,
                    "difference_ap50": ours.ap50 - eager.ap50,
                    "export": compare(eager, ours),
                }
            )
        before = self.reference.source_only(test, measure=self._gains) if role == "target" else None
        if before is not None:
            accuracy = accuracy.model_copy(update={"gain": compare(before[0], ours), "source_only": before[1]})
        return accuracy

    def _detected(self, paths: Sequence[Path]) -> tuple[list[Detections | None], list[str]]:
        """What is in each image, None where it cannot be read; and what is said of those."""
        detections: list[Detections | None] = []
        notes = []
        for path in paths:
            try:
                detections.append(self.device.detect(path))
            except DeviceError:
                raise
            except AcclimateError as error:
                notes.append(f"{error} (left out of the accuracy)")
                detections.append(None)
        return detections, notes

    def parity(self, paths: Sequence[Path]) -> Parity | None:
        """What is known of it, or else of the images at `paths`; None without images or an eager model."""
        known = self.record.parity if self.record is not None else None
        content = contents(paths)
        if not paths or (known is not None and known.content == content):
            return known
        detector = self.reference.detector
        if detector is None:
            return known
        self._say(f"verifying {self.manifest.name}: parity with the eager model")
        parity = parities.compare(self.manifest, detector, paths, self.device.outputs)
        return parity.model_copy(update={"content": content})

    def latency(self, paths: Sequence[Path]) -> Bench:
        """On the budget's threads."""
        threads, limit = self.budget.threads, self.budget.latency_ms
        known = self._benches.get(threads)
        if known is not None and (limit is None or within(known.median_ms, limit)):
            return known
        self._say(f"measuring the latency on {threads} thread{'s' * (threads > 1)}")
        return self._quiet(paths)

    def other_threads(self, paths: Sequence[Path]) -> tuple[list[Bench], list[str]]:
        """The latency on one and on all threads where it is asked for, and why some were not measured."""
        benches: list[Bench] = []
        notes = []
        for threads in sorted({1, self.device.cores} - {self.budget.threads}) if self.scope.all_threads else ():
            try:
                known = self._benches.get(threads)
                benches.append(known or self.device.bench(paths, threads, self.scope.runs))
            except DeviceError:
                raise
            except AcclimateError as error:
                notes.append(f"latency on {threads} threads was not measured: {error}")
        return benches, notes

    @property
    def _benches(self) -> dict[int, Bench]:
        """Latencies that need not be measured again, by threads."""
        if self.record is None or self.scope.anew != "nothing":
            return {}
        return {bench.threads: bench for bench in self.record.benches}

    def _quiet(self, paths: Sequence[Path]) -> Bench:
        """The latency; again after a pause where something else ran and the limit did not hold, a few times at most."""
        limit, threads, runs = self.budget.latency_ms, self.budget.threads, self.scope.runs
        best = self.device.bench(paths, threads, runs)
        for pause in PAUSES_S:
            reason = disturbance(best)
            if limit is None or within(best.median_ms, limit) or not reason:
                break
            self._say(f"{reason}; measuring the latency again in {pause:g} s")
            time.sleep(pause)
            again = self.device.bench(paths, threads, runs)
            best = min(
                best, again, key=lambda one: (not within(one.median_ms, limit), bool(disturbance(one)), one.median_ms)
            )
        return best

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False)


def source_run(artifact: Artifact) -> Run | None:
    """The run that the artifact's folder lies in, or else the one that its manifest names."""
    named = artifact.manifest.source_run
    for folder in [artifact.folder.resolve().parent.parent, *([Path(named)] if named else [])]:
        if (folder / "run.json").is_file():
            return Run.open(folder)
    return None


def _lineage(run: Run) -> Iterator[Run]:
    """The run, the one that it started from, and so on, as far as they are here."""
    seen: set[Path] = set()
    while run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        yield run
        for parent in run.manifest.parents[:1]:
            # A job may have been moved as a whole.
            for folder in (Path(parent), run.path.resolve().parent / Path(parent).name):
                if (folder / "run.json").is_file():
                    run = Run.open(folder)
                    break


def source_only(run: Run) -> Run | None:
    """The run that says what this one would be without the target: the baseline beside it, or the source run itself.

    None for a run that has seen no target, and where neither is here.
    """
    if run.manifest.verb not in {"adapt", "slim", "search"} or run.manifest.notes.role == "baseline":
        return None
    lineage = list(_lineage(run))
    for one in lineage:
        start = {Path(parent).name for parent in one.manifest.parents}
        for file in listed(one.path.resolve().parent, "*/run.json"):
            try:
                beside = Run.open(file.parent)
            except AcclimateError:
                continue
            same = start & {Path(parent).name for parent in beside.manifest.parents}
            if beside.done and beside.manifest.notes.role == "baseline" and same:
                return beside
    return lineage[-1] if lineage[-1].manifest.verb == "train" else None


def _on_own_domain(run: Run | None) -> float | None:
    """AP50 of the source detector that a run comes from, on the source's test set; None where it was not evaluated."""
    source = list(_lineage(run))[-1] if run is not None else None
    if source is None or source.manifest.verb != "train" or source.manifest.notes.role == "oracle":
        return None
    found = [one.ap50 for one in source.evaluations() if (one.role, one.model) == ("source", "eager")]
    return max(found, default=None)
