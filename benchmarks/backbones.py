"""Which backbones build, train, export and quantise, and what they compute, appended to backbones.csv.

    python benchmarks/backbones.py
    python benchmarks/backbones.py --backbones res2net50_26w_4s --csv /tmp/mine.csv
    python benchmarks/backbones.py --summary

Each is the backbone of a small one-stage detector with random weights: what can be done with it, not how good it is.
Multiply-accumulates are those of the whole detector at one canvas. A backbone that is in the CSV is not tried again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

import rows
from acclimate.config import ModelConfig
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.models.detector import build, parameters, specify
from acclimate.models.slimmable import macs
from acclimate.structures import Annotations

CSV = Path(__file__).with_suffix(".csv")
BACKBONES = {
    "tf_efficientnet_lite0": "EfficientNet-Lite", "resnet18": "ResNet", "resnet50": "ResNet", "resnet101": "ResNet",
    "resnet152": "ResNet", "resnext50_32x4d": "ResNeXt", "seresnet18": "SE", "skresnet18": "SK",
    "res2net50_26w_4s": "Res2Net", "mobilenetv1_100": "MobileNet v1", "mobilenetv2_100": "MobileNet v2",
    "mobilenetv3_small_100": "MobileNet v3", "mobilenetv4_conv_small": "MobileNet v4",
    "shufflenet_v1_g3": "ShuffleNet v1", "torchvision/shufflenet_v2_x1_0": "ShuffleNet v2",
    "torchvision/squeezenet1_1": "SqueezeNet", "torchvision/resnet18": "ResNet", "lcnet_050": "LCNet",
    "torchvision/mobilenet_v3_small": "MobileNet v3", "legacy_senet154": "SENet", "nasnetalarge": "NASNet-A",
    "pnasnet5large": "PNASNet",
}  # fmt: skip
"""Those of the table -> the family."""
STRIDES = {"torchvision/squeezenet1_1": [4, 8, 16]}
"""Of the levels, where a backbone has none of 32."""
TRIED, COUNTED = 128, 320
"""Sides of the canvas, pixels: what is run, and what multiply-accumulates are counted at."""
IMAGES = 4
"""To calibrate on; enough to see whether it can be done."""
RUNTIMES = ("onnx", "openvino")


def config(name: str, side: int, kind: str = "dense") -> ModelConfig:
    values = {
        "kind": kind, "backbone": name, "weights": "none", "channels": 32, "depth": 1, "image_size": [side, side],
        "strides": STRIDES.get(name, [8, 16, 32]), "conv": "depthwise",
    }  # fmt: skip
    return ModelConfig.model_validate(values)


def attempt(what: Callable[[], object]) -> str:
    """ "yes", or the reason why not in a few words."""
    try:
        what()
    except Exception as error:  # whatever a library raises is the answer
        lines = (str(error) or type(error).__name__).splitlines()
        return f"no: {lines[0][:160]}"
    return "yes"


def pictures(folder: Path) -> list[Path]:
    """Images of coloured rectangles."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(IMAGES):
        image = np.full((TRIED, TRIED, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(12):
            x, y = (int(value) for value in rng.integers(0, TRIED - 32, 2))
            cv2.rectangle(image, (x, y), (x + 32, y + 24), rng.integers(0, 256, 3).tolist(), -1)
        files.append(folder / f"{i}.png")
        cv2.imwrite(str(files[-1]), image)
    return files


def step(name: str) -> None:
    """One step of training, after which every parameter has a finite gradient."""
    detector = build(specify(config(name, TRIED), ["a", "b"])).train()
    box = Annotations(np.float32([[16, 16, 80, 80]]), np.array([0]), np.array([False]))
    features = detector.features(255 * torch.rand(2, 3, TRIED, TRIED))
    sum(detector.losses(features, [box, box]).values()).backward()
    for key, parameter in detector.named_parameters():
        if parameter.grad is None or not torch.isfinite(parameter.grad).all():
            raise AcclimateError(f"no finite gradient of {key}")


def measure(name: str, family: str, file: Path) -> None:
    """The row of one backbone."""
    torch.manual_seed(0)
    with torch.device("meta"):
        counted = build(specify(config(name, COUNTED), ["a", "b"]))
    row = {
        "backbone": name, "family": family, "parameters_m": f"{parameters(counted) / 1e6:.2f}",
        "macs_m_at_320": f"{macs(counted) / 1e6:.0f}", "trains": attempt(lambda: step(name)),
    }  # fmt: skip
    detector = build(specify(config(name, TRIED), ["a", "b"]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = pictures(folder)
        for runtime in RUNTIMES:
            for precision in ("fp32", "int8"):
                place = folder / f"{runtime}-{precision}"
                row[f"{runtime}_{precision}"] = attempt(
                    lambda runtime=runtime, place=place, precision=precision: exporter(runtime).export(
                        detector, place, precision, images
                    )
                )
    with torch.device("meta"):
        row["slimmable"] = attempt(lambda: build(specify(config(name, TRIED, "slimmable"), ["a", "b"])))
    rows.append(file, row)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def table(file: Path = CSV) -> Iterator[str]:
    """A table in Markdown; what cannot be done says why below it."""
    found = rows.read(file)
    if not found:
        yield "No rows yet."
        return
    does = [
        "trains",
        *(f"{runtime}_{precision}" for runtime in RUNTIMES for precision in ("fp32", "int8")),
        "slimmable",
    ]
    names = ["backbone", "family", "parameters (M)", "MACs at 320 (M)", *(one.replace("_", " ") for one in does)]
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    reasons: dict[str, list[str]] = {}
    for row in found:
        cells = [f"`{row['backbone']}`", row["family"], row["parameters_m"], row["macs_m_at_320"]]
        for one in does:
            cells.append("yes" if row[one] == "yes" else "no")
            if row[one] != "yes":
                reasons.setdefault(f"{one.replace('_', ' ')}: {row[one].removeprefix('no: ')}", []).append(
                    row["backbone"]
                )
        yield f"| {' | '.join(cells)} |"
    if reasons:
        yield "\nWhy not:\n"
        for reason, where in reasons.items():
            yield f"- {reason} ({', '.join(f'`{one}`' for one in where)})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="print the table of what is in the CSV")
    options = parser.parse_args(arguments)
    if not options.summary:
        done = {row["backbone"] for row in rows.read(options.csv)}
        for name in options.backbones:
            if name not in done:
                measure(name, BACKBONES.get(name, ""), options.csv)
    print(*table(options.csv), sep="\n")


if __name__ == "__main__":
    main()
