"""ExecuTorch: parity with the detector, INT8 and its layers, and what is folded before it is lowered."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coloured_squares as squares
from acclimate.edge import engines
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.errors import AcclimateError
from acclimate.export import base, executorch, exporter


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if missing := exporter("executorch").missing():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("artifacts") / "executorch-fp32"
    return exporter("executorch").export(squares.SquareDetector(), folder, "fp32", [])


@pytest.mark.slow
def test_it_is_the_detector_on_images(artifact: Artifact, tmp_path: Path) -> None:
    squares.check_parity(artifact, tmp_path / "scenes")


@pytest.mark.slow
def test_int8_differs_from_fp32_where_layers_are_quantised(artifact: Artifact, tmp_path: Path) -> None:
    scenes = squares.write_scenes(tmp_path / "scenes", 6).images
    canvas = to_input(letterbox(read_image(scenes[0].path), squares.CANVAS)[0])
    reference = engines.engine("executorch").load(artifact, 1)(canvas)

    def difference(run: engines.Network) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(run(canvas), reference, strict=True))

    def choose(graph: base.Quantiser) -> Collection[str]:
        # By the names of modules; the first and the last layers are not there to be chosen.
        assert graph.layers == ("colour", "pool")
        assert difference(graph.network(graph.layers)) < 1e-5
        return ()

    made = exporter("executorch").export(
        squares.SquareDetector(), tmp_path / "a", "int8", [scene.path for scene in scenes], choose
    )
    assert made.manifest.precision == "int8"
    assert difference(engines.engine("executorch").load(made, 1)) > 1e-5


class Levels(nn.Module):
    """A convolution that two levels share, with a BatchNorm for each, as pyramids and heads have them."""

    spec = SimpleNamespace(image_size=(8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        for place, norm in enumerate(self.norms):
            nn.init.normal_(norm.weight)
            norm.running_mean.fill_(place + 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.norms[0](self.layer(images)), self.norms[1](self.layer(images[..., ::2, ::2]))


def test_a_layer_that_levels_share_has_the_batch_norm_of_each() -> None:
    """ExecuTorch's own folding multiplies the weights of the first level by the scale of the second as well."""
    torch.manual_seed(0)
    detector = Levels().eval().requires_grad_(False)
    graph = executorch.program(detector)
    assert not graph.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    images = torch.rand(1, 3, 8, 8)
    for ours, theirs in zip(graph(images), detector(images), strict=True):
        torch.testing.assert_close(ours, theirs)


class Spectral(squares.SquareDetector):
    """With an operation that ExecuTorch has no kernel for."""

    def features(self, images: Tensor) -> list[Tensor]:
        return super().features(torch.linalg.svdvals(images).sum() * 0 + images)


def test_what_it_does_not_carry_is_refused_in_one_line(tmp_path: Path) -> None:
    if missing := exporter("executorch").missing():
        pytest.skip(missing)
    with pytest.raises(AcclimateError, match=r"(?i)executorch.*; use another runtime") as caught:
        exporter("executorch").export(Spectral(), tmp_path / "a", "fp32", [])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"executorch does not export fp16: .*; use fp32 or int8"):
        exporter("executorch").export(squares.SquareDetector(), tmp_path / "a", "fp16", [])
