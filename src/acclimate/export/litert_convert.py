"""What of a LiteRT export runs in the converter's environment: `python litert_convert.py COMMAND ...`.

The converter pins other versions than training does, so it has an environment of its own, and this file is run there as
it is. It knows nothing of acclimate; what it takes and gives are files:

- `convert PROGRAM OUT NAMES...`: a program saved by `torch.export` as a .tflite file, with the input called `images`
  and the outputs called NAMES;
- `describe MODEL OUT`: the operations of a .tflite file as JSON, in order;
- `calibrate MODEL CANVASES OUT`: the ranges of its tensors on images (.npy, one input each) as JSON;
- `quantise MODEL RANGES KEPT OUT`: its INT8 version, with the operations that KEPT (JSON) names left in fp32.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT = "images"


def convert(program: str, out: str, *names: str) -> None:
    """See the module."""
    import litert_torch
    import torch

    class Named(torch.nn.Module):
        """A network whose outputs have names."""

        def __init__(self, network: torch.nn.Module, names: Sequence[str]) -> None:
            super().__init__()
            self.network = network
            self.names = tuple(names)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return dict(zip(self.names, self.network(images), strict=True))

    exported = torch.export.load(program)
    ((image,), _) = exported.example_inputs
    litert_torch.convert(Named(exported.module(), names), sample_kwargs={INPUT: image}).export(out)


def describe(model: str, out: str) -> None:
    """See the module.

    An operation's name is what KEPT and the quantiser know it by. `before` and `after` are places in the list;
    `learned` says whether it has a constant among its inputs; `input` and `output` whether it takes the image or gives
    an output.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flat

    found = flat.read_model(model)
    graph = found.subgraphs[0]
    maker = {int(tensor): place for place, operator in enumerate(graph.operators) for tensor in operator.outputs}
    ends = {int(tensor) for tensor in graph.inputs}
    outputs = {int(tensor) for tensor in graph.outputs}
    operations: list[dict[str, Any]] = []
    for operator in graph.operators:
        code = found.operatorCodes[operator.opcodeIndex].builtinCode
        inputs = [int(tensor) for tensor in operator.inputs if tensor >= 0]
        operations.append(
            {
                "name": flat.get_op_scope(operator, graph.tensors),
                "kind": str(getattr(flat.TFL_OP_CODE_TO_NAME.get(code), "value", code)),
                "learned": any(tensor not in maker and tensor not in ends for tensor in inputs),
                "input": any(tensor in ends for tensor in inputs),
                "output": any(int(tensor) in outputs for tensor in operator.outputs),
                "before": sorted({maker[tensor] for tensor in inputs if tensor in maker}),
                "after": [],
            }
        )
    for place, operation in enumerate(operations):
        for before in operation["before"]:
            operations[before]["after"].append(place)
    Path(out).write_text(json.dumps(operations))


def calibrate(model: str, canvases: str, out: str) -> None:
    """See the module."""
    images: NDArray[np.float32] = np.load(canvases)
    quantiser = _quantiser(model, ())
    (signature,) = (definition.signatureKey.decode() for definition in quantiser._float_model.signatureDefs)
    ranges = quantiser.calibrate({signature: [{INPUT: image[None]} for image in images]}, num_threads=1)
    Path(out).write_text(
        json.dumps({tensor: {end: np.asarray(v).tolist() for end, v in r.items()} for tensor, r in ranges.items()})
    )


def quantise(model: str, ranges: str, kept: str, out: str) -> None:
    """See the module.

    Args:
        model: the .tflite file.
        ranges: JSON, the ranges of its tensors.
        kept: JSON, the operations that stay in fp32.
        out: the .tflite file to write.
    """
    known = json.loads(Path(ranges).read_text())
    found = {tensor: {end: np.array(v, np.float32) for end, v in r.items()} for tensor, r in known.items()}
    result = _quantiser(model, json.loads(Path(kept).read_text())).quantize(found, enable_progress_report=False)
    result.export_model(out, overwrite=True)


def _quantiser(model: str, kept: Sequence[str]) -> Any:
    """INT8 weights, a scale a channel, and activations, but in the operations `kept` and at the graph's ends."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    kinds = qtyping.TFLOperationName
    made = quantizer.Quantizer(model)
    made.add_static_config(".*", kinds.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for end in (kinds.INPUT, kinds.OUTPUT):
        made.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    if kept:
        names = "|".join(re.escape(name) for name in kept)
        made.update_quantization_recipe(f"^(?:{names})$", kinds.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return made


COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "describe": describe,
    "calibrate": calibrate,
    "quantise": quantise,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
