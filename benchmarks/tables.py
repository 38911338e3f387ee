"""Write the result tables of docs/benchmarks/ from the CSVs, so that a page holds no row of its own.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import adaptation
import backbones
import cosines
import craft
import distillation
import faults
import front
import labellers
import labels
import peers
import quantisation
import recipe
import rows
import slimda
import slimda_digits
from acclimate.benchmark import suite as suites
from acclimate.benchmark import table as results
from rows import table

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "benchmarks"


def adaptation_tables() -> Iterator[str]:
    yield "AP50 on the target's test images in points, mean and standard deviation over the seeds:\n"
    yield from adaptation.summary()
    yield f"\nThe same over the classes with at least {adaptation.FEW} boxes in the source:\n"
    yield from adaptation.summary("target_ap50_shared")
    yield "\nAP50 on the source's test images, before and after, and how well the scores ranked the checkpoints:\n"
    yield from adaptation.source_summary()


def suite_tables(name: str) -> Iterator[str]:
    """Of a suite that stands beside this file."""
    yield from results.tables(suites.load(HERE / f"{name}.toml"), results.read(HERE / f"{name}.csv"))


def techniques_tables() -> Iterator[str]:
    for name in ("craft", "heads"):
        yield from results.tables(suites.load(name), results.read(HERE / f"suite_{name}.csv"))
        yield ""


def head_tables() -> Iterator[str]:
    yield from suite_tables("head")
    yield "\nLatency of the presets:\n"
    yield from table(
        rows.read(HERE / "head_latency.csv"),
        {
            "size": "size", "head": "head", "precision": "precision", "macs_m": "MACs (M)", "latency_ms": "ms",
            "ratio_median": "times depthwise", "ratio_min": "lowest", "ratio_max": "highest",
            "speed_up": "times its fp32",
        },
    )  # fmt: skip


def quantisation_tables() -> Iterator[str]:
    yield from quantisation.tables()
    yield "\nThe first layers in INT8 beside fp32, milliseconds of processor time:\n"
    yield from forms_tables("stem.csv", {"fp32": "first layers in fp32", "int8": "in INT8"})
    yield "\nWeights of 7 bits beside 8, milliseconds of processor time:\n"
    yield from forms_tables("weight_bits.csv", {"bits8": "8 bits", "bits7": "7 bits"})


def forms_tables(csv: str, forms: Mapping[str, str]) -> Iterator[str]:
    """What `stem.compare` found of two forms of INT8: latency, then AP50."""
    found = rows.read(HERE / csv)
    yield from table(
        [row for row in found if row["rounds"]],
        {
            "runtime": "runtime", "network": "network", "processor": "processor",
            **{f"{form}_ms": f"{title}, ms" for form, title in forms.items()},
            "ratio_median": "ratio", "ratio_min": "lowest", "ratio_max": "highest",
        },
    )  # fmt: skip
    yield "\nAnd AP50 on the target:\n"
    yield from table(
        [row for row in found if row["test_images"]],
        {
            "runtime": "runtime", "network": "network", "processor": "processor", "all_fp32_ap50": "fp32",
            **{f"{form}_ap50": f"INT8, {title}" for form, title in forms.items()},
        },
    )  # fmt: skip


def training_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "training.csv"),
        {
            "model": "model", "verb": "verb", "loader_threads": "loader threads", "bare_images_per_s": "bare, images/s",
            "loop_images_per_s": "loop, images/s", "ratio_median": "ratio", "ratio_min": "lowest",
            "ratio_max": "highest", "loading_share": "loading, share of a step",
        },
    )  # fmt: skip


def latency_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "latency.csv"),
        {
            "model": "model", "variant": "variant", "macs_m": "MACs (M)", "latency_ms": "ms",
            "fraction_of_peak": "fraction of peak", "speed_up_over_eager": "times eager",
        },
    )  # fmt: skip


def transformer_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "transformer.csv"),
        {
            "runtime": "runtime", "detector": "detector", "fp32_ap50": "AP50, fp32", "int8_ap50": "INT8",
            "fp32_ms": "ms, fp32", "int8_ms": "INT8", "ratio_median": "ratio", "ratio_min": "lowest",
            "ratio_max": "highest", "fp32_mb": "MB, fp32", "int8_mb": "INT8",
        },
    )  # fmt: skip


def edge_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "edge.csv"),
        {
            "pair": "pair", "runtime": "runtime", "precision": "precision", "size_mb": "MB", "target_ap50": "AP50",
            "loss": "loss", "latency_ms": "ms", "speed_up": "times ONNX fp32", "fraction_of_peak": "fraction of peak",
            "finish_ms": "post-processing, ms",
        },
    )  # fmt: skip


def suppression_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "suppression.csv"),
        {
            "model": "model", "form": "form", "layers": "layers", "weights": "weights", "step_ms": "step, ms",
            "suppression_ms": "suppression, ms", "share_percent": "share, %",
            "step_difference_percent": "longer step, %",
        },
    )  # fmt: skip


def tsd_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "tsd.csv"),
        {
            "model": "model", "runtime": "runtime", "head": "head", "macs_m": "MACs (M)", "cpu_ms": "ms",
            "ratio_median": "times sibling", "ratio_min": "lowest", "ratio_max": "highest", "processor": "processor",
        },
    )  # fmt: skip


def digits_tables() -> Iterator[str]:
    file = HERE / "slimda_digits.csv"
    yield from slimda_digits.summary(file) if rows.read(file) else ["No rows yet."]


def drift_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "drift.csv"),
        {
            "pair": "pair", "detector": "detector", "threshold": "threshold", "auc": "AUC of a frame",
            "score_before": "score before", "score_after": "after", "detected": "detected",
            "delay_median": "frames, median", "delay_largest": "largest", "early": "early",
            "false_alarms": "false alarms",
        },
    )  # fmt: skip


def pipeline_tables() -> Iterator[str]:
    found = rows.read(HERE / "pipeline.csv")
    yield from table(
        [row for row in found if row["what"] == "rate"],
        {
            "source": "source", "order": "order", "pictures": "pictures", "decoded": "decoded",
            "ratio_median": "times the network's rate", "ratio_min": "lowest", "ratio_max": "highest",
        },
    )  # fmt: skip
    yield ""
    yield from table(
        [row for row in found if row["what"] == "accuracy"],
        {
            "source": "images", "decoded": "decoded", "ap": "AP", "ap50": "AP50",
            "interval": "AP50 gained, 95 % interval",
        },
    )  # fmt: skip


def reading_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "reading.csv"),
        {
            "reader": "reader",
            "cpu_s": "processor, s",
            "again_cpu_s": "once more, s",
            "memory_mb": "MB",
            "ratio": "times pycocotools",
        },
    )


def soak_table() -> Iterator[str]:
    yield from table(
        rows.read(HERE / "soak.csv"),
        {
            "phase": "phase", "frames": "frames", "seconds": "s", "memory_begin_mb": "MB, first tenth",
            "memory_end_mb": "last tenth", "memory_largest_mb": "largest", "unwritten": "unwritten", "lost": "lost",
            "torn": "torn, bytes",
        },
    )  # fmt: skip


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "adaptation": adaptation_tables,
    "recipe": recipe.tables,
    "cosines": cosines.tables,
    "methods": partial(suite_tables, "methods"),
    "dss": partial(suite_tables, "dss"),
    "options": partial(suite_tables, "options"),
    "slimda": slimda.tables,
    "slimda_digits": digits_tables,
    "labels": labels.summary,
    "distillation": distillation.tables,
    "labellers": labellers.summary,
    "quantisation": quantisation_tables,
    "transformer": transformer_table,
    "training": training_table,
    "latency": latency_table,
    "edge": edge_table,
    "front": front.tables,
    "head": head_tables,
    "backbones": backbones.table,
    "peers": peers.tables,
    "craft": craft.table,
    "techniques": techniques_tables,
    "suppression": suppression_table,
    "tsd": tsd_table,
    "drift": drift_table,
    "soak": soak_table,
    "faults": faults.summary,
    "pipeline": pipeline_tables,
    "reading": reading_table,
}


def page(name: str) -> str:
    """The page of a benchmark with its tables made anew."""
    text = (PAGES / f"{name}.md").read_text()
    start, end = f"<!-- results: {name} -->", f"<!-- end: {name} -->"
    body = "\n".join([start, "", *TABLES[name](), "", end])
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: body, text, flags=re.DOTALL)


if __name__ == "__main__":
    for name in TABLES:
        (PAGES / f"{name}.md").write_text(page(name))
