"""A long run of `watch` through everything that goes wrong on a device: is memory flat, and is every line there?

    python benchmarks/soak.py --disk /mnt/small

`watch` is a process of its own on a folder that another thread fills with images of 96 x 128 px. On the way

- the source is taken away and restored, twice;
- the process is killed (SIGKILL) at random moments and started again;
- the disk is filled to the last byte and emptied again. `--disk` is a small file system of its own (on Linux, as root:
  mount -t tmpfs -o size=40m tmpfs /mnt/small).

At the end every image must have its line, once and in order, but for those that the process counted as unwritten while
the disk was full. Each phase is a row, with the resident memory of the process sampled along the way.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import psutil

import rows
from acclimate import machine, workflow
from acclimate.config import Config, ModelConfig, ScheduleConfig
from acclimate.edge.images import read_image
from acclimate.scenes import sets

CSV = Path(__file__).with_suffix(".csv")
SIZE = (96, 128)
AHEAD = 400
"""The folder is filled so many images ahead of the lines; images that are done are removed, as a device would."""
STALLED_S = 120
KILLS = 5
"""Each while the process is at work: some hundred frames after it was started."""


class Feeder(threading.Thread):
    """Puts images into a folder, so that there are always some that are new, and removes those that are done."""

    def __init__(self, folder: Path, pictures: list[np.ndarray]) -> None:
        super().__init__(daemon=True)
        self.folder, self._encoded = folder, []
        rng = np.random.default_rng(0)
        for picture in pictures:
            for _ in range(4):
                noisy = (picture + rng.normal(0, 2, picture.shape)).clip(0, 255).astype(np.uint8)
                self._encoded.append(cv2.imencode(".jpg", noisy[..., ::-1])[1].tobytes())
        self.made = self.seen = 0
        self.paused, self.ended = threading.Event(), threading.Event()

    def run(self) -> None:
        removed = 0
        while not self.ended.wait(0.02):
            if self.paused.is_set():
                continue
            while self.made < self.seen + AHEAD:
                temporary = self.folder / ".next"
                temporary.write_bytes(self._encoded[self.made % len(self._encoded)])
                temporary.rename(self.folder / f"{self.made:08}.jpg")
                self.made += 1
            while removed < self.seen:
                (self.folder / f"{removed:08}.jpg").unlink(missing_ok=True)
                removed += 1


class Watched:
    """The process, its output and its memory."""

    def __init__(self, artifact: Path, source: Path, out: Path, said: Path) -> None:
        self.out, self._said = out, said
        self._command = [sys.executable, "-m", "acclimate", "watch", str(artifact), "--source", str(source)]
        self._command += ["--out", str(out), "--port", "0", "--file-mb", "0.5", "--files", "100000", "--keep", "40"]
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with open(self._said, "ab") as said:
            self.process = subprocess.Popen(self._command, stdout=said, stderr=said)

    def memory_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def last(self) -> int:
        """The number of the newest image that has a line."""
        file = self.out / "detections.jsonl"
        whole = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        whole = [line for line in whole if line.endswith(b"\n")]
        if not whole:
            older = sorted(self.out.glob("detections.*.jsonl"))
            whole = older[-1].read_bytes().splitlines() if older else []
        return int(Path(json.loads(whole[-1])["file"]).stem) if whole else -1

    def lines(self) -> list[dict]:
        files = [*sorted(self.out.glob("detections.*.jsonl")), self.out / "detections.jsonl"]
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "events.jsonl").read_text().splitlines()]


def artifact(folder: Path) -> Path:
    """A detector that learnt for some steps; how well does not matter here."""
    data = sets.generate(folder / "scenes", 60, SIZE, 0)
    schedule = ScheduleConfig(steps=30, batch_size=4, warmup=5, checkpoint_every=30, log_every=10, workers=0)
    model = ModelConfig(size="nano", backbone="lcnet_050", conv="depthwise", image_size=SIZE, weights="none")
    run = workflow.train(Config(source={"path": data}, model=model, train=schedule), folder / "run")
    return workflow.export(run.path, precision="fp32")


def soak(folder: Path, disk: Path, frames: int) -> None:
    rng = np.random.default_rng(1)
    exported = artifact(folder)
    pictures = [read_image(path) for path in sorted((folder / "scenes" / "images").iterdir())]
    source, away = folder / "in", folder / "away"
    source.mkdir()
    out = disk / "out"
    feeder, watched = Feeder(source, pictures), Watched(exported, source, out, folder / "said.log")
    feeder.start()
    watched.start()
    unwritten = 0

    def until(done: Callable[[], bool], memory: list[float] | None = None) -> None:
        moved, newest = time.monotonic(), -1
        while not done():
            time.sleep(0.1)
            last = watched.last()
            if last > newest:
                newest, moved = last, time.monotonic()
            feeder.seen = max(feeder.seen, last)
            if memory is not None:
                memory.append(watched.memory_mb())
            if watched.process.poll() is not None or time.monotonic() - moved > STALLED_S:
                raise SystemExit(f"stalled at image {newest}; see {folder / 'said.log'}")

    def phase(name: str, number: int, event: Callable[[], None] | None = None) -> None:
        memory: list[float] = []
        began, first = time.monotonic(), watched.last()
        if event is not None:
            event()
        # The first moments of a process load the runtime.
        until(lambda: watched.last() >= first + min(500, number // 2))
        until(lambda: watched.last() >= first + number, memory)
        seconds, last = time.monotonic() - began, watched.last()
        tenth = max(1, len(memory) // 10)
        row = {
            "phase": name,
            "frames": last - first,
            "seconds": f"{seconds:.0f}",
            "memory_begin_mb": f"{statistics.median(memory[:tenth]):.1f}",
            "memory_end_mb": f"{statistics.median(memory[-tenth:]):.1f}",
            "memory_largest_mb": f"{max(memory):.1f}",
            "unwritten": unwritten,
            "lost": "",
            "torn": "",
            "processor": machine.facts()["processor"],
        }
        rows.append(CSV, row)
        print(row, flush=True)

    def gone() -> None:
        feeder.paused.set()
        time.sleep(0.5)
        source.rename(away)
        time.sleep(3)
        away.rename(source)
        feeder.paused.clear()

    def killed() -> None:
        for _ in range(KILLS):
            further = watched.last() + int(rng.integers(50, 250))
            until(lambda further=further: watched.last() >= further)
            watched.process.send_signal(signal.SIGKILL)
            watched.process.wait()
            watched.start()

    def full() -> None:
        nonlocal unwritten
        filling = disk / "filling"
        with open(filling, "wb", buffering=0) as file:
            for size in (1 << 20, 4096, 64, 1):
                with_room = True
                while with_room:
                    try:
                        with_room = file.write(bytes(size)) == size
                    except OSError:
                        with_room = False
        time.sleep(8)
        filling.unlink()

    def stop() -> None:
        watched.process.send_signal(signal.SIGTERM)
        if watched.process.wait(60):
            raise SystemExit(f"ended with {watched.process.returncode}; see {folder / 'said.log'}")

    share = frames // 10
    phase("steady", 3 * share)
    phase("source gone and back", share, gone)
    phase("killed five times", 2 * share, killed)
    phase("disk full", share, full)
    phase("source gone and back", share, gone)
    phase("steady", 2 * share)
    stop()
    feeder.ended.set()
    lines, stopped = watched.lines(), [event for event in watched.events() if event["event"] == "stopped"]
    unwritten = stopped[-1]["unwritten"]
    starts = sum(event["event"] == "started" for event in watched.events())
    if starts != KILLS + 1:
        raise SystemExit(f"{starts} starts, where {KILLS + 1} were expected")
    images = [int(Path(line["file"]).stem) for line in lines]
    if images != sorted(set(images)):
        raise SystemExit("lines are not in order, or an image has two")
    row = {
        "phase": "all",
        "frames": len(lines) + unwritten,
        "seconds": "",
        "memory_begin_mb": "",
        "memory_end_mb": "",
        "memory_largest_mb": "",
        "unwritten": unwritten,
        "lost": images[-1] + 1 - len(images) - unwritten,
        "torn": sum(file.stat().st_size for file in watched.out.glob("*.torn")),
        "processor": machine.facts()["processor"],
    }
    rows.append(CSV, row)
    print(row, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disk", type=Path, required=True, help="a small, empty file system, for instance a tmpfs")
    parser.add_argument("--frames", type=int, default=20_000)
    options = parser.parse_args(arguments)
    if any(options.disk.iterdir()) or shutil.disk_usage(options.disk).total > 2**28:
        raise SystemExit(f"{options.disk}: is not empty, or larger than 256 MiB; it would be filled to the last byte")
    CSV.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        soak(Path(temporary), options.disk, options.frames)


if __name__ == "__main__":
    main()
