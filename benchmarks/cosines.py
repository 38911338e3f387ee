"""What suppression has to act on: the cosine of each convolution's gradient and weight in an adaptation.

    python benchmarks/adaptation.py --pairs 'raabin->bccd' --seeds 0 --conv depthwise     # trains what this starts from
    python benchmarks/cosines.py

Adapts for a few steps from one laboratory's blood cells to another's, with the backbone's BatchNorm held as the source
training left it, and projects on the whole weight or on each output channel, the gradient or the update. A row a layer
goes into cosines.csv, means over the steps: the |cosine| of gradient and weight, of the update with suppression and of
what it would have been in the same step without, what a direction drawn at random would have, and the share of the
gradient's norm that a projection of it takes away. Channel by channel, a layer's cosine is the mean over its channels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import adaptation
import rows
from acclimate import workflow
from acclimate.config import SuppressionConfig

CSV = Path(__file__).with_suffix(".csv")
PAIR = "raabin->bccd"
STEPS = 8


def measure(form: str, granularity: str) -> None:
    """Adapt with one form and granularity and append its rows."""
    family, _, target = adaptation.PAIRS[PAIR]
    config = adaptation.config(PAIR, 0, "depthwise")
    suppression = SuppressionConfig.model_validate({"form": form, "granularity": granularity})
    schedule = {"steps": STEPS, "warmup": 0, "log_every": 1, "checkpoint_every": STEPS}
    config = config.model_copy(
        update={
            "adapt": config.adapt.model_copy(update={"suppression": suppression, "statistics": "frozen"}),
            "schedule": config.schedule.model_copy(update=schedule),
        }
    )
    start = adaptation.Case(PAIR, 0, "depthwise").start
    with tempfile.TemporaryDirectory() as folder:
        run = workflow.adapt(start, adaptation.target_list(family, target), Path(folder) / "run", config=config)
        steps = [line["suppression"] for line in run.metrics() if "suppression" in line]
    for layer in steps[0]:
        seen = [step[layer] for step in steps]
        removed = statistics.mean(1 - one["suppressed"] / one["gradient"] for one in seen)
        rows.append(
            CSV,
            {
                "form": form,
                "granularity": granularity,
                "layer": layer,
                "cosine": f"{statistics.mean(abs(one['cosine']) for one in seen):.5f}",
                **{
                    key: f"{statistics.mean(abs(one[key]) for one in seen):.5f}"
                    for key in ("update_cosine", "update_cosine_without")
                },
                "chance": f"{seen[0]['chance']:.5f}",
                "removed_percent": f"{100 * removed:.3f}",
                "steps": len(seen),
            },
        )


def summary(form: str, granularity: str) -> str:
    """A row of a Markdown table: medians and maxima over the layers."""
    table = [row for row in rows.read(CSV) if (_form(row), row["granularity"]) == (form, granularity)]
    cosine = [float(row["cosine"]) for row in table]
    ratio = [float(row["cosine"]) / float(row["chance"]) for row in table]
    removed = [float(row["removed_percent"]) for row in table]
    cells = [form, granularity, str(len(table))]
    cells += [f"{of(values):.2g}" for values in (cosine, ratio) for of in (statistics.median, max)]
    cells.append(f"{max(removed):.2g}")
    for key in ("update_cosine_without", "update_cosine"):
        known = [float(row[key]) / float(row["chance"]) for row in table if row.get(key)]
        cells.append(f"{statistics.median(known):.2g}" if known else "-")
    return f"| {' | '.join(cells)} |"


def tables() -> list[str]:
    """The table of docs/benchmarks/cosines.md."""
    names = (
        "form", "projection on", "layers", "cosine, median", "max", "of chance, median", "max", "removed, %, max",
        "update without, of chance", "with",
    )  # fmt: skip
    kinds = dict.fromkeys((_form(row), row["granularity"]) for row in rows.read(CSV))
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(summary(*kind) for kind in kinds)]


def _form(row: dict[str, str]) -> str:
    """Rows that were written when there was one form do not name it."""
    return row.get("form") or "gradient"


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    CSV.unlink(missing_ok=True)
    for form in ("gradient", "update"):
        for granularity in ("tensor", "channel"):
            measure(form, granularity)
    print(*tables(), sep="\n")


if __name__ == "__main__":
    main()
