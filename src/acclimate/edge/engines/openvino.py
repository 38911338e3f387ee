"""OpenVINO on the CPU: fp32, fp16 weights, and INT8. The artifact is `model.xml` and `model.bin`.

Everything is computed in fp32 (and INT8 where quantised): left to itself OpenVINO takes bfloat16 where the processor
has it, which moves boxes by pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.engines.base import Engine, Network, check_named, reason
from acclimate.errors import AcclimateError


class OpenVino(Engine):
    """See the module."""

    name: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino"

    def open(self, artifact: Artifact, threads: int) -> Network:
        """See `Engine.open`."""
        file, manifest = artifact.file(".xml"), artifact.manifest
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads of two processes would share a core while another is idle.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = package().Core().compile_model(str(file), "CPU", options)
            ports = {name: port for port in compiled.outputs for name in port.get_names()}
            compiled.input(manifest.input_name)
        except Exception as error:  # many unrelated types come from its compiled part, all about this file
            raise AcclimateError(f"{file}: OpenVINO does not accept it ({reason(error, -1)})") from None
        check_named(file, "output", manifest.output_names, ports)
        wanted = [ports[name] for name in manifest.output_names]
        request = compiled.create_infer_request()

        def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
            outputs = request.infer({manifest.input_name: images}, share_inputs=True)
            return [outputs[port] for port in wanted]

        return run


def package() -> Any:
    """The package openvino, imported so that it tells nobody."""
    with unreported():
        return importlib.import_module("openvino")


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """OpenVINO and NNCF report their use over the network when they are imported, unless this package is not there."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)
