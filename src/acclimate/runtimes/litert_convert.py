"""What of a LiteRT export runs in the converter's environment: `python litert_convert.py PROGRAM OUT NAMES...`.

The converter pins other versions than training does, so it has an environment of its own, and this file is run there as
it is. It knows nothing of acclimate: a program saved by `torch.export` in, a .tflite file out, with the input called
`images` and the outputs called NAMES.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

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


def main(program: str, out: str, *names: str) -> None:
    """See the module."""
    exported = torch.export.load(program)
    ((image,), _) = exported.example_inputs
    litert_torch.convert(Named(exported.module(), names), sample_kwargs={"images": image}).export(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
