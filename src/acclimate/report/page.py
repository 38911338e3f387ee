"""The report: run folders in, one self-contained HTML page out."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acclimate import __version__
from acclimate.config import Budget
from acclimate.errors import AcclimateError
from acclimate.evaluate import Change
from acclimate.installation import hint
from acclimate.report import content as gathering
from acclimate.report import pictures, series, verdict
from acclimate.report.content import Content, Domain, RunPart, Subject
from acclimate.report.logged import sections
from acclimate.report.sections import advice, classwise, labels, outcomes
from acclimate.report.sections import pair as pairs
from acclimate.run import SetNotes, write_text

if TYPE_CHECKING:
    from jinja2 import Environment

PICTURES = 12
"""At most so many target images are shown."""
PICTURE_BYTES = 2_500_000
"""At most so many bytes of pictures are embedded."""
_PROBLEM_KEYS = {"problems", "warnings", "problem", "warning"}
_LEFT_OUT = _PROBLEM_KEYS | {"evaluated", "evaluated_on", "repeat"}


def write(
    runs: Sequence[Path],
    out: Path,
    *,
    oracle: Path | None = None,
    budget: Budget | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of runs; returns the file.

    The page fetches nothing and needs no script.

    Args:
        runs: run folders, in any order.
        out: a file, or a folder that gets `report.html`.
        oracle: the oracle's run, where its manifest does not say that it is one.
        budget: takes the place of the one that the artifacts were verified against.
        title: of the page; by default the adapted run's name.

    Raises:
        AcclimateError: no run is given, a folder is no run or is damaged, `out` cannot be written, or jinja2 is not
            installed.
    """
    out = Path(out)
    content = gathering.gather(runs, oracle=oracle, budget=budget)
    file = out / "report.html" if out.is_dir() or out.suffix.lower() not in {".html", ".htm"} else out
    page = _environment().get_template("page.html").render(_context(content, title or "Adaptation report"))
    return write_text(file, page)


def write_series(runs: Sequence[Path], out: Path) -> Path:
    """Write the comparison of a series of runs or jobs to `out`, as `write` does; returns the file.

    Raises:
        AcclimateError: see `series.compare`; or `out` cannot be written, or jinja2 is not installed.
    """
    out = Path(out)
    file = out / "report.html" if out.is_dir() or out.suffix.lower() not in {".html", ".htm"} else out
    page = _environment().get_template("series.html").render(series.context(series.compare(runs)))
    return write_text(file, page)


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise AcclimateError(f"the report needs jinja2: {hint('train')}") from None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=verdict.points,
        signed=verdict.signed,
        percent=verdict.percent,
        quantity=verdict.quantity,
        fact=_fact,
        measured=_measured,
        tone=_tone,
        interval=verdict.interval,
    )
    return environment


def _context(content: Content, title: str) -> dict[str, Any]:
    from markupsafe import Markup

    target = content.target
    both = pairs.pair(content)
    scored = outcomes.section(content, both)
    return {
        "title": title,
        "css": Markup((Path(__file__).parent / "page.css").read_text()),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": __version__,
        "content": content,
        "verdict": verdict.judge(content),
        "figures": _figures(content),
        "accuracy_bars": [_accuracy_bars(content, domain) for domain in content.domains],
        "base": content.source_only,
        "change": functools.partial(_change, content),
        "class_tables": [table for domain in content.domains if (table := _class_table(content, domain))],
        "training": [_training(part) for part in content.parts if part.metrics],
        "sections": sections(content),
        "search": _search(content),
        "selections": [_selection(part) for part in content.parts if part.selection],
        "parities": [
            (s, s.artifact.verified.parity)
            for s in content.subjects
            if s.artifact and s.artifact.verified and s.artifact.verified.parity
        ],
        "speed": _speed(content),
        "measured": [s for s in content.subjects if s.artifact],
        "details": {s.label: _details(s) for s in content.subjects if s.artifact},
        "target": target,
        # What is scored box by box says more than the same pictures without the truth.
        "gallery": None if scored and scored["shown"] else _gallery(content),
        "outcomes": scored,
        "classwise": classwise.section(content, both),
        "labels": labels.section(content),
        "advice": advice.section(content, both),
        "problems": _all_problems(content),
        "data_sets": [row for part in content.parts for row in _data_sets(part)],
        "facts": {
            part.label: list(_flat(part.run.manifest.notes.model_dump(), skip=_LEFT_OUT)) for part in content.parts
        },
        "configs": {part.label: list(_flat(part.config)) for part in content.parts},
        "commands": _commands(content),
        "machines": _machines(content),
    }


@dataclass(frozen=True)
class Figure:
    """One of the large numbers under the verdict."""

    name: str
    value: str
    note: str
    tone: str = "neutral"


def _figures(content: Content) -> list[Figure]:
    figures = []
    judged = verdict.judge(content)
    gap = judged.gap
    if gap is not None and content.target is not None:
        tone = ("good" if gap.gain > 0 else "bad") if gap.clear else "neutral"
        spread = verdict.interval(gap.change)
        figures.append(
            Figure(
                f"AP50 on {content.target.name}",
                f"{verdict.signed(gap.gain)}",
                f"points: {verdict.points(gap.before)} \u2192 {verdict.points(gap.after)}{'; ' * bool(spread)}{spread}",
                tone,
            )
        )
        if gap.closed is not None:
            figures.append(
                Figure(
                    "Gap closed",
                    verdict.percent(gap.closed),
                    f"of {verdict.points(gap.size)} points to the oracle",
                    tone,
                )
            )
    for row in judged.checks:
        if row.name in {"latency_ms", "size_mb"} and row.used is not None:
            name = {"latency_ms": "Latency", "size_mb": "Model size"}[row.name]
            figures.append(Figure(name, row.value, f"{row.limit} allowed", _TONES[row.passed]))
    return figures


_TONES = {True: "good", False: "bad", None: "neutral"}


def _accuracy_bars(content: Content, domain: Domain) -> dict[str, Any]:
    from acclimate.report import plot

    rows = [(s, score) for s in content.subjects if (score := s.on(domain))]
    told = "; ".join(f"{s.label} {verdict.points(score.ap50)}" for s, score in rows)
    group = [plot.Bar(_shortened(s.label), 100 * score.ap50, verdict.points(score.ap50), s.colour) for s, score in rows]
    return {
        "domain": domain,
        "plot": plot.bars(group, label=f"AP50 in points on {domain.name}, the {domain.role}: {told}"),
    }


def _shortened(label: str, most: int = 38) -> str:
    """A label that fits a phone: the middle goes, as the end names the precision."""
    half = (most - 1) // 2
    return label if len(label) <= most else f"{label[:half]}\u2026{label[-half:]}"


def _class_table(content: Content, domain: Domain) -> dict[str, Any] | None:
    """AP50 of each class (rows) for each subject (columns) that has it."""
    columns = [s for s in content.subjects if (score := s.on(domain)) and score.classes]
    if not columns:
        return None
    scores = [s.scores[domain.role, domain.data].classes for s in columns]
    names = list(dict.fromkeys(name for classes in scores for name in classes))
    rows = []
    for name in names:
        cells = [classes.get(name) for classes in scores]
        boxes = next((cell.boxes for cell in cells if cell is not None), 0)
        cleared = [_change(content, s, domain, name) for s in columns]
        values = zip([cell.ap50 if cell else None for cell in cells], map(_tone, cleared), strict=True)
        rows.append({"name": name, "boxes": boxes, "ap50": list(values)})
    return {"domain": domain, "columns": columns, "rows": rows}


def _change(content: Content, subject: Subject, domain: Domain, name: str = "") -> Change | None:
    """The change of AP50 from source-only, of a class where one is named; None where there is nothing to compare."""
    base = content.source_only
    if base is None or subject is base or subject.kind in {"source", "oracle"}:
        return None
    found = gathering.changed(base.on(domain), subject.on(domain))
    return None if found is None else found.classes.get(name) if name else found.ap50


def _tone(change: Change | None) -> str:
    """How a change is coloured: only one that chance would hardly have made."""
    return "" if change is None or not change.clear else "good" if change.difference > 0 else "bad"


def _training(part: RunPart) -> dict[str, Any]:
    """Small plots of everything that was logged: the losses first, then rate and speed, then the rest."""
    from acclimate.report import plot

    series: dict[str, list[tuple[float, float]]] = {}
    for i, line in enumerate(part.metrics):
        step = line.get("step", i)
        for key, value in line.items():
            if key not in {"step", "epoch", "time", "seconds"} and _is_number(value) and _is_number(step):
                series.setdefault(key, []).append((float(step), float(value)))
    chosen = part.selection.chosen_step if part.selection else None
    plots = []
    for key in sorted(series, key=lambda key: (_family(key)[0], list(series).index(key))):
        values = [y for _, y in series[key]]
        family, colour = _family(key)[1:]
        plots.append(
            {
                "name": _readable(key),
                "family": family,
                "last": verdict.quantity(values[-1]),
                "plot": plot.lines(
                    [plot.Line(_readable(key), series[key], colour)],
                    label=f"{part.label}: {_readable(key)} over {len(values)} logged steps, "
                    f"from {verdict.quantity(values[0])} to {verdict.quantity(values[-1])}",
                    height=110,
                    zero=family != "other",
                    marker=None if chosen is None else (float(chosen), ""),
                ),
            }
        )
    return {"part": part, "plots": plots[:15], "left": len(plots) - 15, "chosen": chosen}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _family(key: str) -> tuple[int, str, str]:
    if key in {"loss", "total", "loss/total"}:
        return 0, "loss", "a"
    if key == "lr" or key.startswith(("lr/", "learning_rate")):
        return 2, "rate", "c"
    if "images_per_s" in key or "images/s" in key:
        return 3, "speed", "d"
    return (1, "loss", "b") if "/" in key or "loss" in key else (4, "other", "e")


def _readable(key: str) -> str:
    known = {"lr": "learning rate", "images_per_s": "images per second", "loss": "loss, total"}
    return known.get(key, key.replace("_", " "))


def _search(content: Content) -> dict[str, Any] | None:
    """Where each budget landed among the widths of a bank, and what labels say of them; None without a search."""
    from acclimate.report import plot

    landed = [(part, part.found) for part in content.parts if part.found is not None]
    widths = next((part.hindsight for part in content.parts if part.hindsight is not None), None)
    if not landed and widths is None:
        return None
    rows: list[dict[str, Any]] = []
    for part, found in landed:
        limits = found.budget.limits()
        costs = [
            f"{verdict.quantity(getattr(found.measured, name))} of {verdict.quantity(limit)} "
            f"(predicted {verdict.quantity(getattr(found.predicted, name))})"
            for name, limit in limits.items()
        ]
        subject = next((s for s in content.subjects if s.run is part.run and s.model == "eager"), None)
        score = subject.on(content.target) if subject else None
        rows.append(
            {
                "name": found.name or part.label,
                "width": " / ".join(f"{one:g}" for one in found.width),
                "upem": verdict.quantity(found.upem),
                "limits": [f"{name}: {text}" for name, text in zip(limits, costs, strict=True)],
                "tries": len(found.tries),
                "ap50": score.ap50 if score else None,
                "found": found,
            }
        )
    charts = []
    if widths is not None:
        for title, key in (
            ("AP50 in points over million multiply-accumulates", "macs_m"),
            ("AP50 in points over latency in ms, as predicted", "latency_ms"),
            ("AP50 in points over UPEM, which decided without labels", "upem"),
        ):
            marks = []
            for one, _, ap50 in widths.candidates:
                x = one.upem if key == "upem" else getattr(one.cost, key)
                told = f"{' / '.join(f'{share:g}' for share in one.width)}: AP50 {verdict.points(ap50)} points"
                if x is not None:
                    marks.append(plot.Mark("", x, 100 * ap50, "c", told))
            for row in rows:
                x = row["found"].upem if key == "upem" else getattr(row["found"].measured, key)
                if row["ap50"] is not None and x is not None:
                    marks.append(plot.Mark(row["name"], x, 100 * row["ap50"], "adapted"))
            if marks:
                told = f"{title}, {len(marks)} widths, known only in hindsight"
                charts.append({"title": title, "plot": plot.scatter(marks, label=told)})
    elif landed[0][1].candidates:
        judged = sorted((one.cost.macs_m, one.upem) for one in landed[0][1].candidates)
        front: list[tuple[float, float]] = []
        for macs, upem in judged:
            if not front or upem < front[-1][1]:
                front.append((macs, upem))
        title = "UPEM of the widths that no other beats, over million multiply-accumulates"
        told = f"{title}; {len(front)} of {len(judged)} that were judged"
        curve = plot.lines([plot.Line("UPEM", front, "a", marks=True)], label=told, x_name="MACs, M", zero=True)
        charts.append({"title": title, "plot": curve})
    return {"rows": rows, "charts": charts, "tau": widths.tau if widths else {}}


def _selection(part: RunPart) -> dict[str, Any]:
    """The label-free scores of a run's checkpoints, which was chosen, and what labels say in hindsight."""
    from acclimate.report import plot

    selection = part.selection
    assert selection is not None
    candidates = sorted(selection.candidates, key=lambda c: c.step)
    names = list(dict.fromkeys(name for c in candidates for name in c.scores))
    with_labels = [c for c in candidates if c.hindsight_ap50 is not None]
    best = max(with_labels, key=lambda c: c.hindsight_ap50 or 0.0, default=None)
    chosen = next((c for c in candidates if c.step == selection.chosen_step), None)
    marker = (float(selection.chosen_step), "chosen")
    plots = [
        {
            "name": _readable(name),
            "decided": name == selection.rule and len(candidates) > 1,
            "plot": plot.lines(
                [
                    plot.Line(
                        _readable(name),
                        [(c.step, c.scores[name]) for c in candidates if name in c.scores],
                        "a",
                        marks=True,
                    )
                ],
                label=f"{part.label}: label-free score {_readable(name)} of each checkpoint; "
                f"step {selection.chosen_step} was chosen",
                height=120,
                marker=marker,
            ),
        }
        for name in names
    ]
    hindsight = None
    if with_labels:
        hindsight = plot.lines(
            [plot.Line("AP50", [(c.step, 100 * (c.hindsight_ap50 or 0.0)) for c in with_labels], "e", True, True)],
            label=f"{part.label}: AP50 in points of each checkpoint, known only in hindsight",
            height=120,
            marker=marker,
        )
    return {
        "label": part.label,
        "selection": selection,
        "candidates": candidates,
        "names": names,
        "readable": [_readable(name) for name in names],
        "plots": plots,
        "hindsight": hindsight,
        "last": candidates[-1] if candidates else None,
        "chosen": chosen,
        "best": best,
        "ranking": [
            (_readable(name), tau, _ranked(tau), name == selection.rule and len(candidates) > 1)
            for name, tau in sorted(selection.rank_correlation.items(), key=lambda item: -item[1])
        ],
    }


def _ranked(tau: float) -> str:
    if tau >= 0.6:
        return "ranked the checkpoints well"
    if tau >= 0.3:
        return "ranked them roughly right"
    if tau > -0.3:
        return "was hardly better than chance" if tau >= 0 else "was no better than chance"
    return "ranked them the wrong way round"


_STATES = {
    "passed": "meets the budget",
    "failed": "misses the budget",
    "incomplete": "not measured in full",
    "measured": "no budget",
}


def _speed(content: Content) -> dict[str, Any] | None:
    """The latency-accuracy plot of the verified artifacts, on the target where it was measured."""
    from acclimate.report import plot

    domain = content.target or content.source
    marks = []
    several = len({s.artifact.runtime for s in content.subjects if s.artifact}) > 1
    for s in content.subjects:
        score = s.on(domain)
        verified = s.artifact.verified if s.artifact else None
        if s.artifact and score and verified is not None:
            latency = verified.latency.median_ms
            state = _STATES[s.artifact.verdict or "measured"]
            detail = f"{s.label}: {verdict.quantity(latency)} ms, AP50 {verdict.points(score.ap50)} points, {state}"
            where = f"on {s.artifact.device}" if s.artifact.device else ""
            name = " ".join(filter(None, [s.artifact.precision.upper(), s.artifact.runtime * several, where]))
            marks.append(plot.Mark(name, latency, 100 * score.ap50, s.colour, detail))
    if not marks or domain is None:
        return None
    headline = content.headline
    checks = headline.artifact.checks if headline and headline.artifact else ()
    limit = next((c.limit for c in checks if c.name == "latency_ms"), None)
    text = f"budget {verdict.quantity(limit)} ms" if limit else ""
    label = f"Latency against AP50 on {domain.name}. " + "; ".join(m.detail for m in marks)
    known = [("source-only before export", content.source_only), ("oracle", content.eager("oracle"))]
    levels = [
        (name, 100 * score.ap50, subject.colour)
        for name, subject in known
        if subject is not None and (score := subject.on(domain)) is not None
    ]
    return {
        "domain": domain,
        "limit": limit,
        "plot": plot.scatter(
            marks, label=label + (f". The {text}." if limit else ""), limit=limit, limit_text=text, levels=levels
        ),
    }


def _details(subject: Subject) -> list[tuple[str, str]]:
    artifact = subject.artifact
    assert artifact is not None
    measured: dict[str, Any] = {}
    if artifact.verified is not None:
        left_out = {"machine", "notes", "checks"}
        measured = artifact.verified.model_dump(exclude=left_out, exclude_none=True)
        measured.get("parity", {}).pop("worst", None)
    return [*_flat(measured), *_flat(dict(artifact.notes))]


def _gallery(content: Content) -> dict[str, Any] | None:
    """The same target images with the boxes before and after."""
    columns = _columns(content)
    if not columns:
        return None
    found = {name for _, _, album in columns for name in _found(album)}
    known = list(dict.fromkeys(name for _, _, album in columns for name in album.classes))
    classes = [name for name in known if name in found]
    shown: list[dict[str, Any]] = []
    left = 0
    spent = 0
    first_run, first = columns[-1][1].run, columns[-1][2]
    for picture in first.pictures:
        uri = pictures.data_uri(first_run, picture)
        if uri is None or len(shown) >= PICTURES or spent + len(uri) > PICTURE_BYTES:
            left += 1
            continue
        spent += len(uri)
        views = []
        for label, _, album in columns:
            match = next((p for p in album.pictures if p.source == picture.source), None)
            if match is not None:
                views.append(_view(label, match, album, classes))
        shown.append({"name": Path(picture.source).name, "uri": uri, "picture": picture, "views": views})
    if not shown:
        return None
    thresholds = sorted({album.threshold for _, _, album in columns})
    return {"shown": shown, "left": left, "classes": classes, "thresholds": thresholds, "columns": len(columns)}


def _found(album: pictures.Album) -> set[str]:
    """The classes that are drawn in an album."""
    shown = (
        index
        for picture in album.pictures
        for index, score in zip(picture.detections.labels, picture.detections.scores, strict=True)
        if score >= album.threshold
    )
    return {album.classes[index] for index in shown if 0 <= index < len(album.classes)}


def _columns(content: Content) -> list[tuple[str, RunPart, pictures.Album]]:
    """Before and after: source-only's eager model, and the artifact of the verdict or else the adapted model."""
    columns = []
    shown = {part.kind for part in content.parts if part.albums}
    for kind, head in (("baseline" if "baseline" in shown else "source", "Before"), ("adapted", "After")):
        parts = [part for part in content.parts if part.kind == kind and part.albums]
        if not parts:
            continue
        part = parts[-1]
        headline = content.headline
        album = part.albums.get("eager") or next(iter(part.albums.values()))
        label = f"{head}: {part.label.lower()}"
        artifact = headline.artifact if kind == "adapted" and headline and headline.run is part.run else None
        if artifact and artifact.name in part.albums:
            album = part.albums[artifact.name]
            label += f", {artifact.title}"
        columns.append((label, part, album))
    return columns


def _view(label: str, picture: pictures.Picture, album: pictures.Album, classes: list[str]) -> dict[str, Any]:
    found = picture.detections
    boxes: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for box, index, score in zip(found.boxes, found.labels, found.scores, strict=True):
        if score < album.threshold:
            continue
        name = album.classes[index] if 0 <= index < len(album.classes) else f"class {index}"
        counts[name] = counts.get(name, 0) + 1
        boxes.append(
            {
                "x": box[0],
                "y": box[1],
                "width": max(0.0, box[2] - box[0]),
                "height": max(0.0, box[3] - box[1]),
                "name": name,
                "colour": classes.index(name) % 8 if name in classes else 7,
                "score": f"{score:.2f}",
                "low": box[1] < 16,
            }
        )
    # A picture may have been stored smaller in one run than in the other; the boxes are in its own pixels.
    size = (picture.width, picture.height)
    told = ", ".join(f"{count}\u00d7\u00a0{name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    return {"label": label, "boxes": boxes[::-1], "size": size, "told": told or "nothing found"}


def _data_sets(part: RunPart) -> Iterator[dict[str, str]]:
    """The data sets that a run learned from, as its manifest notes them."""
    for role in ("source", "target"):
        facts = part.run.manifest.notes.source if role == "source" else part.run.manifest.notes.target
        if facts is None:
            continue
        left_out = part.run.manifest.notes.left_out.get(role, SetNotes()).problems
        labelled = facts.boxes is not None
        yield {
            "run": part.label,
            "role": "target, with labels" if part.kind == "oracle" else role if labelled else f"{role}, without labels",
            "name": facts.name or "\u2013",
            "images": _fact(facts.images) if facts.images is not None else "\u2013",
            "boxes": _fact(facts.boxes) if labelled else "\u2013",
            "classes": _fact(facts.classes or "\u2013"),
            "problems": _fact((facts.problem_count or len(facts.problems)) + len(left_out)),
        }


def _all_problems(content: Content) -> list[tuple[str, str]]:
    """What the runs and the verifications noted, each once."""
    found = [(part.label, text) for part in content.parts for text in _problems(part.run.manifest.notes.model_dump())]
    for s in content.subjects:
        if s.artifact and s.artifact.verified:
            found += [(s.label, text) for text in s.artifact.verified.notes]
    return list(dict.fromkeys(found))


def _problems(notes: Any) -> Iterator[str]:
    """Every text under a key called problems or warnings, however deep."""
    if isinstance(notes, Mapping):
        for key, value in notes.items():
            if str(key).lower() in _PROBLEM_KEYS:
                for item in value if isinstance(value, list | tuple) else [value]:
                    if item:
                        yield _problem(item)
            else:
                yield from _problems(value)
        listed, count = notes.get("problems"), notes.get("problem_count")
        if isinstance(listed, list | tuple) and isinstance(count, int) and count > len(listed):
            yield f"{count - len(listed)} more problems in this data set (acclimate data lists them all)"


def _problem(item: Any) -> str:
    if isinstance(item, Mapping) and {"where", "what"} <= item.keys():
        return f"{item['where']}: {item['what']}"
    return _fact(item)


def _flat(values: Any, prefix: str = "", skip: set[str] = frozenset()) -> Iterator[tuple[str, str]]:  # type: ignore[assignment]
    """Nested settings as dotted keys with their values as text."""
    if isinstance(values, Mapping) and (values or not prefix):
        for key, value in values.items():
            if str(key).lower() not in skip:
                yield from _flat(value, f"{prefix}.{key}" if prefix else str(key), skip)
    else:
        yield prefix, _fact(values)


def _measured(value: Any) -> str:
    return verdict.quantity(float(value)) if _is_number(value) else "\u2013"


def _fact(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value) or "none"
    return str(value)


def _commands(content: Content) -> list[tuple[str, str]]:
    """What was run, in order, as far as the manifests say."""
    labels: dict[str, list[str]] = {}
    for part in content.parts:
        if part.run.manifest.command:
            labels.setdefault(part.run.manifest.command, []).append(part.label)
    commands = [(", ".join(names), command) for command, names in labels.items()]
    return [*commands, ("This report", shlex.join(["acclimate", "report", *(str(p.run.path) for p in content.parts)]))]


def _machines(content: Content) -> list[tuple[str, Mapping[str, Any]]]:
    """The machines that trained and measured; the same machine is listed once."""
    listed: list[tuple[str, Mapping[str, Any]]] = [
        (part.label, part.run.manifest.machine) for part in content.parts if part.run.manifest.machine
    ]
    for s in content.subjects:
        if s.artifact and s.artifact.verified and s.artifact.verified.machine:
            listed.append((f"{s.label} (measured)", s.artifact.verified.machine))
    merged: list[tuple[str, Mapping[str, Any]]] = []
    for label, machine in listed:
        same = next((i for i, (_, known) in enumerate(merged) if known == machine), None)
        if same is None:
            merged.append((label, machine))
        else:
            merged[same] = (f"{merged[same][0]}; {label}", machine)
    return merged
