"""ncnn on the CPU: fp32, and fp16. The artifact is `model.param` and `model.bin`.

fp16 halves the file, and is computed in where the processor has fp16 arithmetic (ARMv8.2); elsewhere in fp32.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.engines.base import Engine, Network, check_named
from acclimate.errors import AcclimateError


class Ncnn(Engine):
    """See the module."""

    name: ClassVar[str] = "ncnn"
    packages: ClassVar[tuple[str, ...]] = ("ncnn",)
    extra: ClassVar[str] = "ncnn"

    def open(self, artifact: Artifact, threads: int) -> Network:
        """See `Engine.open`."""
        ncnn = importlib.import_module("ncnn")
        param, weights, manifest = artifact.file(".param"), artifact.file(".bin"), artifact.manifest
        net = ncnn.Net()
        net.opt.num_threads = threads
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(net.opt, option, manifest.precision == "fp16")
        if net.load_param(str(param)) or net.load_model(str(weights)):
            raise AcclimateError(f"{param}: ncnn does not accept it, or {weights.name}; export the artifact again")
        check_named(param, "input or output", [manifest.input_name], net.input_names())
        check_named(param, "input or output", manifest.output_names, net.output_names())

        def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
            outputs = []
            extractor = net.create_extractor()
            # A copy in ncnn's own, aligned memory: its first layer may compute in place.
            extractor.input(manifest.input_name, ncnn.Mat(images[0]).clone())
            for name in manifest.output_names:
                status, output = extractor.extract(name)
                if status:
                    raise AcclimateError(f"{param}: ncnn cannot compute {name}; its memory may have run out")
                outputs.append(np.array(output)[None])
            return outputs

        return run
