"""What INT8 weights of 7 bits gain and lose on a processor, beside those of 8, into weight_bits.csv.

    python benchmarks/weight_bits.py
    python benchmarks/weight_bits.py --pairs "generated clear->fog" "pbc->bccd"

A processor without VNNI sums pairs of U8 x S8 products in 16 bits. Weights of 8 bits overflow there, unless the runtime
takes a slower way; weights of 7 do not. Measured as in stem.py: latency without pairs, AP50 with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nncf
from onnxruntime import quantization

from acclimate.edge.artifact import Artifact
from acclimate.export import exporter
from acclimate.models.detector import Detector
from stem import Export, compare

CSV = Path(__file__).with_suffix(".csv")
RUNTIMES = ("onnx", "openvino")


@contextmanager
def weights_of(bits: int) -> Iterator[None]:
    """Both quantisers make weights of so many bits, whatever they are told."""
    static, with_nncf = quantization.quantize_static, nncf.quantize
    fix = nncf.OverflowFix.ENABLE if bits == 7 else nncf.OverflowFix.DISABLE

    def quantize_static(*told: Any, **how: Any) -> None:
        static(*told, **{**how, "reduce_range": bits == 7})

    def quantize(*told: Any, **how: Any) -> Any:
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix)
        return with_nncf(*told, **{**how, "advanced_parameters": advanced})

    with (
        patch.object(quantization, "quantize_static", quantize_static),
        patch.object(nncf, "quantize", quantize),
    ):
        yield


def export(bits: int, runtime: str, detector: Detector, folder: Path, images: Sequence[Path]) -> Artifact:
    with weights_of(bits):
        return exporter(runtime).export(detector, folder, "int8", images)


FORMS: Mapping[str, Export] = {f"bits{bits}": partial(export, bits) for bits in (8, 7)}


def main(arguments: Sequence[str] | None = None) -> None:
    compare(__doc__.splitlines()[0], FORMS, RUNTIMES, CSV, arguments)


if __name__ == "__main__":
    main()
