"""The whole loop, on scenes that acclimate makes itself: python examples/loop.py [FOLDER] [--small]

A bank of detectors is trained on labelled scenes from a pole and goes over to a site whose camera looks through a
windscreen, in clear weather. The width that fits the site's budget goes there as a package. Then fog comes: the device
says so and collects frames, the frames come home, the detector goes over to them, and what was won is measured. Labels
of the site are read to measure alone. docs/loop.md walks through it. With --small it takes about a minute and learns
nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

import acclimate
from acclimate import workflow
from acclimate.edge.watch import watch

SIZE, FIELD_OF_VIEW = (128, 160), 30.0
DEMO: dict[str, Any] = {
    "model": {
        "kind": "slimmable",
        "backbone": "tf_efficientnet_lite0",  # its ImageNet weights come as a package
        "image_size": list(SIZE),
        "channels": 48,
        "depth": 1,
        "slimmable": {"choices": [0.5, 0.75, 1.0], "models": 2},
    },
    "train": {"steps": 400, "batch_size": 4, "lr": 3e-3, "warmup": 20, "ema": 0.99, "checkpoint_every": 400},
    "schedule": {"steps": 150, "batch_size": 4, "lr": 1e-3, "warmup": 10, "ema": 0.98, "checkpoint_every": 50},
    "adapt": {"slim": {"models": 2}},
}
QUICK = {"steps": 4, "batch_size": 2, "warmup": 1, "ema": 0.9, "checkpoint_every": 2, "workers": 0}
SMALL: dict[str, Any] = {
    "model": {
        "kind": "slimmable",
        "size": "nano",
        "backbone": "lcnet_050",
        "weights": "none",
        "image_size": [64, 96],
        "slimmable": {"choices": [0.5, 1.0], "models": 2},
    },
    "train": QUICK,
    "schedule": QUICK,
    "adapt": {"slim": {"models": 2}},
    "export": {"calibration_images": 8},
}
DAYS = ((60, None, 1.0), (30, "fog", 0.4), (100, "fog", 1.0))
"""Frames, weather and its strength: what the device sees, one after the other."""


def main(folder: Path, small: bool) -> None:
    console = Console(soft_wrap=True)
    size, images, tests = ((96, 128), 16, 4) if small else (SIZE, 300, 100)

    def scenes(name: str, count: int, seed: int, condition: str | None = None, strength: float = 1.0) -> Path:
        place, view = folder / "scenes" / name, {} if small else {"field_of_view": FIELD_OF_VIEW}
        return workflow.scenes(place, count, size, seed, condition, strength, **view, console=console).path.parent

    # At the desk: labels of another camera, pictures of the site.
    labelled, site = scenes("pole", images, 0, "camera"), scenes("clear", images, 1) / "images"
    config = acclimate.Config.model_validate({"source": {"path": labelled}, **(SMALL if small else DEMO)})
    source = workflow.train(config, folder / "source", console=console)
    bank = workflow.slim(source.path, site, folder / "bank", console=console)
    budget = acclimate.Budget(macs_m=5 if small else 115)
    found = workflow.search(bank.path, site, {"": budget}, folder / "clear", evaluations=8, console=console)
    if found.missed:
        raise SystemExit("; ".join(found.missed.values()))
    clear = found.found[""]
    workflow.package(clear.artifacts()[0], folder / "site.zip", console=console)

    # On the device: a camera writes frames into a folder, and fog comes.
    frames, watched = folder / "frames", folder / "watched"
    frames.mkdir(exist_ok=True)
    for day, (count, condition, strength) in enumerate(DAYS):
        seen = scenes(f"day-{day}", count // 10 if small else count, 10 + day, condition, strength)
        for picture in sorted((seen / "images").glob("*.jpg")):
            if not (frames / f"{day}-{picture.name}").exists():
                shutil.copy(picture, frames / f"{day}-{picture.name}")
    watch(folder / "site.zip", str(frames), watched, once=True, page=False, keep=60, console=console)
    told(watched, console)
    events = [json.loads(line) for line in (watched / "events.jsonl").read_text().splitlines()]
    for alarm in (event for event in events if event["event"] == "alarm"):
        moved = ", ".join(list(alarm["moved"])[:3])
        console.print(f"alarm at frame {alarm['frame']}: what differs most is {moved}", highlight=False)

    # At the desk again: the collected frames are the target.
    weather = ["augment.weather=0.5"]
    fog = workflow.adapt(clear.path, watched / "collected", folder / "fog", weather, console=console)
    workflow.export(fog.path, console=console)
    again = folder / "watched-again"
    watch(fog.artifacts()[0], str(frames), again, once=True, page=False, keep=60, console=console)
    told(again, console)
    # The fair comparison: as much further training, without the frames.
    alone = ["adapt.teacher=none", "augment.style=0"]
    longer = workflow.adapt(clear.path, watched / "collected", folder / "longer", alone, console=console)

    # What was won? Labelled scenes of the fog and of the clear site.
    sets: list[tuple[acclimate.DataConfig, str, workflow.Role]] = [
        (acclimate.DataConfig(path=scenes("fog-test", tests, 3, "fog")), "target_test", "target"),
        (acclimate.DataConfig(path=scenes("clear-test", tests, 2)), "source_test", "source"),
    ]
    for data, name, role in sets:
        workflow.evaluate(source.path, data, name, role, console=console)
        workflow.evaluate(longer.path, data, name, role, console=console)
    workflow.verify_all([clear.path, fog.path], sets, budget, console=console)
    workflow.leaderboard([clear.path, fog.path], sort="ap50", console=console)
    console.print(f"report: {workflow.report([source.path, clear.path, fog.path], folder / 'report.html')}")


def told(watched: Path, console: Console) -> None:
    """Print what each part of the stream looked like to the device, and how much of it was kept."""
    lines = [json.loads(line) for line in (watched / "detections.jsonl").read_text().splitlines()]
    # A kept frame is named after the moment it was taken. Its line tells that to the millisecond, 17 digits, which two
    # frames may now and then share.
    kept = {digits(path.name)[:17] for path in (watched / "collected").glob("*.jpg")}
    for day, (_, condition, strength) in enumerate(DAYS):
        seen = [line for line in lines if line["file"].startswith(f"{day}-")]
        scores = [line["drift"] for line in seen if line["drift"] is not None]
        boxes = statistics.mean(len(line["detections"]) for line in seen)
        stayed = sum(digits(line["time"]) in kept for line in seen)
        weather = f"{condition} {strength:g}" if condition else "clear"
        drift = f"{statistics.median(scores):.1f}" if scores else "-"
        console.print(
            f"{weather}: {len(seen)} frames, drift score {drift}, {boxes:.1f} boxes a frame, {stayed} kept",
            highlight=False,
        )


def digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, adapt, search, package, watch, and adapt again to the fog.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/loop"))
    parser.add_argument("--small", action="store_true", help="about a minute, and nothing learnt")
    given = parser.parse_args()
    main(given.folder, given.small)
