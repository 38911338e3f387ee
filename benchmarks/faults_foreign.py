"""What is foreign is refused in one line: flipped bits, malformed manifests, bad values; and a flooded agent serves.

    python benchmarks/faults_foreign.py
    python benchmarks/faults_foreign.py --flips 100

A row says of how many tries how many went as they must (`survived`) and how many did not (`lost`): a changed byte that
was accepted, a traceback, more than one line, a request of a valid desk that was not served. `faults.py` writes these
rows into its table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Console

from acclimate import cli, config
from acclimate.config import ModelConfig
from acclimate.data import safe_yaml
from acclimate.edge.artifact import Artifact
from acclimate.edge.package import pack, unpack
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.export import exporter
from acclimate.models import detector as models
from acclimate.remote.client import Remote
from acclimate.remote.identity import address

SEED = 0
DESKS = 12
STRANGERS = 4
"""Threads that connect to the agent as fast as they can, and show nothing."""


KINDS = (
    *(("bit flipped", what) for what in ("package", "manifest", "model file")),
    ("malformed", "manifest"),
    ("bad value", "option"),
    ("bad value", "command line"),
    ("flood", "agent"),
)
"""The kinds of the rows, and of what."""


class Row(NamedTuple):
    """One kind of fault."""

    kind: str
    what: str
    tries: int
    survived: int
    lost: int


def make_artifact(folder: Path) -> Path:
    """A small detector's artifact; what its weights are does not matter here."""
    spec = models.specify(ModelConfig(size="nano", image_size=(64, 64), weights="none"), ["car", "person"])
    return exporter("onnx").export(models.build(spec, "none"), folder / "onnx-fp32", "fp32", []).folder


def flips(artifact: Path, count: int = 1000) -> Iterator[Row]:
    """One bit flipped at random in a package, in a manifest, and in a model file: `count` in all."""
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        pack(artifact, place / "site.zip", ["numpy==2.0.0"])
        folder = place / "artifact"
        folder.mkdir()
        for file in artifact.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        model = next(name for name in Artifact.open(artifact).manifest.files)

        def opened() -> None:
            Artifact.open(folder)

        def unpacked() -> None:
            unpack(place / "site.zip", place / "out")

        kinds = (
            ("package", place / "site.zip", unpacked, count // 2),
            ("manifest", folder / "artifact.json", opened, count // 4),
            ("model file", folder / model, opened, count - count // 2 - count // 4),
        )
        for name, file, use, tries in kinds:
            whole = file.read_bytes()
            use()
            shutil.rmtree(place / "out", ignore_errors=True)
            bits = [rng.randrange(8 * len(whole)) for _ in range(tries)]
            yield _row("bit flipped", name, (_flipped(file, whole, bit, use) for bit in bits))
            file.write_bytes(whole)


def manifests(artifact: Path) -> Iterator[Row]:
    """Manifests that mean nothing, as somebody writes them who also knows how checksums are made."""
    text = (artifact / "artifact.json").read_text()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in artifact.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

        def use(change: Any) -> Callable[[], None]:
            def load() -> None:
                values = {key: value for key, value in json.loads(text).items() if key != "sha256"} | {"format": 1}
                written = change(values) if callable(change) else json.dumps(_changed(values, change))
                (folder / "artifact.json").write_bytes(written if isinstance(written, bytes) else written.encode())
                Predictor.load(folder)

            return load

        use({})()
        yield _row("malformed", "manifest", (_refused(use(change)) for change in MANIFESTS))


def values() -> Iterator[Row]:
    """Values that no option can have."""
    with tempfile.TemporaryDirectory() as temporary:
        job = Path(temporary) / "job.toml"
        job.write_text("")

        def option(override: str) -> Callable[[], None]:
            return lambda: (config.load(job, [override]), None)[1]

        def budget(text: str) -> Callable[[], None]:
            return lambda: (config.parse_budget(text), None)[1]

        def document(text: str) -> Callable[[], None]:
            def load() -> None:
                try:
                    safe_yaml.load(text.encode())
                except ValueError as error:
                    raise AcclimateError(str(error)) from None

            return load

        tries = [*map(option, OPTIONS), *map(budget, BUDGETS), *map(document, DOCUMENTS)]
        yield _row("bad value", "option", map(_refused, tries))


def commands(artifact: Path) -> Iterator[Row]:
    """Command lines with a number, a path or a word that no verb takes."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "images").mkdir()
        cv2.imwrite(str(place / "images" / "a.png"), np.full((64, 64, 3), 99, np.uint8))
        (place / "file.txt").write_text("no data\n")
        words = {"ARTIFACT": str(artifact), "LONG": "a" * 5000}

        def refused(line: str) -> bool:
            arguments = [words.get(word, word) for word in line.split()]
            said = io.StringIO()
            with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                try:
                    status: object = cli.main(arguments)
                except BaseException as error:
                    status = f"{type(error).__name__}: {error}"
            lines = said.getvalue().splitlines()
            if status == 2 and sum(one.startswith("error: ") for one in lines) == 1:
                return True
            print(f"{line}: {status}: {lines[:3]}", file=sys.stderr)
            return False

        yield _row("bad value", "command line", map(refused, COMMANDS))


def flood(artifact: Path) -> Iterator[Row]:
    """Desks that come anew, send a package, detect and go, while strangers take every connection that they get."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        pack(artifact, place / "site.zip", ["numpy==2.0.0"])
        image = place / "image.png"
        cv2.imwrite(str(image), np.full((64, 64, 3), 99, np.uint8))
        with _agent(place / "home") as device, _flooded(address(str(device)).port):

            def ask() -> None:
                desk = Remote(address(str(device)))
                desk.install(place / "site.zip", 2)
                desk.detect(image)
                desk.close()

            yield _row("flood", "agent", (_served(ask) for _ in range(DESKS)))


def rows(flips_in_all: int = 1000) -> Iterator[Row]:
    """All of them."""
    with tempfile.TemporaryDirectory() as temporary:
        artifact = make_artifact(Path(temporary))
        yield from flips(artifact, flips_in_all)
        yield from manifests(artifact)
        yield from values()
        yield from commands(artifact)
        yield from flood(artifact)


def _row(kind: str, what: str, went_well: Iterable[bool]) -> Row:
    told = list(went_well)
    return Row(kind, what, len(told), sum(told), len(told) - sum(told))


def _refused(use: Callable[[], None]) -> bool:
    """Whether it is refused in one line; anything else, acceptance too, is a loss and told on standard error."""
    try:
        use()
    except AcclimateError as error:
        if "\n" not in str(error):
            return True
        print(f"several lines: {error}", file=sys.stderr)
    except Exception as error:  # a traceback for the user, whatever its type
        print(f"traceback: {type(error).__name__}: {error}", file=sys.stderr)
    else:
        print("accepted", file=sys.stderr)
    return False


def _served(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except AcclimateError as error:
        print(f"not served: {error}", file=sys.stderr)
        return False
    return True


def _flipped(file: Path, whole: bytes, bit: int, use: Callable[[], None]) -> bool:
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    return _refused(use)


def _changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`values` with dotted keys set, or taken away where the value is `ABSENT`."""
    for key, value in change.items():
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        if value is ABSENT:
            del node[leaf]
        else:
            node[leaf] = value
    return values


@contextmanager
def _agent(home: Path) -> Iterator[Path]:
    """An agent in a process of its own; its device file."""
    command = [sys.executable, "-m", "acclimate", "agent", "--home", str(home), "--bind", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (home / "device.toml").is_file():
                break
            time.sleep(0.1)
        yield home / "device.toml"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _flooded(port: int) -> Iterator[None]:
    stop = threading.Event()

    def strange() -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            with suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", port), 5))
                held[-1].send(b"\x16\x03\x01")
            if len(held) > 50:
                held.pop(0).close()
        for connection in held:
            connection.close()

    threads = [threading.Thread(target=strange) for _ in range(STRANGERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


ABSENT = object()
NAN = float("nan")
MANIFESTS: list[Any] = [
    *({key: ABSENT} for key in ("name", "runtime", "precision", "classes", "image_size", "decode", "format", "files")),
    *({"classes": value} for value in ([], None, ["car"], ["car"] * 2, ["", "b"], ["a\n", "b"], [1, 2], "ab")),
    {"classes": ["car", "person", "more"]},
    *({"image_size": v} for v in ([40000, 40000], [0, 64], [-64, 64], [64], [64, 64, 64], [8192, 8192], [NAN, 64])),
    *({"image_size": v} for v in ([32, 32], [128, 64], "64")),
    *({"fill": value} for value in (-1, 256, 1.5, None)),
    *({"show_threshold": value} for value in (NAN, float("inf"), -0.1, 1.1, "high")),
    *({"output_names": value} for value in ([], ["logits"], ["distances", "logits"], ["a", "b"], "ab")),
    *({"input_name": value} for value in ("", "other", None)),
    *({"decode.strides": value} for value in ([], [0], [-8], [8], [32, 16, 8], [8, 16, 512], [8.5])),
    *({"decode.kind": value} for value in ("two-stage", "ssd", "unheard of")),
    *({"decode.score_threshold": value} for value in (NAN, 2)),
    {"decode.nms_iou": -1},
    {"decode.candidates": 0},
    {"decode.max_detections": 10**12},
    {"decode.more": 1},
    {"runtime": "unheard of"},
    {"runtime": "ncnn"},
    {"files": {}},
    {"files": {"../model.onnx": "0" * 64}},
    {"files": {"model.onnx": "0"}},
    {"notes": {"macs_m": "many"}},
    {"format": 99},
    lambda values: b"[" * 200_000,
    lambda values: b"",
    lambda values: b"\xff\xfe",
    lambda values: b" " * 2**23,
]
OPTIONS = [
    *("seed=-1", "seed=4294967296", "seed=1.5", "seed=" + "9" * 5000),
    *("augment.scale=[2,1]", "augment.scale=[0,1]", "augment.scale=[1,nan]", "augment.scale=[1]", "augment.flip=2"),
    *("train.workers=100000", "train.workers=-1", "train.batch_size=0", "train.batch_size=99999999"),
    *("train.steps=0", "train.steps=999999999999", "train.lr=0", "train.lr=inf", "train.lr=nan", "train.ema=1"),
    *("train.precision=int4", "train.cache_mb=-1", "train.cache_mb=99999999999", "train.lr=" + "[" * 5000),
    *("model.image_size=[1000000,1000000]", "model.image_size=[0,64]", "model.image_size=[8192,8192]"),
    *("model.image_size=64", "model.strides=[0]", "model.strides=[]", "model.channels=1", "model.channels=999999"),
    *("model.depth=-1", "model.kind=odd", "model.slimmable.choices=[2.0]", "model.two_stage.anchors=[-1]"),
    *("model.two_stage.proposals=0", "model.ssd.scales=[0]", "model.freeze=99"),
    *("target=" + "a" * 5000, "target=" + "a/" * 3000, 'target="a\\u0000b"', "export.runtime=" + "a" * 5000),
    *("export.precisions=[]", "export.tolerance=1", "export.calibration_images=0", "adapt.teacher.boxes=-1"),
    *("nothing=1", "train=1", "=1", "budget.threads=99999"),
]
BUDGETS = ["threads=999999", "latency_ms=1,latency_ms=2", "latency_ms=-1", "latency_ms=nan", "latency", "speed=1"]
COMMANDS = [
    *(f"scenes s --images {n}" for n in ("0", "-1", "1e9", "99999999999", "many")),
    *(f"scenes s --images 2 --{side} {n}" for side in ("height", "width") for n in ("1", "1000000")),
    *(f"scenes s --images 2 --seed {n}" for n in ("-1", "4294967296", "1.5")),
    *(f"scenes s --images 2 --condition fog --strength {n}" for n in ("nan", "inf", "0", "1e9")),
    *(f"scenes s --images 2 --field-of-view {n}" for n in ("nan", "180")),
    *("scenes s --images 2 --condition haze", "scenes LONG --images 2", "scenes file.txt --images 2"),
    *(f"predict ARTIFACT images --out out --threads {n}" for n in ("0", "-1", "99999", "1e3")),
    *(f"predict ARTIFACT images --out out --threshold {n}" for n in ("nan", "-1", "2")),
    *("predict ARTIFACT nothing --out out", "predict nothing images --out out", "predict file.txt images --out out"),
    *(
        "predict ARTIFACT LONG --out out",
        "predict ARTIFACT images --out LONG",
        "predict ARTIFACT images --out file.txt",
    ),
    *(f"watch ARTIFACT --source images --once --out out --port {n}" for n in ("-1", "99999")),
    *(f"watch ARTIFACT --source images --once --out out --fps {n}" for n in ("0", "-1", "nan", "inf")),
    *(f"watch ARTIFACT --source images --once --out out --{key} nan" for key in ("file-mb", "threshold", "keep")),
    *("watch ARTIFACT --source LONG --once --out out", "watch ARTIFACT --source images --once --out file.txt"),
    *(f"agent --home home --disk-mb {n}" for n in ("nan", "-5", "inf", "1e300")),
    *(f"agent --home home --bind {where}" for where in ("nohost.invalid:1", "127.0.0.1:99999", "127.0.0.1:x", "LONG")),
    *(f"verify ARTIFACT --budget {text}" for text in ("threads=999", "latency_ms=1e400", "min_ap50=2", "speed")),
    *("verify ARTIFACT --digest 12", "verify ARTIFACT --device nothing.toml", "verify LONG", "verify file.txt"),
    *("package ARTIFACT --out .", "package ARTIFACT --out LONG", "package ARTIFACT --out s.zip --sign file.txt"),
    *("package file.txt --out out", "package nothing --out out", "package ARTIFACT --out file.txt/s.zip"),
    *(
        "report nothing --out r.html",
        "leaderboard nothing",
        "leaderboard LONG",
        "report LONG",
        "data LONG",
        "data nothing",
    ),
    *("data images --to nothing out", "data images --to yolo", "data file.txt", "data images --sheet images"),
    *(
        "train file.txt --out out",
        "train nothing.toml --out out",
        "train LONG --out out",
        "run images",
        "run nothing.toml",
    ),
    *(
        "benchmark nothing",
        "benchmark file.txt",
        "nonsense",
        "train",
        "evaluate images --data images",
        "weights nothing",
    ),
]
"""Words in capitals stand for an artifact, and for a name that no file system takes."""
DOCUMENTS = [
    "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]),
    *("names: &a [*a]", "names: *b", "[" * 5000, "{a: " * 5000),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="What is foreign is refused, and a flooded agent serves.")
    parser.add_argument("--flips", type=int, default=1000, help="bits to flip in all")
    options = parser.parse_args()
    console = Console()
    lost = 0
    for row in rows(options.flips):
        console.print(f"{row.kind} ({row.what}): {row.survived} of {row.tries}, {row.lost} lost", highlight=False)
        lost += row.lost
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
