"""LiteRT (once TensorFlow Lite), converted from `torch.export`: fp32, and static INT8.

The converter, litert-torch, pins other versions than training does, so it runs in an environment of its own
(`converter`), which `make litert` makes beside the one that asks for it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from acclimate.edge.images import to_input
from acclimate.errors import AcclimateError
from acclimate.export.base import Exporter, Precision, quiet
from acclimate.export.quantise import Layers, Node
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
CONVERTER_VARIABLE = "ACCLIMATE_LITERT_PYTHON"
"""Names the Python of the converter's environment where it is not in its place."""


class LiteRt(Exporter):
    """One `model.tflite`, batch 1, static shapes."""

    name: ClassVar[str] = "litert"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    why_no_other: ClassVar[str] = "its CPU kernels would convert it to fp32 and back"
    packages: ClassVar[tuple[str, ...]] = ()
    compared: ClassVar[bool] = True

    def convert(self, frozen: Detector, folder: Path, precision: Precision) -> None:
        """See `Exporter.convert`.

        Raises:
            AcclimateError: the converter does not know an operation.
        """
        _convert(frozen, folder / "model.tflite")

    def quantise(self, frozen: Detector, canvases: Sequence[Image], scratch: Path) -> LiteRtGraph:
        """See `Exporter.quantise`."""
        single = scratch / "fp32"
        single.mkdir()
        self.convert(frozen, single, "fp32")
        self.compare(frozen, single, "fp32")
        return LiteRtGraph(single / "model.tflite", canvases, scratch)

    def missing(self) -> str:
        """See `Exporter.missing`; the converter's environment is needed too."""
        return super().missing() or no_converter()


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
    """The detector's forward as an fp32 .tflite file."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "program.pt2"
        # A switch of gradients inside the program, as the choice of proposals has one, is none without gradients.
        with quiet(), torch.no_grad():
            exported = torch.export.export(frozen, (torch.zeros(1, 3, *frozen.spec.image_size),))
            # Without a table of decompositions it takes what is done in place away, and no more.
            torch.export.save(exported.run_decompositions({}), program)
        _command("convert", file, program, file.absolute(), *frozen.output_names)


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


class LiteRtGraph:
    """A detector as a .tflite file, quantised as often as is asked. See `base.Graph`.

    Asymmetric activations, their ranges a moving average over the images; symmetric weights with one scale a channel.
    The ends of the network stay in fp32 as `quantise.kept_in_float` says.
    """

    def __init__(self, model: Path, canvases: Sequence[Image], scratch: Path) -> None:
        """Calibrate.

        Args:
            model: the fp32 .tflite file.
            canvases: calibration images, (H, W, 3) uint8, RGB.
            scratch: a folder for the ranges of its tensors, for as long as this lives.
        """
        self._model, self._scratch = model, scratch
        self._ranges, described = scratch / "ranges", scratch / "operations"
        _command("describe", described, self._model, described)
        images = scratch / "canvases.npy"
        np.save(images, np.concatenate([to_input(canvas) for canvas in canvases]))
        _command("calibrate", self._ranges, self._model, images, self._ranges)
        images.unlink()
        nodes, inputs, outputs = _nodes(json.loads(described.read_text()))
        self._layers = Layers(nodes, inputs, outputs)

    @property
    def layers(self) -> Sequence[str]:
        return self._layers.names

    def write(self, folder: Path, in_float: Collection[str] = ()) -> None:
        """See `base.Graph.write`."""
        file = folder / "model.tflite"
        kept = self._scratch / "kept"
        kept.write_text(json.dumps(self._layers.left(in_float)))
        _command("quantise", file, self._model, self._ranges, kept, file.absolute())
        file.chmod(0o644)  # the quantiser makes it executable


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
