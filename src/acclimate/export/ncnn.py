"""ncnn, converted by pnnx from the ONNX graph of `torch.export`: fp32, and fp16."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from acclimate.edge.artifact import HalfPrecision
from acclimate.errors import AcclimateError
from acclimate.export import ncnn_weights
from acclimate.export.base import INPUT, Exporter, Precision
from acclimate.export.onnx import write_graph

if TYPE_CHECKING:
    from acclimate.models.detector import Detector


class Ncnn(Exporter):
    """`model.param` and `model.bin`, batch 1, static shapes."""

    name: ClassVar[str] = "ncnn"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")
    why_no_other: ClassVar[str] = "its Python package has no quantiser"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "pnnx")
    compared: ClassVar[bool] = True

    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> HalfPrecision | None:
        """See `Exporter.convert`. A layer whose weights fp16 would lose stays in fp32.

        Raises:
            AcclimateError: ncnn has no layer for an operation, as for the choice of proposals.
        """
        names = {"in0": INPUT, **{f"out{place}": name for place, name in enumerate(frozen.output_names)}}
        with tempfile.TemporaryDirectory() as scratch:
            graph = Path(scratch) / "model.onnx"
            write_graph(frozen, graph)
            param = _convert(graph, "fp32")
            text, kept = param.read_text(), None
            weights = param.with_suffix(".bin").read_bytes()
            if precision == "fp16":
                half = _convert(graph, "fp16")
                mixed = ncnn_weights.mixed(_layers(half.read_text()), param, half)
                text, weights = half.read_text(), half.with_suffix(".bin").read_bytes()
                if mixed is not None and mixed[0]:
                    text, weights = ncnn_weights.marked(text, mixed[0]), mixed[1]
                    count = sum(fields[0] in ncnn_weights.WEIGHED for fields in _layers(text))
                    kept = HalfPrecision(layers=count, in_fp32=tuple(mixed[0]))
            (folder / "model.param").write_text(_renamed(text, names))
            (folder / "model.bin").write_bytes(weights)
        return kept


def _convert(graph: Path, precision: Precision) -> Path:
    """The .param file that pnnx makes of an ONNX file, with its .bin file beside it, in a folder beside the graph.

    Raises:
        AcclimateError: pnnx fails, or makes a layer that ncnn does not have.
    """
    folder = graph.with_name(precision)
    folder.mkdir()
    shutil.copy(graph, folder / "model.onnx")
    program = importlib.import_module("pnnx").EXEC_PATH
    done = subprocess.run(
        [program, "model.onnx", f"fp16={int(precision == 'fp16')}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    param, weights = (folder / f"model.ncnn.{kind}" for kind in ("param", "bin"))
    if done.returncode or not param.is_file() or not weights.is_file():
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise AcclimateError(f"ncnn: pnnx does not convert this detector ({last}); use another runtime")
    if lacking := _lacking(param.read_text()):
        raise AcclimateError(
            f"ncnn has no layer for {', '.join(lacking)}, which this detector needs; use another runtime"
        )
    return param


def _layers(text: str) -> list[list[str]]:
    """The lines of a .param file as fields: type, name, number of inputs and outputs, their names, options."""
    return [line.split() for line in text.splitlines()[2:] if line.strip()]


def _lacking(text: str) -> list[str]:
    """Types of layers in a .param file that ncnn does not know; pnnx writes them all the same."""
    known = importlib.import_module("ncnn").layer_to_index
    return sorted({fields[0] for fields in _layers(text) if known(fields[0]) < 0})


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A .param file with its blobs renamed; pnnx numbers them."""
    lines = text.splitlines()[:2]
    for kind, name, inputs, outputs, *rest in _layers(text):
        blobs = int(inputs) + int(outputs)
        fields = [kind, name, inputs, outputs, *(names.get(blob, blob) for blob in rest[:blobs]), *rest[blobs:]]
        lines.append(" ".join(fields))
    return "\n".join(lines) + "\n"
