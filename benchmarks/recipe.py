"""The search for the recipe: ways to train on the source and to adapt, on pairs and a seed that nothing is reported on.

    python benchmarks/recipe.py --pairs home->eindhoven --source adamw --ways last teacher boxes
    python benchmarks/recipe.py --summary

A row of recipe.csv is one training; what is in the CSV is not run again, and runs are taken up where they stopped. The
target's test labels are read here to choose a recipe, which is why adaptation.py reports on other pairs and seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import Config, merge, parse
from acclimate.run import Run, machine

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
SHORT = ("schedule.steps=200", "schedule.checkpoint_every=200")
"""A third of the length, to see in which direction an option goes."""
WAYS: dict[str, tuple[str, ...]] = {
    "source-only": (f"{TEACHER}=none", "augment.style=0"),
    "teacher": (f"{TEACHER}.regression=0",),
    "boxes": (f"{TEACHER}.regression=1",),
    "boxes-constant": (f"{TEACHER}.regression=1", "schedule.decay=constant"),
    "boxes-slow": (f"{TEACHER}.regression=1", "schedule.decay=constant", "schedule.ema=0.998"),
    "boxes-hot": (f"{TEACHER}.regression=1", "schedule.lr=1.5e-3"),
    "boxes-backbone-0.1": (f"{TEACHER}.regression=1", "schedule.backbone_lr=0.1"),
    "boxes-soft": (f"{TEACHER}.regression=1", f"{TEACHER}.soft=1"),
    "soft": (f"{TEACHER}.boxes=0", f"{TEACHER}.soft=5"),
    "boxes-matched": (f"{TEACHER}.regression=1", f"{TEACHER}.threshold=matched"),
    "boxes-target-statistics": (f"{TEACHER}.regression=1", "adapt.statistics=target"),
    "boxes-fourier": (f"{TEACHER}.regression=1", "augment.fourier=0.5", "augment.fourier_beta=0.02"),
    "boxes-no-style": (f"{TEACHER}.regression=1", "augment.style=0"),
    "boxes-domain-statistics": (f"{TEACHER}.regression=1", "adapt.statistics=domain"),
    "boxes-domain-no-style": (f"{TEACHER}.regression=1", "adapt.statistics=domain", "augment.style=0"),
    "boxes-mask": (f"{TEACHER}.regression=1", "augment.mask=0.5"),
    "boxes-large-flipped": (f"{TEACHER}.regression=1", f"{TEACHER}.scale=1.5", f"{TEACHER}.flip=true"),
    "boxes-mix": (f"{TEACHER}.regression=1", f"{TEACHER}.mix=1"),
    "boxes-adaptive": (f"{TEACHER}.regression=1", f"{TEACHER}.threshold=adaptive"),
    "boxes-weather": (f"{TEACHER}.regression=1", "augment.weather=0.5"),
    "boxes-balance": (f"{TEACHER}.regression=1", "augment.balance=target"),
    **{
        f"short-{name}": (*SHORT, *options)
        for name, options in {
            "source-only": (f"{TEACHER}=none", "augment.style=0"),
            "style": (f"{TEACHER}=none",),
            "boxes": (f"{TEACHER}.regression=1",),
            "boxes-doubt-0.05": (f"{TEACHER}.regression=1", f"{TEACHER}.doubt=0.05"),
            "boxes-doubt-0": (f"{TEACHER}.regression=1", f"{TEACHER}.doubt=0"),
            "soft": (f"{TEACHER}.boxes=0", f"{TEACHER}.soft=5"),
            "boxes-half": (f"{TEACHER}.regression=1", f"{TEACHER}.boxes=0.5"),
            "boxes-large": (f"{TEACHER}.regression=1", f"{TEACHER}.scale=1.5", f"{TEACHER}.doubt=0.05"),
        }.items()
    },
    "statistics-alone": (f"{TEACHER}=none", "augment.style=0.5"),
}
"""How it is adapted: overrides of the same."""


def run(pair: str, source: str, way: str, console: Console) -> None:
    """One row: the source detector by `source`, adapted by `way`; every checkpoint is evaluated."""
    known = {(row["pair"], row["source"], row["way"]) for row in rows.read(CSV)}
    if (pair, source, way) in known:
        return
    family, domain, target = adaptation.PAIRS[pair]
    base = adaptation.config(pair, SEED).model_dump(mode="json")
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
            "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else machine()["processor"],
        },
    )


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
