"""The whole way in Python, on scenes that acclimate makes itself: python examples/quickstart.py [FOLDER]

A detector is trained on clear scenes, adapted to foggy ones without their labels, exported for the device and verified
there. What takes seconds here learns little; for a job that does, see examples/fog.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

import acclimate
from acclimate import workflow


def main(folder: Path) -> None:
    console = Console()
    clear = workflow.scenes(folder / "clear", images=60, size=(96, 128), console=console)
    fog = workflow.scenes(folder / "fog", images=60, size=(96, 128), seed=1, condition="fog", console=console)
    site = fog.path.parent / "images"  # what is seen of the target: pictures, no labels

    config = acclimate.Config.model_validate(
        {
            "source": clear,
            "model": {"size": "nano", "image_size": [96, 128]},
            "train": {"steps": 30, "batch_size": 4, "warmup": 5, "ema": 0.9, "checkpoint_every": 15},
            "schedule": {"steps": 10, "batch_size": 4, "warmup": 2, "ema": 0.9, "checkpoint_every": 5},
        }
    )
    source = workflow.train(config, folder / "source", console=console)
    adapted = workflow.adapt(source.path, site, folder / "adapted", console=console)
    for run in (source, adapted):
        workflow.evaluate(run.path, fog, console=console)

    artifact = workflow.export(adapted.path, images=32, console=console)
    budget = acclimate.Budget(latency_ms=200, size_mb=4, max_ap50_drop=0.05)
    verified = workflow.verify(artifact, [(fog, "target_test", "target")], budget, console=console)
    console.print(f"passed: {verified.passed}, {verified.latency.median_ms:.1f} ms, {verified.size_mb:.2f} MB")

    predictor = acclimate.Predictor.load(artifact)
    found = predictor(acclimate.read_image(next(site.glob("*.jpg")))).above(0.1)
    console.print(f"{len(found)} objects in the first picture")
    console.print(f"report: {workflow.report([source.path, adapted.path], folder / 'report.html')}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
