"""ncnn on the CPU, converted by pnnx from the ONNX graph of `torch.export`: fp32, and fp16.

Loading imports ncnn alone; torch, onnx and pnnx are needed by `export`.
"""

from __future__ import annotations

import importlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.errors import AcclimateError
from acclimate.runtimes.base import (
    Network,
    Precision,
    check_precision,
    check_same,
    complexity,
    frozen_copy,
    why_not,
    write_artifact,
)
from acclimate.runtimes.onnx import INPUT, write_graph

if TYPE_CHECKING:
    from acclimate.models.detector import Detector


class Ncnn:
    """ncnn on the CPU. The artifact is `model.param` and `model.bin`, batch 1, static shapes.

    fp16 halves the file, and is computed in where the processor has fp16 arithmetic (ARMv8.2); elsewhere in fp32.
    """

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """See `Runtime.export`.

        Raises:
            AcclimateError: also where ncnn has no layer for an operation, as for the choice of proposals.
        """
        check_precision(precision, self.precisions, "ncnn", "its Python package has no quantiser")
        if missing := why_not("ncnn", "export"):
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)

        def build(temporary: Path) -> None:
            _convert(frozen, temporary, precision == "fp16")
            run = _load(temporary / "model.param", temporary / "model.bin", 1, precision, INPUT, frozen.output_names)
            check_same("ncnn", run, frozen)

        return write_artifact("ncnn", frozen, folder, precision, build, notes=complexity(frozen))

    def load(self, artifact: Artifact, threads: int) -> Network:
        """See `Runtime.load`."""
        if missing := why_not("ncnn"):
            raise AcclimateError(missing)
        manifest = artifact.manifest
        return _load(
            artifact.file(".param"),
            artifact.file(".bin"),
            threads,
            manifest.precision,
            manifest.input_name,
            manifest.output_names,
        )


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


def _load(
    param: Path, weights: Path, threads: int, precision: str, input_name: str, output_names: Sequence[str]
) -> Network:
    ncnn = importlib.import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = threads
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, option, precision == "fp16")
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise AcclimateError(f"{param}: ncnn does not accept it, or {weights.name}; export the artifact again")
    absent = [
        name
        for wanted, found in (([input_name], net.input_names()), (output_names, net.output_names()))
        for name in wanted
        if name not in found
    ]
    if absent:
        raise AcclimateError(f"{param}: has no input or output {', '.join(absent)}; export the artifact again")

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        outputs = []
        extractor = net.create_extractor()
        # A copy in ncnn's own, aligned memory: its first layer may compute in place.
        extractor.input(input_name, ncnn.Mat(images[0]).clone())
        for name in output_names:
            status, found = extractor.extract(name)
            if status:
                raise AcclimateError(f"{param}: ncnn cannot compute {name}; its memory may have run out")
            outputs.append(np.array(found)[None])
        return outputs

    return run
