"""The verdict in words: what a manager reads first. Plain sentences from numbers, good or bad.

AP values come in as 0..1 and are told in points (0..100).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from acclimate.errors import AcclimateError
from acclimate.evaluate import Change
from acclimate.report.content import Artifact, Content, Score, Subject, changed
from acclimate.run import Run
from acclimate.verification.judge import MUCH, TOLERANCE, Check, not_learnt

Tone = Literal["good", "bad", "neutral"]
NO_GAP = 0.01
"""Below one point of AP50 between source-only and oracle there is no gap to speak of, and no fraction of it."""
NO_CHANGE = 0.005
"""Half a point of AP50: a smaller change is called none."""

CLASSES = 6
"""So many classes are named in one sentence."""
OTHERS = 3
"""So many artifacts besides the headline's are told of in the verdict."""

_CHECKS = {
    "latency_ms": ("Latency, median of one image", "ms"),
    "size_mb": ("Size of the model file", "MB"),
    "memory_mb": ("Peak memory", "MB"),
    "macs_m": ("Multiply-adds per image", "million"),
}
_ACCURACY = {
    TOLERANCE: ("AP50 lost against the model before export", "of AP50 lost in export"),
    "min_ap50": ("AP50 on the target", "of AP50 on the target"),
    "min_gain_ap50": ("AP50 gained over source-only", "of AP50 gained over source-only"),
    "max_class_drop_ap50": ("AP50 lost by a class against source-only", "of AP50 lost by a class"),
}
"""Limits on accuracy, told in points: as a row of the table, and in a sentence."""


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
    reason: str = ""
    """Why it is not known whether the limit holds."""


@dataclass(frozen=True)
class Gap:
    """What adaptation won: `gain` = adapted - source-only; `size` = oracle - source-only; `closed` = gain / size.

    Source-only is `Content.source_only`.
    AP50 in 0..1. `size` is None without an oracle; `closed` is None as well where `size` is below `NO_GAP`.
    `change` has the interval of the gain.
    """

    before: float
    after: float
    oracle: float | None = None
    change: Change | None = None

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def clear(self) -> bool | None:
        """Whether another draw of images would hardly turn the gain round; None where that cannot be told."""
        return self.change.clear if self.change is not None and self.change.interval is not None else None

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
    """A check as text; limits on accuracy are told in points."""
    if check.name in _ACCURACY:
        title, _ = _ACCURACY[check.name]
        told = _lost if check.name.startswith("max_") else _reached
        value = "not measured" if check.value is None else told(check.value, check.limit)
        least = "at least " if check.name.startswith("min_") else ""
        return CheckRow(
            title, value, least + _count(100 * check.limit, "point"), None, check.passed, check.name, check.reason
        )
    title, unit = _CHECKS.get(check.name, (check.name.replace("_", " "), ""))
    value = "not measured" if check.value is None else f"{against(check.value, check.limit)} {unit}".strip()
    limit = f"{quantity(check.limit, 4)} {unit}".strip()
    used = check.value / check.limit if check.value is not None and check.limit else None
    return CheckRow(title, value, limit, used, check.passed, check.name, check.reason)


def _lost(value: float, limit: float) -> str:
    lost = 100 * value
    if lost < 0.005:
        return f"none ({signed(-value)} points)" if signed(-value) != "0.0" else "none"
    text = against(lost, 100 * limit) if limit else quantity(lost, 2)
    return f"{text} point{'s' * (text != '1')}"


def _reached(value: float, limit: float) -> str:
    text = against(100 * value, 100 * limit)
    return f"{text} point{'s' * (text != '1')}"


def _count(value: float, unit: str) -> str:
    text = quantity(value, 2)
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of the page; `first` before all else, where there is something that comes first."""

    state: Literal["pass", "fail", "open"]
    badge: str
    budget: Sentence
    adaptation: Sentence
    more: tuple[Sentence, ...]
    checks: tuple[CheckRow, ...]
    gap: Gap | None
    first: Sentence | None = None


def judge(content: Content) -> Verdict:
    """The verdict against the budget, and what adaptation won or lost."""
    headline = content.headline
    gap = _gap(content)
    more = (
        *_what_source_only_is(content),
        *_classes(content),
        *_drop_between(content),
        *_on_device(content, headline),
        *_doubts(content),
        *_source_after(content),
        *_several(content),
        *_others(content, headline),
        *_strangers(content),
        *_unfinished(content),
    )
    artifact = headline.artifact if headline else None
    state, badge, budget = _budget(artifact)
    rows = _rows(artifact) if artifact else ()
    return Verdict(state, badge, budget, _adaptation(content, gap), more, rows, gap, _first(content, artifact))


def _first(content: Content, artifact: Artifact | None) -> Sentence | None:
    """That the source detector has learnt next to nothing, where that is so: then nothing else means much."""
    source = content.eager("source")
    score = source.on(content.source) if source else None
    known = score.ap50 if score else artifact.verified.source_ap50 if artifact and artifact.verified else None
    text = not_learnt(known)
    return Sentence(f"{text[0].upper()}{text[1:]}.", "bad") if text else None


def _budget(artifact: Artifact | None) -> tuple[Literal["pass", "fail", "open"], str, Sentence]:
    """State, badge and sentence about the artifact's limits."""
    if artifact is None:
        text = "There is no artifact yet, so nothing was checked against a budget."
        return "open", "No artifact", Sentence(text, "neutral")
    precision, _, runtime = artifact.title.partition(" ")
    name = f"The {precision} artifact {runtime}"
    if artifact.verified is None:
        text = f"{name} was exported but not verified: whether it meets a budget is not known."
        return "open", "Not verified", Sentence(text, "neutral")
    rows = _rows(artifact)
    if artifact.verdict == "measured":
        text = f"{name} was measured, but no budget was given: there is no limit it could meet or miss."
        return "open", "No budget", Sentence(text, "neutral")
    unknown = [f"{row.title.lower()}: {row.reason}" for row in rows if row.passed is None]
    if artifact.verdict == "incomplete":
        met = [_used(row) for row in rows if row.passed]
        rest = f" Of what was measured, it keeps {_listed(met)}." if met else ""
        text = f"Whether {name[0].lower()}{name[1:]} meets the budget is not known. {'; '.join(unknown)}.{rest}"
        return "open", "Incomplete", Sentence(text, "neutral")
    if all(row.name == TOLERANCE for row in rows):
        kept = "keeps its accuracy" if artifact.passed else "loses more accuracy in export than is tolerated"
        text = f"{name} {kept}: {_listed([_used(row) for row in rows])}. No budget was given for the device."
        if artifact.passed:
            return "open", "No budget", Sentence(text, "neutral")
        return "fail", "Tolerance missed", Sentence(text, "bad")
    if artifact.passed:
        return "pass", "Budget met", Sentence(f"{name} meets the budget: {_listed([_used(r) for r in rows])}.", "good")
    broken = [_used(row) for row in rows if row.passed is False]
    more = f" Not known: {'; '.join(unknown)}." if unknown else ""
    return "fail", "Budget missed", Sentence(f"{name} misses the budget: {_listed(broken)}.{more}", "bad")


def _rows(artifact: Artifact) -> tuple[CheckRow, ...]:
    """The checks as text; the latency says how many threads it was measured with."""
    threads = artifact.verified.latency.threads if artifact.verified else None
    rows = (check_row(check) for check in artifact.checks)
    told = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    return tuple(replace(row, title=row.title + told) if row.name == "latency_ms" else row for row in rows)


def _used(row: CheckRow) -> str:
    if row.name in _ACCURACY:
        _, words = _ACCURACY[row.name]
        value = "no" if row.value.startswith("none") else row.value
        words = words.removeprefix("of ") if value == "no" else words
        asked = "allowed" if row.name.startswith("max_") else "asked for"
        return f"{value} {words} ({row.limit} {asked})"
    named = {"latency_ms": "", "size_mb": " of model", "memory_mb": " of memory"}.get(row.name)
    value, space, unit = row.value.partition(" ")
    limit = row.limit.removesuffix(f" {unit}") if space else row.limit
    suffix = f" ({row.title.lower()})" if named is None else named
    return f"{value} of {limit}{space}{unit}{suffix}"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1] if items else ""


def _ap50(subject: Subject | None, content: Content) -> float | None:
    score: Score | None = subject.on(content.target) if subject else None
    return score.ap50 if score else None


def _gap(content: Content) -> Gap | None:
    first, second = content.source_only, content.eager("adapted")
    before, after = _ap50(first, content), _ap50(second, content)
    if before is None or after is None or first is None or second is None:
        return None
    found = changed(first.on(content.target), second.on(content.target))
    return Gap(before, after, _ap50(content.eager("oracle"), content), found.ap50) if found is not None else None


def interval(change: Change | None) -> str:
    """The interval of a difference in points, "95 %: +1.0 to +4.2"; empty where it is not known."""
    if change is None or change.interval is None:
        return ""
    low, high = change.interval
    return f"95\u00a0%: {signed(low)} to {signed(high)}"


def _adaptation(content: Content, gap: Gap | None) -> Sentence:
    if gap is None:
        both = (_ap50(content.source_only, content), _ap50(content.eager("adapted"), content))
        known = next((value for value in both if value is not None), None)
        if known is None:
            return Sentence("What adaptation gains cannot be said: no accuracy on the target was measured.", "neutral")
        if None not in both:
            return Sentence(
                "What adaptation gains cannot be said: the two models were measured on other images; evaluate both on "
                "the same set.",
                "bad",
            )
        return Sentence(
            f"What adaptation gains cannot be said: only one of the two models was measured on the target "
            f"(AP50 {points(known)} points).",
            "neutral",
        )
    assert content.target is not None
    where = content.target.name
    spread = interval(gap.change)
    told = f"{signed(gap.gain)}; {spread}" if spread else signed(gap.gain)
    change = f"AP50 on {where} went from {points(gap.before)} to {points(gap.after)} points ({told})"
    # A colour is a claim, which needs an interval that leaves out zero.
    good: Tone = "good" if gap.clear else "neutral"
    bad: Tone = "bad" if gap.clear else "neutral"
    if gap.clear is False:
        count = f" on {content.target.counted}" if content.target.images else ""
        return Sentence(
            f"Whether adaptation helped cannot be told{count}: {change}, which chance may have done. Measure on more "
            "images, or train more seeds.",
            "neutral",
        )
    if gap.gain <= -NO_CHANGE:
        return Sentence(f"Adaptation hurt: {change}. Use the source-only model, or adapt with other settings.", bad)
    if gap.size is not None and gap.size < NO_GAP:
        return Sentence(
            f"There was no gap to close: even a model trained on {where} with labels reaches "
            f"{points(gap.oracle)} points. {change}.",
            "neutral",
        )
    if gap.gain < NO_CHANGE:
        return Sentence(f"Adaptation made no difference worth the name: {change}.", "neutral")
    if gap.closed is None:
        return Sentence(f"Adaptation helped: {change}.", good)
    source = content.source.name if content.source else "source"
    if gap.closed > 1:
        return Sentence(
            f"Adaptation closed the whole gap between {source} and {where} and went past the oracle "
            f"({percent(gap.closed)}): {change}; the oracle reaches {points(gap.oracle)}.",
            good,
        )
    tone: Tone = good if gap.closed >= 0.25 else "neutral"
    little = "" if gap.closed >= 0.25 else "only "
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


def _classes(content: Content) -> list[Sentence]:
    """Classes that changed with the adaptation: those that chance would hardly have changed, and large losses."""
    source, adapted = content.source_only, content.eager("adapted")
    found = changed(source.on(content.target), adapted.on(content.target)) if source and adapted else None
    if found is None or content.target is None:
        return []
    where = content.target.name
    fell = {name: one for name, one in found.classes.items() if one.clear and one.difference < 0}
    rose = {name: one for name, one in found.classes.items() if one.clear and one.difference > 0}
    perhaps = {name: one for name, one in found.classes.items() if not one.clear and one.difference <= -MUCH}
    told = []
    if fell:
        told.append(Sentence(f"Classes that lost AP50 on {where}: {_by_class(fell)}.", "bad"))
    if perhaps:
        unknown = all(one.interval is None for one in perhaps.values())
        why = "no interval is known" if unknown else "chance may have done it"
        told.append(Sentence(f"Classes that lost AP50 on {where}, though {why}: {_by_class(perhaps)}.", "neutral"))
    if rose:
        told.append(Sentence(f"Classes that gained AP50 on {where}: {_by_class(rose)}.", "good"))
    return told


def _by_class(changes: Mapping[str, Change]) -> str:
    order = sorted(changes.items(), key=lambda item: -abs(item[1].difference))
    told = [f"{n} {points(c.before)} \u2192 {points(c.after)} ({signed(c.difference)})" for n, c in order[:CLASSES]]
    return ", ".join(told) + (f" and {len(order) - CLASSES} more" if len(order) > CLASSES else "")


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
    source = content.source_only
    found = changed(source.on(content.target), headline.on(content.target)) if source else None
    tone: Tone = "bad" if found is not None and found.ap50.clear and on_device < before else "neutral"
    return [Sentence(f"{text}, {signed(on_device - before)} against the source-only model before export.", tone)]


def _doubts(content: Content) -> list[Sentence]:
    """What speaks against how an artifact was calibrated; once for an artifact, wherever it was verified."""
    told = {
        f"How {artifact.name} was calibrated is in doubt: {doubt}."
        for subject in content.subjects
        if (artifact := subject.artifact) is not None
        for doubt in artifact.doubts
    }
    return [Sentence(text, "bad") for text in sorted(told)]


def _source_after(content: Content) -> list[Sentence]:
    """What adaptation cost on the source, where it is a point or more."""
    source, adapted = content.source_only, content.eager("adapted")
    before = source.on(content.source) if source else None
    after = adapted.on(content.source) if adapted else None
    if before is None or after is None or content.source is None or before.ap50 - after.ap50 < 0.01:
        return []
    name = content.source.name
    found = changed(before, after)
    return [
        Sentence(
            f"The price: on {name} AP50 fell from {points(before.ap50)} to {points(after.ap50)} points "
            f"({signed(after.ap50 - before.ap50)}).",
            "bad" if found is not None and found.ap50.clear else "neutral",
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
        if artifact is None or subject is headline or artifact.verdict in {None, "measured"}:
            continue
        device = any(check.name != TOLERANCE for check in artifact.checks)
        if artifact.passed is None:
            verb = f"was not measured in full: {_listed([c.name for c in artifact.checks if c.passed is None])}"
        elif artifact.passed:
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
