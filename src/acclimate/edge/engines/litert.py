"""LiteRT (once TensorFlow Lite) on the CPU: fp32, and static INT8. The artifact is one `model.tflite`."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact
from acclimate.edge.engines.base import Engine, Network, check_named, reason
from acclimate.errors import AcclimateError


class LiteRt(Engine):
    """See the module."""

    name: ClassVar[str] = "litert"
    packages: ClassVar[tuple[str, ...]] = ("ai_edge_litert",)
    extra: ClassVar[str] = "litert"

    def open(self, artifact: Artifact, threads: int) -> Network:
        """See `Engine.open`."""
        interpreter = importlib.import_module("ai_edge_litert.interpreter")
        file, manifest = artifact.file(".tflite"), artifact.manifest
        try:
            runner = interpreter.Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise AcclimateError(f"{file}: LiteRT does not accept it ({reason(error)})") from None
        check_named(file, "input or output", [manifest.input_name], inputs)
        check_named(file, "input or output", manifest.output_names, outputs)

        def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
            try:
                found = runner(**{manifest.input_name: images})
            except (ValueError, RuntimeError) as error:
                raise AcclimateError(
                    f"{file}: LiteRT cannot run it ({reason(error)}); use another runtime or precision"
                ) from None
            return [found[name] for name in manifest.output_names]

        return run
