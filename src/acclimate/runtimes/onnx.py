"""ONNX through `torch.export`, run by ONNX Runtime: fp32, and static INT8 in the QDQ format.

Loading imports onnxruntime alone; torch and onnx are imported by `export`.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.external import check_self_contained
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
from acclimate.runtimes.quantise import Node, blocks, kept_in_float, owners
from acclimate.structures import Image

if TYPE_CHECKING:
    from acclimate.models.detector import Detector

OPSET = 18
INPUT = "images"


class Onnx:
    """ONNX Runtime on the CPU. The artifact is one `model.onnx`, batch 1, static shapes."""

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """See `Runtime.export`. INT8 keeps the first and the last convolutions in fp32."""
        check_precision(
            precision, self.precisions, "onnx", "ONNX Runtime's CPU kernels would convert it to fp32 and back"
        )
        if precision == "int8":
            return self.export_mixed(detector, folder, calibration)
        if missing := why_not("onnx", "export"):
            raise AcclimateError(missing)
        frozen = frozen_copy(detector)
        return write_artifact(
            "onnx",
            frozen,
            folder,
            precision,
            lambda temporary: write_graph(frozen, temporary / "model.onnx"),
            notes=complexity(frozen),
        )

    def export_mixed(
        self, detector: Detector, folder: Path, calibration: Sequence[Path], choose: Choose | None = None
    ) -> Artifact:
        """See `base.Mixes.export_mixed`."""
        return quantise.export(
            "onnx",
            detector,
            folder,
            calibration,
            choose,
            file="model.onnx",
            quantiser=quantiser,
            load=lambda file, names: _session(file, 1, INPUT, names),
        )

    def load(self, artifact: Artifact, threads: int) -> Network:
        """See `Runtime.load`."""
        return _session(artifact.file(".onnx"), threads, artifact.manifest.input_name, artifact.manifest.output_names)


def _session(file: Path, threads: int, input_name: str = INPUT, output_names: Sequence[str] = ()) -> Network:
    try:
        import onnxruntime
    except ImportError:
        raise AcclimateError("onnxruntime is not installed: pip install onnxruntime") from None
    check_self_contained(file)
    options = onnxruntime.SessionOptions()
    # Otherwise a file that looks like one is read as ONNX Runtime's own format, which was not looked through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Without VNNI, sums of U8 x S8 products saturate in 16 bits; U8 weights do not, at about half the speed of VNNI.
    options.add_session_config_entry("session.x64quantprecision", "0" if _has_vnni() else "1")
    # A thread that spins between images takes the core from pre- and post-processing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = {output.name for output in session.get_outputs()}
    except Exception as error:  # onnxruntime raises many unrelated types here, all about this file
        raise AcclimateError(f"{file}: ONNX Runtime does not accept it ({str(error).splitlines()[0]})") from None
    absent = [name for name in output_names if name not in names]
    if absent:
        raise AcclimateError(f"{file}: has no output {', '.join(absent)}; export the artifact again")
    wanted = list(output_names) or None

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(wanted, {input_name: images})
        return outputs

    return run


def _has_vnni() -> bool:
    """Whether the processor says that it multiplies U8 by S8 into 32 bits; False where it cannot be asked."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def write_graph(frozen: Detector, file: Path) -> None:
    """The detector's forward as an ONNX file."""
    import torch

    image = torch.zeros(1, 3, *frozen.spec.image_size)
    with quiet():
        torch.onnx.export(
            frozen,
            (image,),
            str(file),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(frozen.output_names),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


class OnnxQuantiser:
    """An ONNX graph, quantised as often as is asked. See `base.Quantiser`.

    Asymmetric unsigned activations and symmetric signed weights with one scale a channel. In fp32 stay the last
    convolutions and what follows, as box sides and low scores need more than 256 levels, and the normalisation and
    the first convolution, whose three input channels fill too little of an INT8 dot product to gain anything.

    Attributes:
        modules: those parts of the detector whose weights are rounded, from the image on.
    """

    def __init__(self, single: Path, canvases: Sequence[Image]) -> None:
        """Take the fp32 file `single`, beside which others are written.

        Args:
            single: the fp32 file.
            canvases: calibration images, (H, W, 3) uint8, RGB.
        """
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._canvases = canvases
        self._prepared = single.with_name("prepared.onnx")
        with quiet():
            quant_pre_process(single, self._prepared, skip_symbolic_shape=True)
        nodes, inputs, outputs = _nodes(onnx.load(self._prepared).graph, modules(single))
        self._kept = kept_in_float(nodes, inputs, outputs)
        self._blocks = blocks(nodes, self._kept)
        kept = set(self._kept)
        made = (node.module for name, node in nodes.items() if node.layer and node.learned and name not in kept)
        self.modules = tuple(dict.fromkeys(module for module in made if module))

    @property
    def layers(self) -> Sequence[str]:
        return tuple(self._blocks)

    def network(self, in_float: Collection[str]) -> Network:
        file = self._prepared.with_name("trial.onnx")
        self.write(file, in_float)
        return _session(file, 1)

    def write(self, file: Path, in_float: Collection[str] = ()) -> None:
        """Write the INT8 version to `file`, with the layers `in_float` left in fp32."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        # Ranges are those of the fp32 network whatever is quantised; an older ONNX Runtime measures them each time.
        cached = "calibration_cache_path" in inspect.signature(quantize_static).parameters
        ranges = {"calibration_cache_path": self._prepared.with_name("ranges.json")} if cached else {}
        with quiet():
            quantize_static(
                self._prepared,
                file,
                _Reader(self._canvases),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=[*self._kept, *(node for name in in_float for node in self._blocks[name])],
                **ranges,
            )


@contextmanager
def quantiser(frozen: Detector, canvases: Sequence[Image]) -> Iterator[OnnxQuantiser]:
    """The detector's graph, ready to be quantised; files are kept in a folder of its own until the end."""
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder) / "fp32.onnx"
        write_graph(frozen, single)
        yield OnnxQuantiser(single, canvases)


def quantised_modules(frozen: Detector) -> tuple[str, ...]:
    """The detector's modules whose weights INT8 rounds, from the image on.

    Args:
        frozen: what `base.frozen_copy` returns.
    """
    with quantiser(frozen, ()) as graph:
        return graph.modules


class _Reader:
    """Calibration images for ONNX Runtime's calibrator, which asks for one at a time."""

    def __init__(self, canvases: Sequence[Image]) -> None:
        self._rest = iter(canvases)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        canvas = next(self._rest, None)
        return None if canvas is None else {INPUT: to_input(canvas)}


def modules(file: Path) -> dict[str, str]:
    """Each operation of a graph that `write_graph` wrote -> the module whose weights the latest layer up to it has."""
    import onnx

    graph = onnx.load(file).graph
    nodes, _, _ = _nodes(graph)
    weights = {node.name: [name for name in node.input if name.endswith(".weight")] for node in graph.node}
    owned = {name: weights[layer] for name, layer in owners(nodes).items()}
    return {name: found[0].removesuffix(".weight") for name, found in owned.items() if found}


def _nodes(
    graph: Any, known: Mapping[str, str] | None = None
) -> tuple[Mapping[str, Node], Sequence[str], Sequence[str]]:
    """An ONNX graph for `quantise.kept_in_float`: its operations in order, those that begin and those that end it.

    Args:
        graph: of an ONNX model.
        known: modules of layers by the layer's name.
    """
    learned = {value.name for value in graph.initializer}
    maker = {output: node.name for node in graph.node for output in node.output}
    nodes = {
        node.name: Node(
            layer=node.op_type in {"Conv", "MatMul", "Gemm"},
            learned=not learned.isdisjoint(node.input),
            chooses=node.op_type == "TopK",
            module=(known or {}).get(node.name, ""),
            before=[maker[name] for name in node.input if name in maker],
        )
        for node in graph.node
    }
    for name, node in nodes.items():
        for before in node.before:
            nodes[before].after.append(name)
    inputs = [node.name for node in graph.node if INPUT in node.input]
    return nodes, inputs, [maker[output.name] for output in graph.output]
