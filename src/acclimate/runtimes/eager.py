"""The reference: the detector itself, in PyTorch, behind the same seam as the engines it is compared with."""

from __future__ import annotations

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
    complexity,
    frozen_copy,
    why_not,
    write_artifact,
)

if TYPE_CHECKING:
    from acclimate.models.detector import Detector


class Eager:
    """PyTorch on the CPU, fp32. Its artifact is `spec.json` and `model.safetensors`."""

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    def export(self, detector: Detector, folder: Path, precision: Precision, calibration: Sequence[Path]) -> Artifact:
        """See `Runtime.export`; fp32 alone."""
        from acclimate.models import detector as detectors

        check_precision(precision, self.precisions, "eager", "it is the reference for the others")
        frozen = frozen_copy(detector)
        return write_artifact(
            "eager",
            frozen,
            folder,
            precision,
            lambda temporary: detectors.save(frozen, temporary),
            notes=complexity(frozen),
        )

    def load(self, artifact: Artifact, threads: int) -> Network:
        """See `Runtime.load`. The thread count is PyTorch's own, so it holds for the whole process."""
        if missing := why_not("eager"):
            raise AcclimateError(missing)
        import torch

        from acclimate.models import detector as detectors

        torch.set_num_threads(threads)
        return network(detectors.load(artifact.folder))


def network(detector: Detector) -> Network:
    """A detector in evaluation mode as numpy in, numpy out."""
    import torch

    device = next(detector.parameters()).device

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            outputs = detector(torch.from_numpy(images).to(device))
        return [output.float().cpu().numpy() for output in outputs]

    return run
