"""What INT8 loses by what it is calibrated on, on the detectors of adaptation.py, appended to quantisation.csv.

    python benchmarks/quantisation.py --pairs carla --seeds 0 1 2
    python benchmarks/quantisation.py --summary

Each adapted detector is exported in fp32, and in INT8 calibrated on images of the source, on target images (drawn
evenly, at random or diverse) and on noise, for each runtime; with a tolerance also in mixed precision from the diverse
ones. AP50 is measured on test images of both domains, the agreement with fp32 without labels on target images that
none was calibrated on. What is in the CSV is not measured again. What a row holds is in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

import adaptation
import rows
from acclimate.data import formats
from acclimate.data.dataset import choose, draw
from acclimate.edge.artifact import Artifact, MixedPrecision
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.evaluate import average_precision
from acclimate.models import detector as models
from acclimate.run import Evaluation, Run, machine
from acclimate.runtimes import base
from acclimate.select import mixed
from acclimate.select.score import agreement
from acclimate.structures import Detections

CSV = Path(__file__).with_suffix(".csv")
STARTS = ("source", "target even", "target random", "target diverse", "noise")
SIDE = 320
"""Pixels of a side of an image of noise."""


def calibration(
    start: str, pool: Sequence[Path], source: Sequence[Path], count: int, seed: int, folder: Path
) -> list[Path]:
    """`count` image files to calibrate on.

    Args:
        start: one of `STARTS`.
        pool: target training images.
        source: source training images.
        count: how many.
        seed: of the draw and of the noise.
        folder: where images of noise are written.
    """
    if start == "source":
        return list(choose(source, count, seed))
    if start != "noise":
        how = start.split()[1]
        assert how in {"even", "random", "diverse"}
        return list(draw(pool, count, seed, how))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        made.append(folder / f"noise-{i:03}.png")
        cv2.imwrite(str(made[-1]), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    return made


def measure(pair: str, seed: int, runtimes: Sequence[str], options: argparse.Namespace, console: Console) -> None:
    """All rows of one detector that are not there yet."""
    family, source, target = adaptation.PAIRS[pair]
    run = Run.open(adaptation.RUNS / f"{family}-{source}-{target}-{seed}")
    done = {
        (r["runtime"], r["calibration"], r["tolerance"])
        for r in rows.read(CSV)
        if (r["pair"], r["seed"]) == (pair, str(seed))
    }
    wanted = [
        (runtime, start, tolerance)
        for runtime in runtimes
        for start, tolerance in [
            *((start, "") for start in STARTS),
            *(("target diverse", f"{t:g}") for t in options.tolerances),
        ]
        if (runtime, start, tolerance) not in done
    ]
    if not wanted:
        return
    detector = base.frozen_copy(models.load(run.path))
    tests = {
        role: adaptation.test_images(family, domain, detector.spec.classes, options.test_images)
        for domain, role in ((target, "target"), (source, "source"))
    }
    pool = formats.unlabelled(adaptation.target_list(family, target)).paths
    own = formats.read(adaptation.data(family, source, "train")).paths
    # Held out from every draw, so that one set of images serves all rows.
    compared = choose(pool, min(mixed.IMAGES, len(pool) // 4), seed)
    pool = [path for path in pool if path not in set(compared)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for runtime in dict.fromkeys(runtime for runtime, _, _ in wanted):
            exporter = base.runtime(runtime)
            assert isinstance(exporter, base.Mixes)
            single = exporter.export(detector, folder / f"{runtime}-fp32", "fp32", ())
            before = {role: evaluate(single, truth, role) for role, truth in tests.items()}
            reference = detect(single, compared)
            for _, start, tolerance in (one for one in wanted if one[0] == runtime):
                began = time.monotonic()
                images = calibration(start, pool, own, options.images, seed, folder)
                found: list[MixedPrecision] = []

                def select(
                    graph: base.Quantiser, asked: str = tolerance, found: list[MixedPrecision] = found
                ) -> Sequence[str]:
                    if asked:
                        agrees = mixed.measure(graph, detector, compared)
                        found.append(mixed.mix(graph.layers, agrees, float(asked), len(compared)))
                    return found[-1].in_float if found else ()

                artifact = exporter.export_mixed(detector, folder / f"{runtime}-int8", images, select)
                minutes = (time.monotonic() - began) / 60
                after = {role: evaluate(artifact, truth, role) for role, truth in tests.items()}
                row = {
                    "pair": pair, "seed": seed, "runtime": runtime, "calibration": start, "tolerance": tolerance,
                    "images": len(images),
                    "agreement": f"{agreement(reference, detect(artifact, compared)):.4f}",
                    "layers": found[-1].layers if found else "",
                    "in_float": len(found[-1].in_float) if found else "",
                    **{
                        f"{role}_{name}": f"{results[role].ap50:.4f}"
                        for role in tests
                        for name, results in (("fp32_ap50", before), ("int8_ap50", after))
                    },
                    **{
                        f"{role}_classes": " ".join(
                            f"{name}={one.ap50:.3f}>{after[role].classes[name].ap50:.3f}"
                            for name, one in before[role].classes.items()
                            if one.ap50 is not None
                        )
                        for role in tests
                    },
                    "test_images": len(tests["target"].images),
                    "export_minutes": f"{minutes:.2f}",
                    "engine": base.engine(runtime),
                    "processor": machine()["processor"],
                }  # fmt: skip
                rows.append(options.csv, row)
                console.print(", ".join(f"{key} {value}" for key, value in row.items() if "classes" not in key))


def detect(artifact: Artifact, paths: Sequence[Path]) -> list[Detections]:
    predictor = Predictor(artifact)
    return [predictor(read_image(path)) for path in paths]


def evaluate(artifact: Artifact, truth: formats.LabelledSet, role: str) -> Evaluation:
    assert role in {"source", "target"}
    found = detect(artifact, truth.paths)
    return average_precision(found, truth, data=role, role=role, model=artifact.manifest.name)  # type: ignore[arg-type]


def tables(file: Path = CSV) -> Iterator[str]:
    """A table in Markdown: what INT8 changes, in points of AP50, mean over pairs and seeds, and the agreement."""
    table = rows.read(file)
    if not table:
        yield "No rows yet."
        return
    names = "runtime, calibrated on, tolerance, detectors, agreement, target, worst target, source, layers in fp32"
    yield f"| {names.replace(', ', ' | ')} |"
    yield "|" + "---|" * 9
    for key in sorted({(r["runtime"], STARTS.index(r["calibration"]), r["tolerance"]) for r in table}):
        runtime, start, tolerance = key
        found = [
            r for r in table if (r["runtime"], r["calibration"], r["tolerance"]) == (runtime, STARTS[start], tolerance)
        ]
        target, source = (
            [100 * (float(r[f"{role}_int8_ap50"]) - float(r[f"{role}_fp32_ap50"])) for r in found]
            for role in ("target", "source")
        )
        shares = [100 * int(r["in_float"]) / int(r["layers"]) for r in found if r["layers"]]
        cells = [
            runtime, STARTS[start], tolerance or "-", str(len(found)),
            f"{statistics.mean(float(r['agreement']) for r in found):.3f}",
            f"{statistics.mean(target):+.1f}", f"{min(target):+.1f}", f"{statistics.mean(source):+.1f}",
            f"{statistics.mean(shares):.0f} %" if shares else "-",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pairs = adaptation.PAIRS
    parser.add_argument("--pairs", nargs="+", default=list(pairs), help=f"of {', '.join(pairs)}, or a family of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runtimes", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--images", type=int, default=64, help="to calibrate on")
    parser.add_argument("--test-images", type=int, default=adaptation.TEST_IMAGES)
    parser.add_argument(
        "--tolerances", nargs="*", type=float, default=[0.95], help="of mixed precision; none: leave it"
    )
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--summary", action="store_true", help="print the table of what is in the CSV")
    options = parser.parse_args(arguments)
    if options.summary:
        print(*tables(options.csv), sep="\n")
        return
    console = Console()
    for pair in (one for one in pairs if one in options.pairs or pairs[one][0] in options.pairs):
        for seed in options.seeds:
            measure(pair, seed, options.runtimes, options, console)


if __name__ == "__main__":
    main()
