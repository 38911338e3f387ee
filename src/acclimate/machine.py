"""What a reader needs to know of this machine to judge a measurement, each fact found in one way."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> str:
    """The text of /proc/cpuinfo; empty where there is none."""
    try:
        return CPUINFO.read_text(errors="replace")
    except OSError:
        return ""


def processor(text: str | None = None) -> str:
    """The processor's name, from the text of /proc/cpuinfo (by default this machine's) where that has one."""
    # ARM boards have no "model name"; "Model" names the board.
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo() if text is None else text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, str]:
    """System, Python, cores, processor and memory."""
    found = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "processor": processor(),
    }
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found["memory_gb"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}"
    return found
