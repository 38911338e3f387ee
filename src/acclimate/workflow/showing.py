"""The verbs that show what there is: report, leaderboard, data; and that make data, or a job of it: scenes, init."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from acclimate.config import FIELD_OF_VIEW, Budget, DataConfig
from acclimate.errors import AcclimateError
from acclimate.progress import counting
from acclimate.run import write_text

if TYPE_CHECKING:
    from acclimate.data.compare import Comparison
    from acclimate.data.formats import LabelledSet, Problem, UnlabelledSet
    from acclimate.data.inspect import DataSummary
    from acclimate.report.leaderboard import Leaderboard


def report(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    budget: Budget | None = None,
    compare: bool = False,
) -> Path:
    """Write one self-contained HTML page about `runs`; returns the file.

    Args:
        runs: the runs of one job; with `compare`, of a series: a run or a job's folder each.
        out: the file to write.
        budget: takes the place of the one that artifacts were verified against.
        compare: a table over the series instead of the report of one job.

    Raises:
        AcclimateError: a folder is no run, or a file cannot be written.
    """
    from acclimate.report import page
    from acclimate.report.content import gather
    from acclimate.report.sections import outcomes

    folders = [Path(run) for run in runs]
    if compare:
        if budget is not None:
            raise AcclimateError("report --compare: takes no --budget; the artifacts' own verdicts are shown")
        return page.write_series(folders, Path(out))
    outcomes.illustrate(gather(folders, budget=budget))
    return page.write(folders, Path(out), budget=budget)


def summary(runs: Sequence[str | Path], *, budget: Budget | None = None, compare: bool = False) -> dict[str, Any]:
    """All that `report` shows, for JSON; see `report.summary.summary` and, with `compare`, `report.series.as_json`.

    Raises:
        AcclimateError: as `report`.
    """
    from acclimate.report import series
    from acclimate.report import summary as summaries

    folders = [Path(run) for run in runs]
    if compare:
        return series.as_json(series.compare(folders))
    return summaries.summary(folders, budget=budget)


def leaderboard(
    paths: Sequence[str | Path],
    *,
    sort: str = "score",
    as_json: str | Path | None = None,
    as_csv: str | Path | None = None,
    console: Console | None = None,
) -> Leaderboard:
    """One table over runs and runtimes, from what `verify` has stored; nothing is measured. Needs no torch.

    Args:
        paths: artifacts' folders, packages, run folders, and folders of those.
        sort: what ranks rows, one of `report.leaderboard.SORTS`.
        as_json: a file for the rows and what was left out.
        as_csv: a file for the rows.
        console: where the table goes.

    Raises:
        AcclimateError: there is no verification at all, a path does not exist, `sort` is unknown, or a file cannot be
            written.
    """
    from acclimate.report import leaderboard as boards

    board = boards.gather([Path(path) for path in paths], sort)
    if console is not None:
        boards.show(board, console)
    if as_json is not None:
        write_text(Path(as_json), boards.as_json(board))
    if as_csv is not None:
        write_text(Path(as_csv), boards.as_csv(board))
    return board


def data(
    source: str | Path | DataConfig,
    sheet: str | Path | None = None,
    *,
    decode: bool = True,
    console: Console | None = None,
) -> DataSummary:
    """What is in a data set: format, classes, counts, sizes, problems; with `sheet`, a contact sheet goes to that file.

    Args:
        source: the set, or a folder of images.
        sheet: a JPEG to write.
        decode: look whether every image can be decoded; otherwise headers are believed.
        console: where it is printed.

    Raises:
        AcclimateError: it cannot be read, or nothing in it is usable.
    """
    from acclimate.data import inspect

    images = inspect.load(source if isinstance(source, DataConfig) else Path(source))
    if decode:
        with counting(console, "images", lines=0) as tick:
            images = inspect.decoded(images, tick)
    summary = inspect.summary(images)
    if console is not None:
        inspect.print_summary(summary, console)
    if sheet is not None:
        inspect.contact_sheet(images, Path(sheet))
    return summary


def convert(
    source: str | Path | DataConfig, format_: str, out: str | Path, *, console: Console | None = None
) -> tuple[Problem, ...]:
    """Write what is read of a labelled set as a COCO, YOLO or Pascal VOC set in the folder `out`.

    Args:
        source: the labelled set.
        format_: a name of `data.write.FORMATS`.
        out: the folder to write.
        console: where words go.

    Returns:
        What was left out, in reading and in writing.

    Raises:
        AcclimateError: the set cannot be read or has no labels, the format is unknown, or `out` holds something or lies
            in the set.
    """
    from acclimate.data import formats, inspect, write

    config = source if isinstance(source, DataConfig) else DataConfig(path=Path(source))
    if config.path.is_dir() and Path(out).resolve().is_relative_to(config.path.resolve()):
        raise AcclimateError(f"{out}: lies in {config.path}, and would become a part of it; choose another folder")
    images = formats.read(config)
    problems = (*images.problems, *write.write(images, format_, Path(out)))
    if console is not None:
        inspect.print_problems(problems, console)
    return problems


def compare(
    source: str | Path | DataConfig,
    target: str | Path,
    tests: Sequence[str | Path | DataConfig] = (),
    *,
    image_size: tuple[int, int] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Domains side by side: a labelled source, the target's images, and labelled tests.

    Args:
        source: a labelled set.
        target: a folder or list of images; no label of it is read.
        tests: labelled sets.
        image_size: (height, width) of the network's input that boxes are measured on; by default `model`'s.
        console: where it is printed.

    Raises:
        AcclimateError: a set cannot be read.
    """
    from acclimate.config import ModelConfig
    from acclimate.data import compare as comparing
    from acclimate.data import formats, inspect

    size = image_size or ModelConfig().image_size
    domains: list[comparing.Domain] = []
    for role, one in (("source", source), ("target", target), *(("test", test) for test in tests)):
        given = one if isinstance(one, DataConfig) else Path(one)
        name = str(given.path if isinstance(given, DataConfig) else given)
        images: LabelledSet | UnlabelledSet
        # What is not the source is read as the detector will read it, which is as the source is read.
        reading = domains[0].reading if domains else None
        if role == "target":
            images = formats.unlabelled(Path(name))
        elif isinstance(given, DataConfig) and given.model_fields_set == {"path"}:
            images = inspect.load(given.path, reading)
        else:
            images = inspect.load(given, reading)
        with counting(console, name, lines=0) as tick:
            domains.append(comparing.domain(cast(comparing.Role, role), name, images, size, tick, reading))
    comparison = comparing.compare(domains, size)
    if console is not None:
        comparing.show(comparison, console)
    return comparison


def init(
    source: DataConfig,
    target: str | Path,
    test: DataConfig | None,
    out: str | Path,
    *,
    console: Console | None = None,
) -> Path:
    """Propose a job file from what the data say, with the reasons as comments; returns the file.

    Args:
        source: a labelled set.
        target: a folder of unlabelled images.
        test: labelled images of the target, if there are some.
        out: the file to write.
        console: where words go.

    Raises:
        AcclimateError: a set cannot be read, the source has no labels, or `out` is there or cannot be written.
    """
    from acclimate.data import propose

    out = Path(out)
    if out.exists():
        raise AcclimateError(f"{out}: is there already; choose another --out, or delete it")
    comparison = compare(source, target, [test] if test is not None else [], console=console)
    if comparison.domains[0].classes is None:
        raise AcclimateError(f"{source.path}: no labels of a known format; the source is what is learnt from")
    sets = {"source": source, "target_test": test}
    options = {name: one.model_dump(mode="json", exclude_unset=True) for name, one in sets.items() if one is not None}
    return write_text(out, propose.propose(comparison, {"target": {"path": str(target)}, **options}))


def scenes(
    out: str | Path,
    images: int = 300,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    condition: str | None = None,
    strength: float = 1.0,
    field_of_view: float = FIELD_OF_VIEW,
    *,
    console: Console | None = None,
) -> DataConfig:
    """Generate street scenes with exact boxes; returns the data set, ready to train on.

    Args:
        out: the folder to write.
        images: how many.
        size: (height, width) of an image, pixels.
        seed: sets of different seeds share no scene.
        condition: `fog`, `rain`, `night` or `camera`; None is clear.
        strength: of the condition; 1 is strong.
        field_of_view: of the camera, horizontal, degrees.
        console: where progress goes.

    Raises:
        AcclimateError: `out` holds something else or cannot be written, or the condition does not exist.
    """
    from acclimate.scenes.sets import generate

    with counting(console, f"{Path(out).name} scenes") as tick:
        index = generate(Path(out), images, size, seed, condition, strength, field_of_view, progress=tick)
    return DataConfig(path=index)
