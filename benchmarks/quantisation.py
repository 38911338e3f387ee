"""What INT8 loses by what it is calibrated on, on the detectors of adaptation.py, appended to quantisation.csv.

    python benchmarks/quantisation.py --pairs carla --seeds 0 1 2
    python benchmarks/quantisation.py --summary

Each adapted detector is exported in fp32, and in INT8 calibrated on images of the source, on target images (drawn
evenly, at random or diverse) and on noise, for each runtime; from the diverse ones with a tolerance also in mixed
precision, and after fine-tuning for INT8. AP50 is measured on test images of both domains, the agreement with fp32
(before any fine-tuning) without labels on target images that none was calibrated or fine-tuned on. What is in the CSV
is not measured again. What a row holds is in docs/benchmarks/quantisation.md.
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
from acclimate import machine, workflow
from acclimate.data import formats
from acclimate.data.dataset import choose, draw
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact, MixedPrecision
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.export import base, exporter
from acclimate.models import detector as models
from acclimate.run import Evaluation, Run
from acclimate.select import mixed
from acclimate.select.score import agreement
from acclimate.structures import Detections

CSV = Path(__file__).with_suffix(".csv")
BEST = "target diverse"
STARTS = ("source", "target even", "target random", BEST, "noise")
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


def fine_tuned(run: Run, folder: Path, pool: Sequence[Path], steps: int, console: Console) -> Run:
    """The run `run`, fine-tuned for INT8 in `folder` on the target images `pool`; taken up where it stopped."""
    out = folder / f"{run.path.name}-rounded-{steps}"
    listed = out.with_name(f"{out.name}-images.txt")
    folder.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{path}\n" for path in pool))
    return workflow.adapt(run.path, listed, out, ["adapt.quantisation={}", f"schedule.steps={steps}"], console=console)


def measure(pair: str, seed: int, runtimes: Sequence[str], options: argparse.Namespace, console: Console) -> None:
    """All rows of one detector that are not there yet."""
    family, source, target = adaptation.PAIRS[pair]
    run = Run.open(options.runs / f"{family}-{source}-{target}-{seed}")
    done = {
        (r["runtime"], r["calibration"], r["tolerance"], r["fine_tuned_steps"])
        for r in rows.read(options.csv)
        if (r["pair"], r["seed"]) == (pair, str(seed))
    }
    wanted = [
        (runtime, *one)
        for runtime in runtimes
        for one in [
            *((start, "", "") for start in options.starts),
            *((BEST, "", str(steps)) for steps in options.fine_tune),
            *((BEST, f"{t:g}", "") for t in options.tolerances),
        ]
        if (runtime, *one) not in done
    ]
    if not wanted:
        return
    detector = base.frozen_copy(models.load(run.path))
    tests = {
        role: adaptation.test_images(family, domain, detector.spec.classes, options.test_images)
        for domain, role in ((target, "target"), (source, "source"))
    }
    pool = formats.unlabelled(adaptation.target_list(family, target, options.runs)).paths
    own = formats.read(adaptation.data(family, source, "train")).paths
    # Held out from every draw, so that one set of images serves all rows.
    compared = choose(pool, min(mixed.IMAGES, len(pool) // 4), seed)
    pool = [path for path in pool if path not in set(compared)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for runtime in dict.fromkeys(runtime for runtime, *_ in wanted):
            single = exporter(runtime).export(detector, folder / f"{runtime}-fp32", "fp32", ())
            before = {role: evaluate(single, truth, role) for role, truth in tests.items()}
            reference = detect(single, compared)
            for _, start, tolerance, steps in (one for one in wanted if one[0] == runtime):
                began = time.monotonic()
                exported = detector
                if steps:
                    made = fine_tuned(run, options.out, pool, int(steps), console)
                    exported = base.frozen_copy(models.load(made.path))
                images = calibration(start, pool, own, options.images, seed, folder)
                found: list[MixedPrecision] = []

                def select(
                    graph: base.Quantiser, asked: str = tolerance, found: list[MixedPrecision] = found
                ) -> Sequence[str]:
                    if asked:
                        agrees = mixed.measure(graph, detector, compared)
                        found.append(mixed.mix(graph.layers, agrees, float(asked), len(compared)))
                    return found[-1].in_float if found else ()

                artifact = exporter(runtime).export(exported, folder / f"{runtime}-int8", "int8", images, select)
                minutes = (time.monotonic() - began) / 60
                after = {role: evaluate(artifact, truth, role) for role, truth in tests.items()}
                row = {
                    "pair": pair, "seed": seed, "runtime": runtime, "calibration": start, "tolerance": tolerance,
                    "fine_tuned_steps": steps, "images": len(images),
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
                    "engine": engines.engine(runtime).version(),
                    "processor": machine.facts()["processor"],
                }  # fmt: skip
                rows.append(options.csv, row)
                console.print(", ".join(f"{key} {value}" for key, value in row.items() if "classes" not in key))


def detect(artifact: Artifact, paths: Sequence[Path]) -> list[Detections]:
    predictor = Predictor(artifact)
    return [predictor(read_image(path)) for path in paths]


def evaluate(artifact: Artifact, truth: formats.LabelledSet, role: str) -> Evaluation:
    assert role in {"source", "target"}
    return adaptation.evaluate_artifact(Predictor(artifact), truth, role)  # type: ignore[arg-type]


def tables(file: Path = CSV) -> Iterator[str]:
    """A table in Markdown: what INT8 changes, in points of AP50, mean over pairs and seeds, and the agreement."""
    table = rows.read(file)
    if not table:
        yield "No rows yet."
        return
    names = (
        "runtime, calibrated on, tolerance, fine-tuned, detectors, agreement, target, worst target, source, "
        "layers in fp32"
    )
    yield f"| {names.replace(', ', ' | ')} |"
    yield "|" + "---|" * 10

    def key(row: dict[str, str]) -> tuple[str, int, str, int]:
        return row["runtime"], STARTS.index(row["calibration"]), row["tolerance"], int(row["fine_tuned_steps"] or 0)

    for runtime, start, tolerance, steps in sorted({key(r) for r in table}):
        found = [r for r in table if key(r) == (runtime, start, tolerance, steps)]
        target, source = (
            [100 * (float(r[f"{role}_int8_ap50"]) - float(r[f"{role}_fp32_ap50"])) for r in found]
            for role in ("target", "source")
        )
        shares = [100 * int(r["in_float"]) / int(r["layers"]) for r in found if r["layers"]]
        cells = [
            runtime, STARTS[start], tolerance or "-", f"{steps} steps" if steps else "-", str(len(found)),
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
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=STARTS, help="what to calibrate on")
    parser.add_argument(
        "--fine-tune", nargs="*", type=int, default=[200], help="steps of fine-tuning for INT8; none: leave it"
    )
    parser.add_argument("--runs", type=Path, default=adaptation.RUNS, help="where the runs of adaptation.py are")
    parser.add_argument("--out", type=Path, default=adaptation.RUNS, help="where fine-tuned runs go")
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
