"""The two diagnoses that sections compare: of the detector that nobody adapted, and of the adapted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acclimate.diagnosis import SHOWN, Diagnosis, Seen, saved
from acclimate.report.content import Content, Domain, Subject
from acclimate.run import Run


@dataclass(frozen=True)
class View:
    """One model's diagnosis and what the page calls the model."""

    label: str
    run: Run
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Pair:
    """Both models on the target's test set, before export; `before` is None where the last model stands alone."""

    domain: Domain
    before: View | None
    after: View

    @property
    def views(self) -> list[View]:
        return [self.before, self.after] if self.before is not None else [self.after]


def pair(content: Content) -> Pair | None:
    """None where no diagnosis of the target, or else of the source, is stored: earlier versions made none.

    Raises:
        AcclimateError: the file of one is damaged.
    """
    for domain in filter(None, (content.target, content.source)):
        base, adapted = content.source_only, content.eager("adapted")
        views = [_view(subject, domain) for subject in (base, adapted) if subject is not None]
        known = [view for view in views if view is not None]
        if not known:
            continue
        first, last = known[0], known[-1]
        same = first is not last and first.diagnosis.digest == last.diagnosis.digest
        return Pair(domain, first if same else None, last)
    return None


def _view(subject: Subject, domain: Domain) -> View | None:
    for one in saved(subject.run):
        if (one.model, one.role, one.data) == ("eager", domain.role, domain.data):
            return View(subject.label, subject.run, one)
    return None


@dataclass(frozen=True)
class Outcome:
    """What one model shows of an image, from the score `SHOWN` up.

    Attributes:
        found: true box -> the detection that found it, both by index.
        false: detections that found nothing.
        missed: true boxes that nothing found.
    """

    found: dict[int, int]
    false: tuple[int, ...]
    missed: tuple[int, ...]


def outcome(seen: Seen) -> Outcome:
    """Matching goes by falling score, so that of the shown boxes is that of all, cut off."""
    shown = [place for place, score in enumerate(seen.scores) if score >= SHOWN]
    found = {seen.finds[place]: place for place in shown if seen.finds[place] >= 0}
    return Outcome(
        found,
        tuple(place for place in shown if seen.finds[place] < 0),
        tuple(place for place in range(len(seen.truth)) if place not in found),
    )


@dataclass(frozen=True)
class Compared:
    """One image as both models see it. Gains count right boxes won and false boxes added."""

    before: Seen
    after: Seen

    @property
    def right(self) -> int:
        return len(outcome(self.after).found) - len(outcome(self.before).found)

    @property
    def wrong(self) -> int:
        return len(outcome(self.after).false) - len(outcome(self.before).false)

    @property
    def gain(self) -> int:
        return self.right - self.wrong


def compared(both: Pair) -> Sequence[Compared]:
    """Every image that both models saw, in the order of the set."""
    if both.before is None:
        return []
    before = {seen.path: seen for seen in both.before.diagnosis.images}
    return [Compared(before[seen.path], seen) for seen in both.after.diagnosis.images if seen.path in before]
