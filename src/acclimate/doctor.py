"""What is installed, and what this machine can do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acclimate import __version__, machine
from acclimate.installation import hint, required
from acclimate.terminal import Terminal

State = Literal["ok", "warn", "absent", "missing", "unseen"]
Area = Literal["machine", "device", "training", "runtimes", "extras"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        area: the heading it stands under.
        name: what was looked at.
        state: `ok`; `warn`, it is there and something about it is to be known; `absent`, it is missing and optional;
            `missing`, acclimate cannot work without it; `unseen`, it was not looked at.
        detail: what was found.
        way_out: what to do about it; empty where nothing need be done.
    """

    area: Area
    name: str
    state: State
    detail: str
    way_out: str = ""


FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "neon": "NEON",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "INT8 matrix product",
    "bf16": "BF16",
    "sve": "SVE",
}
"""Flags of /proc/cpuinfo that decide how fast a quantised network runs, and their common names."""

EXTRAS = {
    "watch": "drift alarms",
    "agent": "serving as a device for verify --device",
    "fleet": "benchmarks on a Ray cluster",
    "trackers": "TensorBoard and MLflow for --track",
    "tune": "searching options with acclimate tune",
    "transformers": "detectors and zero-shot labellers of Hugging Face",
    "docs": "building the documentation's site",
    "mqtt": "events of watch sent by MQTT",
    "executorch-export": "exporting for ExecuTorch",
}
"""Extras that no area of their own lists, and what each is for."""

INT8_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Any of these multiplies and adds 8-bit integers in one instruction."""


def diagnose(deep: bool = False, folder: Path | None = None) -> list[Check]:
    """Look at this machine and installation.

    Imports nothing that takes long, unless asked: versions come from the installed packages' metadata.

    Args:
        deep: import torch as well, to see which CUDA devices it can use and whether torchvision loads; look for
            packaged weights, and try for two seconds to reach the place that the others come from.
        folder: where runs would be written; the working directory unless given.
    """
    checks = [*_machine(folder or Path.cwd()), *_device(), *_training(deep), *_weights(deep)]
    return [*checks, *_runtimes(), *_extras(), _chromium()]


def required_missing(checks: Sequence[Check]) -> bool:
    """Whether something is absent that acclimate cannot work without."""
    return any(check.state == "missing" for check in checks)


def show(checks: Sequence[Check], console: Console | None = None) -> None:
    """Print the diagnosis as a table, and below it what can be done, one line each, to be copied whole."""
    console = console or Terminal()
    marks = {
        "ok": "[green]ok[/]",
        "warn": "[yellow]warn[/]",
        "absent": "[yellow]missing[/]",
        "missing": "[red]missing[/]",
        "unseen": "[dim]not looked at[/]",
    }
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for style in ("bold", "", "", "dim"):
        table.add_column(style=style, overflow="fold")
    area = ""
    for check in checks:
        table.add_row(
            check.area if check.area != area else "", escape(check.name), marks[check.state], escape(check.detail)
        )
        area = check.area
    console.print(table)
    todo = [check for check in checks if check.way_out]
    if todo:
        console.print("\nWhat can be done:")
    for check in todo:
        console.print(f"  {escape(check.name)}: {escape(check.way_out)}", soft_wrap=True, highlight=False)
    if required_missing(checks):
        names = ", ".join(check.name for check in checks if check.state == "missing")
        console.print(f"\n[red]acclimate cannot work here yet[/]: {escape(names)}")


def version(package: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_features(cpuinfo: str) -> list[str]:
    """The names in `FEATURES` of the flags that the text of /proc/cpuinfo lists, without repetition."""
    flags = _flags(cpuinfo)
    return list(dict.fromkeys(name for flag, name in FEATURES.items() if flag in flags))


def requirement_unmet(package: str, needs: str) -> str | None:
    """The requirement on `needs` that `package` states and the installed release of `needs` does not meet.

    None where all is well, or where nothing is stated. torchvision's operators are compiled against a release of
    torch; beside another they do not load, and `pip` lets the two drift apart.
    """
    found = version(needs)
    for text in metadata.requires(package) or () if version(package) else ():
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name == needs and found and not requirement.specifier.contains(found, True):
            return f"{needs}{requirement.specifier}"
    return None


def find_chromium() -> Path | None:
    """The browser that the report's tests use; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


def _flags(cpuinfo: str) -> set[str]:
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, flags=re.MULTILINE)
    return set(" ".join(lines).split())


def _machine(folder: Path) -> Iterator[Check]:
    python = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    way_out = "" if supported else "acclimate is tested on Python 3.11 to 3.13; make the environment with one of them"
    yield Check("machine", "Python", "ok" if supported else "warn", f"{python} ({sys.executable})", way_out)
    yield Check("machine", "acclimate", "ok", __version__)
    yield _processor()
    yield Check("machine", "cores", "ok", f"{machine.usable_cores()} usable of {os.cpu_count()}")
    yield _memory()
    yield _disk(folder)


def _processor() -> Check:
    text = machine.cpuinfo()
    name = machine.processor(text)
    features = cpu_features(text)
    detail = f"{name} ({', '.join(features)})" if features else name
    if text and not _flags(text) & INT8_FLAGS:
        return Check(
            "machine", "processor", "warn", detail, "no dot products of INT8 in hardware: INT8 gains less speed here"
        )
    return Check("machine", "processor", "ok", detail)


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return Check("machine", "memory", "unseen", "this system does not tell")
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").is_file() else ""
    available = re.search(r"^MemAvailable:\s*(\d+) kB", text, flags=re.MULTILINE)
    detail = f"{total:.1f} GiB" + (f", {int(available[1]) / 2**20:.1f} GiB available" if available else "")
    if total < 4:
        return Check("machine", "memory", "warn", detail, "training: lower train.batch_size and train.cache_mb")
    return Check("machine", "memory", "ok", detail)


def _disk(folder: Path) -> Check:
    place = next((p for p in (folder.absolute(), *folder.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 2**30
    detail = f"{free:.1f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return Check("machine", "disk", "warn", f"{detail}, read-only", "write runs elsewhere with --out")
    if free < 2:
        return Check("machine", "disk", "warn", detail, "free some space, or write runs elsewhere with --out")
    return Check("machine", "disk", "ok", detail)


def _device() -> Iterator[Check]:
    for requirement in required():
        if requirement.name == "onnxruntime":
            yield _onnxruntime(requirement)
            continue
        found = version(requirement.name)
        if requirement.name == "opencv-python-headless" and found is None:
            # Any of OpenCV's builds brings the same cv2.
            found = version("opencv-python") or version("opencv-contrib-python-headless")
        yield _package("device", requirement, found, "missing", hint())


def _package(area: Area, requirement: Requirement, found: str | None, absent: State, way_out: str) -> Check:
    if found is None:
        return Check(area, requirement.name, absent, "not installed", way_out)
    if not requirement.specifier.contains(found, True):
        return Check(area, requirement.name, "warn", f"{found}, but {requirement} is wanted", way_out)
    return Check(area, requirement.name, "ok", found)


def _onnxruntime(wanted: Requirement) -> Check:
    try:
        import onnxruntime
    except ImportError as error:
        return Check("device", "onnxruntime", "missing", f"cannot be imported ({error})", hint())
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    if not wanted.specifier.contains(onnxruntime.__version__, True):
        return Check("device", "onnxruntime", "warn", f"{onnxruntime.__version__}, but {wanted} is wanted", hint())
    return Check("device", "onnxruntime", "ok", f"{onnxruntime.__version__} ({', '.join(providers)})")


def _training(deep: bool) -> Iterator[Check]:
    needed = required("train")
    found = {requirement.name: version(requirement.name) for requirement in needed}
    if not found.get("torch") and not found.get("timm"):
        detail = "not installed: this machine can predict and monitor, not train, adapt, export or verify"
        yield Check("training", "extra train", "absent", detail, hint("train"))
        return
    for requirement in needed:
        check = _package("training", requirement, found[requirement.name], "absent", hint("train"))
        unmet = requirement_unmet(requirement.name, "torch") if check.state == "ok" else None
        if unmet:
            detail = f"{check.detail} wants {unmet}, here is torch {found['torch']}"
            check = Check("training", requirement.name, "warn", detail, "install the pair that constraints.txt names")
        yield check
    if deep and found["torch"] and found["torchvision"]:
        yield from _torch()
    elif found["torch"]:
        yield Check("training", "CUDA", "unseen", "acclimate doctor --deep imports torch and looks")


def _torch() -> Iterator[Check]:
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        detail = f"cannot be imported ({str(error).splitlines()[0]})"
        yield Check("training", "torch", "warn", detail, "install the pair that constraints.txt names")
        return
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    yield Check("training", "CUDA", "ok", names or "no device; training runs on the processor")


def _weights(deep: bool) -> Iterator[Check]:
    """Where a backbone's pretrained weights would come from: an installed package, timm's cache, the network."""
    if version("timm") is None:
        return
    from acclimate.models import weights

    cache = _hub_cache()
    kept = len(list(cache.glob("models--timm--*")))
    found = [f"packaged: {', '.join(names)}"] if (names := weights.installed()) else []
    found += [f"{kept} kept in {cache}"] if kept else []
    few = not found
    offline = bool(weights.offline())
    if offline:
        found.append("downloads are switched off")
    elif deep:
        reachable = _reachable(HUB)
        found.append(f"{HUB} {'answers' if reachable else 'does not answer'}")
        offline = not reachable
    few = few and offline
    way_out = "name a file (model.weights=PATH), or train from scratch (model.weights=none)" if few else ""
    yield Check("training", "pretrained weights", "warn" if few else "ok", "; ".join(found) or "none yet", way_out)
    if not deep and not offline:
        yield Check("training", "network", "unseen", f"acclimate doctor --deep tries to reach {HUB}")


HUB = "huggingface.co"


def _hub_cache() -> Path:
    """Where huggingface_hub keeps downloads (its HF_HUB_CACHE and HF_HOME)."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _reachable(host: str) -> bool:
    try:
        with socket.create_connection((host, 443), timeout=2):
            return True
    except OSError:
        return False


def _runtimes() -> Iterator[Check]:
    """One line a row of the engines' table."""
    from acclimate.edge.engines import ENGINES, engine
    from acclimate.export import exporter

    for name in ENGINES:
        if load := engine(name).missing():
            yield Check("runtimes", name, "absent", "not installed", load)
        elif export := exporter(name).missing():
            yield Check("runtimes", name, "ok", f"loads artifacts; to export, {export}")
        else:
            precisions = ", ".join(exporter(name).precisions)
            yield Check("runtimes", name, "ok", f"loads artifacts, exports {precisions}")


def _extras() -> Iterator[Check]:
    """One line an extra: what of it is installed, or how to get it."""
    for extra, purpose in EXTRAS.items():
        found = [_package("extras", needed, version(needed.name), "absent", "") for needed in required(extra)]
        if not found:
            # An installation in place, older than the extra: its metadata is from then.
            detail = f"the installed acclimate does not know it ({purpose})"
            yield Check("extras", f"extra {extra}", "absent", detail, hint(extra))
            continue
        lacking = [f"{check.name} {check.detail}" for check in found if check.state != "ok"]
        detail = ", ".join(lacking or [f"{check.name} {check.detail}" for check in found])
        way_out = hint(extra) if lacking else ""
        state: State = "ok" if not lacking else "warn" if any(check.state == "warn" for check in found) else "absent"
        yield Check("extras", f"extra {extra}", state, f"{detail} ({purpose})", way_out)


def _chromium() -> Check:
    found = find_chromium()
    if found:
        return Check("extras", "chromium", "ok", f"{found} (only the report's own tests use it)")
    way_out = "only the report's own tests need it; on Debian: apt-get install chromium"
    return Check("extras", "chromium", "absent", "not found", way_out)
