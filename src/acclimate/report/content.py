"""What the run folders say, gathered for the page. Reads files alone: no torch, no data set, no runtime.

Any part may be missing; then `Content.missing` says what, and which command makes it. A part that is there but
damaged is an error.
AP values are in 0..1 here and become points (0..100) on the page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from acclimate.config import Budget, Config, parse
from acclimate.edge.artifact import Artifact as OnDisk
from acclimate.edge.artifact import ArtifactManifest
from acclimate.errors import AcclimateError
from acclimate.evaluate import Change, Comparison, Interval, ap50_interval, compare
from acclimate.report import pictures
from acclimate.run import ClassAP, Evaluation, Run, Selection, counted, listed, read_as, read_json
from acclimate.select.record import Found, Hindsight
from acclimate.verification.judge import TOLERANCE, Check, Verdict, verdict
from acclimate.verification.record import Accuracy, Verification, load, verifications

Kind = Literal["source", "baseline", "adapted", "artifact", "oracle"]
"""A baseline is the source run trained on for as long as adaptation takes, without anything of the target."""
_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)
_NAMES = {"source": "Source-only", "baseline": "Source-only", "adapted": "Adapted", "oracle": "Oracle"}
_RUNTIMES = {
    "onnx": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn", "litert": "LiteRT", "executorch": "ExecuTorch"
}  # fmt: skip
_GENERIC = {"test", "val", "valid", "validation", "train", "images", "annotations", "labels", "instances", "data"}


@dataclass(frozen=True)
class Domain:
    """A labelled test set: `name` is short and unique on the page."""

    role: str
    data: str
    name: str
    images: int | None
    unreadable: int = 0
    """Images of it that could not be read, and so count nowhere."""

    @property
    def counted(self) -> str:
        """How many images its numbers are of; empty where that is not known."""
        return counted(self.images, self.unreadable) if self.images else ""


@dataclass(frozen=True)
class Score:
    """AP of one subject on one domain; what was not measured is None or empty."""

    ap50: float
    ap: float | None = None
    ap75: float | None = None
    images: int | None = None
    unreadable: int = 0
    classes: Mapping[str, ClassAP] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    """What it was read from; None where a verification alone tells it."""
    known_interval: Interval | None = None

    @property
    def interval(self) -> Interval | None:
        """Of the AP50, 95 %; None where it cannot be told."""
        return self.known_interval if self.evaluation is None else ap50_interval(self.evaluation)


@dataclass(frozen=True)
class Artifact:
    """An exported artifact and, where it was verified, what was measured."""

    name: str
    runtime: str
    precision: str
    classes: tuple[str, ...]
    notes: Mapping[str, Any]
    verified: Verification | None
    checks: tuple[Check, ...]
    stale: bool = False
    """It was verified, and replaced since."""
    suggested: Mapping[str, float] = field(default_factory=dict)
    """The score from which to show each class, as its manifest suggests."""
    device: str = ""
    """Where it was verified; empty for the machine of the run folder. On each it is an artifact of its own."""
    doubts: tuple[str, ...] = ()
    """What speaks against how it was calibrated."""

    @property
    def verdict(self) -> Verdict | None:
        """None where it was not verified."""
        return verdict(self.checks) if self.verified is not None else None

    @property
    def passed(self) -> bool | None:
        """None where that is not known, or there is no limit."""
        return {"passed": True, "failed": False}.get(self.verdict or "")

    @property
    def model(self) -> str:
        """What evaluations call it."""
        return f"{self.name} on {self.device}" if self.device else self.name

    @property
    def title(self) -> str:
        """What it is called on the page, "INT8 (ONNX Runtime)"."""
        title = f"{self.precision.upper()} ({_RUNTIMES.get(self.runtime, self.runtime or 'runtime not named')})"
        return f"{title} on {self.device}" if self.device else title


@dataclass(frozen=True)
class Subject:
    """One thing whose accuracy was measured: the eager model of a run, or an artifact."""

    label: str
    kind: Kind
    colour: str
    run: Run
    model: str
    scores: Mapping[tuple[str, str], Score]
    artifact: Artifact | None = None

    @property
    def adapted(self) -> bool:
        """It is, or was exported from, a run that saw the target."""
        return _kind(self.run) == "adapted"

    def on(self, domain: Domain | None) -> Score | None:
        return self.scores.get((domain.role, domain.data)) if domain else None


@dataclass(frozen=True)
class RunPart:
    """One run folder and everything the page shows of it."""

    run: Run
    label: str
    kind: Kind
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    selection: Selection | None
    albums: Mapping[str, pictures.Album]
    found: Found | None = None
    """How a search came to this run's width; None for other runs."""
    hindsight: Hindsight | None = None
    """Of a bank that was searched: true accuracy of its widths, where it was measured."""

    @property
    def steps(self) -> int | None:
        """Of this run alone, without those of the run it started from."""
        known = "schedule" if self.kind in {"baseline", "adapted"} else "train"
        section = self.config.get(self.run.manifest.notes.schedule or known)
        return _whole(section.get("steps")) if isinstance(section, dict) else None


@dataclass(frozen=True)
class Content:
    """Everything on the page, before it becomes prose, tables and plots."""

    parts: Sequence[RunPart]
    subjects: Sequence[Subject]
    domains: Sequence[Domain]
    missing: Sequence[str]
    budget: Budget | None

    @property
    def source(self) -> Domain | None:
        return next((d for d in self.domains if d.role == "source"), None)

    @property
    def target(self) -> Domain | None:
        return next((d for d in self.domains if d.role == "target"), None)

    def of(self, kind: Kind) -> list[Subject]:
        return [s for s in self.subjects if s.kind == kind]

    def eager(self, kind: Kind) -> Subject | None:
        """The eager model of this kind: of the run that the headline artifact comes from, else of the last run."""
        found = [s for s in self.of(kind) if s.model == "eager"]
        headline = self.headline
        same = [s for s in found if headline and s.run is headline.run]
        candidates = same or found
        return candidates[-1] if candidates else None

    @property
    def source_only(self) -> Subject | None:
        """What adaptation is compared with: the baseline where it was measured, else the source run itself."""
        baseline = self.eager("baseline")
        return baseline if baseline is not None and baseline.scores else self.eager("source")

    @property
    def headline(self) -> Subject | None:
        """The artifact that the verdict is about: among those that pass the fastest, else the one that fails least.

        Artifacts of the adapted run come before those of the source run, and what was measured on a device before what
        was measured here.
        """
        artifacts = [s for s in self.subjects if s.artifact]
        artifacts = [s for s in artifacts if s.adapted] or artifacts
        there = [s for s in artifacts if s.artifact and s.artifact.device]
        return min(there or artifacts, key=_rank, default=None)


def _rank(subject: Subject) -> tuple[int, int, float]:
    artifact = subject.artifact
    assert artifact is not None
    verified = artifact.verified
    latency = verified.latency.median_ms if verified else math.inf
    order = ["passed", "measured", "incomplete", "failed", None].index(artifact.verdict)
    return order, sum(c.passed is not True for c in artifact.checks), latency


def gather(runs: Sequence[Path], *, oracle: Path | None = None, budget: Budget | None = None) -> Content:
    """Read the run folders, in the order source, baseline, adapted, oracle, whatever order they are given in.

    `budget` takes the place of the budget of the runs' own configuration, and that of the one that the artifacts were
    verified against last: its limits are held against the recorded measurements.

    Raises:
        AcclimateError: no run is given, a folder is no run, or a file in it is damaged.
    """
    folders = list(dict.fromkeys(Path(path) for path in [*runs, *([oracle] if oracle else [])]))
    if not folders:
        raise AcclimateError(
            "report: no run folder given; write for example: acclimate report runs/source runs/adapted"
        )
    opened = [Run.open(path) for path in folders]
    kinds = [_kind(run, forced=oracle is not None and run.path == Path(oracle)) for run in opened]
    order = sorted(range(len(opened)), key=lambda i: ["source", "baseline", "adapted", "oracle"].index(kinds[i]))
    names = {**_NAMES, "source": "Source run"} if "baseline" in kinds else _NAMES
    parts = [_part(opened[i], kinds[i], names[kinds[i]], several=kinds.count(kinds[i]) > 1) for i in order]
    subjects = [subject for part in parts for subject in _subjects(part, budget)]
    subjects.sort(key=lambda s: s.kind == "oracle")
    domains = _domains(subjects, parts)
    return Content(parts, subjects, domains, _missing(parts, subjects, domains), budget)


def _kind(run: Run, *, forced: bool = False) -> Kind:
    role = run.manifest.notes.role
    if forced or role == "oracle":
        return "oracle"
    if run.manifest.verb not in {"adapt", "search", "distil"}:
        return "source"
    # A student that was distilled without a target saw the source alone.
    return "baseline" if role == "baseline" else "source" if role == "source" else "adapted"


def _mapping(file: Path) -> dict[str, Any]:
    values = read_json(file)
    if not isinstance(values, dict):
        raise AcclimateError(f"{file}: damaged (not a JSON object); make it again, or delete it")
    return values


def _part(run: Run, kind: Kind, name: str, *, several: bool) -> RunPart:
    config = run.path / "config.json"
    albums = {}
    for file in listed(run.path / "pictures", "*.json"):
        album = pictures.load(run, file.stem)
        if album is not None:
            albums[album.model] = album
    return RunPart(
        run,
        f"{name} ({run.path.name})" if several else name,
        kind,
        _mapping(config) if config.is_file() else {},
        run.metrics(),
        run.selection(),
        albums,
        _model(run.path / "search.json", Found),
        _model(run.path / "search" / "hindsight.json", Hindsight),
    )


def _model(file: Path, model: type[_M]) -> _M | None:
    return read_as(model, file, "make it again, or delete it") if file.is_file() else None


def _subjects(part: RunPart, budget: Budget | None) -> list[Subject]:
    run = part.run
    evaluations = run.evaluations()
    own = part.config.get("budget")
    if budget is None and isinstance(own, dict):
        known = {key: value for key, value in own.items() if key in Budget.model_fields}
        budget = parse(Budget, known, where=str(run.path / "config.json"))
    exported = {folder.name: _artifacts(folder, budget) for folder in run.artifacts()}
    by_name = {artifact.model: artifact for found in exported.values() for artifact in found}
    scores: dict[str, dict[tuple[str, str], Score]] = {"eager": {}}
    for e in evaluations:
        model = exported[e.model][0].name if e.model in exported else e.model
        scores.setdefault(model, {})[e.role, e.data] = _score(e)
    for artifact in by_name.values():
        scores.setdefault(artifact.model, {})
        for data, values in (artifact.verified.accuracy if artifact.verified else {}).items():
            for model, score in (("eager", _eager(values)), (artifact.model, _exported(values))):
                if score is not None:
                    scores[model].setdefault((values.role, data), score)
    subjects = []
    shades = iter(("artifact-1", "artifact-2", "artifact-3", "artifact-4"))
    for model, found in scores.items():
        if model == "eager":
            subjects.append(Subject(part.label, part.kind, part.kind, run, model, found))
        elif model in by_name:
            titles = [artifact.title for artifact in by_name.values()]
            twin = f" ({model})" if titles.count(by_name[model].title) > 1 else ""
            label = f"{part.label}, {by_name[model].title}{twin}"
            subjects.append(Subject(label, "artifact", next(shades, "artifact-4"), run, model, found, by_name[model]))
        else:
            subjects.append(Subject(f"{part.label}, {model}", part.kind, part.kind, run, model, found))
    return subjects


def _score(e: Evaluation) -> Score:
    return Score(e.ap50, e.ap, e.ap75, e.images, e.unreadable, e.classes, e)


def _eager(a: Accuracy) -> Score | None:
    return (
        Score(a.eager_ap50, a.eager_ap, images=a.images, unreadable=a.unreadable) if a.eager_ap50 is not None else None
    )


def _exported(a: Accuracy) -> Score:
    return Score(
        a.artifact_ap50, a.artifact_ap, images=a.images, unreadable=a.unreadable, known_interval=a.ap50_interval
    )


def changed(before: Score | None, after: Score | None) -> Comparison | None:
    """From one score to another on the same images; without an interval where one of them tells none, and None where
    the images are known to differ."""
    if before is None or after is None:
        return None
    if before.evaluation is not None and after.evaluation is not None:
        return compare(before.evaluation, after.evaluation)
    ap50 = Change(before=before.ap50, after=after.ap50)
    return Comparison(ap=Change(before=before.ap or 0.0, after=after.ap or 0.0), ap50=ap50, classes={})


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _artifacts(folder: Path, budget: Budget | None) -> list[Artifact]:
    """The artifact as each machine has verified it, this one first; once where none has."""
    manifest = _model(folder / "artifact.json", ArtifactManifest)
    assert manifest is not None
    there = OnDisk(folder, manifest).digest
    found = [load(file) for file in verifications(folder)]
    current: list[Verification | None] = [one for one in found if one.digest == there]
    return [
        _artifact(manifest, verified, budget, stale=bool(found) and verified is None) for verified in current or [None]
    ]


def _artifact(
    manifest: ArtifactManifest, verified: Verification | None, budget: Budget | None, *, stale: bool
) -> Artifact:
    facts = manifest.notes.model_dump(exclude_none=True)
    if manifest.calibration is not None:
        facts["calibration"] = manifest.calibration.model_dump()
    if manifest.mixed is not None:
        facts["mixed precision"] = manifest.mixed.model_dump(exclude={"alone"})
    checks: tuple[Check, ...] = ()
    if verified is not None:
        checks = verified.checks if budget is None else verified.against(budget)
    return Artifact(
        manifest.name, manifest.runtime, manifest.precision, manifest.classes, facts, verified, checks, stale,
        manifest.suggested,
        str(verified.machine.get("device") or "") if verified else "",
        tuple(manifest.calibration.doubts()) if manifest.calibration is not None else (),
    )  # fmt: skip


def _domains(subjects: Sequence[Subject], parts: Sequence[RunPart]) -> list[Domain]:
    """The test sets, the source first; of each role the one that most subjects were measured on first."""
    images: dict[tuple[str, str], int | None] = {}
    unreadable: dict[tuple[str, str], int] = {}
    measured: Counter[tuple[str, str]] = Counter()
    for subject in subjects:
        for key, score in subject.scores.items():
            images[key] = images.get(key) or score.images
            unreadable[key] = max(unreadable.get(key, 0), score.unreadable)
            measured[key] += 1
    keys = sorted(images, key=lambda key: (key[0] != "source", -measured[key], key[1]))
    short = {data: _short(_path(data, parts)) for _, data in keys}
    unique = len(set(short.values())) == len(short)
    return [
        Domain(role, data, short[data] if unique else data, images[role, data], unreadable[role, data])
        for role, data in keys
    ]


def _path(data: str, parts: Sequence[RunPart]) -> str:
    """The path behind a name such as target_test, where a run's configuration knows it; else the name itself."""
    for part in parts:
        section = part.config.get(data)
        if isinstance(section, dict) and isinstance(section.get("path"), str):
            return str(section["path"])
    return data


def _short(data: str) -> str:
    """What tells a data set's path from its neighbours: `scenes/fog/test.json` and `fog-test/data.yaml` are fog."""
    path = PurePosixPath(data.replace("\\", "/"))
    parts = [part for part in (*path.parts[:-1], path.stem) if part not in {"/", ".", ".."}]
    while len(parts) > 1 and parts[-1].lower() in _GENERIC:
        parts.pop()
    if not parts:
        return data
    stem, _, last = parts[-1].replace("_", "-").rpartition("-")
    return parts[-1][: len(stem)] if stem and last.lower() in _GENERIC else parts[-1]


def _missing(parts: Sequence[RunPart], subjects: Sequence[Subject], domains: Sequence[Domain]) -> list[str]:
    missing = []
    kinds = {part.kind for part in parts}
    exported = [s.artifact for s in subjects if s.artifact]
    folder = next((p.run.path for kind in ("adapted", "source") for p in parts if p.kind == kind), parts[-1].run.path)
    if not kinds & {"source", "baseline"}:
        missing.append("The source-only run was not given, so what adaptation gained cannot be said.")
    if "adapted" not in kinds:
        missing.append(
            f"No adapted run. Make one: acclimate adapt {folder} --target FOLDER_OF_IMAGES --out runs/adapted"
        )
    elif "source" in kinds and "baseline" not in kinds:
        source = next(p for p in parts if p.kind == "source")
        missing.append(
            "How much of the change is the longer training alone: source-only had fewer steps than the adapted model. "
            "Make the fair baseline, measure it with acclimate evaluate, and name it here too: "
            f"acclimate adapt {source.run.path} --target FOLDER_OF_IMAGES --out runs/baseline {_alone(source)}"
        )
    if not exported:
        missing.append(f"No artifact was exported. Make one: acclimate export {folder}")
    elif not any(artifact.verified for artifact in exported):
        missing.append(
            "No artifact was verified. Do it: acclimate verify ARTIFACT --data TARGET_TEST --budget latency_ms=10"
        )
    elif not any(check.name != TOLERANCE for artifact in exported for check in artifact.checks):
        missing.append("No budget was given, so there is no limit to pass. Give one: --budget latency_ms=10,size_mb=4")
    for artifact in exported:
        if artifact.stale:
            missing.append(f"{artifact.title} was exported anew after it was verified: verify it again.")
    if not any(d.role == "target" for d in domains):
        missing.append("No accuracy on the target was measured: no labelled target test set was given (target_test).")
    if not any(d.role == "source" for d in domains):
        missing.append("No accuracy on the source was measured: no labelled source test set was given (source_test).")
    if "oracle" not in kinds:
        missing.append(
            "No oracle was trained (it needs target labels), so the share of the gap that was closed cannot be said."
        )
    if any(p.kind == "adapted" and p.run.manifest.verb == "adapt" and p.selection is None for p in parts):
        missing.append("The adapted run holds no label-free scores of its checkpoints (selection.json).")
    if not any(part.metrics for part in parts):
        missing.append("No training curve was logged (metrics.jsonl).")
    if not any(part.albums or (part.run.path / "pictures").is_dir() for part in parts):
        missing.append("No pictures were stored with the runs.")
    return missing


def _alone(source: RunPart) -> str:
    """The overrides that leave the target out of an adaptation of this run."""
    sections = {name: source.config[name] for name in ("adapt", "augment") if name in source.config}
    try:
        config = Config.model_validate(sections)
    except ValidationError:
        config = Config()  # another version's
    now, alone = (
        {name: getattr(one, name).model_dump(mode="json") for name in ("adapt", "augment")}
        for one in (config, config.source_only())
    )
    return " ".join(_overrides(now, alone))


def _overrides(before: Mapping[str, Any], after: Mapping[str, Any], keys: str = "") -> Iterator[str]:
    """What makes one configuration the other, as `key=value`."""
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            yield from _overrides(known, value, f"{keys}{key}.")
        elif value != known:
            told = "none" if value is None else f"{value:g}" if _number(value) else str(value).lower()
            yield f"{keys}{key}={told}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
