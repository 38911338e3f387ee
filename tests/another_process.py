"""A process of its own that writes into a folder, as far as the lock of that folder can tell."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def another_process(folder: Path, what: str = "train") -> Iterator[subprocess.Popen[str]]:
    """It holds the lock of `folder` until it is told to end."""
    program = textwrap.dedent(f"""
        from pathlib import Path
        from acclimate.locks import held
        with held(Path({str(folder)!r}), {what!r}):
            print("holds", flush=True)
            input()
    """)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        try:
            yield process
        finally:
            process.kill()
