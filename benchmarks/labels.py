"""What a few labelled frames of the target buy, and whether it matters which: rows of labels.csv.

    python benchmarks/labels.py --pairs "raabin->bccd" --seeds 0
    python benchmarks/labels.py --summary

One source training a pair and seed, then one training a row, each of the same number of steps and from the same start.
The frames that a way asks for get the labels that the target's training part has, and go through `adapt --labelled` as
an annotated set would. Source-only is 0 frames, and what can be had is all of them. Rows that tell most come first. A
row that is in the CSV is not made again; processes with different pairs may write at once.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

import adaptation
import rows
from acclimate import workflow
from acclimate.adapt.engine import checkpoints
from acclimate.config import AdaptConfig, Config, DataConfig, LabelledConfig, ScheduleConfig, TeacherConfig
from acclimate.data import formats
from acclimate.data.compare import domain
from acclimate.data.write import write
from acclimate.evaluate import evaluate_detector
from acclimate.models import detector as models
from acclimate.run import Run
from acclimate.select import ask
from acclimate.select.ask.seen import Seen, distinct, look

HERE = Path(__file__).parent
CSV = HERE / "labels.csv"
RUNS = HERE.parent / "runs" / "labels"
SIZES = {"scenes": (128, 160), "robocup": (192, 192), "blood": (128, 128), "thermal": (160, 192)}
"""Canvases, as small as adaptation.py's or smaller: two dozen trainings a pair and seed have to fit."""
PAIRS = ("generated clear->fog", "raabin->bccd", "night->day")
SOURCE_STEPS = 800
STEPS = 400
"""Of each row's training, whatever is labelled."""
SHARE = 0.5
"""Labelled frames of a batch, as a part of its size."""
SHARES = (0.25, 1.0)
"""Others that are tried."""
MATCHING = 0.1
"""Weight of the features' moments where they stand in for the source."""
TEST_IMAGES = 80
ALL = "all"


class Key(NamedTuple):
    """What tells a row from the others of a pair and seed.

    Attributes:
        frames: how many are labelled, or `ALL`.
        way: how they were chosen; empty where there is no choice.
        rest: what the frames without labels are for: "unused", or "teacher".
        share: see `SHARE`.
        source: "kept" beside the target, or "gone": the run and the target are all that there is. "matched" is gone
            too, and the target's features are drawn to the moments that the run keeps of its source's.
    """

    frames: str
    way: str = ""
    rest: str = "unused"
    share: float = SHARE
    source: str = "kept"


OTHERS = tuple(way for way in ask.WAYS if way not in {ask.DEFAULT, "random"})
STAGES: tuple[tuple[Key, ...], ...] = (
    (Key("0"), Key("8", "random"), Key("8", ask.DEFAULT), Key(ALL)),
    tuple(Key(count, way) for count in ("16", "4", "32") for way in ("random", ask.DEFAULT)),
    tuple(Key("8", way) for way in OTHERS),
    (
        Key("0", rest="teacher"),
        *(Key(count, ask.DEFAULT, "teacher") for count in ("8", "16")),
        Key("8", "random", "teacher"),
    ),
    (
        *(Key(count, ask.DEFAULT, source="gone") for count in ("8", "16")),
        Key(ALL, source="gone"),
        *(Key("0", rest="teacher", source=source) for source in ("gone", "matched")),
    ),
    tuple(Key("8", "random", share=share) for share in SHARES),
)
"""The rows in the order in which they are made, the most telling ones first."""


@dataclass(frozen=True)
class Trial:
    """One pair and seed: the source detector, and what the ways of asking see of the target."""

    pair: str
    seed: int
    console: Console

    @property
    def family(self) -> str:
        return adaptation.PAIRS[self.pair][0]

    @property
    def domains(self) -> tuple[str, str]:
        return adaptation.PAIRS[self.pair][1:]

    @property
    def start(self) -> Path:
        return RUNS / f"{self.family}-{self.domains[0]}-{self.seed}"

    @cached_property
    def source(self) -> Run:
        if self.family == "scenes":
            adaptation.generate(self.console)
        return workflow.train(config(self.pair, self.seed), self.start, console=self.console)

    @cached_property
    def target(self) -> formats.LabelledSet:
        """The target's training images with their labels: what a person would draw."""
        classes = models.specification(self.source.path).classes
        return formats.read(adaptation.data(self.family, self.domains[1], "train"), classes)

    @cached_property
    def seen(self) -> Seen:
        """The frames as `acclimate ask` sees them."""
        detector = models.to_device(models.load(self.source.path))
        looks = domain("target", "target", formats.UnlabelledSet(self.target.paths), detector.spec.image_size).looks
        left, _ = distinct(looks, {})
        settings = config(self.pair, self.seed)
        assert settings.source is not None
        source = formats.read(settings.source, detector.spec.classes)
        return look(detector, left, settings.augment, self.seed, source)

    def labelled(self, key: Key) -> DataConfig | None:
        """A COCO set of the frames that the way asks for, as an annotation tool would export it."""
        if key.frames == "0":
            return None
        folder = RUNS / "labelled" / f"{self.family}-{self.domains[1]}-{key.way or 'every'}-{key.frames}-{self.seed}"
        if not (folder / "annotations.json").is_file():
            images = self.target.images
            if key.frames != ALL:
                choices = ask.choose(key.way, self.seen, int(key.frames))
                chosen = {self.seen.paths[choice.index] for choice in choices}
                images = tuple(image for image in images if image.path in chosen)
            shutil.rmtree(folder, ignore_errors=True)
            write(formats.LabelledSet("labelled", "coco", self.target.classes, images), "coco", folder)
        return DataConfig(path=folder)

    def run(self, key: Key) -> None:
        """Train one row and write it down."""
        settings, start = config(self.pair, self.seed), self.source.path
        labelled = self.labelled(key)
        teacher = key.rest == "teacher"
        gone = {"source": None} if key.source != "kept" else {}
        settings = settings.model_copy(
            update={
                **gone,
                "adapt": AdaptConfig(
                    matching=MATCHING if key.source == "matched" else 0.0,
                    teacher=TeacherConfig() if teacher else None,
                    labelled=LabelledConfig(share=key.share) if labelled is not None else None,
                ),
                # The target's colours are something of the frames without labels too.
                "augment": settings.augment if teacher else settings.augment.model_copy(update={"style": 0.0}),
            }
        )
        source_only = labelled is None and not teacher
        images = adaptation.target_list(self.family, self.domains[0 if source_only else 1], RUNS)
        name = f"{self.family}-{'-'.join(self.domains)}-{'-'.join(str(part) for part in key if part)}-{self.seed}"
        run = workflow.adapt(start, images, RUNS / name, labelled=labelled, config=settings, console=self.console)
        self.record(key, run)
        # The row is all that is asked of it, and there are many.
        shutil.rmtree(run.path)

    def record(self, key: Key, run: Run) -> None:
        """The last checkpoint, as it is for all rows; the choice without labels stands beside it."""
        files = checkpoints(run)
        weights = files[max(files)] if files else None
        detector = models.to_device(models.load(run.path, weights))
        scores = []
        for role, place in (("target", self.domains[1]), ("source", self.domains[0])):
            truth = adaptation.test_images(self.family, place, detector.spec.classes, TEST_IMAGES)
            scores.append(evaluate_detector(detector, truth, place, role))
        target, source = scores
        counts = self.source.manifest.notes.class_boxes
        shared = [
            score.ap50
            for name, score in target.classes.items()
            if counts.get(name, 0) >= adaptation.FEW and score.ap50 is not None
        ]
        told = run.manifest.notes.labelled
        selection = run.selection()
        rows.append(
            CSV,
            {
                "pair": self.pair,
                "seed": self.seed,
                **key._asdict(),
                "labelled_images": told.images or 0 if told is not None else 0,
                "labelled_boxes": told.boxes or 0 if told is not None else 0,
                "target_images": len(self.target),
                "target_ap50": f"{target.ap50:.4f}",
                "target_ap": f"{target.ap:.4f}",
                "target_ap50_shared": f"{statistics.mean(shared):.4f}",
                "source_ap50": f"{source.ap50:.4f}",
                "classes": " ".join(f"{n}={c.ap50:.3f}" for n, c in target.classes.items() if c.ap50 is not None),
                "chosen_step": selection.chosen_step if selection else "",
                "image_size": "x".join(map(str, detector.spec.image_size)),
                "source_steps": config(self.pair, self.seed).train.steps,
                "steps": config(self.pair, self.seed).schedule.steps,
                "batch": config(self.pair, self.seed).schedule.batch_size,
                "test_images": target.images,
                "minutes": f"{run.manifest.seconds / 60:.1f}",
                "processor": models.device_name(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
        )


def config(pair: str, seed: int) -> Config:
    """adaptation.py's, on a smaller canvas and with shorter schedules."""
    settings = adaptation.config(pair, seed)
    shorter = settings.model.model_copy(update={"image_size": SIZES[adaptation.PAIRS[pair][0]]})
    train = settings.train.model_copy(update={"steps": SOURCE_STEPS, "checkpoint_every": SOURCE_STEPS})
    schedule: ScheduleConfig = settings.schedule.model_copy(
        update={"steps": STEPS, "checkpoint_every": STEPS, "warmup": min(20, STEPS)}
    )
    return settings.model_copy(update={"model": shorter, "train": train, "schedule": schedule, "oracle": None})


def known() -> dict[tuple[str, str], dict[Key, dict[str, str]]]:
    """The rows of the CSV by pair and seed."""
    found: dict[tuple[str, str], dict[Key, dict[str, str]]] = {}
    for row in rows.read(CSV):
        key = Key(row["frames"], row["way"], row["rest"], float(row["share"]), row["source"])
        found.setdefault((row["pair"], row["seed"]), {})[key] = row
    return found


def run_all(pairs: Sequence[str], seeds: Sequence[int], console: Console) -> None:
    """Every row that is missing: stage by stage for all pairs with the first seed, then with the next."""
    for seed in seeds:
        trials = [Trial(pair, seed, console) for pair in pairs]
        for stage in STAGES:
            for trial in trials:
                for key in stage:
                    if key not in known().get((trial.pair, str(seed)), {}):
                        trial.run(key)


class Table(NamedTuple):
    """The CSV's rows by pair and seed, seen by one of its measures."""

    column: str
    by_run: dict[tuple[str, str], dict[Key, dict[str, str]]]

    def more(self, one: Key, other: Key) -> dict[str, list[float]]:
        """Paired differences: what `one` has more than `other`, by pair, of every seed that has both."""
        found: dict[str, list[float]] = {}
        for (pair, _), by_key in sorted(self.by_run.items()):
            if one in by_key and other in by_key:
                gain = float(by_key[one][self.column]) - float(by_key[other][self.column])
                found.setdefault(pair, []).append(gain)
        return found

    def shares(self, key: Key) -> dict[str, float]:
        """Of the gap from no labelled frame to all of them, by pair; without the pairs that have none."""
        gaps = self.more(Key(ALL), Key("0"))
        gains = self.more(key, Key("0"))
        return {
            pair: statistics.mean(values) / gap
            for pair, values in gains.items()
            if pair in gaps and (gap := statistics.mean(gaps[pair])) >= adaptation.NO_GAP
        }


COUNTS = ("4", "8", "16", "32")


def curve(table: Table) -> Iterator[str]:
    """Gain over source-only and the share of the gap to all frames, by pair, number of frames and way."""
    yield "| pair | seeds | frames | chosen by | AP50 | more than source-only | of the gap | source AP50 |"
    yield "|---|---|---|---|---|---|---|---|"
    for pair in dict.fromkeys(pair for pair, _ in table.by_run):
        for key in (Key("0"), *(Key(n, way) for n in COUNTS for way in ask.WAYS), Key(ALL)):
            own = [by_key[key] for (one, _), by_key in table.by_run.items() if one == pair and key in by_key]
            if not own:
                continue
            gains = table.more(key, Key("0")).get(pair, []) if key.frames != "0" else []
            share = table.shares(key).get(pair) if gains else None
            points, source = (
                f"{100 * statistics.mean(float(row[name]) for row in own):.1f}"
                for name in (table.column, "source_ap50")
            )
            yield (
                f"| {pair} | {len(own)} | {key.frames} | {key.way or '-'} | {points} "
                f"| {adaptation.mean_and_interval(gains) if gains else '-'} "
                f"| {'-' if share is None else f'{100 * share:.0f} %'} | {source} |"
            )
    for count in COUNTS:
        shares = {way: table.shares(Key(count, way)) for way in ("random", ask.DEFAULT)}
        told = [f"{way} {100 * statistics.mean(by.values()):.0f} %" for way, by in shares.items() if by]
        if told:
            yield f"\nShare of the gap that {count} frames close, mean over the pairs that have one: {', '.join(told)}."


def differences(table: Table) -> Iterator[str]:
    """Paired differences over pairs and seeds, with 95 % intervals by Student's t."""
    yield "| difference | frames | by pair | over all | rows |"
    yield "|---|---|---|---|---|"
    lines: list[tuple[str, Key, Key]] = [
        *((f"{ask.DEFAULT} - random", Key(n, ask.DEFAULT), Key(n, "random")) for n in COUNTS),
        *((f"{way} - random", Key("8", way), Key("8", "random")) for way in OTHERS),
        *(
            (f"{way or 'no frame'}: teacher on the rest - none", Key(n, way, "teacher"), Key(n, way))
            for n, way in (("0", ""), ("8", "random"), ("8", ask.DEFAULT), ("16", ask.DEFAULT))
        ),
        *(
            ("source gone - kept", Key(n, way, source="gone"), Key(n, way))
            for n, way in (("8", ask.DEFAULT), ("16", ask.DEFAULT), (ALL, ""))
        ),
        *(
            (f"teacher, source {source} - no adaptation", Key("0", rest="teacher", source=source), Key("0"))
            for source in ("gone", "matched")
        ),
        *((f"share {one:g} - {SHARE:g}", Key("8", "random", share=one), Key("8", "random")) for one in SHARES),
    ]
    for name, one, other in lines:
        more = table.more(one, other)
        if more:
            everywhere = [value for values in more.values() for value in values]
            parts = ", ".join(f"{pair} {adaptation.mean_and_interval(values)}" for pair, values in more.items())
            yield (
                f"| {name} | {one.frames} | {parts} | {adaptation.mean_and_interval(everywhere)} | {len(everywhere)} |"
            )


def summary() -> Iterator[str]:
    """The tables of the page: over all classes, and over those that the source can teach."""
    for column, which in (
        ("target_ap50", "all classes"),
        ("target_ap50_shared", f"the classes with at least {adaptation.FEW} boxes in the source"),
    ):
        table = Table(column, known())
        yield f"\nAP50 on the target's test images in points, mean over {which}:\n"
        yield from curve(table)
        yield "\nPaired differences between rows of the same pair and seed, in points, and their 95 % intervals:\n"
        yield from differences(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(adaptation.PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true", help="print the tables of what is in the CSV")
    options = parser.parse_args(arguments)
    if options.summary:
        print(*summary(), sep="\n")
        return
    torch.set_num_threads(options.threads)
    run_all(options.pairs, options.seeds, Console())


if __name__ == "__main__":
    main()
