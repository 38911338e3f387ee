"""The verdict in words: what a manager reads first. Plain sentences from numbers, good or bad.

AP values come in as 0..1 and are told in points (0..100).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from acclimate.errors import AcclimateError
from acclimate.report.content import TOLERANCE, Artifact, Check, Content, Score, Subject
from acclimate.run import Run

Tone = Literal["good", "bad", "neutral"]
NO_GAP = 0.01
"""Below one point of AP50 between source-only and oracle there is no gap to speak of, and no fraction of it."""
NO_CHANGE = 0.005
"""Half a point of AP50: a smaller change is called none."""

OTHERS = 3
"""So many artifacts besides the headline's are told of in the verdict."""

_CHECKS = {
    "latency_ms": ("Latency, median of one image", "ms"),
    "size_mb": ("Size of the model file", "MB"),
    "memory_mb": ("Peak memory", "MB"),
    "peak_memory_mb": ("Peak memory", "MB"),
    "macs_m": ("Multiply-adds per image", "million"),
}


@dataclass(frozen=True)
class Sentence:
    """One sentence of the verdict and whether it is good news."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class CheckRow:
    """One line of the table of checks, as text."""

    title: str
    value: str
    limit: str
    used: float | None
    """Share of the limit that is used, 1 = all of it; None where that makes no sense."""
    passed: bool | None
    name: str


@dataclass(frozen=True)
class Gap:
    """What adaptation won: `gain` = adapted - source-only; `size` = oracle - source-only; `closed` = gain / size.

    Source-only is `Content.source_only`.
    AP50 in 0..1. `size` is None without an oracle; `closed` is None as well where `size` is below `NO_GAP`.
    """

    before: float
    after: float
    oracle: float | None = None

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def size(self) -> float | None:
        return None if self.oracle is None else self.oracle - self.before

    @property
    def closed(self) -> float | None:
        return None if self.size is None or self.size < NO_GAP else self.gain / self.size


def points(value: float | None) -> str:
    """AP 0..1 as points with one decimal, "51.2"; a dash where there is none."""
    return "\u2013" if value is None or not math.isfinite(value) else _minus(f"{100 * value + 0.0:.1f}")


def signed(value: float | None) -> str:
    """A difference of AP in points with its sign: "+6.3", "\u22122.1", "0.0"."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else _minus(text)


def percent(value: float) -> str:
    """A fraction as whole per cent, "62 %"; just beside 100 % with digits enough to tell the side."""
    if value != 1 and round(100 * value) == 100:
        return f"{against(100 * value, 100.0)}\u00a0%"
    return _minus(f"{100 * value:.0f}\u00a0%").replace("\u22120\u00a0%", "0\u00a0%")


def quantity(value: float | None, digits: int = 3) -> str:
    """A measurement with about `digits` significant digits and no exponent."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(decimals, 6)}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def against(value: float, limit: float) -> str:
    """`value` with digits enough to tell it from `limit`, so that 10.04 of 10 does not read as 10."""
    for digits in range(3, 7):
        text = quantity(value, digits)
        if value == limit or text != quantity(limit, digits):
            return text
    return quantity(value)


def check_row(check: Check) -> CheckRow:
    """A check as text; accuracy tolerances (names with `ap50` in them) are told in points."""
    if "ap50" in check.name or "drop" in check.name:
        value = "not measured" if check.value is None else _drop(check.value, check.limit)
        limit = "\u2013" if check.limit is None else _count(100 * check.limit, "point")
        _, found, where = check.name.partition("/")
        title = "AP50 lost against the model before export" + (f", {where}" if found else "")
        return CheckRow(title, value, limit, None, check.passed, check.name)
    title, unit = _CHECKS.get(check.name, (check.name.replace("_", " "), ""))
    if check.value is None:
        value = "not measured"
    else:
        value = against(check.value, check.limit) if check.limit is not None else quantity(check.value)
        value = f"{value} {unit}".strip()
    limit = "\u2013" if check.limit is None else f"{quantity(check.limit, 4)} {unit}".strip()
    used = check.value / check.limit if check.value is not None and check.limit else None
    return CheckRow(title, value, limit, used, check.passed, check.name)


def _drop(value: float, limit: float | None) -> str:
    lost = 100 * value
    if lost < 0.005:
        return f"none ({signed(-value)} points)" if signed(-value) != "0.0" else "none"
    text = against(lost, 100 * limit) if limit else quantity(lost, 2)
    return f"{text} point{'s' * (text != '1')}"


def _count(value: float, unit: str) -> str:
    text = quantity(value, 2)
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of the page."""

    state: Literal["pass", "fail", "open"]
    badge: str
    budget: Sentence
    adaptation: Sentence
    more: tuple[Sentence, ...]
    checks: tuple[CheckRow, ...]
    gap: Gap | None


def judge(content: Content) -> Verdict:
    """The verdict against the budget, and what adaptation won or lost."""
    headline = content.headline
    gap = _gap(content)
    adaptation = _adaptation(content, gap)
    more = (
        *_what_source_only_is(content),
        *_drop_between(content),
        *_on_device(content, headline),
        *_threads(content, headline),
        *_source_after(content),
        *_several(content),
        *_others(content, headline),
        *_strangers(content),
        *_unfinished(content),
    )
    artifact = headline.artifact if headline else None
    rows = _rows(artifact) if artifact else ()
    if artifact is None:
        text = "There is no artifact yet, so nothing was checked against a budget."
        return Verdict("open", "No artifact", Sentence(text, "neutral"), adaptation, more, rows, gap)
    precision, _, runtime = artifact.title.partition(" ")
    name = f"The {precision} artifact {runtime}"
    if artifact.verified is None:
        text = f"{name} was exported but not verified: whether it meets a budget is not known."
        return Verdict("open", "Not verified", Sentence(text, "neutral"), adaptation, more, rows, gap)
    if artifact.passed is None or not rows:
        text = f"{name} was measured, but no budget was given: there is no limit it could meet or miss."
        return Verdict("open", "No budget", Sentence(text, "neutral"), adaptation, more, rows, gap)
    failed = [row for row in rows if row.passed is not True]
    if all(row.name == TOLERANCE for row in rows):
        kept = "keeps its accuracy" if artifact.passed else "loses more accuracy in export than is tolerated"
        text = f"{name} {kept}: {_listed([_used(row) for row in rows])}. No budget was given for the device."
        if artifact.passed:
            return Verdict("open", "No budget", Sentence(text, "neutral"), adaptation, more, rows, gap)
        return Verdict("fail", "Tolerance missed", Sentence(text, "bad"), adaptation, more, rows, gap)
    if artifact.passed:
        text = f"{name} meets the budget: {_listed([_used(row) for row in rows])}."
        return Verdict("pass", "Budget met", Sentence(text, "good"), adaptation, more, rows, gap)
    broken = [row for row in failed if row.passed is False]
    unknown = [row for row in failed if row.passed is None]
    told = [_used(row) for row in broken] + [f"{row.title.lower()} was not measured" for row in unknown]
    text = f"{name} misses the budget: {_listed(told) or 'its verification failed'}."
    return Verdict("fail", "Budget missed", Sentence(text, "bad"), adaptation, more, rows, gap)


def _rows(artifact: Artifact) -> tuple[CheckRow, ...]:
    """The checks as text; the latency says how many threads it was measured with."""
    threads = artifact.verified.threads if artifact.verified else None
    rows = (check_row(check) for check in artifact.checks)
    told = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    return tuple(replace(row, title=row.title + told) if row.name == "latency_ms" else row for row in rows)


def _used(row: CheckRow) -> str:
    if "ap50" in row.name or "drop" in row.name:
        lost = "no AP50 lost" if row.value.startswith("none") else f"{row.value} of AP50 lost"
        return f"{lost} in export ({row.limit} allowed)"
    words = {"latency_ms": "", "size_mb": " of model", "memory_mb": " of memory", "peak_memory_mb": " of memory"}
    value, space, unit = row.value.partition(" ")
    limit = row.limit.removesuffix(f" {unit}") if space else row.limit
    suffix = words.get(row.name, f" ({row.title.lower()})")
    return f"{value} of {limit}{space}{unit}{suffix}"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1] if items else ""


def _ap50(subject: Subject | None, content: Content) -> float | None:
    score: Score | None = subject.on(content.target) if subject else None
    return score.ap50 if score else None


def _gap(content: Content) -> Gap | None:
    before, after = _ap50(content.source_only, content), _ap50(content.eager("adapted"), content)
    if before is None or after is None:
        return None
    return Gap(before, after, _ap50(content.eager("oracle"), content))


def _adaptation(content: Content, gap: Gap | None) -> Sentence:
    if gap is None:
        both = (_ap50(content.source_only, content), _ap50(content.eager("adapted"), content))
        known = next((value for value in both if value is not None), None)
        if known is None:
            return Sentence("What adaptation gains cannot be said: no accuracy on the target was measured.", "neutral")
        return Sentence(
            f"What adaptation gains cannot be said: only one of the two models was measured on the target "
            f"(AP50 {points(known)} points).",
            "neutral",
        )
    assert content.target is not None
    where = content.target.name
    change = f"AP50 on {where} went from {points(gap.before)} to {points(gap.after)} points ({signed(gap.gain)})"
    if gap.gain <= -NO_CHANGE:
        return Sentence(f"Adaptation hurt: {change}. Use the source-only model, or adapt with other settings.", "bad")
    if gap.size is not None and gap.size < NO_GAP:
        return Sentence(
            f"There was no gap to close: even a model trained on {where} with labels reaches "
            f"{points(gap.oracle)} points. {change}.",
            "neutral",
        )
    if gap.gain < NO_CHANGE:
        return Sentence(f"Adaptation made no difference worth the name: {change}.", "bad")
    if gap.closed is None:
        return Sentence(f"Adaptation helped: {change}.", "good")
    source = content.source.name if content.source else "source"
    if gap.closed > 1:
        return Sentence(
            f"Adaptation closed the whole gap between {source} and {where} and went past the oracle "
            f"({percent(gap.closed)}): {change}; the oracle reaches {points(gap.oracle)}.",
            "good",
        )
    tone: Tone = "good" if gap.closed >= 0.25 else "neutral"
    little = "" if tone == "good" else "only "
    return Sentence(
        f"Adaptation closed {little}{percent(gap.closed)} of the gap between {source} and {where}: {change}; "
        f"the oracle, trained with {where} labels, reaches {points(gap.oracle)}.",
        tone,
    )


def _what_source_only_is(content: Content) -> list[Sentence]:
    """Whether the adapted model is compared with one that was trained for as long."""
    subject, adapted = content.source_only, content.eager("adapted")
    if subject is None or adapted is None:
        return []
    steps = {part.run.path: part.steps for part in content.parts}
    own, further = steps.get(subject.run.path), steps.get(adapted.run.path)
    if subject.kind == "source":
        told = "" if own is None or further is None else f" ({own} steps, the adapted model {own} and {further} more)"
        return [
            Sentence(
                f"Source-only is the source run as it is{told}: a part of the change may be the longer training alone.",
                "neutral",
            )
        ]
    if own != further:
        return [
            Sentence(
                f"Source-only was trained on for {own} steps, the adapted model for {further}: they may not compare.",
                "bad",
            )
        ]
    length = "as long as" if own is None else f"the same {own} steps as"
    text = f"Source-only is the source run trained on for {length} the adapted model, without any target image"
    start = _ap50(content.eager("source"), content)
    if start is None or content.target is None:
        return [Sentence(text + ".", "neutral")]
    reached = f"the source run itself reaches {points(start)} points on {content.target.name}"
    return [Sentence(f"{text}; {reached}.", "neutral")]


def _drop_between(content: Content) -> list[Sentence]:
    """What the change of domain costs the detector that nobody adapted."""
    subject = content.source_only
    on_source = subject.on(content.source) if subject else None
    on_target = subject.on(content.target) if subject else None
    if on_source is None or on_target is None or content.source is None or content.target is None:
        return []
    return [
        Sentence(
            f"Without adaptation the detector reaches {points(on_source.ap50)} points on {content.source.name} and "
            f"{points(on_target.ap50)} on {content.target.name} ({signed(on_target.ap50 - on_source.ap50)}).",
            "neutral",
        )
    ]


def _on_device(content: Content, headline: Subject | None) -> list[Sentence]:
    on_device, before = _ap50(headline, content), _ap50(content.source_only, content)
    if headline is None or headline.artifact is None or on_device is None or content.target is None:
        return []
    precision = headline.artifact.precision.upper()
    text = f"On the runtime itself the {precision} artifact reaches {points(on_device)} points on {content.target.name}"
    if before is None or not headline.adapted:
        return [Sentence(text + ".", "neutral")]
    tone: Tone = "bad" if on_device < before - NO_CHANGE else "neutral"
    return [Sentence(f"{text}, {signed(on_device - before)} against the source-only model before export.", tone)]


def _threads(content: Content, headline: Subject | None) -> list[Sentence]:
    verified = headline.artifact.verified if headline and headline.artifact else None
    if content.budget is None or verified is None or verified.threads in {None, content.budget.threads}:
        return []
    return [
        Sentence(
            f"The latency was measured with {verified.threads} thread(s), but the budget is for "
            f"{content.budget.threads}: verify the artifact again with that budget.",
            "bad",
        )
    ]


def _source_after(content: Content) -> list[Sentence]:
    """What adaptation cost on the source, where it is a point or more."""
    source, adapted = content.source_only, content.eager("adapted")
    before = source.on(content.source) if source else None
    after = adapted.on(content.source) if adapted else None
    if before is None or after is None or content.source is None or before.ap50 - after.ap50 < 0.01:
        return []
    name = content.source.name
    return [
        Sentence(
            f"The price: on {name} AP50 fell from {points(before.ap50)} to {points(after.ap50)} points "
            f"({signed(after.ap50 - before.ap50)}).",
            "bad",
        )
    ]


def _several(content: Content) -> list[Sentence]:
    """With several adapted runs (seeds, settings): how they spread, and which one the verdict is about."""
    adapted = [s for s in content.of("adapted") if s.model == "eager"]
    scores = [value for s in adapted if (value := _ap50(s, content)) is not None]
    about = content.eager("adapted")
    if len(scores) < 2 or about is None or content.target is None:
        return []
    mean = sum(scores) / len(scores)
    return [
        Sentence(
            f"{len(scores)} adapted runs were measured: AP50 on {content.target.name} from {points(min(scores))} to "
            f"{points(max(scores))} points, mean {points(mean)}. The verdict is about {about.label}.",
            "neutral",
        )
    ]


def _others(content: Content, headline: Subject | None) -> list[Sentence]:
    """How the artifacts fare that the verdict is not about."""
    told = []
    too = headline is not None and headline.artifact is not None and headline.artifact.passed is False
    for subject in content.subjects:
        artifact = subject.artifact
        if artifact is None or subject is headline or artifact.verified is None or artifact.passed is None:
            continue
        device = any(check.name != TOLERANCE for check in artifact.checks)
        if artifact.passed:
            verb = "also meets the budget" if device else "keeps its accuracy"
        else:
            verb = f"misses it{' too' * too}" if device else "loses more accuracy in export than is tolerated"
            failed = [_used(check_row(c)) for c in artifact.checks if c.passed is False]
            verb += f": {_listed(failed)}" if failed else ""
        told.append(Sentence(f"{subject.label} {verb}.", "neutral"))
    left = len(told) - OTHERS
    return told if left <= 1 else [*told[:OTHERS], Sentence(f"{left} more artifacts are listed below.", "neutral")]


def _strangers(content: Content) -> list[Sentence]:
    """Runs that did not start from the given source run: then before and after are not the same detector.

    A run may have started from one that did, such as the bank that a width was searched in; it need not be given.
    """
    sources = [part.run.path for part in content.parts if part.kind == "source"]
    known = {path.resolve() for path in sources} | {Path(path.name) for path in sources}
    given = {part.run.path.resolve(): part.run.manifest.parents for part in content.parts}

    def descends(path: Path, before: frozenset[Path] = frozenset()) -> bool:
        here = path.resolve()
        if {here, Path(path.name)} & known:
            return True
        if here in before:
            return False
        parents = given.get(here)
        if parents is None and (path / "run.json").is_file():
            with contextlib.suppress(AcclimateError):
                parents = Run.open(path).manifest.parents
        return any(descends(Path(parent), before | {here}) for parent in parents or ())

    return [
        Sentence(
            f"{part.label} started from {parent}, which is not the source run given here: they may not compare.",
            "bad",
        )
        for part in content.parts
        for parent in part.run.manifest.parents
        if part.kind in {"baseline", "adapted"} and sources and not descends(Path(parent))
    ]


def _unfinished(content: Content) -> list[Sentence]:
    words = {"running": "has not finished", "interrupted": "was interrupted", "failed": "failed"}
    return [
        Sentence(f"The run {part.run.path} {words[part.run.manifest.status]}: its numbers are not final.", "bad")
        for part in content.parts
        if part.run.manifest.status in words
    ]
