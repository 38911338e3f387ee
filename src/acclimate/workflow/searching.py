"""The verb search: the best width of a bank under each budget."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from acclimate import stages
from acclimate.config import Budget, Config, parse
from acclimate.errors import AcclimateError
from acclimate.inputs import FILE, Inputs
from acclimate.progress import counting
from acclimate.run import Manifest, Notes, Run, SetNotes, digest, locked
from acclimate.training.recipe import weights_of
from acclimate.workflow.delivery import Precision, artifact_of

if TYPE_CHECKING:
    from acclimate.models.slimmable import SlimmableDetector
    from acclimate.select.budget import Cost, Table, Width
    from acclimate.select.record import Candidate
    from acclimate.select.search import Outcome, Space, Survey


@dataclass(frozen=True, slots=True)
class Search:
    """What `search` leaves: a run for each budget that is met, one line for each that is not, and one for each of which
    it cannot be said now, as the machine was busy."""

    found: dict[str, Run]
    missed: dict[str, str]
    unknown: dict[str, str] = field(default_factory=dict)


def search(
    bank: str | Path,
    target: str | Path,
    budgets: Mapping[str, Budget],
    out: str | Path,
    *,
    runtime: str = "onnx",
    precision: Precision = "int8",
    evaluations: int | None = None,
    console: Console | None = None,
) -> Search:
    """Find the best width of a bank under each of `budgets`, without labels; each becomes a run with its artifact.

    Widths are judged by UPEM on the unlabelled images in `target`, found by a greedy and an evolutionary search
    (`select.search`), priced by a latency table (`select.budget`), and the best are exported and measured until one
    holds its budget. What was judged and timed is kept in the bank's run, so a search that was interrupted, or the next
    one, does not do it again.

    Args:
        bank: the finished run of a slimmable detector.
        target: unlabelled images.
        budgets: by name; the run of a budget is out/NAME, or `out` for the name "".
        out: where the runs go.
        runtime: what the artifacts run on.
        precision: their arithmetic.
        evaluations: widths that evolution judges for each budget; None means `select.search.EVALUATIONS`.
        console: where progress goes.

    Raises:
        AcclimateError: the bank has one width alone, `target` has no image, the precision cannot be exported, or
            `out` holds something else.
    """
    stages.one_process("search")
    bank, target, out = Path(bank), Path(target), Path(out)
    parent = stages.finished(bank)
    _check_bank(parent)
    with contextlib.ExitStack() as stack:
        # What is judged and timed is kept in the bank.
        for folder in (bank, *(out / name for name in budgets)):
            stack.enter_context(locked(folder, "search"))
        return _search(parent, target, budgets, out, runtime, precision, evaluations, console)


def _search(
    parent: Run,
    target: Path,
    budgets: Mapping[str, Budget],
    out: Path,
    runtime: str,
    precision: Precision,
    evaluations: int | None,
    console: Console | None,
) -> Search:
    bank = parent.path
    from acclimate import export as exporting

    exporting.check(runtime, [precision], "--precision")
    from acclimate.data import formats
    from acclimate.data.dataset import choose
    from acclimate.models import detector as models
    from acclimate.models.slimmable import SlimmableDetector
    from acclimate.select import record
    from acclimate.select import search as searching

    images = formats.unlabelled(target)
    config = stages.configuration(parent).model_copy(update={"target": target})
    weights = weights_of(parent)
    evaluations = searching.EVALUATIONS if evaluations is None else evaluations
    found: dict[str, Run] = {}
    waiting: dict[str, tuple[Budget, Manifest, Inputs]] = {}
    for name, budget in budgets.items():
        limits = stages.plain(config.model_copy(update={"budget": budget}), "budget")["budget"]
        identity = digest(
            "search", weights, stages.unlabelled_digest(images), limits, runtime, precision, evaluations, config.seed
        )
        notes = Notes(role="adapted", budget=name)
        manifest = Manifest(verb="search", digest=identity, parents=(str(bank),), seed=config.seed, notes=notes)
        settings = {"budget": limits, "runtime": runtime, "precision": precision, "evaluations": evaluations}
        inputs = Inputs({**settings, "seed": config.seed}, {"the bank": weights}, target=images)
        known = stages.known(out / name, manifest, inputs)
        if known is not None and stages.done(known, console):
            found[name] = known
        else:
            waiting[name] = budget, manifest, inputs
    if not waiting:
        return Search(found, {})
    detector = cast(SlimmableDetector, models.to_device(models.load(bank)))
    space = searching.Space.of(detector)
    paths = choose(images.paths, searching.IMAGES, config.seed)
    ledger = searching.Ledger(bank / "search" / "judged.jsonl", digest(weights, [str(path) for path in paths]))
    missed: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for threads in sorted({budget.threads for budget, *_ in waiting.values()}):
        group = {name: one for name, one in waiting.items() if one[0].threads == threads}
        survey = searching.Survey(detector, space, paths, paths, ledger, _every_tenth(console))
        if any(budget.latency_ms or budget.size_mb for budget, *_ in group.values()):
            survey.table = _latency_table(parent, survey, space, paths, runtime, precision, threads, console)
        searching.greedy(space, survey.judge, [budget for budget, *_ in group.values()])
        for name, (budget, *_) in group.items():
            start = list(survey.judged.values())
            seed = (config.seed, *name.encode())
            searching.evolve(space, survey.judge, survey.cost, budget, start, evaluations, seed)
        judged = [survey.judge(width) for width, _ in list(ledger)]
        parent.write("search/candidates.json", record.Candidates(target=str(target), candidates=tuple(judged)))
        for name, (budget, manifest, inputs) in group.items():
            outcome = _settle(
                out / name, name, parent, detector, images.paths, judged, survey.table, budget, manifest, inputs,
                config, runtime, precision, console,
            )  # fmt: skip
            if outcome.met:
                found[name] = Run.open(out / name)
            else:
                (unknown if outcome.unknown else missed)[name] = _told(name, budget, outcome)
    return Search({name: found[name] for name in budgets if name in found}, missed, unknown)


def _check_bank(run: Run) -> None:
    """Refuse a run whose detector has nothing to choose among.

    Raises:
        AcclimateError: it is of one width and of one path.
    """
    from acclimate.models.detector import family

    spec = run.read("spec.json")
    kind = spec.get("kind", "dense")
    if not family(kind).bank or spec.get("path") is not None:
        raise AcclimateError(
            f"{run.path}: its detector is {kind} and has one width; train one with model.kind=slimmable or supernet "
            "and start there"
        )


def _every_tenth(console: Console | None) -> Callable[[int], None]:
    def say(judged: int) -> None:
        if console is not None and judged % 10 == 0:
            console.print(f"{judged} widths judged", highlight=False)

    return say


def _latency_table(
    bank: Run,
    survey: Survey,
    space: Space,
    images: Sequence[Path],
    runtime: str,
    precision: Precision,
    threads: int,
    console: Console | None,
) -> Table:
    """The bank's table for this machine: the one that is kept in its run, or a new one."""
    from acclimate.export import exporter
    from acclimate.select import budget as costs

    name = f"search/{costs.table_name(runtime, precision, threads)}"
    if bank.has(name):
        return parse(costs.Table, bank.read(name), where=str(bank.path / name))
    folder = bank.path / "search" / "timed"
    shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
    widths = costs.representative(space.choices, costs.FITTED + costs.HELD_OUT, bank.manifest.seed)

    def export(width: Width) -> tuple[Path, Cost]:
        # Weights and statistics change no latency; a few images calibrate well enough to time.
        artifact = exporter(runtime).export(
            survey.plain(width), folder / "-".join(f"{one:g}" for one in width), precision, images[:2]
        )
        return artifact.folder, survey.cost(width).model_copy(update={"size_mb": artifact.size_mb})

    try:
        with counting(console, "widths exported for the latency table") as tick:
            table = costs.take(
                widths, costs.HELD_OUT, export, costs.readable(images, 8),
                runtime=runtime, precision=precision, threads=threads, progress=tick,
            )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bank.write(name, table)
    if console is not None and table.latency_error is not None:
        console.print(
            f"latency table: predictions are off by {table.latency_error:.1%} on {len(table.held_out)} other widths",
            highlight=False,
        )
    return table


def _settle(
    out: Path,
    name: str,
    bank: Run,
    detector: SlimmableDetector,
    images: Sequence[Path],
    judged: Sequence[Candidate],
    table: Table | None,
    budget: Budget,
    manifest: Manifest,
    inputs: Inputs,
    config: Config,
    runtime: str,
    precision: Precision,
    console: Console | None,
) -> Outcome:
    """Make the run of the best width whose verified artifact holds `budget`; none where the outcome says so."""
    from acclimate.data.dataset import choose, draw
    from acclimate.models import detector as models
    from acclimate.models.statistics import IMAGES, recalibrate
    from acclimate.select import record
    from acclimate.select import search as searching
    from acclimate.verification import measure as measuring

    began = time.monotonic()
    run = Run.create(out, manifest.model_copy(update={"command": stages.repeat()}))
    run.write(FILE, inputs.as_json())
    run.write("config.json", config.model_copy(update={"budget": budget}).model_dump(mode="json"))
    seen = choose(images, IMAGES, config.seed)
    calibration: Sequence[Path] = ()
    if precision == "int8":
        calibration = draw(
            images, config.export.calibration_images, config.seed, config.export.calibration_choice,
            detector.spec.reading,
        )  # fmt: skip

    def measure(candidate: Candidate) -> Cost:
        plain = detector.extract(candidate.width)
        recalibrate(plain, seen)
        models.save(plain, run.path)
        folder = artifact_of(run, runtime, precision, calibration, console, domain=seen)
        result = measuring.verify(folder, [], budget, images=seen, run=run, console=console)
        measured = candidate.cost.as_measured(result.measured(budget.threads))
        if console is not None:
            console.print(f"measured {_line(candidate.width, measured, budget)}", markup=False, highlight=False)
        return measured

    kept = False
    try:
        outcome = searching.settle(judged, budget, measure)
        if not outcome.met:
            return outcome
        chosen = outcome.tries[-1]
        run.write(
            "search.json",
            record.Found(
                name=name,
                bank=str(bank.path),
                budget=budget,
                runtime=runtime,
                precision=precision,
                width=chosen.width,
                upem=chosen.upem,
                predicted=chosen.predicted,
                measured=chosen.measured,
                tries=outcome.tries,
                candidates=tuple(judged),
                latency_error=None if table is None else table.latency_error,
            ),
        )
        run.note(
            Notes(
                width=tuple(chosen.width),
                upem=chosen.upem,
                start=f"the bank {bank.path}",
                target=SetNotes(images=len(images)),
                parameters=chosen.predicted.parameters,
            )
        )
        kept = True
        run.finish("done", time.monotonic() - began)
    finally:
        if not kept:
            # What is judged and timed is in the bank's run, so nothing is lost.
            shutil.rmtree(out, ignore_errors=True)
    return outcome


def _told(name: str, budget: Budget, outcome: Outcome) -> str:
    """One line about a budget that nothing meets, or of which that cannot be said."""
    of = name + ": " if name else ""
    if outcome.unknown:
        last = outcome.tries[-1]
        line = f"{of}{outcome.unknown}; width {_line(last.width, last.measured, budget)} comes first"
        return f"{line}; search again when nothing else runs: what was judged is kept"
    limits = ", ".join(f"{limit}={value:g}" for limit, value in budget.limits().items())
    tried = min(outcome.tries, key=lambda one: one.measured.excess(budget))
    line = f"{of}no width meets {limits}; nearest measured: {_line(tried.width, tried.measured, budget)}"
    others = [one for one in outcome.nearest if one.width != tried.width]
    if others:
        line += "; by prediction: " + ", ".join(_line(one.width, one.cost, budget) for one in others)
    return line


def _line(width: Width, cost: Cost, budget: Budget) -> str:
    """A width, and what it needs of the limits that are set."""
    needs = ", ".join(f"{limit} {getattr(cost, limit):.4g}" for limit in cost.shares(budget))
    return f"{'/'.join(f'{one:g}' for one in width)}" + (f" ({needs})" if needs else "")
