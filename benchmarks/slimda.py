"""One bank of widths against eight detectors, the order that UPEM gives widths, and the search under latency budgets.

    python benchmarks/slimda.py --pairs raabin->bccd --seeds 0
    python benchmarks/slimda.py --quick
    python benchmarks/slimda.py --summary

Three parts, each with its own CSV: `detection` (slimda.csv) adapts one bank, and its slices one by one; `ranking`
(slimda_ranking.csv) compares the order by UPEM with the true one; `search` (slimda_search.csv) makes an artifact for
each of three latency budgets. Every training is a run folder below runs/slimda and is taken up where it stopped; a row
that is there is not made again. `--quick` does a few steps of everything below runs/slimda-quick, CSVs included.
Target labels are read by the evaluation alone. What a row holds is in docs/benchmarks/slimda.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

import adaptation
import rows
from acclimate import machine, workflow
from acclimate.config import AdaptConfig, Budget, Config, SlimConfig, SlimmableConfig, TeacherConfig
from acclimate.data import formats
from acclimate.data.dataset import choose
from acclimate.evaluate import evaluate_detector
from acclimate.models import detector as models
from acclimate.models.slimmable import SlimmableDetector
from acclimate.models.statistics import IMAGES, recalibrate
from acclimate.run import Evaluation, Manifest, Run, digest, file_digest, write_text
from acclimate.select import record
from acclimate.select import search as searching
from acclimate.select.budget import Cost, Platform, Table, Width

HERE = Path(__file__).parent
PAIRS = ("raabin->bccd", "pbc->bccd")
MODELS = 3
"""Widths that a step of a bank runs."""
BANKS = {
    "source-only": None,
    "bank": SlimConfig(models=MODELS, ensemble=0),
    "bank + seed": SlimConfig(models=MODELS),
    "bank + seed + third": SlimConfig(models=MODELS, third=True),
    "bank + seed + third at 2": SlimConfig(models=2, third=True),
}
"""Trained once for all widths; `source-only` is the bank of the source trained on for as long, `at 2` runs two widths a
step, the largest and the smallest."""
METHODS = (*BANKS, "alone")
"""`alone` is a slice of the source's bank for each width, adapted by itself."""
SEARCHED = "bank + seed"
"""The bank that is ranked and searched."""
SHARE = 0.4
"""`ranking`: of the full width's multiply-accumulates, the budget that a search and random widths are held to."""
RUNTIME, PRECISION = "onnx", "fp32"


@dataclass(frozen=True)
class Plan:
    """How much is done, and where it goes."""

    runs: Path = HERE.parent / "runs" / "slimda"
    tables: Path = HERE
    widths: Width = (0.25, 0.3, 0.37, 0.45, 0.55, 0.67, 0.82, 1.0)
    """Of all stages together, and the choices of each; their squares are about evenly spread in ratio."""
    steps: int = 800
    adapt_steps: int = 200
    test_images: int = 100
    subnets: int = 30
    evaluations: int = searching.EVALUATIONS
    fractions: tuple[float, ...] = (0.8, 0.65, 0.5)
    """`search`: budgets, of the full width's latency. A quarter of the channels leaves about 0.4 of it: what is done to
    images and outputs takes as long at every width."""


_QUICK = HERE.parent / "runs" / "slimda-quick"
QUICK = Plan(
    _QUICK, _QUICK, (0.25, 0.5, 1.0), steps=2, adapt_steps=2, test_images=6, subnets=3, evaluations=2, fractions=(0.7,)
)  # fmt: skip


class Experiment:
    """One pair and seed, and what there is of it already."""

    def __init__(self, plan: Plan, pair: str, seed: int, console: Console) -> None:
        self.plan, self.pair, self.seed, self.console = plan, pair, seed, console
        self.family, self.source, self.target = adaptation.PAIRS[pair]
        self.images = adaptation.target_list(self.family, self.target, plan.runs)
        settings = adaptation.config(pair, seed)
        model = settings.model.model_copy(
            update={
                "kind": "slimmable", "norm": "batch", "freeze": 0, "conv": "depthwise",
                "slimmable": SlimmableConfig(choices=plan.widths, models=MODELS),
            }
        )  # fmt: skip
        train = {"steps": plan.steps, "checkpoint_every": plan.steps}
        # One checkpoint, the last: what is compared is the training, not the choice.
        schedule = {"steps": plan.adapt_steps, "checkpoint_every": plan.adapt_steps, "warmup": plan.adapt_steps // 5}
        self.settings = settings.model_copy(
            update={
                "model": model,
                "train": settings.train.model_copy(update=train),
                "schedule": settings.schedule.model_copy(update=schedule),
            }
        )

    def run(self, part: str, methods: Sequence[str]) -> None:
        if part == "detection":
            self.detection(methods)
        elif part == "search":
            self.search()
        else:
            self.ranking()

    @cached_property
    def start(self) -> Run:
        """The bank of the source."""
        path = self.plan.runs / f"{self.family}-{self.source}-{self.seed}"
        return self.timed(path, lambda: workflow.train(self.settings, path, console=self.console))

    @cached_property
    def truth(self) -> formats.LabelledSet:
        """The target's test images."""
        classes = models.load(self.start.path).spec.classes
        return adaptation.test_images(self.family, self.target, classes, self.plan.test_images)

    @cached_property
    def unlabelled(self) -> tuple[Path, ...]:
        return tuple(formats.unlabelled(self.images).paths)

    def bank(self, method: str) -> Run:
        """The source's bank after a method of `BANKS`."""
        slim = BANKS[method]
        config = self.settings.model_copy(update={"adapt": AdaptConfig(teacher=TeacherConfig(), slim=slim)})
        images = self.images
        if slim is None:
            config = config.model_copy(update={"adapt": AdaptConfig(slim=SlimConfig(models=MODELS))}).source_only()
            images = adaptation.target_list(self.family, self.source, self.plan.runs)
        path = self.plan.runs / f"{self.start.path.name}-{self.target}-{method.replace(' + ', '-').replace(' ', '-')}"
        return self.adapted(self.start, path, config, images)

    def alone(self, width: float) -> Run:
        """A slice of the source's bank, adapted by itself."""
        name = f"{self.start.path.name}-{width:g}"
        config = self.settings.model_copy(
            update={
                "model": self.settings.model.model_copy(update={"kind": "dense"}),
                "adapt": AdaptConfig(teacher=TeacherConfig()),
            }
        )
        start = self.plan.runs / name
        if not _done(start):
            plain = self.loaded(self.start).extract(width)
            sources = formats.read(adaptation.data(self.family, self.source, "train")).paths
            recalibrate(plain, choose(sources, IMAGES, self.seed))
            identity = digest("slice", file_digest(self.start.path / "model.safetensors"), width)
            run = Run.create(start, Manifest(verb="train", digest=identity, seed=self.seed, notes={"role": "source"}))
            run.write("config.json", config.model_dump(mode="json"))
            models.save(plain, start)
            run.finish("done")
        return self.adapted(Run.open(start), self.plan.runs / f"{name}-{self.target}", config, self.images)

    def adapted(self, start: Run, path: Path, config: Config, images: Path) -> Run:
        return self.timed(path, lambda: workflow.adapt(start.path, images, path, config=config, console=self.console))

    def timed(self, path: Path, make: Callable[[], Run]) -> Run:
        """A run, with the processor time of all attempts at it in a file beside its folder."""
        if _done(path):
            return Run.open(path)
        before, began = self.spent(path), time.process_time()
        try:
            return make()
        finally:
            write_text(_beside(path), f"{before + time.process_time() - began:.1f}\n")

    def spent(self, path: Path) -> float:
        """Processor seconds of a run's training so far."""
        return float(_beside(path).read_text()) if _beside(path).exists() else 0.0

    def loaded(self, run: Run) -> SlimmableDetector:
        return cast(SlimmableDetector, models.load(run.path))

    def measure(self, detector: models.Detector, statistics_from: Sequence[Path]) -> Evaluation:
        """AP on the target's test images, with BatchNorm's statistics from these images."""
        recalibrate(detector, choose(statistics_from, IMAGES, self.seed))
        return evaluate_detector(models.to_device(detector), self.truth, self.target, "target")

    def missing(self, part: str, *keys: str) -> Callable[..., bool]:
        """Whether no row of this pair and seed has these values of `keys`."""
        found = [r for r in rows.read(self.file(part)) if (r["pair"], r["seed"]) == (self.pair, str(self.seed))]
        known = {tuple(row[key] for key in keys) for row in found}
        return lambda *values: values not in known

    def file(self, part: str) -> Path:
        return self.plan.tables / CSVS[part]

    def write(self, part: str, row: dict[str, Any]) -> None:
        rows.append(self.file(part), {"pair": self.pair, "seed": self.seed, **row})
        self.console.print(f"{self.pair} seed {self.seed}: {row}", markup=False, highlight=False, soft_wrap=True)

    # The bank against detectors of one width.

    def detection(self, methods: Sequence[str]) -> None:
        missing = self.missing("detection", "method", "width")
        widths = tuple(reversed(self.plan.widths))
        for method in methods:
            rest = [width for width in widths if missing(method, f"{width:g}")]
            if method == "alone":
                for width in rest:
                    run = self.alone(width)
                    self.record(method, width, run, models.load(run.path), self.unlabelled)
                continue
            of_target = f"{method}, target statistics" if method == "source-only" else None
            rest = [w for w in widths if missing(method, f"{w:g}") or (of_target and missing(of_target, f"{w:g}"))]
            if not rest:
                continue
            run = self.bank(method)
            bank = self.loaded(run)
            sources = formats.read(adaptation.data(self.family, self.source, "train")).paths
            for width in rest:
                if missing(method, f"{width:g}"):
                    self.record(method, width, run, bank.extract(width), sources if of_target else self.unlabelled)
                if of_target and missing(of_target, f"{width:g}"):
                    self.record(of_target, width, run, bank.extract(width), self.unlabelled)

    def record(
        self, method: str, width: float, run: Run, detector: models.Detector, statistics_from: Sequence[Path]
    ) -> None:
        bank, result = self.loaded(self.start), self.measure(detector, statistics_from)
        schedule = self.settings.schedule
        self.write(
            "detection",
            {
                "method": method,
                "width": f"{width:g}",
                "macs_m": f"{bank.macs(width) / 1e6:.1f}",
                "parameters_m": f"{bank.size(width) / 1e6:.3f}",
                "target_ap50": f"{result.ap50:.4f}",
                "target_ap": f"{result.ap:.4f}",
                "train_cpu_s": f"{self.spent(run.path):.1f}",
                "source_cpu_s": f"{self.spent(self.start.path):.1f}",
                "models": 1 if method == "alone" else slim.models if (slim := BANKS.get(method)) else MODELS,
                "source_steps": self.settings.train.steps,
                "steps": schedule.steps,
                "batch": schedule.batch_size,
                "image_size": "x".join(map(str, self.settings.model.image_size)),
                "start": bank.spec.start,
                "test_images": result.images,
                "processor": machine.facts()["processor"],
                "torch": torch.__version__,
            },
        )

    # The order of widths.

    def ranking(self) -> None:
        run = self.bank(SEARCHED)
        bank = self.loaded(run)
        space = searching.Space.of(bank)
        paths = choose(self.unlabelled, searching.IMAGES, self.seed)
        weights = file_digest(run.path / "model.safetensors")
        # The ledger of `acclimate search`: what it has judged is known.
        ledger = searching.Ledger(run.path / "search" / "judged.jsonl", digest(weights, [str(path) for path in paths]))
        survey = searching.Survey(bank, space, paths, paths, ledger)
        budget = Budget(macs_m=SHARE * bank.macs(1.0) / 1e6)
        drawn = [("random", width) for width in self.drawn(space, lambda width: True)]
        drawn += [("within", width) for width in self.drawn(space, lambda width: not survey.cost(width).over(budget))]
        for draw, width in drawn:
            self.rank(draw, survey.judge(width), bank)
        path = searching.greedy(space, survey.judge, [budget])
        found = searching.evolve(
            space, survey.judge, survey.cost, budget, path, self.plan.evaluations, (self.seed, len(self.pair))
        )
        fitting = [one for one in (*path, *found) if not one.cost.over(budget)]
        if fitting:
            self.rank("searched", min(fitting, key=lambda one: (one.upem, one.width)), bank)
        self.rank("full", survey.judge(space.largest), bank)

    def drawn(self, space: searching.Space, fits: Callable[[Width], bool]) -> list[Width]:
        """Different random widths that fit; fewer where it takes too long to find so many."""
        rng = np.random.default_rng([self.seed, 11])
        found: dict[Width, None] = {}
        for _ in range(100 * self.plan.subnets):
            width = space.random(rng)
            if len(found) < self.plan.subnets and fits(width):
                found[width] = None
        return list(found)

    def rank(self, draw: str, candidate: record.Candidate, bank: SlimmableDetector) -> None:
        """A row, unless it is there; a width that was drawn before is not measured again."""
        width = _text(candidate.width)
        found = [r for r in rows.read(self.file("ranking")) if (r["pair"], r["seed"]) == (self.pair, str(self.seed))]
        same = [row for row in found if row["width"] == width]
        if draw in {row["draw"] for row in same}:
            return
        if same:
            measured = {key: same[0][key] for key in ("target_ap50", "target_ap", "test_images")}
        else:
            result = self.measure(bank.extract(candidate.width), self.unlabelled)
            measured = {
                "target_ap50": f"{result.ap50:.4f}", "target_ap": f"{result.ap:.4f}",
                "test_images": str(result.images),
            }  # fmt: skip
        row = {
            "draw": draw,
            "width": width,
            "macs_m": f"{candidate.cost.macs_m:.2f}",
            "macs_share": f"{1e6 * candidate.cost.macs_m / bank.macs(1.0):.4f}",
            "upem": f"{candidate.upem:.5f}",
            **measured,
        }
        self.write("ranking", row)

    # The search, as a user calls it.

    def search(self) -> None:
        missing = self.missing("search", "fraction")
        if not any(missing(f"{fraction:g}") for fraction in self.plan.fractions):
            return
        bank = self.bank(SEARCHED)
        out = self.plan.runs / f"{bank.path.name}-small"
        options: dict[str, Any] = {"runtime": RUNTIME, "precision": PRECISION, "console": self.console}
        ledger = bank.path / "search" / "judged.jsonl"
        before = len(ledger.read_text().splitlines()) if ledger.is_file() else 0
        began = time.monotonic()
        # Any latency will do: what the full width takes is in the latency table that this leaves.
        workflow.search(bank.path, self.images, {"full": Budget(latency_ms=1e6)}, out, evaluations=0, **options)
        table = Table.model_validate(bank.read(f"search/{Platform(RUNTIME, PRECISION, 1).file}"))
        full_ms = max(table.fitted, key=lambda sample: sample.macs_m).latency_ms
        budgets = {f"{fraction:g}": Budget(latency_ms=round(fraction * full_ms, 2)) for fraction in self.plan.fractions}
        done = workflow.search(bank.path, self.images, budgets, out, evaluations=self.plan.evaluations, **options)
        minutes = (time.monotonic() - began) / 60
        for name, budget in budgets.items():
            if not missing(name):
                continue
            row: dict[str, Any] = {
                "fraction": name, "runtime": RUNTIME, "precision": PRECISION, "full_ms": f"{full_ms:.2f}",
                "budget_ms": budget.latency_ms, "met": "yes" if name in done.found else "no", "width": "",
                "predicted_ms": "", "latency_ms": "", "size_mb": "", "macs_m": "", "upem": "", "tried": "",
                "target_ap50": "",
            }  # fmt: skip
            if name in done.missed:
                self.console.print(done.missed[name], markup=False, highlight=False, soft_wrap=True)
            else:
                run = done.found[name]
                found = record.Found.model_validate(run.read("search.json"))
                result = evaluate_detector(models.load(run.path), self.truth, self.target, "target")
                row |= {
                    "width": _text(found.width),
                    "predicted_ms": f"{found.predicted.latency_ms:.2f}",
                    "latency_ms": f"{found.measured.latency_ms:.2f}",
                    "size_mb": f"{found.measured.size_mb:.2f}",
                    "macs_m": f"{found.measured.macs_m:.1f}",
                    "upem": f"{found.upem:.4f}",
                    "tried": len(found.tries),
                    "target_ap50": f"{result.ap50:.4f}",
                }
            row |= {"judged_before": before, "minutes": f"{minutes:.1f}", "processor": machine.facts()["processor"]}
            self.write("search", row)


PARTS = ("detection", "search", "ranking")
CSVS = {"detection": "slimda.csv", "search": "slimda_search.csv", "ranking": "slimda_ranking.csv"}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.cpu_s")


def _done(path: Path) -> bool:
    return (path / "run.json").is_file() and Run.open(path).done


def _text(width: Width) -> str:
    return "/".join(f"{one:g}" for one in width)


def _mean(values: Sequence[float], scale: float, form: str) -> str:
    return format(scale * statistics.mean(values), form) if values else "-"


def detection_table(folder: Path) -> Iterator[str]:
    """AP50 in points at each width, mean over seeds, and what the training took."""
    found = rows.read(folder / CSVS["detection"])
    for i, pair in enumerate(dict.fromkeys(row["pair"] for row in found)):
        if i:
            yield ""
        mine = [row for row in found if row["pair"] == pair]
        widths = sorted({row["width"] for row in mine}, key=float, reverse=True)
        costs = {method: _cost([row for row in mine if row["method"] == method]) for method in _methods(mine)}
        yield f"| {pair} | {' | '.join(widths)} | mean | training, min | of alone |"
        yield "|---" * (len(widths) + 4) + "|"
        for method in costs:
            rest = [row for row in mine if row["method"] == method]
            at = [[float(row["target_ap50"]) for row in rest if row["width"] == width] for width in widths]
            # A mean over some of the widths would compare with nothing.
            mean = _mean([statistics.mean(one) for one in at], 100, ".1f") if all(at) else "-"
            share = f"{costs[method] / costs['alone']:.2f}" if "alone" in costs and all(at) else "-"
            cells = [_mean(one, 100, ".1f") for one in at]
            yield f"| {method} | {' | '.join(cells)} | {mean} | {costs[method] / 60:.1f} | {share} |"


def _methods(found: Sequence[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in found))


def _cost(found: Sequence[dict[str, str]]) -> float:
    """Processor seconds of a method's training, mean over seeds: a bank's once, those alone all together."""
    once = {(row["seed"], row["width"] if row["method"] == "alone" else ""): float(row["train_cpu_s"]) for row in found}
    return sum(once.values()) / len({seed for seed, _ in once})


def ranking_table(folder: Path) -> Iterator[str]:
    """Kendall's tau of both orders with AP50 over the random widths, and the searched width against random ones."""
    found = rows.read(folder / CSVS["ranking"])
    yield (
        "| pair | seed | widths | tau of UPEM | tau of MACs | searched, AP50 | best random within the budget "
        "| mean of them | full width |"
    )
    yield "|---" * 9 + "|"
    for pair, seed in dict.fromkeys((row["pair"], row["seed"]) for row in found):
        mine = [row for row in found if (row["pair"], row["seed"]) == (pair, seed)]
        ap50 = {
            draw: [float(row["target_ap50"]) for row in mine if row["draw"] == draw]
            for draw in ("within", "searched", "full")
        }
        drawn = [row for row in mine if row["draw"] == "random"]
        tau = searching.hindsight(pair, [_known(row) for row in drawn]).tau
        best = f"{100 * max(ap50['within']):.1f} of {len(ap50['within'])}" if ap50["within"] else "-"
        taus = [f"{tau[name]:+.2f}" if name in tau else "-" for name in ("upem", "macs_m")]
        cells = [pair, seed, str(len(drawn)), *taus, _mean(ap50["searched"], 100, ".1f"), best]
        cells += [_mean(ap50["within"], 100, ".1f"), _mean(ap50["full"], 100, ".1f")]
        yield f"| {' | '.join(cells)} |"


def _known(row: dict[str, str]) -> tuple[record.Candidate, float, float]:
    width = tuple(float(one) for one in row["width"].split("/"))
    candidate = record.Candidate(width=width, upem=float(row["upem"]), cost=Cost(macs_m=float(row["macs_m"])))
    return candidate, float(row["target_ap"]), float(row["target_ap50"])


def search_table(folder: Path) -> Iterator[str]:
    """Each budget, and where it landed."""
    columns = {
        "pair": "pair", "seed": "seed", "fraction": "of the full width", "budget_ms": "budget, ms", "met": "met",
        "latency_ms": "measured, ms", "predicted_ms": "predicted, ms", "macs_m": "MACs (M)", "tried": "artifacts made",
        "target_ap50": "AP50, 0..1", "minutes": "minutes for all budgets",
    }  # fmt: skip
    yield f"| {' | '.join(columns.values())} |"
    yield "|---" * len(columns) + "|"
    for row in rows.read(folder / CSVS["search"]):
        yield f"| {' | '.join(row[column] or '-' for column in columns)} |"


def tables(folder: Path = HERE) -> Iterator[str]:
    """All results in Markdown; of parts without rows, that there are none."""
    titles = {
        "detection": ("AP50 on the target's test images in points, mean over seeds:", detection_table),
        "ranking": ("Both orders against the true one, and the searched width against random ones:", ranking_table),
        "search": (f"Latency budgets on {RUNTIME}, {PRECISION}, one thread:", search_table),
    }
    for i, (part, (title, make)) in enumerate(titles.items()):
        yield from ([""] if i else [])
        yield f"{title}\n"
        yield from make(folder) if rows.read(folder / CSVS[part]) else ["No rows yet."]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=adaptation.PAIRS, default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--summary", action="store_true", help="print the tables of what is in the CSVs")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    if options.summary:
        print(*tables(plan.tables), sep="\n")
        return
    torch.set_num_threads(options.threads)
    console = Console()
    began = time.monotonic()
    for seed in options.seeds:
        for pair in options.pairs:
            experiment = Experiment(plan, pair, seed, console)
            for part in (part for part in PARTS if part in options.parts):
                experiment.run(part, options.methods)
                console.print(
                    f"{pair} seed {seed}: {part} done after {(time.monotonic() - began) / 60:.0f} minutes", markup=False
                )


if __name__ == "__main__":
    main()
