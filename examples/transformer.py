"""From a transformer to the edge: python examples/transformer.py CHECKPOINT [FOLDER] [--small]

CHECKPOINT is a folder, or a name on the hub, of a real-time transformer (RT-DETR, D-FINE, LW-DETR, ...). It learns the
scenes' classes on clear ones, those that it knows by name from where it is. Then it is adapted to foggy scenes without
their labels and teaches a convolutional student, and both are exported in INT8 and measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import acclimate
from acclimate import workflow


def main(checkpoint: str, folder: Path, small: bool) -> None:
    console = Console()
    size, images = ((64, 64), 12) if small else ((320, 320), 300)
    clear = workflow.scenes(folder / "clear", images, size, console=console)
    fog = workflow.scenes(folder / "fog", images, size, seed=20_000, condition="fog", console=console)
    test = workflow.scenes(folder / "fog-test", images // 3, size, seed=40_000, condition="fog", console=console)
    site = fog.path.parent / "images"  # what is seen of the target: pictures, no labels

    common: dict[str, Any] = {"batch_size": 4, "warmup": 1 if small else 50, "checkpoint_every": 2 if small else 100}
    config = acclimate.Config.model_validate(
        {
            "source": clear,
            "model": {"kind": "transformers", "image_size": size, "transformers": {"checkpoint": checkpoint}},
            # Fine-tuning, in small steps: the checkpoint has learnt to see.
            "train": {**common, "steps": 2 if small else 1000, "lr": 1e-4, "backbone_lr": 0.1},
            "schedule": {**common, "steps": 2 if small else 300, "lr": 5e-5, "backbone_lr": 0.1},
        }
    )
    source = workflow.train(config, folder / "source", console=console)
    teacher = workflow.adapt(source.path, site, folder / "teacher", console=console)
    # The student starts from ImageNet, so it takes larger steps.
    steps = ("train.steps=2",) if small else ("train.steps=2000", "train.lr=1e-3", "train.backbone_lr=1")
    student = workflow.distil(teacher.path, "tiny", folder / "student", steps, target=site, console=console)

    table = Table("detector", "AP50 fp32", "AP50 INT8", "INT8, ms", "INT8, MB", box=None)
    for run in (teacher, student):
        artifact = workflow.export(run.path, precision="int8", calibration=site, console=console)
        verified = workflow.verify(artifact, [(test, "target_test", "target")], console=console)
        accuracy = verified.accuracy["target_test"]
        table.add_row(
            run.path.name, f"{accuracy.eager_ap50 or 0:.3f}", f"{accuracy.artifact_ap50:.3f}",
            f"{verified.latency.median_ms:.1f}", f"{verified.size_mb:.1f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    given = [text for text in sys.argv[1:] if not text.startswith("--")]
    if not given:
        raise SystemExit(__doc__)
    main(given[0], Path(given[1] if len(given) > 1 else "runs/transformer"), "--small" in sys.argv)
