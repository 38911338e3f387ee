"""One task in a process of its own, read as a line of JSON from standard input: `python -m acclimate.benchmark.worker`.

Exit status: 0 done, 2 failed (the last line says why), 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from acclimate.benchmark.runner import attempt
from acclimate.benchmark.suite import Task
from acclimate.terminal import Terminal


def main() -> int:
    """Do the task; end when the process that gave it is gone."""
    task = Task.from_json(_line())
    threading.Thread(target=_follow, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    console = Terminal(width=120, soft_wrap=True)
    try:
        error = attempt(task, console)
    except KeyboardInterrupt as stop:
        console.print(str(stop) or "interrupted", markup=False, highlight=False)
        return 130
    if error is not None:
        print(f"error: {' '.join(error.splitlines())}", flush=True)
        return 2
    return 0


def _line() -> bytes:
    """The first line of standard input, by the bare descriptor: a thread that holds Python's lock on it at the end
    of the process would abort it."""
    read = bytearray()
    while not read.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            break
        read += part
    return bytes(read)


def _follow() -> None:
    """Interrupt this process when its standard input closes, however the other process ended."""
    while os.read(0, 64):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
