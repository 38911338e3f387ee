"""What the base package takes on a device's disk: installed into an empty environment, by package.

    python benchmarks/size.py

Prints, and writes nothing. Sizes are of files, without byte code, in 10^6 bytes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = """
from importlib import metadata
for one in metadata.distributions():
    files = [file.locate() for file in one.files or [] if not file.name.endswith(".pyc")]
    print(one.name, sum(file.stat().st_size for file in files if file.is_file()))
"""


def installed(extras: str = "") -> dict[str, int]:
    """Bytes of each package that `pip install .` brings, with extras such as `[watch]`."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv") or sys.exit("needs uv (make environment)")
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "env" / "bin" / "python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]], check=True)
        pins = REPOSITORY / "constraints.txt"
        command = [uv, "pip", "install", "--quiet", "--python", python, "-c", pins, "-b", pins, f"{REPOSITORY}{extras}"]
        subprocess.run(command, check=True)
        told = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    return {name: int(size) for name, size in (line.split() for line in told.splitlines())}


def main() -> None:
    base = installed()
    for name, size in sorted(base.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.1f}  {name}")
    print(f"{sum(base.values()) / 1e6:8.1f}  together")
    for extra in ("watch", "mqtt"):
        more = installed(f"[{extra}]")
        print(f"{(sum(more.values()) - sum(base.values())) / 1e6:8.1f}  more with [{extra}]")


if __name__ == "__main__":
    main()
