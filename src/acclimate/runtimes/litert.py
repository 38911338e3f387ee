"""LiteRT (once TensorFlow Lite) on the CPU, converted from `torch.export`: fp32.

Loading imports ai_edge_litert alone. The converter, litert-torch, pins other versions than training does, so it runs in
an environment of its own (`converter`), which `make litert` makes beside the one that asks for it.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
    quiet,
    why_not,
    write_artifact,
)
from acclimate.runtimes.onnx import INPUT

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

CONVERTER_VARIABLE = "ACCLIMATE_LITERT_PYTHON"
"""Names the Python of the converter's environment where it is not in its place."""


class LiteRt:
    """LiteRT on the CPU. The artifact is one `model.tflite`, batch 1, static shapes."""

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """See `Runtime.export`.

        Raises:
            AcclimateError: also where the converter's environment is missing or does not know an operation.
        """
        check_precision(precision, self.precisions, "litert", "its converter is used for fp32 alone")
        if missing := why_not("litert", "export"):
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)

        def build(temporary: Path) -> None:
            file = temporary / "model.tflite"
            _convert(frozen, file)
            check_same("litert", _interpreter(file, 1, INPUT, frozen.output_names), frozen)

        return write_artifact("litert", frozen, folder, precision, build, notes=complexity(frozen))

    def load(self, artifact: Artifact, threads: int) -> Network:
        """See `Runtime.load`."""
        if missing := why_not("litert"):
            raise AcclimateError(missing)
        manifest = artifact.manifest
        return _interpreter(artifact.file(".tflite"), threads, manifest.input_name, manifest.output_names)


def converter() -> Path:
    """The Python that converts: what the environment names, or that of `litert/` in the environment that runs."""
    named = os.environ.get(CONVERTER_VARIABLE)
    return Path(named) if named else Path(sys.prefix) / "litert" / "bin" / "python"


def no_converter() -> str:
    """What to do about a converter that is not there, in one line; empty where it is."""
    if converter().is_file():
        return ""
    return (
        f"litert: {converter()} is not there, which converts for it: `make litert` makes its environment, "
        f"or {CONVERTER_VARIABLE} names the Python of one that has litert-torch"
    )


def _convert(frozen: Detector, file: Path) -> None:
    import torch

    script = Path(__file__).with_name("litert_convert.py")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "program.pt2"
        # A switch of gradients inside the program, as the choice of proposals has one, is none without gradients.
        with quiet(), torch.no_grad():
            exported = torch.export.export(frozen, (torch.zeros(1, 3, *frozen.spec.image_size),))
            # Without a table of decompositions it takes what is done in place away, and no more.
            torch.export.save(exported.run_decompositions({}), program)
        done = subprocess.run(
            [converter(), script, program, file.absolute(), *frozen.output_names],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not file.is_file():
        # What was raised stands among what the converter reports of its progress.
        raised = re.findall(r"^[\w.]+(?:Error|Exception): .*$", done.stderr, flags=re.MULTILINE)
        last = raised[-1][:200] if raised else f"exit status {done.returncode}"
        raise AcclimateError(f"litert: its converter does not carry this detector ({last}); use another runtime")


def _interpreter(file: Path, threads: int, input_name: str, output_names: Sequence[str]) -> Network:
    engine = importlib.import_module("ai_edge_litert.interpreter")
    try:
        runner = engine.Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
    except (ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines() or ["no reason given"]
        raise AcclimateError(f"{file}: LiteRT does not accept it ({said[0]})") from None
    absent = [
        name
        for wanted, found in (([input_name], inputs), (output_names, outputs))
        for name in wanted
        if name not in found
    ]
    if absent:
        raise AcclimateError(f"{file}: has no input or output {', '.join(absent)}; export the artifact again")

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        found = runner(**{input_name: images})
        return [found[name] for name in output_names]

    return run
