"""ncnn, converted by pnnx from the ONNX graph of `torch.export`: fp32, and fp16."""

from __future__ import annotations

import importlib
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from acclimate.errors import AcclimateError
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

    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> None:
        """See `Exporter.convert`.

        Raises:
            AcclimateError: ncnn has no layer for an operation, as for the choice of proposals.
        """
        _convert(frozen, folder, precision == "fp16")


def _convert(frozen: Detector, folder: Path, fp16: bool) -> None:
    """Write model.param and model.bin into `folder`, inputs and outputs under the names of the ONNX graph."""
    program = importlib.import_module("pnnx").EXEC_PATH
    with tempfile.TemporaryDirectory() as scratch:
        write_graph(frozen, Path(scratch) / "model.onnx")
        done = subprocess.run(
            [program, "model.onnx", f"fp16={int(fp16)}"], cwd=scratch, capture_output=True, text=True, check=False
        )
        param, weights = (Path(scratch) / f"model.ncnn.{kind}" for kind in ("param", "bin"))
        if done.returncode or not param.is_file() or not weights.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise AcclimateError(f"ncnn: pnnx does not convert this detector ({last}); use another runtime")
        text = param.read_text()
        lacking = _lacking(text)
        if lacking:
            raise AcclimateError(
                f"ncnn has no layer for {', '.join(lacking)}, which this detector needs; use another runtime"
            )
        names = {"in0": INPUT, **{f"out{place}": name for place, name in enumerate(frozen.output_names)}}
        (folder / "model.param").write_text(_renamed(text, names))
        (folder / "model.bin").write_bytes(weights.read_bytes())


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
