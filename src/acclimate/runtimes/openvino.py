"""OpenVINO on the CPU, from the ONNX graph of `torch.export`: fp32, fp16 weights, and INT8 by NNCF.

Loading imports openvino alone; torch, onnx and nncf are imported by `export`. Everything is computed in fp32 (and INT8
where quantised) unless the artifact asks for less: left to itself OpenVINO takes bfloat16 where the processor has it,
which moves boxes by pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.images import to_input
from acclimate.errors import AcclimateError
from acclimate.runtimes.base import (
    Network,
    Precision,
    check_precision,
    complexity,
    describe_calibration,
    frozen_copy,
    quiet,
    why_not,
    write_artifact,
)
from acclimate.runtimes.onnx import INPUT, write_graph
from acclimate.runtimes.quantise import Node, calibration_canvases, check_finite, kept_in_float
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

LAYERS = frozenset({"Convolution", "GroupConvolution", "MatMul"})


class OpenVino:
    """OpenVINO on the CPU. The artifact is `model.xml` and `model.bin`, batch 1, static shapes.

    fp16 halves the file: weights are stored in 16 bits and computed with in fp32, as processors without fp16
    arithmetic do anyway.
    """

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """See `Runtime.export`. INT8 keeps the first and the last layers in fp32."""
        check_precision(precision, self.precisions, "openvino", "it is not one of its precisions")
        if missing := why_not("openvino", "export"):
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)
        canvases: list[Image] = []
        described = None
        if precision == "int8":
            canvases, used = calibration_canvases(calibration, frozen.spec.image_size)
            described = describe_calibration(used)

        def build(temporary: Path) -> None:
            openvino = engine()
            graph = temporary / "model.onnx"
            write_graph(frozen, graph)
            with quiet():
                model = openvino.convert_model(graph)
            if canvases:
                model = quantize(model, canvases)
            openvino.save_model(model, temporary / "model.xml", compress_to_fp16=precision == "fp16")
            graph.unlink()
            if canvases:
                check_finite(_compile(temporary / "model.xml", 1, INPUT, frozen.output_names), canvases[:4])

        return write_artifact("openvino", frozen, folder, precision, build, described, notes=complexity(frozen))

    def load(self, artifact: Artifact, threads: int) -> Network:
        """See `Runtime.load`."""
        if missing := why_not("openvino"):
            raise AcclimateError(missing)
        return _compile(artifact.file(".xml"), threads, artifact.manifest.input_name, artifact.manifest.output_names)


def quantize(model: Any, canvases: Sequence[Image], exclude: Sequence[str] = ()) -> Any:
    """The INT8 version of an fp32 `openvino.Model`, with activation ranges from `canvases`.

    Asymmetric activations, symmetric weights with one scale a channel, and biases corrected for what rounding shifts
    (NNCF's fast bias correction). The ends of the network stay in fp32 as `quantise.kept_in_float` says.

    Args:
        model: what `openvino.convert_model` returns; left as it is.
        canvases: calibration images, (H, W, 3) uint8, RGB.
        exclude: names of further operations that stay in fp32.
    """
    with _unreported(), quiet():
        nncf = importlib.import_module("nncf")
        return nncf.quantize(
            model,
            nncf.Dataset(canvases, to_input),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(canvases),
            ignored_scope=nncf.IgnoredScope(names=[*_kept_in_float(model), *exclude], validate=False),
        )


def _kept_in_float(model: Any) -> list[str]:
    """See `quantise.kept_in_float`, of an OpenVINO model."""
    operations = {operation.get_friendly_name(): operation for operation in model.get_ops()}
    nodes = {}
    for name, operation in operations.items():
        sources = [value.get_source_output().get_node() for value in operation.inputs()]
        nodes[name] = Node(
            layer=operation.get_type_name() in LAYERS,
            learned=any(source.get_type_name() == "Constant" for source in sources),
            chooses=operation.get_type_name() == "TopK",
            before=[source.get_friendly_name() for source in sources],
            after=[
                user.get_node().get_friendly_name()
                for value in operation.outputs()
                for user in value.get_target_inputs()
            ],
        )
    inputs, outputs = (
        [node.get_friendly_name() for node in ends] for ends in (model.get_parameters(), model.get_results())
    )
    constants = {name for name, operation in operations.items() if operation.get_type_name() == "Constant"}
    return [name for name in kept_in_float(nodes, inputs, outputs) if name not in constants]


def _compile(file: Path, threads: int, input_name: str, output_names: Sequence[str]) -> Network:
    openvino = engine()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads of two processes would share a core while another is idle.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = openvino.Core().compile_model(str(file), "CPU", options)
        ports = {name: port for port in compiled.outputs for name in port.get_names()}
        compiled.input(input_name)
    except Exception as error:  # many unrelated types come from its compiled part, all about this file
        said = str(error).strip().splitlines() or ["no reason given"]
        raise AcclimateError(f"{file}: OpenVINO does not accept it ({said[-1]})") from None
    absent = [name for name in output_names if name not in ports]
    if absent:
        raise AcclimateError(f"{file}: has no output {', '.join(absent)}; export the artifact again")
    wanted = [ports[name] for name in output_names]
    request = compiled.create_infer_request()

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        found = request.infer({input_name: images}, share_inputs=True)
        return [found[port] for port in wanted]

    return run


def engine() -> Any:
    """The package openvino, imported so that it tells nobody."""
    with _unreported():
        return importlib.import_module("openvino")


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """OpenVINO and NNCF report their use over the network when they are imported, unless this package is not there."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)
