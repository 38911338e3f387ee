"""Distillation: a small detector alone and taught in several ways, on one domain and across two, into distillation.csv.

    python benchmarks/distillation.py --seeds 0 1 2
    python benchmarks/distillation.py --blocks weights --seeds 0
    python benchmarks/distillation.py --summary

Every training is a run folder below runs/distillation and is taken up where it stopped; a row that is in the CSV is not
run again. Processes with different --sets, --pairs or --seeds may write at once. On one domain, teacher and student
learn from all of its training images; across two, from the labelled source and the unlabelled target. Labels of the
target are read by the evaluation at the end alone. Weights of the losses were chosen on a set of their own, which
`--blocks weights` goes over. What a row holds is in docs/benchmarks/distillation.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import workflow
from acclimate.config import AdaptConfig, Budget, Config, ModelConfig, ScheduleConfig, TeacherConfig
from acclimate.evaluate import evaluate_detector
from acclimate.export.base import complexity, frozen_copy
from acclimate.models import detector as models
from acclimate.run import Evaluation, Run

HERE = Path(__file__).parent
CSV = HERE / "distillation.csv"
RUNS = HERE.parent / "runs" / "distillation"

SETS = {"bccd": ("blood", "bccd"), "clear": ("carla", "clear")}
PAIRS = {"raabin->bccd": ("blood", "raabin", "bccd"), "clear->fog": ("carla", "clear", "fog")}
TUNED = ("blood", "pbc")
"""Where the weights of the losses were chosen: no row of a comparison is about it."""


@dataclass(frozen=True)
class Plan:
    """How much is trained on a family of sets: what two cores can do in an hour a seed.

    Attributes:
        image_size: (height, width), smaller than adaptation.py's.
        teacher, student, adapt: steps. A taught student across domains has `student` and `adapt` together.
    """

    image_size: tuple[int, int]
    teacher: int
    student: int
    adapt: int = 200


PLANS = {"blood": Plan((128, 128), 1200, 600), "carla": Plan((192, 192), 1400, 500)}

RANDOM = {"weights": "none", "norm": "batch", "freeze": 0}
IMAGENET = {"weights": "auto", "norm": "frozen", "freeze": 2}
TEACHERS: dict[str, dict[str, Any]] = {
    "resnet18": {"backbone": "resnet18", **RANDOM},
    "resnet34": {"backbone": "resnet34", **RANDOM},
    "resnet50": {"backbone": "resnet50", **RANDOM},
    "lite0": {"backbone": "tf_efficientnet_lite0", **IMAGENET},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "mobilenet": {"backbone": "mobilenetv4_conv_small", **RANDOM},
    "resnet18": {"backbone": "resnet18", **RANDOM},
    "lite0": {"backbone": "tf_efficientnet_lite0", **IMAGENET},
}
"""Of these, only lite0 has weights that a package ships: the others start from nothing, teachers and students alike."""

WIDTH = 128
"""Of the critics: the paper's 512 would cost more than the student, whose maps have 48 channels."""
WEIGHTS: dict[str, tuple[float, ...]] = {
    "gan hinge": (0.001, 0.01, 0.1, 1),
    "gan clip": (0.0001, 0.001, 0.01, 0.1, 1),
    "gan penalty": (0.001, 0.01, 0.1, 1),
    "gan hinge, head": (0.001, 0.01, 0.1),
    "gan clip, head": (0.0001, 0.001, 0.01),
    "imitation": (0.001, 0.01, 0.1, 1),
    "response": (1, 5, 25, 100),
    "channel": (0.1, 1, 10),
}
"""What was tried on `TUNED`."""
CHOSEN = {
    "gan hinge": 0.001,
    "gan clip": 0.0001,
    "gan penalty": 0.001,
    "gan hinge, head": 0.01,
    "gan clip, head": 0.0001,
    "imitation": 1,
    "response": 5,
    "channel": 1,
}
"""Of those within half a point of the best there, the smallest. Rows of that set are no part of the comparison."""
MODES = {"gan hinge": "hinge", "gan clip": "wasserstein-clip", "gan penalty": "gradient-penalty"}


def sections(method: str, weight: float | None = None) -> dict[str, Any]:
    """The section adapt.distillation of a method, or of several joined by +; each by its weight in `CHOSEN`, or by
    `weight`. With ", head" the student's head starts as the teacher's."""
    made: dict[str, Any] = {"response": 0}
    parts, _, head = method.partition(", ")
    if head:
        made["head"] = "teacher"
    for name in parts.split(" + "):
        one = CHOSEN.get(method, CHOSEN[name]) if weight is None else weight
        if name == "response":
            made["response"] = one
        elif name in MODES:
            made["gan"] = {"mode": MODES[name], "width": WIDTH, "weight": one}
        else:
            made[name] = {"weight": one}
    return made


METHODS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    **{name: sections(name) for name in CHOSEN if name != "gan hinge, head"},
    "gan + response": sections("gan hinge + response"),
    "imitation + response": sections("imitation + response"),
}
"""Sections of adapt.distillation. "head" is the published whole: the student feeds the teacher's trained head."""
SHORT = ("response",)
"""What teachers after the first teach by: enough to see whether a stronger one is better."""
CROSS = ("adapted directly", "source teacher", "adapted teacher", "bank's subnet")
BANK: dict[str, Any] = {
    "kind": "slimmable",
    "backbone": "tf_efficientnet_lite0",
    "weights": "auto",
    "norm": "batch",
    "freeze": 0,
    "slimmable": {"choices": [0.25, 0.37, 0.55, 0.67, 0.82, 1.0], "models": 3},
}
"""Of which the search takes the best subnet that has no more multiply-accumulates than the student."""


@dataclass(frozen=True)
class Task:
    """What one call works on.

    Attributes:
        family: names the setting of the data, as in adaptation.py.
        source: the labelled domain.
        seed: of everything.
        kind: of the detectors.
        scale: of all numbers of steps.
        runs: folder of the run folders.
    """

    family: str
    source: str
    seed: int
    kind: str
    scale: float
    runs: Path

    @property
    def plan(self) -> Plan:
        return PLANS[self.family]

    def steps(self, count: int) -> int:
        return max(2, round(self.scale * count))

    def config(self, model: dict[str, Any], steps: int) -> Config:
        """Train a model for `steps`; an adaptation takes as many as the plan says."""
        setting = adaptation.SETTINGS[self.family]
        shape = {name: getattr(setting.model, name) for name in ("strides", "channels", "depth")}
        shape |= {"image_size": self.plan.image_size, "conv": "depthwise"}
        common: dict[str, Any] = {"batch_size": setting.batch, "workers": 1, "log_every": 10}
        if model["norm"] == "batch" and model.get("kind") != "slimmable":
            # A ResNet takes half the time where processors have bfloat16. A depthwise student alone loses a tenth by
            # it and wins more as soon as a ResNet teaches it.
            common["precision"] = "bf16"
        steps, after = self.steps(steps), self.steps(self.plan.adapt)
        warmup = min(50, steps // 4)
        return Config(
            seed=self.seed,
            source=adaptation.data(self.family, self.source, "train"),
            model=ModelConfig(**{**shape, "kind": self.kind, **model}),
            augment=setting.augment,
            train=ScheduleConfig(
                **common, lr=setting.lr, steps=steps, warmup=warmup, ema=0.995, checkpoint_every=steps
            ),
            schedule=ScheduleConfig(
                **common,
                **adaptation.COOL,
                steps=after,
                warmup=min(50, after // 4),
                checkpoint_every=max(1, after // 3),
            ),
            adapt=AdaptConfig(teacher=TeacherConfig()),
        )

    def folder(self, *names: str | int) -> Path:
        parts = (self.kind, self.family, self.source, *names, self.seed)
        return self.runs / "-".join(str(part).replace(" ", "_").replace(",", "") for part in parts)

    def trained(self, name: str, model: dict[str, Any], steps: int, console: Console) -> Run:
        return workflow.train(self.config(model, steps), self.folder(name, self.steps(steps)), console=console)

    def teacher(self, name: str, console: Console) -> Run:
        return self.trained(f"teacher-{name}", TEACHERS[name], self.plan.teacher, console)

    def alone(self, name: str, console: Console) -> Run:
        return self.trained(name, STUDENTS[name], self.plan.student, console)

    def taught(
        self, teacher: Run, teacher_name: str, student: str, steps: int, method: str, target: Path | None,
        console: Console, section: dict[str, Any] | None = None,
    ) -> Run:  # fmt: skip
        """The student `student` of a teacher, by `section` or as METHODS says; its model and schedule are those that it
        is trained alone with."""
        own = self.config(STUDENTS[student], steps).model_dump(mode="json")
        sections = {"distillation": section or METHODS[method]}
        file = self.runs / "students" / f"{self.folder(student, self.steps(steps), method).name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"model": own["model"], "train": own["train"], "adapt": sections}))
        where = self.folder(student, self.steps(steps), "of", teacher_name, method, "target" if target else "source")
        return workflow.distil(teacher.path, file, where, target=target, console=console)


def one_domain(
    task: Task, name: str, teachers: Sequence[str], students: Sequence[str], methods: Sequence[str], record: Record
) -> None:
    """Each student alone, and taught by each teacher in each way; the teachers' own rows beside them."""
    for teacher in teachers:
        row = {"block": "one domain", "set": name, "student": teacher, "method": "the teacher itself", "teacher": ""}
        record(task, row, lambda teacher=teacher: (task.teacher(teacher, record.console), None))
    for student in students:
        for teacher in teachers:
            if teacher == student:
                continue
            for method in (one for one in METHODS if one in methods):
                row = {"block": "one domain", "set": name, "student": student, "method": method}
                row["teacher"] = "" if method == "alone" else teacher
                if teacher != teachers[0] and method not in ("alone", *SHORT):
                    continue
                if task.kind != "dense" and METHODS[method] and METHODS[method].get("head") == "teacher":
                    # Levels of an SSD have the backbone's widths, which the teacher's head does not fit.
                    continue
                record(task, row, lambda method=method, student=student, teacher=teacher: _one(
                    task, student, teacher, method, record.console
                ))  # fmt: skip


def _one(task: Task, student: str, teacher: str, method: str, console: Console) -> tuple[Run, Run | None]:
    if method == "alone":
        return task.alone(student, console), None
    from_run = task.teacher(teacher, console)
    return task.taught(from_run, teacher, student, task.plan.student, method, None, console), from_run


def weights(task: Task, teacher: str, student: str, methods: Sequence[str], record: Record) -> None:
    """The student taught in each way by each weight of its loss."""
    for method in (one for one in WEIGHTS if one in methods):
        for weight in WEIGHTS[method]:
            told = f"{method}, weight {weight:g}"
            row = {"block": "weights", "set": task.source, "student": student, "method": told, "teacher": teacher}

            def make(method: str = method, weight: float = weight, told: str = told) -> tuple[Run, Run | None]:
                start = task.teacher(teacher, record.console)
                section = sections(method, weight)
                return task.taught(
                    start, teacher, student, task.plan.student, told, None, record.console, section
                ), start

            record(task, row, make)
    row = {"block": "weights", "set": task.source, "student": student, "method": "alone", "teacher": ""}
    record(task, row, lambda: (task.alone(student, record.console), None))


def two_domains(task: Task, pair: str, teacher: str, student: str, method: str, record: Record) -> None:
    """A student adapted directly, taught by the teacher before and after its adaptation, and the bank's subnet."""
    console = record.console
    target = adaptation.target_list(task.family, PAIRS[pair][2])
    steps = task.plan.student + task.plan.adapt

    def adapted(start: Run) -> Run:
        return workflow.adapt(start.path, target, Path(f"{start.path}-adapted"), console=console)

    def directly() -> tuple[Run, None]:
        return adapted(task.alone(student, console)), None

    def by_source() -> tuple[Run, Run]:
        start = task.teacher(teacher, console)
        return task.taught(start, teacher, student, steps, method, target, console), start

    def by_adapted() -> tuple[Run, Run]:
        start = adapted(task.teacher(teacher, console))
        return task.taught(start, f"{teacher}-adapted", student, steps, method, target, console), start

    def subnet() -> tuple[Run, None]:
        start = task.trained("bank", BANK, task.plan.teacher, console)
        slim = [f"adapt.slim.models={BANK['slimmable']['models']}", "adapt.slim.third=true"]
        bank = workflow.slim(start.path, target, Path(f"{start.path}-adapted"), slim, console=console)
        most = complexity(frozen_copy(models.load(task.alone(student, console).path))).macs_m
        budget = {"": Budget(macs_m=most)}
        out = task.folder("subnet", student)
        found = workflow.search(bank.path, target, budget, out, precision="fp32", console=console)
        return found.found[""], None

    makers: dict[str, Callable[[], tuple[Run, Run | None]]] = dict(
        zip(CROSS, (directly, by_source, by_adapted, subnet), strict=True)
    )
    for name, make in makers.items():
        used = "" if name in {"adapted directly", "bank's subnet"} else teacher
        told = f"{name}, {method}" if used else name
        record(task, {"block": "two domains", "set": pair, "student": student, "method": told, "teacher": used}, make)
    row = {"block": "two domains", "set": pair, "student": teacher, "method": "the teacher itself", "teacher": ""}
    record(task, row, lambda: (adapted(task.teacher(teacher, console)), None))


class Record:
    """Runs what is not in the CSV yet, and appends its row."""

    keys = ("block", "set", "kind", "seed", "student", "teacher", "method")

    def __init__(self, csv: Path, console: Console) -> None:
        self.csv = csv
        self.console = console
        self.began = time.monotonic()
        self._measured: dict[tuple[Path, str], Evaluation] = {}

    def __call__(self, task: Task, row: dict[str, Any], make: Callable[[], tuple[Run, Run | None]]) -> None:
        row = {**row, "kind": task.kind, "seed": task.seed}
        if self._there(row):
            return
        began = time.monotonic()
        run, teacher = make()
        spent = time.monotonic() - began
        domains = (row["set"].split("->")[-1], task.source)
        target, source = (self._evaluation(run, task.family, domain) for domain in domains)
        taught = self._evaluation(teacher, task.family, domains[0]) if teacher is not None else None
        detector = models.load(run.path)
        cost = complexity(frozen_copy(detector))
        if self._there(row):
            # Another process needed the same.
            return
        rows.append(
            self.csv,
            {
                **{key: row[key] for key in self.keys},
                "ap50": f"{target.ap50:.4f}",
                "ap": f"{target.ap:.4f}",
                "source_ap50": f"{source.ap50:.4f}" if source is not target else "",
                "teacher_ap50": f"{taught.ap50:.4f}" if taught else "",
                "macs_m": f"{cost.macs_m:.0f}",
                "parameters": cost.parameters,
                "start": detector.spec.start,
                "image_size": "x".join(map(str, detector.spec.image_size)),
                "steps": run.metrics()[-1]["step"] if run.has("metrics.jsonl") else "",
                "test_images": target.images,
                "run_minutes": f"{run.manifest.seconds / 60:.1f}",
                "minutes": f"{spent / 60:.1f}",
                "processor": models.device_name(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
        )
        name = " ".join(str(row[key]) for key in self.keys if row[key] != "")
        passed = (time.monotonic() - self.began) / 60
        self.console.print(f"{name}: AP50 {target.ap50:.3f}, after {passed:.0f} minutes", markup=False, highlight=False)

    def _there(self, row: dict[str, Any]) -> bool:
        wanted = [str(row[key]) for key in self.keys]
        return any([one[key] for key in self.keys] == wanted for one in rows.read(self.csv))

    def _evaluation(self, run: Run, family: str, domain: str) -> Evaluation:
        """AP on the test images of a domain, evenly spread as in adaptation.py."""
        key = (run.path, domain)
        if key not in self._measured:
            detector = models.to_device(models.load(run.path))
            truth = adaptation.test_images(family, domain, detector.spec.classes, adaptation.TEST_IMAGES)
            self._measured[key] = evaluate_detector(detector, truth, domain, "target")
        return self._measured[key]


def tables(csv: Path = CSV) -> Iterator[str]:
    """In Markdown, in points, mean and standard deviation over the seeds: weights, one domain, two domains."""
    found = rows.read(csv)
    if not found:
        yield "No rows yet."
        return
    yield from _weights_table([row for row in found if row["block"] == "weights"])
    for block, write in (("one domain", _one_domain_table), ("two domains", _two_domains_table)):
        own = [row for row in found if row["block"] == block]
        for kind in _named(own, "kind"):
            of_kind = [row for row in own if row["kind"] == kind]
            for column, name in (("ap50", "AP50"), ("ap", "AP")):
                yield from write(of_kind, kind, column, name)
                yield ""


def _weights_table(tried: list[dict[str, str]]) -> Iterator[str]:
    if not tried:
        return
    alone = next(f"{100 * float(row['ap50']):.1f}" for row in tried if row["method"] == "alone")
    taught = next(row for row in tried if row["teacher"])
    of = f"{taught['set']}, {taught['student']} taught by {taught['teacher']}"
    yield f"Weights that were tried on {of}: AP50, {alone} alone:\n"
    yield "| method | weight: AP50 | chosen |"
    yield "|---|---|---|"
    for method in WEIGHTS:
        by_weight = {
            float(row["method"].split()[-1]): 100 * float(row["ap50"])
            for row in tried
            if row["method"].startswith(f"{method}, weight ")
        }
        if by_weight:
            cells = ", ".join(f"{weight:g}: {ap50:.1f}" for weight, ap50 in sorted(by_weight.items()))
            yield f"| {method} | {cells} | {CHOSEN[method]:g} |"
    yield ""


def _one_domain_table(found: list[dict[str, str]], kind: str, column: str, name: str) -> Iterator[str]:
    alone = [row for row in found if row["method"] == "alone"]
    columns = [(one, student) for one in _named(alone, "set") for student in _named(alone, "student")]
    yield f"One domain, {kind} detectors, {name}; in brackets the gain over the student alone, seed by seed:\n"
    yield f"| teacher | method | {' | '.join(f'{one}, {student}' for one, student in columns)} |"
    yield "|" + "---|" * (2 + len(columns))
    base = {c: _values(found, column, set=c[0], student=c[1], method="alone") for c in columns}
    yield f"| - | alone | {' | '.join(_cell(base[c]) for c in columns)} |"
    for teacher in filter(None, _named(found, "teacher")):
        own = (_values(found, column, set=c[0], student=teacher, method="the teacher itself") for c in columns)
        yield f"| {teacher} | the teacher itself | {' | '.join(map(_cell, own))} |"
        for method in METHODS:
            wanted = {"teacher": teacher, "method": method}
            cells = [_cell(_values(found, column, set=c[0], student=c[1], **wanted), base[c]) for c in columns]
            if set(cells) != {"-"}:
                yield f"| {teacher} | {method} | {' | '.join(cells)} |"


def _two_domains_table(found: list[dict[str, str]], kind: str, column: str, name: str) -> Iterator[str]:
    pairs = _named(found, "set")
    yield f"Two domains, {kind} detectors, {name} on the target; in brackets the gain over adapting directly:\n"
    yield f"| detector | method | {' | '.join(pairs)} |"
    yield "|" + "---|" * (2 + len(pairs))
    for student in _named(found, "student"):
        base = {p: _values(found, column, set=p, student=student, method=CROSS[0]) for p in pairs}
        for method in _named(found, "method"):
            own = [_values(found, column, set=p, student=student, method=method) for p in pairs]
            cells = [_cell(one, None if method == CROSS[0] else base[p]) for one, p in zip(own, pairs, strict=True)]
            if set(cells) != {"-"}:
                yield f"| {student} | {method} | {' | '.join(cells)} |"


def _named(found: list[dict[str, str]], column: str) -> list[str]:
    """Different values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in found))


def _values(found: list[dict[str, str]], column: str, **wanted: str) -> dict[str, float]:
    """Points by seed."""
    match = [row for row in found if all(row[key] == value for key, value in wanted.items())]
    return {row["seed"]: 100 * float(row[column]) for row in match}


def _cell(own: dict[str, float], base: dict[str, float] | None = None) -> str:
    if not own:
        return "-"
    spread = statistics.stdev(own.values()) if len(own) > 1 else 0.0
    text = f"{statistics.mean(own.values()):.1f} ± {spread:.1f}"
    both = sorted(own.keys() & base.keys()) if base else []
    return text + (f" ({statistics.mean(own[s] - base[s] for s in both):+.1f})" if both and base else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", nargs="+", choices=["one", "cross", "weights"], default=["one", "cross"])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=["raabin->bccd"])
    parser.add_argument("--teachers", nargs="+", choices=list(TEACHERS), default=["resnet34", "lite0"],
                        help="the first teaches in all ways, others in two")  # fmt: skip
    parser.add_argument("--cross-teacher", choices=list(TEACHERS), default="lite0")
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=["mobilenet", "resnet18"])
    parser.add_argument(
        "--methods", nargs="+", choices=list({**METHODS, **WEIGHTS}), default=list({**METHODS, **WEIGHTS})
    )
    parser.add_argument("--method", choices=[name for name, one in METHODS.items() if one], default="response",
                        help="across domains, how the student is taught")  # fmt: skip
    parser.add_argument("--kind", choices=["dense", "ssd"], default="dense")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps, to try the script out")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--summary", action="store_true", help="print the tables of what is in the CSV")
    options = parser.parse_args(arguments)
    if options.summary:
        print(*tables(options.csv), sep="\n")
        return
    torch.set_num_threads(options.threads)
    # Where the lists of target images go that both benchmarks adapt to.
    adaptation.RUNS = options.runs
    record = Record(options.csv, Console())
    for seed in options.seeds:
        if "weights" in options.blocks:
            task = Task(*TUNED, seed, options.kind, options.scale, options.runs)
            weights(task, options.teachers[0], options.students[0], options.methods, record)
        for name in options.sets if "one" in options.blocks else ():
            task = Task(*SETS[name], seed, options.kind, options.scale, options.runs)
            one_domain(task, name, options.teachers, options.students, options.methods, record)
        for pair in options.pairs if "cross" in options.blocks else ():
            task = Task(*PAIRS[pair][:2], seed, options.kind, options.scale, options.runs)
            for student in options.students:
                if student != options.cross_teacher:
                    two_domains(task, pair, options.cross_teacher, student, options.method, record)


if __name__ == "__main__":
    main()
