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
from acclimate.config import Budget, parse
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
    from acclimate import export as exporting

    bank, target, out = Path(bank), Path(target), Path(out)
    parent = stages.bank(bank)
    exporting.check(runtime, [precision], "--precision")
    with contextlib.ExitStack() as stack:
        # What is judged and timed is kept in the bank.
        for folder in (bank, *(out / name for name in budgets)):
            stack.enter_context(locked(folder, "search"))
        return _Searching(parent, target, out, runtime, precision, console).under(budgets, evaluations)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A budget whose run is still to be made."""

    budget: Budget
    manifest: Manifest
    inputs: Inputs


class _Searching:
    """A search in one bank, for artifacts of one runtime and precision."""

    def __init__(
        self, bank: Run, target: Path, out: Path, runtime: str, precision: Precision, console: Console | None
    ) -> None:
        from acclimate.data import formats

        self.bank = bank
        self.out = out
        self.runtime = runtime
        self.precision = precision
        self.console = console
        self.images = formats.unlabelled(target)
        self.config = stages.configuration(bank).model_copy(update={"target": target})
        self.weights = weights_of(bank)

    def under(self, budgets: Mapping[str, Budget], evaluations: int | None) -> Search:
        """See `search`."""
        from acclimate.data.dataset import choose
        from acclimate.models import detector as models
        from acclimate.models.slimmable import SlimmableDetector
        from acclimate.select import record
        from acclimate.select import search as searching

        evaluations = searching.EVALUATIONS if evaluations is None else evaluations
        found, waiting = self._known(budgets, evaluations)
        if not waiting:
            return Search(found, {})
        detector = cast(SlimmableDetector, models.to_device(models.load(self.bank.path)))
        space, seed = searching.Space.of(detector), self.config.seed
        paths = choose(self.images.paths, searching.IMAGES, seed)
        identity = digest(self.weights, [str(path) for path in paths])
        ledger = searching.Ledger(self.bank.path / "search" / "judged.jsonl", identity)
        missed: dict[str, str] = {}
        unknown: dict[str, str] = {}
        for threads in sorted({one.budget.threads for one in waiting.values()}):
            group = {name: one for name, one in waiting.items() if one.budget.threads == threads}
            survey = searching.Survey(detector, space, paths, paths, ledger, _every_tenth(self.console))
            if any(one.budget.latency_ms or one.budget.size_mb for one in group.values()):
                survey.table = self._latency_table(survey, space, paths, threads)
            searching.greedy(space, survey.judge, [one.budget for one in group.values()])
            for name, one in group.items():
                start = list(survey.judged.values())
                searching.evolve(
                    space, survey.judge, survey.cost, one.budget, start, evaluations, (seed, *name.encode())
                )
            judged = [survey.judge(width) for width, _ in list(ledger)]
            candidates = record.Candidates(target=str(self.config.target), candidates=tuple(judged))
            self.bank.write("search/candidates.json", candidates)
            for name, one in group.items():
                outcome = self._settle(name, one, detector, judged, survey.table)
                if outcome.met:
                    found[name] = Run.open(self.out / name)
                else:
                    (unknown if outcome.unknown else missed)[name] = _told(name, one.budget, outcome)
        return Search({name: found[name] for name in budgets if name in found}, missed, unknown)

    def _known(self, budgets: Mapping[str, Budget], evaluations: int) -> tuple[dict[str, Run], dict[str, _Waiting]]:
        """The runs that an earlier search has made already, and what is left to do."""
        found: dict[str, Run] = {}
        waiting: dict[str, _Waiting] = {}
        target, seed = stages.unlabelled_digest(self.images), self.config.seed
        form = {"runtime": self.runtime, "precision": self.precision, "evaluations": evaluations}
        for name, budget in budgets.items():
            limits = stages.plain(self.config.model_copy(update={"budget": budget}), "budget")["budget"]
            identity = digest("search", self.weights, target, limits, *form.values(), seed)
            notes = Notes(role="adapted", budget=name)
            manifest = Manifest(verb="search", digest=identity, parents=(str(self.bank.path),), seed=seed, notes=notes)
            settings = {"budget": limits, **form, "seed": seed}
            inputs = Inputs(settings, {"the bank": self.weights}, target=self.images)
            known = stages.known(self.out / name, manifest, inputs)
            if known is not None and stages.done(known, self.console):
                found[name] = known
            else:
                waiting[name] = _Waiting(budget, manifest, inputs)
        return found, waiting

    def _latency_table(self, survey: Survey, space: Space, images: Sequence[Path], threads: int) -> Table:
        """The bank's table for this machine: the one that is kept in its run, or a new one."""
        from acclimate.export import exporter
        from acclimate.select import budget as costs

        platform = costs.Platform(self.runtime, self.precision, threads)
        name = f"search/{platform.file}"
        if self.bank.has(name):
            return parse(costs.Table, self.bank.read(name), where=str(self.bank.path / name))
        folder = self.bank.path / "search" / "timed"
        shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
        widths = costs.representative(space.choices, costs.FITTED + costs.HELD_OUT, self.bank.manifest.seed)

        def export(width: Width) -> tuple[Path, Cost]:
            # Weights and statistics change no latency; a few images calibrate well enough to time.
            artifact = exporter(self.runtime).export(
                survey.plain(width), folder / "-".join(f"{one:g}" for one in width), self.precision, images[:2]
            )
            return artifact.folder, survey.cost(width).model_copy(update={"size_mb": artifact.size_mb})

        try:
            with counting(self.console, "widths exported for the latency table") as tick:
                shown = costs.readable(images, 8)
                table = costs.take(widths, costs.HELD_OUT, export, shown, platform, progress=tick)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.bank.write(name, table)
        if self.console is not None and table.latency_error is not None:
            off, others = table.latency_error, len(table.held_out)
            self.console.print(
                f"latency table: predictions are off by {off:.1%} on {others} other widths", highlight=False
            )
        return table

    def _settle(
        self, name: str, one: _Waiting, detector: SlimmableDetector, judged: Sequence[Candidate], table: Table | None
    ) -> Outcome:
        """Make the run of the best width whose verified artifact holds the budget; none where the outcome says so."""
        from acclimate.data.dataset import choose, draw
        from acclimate.edge.artifact import Artifact
        from acclimate.models import detector as models
        from acclimate.models.statistics import IMAGES, recalibrate
        from acclimate.select import record
        from acclimate.select import search as searching
        from acclimate.verification import measure as measuring

        began, budget, out = time.monotonic(), one.budget, self.out / name
        run = Run.create(out, one.manifest.model_copy(update={"command": stages.repeat()}))
        run.write(FILE, one.inputs.as_json())
        run.write("config.json", self.config.model_copy(update={"budget": budget}).model_dump(mode="json"))
        seen = choose(self.images.paths, IMAGES, self.config.seed)
        calibration: Sequence[Path] = ()
        if self.precision == "int8":
            drawn, seed = self.config.export, self.config.seed
            calibration = draw(
                self.images.paths, drawn.calibration_images, seed, drawn.calibration_choice, detector.spec.reading
            )

        def measure(candidate: Candidate) -> Cost:
            plain = detector.extract(candidate.width)
            recalibrate(plain, seen)
            models.save(plain, run.path)
            folder = artifact_of(run, self.runtime, self.precision, calibration, self.console, domain=seen)
            material = measuring.Material(images=seen)
            result = measuring.verify(Artifact.open(folder), material, budget, console=self.console)
            measured = candidate.cost.as_measured(result.measured(budget.threads))
            if self.console is not None:
                self.console.print(
                    f"measured {_line(candidate.width, measured, budget)}", markup=False, highlight=False
                )
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
                    bank=str(self.bank.path),
                    budget=budget,
                    runtime=self.runtime,
                    precision=self.precision,
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
                    start=f"the bank {self.bank.path}",
                    target=SetNotes(images=len(self.images.paths)),
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


def _every_tenth(console: Console | None) -> Callable[[int], None]:
    def say(judged: int) -> None:
        if console is not None and judged % 10 == 0:
            console.print(f"{judged} widths judged", highlight=False)

    return say


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
