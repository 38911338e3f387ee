"""Modules that benchmarks share are imported as they import them: from the folder they lie in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
