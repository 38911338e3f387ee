"""Every kind of detector through every runtime and precision, held against the table in docs/concepts/runtimes.md.

`ACCLIMATE_WRITE_SUPPORT=1` writes what was found into that table instead of comparing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.config import ModelConfig
from acclimate.edge.artifact import Artifact
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export import base, exporter, litert, ncnn, onnx, openvino
from acclimate.models.bagged import BaggedHead
from acclimate.models.detector import Detector, build, specify
from acclimate.models.fcos import FCOSDetector
from acclimate.models.predict import network
from acclimate.models.two_stage import TwoStageDetector
from acclimate.scenes.sets import generate
from acclimate.verification.parity import pairs as paired
from acclimate.verification.record import Pair

CANVAS = (96, 128)
KINDS: Mapping[str, dict[str, Any]] = {
    "dense": {},
    "SSD": {"kind": "ssd", "ssd": {"extra": 1}},
    "Faster R-CNN": {"kind": "two-stage"},
    "TSD": {"kind": "two-stage", "two_stage": {"head": "disentangled"}},
    "slimmable, extracted": {"kind": "slimmable", "backbone": "mobilenetv4_conv_small_050"},
    "cascade": {"kind": "two-stage", "two_stage": {"head": "cascade"}},
    "bagged heads": {"kind": "two-stage", "two_stage": {"head": "bagged"}},
    "graph head": {"kind": "two-stage", "two_stage": {"head": "graph"}},
    "bi-box head": {"kind": "two-stage", "two_stage": {"head": "bi-box"}},
    "zoom": {"kind": "zoom", "strides": (8, 16)},
    "RetinaNet": {"kind": "retinanet"},
    "RetinaNet, first version": {"kind": "retinanet"},
    "FCOS": {"kind": "fcos"},
}
RUNTIMES = ["onnx", "openvino", "ncnn", "litert", "executorch"]
SLOW_RUNTIMES = ("litert", "executorch")
"""Their converters take longer than all the rest."""
NOT_TRIED = "not tried"
WITH_ALL = ("dense", "SSD", "Faster R-CNN", "TSD", "slimmable, extracted")
"""Kinds that go through those converters too."""
START, END = "<!-- what runs where -->\n", "<!-- end -->\n"


def lively(name: str, paths: list[Path]) -> Detector:
    """A detector that finds something: statistics from real images, and scores as spread as a trained one's."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"size": "nano", "backbone": "lcnet_050", "image_size": CANVAS, "weights": "none", **KINDS[name]}
    )
    spec = specify(config, ("a", "b", "c"))
    if name == "RetinaNet, first version":
        plain = spec.towers.model_copy(update={"tower_groups": 0, "box_loss": "l1"})
        spec = spec.model_copy(update={"towers": plain})
    detector = build(spec, "none")
    if isinstance(detector, TwoStageDetector) and isinstance(detector.roi_head, BaggedHead):
        # Trained members agree by and large; the mean of random ones is nearly the same everywhere.
        first, *others = (list(member.parameters()) for member in detector.roi_head.members)
        with torch.no_grad():
            for parameters in others:
                for own, theirs in zip(parameters, first, strict=True):
                    own.lerp_(theirs, 0.8)
    images = torch.cat([torch.from_numpy(to_input(letterbox(read_image(path), CANVAS)[0])) for path in paths])
    spread: dict[nn.Module, float] = {}

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        # The widest level of a module that all share: scores of the others do not saturate then.
        spread[module] = max(spread.get(module, 0.0), float(output.float().std()))

    hooks = [
        module.register_forward_hook(note)
        for path, module in detector.named_modules()
        if {"classify", "objectness"} & set(path.split(".")) and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        for _ in range(8):
            detector.train()(images)
        spread.clear()
        detector.eval()(images)
        for module, deviation in spread.items():
            module.weight.mul_(2 / max(deviation, 1e-6))
            # Of the dense detector, so that some places are objects; a softmax does not see a constant.
            module.bias.fill_(-2)
        if isinstance(detector, FCOSDetector):
            # Half of the distances would be 0, and the boxes without an area.
            detector.regress.bias.fill_(2)
    for hook in hooks:
        hook.remove()
    return detector


def compare(artifact: Artifact, detector: Detector, paths: list[Path]) -> list[Pair]:
    """Each detection of either, above a score of 0.3, with the other's of the same object."""
    predictor, reference = Predictor(artifact), network(base.frozen_copy(detector))
    found = []
    for path in paths:
        canvas, placed = predictor.prepare(read_image(path))
        theirs, ours = (predictor.finish(run(canvas), placed) for run in (reference, predictor.run))
        found += paired(theirs, ours, path.name, artifact.manifest.classes)
    return found


def agree(pairs: list[Pair], precision: str) -> bool:
    """Whether an artifact's detections are the detector's, as far as the precision lets them."""
    both = [pair for pair in pairs if pair.eager_score is not None and pair.artifact_score is not None]
    scores = np.array([abs((pair.eager_score or 0) - (pair.artifact_score or 0)) for pair in both])
    boxes = np.array([pair.box_px for pair in both], np.float64)
    if precision == "fp32":
        return len(both) == len(pairs) and bool(scores.max() < 1e-3 and boxes.max() < 0.1)
    # Where neighbours have nearly equal scores, NMS keeps another one: a few have no partner, or a shifted one.
    share, score, box = {"fp16": (0.95, 0.01, 0.5), "int8": (0.8, 0.1, 5.0)}[precision]
    return len(both) >= share * len(pairs) and bool(scores.mean() < score and np.median(boxes) < box)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    generate(folder, 8, CANVAS, 0)
    return sorted((folder / "images").iterdir())


@pytest.fixture(scope="module")
def rows(repository: Path) -> dict[str, list[str]]:
    """The table in the documentation: kind -> what stands in the column of each runtime."""
    text = (repository / "docs" / "concepts" / "runtimes.md").read_text()
    lines = text.split(START)[1].split(END)[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][1:] == [f"`{name}`" for name in RUNTIMES]
    return {row[0]: row[1:] for row in cells[2:]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_true(
    kind: str, paths: list[Path], rows: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = lively(kind, paths)
    written = tmp_path / "graph.onnx"
    onnx.write_graph(base.frozen_copy(detector), written)
    # The same graph for all: writing it takes longer than everything that is made of it.
    for module in (onnx, openvino, ncnn):
        monkeypatch.setattr(module, "write_graph", lambda frozen, file: shutil.copy(written, file))
    converted = tmp_path / "graph.tflite"
    if kind in WITH_ALL and not exporter("litert").missing():
        try:
            litert._convert(base.frozen_copy(detector), converted)
        except AcclimateError as error:
            refused = error

            def convert(frozen: Detector, file: Path) -> None:
                raise refused
        else:

            def convert(frozen: Detector, file: Path) -> None:
                shutil.copy(converted, file)

        monkeypatch.setattr(litert, "_convert", convert)
    tried = RUNTIMES if kind in WITH_ALL else [name for name in RUNTIMES if name not in SLOW_RUNTIMES]
    found = [cell(name, detector, paths, tmp_path) if name in tried else NOT_TRIED for name in RUNTIMES]
    if os.environ.get("ACCLIMATE_WRITE_SUPPORT"):
        write(Path(__file__).parents[2] / "docs" / "concepts" / "runtimes.md", kind, found)
        return
    for name, stated, seen in zip(RUNTIMES, rows[kind], found, strict=True):
        assert seen in ("not installed here", stated), name


def cell(name: str, detector: Detector, paths: list[Path], folder: Path) -> str:
    """The precisions in which a runtime carries a detector, after the detections were compared."""
    if exporter(name).missing():
        return "not installed here"
    carried = []
    for precision in exporter(name).precisions:
        try:
            artifact = exporter(name).export(detector, folder / f"{name}-{precision}", precision, paths)
        except AcclimateError as error:
            if "use another runtime" not in str(error):
                raise
            continue
        pairs = compare(artifact, detector, paths)
        assert len(pairs) >= 10, "nothing was found, so nothing was compared"
        assert agree(pairs, precision), f"{name} {precision}: {pairs}"
        carried.append(f"`{precision}`")
    return ", ".join(carried) or "no"


def write(page: Path, kind: str, found: list[str]) -> None:
    """Put one row into the table; what is not installed here stays as it was."""
    before, rest = page.read_text().split(START)
    table, after = rest.split(END)
    lines = table.strip().splitlines()
    place = next((i for i, line in enumerate(lines) if line.startswith(f"| {kind} |")), len(lines))
    old = lines[place].strip("|").split("|")[1:] if place < len(lines) else ["no"] * len(found)
    cells = [o.strip() if f == "not installed here" else f for o, f in zip(old, found, strict=True)]
    lines[place:] = [f"| {kind} | {' | '.join(cells)} |", *lines[place + 1 :]]
    page.write_text(f"{before}{START}" + "\n".join(lines) + f"\n{END}{after}")
