"""ONNX Runtime: fp32, and static INT8 in the QDQ format, by any of its providers. The artifact is one `model.onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from acclimate.edge.artifact import Artifact, ArtifactManifest, Provider
from acclimate.edge.engines.base import Engine, Network, check_named, reason
from acclimate.edge.external import check_self_contained
from acclimate.errors import AcclimateError

PROVIDERS: Mapping[Provider, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu, and TensorRT"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime, on macOS"),
}
"""By our name: ONNX Runtime's own, and the package that has it."""


class Onnx(Engine):
    """See the module."""

    name: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    extra: ClassVar[str] = ""

    def check(self, manifest: ArtifactManifest) -> None:
        """See `Engine.check`."""
        super().check(manifest.model_copy(update={"provider": "cpu"}))
        import onnxruntime

        name, package = PROVIDERS[manifest.provider]
        there = onnxruntime.get_available_providers()
        if name not in there:
            known = ", ".join(own for own, (theirs, _) in PROVIDERS.items() if theirs in there)
            raise AcclimateError(
                f"provider {manifest.provider}: this ONNX Runtime has {known}; it is in {package} (in place of "
                "onnxruntime)"
            )

    def open(self, artifact: Artifact, threads: int) -> Network:
        """See `Engine.open`."""
        import onnxruntime

        file, wanted, image = artifact.file(".onnx"), artifact.manifest.output_names, artifact.manifest.input_name
        check_self_contained(file)
        options = onnxruntime.SessionOptions()
        # Otherwise a file that looks like one is read as ONNX Runtime's own format, which was not looked through.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Without VNNI, sums of U8 x S8 products saturate in 16 bits, unless weights have 7 bits, as those that are
        # exported here do. Of others ONNX Runtime makes U8, which is right but slower.
        options.add_session_config_entry("session.x64quantprecision", "0" if _has_vnni() else "1")
        # A thread that spins between images takes the core from pre- and post-processing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
        try:
            # What a provider cannot compute falls to the CPU, operator by operator.
            wish, cpu = PROVIDERS[artifact.manifest.provider][0], PROVIDERS["cpu"][0]
            providers = list(dict.fromkeys((wish, cpu)))
            try:
                session = onnxruntime.InferenceSession(str(file), options, providers=providers)
            except Exception as error:
                # ONNX Runtime cannot make U8 of weights that two operators share, which somebody else's file may have:
                # then they may saturate; verification measures what that costs.
                if "existing tensor" not in str(error):
                    raise
                options.add_session_config_entry("session.x64quantprecision", "0")
                session = onnxruntime.InferenceSession(str(file), options, providers=providers)
            names = {output.name for output in session.get_outputs()}
        except Exception as error:  # onnxruntime raises many unrelated types here, all about this file
            raise AcclimateError(f"{file}: ONNX Runtime does not accept it ({reason(error)})") from None
        if session.get_providers()[0] != wish:
            raise AcclimateError(
                f"{file}: provider {artifact.manifest.provider} does not start on this machine (is its hardware there?)"
            )
        check_named(file, "output", wanted, names)

        def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
            outputs: list[NDArray[Any]] = session.run(list(wanted), {image: images})
            return outputs

        return run


def _has_vnni() -> bool:
    """Whether the processor says that it multiplies U8 by S8 into 32 bits; False where it cannot be asked."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
