"""OpenVINO on the CPU, from the ONNX graph of `torch.export`: fp32, fp16 weights, and INT8 by NNCF.

Loading imports openvino alone; torch, onnx and nncf are imported by `export`. Everything is computed in fp32 (and INT8
where quantised) unless the artifact asks for less: left to itself OpenVINO takes bfloat16 where the processor has it,
which moves boxes by pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    complexity,
    frozen_copy,
    quiet,
    why_not,
    write_artifact,
)
from acclimate.runtimes.onnx import INPUT, modules, write_graph
from acclimate.runtimes.quantise import Node, blocks, kept_in_float
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
        if precision == "int8":
            return self.export_mixed(detector, folder, calibration)
        if missing := why_not("openvino", "export"):
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)

        def build(temporary: Path) -> None:
            engine().save_model(convert(frozen)[0], temporary / "model.xml", compress_to_fp16=precision == "fp16")

        return write_artifact("openvino", frozen, folder, precision, build, notes=complexity(frozen))

    def export_mixed(
        self, detector: Detector, folder: Path, calibration: Sequence[Path], choose: Choose | None = None
    ) -> Artifact:
        """See `base.Mixes.export_mixed`."""
        return quantise.export(
            "openvino",
            detector,
            folder,
            calibration,
            choose,
            file="model.xml",
            quantiser=lambda frozen, canvases: contextlib.nullcontext(
                OpenVinoQuantiser(*convert(frozen), canvases, frozen.output_names)
            ),
            load=lambda file, names: _compile(file, 1, INPUT, names),
        )

    def load(self, artifact: Artifact, threads: int) -> Network:
        """See `Runtime.load`."""
        if missing := why_not("openvino"):
            raise AcclimateError(missing)
        return _compile(artifact.file(".xml"), threads, artifact.manifest.input_name, artifact.manifest.output_names)


def convert(frozen: Detector) -> tuple[Any, dict[str, str]]:
    """The detector's forward as an fp32 `openvino.Model`, and `onnx.modules` of the graph that it comes from."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        write_graph(frozen, graph)
        with quiet():
            return engine().convert_model(graph), modules(graph)


class OpenVinoQuantiser:
    """An `openvino.Model`, quantised as often as is asked. See `base.Quantiser`.

    Asymmetric activations, symmetric weights with one scale a channel, and biases corrected for what rounding shifts
    (NNCF's fast bias correction). The ends of the network stay in fp32 as `quantise.kept_in_float` says.
    """

    def __init__(
        self, model: Any, known: Mapping[str, str], canvases: Sequence[Image], output_names: Sequence[str]
    ) -> None:
        """Take an fp32 `model`, which is left as it is.

        Args:
            model: an `openvino.Model`.
            known: modules by the names of operations, as `convert` returns them.
            canvases: calibration images, (H, W, 3) uint8, RGB.
            output_names: of the graph, in the order of the manifest.
        """
        self._model, self._canvases, self._output_names = model, canvases, output_names
        nodes, inputs, outputs = _nodes(model)
        for name, node in nodes.items():
            if node.layer:
                node.module = _module(name, nodes, known)
        self._kept = kept_in_float(nodes, inputs, outputs)
        self._blocks = blocks(nodes, self._kept)

    @property
    def layers(self) -> Sequence[str]:
        return tuple(self._blocks)

    def network(self, in_float: Collection[str]) -> Network:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.xml"
            self.write(file, in_float)
            return _compile(file, 1, INPUT, self._output_names)

    def write(self, file: Path, in_float: Collection[str] = ()) -> None:
        """Write the INT8 version to `file`, with the layers `in_float` left in fp32."""
        engine().save_model(self.quantised(in_float), file, compress_to_fp16=False)

    def quantised(self, in_float: Collection[str] = ()) -> Any:
        """The INT8 version as an `openvino.Model`, with the layers `in_float` left in fp32."""
        names = [*self._kept, *(node for layer in in_float for node in self._blocks[layer])]
        with _unreported(), quiet():
            nncf = importlib.import_module("nncf")
            return nncf.quantize(
                self._model,
                nncf.Dataset(self._canvases, to_input),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(self._canvases),
                ignored_scope=nncf.IgnoredScope(names=names, validate=False),
            )


def _module(layer: str, nodes: Mapping[str, Node], known: Mapping[str, str]) -> str:
    """The module of a layer, by its own name or, where conversion has folded that away, by what follows it."""
    name = layer.split("/")[0]
    while name not in known:
        after = nodes[layer].after
        if not after or nodes[after[0]].layer:
            return ""
        name = layer = after[0]
    return known[name]


def _nodes(model: Any) -> tuple[Mapping[str, Node], Sequence[str], Sequence[str]]:
    """An OpenVINO model for `quantise.kept_in_float`: its operations in order, constants left out, and its ends."""
    operations = {
        operation.get_friendly_name(): operation
        for operation in model.get_ordered_ops()
        if operation.get_type_name() != "Constant"
    }
    nodes = {}
    for name, operation in operations.items():
        sources = [value.get_source_output().get_node() for value in operation.inputs()]
        nodes[name] = Node(
            layer=operation.get_type_name() in LAYERS,
            learned=any(source.get_type_name() == "Constant" for source in sources),
            chooses=operation.get_type_name() == "TopK",
            before=[source.get_friendly_name() for source in sources if source.get_type_name() != "Constant"],
            after=[
                user.get_node().get_friendly_name()
                for value in operation.outputs()
                for user in value.get_target_inputs()
            ],
        )
    inputs, outputs = (
        [node.get_friendly_name() for node in ends] for ends in (model.get_parameters(), model.get_results())
    )
    return nodes, inputs, outputs


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
