"""The comparison with other detectors: counts, boxes and ratios by hand, and that none of them is ours to import."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import peers
import rows
from acclimate.export.base import INPUT
from acclimate.structures import Detections
from timing import spread, within


def network(file: Path) -> Path:
    """A 3x3 convolution of stride 2 from 3 to 4 channels, and a product of its pixels with 16 columns."""
    weights = {"kernel": (4, 3, 3, 3), "matrix": (16, 5), "transposed": (6, 5)}
    nodes = [
        helper.make_node("Conv", ["theirs", "kernel"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("MatMul", ["b", "matrix"], ["c"]),
        helper.make_node("Gemm", ["c", "transposed"], ["d"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("theirs", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, (4, 6))],
        [
            numpy_helper.from_array(np.array([4, 16], np.int64), "shape"),
            *(numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)
    return file


def test_weights_and_multiply_accumulates_by_hand(tmp_path: Path) -> None:
    weights, macs = peers.counted(network(tmp_path / "network.onnx"))
    assert weights * 1e6 == pytest.approx(4 * 27 + 16 * 5 + 6 * 5)
    assert macs * 1e6 == pytest.approx(4 * 16 * 27 + 4 * 5 * 16 + 4 * 6 * 5)


def test_a_foreign_graph_gets_our_input_and_names_for_its_nodes(tmp_path: Path) -> None:
    peers.named(network(tmp_path / "theirs.onnx"), tmp_path / "ours.onnx")
    graph = onnx.load(tmp_path / "ours.onnx").graph
    assert graph.input[0].name == graph.node[0].input[0] == INPUT
    assert len({node.name for node in graph.node} - {""}) == len(graph.node)


def test_boxes_of_a_label_file(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_text("1 0.5 0.5 0.5 0.25 0.3\n0 0.25 0.5 0.5 1 0.9\n")
    found = peers.from_text(file, (100, 200))
    np.testing.assert_allclose(found.boxes, [[0, 0, 100, 100], [50, 37.5, 150, 62.5]])
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])
    assert len(peers.from_text(tmp_path / "absent.txt", (100, 200))) == 0


def test_a_ratio_is_taken_within_a_round() -> None:
    found = spread(within([{"a": 2.0, "b": 1.0}, {"a": 30.0, "b": 10.0}, {"a": 5.0, "b": 1.0}], "a", "b"))
    assert found == {"ratio_median": "3.000", "ratio_min": "2.000", "ratio_max": "5.000"}
    assert spread(within([{"a": 1.0}], "a", "absent")) == {}


@pytest.mark.parametrize(("budget", "length"), [(210, 20), (214, 20), (5, 1)])
def test_the_length_of_a_training_fits_the_budget(budget: float, length: int) -> None:
    # Starting takes 10 s, and two epochs 20 s more.
    assert peers.epochs_that_fit(budget, start=10, trial=30, length=2) == length


@dataclass(frozen=True)
class Fake(peers.Peer):
    """Trains by adding to a list."""

    fails: bool = False
    calls: tuple[Callable[[str], None], ...] = ()
    graph_holds = "nothing"

    def graph(self, data: Any) -> Path:
        raise peers.PeerError("no graph\nhere")

    def train(self, data: Any, split: str, length: int) -> float:
        self.calls[0](f"{split} {length}")
        if self.fails:
            raise peers.PeerError("exit status 1: no such package")
        return {"few": 10.0, "trial": 30.0, "whole": 200.0}[split]

    def boxes(self, data: Any, split: str) -> list[Detections]:
        return [Detections.empty()]


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(csv=tmp_path / "peers.csv", minutes=3.5, rounds=1, runs=1)


def test_a_row_is_made_once_and_a_peer_that_fails_says_why(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    both = [Fake("good", calls=(said.append,)), Fake("bad", fails=True, calls=(said.append,))]
    monkeypatch.setattr(peers, "RUNS", options.csv.parent)
    monkeypatch.setattr(peers, "average_precision", lambda *_, **__: SimpleNamespace(ap50=0.5, ap=0.25))
    data: Any = SimpleNamespace(classes=("a",), test=None, images=[])
    for _ in range(2):
        peers.training(both, data, options)
        peers.latency(both, data, options)
    assert said == ["few 1", "trial 1", "whole 10", "few 1"]
    good, bad, *timed = rows.read(options.csv)
    assert (good["ap50"], good["length"], good["reason"]) == ("0.5000", "10", "")
    assert (bad["ap50"], bad["reason"]) == ("", "exit status 1: no such package")
    assert [row["reason"] for row in timed] == ["no graph"] * 2 * len(peers.VARIANTS)


def test_a_command_is_timed_with_its_children_and_its_failure_is_told(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(2_000_000))'])"
    assert peers.processor_seconds([sys.executable, "-c", program], tmp_path / "a.log", tmp_path) > 0.02
    with pytest.raises(peers.PeerError, match="exit status 3: the reason"):
        peers.processor_seconds(
            [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], tmp_path / "b.log", tmp_path
        )
    with pytest.raises(peers.PeerError, match="absent: No such file"):
        peers.processor_seconds([tmp_path / "absent"], tmp_path / "c.log", tmp_path)


def test_peers_are_pinned_and_the_agpl_one_is_never_imported(repository: Path) -> None:
    environments = {peer.environment for peer in peers.PEERS if peer.environment}
    assert all("==" in package for one in environments for package in one.packages)
    files = [file for part in ("src", "benchmarks", "tests", "docs") for file in (repository / part).rglob("*.py")]
    imported = re.compile(r"^\s*(import|from) ultralytics\b|import_module\(.ultralytics", flags=re.MULTILINE)
    assert [file.name for file in files if imported.search(file.read_text())] == []
    assert "ultralytics" not in (repository / "pyproject.toml").read_text()


def test_ignored_boxes_are_left_out_of_what_peers_train_on(tmp_path: Path) -> None:
    from acclimate.data.formats import LabelledImage, LabelledSet
    from acclimate.structures import Annotations

    picture = tmp_path / "one.jpg"
    picture.write_bytes(b"picture")
    boxes = np.float32([[0, 0, 4, 2], [1, 1, 2, 2]])
    marked = Annotations(boxes, np.array([1, 0]), np.array([False, True]))
    image = LabelledImage(picture, 8, 8, marked)
    peers._write_coco(LabelledSet("set", "coco", ("a", "b"), (image,), ()), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "_annotations.coco.json").read_text())["annotations"]
    assert [(one["bbox"], one["category_id"]) for one in found] == [([0, 0, 4, 2], 2)]
