"""The search for the recipe: ways to train on the source and to adapt, on pairs and a seed that nothing is reported on.

    python benchmarks/recipe.py --pairs "home->eindhoven" --sources adamw --ways source-only boxes sure

A row of recipe.csv is one training; what is in the CSV is not run again, and runs are taken up where they stopped. The
target's test labels are read here to choose a recipe, which is why adaptation.py reports on other pairs and seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import Config, merge, parse
from acclimate.models import detector as models
from acclimate.run import Run

HERE = Path(__file__).parent
CSV = HERE / "recipe.csv"
RUNS = HERE.parent / "runs" / "recipe"
SEED = 9

SOURCES: dict[str, tuple[str, ...]] = {
    "adamw": (),
    "adamw-backbone-0.3": ("train.backbone_lr=0.3",),
    "adamw-backbone-0.1": ("train.backbone_lr=0.1",),
    "sgd": ("train.optimizer=sgd", "train.lr=0.02", "train.weight_decay=1e-4"),
    "frozen": ("model.norm=frozen", "model.freeze=2"),
}
"""How the source detector is trained: overrides of `adaptation.config`."""

TEACHER = "adapt.teacher"
BOXES = (f"{TEACHER}.regression=1", f"{TEACHER}.doubt=0.2")
"""What the other ways are changes of. With a doubt of 0.2 what the teacher hardly sees is background."""
SURE = (f"{TEACHER}.regression=1", f"{TEACHER}.doubt=0")
"""Only what the teacher does not show at all is background."""
SHORT = ("schedule.steps=200", "schedule.checkpoint_every=200")
"""A third of the length, to see in which direction an option goes."""
WAYS: dict[str, tuple[str, ...]] = {
    "source-only": (f"{TEACHER}=none", "augment.style=0"),
    "scores": (f"{TEACHER}.regression=0", f"{TEACHER}.doubt=0.2"),
    "boxes": BOXES,
    "boxes-domain-no-style": (*BOXES, "adapt.statistics=domain", "augment.style=0"),
    "short-source-only": (*SHORT, f"{TEACHER}=none", "augment.style=0"),
    "short-boxes": (*SHORT, *BOXES),
    "short-boxes-doubt-0": (*SHORT, *SURE),
    "sure": SURE,
    "sure-half": (*SURE, f"{TEACHER}.boxes=0.5"),
    "sure-no-style": (*SURE, "augment.style=0"),
    "sure-fourier": (*SURE, "augment.fourier=0.5"),
    "sure-hot": (*SURE, "schedule.lr=1.5e-3"),
    "sure-constant": (*SURE, "schedule.decay=constant", "schedule.ema=0.998"),
    "sure-backbone-0.1": (*SURE, "schedule.backbone_lr=0.1"),
    "sure-soft": (*SURE, f"{TEACHER}.soft=1"),
    "sure-adaptive": (*SURE, f"{TEACHER}.threshold=adaptive"),
    "sure-matched": (*SURE, f"{TEACHER}.threshold=matched"),
    "sure-large-flipped": (*SURE, f"{TEACHER}.scale=1.5", f"{TEACHER}.flip=true"),
    "sure-mask": (*SURE, "augment.mask=0.5"),
    "sure-mix": (*SURE, f"{TEACHER}.mix=1"),
    "sure-weather": (*SURE, "augment.weather=0.5"),
    "sure-balance": (*SURE, "augment.balance=target"),
    "sure-domain-statistics": (*SURE, "adapt.statistics=domain"),
    "sure-target-statistics": (*SURE, "adapt.statistics=target"),
}
"""How it is adapted: overrides of the same."""


def run(pair: str, source: str, way: str, console: Console) -> None:
    """One row: the source detector by `source`, adapted by `way`; every checkpoint is evaluated."""
    known = {(row["pair"], row["source"], row["way"]) for row in rows.read(CSV)}
    if (pair, source, way) in known:
        return
    family, domain, target = adaptation.PAIRS[pair]
    base = adaptation.config(pair, SEED, "depthwise").model_dump(mode="json")
    first = parse(Config, merge(base, SOURCES[source]), where=source)
    start = RUNS / f"{family}-{domain}-{source}"
    trained = workflow.train(first, start, console=console)
    if way == "none":
        record(pair, source, way, trained, [(first.train.steps, None)])
        return
    settings = parse(Config, merge(base, [*SOURCES[source], *WAYS[way]]), where=f"{source} {way}")
    images = adaptation.target_list(family, domain if way == "source-only" else target, RUNS)
    adapted = workflow.adapt(start, images, RUNS / f"{pair}-{source}-{way}", config=settings, console=console)
    record(pair, source, way, adapted, [(step, file) for step, file in checkpoints(adapted).items()])


def record(pair: str, source: str, way: str, run: Run, files: Sequence[tuple[int, Path | None]]) -> None:
    """AP50 on the target's test images at every checkpoint, and on the source's at the last."""
    found: list[tuple[int, float]] = []
    last: tuple[Any, Any] | None = None
    for step, file in files:
        last = adaptation.evaluate(run, pair, file, source=step == files[-1][0])
        found.append((step, last[0].ap50))
    assert last is not None
    metrics = run.metrics()
    selection = run.selection()
    rows.append(
        CSV,
        {
            "pair": pair,
            "source": source,
            "way": way,
            "target_ap50": f"{last[0].ap50:.4f}",
            "target_ap": f"{last[0].ap:.4f}",
            "source_ap50": f"{last[1].ap50:.4f}",
            "by_step": " ".join(f"{step}={value:.4f}" for step, value in found),
            "chosen_step": selection.chosen_step if selection else "",
            "classes": " ".join(f"{n}={c.ap50:.3f}" for n, c in last[0].classes.items() if c.ap50 is not None),
            "dead_channels": metrics[-1].get("dead_channels", ""),
            "update_ratio": metrics[-1].get("update_ratio", ""),
            "minutes": f"{run.manifest.seconds / 60:.1f}",
            "processor": models.device_name(),
        },
    )


def tables() -> Iterator[str]:
    """In Markdown: the ways to train the source, and the ways to adapt, one seed each."""
    found = rows.read(CSV)
    yield "| source | trained by | source AP50 | target AP50 | dead channels | update over weight |"
    yield "|---|---|---|---|---|---|"
    for row in found:
        if row["way"] == "none":
            dead, moved = float(row["dead_channels"]), float(row["update_ratio"])
            yield (
                f"| {row['pair']} | {row['source']} | {_points(row['source_ap50'])} | {_points(row['target_ap50'])} "
                f"| {100 * dead:.0f} % | {moved:.1e} |"
            )
    yield "\n| pair | way | target AP50 by step | source AP50 | dead channels |"
    yield "|---|---|---|---|---|"
    for row in found:
        if row["way"] != "none":
            steps = ", ".join(
                f"{step}: {_points(ap)}" for step, ap in (part.split("=") for part in row["by_step"].split())
            )
            yield (
                f"| {row['pair']} | {row['way']} | {steps} | {_points(row['source_ap50'])} "
                f"| {100 * float(row['dead_channels']):.0f} % |"
            )


def _points(share: str) -> str:
    return f"{100 * float(share):.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", required=True, choices=list(adaptation.PAIRS))
    parser.add_argument("--sources", nargs="+", default=["adamw"], choices=list(SOURCES))
    parser.add_argument("--ways", nargs="+", default=["none"], choices=["none", *WAYS])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    for pair in options.pairs:
        for source in options.sources:
            for way in options.ways:
                run(pair, source, way, console)


if __name__ == "__main__":
    main()
