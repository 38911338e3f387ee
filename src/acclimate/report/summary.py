"""Everything that the page shows, as JSON: numbers in their own units, AP in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acclimate import __version__
from acclimate.config import Budget
from acclimate.evaluate import Comparison
from acclimate.report import verdict
from acclimate.report.content import Content, Score, Subject, changed, gather
from acclimate.report.sections import advice, classwise, outcomes
from acclimate.report.sections import pair as pairs

FORMAT = 1


def summary(runs: Sequence[Path], *, oracle: Path | None = None, budget: Budget | None = None) -> dict[str, Any]:
    """The report of `runs` without its pictures and plots.

    Keys: `format`, `version`, `verdict` (`state`, `badge`, `sentences`, `checks`, `gap`), `next`, `missing`, `runs`,
    `accuracy` (a row for each model and test set), `artifacts` (the record of each verification), and of the pair that
    is compared box by box `boxes`, `classes`, `sizes`, `confusion` and `reliability`, where they were measured.

    Raises:
        AcclimateError: as `content.gather`.
    """
    content = gather(runs, oracle=oracle, budget=budget)
    judged = verdict.judge(content)
    both = pairs.pair(content)
    sentences = [judged.first, judged.budget, judged.adaptation, *judged.more]
    told: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "verdict": {
            "state": judged.state,
            "badge": judged.badge,
            "sentences": [asdict(one) for one in sentences if one is not None],
            "checks": [one.model_dump() for one in _checks(content)],
            "gap": None if judged.gap is None else {"gain": judged.gap.gain, "closed": judged.gap.closed},
        },
        "next": [asdict(one) for one in advice.section(content, both)],
        "missing": list(content.missing),
        "runs": [
            {
                "path": str(part.run.path),
                "label": part.label,
                "kind": part.kind,
                **part.run.manifest.model_dump(mode="json", exclude={"machine"}),
                "machine": dict(part.run.manifest.machine),
                "config": part.config,
                "selection": part.selection.model_dump() if part.selection is not None else None,
            }
            for part in content.parts
        ],
        "accuracy": list(_accuracy(content)),
        "artifacts": [
            {
                "model": subject.label,
                "run": str(subject.run.path),
                "name": subject.artifact.name,
                "verdict": subject.artifact.verdict,
                "suggested": dict(subject.artifact.suggested),
                "verification": subject.artifact.verified.model_dump(mode="json")
                if subject.artifact.verified
                else None,
            }
            for subject in content.subjects
            if subject.artifact is not None
        ],
    }
    if both is not None:
        after = both.after.diagnosis
        told |= {
            "boxes": outcomes.totals(both),
            "classes": [_class(row) for row in classwise.classes(content, both)],
            "sizes": classwise.sizes(both),
            "confusion": {"classes": list(after.classes), "matrix": after.confusion},
            "reliability": {
                view.label: view.diagnosis.reliability.model_dump() if view.diagnosis.reliability else None
                for view in both.views
            },
        }
    return told


def _checks(content: Content) -> Sequence[Any]:
    headline = content.headline
    return headline.artifact.checks if headline is not None and headline.artifact is not None else ()


def _accuracy(content: Content) -> Any:
    base = content.source_only
    for subject in content.subjects:
        for domain in content.domains:
            score = subject.on(domain)
            if score is None:
                continue
            change = None
            if base is not None and subject is not base and subject.kind not in {"source", "oracle"}:
                change = changed(base.on(domain), score)
            yield _row(subject, domain.role, domain.data, score, change)


def _row(subject: Subject, role: str, data: str, score: Score, change: Comparison | None) -> dict[str, Any]:
    return {
        "model": subject.label,
        "run": str(subject.run.path),
        "kind": subject.kind,
        "role": role,
        "data": data,
        "images": score.images,
        "ap50": score.ap50,
        "ap50_interval": score.interval,
        "ap": score.ap,
        "ap75": score.ap75,
        "classes": {name: one.model_dump() for name, one in score.classes.items()},
        "change": change.model_dump() if change is not None else None,
    }


def _class(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "change": row["change"].model_dump() if row["change"] is not None else None,
        "best": row["best"].model_dump() if row["best"] is not None else None,
    }
