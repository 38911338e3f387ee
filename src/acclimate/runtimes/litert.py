"""LiteRT (once TensorFlow Lite) on the CPU, converted from `torch.export`: fp32, and static INT8.

Loading imports ai_edge_litert alone. The converter, litert-torch, pins other versions than training does, so it runs in
an environment of its own (`converter`), which `make litert` makes beside the one that asks for it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.images import to_input
from acclimate.errors import AcclimateError
from acclimate.runtimes import quantise
from acclimate.runtimes.base import (
    Choose,
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
from acclimate.runtimes.quantise import Node, blocks, kept_in_float
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
CONVERTER_VARIABLE = "ACCLIMATE_LITERT_PYTHON"
"""Names the Python of the converter's environment where it is not in its place."""


class LiteRt:
    """LiteRT on the CPU. The artifact is one `model.tflite`, batch 1, static shapes."""

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """See `Runtime.export`.

        Raises:
            AcclimateError: also where the converter's environment is missing or does not know an operation.
        """
        check_precision(precision, self.precisions, "litert", "its CPU kernels would convert it to fp32 and back")
        if precision == "int8":
            return self.export_mixed(detector, folder, calibration)
        if missing := why_not("litert", "export"):
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)
        return write_artifact(
            "litert",
            frozen,
            folder,
            precision,
            lambda temporary: _convert(frozen, temporary / "model.tflite"),
            notes=complexity(frozen),
        )

    def export_mixed(
        self, detector: Detector, folder: Path, calibration: Sequence[Path], choose: Choose | None = None
    ) -> Artifact:
        """See `base.Mixes.export_mixed`."""
        return quantise.export(
            "litert",
            detector,
            folder,
            calibration,
            choose,
            file="model.tflite",
            quantiser=_quantiser,
            load=lambda file, names: _interpreter(file, 1, INPUT, names),
        )

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
    """The detector's forward as an fp32 .tflite file, after its outputs were compared with the detector's."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "program.pt2"
        # A switch of gradients inside the program, as the choice of proposals has one, is none without gradients.
        with quiet(), torch.no_grad():
            exported = torch.export.export(frozen, (torch.zeros(1, 3, *frozen.spec.image_size),))
            # Without a table of decompositions it takes what is done in place away, and no more.
            torch.export.save(exported.run_decompositions({}), program)
        _command("convert", file, program, file.absolute(), *frozen.output_names)
    check_same("litert", _interpreter(file, 1, INPUT, frozen.output_names), frozen)


def _command(name: str, made: Path, *arguments: Path | str) -> None:
    """Run a command of litert_convert.py, which makes the file `made`, in the converter's environment.

    Raises:
        AcclimateError: it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [converter(), Path(__file__).with_name("litert_convert.py"), name, *arguments],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not made.is_file():
        # What was raised stands among what the converter reports of its progress.
        raised = re.findall(r"^[\w.]+(?:Error|Exception): .*$", done.stderr, flags=re.MULTILINE)
        last = raised[-1][:200] if raised else f"exit status {done.returncode}"
        raise AcclimateError(f"litert: its converter does not carry this detector ({last}); use another runtime")


class LiteRtQuantiser:
    """A detector as a .tflite file, quantised as often as is asked. See `base.Quantiser`.

    Asymmetric activations, their ranges a moving average over the images; symmetric weights with one scale a channel.
    The ends of the network stay in fp32 as `quantise.kept_in_float` says.
    """

    def __init__(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> None:
        """Convert and calibrate.

        Args:
            frozen: what `frozen_copy` returns.
            canvases: calibration images, (H, W, 3) uint8, RGB.
            scratch: a folder for the graph and its ranges, for as long as this lives.
        """
        self._scratch, self._output_names = scratch, frozen.output_names
        self._model, self._ranges, described = (scratch / name for name in ("model.tflite", "ranges", "operations"))
        _convert(frozen, self._model)
        _command("describe", described, self._model, described)
        images = scratch / "canvases.npy"
        np.save(images, np.concatenate([to_input(canvas) for canvas in canvases]))
        _command("calibrate", self._ranges, self._model, images, self._ranges)
        images.unlink()
        nodes, inputs, outputs = _nodes(json.loads(described.read_text()))
        self._kept = kept_in_float(nodes, inputs, outputs)
        self._blocks = blocks(nodes, self._kept)

    @property
    def layers(self) -> Sequence[str]:
        return tuple(self._blocks)

    def network(self, in_float: Collection[str]) -> Network:
        # A file of its own, which LiteRT maps: another trial must not write into it.
        with tempfile.TemporaryDirectory(dir=self._scratch) as own:
            file = Path(own) / "trial.tflite"
            self.write(file, in_float)
            return _interpreter(file, 1, INPUT, self._output_names)

    def write(self, file: Path, in_float: Collection[str] = ()) -> None:
        """Write the INT8 version to `file`, with the layers `in_float` left in fp32."""
        kept = self._scratch / "kept"
        kept.write_text(json.dumps([*self._kept, *(name for layer in in_float for name in self._blocks[layer])]))
        _command("quantise", file, self._model, self._ranges, kept, file.absolute())
        file.chmod(0o644)  # the quantiser makes it executable


@contextmanager
def _quantiser(frozen: Detector, canvases: Sequence[Image]) -> Iterator[LiteRtQuantiser]:
    with tempfile.TemporaryDirectory() as scratch:
        yield LiteRtQuantiser(frozen, canvases, Path(scratch))


def _nodes(operations: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Node], Sequence[str], Sequence[str]]:
    """A .tflite file for `quantise.kept_in_float`: its operations as `describe` lists them, and its ends."""
    names = [operation["name"] for operation in operations]
    nodes = {
        operation["name"]: Node(
            layer=operation["kind"] in LAYERS,
            learned=operation["learned"],
            chooses=operation["kind"] == "TOPK_V2",
            # Modules have no names in it.
            module=f"{operation['kind'].lower()} {place}",
            before=[names[before] for before in operation["before"]],
            after=[names[after] for after in operation["after"]],
        )
        for place, operation in enumerate(operations)
    }
    inputs, outputs = ([operation["name"] for operation in operations if operation[end]] for end in ("input", "output"))
    return nodes, inputs, outputs


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
        try:
            found = runner(**{input_name: images})
        except (ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines() or ["no reason given"]
            raise AcclimateError(
                f"{file}: LiteRT cannot run it ({said[0]}); use another runtime or precision"
            ) from None
        return [found[name] for name in output_names]

    return run
