"""Latency, memory and energy of an artifact in a process of its own.

    python -m acclimate.edge.bench ARTIFACT < paths.txt

Image paths come on standard input, one a line; the result goes to standard output as JSON (`Bench`). Nothing but what
the device needs is loaded, so the peak memory is the device's too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from acclimate.edge.energy import Meter
from acclimate.edge.images import read_image
from acclimate.edge.predict import Predictor
from acclimate.errors import AcclimateError
from acclimate.structures import Image

Count = Annotated[int, Field(ge=0, le=10**9)]
Amount = Annotated[float, Field(ge=0, le=1e9)]


class Bench(BaseModel):
    """What one process measured. Times are of one image in memory: decoding a file is not part of them.

    A device may be another machine, and a file may be damaged: what no process can have measured is none.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    threads: Count
    images: Count
    """Different images used; 0 means generated noise, for want of images."""
    runs: Count
    median_ms: Amount
    p95_ms: Amount
    iqr_ms: Amount
    """Distance between the quartiles."""
    cpu_ms: Amount
    """Processor time an image, mean over the runs and sum over the threads; far below the median on a busy machine."""
    parts: dict[str, Amount]
    """Medians in ms: `prepare` (letterbox, layout), `network`, `finish` (decoding, NMS)."""
    load_ms: Amount
    """From the start of loading to the first detections."""
    peak_memory_mb: Amount
    """Largest resident memory of the process, in 10^6 bytes, with the interpreter and all libraries."""
    idle_memory_mb: Amount
    """The same before the artifact was loaded."""
    waited_ms: Amount | None = None
    """Time an image that threads were ready to run and others had the processor, mean over the runs and sum over the
    threads; None where the system does not tell."""
    energy_mj: Amount | None = None
    """Of the processor packages for one image, with whatever else ran; None where the machine does not tell."""


def bench(folder: Path, paths: Sequence[Path], threads: int, runs: int, warmup: int) -> Bench:
    """Measure the artifact in `folder` on images, one after the other, over and over.

    Args:
        folder: the artifact's.
        paths: the image files; noise where there are none.
        threads: of the runtime.
        runs: images that are timed.
        warmup: images before those.

    Raises:
        AcclimateError: the artifact cannot be loaded.
    """
    cv2.setNumThreads(threads)
    idle = _peak_mb()
    images = _endless(paths)
    count, first = next(images)
    start = time.perf_counter()
    predictor = Predictor.load(folder, threads)
    predictor(first)
    load_ms = 1e3 * (time.perf_counter() - start)
    used: set[int] = set()
    times = np.zeros((runs, 3))
    cpu = 0.0
    queued = 0.0
    for index in range(-warmup, runs):
        count, image = next(images)
        cpu_before, queued_before = time.process_time(), _queued_ms()
        begin = time.perf_counter()
        pieces = predictor.pieces(image)
        prepared = time.perf_counter()
        answers = predictor.answers(pieces)
        computed = time.perf_counter()
        predictor.gather(pieces, answers)
        end = time.perf_counter()
        if index >= 0:
            times[index] = prepared - begin, computed - prepared, end - computed
            used.add(count)
            cpu += time.process_time() - cpu_before
            queued += (_queued_ms() or 0.0) - (queued_before or 0.0)
    energy_mj = _energy_mj(predictor, image, runs)
    times *= 1e3
    total = times.sum(axis=1)
    lower, median, upper, high = (float(value) for value in np.percentile(total, [25, 50, 75, 95]))
    return Bench(
        threads=threads,
        images=len(used - {-1}),
        runs=runs,
        median_ms=median,
        p95_ms=high,
        iqr_ms=upper - lower,
        cpu_ms=1e3 * cpu / runs,
        waited_ms=None if _queued_ms() is None else queued / runs,
        parts=dict(zip(("prepare", "network", "finish"), np.median(times, axis=0).tolist(), strict=True)),
        load_ms=load_ms,
        peak_memory_mb=_peak_mb(),
        idle_memory_mb=idle,
        energy_mj=energy_mj,
    )


def _energy_mj(predictor: Predictor, image: Image, runs: int) -> float | None:
    # A pass of its own: the counters move about every millisecond, too seldom for one image, and no file is read here.
    meter = Meter.of_machine()
    if meter is None:
        return None
    before = meter.read()
    for _ in range(runs):
        predictor(image)
    return meter.between_mj(before, meter.read()) / runs


def command(folder: Path, threads: int, runs: int) -> list[str]:
    """What starts this module in a process of its own, with the paths of images on its standard input."""
    options = ["--threads", str(threads), "--runs", str(runs)]
    return [sys.executable, "-m", "acclimate.edge.bench", str(folder), *options]


def bench_apart(folder: Path, paths: Sequence[Path], threads: int, runs: int) -> Bench:
    """Run this module in a process of its own, as its peak memory is that process's.

    Args:
        folder: the artifact's.
        paths: images; none means noise.
        threads: of the network.
        runs: timed images.

    Raises:
        AcclimateError: the process failed.
    """
    done = subprocess.run(
        command(folder, threads, runs),
        input="\n".join(str(path.absolute()) for path in paths),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise AcclimateError(f"{folder}: the latency process failed: {reason(done.stderr, done.returncode)}")
    return Bench.model_validate_json(done.stdout)


def reason(stderr: str, status: int) -> str:
    """Why a process of `command` failed, in one line."""
    return (stderr.strip().splitlines() or [f"exit status {status}"])[-1]


def _endless(paths: Sequence[Path]) -> Iterator[tuple[int, Image]]:
    """The readable images over and over, each with its number; noise with number -1 where there is none."""
    readable = []
    for number, path in enumerate(paths):
        try:
            image = read_image(path)
        except AcclimateError:
            continue
        readable.append((number, path))
        yield number, image
    if not readable:
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        yield from itertools.repeat((-1, noise))
    for number, path in itertools.cycle(readable):
        yield number, read_image(path)


def _queued_ms() -> float | None:
    """How long this process's threads have waited in run queues so far; None where the system does not tell."""
    # The second number of schedstat is the time on a run queue, in nanoseconds (Linux, sched-stats).
    try:
        files = Path("/proc/self/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[1]) for file in files) / 1e6 or None
    except (OSError, IndexError, ValueError):
        return None


def _peak_mb() -> float:
    # Linux hands ru_maxrss down to the programs that a process starts; VmHWM is of this program alone.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main() -> None:
    """The command line; a problem is one line on standard error and exit status 2."""
    parser = argparse.ArgumentParser(
        description="Latency, memory and energy of an artifact; image paths on standard input."
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-options.threads :])
    paths = [Path(line) for line in os.fsdecode(sys.stdin.buffer.read()).split("\n") if line]
    try:
        result = bench(options.artifact, paths, options.threads, options.runs, options.warmup)
    except AcclimateError as error:
        sys.exit(f"error: {error}")
    print(result.model_dump_json())


if __name__ == "__main__":
    main()
