"""Other detectors of this size beside acclimate's nano and tiny: latency, size, and AP50 from the same processor time.

    python benchmarks/peers.py --install     # makes runs/peers/env-NAME, from the registry
    python benchmarks/peers.py latency
    python benchmarks/peers.py training --minutes 6

Each peer is installed in an environment of its own and driven by its command line (those that have none, by
peers_foreign.py): none is imported by this process or by acclimate. No weights are downloaded: peers start at random,
acclimate's presets both at random and from the ImageNet weights that come as a package.

Latency: the fp32 ONNX file that a peer exports is quantised by acclimate's own rules, for ONNX Runtime and for
OpenVINO, with the same calibration images; all are then timed in one process in turn, round by round, in processor time
on one thread. Training: a peer trains by its own defaults for as many epochs as fit into the minutes of processor time;
the boxes that it then writes are all judged by acclimate's evaluation. A row that is in the CSV is not made again; a
peer that cannot be installed or run has a row that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console

import rows
from acclimate import __version__, machine, workflow
from acclimate.config import DataConfig, ModelConfig
from acclimate.data import formats, write
from acclimate.data.formats import LabelledSet
from acclimate.edge.engines import engine
from acclimate.edge.engines.openvino import package
from acclimate.edge.images import letterbox, read_image, to_input
from acclimate.evaluate import average_precision, predictions_of
from acclimate.export.base import INPUT, frozen_copy
from acclimate.export.onnx import OnnxGraph, write_graph
from acclimate.export.openvino import OpenVinoGraph
from acclimate.models import detector as models
from acclimate.structures import Detections
from timing import median_ms, spread, within

HERE = Path(__file__).resolve().parent
CSV = HERE / "peers.csv"
RUNS = HERE.parent / "runs" / "peers"
FOREIGN = HERE / "peers_foreign.py"
SIDE = 320
"""Of the canvas that latency is measured on, pixels."""
SMALL = 160
"""Of the canvas that is trained on, pixels, where a peer takes it."""
IMAGE = (128, 160)
FIELD_OF_VIEW = 30.0
SETS = {"train": (300, 0), "test": (150, 1)}
"""Generated images in clear weather: how many, from which seed; those of `adaptation.py`."""
FEW = 16
"""Images of the short training that shows what starting up costs, and whose weights are exported."""
CALIBRATION = 32
VARIANTS = [(runtime, precision) for runtime in ("onnx", "openvino") for precision in ("fp32", "int8")]
REFERENCE = "acclimate tiny"
NEVER_ONLINE = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true",
    "YOLO_CONFIG_DIR": str(RUNS / "settings"), "WANDB_MODE": "disabled",
}  # fmt: skip


class PeerError(Exception):
    """A peer cannot be installed or run; the message goes into its row."""


def processor_seconds(command: Sequence[str | Path], log: Path, folder: Path) -> float:
    """Run a command in a folder and return the processor time that it and its children took.

    Raises:
        PeerError: it cannot be started, or it fails; with the last line that it wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out:
        try:
            child = subprocess.Popen(
                list(map(str, command)), cwd=folder, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **NEVER_ONLINE},
            )  # fmt: skip
        except OSError as error:
            raise PeerError(f"{Path(command[0]).name}: {error.strerror}") from None
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = said[-1][:160] if said else "no output"
        raise PeerError(f"exit status {child.returncode}: {last}")
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Environment:
    """An environment of the benchmark's own, which sees the project's packages behind its own (torch among them)."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return RUNS / f"env-{self.name}"

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name

    def install(self) -> None:
        """Make it, where it is not there.

        Raises:
            PeerError: a package cannot be had.
        """
        done = self.folder / "installed"
        if done.exists() and done.read_text() == " ".join(self.packages):
            return
        venv.create(self.folder, with_pip=True, clear=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = self.folder / "lib" / version / "site-packages"
        (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
        processor_seconds([self.program("pip"), "install", *self.packages], self.folder / "pip.log", self.folder)
        done.write_text(" ".join(self.packages))


@dataclass(frozen=True)
class Data:
    """The generated images, in the layouts that the peers read."""

    folder: Path
    classes: tuple[str, ...]
    test: LabelledSet

    @property
    def images(self) -> list[Path]:
        """Of the test set, in its order."""
        return [image.path for image in self.test.images]

    def yolo(self, split: str = "train") -> Path:
        """A `data.yaml` whose training images are those of a split."""
        return self.folder / f"yolo-{split}.yaml"

    def coco(self, split: str = "train") -> Path:
        """A folder with `train`, `valid` and `test`, each with its images and `_annotations.coco.json`."""
        return self.folder / f"coco-{split}"


def prepare(folder: Path, console: Console) -> Data:
    """Generate the images and write every layout; what is there is kept."""
    sets = {}
    for split, (count, seed) in SETS.items():
        scenes = folder / "scenes" / split
        workflow.scenes(scenes, count, IMAGE, seed, None, field_of_view=FIELD_OF_VIEW, console=console)
        sets[split] = formats.read(DataConfig(path=scenes / "annotations.json"))
    train = sets["train"]
    sets["few"] = LabelledSet(train.name, train.format, train.classes, train.images[:FEW], ())
    for split, found in sets.items():
        if not (folder / "yolo" / split).exists():
            write.write(found, "yolo", folder / "yolo" / split)
    for split in ("train", "few"):
        names = "".join(f"  {number}: {name}\n" for number, name in enumerate(train.classes))
        (folder / f"yolo-{split}.yaml").write_text(
            f"path: {folder / 'yolo'}\ntrain: {split}/images/train\nval: test/images/train\nnames:\n{names}"
        )
        for part, found in {"train": sets[split], "valid": sets["test"], "test": sets["test"]}.items():
            if not (folder / f"coco-{split}" / part).exists():
                _write_coco(found, folder / f"coco-{split}" / part)
    return Data(folder, train.classes, sets["test"])


def _write_coco(images: LabelledSet, folder: Path) -> None:
    """One part of a data set as RF-DETR reads it, without boxes that are to be ignored."""
    folder.mkdir(parents=True)
    records: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number, image in enumerate(images.images, 1):
        shutil.copyfile(image.path, folder / image.path.name)
        size = {"height": image.height, "width": image.width}
        records["images"].append({"id": number, "file_name": image.path.name, **size})
        counted = image.annotations[~image.annotations.ignore]
        for (left, top, right, bottom), label in zip(counted.boxes.tolist(), counted.labels.tolist(), strict=True):
            width, height = right - left, bottom - top
            box = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
            own = {"id": len(records["annotations"]) + 1, "image_id": number, "category_id": label + 1}
            records["annotations"].append({**own, **box})
    categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(images.classes, 1)]
    (folder / "_annotations.coco.json").write_text(json.dumps({**records, "categories": categories}))


@dataclass(frozen=True)
class Peer(ABC):
    """A detector that is compared, and how it is driven.

    Attributes:
        name: as in the rows.
        start: where its weights come from.
    """

    name: str
    start: str = field(default="random", kw_only=True)
    environment: ClassVar[Environment | None] = None
    graph_holds: ClassVar[str]
    """What its ONNX file gives."""
    unit: ClassVar[str] = "epochs"
    """What the length of a training is counted in."""
    few: ClassVar[int] = 1
    """Units of the short training."""
    trial: ClassVar[int] = 1
    """Units of the training from which the length of the long one is told."""
    scale: ClassVar[tuple[Sequence[float], Sequence[float]]] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    """What its input's colours, 0..255, have subtracted and are then divided by."""

    @property
    def side(self) -> int:
        """Of the square that it is trained on."""
        return SMALL

    @property
    def version(self) -> str:
        return self.environment.packages[0] if self.environment else f"acclimate=={__version__}"

    @property
    def folder(self) -> Path:
        return RUNS / f"{self.name} {self.start}".replace(" ", "-")

    def run(self, *command: str | Path, log: str) -> float:
        return processor_seconds(command, self.folder / f"{log}.log", self.folder)

    @abstractmethod
    def graph(self, data: Data) -> Path:
        """The fp32 ONNX file of a network for the data's classes and a canvas of `SIDE`."""

    @abstractmethod
    def train(self, data: Data, split: str, length: int) -> float:
        """Train in a process of its own, into a folder that no other training has; processor seconds."""

    @abstractmethod
    def boxes(self, data: Data, split: str) -> list[Detections]:
        """What the training of a split left finds in the test images."""

    def input(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A canvas (H, W, 3) in the numbers that the network takes, still with the colours last."""
        less, by = (np.float32(values) for values in self.scale)
        return (canvas.astype(np.float32) - less) / by


@dataclass(frozen=True)
class Ultralytics(Peer):
    """AGPL-3.0: a program that is run, no library that is used."""

    model: str = ""
    environment = Environment("ultralytics", ("ultralytics==8.4.190",))
    graph_holds = "boxes and scores, no NMS"
    scale = ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))

    def _yolo(self, *words: str, log: str) -> float:
        assert self.environment is not None
        quiet = [f"{name}=False" for name in ("sync", "mlflow", "clearml", "comet", "dvc", "raytune")]
        program = self.environment.program("yolo")
        self.run(program, "settings", *quiet, f"weights_dir={RUNS}", f"datasets_dir={RUNS}", log="settings")
        return self.run(program, *words, log=log)

    def graph(self, data: Data) -> Path:
        if not (self.folder / "few").exists():
            self.train(data, "few", self.few)
        weights = self.folder / "few" / "weights" / "last.pt"
        self._yolo("export", f"model={weights}", "format=onnx", f"imgsz={SIDE}", "simplify=False", log="export")
        return weights.with_suffix(".onnx")

    def train(self, data: Data, split: str, length: int) -> float:
        words = {
            "model": f"{self.model}.yaml", "data": data.yolo("few" if split == "few" else "train"), "epochs": length,
            "imgsz": self.side, "val": False, "plots": False, "workers": 0, "device": "cpu", "project": self.folder,
            "name": split, "exist_ok": True,
        }  # fmt: skip
        return self._yolo("train", *(f"{name}={value}" for name, value in words.items()), log=split)

    def boxes(self, data: Data, split: str) -> list[Detections]:
        words = {
            "model": self.folder / split / "weights" / "last.pt", "source": data.images[0].parent, "imgsz": self.side,
            "conf": 0.001, "max_det": 100, "save": False, "save_txt": True, "save_conf": True, "device": "cpu",
            "verbose": False, "project": self.folder, "name": f"boxes-{split}", "exist_ok": True,
        }  # fmt: skip
        labels = self.folder / f"boxes-{split}" / "labels"
        shutil.rmtree(labels, ignore_errors=True)
        self._yolo("predict", *(f"{name}={value}" for name, value in words.items()), log="predict")
        return [from_text(labels / f"{image.path.stem}.txt", (image.height, image.width)) for image in data.test.images]


@dataclass(frozen=True)
class LibreYolo(Peer):
    """MIT; its own command line, but for the export."""

    model: str = ""
    environment = Environment("libreyolo", ("libreyolo==1.6.0",))
    graph_holds = "boxes and scores, no NMS"

    def input(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        # YOLOX takes 0..255, YOLOv9 shares of 1.
        return canvas.astype(np.float32) / (1 if "yolox" in self.model else 255)

    def _libreyolo(self, verb: str, log: str, **options: Any) -> float:
        assert self.environment is not None
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not True]
        flags = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is True]
        return self.run(self.environment.program("libreyolo"), verb, *words, *flags, log=log)

    def graph(self, data: Data) -> Path:
        # Its command line exports checkpoints alone, and a network with random weights has none.
        assert self.environment is not None
        out = self.folder / "graph"
        kind = {"yolox-n": "LibreYOLOX n", "yolo9-t": "LibreYOLO9 t"}[self.model]
        arguments = {"out": str(out), "classes": len(data.classes), "side": SIDE, "model": kind}
        python = self.environment.program("python")
        self.run(python, FOREIGN, "libreyolo", "graph", json.dumps(arguments), log="graph")
        return next(out.glob("*.onnx"))

    def train(self, data: Data, split: str, length: int) -> float:
        source = data.yolo("few" if split == "few" else "train")
        options = {"imgsz": self.side, "workers": 0, "device": "cpu", "no_pretrained": True, "exist_ok": True}
        where = {"project": self.folder, "name": split}
        return self._libreyolo("train", split, model=self.model, data=source, epochs=length, **where, **options)

    def boxes(self, data: Data, split: str) -> list[Detections]:
        options = {"conf": 0.001, "max_det": 100, "imgsz": self.side, "device": "cpu", "json": True, "quiet": True}
        weights = self.folder / split / "weights" / "last.pt"
        self._libreyolo("predict", "predict", model=weights, source=data.images[0].parent, **options)
        said = (self.folder / "predict.log").read_text()
        found = json.loads(said[said.index("{") :].splitlines()[0])["results"]
        by_name = {Path(one["path"]).name: one["detections"] for one in found}
        return [
            detections([[*one["box"].values(), one["class_id"], one["confidence"]] for one in by_name[path.name]])
            for path in data.images
        ]


@dataclass(frozen=True)
class Foreign(Peer):
    """What `peers_foreign.py` drives."""

    program: ClassVar[str]

    @property
    def python(self) -> Path:
        return self.environment.program("python") if self.environment else Path(sys.executable)

    def _program(self, verb: str, log: str, **arguments: Any) -> float:
        return self.run(self.python, FOREIGN, self.program, verb, json.dumps(arguments, default=str), log=log)

    def graph(self, data: Data) -> Path:
        out = self.folder / "graph"
        self._program("graph", "graph", out=out, classes=len(data.classes), side=SIDE)
        return next(out.glob("*.onnx"))

    def train(self, data: Data, split: str, length: int) -> float:
        source = data.coco("few" if split == "few" else "train")
        shared = {"classes": len(data.classes), "side": self.side, "epochs": length}
        return self._program("train", split, data=source, out=self.folder / split, **shared)

    def boxes(self, data: Data, split: str) -> list[Detections]:
        file = self.folder / "boxes.json"
        shared = {"classes": len(data.classes), "side": self.side}
        self._program("boxes", "boxes", out=self.folder / split, images=data.images, file=file, **shared)
        found = json.loads(file.read_text())
        return [detections(found[str(path)]) for path in data.images]


@dataclass(frozen=True)
class RfDetr(Foreign):
    """Apache-2.0; trains by its Python interface."""

    program = "rfdetr"
    environment = Environment("rfdetr", ("rfdetr[train]==1.11.2",))
    graph_holds = "300 queries, which need no NMS"
    scale = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class SsdLite(Foreign):
    """BSD; a model of torchvision, which has neither a trainer nor an exporter in its package."""

    program = "ssdlite"
    graph_holds = "raw outputs"
    scale = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))

    @property
    def side(self) -> int:
        return 320

    @property
    def version(self) -> str:
        from torchvision import __version__ as installed

        return f"torchvision=={installed}"


@dataclass(frozen=True)
class Acclimate(Peer):
    """A preset, with the defaults of everything."""

    size: str = ""
    graph_holds = "raw outputs, normalisation"
    unit = "steps"
    few = 1
    trial = 20

    @property
    def weights(self) -> str:
        return "none" if self.start == "random" else "auto"

    def graph(self, data: Data) -> Path:
        config = ModelConfig.model_validate({"size": self.size, "image_size": (SIDE, SIDE), "weights": "none"})
        file = self.folder / "graph.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_graph(frozen_copy(models.build(models.specify(config, list(data.classes)))), file)
        return file

    def train(self, data: Data, split: str, length: int) -> float:
        out = self.folder / split
        shutil.rmtree(out, ignore_errors=True)
        settings = self.folder / f"{split}.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        source = data.folder / "scenes" / "train" / "annotations.json"
        settings.write_text(
            f'[source]\npath = "{source}"\n[model]\nsize = "{self.size}"\nweights = "{self.weights}"\n'
            f"image_size = {list(IMAGE)}\n"
            f"[train]\nsteps = {length}\nwarmup = {min(100, length // 4)}\ncheckpoint_every = {length}\nworkers = 1\n"
        )
        return self.run(sys.executable, "-m", "acclimate", "train", settings, "--out", out, log=split)

    def boxes(self, data: Data, split: str) -> list[Detections]:
        detector = models.load(self.folder / split)
        found = predictions_of(detector, data.test, "test")
        return [one for one in found if one is not None]


PEERS: tuple[Peer, ...] = (
    Acclimate("acclimate nano", size="nano"),
    Acclimate("acclimate nano", size="nano", start="ImageNet"),
    Acclimate("acclimate tiny", size="tiny"),
    Acclimate("acclimate tiny", size="tiny", start="ImageNet"),
    Ultralytics("YOLO11n", model="yolo11n"),
    Ultralytics("YOLO26n", model="yolo26n"),
    LibreYolo("YOLOX-nano", model="yolox-n"),
    LibreYolo("YOLOv9-t", model="yolo9-t"),
    SsdLite("SSDLite MobileNetV3"),
    RfDetr("RF-DETR nano"),
)


def detections(found: Sequence[Sequence[float]]) -> Detections:
    """Rows of x1, y1, x2, y2, class, score as detections, the best 100 of an image first."""
    table = np.array(found, np.float32).reshape(-1, 6)
    table = table[np.argsort(-table[:, 5], kind="stable")][:100]
    return Detections(table[:, :4], table[:, 4].astype(np.int64), table[:, 5])


def from_text(file: Path, size: tuple[int, int]) -> Detections:
    """Detections of a label file of YOLO's: class, centre, width and height as shares of `size` (H, W), score.

    Where nothing was found there is no file.
    """
    lines = file.read_text().splitlines() if file.exists() else []
    height, width = size
    found = []
    for line in lines:
        label, x, y, w, h, score = map(float, line.split())
        sides = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        found.append([*sides, label, score])
    return detections(found)


def counted(file: Path) -> tuple[float, float]:
    """Millions of weights, and of multiply-accumulates, of an ONNX file's convolutions and matrix products."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    weights = {value.name: tuple(value.dims) for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            weights[node.output[0]] = tuple(node.attribute[0].t.dims)
    shapes = {
        value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | weights
    learned, macs = {}, 0
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        learned |= {name: int(np.prod(weights[name])) for name in node.input if name in weights}
        made = int(np.prod(shapes[node.output[0]]))
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        right = shapes[node.input[1]]
        each = np.prod(right[1:]) if node.op_type == "Conv" or transposed else right[-2]
        macs += made * int(each)
    return sum(learned.values()) / 1e6, macs / 1e6


def exported(peer: Peer, data: Data) -> tuple[Path, list[str]]:
    """The peer's fp32 ONNX file, and its outputs; one that is there is kept."""
    file = peer.folder / "named.onnx"
    if not file.exists():
        named(peer.graph(data), file)
    return file, [output.name for output in onnx.load(file).graph.output]


def named(source: Path, file: Path) -> None:
    """A copy of an ONNX file whose input is called as acclimate's is and whose nodes have names."""
    model = onnx.load(source)
    theirs = model.graph.input[0].name
    model.graph.input[0].name = INPUT
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
        for place, name in enumerate(node.input):
            if name == theirs:
                node.input[place] = INPUT
    onnx.save(model, file)


def variant(
    single: Path, outputs: Sequence[str], canvases: Sequence[Any], runtime: str, precision: str
) -> tuple[Callable[[], Any], float]:
    """A call of a network on a runtime, on one thread, and the MB of its file; see the module for how it is made.

    A file that is there and newer than the fp32 one is kept: quantising takes minutes.
    """
    folder = single.parent / f"{runtime}-{precision}"
    ending = {"onnx": ".onnx", "openvino": ".xml"}[runtime]
    file = folder / f"model{ending}"
    if not file.exists() or file.stat().st_mtime < single.stat().st_mtime:
        fresh = folder.with_name(f"{folder.name}-unfinished")
        for stale in (fresh, folder):
            shutil.rmtree(stale, ignore_errors=True)
        fresh.mkdir()
        if runtime == "onnx" and precision == "fp32":
            shutil.copyfile(single, fresh / file.name)
        elif runtime == "onnx":
            OnnxGraph(single, canvases).write(fresh)
        elif precision == "fp32":
            package().save_model(package().convert_model(single), fresh / file.name, compress_to_fp16=False)
        else:
            OpenVinoGraph(package().convert_model(single), {}, canvases).write(fresh)
        fresh.rename(folder)
    artifact: Any = SimpleNamespace(
        file=lambda ending: file,
        manifest=SimpleNamespace(input_name=INPUT, output_names=tuple(outputs), provider="cpu"),
    )
    call = partial(engine(runtime).open(artifact, 1), to_input(canvases[0]))
    call()
    return call, sum(part.stat().st_size for part in folder.iterdir()) / 1e6


def epochs_that_fit(budget: float, start: float, trial: float, length: int) -> int:
    """How long a training may be, at least one unit, to take `budget` seconds.

    Args:
        budget: seconds.
        start: of a training that is hardly more than starting up.
        trial: of one of `length` units.
        length: see there.
    """
    each = max(trial - start, 1e-3) / length
    return max(1, round((budget - start) / each))


COLUMNS = (
    "what", "peer", "package", "start", "runtime", "precision", "image_size", "classes", "graph", "parameters_m",
    "macs_m", "size_mb", "latency_ms", "ratio_median", "ratio_min", "ratio_max", "speed_up", "rounds", "ap50", "ap",
    "minutes", "processor_s", "length", "unit", "train_images", "test_images", "reason", "processor", "torch",
    "onnxruntime", "openvino",
)  # fmt: skip


def record(csv: Path, peer: Peer, what: str, **values: Any) -> None:
    known = {
        "what": what, "peer": peer.name, "package": peer.version, "start": peer.start,
        "processor": machine.processor(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
        "openvino": package().__version__.split("-")[0], **values,
    }  # fmt: skip
    rows.append(csv, {column: known.get(column, "") for column in COLUMNS})
    print({name: value for name, value in known.items() if name not in ("processor", "torch")}, flush=True)


def latency(peers: Sequence[Peer], data: Data, options: argparse.Namespace) -> None:
    """Time all peers in turn and write their rows together.

    Peers that have rows get no others; the reference is timed beside the rest whether it has rows or not.
    """
    measured = {row["peer"] for row in rows.read(options.csv) if row["what"] == "latency"}
    wanted = [peer for peer in peers if peer.start == "random" and peer.name not in measured]
    if not wanted:
        return
    beside = [peer for peer in PEERS if peer.name == REFERENCE and peer.start == "random" and peer not in wanted]
    peers = beside + wanted
    canvases = [letterbox(read_image(path), (SIDE, SIDE))[0] for path in data.images[:CALIBRATION]]
    calls: dict[tuple[str, str, str], Callable[[], Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    sizes, reasons = {}, {}
    for peer in peers:
        print(peer.name, flush=True)
        try:
            single, outputs = exported(peer, data)
            parameters, macs = counted(single)
            facts[peer.name] = {"parameters_m": f"{parameters:.2f}", "macs_m": f"{macs:.0f}"}
        except Exception as error:  # whatever a peer fails by is its row
            reasons |= {(peer.name, *one): said(error) for one in VARIANTS}
            continue
        inputs = [peer.input(canvas) for canvas in canvases]
        for one in VARIANTS:
            key = (peer.name, *one)
            try:
                calls[key], sizes[key] = variant(single, outputs, inputs, *one)
            except Exception as error:  # likewise
                reasons[key] = said(error)
    timed = [
        {key: median_ms(call, options.runs, time.process_time) for key, call in calls.items()}
        for _ in range(options.rounds)
    ]
    for peer in wanted:
        for runtime, precision in VARIANTS:
            key = (peer.name, runtime, precision)
            values: dict[str, Any] = {"reason": reasons.get(key, "")}
            if key in calls:
                single_key = (peer.name, runtime, "fp32")
                values |= {
                    "size_mb": f"{sizes[key]:.2f}",
                    "latency_ms": f"{statistics.median(one[key] for one in timed):.2f}",
                    **spread(within(timed, key, (REFERENCE, runtime, precision))),
                    "rounds": options.rounds,
                }
                if single_key in calls:
                    values["speed_up"] = f"{statistics.median(one[single_key] / one[key] for one in timed):.2f}"
            record(
                options.csv, peer, "latency", runtime=runtime, precision=precision, image_size=f"{SIDE}x{SIDE}",
                classes=len(data.classes), graph=peer.graph_holds, **facts.get(peer.name, {}), **values,
            )  # fmt: skip


def said(error: Exception) -> str:
    """The first line of an error, for a cell."""
    lines = (str(error) or type(error).__name__).splitlines()
    return lines[0][:160]


def training(peers: Sequence[Peer], data: Data, options: argparse.Namespace) -> None:
    """Train one peer after the other and write its row; a peer that has one is not trained again."""
    for peer in peers:
        known = {(row["peer"], row["start"]) for row in rows.read(options.csv) if row["what"] == "training"}
        if (peer.name, peer.start) in known:
            continue
        size = IMAGE if isinstance(peer, Acclimate) else (peer.side, peer.side)
        values: dict[str, Any] = {"image_size": "x".join(map(str, size)), "minutes": options.minutes}
        try:
            start = peer.train(data, "few", peer.few)
            length = epochs_that_fit(60 * options.minutes, start, peer.train(data, "trial", peer.trial), peer.trial)
            took = peer.train(data, "whole", length)
            found = average_precision(peer.boxes(data, "whole"), data.test, data="clear", role="source")
            values |= {
                "ap50": f"{found.ap50:.4f}", "ap": f"{found.ap:.4f}", "processor_s": f"{took:.0f}",
                "length": length, "unit": peer.unit,
            }  # fmt: skip
        except Exception as error:  # whatever a peer fails by is its row
            values["reason"] = said(error)
        counts = {"classes": len(data.classes), "train_images": SETS["train"][0], "test_images": SETS["test"][0]}
        record(options.csv, peer, "training", **counts, **values)


def tables(csv: Path = CSV) -> Iterator[str]:
    """The page's tables in Markdown: each runtime and precision, fastest first; then what was learned."""
    found = rows.read(csv)
    for runtime, title in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        for precision in ("fp32", "int8"):
            own = [
                row
                for row in found
                if (row["what"], row["runtime"], row["precision"], row["reason"]) == ("latency", runtime, precision, "")
            ]
            yield f"{title}, {precision}:\n"
            yield from _table(
                sorted(own, key=lambda row: float(row["ratio_median"])),
                {
                    "peer": "network", "parameters_m": "weights (M)", "macs_m": "MACs (M)", "size_mb": "MB",
                    "latency_ms": "ms", "ratio_median": f"times {REFERENCE}", "ratio_min": "lowest",
                    "ratio_max": "highest", "speed_up": "times its fp32", "graph": "its graph gives",
                },
            )  # fmt: skip
            yield ""
    yield "After the same processor time of training, on generated scenes in clear weather:\n"
    yield from _table(
        sorted(
            (row for row in found if row["what"] == "training" and not row["reason"]),
            key=lambda row: -float(row["ap50"]),
        ),
        {
            "peer": "network", "start": "start", "image_size": "canvas", "minutes": "minutes",
            "processor_s": "seconds used", "length": "length", "unit": "of", "ap50": "AP50", "ap": "AP",
        },
    )  # fmt: skip
    missing = [row for row in found if row["reason"]]
    if missing:
        yield "\nWhat could not be measured:\n"
        yield from _table(
            missing,
            {"peer": "network", "what": "what", "runtime": "runtime", "precision": "precision", "reason": "why"},
        )


def _table(found: Sequence[Mapping[str, str]], columns: Mapping[str, str]) -> Iterator[str]:
    if not found:
        yield "No rows yet."
        return
    yield from rows.table(found, columns)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["latency", "training"], help="latency, training or both")
    parser.add_argument("--install", action="store_true", help="make the peers' environments first")
    parser.add_argument("--peers", nargs="+", default=[peer.name for peer in PEERS], help="by their names in the rows")
    parser.add_argument("--minutes", type=float, default=6.0, help="of processor time, of a training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each network in a round")
    parser.add_argument("--csv", type=Path, default=CSV)
    options = parser.parse_args(arguments)
    peers = [peer for peer in PEERS if peer.name in options.peers]
    if options.install:
        for environment in {peer.environment for peer in peers if peer.environment}:
            try:
                environment.install()
            except PeerError as error:
                print(f"{environment.name}: {error}", flush=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = prepare(RUNS / "data", Console())
    for what, measure in {"latency": latency, "training": training}.items():
        if what in options.what:
            measure(peers, data, options)


if __name__ == "__main__":
    main()
