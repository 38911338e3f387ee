"""Eager, ONNX Runtime fp32 and INT8 of each model size, as fractions of this machine's measured peak.

    python benchmarks/latency.py

One thread. The peak is the best rate that a large matrix product reaches here in any round: ONNX Runtime's MatMul for
fp32, its MatMulInteger (u8 x s8) for INT8. Each round measures the peaks and all variants in turn, so that a slow
minute of the machine falls on all of them; the CSV has medians over rounds. Weights are random: latency does not
depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import rows
from acclimate import machine
from acclimate.config import ModelConfig
from acclimate.edge.engines import engine
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.export import exporter
from acclimate.models import detector as models
from acclimate.scenes import sets
from acclimate.scenes.render import CLASSES
from timing import median_ms

CSV = Path(__file__).with_suffix(".csv")
SIDE = 1024
COMMON: dict[str, Any] = {"weights": "none", "conv": "depthwise"}
LITE0: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "channels": 48, "depth": 1}
MODELS = {
    "nano 320": ModelConfig(size="nano", image_size=(320, 320), **COMMON),
    "tiny 320": ModelConfig(size="tiny", image_size=(320, 320), **COMMON),
    "small 320": ModelConfig(size="small", image_size=(320, 320), **COMMON),
    "lite0 256": ModelConfig(**LITE0, image_size=(256, 256), **COMMON),
}


def peak(precision: str) -> Callable[[], Any]:
    """A product of two SIDE x SIDE matrices in ONNX Runtime, the second one constant, on one thread."""
    types = onnx.TensorProto
    operator, kinds = {
        "fp32": ("MatMul", (np.float32, types.FLOAT, np.float32, types.FLOAT)),
        "int8": ("MatMulInteger", (np.uint8, types.UINT8, np.int8, types.INT32)),
    }[precision]
    left, left_type, right, out_type = kinds
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.integers(-99, 99, (SIDE, SIDE)).astype(right), "b")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["a", "b"], ["c"])],
        "peak",
        [onnx.helper.make_tensor_value_info("a", left_type, (SIDE, SIDE))],
        [onnx.helper.make_tensor_value_info("c", out_type, (SIDE, SIDE))],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a = rng.integers(0, 99, (SIDE, SIDE)).astype(left)
    return lambda: session.run(None, {"a": a})


def rates(rounds: Sequence[Mapping[Any, float]], key: Any, precision: str, macs_m: float) -> tuple[float, float]:
    """10^9 operations a second: of `key`, the median over rounds of milliseconds, and of the peak, the best."""
    own = statistics.median(2 * macs_m / one[key] for one in rounds)
    return own, max(2 * SIDE**3 / one[precision] / 1e6 for one in rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = sets.generate(Path(temporary) / "scenes", 32, (240, 320), 0).parent / "images"
        paths = sorted(folder.glob("*.jpg"))
        CSV.unlink(missing_ok=True)
        peaks = {precision: peak(precision) for precision in ("fp32", "int8")}
        for name, config in MODELS.items():
            detector = models.build(models.specify(config, CLASSES)).eval()
            canvas = to_input(letterbox(read_image(paths[0]), config.image_size)[0])
            eager = detector.to(memory_format=torch.channels_last)
            tensor = torch.from_numpy(canvas).contiguous(memory_format=torch.channels_last)
            calls: dict[str, Callable[[], Any]] = {"eager": lambda eager=eager, tensor=tensor: eager(tensor)}
            macs = 0.0
            for precision in ("fp32", "int8"):
                artifact = exporter("onnx").export(detector, Path(temporary) / f"{name} {precision}", precision, paths)
                macs = float(artifact.manifest.notes.macs_m)
                network = engine("onnx").load(artifact, 1)
                calls[f"onnx {precision}"] = lambda network=network, canvas=canvas: network(canvas)
            rounds = [
                {key: median_ms(call, options.runs) for key, call in {**peaks, **calls}.items()}
                for _ in range(options.rounds)
            ]
            for variant in calls:
                kind = "int8" if "int8" in variant else "fp32"
                rate, best = rates(rounds, variant, kind, macs)
                row = {
                    "model": name,
                    "variant": variant,
                    "image_size": "x".join(map(str, config.image_size)),
                    "macs_m": f"{macs:.0f}",
                    "latency_ms": f"{statistics.median(r[variant] for r in rounds):.2f}",
                    "rate_gops": f"{rate:.1f}",
                    "peak_gops": f"{best:.0f}",
                    "fraction_of_peak": f"{rate / best:.3f}",
                    "speed_up_over_eager": f"{statistics.median(r['eager'] / r[variant] for r in rounds):.2f}",
                    "rounds": options.rounds,
                    "processor": machine.facts()["processor"],
                    "torch": torch.__version__,
                    "onnxruntime": onnxruntime.__version__,
                }
                rows.append(CSV, row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
