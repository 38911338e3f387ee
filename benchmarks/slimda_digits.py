"""SlimDA where it was published, classification: digits drawn with fonts to digits written by hand, at many widths.

    python benchmarks/slimda_digits.py --networks resnet mobilenet --seeds 0 1 2
    python benchmarks/slimda_digits.py --summary

Needs scikit-learn, which ships the handwriting (1,797 images, 43 writers; the last 500 are kept for the test). What is
compared is in `TRAININGS`; each is measured at 1 to 1/64 of the full network's operations. A width trained alone is one
run and one row of slimda_digits.csv, a bank is one run and a row for each width. What has its rows is not run again.
Labels of handwriting are read by the evaluation alone. What a row holds is in docs/benchmarks/slimda_digits.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import rows
from acclimate import machine
from acclimate.adapt.slim import model_batch
from acclimate.models.slimmable import macs
from classification import Bank, BankOptions, SlimmableClassifier

CSV = Path(__file__).with_suffix(".csv")
CLASSES = 10
SIDE = 16
"""Pixels of the networks' canvas: the 8 x 8 cells of the data set, enlarged."""
SHARES = tuple(2**-i for i in range(7))
"""Of the full network's operations."""
WIDTHS = tuple(sorted(round(math.sqrt(share), 4) for share in SHARES))
"""Operations go with about the square of a width."""
SIZES = {"resnet": 32, "mobilenet": 32}
"""Channels of the first stage; the last has four times as many."""
TEST = 500
SOURCE = 2000
BATCH = 64
MODELS = 4
CLIP = 5.0
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL,
)  # fmt: skip

BANKS = {
    "slimmable": BankOptions(ensemble=0.0, third=False),
    "+ seed": BankOptions(third=False),
    "+ seed + ostc": BankOptions(),
}
"""Trained once for all widths: SymNet over batches of models; with the ensemble; with the ensemble and a classifier of
its own for it."""
TRAININGS = {
    "source-only": ("source-only", "target statistics"),
    "symnet": ("symnet",),
    **{bank: (bank,) for bank in BANKS},
}
"""What is trained -> the methods that it gives rows of. The first two train each width alone; `target statistics` are
the weights of `source-only`, normalised by the target's statistics."""
METHODS = tuple(method for methods in TRAININGS.values() for method in methods)


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, SIDE, SIDE) in 0..1 and their labels (N,)."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: slice | Tensor) -> Digits:
        return Digits(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Domains:
    """What is trained on and what is measured; the labels of `target` are never read."""

    source: Digits
    source_test: Digits
    target: Digits
    target_test: Digits


def domains() -> Domains:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(
            f"benchmarks/slimda_digits.py: {error}; pip install scikit-learn, which ships the digits"
        ) from None
    written = load_digits()
    target = Digits(_enlarged(written.images), torch.from_numpy(written.target).long())
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(SOURCE + TEST) % CLASSES)
    source = Digits(_enlarged(np.stack([_drawn(int(y), rng) for y in labels])), torch.from_numpy(labels).long())
    return Domains(source[:SOURCE], source[SOURCE:], target[:-TEST], target[-TEST:])


def _drawn(label: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A digit in one of OpenCV's fonts, turned, sheared and cut out, as 8 x 8 counts of 0..16.

    The counts are those of the handwriting: ink in 4 x 4 blocks of a bitmap of 32 x 32.
    """
    canvas = np.zeros((96, 96), np.uint8)
    font = FONTS[int(rng.integers(len(FONTS)))]
    cv2.putText(canvas, str(label), (30, 66), font, float(rng.uniform(1.4, 2.2)), 255, int(rng.integers(2, 7)))
    angle, shear, stretch = rng.normal(0, 0.12), rng.normal(0, 0.15), rng.uniform(0.8, 1.25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.array([[stretch, shear], [0.0, 1.0]])
    centre = np.array([48.0, 48.0])
    affine = np.column_stack([linear, centre - linear @ centre])
    canvas = cv2.warpAffine(canvas, affine, (96, 96), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect((canvas > 127).astype(np.uint8))
    side = max(w, h)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - h) // 2, (side - w) // 2
    square[top : top + h, left : left + w] = canvas[y : y + h, x : x + w]
    bitmap = cv2.resize(square, (32, 32), interpolation=cv2.INTER_AREA) > 127
    return bitmap.reshape(8, 4, 8, 4).sum((1, 3)).astype(np.float64)


def _enlarged(counts: NDArray[np.float64]) -> Tensor:
    images = torch.from_numpy(counts).float()[:, None] / 16
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)


def batches(seed: int, step: int, source: Digits, target: Digits) -> tuple[Tensor, Tensor, Tensor]:
    """Source images, their labels, target images of one step."""
    rng = np.random.default_rng([seed, step])
    pick = [torch.from_numpy(rng.integers(len(one.labels), size=BATCH)) for one in (source, target)]
    return source.images[pick[0]], source.labels[pick[0]], target.images[pick[1]]


def train(module: nn.Module, steps: int, lr: float) -> Iterator[int]:
    """Yields each step, whose gradients it then takes: clipping, AdamW, a cosine."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for step in range(steps):
        yield step
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def settle(network: SlimmableClassifier, width: float, images: Tensor) -> None:
    """Take the statistics of a width from images, and leave the network in evaluation mode at this width."""
    network.eval()
    network.set_width(width)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.train()
        part.reset_running_stats()
        part.momentum = None
    with torch.no_grad():
        for some in images.split(256):
            network.features(some)
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
        part.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    model.eval()
    return float((model(data.images).argmax(1) == data.labels).float().mean())


def build(kind: str, seed: int) -> SlimmableClassifier:
    torch.manual_seed(seed)
    return SlimmableClassifier(kind, CLASSES, (SIDE, SIDE), 1, SIZES[kind], choices=WIDTHS, divisor=1)


class Experiment:
    """One network, seed and schedule, and the rows that are there already."""

    def __init__(self, data: Domains, kind: str, seed: int, steps: int, lr: float, file: Path) -> None:
        self.data, self.kind, self.seed, self.steps, self.lr, self.file = data, kind, seed, steps, lr, file
        network = build(kind, seed)
        self.macs = {width: macs(network, width) for width in WIDTHS}
        self.done = {
            (row["method"], row["width"])
            for row in rows.read(file)
            if (row["network"], row["seed"], row["steps"]) == (kind, str(seed), str(steps))
        }

    def run(self, training: str) -> None:
        methods = TRAININGS[training]
        missing = [width for width in reversed(WIDTHS) if any((m, f"{width:g}") not in self.done for m in methods)]
        if training in BANKS:
            if missing:
                self.bank(training)
            return
        for width in missing:
            if training == "symnet":
                self.symnet(width)
            else:
                self.source_only(width)

    def source_only(self, width: float) -> None:
        """Two rows: with the source's statistics, and the same weights with the target's."""
        began = time.process_time()
        network = build(self.kind, self.seed)
        network.set_width(width)
        for step in train(network, self.steps, self.lr):
            images, labels, _ = batches(self.seed, step, self.data.source, self.data.target)
            F.cross_entropy(network(images), labels).backward()
        spent = time.process_time() - began
        for method, images in (
            ("source-only", self.data.source.images),
            ("target statistics", self.data.target.images),
        ):
            settle(network, width, images)
            self.write(method, network, width, spent)

    def symnet(self, width: float) -> None:
        began = time.process_time()
        bank = self.train_bank(BankOptions(ensemble=0.0, third=False), [width])
        spent = time.process_time() - began
        settle(bank.network, width, self.data.target.images)
        self.write("symnet", bank, width, spent)

    def bank(self, method: str) -> None:
        began = time.process_time()
        bank = self.train_bank(BANKS[method], None)
        spent = time.process_time() - began
        for width in reversed(WIDTHS):
            settle(bank.network, width, self.data.target.images)
            self.write(method, bank, width, spent)

    def train_bank(self, options: BankOptions, widths: Sequence[float] | None) -> Bank:
        """Over these widths in every step, or over batches of models."""
        network = build(self.kind, self.seed)
        bank = Bank(network, network.classify.in_features, CLASSES, options)
        for step in train(bank, self.steps, self.lr):
            drawn = model_batch(WIDTHS, len(network.stages), MODELS, self.seed, step, each_stage=False)
            models = [(width,) * len(network.stages) for width in widths] if widths is not None else drawn
            step_batch = batches(self.seed, step, self.data.source, self.data.target)
            losses = bank.losses(*step_batch, models, step / self.steps)
            sum(losses.values()).backward()
        return bank

    def write(self, method: str, model: nn.Module, width: float, train_s: float) -> None:
        """A row, unless it is there from a run that was stopped between two of them."""
        if (method, f"{width:g}") in self.done:
            return
        row = {
            "network": self.kind,
            "method": method,
            "seed": self.seed,
            "width": f"{width:g}",
            "macs_k": round(self.macs[width] / 1e3, 1),
            "share": f"{self.macs[width] / self.macs[1.0]:.4f}",
            "target_accuracy": f"{accuracy(model, self.data.target_test):.4f}",
            "source_accuracy": f"{accuracy(model, self.data.source_test):.4f}",
            "steps": self.steps,
            "train_cpu_s": f"{train_s:.1f}",
            "processor": machine.facts()["processor"],
            "torch": torch.__version__,
        }
        rows.append(self.file, row)
        print({key: row[key] for key in list(row)[:8]}, flush=True)


def summary(file: Path) -> Iterator[str]:
    """A table in Markdown for each network: accuracy on handwriting in percent, mean over seeds."""
    found = rows.read(file)
    for i, network in enumerate(dict.fromkeys(row["network"] for row in found)):
        if i:
            yield ""
        mine = [row for row in found if row["network"] == network]
        shares = dict.fromkeys(row["share"] for row in sorted(mine, key=lambda row: -float(row["share"])))
        yield f"| {network} | {' | '.join(shares)} | training, s |"
        yield "|---" * (len(shares) + 2) + "|"
        for method in METHODS:
            cells = []
            for share in shares:
                here = [float(r["target_accuracy"]) for r in mine if (r["method"], r["share"]) == (method, share)]
                cells.append(f"{100 * statistics.mean(here):.1f}" if here else "")
            once = {(row["seed"], row["width"]): float(row["train_cpu_s"]) for row in mine if row["method"] == method}
            seeds = {seed for seed, _ in once}
            spent = [
                (max if method in BANKS else sum)(value for (own, _), value in once.items() if own == seed)
                for seed in seeds
            ]
            if spent:
                yield f"| {method} | " + " | ".join(cells) + f" | {statistics.mean(spent):.0f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="print the rows as tables and run nothing")
    options = parser.parse_args(arguments)
    if options.summary:
        print(*summary(options.csv), sep="\n")
        return
    torch.set_num_threads(1)
    data = domains()
    for seed in options.seeds:
        for network in options.networks:
            experiment = Experiment(data, network, seed, options.steps, options.lr, options.csv)
            for training in options.trainings:
                experiment.run(training)


if __name__ == "__main__":
    main()
