"""docs/extending.md is true: one of each is added in the listed places of a copy, and goes through the verbs."""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import acclimate
from another_format import READER

PACKAGE = Path(acclimate.__file__).parent
PAGE = PACKAGE.parents[1] / "docs" / "extending.md"

DETECTOR = '''"""The dense detector with a pyramid of half as many channels as are asked for."""

from acclimate.models.dense import DenseDetector
from acclimate.models.detector import DetectorSpec


class HalvedSpec(DetectorSpec):
    halved: int


class HalvedDetector(DenseDetector):
    kind = "halved"
    Spec = HalvedSpec

    @classmethod
    def specify(cls, config, classes, reading):
        values = super().specify(config, classes, reading).model_dump()
        return HalvedSpec(**{**values, "channels": values["channels"] // 2}, halved=values["channels"])
'''
ENGINE = '''"""ONNX Runtime by another name."""

from acclimate.edge.engines.onnx import Onnx


class Second(Onnx):
    name = "second"
'''
EXPORTER = ENGINE.replace("edge.engines", "export")
VERBS = """
import json, sys
from pathlib import Path
from typer.testing import CliRunner
import acclimate
from acclimate import cli

assert acclimate.__file__.startswith(sys.argv[1]), acclimate.__file__
for line in Path("verbs.txt").read_text().splitlines():
    done = CliRunner().invoke(cli.app, line.split())
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    print(done.output)
"""


def places(kind: str, name: str) -> set[str]:
    """What the page says that adding one touches."""
    block = re.search(rf"```text places: {kind}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert block is not None, kind
    return {line.replace("NAME", name) for line in block[1].split()}


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1, f"{file}: {before!r}"
    file.write_text(text.replace(before, after))


def add_method(package: Path) -> str:
    """The page's own example."""
    code = re.search(r"```python file=moments\.py\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert code is not None
    (package / "adapt" / "moments.py").write_text(code[1])
    line = "    moments: float = Field(default=0.0, ge=0)\n"
    edit(package / "config" / "adapt.py", "    supervised: float", f"{line}    supervised: float")
    return "moments"


def add_detector(package: Path) -> str:
    (package / "models" / "halved.py").write_text(DETECTOR)
    edit(package / "config" / "model.py", 'KINDS = ("dense", ', 'KINDS = ("dense", "halved", ')
    return "halved"


def add_runtime(package: Path) -> str:
    (package / "edge" / "engines" / "second.py").write_text(ENGINE)
    (package / "export" / "second.py").write_text(EXPORTER)
    return "second"


def add_format(package: Path) -> str:
    (package / "data" / "formats" / "listed.py").write_text(READER)
    edit(package / "config" / "data.py", "FORMATS = (\n", 'FORMATS = (\n    "listed",\n')
    return "listed"


ADD = {"method": add_method, "detector": add_detector, "runtime": add_runtime, "format": add_format}


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, folder / "acclimate", ignore=shutil.ignore_patterns("__pycache__")))


def changed(package: Path) -> set[str]:
    """Files of a copy that are new or not as they were."""
    files = (file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    names = (file.relative_to(package) for file in files)
    return {
        str(name)
        for name in names
        if not (PACKAGE / name).is_file() or not filecmp.cmp(PACKAGE / name, package / name, shallow=False)
    }


@pytest.mark.parametrize(("kind", "most"), [("method", 2), ("detector", 3), ("runtime", 2), ("format", 2)])
def test_adding_one_touches_the_listed_places(tmp_path: Path, kind: str, most: int) -> None:
    package = copied(tmp_path)
    name = ADD[kind](package)
    assert changed(package) == places(kind, name)
    assert len(places(kind, name)) <= most


def test_what_was_added_goes_through_the_verbs(tmp_path: Path) -> None:
    package = copied(tmp_path / "lib")
    for add in ADD.values():
        add(package)
    generator = np.random.default_rng(0)
    rows = []
    for folder in ("set", "target"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            picture = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            picture[10:40, 20:50] = (0, 0, 255)
            cv2.imwrite(str(tmp_path / folder / f"{folder}{i}.png"), picture)
            rows += [f"set{i}.png car 20 10 50 40"] if folder == "set" else []
    (tmp_path / "set" / "boxes.list").write_text("\n".join(rows) + "\n")
    (tmp_path / "job.toml").write_text(
        """
        source = { path = "set" }
        [model]
        kind = "halved"
        size = "nano"
        backbone = "lcnet_050"
        weights = "none"
        image_size = [64, 64]
        [train]
        steps = 2
        batch_size = 2
        workers = 0
        warmup = 0
        log_every = 1
        [schedule]
        steps = 2
        warmup = 0
        log_every = 1
        """
    )
    (tmp_path / "verbs.txt").write_text(
        "data set\n"
        "train job.toml --out source\n"
        "adapt source --target target --out adapted adapt.teacher=false adapt.moments=0.5 augment.style=0\n"
        "export adapted --runtime second --precision fp32\n"
        "predict adapted/artifacts/second-fp32 target --out found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", VERBS, str(package)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"PYTHONPATH": str(package.parent), "HOME": "/"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"format": "listed"' in (tmp_path / "source" / "run.json").read_text()
    assert '"halved"' in (tmp_path / "source" / "spec.json").read_text()
    assert '"moments/distance"' in (tmp_path / "adapted" / "metrics.jsonl").read_text()
    notes = (tmp_path / "adapted" / "run.json").read_text()
    assert re.search(r'"method":\s*\[\s*"moments",\s*"supervised"', notes), notes
    assert '"role": "adapted"' in notes, "the method looks at the target, so this is no baseline"
    assert '"second"' in (tmp_path / "adapted" / "artifacts" / "second-fp32" / "artifact.json").read_text()
    assert any((tmp_path / "found").iterdir())
